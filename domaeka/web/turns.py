"""Turns of the reactor in which HTTP requests are served: a few in each, phones in between."""

from collections.abc import Callable
from itertools import islice
from typing import Any, Final, Protocol

#: Requests that are served in one turn of the reactor, of which each has 0.1 ms or so of work of
#: its own.
REQUESTS_A_TURN: Final = 8


class Timer(Protocol):
    """The part of a reactor that is used here."""

    def seconds(self) -> float:
        """The time."""

    def callLater(self, delay: float, callable: Callable[[], object], /) -> Any:
        """Call something later."""


class Turns:
    """
    Requests that wait to be served: one of a connection, in the order in which they came.

    So the requests of all connections together take a part of a turn, however many there are.
    """

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._waiting: dict[object, Callable[[], object]] = {}
        self._call: Any = None

    def add(self, connection: object, serve: Callable[[], object]) -> None:
        """Call C{serve} in another turn; it is the only request of C{connection} that waits."""
        self._waiting[connection] = serve
        self._go_on()

    def remove(self, connection: object) -> None:
        """Forget the request of a connection, if one waits."""
        self._waiting.pop(connection, None)
        if not self._waiting and self._call is not None:
            self._call.cancel()
            self._call = None

    def _go_on(self) -> None:
        if self._waiting and self._call is None:
            self._call = self._timer.callLater(0, self._serve)

    def _serve(self) -> None:
        self._call = None
        for connection in list(islice(self._waiting, REQUESTS_A_TURN)):
            serve = self._waiting.pop(connection, None)
            if serve is not None:  # else one before it has closed it
                serve()
        self._go_on()
