"""Media that bots send: files, in whatever form they are at hand, and addresses."""

import inspect
import io
import os
import re
import stat
from collections.abc import Iterable
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast, get_args
from urllib.parse import urlsplit

import filetype

from domaeka.errors import BotTypeError, BotValueError
from domaeka.schema import MAX_ADDRESS_CHARS, MAX_MEDIA_BYTES, MAX_MEDIA_ITEMS, MAX_WAIT_MS
from domaeka.wire import Media, MediaType, media_address


class Readable(Protocol):
    """An open file, or an object that can be read like one."""

    def read(self, size: int, /) -> bytes:
        """Read C{size} bytes at most; none at the end."""


class Drawn(Protocol):
    """A Pillow picture."""

    @property
    def mode(self) -> str:
        """The type of its pixels."""

    def convert(self, mode: str, /) -> Any:
        """The same in another mode."""

    def save(self, fp: Any, /, format: str) -> object:
        """Write it into a file."""


#: An item that a bot may send: the bytes of a file, its path, its address, the open file; or a
#: Pillow picture.
MediaItem: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Readable | Drawn
_MEDIA_TYPES: Final = get_args(MediaType)
_ITEM_TYPES: Final = (bytes, bytearray, memoryview, str, os.PathLike)

#: The type as which files of each format are sent.  Source: docs/bots.md, "Files".
_FORMATS: Final[dict[MediaType, str]] = {
    "image": "jpg png apng gif webp bmp heic avif tif ico",
    "audio": "mp3 m4a aac ogg opus wav flac amr aiff midi",
    "video": "mp4 m4v mov webm mkv avi wmv mpg flv 3gp",
    "document": "pdf txt csv html rtf svg doc xls ppt docx xlsx pptx hwp hwpx odt ods odp epub "
    "zip apk",
}
_KINDS: Final = {format: kind for kind, named in _FORMATS.items() for format in named.split()}
_ALIASES: Final = {"jpeg": "jpg", "tiff": "tif", "htm": "html", "mid": "midi", "mpeg": "mpg"}
#: Containers that many formats use: there the name says more.
_CONTAINERS: Final = frozenset({"zip", "doc", "xls", "ppt"})
#: The part of a file that tells its format, in bytes.  Source: filetype looks at no more.
_HEAD_BYTES: Final = 8192
#: Bytes that no text has.  Source: WHATWG, MIME Sniffing, "binary data byte".
_BINARY: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
#: Most that is read of an open file at a time, in bytes.
_CHUNK_BYTES: Final = 1_048_576
#: Modes that a PNG can hold, and those that others are converted to; the rest to RGB.  Source:
#: Pillow's handbook, "Image file formats".
_PNG_MODES: Final = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
_NEXT_MODES: Final = {"I": "I;16", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}


_TOO_LARGE: Final = f"more than {MAX_MEDIA_BYTES} bytes of files in one reply"


class _Brands(filetype.Type):  # type: ignore[misc]
    """
    ISO base media files, by brands that filetype does not know.  Source: ISO/IEC 14496-12, 4.3: a
    box C{ftyp} comes first, and its first word is the brand.
    """

    def __init__(self, mime: str, extension: str, brands: str) -> None:
        super().__init__(mime, extension)
        self._brands = frozenset(brand.ljust(4).encode() for brand in brands.split())

    def match(self, buf: bytes) -> bool:
        return buf[4:8] == b"ftyp" and bytes(buf[8:12]) in self._brands


_MATCHERS: Final = (
    *filetype.types,
    _Brands("image/heic", "heic", "heix heim heis hevc hevx mif1 msf1"),
    _Brands("image/avif", "avif", "avis"),
    _Brands("video/3gpp", "3gp", "3gp4 3gp5 3gp6 3gp7 3g2a 3g2b"),
    _Brands("video/mp4", "mp4", "iso2 iso3 iso4 iso5 iso6 avc1 dash mp71 M4V"),
)


class _Piece(NamedTuple):
    content: bytes | str
    kind: MediaType
    format: str


def listed(items: MediaItem | Iterable[MediaItem]) -> list[MediaItem]:
    """
    Check the items that a bot wants to send, without reading them.

    @return: a list, of one for a single item.
    @raise TypeError: an item cannot be sent.
    @raise ValueError: nothing, or too much.
    """
    if _is_item(items) or not isinstance(items, Iterable):
        items = (cast(MediaItem, items),)
    found: list[MediaItem] = []
    for item in cast(Iterable[MediaItem], items):
        if isinstance(item, io.TextIOBase):
            raise BotTypeError("a file opened as text cannot be sent: open it with the mode 'rb'")
        if not _is_item(item):
            raise BotTypeError(
                "bytes, a path, an address, an open file or a picture of Pillow's can be sent, "
                f"not {type(item).__name__}"
            )
        if len(found) == MAX_MEDIA_ITEMS:
            raise BotValueError(f"more than {MAX_MEDIA_ITEMS} files in one reply")
        found.append(item)
    if not found:
        raise BotValueError("no files to send")
    return found


def _is_item(item: object) -> bool:
    is_readable = callable(getattr(item, "read", None))
    return is_readable or isinstance(item, _ITEM_TYPES) or _is_drawn(item)


def _is_drawn(item: object) -> bool:
    """True for a Pillow picture; Pillow is not imported for that."""
    return all(callable(getattr(item, name, None)) for name in ("save", "convert", "tobytes"))


def is_path(item: MediaItem) -> bool:
    """True if it names a file."""
    if isinstance(item, str):
        return not item.lower().startswith(("http://", "https://"))
    return isinstance(item, os.PathLike)


def blocks(item: MediaItem) -> bool:
    """True if L{prepare} may take a while for it."""
    in_memory = isinstance(item, bytes | bytearray | memoryview | io.BytesIO)
    return not in_memory and (not isinstance(item, str) or is_path(item))


def prepare(
    items: Iterable[MediaItem],
    wait_ms: int | None = None,
    kind: MediaType | None = None,
    format: str | None = None,
) -> list[Media]:
    """
    Read the items and make the media frames for a phone.  Neighbours of one sort go into one frame;
    the order stays.  Open files are read from their beginning if they can seek, and stay open.

    @param items: as L{listed} gives them.
    @param wait_ms: how long the phone stays in the chat app, in milliseconds, or L{None}.
    @param kind: their type; L{None}: it follows from their formats.
    @param format: C{jpg}, C{png} and so on; L{None}: it is detected by their content, or else by
        their names.  Bytes of no known format are a document; a path that leads to such is refused.
    @raise TypeError: a file was opened as text.
    @raise ValueError: an item cannot be sent; a file known to be no picture is not sent as one.
    @raise OSError: a file cannot be read.
    """
    if wait_ms is not None and (
        not isinstance(wait_ms, int) or isinstance(wait_ms, bool) or not 0 < wait_ms <= MAX_WAIT_MS
    ):
        raise BotValueError(f"wait_ms must be a whole number from 1 to {MAX_WAIT_MS}")
    if kind is not None and kind not in _MEDIA_TYPES:
        raise BotValueError(f"kind must be one of {', '.join(_MEDIA_TYPES)}")
    if format is not None and not (format.isascii() and format.isalnum() and len(format) <= 16):
        raise BotValueError("a format is a word such as jpg")
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
            raise BotValueError(f"an address has at most {MAX_ADDRESS_CHARS} characters")
        address = media_address(item)
        suffix = _suffix(urlsplit(address).path)
        # Most addresses do not say what is behind them: a picture, then.
        return _Piece(address, kind or _KINDS.get(suffix, "image"), format or suffix or "jpg")
    suffix = ""
    if isinstance(item, bytes | bytearray | memoryview):
        if memoryview(item).nbytes > left:
            raise BotValueError(_TOO_LARGE)
        data = bytes(item)
    elif isinstance(item, str | os.PathLike):
        path = os.fsdecode(item)
        data = _read(path, left)
        suffix = _suffix(path)
    elif _is_drawn(item):
        data = _save(cast(Drawn, item), left)
    else:
        data = _read_open(cast(Readable, item), left)
        name = getattr(item, "name", "")
        suffix = _suffix(name) if isinstance(name, str) else ""
    if not data:
        raise BotValueError("a file to send is empty")
    detected = _detect_format(data, suffix)
    # The path may come from a stranger: its file must look like one to send.
    looks_so = detected in _KINDS and (detected != "txt" or suffix == "txt")
    if format is None and isinstance(item, str | os.PathLike) and not looks_so:
        raise ValueError(f"{item!r:.200}: of no format that is known; say which")
    found = _KINDS.get(detected, "document")
    kind = kind or _KINDS.get(format or detected, found)
    if kind == "image" and detected and found != "image":
        raise BotValueError(f"{detected} is no picture, and cannot be sent as one")
    return _Piece(data, kind, format or detected or ("png" if kind == "image" else "bin"))


def _detect_format(data: bytes, suffix: str) -> str:
    """
    Detect a file's format by its content.

    @param suffix: the format by its name: it counts for documents, and for sound and film whose
        content is not recognised.
    @return: C{jpg}, C{txt} and so on; empty if the format is not known.
    """
    head = data[:_HEAD_BYTES]
    is_text = _BINARY.search(head) is None
    named = _KINDS.get(suffix)
    found = filetype.match(head, _MATCHERS)
    # A text may well begin with BM, as a picture, or ID3, as a sound.
    if found is not None and not (
        is_text and head[0] < 0x80 and found.mime.startswith(("image/", "audio/", "video/"))
    ):
        format: str = found.extension
        return suffix if format in _CONTAINERS and named == "document" else format
    if named == "document" or (named in ("audio", "video") and not is_text):
        return suffix
    return "txt" if is_text else ""


def _read_open(file: Readable, left: int) -> bytes:
    """Read an open file of at most C{left} bytes, from its beginning where it can go back."""
    if getattr(file, "closed", False) is True:
        raise BotValueError(
            "a file to send is closed: close it after the reply, in a coroutine after "
            "await ctx.reply_media(…)"
        )
    if isinstance(file, io.IOBase) and not file.readable():
        raise BotValueError("a file to send is not open for reading: open it with the mode 'rb'")
    seekable = getattr(file, "seekable", None)
    seek = getattr(file, "seek", None)
    if seek is not None and (seekable is None or seekable()):
        seek(0)
    takes_size = True
    try:
        inspect.signature(file.read).bind(None)
    except ValueError:
        pass  # not written in Python: like that of files
    except TypeError:
        takes_size = False
    data = bytearray()
    while len(data) <= left:
        size = min(_CHUNK_BYTES, left + 1 - len(data))
        piece = file.read(size) if takes_size else cast(Any, file).read()
        if isinstance(piece, str):
            raise BotTypeError("a file opened as text cannot be sent: open it with the mode 'rb'")
        if not isinstance(piece, bytes | bytearray | memoryview):
            if inspect.iscoroutine(piece):
                piece.close()
            raise BotTypeError(f"read() of a file to send gave {type(piece).__name__}, not bytes")
        data += piece
        if not piece or not (takes_size or len(data) > left):
            return bytes(data)
    raise BotValueError(_TOO_LARGE)


class _Bounded(io.BytesIO):
    """A file in memory with a bound on its size."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left

    def write(self, data: Any, /) -> int:
        if self.tell() + memoryview(data).nbytes > self._left:
            raise BotValueError(_TOO_LARGE)
        return super().write(data)


def _save(picture: Drawn, left: int) -> bytes:
    """Encode a Pillow picture as a PNG of at most C{left} bytes."""
    if picture.mode not in _PNG_MODES:
        picture = picture.convert(_NEXT_MODES.get(picture.mode, "RGB"))
    file = _Bounded(left)
    picture.save(file, format="PNG")
    return file.getvalue()


def _read(path: str, left: int) -> bytes:
    """Read a plain file of at most C{left} bytes."""
    # Opening a pipe must not wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: not a plain file")
        if status.st_size > left:
            raise ValueError(f"{path}: {_TOO_LARGE}")
        data = file.read(left + 1)
    if len(data) > left:
        raise ValueError(f"{path}: {_TOO_LARGE}")
    return data


def _suffix(path: str) -> str:
    """The extension of a path, if its format is known."""
    suffix = PurePosixPath(path).suffix[1:].lower()
    suffix = _ALIASES.get(suffix, suffix)
    return suffix if suffix in _KINDS else ""
