"""Turns of the reactor in which HTTP requests are served: a few in each, phones in between."""

from collections.abc import Callable
from itertools import chain, islice
from typing import Any, Final, Protocol

#: Requests that are served in one turn of the reactor, each of which has 0.1 ms or so of work of
#: its own.  More than a port accepts in a turn (L{domaeka.gateway.transport.ports}), so that the
#: first requests of new connections never pile up.
REQUESTS_A_TURN: Final = 20


class Timer(Protocol):
    """The part of a reactor that is used here."""

    def seconds(self) -> float:
        """The time."""

    def callLater(self, delay: float, callable: Callable[[], object], /) -> Any:
        """Call something later."""


class Turns:
    """
    Requests that wait to be served, at most one of each connection: first those of connections
    that were not answered yet, then others, in the order in which they came.

    So the requests of all connections together take a part of a turn, however many there are, and
    who asks without end holds up nobody who comes.
    """

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._first: dict[object, Callable[[], object]] = {}
        self._further: dict[object, Callable[[], object]] = {}
        self._call: Any = None

    def add(self, connection: object, serve: Callable[[], object], first: bool) -> None:
        """
        Call C{serve} in another turn.

        @param first: true if the connection was not answered yet.
        """
        (self._first if first else self._further)[connection] = serve
        self._go_on()

    def remove(self, connection: object) -> None:
        """Forget the request of a connection, if one waits."""
        self._take(connection)
        if not self._is_waiting() and self._call is not None:
            self._call.cancel()
            self._call = None

    def _take(self, connection: object) -> Callable[[], object] | None:
        return self._first.pop(connection, None) or self._further.pop(connection, None)

    def _is_waiting(self) -> bool:
        return bool(self._first or self._further)

    def _go_on(self) -> None:
        if self._is_waiting() and self._call is None:
            self._call = self._timer.callLater(0, self._serve)

    def _serve(self) -> None:
        self._call = None
        for connection in list(islice(chain(self._first, self._further), REQUESTS_A_TURN)):
            serve = self._take(connection)
            if serve is not None:  # else one before it has closed it
                serve()
        self._go_on()
