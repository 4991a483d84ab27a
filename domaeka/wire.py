"""
Framing: bytes to lines.

A frame is a line; a line is a JSON header, ended by its last C{b"}"}, and an
optional tail.  docs/protocol.md, "Framing".
"""

from domaeka.errors import ErrorCode, WireError

#: Longest line from a phone, in bytes, newline included.  Source:
#: docs/protocol.md, "Framing".
MAX_LINE_BYTES = 1_048_576


class LineDecoder:
    """
    Cut a byte stream into lines, in bounded memory and linear time.

    Holds at most C{max_bytes} of an unfinished line, beside what the last
    L{feed} brought.
    """

    __slots__ = ("_data", "_max_bytes", "_pending", "_position")

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        """@param max_bytes: longest line accepted, in bytes, newline included."""
        self._max_bytes = max_bytes
        self._pending = bytearray()  # the start of a line, without a newline
        self._data = b""  # what came last, read from _position on
        self._position = 0

    def feed(self, data: bytes) -> None:
        """Hold C{data} until L{next_line}."""
        if self._position < len(self._data):
            data = self._data[self._position :] + data
        self._data = data
        self._position = 0

    def next_line(self) -> bytes | None:
        """
        @return: the next line that is not empty, without its newline and the
            CR before it; L{None} when more bytes are needed.
        @raise WireError: C{FRAME_TOO_LARGE}, at once, without waiting for
            the newline.  The stream cannot be read on.
        """
        data = self._data
        while True:
            start = self._position
            end = data.find(b"\n", start)
            pending = self._pending
            length = len(pending) + (end + 1 if end >= 0 else len(data)) - start
            if length > self._max_bytes or (end < 0 and length == self._max_bytes):
                raise WireError(
                    ErrorCode.FRAME_TOO_LARGE, f"more than {self._max_bytes} bytes in a frame"
                )
            if end < 0:
                pending += data[start:] if start else data
                self._data = b""
                self._position = 0
                return None
            self._position = end + 1
            if pending:
                pending += data[start:end]
                line = bytes(pending)
                self._pending = bytearray()
            else:
                line = data[start:end]
            if line.endswith(b"\r"):
                line = line[:-1]
            if line:
                return line

    def take_rest(self) -> bytes:
        """Hand over, and forget, the bytes behind the last line returned."""
        rest = bytes(self._pending) + self._data[self._position :]
        self._pending = bytearray()
        self._data = b""
        self._position = 0
        return rest

    @property
    def held_bytes(self) -> int:
        """How many bytes wait for more, or for L{next_line}."""
        return len(self._pending) + len(self._data) - self._position


def split_frame(line: bytes) -> tuple[bytes, bytes]:
    """
    Cut a line into its JSON header and its tail.

    @raise WireError: C{BAD_FRAME} where no object can be.
    """
    head, brace, tail = line.rpartition(b"}")
    if not head or head[0] != 123:  # "{"
        raise WireError(ErrorCode.BAD_FRAME, "a frame must start with a JSON object")
    return head + brace, tail
