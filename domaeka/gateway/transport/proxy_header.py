"""
The PROXY protocol's header, versions 1 and 2: a balancer sends the address of the client in it.

Source: haproxy.org, doc/proxy-protocol.txt.
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from domaeka.errors import DomaekaError

_Address: TypeAlias = IPv4Address | IPv6Address

#: Longest header of version 1, in bytes, with its CRLF.  Source: section 2.1.
MAX_LINE_BYTES: Final = 107
#: Longest header of version 2 that is accepted, in bytes: the addresses, and the balancer's TLVs.
MAX_HEADER_BYTES: Final = 4096

_LINE_START: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
#: Version 2: signature, version and command, family and transport, length of the rest.
_FIXED: Final = struct.Struct("!12sBBH")
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
#: TCP over IPv4 and IPv6: the type of an address, and its bytes.  Two addresses, then two ports.
_ADDRESSES: Final[dict[int, tuple[type[_Address], int]]] = {
    0x11: (IPv4Address, 4),
    0x21: (IPv6Address, 16),
}
_PORTS_BYTES: Final = 4
#: Version 1: the type of an address.
_FAMILIES: Final[dict[bytes, type[_Address]]] = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}
_MAX_PORT: Final = 65_535


class BadHeader(DomaekaError):
    """The bytes are no header, or name no TCP peer; the message says which."""


class HeaderReader:
    """
    Read a header from any number of pieces.

    @ivar address: the client's address; L{None}: the connection is the balancer's own (LOCAL).
    @ivar rest: the bytes after the header.
    """

    def __init__(self) -> None:
        self.address: str | None = None
        self.rest = b""
        self._held = b""

    def feed(self, data: bytes) -> bool:
        """
        @return: True if the header is complete.
        @raise BadHeader: as soon as the bytes cannot become a header.
        """
        before = len(self._held)
        self._held += data[: MAX_HEADER_BYTES - before]
        held = self._held
        if held.startswith(_LINE_START) or _LINE_START.startswith(held):
            size = self._read_line(held)
        elif held.startswith(_SIGNATURE) or _SIGNATURE.startswith(held):
            size = self._read_binary(held)
        else:
            raise BadHeader("no header")
        if not size:
            return False
        self.rest = data[size - before :]
        return True

    def _read_line(self, held: bytes) -> int:
        """@return: the length of the header; 0: it is incomplete."""
        end = held.find(b"\r\n", 0, MAX_LINE_BYTES)
        if end < 0:
            if len(held) >= MAX_LINE_BYTES:
                raise BadHeader("too long")
            return 0
        _, family, *parts = held[:end].split(b" ")
        if family != b"UNKNOWN":
            self.address = _address_in(family, parts)
        return end + 2

    def _read_binary(self, held: bytes) -> int:
        """@return: the length of the header; 0: it is incomplete."""
        if len(held) < _FIXED.size:
            return 0
        _, command, family, length = _FIXED.unpack_from(held)
        size: int = _FIXED.size + length
        if command not in (_LOCAL, _PROXY):
            raise BadHeader("unknown command")
        if size > MAX_HEADER_BYTES:
            raise BadHeader("too long")
        if command == _PROXY and family:
            if family not in _ADDRESSES:
                raise BadHeader("not TCP")
            kind, count = _ADDRESSES[family]
            if length < 2 * count + _PORTS_BYTES:
                raise BadHeader("too short")
            if len(held) >= size:
                self.address = _plain(kind(held[_FIXED.size : _FIXED.size + count]))
        return size if len(held) >= size else 0


def _address_in(family: bytes, parts: list[bytes]) -> str:
    """The source address in a header of version 1."""
    kind = _FAMILIES.get(family)
    if kind is None or len(parts) != 4:
        raise BadHeader("malformed")
    try:
        source, _ = (kind(part.decode("ascii")) for part in parts[:2])
    except ValueError:
        raise BadHeader("no address") from None
    if b"%" in parts[0] or not all(map(_is_port, parts[2:])):
        raise BadHeader("malformed")
    return _plain(source)


def _is_port(text: bytes) -> bool:
    return text.isdigit() and len(text) < 6 and int(text) <= _MAX_PORT


def _plain(address: _Address) -> str:
    """An address in text; an IPv4-mapped IPv6 address as IPv4."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
