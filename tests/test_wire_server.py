"""Tests for what L{domaeka.wire.server} reads; test_wire_server_hostile.py has more."""

import base64
import gzip
import json
import random
from typing import Any

from domaeka.errors import ErrorCode, WireError
from domaeka.wire import (
    MAX_LINE_BYTES,
    MAX_TEXT_CHARS,
    Ack,
    Chat,
    DeliveryReport,
    Dialect,
    FrameReader,
    Handshake,
    Migrated,
    Pong,
    Probe,
    encode_frame,
)
from tests.samples import (
    ANALYZE,
    BARE,
    ENVELOPED,
    INBOUND,
    LINES,
    MESSAGE,
    PONG,
    ReadingTestCase,
    changed,
    message,
    parts,
    read,
)


class VectorTests(ReadingTestCase):
    """Each sample line means what it says."""

    def test_all(self) -> None:
        """A line is read as meant, or refused with the code that is meant."""
        for name, vector in INBOUND.items():
            means = vector["means"]
            if "error" in means:
                self.assertRefused(LINES[name], means["error"])
                continue
            found = read(LINES[name])
            getattr(self, f"_check_{means['event']}")(found, means)

    def _check_handshake(self, found: Handshake, means: dict[str, Any]) -> None:
        self.assertEqual(
            (found.bot_name, found.device_id, found.version),
            (means["bot"], means["device"], means["version"]),
        )
        self.assertEqual((found.client_type, found.auth), ("MessengerBotR", None))

    def _check_message(self, found: Chat, means: dict[str, Any]) -> None:
        text = means["text"]
        if text is None:
            unit, times = means["text_repeat"]
            text = unit * times
        self.assertEqual(
            (found.text, found.room, found.channel_id, found.sender),
            (text, means["room"], means["channel"], means["sender"]),
        )
        assert found.auth is not None
        self.assertEqual(found.auth.bot_name, "가게봇")
        self.assertIsNone(found.packed)

    def _check_pong(self, found: Pong, means: dict[str, Any]) -> None:
        self.assertEqual(found.server_timestamp, means["server_timestamp"])
        for key, value in means["monitoring"].items():
            self.assertEqual(getattr(found.monitoring, key), value)
        assert found.auth is not None


class HandshakeTests(ReadingTestCase):
    """What a phone says of itself."""

    def test_dialect(self) -> None:
        """A bare handshake of a 3.2 takes the 3.2 form; all else takes 3.3."""
        for line, version, dialect in (
            (BARE, "3.2.1", Dialect.V32),
            (BARE, "3.3.2", Dialect.V33),
            (ENVELOPED, "3.2.1", Dialect.V33),
            (ENVELOPED, "3.3.3", Dialect.V33),
        ):
            frame, _ = parts(line)
            frame.get("data", frame)["version"] = version
            found = self.handshake(json.dumps(frame).encode())
            self.assertEqual((found.dialect, found.bare), (dialect, line is BARE))

    def test_missing_fields(self) -> None:
        """Three names are needed; the rest may be missing or null."""
        for gone in (..., None):
            line = changed(ENVELOPED, clientType=gone, deviceIP=gone, deviceInfo=gone)
            found = self.handshake(line)
            self.assertEqual(
                (found.client_type, found.device_ip, found.device_info), ("MessengerBotR", "", "")
            )
            for name in ("botName", "version", "deviceID"):
                self.assertRefused(changed(ENVELOPED, **{name: gone}), ErrorCode.BAD_HANDSHAKE)

    def test_names(self) -> None:
        """Names have 1 to 128 characters, not blank, no control characters."""
        for name in ("botName", "version", "deviceID"):
            for good in ("x", "이" * 128, "a b", "👩‍👧", " x", "|"):
                self.handshake(changed(ENVELOPED, **{name: good}))
            for bad in ("", " ", "\u3000 ", "x" * 129, "a\nb", "a\x00", "\x85", "\x7f", 5, [5]):
                self.assertRefused(changed(ENVELOPED, **{name: bad}), ErrorCode.BAD_HANDSHAKE)

    def test_long_facts_are_cut(self) -> None:
        """What is only for people is cut, not refused."""
        line = changed(ENVELOPED, clientType="c" * 999, deviceIP="i" * 999, deviceInfo="d" * 2000)
        found = self.handshake(line)
        self.assertEqual(len(found.client_type + found.device_ip + found.device_info), 1256)

    def test_without_event(self) -> None:
        """An object without an event is a handshake if it has one of the three names."""
        for keys in ({"botName": "b"}, {"deviceID": 5}, {"version": None}):
            self.assertRefused(json.dumps(keys).encode(), ErrorCode.BAD_HANDSHAKE)
        for text in (b"{}", b'{"botname":"b"}', b'{"data":{"botName":"b"}}'):
            self.assertRefused(text)
        bare, _ = parts(BARE)
        self.assertRefused(json.dumps({**bare, "event": None}).encode())

    def test_capabilities(self) -> None:
        """Known capabilities are kept, others dropped; what is no list of some names is refused."""
        line = changed(ENVELOPED, capabilities=["gzip", "ack", "ack", "teleport", ""])
        self.assertEqual(self.handshake(line).capabilities, {"gzip", "ack"})
        self.assertIsNone(self.handshake(ENVELOPED).capabilities)
        for bad in ("gzip", [5], {"gzip": True}, ["gzip"] * 1000):
            self.assertRefused(changed(ENVELOPED, capabilities=bad), ErrorCode.BAD_HANDSHAKE)

    def test_session_token(self) -> None:
        """A token of the wrong type is one that is not valid, not a bad handshake."""
        for sent, read_as in (("t", "t"), (None, None), (5, ""), (["t"], ""), ({}, ""), ("", "")):
            found = self.handshake(changed(ENVELOPED, session_token=sent))
            self.assertEqual(found.session_token, read_as)

    def test_auth_of_the_wrong_form(self) -> None:
        """A bad proof is refused as such."""
        for line in (ENVELOPED, MESSAGE, ANALYZE, PONG):
            for bad in ([5], "x", 5, {"botName": "b"}):
                self.assertRefused(changed(line, auth=bad), ErrorCode.AUTH_FAILED)
            self.assertIsNone(getattr(read(changed(line, auth=None)), "auth"))  # noqa: B009


class ChatTests(ReadingTestCase):
    """What somebody wrote."""

    def test_ids(self) -> None:
        """Ids are text, numbers or null; a channel id that is no digits counts as unknown."""
        for sent, channel, other in (
            ("18398338829933617", "18398338829933617", "18398338829933617"),
            (18398338829933617, "18398338829933617", "18398338829933617"),
            (1.8398338829933617e16, "18398338829933616", "18398338829933616"),
            (2**70, str(2**70), str(2**70)),
            (0, "0", "0"),
            (-5, None, "-5"),
            ("None", None, "None"),
            ("１２", None, "１２"),
            ("", None, None),
            (None, None, None),
            (..., None, None),
        ):
            found = self.chat(changed(MESSAGE, channel_id=sent, log_id=sent, user_hash=sent))
            self.assertEqual(found.channel_id, channel, sent)
            self.assertEqual((found.log_id, found.user_hash), (other, other), sent)
            found = self.chat(changed(ANALYZE, channelId=sent, logId=sent, userHash=sent))
            self.assertEqual((found.channel_id, found.log_id), (channel, other), sent)

    def test_ids_refused(self) -> None:
        """Anything else is no id."""
        for bad in (1.5, 10**128, "x" * 129, "a\nb", True, [5]):
            for name in ("channel_id", "log_id", "user_hash"):
                self.assertRefused(changed(MESSAGE, **{name: bad}))
        for number in (b"1e999", b"-1e999", b"9" * 400, b"9" * 5000, b"NaN", b"01", b"0x1"):
            line = changed(MESSAGE, channel_id="@").replace(b'"@"', number)
            self.assertRefused(line)

    def test_room_id(self) -> None:
        """A room is known by its channel id, or else by its name."""
        self.assertEqual(self.chat(MESSAGE).room_id, "18398338829933617")
        self.assertEqual(self.chat(changed(MESSAGE, channel_id=None)).room_id, "테스트방")
        title = self.chat(changed(MESSAGE, channel_id=None, room="18398338829933617"))
        self.assertEqual(title.room_id, '"18398338829933617"')

    def test_titles(self) -> None:
        """Names of rooms and senders may be long, and odd, but hold no control characters."""
        for good in ("x" * 1000, "🎉 \u200d\u2028방", "{}"):
            found = self.chat(changed(MESSAGE, room=good, sender=good))
            self.assertEqual((found.room, found.sender), (good, good))
        for bad in ("x" * 1001, "a\rb", "\x9f", 5):
            self.assertRefused(changed(MESSAGE, room=bad))
            self.assertRefused(changed(MESSAGE, sender=bad))
        for blank in ("", " ", "\u3000", None, ...):
            self.assertRefused(changed(MESSAGE, room=blank))
        self.assertEqual(self.chat(changed(MESSAGE, sender=None)).sender, "")

    def test_flags(self) -> None:
        """Flags are true, false, or missing; null is false."""
        for sent, flag in ((True, True), (False, False), (None, False), (..., False)):
            found = self.chat(changed(MESSAGE, is_group_chat=sent, is_mention=sent))
            self.assertEqual((found.is_group, found.is_mention), (flag, flag))
        for bad in (1, "true", [5]):
            self.assertRefused(changed(MESSAGE, is_mention=bad))

    def test_timestamps(self) -> None:
        """3.3 says its time in UTC, 3.2 in Seoul's; what is no time reads as none."""
        for line, sent, wanted in (
            (MESSAGE, "2026-11-22T12:00:01.500Z", "2026-11-22T12:00:01.500000+00:00"),
            (ANALYZE, "2026-11-22 21:00:01", "2026-11-22T21:00:01+09:00"),
        ):
            moment = self.chat(changed(line, timestamp=sent)).timestamp
            assert moment is not None
            self.assertEqual(moment.isoformat(), wanted)
            for odd in ("soon", "", "0000-00-00 00:00:00", 5, None, ...):
                self.assertIsNone(self.chat(changed(line, timestamp=odd)).timestamp)

    def test_ignored_fields(self) -> None:
        """Positions are only a hint, and fields that nobody knows are nobody's business."""
        for odd in ([0, 0], [5, -1], "x", None, ...):
            line = changed(MESSAGE, message_positions=odd, timezone=odd, news=odd)
            self.assertEqual(self.chat(line).text, self.chat(MESSAGE).text)

    def test_message_type(self) -> None:
        """Only text comes from a room."""
        self.chat(changed(MESSAGE, message_type=None))
        for bad in ("image", "", 5):
            self.assertRefused(changed(MESSAGE, message_type=bad))

    def test_client_id(self) -> None:
        """A client's own id has 1 to 64 characters."""
        self.assertEqual(self.chat(changed(MESSAGE, client_id="이" * 64)).client_id, "이" * 64)
        for bad in ("", "x" * 65, 5):
            self.assertRefused(changed(MESSAGE, client_id=bad))


class TailTests(ReadingTestCase):
    """The text behind the header."""

    def test_base64(self) -> None:
        """Only base64 as it should be is base64."""
        self.assertEqual(self.chat(message(b"")).text, "")
        self.assertEqual(self.chat(message("👋".encode(), None)).text, "👋")
        for bad in (
            b"YQ",
            b"YQ=",
            b"YQ===",
            b"YQ==YQ==",
            b"Y Q==",
            b"Y-Q_",
            b"=",
            b"YQ==\r",
            b"YWI",
        ):
            self.assertRefused(message(bad))

    def test_text_must_be_utf8(self) -> None:
        """Neither in base64 nor plain may a text be something else."""
        for bad in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
            self.assertRefused(message(base64.b64encode(bad)))
            self.assertRefused(message(bad, None))
            self.assertRefused(message(base64.b64encode(gzip.compress(bad)), "gzip+base64"))

    def test_plain_tail_with_a_brace(self) -> None:
        """The header ends at the last brace: such a tail cannot be told from it."""
        self.assertRefused(message(b"a } b", None))

    def test_unknown_encoding(self) -> None:
        """What nobody knows how to read is refused."""
        for encoding in ("", "rot13", "BASE64"):
            self.assertRefused(message(b"YQ==", encoding))

    def test_only_messages_have_tails(self) -> None:
        """A tail behind anything else is refused."""
        for line in (ANALYZE, PONG, ENVELOPED):
            self.assertRefused(line + b"YQ==")

    def test_longest_text(self) -> None:
        """The limit counts characters, whatever each takes in bytes."""
        for letter in ("x", "이", "👋"):
            for count in (MAX_TEXT_CHARS, MAX_TEXT_CHARS + 1):
                raw = (letter * count).encode()
                old = changed(ANALYZE, text=letter * count)
                lines = [message(raw, None), message(base64.b64encode(raw)), old]
                lines.append(message(base64.b64encode(gzip.compress(raw)), "gzip+base64"))
                for line in lines:
                    if count > MAX_TEXT_CHARS:
                        self.assertRefused(line, ErrorCode.MESSAGE_TOO_LONG)
                    else:
                        self.assertEqual(self.chat(line).text, letter * count)

    def test_length_before_content(self) -> None:
        """A tail that must be too long is refused unread: what is in it does not matter."""
        for encoding in ("base64", "gzip+base64", None):
            self.assertRefused(message(b"\xff" * 400_000, encoding), ErrorCode.MESSAGE_TOO_LONG)
        reader = FrameReader(max_text_chars=2)
        error = self.assertRaises(WireError, reader.read, message(b"*" * 13))
        self.assertEqual(error.code, ErrorCode.MESSAGE_TOO_LONG)


class GzipTests(ReadingTestCase):
    """Texts that come packed."""

    def packed(self, raw: bytes) -> bytes:
        return message(base64.b64encode(raw), "gzip+base64")

    def test_waits_for_the_signature(self) -> None:
        """Reading alone inflates nothing."""
        chat = FrameReader().read(self.packed(b"no gzip stream"))
        assert isinstance(chat, Chat)
        self.assertEqual((chat.text, chat.packed), ("", b"no gzip stream"))
        self.assertRaises(WireError, FrameReader().inflate, chat)

    def test_any_size(self) -> None:
        """Texts around the size of a step come out whole."""
        random.seed(1)
        for size in (0, 1, 32_768, 65_535, 65_536, 65_537):
            for text in ("x" * size, "".join(random.choices("가나다라 abcdefg", k=size))):
                if len(text) <= MAX_TEXT_CHARS:
                    line = self.packed(gzip.compress(text.encode()))
                    self.assertEqual(self.chat(line).text, text)

    def test_not_one_whole_stream(self) -> None:
        """A stream cut short, two, or one with something behind it are refused."""
        whole = gzip.compress("이야기".encode() * 100)
        for bad in (
            b"",
            whole[:-1],
            whole[:20],
            whole + whole,
            whole + b"x",
            whole[:-8] + bytes(8),
        ):
            self.assertRefused(self.packed(bad))

    def test_bomb(self) -> None:
        """What inflates past the frame limit is refused without being held in memory."""
        bomb = self.packed(gzip.compress(bytes(MAX_LINE_BYTES + 1)))
        self.assertRefused(bomb, ErrorCode.FRAME_TOO_LARGE)


class OtherEventsTests(ReadingTestCase):
    """Pongs, and what clients with capabilities say."""

    def test_pong(self) -> None:
        """C{ping} is an answer as C{pong} is; what it echoes is compared as it came."""
        for event in ("pong", "ping"):
            for echo in ("2026-11-22 21:00:02.123", 5, 1.5, None):
                line = json.dumps({"event": event, "data": {"server_timestamp": echo}})
                self.assertEqual(read(line.encode()), Pong(server_timestamp=echo))

    def test_monitoring(self) -> None:
        """Figures are numbers or null."""
        monitoring = json.loads(PONG)["data"]["monitoring"]
        for name in monitoring:
            found = read(changed(PONG, monitoring={**monitoring, name: None}))
            assert isinstance(found, Pong)
            self.assertIsNone(getattr(found.monitoring, name))
            for bad in ("1", True, [5], 10**400):
                self.assertRefused(changed(PONG, monitoring={**monitoring, name: bad}))

    def test_ack(self) -> None:
        """A number of a message is whole and not negative."""
        self.assertEqual(read(b'{"event":"ack","data":{"message_id":7}}'), Ack(7))
        for bad in (b"-1", b"1.5", b"1e999", b'"7"', b"null", b"9" * 30):
            self.assertRefused(b'{"event":"ack","data":{"message_id":%b}}' % bad)

    def test_delivery(self) -> None:
        """A report names a message; its reason is short, and has no control characters."""
        line = b'{"event":"delivery","data":{"message_id":7,"ok":false,"reason":"x"}}'
        self.assertEqual(read(line), DeliveryReport(7, False, "x"))
        self.assertEqual(read(line.replace(b',"reason":"x"', b"")), DeliveryReport(7, False))
        for bad in (b'"' + b"x" * 65 + b'"', b'"\\u0007"', b'"\\u009b"', b"null", b"1"):
            self.assertRefused(line.replace(b'"x"', bad))
        for bad in (b"0", b'"true"', b"null"):
            self.assertRefused(line.replace(b"false", bad))
        self.assertRefused(line.replace(b"7", b"-7"))

    def test_uptime(self) -> None:
        """The uptime of an app is a number of seconds, or is not said."""
        line = b'{"event":"handshake","data":{"botName":"b","version":"1","deviceID":"d"%b}}'
        for said, read_as in ((b"", None), (b',"uptime":null', None), (b',"uptime":61.5', 61.5)):
            handshake = read(line % said)
            assert isinstance(handshake, Handshake)
            self.assertEqual(handshake.uptime, read_as)
        for bad in (b"-1", b"1e999", b'"1"', b"1e12"):
            self.assertRefused(line % (b',"uptime":' + bad), ErrorCode.BAD_HANDSHAKE)

    def test_probe(self) -> None:
        """A probe has no fields; the answer is the same frame."""
        self.assertEqual(read(b'{"event":"probe","data":{}}'), Probe())
        self.assertEqual(encode_frame("probe", Probe()), b'{"event":"probe","data":{}}\n')

    def test_migrated(self) -> None:
        """A place has a host and a port."""
        line = b'{"event":"migrated","data":{"new_host":"h","new_port":9}}'
        self.assertEqual(read(line), Migrated("h", 9))
        for bad in (b"0", b"-1", b"65536", b'"9"'):
            self.assertRefused(line.replace(b"9", bad))
        self.assertRefused(line.replace(b'"h"', b'""'))
