"""
How much of strangers is read in one turn of the reactor.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

#: What is read of all strangers together before others have a turn, in bytes: 5 ms of work.
STRANGERS_BYTES: Final = 393_216
#: What a line costs beside its bytes, in bytes: 50 µs of work, as 4 KiB of a long line.
LINE_BYTES: Final = 4096


class Turns:
    """
    Strangers share what they may have read in one turn, however many they are: one who finds it
    used up waits, and goes ahead of those who come later.
    """

    def __init__(self, call_soon: Callable[[Callable[[], object]], object]) -> None:
        """@param call_soon: calls something in another turn of the reactor."""
        self._call_soon = call_soon
        self._left = STRANGERS_BYTES
        self._waiting: deque[Callable[[], object]] = deque()
        self._called = False

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
        if not self._called:
            self._called = True
            self._call_soon(self._next)

    def _next(self) -> None:
        self._called = False
        self._left = STRANGERS_BYTES
        for _ in range(len(self._waiting)):
            if self.used_up:
                break
            self._waiting.popleft()()
        if self._waiting and not self._called:
            self._called = True
            self._call_soon(self._next)
