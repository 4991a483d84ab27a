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
#: Window and memory level of a connection's compressor.
_WINDOW_BITS: Final = 15
_MEMORY_LEVEL: Final = 5
#: How much is inflated at a time, in bytes.
STEP_BYTES = 65_536
#: What a packed frame's header says more than a plain one's, and about what it says else, in
#: bytes.
_PACKED_HEADER_BYTES: Final = 30
_HEADER_BYTES: Final = 320


class BadStream(WireError):
    """A compressed connection cannot be read on: it ends."""

    def __init__(self, text: str) -> None:
        super().__init__(ErrorCode.BAD_FRAME, text)

    @property
    def fatal(self) -> bool:
        """Nothing behind it can be read."""
        return True


def pack_tail(raw: bytes, tail: bytes, threshold_bytes: int, min_saving: float) -> bytes | None:
    """
    Compress the text of a frame.

    @param raw: the text.
    @param tail: its base64.
    @param threshold_bytes: texts up to this long are not tried.
    @param min_saving: least part of the whole line that must be saved.
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


class DeflateStream:
    """What is sent on a compressed connection."""

    __slots__ = ("_deflater",)

    def __init__(self) -> None:
        self._deflater = zlib.compressobj(
            _STREAM_LEVEL, zlib.DEFLATED, -_WINDOW_BITS, _MEMORY_LEVEL
        )

    def compress(self, data: bytes) -> bytes:
        """@return: what the peer can read all of C{data} from, at once."""
        return self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH)


class InflateStream:
    """
    What comes on a compressed connection, a step at a time.

    Holds what was fed, packed, and nothing inflated: the caller takes a piece, cuts it into
    lines, and stops where a line gets too long.  A few bytes may inflate to a thousand times as
    many, so a caller that has taken its share goes on in another turn.
    """

    __slots__ = ("_inflater", "_more", "_packed")

    def __init__(self) -> None:
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

    def next_piece(self) -> bytes | None:
        """
        @return: up to L{STEP_BYTES} inflated bytes; L{None} when more must come first.
        @raise BadStream: it is none, or has ended.
        """
        while self._packed or self._more:
            if self._inflater.eof:
                raise BadStream("bytes behind the end of the compressed stream")
            try:
                piece = self._inflater.decompress(self._packed, STEP_BYTES)
            except zlib.error:
                raise BadStream("not a deflate stream") from None
            self._packed = self._inflater.unconsumed_tail or self._inflater.unused_data
            self._more = len(piece) == STEP_BYTES and not self._inflater.eof
            if piece:
                return piece
        return None
