"""History of connections that have ended."""

from collections import Counter
from collections.abc import Callable
from itertools import takewhile
from typing import Final

from twisted.logger import Logger

from domaeka.gateway.peer import Peer
from domaeka.gateway.views import ClosedConnection
from domaeka.interfaces import DeviceKey
from domaeka.policies.holdings import Holdings
from domaeka.pools import Pool, Pools

#: Connections that are remembered; some 600 bytes each.
MAX_CLOSED: Final = 10_000
#: Time over which L{History.recent} counts, in seconds.
RECENT_SECONDS: Final = 3600.0
#: Part of the history that one device fills before it is told of: else it passes by as always.
GREEDY_PART: Final = 10
_log: Final = Logger()


class History:
    """
    The last authenticated connections that have ended.

    The oldest one of the device that has the most of them goes first: one that connects again and
    again does not push out the history of others.
    """

    def __init__(self, pools: Pools, max_closed: int = MAX_CLOSED) -> None:
        """@param max_closed: most that are remembered."""
        self._pools = pools
        self._max_closed = max_closed
        #: By their places, the first to end first.
        self._closed: dict[int, ClosedConnection] = {}
        self._of_devices: Holdings[DeviceKey, int] = Holdings()
        self._added = 0

    def __len__(self) -> int:
        return len(self._closed)

    def ended(self, peer: Peer, closed: ClosedConnection) -> None:
        """Log a connection that has ended, and remember it if it had authenticated."""
        _log_end(peer, closed, peer.authenticated and self._pools.may_log(peer.key, closed.gone_at))
        if peer.authenticated:
            self.add(closed)

    def add(self, closed: ClosedConnection) -> None:
        """Remember one more."""
        if (
            len(self._closed) >= self._max_closed
            and (place := self._of_devices.first()) is not None
        ):
            gone = self._closed.pop(place)
            if self._of_devices.count_of(gone.key) >= max(2, self._max_closed // GREEDY_PART):
                self._pools.gave_way(Pool.HISTORY, " ".join(gone.key))
            self._of_devices.remove(place)
        self._closed[self._added] = closed
        self._of_devices.put(closed.key, self._added)
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
        found: list[tuple[int, ClosedConnection]] = []
        for place, closed in reversed(self._closed.items()):
            if len(found) >= limit:
                break
            if (before is None or place < before) and wanted(closed):
                found.append((place, closed))
        return found

    def recent(self, now: float) -> Counter[DeviceKey]:
        """Number of connections of each device that ended within the last hour."""
        earliest = now - RECENT_SECONDS
        ended = reversed(self._closed.values())
        recent = takewhile(lambda closed: closed.gone_at >= earliest, ended)
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
