"""
Who may connect how often, and who not at all.
"""

import socket
from array import array
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import islice, takewhile
from math import inf
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from domaeka.config import LimitsSettings

#: Longest ban that is not an operator's, in seconds, unless C{limits.ban_seconds} is above it.
MAX_BAN_SECONDS: Final = 86_400.0
#: How long a ban that is over makes the next one longer, in seconds.
REPEAT_SECONDS: Final = 86_400.0
#: Within how many seconds offences count together, and how long a verified phone protects its
#: address from a ban.  Source: docs/settings.md, C{limits.ban_after}.
MINUTE: Final = 60.0
#: Most times of offences that are kept, of all addresses together: 8 MiB.
_MAX_OFFENCES: Final = 1_048_576
#: Which part of a full table is freed at once, so that looking for it costs little an address.
_FREED_PART: Final = 8
#: How long, in seconds, after a search that freed nothing the next one is made.
_SEARCH_PAUSE: Final = 1.0

#: How long, in seconds, a phone at an address that has earned a ban has to prove itself: several
#: behind one router may return at once.
SUSPECT_SECONDS: Final = 5.0
#: Most bans that are made at once, in a turn of the reactor.
_MAX_SENTENCES: Final = 32
#: How many addresses, and how many bans that are over, a step of the sweep deals with: 1 to 2 ms.
_SWEPT_AT_ONCE: Final = 2_048
_ENDED_AT_ONCE: Final = 128
#: What tells the number of a /64 from that of an IPv4 address.
_IPV6_KEY: Final = 1 << 64
#: The first of the IPv4 addresses mapped into IPv6, C{::ffff:0:0}.  Source: RFC 4291, 2.5.5.2.
_MAPPED: Final = 0xFFFF << 32

Network: TypeAlias = IPv4Network | IPv6Network
_T = TypeVar("_T")
_Value = TypeVar("_Value")


class TokenBucket:
    """
    Allow bursts, bound the average.

    The level is worked out on demand: no timer per peer.
    """

    __slots__ = ("_burst", "_filled_at", "_level", "_rate", "_seconds")

    def __init__(self, rate: float, burst: float, seconds: Callable[[], float]) -> None:
        """
        @param rate: tokens gained per second, above 0.
        @param burst: most tokens held; a new bucket is full.
        @param seconds: the time now, in seconds.
        """
        self._rate = rate
        self._burst = burst
        self._seconds = seconds
        self._level = burst
        self._filled_at = seconds()

    def take(self, cost: float = 1.0) -> float:
        """
        Pay C{cost}, at most the burst, if the tokens are there.

        @return: 0.0 when paid; else the seconds to wait, unpaid.
        """
        now = self._seconds()
        elapsed = max(0.0, now - self._filled_at)  # wall time may step back
        self._level = min(self._burst, self._level + elapsed * self._rate)
        self._filled_at = now
        wait = (cost - self._level) / self._rate
        if wait > 1e-6:  # a float of today's time steps by 2.4e-7 s
            return wait
        self._level -= cost
        return 0.0


class Admission(StrEnum):
    """Whether a connection is let in."""

    ADMITTED = "admitted"
    RATE_LIMITED = "rate limited"
    BANNED = "banned"
    DENIED = "denied"


class Ban(msgspec.Struct, frozen=True):
    """
    A network that is not let in.

    @ivar network: as C{str()} of C{ipaddress.ip_network}.
    @ivar made_at: in seconds since 1970.
    @ivar expires: likewise; L{None}: never.
    @ivar times: how many bans of it there were of late, this one included.
    @ivar made_by: who did it, for people; empty: the server itself.
    """

    network: str
    reason: str
    made_at: float
    expires: float | None
    times: int = 1
    made_by: str = ""

    def in_force(self, now: float) -> bool:
        """Whether it is not over."""
        return self.expires is None or now < self.expires


class _Networks(Generic[_Value]):
    """
    Values of networks.

    A look-up costs one table look-up for each length of prefix in use, however many networks.
    """

    def __init__(self) -> None:
        # By bits of the address (32 or 128): lengths, longest first, and their prefixes.
        self._tables: dict[int, dict[int, dict[int, _Value]]] = {32: {}, 128: {}}

    def put(self, network: Network, value: _Value) -> None:
        """Enter a network, in the place of what it had."""
        tables = self._tables[network.max_prefixlen]
        length = network.prefixlen
        if length not in tables:
            tables[length] = {}
            self._tables[network.max_prefixlen] = dict(sorted(tables.items(), reverse=True))
        self._tables[network.max_prefixlen][length][_prefix(network)] = value

    def get(self, network: Network) -> _Value | None:
        """What exactly this network has."""
        return self._tables[network.max_prefixlen].get(network.prefixlen, {}).get(_prefix(network))

    def remove(self, network: Network) -> None:
        """Forget a network."""
        tables = self._tables[network.max_prefixlen]
        prefixes = tables.get(network.prefixlen, {})
        prefixes.pop(_prefix(network), None)
        if not prefixes:
            tables.pop(network.prefixlen, None)

    def matches(self, bits: int, number: int) -> Iterator[tuple[int, _Value]]:
        """The networks that an address is in, longest prefix first: its length and the value."""
        for length, prefixes in self._tables[bits].items():
            value = prefixes.get(number >> (bits - length))
            if value is not None:
                yield length, value

    def values(self) -> list[_Value]:
        """All values, as they are now."""
        found: list[_Value] = []
        for tables in self._tables.values():
            for prefixes in tables.values():
                found += prefixes.values()
        return found

    def __len__(self) -> int:
        return sum(
            len(prefixes) for tables in self._tables.values() for prefixes in tables.values()
        )


class AddressLimits:
    """
    Limit the attempts of each address, and ban those who go on regardless.

    An IPv6 address counts as its /64; what is no IP address (a local socket) is not limited.
    Addresses that need no remembering are forgotten first, then those that still have attempts
    left; never those that are being refused.  Where all are, a new address is let in uncounted:
    honest phones are not to be shut out by a crowd, and the limit of connections still holds.
    """

    def __init__(
        self,
        settings: LimitsSettings,
        seconds: Callable[[], float],
    ) -> None:
        """
        @param seconds: the time now, in seconds since 1970.
        """
        self._seconds = seconds
        # When the bucket of an address will be full again: all there is to remember of it.
        self._full_at: dict[int, float] = {}
        # Likewise of what it may be given back for phones whose clocks are off.
        self._pardoned_at: dict[int, float] = {}
        self._search_at = 0.0
        self._offences: dict[int, array[float]] = {}
        #: Since when an address has earned a ban, the longest first.
        self._suspects: dict[int, float] = {}
        self._verified_at: dict[int, float] = {}
        self._bans: _Networks[Ban] = _Networks()
        #: Bans that are over, by network, the first to end first: they make the next ones longer.
        self._over: dict[str, Ban] = {}
        self.apply(settings)

    @property
    def banned(self) -> int:
        """How many bans were in force at the last sweep or change."""
        return len(self._bans)

    def apply(self, settings: LimitsSettings) -> None:
        """Take over settings, at the start or when they have changed."""
        self._pause = MINUTE / settings.connections_per_minute
        self._ban_after = settings.ban_after
        self._ban_seconds = settings.ban_seconds
        self._max_tracked = settings.max_tracked_addresses
        self._max_offenders = max(1, min(self._max_tracked, _MAX_OFFENCES // self._ban_after))
        self._listed: _Networks[Admission] = _Networks()
        for network in map(ip_network, settings.allow):
            self._listed.put(_plain(network), Admission.ADMITTED)
        for network in map(ip_network, settings.deny):
            self._listed.put(_plain(network), Admission.DENIED)

    def admit(self, address: str) -> Admission:
        """
        An attempt to connect.

        @return: what becomes of it.  One over the rate counts as an offence.
        """
        place = _place(address)
        if place is None:
            return Admission.ADMITTED
        bits, number, key = place
        for _, listed in self._listed.matches(bits, number):
            return listed
        now = self._seconds()
        for _, ban in self._bans.matches(bits, number):
            if ban.in_force(now):
                return Admission.BANNED
        full_at = self._full_at.get(key)
        if full_at is None:
            if len(self._full_at) < self._max_tracked or self._forget_some(now):
                self._full_at[key] = now + self._pause
            return Admission.ADMITTED
        # Wall time may step back: an empty bucket is the worst that can be.
        full_at = min(max(full_at, now), now + MINUTE)
        if full_at + self._pause > now + MINUTE + 1e-6:
            self._full_at[key] = full_at
            self._offended(key, now)
            return Admission.RATE_LIMITED
        self._full_at[key] = full_at + self._pause
        return Admission.ADMITTED

    def denies(self, address: str) -> bool:
        """Whether C{limits.deny} says that nobody at C{address} is let in."""
        place = _place(address)
        if place is None:
            return False
        bits, number, _ = place
        return next((listed for _, listed in self._listed.matches(bits, number)), None) is (
            Admission.DENIED
        )

    def give_back(self, address: str) -> None:
        """An attempt that was admitted does not count: it authenticated, or we refused it."""
        place = _place(address)
        if place is not None and place[2] in self._full_at:
            self._full_at[place[2]] -= self._pause

    def clock_fault(self, address: str) -> None:
        """
        A signature held, but its time is wrong: a clock is off.  The attempt does not count, and
        for a minute the address is not banned.

        A line that was recorded long ago looks the same: in a minute no more of them are given
        back than an address may make anyway.
        """
        self.verified(address)
        place = _place(address)
        if place is None:
            return
        key, now = place[2], self._seconds()
        if key not in self._pardoned_at and len(self._pardoned_at) >= self._max_tracked:
            return
        pardoned_at = min(max(self._pardoned_at.get(key, now), now), now + MINUTE) + self._pause
        if pardoned_at <= now + MINUTE + 1e-6:
            self._pardoned_at[key] = pardoned_at
            self.give_back(address)

    def verified(self, address: str) -> None:
        """A signature held: for a minute the address is not banned."""
        place = _place(address)
        if place is None:
            return
        key = place[2]
        verified_at = self._verified_at
        if verified_at.pop(key, None) is None and len(verified_at) >= self._max_tracked:
            del verified_at[next(iter(verified_at))]
        verified_at[key] = self._seconds()

    def failed_signature(self, address: str) -> None:
        """A signature was wrong: an offence."""
        place = _place(address)
        if place is not None:
            self._offended(place[2], self._seconds())

    def sweep(self) -> Iterator[None]:
        """
        Forget what is over, some of it at each step, for the tables may be large.  To be begun
        every 10 s, and gone through to its end ahead of L{judge}.
        """
        now = self._seconds()
        for keys in _pieces(self._verified_at):
            for key in keys:
                if abs(now - self._verified_at.get(key, now)) >= MINUTE:
                    del self._verified_at[key]
            yield
        for table in (self._full_at, self._pardoned_at):
            for keys in _pieces(table):
                for key in keys:
                    at = table.get(key, inf)
                    if at <= now:
                        del table[key]
                    elif now + MINUTE < at < inf:
                        table[key] = now + MINUTE
                yield
        for keys in _pieces(self._offences):
            for key in keys:
                times = self._offences.get(key)
                if times is not None and abs(now - times[-1]) >= MINUTE:
                    del self._offences[key]
            yield
        tables: tuple[dict[int, Any], ...]
        tables = (self._verified_at, self._full_at, self._pardoned_at, self._offences)
        for known in tables:
            if not known:
                known.clear()  # its room, too
        yield
        yield from self._sweep_bans(now)

    def judge(self) -> list[Ban]:
        """
        Ban some of those that have earned it, and had the time to prove themselves.

        @return: the bans made, to be stored; while there are any, there may be more to make.
        """
        now = self._seconds()
        suspects = self._suspects
        made: list[Ban] = []
        while len(made) < _MAX_SENTENCES:
            ripe = takewhile(lambda key: abs(now - suspects[key]) >= SUSPECT_SECONDS, suspects)
            keys = list(islice(ripe, _MAX_SENTENCES - len(made)))
            if not keys:
                break
            for key in keys:
                del suspects[key]
                ban = None if key in self._verified_at else self._earned(key, now)
                if ban is not None:
                    made.append(ban)
                    self._offences.pop(key, None)
        return made

    def bars(self, address: str) -> bool:
        """Whether a ban is in force for C{address}."""
        place = _place(address)
        if place is None or any(True for _ in self._listed.matches(*place[:2])):
            return False
        now = self._seconds()
        return any(ban.in_force(now) for _, ban in self._bans.matches(*place[:2]))

    def shuts_out(self, address: str) -> bool:
        """Whether C{address} is banned or denied; no attempt is counted."""
        return self.denies(address) or self.bars(address)

    # Bans

    def ban(
        self, network: str, reason: str, seconds: float | None = None, made_by: str = ""
    ) -> Ban | None:
        """
        An operator's ban, in the place of one of the same network.

        @param network: an address, or a network in CIDR form.
        @param seconds: how long; L{None}: until it is lifted.
        @return: L{None} where there is no room: then the one of L{first_to_end} may be lifted.
        @raise ValueError: C{network} is none.
        """
        now = self._seconds()
        place = _plain(ip_network(network, strict=False))
        self._over.pop(str(place), None)
        if self._bans.get(place) is None and not self._make_room():
            return None
        ban = Ban(
            str(place), reason, now, None if seconds is None else now + seconds, made_by=made_by
        )
        self._bans.put(place, ban)
        return ban

    def first_to_end(self) -> Ban | None:
        """The ban that ends first; L{None}: all are without end."""
        ending = (ban for ban in self._bans.values() if ban.expires is not None)
        return min(ending, key=lambda ban: ban.expires or 0.0, default=None)

    def lift(self, network: str) -> Ban | None:
        """
        End a ban, and forget it.

        @return: it, if there was one.
        @raise ValueError: C{network} is none.
        """
        place = _plain(ip_network(network, strict=False))
        ban = self._bans.get(place)
        if ban is not None:
            self._bans.remove(place)
        return ban or self._over.pop(str(place), None)

    def load(self, bans: Iterable[Ban]) -> None:
        """Take over what was stored; what is over too: it makes the next ones longer."""
        now = self._seconds()
        over: list[Ban] = []
        for ban in bans:
            if len(self._bans) + len(over) >= self._max_tracked:
                break
            if ban.in_force(now):
                self._bans.put(_plain(ip_network(ban.network)), ban)
            elif now < (ban.expires or 0.0) + REPEAT_SECONDS:
                over.append(ban)
        over.sort(key=lambda ban: ban.expires or 0.0)
        self._over |= {ban.network: ban for ban in over}

    def bans(self) -> list[Ban]:
        """Those in force."""
        now = self._seconds()
        return [ban for ban in self._bans.values() if ban.in_force(now)]

    # Inside

    def _offended(self, key: int, now: float) -> None:
        times = self._offences.get(key)
        if times is None:
            if len(self._offences) >= self._max_offenders:
                return  # those that are known are being dealt with
            times = self._offences[key] = array("d")
        times.append(now)
        while len(times) > self._ban_after:
            del times[0]
        if len(times) == self._ban_after and now - times[0] < MINUTE:
            self._suspects.setdefault(key, now)

    def _earned(self, key: int, now: float) -> Ban | None:
        """The ban of an address that has offended too often, entered."""
        network = _network(key)
        bits, number = network.max_prefixlen, int(network.network_address)
        if any(True for _ in self._listed.matches(bits, number)):
            return None
        if any(ban.in_force(now) for _, ban in self._bans.matches(bits, number)):
            return None
        last = self._over.pop(str(network), None) or self._bans.get(network)
        if last is None and not self._make_room():
            return None  # it is still limited
        times = 1 if last is None else last.times + 1
        seconds = min(
            self._ban_seconds * 2.0 ** min(times - 1, 32), max(MAX_BAN_SECONDS, self._ban_seconds)
        )
        reason = f"{self._ban_after} attempts over the rate, or wrong signatures, in a minute"
        ban = Ban(str(network), reason, now, now + seconds, times)
        self._bans.put(network, ban)
        return ban

    def _forget_some(self, now: float) -> bool:
        """Find room for one more address.  @return: whether there is any."""
        if 0.0 < self._search_at - now <= _SEARCH_PAUSE:
            return False
        wanted = max(1, self._max_tracked // _FREED_PART)
        least = now + MINUTE - self._pause
        idle: list[int] = []
        standing_well: list[int] = []
        for key, at in self._full_at.items():
            if at <= now:
                idle.append(key)
                if len(idle) == wanted:
                    break
            elif at <= least and len(standing_well) < wanted:
                standing_well.append(key)
        for key in (idle + standing_well)[:wanted]:
            del self._full_at[key]
        if idle or standing_well:
            return True
        self._search_at = now + _SEARCH_PAUSE
        return False

    def _make_room(self) -> bool:
        """Have room for one more ban, if need be that of one that is over.  @return: whether."""
        if len(self._bans) + len(self._over) < self._max_tracked:
            return True
        first = next(iter(self._over), None)
        if first is None:
            return False
        del self._over[first]
        return True

    def _sweep_bans(self, now: float) -> Iterator[None]:
        """Set those apart that are over, and forget those that have long been."""
        ended = 0
        for bans in _pieces(self._bans.values()):
            for ban in bans:
                if ban.in_force(now):
                    continue
                network = ip_network(ban.network)
                if self._bans.get(network) is ban:
                    self._bans.remove(network)
                    self._over[ban.network] = ban
                ended += 1
                if ended % _ENDED_AT_ONCE == 0:
                    yield
            yield
        for networks in _pieces(self._over):
            for text in networks:
                over = self._over.get(text)
                if over is not None and now >= (over.expires or 0.0) + REPEAT_SECONDS:
                    del self._over[text]
            yield


def _pieces(of: Iterable[_T]) -> Iterator[list[_T]]:
    """What is in C{of} now, some at a time."""
    found = list(of)
    for start in range(0, len(found), _SWEPT_AT_ONCE):
        yield found[start : start + _SWEPT_AT_ONCE]


def counts_as(address: str) -> int | None:
    """What is equal for all addresses that count as one; L{None}: it is no IP address."""
    place = _place(address)
    return None if place is None else place[2]


def _place(address: str) -> tuple[int, int, int] | None:
    """
    Where an address is: its bits, the address as a number, and what it counts as.

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


def _network(key: int) -> Network:
    """What counts as C{key}."""
    if key < _IPV6_KEY:
        return IPv4Network((key, 32))
    return IPv6Network(((key ^ _IPV6_KEY) << 64, 64))


def _plain(network: Network) -> Network:
    """C{network}, as one of IPv4 where it is one of IPv4 addresses mapped into IPv6."""
    number = int(network.network_address)
    if network.max_prefixlen == 128 and network.prefixlen >= 96 and number >> 32 == _MAPPED >> 32:
        return IPv4Network((number & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _prefix(network: Network) -> int:
    return int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
