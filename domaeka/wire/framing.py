"""Framing: bytes to lines, a line to its header and tail.  docs/protocol.md, "Framing"."""

import re
import zlib
from typing import Final

from domaeka.errors import ErrorCode, WireError

#: Longest line from a phone, in bytes, newline included.  Source: docs/protocol.md, "Framing".
MAX_LINE_BYTES = 1_048_576

#: Bounds for the pieces of a line that are held as they came: their number, since each takes some
#: 40 bytes more than it holds, and their bytes, since pieces fragment memory.  Beyond either bound
#: they are joined.
_PIECES: Final = 1024
_PIECES_BYTES: Final = 65_536

#: Most bytes that are inflated from a gzip tail at a time.
_INFLATE_STEP: Final = 65_536

_empty_lines: Final = re.compile(rb"(?:\n++|(?:\r\n)++)*+").match


class LineDecoder:
    """
    Cut a byte stream into lines, in bounded memory and linear time.

    Holds at most C{max_bytes} of an unfinished line, beside the bytes not yet asked for.
    """

    __slots__ = ("_behind", "_data", "_length", "_pending", "_pieces", "_position", "max_bytes")

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        """@param max_bytes: longest line accepted, in bytes, newline included."""
        #: May be changed at any time.
        self.max_bytes = max_bytes
        # The start of a line, without a newline: a bytearray unless empty; the pieces after it;
        # the length of both.
        self._pending: bytes | bytearray = b""
        self._pieces: list[bytes] | None = None
        self._length = 0
        self._data = b""  # the bytes after it, read from _position on
        self._position = 0
        # The bytes after _data.
        self._behind: bytes | bytearray = b""

    def feed(self, data: bytes) -> None:
        """Hold C{data} until L{next_line}."""
        if self._behind:
            self._behind += data
            return
        if self._position < len(self._data):
            self._behind = bytearray(data)
            return
        self._data = data
        self._position = 0

    def next_line(self) -> bytes | None:
        """
        @return: the next line that is not empty, without its newline and the CR before it; L{None}
            when more bytes are needed.
        @raise WireError: C{FRAME_TOO_LARGE}, at once, without waiting for the newline.  The stream
            cannot be read on.
        """
        data = self._data
        start = self._position
        if start == len(data) and not self._behind:  # usual: the last read ended with a line
            self._data = b""
            self._position = 0
            return None
        while True:
            end = data.find(b"\n", start)
            if end < 0:
                if start:
                    data = data[start:]
                if self._length + len(data) >= self.max_bytes:
                    raise self._too_long()
                if data:
                    self._hold(data)
                self._position = start = 0
                if not self._behind:
                    self._data = b""
                    return None
                data = self._data = bytes(self._behind)
                self._behind = b""
                continue
            if self._length + end - start >= self.max_bytes:
                raise self._too_long()
            line = data[start:end]
            self._position = start = end + 1
            if self._length:
                line = self._take_held(line)
            if line.endswith(b"\r"):
                line = line[:-1]
            if line:
                return line
            # Runs of newlines, which anybody may send, are skipped at once.
            self._position = start = _empty_lines(data, start).end()  # type: ignore[union-attr]

    def _hold(self, data: bytes) -> None:
        """Hold C{data}, a part of an unfinished line."""
        self._length += len(data)
        pieces = self._pieces
        if pieces is None:
            pieces = self._pieces = []
        pieces.append(data)
        if len(pieces) == _PIECES or self._length - len(self._pending) >= _PIECES_BYTES:
            if not self._pending:
                self._pending = bytearray()
            self._pending += b"".join(pieces)
            pieces.clear()

    def _take_held(self, *behind: bytes) -> bytes:
        """Return and forget the start of a line, with C{behind} after it."""
        held = b"".join((self._pending, *(self._pieces or ()), *behind))
        self._pending = b""
        self._pieces = None
        self._length = 0
        return held

    def _too_long(self) -> WireError:
        return WireError(ErrorCode.FRAME_TOO_LARGE, f"more than {self.max_bytes} bytes in a frame")

    def held(self) -> bytes:
        """A copy of all bytes that are held, in order."""
        start = b"".join((self._pending, *(self._pieces or ())))
        return b"".join((start, self._data[self._position :], bytes(self._behind)))

    def take_rest(self) -> bytes:
        """Return and forget all bytes after the last line."""
        rest = self._take_held(self._data[self._position :], bytes(self._behind))
        self._data = b""
        self._position = 0
        self._behind = b""
        return rest

    @property
    def held_bytes(self) -> int:
        """Bytes that are held."""
        return self._length + len(self._data) - self._position + len(self._behind)


def split_frame(line: bytes) -> tuple[bytes, bytes]:
    """Cut a line after its last brace.  @raise WireError: C{BAD_FRAME}: it has no header."""
    end = line.rfind(b"}") + 1
    if end < 2 or line[0] != 123:  # "{"
        raise WireError(ErrorCode.BAD_FRAME, "a frame must start with a JSON object")
    return line[:end], line[end:]


def inflated(packed: bytes, max_bytes: int) -> bytes:
    """
    Inflate a gzip tail in steps, so that no more than C{max_bytes} are held.

    @raise WireError: C{FRAME_TOO_LARGE} or C{BAD_FRAME}.
    """
    inflater = zlib.decompressobj(wbits=31)
    found = bytearray()
    try:
        while packed and not inflater.eof:
            found += inflater.decompress(packed, _INFLATE_STEP)
            if len(found) > max_bytes:
                raise WireError(
                    ErrorCode.FRAME_TOO_LARGE, f"inflates to more than {max_bytes} bytes"
                )
            packed = inflater.unconsumed_tail
    except zlib.error:
        raise WireError(ErrorCode.BAD_FRAME, "the tail is not a gzip stream") from None
    if not inflater.eof or inflater.unused_data:
        raise WireError(ErrorCode.BAD_FRAME, "the gzip stream does not end with its frame")
    return bytes(found)
