"""
Connections that have ended, of those that had shaken hands.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from domaeka.errors import CloseReason
from domaeka.interfaces import DeviceKey
from domaeka.policies.quality import Grade

if TYPE_CHECKING:
    from domaeka.gateway.session import Session

#: How many are remembered; some 600 bytes each.
MAX_CLOSED: Final = 10_000
#: What L{History.recent} counts, in seconds.
RECENT_SECONDS: Final = 3600.0


class ClosedConnection(msgspec.Struct, frozen=True, gc=False):
    """
    How a connection went.

    @ivar made_at: in seconds since 1970, as C{ended_at}.
    @ivar authenticated: whether a proof had held; if not, C{key} is only what it said.
    @ivar score: of its quality at the end; L{None}, with C{grade}: it was never pinged.
    @ivar rtt: smoothed round trip at the end, in seconds.
    """

    number: int
    key: DeviceKey
    address: str
    version: str
    authenticated: bool
    reason: CloseReason
    made_at: float
    ended_at: float
    bytes_received: int
    bytes_sent: int
    messages_received: int
    messages_sent: int
    score: int | None = None
    grade: Grade | None = None
    rtt: float | None = None


def how_it_went(session: Session, key: DeviceKey, now: float) -> ClosedConnection:
    """
    Sum up a connection that has ended.

    @param now: in seconds since 1970.
    """
    quality = session.liveness.quality if session.liveness is not None else None
    return ClosedConnection(
        session.number,
        key,
        session.address,
        session.facts.version if session.facts is not None else "",
        session.authenticated,
        session.reason or CloseReason.INTERNAL,
        now - session.age,
        now,
        session.bytes_received,
        session.sender.bytes_sent,
        session.messages_received,
        session.sender.messages_sent,
        quality.score if quality is not None else None,
        quality.grade if quality is not None else None,
        quality.srtt if quality is not None else None,
    )


class History:
    """The last connections that have ended."""

    def __init__(self, max_closed: int = MAX_CLOSED) -> None:
        """@param max_closed: how many are remembered; the oldest goes first."""
        self._closed: deque[ClosedConnection] = deque(maxlen=max_closed)
        self._added = 0

    def __len__(self) -> int:
        return len(self._closed)

    def add(self, closed: ClosedConnection) -> None:
        """One more has ended."""
        self._closed.append(closed)
        self._added += 1

    def page(
        self,
        before: int | None,
        limit: int,
        wanted: Callable[[ClosedConnection], bool] = lambda closed: True,
    ) -> list[tuple[int, ClosedConnection]]:
        """
        Those that ended last come first.

        @param before: the place of the last one of the page before.
        @param limit: most that are returned.
        @param wanted: which ones.
        @return: each with its place, which it keeps.
        """
        newest = self._added - 1
        skipped = 0 if before is None else min(max(0, newest - before + 1), len(self._closed))
        found: list[tuple[int, ClosedConnection]] = []
        for place, closed in enumerate(islice(reversed(self._closed), skipped, None), skipped):
            if len(found) >= limit:
                break
            if wanted(closed):
                found.append((newest - place, closed))
        return found

    def recent(self, now: float) -> Counter[DeviceKey]:
        """How many connections of each device have ended within the last hour."""
        return Counter(closed.key for closed in self._since(now - RECENT_SECONDS))

    def _since(self, earliest: float) -> Iterable[ClosedConnection]:
        for closed in reversed(self._closed):
            if closed.ended_at < earliest:
                return
            yield closed
