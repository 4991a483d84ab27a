"""
A move to another server: phones are sent there, a few at a time.

Clients with capabilities connect to the new place before they leave this one, and say so.  Old
phones are closed last, once the port is shut: connecting fails, so they take the next server of
their list.
"""

from collections.abc import Callable
from enum import StrEnum
from math import inf
from typing import Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import CloseReason, DomaekaError
from domaeka.gateway.registry import Registry
from domaeka.gateway.session import Session
from domaeka.interfaces import DeviceKey
from domaeka.messages import encode_migration

#: How often a migration looks around, in seconds.
STEP_SECONDS: Final = 0.25
#: How long a client may take to arrive, counted from when it was to move, in seconds: one that
#: comes back here within it has not.
ARRIVAL_SECONDS: Final = 60.0
#: Which part of those told or sent on may fail to arrive before the migration halts.
MISSING_PART: Final = 0.05
#: Most clients of which is remembered that they have gone: no other is sent on at once.
MAX_GONE: Final = 65_536
#: How long a notice may be followed, in seconds, beyond the time it names.
NOTICE_SECONDS: Final = 600.0
#: Old phones closed in one step: at most 200 a second.
CLOSED_A_STEP: Final = 50
#: How often the log says how far a migration has come, in seconds.
REPORT_SECONDS: Final = 5.0


class Phase(StrEnum):
    """How far a migration has come."""

    MOVING = "moving"  # clients are told, and arrive
    EMPTYING = "emptying"  # the port is shut; old phones are closed
    DONE = "done"
    HALTED = "halted"  # they do not arrive: nobody else is told
    CALLED_OFF = "called off"
    # By a stop: it goes on at the next start, once the other server answers.
    INTERRUPTED = "interrupted"


class MigrationPlan(msgspec.Struct, frozen=True):
    """
    Where to, and how.  It is written down, so that a server that is started again goes on.

    @ivar migrate_after: the earliest that a client is told to move, in seconds; the latest is
        twice it.
    @ivar spread: over how many seconds the notices go out.
    @ivar clients: how many there were at its beginning.
    """

    host: str
    port: int
    tls: bool
    migrate_after: float
    spread: float
    clients: int = 0


class MigrationReport(msgspec.Struct):
    """
    How it goes.

    @ivar told: clients that were sent the notice.
    @ivar arrived: those that have said they were greeted there, and did not come back.
    @ivar missing: those that have not, in their time, or came back.
    @ivar sent_on: clients that came here meanwhile, and were sent on at once.
    @ivar remaining: connections that are still here.
    @ivar reason: why it has halted, or cannot go on yet.
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
        """What has come of it, in words."""
        return (
            f"{self.told} told, {self.arrived} arrived, {self.missing} missing, "
            f"{self.sent_on} sent on"
        )


class MigrationRefused(DomaekaError):
    """A migration cannot begin; the text says why."""


class Migration:
    """
    Move every phone to another server.

    Clients that do not arrive are served here.  It ends by itself: done, halted, or called off.
    """

    log = Logger()

    def __init__(
        self,
        plan: MigrationPlan,
        registry: Registry,
        reactor: IReactorTime,
        probe: Callable[[], "Deferred[None]"],
        shut_port: Callable[[], object],
        ended: Callable[[MigrationReport], object],
        open_seconds: float = 0.0,
    ) -> None:
        """
        @param probe: whether the other server answers; fails where it does not.
        @param shut_port: shuts the phones' ports.
        @param ended: told once, whatever the end.
        @param open_seconds: how long the ports stay open at least, for clients that are yet to
            come back.
        """
        self.report = MigrationReport(Phase.MOVING, plan.host, plan.port)
        self._plan = plan
        self._registry = registry
        self._probe = probe
        self._probing: Deferred[None] | None = None
        self._shut_port = shut_port
        self._ended = ended
        now = registry.steady.now
        self._open_until = now + open_seconds
        # When the port is shut, whoever is here: all that could be told have had their time.
        self._empty_at = (
            self._open_until + plan.spread + 2 * plan.migrate_after + ARRIVAL_SECONDS + STEP_SECONDS
        )
        self._close_at = inf  # whoever is still here
        self._report_at = now + REPORT_SECONDS
        self._told: set[int] = set()  # numbers of connections that know where to go
        # By device: when those told should have arrived, by the steady time; until when those
        # that went have not arrived if they come back, and whether they said that they had; and
        # those that did not arrive.
        self._awaited: dict[DeviceKey, float] = {}
        self._gone: dict[DeviceKey, tuple[float, bool]] = {}
        self._stayed: set[DeviceKey] = set()
        self._seen = 0  # clients that there were at the beginning, and that have come since
        self._owed = 1.0  # clients that may be told now
        self._steps = LoopingCall(self._step)
        self._steps.clock = reactor

    def start(self) -> "Deferred[None]":
        """Begin.  @return: fires when it has ended."""
        registry = self._registry
        registry.migration = self
        self._seen = sum(map(is_client, registry))
        self.log.info(
            "migration to {host}:{port} begins: {capable} clients, {count} connections in all",
            host=self._plan.host,
            port=self._plan.port,
            capable=self._seen,
            count=len(registry),
        )
        registry.tell_change("migration", self.report.phase)
        return self._steps.start(STEP_SECONDS).addCallbacks(self._finished, self._failed)

    def call_off(self) -> None:
        """Tell nobody else.  Those that have moved stay there."""
        self._end(Phase.CALLED_OFF)

    def interrupt(self) -> None:
        """The server stops: the rest is for its next start."""
        self._end(Phase.INTERRUPTED)

    # What sessions say

    def client_came(self, session: Session) -> None:
        """
        Somebody has shaken hands.  A client is sent on at once if that does not make too many,
        and closed as soon as it has what it is owed here; else it is told in its turn.
        """
        if self.report.phase is not Phase.MOVING or not is_client(session):
            return
        key = session.key
        assert key is not None
        if self._awaited.pop(key, None) is not None:
            self.report.told -= 1  # it left before it was to go
        elif not self._has_come_back(session) and key not in self._stayed:
            self._seen += 1
        if self._is_to_be_told(session) and self._owed >= 1.0 and len(self._gone) < MAX_GONE:
            self._owed -= 1.0
            self._send_on(session)
            self._gone[key] = self._registry.steady.now + ARRIVAL_SECONDS, False

    def client_arrived(self, session: Session) -> None:
        """A client says that the new server has greeted it."""
        key = session.key
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
            self._gone[key] = self._registry.steady.now + ARRIVAL_SECONDS, True

    # Steps

    def _step(self) -> None:
        now = self._registry.steady.now
        report = self.report
        if report.phase is Phase.MOVING:
            self._forget_gone(now)
            self._tell_some(now)
            self._count_missing(now)
            if report.phase is Phase.MOVING and self._probing is None and self._may_empty(now):
                # The old phones are not sent to where nobody is any more either.
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
        """Clients told in a second, so that all are told within the spread."""
        return self._clients / self._plan.spread

    @property
    def _clients(self) -> int:
        """How many there are to move: those that are yet to come back, too."""
        return max(1, self._plan.clients, self._seen)

    def _tell_some(self, now: float) -> None:
        """Send as many notices as the time that has passed allows."""
        self._owed = min(self._owed + self._rate * STEP_SECONDS, max(1.0, self._rate))
        registry = self._registry
        for session in registry:
            if self._owed < 1.0:
                break
            registry.guarded(session, self._tell, session, now)

    def _tell(self, session: Session, now: float) -> None:
        """Send one that may go the notice."""
        if not self._is_to_be_told(session) or self._has_come_back(session):
            return
        self._owed -= 1.0
        after = self._plan.migrate_after
        # Not only drawn, but each from a part of its own, so that they arrive evenly.
        share = (self.report.told + self._registry.parts.random.random()) / self._clients
        after += share % 1.0 * after
        session.send("serverMigration", self._notice(session, after))
        self._told.add(session.number)
        assert session.key is not None
        self._awaited[session.key] = now + after + ARRIVAL_SECONDS
        self.report.told += 1

    def _is_to_be_told(self, session: Session) -> bool:
        """Whether it is a client that may go, and does not know where."""
        return (
            is_client(session)
            and session.number not in self._told
            and session.key not in self._stayed
            and not session.greeting_waits  # such a one is told behind its greeting
        )

    def _has_come_back(self, session: Session) -> bool:
        """Note one that went, and did not stay there: it is served here."""
        key = session.key
        assert key is not None
        until, arrived = self._gone.pop(key, (0.0, False))
        if self._registry.steady.now >= until:
            return False
        self.report.arrived -= arrived
        self._note_missing(key)
        return True

    def _note_missing(self, key: DeviceKey) -> None:
        """One did not arrive; halt where it is one too many."""
        self._stayed.add(key)
        report = self.report
        report.missing += 1
        # One of many is none too many, however few were told yet.
        enough = min(self._clients, 1 / MISSING_PART)
        if report.missing > MISSING_PART * max(report.told + report.sent_on, enough):
            self._halt("too many did not arrive")

    def _forget_gone(self, now: float) -> None:
        """Those that went long ago are there; they were noted in the order in which they went."""
        while self._gone and self._gone[key := next(iter(self._gone))][0] <= now:
            del self._gone[key]

    def _count_missing(self, now: float) -> None:
        """Look who should have arrived by now."""
        self._told &= {session.number for session in self._registry if not session.closing}
        late = [key for key, by in self._awaited.items() if now >= by]
        for key in late:
            del self._awaited[key]
            device = self._registry.device(key)
            session = None if device is None else device.session
            # One that has left without a word may well be there.
            if session is not None and not session.closing:
                self._note_missing(key)

    def _may_empty(self, now: float) -> bool:
        """Whether only old phones are here, and clients that did not go in their time."""
        return now >= self._empty_at or (
            now >= self._open_until
            and not any(
                is_client(session) and session.key not in self._stayed for session in self._registry
            )
        )

    def _empty(self, _: None) -> None:
        """The other server answers: shut the port; old phones go on once they are closed."""
        self._probing = None
        self.report.phase = Phase.EMPTYING
        settings = self._registry.parts.settings
        self._close_at = self._registry.steady.now + settings.shutdown.drain_timeout
        self._registry.tell_change("migration", self.report.phase)
        self._shut_port()

    def _cannot_empty(self, failure: Failure) -> None:
        """It does not, or nobody wants to know any more."""
        self._probing = None
        if self.report.phase is Phase.MOVING:
            self._halt(failure.getErrorMessage())

    def _close_some(self, now: float) -> None:
        """Close phones that owe nothing; they find the port shut, and go on."""
        closed = 0
        for session in self._registry:
            if closed == CLOSED_A_STEP:
                break
            closed += self._registry.guarded(session, self._close, session, now) or False
        if not self._registry.connections:
            self._end(Phase.DONE)

    def _close(self, session: Session, now: float) -> bool:
        """Close a phone, if it is time to.  @return: whether it was."""
        if self._is_to_be_told(session):
            self._send_on(session)  # the last to come
        if session.closing or not (session.owes_nothing or now >= self._close_at):
            return False
        session.close(CloseReason.MIGRATED)
        return True

    def _send_on(self, session: Session) -> None:
        """Send a client on at once."""
        self.report.sent_on += 1
        self._told.add(session.number)
        session.send("serverMigration", self._notice(session, 0.0))
        session.leave(CloseReason.MIGRATED, self._registry.parts.settings.shutdown.drain_timeout)

    def _notice(self, session: Session, migrate_after: float) -> bytes:
        plan = self._plan
        now = self._registry.parts.seconds()
        expires = int((now + migrate_after + NOTICE_SECONDS) * 1000)
        tls = "true" if plan.tls else "false"
        signer = self._registry.parts.signer
        text = f"serverMigration|{plan.host}|{plan.port}|{tls}|{expires}"
        signature = signer.sign(text, session.key)
        return encode_migration(plan.host, plan.port, migrate_after, plan.tls, expires, signature)

    def _halt(self, reason: str) -> None:
        self.report.reason = reason
        self._end(Phase.HALTED)

    def _end(self, phase: Phase) -> None:
        self.report.phase = phase
        self.report.remaining = self._registry.connections
        self._owed = 0.0
        if self._probing is not None:
            self._probing.cancel()
        if self._steps.running:
            self._steps.stop()

    def _finished(self, _: object) -> None:
        registry = self._registry
        if registry.migration is self:
            registry.migration = None
        report = self.report
        registry.tell_change("migration", report.phase)
        self.log.info(
            "migration to {host}:{port} {phase}{why}: {figures}",
            host=report.host,
            port=report.port,
            phase=report.phase,
            why=f" ({report.reason})" if report.reason else "",
            figures=report.figures,
        )
        self._ended(report)

    def _failed(self, failure: Failure) -> None:
        self.log.failure("the migration has failed", failure)
        self._halt("a mistake of our own")
        self._finished(None)


def is_client(session: Session) -> bool:
    """Whether it has proven that it is one that understands the notice, and is not leaving."""
    return bool(session.capabilities) and session.authenticated and not session.closing
