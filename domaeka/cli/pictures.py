"""Files that bots send to somebody at a terminal: saved, and told in a line."""

import struct
import tempfile
from itertools import count
from pathlib import Path
from typing import Final

from domaeka.cli import output
from domaeka.wire import Media

#: Most files that are saved, and their bytes together: the disk is not ours to fill.
MAX_FILES: Final = 1000
MAX_BYTES: Final = 500_000_000
#: The frames of a JPEG that hold its size, and those without a length.
_SIZES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD9)})


class Pictures:
    """A directory of its own for files, made when the first one is saved; it stays."""

    def __init__(self, parent: Path | None = None) -> None:
        """@param parent: where it is made; by default where temporary files are."""
        self._parent = parent
        self._directory: Path | None = None
        self._numbers = count(1)
        self._bytes = 0

    def told(self, media: Media) -> str:
        """Save files.  @return: a line for each, with the place or why it is not saved."""
        return "\n".join(
            f"[{media.kind} {output.one_line(piece)}]"
            if isinstance(piece, str)
            else self._told(piece, media.format)
            for piece in media.pieces
        )

    def _told(self, content: bytes, format: str) -> str:
        size = dimensions(content)
        shown = f"{size[0]}x{size[1]}, " if size is not None else ""
        suffix = "".join(filter(str.isalnum, format))[:10] or "bin"
        return f"[{suffix} {shown}{output.size(len(content))} → {self._save(content, suffix)}]"

    def _save(self, content: bytes, suffix: str) -> str:
        number = next(self._numbers)
        self._bytes += len(content)
        if number > MAX_FILES or self._bytes > MAX_BYTES:
            return "not saved: there are too many already"
        try:
            if self._directory is None:
                self._directory = Path(tempfile.mkdtemp(prefix="domaeka-chat-", dir=self._parent))
            path = self._directory / f"{number}.{suffix}"
            path.write_bytes(content)
        except OSError as error:
            return f"not saved: {error.strerror or error}"
        return f"saved to {output.one_line(str(path))}"


def dimensions(content: bytes) -> tuple[int, int] | None:
    """Width and height, in pixels, of a PNG, GIF or JPEG; L{None}: another, or a torn one."""
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack_from(">II", content, 16)
        if content[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack_from("<HH", content, 6)
        if content.startswith(b"\xff\xd8"):
            return _jpeg_dimensions(content)
    except struct.error:
        pass  # it ends too early
    return None


def _jpeg_dimensions(content: bytes) -> tuple[int, int] | None:
    at = 2
    while content[at : at + 1] == b"\xff":
        marker = content[at + 1] if at + 1 < len(content) else 0
        if marker in _SIZES:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        length = 0 if marker in _BARE else struct.unpack_from(">H", content, at + 2)[0]
        if marker == 0xFF:  # filling
            at += 1
        else:
            at += 2 + length
    return None
