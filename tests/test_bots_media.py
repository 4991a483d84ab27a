"""Tests for L{domaeka.bots.media}."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.media import MAX_MEDIA_BYTES, MAX_MEDIA_ITEMS, MediaItem, listed, prepare, sniff
from domaeka.messages import Media

PNG = b"\x89PNG\r\n\x1a\n and so on"
JPG = b"\xff\xd8\xff\xe0 and so on"


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

    def test_bytes_of_no_known_format_are_a_picture(self) -> None:
        """A phone saves them as one anyway."""
        self.assertEqual(made(b"any"), [Media((b"any",), "image", "png")])

    def test_formats(self) -> None:
        """Files are told by their first bytes."""
        for data, name in (
            (PNG, "png"),
            (JPG, "jpg"),
            (b"GIF89a", "gif"),
            (b"RIFF\0\0\0\0WEBP", "webp"),
            (b"RIFF\0\0\0\0WAVE", "wav"),
            (b"\0\0\0\x20ftypisom", "mp4"),
            (b"\0\0\0\x20ftypheic", "heic"),
            (b"%PDF-1.7", "pdf"),
            (b"", None),
            (b"hello", None),
        ):
            self.assertEqual(sniff(data), name, data)

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
        for item in (None, 5, [PNG]):
            self.assertRaises(TypeError, made, [item])
        for wrong in ({"wait_ms": 0}, {"wait_ms": True}, {"wait_ms": 10**9}, {"format": "../x"}):
            self.assertRaises(ValueError, made, PNG, **wrong)
        for address in ("http://", "https://a.example/\n", "http://a.example/" + "a" * 9000):
            self.assertRaises(ValueError, made, address)
