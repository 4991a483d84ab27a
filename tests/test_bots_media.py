"""Tests for L{domaeka.bots.media}."""

import io
import os
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.media import MediaItem, blocks, listed, prepare
from domaeka.errors import BotValueError
from domaeka.schema import MAX_MEDIA_BYTES, MAX_MEDIA_ITEMS
from domaeka.wire import Media

PNG = b"\x89PNG\r\n\x1a\n and so on"
JPG = b"\xff\xd8\xff\xe0 and so on"


KINDS = {
    "image": "jpg png gif webp bmp heic avif tif ico",
    "audio": "mp3 m4a aac ogg wav flac",
    "video": "mp4 mov webm mkv avi 3gp",
    "document": "pdf zip docx xlsx hwp hwpx apk txt html csv svg",
}


def ftyp(*brands: bytes) -> bytes:
    """The head of an ISO media file."""
    body = brands[0] + b"\0\0\2\0" + b"".join(brands[1:])
    return struct.pack(">I", len(body) + 8) + b"ftyp" + body + b"\0\0\0\x08mdat"


def zipped(*names: str) -> bytes:
    """A zip file of files with these names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "<x/>" * 9)
    return file.getvalue()


#: Files of each format, or how they begin.
SAMPLES = {
    "jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0",
    "gif": b"GIF89a\1\0\1\0\x80\0\0",
    "webp": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0",
    "bmp": b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
    "heic": ftyp(b"heic", b"mif1", b"heic"),
    "avif": ftyp(b"avif", b"mif1", b"miaf"),
    "tif": b"II*\0\x08\0\0\0\0\0",
    "ico": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0",
    "mp3": b"ID3\4\0\0\0\0\0\0\xff\xfb\x90\0",
    "m4a": ftyp(b"M4A ", b"isom", b"iso2"),
    "aac": b"\xff\xf1\x50\x80\x02\x1f\xfc",
    "ogg": b"OggS\0\2\0\0\0\0\0\0\0\0\x01vorbis",
    "wav": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0",
    "flac": b"fLaC\0\0\0\x22\x10\0",
    "mp4": ftyp(b"isom", b"isom", b"iso2", b"avc1", b"mp41"),
    "mov": ftyp(b"qt  ", b"qt  "),
    "webm": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\1\x42\x82\x84webm\x42\x87\x81\4",
    "mkv": b"\x1a\x45\xdf\xa3\xa3\x42\x86\x81\1\x42\x82\x88matroska\x42\x87\x81\4",
    "avi": b"RIFF\x24\0\0\0AVI LIST\x10\0\0\0",
    "3gp": ftyp(b"3gp5", b"3gp5"),
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "zip": zipped("a.txt"),
    "docx": zipped("[Content_Types].xml", "_rels/.rels", "word/document.xml"),
    "xlsx": zipped("[Content_Types].xml", "_rels/.rels", "xl/workbook.xml"),
    "hwp": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 504 + b"\xfd\xff\xff\xff" + b"\0" * 90,
    "hwpx": zipped("mimetype", "version.xml", "Contents/header.xml"),
    "apk": zipped("AndroidManifest.xml", "classes.dex"),
    "txt": "오늘의 차림표\n".encode("cp949"),
    "html": "<!DOCTYPE html><title>차림표</title>".encode(),
    "csv": "이름,값\n가,1\n".encode(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


class Dripping:
    """What reads like a file, a byte at a time, and cannot go back."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def read(self, size: int) -> bytes:
        piece, self._left = self._left[:1], self._left[1:]
        return piece


class Whole:
    """What can be read at once alone, as answers of HTTP libraries."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        return self._data


class Endless:
    """What reads like a file and gives the same for ever, however little it is asked for."""

    def __init__(self, piece: Any) -> None:
        self._piece = piece
        self.given = 0

    def read(self, size: int) -> Any:
        self.given += len(self._piece or "")
        return self._piece


class Awaited:
    """What reads like a file, but is to be awaited."""

    async def read(self, size: int) -> bytes:
        return PNG


class Drawn:
    """A picture as Pillow has them."""

    def __init__(self, mode: str, size: int = 0) -> None:
        self.mode = mode
        self._size = size

    def convert(self, mode: str) -> "Drawn":
        return Drawn(mode)

    def tobytes(self) -> bytes:
        raise AssertionError("not as it would be sent")

    def save(self, fp: io.BytesIO, format: str) -> None:
        assert format == "PNG"
        fp.write(PNG)
        fp.write(self.mode.encode() + b"\0" * self._size)


def made(items: MediaItem | Iterable[MediaItem], **more: Any) -> list[Media]:
    return prepare(listed(items), **more)


class PrepareTests(SynchronousTestCase):
    """Tests for L{listed} and L{prepare}."""

    def file(self, name: str, data: bytes) -> Path:
        path = Path(self.mktemp())
        path.mkdir()
        (path / name).write_bytes(data)
        return path / name

    def test_pictures_go_together(self) -> None:
        """Several pictures are one frame, whatever holds their bytes."""
        media = made([PNG, bytearray(JPG), memoryview(PNG)], wait_ms=4000)
        self.assertEqual(media, [Media((PNG, JPG, PNG), "image", "png", 4000)])

    def test_order_stays(self) -> None:
        """Bytes and addresses cannot share a frame: they go one after the other."""
        media = made([PNG, "https://a.example/1.gif", "http://a.example/2", JPG])
        self.assertEqual(
            media,
            [
                Media((PNG,), "image", "png"),
                Media(("https://a.example/1.gif", "http://a.example/2"), "image", "gif"),
                Media((JPG,), "image", "jpg"),
            ],
        )

    def test_one_alone(self) -> None:
        """A single item need not be in a list."""
        self.assertEqual(made(PNG), [Media((PNG,), "image", "png")])
        self.assertEqual(made("http://a.example/"), [Media(("http://a.example/",), "image", "jpg")])

    def test_files_are_read(self) -> None:
        """A path may be a text or an object; a name tells what the bytes do not."""
        path = self.file("말.txt", "글".encode())
        for item in (path, str(path)):
            self.assertEqual(made(item), [Media(("글".encode(),), "document", "txt")])

    def test_author_knows_better(self) -> None:
        """Kind and format that are given stand."""
        self.assertEqual(
            made(b"any", kind="audio", format="m4a"), [Media((b"any",), "audio", "m4a")]
        )
        self.assertEqual(made(PNG, kind="document"), [Media((PNG,), "document", "png")])
        self.assertEqual(made(b"\0", kind="image"), [Media((b"\0",), "image", "png")])

    def test_what_is_no_picture_is_not_sent_as_one(self) -> None:
        """Neither by its author's word nor by its name, nor because nothing is known of it."""
        for data in (b"%PDF-1.7", b"any", SAMPLES["mp4"]):
            for wrong in ({"kind": "image"}, {"format": "png"}):
                self.assertRaises(ValueError, made, data, **wrong)
            self.assertNotEqual(made(data)[0].kind, "image")
            self.assertNotEqual(made(self.named("a.png", data))[0].kind, "image")
        self.assertRaises(ValueError, made, self.file("a.png", b"no picture"))
        self.assertRaises(ValueError, made, self.file("a.png", b"\0"))
        self.assertEqual(made(b"\0"), [Media((b"\0",), "document", "bin")])

    def named(self, name: str, data: bytes) -> io.BytesIO:
        """An open file with a name."""
        file = io.BytesIO(data)
        file.name = name
        return file

    def test_formats(self) -> None:
        """Files are told by their content, those with names by these where it says too little."""
        for name, data in SAMPLES.items():
            kind = next(kind for kind, names in KINDS.items() if name in names.split())
            told = made(self.named(f"A.{name.upper()}", data))[0]
            self.assertEqual((told.kind, told.format), (kind, name), name)
            self.assertEqual(made(data)[0].kind, kind, name)
            self.assertEqual(made(self.file(f"a.{name}", data))[0], told, name)
            if kind != "document":
                self.assertEqual(made(self.file("a.pdf", data))[0], told, name)

    def test_text_that_begins_like_a_picture(self) -> None:
        """A text is a text, whatever it begins with."""
        for text in ("BMW: 3", "ID3 is for music", "GIF89a and so on", "M4A ", "RIFF 1234WEBP"):
            self.assertEqual(made(text.encode())[0].kind, "document", text)

    def test_damaged_files(self) -> None:
        """Wherever a file is cut off, or damaged, it is told, or not, without a mistake of ours."""
        for data in SAMPLES.values():
            for end in range(1, len(data)):
                made(data[:end])
                made(data[:end] + b"\xff" * 20_000)

    # Open files

    def test_open_files(self) -> None:
        """They are read from their beginning, whole and in order, and stay open."""
        path = self.file("a.png", PNG)
        moved = io.BytesIO(JPG)
        moved.seek(0, io.SEEK_END)
        with path.open("rb") as opened, path.open("rb", buffering=0) as raw:
            media = made([opened, raw, moved, opened])
            self.assertFalse(opened.closed)
        self.assertEqual(media, [Media((PNG, PNG, JPG, PNG), "image", "png")])
        self.assertEqual(made(item for item in (io.BytesIO(PNG), PNG))[0].pieces, (PNG, PNG))
        self.assertEqual(made(io.BytesIO(PNG)), made(PNG))

    def test_what_reads_like_a_file(self) -> None:
        """Whatever can be read is, piece by piece, though it cannot go back."""
        reading, writing = os.pipe()
        os.write(writing, PNG)
        os.close(writing)
        with open(reading, "rb") as pipe:
            self.assertEqual(made(pipe), made(PNG))
        self.assertEqual(made(Dripping(PNG)), made(PNG))
        self.assertEqual(made(Whole(PNG)), made(PNG))  # type: ignore[arg-type]
        self.assertRaises(ValueError, made, Whole(bytes(MAX_MEDIA_BYTES + 1)))

    def test_refuses_files_that_never_end(self) -> None:
        """Of a file no more is read than may be sent."""
        for piece in (b"\0" * 10_000, b"\0" * (MAX_MEDIA_BYTES + 1)):
            endless = Endless(piece)
            self.assertRaises(ValueError, made, [PNG, endless])
            self.assertLessEqual(endless.given, MAX_MEDIA_BYTES + len(piece))
        with open("/dev/zero", "rb") as zero:
            self.assertRaises(ValueError, made, zero)

    def test_refuses_what_is_not_read_as_bytes(self) -> None:
        """A file opened as text, or one that is to be awaited, is an error that says so."""
        path = self.file("a.txt", b"text")
        with path.open() as text:
            error = self.assertRaises(TypeError, made, text)
            self.assertIn("'rb'", str(error))
            self.assertRaises(TypeError, made, [PNG, io.StringIO("text")])
        self.assertIn("'rb'", str(self.assertRaises(TypeError, made, Endless("text"))))
        self.assertIn("coroutine", str(self.assertRaises(TypeError, made, Awaited())))
        self.assertRaises(TypeError, made, Endless(None))
        self.assertRaises(ValueError, made, io.BytesIO())

    def test_refuses_files_that_cannot_be_read(self) -> None:
        """One that was closed too early, or opened to be written, is an error that says so."""
        path = self.file("a.png", PNG)
        with path.open("rb") as closed:
            pass
        with path.open("ab") as writing:
            for file, said in ((closed, "await"), (writing, "'rb'")):
                error = self.assertRaises(BotValueError, made, file)
                self.assertIn(said, str(error))

    def test_refuses_kinds_that_no_phone_knows(self) -> None:
        """A slip in the kind goes to nobody; it would be no picture to our check, either."""
        for kind in ("picture", "Image", ""):
            self.assertRaises(BotValueError, made, PNG, kind=kind)

    def test_pictures_of_pillow(self) -> None:
        """They are saved as PNG, in a mode that it can hold, and within the bounds of a reply."""
        for mode, saved in (("RGB", "RGB"), ("CMYK", "RGB"), ("PA", "RGBA")):
            data = PNG + saved.encode()
            self.assertEqual(made([Drawn(mode)]), [Media((data,), "image", "png")])
        self.assertRaises(ValueError, made, Drawn("RGB", MAX_MEDIA_BYTES))

    def test_what_blocks(self) -> None:
        """What is in memory is prepared at once, all else in a thread."""
        for item in (PNG, io.BytesIO(PNG), "http://a.example/"):
            self.assertFalse(blocks(item))
        for other in ("/a.png", Path("/a.png"), Dripping(PNG), Drawn("RGB")):
            self.assertTrue(blocks(other))

    def test_refuses_what_is_too_much(self) -> None:
        """Bytes and number are bounded for all together; a huge file is not read."""
        half = bytes(MAX_MEDIA_BYTES // 2 + 1)
        path = self.file("a.png", b"")
        os.truncate(path, 2**40)
        for items in ([half, half], [path], [PNG] * (MAX_MEDIA_ITEMS + 1), [], [b""]):
            self.assertRaises(ValueError, made, items)

    def test_refuses_paths_to_what_is_no_media(self) -> None:
        """A path that came from the chat does not give away what is behind it."""
        fifo = self.mktemp()
        os.mkfifo(fifo)
        for path in ("/etc/passwd", "/dev/zero", fifo):
            self.assertRaises(ValueError, made, [path])
        self.assertRaises(OSError, made, ["/nowhere.png"])

    def test_refuses_what_cannot_be_sent(self) -> None:
        """Wrong types, addresses, times and words are errors that say so."""
        for item in (None, 5, [PNG], object()):
            self.assertRaises(TypeError, made, [item])
            self.assertRaises(TypeError, made, item if item != [PNG] else [item])
        for wrong in ({"wait_ms": 0}, {"wait_ms": True}, {"wait_ms": 10**9}, {"format": "../x"}):
            self.assertRaises(ValueError, made, PNG, **wrong)
        for address in ("http://", "https://a.example/\n", "http://a.example/" + "a" * 9000):
            self.assertRaises(ValueError, made, address)
