"""Rate limits and bans of addresses."""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from ipaddress import ip_network
from itertools import islice, takewhile
from math import inf
from typing import Any, Final, TypeVar

import msgspec

from domaeka.config import LimitsSettings
from domaeka.policies.networks import (
    Networks,
    address_key,
    crowded,
    network_of,
    place_of,
    plain,
)
from domaeka.pools import Pool

#: Longest ban that is not an operator's, in seconds, unless C{limits.ban_seconds} is above it.
MAX_BAN_SECONDS: Final = 86_400.0
#: Time for which a ban that is over makes the next one longer, in seconds.
REPEAT_SECONDS: Final = 86_400.0
#: First ban for wrong signatures alone, in seconds, unless C{limits.ban_seconds} is below it: long
#: enough to slow a guesser down, short enough for the owner of a phone with a wrong key.
WRONG_SIGNATURE_BAN_SECONDS: Final = 60.0
#: Silent connections a minute that do not count as attempts of their address.  Source: haproxy
#: checks every 2 s by default, kubelet every 10 s; there may be several.
CHECKS_PER_MINUTE: Final = 120
#: Longest silent connection that counts as a health check, in seconds.
HELD_SECONDS: Final = 5.0
#: Longest name remembered with a wrong signature, in characters, and most addresses with such
#: names: strangers choose both.
CLAIM_CHARS: Final = 64
_MAX_CLAIMS: Final = 4_096
#: Time within which offences count together, and for which a verified phone protects its address
#: from a ban, in seconds.  Source: docs/settings.md, C{limits.ban_after}.
MINUTE: Final = 60.0
#: Most times of offences that are kept, of all addresses together: 8 MiB.
_MAX_OFFENCES: Final = 1_048_576
#: Part of a full table that is freed at once, so that the search costs little per address.
_FREED_PART: Final = 8
#: Signatures with a wrong time that are remembered, so that each is excused once.
MAX_CLOCK_FAULTS: Final = 4_096
#: Pause after a search that freed nothing, in seconds.
_SEARCH_PAUSE: Final = 1.0
#: Time that a phone at an address due for a ban has to prove itself, in seconds: several behind
#: one router may return at once.
SUSPECT_SECONDS: Final = 5.0
#: Most bans that are made at once, in a turn of the reactor.
_MAX_SENTENCES: Final = 32
#: Addresses, and bans that are over, in a step of the sweep: 1 to 2 ms.
_SWEPT_AT_ONCE: Final = 2_048
_ENDED_AT_ONCE: Final = 128

_T = TypeVar("_T")


class TokenBucket:
    """
    Token bucket: allows bursts, bounds the average.

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
        elapsed = now - self._filled_at
        self._level = min(self._burst, self._level + elapsed * self._rate)
        self._filled_at = now
        wait = (cost - self._level) / self._rate
        if wait > 1e-6:  # the resolution of today's time as a float is 2.4e-7 s
            return wait
        self._level -= cost
        return 0.0


class Admission(StrEnum):
    """Verdict on an attempt to connect."""

    ADMITTED = "admitted"
    RATE_LIMITED = "rate limited"
    BANNED = "banned"
    DENIED = "denied"


class Ban(msgspec.Struct, frozen=True):
    """
    A network that is not let in.

    @ivar network: as C{str()} of C{ipaddress.ip_network}.
    @ivar made_at: in seconds since 1970; inside L{AddressLimits} by its own clock.
    @ivar expires: likewise; L{None}: never.
    @ivar times: how many bans of it there were of late, this one included.
    @ivar made_by: its author, for people; empty: the server itself.
    @ivar claimed_bot: the bot claimed with the last wrong signature, unverified; empty: none.
    @ivar claimed_device: likewise, the device.
    """

    network: str
    reason: str
    made_at: float
    expires: float | None
    times: int = 1
    made_by: str = ""
    claimed_bot: str = ""
    claimed_device: str = ""

    @property
    def seconds(self) -> float | None:
        """Its whole length; L{None}: until it is lifted."""
        return None if self.expires is None else self.expires - self.made_at

    def in_force(self, now: float) -> bool:
        """True until it is over."""
        return self.expires is None or now < self.expires


class _Offences:
    """Times of the last offences of an address, in order."""

    __slots__ = ("over_rate", "signatures")

    def __init__(self) -> None:
        self.over_rate = array("d")
        self.signatures = array("d")

    @property
    def last(self) -> float:
        """Time of the last one."""
        return max((*self.over_rate[-1:], *self.signatures[-1:]))

    def since(self, time: float) -> tuple[int, int]:
        """Number of attempts over the rate, and of wrong signatures, after C{time}."""
        return (
            len(self.over_rate) - bisect_right(self.over_rate, time),
            len(self.signatures) - bisect_right(self.signatures, time),
        )


class AddressLimits:
    """
    Limits on the attempts of each address, and bans of addresses that go on regardless.

    Health checks of balancers and monitors are limited like all connections, and never banned:
    attempts over the rate count for a ban only where a connection of the address has said
    something within the minute, or was held open.

    An IPv6 address counts as its /64; what is no IP address (a local socket) is not limited.
    Where the table is full, idle addresses are forgotten first, then those with attempts left;
    never those that are being refused, or where devices may come back.  Where all are, a new
    address is let in uncounted, so that a crowd does not shut out honest phones; the limit of
    connections still holds.  In each full table the network with the most addresses (a /48 of IPv6,
    a /24 of IPv4) gives way first.

    The length of a ban does not depend on the wall clock; its dates are worked out when it leaves
    here.  Only a restart goes by the stored date: where that is in the future, because the clock
    was set back, the ban counts as made now.
    """

    def __init__(
        self,
        settings: LimitsSettings,
        seconds: Callable[[], float],
        wall: Callable[[], float],
        expected: Callable[[int], int] = lambda key: 0,
        gave_way: Callable[[Pool, str], object] = lambda pool, claimant: None,
    ) -> None:
        """
        @param seconds: the time now, in seconds, which never steps.
        @param wall: the wall clock, in seconds since 1970.
        @param expected: given an L{address_key}, the number of devices that may come back there:
            so many more attempts the address has.
        @param gave_way: called with a table that is full, and the address that came.
        """
        self._seconds = seconds
        self._wall = wall
        self._expected = expected
        self._gave_way = gave_way
        # When the bucket of an address will be full again, which is its whole state.
        self._full_at: dict[int, float] = {}
        # Likewise for attempts given back to phones whose clocks are off.
        self._pardoned_at: dict[int, float] = {}
        # Likewise for connections that ended without a word.
        self._checked_at: dict[int, float] = {}
        #: Hashes of signatures that were excused, the first one first.
        self._excused: dict[int, None] = {}
        self._offences: dict[int, _Offences] = {}
        #: Names claimed with wrong signatures, the last one of each address.
        self._claims: dict[int, tuple[str, str]] = {}
        #: When a connection of an address last said something, or was held open.
        self._used_at: dict[int, float] = {}
        self._search_at = -inf
        #: Since when an address has earned a ban, the longest first.
        self._suspects: dict[int, float] = {}
        self._verified_at: dict[int, float] = {}
        self._bans: Networks[Ban] = Networks()
        #: Bans that are over, by network, the first to end first: they make the next ones longer.
        self._over: dict[str, Ban] = {}
        self.apply(settings)

    @property
    def banned(self) -> int:
        """Number of bans in force at the last sweep or change."""
        return len(self._bans)

    def apply(self, settings: LimitsSettings) -> None:
        """Apply settings, at the start or when they have changed."""
        self._attempts = settings.connections_per_minute
        self._ban_after = settings.ban_after
        self._ban_seconds = settings.ban_seconds
        self._max_tracked = settings.max_tracked_addresses
        self._max_offenders = max(1, min(self._max_tracked, _MAX_OFFENCES // (2 * self._ban_after)))
        self._listed: Networks[Admission] = Networks()
        for network in map(ip_network, settings.allow):
            self._listed.put(plain(network), Admission.ADMITTED)
        for network in map(ip_network, settings.deny):
            self._listed.put(plain(network), Admission.DENIED)

    def admit(self, address: str) -> Admission:
        """Judge an attempt to connect; one over the rate counts as an offence."""
        place = place_of(address)
        if place is None:
            return Admission.ADMITTED
        bits, number, key = place
        for listed in self._listed.matches(bits, number):
            return listed
        now = self._seconds()
        if any(ban.in_force(now) for ban in self._bans.matches(bits, number)):
            return Admission.BANNED
        full_at = self._full_at.get(key)
        pause = self._pause(key)
        if full_at is None:
            if len(self._full_at) < self._max_tracked or self._forget_some(now):
                self._full_at[key] = now + pause
            else:
                self._gave_way(Pool.ADDRESSES, address)
            return Admission.ADMITTED
        full_at = max(full_at, now)
        if full_at + pause > now + MINUTE + 1e-6:
            self._full_at[key] = full_at
            offences = self._offences_of(key)
            self._offended(key, offences, offences.over_rate, now)
            return Admission.RATE_LIMITED
        self._full_at[key] = full_at + pause
        return Admission.ADMITTED

    def denies(self, address: str) -> bool:
        """True if C{limits.deny} shuts C{address} out."""
        return self._listed_as(address) is Admission.DENIED

    def allows(self, address: str) -> bool:
        """True if C{address} is never limited: it is in C{limits.allow}."""
        return self._listed_as(address) is Admission.ADMITTED

    def give_back(self, address: str) -> None:
        """An attempt that was admitted does not count: it authenticated, or we refused it."""
        place = place_of(address)
        if place is not None and place[2] in self._full_at:
            self._full_at[place[2]] -= self._pause(place[2])

    def expects(self, address: str) -> bool:
        """True if devices may come back to C{address}, and no operator has shut it out."""
        place = place_of(address)
        if place is None or not self._expected(place[2]):
            return False
        if next(self._listed.matches(*place[:2]), None) is Admission.DENIED:
            return False
        now = self._seconds()
        bans = self._bans.matches(*place[:2])
        return not any(ban.made_by and ban.in_force(now) for ban in bans)

    def claimant(self, address: str) -> int | None:
        """The L{address_key} of an address that is limited; L{None}: it is not."""
        place = place_of(address)
        return None if place is None or any(self._listed.matches(*place[:2])) else place[2]

    def clock_fault(self, address: str, signature: str) -> None:
        """
        Note a right signature with a wrong time: a clock is off.  The attempt does not count.

        A line that was recorded long ago looks the same: each signature excuses once, no more of
        them in a minute than an address may make attempts anyway, and none protects from a ban.
        """
        excused = hash(signature)
        if excused in self._excused:
            return
        if len(self._excused) >= MAX_CLOCK_FAULTS:
            del self._excused[next(iter(self._excused))]
        self._excused[excused] = None
        self._pardon(address, self._pardoned_at)

    def ended_unused(self, address: str) -> None:
        """
        Note a connection that ended by itself, soon and silent, as a health check's does: it does
        not count, up to L{CHECKS_PER_MINUTE}, so that a flood of them is limited.
        """
        self._pardon(address, self._checked_at, MINUTE / CHECKS_PER_MINUTE)

    def used(self, address: str) -> None:
        """Note a connection that sent something, or is held open, as no health check does."""
        key, now = address_key(address), self._seconds()
        if key is not None:
            self._note(self._used_at, key, now)
            if key in self._offences:
                self._suspect(key, self._offences[key], now)

    def verified(self, address: str) -> None:
        """Note a valid signature: for a minute the address is not banned."""
        key = address_key(address)
        if key is not None:
            self._note(self._verified_at, key, self._seconds())

    def failed_signature(self, address: str, claims: tuple[str, str] = ("", "")) -> None:
        """
        Note a wrong signature, which is an offence.

        @param claims: the bot and the device that the sender claims to be.
        """
        key = address_key(address)
        if key is None:
            return
        offences = self._offences_of(key)
        if self._claims.pop(key, None) is None and len(self._claims) >= _MAX_CLAIMS:
            for crowded in self._crowded(self._claims):
                del self._claims[crowded]
        self._claims[key] = _shown(claims[0]), _shown(claims[1])
        self._offended(key, offences, offences.signatures, self._seconds())

    def sweep(self) -> Iterator[None]:
        """
        Forget what is over, some at each step.  To be begun every 10 s, and run to its end ahead
        of L{judge}.
        """
        now = self._seconds()
        for times in (self._verified_at, self._used_at):
            for keys in _pieces(times):
                for key in keys:
                    if now - times.get(key, now) >= MINUTE:
                        del times[key]
                yield
        for table in (self._full_at, self._pardoned_at, self._checked_at):
            for keys in _pieces(table):
                for key in keys:
                    if table.get(key, inf) <= now:
                        del table[key]
                yield
        for keys in _pieces(self._offences):
            for key in keys:
                offences = self._offences.get(key)
                if offences is not None and now - offences.last >= MINUTE:
                    self._forget_offences(key)
            yield
        tables: tuple[dict[int, Any], ...]
        tables = (self._verified_at, self._used_at, self._full_at, self._pardoned_at)
        for known in (*tables, self._checked_at, self._offences, self._claims):
            if not known:
                known.clear()  # its room, too
        yield
        yield from self._sweep_bans(now)

    def judge(self) -> list[Ban]:
        """
        Ban some of the addresses that are due for it, and had the time to prove themselves.

        @return: the bans made, to be stored; where there are any, call again.
        """
        now = self._seconds()
        suspects = self._suspects
        made: list[Ban] = []
        while len(made) < _MAX_SENTENCES:
            ripe = takewhile(lambda key: now - suspects[key] >= SUSPECT_SECONDS, suspects)
            keys = list(islice(ripe, _MAX_SENTENCES - len(made)))
            if not keys:
                break
            for key in keys:
                counts = self._offences[key].since(suspects.pop(key) - MINUTE)
                ban = None if key in self._verified_at else self._earned(key, *counts)
                if ban is not None:
                    made.append(self._dated(ban))
                    self._forget_offences(key)
        return made

    def bans_address(self, address: str) -> bool:
        """True while a ban is in force for C{address}."""
        place = place_of(address)
        if place is None or any(self._listed.matches(*place[:2])):
            return False
        now = self._seconds()
        return any(ban.in_force(now) for ban in self._bans.matches(*place[:2]))

    # Bans

    def ban(
        self, network: str, reason: str, seconds: float | None = None, made_by: str = ""
    ) -> Ban | None:
        """
        Make an operator's ban, or replace that of the same network.

        @param network: an address, or a network in CIDR form.
        @param seconds: how long; L{None}: until it is lifted.
        @return: L{None} where there is no room: lift that of L{first_to_end}, and try again.
        @raise ValueError: C{network} is none.
        """
        now = self._seconds()
        place = plain(ip_network(network, strict=False))
        self._over.pop(str(place), None)
        if self._bans.get(place) is None and not self._make_room():
            return None
        ban = Ban(
            str(place), reason, now, None if seconds is None else now + seconds, made_by=made_by
        )
        self._bans.put(place, ban)
        return self._dated(ban)

    def first_to_end(self) -> Ban | None:
        """
        The ban that ends first, of the server's own ones if there are any; L{None}: all are without
        end.
        """
        ending = (ban for ban in self._bans.values() if ban.expires is not None)
        first = min(ending, key=lambda ban: (bool(ban.made_by), ban.expires or 0.0), default=None)
        return None if first is None else self._dated(first)

    def lift(self, network: str) -> Ban | None:
        """
        End a ban, and forget it with its offences, so that a repaired phone gets in at once.

        @return: it, if there was one.
        @raise ValueError: C{network} is none.
        """
        place = plain(ip_network(network, strict=False))
        ban = self._bans.get(place)
        if ban is not None:
            self._bans.remove(place)
        counted = place_of(str(place.network_address))
        if counted is not None and place.prefixlen >= network_of(counted[2]).prefixlen:
            self._full_at.pop(counted[2], None)
            self._forget_offences(counted[2])
        ban = ban or self._over.pop(str(place), None)
        return None if ban is None else self._dated(ban)

    def load(self, bans: Iterable[Ban]) -> None:
        """Load stored bans, those that are over included: they make the next ones longer."""
        now, wall = self._seconds(), self._wall()
        over: list[Ban] = []
        for stored in bans:
            ban = _shifted(stored, now - max(wall, stored.made_at))
            if len(self._bans) + len(over) >= self._max_tracked:
                break
            if ban.in_force(now):
                self._bans.put(plain(ip_network(ban.network)), ban)
            elif now < (ban.expires or 0.0) + REPEAT_SECONDS:
                over.append(ban)
        over.sort(key=lambda ban: ban.expires or 0.0)
        self._over |= {ban.network: ban for ban in over}

    def bans(self) -> list[Ban]:
        """The bans in force."""
        now = self._seconds()
        return [self._dated(ban) for ban in self._bans.values() if ban.in_force(now)]

    # Inside

    def _listed_as(self, address: str) -> Admission | None:
        place = place_of(address)
        return None if place is None else next(self._listed.matches(*place[:2]), None)

    def _dated(self, ban: Ban) -> Ban:
        """C{ban}, its times by the wall clock."""
        return _shifted(ban, self._wall() - self._seconds())

    def _offences_of(self, key: int) -> _Offences:
        """Offences of an address."""
        offences = self._offences.get(key)
        if offences is None:
            if len(self._offences) >= self._max_offenders:
                for crowded in self._crowded(self._offences):
                    self._forget_offences(crowded)
            offences = self._offences[key] = _Offences()
        return offences

    def _offended(self, key: int, offences: _Offences, times: "array[float]", now: float) -> None:
        """Add an offence to C{times}, those of its kind."""
        times.append(now)
        while len(times) > self._ban_after:
            del times[0]
        self._suspect(key, offences, now)

    def _suspect(self, key: int, offences: _Offences, now: float) -> None:
        """Put an address up for judgement, if it has offended often enough."""
        if key in self._suspects:
            return
        over_rate, signatures = offences.since(now - MINUTE)
        used = signatures or now - self._used_at.get(key, -inf) < MINUTE
        if used and over_rate + signatures >= self._ban_after:
            self._suspects[key] = offences.last

    def _forget_offences(self, key: int) -> None:
        """Forget the offences of an address."""
        self._offences.pop(key, None)
        self._suspects.pop(key, None)
        self._claims.pop(key, None)

    def _note(self, times: dict[int, float], key: int, now: float) -> None:
        """Enter a time; where there is no room, those of the largest network give way."""
        if times.pop(key, None) is None:
            self._room_in(times)
        times[key] = now

    def _room_in(self, table: dict[int, float]) -> None:
        """Make room for one more address in a table, if need be."""
        if len(table) >= self._max_tracked:
            for crowded in self._crowded(table):
                del table[crowded]

    def _crowded(self, table: Iterable[int]) -> list[int]:
        """The keys that give way in a full table; where devices may come back they go last."""
        keys = crowded(table, self._expected, _FREED_PART)
        self._gave_way(Pool.ADDRESSES, str(network_of(keys[0])))
        return keys

    def _pause(self, key: int) -> float:
        """Seconds after which an address has another attempt."""
        return MINUTE / (self._attempts + self._expected(key))

    def _pardon(self, address: str, pardons: dict[int, float], pause: float | None = None) -> None:
        """
        Give an attempt back, unless too many were given back within a minute for this reason.

        @param pardons: when the allowance of an address is whole again, in seconds.
        @param pause: time by which each one uses the allowance up, in seconds; L{None}: that of an
            attempt.
        """
        key, now = address_key(address), self._seconds()
        if key is None:
            return
        if key not in pardons:
            self._room_in(pardons)
        pardoned_at = max(pardons.get(key, now), now) + (pause or self._pause(key))
        if pardoned_at <= now + MINUTE + 1e-6:
            pardons[key] = pardoned_at
            self.give_back(address)

    def _earned(self, key: int, over_rate: int, signatures: int) -> Ban | None:
        """Ban an address for its offences within a minute; L{None}: it is not to be banned."""
        now = self._seconds()
        network = network_of(key)
        bits, number = network.max_prefixlen, int(network.network_address)
        if any(self._listed.matches(bits, number)):
            return None
        if any(ban.in_force(now) for ban in self._bans.matches(bits, number)):
            return None
        last = self._over.pop(str(network), None) or self._bans.get(network)
        if last is None and not self._make_room():
            self._gave_way(Pool.BANS, str(network))
            return None  # it is still limited
        times = 1 if last is None else last.times + 1
        first = self._ban_seconds
        if over_rate >= self._ban_after:
            reason = f"{over_rate} attempts over the rate in a minute"
        elif signatures >= self._ban_after:
            reason = f"{signatures} wrong signatures in a minute"
            first = min(first, WRONG_SIGNATURE_BAN_SECONDS)
        else:
            reason = f"{self._ban_after} attempts over the rate, or wrong signatures, in a minute"
        seconds = min(first * 2.0 ** min(times - 1, 32), max(MAX_BAN_SECONDS, self._ban_seconds))
        claims = self._claims.get(key, ("", ""))
        ban = Ban(str(network), reason, now, now + seconds, times, "", *claims)
        self._bans.put(network, ban)
        return ban

    def _forget_some(self, now: float) -> bool:
        """Find room for one more address.  @return: whether there is any."""
        if now < self._search_at:
            return False
        least = now + MINUTE - MINUTE / self._attempts
        free = [key for key, at in self._full_at.items() if at <= now]
        if not free:
            standing_well = [
                key for key, at in self._full_at.items() if at <= least and not self._expected(key)
            ]
            free = self._crowded(standing_well) if standing_well else []
        for key in free:
            del self._full_at[key]
        if not free:
            self._search_at = now + _SEARCH_PAUSE
        return bool(free)

    def _make_room(self) -> bool:
        """Make room for one more ban: one that is over may go.  @return: whether there is room."""
        if len(self._bans) + len(self._over) < self._max_tracked:
            return True
        first = next(iter(self._over), None)
        if first is None:
            return False
        del self._over[first]
        return True

    def _sweep_bans(self, now: float) -> Iterator[None]:
        """Set aside bans that are over, and forget those that ended long ago."""
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


def _shifted(ban: Ban, by: float) -> Ban:
    """C{ban}, its times moved C{by} so many seconds."""
    expires = None if ban.expires is None else ban.expires + by
    return msgspec.structs.replace(ban, made_at=ban.made_at + by, expires=expires)


def _pieces(of: Iterable[_T]) -> Iterator[list[_T]]:
    """A copy of C{of}, in pieces of L{_SWEPT_AT_ONCE}."""
    found = list(of)
    for start in range(0, len(found), _SWEPT_AT_ONCE):
        yield found[start : start + _SWEPT_AT_ONCE]


def _shown(name: str) -> str:
    """A stranger's name, cut short, without control characters."""
    short = name if len(name) <= CLAIM_CHARS else name[: CLAIM_CHARS - 1] + "…"
    if short.isprintable():
        return short
    return "".join(char if char.isprintable() else "\ufffd" for char in short)
