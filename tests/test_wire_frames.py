"""Tests for L{domaeka.wire.frames}: one declaration of a frame serves both sides."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import ErrorCode, WireError
from domaeka.wire import (
    Ack,
    Delivered,
    Dialect,
    FrameReader,
    Identity,
    Media,
    Migrated,
    PhoneWriter,
    Reply,
    Said,
    encode_ack,
    encode_error,
    encode_frame,
    encode_handshake_complete,
    encode_ping,
    encode_reply,
    encode_shutdown,
    pack_text,
    read_server_frame,
)
from domaeka.wire.frames import FROM_PHONE, FROM_SERVER, MessageData, ReplyData
from domaeka.wire.framing import split_frame

WRITER = PhoneWriter(Identity(bot_name="봇", device_id="d"), lambda text: "0" * 64, lambda: 1e9)
SAID = Said(room="방", sender="나", text="글" * 20_000)
WHATEVER: tuple[object, ...] = (None, True, 7, "text", [[]], {"a": {}})


def phone_lines() -> Iterator[bytes]:
    """What a phone can say, with all that it can say of it."""
    yield WRITER.handshake(signed=True, capabilities=["ack"], session_token="t")
    for dialect in Dialect:
        yield WRITER.chat(SAID, dialect, client_id="1", pack=pack_text)
    yield WRITER.pong("t")
    yield encode_frame("ack", Ack(1))
    yield encode_frame("migrated", Migrated("host", 9000))


def server_lines() -> Iterator[bytes]:
    """What a server can say, likewise."""
    yield encode_handshake_complete(
        approved=True, message="m", server_version="1", timestamp="t", epoch="e", resumed=False
    )
    for content in ("글" * 20_000, Media((b"a", b"b"), wait_ms=5)):
        for dialect in Dialect:
            yield encode_reply(Reply("방", None, "봇", content), dialect, "t", 1, pack_text)
    yield encode_ping("봇", "t")
    yield encode_ack("1")
    yield encode_shutdown("stop", 1.0)
    yield encode_error(ErrorCode.BANNED, "no")


def parts(line: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a line, and its tail."""
    header, tail = split_frame(line.rstrip(b"\n"))
    return json.loads(header), tail


def unread(kind: Any) -> list[str]:
    """The fields of a type that its reader skips."""
    fields = msgspec.structs.fields(kind)
    return [field.encode_name for field in fields if field.type is msgspec.Raw]


class FramesTests(SynchronousTestCase):
    """What one side writes, the other reads by the same type."""

    def test_nothing_is_written_that_is_not_declared(self) -> None:
        """Every key of a frame is a field of its event's type."""
        for table, lines in ((FROM_PHONE, phone_lines()), (FROM_SERVER, server_lines())):
            for line in lines:
                header, _ = parts(line)
                fields = set(table[header["event"]].__struct_encode_fields__)
                self.assertEqual(header["data"].keys() - fields, set(), header["event"])

    def test_a_room_without_an_id_says_so(self) -> None:
        """C{channel_id} is written where it is null, too; what does not apply is left out."""
        (reply, _), (chat, _) = map(
            parts,
            (
                encode_reply(Reply("방", None, "봇", "글"), Dialect.V33, "t"),
                WRITER.chat(Said(room="방", sender="나", text="글")),
            ),
        )
        for data in (reply["data"], chat["data"]):
            self.assertIsNone(data["channel_id"])
            self.assertNotIn("content_length", data)

    def test_what_nobody_reads_may_be_anything(self) -> None:
        """A field that is only written is skipped by its reader, whatever stands in it."""
        header, tail = parts(WRITER.chat(SAID, client_id="1"))
        self.assertIn("timezone", unread(MessageData))
        for name in unread(MessageData):
            for value in WHATEVER:
                line = json.dumps(header | {"data": header["data"] | {name: value}}).encode() + tail
                chat: Any = FrameReader().read(line)
                self.assertEqual(chat.text, SAID.text, name)
        header, tail = parts(encode_reply(Reply("방", "1", "봇", "글"), Dialect.V33, "t"))
        for name in unread(ReplyData):
            for value in WHATEVER:
                line = json.dumps(header | {"data": header["data"] | {name: value}}).encode() + tail
                self.assertIsInstance(read_server_frame(line), Delivered, name)

    def test_what_is_read_may_not(self) -> None:
        """A field that is read is refused where it is of another type."""
        header, tail = parts(WRITER.chat(SAID, client_id="1"))
        for name in ("room", "sender", "is_mention", "client_id"):
            line = json.dumps(header | {"data": header["data"] | {name: [[]]}}).encode() + tail
            with self.assertRaises(WireError):
                FrameReader().read(line)
