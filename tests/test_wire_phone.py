"""Tests for L{domaeka.wire.phone}."""

import gzip
import json
from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka import wire
from domaeka.errors import ErrorCode, WireError
from domaeka.policies.auth import Signer
from domaeka.wire import (
    Chat,
    Delivered,
    Dialect,
    FrameReader,
    Handshake,
    Identity,
    Media,
    PhoneWriter,
    Pong,
    Reply,
    Said,
    read_server_frame,
)
from domaeka.wire.frames import FROM_SERVER, ReplyData

NOW = 1_790_000_000.0
PHONE = Identity(
    bot_name="가게봇",
    device_id="a1b2c3d4e5f60718",
    version="3.3.3",
    client_type="MessengerBotR",
    mac_address="02:00:00:00:00:00",
    ip_address="192.168.0.13",
)
SAID = Said(
    room="테스트방",
    sender="보내는이",
    text="# echo 안녕 👋 } {\n둘째 줄",
    channel_id="18398338829933617",
    is_group=True,
    log_id="3412345678901234567",
    user_hash="0a1b2c",
)


def signer() -> Signer:
    return Signer(["vector-secret-열쇠"], "vector-salt", 300.0, lambda: NOW)


class PhoneWriterTests(SynchronousTestCase):
    """Tests for L{PhoneWriter}: what it writes is what a server reads."""

    def setUp(self) -> None:
        self.writer = PhoneWriter(PHONE, signer().sign, lambda: NOW)
        self.reader = FrameReader()

    def read(self, line: bytes) -> wire.Inbound:
        self.assertEqual(line.count(b"\n"), 1)
        return self.reader.read(line[:-1])

    def test_signature(self) -> None:
        """The signature is the one that phones in the field give for the same facts."""
        auth = self.writer.auth()
        assert auth is not None
        self.assertEqual(
            auth.signature, "031fbe375d4a43828103ebfa301fe167fb6e9ae0d485bd0006497e676ce89ed8"
        )
        self.assertIsNone(signer().fault(auth))

    def test_chat(self) -> None:
        """A text arrives whole in either dialect, with everything beside it."""
        for dialect in Dialect:
            chat = self.read(self.writer.chat(SAID, dialect))
            assert isinstance(chat, Chat)
            self.assertIs(chat.dialect, dialect)
            for name in wire.Said.__struct_fields__:
                self.assertEqual(getattr(chat, name), getattr(SAID, name), name)
            self.assertEqual(chat.timestamp and chat.timestamp.timestamp(), NOW)
            assert chat.auth is not None
            self.assertIsNone(signer().fault(chat.auth))

    def test_client_id_and_packed_text(self) -> None:
        """A 3.3 message may carry a number to be acknowledged by, and may be packed."""
        line = self.writer.chat(
            SAID, client_id="7", pack=lambda raw, tail: b64encode(gzip.compress(raw))
        )
        chat = self.read(line)
        assert isinstance(chat, Chat)
        self.reader.inflate(chat)
        self.assertEqual((chat.client_id, chat.text), ("7", SAID.text))

    def test_handshake(self) -> None:
        """Both forms name the phone; only what is asked for is added."""
        for bare in (True, False):
            hello = self.read(self.writer.handshake(bare=bare))
            assert isinstance(hello, Handshake)
            self.assertEqual((hello.bot_name, hello.device_id), ("가게봇", PHONE.device_id))
            self.assertEqual(
                (hello.bare, hello.auth, hello.session_token, hello.capabilities),
                (bare, None, None, None),
            )
        hello = self.read(
            self.writer.handshake(signed=True, capabilities=["ack"], session_token="t")
        )
        assert isinstance(hello, Handshake) and hello.auth is not None
        self.assertEqual((hello.session_token, hello.capabilities), ("t", frozenset({"ack"})))

    def test_unsigned(self) -> None:
        """A phone without a key signs nothing."""
        writer = PhoneWriter(PHONE, None, lambda: NOW)
        chat = self.read(writer.chat(SAID))
        assert isinstance(chat, Chat)
        self.assertIsNone(chat.auth)

    def test_pong_echoes(self) -> None:
        """Whatever a ping bore comes back as it was."""
        for event in ("pong", "ping"):
            asked = read_server_frame(
                b'{"event":"ping","data":{"server_timestamp":"12:30 \\u0041"}}'
            )
            assert isinstance(asked, wire.Ping)
            line = self.writer.pong(asked.server_timestamp, event=event)
            self.assertIn(b'"server_timestamp":"12:30 \\u0041"', line)
            pong = self.read(line)
            assert isinstance(pong, Pong) and pong.auth is not None

    def test_ack_and_migrated(self) -> None:
        """What a client says beside is read as such."""
        self.assertEqual(self.read(wire.encode_frame("ack", wire.Ack(9))), wire.Ack(9))
        self.assertEqual(
            self.read(wire.encode_frame("migrated", wire.Migrated("h", 1))),
            wire.Migrated(new_host="h", new_port=1),
        )

    def test_lone_surrogates(self) -> None:
        """A text that UTF-8 cannot say is sent with a question mark in the gap."""
        for dialect in Dialect:
            chat = self.read(self.writer.chat(Said(room="방", sender="a", text="\ud800!"), dialect))
            assert isinstance(chat, Chat)
            self.assertEqual(chat.text, "?!")


def delivered(line: bytes, dialect: Dialect = Dialect.V33) -> Delivered:
    frame = read_server_frame(line.rstrip(b"\n"), dialect)
    assert isinstance(frame, Delivered)
    return frame


class ReadServerFrameTests(SynchronousTestCase):
    """Tests for L{read_server_frame}."""

    def refused(self, header: object, tail: bytes = b"", dialect: Dialect = Dialect.V33) -> None:
        line = json.dumps(header).encode() + tail
        error = self.assertRaises(WireError, read_server_frame, line, dialect)
        self.assertEqual(error.code, ErrorCode.BAD_FRAME)

    def test_reads_what_a_server_writes(self) -> None:
        """Texts, pictures and addresses arrive in either dialect as they were given."""
        for content in (
            "에코 👋 } {",
            Media((b"\x89PNG}\n", b"\xff\xd8\xff", b"GIF"), "image", "png", 9000),
            Media(("http://a/b.png", "https://c/%7D"), "image", "jpg", None),
        ):
            reply = Reply("방", "123", "가게봇", content)
            for dialect in Dialect:
                line = wire.encode_reply(reply, dialect, wire.timestamp_text(NOW), 5)
                frame = delivered(line, dialect)
                self.assertEqual(frame.message_id, 5)
                self.assertEqual((frame.reply.room, frame.reply.channel_id), ("방", "123"))
                if isinstance(content, str):
                    self.assertEqual(frame.reply.content, content)
                else:
                    assert isinstance(frame.reply.content, Media)
                    self.assertEqual(frame.reply.content.pieces, content.pieces)
                    self.assertEqual(frame.reply.content.wait_ms, content.wait_ms)

    def test_packed_text(self) -> None:
        """A packed text is inflated, but never beyond the limit."""

        def packed(text: str) -> bytes:
            line = wire.encode_reply(
                Reply("방", None, "b", text),
                Dialect.V33,
                "t",
                pack=lambda raw, tail: b64encode(gzip.compress(raw, 1)),
            )
            return line.rstrip(b"\n")

        text = "가나다라" * 5000
        self.assertEqual(delivered(packed(text)).reply.content, text)
        bomb = packed("x" * (wire.MAX_SERVER_LINE_BYTES + 1))
        error = self.assertRaises(WireError, read_server_frame, bomb)
        self.assertEqual(error.code, ErrorCode.FRAME_TOO_LARGE)

    def test_what_a_phone_drops(self) -> None:
        """What a phone would drop without a word is an error here, so that it is seen."""
        data = {"room": "r", "message_type": "text", "content_encoding": "base64"}
        for changed in (
            {"message_positions": [0, 0]},
            {"message_positions": [0, 3]},
            {},
            {"message_positions": [0, 4], "message_type": None},
            {"message_positions": [0, 4], "channel_id": 5},
            {"message_positions": [0, 4], "content_encoding": "rot13"},
        ):
            self.refused({"event": "messageResponse", "data": {**data, **changed}}, b"YWJj")
        pictures = {"room": "r", "message_type": "image", "message_positions": [0, 6, 8]}
        self.refused({"event": "messageResponse", "data": pictures}, b"YWJjZGVm")
        good = {**data, "message_positions": [0, 4]}
        self.refused({"event": "messageResponse", "data": good}, b"YWJj", Dialect.V32)

    def test_greeting(self) -> None:
        """Old servers say less; nothing that is missing is invented."""
        line = wire.encode_handshake_complete(
            approved=False, message="m", server_version="1", timestamp="t"
        )
        frame = read_server_frame(line.rstrip(b"\n"))
        assert isinstance(frame, wire.Greeting)
        self.assertEqual((frame.success, frame.approved), (True, False))
        self.assertEqual((frame.capabilities, frame.session_token), ([], None))

    def test_notices(self) -> None:
        """Notices and errors are told apart; an event of tomorrow is no error."""
        self.assertEqual(
            read_server_frame(wire.encode_shutdown("bye", 71.5).rstrip(b"\n")),
            wire.ShutdownNotice("bye", 71.5),
        )
        self.assertEqual(
            read_server_frame(wire.encode_error(ErrorCode.BANNED, "no").rstrip(b"\n")),
            wire.ErrorFrame("BANNED", "no"),
        )
        self.assertEqual(read_server_frame(wire.encode_ack("7").rstrip(b"\n")), wire.ServerAck("7"))
        self.assertEqual(read_server_frame(b'{"event":"dance","data":[1]}'), wire.Unknown("dance"))
        moving = read_server_frame(
            b'{"event":"serverMigration","data":{"new_host":"h","new_port":9,"expires":5}}'
        )
        assert isinstance(moving, wire.MigrationNotice)
        self.assertEqual(moving.signed_text, "serverMigration|h|9|false|5")

    @given(st.binary() | st.text().map(str.encode))
    def test_any_bytes(self, line: bytes) -> None:
        """Whatever comes, it is a frame or a L{WireError}."""
        self._read_any(b"{" + line)

    _json = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )

    @given(
        st.sampled_from([*FROM_SERVER, "?"]),
        st.dictionaries(
            st.sampled_from(
                [
                    *ReplyData.__struct_fields__,
                    *wire.Greeting.__struct_fields__,
                    *wire.MigrationNotice.__struct_fields__,
                ]
            ),
            _json | st.sampled_from(["text", "image", "base64", "IMAGE_BASE64:|||", [0, 4], 1e308]),
        ),
        st.sampled_from([b"", b"YWJj", b"http", b"\xff\xff\xff\xff"]),
    )
    def test_any_object(self, event: str, data: dict[str, object], tail: bytes) -> None:
        """Whatever types the fields have, it is a frame or a L{WireError}."""
        self._read_any(json.dumps({"event": event, "data": data}).encode() + tail)

    def _read_any(self, line: bytes) -> None:
        for dialect in Dialect:
            try:
                read_server_frame(line, dialect)
            except WireError as error:
                self.assertNotIn("\n", error.text)
