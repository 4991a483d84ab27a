"""Choice of the next server, and of the delay before it is tried."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import msgspec

from domaeka.policies.retry import MAX_REFUSED_SECONDS, MAX_UNREACHABLE_SECONDS, Backoff

#: Longest pause for a server that wants a person to look first, in seconds; half of it is random.
#: Source: docs/client.md, "Coming back".
BARRED_SECONDS: Final = 300.0
#: Pause after a take-over, in seconds, and a random part of as much again.  Source: as above.
TAKEN_OVER_SECONDS: Final = 30.0
#: Longest pause that a server may ask for, in seconds.
MAX_AWAY_SECONDS: Final = 3600.0
#: Most servers that are known.
_MAX_SERVERS: Final = 32
#: Longest host name, in characters.  Source: RFC 1035, 2.3.4.
_MAX_HOST_CHARS: Final = 253


class Server(msgspec.Struct, frozen=True):
    """Address of a server."""

    host: str
    port: int = 9000
    tls: bool = False

    def __str__(self) -> str:
        """The address, for people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (" (TLS)" if self.tls else "")

    @property
    def plausible(self) -> bool:
        """True if the address is well-formed."""
        host = self.host
        return (
            0 < len(host) <= _MAX_HOST_CHARS
            and host.isprintable()
            and not any(character in " /@\\\"'" for character in host)
            and 0 < self.port <= 65_535
        )


class Route:
    """
    The servers in order of preference, and the delays between attempts.

    A server that cannot be reached, or does not greet us, is followed by the next one in the list;
    after one that greeted us and was lost, the list starts again from its beginning.  A server
    that is to be left alone is skipped while there are others.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        seconds: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """
        @param servers: at least one, the preferred one first.
        @param seconds: the monotonic clock, in seconds.
        @param random: a number from 0 up to, but not including, 1.
        """
        self.servers = tuple(servers)
        self._seconds = seconds
        self._random = random
        self._backoff = Backoff(seconds, random, MAX_UNREACHABLE_SECONDS)
        self._refusals = Backoff(seconds, random, MAX_REFUSED_SECONDS)
        self._index = 0
        self._not_before: dict[Server, float] = {}
        self._go_at: float | None = None  # earliest time of the next attempt

    @property
    def server(self) -> Server:
        """The server to try, or the one that we are connected to."""
        return self.servers[self._index]

    @property
    def may_return(self) -> bool:
        """True if the preferred server is not the current one, and may be tried."""
        return self._index > 0 and self._free_at(self.servers[0]) <= self._seconds()

    def parallel(self, server: Server) -> "Route":
        """A route to C{server} alone, with the delays of this one."""
        route = Route([server], self._seconds, self._random)
        route._backoff = self._backoff.successor()
        route._refusals = self._refusals.successor()
        return route

    def add(self, other: "Route") -> None:
        """Add the servers of C{other} at the end of the list."""
        more = tuple(server for server in other.servers if server not in self.servers)
        self.servers = (self.servers + more)[:_MAX_SERVERS]
        self._not_before = other._not_before | self._not_before

    def failed(self) -> None:
        """L{server} could not be reached, or did not greet us."""
        self._index = (self._index + 1) % len(self.servers)

    def greeted(self) -> None:
        """L{server} has greeted us."""
        self._not_before.pop(self.server, None)
        self._backoff.connected()
        self._refusals.connected()

    def lost(self) -> None:
        """A server that had greeted us was lost."""
        self._index = 0
        self._backoff.lost()
        self._refusals.lost()

    def stay_away(self, seconds: float) -> float:
        """L{server} asks us to come back later.  @return: the time when it may be tried again."""
        until = self._seconds() + min(max(seconds, 0.0), MAX_AWAY_SECONDS)
        self._not_before[self.server] = until
        return until

    def refused(self, server: Server) -> None:
        """C{server} was reached and does not serve us: each time in a row its pause doubles."""
        self._leave_alone(server, self._refusals.next_delay())

    def barred(self, server: Server) -> None:
        """C{server} refused us, and a new attempt soon is useless."""
        self._leave_alone(server, BARRED_SECONDS * (0.5 + self._random() / 2))

    def _leave_alone(self, server: Server, pause: float) -> None:
        self._not_before[server] = max(self._free_at(server), self._seconds() + pause)

    def taken_over(self) -> None:
        """Another client has our name: no server is tried for a while."""
        pause = TAKEN_OVER_SECONDS * (1 + self._random())
        self._go_at = self._seconds() + pause

    def moved(self, server: Server, at: float) -> None:
        """C{server} becomes the preferred one.  @param at: the time to connect to it."""
        others = [other for other in self.servers if other != server]
        self.servers = (server, *others)[:_MAX_SERVERS]
        self._index = 0
        self._go_at = at

    def move_delay(self) -> float:
        """
        @return: least delay before a notice to move is followed, in seconds, so that two servers
            that send us to each other do not keep us moving.
        """
        return 0.0 if self._backoff.settled else self._refusals.next_delay()

    def next_delay(self) -> float:
        """Choose L{server} anew.  @return: the delay before it is tried, in seconds."""
        now = self._seconds()
        at = now + self._backoff.next_delay()
        if self._go_at is not None:
            at, self._go_at = max(at, self._go_at), None
        else:
            count = len(self.servers)
            turns = ((self._index + turn) % count for turn in range(count))
            self._index = min(turns, key=lambda index: max(at, self._free_at(self.servers[index])))
            at = max(at, self._free_at(self.server))
        return at - now

    def _free_at(self, server: Server) -> float:
        return self._not_before.get(server, -inf)
