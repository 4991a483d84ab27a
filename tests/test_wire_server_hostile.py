"""Tests for L{domaeka.wire.server}: whatever comes, it is a message or a L{WireError}."""

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from domaeka.errors import ErrorCode, WireError
from domaeka.wire import MAX_TEXT_CHARS, Chat
from tests.samples import (
    ANALYZE,
    BARE,
    ENVELOPED,
    LINES,
    MESSAGE,
    PONG,
    ReadingTestCase,
    changed,
    parts,
    read,
)


class HostileTests(ReadingTestCase):
    """Nothing else ever comes out."""

    def test_no_object(self) -> None:
        """What is no JSON object is no frame."""
        for bad in (
            b"",
            b"x",
            b"5",
            b"null",
            b'"{}"',
            b"[{}]",
            b"{",
            b"{}}",
            b"{a:1}",
            b"\xef\xbb\xbf{}",
        ):
            self.assertRefused(bad)

    def test_no_event(self) -> None:
        """Without an event that is known there is no frame."""
        for event in (
            b"null",
            b"5",
            b'""',
            b'"dance"',
            b'"Message"',
            b'["message"]',
            b'"message\\u0000"',
        ):
            self.assertRefused(b'{"event":%b,"data":{"room":"r"}}' % event)
        self.assertRefused(b'{"event":"message"}')
        for data in (b"null", b"[]", b'"x"', b"5"):
            self.assertRefused(b'{"event":"message","data":%b}' % data)

    def test_order_does_not_matter(self) -> None:
        """C{data} may come ahead of C{event}; a name may be escaped."""
        self.chat(b'{"data":{"room":"r"},"event":"message"}')
        self.chat(b'{"event":"mess\\u0061ge","data":{"room":"r"}}')

    def test_bad_utf8_anywhere(self) -> None:
        """A byte that is not UTF-8 is refused wherever it stands in a header."""
        for line in (MESSAGE, ANALYZE, PONG, ENVELOPED, BARE):
            end = line.rindex(b"}")
            for place in range(1, end + 1, 7):
                self.refusal(line[:place] + b"\xff" + line[place:])
        for bad in (b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80"):
            self.assertRefused(changed(MESSAGE, news="@").replace(b"@", bad))

    def test_lone_surrogates(self) -> None:
        """Half a character is refused wherever it is escaped."""
        for name in ("room", "sender", "news", "timezone", "log_id"):
            for bad in (b"\\ud800", b"\\udc00", b"\\ud83d\\ud83d", b"\\ud83dx"):
                self.assertRefused(changed(MESSAGE, **{name: "@"}).replace(b"@", bad))

    def test_nested_too_deep(self) -> None:
        """Depth is refused, in what is read and in what is skipped."""
        for depth in (20_000, 100_000):  # 1,000 to 10,000 are read, by the version of Python
            for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
                deep = opening * depth + b"1" + closing * depth
                for line in (b"%b", b'{"event":"message","data":{"room":"r","x":%b}}'):
                    self.assertRefused(line % deep)
                    self.assertRefused(line % (opening * depth) + b"}")
                self.refusal(BARE.replace(b'"3.2.1"', b'"3.2.1","session_token":%b' % deep))

    def test_repeated_keys(self) -> None:
        """Of a key given twice the last counts, and both must be of the right type."""
        found = self.chat(b'{"event":"message","data":{"room":"a","room":"b"}}')
        self.assertEqual(found.room, "b")
        self.assertRefused(b'{"event":"message","data":{"room":5,"room":"b"}}')
        self.assertRefused(b'{"event":"ping","event":"message","data":{"room":"b"}}')

    def test_wrong_type_of_every_field(self) -> None:
        """Each field that is read is refused where it has the wrong type."""
        bad_frame, bad_handshake = ErrorCode.BAD_FRAME, ErrorCode.BAD_HANDSHAKE
        for line, code, fields in (
            (MESSAGE, bad_frame, "room channel_id message_type content_encoding timestamp sender"),
            (MESSAGE, bad_frame, "is_group_chat log_id user_hash is_mention client_id"),
            (MESSAGE, bad_frame, "content_length"),
            (ANALYZE, bad_frame, "room text sender isGroupChat channelId logId userHash isMention"),
            (ANALYZE, bad_frame, "timestamp"),
            (PONG, bad_frame, "server_timestamp monitoring"),
            (ENVELOPED, bad_handshake, "clientType botName version deviceID deviceIP deviceInfo"),
        ):
            for field in fields.split():
                for value in ([5], [{"a": 5}]):
                    self.assertRefused(changed(line, **{field: value}), code)

    def test_field_is_named(self) -> None:
        """The author of a script reads which field is wrong, and how."""
        for line, begins in (
            (changed(MESSAGE, room=5), "data.room: "),
            (changed(ENVELOPED, deviceID=5), "bad handshake: data.deviceID: "),
            (b'{"event":"dance","data":{}}', "unknown event"),
        ):
            error: WireError = self.assertRaises(WireError, read, line)
            self.assertTrue(error.text.startswith(begins), error.text)

    def test_wrong_type_in_auth(self) -> None:
        """Each field of a signature is of its type and length, or the frame is not believed."""
        auth = json.loads(MESSAGE[: MESSAGE.rindex(b"}") + 1])["data"]["auth"]
        for name in auth:
            wrong: list[object] = [[], {}, True, "x" * 129, "5" if name == "timestamp" else 5]
            for value in wrong:
                line = changed(MESSAGE, auth={**auth, name: value})
                self.assertRefused(line, ErrorCode.AUTH_FAILED)
        for bad in (b"1e999", b"9" * 5000):
            line = changed(MESSAGE, auth={**auth, "timestamp": "@"}).replace(b'"@"', bad)
            self.assertRefused(line, ErrorCode.AUTH_FAILED)

    def judge(self, line: bytes) -> None:
        """Look at whatever comes out."""
        try:
            found = read(line)
        except WireError as error:
            self.assertEqual(len(error.text.splitlines()), 1)
            return
        if not isinstance(found, Chat):
            return
        self.assertLessEqual(len(found.text), MAX_TEXT_CHARS)
        self.assertTrue(found.room.strip())
        for text in (found.room, found.sender, found.text, found.log_id, found.user_hash):
            (text or "").encode()
        self.assertTrue(found.channel_id is None or found.channel_id.isdigit())
        found.timestamp  # noqa: B018

    @settings(max_examples=100)
    @given(st.binary() | st.text().map(str.encode), st.booleans())
    @example(b"", False)
    def test_any_bytes(self, line: bytes, braced: bool) -> None:
        """Bytes at random."""
        self.judge(b"{%b}" % line if braced else line)

    @settings(max_examples=100)
    @given(
        st.sampled_from([line for line in LINES.values() if len(line) < 1000]),
        st.lists(
            st.tuples(
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 8),
                st.binary(max_size=4)
                | st.sampled_from([b'"', b"\\ud800", b"1e999", b"null", b"{", b"}", b"[", b"NaN"]),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def test_any_damage(self, line: bytes, damages: list[tuple[float, int, bytes]]) -> None:
        """Sample lines with something else written over them."""
        for place, length, text in damages:
            start = int(place * len(line))
            line = line[:start] + text + line[start + length :]
        self.judge(line)

    @settings(max_examples=100)
    @given(
        st.sampled_from([MESSAGE, ANALYZE, PONG, ENVELOPED]),
        st.data(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=5,
        ),
    )
    def test_any_value(self, line: bytes, data: st.DataObject, value: object) -> None:
        """Sample lines with any value in any field."""
        frame, tail = parts(line)
        fields = frame["data"]
        if "auth" in fields and data.draw(st.booleans()):
            fields = fields["auth"]
        fields[data.draw(st.sampled_from(sorted(fields)))] = value
        self.judge(json.dumps(frame).encode() + tail)
