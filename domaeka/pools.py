"""Pools that phones, rooms, people and addresses share, and what is said when one gives way."""

from collections.abc import Callable, Hashable
from enum import StrEnum
from typing import Final, NamedTuple

from domaeka.rates import MinuteRates

#: Least time between two log lines of one pool, in seconds.
NEWS_SECONDS: Final = 60.0
#: Most log lines of one device in a minute, and of all together: a phone that comes and goes in a
#: loop has two each time, of some 300 bytes.
LINES_A_MINUTE: Final = 30
ALL_LINES_A_MINUTE: Final = 6000
#: Longest name of a claimant that is kept, in characters: strangers choose names.
_CLAIMANT_CHARS: Final = 200


class Pool(StrEnum):
    """
    Something of a fixed size that somebody can fill: the values of the label C{pool}.

    docs/security.md, "Shares", has for each its bound, the share of a claimant, and who gives way.
    """

    ADDRESSES = "addresses"
    AWAY = "devices away"
    BANS = "bans"
    BOT_BREAKERS = "bot breakers"
    BOT_CALLS = "bot calls"
    BOT_COOLDOWNS = "bot cooldowns"
    BOT_PATTERNS = "bot patterns"
    BOT_QUESTIONS = "bot questions"
    BOT_SLOTS = "bot slots"
    BOT_THREADS = "bot threads"
    BOT_VALUES = "bot values"
    BOT_WAITING = "bot waiting"
    CHAT_LOG = "chat log"
    CLOSING = "closing connections"
    DELIVERIES = "deliveries"
    DEVICES = "devices"
    DOUBTFUL_LINES = "doubtful lines"
    EVENT_STREAMS = "event streams"
    GUESTS = "guests"
    HEADERS = "balancer headers"
    HELD_CHAT = "held chat"
    HISTORY = "closed connections"
    HTTP_CONNECTIONS = "HTTP connections"
    LOG = "log"
    NEW_DEVICES = "new devices"
    OUTBOX = "outbox"
    OUTBOXES = "outboxes"
    PENDING_DEVICES = "pending devices"
    PLACES = "places"
    READING = "reading"
    REPORTS = "reports"
    ROOMS = "rooms"
    SIGNATURES = "signatures"
    UNAPPROVED_LINES = "unapproved lines"
    UNSTORED = "unstored"
    WAITING_CHAT_LINES = "waiting chat lines"


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
        self._lines = MinuteRates[Hashable](LINES_A_MINUTE, ALL_LINES_A_MINUTE)

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

    def may_log(self, claimant: Hashable, now: float) -> bool:
        """
        Take one log line out of the share of C{claimant}, for a line that a phone can have written
        as often as it likes.  Only the reactor's thread may.

        @param claimant: who has it written, a device or an address.
        @param now: the time, in seconds.
        @return: false if its share of this minute is used up, or that of all.
        """
        may = self._lines.take(claimant, now)
        if not may:
            self.gave_way(Pool.LOG, claimant)
        return may

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
