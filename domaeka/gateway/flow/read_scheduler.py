"""The read scheduler: shares each turn of the reactor among connections."""

from collections import deque
from collections.abc import Callable
from typing import Final

#: Time for waiting connections in one turn, in seconds; at least one is read.
TURN_SECONDS: Final = 0.005
#: Most that is read from all strangers together in one turn, in bytes: 5 ms of work.
STRANGERS_BYTES: Final = 393_216
#: Cost of a line beside its bytes, in bytes: 50 µs of work, as for 4 KiB of a long line.
LINE_BYTES: Final = 4096


class ReadScheduler:
    """
    Round robin among connections that send more than is read at once: a little of each in later
    turns, so that a phone that sends little does not wait for those that send much.

    @ivar crowded: whether connections wait.
    @ivar used_up: whether the share of strangers in this turn is used up: they wait.
    """

    def __init__(
        self, call_soon: Callable[[Callable[[], object]], object], seconds: Callable[[], float]
    ) -> None:
        """
        @param call_soon: calls a function in another turn of the reactor.
        @param seconds: the time now, in seconds.
        """
        self._call_soon = call_soon
        self._seconds = seconds
        self._left = STRANGERS_BYTES
        self._waiting: deque[Callable[[], object]] = deque()
        self._called = False
        self.crowded = False
        self.used_up = False

    def use(self, lines: int, count: int) -> None:
        """Count C{lines} that were read, C{count} bytes together."""
        self._left -= lines * LINE_BYTES + count
        self.used_up = self._left <= 0

    def wait(self, go_on: Callable[[], object]) -> None:
        """Have C{go_on} called in another turn, which may wait again."""
        self._waiting.append(go_on)
        self.crowded = True
        self._come_back()

    def _come_back(self) -> None:
        if not self._called:
            self._called = True
            self._call_soon(self._next)

    def _next(self) -> None:
        self._called = False
        self._left = STRANGERS_BYTES
        self.used_up = False
        end = self._seconds() + TURN_SECONDS
        try:
            for _ in range(len(self._waiting)):
                go_on = self._waiting.popleft()
                self.crowded = bool(self._waiting)
                go_on()
                if self.used_up or self._seconds() >= end:
                    break
        finally:  # an error with one connection does not stop the others
            self.crowded = bool(self._waiting)
            if self.crowded:
                self._come_back()
