"""Tests for L{domaeka.testing.script}: it behaves as docs/protocol.md says phones do."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.auth import Signer
from domaeka.testing import (
    SCRIPTS,
    STANDARD_IDENTITY,
    BridgeScript,
    JavaLineReader,
    PhoneRecord,
)
from domaeka.wire import (
    Dialect,
    FrameReader,
    Identity,
    Media,
    Reply,
    Said,
    encode_ping,
    encode_reply,
)

VECTORS = Path(__file__).parent / "vectors"
NOW = 1_790_000_000.0
SECRET = "a secret of enough bytes"
SALT = "salt"


def vectors(name: str) -> list[dict[str, Any]]:
    """The samples of a file."""
    lines = (VECTORS / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def reply_line(content: str | Media, dialect: Dialect = Dialect.V33, **changes: object) -> bytes:
    """A reply as the server sends it, some of its C{data} changed."""
    line = encode_reply(Reply("방", "18398338829933617", "가게봇", content), dialect, "t")
    end = line.rfind(b"}") + 1
    frame = json.loads(line[:end])
    frame["data"].update(changes)
    return json.dumps(frame, ensure_ascii=False).encode() + line[end:]


class JavaLinesTests(SynchronousTestCase):
    """Tests for L{JavaLineReader}."""

    def test_what_ends_a_line(self) -> None:
        """LF, CR and CRLF do, and the end of the stream."""
        lines = JavaLineReader()
        lines.feed(b"a\nb\rc\r\n\nd")
        self.assertEqual([lines.next_line() for _ in range(5)], [b"a", b"b", b"c", b"", None])
        self.assertEqual(lines.take_rest(), b"d")

    @given(st.lists(st.sampled_from([b"x", b"yy", b"\r", b"\n"]).map(bytes), max_size=12))
    def test_any_pieces(self, pieces: list[bytes]) -> None:
        """However the bytes are cut, the lines are the same."""
        whole = [bytes(line) for line in b"".join(pieces).splitlines()]
        lines = JavaLineReader()
        found: list[bytes] = []
        for piece in pieces:
            lines.feed(piece)
            while (line := lines.next_line()) is not None:
                found.append(line)
        rest = lines.take_rest()
        self.assertEqual(found + ([rest] if rest else []), whole)


class _ScriptCase(SynchronousTestCase):
    version = "3.3.3"

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.start(self.version)

    def start(self, version: str) -> None:
        """Begin anew with another version."""
        self.record = PhoneRecord()
        signer = Signer([SECRET], SALT, 300.0, self.clock.seconds)
        self.script = BridgeScript(
            SCRIPTS[version], STANDARD_IDENTITY, signer.sign, self.record, self.clock.seconds
        )

    def say(self, *texts: str) -> None:
        """Say something in a room."""
        for text in texts:
            self.script.say(Said(room="방", sender="사람", text=text))

    def sent(self) -> list[str]:
        """What the server would read: texts, and the names of all else."""
        found = []
        for line in self.script.take_output().splitlines():
            message: Any = FrameReader().read(line)
            found.append(getattr(message, "text", type(message).__name__))
        return found

    def hear(self, *lines: bytes) -> None:
        """Let the server say something."""
        self.script.bytes_received(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))


class HandshakeTests(_ScriptCase):
    """What a script says first."""

    def connect(self, count: int) -> list[str]:
        """Say C{count} texts offline, then connect."""
        self.say(*(str(number) for number in range(1, count + 1)))
        self.script.connection_made()
        return self.sent()

    def lose(self) -> None:
        """Lose the connection."""
        self.script.connection_lost()
        self.clock.advance(4.0)

    def test_form_by_version(self) -> None:
        """3.2 and one 3.3.2 send the bare form, the others the enveloped one."""
        bare = []
        for version in SCRIPTS:
            self.start(version)
            self.script.connection_made()
            message: Any = FrameReader().read(self.script.take_output().rstrip(b"\n"))
            bare.append((version, message.version, message.bare))
        self.assertEqual(
            bare,
            [
                ("3.2.0", "3.2.0", True),
                ("3.2.1", "3.2.1", True),
                ("3.3.2", "3.3.2", False),
                ("3.3.2 bare", "3.3.2", True),
                ("3.3.3", "3.3.3", False),
            ],
        )

    def test_behind_the_queue(self) -> None:
        """3.3 puts the handshake behind what was queued."""
        self.assertEqual(self.connect(5), [*"12345", "Handshake"])

    def test_ten_lines(self) -> None:
        """3.3 sends ten lines a connection, live ones not counted; handshakes pile up."""
        self.assertEqual(self.connect(12), [str(number) for number in range(1, 11)])
        self.say("live")
        self.assertEqual(self.sent(), ["live"])
        self.lose()
        self.script.connection_made()
        self.assertEqual(self.sent(), ["11", "12", "Handshake", "Handshake"])

    def test_old_order(self) -> None:
        """3.2 sends the handshake, then ten lines; the rest never comes."""
        self.start("3.2.1")
        self.assertEqual(self.connect(12), ["Handshake", *(str(number) for number in range(1, 11))])
        self.lose()
        self.script.connection_made()
        self.assertEqual(self.sent(), ["Handshake"])

    def test_drops_what_is_old(self) -> None:
        """A line queued for more than 30 s is not sent."""
        self.say("old")
        self.clock.advance(1.0)
        self.say("young")
        self.clock.advance(29.5)
        self.script.connection_made()
        self.assertEqual(self.sent(), ["young", "Handshake"])

    def test_failed_write(self) -> None:
        """A line whose write failed comes again on the next connection, byte for byte."""
        self.script.connection_made()
        self.script.take_output()
        self.script.fail_writes()
        self.say("twice")
        first = self.script.take_output()
        self.assertTrue(self.script.closing)
        self.lose()
        self.script.connection_made()
        again = self.script.take_output()
        self.assertEqual(again[: len(first)], first)

    def test_failed_write_of_what_was_queued(self) -> None:
        """So does one of 3.2 that fails among what it had queued; what stood behind it is gone."""
        self.start("3.2.1")
        self.say("twice")
        self.say("gone")
        self.script.fail_writes()
        self.script.connection_made()
        self.assertEqual(self.sent(), ["Handshake", "twice"])
        self.lose()
        self.script.connection_made()
        self.assertEqual(self.sent(), ["Handshake", "twice"])


class ReadingTests(_ScriptCase):
    """What a script makes of the server's lines."""

    def drops(self, line: bytes) -> str:
        """Hear C{line}, which is lost.  @return: why."""
        self.record.forget()
        self.hear(line)
        self.assertEqual(self.record.replies, [])
        [dropped] = self.record.dropped
        return dropped.why

    def setUp(self) -> None:
        super().setUp()
        self.script.connection_made()

    def start(self, version: str) -> None:
        """Begin anew, connected."""
        super().start(version)
        self.script.connection_made()

    def test_samples(self) -> None:
        """Each sample of what a phone understands is understood."""
        for sample in vectors("wire.jsonl"):
            if sample["direction"] != "out":
                continue
            self.start(sample["client"])
            self.hear(sample["line"].encode())
            [shown] = self.record.replies
            means = sample["means"]
            self.assertEqual(shown.text, means.get("text"), sample["name"])
            pieces = [base64.b64decode(piece) for piece in means.get("media", ())]
            self.assertEqual(shown.contents, pieces, sample["name"])

    def test_drops_without_a_word(self) -> None:
        """What 3.3 cannot use is lost."""
        self.assertEqual(self.drops(reply_line("x", message_type=None)), "no message_type")
        for positions in (None, [0, 0], [0], "0,4"):
            line = reply_line("x", message_positions=positions)
            self.assertEqual(self.drops(line), "no message_positions")
        plain = reply_line("x", content_encoding=None)
        why = self.drops(plain[: plain.rfind(b"}") + 1] + b"a } b")
        self.assertEqual(why, "not JSON up to the last brace")
        self.assertEqual(self.drops(reply_line("x", room="")), "no room")
        self.assertEqual(
            self.drops(reply_line("x", channel_id="None")), "channel_id is not a number"
        )
        self.assertEqual(self.drops(b'{"event":"ping"}'), "a ping without data")

    def test_wrong_form(self) -> None:
        """A reply in the other dialect is lost."""
        self.assertEqual(self.drops(reply_line("x", Dialect.V32)), "no message_type")
        self.start("3.2.1")
        self.assertEqual(self.drops(reply_line("x", Dialect.V33)), "no text")

    def test_number_goes_astray(self) -> None:
        """A channel id that is a number loses precision; null finds the room by name."""
        self.hear(reply_line("x", channel_id=18398338829933617), reply_line("x", channel_id=None))
        self.assertEqual(
            [shown.channel_id for shown in self.record.replies], ["18398338829933616", None]
        )

    def test_carriage_return_cuts(self) -> None:
        """A CR inside a frame ends the line there."""
        plain = reply_line("x", content_encoding=None, message_positions=[0, 3])
        self.hear(plain[: plain.rfind(b"}") + 1] + b"a\rb")
        self.assertEqual([shown.text for shown in self.record.replies], ["a"])

    def test_addresses(self) -> None:
        """An address is fetched; 3.2 alone keeps its extension."""
        media = Media(("https://example.org/a.jpg", "https://example.org/b.webp?c=d.e"))
        self.hear(reply_line(media))
        self.assertEqual(self.record.replies[0].contents, list(media.pieces))
        self.assertEqual(
            [picture.extension for picture in self.record.replies[0].media], ["png"] * 2
        )
        self.start("3.2.1")
        self.hear(reply_line(media, Dialect.V32))
        extensions = [picture.extension for picture in self.record.replies[0].media]
        self.assertEqual(extensions, ["jpg", "webp"])

    def test_other_events(self) -> None:
        """Errors and what is unknown are noted; 3.2 does not know broadcasts."""
        broadcast = reply_line("x").replace(b"messageResponse", b"broadcastMessage")
        self.hear(b'{"event":"error","data":{"code":"BANNED","message":"m"}}', broadcast)
        self.assertEqual(self.record.errors, [("BANNED", "m")])
        self.assertEqual(len(self.record.replies), 1)
        self.start("3.2.1")
        self.hear(broadcast, b'{"event":"serverShutdown","data":{}}')
        self.assertEqual(
            [event for event, _ in self.record.notices], ["broadcastMessage", "serverShutdown"]
        )

    def test_pong(self) -> None:
        """A ping is answered under the version's own event, the time echoed exactly, signed."""
        for version, event in (("3.2.1", "ping"), ("3.3.2", "pong"), ("3.3.2 bare", "ping")):
            self.start(version)
            self.script.take_output()
            self.hear(encode_ping("가게봇", "2026-11-22 21:00:02.123"))
            line = self.script.take_output().rstrip(b"\n")
            pong: Any = FrameReader().read(line)
            self.assertIn(b'"event":"%b"' % event.encode(), line)
            self.assertEqual(pong.server_timestamp, "2026-11-22 21:00:02.123")
            signer = Signer([SECRET], SALT, 300.0, self.clock.seconds)
            self.assertIsNone(signer.fault(pong.auth))

    def test_refused(self) -> None:
        """At success:false it hangs up; 3.2.0 does not care."""
        for version, closing in (("3.3.3", True), ("3.2.1", True), ("3.2.0", False)):
            self.start(version)
            self.hear(b'{"event":"handshakeComplete","data":{"success":false}}')
            self.assertEqual(self.script.closing, closing)

    def test_blocked(self) -> None:
        """While it sends files it reads nothing: wait time + 1.2 s, one frame after the other."""
        self.script.take_output()
        picture = reply_line(Media((b"png",), wait_ms=3000))
        self.hear(picture, picture, encode_ping("가게봇", "t"))
        self.clock.advance(4.2)
        self.assertEqual(self.script.blocked_until, NOW + 4.2)
        self.script.wake()
        self.assertEqual(len(self.record.replies), 2)
        self.assertEqual(self.script.take_output(), b"")
        self.clock.advance(4.2)
        self.script.wake()
        self.assertEqual(self.sent(), ["Pong"])

    def test_how_long_blocked(self) -> None:
        """Without a wait time 15 + 1.2 s, and on 3.2.0 always."""
        for version, wait, seconds in (
            ("3.3.3", None, 16.2),
            ("3.3.3", 0, 16.2),
            ("3.2.1", 500, 1.7),
            ("3.2.0", 500, 16.2),
        ):
            self.start(version)
            dialect = SCRIPTS[version].dialect
            self.hear(reply_line(Media((b"png",)), dialect, media_wait_time=wait))
            self.assertEqual(self.record.replies[0].blocked_seconds, seconds)

    def test_learns_late_that_it_is_offline(self) -> None:
        """A blocked script reads what is left, a line without an end too, before it is offline."""
        self.hear(reply_line(Media((b"png",), wait_ms=3000)))
        self.script.bytes_received(reply_line("last words"))
        self.script.connection_lost()
        self.assertTrue(self.script.online)
        self.script.wake()
        self.assertFalse(self.script.online)
        self.assertEqual(self.record.replies[-1].text, "last words")

    def test_signatures(self) -> None:
        """The signed samples are signed alike."""
        for sample in vectors("auth.jsonl"):
            auth = sample["auth"]
            clock = Clock()
            clock.advance((auth["timestamp"] + 0.5) / 1000)
            identity = Identity(
                bot_name=auth["botName"],
                device_id=auth["deviceID"],
                device_uuid=auth["deviceUUID"],
                mac_address=auth["macAddress"],
                ip_address=auth["ipAddress"],
            )
            signer = Signer([sample["secret_key"]], sample["salt"], 300.0, clock.seconds)
            version = msgspec.structs.replace(SCRIPTS["3.3.3"], version=auth["version"])
            script = BridgeScript(version, identity, signer.sign, PhoneRecord(), clock.seconds)
            script.connection_made()
            script.take_output()
            script.bytes_received(encode_ping("b", "t"))
            pong = json.loads(script.take_output())
            self.assertEqual(pong["data"]["auth"], auth)
