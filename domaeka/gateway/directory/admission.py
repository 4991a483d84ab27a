"""Admission: access, places, and the peer that gives way when the server is full."""

from collections.abc import Iterator
from typing import Final

from domaeka.errors import CloseReason, ErrorCode, WireError
from domaeka.gateway.context import Context
from domaeka.gateway.directory.registry import Registry
from domaeka.gateway.joints import CLOSING_SHARE, LATE_SHARE, Member
from domaeka.gateway.peer import Peer
from domaeka.interfaces import DeviceKey
from domaeka.policies import limits
from domaeka.pools import Pool

#: Time for a peer that finds the server full to name a device that is connected, and then to prove
#: that name, in seconds: a round trip each, on a poor line.
NAME_SECONDS: Final = 1.0
PROOF_SECONDS: Final = 3.0
#: Error text for a peer without a place.
FULL: Final = "the server is full"

#: Close reasons of peers that did nothing wrong, and had no time to prove themselves.
_OUR_OWN: Final = (CloseReason.SHUTDOWN, CloseReason.MIGRATED, CloseReason.SERVER_FULL)
#: Close reasons of health checks; the last one follows a long request.
_BY_ITSELF: Final = (
    CloseReason.PEER_CLOSED,
    CloseReason.CONNECTION_LOST,
    CloseReason.TOO_MANY_ERRORS,
)


class Admission:
    """
    Places for connections.

    Connections that have not authenticated are strangers; the oldest gives way when there is no
    place.  If none can, the new connection is a guest for a moment: it may be a phone whose old
    connection is broken, and still here.
    """

    def __init__(self, context: Context, registry: Registry) -> None:
        self._context = context
        self._registry = registry
        #: Connections that have not authenticated, the oldest first.
        self._strangers: dict[int, Member] = {}
        #: Connections without a place, and the deadline to claim that of their device.
        self._guests: dict[Member, float] = {}
        self._closing = 0
        #: Those of them that have authenticated, and may have to wait for late lines, the first to
        #: close first.
        self._late: dict[int, Member] = {}

    # Access rules

    def refusal(self, address: str) -> CloseReason | None:
        admission = self._context.limits.admit(address)
        if admission is limits.Admission.ADMITTED:
            return None
        limited = admission is limits.Admission.RATE_LIMITED
        reason = CloseReason.RATE_LIMITED if limited else CloseReason.BANNED
        self.refused(reason)
        return reason

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
        return self.taken - len(self._strangers)

    def admit(self, member: Member) -> None:
        """See L{Membership<domaeka.gateway.joints.Membership>}; likewise C{named}, C{closing}."""
        found = self._make_place()
        self._registry.add(member)
        if found:
            self._seat(member)
            return
        self._guests[member] = self._context.steady.exact() + NAME_SECONDS
        if self._closing - len(self._late) + len(self._guests) > self._max_closing:
            self._turn_away(member)

    def named(self, member: Member, key: DeviceKey) -> None:
        if member not in self._guests:
            return
        device = self._registry.device(key)
        connection = None if device is None else device.connection
        if connection is not None and not connection.peer.closing:
            self._guests[member] = self._context.steady.exact() + PROOF_SECONDS
        elif self._make_place():
            self._seat(member)
        else:
            raise WireError(ErrorCode.SERVER_FULL, FULL)

    def proven(self, member: Member) -> None:
        """Note that a connection has authenticated: it never gives way."""
        if member in self._guests:
            self._seat(member)
        self._strangers.pop(member.peer.number, None)

    def closing(self, member: Member) -> bool:
        self._closing += 1
        self._left(member)
        if not member.peer.authenticated:
            return self._closing - len(self._late) <= self._max_closing
        self._late[member.peer.number] = member
        if len(self._late) > max(8, self._context.settings.server.max_connections * LATE_SHARE):
            self._late.pop(next(iter(self._late))).close(CloseReason.SHUTDOWN, cut=True)
        return True

    def remove(self, member: Member) -> None:
        """Note that a connection has ended."""
        if self._registry.discard(member):
            if member.peer.closing:
                self._closing -= 1
                self._late.pop(member.peer.number, None)
            else:
                self._left(member)

    # Time

    def sweep(self, now: float) -> None:
        """Turn away guests that are past their deadline."""
        for guest in [guest for guest, until in self._guests.items() if now >= until]:
            with self._registry.guard(guest):
                self._turn_away(guest)

    def strangers(self) -> Iterator[Member]:
        """A copy of the connections that have a place and have not authenticated."""
        return iter(list(self._strangers.values()))

    def age(self, peer: Peer) -> float:
        """Age of a connection, in seconds."""
        return self._context.steady.exact() - peer.made_at

    # Inside

    @property
    def _max_closing(self) -> float:
        """Most strangers without a place, those that are closing included."""
        return max(8, self._context.settings.server.max_connections * CLOSING_SHARE)

    def _make_place(self) -> bool:
        """Have the oldest stranger give way, if need be.  @return: whether there is a place."""
        if self.taken < self._context.settings.server.max_connections:
            return True
        oldest = next(iter(self._strangers.values()), None)
        if oldest is None:
            return False
        self._context.metrics.pools.gave_way(Pool.PLACES, oldest.peer.address)
        oldest.close(CloseReason.GAVE_WAY)
        return True

    def _seat(self, member: Member) -> None:
        """Give a place to a stranger."""
        self._guests.pop(member, None)
        self._strangers[member.peer.number] = member
        self._context.metrics.attempts.labels("accepted").inc()

    def _turn_away(self, guest: Member) -> None:
        guest.close(CloseReason.SERVER_FULL, ErrorCode.SERVER_FULL, FULL)

    def _left(self, member: Member) -> None:
        """Free the place of a connection; a guest of the same device takes it."""
        peer = member.peer
        stranger = self._strangers.pop(peer.number, None)
        guest = member in self._guests
        if guest:
            del self._guests[member]
            self.refused(CloseReason.SERVER_FULL)
        if guest or stranger is not None:
            self._count_attempt(peer)
        elif peer.authenticated and peer.reason is not CloseReason.TAKEN_OVER:
            claimants = [each for each in self._guests if each.peer.key == peer.key]
            if claimants:
                self._seat(claimants.pop())
            for claimant in claimants:
                self._turn_away(claimant)

    def _count_attempt(self, peer: Peer) -> None:
        """Count the attempt of a connection that ends unauthenticated."""
        address_limits = self._context.limits
        if peer.reason in _OUR_OWN:
            address_limits.give_back(peer.address)
        elif peer.reason in _BY_ITSELF and peer.like_check and self.age(peer) < limits.HELD_SECONDS:
            # On a full server a check takes a phone's place, and so counts.
            if self.taken + 1 < self._context.settings.server.max_connections:
                address_limits.ended_unused(peer.address)
        else:
            address_limits.used(peer.address)
