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
    greeted us and was lost is looked for from the preferred one on.
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
        @param backoff: that of an earlier route, to go on with.
        """
        self._servers = list(servers)
        self._seconds = seconds
        self._random = random
        self.backoff = backoff or Backoff(seconds, random)
        self._index = 0
        self._not_before = -inf
        self._go_at = -inf  # for the next try only: a server named the time

    @property
    def server(self) -> Server:
        """The one to try now, or the one we are with."""
        return self._servers[self._index]

    @property
    def servers(self) -> Sequence[Server]:
        """All of them, in order of preference."""
        return tuple(self._servers)

    @property
    def is_preferred(self) -> bool:
        """Whether L{server} is the first of all."""
        return self._index == 0

    def add(self, servers: Sequence[Server]) -> None:
        """Know more servers, less preferred than those that are known."""
        self._servers += [server for server in servers if server not in self._servers]

    def failed(self) -> None:
        """L{server} could not be reached, or did not greet us."""
        self._index = (self._index + 1) % len(self._servers)

    def greeted(self) -> None:
        """L{server} has greeted us."""
        self._not_before = -inf
        self.backoff.connected()

    def lost(self) -> None:
        """A server that had greeted us is gone."""
        self._index = 0
        self.backoff.lost()

    def stay_away(self, seconds: float) -> float:
        """
        We are told to come back later.

        @return: when that is.
        """
        self._go_at = self._seconds() + min(max(seconds, 0.0), MAX_AWAY_SECONDS)
        return self._go_at

    def unwanted(self) -> None:
        """We were told that trying again soon is of no use."""
        self._not_before = self._seconds() + UNWANTED_SECONDS * (0.5 + self._random() / 2)

    def moved(self, server: Server, at: float) -> None:
        """
        From now on C{server} is preferred.

        @param at: when to go there.
        """
        self._servers = [server, *(other for other in self._servers if other != server)]
        self._index = 0
        self._go_at = at

    def next_delay(self) -> float:
        """@return: seconds to wait before trying L{server}."""
        # Counted even where a server named the time: two that send us to each other would get no
        # rest otherwise.
        delay = self.backoff.next_delay()
        not_before = max(self._go_at, self._not_before)
        self._go_at = -inf
        return max(delay, not_before - self._seconds())
