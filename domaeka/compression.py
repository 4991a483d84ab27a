"""
Compression of texts and of whole connections, for both sides.

docs/protocol.md, "Compression".
"""

import binascii
import zlib
from typing import Final

from domaeka.errors import ErrorCode, WireError

#: How much is inflated at a time, in bytes.
_STEP: Final = 65_536
#: Longest text that is not packed, in bytes, and how much shorter its line must get.  Source:
#: docs/protocol.md, "Compression".
THRESHOLD_BYTES: Final = 10_240
MIN_SAVING: Final = 0.10
#: How long the header of a line may be, in bytes: the saving is of the whole line.
_HEADER_BYTES: Final = 700


def pack_text(
    raw: bytes,
    tail: bytes,
    threshold_bytes: int = THRESHOLD_BYTES,
    min_saving: float = MIN_SAVING,
) -> bytes | None:
    """
    Pack one text for a C{gzip} connection.

    @param raw: the text in UTF-8.
    @param tail: the same in base64.
    @return: base64 of its gzip stream; L{None} where that saves too little.
    """
    if len(raw) <= threshold_bytes:
        return None
    compressor = zlib.compressobj(wbits=31)
    packed = binascii.b2a_base64(compressor.compress(raw) + compressor.flush(), newline=False)
    plain = _HEADER_BYTES + len(tail)
    return packed if _HEADER_BYTES + len(packed) <= plain * (1 - min_saving) else None


class Deflater:
    """One direction of a C{deflate} connection, going out."""

    def __init__(self, window: int = 15, memory_level: int = 8) -> None:
        """
        @param window: 9 to 15: the stream looks back 2 to the power of it bytes.
        @param memory_level: 1 to 9, as of zlib.
        """
        self._compressor = zlib.compressobj(wbits=-window, memLevel=memory_level)

    def pack(self, data: bytes) -> bytes:
        """C{data} in a form that can be read to its end as soon as it has come."""
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)


class Inflater:
    """One direction of a C{deflate} connection, coming in, in steps of bounded size."""

    def __init__(self) -> None:
        """Whatever window the other side chose will do."""
        self._decompressor = zlib.decompressobj(wbits=-15)
        self._packed = b""

    def feed(self, data: bytes) -> None:
        """Hold C{data} until L{next_piece}."""
        self._packed += data

    def next_piece(self) -> bytes:
        """
        @return: what comes next, 64 KiB at most; empty when more bytes are needed.
        @raise WireError: C{BAD_FRAME}: the stream is broken, or has an end.
        """
        try:
            piece = self._decompressor.decompress(self._packed, _STEP)
        except zlib.error:
            raise WireError(ErrorCode.BAD_FRAME, "the compressed stream is broken") from None
        self._packed = self._decompressor.unconsumed_tail
        if self._decompressor.eof:
            raise WireError(ErrorCode.BAD_FRAME, "the compressed stream has an end")
        return piece
