"""
Compression: single frames (C{gzip}), or whole connections (C{deflate}).

Source: docs/protocol.md, "Compression".  A deflate connection takes up to 195 KiB more memory than
a plain one: 144 KiB for the compressor's window, 32 KiB for the decompressor's, and their states.
"""

import binascii
import zlib
from typing import Final

from domaeka.errors import ErrorCode, WireError

#: zlib's levels for a frame's text, and for a connection.  On chat, a full window at the lowest
#: level saves as much as a small one at the highest, in less time.
_FRAME_LEVEL: Final = 6
_STREAM_LEVEL: Final = 1
#: Longest text that is never compressed, in bytes, and least part of a line that compression must
#: save.  Source: docs/protocol.md, "Compression".
THRESHOLD_BYTES: Final = 10_240
MIN_SAVING: Final = 0.10
#: Most bytes that are inflated at a time.
STEP_BYTES = 65_536
#: Estimated header of a compressed frame beyond that of a plain one, and of a plain one, in bytes.
_PACKED_HEADER_BYTES: Final = 30
_HEADER_BYTES: Final = 320


class BadStream(WireError):
    """A compressed connection cannot be read on, and ends."""

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

    @param raw: the text, in UTF-8.
    @param tail: its base64.
    @return: the base64 of its gzip stream; L{None} where that saves too little.
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
    """Compressor of a connection."""

    __slots__ = ("_deflater",)

    def __init__(self, window: int = 15, memory_level: int = 5) -> None:
        """@param window: 9 to 15, zlib's C{wbits}.  C{memory_level}: 1 to 9, its C{memLevel}."""
        self._deflater = zlib.compressobj(_STREAM_LEVEL, zlib.DEFLATED, -window, memory_level)

    def pack(self, data: bytes) -> bytes:
        """Compress and flush: the peer can read all of C{data} at once."""
        return self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH)


class Inflater:
    """
    Decompressor of a connection, one piece at a time.

    It holds compressed bytes only: the caller takes a piece, cuts it into lines, and stops at a
    line that is too long.  A few bytes may inflate to a thousand times as many; the caller bounds
    how many pieces it takes at once.
    """

    __slots__ = ("_inflater", "_more", "_packed")

    def __init__(self) -> None:
        """Any window of the compressor is accepted."""
        self._inflater = zlib.decompressobj(-15)
        self._packed = b""
        self._more = False  # zlib may hold output

    def feed(self, data: bytes) -> None:
        """Hold C{data} until L{next_piece}."""
        self._packed = self._packed + data if self._packed else data

    @property
    def held_bytes(self) -> int:
        """Compressed bytes that wait for L{next_piece}."""
        return len(self._packed)

    def next_piece(self) -> bytes:
        """
        @return: the next piece, L{STEP_BYTES} at most; empty when more bytes are needed.
        @raise BadStream: the bytes are no deflate stream, or the stream has an end.
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
            # zlib reports the end of a stream with the next call.
            self._more = len(piece) == STEP_BYTES or inflater.eof
            if piece:
                return piece
        return b""
