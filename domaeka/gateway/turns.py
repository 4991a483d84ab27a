"""
What is read in one turn of the reactor, and what waits for the next.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

#: How long those who wait are gone on with in one turn, in seconds; one of them is in any case.
TURN_SECONDS: Final = 0.005
#: What is read of all strangers together before others have a turn, in bytes: 5 ms of work.
STRANGERS_BYTES: Final = 393_216
#: What a line costs beside its bytes, in bytes: 50 µs of work, as 4 KiB of a long line.
LINE_BYTES: Final = 4096


class Turns:
    """
    Of connections of which more is here than is read at once the rest is read in later turns, a
    little of each, in the order in which they came.  So who says little never waits for many who
    say much.

    Strangers also share what is read of them at once: whoever finds it used up waits.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], object]], object],
        seconds: Callable[[], float],
    ) -> None:
        """
        @param call_soon: calls something in another turn of the reactor.
        @param seconds: the time now, in seconds.
        """
        self._call_soon = call_soon
        self._seconds = seconds
        self._left = STRANGERS_BYTES
        self._waiting: deque[Callable[[], object]] = deque()
        self._called = False

    @property
    def crowded(self) -> bool:
        """Whether some wait."""
        return len(self._waiting) > 0

    @property
    def used_up(self) -> bool:
        """Whether nothing more is to be read in this turn."""
        return self._left <= 0

    def use(self, lines: int, count: int) -> None:
        """So many lines, of so many bytes together, were read."""
        self._left -= lines * LINE_BYTES + count

    def wait(self, go_on: Callable[[], object]) -> None:
        """Have C{go_on} called in another turn, which may wait again."""
        self._waiting.append(go_on)
        self._come_back()

    def _come_back(self) -> None:
        if not self._called:
            self._called = True
            self._call_soon(self._next)

    def _next(self) -> None:
        self._called = False
        self._left = STRANGERS_BYTES
        end = self._seconds() + TURN_SECONDS
        try:
            for _ in range(len(self._waiting)):
                self._waiting.popleft()()
                if self.used_up or self._seconds() >= end:
                    break
        finally:  # a mistake with one keeps no other waiting
            if self._waiting:
                self._come_back()
