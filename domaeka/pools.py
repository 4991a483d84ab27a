"""Pools that phones, rooms, people and addresses share, and what is said when one gives way."""

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

#: Least time between two log lines of one pool, in seconds.
NEWS_SECONDS: Final = 60.0
#: Longest name of a claimant that is kept, in characters: strangers choose names.
_CLAIMANT_CHARS: Final = 200


class Pool(StrEnum):
    """
    Something of a fixed size that somebody can fill: the values of the label C{pool}.

    docs/security.md, "Shares", has for each its bound, the share of a claimant, and who gives way.
    """

    DOUBTFUL_LINES = "doubtful lines"
    PLACES = "places"
    SIGNATURES = "signatures"


class Yielded(NamedTuple):
    """
    What a log line tells of a pool.

    @ivar claimant: who held the most, or came last: a phone, a room, an address; empty: nobody
        can be named.
    @ivar times: how often it gave way since the line before.
    """

    pool: Pool
    claimant: str
    times: int


class Pools:
    """
    Notes each time that a shared pool gives way: something was refused, dropped or put out
    because a claimant was at the end of its share, or the pool was full.

    The metric C{domaeka_gave_way_total} counts at once; the log has a line a minute for a pool.
    """

    def __init__(self, counted: Callable[[Pool, int], object]) -> None:
        """@param counted: adds to the metric of a pool."""
        self._counted = counted
        #: What is not logged yet.
        self._news: dict[Pool, Yielded] = {}
        self._told_at: dict[Pool, float] = {}

    def gave_way(self, pool: Pool, claimant: object = "", count: int = 1) -> None:
        """
        Note that C{pool} gave way.  Only the reactor's thread may.

        @param claimant: at whose cost: the largest holder, or whoever was refused; C{str()} of it
            is logged.
        @param count: how many items were refused, dropped or put out.
        """
        self._counted(pool, count)
        before = self._news.get(pool)
        self._news[pool] = Yielded(
            pool, str(claimant)[:_CLAIMANT_CHARS], count + (0 if before is None else before.times)
        )

    def news(self, now: float) -> list[Yielded]:
        """
        What is to be logged now; it is told once.

        @param now: the time, in seconds.
        """
        if not self._news:
            return []
        due = [
            pool
            for pool in self._news
            if now >= self._told_at.get(pool, now - NEWS_SECONDS) + NEWS_SECONDS
        ]
        self._told_at.update(dict.fromkeys(due, now))
        return [self._news.pop(pool) for pool in due]
