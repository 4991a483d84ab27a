"""
A migration to another server: phones are sent there, a few at a time.

Clients with capabilities connect to the new server before they leave this one, and confirm it.  Old
phones are closed last, once the port is shut: connecting fails, so they take the next server of
their list.
"""

from collections.abc import Callable
from math import inf
from typing import Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import CloseReason, DomaekaError
from domaeka.gateway.directory import Directory
from domaeka.gateway.joints import Member
from domaeka.gateway.peer import Peer
from domaeka.interfaces import DeviceKey
from domaeka.schema import Phase
from domaeka.wire import MigrationNotice, encode_frame

#: Period of a migration's steps, in seconds.
STEP_SECONDS: Final = 0.25
#: Time for a client to arrive, from the moment when it was to move, in seconds; a client that comes
#: back here within it has not arrived.
ARRIVAL_SECONDS: Final = 60.0
#: Part of the clients notified or sent on that may fail to arrive before the migration halts.
MISSING_PART: Final = 0.05
#: Most clients that are remembered as gone; beyond, none is sent on at once.
MAX_GONE: Final = 65_536
#: Validity of a notice beyond the time that it names, in seconds.
NOTICE_SECONDS: Final = 600.0
#: Old phones closed in one step: at most 200 a second.
CLOSED_A_STEP: Final = 50
#: Period of log lines on a migration, in seconds.
REPORT_SECONDS: Final = 5.0


class MigrationPlan(msgspec.Struct, frozen=True):
    """
    Plan of a migration.  It is written down, so that a server that is started again goes on.

    @ivar migrate_after: least delay of a client's move after its notice, in seconds; the most is
        twice it.
    @ivar spread: time over which the notices go out, in seconds.
    @ivar clients: number of clients at its beginning.
    """

    host: str
    port: int
    tls: bool
    migrate_after: float
    spread: float
    clients: int = 0


class MigrationReport(msgspec.Struct):
    """
    State of a migration.

    @ivar told: clients that got the notice.
    @ivar arrived: those that confirmed their arrival, and did not come back.
    @ivar missing: those that did not in time, or came back.
    @ivar sent_on: clients that came here meanwhile, and were sent on at once.
    @ivar remaining: connections that are still here.
    @ivar reason: the reason for a halt or a delay.
    """

    phase: Phase
    host: str
    port: int
    told: int = 0
    arrived: int = 0
    missing: int = 0
    sent_on: int = 0
    remaining: int = 0
    reason: str = ""

    @property
    def figures(self) -> str:
        """Its counts, in words."""
        return (
            f"{self.told} told, {self.arrived} arrived, {self.missing} missing, "
            f"{self.sent_on} sent on"
        )


class MigrationRefused(DomaekaError):
    """A migration cannot begin; the text gives the reason."""


class Migration:
    """
    A migration, which ends done, halted, called off or interrupted.

    Clients that do not arrive are served here.
    """

    log = Logger()

    def __init__(
        self,
        plan: MigrationPlan,
        directory: Directory,
        reactor: IReactorTime,
        probe: Callable[[], "Deferred[None]"],
        shut_port: Callable[[], object],
        ended: Callable[[MigrationReport], object],
        open_seconds: float = 0.0,
    ) -> None:
        """
        @param probe: fires if the other server answers; else fails.
        @param shut_port: shuts the phones' ports.
        @param ended: called once, at any end.
        @param open_seconds: least time for which the ports stay open, for clients that have yet to
            come back.
        """
        self.report = MigrationReport(Phase.MOVING, plan.host, plan.port)
        self._plan = plan
        self._context = directory.context
        self._registry = directory.registry
        self._directory = directory
        self._probe = probe
        self._probing: Deferred[None] | None = None
        self._shut_port = shut_port
        self._ended = ended
        now = self._context.steady.now
        self._open_until = now + open_seconds
        # The port is shut at the latest when all clients have had their time.
        self._empty_at = (
            self._open_until + plan.spread + 2 * plan.migrate_after + ARRIVAL_SECONDS + STEP_SECONDS
        )
        self._close_at = inf  # the time to close busy phones, too
        self._report_at = now + REPORT_SECONDS
        self._notified: set[int] = set()  # numbers of connections
        # Deadlines of arrival of notified clients, by the steady time.
        self._awaited: dict[DeviceKey, float] = {}
        # Clients that went: the time until which coming back means that they did not arrive, and
        # whether they confirmed their arrival.
        self._gone: dict[DeviceKey, tuple[float, bool]] = {}
        self._stayed: set[DeviceKey] = set()  # clients that did not arrive
        self._seen = 0  # clients at the beginning, and those that have come since
        self._allowance = 1.0  # clients that may be notified now
        self._steps = LoopingCall(self._step)
        self._steps.clock = reactor

    def start(self) -> "Deferred[None]":
        """Begin.  @return: fires when it has ended."""
        registry = self._registry
        self._directory.manager.follow(self)
        self._seen = sum(member.peer.is_client for member in registry)
        self.log.info(
            "migration to {host}:{port} begins: {capable} clients, {count} connections in all",
            host=self._plan.host,
            port=self._plan.port,
            capable=self._seen,
            count=self._directory.admission.taken,
        )
        self._context.events.changed("migration", self.report.phase)
        return self._steps.start(STEP_SECONDS).addCallbacks(self._finished, self._failed)

    def call_off(self) -> None:
        """Notify no further clients.  Those that have moved stay there."""
        self._end(Phase.CALLED_OFF)

    def interrupt(self) -> None:
        """End for a stop of the server, which goes on at its next start."""
        self._end(Phase.INTERRUPTED)

    # From conversations

    def client_came(self, member: Member) -> None:
        """
        Note that a peer has shaken hands.  A client is sent on at once, and closed once idle; if
        too many are, it gets its notice later.
        """
        if self.report.phase is not Phase.MOVING or not member.peer.is_client:
            return
        key = member.peer.key
        assert key is not None
        if self._awaited.pop(key, None) is not None:
            self.report.told -= 1  # it left before it was to go
        elif not self._has_come_back(member) and key not in self._stayed:
            self._seen += 1
        if self._may_notify(member) and self._allowance >= 1.0 and len(self._gone) < MAX_GONE:
            self._allowance -= 1.0
            self._send_on(member)
            self._gone[key] = self._context.steady.now + ARRIVAL_SECONDS, False

    def client_arrived(self, peer: Peer) -> None:
        """Note that a client has arrived at the new server."""
        key = peer.key
        if key is None:
            return
        if self._awaited.pop(key, None) is None:
            if key not in self._stayed:
                return
            self._stayed.remove(key)
            self.report.missing -= 1
        self.report.arrived += 1
        self._gone.pop(key, None)
        if len(self._gone) < MAX_GONE:
            self._gone[key] = self._context.steady.now + ARRIVAL_SECONDS, True

    # Steps

    def _step(self) -> None:
        now = self._context.steady.now
        report = self.report
        if report.phase is Phase.MOVING:
            self._forget_gone(now)
            self._notify_some(now)
            self._count_missing(now)
            if report.phase is Phase.MOVING and self._probing is None and self._may_empty(now):
                # Old phones are sent only to a server that still answers.
                self._probing = probing = self._probe()
                probing.addCallbacks(self._empty, self._cannot_empty)
        elif report.phase is Phase.EMPTYING:
            self._close_some(now)
        report.remaining = self._registry.connections
        if now >= self._report_at and self._steps.running:
            self._report_at = now + REPORT_SECONDS
            self.log.info(
                "migration {phase}: {figures}, {count} connections here",
                phase=report.phase,
                figures=report.figures,
                count=report.remaining,
            )

    @property
    def _rate(self) -> float:
        """Notices a second, so that all go out within the spread."""
        return self._clients / self._plan.spread

    @property
    def _clients(self) -> int:
        """Number of clients to move, those included that have yet to come back."""
        return max(1, self._plan.clients, self._seen)

    def _notify_some(self, now: float) -> None:
        """Send as many notices as the time that has passed allows."""
        self._allowance = min(self._allowance + self._rate * STEP_SECONDS, max(1.0, self._rate))
        registry = self._registry
        for member in registry:
            if self._allowance < 1.0:
                break
            with registry.guard(member):
                self._notify(member, now)

    def _notify(self, member: Member, now: float) -> None:
        """Send the notice to a client that may go."""
        if not self._may_notify(member) or self._has_come_back(member):
            return
        self._allowance -= 1.0
        after = self._plan.migrate_after
        # Each delay is drawn from a part of its own, so that clients arrive evenly.
        share = (self.report.told + self._context.random.random()) / self._clients
        after += share % 1.0 * after
        member.tell("serverMigration", self._notice(member, after))
        self._notified.add(member.peer.number)
        assert member.peer.key is not None
        self._awaited[member.peer.key] = now + after + ARRIVAL_SECONDS
        self.report.told += 1

    def _may_notify(self, member: Member) -> bool:
        """True for a client that may go, and has no notice yet."""
        return (
            member.peer.is_client
            and member.peer.number not in self._notified
            and member.peer.key not in self._stayed
            and member.peer.greeted  # else the reply to its handshake comes first
        )

    def _has_come_back(self, member: Member) -> bool:
        """Note a client that went and came back: it is served here."""
        key = member.peer.key
        assert key is not None
        until, arrived = self._gone.pop(key, (0.0, False))
        if self._context.steady.now >= until:
            return False
        self.report.arrived -= arrived
        self._note_missing(key)
        return True

    def _note_missing(self, key: DeviceKey) -> None:
        """Count a client that did not arrive; halt if there are too many."""
        self._stayed.add(key)
        report = self.report
        report.missing += 1
        # A single one of many clients is not too many, however few were notified yet.
        enough = min(self._clients, 1 / MISSING_PART)
        if report.missing > MISSING_PART * max(report.told + report.sent_on, enough):
            self._halt("too many did not arrive")

    def _forget_gone(self, now: float) -> None:
        """Forget clients that went long ago; the first in the table went first."""
        while self._gone and self._gone[key := next(iter(self._gone))][0] <= now:
            del self._gone[key]

    def _count_missing(self, now: float) -> None:
        """Count clients that should have arrived by now."""
        self._notified &= {
            member.peer.number for member in self._registry if not member.peer.closing
        }
        late = [key for key, by in self._awaited.items() if now >= by]
        for key in late:
            del self._awaited[key]
            device = self._registry.device(key)
            connection = None if device is None else device.connection
            # A client that has left silently may be there.
            if connection is not None and not connection.peer.closing:
                self._note_missing(key)

    def _may_empty(self, now: float) -> bool:
        """True when only old phones and clients that did not go in time are left."""
        return now >= self._empty_at or (
            now >= self._open_until
            and not any(
                member.peer.is_client and member.peer.key not in self._stayed
                for member in self._registry
            )
        )

    def _empty(self, _: None) -> None:
        """Shut the port, for the other server answers; old phones go there once they are closed."""
        self._probing = None
        self.report.phase = Phase.EMPTYING
        settings = self._context.settings
        self._close_at = self._context.steady.now + settings.shutdown.drain_timeout
        self._context.events.changed("migration", self.report.phase)
        self._shut_port()

    def _cannot_empty(self, failure: Failure) -> None:
        """Halt, unless the probe was cancelled by the end."""
        self._probing = None
        if self.report.phase is Phase.MOVING:
            self._halt(failure.getErrorMessage())

    def _close_some(self, now: float) -> None:
        """Close idle phones, which find the port shut."""
        closed = 0
        for member in self._registry:
            if closed == CLOSED_A_STEP:
                break
            with self._registry.guard(member):
                closed += self._close(member, now)
        if not self._registry.connections:
            self._end(Phase.DONE)

    def _close(self, member: Member, now: float) -> bool:
        """Close a phone that is idle or late.  @return: whether it was closed."""
        if self._may_notify(member):
            self._send_on(member)  # the last to come
        if member.peer.closing:
            if now >= self._close_at + self._context.settings.socket.linger_seconds:
                member.close(CloseReason.MIGRATED, cut=True)  # it would wait for late lines
            return False
        if not (member.is_idle or now >= self._close_at):
            return False
        member.close(CloseReason.MIGRATED)
        return True

    def _send_on(self, member: Member) -> None:
        """Send a client on at once."""
        self.report.sent_on += 1
        self._notified.add(member.peer.number)
        member.tell("serverMigration", self._notice(member, 0.0))
        member.close(CloseReason.MIGRATED, within=self._context.settings.shutdown.drain_timeout)

    def _notice(self, member: Member, migrate_after: float) -> bytes:
        plan = self._plan
        now = self._context.wall()
        expires = int((now + migrate_after + NOTICE_SECONDS) * 1000)
        notice = MigrationNotice(plan.host, plan.port, round(migrate_after, 3), plan.tls, expires)
        notice.signature = self._context.signer.sign(notice.signed_text, member.peer.key)
        return encode_frame("serverMigration", notice)

    def _halt(self, reason: str) -> None:
        self.report.reason = reason
        self._end(Phase.HALTED)

    def _end(self, phase: Phase) -> None:
        self.report.phase = phase
        self.report.remaining = self._registry.connections
        self._allowance = 0.0
        if self._probing is not None:
            self._probing.cancel()
        if self._steps.running:
            self._steps.stop()

    def _finished(self, _: object) -> None:
        self._directory.manager.follow(None)
        report = self.report
        self._context.events.changed("migration", report.phase)
        self.log.info(
            "migration to {host}:{port} {phase}{cause}: {figures}",
            host=report.host,
            port=report.port,
            phase=report.phase,
            cause=f" ({report.reason})" if report.reason else "",
            figures=report.figures,
        )
        self._ended(report)

    def _failed(self, failure: Failure) -> None:
        self.log.failure("the migration has failed", failure)
        self._halt("a mistake of our own")
        self._finished(None)
