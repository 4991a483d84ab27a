"""Tests for L{domaeka.wire.compression}."""

import gzip
import tracemalloc
import zlib
from base64 import b64decode, b64encode
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import ErrorCode, WireError
from domaeka.wire import Deflater, Inflater, LineDecoder, pack_text
from domaeka.wire.compression import BadStream


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

    def test_the_saving_is_of_the_line(self) -> None:
        """What is packed makes the line a tenth shorter; what would, is."""
        random = Random(2)
        outcomes = set()
        for values in range(110, 256, 8):
            raw = bytes(random.randrange(values) for _ in range(12_000))
            tail = b64encode(raw)
            shortest = (len(gzip.compress(raw, 6, mtime=0)) + 2) // 3 * 4
            worth = 320 + 30 + shortest <= (320 + len(tail)) * 0.9
            self.assertEqual(pack_text(raw, tail) is not None, worth)
            outcomes.add(worth)
        self.assertEqual(outcomes, {True, False})


class StreamTests(SynchronousTestCase):
    """Tests for L{Deflater} and L{Inflater}."""

    @given(st.lists(st.binary(max_size=300)), st.integers(1, 50), st.integers(9, 15))
    def test_round_trip(self, batches: list[bytes], piece: int, window: int) -> None:
        """Each batch can be read as soon as it has come, in whatever pieces."""
        deflater, inflater = Deflater(window), Inflater()
        for batch in batches:
            packed = deflater.pack(batch)
            pieces = [packed[start : start + piece] for start in range(0, len(packed), piece)]
            self.assertEqual(b"".join(inflate(inflater, piece) for piece in pieces), batch)

    def test_steps(self) -> None:
        """A bomb comes out in small pieces, as they are asked for, and is not held."""
        bomb = Deflater().pack(b"\n" * 30_000_000)
        inflater = Inflater()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        inflater.feed(bomb)
        total = 0
        while piece := inflater.next_piece():
            self.assertLessEqual(len(piece), 65_536)
            total += len(piece)
        self.assertEqual(total, 30_000_000)
        self.assertLess(tracemalloc.get_traced_memory()[1], 1_000_000)

    def test_endless_line(self) -> None:
        """A line that inflates past the limit is refused before it is held."""
        inflater, decoder = Inflater(), LineDecoder()
        inflater.feed(Deflater().pack(b"x" * 30_000_000))
        with self.assertRaises(WireError) as caught:
            for _ in range(17):
                decoder.feed(inflater.next_piece())
                decoder.next_line()
        self.assertIs(caught.exception.code, ErrorCode.FRAME_TOO_LARGE)
        self.assertLessEqual(decoder.held_bytes, 17 * 65_536)

    def test_pieces_of_just_a_step(self) -> None:
        """Output that fills a step is followed by what zlib still holds."""
        for size in (65_535, 65_536, 65_537, 131_072):
            data = Random(size).randbytes(size)
            self.assertEqual(inflate(Inflater(), Deflater().pack(data)), data)

    @given(st.binary(max_size=500))
    def test_garbage(self, data: bytes) -> None:
        """Whatever comes, it inflates, or is a fatal error, and never anything else."""
        try:
            inflate(Inflater(), data)
        except BadStream as error:
            self.assertTrue(error.fatal)

    def test_broken(self) -> None:
        """A stream that is none, or that ends, cannot be read on; one cut short just waits."""
        deflater = zlib.compressobj(wbits=-15)
        ended = deflater.compress(b"line\n") + deflater.flush()
        for data in (b"\xff\xff", ended, ended + b"more"):
            inflater = Inflater()
            inflater.feed(data)
            with self.assertRaises(BadStream):
                while inflater.next_piece():
                    pass
        packed = Deflater().pack(b"line\n" * 100)
        self.assertTrue((b"line\n" * 100).startswith(inflate(Inflater(), packed[:-6])))

    def test_pictures_get_no_larger(self) -> None:
        """Base64 of what cannot be compressed still gets shorter."""
        picture = b64encode(Random(3).randbytes(300_000))
        self.assertLess(len(Deflater().pack(picture)), len(picture) * 0.8)
