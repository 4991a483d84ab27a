"""
Connections that have ended: those of devices are remembered, those of strangers only counted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
from twisted.logger import Logger

from domaeka.errors import CloseReason
from domaeka.interfaces import DeviceKey
from domaeka.policies.quality import Grade, Quality

if TYPE_CHECKING:
    from domaeka.gateway.session import Session

#: How many are remembered; some 600 bytes each.
MAX_CLOSED: Final = 10_000
#: What L{History.recent} counts, in seconds.
RECENT_SECONDS: Final = 3600.0


_log: Final = Logger()


class ClosedConnection(msgspec.Struct, frozen=True, gc=False):
    """
    How a connection went.

    @ivar made_at: in seconds since 1970, as C{ended_at}.
    @ivar score: of its quality at the end; L{None}, with C{grade}: no ping was answered or missed.
    @ivar rtt: smoothed round trip at the end, in seconds.
    """

    number: int
    key: DeviceKey
    address: str
    version: str
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
    quality = _judged(session)
    return ClosedConnection(
        session.number,
        key,
        session.address,
        session.facts.version if session.facts is not None else "",
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


def log_life(session: Session) -> None:
    """One line a connection: those of strangers only for debugging, they may be many."""
    quality = _judged(session)
    rtt = quality.srtt if quality is not None else None
    log = _log.info if session.authenticated else _log.debug
    log(
        "{session} ended: {reason}; {age} s, bytes {bytes_received} in {bytes_sent} out, messages "
        "{messages_received} in {messages_sent} out",
        session=session,
        connection=session.number,
        address=session.address,
        bot=session.key.bot_name if session.key is not None else None,
        device=session.key.device_id if session.key is not None else None,
        version=session.facts.version if session.facts is not None else None,
        authenticated=session.authenticated,
        reason=session.reason,
        age=round(session.age),
        bytes_received=session.bytes_received,
        bytes_sent=session.sender.bytes_sent,
        messages_received=session.messages_received,
        messages_sent=session.sender.messages_sent,
        score=quality.score if quality is not None else None,
        grade=quality.grade if quality is not None else None,
        rtt=None if rtt is None else round(rtt, 6),
    )


def _judged(session: Session) -> Quality | None:
    """Its quality, once a ping has been answered or missed."""
    quality = session.liveness.quality if session.liveness is not None else None
    return quality if quality is not None and quality.known else None


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
