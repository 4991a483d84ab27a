"""
Lines of connections whose first proof may be recorded: they wait until the phone proves itself.

They are held in bounded memory.  If all together are too many, the connection that holds the most
gives way.
"""

from collections.abc import Callable
from typing import Final

from domaeka.policies.first_proof import ClockSeries
from domaeka.wire import Chat

#: Most lines of a connection that wait, and most bytes of them: the ten of a phone's queue fit
#: unless they are the longest, and what a busy phone says until its clock is known.
MAX_LINES: Final = 256
MAX_BYTES: Final = 1_048_576
#: Most bytes of all connections together: 32 KiB for each of 1,000 phones that come back after a
#: restart, each with its queue.
MAX_TOTAL_BYTES: Final = 33_554_432
#: Bytes that a line takes in memory beside its own, with its signature.
LINE_BYTES: Final = 1_400


class Doubt:
    """
    Doubt about a connection: the lines that wait, and what is known of its phone's clock.

    @ivar address: of the peer.
    @ivar series: its pongs so far.
    @ivar ping_due: when to ping it again, by the steady time.
    """

    __slots__ = ("_lines", "_pool", "address", "held_bytes", "ping_due", "series")

    def __init__(self, pool: "Doubts", address: str) -> None:
        self._pool = pool
        self._lines: list[tuple[Chat, bytes]] = []
        self.held_bytes = 0
        self.address = address
        self.series = ClockSeries()
        self.ping_due = 0.0

    def hold(self, chat: Chat, line: bytes) -> bool:
        """Have a line wait.  @return: whether there was room."""
        size = len(line) + LINE_BYTES
        if len(self._lines) >= MAX_LINES or self.held_bytes + size > MAX_BYTES:
            return False
        if not self._pool.take(self, size):
            return False
        self._lines.append((chat, line))
        self.held_bytes += size
        return True

    def release(self) -> list[tuple[Chat, bytes]]:
        """@return: the lines that waited, oldest first; they wait no more."""
        lines, self._lines = self._lines, []
        self._pool.free(self)
        self.held_bytes = 0
        return lines


class Doubts:
    """The memory that all doubtful connections share."""

    def __init__(self, gave_way: Callable[[object, int], object]) -> None:
        """@param gave_way: called with an address, and how many of its lines were dropped."""
        self._gave_way = gave_way
        self._holders: dict[Doubt, None] = {}
        self._bytes = 0

    def take(self, doubt: Doubt, size: int) -> bool:
        """
        Make room for C{size} bytes of a connection.

        @return: False: that connection holds the most itself.
        """
        while self._bytes + size > MAX_TOTAL_BYTES:
            largest = max(self._holders, key=lambda each: each.held_bytes)
            if largest is doubt or largest.held_bytes <= doubt.held_bytes + size:
                self._gave_way(doubt.address, 1)
                return False
            self._gave_way(largest.address, len(largest.release()))
        self._holders[doubt] = None
        self._bytes += size
        return True

    def free(self, doubt: Doubt) -> None:
        """Free all that a connection holds."""
        if self._holders.pop(doubt, 0) is None:
            self._bytes -= doubt.held_bytes
