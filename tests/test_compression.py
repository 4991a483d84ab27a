"""Tests for L{domaeka.policies.compression}."""

import gzip
from base64 import b64decode, b64encode
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import WireError
from domaeka.policies.compression import Deflater, Inflater, pack_text


def inflate(inflater: Inflater, data: bytes) -> bytes:
    inflater.feed(data)
    return b"".join(iter(inflater.next_piece, b""))


class PackTextTests(SynchronousTestCase):
    """Tests for L{pack_text}."""

    def test_packs_what_gets_shorter(self) -> None:
        """A long text that repeats itself is packed, and comes out as it was."""
        raw = "공동구매 상품 안내 ".encode() * 900
        packed = pack_text(raw, b64encode(raw))
        assert packed is not None
        self.assertEqual(gzip.decompress(b64decode(packed)), raw)

    def test_leaves_the_rest(self) -> None:
        """A text at the threshold, and one that hardly gets shorter, stay as they are."""
        noise = Random(1).randbytes(20_000)
        for raw in (b"x" * 10_240, noise):
            self.assertIsNone(pack_text(raw, b64encode(raw)))
        self.assertIsNotNone(pack_text(b"x" * 10_241, b64encode(b"x" * 10_241)))


class StreamTests(SynchronousTestCase):
    """Tests for L{Deflater} and L{Inflater}."""

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.binary(max_size=300)), st.integers(1, 50), st.integers(9, 15))
    def test_round_trip(self, batches: list[bytes], piece: int, window: int) -> None:
        """Each batch can be read as soon as it has come, in whatever pieces."""
        deflater, inflater = Deflater(window, 5), Inflater()
        for batch in batches:
            packed = deflater.pack(batch)
            pieces = [packed[start : start + piece] for start in range(0, len(packed), piece)]
            self.assertEqual(b"".join(inflate(inflater, piece) for piece in pieces), batch)

    def test_steps(self) -> None:
        """What inflates to very much comes out in small pieces, as it is asked for."""
        inflater = Inflater()
        inflater.feed(Deflater().pack(b"x" * 10_000_000))
        pieces = [len(inflater.next_piece()) for _ in range(10)]
        self.assertEqual(pieces, [65_536] * 10)

    def test_garbage(self) -> None:
        """A stream that is broken, or ends, cannot be read on."""
        for data in (b"\xff\xff", b"\x03\x00"):
            inflater = Inflater()
            inflater.feed(data)
            self.assertRaises(WireError, inflater.next_piece)
