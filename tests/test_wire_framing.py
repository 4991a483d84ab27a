"""Tests for L{domaeka.wire.framing}."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import ErrorCode, WireError
from domaeka.wire import LineDecoder
from domaeka.wire.framing import split_frame


def read_lines(decoder: LineDecoder) -> list[bytes]:
    """All lines that are there."""
    return list(iter(decoder.next_line, None))


def lines_of(pieces: list[bytes], max_bytes: int = 100) -> list[bytes]:
    """What a decoder makes of C{pieces}, read after each."""
    decoder = LineDecoder(max_bytes)
    lines = []
    for piece in pieces:
        decoder.feed(piece)
        lines += read_lines(decoder)
    return lines


class LineDecoderTests(SynchronousTestCase):
    """Tests for L{LineDecoder}."""

    STREAM = b"one\n\r\n\ntwo\r\nth\rree\n{\xff}\n" + b"x" * 20 + b"\nrest"
    LINES = (b"one", b"two", b"th\rree", b"{\xff}", b"x" * 20)

    def assertRefuses(self, decoder: LineDecoder) -> None:
        error = self.assertRaises(WireError, read_lines, decoder)
        self.assertEqual(error.code, ErrorCode.FRAME_TOO_LARGE)
        self.assertTrue(error.fatal)

    def test_every_split(self) -> None:
        """Wherever the stream is cut in three, the lines are the same."""
        stream = self.STREAM
        for first in range(len(stream) + 1):
            for second in range(first, len(stream) + 1):
                pieces = [stream[:first], stream[first:second], stream[second:]]
                self.assertEqual(lines_of(pieces), list(self.LINES))

    def test_bytes_one_by_one(self) -> None:
        """A byte at a time comes to the same."""
        pieces = [bytes([byte]) for byte in self.STREAM]
        self.assertEqual(lines_of(pieces), list(self.LINES))

    @given(
        st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=20),
        st.lists(st.integers(min_value=0, max_value=600), max_size=20),
        st.lists(st.booleans(), min_size=21, max_size=21),
    )
    def test_any_slicing(self, lines: list[bytes], cuts: list[int], reads: list[bool]) -> None:
        """However a stream is sliced, and read now or later, the lines are the same."""
        stream = b"".join(line + b"\n" for line in lines)
        places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
        decoder = LineDecoder(100)
        found = []
        for start, end, read in zip(places, places[1:], reads, strict=False):
            decoder.feed(stream[start:end])
            if read:
                found += read_lines(decoder)
        found += read_lines(decoder)
        wanted = [line.removesuffix(b"\r") for line in lines]
        self.assertEqual(found, [line for line in wanted if line])

    def test_longest_line(self) -> None:
        """A line of the limit passes, its newline counted; its CR is counted too."""
        self.assertEqual(lines_of([b"1234567\n"], max_bytes=8), [b"1234567"])
        self.assertEqual(lines_of([b"123", b"4567", b"\n"], max_bytes=8), [b"1234567"])
        self.assertEqual(lines_of([b"123456\r\n"], max_bytes=8), [b"123456"])

    def test_one_byte_more(self) -> None:
        """One byte more is refused, in whatever pieces it comes."""
        for cut in range(10):
            decoder = LineDecoder(8)
            decoder.feed(b"12345678\n"[:cut])
            if cut < 8:
                self.assertEqual(read_lines(decoder), [])
            decoder.feed(b"12345678\n"[cut:])
            self.assertRefuses(decoder)

    def test_too_long_without_newline(self) -> None:
        """A line that cannot end within the limit is refused before its newline comes."""
        decoder = LineDecoder(8)
        decoder.feed(b"1234567")
        self.assertIsNone(decoder.next_line())
        decoder.feed(b"8")
        self.assertRefuses(decoder)
        self.assertRefuses(decoder)

    def test_lines_ahead_of_one_too_long(self) -> None:
        """What came ahead of it is handed out first."""
        decoder = LineDecoder(8)
        decoder.feed(b"good\n12345678")
        self.assertEqual(decoder.next_line(), b"good")
        self.assertRefuses(decoder)

    def test_fed_twice_before_read(self) -> None:
        """Lines left unread are kept behind one another."""
        decoder = LineDecoder(8)
        decoder.feed(b"a\nb\nc")
        self.assertEqual(decoder.next_line(), b"a")
        decoder.feed(b"d\ne\n")
        self.assertEqual(read_lines(decoder), [b"b", b"cd", b"e"])

    def test_many_pieces(self) -> None:
        """A line of thousands of pieces is one line, and counted right while it grows."""
        decoder = LineDecoder(10_000)
        for number in range(5000):
            decoder.feed(b"%d" % (number % 10))
            self.assertIsNone(decoder.next_line())
            self.assertEqual(decoder.held_bytes, number + 1)
        decoder.feed(b"\nrest")
        self.assertEqual(read_lines(decoder), [b"0123456789" * 500])
        self.assertEqual((decoder.held_bytes, decoder.take_rest()), (4, b"rest"))

    def test_held_bytes(self) -> None:
        """What is held is what was not handed out, and never more than the limit once read."""
        decoder = LineDecoder(100)
        decoder.feed(b"one\ntwo\nthr")
        self.assertEqual(decoder.held_bytes, 11)
        decoder.next_line()
        self.assertEqual(decoder.held_bytes, 7)
        self.assertEqual(read_lines(decoder), [b"two"])
        self.assertEqual(decoder.held_bytes, 3)
        decoder.feed(b"ee\n")
        read_lines(decoder)
        self.assertEqual(decoder.held_bytes, 0)

    def test_take_rest(self) -> None:
        """The bytes behind the last line go over to another reader, as they are."""
        for cut in range(4, 12):
            stream = b"one\n\xff\n\nrest"
            decoder = LineDecoder(100)
            decoder.feed(stream[:cut])
            self.assertEqual(decoder.next_line(), b"one")
            decoder.feed(stream[cut:])
            self.assertEqual(decoder.take_rest(), b"\xff\n\nrest")
            self.assertEqual((decoder.held_bytes, decoder.take_rest()), (0, b""))

    def test_take_rest_of_a_line_begun(self) -> None:
        """The start of a line that was looked at already is part of the rest."""
        decoder = LineDecoder(100)
        decoder.feed(b"one\ntw")
        self.assertEqual(read_lines(decoder), [b"one"])
        decoder.feed(b"o\nthree")
        self.assertEqual(decoder.take_rest(), b"two\nthree")

    def test_each_byte_is_searched_once(self) -> None:
        """The work is linear: what was searched for a newline is not searched again."""
        searched = 0

        class Piece(bytes):
            def find(self, wanted: bytes, start: int = 0) -> int:  # type: ignore[override]
                nonlocal searched
                searched += len(self) - start
                return bytes(self).find(wanted, start)

        decoder = LineDecoder(2000)
        for _ in range(100):
            decoder.feed(Piece(b"0123456789"))
            self.assertIsNone(decoder.next_line())
        decoder.feed(Piece(b"\n"))
        self.assertEqual(len(decoder.next_line() or b""), 1000)
        self.assertEqual(searched, 1001)


class SplitFrameTests(SynchronousTestCase):
    """Tests for L{split_frame}."""

    def test_cuts_at_the_last_brace(self) -> None:
        """The header ends where phones end it."""
        for line, header, tail in (
            (b"{}", b"{}", b""),
            (b'{"a":{}}dGFpbA==', b'{"a":{}}', b"dGFpbA=="),
            (b"{}a}b", b"{}a}", b"b"),
            (b'{"a":"}"}\xff', b'{"a":"}"}', b"\xff"),
        ):
            self.assertEqual(split_frame(line), (header, tail))

    def test_refuses_what_is_no_object(self) -> None:
        """A frame begins with a brace and has one that closes."""
        for line in (
            b"",
            b"hello",
            b"[1,2]",
            b"[{}]",
            b"}",
            b"{",
            b" {}",
            b"\xef\xbb\xbf{}",
            b"}{",
        ):
            error = self.assertRaises(WireError, split_frame, line)
            self.assertEqual(error.code, ErrorCode.BAD_FRAME)
            self.assertFalse(error.fatal)
