"""Tests for what L{domaeka.wire.server} writes: replies are read here as phones read them."""

import base64
import json
from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import ErrorCode
from domaeka.wire import (
    Dialect,
    Media,
    Reply,
    encode_ack,
    encode_error,
    encode_frame,
    encode_handshake_complete,
    encode_ping,
    encode_reply,
    encode_shutdown,
    media_address,
    timestamp_text,
)
from tests.samples import VECTORS

NOW = "2026-11-22T12:00:01.600Z"
EVENTS = ("messageResponse", "scheduleMessage", "broadcastMessage")

#: Any text, and what may break a frame.
texts = st.text(st.characters(codec=None, exclude_categories=())) | st.sampled_from(
    [
        "}",
        "}}\n{",
        "a\r\nb",
        "\u2028\u2029\x85",
        "\ud83d",
        "\x00",
        "IMAGE_BASE64:",
        "MEDIA_URL:x|||y",
    ]
)


def printable(text: str) -> str:
    """C{text} without halves of characters."""
    return text.encode("utf-8", "replace").decode()


def one_line(line: bytes) -> str:
    """What Java's C{readLine} gives: it ends at a CR, too."""
    text = line.decode()
    assert text.endswith("\n"), text[-10:]
    assert "\n" not in text[:-1] and "\r" not in text, text
    return text[:-1]


def as_33(line: bytes) -> tuple[dict[str, Any], str | list[str]]:
    """C{data}, and the text or the pieces, as a 3.3 phone finds them."""
    text = one_line(line)
    end = text.rindex("}") + 1
    frame, tail = json.loads(text[:end]), text[end:]
    data = frame["data"]
    positions = data["message_positions"]
    assert positions[0] == 0 and positions[-1] == len(tail) and positions != [0, 0], positions
    pieces = [tail[start:end] for start, end in pairwise(positions)]
    assert isinstance(data["room"], str) and frame["event"] in EVENTS
    assert data["channel_id"] is None or data["channel_id"].isdigit()
    if data["message_type"] != "text":
        return data, pieces
    assert data["content_encoding"] == "base64"
    return data, base64.b64decode(pieces[0], validate=True).decode()


def as_32(line: bytes) -> tuple[dict[str, Any], str | list[str]]:
    """C{data}, and the text or the pieces, as a 3.2 phone finds them."""
    frame = json.loads(one_line(line))
    assert frame["event"] == "messageResponse"
    data = frame["data"]
    text: str = data["text"]
    for order in ("IMAGE_BASE64:", "MEDIA_URL:"):
        if text.startswith(order):
            return data, text.removeprefix(order).split("|||")
    return data, text


PHONES = {Dialect.V32: as_32, Dialect.V33: as_33}


def reply(content: str | Media, **more: Any) -> Reply:
    return Reply("테스트방", "18398338829933617", "가게봇", content, **more)


class PhoneTests(SynchronousTestCase):
    """The phones of these tests are phones."""

    def test_understands_samples(self) -> None:
        """They find in each sample what it means."""
        for vector in VECTORS:
            if vector["direction"] == "out":
                read = as_32 if vector["client"].startswith("3.2") else as_33
                means = vector["means"]
                found = read(vector["line"].encode())[1]
                self.assertEqual(found, means.get("text", means.get("media")))


class EncodeReplyTests(SynchronousTestCase):
    """Tests for L{encode_reply}."""

    def test_same_as_samples(self) -> None:
        """Our lines hold what the samples of their version hold, key by key."""
        pictures = next(vector for vector in VECTORS if vector["name"] == "three pictures, 3.3")
        files = tuple(base64.b64decode(piece) for piece in pictures["means"]["media"])
        media = Media(files, "image", "png", 9000)
        for vector in VECTORS:
            if vector["direction"] == "out":
                content = media if "pictures" in vector["name"] else "에코 👋"
                dialect = Dialect.V32 if vector["client"].startswith("3.2") else Dialect.V33
                line = encode_reply(reply(content), dialect, NOW)
                read = PHONES[dialect]
                self.assertEqual(read(line), read(vector["line"].encode()))

    @given(
        texts.filter(bool), texts, texts, st.none() | st.from_regex(r"[0-9]{1,20}", fullmatch=True)
    )
    @example("} {", "}", "{}", None)
    @example("\ud83d", "\udc00", "\ud800", "1")
    def test_any_text(self, text: str, room: str, bot: str, channel: str | None) -> None:
        """Whatever the text and the names, both phones find them unharmed."""
        for dialect, read in PHONES.items():
            data, found = read(encode_reply(Reply(room, channel, bot, text), dialect, NOW))
            self.assertEqual((data["room"], data["bot_name"]), (printable(room), printable(bot)))
            self.assertEqual(data["channel_id"], channel)
            if isinstance(found, str):
                self.assertEqual(
                    found.removeprefix("\u200b"), printable(text).removeprefix("\u200b")
                )
            else:
                self.fail("a text became an order")

    def test_orders_of_strangers(self) -> None:
        """A text that a 3.2 phone would obey is shown to it, behind a character of no width."""
        for text in ("IMAGE_BASE64:AAAA", "MEDIA_URL:http://a/", "MEDIA_URL:"):
            self.assertEqual(as_32(encode_reply(reply(text), Dialect.V32, NOW))[1], "\u200b" + text)
            self.assertEqual(as_33(encode_reply(reply(text), Dialect.V33, NOW))[1], text)
        for text in ("image_base64:", " MEDIA_URL:", "x IMAGE_BASE64:"):
            self.assertEqual(as_32(encode_reply(reply(text), Dialect.V32, NOW))[1], text)

    @given(st.lists(st.binary(min_size=1, max_size=99), min_size=1, max_size=9))
    def test_files(self, files: list[bytes]) -> None:
        """Files arrive byte for byte, wherever their pieces end."""
        content = Media(tuple(files), "image", "jpg", 9000)
        for dialect, read in PHONES.items():
            data, pieces = read(encode_reply(reply(content), dialect, NOW))
            self.assertEqual([base64.b64decode(piece) for piece in pieces], files)
            self.assertEqual(data["media_wait_time"], 9000)

    def test_addresses(self) -> None:
        """Addresses stand as they are, several without a separator, or between bars."""
        addresses = ("http://a.example/b.jpg?c=d&e=%20#f", "https://b/")
        for dialect, read in PHONES.items():
            data, pieces = read(encode_reply(reply(Media(addresses, "video")), dialect, NOW))
            self.assertEqual(tuple(pieces), addresses)
            self.assertNotIn("media_wait_time", data)

    @given(st.lists(texts.filter(bool), min_size=1, max_size=4))
    def test_any_address(self, texts: list[str]) -> None:
        """Whatever stands in an address, it breaks no frame and becomes no other piece."""
        addresses = tuple("http://" + text for text in texts)
        for dialect, read in PHONES.items():
            pieces = read(encode_reply(reply(Media(addresses)), dialect, NOW))[1]
            self.assertEqual(len(pieces), len(addresses))

    def test_kinds(self) -> None:
        """A 3.3 phone is told what it gets."""
        for kind in ("image", "audio", "video", "document"):
            data, _ = as_33(encode_reply(reply(Media((b"x",), kind, "mp4")), Dialect.V33, NOW))
            self.assertEqual((data["message_type"], data["message_format"]), (kind, "mp4"))
            self.assertNotIn("content_encoding", data)

    def test_events(self) -> None:
        """Only 3.3 knows of schedules and broadcasts."""
        for event in EVENTS:
            line = encode_reply(reply("a", event=event), Dialect.V33, NOW)
            self.assertTrue(line.startswith(b'{"event":"%b",' % event.encode()))
            as_32(encode_reply(reply("a", event=event), Dialect.V32, NOW))

    def test_message_id(self) -> None:
        """A number is there only where it is asked for."""
        for dialect, read in PHONES.items():
            self.assertEqual(read(encode_reply(reply("a"), dialect, NOW, 7))[0]["message_id"], 7)
            self.assertNotIn("message_id", read(encode_reply(reply("a"), dialect, NOW))[0])

    def test_packed(self) -> None:
        """A text is packed where that saves enough; the packer decides."""
        given_to: list[tuple[bytes, bytes]] = []

        def pack(raw: bytes, tail: bytes) -> bytes | None:
            given_to.append((raw, tail))
            return b"UEFDSw==" if len(raw) > 9 else None

        line = encode_reply(reply("가" * 10), Dialect.V33, NOW, pack=pack)
        data, tail = (
            json.loads(line[: line.rindex(b"}") + 1])["data"],
            line[line.rindex(b"}") + 1 :],
        )
        self.assertEqual((data["content_encoding"], data["content_length"]), ("gzip+base64", 30))
        self.assertEqual((data["message_positions"], tail), ([0, 8], b"UEFDSw==\n"))
        self.assertEqual(as_33(encode_reply(reply("나"), Dialect.V33, NOW, pack=pack))[1], "나")
        self.assertEqual(given_to[1], ("나".encode(), base64.b64encode("나".encode())))
        encode_reply(reply(Media((b"x" * 99,))), Dialect.V33, NOW, pack=pack)
        encode_reply(reply("라" * 99), Dialect.V32, NOW, pack=pack)
        self.assertEqual(len(given_to), 2)


class ReplyTests(SynchronousTestCase):
    """Tests for L{Reply}."""

    def test_size(self) -> None:
        """The size is never less than half of what goes out."""
        for content in ("", "x" * 999, "이" * 999, "👋" * 999, Media((b"x" * 999, b"y"))):
            found = reply(content)
            for dialect in Dialect:
                line = encode_reply(found, dialect, NOW)
                self.assertLess(len(line), 2 * found.size)

    def test_blocked(self) -> None:
        """A phone is blocked for the wait time and a little, 15 s where none is given."""
        pictures = Media((b"x",), wait_ms=9000)
        for content, version, seconds in (
            ("text", "3.3.3", 0.0),
            (pictures, "3.3.3", 10.2),
            (pictures, "3.2.1", 10.2),
            (pictures, "3.2.0", 16.2),
            (Media((b"x",)), "3.3.3", 16.2),
        ):
            self.assertAlmostEqual(reply(content).blocked_seconds(version), seconds)


class MediaAddressTests(SynchronousTestCase):
    """Tests for L{media_address}."""

    def test_made_safe(self) -> None:
        """What would break a frame, or another address, is escaped, and once only."""
        for url, safe in (
            ("https://a.example/사진.jpg", "https://a.example/%EC%82%AC%EC%A7%84.jpg"),
            ("http://a/{b}|c d", "http://a/%7Bb%7D%7Cc%20d"),
            ("HTTP://[::1]:80/%7B?a=[b]#c", "HTTP://[::1]:80/%7B?a=[b]#c"),
        ):
            self.assertEqual(media_address(url), safe)
            self.assertEqual(media_address(safe), safe)

    def test_refused(self) -> None:
        """Only addresses of the web are addresses."""
        for url in ("", "a.jpg", "ftp://a/b", "file:///etc/passwd", "http://", "https:///a"):
            self.assertRaises(ValueError, media_address, url)
        for url in ("http://a/\nb", "http://a/\rb", "http://a/\x00", "http://[a/", "javascript:x"):
            self.assertRaises(ValueError, media_address, url)


class TimestampTextTests(SynchronousTestCase):
    """Tests for L{timestamp_text}."""

    def test_text(self) -> None:
        """Whole milliseconds, UTC, to the one that has begun; in any order."""
        for seconds, text in (
            (1_790_000_000.0, "2026-09-21T14:13:20.000Z"),
            (1_790_000_000.9999, "2026-09-21T14:13:20.999Z"),
            (1_790_000_000.001, "2026-09-21T14:13:20.001Z"),
            (1_790_000_000.007, "2026-09-21T14:13:20.007Z"),
            (0.0, "1970-01-01T00:00:00.000Z"),
            (1_790_000_001.5, "2026-09-21T14:13:21.500Z"),
            (1_790_000_000.25, "2026-09-21T14:13:20.250Z"),
        ):
            self.assertEqual(timestamp_text(seconds), text)


class NoticeTests(SynchronousTestCase):
    """Frames without a tail."""

    def read(self, line: bytes) -> tuple[str, dict[str, Any]]:
        frame = json.loads(one_line(line))
        return frame["event"], frame["data"]

    def test_notices(self) -> None:
        """Each holds what a phone, or a client, looks for."""
        for line, event, data in (
            (encode_ack("이"), "ack", {"client_id": "이"}),
            (
                encode_error(ErrorCode.BAD_FRAME, "a}\nb"),
                "error",
                {"code": "BAD_FRAME", "message": "a}\nb"},
            ),
            (
                encode_ping("봇", NOW),
                "ping",
                {"bot_name": "봇", "server_timestamp": NOW},
            ),
            (
                encode_shutdown("stop", 61.23456),
                "serverShutdown",
                {"reason": "stop", "reconnect_after": 61.235},
            ),
            (encode_frame("news", [1]), "news", [1]),
        ):
            self.assertEqual(self.read(line), (event, data))

    def test_handshake_complete(self) -> None:
        """The answer that every phone gets, and more for those who asked."""
        event, data = self.read(
            encode_handshake_complete(
                approved=False, message="기다려", server_version="1", timestamp=NOW, resumed=True
            )
        )
        self.assertEqual(event, "handshakeComplete")
        self.assertEqual(
            data,
            {
                "success": True,
                "approved": False,
                "message": "기다려",
                "server_version": "1",
                "timestamp": NOW,
                "timezone": "Asia/Seoul",
                "message_positions": [0, 0],
                "resumed": True,
            },
        )
