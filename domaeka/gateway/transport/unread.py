"""
Bytes of a connection that are not read: it closes, or its lines are too long.

They were on the wire, so whoever listens there knows the signatures in them.  Each line is handed
on, whole or not, so that these are good no more.
"""

from collections.abc import Callable
from typing import Final

from domaeka.errors import WireError
from domaeka.wire import Inflater, LineDecoder

#: Most bytes that a deflate stream inflates to, here.
MAX_INFLATED_BYTES: Final = 2_097_152
#: Bytes of a stream without lines that are kept, for a signature may lie across two reads: twice
#: the longest C{auth}.
_KEPT_BYTES: Final = 8_192


class Unread:
    """Take the bytes of a connection that are not read."""

    __slots__ = ("_decoder", "_inflated", "_inflater", "_not_read", "_tail", "_wanted")

    def __init__(
        self,
        decoder: LineDecoder,
        inflater: Inflater | None,
        not_read: Callable[[bytes], bool],
    ) -> None:
        """
        @param decoder: of the connection, with what it holds; likewise C{inflater}.
        @param not_read: called with each line, or part of one, while it returns true.
        """
        self._decoder = decoder
        self._inflater = inflater
        self._not_read = not_read
        self._inflated = 0
        self._wanted = True
        self._tail: bytes | None = None  # L{None}: there are lines yet

    def take(self, data: bytes = b"") -> None:
        """Take bytes that came, behind those that are held."""
        if not self._wanted:
            return
        if self._inflater is None:
            self._take_plain(data)
            return
        self._take_plain(b"")  # what is inflated already
        if self._inflated >= MAX_INFLATED_BYTES:
            return
        self._inflater.feed(data)
        try:
            while (
                self._wanted
                and self._inflated < MAX_INFLATED_BYTES
                and (piece := self._inflater.next_piece())
            ):
                self._inflated += len(piece)
                self._take_plain(piece)
        except WireError:
            self._inflated = MAX_INFLATED_BYTES  # the stream is broken

    def _take_plain(self, data: bytes) -> None:
        if self._tail is None:
            self._decoder.feed(data)
            try:
                while self._wanted and (line := self._decoder.next_line()) is not None:
                    self._wanted = self._not_read(line)
                return
            except WireError:  # too long: there are no lines any more
                self._tail, data = b"", self._decoder.take_rest()
        if not data:
            return
        data = self._tail + data
        self._wanted = self._not_read(data)
        self._tail = data[-_KEPT_BYTES:]

    def end(self) -> None:
        """The connection is gone: take the beginning of a line that is held."""
        self.take()
        if self._wanted and self._tail is None and (rest := self._decoder.take_rest()):
            self._not_read(rest)
