"""
Compression: single frames (C{gzip}), or whole connections (C{deflate}).

docs/protocol.md, "Compression".  A deflated connection takes up to 195 KiB more than a plain one:
its compressor 144 KiB and its decompressor 32 KiB for their windows, and some for their states.
"""

import binascii
import zlib
from typing import Final

from domaeka.errors import ErrorCode, WireError

#: How hard zlib tries for a frame's text, and for a connection.  On chat a whole window at the
#: lowest level saves as much as a small one at the highest, in less time.
_FRAME_LEVEL: Final = 6
_STREAM_LEVEL: Final = 1
#: Longest text of a frame that is not tried, in bytes, and least part of the line that must be
#: saved.  Source: docs/protocol.md, "Compression".
THRESHOLD_BYTES: Final = 10_240
MIN_SAVING: Final = 0.10
#: How much is inflated at a time, in bytes.
STEP_BYTES = 65_536
#: What a packed frame's header says more than a plain one's, and about what it says else, in
#: bytes.
_PACKED_HEADER_BYTES: Final = 30
_HEADER_BYTES: Final = 320


class BadStream(WireError):
    """A compressed connection cannot be read on: it ends."""

    def __init__(self, text: str) -> None:
        super().__init__(ErrorCode.BAD_FRAME, text, fatal=True)


def pack_text(
    raw: bytes,
    tail: bytes,
    threshold_bytes: int = THRESHOLD_BYTES,
    min_saving: float = MIN_SAVING,
) -> bytes | None:
    """
    Compress the text of a frame.

    @param raw: the text.
    @param tail: its base64.
    @return: the base64 of its gzip stream; L{None} where that does not pay.
    """
    if len(raw) <= threshold_bytes:
        return None
    deflater = zlib.compressobj(_FRAME_LEVEL, zlib.DEFLATED, 31)
    packed = deflater.compress(raw) + deflater.flush()
    plain_bytes = _HEADER_BYTES + len(tail)
    packed_bytes = _HEADER_BYTES + _PACKED_HEADER_BYTES + (len(packed) + 2) // 3 * 4
    if packed_bytes > plain_bytes * (1.0 - min_saving):
        return None
    return binascii.b2a_base64(packed, newline=False)


class Deflater:
    """What is sent on a compressed connection."""

    __slots__ = ("_deflater",)

    def __init__(self, window: int = 15, memory_level: int = 5) -> None:
        """
        @param window: 9 to 15: the stream looks back 2 to the power of it bytes.
        @param memory_level: 1 to 9, as of zlib.
        """
        self._deflater = zlib.compressobj(_STREAM_LEVEL, zlib.DEFLATED, -window, memory_level)

    def pack(self, data: bytes) -> bytes:
        """C{data} in a form that can be read to its end as soon as it has come."""
        return self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH)


class Inflater:
    """
    What comes on a compressed connection, a step at a time.

    Holds what was fed, packed, and nothing inflated: the caller takes a piece, cuts it into
    lines, and stops where a line gets too long.  A few bytes may inflate to a thousand times as
    many, so a caller that has taken its share goes on in another turn.
    """

    __slots__ = ("_inflater", "_more", "_packed")

    def __init__(self) -> None:
        """Whatever window the other side chose will do."""
        self._inflater = zlib.decompressobj(-15)
        self._packed = b""
        self._more = False  # zlib may hold output for which there was no room

    def feed(self, data: bytes) -> None:
        """Hold C{data} until L{next_piece}."""
        self._packed = self._packed + data if self._packed else data

    @property
    def held_bytes(self) -> int:
        """How many bytes, packed, wait for L{next_piece}."""
        return len(self._packed)

    def next_piece(self) -> bytes:
        """
        @return: what comes next, L{STEP_BYTES} at most; empty when more must come first.
        @raise BadStream: it is none, or has an end.
        """
        inflater = self._inflater
        while self._packed or self._more:
            if inflater.eof:
                raise BadStream("the compressed stream has an end")
            try:
                piece = inflater.decompress(self._packed, STEP_BYTES)
            except zlib.error:
                raise BadStream("the compressed stream is broken") from None
            self._packed = inflater.unconsumed_tail
            # An end without data behind it comes out with the next call.
            self._more = len(piece) == STEP_BYTES or inflater.eof
            if piece:
                return piece
        return b""
