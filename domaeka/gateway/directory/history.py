"""History of connections that have ended."""

from collections import Counter, deque
from collections.abc import Callable
from itertools import islice, takewhile
from typing import Final

from twisted.logger import Logger

from domaeka.gateway.peer import Peer
from domaeka.gateway.views import ClosedConnection
from domaeka.interfaces import DeviceKey

#: Connections that are remembered; some 600 bytes each.
MAX_CLOSED: Final = 10_000
#: Time over which L{History.recent} counts, in seconds.
RECENT_SECONDS: Final = 3600.0
_log: Final = Logger()


class History:
    """The last authenticated connections that have ended."""

    def __init__(
        self,
        max_closed: int = MAX_CLOSED,
        may_log: Callable[[object, float], bool] = lambda claimant, now: True,
    ) -> None:
        """
        @param max_closed: most that are remembered; the oldest goes first.
        @param may_log: given a device and the time, returns false if it has had its log lines.
        """
        self._may_log = may_log
        self._closed: deque[ClosedConnection] = deque(maxlen=max_closed)
        self._added = 0

    def __len__(self) -> int:
        return len(self._closed)

    def ended(self, peer: Peer, closed: ClosedConnection) -> None:
        """Log a connection that has ended, and remember it if it had authenticated."""
        _log_end(peer, closed, peer.authenticated and self._may_log(peer.key, closed.gone_at))
        if peer.authenticated:
            self.add(closed)

    def add(self, closed: ClosedConnection) -> None:
        """Remember one more."""
        self._closed.append(closed)
        self._added += 1

    def page(
        self,
        before: int | None,
        limit: int,
        wanted: Callable[[ClosedConnection], bool] = lambda closed: True,
    ) -> list[tuple[int, ClosedConnection]]:
        """
        A page of ended connections, the last to end first.

        @param before: the place of the last one of the page before.
        @param wanted: a filter.
        @return: connections with their places, which do not change.
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
        """Number of connections of each device that ended within the last hour."""
        earliest = now - RECENT_SECONDS
        recent = takewhile(lambda closed: closed.gone_at >= earliest, reversed(self._closed))
        return Counter(closed.key for closed in recent)


def _log_end(peer: Peer, closed: ClosedConnection, shown: bool) -> None:
    """
    Log the end of a connection.

    @param shown: false for the debug level: of strangers, and of those who come too often.
    """
    log = _log.info if shown else _log.debug
    log(
        "{peer} ended: {reason}; {age_seconds} s, bytes {bytes_received} in {bytes_sent} out, "
        "messages {messages_received} in {messages_sent} out",
        peer=peer,
        version=peer.facts.version if peer.facts is not None else None,
        authenticated=peer.authenticated,
        reason=closed.reason,
        age_seconds=round(closed.ended_at - closed.made_at),
        bytes_received=closed.bytes_received,
        bytes_sent=closed.bytes_sent,
        messages_received=closed.messages_received,
        messages_sent=closed.messages_sent,
        score=closed.score,
        grade=closed.grade,
        rtt_seconds=None if closed.rtt is None else round(closed.rtt, 6),
    )
