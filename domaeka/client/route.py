"""Which server to try next, and when."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import msgspec

from domaeka.policies.retry import Backoff

#: How long a server that does not want us is left alone, in seconds; half of it is at random.
#: Source: docs/client.md, "Coming back".
UNWANTED_SECONDS: Final = 300.0
#: Longest that a server may send us away for, in seconds.
MAX_AWAY_SECONDS: Final = 3600.0
#: Most servers that are known, however often we are sent on.
_MAX_SERVERS: Final = 32
#: Longest host name, in characters.  Source: RFC 1035, 2.3.4.
_MAX_HOST_CHARS: Final = 253


class Server(msgspec.Struct, frozen=True):
    """Where a server is."""

    host: str
    port: int = 9000
    tls: bool = False

    def __str__(self) -> str:
        """For people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (" (TLS)" if self.tls else "")

    @property
    def plausible(self) -> bool:
        """Whether there can be such a place."""
        host = self.host
        return (
            0 < len(host) <= _MAX_HOST_CHARS
            and host.isprintable()
            and not any(character in " /@\\\"'" for character in host)
            and 0 < self.port <= 65_535
        )


class Route:
    """
    The servers in order of preference, and the pauses between the tries.

    A server that cannot be reached, or does not greet us, makes room for the next one; one that
    greeted us and was lost is looked for from the preferred one on.  One that is to be left alone
    is passed over for as long as another may be tried.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        seconds: Callable[[], float],
        random: Callable[[], float],
        backoff: Backoff | None = None,
    ) -> None:
        """
        @param servers: one at least, the preferred one first.
        @param seconds: the time now, in seconds.
        @param random: a number from 0 up to, but not including, 1.
        @param backoff: what an earlier route has come to, to go on with.
        """
        self._servers = list(servers)
        self._seconds = seconds
        self._random = random
        self._backoff = backoff or Backoff(seconds, random)
        self._index = 0
        self._not_before: dict[Server, float] = {}
        self._go_at: float | None = None  # for the next try only: we are sent there

    @property
    def server(self) -> Server:
        """The one to try now, or the one we are with."""
        return self._servers[self._index]

    @property
    def servers(self) -> Sequence[Server]:
        """All of them, in order of preference."""
        return tuple(self._servers)

    @property
    def may_return(self) -> bool:
        """Whether we are with another than the preferred server, and that one may be tried."""
        return self._index > 0 and self._free_at(self._servers[0]) <= self._seconds()

    def beside(self, server: Server) -> "Route":
        """A route to C{server} alone, that goes on with the pauses of this one."""
        return Route([server], self._seconds, self._random, self._backoff.successor())

    def add(self, other: "Route") -> None:
        """Know the servers of C{other}, less preferred than those that are known."""
        more = [server for server in other.servers if server not in self._servers]
        self._servers = (self._servers + more)[:_MAX_SERVERS]
        self._not_before = other._not_before | self._not_before

    def failed(self) -> None:
        """L{server} could not be reached, or did not greet us."""
        self._index = (self._index + 1) % len(self._servers)

    def greeted(self) -> None:
        """L{server} has greeted us."""
        self._not_before.pop(self.server, None)
        self._backoff.connected()

    def lost(self) -> None:
        """A server that had greeted us is gone."""
        self._index = 0
        self._backoff.lost()

    def stay_away(self, seconds: float) -> float:
        """
        L{server} tells us to come back later.

        @return: when that is.
        """
        until = self._seconds() + min(max(seconds, 0.0), MAX_AWAY_SECONDS)
        self._not_before[self.server] = until
        return until

    def unwanted(self, server: Server) -> None:
        """C{server} told us that trying again soon is of no use."""
        pause = UNWANTED_SECONDS * (0.5 + self._random() / 2)
        self._not_before[server] = self._seconds() + pause

    def moved(self, server: Server, at: float) -> None:
        """
        From now on C{server} is preferred.

        @param at: when to go there.
        """
        others = [other for other in self._servers if other != server]
        self._servers = [server, *others][:_MAX_SERVERS]
        self._index = 0
        self._go_at = at

    def move_delay(self) -> float:
        """
        @return: seconds to wait, at least, before we leave the server we are with for one that it
            sends us to: two that send us to each other would get no rest otherwise.
        """
        return 0.0 if self._backoff.settled else self._backoff.next_delay()

    def next_delay(self) -> float:
        """@return: seconds to wait before trying L{server}, which may be another than before."""
        now = self._seconds()
        at = now + self._backoff.next_delay()
        if self._go_at is not None:
            at, self._go_at = max(at, self._go_at), None
        else:
            count = len(self._servers)
            turns = ((self._index + turn) % count for turn in range(count))
            self._index = min(turns, key=lambda index: max(at, self._free_at(self._servers[index])))
            at = max(at, self._free_at(self.server))
        return at - now

    def _free_at(self, server: Server) -> float:
        return self._not_before.get(server, -inf)
