"""Migrations of a server: begun after a probe, and continued after a restart."""

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
from domaeka.gateway.directory import Directory, server_key
from domaeka.gateway.lifecycle.migration import (
    Migration,
    MigrationPlan,
    MigrationRefused,
    MigrationReport,
)
from domaeka.gateway.lifecycle.probe import ProbeFailed, probe
from domaeka.gateway.serving import ServerState, Step
from domaeka.schema import Phase
from domaeka.state import write_private

#: Time for phones to come back to a server that was started again, in seconds, beyond the time for
#: which they stay away.  Source: docs/protocol.md, "Reconnecting": the longest pause.
RETURN_SECONDS: Final = 60.0
#: Pause before a retry, in seconds: of the probe after a restart, or of opening a port that another
#: process has.
RETRY_SECONDS: Final = 10.0


class Migrations:
    """Runs one migration at a time."""

    log = Logger()

    def __init__(
        self,
        directory: Directory,
        reactor: Any,
        path: Path,
        shut_ports: Callable[[], object],
        listen: Callable[[], object],
    ) -> None:
        """
        @param path: the file of the plan of a migration that runs.
        @param shut_ports: shuts the phones' ports; C{listen} opens them again.
        """
        self._directory = directory
        self._context = directory.context
        self._serving = directory.context.serving
        self._reactor = reactor
        self._path = path
        self._shut_ports = shut_ports
        self._listen = listen
        self._migration: Migration | None = None
        self._last: MigrationReport | None = None
        self._trying: Deferred[Any] | None = None  # a probe
        self._waiting = False  # for the other server, to go on after a restart
        self._retry: Any = None
        for state in ("told", "arrived", "missing", "sent_on"):
            gauge = self._context.metrics.migration_clients.register(state)
            gauge.watch(partial(self._figure, state))

    @property
    def report(self) -> MigrationReport | None:
        """State of the migration that runs, or of the last one."""
        return self._last if self._migration is None else self._migration.report

    def begin(self, plan: MigrationPlan) -> "Deferred[MigrationReport]":
        """
        Move every phone to another server, which is probed first.

        @return: fires once the migration has begun; fails with L{MigrationRefused} if it cannot.
        """
        if self._serving.state is ServerState.STARTING:
            return fail(MigrationRefused("the server starts"))
        if self._migration is not None or not self._serving.may(Step.MOVE):
            return fail(MigrationRefused("a drain or a migration runs already"))
        was_away = self._serving.state is ServerState.AWAY
        self._serving.take(Step.MOVE)
        probed = self._probe(plan)
        self._trying = trying = probed.addCallback(self._tried, plan).addErrback(self._refused)
        return trying.addBoth(self._begun, was_away)

    def call_off(self) -> bool:
        """Call off a migration.  @return: whether one ran, or was to go on."""
        if self._migration is not None:
            self._migration.call_off()
        elif self._waiting and self._last is not None:
            self._stop_trying()
            self._last.phase = Phase.CALLED_OFF
            self._context.events.changed("migration", self._last.phase)
            self._ended(self._last)
        else:
            return False
        return True

    def interrupt(self) -> None:
        """Stop with the server; L{go_on} continues at its next start."""
        self._stop_trying()
        if self._migration is not None:
            self._migration.interrupt()

    def go_on(self) -> None:
        """Continue a migration that was running when the server stopped."""
        try:
            plan = msgspec.json.decode(self._path.read_bytes(), type=MigrationPlan)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            self.log.error("{path}: {error}", path=str(self._path), error=error)
            return
        self.log.info("a migration was under way: it goes on")
        self._serving.take(Step.MOVE)
        self._waiting = True
        self._last = MigrationReport(Phase.INTERRUPTED, plan.host, plan.port)
        self._go_on(plan)

    def _go_on(self, plan: MigrationPlan) -> None:
        """Go on as soon as the other server answers; until then phones are served here."""
        away = 2 * self._context.settings.shutdown.reconnect_after
        self._trying = trying = self._probe(plan)
        trying.addCallback(lambda _: self._begin(plan, away + RETURN_SECONDS))
        trying.addErrback(self._cannot_go_on, plan)

    def _cannot_go_on(self, failure: Failure, plan: MigrationPlan) -> None:
        if not self._waiting or self._last is None:
            return  # cancelled
        self._trying = None
        self._last.reason = failure.getErrorMessage()
        self.log.warn(
            "the migration waits, phones are served here: {reason}; next try in "
            "{retry_seconds:.0f} s",
            reason=self._last.reason,
            retry_seconds=RETRY_SECONDS,
        )
        self._retry = self._reactor.callLater(RETRY_SECONDS, self._go_on, plan)

    def _stop_trying(self) -> None:
        """Cancel the probe, or its retry."""
        self._waiting = False
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if self._trying is not None:
            self._trying.cancel()

    def _figure(self, state: str) -> float:
        """A count of the report, for its metric."""
        return float(getattr(self.report, state, 0))

    def _probe(self, plan: MigrationPlan) -> "Deferred[None]":
        context = self._context
        other = plan.host, plan.port, plan.tls
        return probe(self._reactor, context.wall, *other, context.node, context.signer)

    def _tried(self, _: None, plan: MigrationPlan) -> MigrationReport:
        """Write the plan down and begin, for the other server has answered."""
        if not self._serving.takes_work:
            raise MigrationRefused("the server stops")
        key = server_key(self._context.node)
        peers = [member.peer for member in self._directory.registry]
        if any(peer.authenticated and peer.key == key for peer in peers):
            raise MigrationRefused(f"{plan.host}:{plan.port} is this server itself")
        clients = sum(peer.is_client for peer in peers)
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

    def _begun(
        self, result: MigrationReport | Failure, was_away: bool
    ) -> MigrationReport | Failure:
        self._trying = None
        if isinstance(result, Failure) and self._serving.state is ServerState.MOVING:
            self._serving.take(Step.EMPTY if was_away else Step.STAY)
        return result

    def _begin(self, plan: MigrationPlan, open_seconds: float = 0.0) -> MigrationReport:
        self._trying = None
        self._waiting = False
        self._migration = migration = Migration(
            plan,
            self._directory,
            self._reactor,
            lambda: self._probe(plan),
            self._empty,
            self._ended,
            open_seconds,
        )
        migration.start()
        return migration.report

    def _ended(self, report: MigrationReport) -> None:
        self._migration, self._last = None, report
        if report.phase is Phase.INTERRUPTED:
            return
        if report.phase is not Phase.DONE and self._serving.may(Step.STAY):
            self._serving.take(Step.STAY)
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self.log.error("{path}: {error}", path=str(self._path), error=error)
        self._open_again()

    def _empty(self) -> None:
        """Shut the ports, before the remaining phones are closed."""
        self._serving.take(Step.EMPTY)
        self._shut_ports()

    def _open_again(self) -> None:
        """Open the ports again, unless the phones are away."""
        if not self._serving.lets_in:
            return
        try:
            self._listen()
        except ConfigError as error:
            self.log.error(
                "phones cannot come back: {error}; next try in {retry_seconds:.0f} s",
                error=str(error),
                retry_seconds=RETRY_SECONDS,
            )
            self._retry = self._reactor.callLater(RETRY_SECONDS, self._open_again)
