"""Addresses and networks: which addresses count as one, and which share a full table."""

import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Generic, TypeAlias, TypeVar

#: Bit that distinguishes the number of a /64 from that of an IPv4 address.
_IPV6_KEY: Final = 1 << 64
#: The first of the IPv4 addresses mapped into IPv6, C{::ffff:0:0}.  Source: RFC 4291, 2.5.5.2.
_MAPPED: Final = 0xFFFF << 32
#: Bits of a key below its site, whose addresses share a full table with those of others: a /48 of
#: IPv6, which one customer often has (RFC 6177), or a /24 of IPv4.
_SITE_BITS_IPV6: Final = 16
_SITE_BITS_IPV4: Final = 8

Network: TypeAlias = IPv4Network | IPv6Network
_Value = TypeVar("_Value")


class Networks(Generic[_Value]):
    """
    Map from networks to values.

    A look-up costs one table look-up for each length of prefix in use, however many networks.
    """

    def __init__(self) -> None:
        # By bits of the address (32 or 128): lengths, longest first, and their prefixes.
        self._tables: dict[int, dict[int, dict[int, _Value]]] = {32: {}, 128: {}}

    def put(self, network: Network, value: _Value) -> None:
        """Enter a network, or replace its value."""
        tables = self._tables[network.max_prefixlen]
        length = network.prefixlen
        if length not in tables:
            tables[length] = {}
            self._tables[network.max_prefixlen] = dict(sorted(tables.items(), reverse=True))
        self._tables[network.max_prefixlen][length][_prefix(network)] = value

    def get(self, network: Network) -> _Value | None:
        """The value of exactly this network."""
        return self._tables[network.max_prefixlen].get(network.prefixlen, {}).get(_prefix(network))

    def remove(self, network: Network) -> None:
        """Forget a network."""
        tables = self._tables[network.max_prefixlen]
        prefixes = tables.get(network.prefixlen, {})
        prefixes.pop(_prefix(network), None)
        if not prefixes:
            tables.pop(network.prefixlen, None)

    def matches(self, bits: int, number: int) -> Iterator[_Value]:
        """Values of the networks that an address is in, longest prefix first."""
        for length, prefixes in self._tables[bits].items():
            value = prefixes.get(number >> (bits - length))
            if value is not None:
                yield value

    def values(self) -> list[_Value]:
        """A copy of all values."""
        found: list[_Value] = []
        for tables in self._tables.values():
            for prefixes in tables.values():
                found += prefixes.values()
        return found

    def __len__(self) -> int:
        return sum(
            len(prefixes) for tables in self._tables.values() for prefixes in tables.values()
        )


def address_key(address: str) -> int | None:
    """Key of all addresses that count as one; L{None}: it is no IP address."""
    place = place_of(address)
    return None if place is None else place[2]


def place_of(address: str) -> tuple[int, int, int] | None:
    """
    Place of an address: its bits, the address as a number, and its key.

    @return: L{None} where it is no IP address.
    """
    try:
        if ":" not in address:
            number = int.from_bytes(socket.inet_pton(socket.AF_INET, address))
            return 32, number, number
        number = int.from_bytes(socket.inet_pton(socket.AF_INET6, address.partition("%")[0]))
    except (OSError, ValueError):
        return None
    if number >> 32 == _MAPPED >> 32:
        number &= 0xFFFFFFFF
        return 32, number, number
    return 128, number, number >> 64 | _IPV6_KEY


def network_of(key: int) -> Network:
    """The network of the addresses with this key."""
    if key < _IPV6_KEY:
        return IPv4Network((key, 32))
    return IPv6Network(((key ^ _IPV6_KEY) << 64, 64))


def plain(network: Network) -> Network:
    """C{network}, as IPv4 where its addresses are IPv4-mapped ones (RFC 4291)."""
    number = int(network.network_address)
    if network.max_prefixlen == 128 and network.prefixlen >= 96 and number >> 32 == _MAPPED >> 32:
        return IPv4Network((number & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _prefix(network: Network) -> int:
    return int(network.network_address) >> (network.max_prefixlen - network.prefixlen)


def crowded(keys: Iterable[int], expected: Callable[[int], int], part: int) -> list[int]:
    """
    The keys that give way in a full table: of the sites that have the most of them, the oldest
    first.

    @param keys: L{address_key}s, the oldest first; at least one.
    @param expected: tells of a key how many devices may come back there: where there are any, a key
        gives way only if there is no other to take.
    @param part: so many parts of all, one of which is to give way.
    """
    keys = list(keys)
    sites = Counter(map(_site, keys))
    wanted = max(1, len(keys) // part)
    level = _level(Counter(sites.values()), wanted)
    unknown: list[int] = []
    known: list[int] = []
    for key in keys:
        site = _site(key)
        if sites[site] <= level or len(unknown) >= wanted:
            continue
        if expected(key):
            known.append(key)
        else:
            sites[site] -= 1
            unknown.append(key)
    return unknown or known[:wanted]


def _level(sizes: Counter[int], wanted: int) -> int:
    """
    The number of keys that a site may keep, so that C{wanted} go.

    @param sizes: how many sites there are of each size.
    """
    larger = 0  # number of sites that are above the level
    levels = sorted(sizes, reverse=True)
    for size, below in zip(levels, [*levels[1:], 0], strict=True):
        larger += sizes[size]
        freed = larger * (size - below)
        if freed >= wanted:
            return size - -(-wanted // larger)
        wanted -= freed
    return 0


def _site(key: int) -> int:
    """The site of an address."""
    return key >> (_SITE_BITS_IPV4 if key < _IPV6_KEY else _SITE_BITS_IPV6)
