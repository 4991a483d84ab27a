"""Tests for L{domaeka.gateway.transport.proxy_header}."""

import struct

from hypothesis import given
from hypothesis.strategies import binary, lists, sampled_from
from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway.transport.proxy_header import MAX_HEADER_BYTES, BadHeader, HeaderReader

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE = b"PROXY TCP4 203.0.113.5 192.0.2.1 40000 9000\r\n"


def binary_header(family: int, data: bytes, command: int = 0x21) -> bytes:
    """A header of version 2."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(data)) + data


IPV4 = binary_header(0x11, bytes((203, 0, 113, 5, 192, 0, 2, 1)) + b"\x9c\x40\x23\x28")
IPV6 = binary_header(0x21, b"\x20\x01\x0d\xb8" + bytes(11) + b"\x09" + bytes(20))


def read(data: bytes) -> tuple[str | None, bytes]:
    """Who it says is there, and what is behind it."""
    reader = HeaderReader()
    assert reader.feed(data), "not complete"
    return reader.address, reader.rest


class HeaderTests(SynchronousTestCase):
    """Tests for L{HeaderReader}."""

    def test_addresses(self) -> None:
        """Both versions say who is there; one of IPv4 is shown as that."""
        added = binary_header(0x11, IPV4[16:] + b"\x04\x00\x02ab")  # as balancers do
        for header, address in (
            (LINE, "203.0.113.5"),
            (b"PROXY TCP6 2001:db8::9 2001:db8::1 1 65535\r\n", "2001:db8::9"),
            (b"PROXY TCP6 ::ffff:203.0.113.5 ::1 1 2\r\n", "203.0.113.5"),
            (IPV4, "203.0.113.5"),
            (added, "203.0.113.5"),
            (IPV6, "2001:db8::9"),
        ):
            self.assertEqual(read(header + b"\r\nrest"), (address, b"\r\nrest"))

    def test_balancer_itself(self) -> None:
        """A balancer that looks whether we are there names nobody."""
        for header in (
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
            binary_header(0, b"", command=0x20),
            binary_header(0x11, IPV4[16:], command=0x20),
            binary_header(0, b"added"),
        ):
            self.assertEqual(read(header), (None, b""))

    def test_any_cut(self) -> None:
        """It may come in any pieces."""
        for header in (LINE, IPV4, IPV6):
            for cut in range(1, len(header)):
                reader = HeaderReader()
                self.assertFalse(reader.feed(header[:cut]))
                self.assertTrue(reader.feed(header[cut:] + b"rest"))
                self.assertEqual(reader.rest, b"rest")
                self.assertIsNotNone(reader.address)

    def test_no_header(self) -> None:
        """What cannot become one is refused at once, and so are sources that are no address."""
        for data in (
            b'{"botName":"b"}',
            b"PROXY TCP4 a b c d\r\n",
            b"PROXY TCP4 zzz%%% 192.0.2.1 1 2\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP4 203.0.113.5 192.0.2.1 1 65536\r\n",
            b"PROXY TCP4 203.0.113.5 192.0.2.1 -1 2\r\n",
            b"PROXY TCP4 203.0.113.5 192.0.2.1 1\r\n",
            b"PROXY TCP4 \xff\xfe 192.0.2.1 1 2\r\n",
            b"PROXY UDP4 203.0.113.5 192.0.2.1 1 2\r\n",
            b"PROXY \r\n",
            b"PROXY " + b"x" * 101,
            binary_header(0x11, IPV4[16:], command=0x11),
            binary_header(0x11, IPV4[16:], command=0x22),
            binary_header(0x12, IPV4[16:]),
            binary_header(0x31, bytes(216)),
            binary_header(0x11, bytes(11)),
            binary_header(0x21, bytes(35)),
            binary_header(0x11, bytes(MAX_HEADER_BYTES)),
        ):
            self.assertRaises(BadHeader, HeaderReader().feed, data)

    @given(lists(sampled_from((b"PROXY ", b"TCP4 ", b"1.2.3.4 ", SIGNATURE, b"\r\n")) | binary()))
    def test_anything(self, pieces: list[bytes]) -> None:
        """Whatever comes: an answer, or a refusal, and nothing much is held."""
        reader = HeaderReader()
        try:
            for piece in pieces:
                if reader.feed(piece):
                    break
        except BadHeader:
            pass
        self.assertLessEqual(len(reader._held), MAX_HEADER_BYTES)
