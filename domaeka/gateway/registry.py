"""
Who is connected: connections, the devices behind them, and the one sweep over both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from domaeka.errors import CloseReason, ErrorCode, WireError
from domaeka.gateway.device import Device
from domaeka.gateway.history import ClosedConnection, History, how_it_went, log_life
from domaeka.gateway.intake import Intake
from domaeka.gateway.parts import Parts
from domaeka.gateway.turns import Turns
from domaeka.interfaces import Approval, DeviceFacts, DeviceKey
from domaeka.policies.limits import Admission, Ban
from domaeka.policies.liveness import Liveness, SteadyTime
from domaeka.policies.mailbox import MailboxState
from domaeka.policies.outbox import Budget

if TYPE_CHECKING:
    from domaeka.gateway.migration import Migration
    from domaeka.gateway.session import Session

_T = TypeVar("_T")

#: How often the sweep looks at every connection, in seconds: how late a deadline may be.
SWEEP_SECONDS = 1.0
#: A sweep that is this late shows in the state of health, in seconds.
LATE_SECONDS = 10.0
#: How often signatures that are no longer valid are forgotten, in seconds.
FORGET_SECONDS = 60.0
#: How often attempts and wrong signatures are judged, in seconds.  Source: docs/settings.md,
#: C{limits.ban_after}.
LIMITS_SECONDS = 10.0
#: Strangers that close are cut off at once beyond this share of the limit: they hold open files.
CLOSING_SHARE = 0.5
#: How long one that finds the server full of phones has to name a device that is connected, and
#: then to prove that it is that, in seconds: a round trip each, on a poor line.
NAME_SECONDS = 1.0
PROOF_SECONDS = 3.0
#: A device whose connections replace each other this often in a minute is two phones.
TAKEOVERS_SUSPECT = 5
#: Devices that are gone and known still: so many for each connection that there may be, and so
#: many at least.
AWAY_SHARE = 4
LEAST_AWAY = 1000


#: What one is told for which there is no place.
FULL = "the server is full"


#: Why connections are closed that have done nothing wrong, and had no time to prove themselves.
_OUR_OWN = (CloseReason.SHUTDOWN, CloseReason.MIGRATED, CloseReason.SERVER_FULL)


class Watcher(Protocol):
    """Who is told of what happens.  Nothing of it may raise."""

    def connected(self, session: Session) -> None:
        """A connection has authenticated."""

    def graded(self, session: Session, liveness: Liveness) -> None:
        """The grade of a connection that has authenticated is another one."""

    def closed(self, closed: ClosedConnection) -> None:
        """A connection that had authenticated has ended."""

    def banned(self, ban: Ban) -> None:
        """A ban is in force."""

    def changed(self, what: str, state: str) -> None:
        """A drain, or a migration, has come to a new state, in words."""


class Registry:
    """
    Who is connected.

    @ivar watchers: told of what happens; may be changed at any time.
    @ivar history: the connections that have ended.
    @ivar turns: what is read of phones, and when.
    @ivar strangers_turns: the same of those that have not authenticated.
    """

    log = Logger()

    def __init__(self, parts: Parts, reactor: IReactorTime) -> None:
        """
        @param parts: what connections use.
        @param reactor: what the sweep is scheduled with.
        """
        self.parts = parts
        self.intake = Intake(self)
        self.budget = Budget(parts.settings.queue.total_bytes)
        self.steady = SteadyTime(SWEEP_SECONDS, parts.seconds())
        self.draining = False
        self.migration: Migration | None = None
        #: Whether one runs, is tried, or waits to go on: then no server may move its phones here.
        self.moving = False
        self.watchers: list[Watcher] = []
        self.history = History()
        self.turns = Turns(self.call_soon, parts.seconds)
        self.strangers_turns = Turns(self.call_soon, parts.seconds)
        self._devices: dict[DeviceKey, Device] = {}
        self._sessions: dict[int, Session] = {}
        #: Those that have not authenticated, the oldest first.
        self._strangers: dict[int, Session] = {}
        #: Those for which there was no place, and until when they may claim that of their device.
        self._guests: dict[Session, float] = {}
        self._closing = 0
        self._last_number = 0
        self._epoch = f"{parts.random.getrandbits(64):016x}"
        self._last_epoch = 0
        self._accepted_keys = parts.verifier.accepted_keys()
        self._forget_due = FORGET_SECONDS
        self._limits_due = LIMITS_SECONDS
        self._reactor = reactor
        self._swept_at = parts.seconds()
        self._sweep_call = LoopingCall(self._sweep)
        self._sweep_call.clock = reactor

    def start(self) -> None:
        """Begin to sweep."""
        self._swept_at = self.parts.seconds()
        self._sweep_call.start(SWEEP_SECONDS, now=False).addErrback(
            lambda failure: self.log.failure("the sweep has ended", failure)
        )

    def stop(self) -> None:
        """Sweep no more."""
        if self._sweep_call.running:
            self._sweep_call.stop()

    # Connections

    def __len__(self) -> int:
        """How many connections there are that have a place, and are not closing."""
        return len(self._sessions) - self._closing - len(self._guests)

    @property
    def phones(self) -> int:
        """How many of those have authenticated."""
        return len(self) - len(self._strangers)

    @property
    def connections(self) -> int:
        """How many connections there are, those that are closing with them."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        """The connections as they are now."""
        return iter(list(self._sessions.values()))

    def device(self, key: DeviceKey) -> Device | None:
        """A device that is connected, or for which something waits."""
        return self._devices.get(key)

    def devices(self) -> list[Device]:
        """All devices that are connected, or for which something waits."""
        return list(self._devices.values())

    def reach(self, key: DeviceKey) -> Device:
        """A device that is known to the server, so that something can wait for it."""
        device = self._devices.get(key)
        if device is None:
            device = self._devices[key] = Device(key, self)
        return device

    def tell_change(self, what: str, state: str) -> None:
        """A drain, or a migration, has come to a new state."""
        for watcher in self.watchers:
            watcher.changed(what, state)

    def next_number(self) -> int:
        """A number that no other connection has."""
        self._last_number += 1
        return self._last_number

    def new_liveness(self) -> Liveness:
        """For a connection of which nothing is known."""
        return Liveness(self.parts.settings.ping, self.steady.now, self.parts.random)

    def numbering(self, session: Session) -> str:
        """The epoch of a connection's numbers, even while nobody knows if it is who it says."""
        device = None if session.key is None else self._devices.get(session.key)
        return f"{self._epoch}.{session.number}" if device is None else device.epoch

    def next_epoch(self) -> str:
        """A name for the numbering of an outbox that is new."""
        self._last_epoch += 1
        return f"{self._epoch}-{self._last_epoch}"

    @property
    def exact_now(self) -> float:
        """The steady time, not only as of the last sweep."""
        return self.steady.between(self.parts.seconds())

    def settings_changed(self) -> None:
        """Other settings are in force: for the connections that are open, too."""
        self._keys_changed()
        for session in self:
            if self.parts.limits.denies(session.address):
                self._shut_out(session, "this address is denied")
            else:
                self.guarded(session, self._apply_settings, session)

    def _apply_settings(self, session: Session) -> None:
        session.settings_changed()
        if session.device is not None and not session.device.approved:
            self._approve(session)

    def _shut_out(self, session: Session, why: str = "this address is banned") -> None:
        self.guarded(session, session.close, CloseReason.BANNED, ErrorCode.BANNED, why)

    def _keys_changed(self) -> None:
        """Who proved itself by a key that is accepted no more has to do so again."""
        self._accepted_keys = accepted = self.parts.verifier.accepted_keys()
        count = 0
        for session in self:
            if session.authenticated and not session.closing and session.key_id not in accepted:
                text = "the key is accepted no more: prove yourself again"
                reason = CloseReason.AUTHENTICATION_FAILED
                self.guarded(session, session.close, reason, ErrorCode.AUTH_FAILED, text)
                count += 1
        if count:
            self.log.info("a key has ended: {count} connections with it are closed", count=count)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call C{function} in another turn of the reactor."""
        self._reactor.callLater(0, function)  # type: ignore[arg-type]  # IReactorTime is mistyped

    def refusal(self, address: str) -> CloseReason | None:
        """Why a peer at C{address} may not connect, which is counted; L{None}: it may."""
        admission = self.parts.limits.admit(address)
        if admission is Admission.ADMITTED:
            return None
        limited = admission is Admission.RATE_LIMITED
        reason = CloseReason.RATE_LIMITED if limited else CloseReason.BANNED
        self.refused(reason)
        return reason

    def refused(self, reason: CloseReason) -> None:
        """Somebody is turned away."""
        metrics = self.parts.metrics
        metrics.attempts.labels("refused").inc()
        metrics.refusals.labels(reason).inc()

    def admit(self, session: Session) -> None:
        """
        A connection was made: find it a place.  Where there is none it is a guest for a moment:
        it may be a phone whose line has broken, which nobody here has noticed yet.
        """
        found = self._make_place()
        self._sessions[session.number] = session
        if found:
            self._seat(session)
            return
        self._guests[session] = self.exact_now + NAME_SECONDS
        if self._closing + len(self._guests) > self._max_closing:
            self._turn_away(session)

    def named(self, session: Session, key: DeviceKey) -> None:
        """
        A connection says that it is C{key}.

        @raise WireError: there is no place for it, nor has C{key} one that it could take.
        """
        if session not in self._guests:
            return
        device = self._devices.get(key)
        if device is not None and device.session is not None and not device.session.closing:
            self._guests[session] = self.exact_now + PROOF_SECONDS
        elif self._make_place():
            self._seat(session)
        else:
            raise WireError(ErrorCode.SERVER_FULL, FULL)

    @property
    def _max_closing(self) -> float:
        """How many without a place may be connected, those that close among them."""
        return max(8, self.parts.settings.server.max_connections * CLOSING_SHARE)

    def _make_place(self) -> bool:
        """@return: whether there is a place; the oldest stranger gives way for it."""
        if len(self) < self.parts.settings.server.max_connections:
            return True
        oldest = next(iter(self._strangers.values()), None)
        if oldest is None:
            return False
        oldest.close(CloseReason.GAVE_WAY)
        return True

    def _seat(self, session: Session) -> None:
        """Give a place to a connection that has proven nothing."""
        self._guests.pop(session, None)
        self._strangers[session.number] = session
        self.parts.metrics.attempts.labels("accepted").inc()

    def _turn_away(self, guest: Session) -> None:
        guest.close(CloseReason.SERVER_FULL, ErrorCode.SERVER_FULL, FULL)

    def _left(self, session: Session) -> None:
        """One has no place any more; it is for one that claims it, unless it is taken."""
        stranger = self._strangers.pop(session.number, None)
        guest = session in self._guests
        if guest:
            del self._guests[session]
            self.refused(CloseReason.SERVER_FULL)
        if guest or stranger is not None:
            if session.reason in _OUR_OWN:
                self.parts.limits.give_back(session.address)
        elif session.device is not None and session.reason is not CloseReason.TAKEN_OVER:
            claimants = [each for each in self._guests if each.key == session.key]
            if claimants:
                self._seat(claimants.pop())
            for claimant in claimants:
                self._turn_away(claimant)

    def closing(self, session: Session) -> bool:
        """
        A connection begins to close.

        @return: whether it may take its time.
        """
        self._closing += 1
        self._left(session)
        return session.authenticated or self._closing <= self._max_closing

    def remove(self, session: Session) -> None:
        """A connection has ended."""
        if self._sessions.pop(session.number, None) is not None:
            if session.closing:
                self._closing -= 1
            else:
                self._left(session)
        device = session.device
        if device is not None and device.session is session:
            device.disconnected()
        log_life(session)
        # Of those that only said a name there may be any number.
        if device is not None and session.key is not None:
            closed = how_it_went(session, session.key, self.parts.seconds())
            self.history.add(closed)
            for watcher in self.watchers:
                watcher.closed(closed)

    def attach(self, session: Session, key: DeviceKey, facts: DeviceFacts) -> Device:
        """
        A connection has authenticated: it is its device's from now on.

        An older connection of the same device is told and closed.
        """
        device = self.reach(key)
        if session in self._guests:
            self._seat(session)
        self._strangers.pop(session.number, None)
        if "ack" in session.capabilities and not device.outbox.epoch:
            device.outbox.epoch = f"{self._epoch}.{session.number}"  # as it was told
        self._ask_approval(device, facts, session.signed)
        older = device.session
        if older is not None and older is not session:
            if not older.closing:
                self._note_takeover(device)
            older.replaced()
        device.attached(session)
        for watcher in self.watchers:
            watcher.connected(session)
        return device

    def keep_place(self, key: DeviceKey) -> None:
        """
        Somebody who has signed nothing says to be C{key}.

        @raise WireError: a connection that has signed is there.
        """
        device = self._devices.get(key)
        older = None if device is None else device.session
        if older is not None and older.signed and not older.closing:
            raise WireError(ErrorCode.AUTH_REQUIRED, "this device is connected, and has signed")

    def now_signed(self, session: Session) -> None:
        """A connection whose word was taken for it has signed."""
        session.signed = True
        assert session.key is not None
        session.key_id = self.parts.verifier.key_id(session.key, True)
        self._approve(session)

    def _approve(self, session: Session) -> None:
        """Ask anew what the device of a connection is."""
        assert session.device is not None and session.facts is not None
        self._ask_approval(session.device, session.facts, session.signed)

    def _ask_approval(self, device: Device, facts: DeviceFacts, signed: bool) -> None:
        devices = self.parts.devices
        if signed:
            device.approved = devices.enter(device.key, facts) is Approval.APPROVED
        else:  # nobody knows who it is: it is served where anybody is, and entered nowhere
            approval = devices.approval(device.key)
            anybody = approval is None and self.parts.settings.devices.approval == "signed"
            device.approved = anybody or approval is Approval.APPROVED

    def _note_takeover(self, device: Device) -> None:
        """Two phones under one name throw each other out for ever: say so, for as long."""
        now = self.steady.now
        device.takeovers = (*(time for time in device.takeovers if now - time < 60), now)
        if len(device.takeovers) == TAKEOVERS_SUSPECT:
            device.takeovers = ()
            self.parts.metrics.errors.labels("duplicate device").inc()
            self.log.warn(
                "{key}: {count} connections took each other's place within a minute: are there "
                "two phones of this name?",
                key=device.key,
                count=TAKEOVERS_SUSPECT,
            )

    def approval_changed(self, key: DeviceKey, approval: Approval) -> None:
        """An operator decided: in force on the open connection, and for what waits, at once."""
        device = self._devices.get(key)
        if device is not None:
            device.approved = approval is Approval.APPROVED
            if approval not in (Approval.APPROVED, Approval.PENDING):
                device.outbox.clear()

    def ban_made(self, ban: Ban) -> None:
        """An operator's ban is in force: end the connections of everybody in the network."""
        for watcher in self.watchers:
            watcher.banned(ban)
        network = ip_network(ban.network)
        for session in self:
            with contextlib.suppress(ValueError):  # a local socket has no such address
                if ip_address(session.address) in network:
                    self._shut_out(session)

    # Over a stop

    def mail(self) -> Iterator[tuple[DeviceKey, bytes]]:
        """What is to be kept of each device over a stop."""
        for device in self._devices.values():
            state = device.mail()
            if state is not None:
                yield device.key, msgspec.msgpack.encode(state)

    def load_mail(self, kept: Iterable[tuple[DeviceKey, bytes]]) -> None:
        """
        Take over what L{mail} gave before the stop.  Where the store was late, devices may be
        here already.
        """
        for key, data in kept:
            try:
                state = msgspec.msgpack.decode(data, type=MailboxState)
            except msgspec.DecodeError as error:
                self.log.error("{key}: what waited cannot be read: {error}", key=key, error=error)
                continue
            if self.reach(key).restore(state):
                self.log.warn(
                    "{key}: {count} messages that waited over the stop come late: those that had "
                    "been sent and were not acknowledged may arrive twice",
                    key=key,
                    count=len(state.messages),
                )

    # Time

    def _sweep(self) -> None:
        judging = self.steady.advance(self.parts.seconds())
        now = self.steady.now
        for guest in [guest for guest, until in self._guests.items() if now >= until]:
            self.guarded(guest, self._turn_away, guest)
        for session in list(self._sessions.values()):
            if session.due <= now:
                self.guarded(session, session.attend, now, judging)
        if self.parts.verifier.accepted_keys() != self._accepted_keys:
            self._guarded(self._keys_changed)
        wall = self.parts.seconds()
        away: list[Device] = []
        for device in list(self._devices.values()):
            if device.outbox.touched:  # most are idle
                self._guarded(device.expire, wall, now)
            if device.session is None and device.owes_nothing:
                away.append(device)
        self._forget(away, now)
        metrics = self.parts.metrics
        metrics.expired_messages.value = self.budget.expired
        metrics.dropped_messages.value = self.budget.dropped
        metrics.forgotten_messages.value = self.budget.forgotten
        metrics.bad_acks.value = self.budget.bad_acks
        if now >= self._limits_due:
            judged_at = self._limits_due - LIMITS_SECONDS
            self._limits_due = now + LIMITS_SECONDS
            self._guarded(self._sweep_limits, judged_at)
        if now >= self._forget_due:
            self._forget_due = now + FORGET_SECONDS
            self._in_turns(self.parts.verifier.signatures.sweep())
        self._swept_at = self.parts.seconds()

    def _forget(self, away: list[Device], now: float) -> None:
        """Forget those that have been gone for long; of too many, those gone the longest."""
        most = max(LEAST_AWAY, self.parts.settings.server.max_connections * AWAY_SHARE)
        if len(away) > most:  # as where somebody with the key makes names up
            away.sort(key=lambda device: device.kept_until)
        for number, device in enumerate(away, 1):
            if now >= device.kept_until or number <= len(away) - most:
                del self._devices[device.key]

    def guarded(self, session: Session, part: Callable[..., _T], *args: object) -> _T | None:
        """
        Do something with one connection of many: what goes wrong with it costs it, not the others.

        @return: what C{part} returned; L{None} where that went wrong.
        """
        try:
            return part(*args)
        except Exception:
            self.log.failure("{session}: our own mistake", session=session)
        try:
            session.fail()
        except Exception:
            self.log.failure("{session}: cannot be closed either", session=session)
        return None

    def _guarded(self, part: Callable[..., object], *args: object) -> None:
        """Do a part of the sweep: what goes wrong in it must not end the rest."""
        try:
            part(*args)
        except Exception:
            self.log.failure("{part}: our own mistake", part=part)
            self.parts.metrics.errors.labels(ErrorCode.INTERNAL).inc()

    def health(self) -> str | None:
        """What is wrong with the sweep; L{None}: nothing."""
        if not self._sweep_call.running:
            return "it does not run"
        late = self.parts.seconds() - self._swept_at
        return None if late < LATE_SECONDS else f"it last ran {late:.0f} s ago"

    def _sweep_limits(self, judged_at: float) -> None:
        """Forget what was long ago of addresses; ban those that have earned it."""
        for session in self._sessions.values():
            liveness = session.liveness
            if session.authenticated and liveness and liveness.last_heard >= judged_at:
                self.parts.limits.verified(session.address)
        self._in_turns(self.parts.limits.sweep(), self._judge)

    def _in_turns(self, steps: Iterator[None], then: Callable[[], object] = lambda: None) -> None:
        """
        Take a step in each turn of the reactor, so that phones need not wait.

        @param then: what comes behind the last one.
        """

        def step() -> None:
            for _ in steps:
                self.call_soon(lambda: self._guarded(step))
                return
            then()

        self._guarded(step)

    def _judge(self) -> None:
        """Ban those who have earned it: some at once, so that phones need not wait."""
        limits = self.parts.limits
        bans = limits.judge()
        if not bans:
            return
        self.log.warn(
            "banned {networks}: {reason}",
            networks=", ".join(ban.network for ban in bans),
            reason=bans[0].reason,
        )
        for ban in bans:
            for watcher in self.watchers:
                watcher.banned(ban)
        self.parts.store_bans(bans)
        for stranger in list(self._strangers.values()):
            if limits.bars(stranger.address):
                self._shut_out(stranger)
        self.call_soon(lambda: self._guarded(self._judge))
