"""
The moves of a server: tried, begun, written down, and gone on with after a restart.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import ConfigError
from domaeka.gateway.migration import (
    Migration,
    MigrationPlan,
    MigrationRefused,
    MigrationReport,
    Phase,
    is_client,
)
from domaeka.gateway.probe import ProbeFailed, probe, probe_key
from domaeka.gateway.registry import Registry
from domaeka.state import write_private

#: How long phones may take to come back to a server that was started again, in seconds, beyond
#: the time for which they were told to stay away.  Source: docs/protocol.md, "Reconnecting": the
#: longest pause between two tries.
RETURN_SECONDS: Final = 60.0
#: How long after it did not work something is tried again, in seconds: to reach the other server
#: after a restart, to open a port that somebody else has taken.
RETRY_SECONDS: Final = 10.0


class Moves:
    """One move to another server at a time."""

    log = Logger()

    def __init__(
        self,
        registry: Registry,
        reactor: Any,
        path: Path,
        shut_ports: Callable[[], object],
        listen: Callable[[], object],
    ) -> None:
        """
        @param path: where a move is written down.
        @param shut_ports: shuts the phones' ports; C{listen} opens them again.
        """
        self._registry = registry
        self._reactor = reactor
        self._path = path
        self._shut_ports = shut_ports
        self._listen = listen
        self._migration: Migration | None = None
        self._last: MigrationReport | None = None
        self._trying: Deferred[Any] | None = None  # whether the other server answers
        self._waiting = False  # to go on: until it does
        self._retry: Any = None
        for state in ("told", "arrived", "missing", "sent_on"):
            gauge = registry.parts.metrics.migration_clients.register(state)
            gauge.watch(partial(self._figure, state))

    @property
    def report(self) -> MigrationReport | None:
        """How the move goes, or how the last one went."""
        return self._last if self._migration is None else self._migration.report

    @property
    def away(self) -> bool:
        """Whether the port is shut, for all phones are to be elsewhere."""
        return self.report is not None and self.report.phase in (Phase.EMPTYING, Phase.DONE)

    def begin(self, plan: MigrationPlan) -> "Deferred[MigrationReport]":
        """
        Move every phone to another server, which is tried first.

        @return: fires once it has begun; fails with L{MigrationRefused} where it cannot.
        """
        if self._registry.draining or self._registry.moving:
            return fail(MigrationRefused("a drain or a migration runs already"))
        self._registry.moving = True
        probed = self._probe(plan)
        self._trying = trying = probed.addCallback(self._tried, plan).addErrback(self._refused)
        return trying.addBoth(self._begun)

    def call_off(self) -> bool:
        """@return: whether one ran, or was to go on."""
        if self._migration is not None:
            self._migration.call_off()
        elif self._waiting and self._last is not None:
            self._stop_trying()
            self._last.phase = Phase.CALLED_OFF
            self._registry.tell_change("migration", self._last.phase)
            self._ended(self._last)
        else:
            return False
        return True

    def interrupt(self) -> None:
        """The server stops: L{go_on} is for its next start."""
        self._stop_trying()
        if self._migration is not None:
            self._migration.interrupt()

    def go_on(self) -> None:
        """Go on with a move that was under way when the server stopped."""
        try:
            plan = msgspec.json.decode(self._path.read_bytes(), type=MigrationPlan)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            self.log.error("{path}: {error}", path=str(self._path), error=error)
            return
        self.log.info("a migration was under way: it goes on")
        self._registry.moving = self._waiting = True
        self._last = MigrationReport(Phase.INTERRUPTED, plan.host, plan.port)
        self._go_on(plan)

    def _go_on(self, plan: MigrationPlan) -> None:
        """Go on as soon as the other server answers.  Until then phones are served here."""
        away = 2 * self._registry.parts.settings.shutdown.reconnect_after
        self._trying = trying = self._probe(plan)
        trying.addCallback(lambda _: self._begin(plan, away + RETURN_SECONDS))
        trying.addErrback(self._cannot_go_on, plan)

    def _cannot_go_on(self, failure: Failure, plan: MigrationPlan) -> None:
        if not self._waiting or self._last is None:
            return  # it was broken off
        self._trying = None
        self._last.reason = failure.getErrorMessage()
        self.log.warn(
            "the migration waits, phones are served here: {reason}; next try in {seconds:.0f} s",
            reason=self._last.reason,
            seconds=RETRY_SECONDS,
        )
        self._retry = self._reactor.callLater(RETRY_SECONDS, self._go_on, plan)

    def _stop_trying(self) -> None:
        """Break off what is tried, and what is to be tried again."""
        self._waiting = False
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if self._trying is not None:
            self._trying.cancel()

    def _figure(self, state: str) -> float:
        """One of the report's figures, for its metric."""
        return float(getattr(self.report, state, 0))

    def _probe(self, plan: MigrationPlan) -> "Deferred[None]":
        """Whether the other server answers."""
        parts = self._registry.parts
        return probe(self._reactor, plan.host, plan.port, plan.tls, parts.node, parts.signer)

    def _tried(self, _: None, plan: MigrationPlan) -> MigrationReport:
        """The other server has answered."""
        registry = self._registry
        if registry.draining:
            raise MigrationRefused("the server stops")
        key = probe_key(registry.parts.node)
        if any(session.authenticated and session.key == key for session in registry):
            raise MigrationRefused(f"{plan.host}:{plan.port} is this server itself")
        clients = sum(map(is_client, registry))
        try:
            write_private(self._path, msgspec.json.encode(replace(plan, clients=clients)))
        except OSError as error:
            why = error.strerror or error
            raise MigrationRefused(f"it cannot be written down: {self._path}: {why}") from None
        return self._begin(plan)

    def _refused(self, failure: Failure) -> Failure:
        if isinstance(failure.value, ProbeFailed):
            return Failure(MigrationRefused(str(failure.value)))  # type: ignore[no-untyped-call]
        return failure

    def _begun(self, result: MigrationReport | Failure) -> MigrationReport | Failure:
        self._trying = None
        if isinstance(result, Failure):
            self._registry.moving = False
        return result

    def _begin(self, plan: MigrationPlan, open_seconds: float = 0.0) -> MigrationReport:
        self._trying = None
        self._waiting = False
        self._migration = migration = Migration(
            plan,
            self._registry,
            self._reactor,
            lambda: self._probe(plan),
            self._shut_ports,
            self._ended,
            open_seconds,
        )
        migration.start()
        return migration.report

    def _ended(self, report: MigrationReport) -> None:
        self._migration, self._last = None, report
        self._registry.moving = False
        if report.phase is Phase.INTERRUPTED:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self.log.error("{path}: {error}", path=str(self._path), error=error)
        self._open_again()

    def _open_again(self) -> None:
        """Let phones in again, where they are not to be elsewhere."""
        if self.away or self._registry.draining:
            return
        try:
            self._listen()
        except ConfigError as error:
            self.log.error(
                "phones cannot come back: {error}; next try in {seconds:.0f} s",
                error=str(error),
                seconds=RETRY_SECONDS,
            )
            self._retry = self._reactor.callLater(RETRY_SECONDS, self._open_again)
