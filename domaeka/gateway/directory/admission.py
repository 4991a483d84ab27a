"""Admission: access, places, and the peer that gives way when the server is full."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from domaeka.errors import CloseReason, ErrorCode, WireError
from domaeka.gateway.context import Context
from domaeka.gateway.device import Device
from domaeka.gateway.directory.registry import Registry
from domaeka.gateway.joints import CLOSING_SHARE, LATE_SHARE, Entry, Member
from domaeka.gateway.peer import Peer
from domaeka.interfaces import Approval, DeviceKey
from domaeka.policies import limits
from domaeka.policies.holdings import Holdings
from domaeka.pools import Pool

#: Time for a guest to name a known device, and then to prove that name, in seconds: a round trip
#: each, on a poor line.
NAME_SECONDS: Final = 1.0
PROOF_SECONDS: Final = 3.0
#: Most guests of an address that came over its rate.
GUESTS_OVER_RATE: Final = 3
#: Time that one more of them has before another one gives way, in seconds: somebody who goes on
#: connecting from the address of a phone cannot have it cut off before its first words are read,
#: nor before it answers a ping on a usual line.
CROWDED_SECONDS: Final = 0.25
#: Most of them within that time: those of two turns of the reactor, so that what came with a
#: connection is read before it gives way (L{domaeka.gateway.transport.ports}).
GUESTS_CROWDED: Final = 32
#: Most guests of an address over its rate in a second: 0.1 s of work, for each costs some 0.4 ms.
BRIEF_A_SECOND: Final = 250
#: Most connections of an address whose devices are not approved.
UNAPPROVED_OF_ADDRESS: Final = 10
#: Most closing connections of a device.  Source: a reload of the script, and a line that broke.
CLOSING_OF_DEVICE: Final = 2
#: Error texts for a peer without a place.
FULL: Final = "the server is full"
BRIEF: Final = "this address has connected too often"

#: Close reasons of peers that did nothing wrong, and had no time to prove themselves.
_OUR_OWN: Final = (CloseReason.SHUTDOWN, CloseReason.MIGRATED, CloseReason.SERVER_FULL)
#: Close reasons of connections whose place somebody else takes in the same moment.
_REPLACED: Final = (CloseReason.TAKEN_OVER, CloseReason.GAVE_WAY, CloseReason.UNACKNOWLEDGED)
#: Close reasons of health checks; the last one follows a long request.
_BY_ITSELF: Final = (
    CloseReason.PEER_CLOSED,
    CloseReason.CONNECTION_LOST,
    CloseReason.TOO_MANY_ERRORS,
)

_Claimant: TypeAlias = int | Member


class _Visit(NamedTuple):
    """
    The visit of a guest.

    @ivar until: its deadline, by the steady time, in seconds.
    @ivar counted: whether it is counted as accepted: it had a place.
    """

    until: float
    counted: bool


class Admission:
    """
    Places for connections.

    Connections that have not authenticated are strangers.  When there is no place, the oldest
    stranger or unapproved device gives way, of the address that has the most of these; a phone
    that is approved never does.

    A guest has no place, and a moment to prove that it is a phone that is known: it comes to a full
    server, where its old connection may be broken and still here, or over the rate of an address
    where phones are known.  Once it has, it is given a place.
    """

    def __init__(self, context: Context, registry: Registry) -> None:
        self._context = context
        self._registry = registry
        #: Strangers and unapproved devices that have a place, by address.
        self._yielding: Holdings[_Claimant, Member] = Holdings()
        #: Devices that are not approved, by address.
        self._unapproved: Holdings[_Claimant, Member] = Holdings()
        self._guests: dict[Member, _Visit] = {}
        #: The same, by the known device that they named, or by address; those that give way first
        #: come first: without such a name; with one; from where phones are known.
        self._ranks: tuple[Holdings[_Claimant | DeviceKey, Member], ...] = (
            Holdings(),
            Holdings(),
            Holdings(),
        )
        #: Guests that came over the rate, by address.
        self._over_rate: Holdings[_Claimant, Member] = Holdings()
        #: How many came so since the last sweep, by address.
        self._brief: Counter[int | None] = Counter()
        self._closing = 0
        #: Strangers that are closing, by address.
        self._leaving: Holdings[_Claimant, Member] = Holdings()
        #: Phones that are closing, and may have to wait for late lines, by address and by device.
        self._late: Holdings[_Claimant, Member] = Holdings()
        self._late_of_device: Holdings[DeviceKey, Member] = Holdings()

    # Access rules

    def entry(self, address: str) -> Entry:
        address_limits = self._context.limits
        admission = address_limits.admit(address)
        if admission is limits.Admission.ADMITTED:
            return Entry.OPEN
        if address_limits.expects(address):
            key = address_limits.claimant(address)
            self._brief[key] += 1
            if self._brief[key] <= BRIEF_A_SECOND:
                return Entry.BRIEF
            self._context.metrics.pools.gave_way(Pool.GUESTS, address)
        limited = admission is limits.Admission.RATE_LIMITED
        self.refused(CloseReason.RATE_LIMITED if limited else CloseReason.BANNED)
        return Entry.REFUSED

    def refused(self, reason: CloseReason) -> None:
        metrics = self._context.metrics
        metrics.attempts.labels("refused").inc()
        metrics.refusals.labels(reason).inc()

    # Places

    @property
    def taken(self) -> int:
        """Number of connections that have a place, and are not closing."""
        return self._registry.connections - self._closing - len(self._guests)

    @property
    def phones(self) -> int:
        """Number of those that have authenticated."""
        return self.taken - sum(not member.peer.authenticated for member in self._yielding)

    def admit(self, member: Member) -> None:
        """
        See L{Membership<domaeka.gateway.joints.Membership>}; likewise C{named}, C{doubted},
        C{may_prove}, C{closing}.
        """
        peer = member.peer
        known = self._context.limits.expects(peer.address)
        # At a full server a phone that may be known does not need a place before it has proven it.
        seated = not peer.over_rate and (not self._is_full or (not known and self._make_place()))
        self._registry.add(member)
        if seated:
            self._seat(member)
        else:
            self._invite(member, known)

    def named(self, member: Member, key: DeviceKey) -> None:
        known = self._is_known(key)
        if member in self._guests:
            self._guest_named(member, key, known)
        elif known and self._is_full and member in self._yielding:
            # It would have to give way to the next stranger before it can prove itself.
            self._yielding.remove(member)
            self._host(member, key)

    def doubted(self, member: Member) -> None:
        visit = self._guests.get(member)
        if visit is not None:
            timeout = self._context.settings.server.authentication_timeout
            self._guests[member] = visit._replace(until=self._context.steady.exact() + timeout)

    def may_prove(self, member: Member, key: DeviceKey, signed: bool) -> None:
        if member not in self._guests:
            return
        if member.peer.over_rate and not self._entitled(key, signed):
            raise WireError(ErrorCode.RATE_LIMITED, BRIEF, fatal=True)
        if self._older(member, key) is None and not self._make_place():
            raise WireError(ErrorCode.SERVER_FULL, FULL)

    def proven(self, member: Member, device: Device) -> None:
        """Note that a connection has authenticated, as the newest one of its device."""
        peer = member.peer
        self._accept(self._forget_guest(member))
        self._yielding.remove(member)
        self.judged(device)
        if not peer.over_rate:
            self._context.limits.give_back(peer.address)
        if self.is_rightful(member):
            self._context.limits.verified(peer.address)
        others = self._unapproved.of(self._claimant(member))
        if len(others) > UNAPPROVED_OF_ADDRESS:
            self._gave_way(Pool.PLACES, member)
            others[0].close(CloseReason.GAVE_WAY)

    def judged(self, device: Device) -> None:
        """Note that the approval of a device may have changed: it decides who gives way."""
        member: Member | None = device.connection  # type: ignore[assignment]  # as in the manager
        if member is None or member.peer.closing:
            return
        if device.approved or self._context.held.holding:  # nobody knows yet whom to turn away
            self._yielding.remove(member)
            self._unapproved.remove(member)
        elif member not in self._unapproved:
            claimant = self._claimant(member)
            self._yielding.put(claimant, member)
            self._unapproved.put(claimant, member)

    def is_rightful(self, member: Member) -> bool:
        """True if a connection has authenticated, and keeps its place."""
        return member.peer.authenticated and member not in self._yielding

    def closing(self, member: Member) -> bool:
        peer, full = member.peer, self._is_full
        self._closing += 1
        self._left(member)
        if peer.authenticated and peer.key is not None:
            self._late.put(self._claimant(member), member)
            self._late_of_device.put(peer.key, member)
            while len(mine := self._late_of_device.of(peer.key)) > CLOSING_OF_DEVICE:
                self._cut(mine[0])
            while len(self._late) > self._max_late and (first := self._late.first()) is not None:
                self._cut(first)
            return True
        self._leaving.put(self._claimant(member), member)
        while self._too_many and (first := self._leaving.first()) is not None:
            if first is member:
                self._leaving.remove(member)
                return False
            self._cut(first)
        return not (full or peer.over_rate) or self._has_claim(peer)

    def remove(self, member: Member) -> None:
        """Note that a connection has ended."""
        if self._registry.discard(member):
            if member.peer.closing:
                self._closing -= 1
                self._forget_closing(member)
            else:
                self._left(member)

    # Time

    def sweep(self, now: float) -> None:
        """Turn away guests that are past their deadline."""
        self._brief.clear()
        for guest in [guest for guest, visit in self._guests.items() if now >= visit.until]:
            with self._registry.guard(guest):
                if guest.peer.over_rate or self._is_full:
                    self._turn_away(guest)
                else:
                    self._seat(guest)

    def strangers(self, unclaimed: bool = False) -> Iterator[Member]:
        """
        A copy of the connections that have a place and have not authenticated.

        @param unclaimed: only of those that do not say that they are a device that is known.
        """
        strangers = [each for each in self._yielding if not each.peer.authenticated]
        return (each for each in strangers if not (unclaimed and self._has_claim(each.peer)))

    # Places, inside

    def _has_claim(self, peer: Peer) -> bool:
        """True if a connection says that it is a device that is known."""
        return peer.key is not None and self._is_known(peer.key)

    @property
    def _is_full(self) -> bool:
        return self.taken >= self._context.settings.server.max_connections

    def _make_place(self) -> bool:
        """Have somebody give way, if need be.  @return: whether there is a place."""
        if not self._is_full:
            return True
        first = self._yielding.first()
        if first is None:
            return False
        self._gave_way(Pool.PLACES, first)
        first.close(CloseReason.GAVE_WAY)
        return True

    def _seat(self, member: Member) -> None:
        """Give a place to a stranger."""
        self._accept(self._forget_guest(member) or _Visit(0.0, False))
        self._yielding.put(self._claimant(member), member)

    def _accept(self, visit: _Visit | None) -> None:
        """Count a guest that is given a place."""
        if visit is not None and not visit.counted:
            self._context.metrics.attempts.labels("accepted").inc()

    def _older(self, member: Member, key: DeviceKey) -> Member | None:
        """The connection of a device that a newer one replaces: it has a place."""
        device = self._registry.device(key)
        older: Member | None = None if device is None else device.connection  # type: ignore[assignment]
        return None if older is member or older is None or older.peer.closing else older

    def _is_known(self, key: DeviceKey) -> bool:
        """True if a device is approved; before the store is read any may be."""
        return self._context.devices.approval(key) is Approval.APPROVED or (
            self._context.held.holding
        )

    def _entitled(self, key: DeviceKey, signed: bool) -> bool:
        """True if a device keeps its place once it has authenticated."""
        if self._is_known(key):
            return True
        approval = self._context.devices.approval(key)
        undecided = approval is None or (approval is Approval.PENDING and signed)
        return undecided and self._context.settings.devices.approval == "signed"

    def _claimant(self, member: Member) -> _Claimant:
        """
        Those who share with a connection what an address may have: all of its address.  Who is
        not limited is a claimant by itself: many may be behind a balancer, or a local socket.
        """
        claimant = self._context.limits.claimant(member.peer.address)
        return member if claimant is None else claimant

    def _gave_way(self, pool: Pool, member: Member) -> None:
        self._context.metrics.pools.gave_way(pool, member.peer.address)

    def _left(self, member: Member) -> None:
        """Free the place of a connection; a guest of the same device takes it."""
        peer = member.peer
        seated = self._yielding.remove(member)
        self._unapproved.remove(member)
        guest = self._forget_guest(member)
        if guest is not None and not guest.counted:
            limited = peer.over_rate
            self.refused(CloseReason.RATE_LIMITED if limited else CloseReason.SERVER_FULL)
        if guest is not None or (seated and not peer.authenticated):
            self._count_attempt(peer)
        elif peer.authenticated and peer.key and peer.reason not in _REPLACED:
            claimants = [
                each
                for each in self._guests
                if each.peer.key == peer.key and not each.peer.over_rate
            ]
            if claimants:
                self._seat(claimants.pop())
            for claimant in claimants:
                self._turn_away(claimant)

    def _count_attempt(self, peer: Peer) -> None:
        """Count the attempt of a connection that ends unauthenticated."""
        address_limits = self._context.limits
        by_itself = peer.reason in _BY_ITSELF and peer.like_check
        if peer.reason in _OUR_OWN:
            if not peer.over_rate and self._has_claim(peer):
                address_limits.give_back(peer.address)
        elif by_itself and self._context.steady.exact() - peer.made_at < limits.HELD_SECONDS:
            # On a full server a check takes a phone's place, and so counts.
            full = self.taken + 1 >= self._context.settings.server.max_connections
            if not (full or peer.over_rate):
                address_limits.ended_unused(peer.address)
        else:
            address_limits.used(peer.address)

    # Guests, inside

    def _invite(self, member: Member, known: bool) -> None:
        """
        Let a connection in without a place.

        @param known: whether phones are known at its address.
        """
        self._guests[member] = _Visit(self._context.steady.exact() + NAME_SECONDS, False)
        claimant = self._claimant(member)
        self._ranks[-1 if known else 0].put(claimant, member)
        if member.peer.over_rate:
            self._over_rate.put(claimant, member)
            last = member.peer.number
            if self._over_rate.count_of(claimant) > GUESTS_OVER_RATE:
                ripe = partial(self._crowd_out, claimant, last, GUESTS_OVER_RATE)
                self._context.call_later(CROWDED_SECONDS, ripe)
                self._crowd_out(claimant, last, GUESTS_CROWDED)
        self._bound_guests()

    def _crowd_out(self, claimant: _Claimant, last: int, most: int) -> None:
        """
        Have guests of an address give way that came over its rate, until C{most} are left.

        @param last: the number of the last one of those that count.
        """
        guests = [each for each in self._over_rate.of(claimant) if each.peer.number <= last]
        guests.sort(key=lambda each: each.peer.key is not None)  # those without a name go first
        for first in guests[:-most]:
            with self._registry.guard(first):
                self._gave_way(Pool.GUESTS, first)
                first.close(CloseReason.GAVE_WAY)

    def _guest_named(self, member: Member, key: DeviceKey, known: bool) -> None:
        """A guest has named a device.  @raise WireError: it has no claim."""
        if self._older(member, key) is not None or (
            known and (not self._is_full or self._yielding)
        ):
            self._host(member, key)
        elif member.peer.over_rate and not known:
            raise WireError(ErrorCode.RATE_LIMITED, BRIEF, fatal=True)
        elif self._make_place():
            self._seat(member)
        else:
            raise WireError(ErrorCode.SERVER_FULL, FULL)

    def _host(self, member: Member, key: DeviceKey) -> None:
        """Give a connection without a place the time to prove that it is C{key}, which is known."""
        before = self._guests.get(member)
        until = self._context.steady.exact() + PROOF_SECONDS
        self._guests[member] = _Visit(until, before is None or before.counted)
        known = self._context.limits.expects(member.peer.address)
        self._ranks[0].remove(member)
        self._ranks[-1 if known else 1].put(key, member)
        self._bound_guests()

    def _forget_guest(self, member: Member) -> _Visit | None:
        """@return: the visit of a connection that was a guest."""
        for rank in self._ranks:
            rank.remove(member)
        self._over_rate.remove(member)
        return self._guests.pop(member, None)

    def _turn_away(self, guest: Member) -> None:
        if guest.peer.over_rate:
            guest.close(CloseReason.RATE_LIMITED, ErrorCode.RATE_LIMITED, BRIEF)
        else:
            guest.close(CloseReason.SERVER_FULL, ErrorCode.SERVER_FULL, FULL)

    # Those that close, inside

    @property
    def _max_guests(self) -> float:
        """Most strangers without a place, those that are closing included."""
        return max(8, self._context.settings.server.max_connections * CLOSING_SHARE)

    @property
    def _max_late(self) -> float:
        """Most phones that are closing."""
        return max(8, self._context.settings.server.max_connections * LATE_SHARE)

    @property
    def _too_many(self) -> bool:
        """True while there are too many strangers without a place."""
        return len(self._leaving) + len(self._guests) > self._max_guests

    def _bound_guests(self) -> None:
        """Have those that close, then guests give way, if there are too many."""
        while self._too_many:
            first = self._leaving.first()
            if first is not None:
                self._cut(first)
                continue
            first = next(rank.first() for rank in self._ranks if rank)
            assert first is not None
            self._gave_way(Pool.GUESTS, first)
            self._turn_away(first)

    def _cut(self, member: Member) -> None:
        """Have a closing connection give way to others."""
        self._gave_way(Pool.CLOSING, member)
        self._forget_closing(member)
        member.close(CloseReason.SHUTDOWN, cut=True)

    def _forget_closing(self, member: Member) -> None:
        self._leaving.remove(member)
        self._late.remove(member)
        self._late_of_device.remove(member)
