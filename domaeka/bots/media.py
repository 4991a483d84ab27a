"""What bots may send beside text: files by their bytes or paths, and addresses."""

import os
import stat
from collections.abc import Iterable
from itertools import groupby
from pathlib import PurePosixPath
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from domaeka.messages import Media, MediaType, media_address

#: What a bot may name: the bytes of a file, its path, or its address.
MediaItem: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str]
_ITEM_TYPES: Final = (bytes, bytearray, memoryview, str, os.PathLike)

#: Most files in one reply, and most bytes of them together.  Source: docs/bots.md, "Limits";
#: base64 makes a third more of them, which must fit into C{queue.max_bytes}.
MAX_MEDIA_ITEMS: Final = 30
MAX_MEDIA_BYTES: Final = 10_485_760
#: Longest address, in characters.  Source: as above.
MAX_ADDRESS_CHARS: Final = 8192
#: Longest wait, in milliseconds: the phone is deaf for all of it.  Source: as above.
MAX_WAIT_MS: Final = 300_000

_KINDS: Final[dict[str, MediaType]] = {
    **dict.fromkeys(("jpg", "png", "gif", "webp", "bmp", "heic"), "image"),
    **dict.fromkeys(("mp3", "m4a", "ogg", "wav", "flac"), "audio"),
    **dict.fromkeys(("mp4", "mov", "webm", "avi"), "video"),
    **dict.fromkeys(("pdf", "zip", "txt", "docx", "xlsx", "pptx", "hwp"), "document"),
}
#: First bytes of files.
_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"ID3", "mp3"),
    (b"\xff\xfb", "mp3"),
    (b"\xff\xf3", "mp3"),
    (b"OggS", "ogg"),
    (b"fLaC", "flac"),
    (b"\x1aE\xdf\xa3", "webm"),
    (b"%PDF-", "pdf"),
    (b"PK\x03\x04", "zip"),
)
_RIFF: Final = {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}
#: Brands of ISO media files; any other is a film.
_BRANDS: Final = {b"M4A ": "m4a", b"heic": "heic", b"heix": "heic", b"mif1": "heic", b"qt  ": "mov"}


class _Piece(NamedTuple):
    content: bytes | str
    kind: MediaType
    format: str


def sniff(data: bytes) -> str | None:
    """
    Tell a file's format by its first bytes.

    @return: C{jpg}, C{png} and so on; L{None} if it is none that is known.
    """
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12])
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "mp4")
    return None


def listed(items: MediaItem | Iterable[MediaItem]) -> list[MediaItem]:
    """
    Check what a bot wants to send, without looking into it.

    @return: it as a list, of one for a single item.
    @raise TypeError: something in it cannot be sent.
    @raise ValueError: nothing, or too much.
    """
    if isinstance(items, _ITEM_TYPES):
        items = (items,)
    found: list[MediaItem] = []
    for item in items:
        if not isinstance(item, _ITEM_TYPES):
            raise TypeError(f"bytes, a path or an address can be sent, not {type(item).__name__}")
        if len(found) == MAX_MEDIA_ITEMS:
            raise ValueError(f"more than {MAX_MEDIA_ITEMS} files in one reply")
        found.append(item)
    if not found:
        raise ValueError("no files to send")
    return found


def is_path(item: MediaItem) -> bool:
    """Whether a file has to be read for it."""
    if isinstance(item, str):
        return not item.lower().startswith(("http://", "https://"))
    return isinstance(item, os.PathLike)


def prepare(
    items: Iterable[MediaItem],
    wait_ms: int | None = None,
    kind: MediaType | None = None,
    format: str | None = None,
) -> list[Media]:
    """
    Make what goes to a phone, reading files where paths are named.

    Neighbours of one sort go together; the order stays.

    @param items: as L{listed} gives them.
    @param wait_ms: how long the phone stays in the chat app, in milliseconds, or L{None}.
    @param kind: what they are; L{None}: to be told by their formats.
    @param format: C{jpg}, C{png} and so on; L{None}: to be told by their bytes or names.  Bytes
        that tell nothing are taken for a picture, a path that tells nothing is refused.
    @raise ValueError: not to be sent, and why.
    @raise OSError: a file cannot be read.
    """
    if wait_ms is not None and (
        not isinstance(wait_ms, int) or isinstance(wait_ms, bool) or not 0 < wait_ms <= MAX_WAIT_MS
    ):
        raise ValueError(f"wait_ms must be a whole number from 1 to {MAX_WAIT_MS}")
    if format is not None and not (format.isascii() and format.isalnum() and len(format) <= 16):
        raise ValueError("a format is a word such as jpg")
    left = MAX_MEDIA_BYTES
    pieces: list[_Piece] = []
    for item in items:
        piece = _piece(item, left, kind, format)
        left -= len(piece.content)
        pieces.append(piece)
    media: list[Media] = []
    # A frame names one format.  Phones save every picture alike, so that of the first will do.
    for _, group in groupby(pieces, lambda piece: (type(piece.content), piece.kind)):
        found = list(group)
        contents = tuple(piece.content for piece in found)
        media.append(
            Media(contents, found[0].kind, found[0].format, wait_ms)  # type: ignore[arg-type]
        )
    return media


def _piece(item: MediaItem, left: int, kind: MediaType | None, format: str | None) -> _Piece:
    if isinstance(item, str) and not is_path(item):
        if len(item) > MAX_ADDRESS_CHARS:
            raise ValueError(f"an address has at most {MAX_ADDRESS_CHARS} characters")
        address = media_address(item)
        suffix = _suffix(urlsplit(address).path)
        # Most addresses say nothing of what is behind them: a picture, then.
        return _Piece(address, kind or _KINDS.get(suffix, "image"), format or suffix or "jpg")
    if isinstance(item, str | os.PathLike):
        data = _read(os.fspath(item), left)
        suffix = _suffix(os.fspath(item))
    else:
        data = bytes(item)
        suffix = ""
        if len(data) > left:
            raise ValueError(_too_large())
    if not data:
        raise ValueError("a file to send is empty")
    if format is None:
        format = sniff(data)
        if format is None or (format == "zip" and suffix):
            # A text says nothing by its bytes, and several documents are zip files inside.
            format = suffix
        if not format:
            if is_path(item):  # somebody else's word, perhaps: a name must look like a file to send
                raise ValueError(f"{item!r:.200}: of no format that is known; say which")
            format = "png"
    return _Piece(data, kind or _KINDS.get(format, "document"), format)


def _read(path: str, left: int) -> bytes:
    """Read a plain file of at most C{left} bytes."""
    # A pipe must not be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: not a plain file")
        if status.st_size > left:
            raise ValueError(f"{path}: {_too_large()}")
        data = file.read(left + 1)
    if len(data) > left:
        raise ValueError(f"{path}: {_too_large()}")
    return data


def _too_large() -> str:
    return f"more than {MAX_MEDIA_BYTES} bytes of files in one reply"


def _suffix(path: str) -> str:
    """The extension of a path, if it is one of a format that is known."""
    suffix = PurePosixPath(path).suffix[1:].lower()
    return suffix if suffix in _KINDS else {"jpeg": "jpg"}.get(suffix, "")
