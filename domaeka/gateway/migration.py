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
from domaeka.messages import encode_migration

#: How often a migration looks around, in seconds.
STEP_SECONDS: Final = 0.25
#: How long a client may take to arrive, counted from when it was to move, in seconds; and which
#: part of those told may fail to before the migration halts.
ARRIVAL_SECONDS: Final = 60.0
MISSING_PART: Final = 0.05
#: How long a notice may be followed, in seconds, beyond the time it names.
NOTICE_SECONDS: Final = 600.0
#: Old phones closed in one step: at most 200 a second.
CLOSED_A_STEP: Final = 50


class Phase(StrEnum):
    """How far a migration has come."""

    MOVING = "moving"  # clients are told, and arrive
    EMPTYING = "emptying"  # the port is shut; old phones are closed
    DONE = "done"
    HALTED = "halted"  # too many did not arrive: nobody else is told
    CALLED_OFF = "called off"
    INTERRUPTED = "interrupted"  # the server stops; it goes on at the next start


class MigrationPlan(msgspec.Struct, frozen=True):
    """
    Where to, and how.  It is written down, so that a server that is started again goes on.

    @ivar migrate_after: the earliest that a client is told to move, in seconds; the latest is
        twice it.
    @ivar spread: over how many seconds the notices go out.
    """

    host: str
    port: int
    tls: bool
    migrate_after: float
    spread: float


class MigrationReport(msgspec.Struct):
    """
    How it goes.

    @ivar told: clients that were sent the notice.
    @ivar arrived: those that have said they were greeted there.
    @ivar missing: those that have not, in their time.
    @ivar sent_on: clients that came here meanwhile, and were sent on at once.
    @ivar remaining: connections that are still here.
    """

    phase: Phase
    host: str
    port: int
    told: int = 0
    arrived: int = 0
    missing: int = 0
    sent_on: int = 0
    remaining: int = 0


class MigrationRefused(DomaekaError):
    """A migration cannot begin; the text says why."""


class Migration:
    """
    Move every phone to another server.

    It ends by itself: done, halted, or called off.
    """

    log = Logger()

    def __init__(
        self,
        plan: MigrationPlan,
        registry: Registry,
        reactor: IReactorTime,
        shut_port: Callable[[], object],
        ended: Callable[[MigrationReport], object],
        open_seconds: float = 0.0,
    ) -> None:
        """
        @param shut_port: shuts the phones' ports.
        @param ended: told once, whatever the end.
        @param open_seconds: how long the ports stay open at least, for clients that are yet to
            come back.
        """
        self.report = MigrationReport(Phase.MOVING, plan.host, plan.port)
        self._plan = plan
        self._registry = registry
        self._shut_port = shut_port
        self._ended = ended
        self._open_until = registry.steady.now + open_seconds
        self._close_at = inf  # whoever is still here
        # Numbers of connections: those that know where to go, when those of them that have not
        # said so should have arrived, by the steady time, and those that stayed beyond that.
        self._told: set[int] = set()
        self._awaited: dict[int, float] = {}
        self._stayed: set[int] = set()
        self._steps = LoopingCall(self._step)
        self._steps.clock = reactor

    def start(self) -> "Deferred[None]":
        """Begin.  @return: fires when it has ended."""
        registry = self._registry
        registry.migration = self
        capable = sum(1 for session in registry if session.capabilities)
        self.log.info(
            "migration to {host}:{port} begins: {capable} clients, {count} connections in all",
            host=self._plan.host,
            port=self._plan.port,
            capable=capable,
            count=len(registry),
        )
        self._capable = max(1, capable)
        # Clients told in a second, so that all that are here now are told within the spread.
        self._rate = max(1.0, capable / self._plan.spread)
        self._owed = 0.0
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
        A client with capabilities has shaken hands: it is sent on at once, and closed as soon as
        it has what it is owed here.
        """
        self.report.sent_on += 1
        self._told.add(session.number)
        session.send("serverMigration", self._notice(0.0))
        session.leave(CloseReason.MIGRATED, self._registry.parts.settings.shutdown.drain_timeout)

    def client_arrived(self, session: Session) -> None:
        """A client says that the new server has greeted it."""
        number = session.number
        if self._awaited.pop(number, None) is not None:
            self.report.arrived += 1
        elif number in self._stayed:
            self._stayed.remove(number)
            self.report.missing -= 1
            self.report.arrived += 1

    # Steps

    def _step(self) -> None:
        now = self._registry.steady.now
        if self.report.phase is Phase.MOVING:
            self._tell_some(now)
            self._count_missing(now)
            if self.report.phase is Phase.MOVING and self._clients_are_gone(now):
                self._empty(now)
        elif self.report.phase is Phase.EMPTYING:
            self._close_some(now)
        self.report.remaining = self._registry.connections

    def _tell_some(self, now: float) -> None:
        """Send as many notices as the time that has passed allows."""
        self._owed = min(self._owed + self._rate * STEP_SECONDS, max(1.0, self._rate))
        registry = self._registry
        for session in registry:
            if self._owed < 1.0:
                break
            # One that is being greeted is told in the same breath.
            if (
                session.capabilities
                and session.number not in self._told
                and not (session.closing or session.greeting_waits)
            ):
                self._owed -= 1.0
                after = self._plan.migrate_after
                # Not only drawn, but each from a part of its own, so that they arrive evenly.
                share = (self.report.told + registry.parts.random.random()) / self._capable
                after += share % 1.0 * after
                session.send("serverMigration", self._notice(after))
                self._told.add(session.number)
                self._awaited[session.number] = now + after + ARRIVAL_SECONDS
                self.report.told += 1

    def _count_missing(self, now: float) -> None:
        """Halt where too many have not arrived."""
        here = {session.number for session in self._registry if not session.closing}
        self._told &= here
        self._stayed &= here
        late = [number for number, by in self._awaited.items() if now >= by]
        for number in late:
            del self._awaited[number]
            # One that has left without a word may well be there.
            if number in here:
                self._stayed.add(number)
                self.report.missing += 1
        if late and self.report.missing > self.report.told * MISSING_PART:
            self._end(Phase.HALTED)

    def _clients_are_gone(self, now: float) -> bool:
        """Whether only old phones are here, and clients that did not go in their time."""
        return now >= self._open_until and not any(
            session.capabilities and session.number not in self._stayed
            for session in self._registry
        )

    def _empty(self, now: float) -> None:
        """Shut the port; old phones go on once they are closed."""
        self.report.phase = Phase.EMPTYING
        self._close_at = now + self._registry.parts.settings.shutdown.drain_timeout
        self._registry.tell_change("migration", self.report.phase)
        self._shut_port()

    def _close_some(self, now: float) -> None:
        """Close phones that owe nothing; they find the port shut, and go on."""
        closed = 0
        for session in self._registry:
            if closed == CLOSED_A_STEP:
                break
            if not session.closing and (session.owes_nothing or now >= self._close_at):
                session.close(CloseReason.MIGRATED)
                closed += 1
        if not self._registry.connections:
            self._end(Phase.DONE)

    def _notice(self, migrate_after: float) -> bytes:
        plan = self._plan
        now = self._registry.parts.seconds()
        expires = int((now + migrate_after + NOTICE_SECONDS) * 1000)
        tls = "true" if plan.tls else "false"
        signer = self._registry.parts.signer
        signature = signer.sign(f"serverMigration|{plan.host}|{plan.port}|{tls}|{expires}")
        return encode_migration(plan.host, plan.port, migrate_after, plan.tls, expires, signature)

    def _end(self, phase: Phase) -> None:
        self.report.phase = phase
        self.report.remaining = self._registry.connections
        if self._steps.running:
            self._steps.stop()

    def _finished(self, _: object) -> None:
        registry = self._registry
        if registry.migration is self:
            registry.migration = None
        registry.tell_change("migration", self.report.phase)
        self.log.info("migration {report}", report=msgspec.structs.asdict(self.report))
        self._ended(self.report)

    def _failed(self, failure: Failure) -> None:
        self.log.failure("the migration has failed", failure)
        self.report.phase = Phase.HALTED
        self._finished(None)
