"""
The moves of a server: tried, begun, written down, and gone on with after a restart.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.gateway.migration import (
    Migration,
    MigrationPlan,
    MigrationRefused,
    MigrationReport,
    Phase,
)
from domaeka.gateway.probe import ProbeFailed, probe, probe_key
from domaeka.gateway.registry import Registry

#: How long phones may take to come back to a server that was started again, in seconds, beyond
#: the time for which they were told to stay away.  Source: docs/protocol.md, "Reconnecting": the
#: longest pause between two tries.
RETURN_SECONDS: Final = 60.0


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
        self._trying: Deferred[MigrationReport] | None = None

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
        if self._registry.draining or self._migration is not None or self._trying is not None:
            return fail(MigrationRefused("a drain or a migration runs already"))
        parts = self._registry.parts
        probed = probe(self._reactor, plan.host, plan.port, plan.tls, parts.node, parts.signer)
        self._trying = trying = probed.addCallback(self._tried, plan).addErrback(self._refused)
        return trying.addBoth(self._begun)

    def call_off(self) -> bool:
        """@return: whether one ran."""
        if self._migration is None:
            return False
        self._migration.call_off()
        return True

    def interrupt(self) -> None:
        """The server stops: L{go_on} is for its next start."""
        if self._trying is not None:
            self._trying.cancel()
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
        away = 2 * self._registry.parts.settings.shutdown.reconnect_after
        self._begin(plan, away + RETURN_SECONDS)

    def _tried(self, _: None, plan: MigrationPlan) -> MigrationReport:
        """The other server has answered."""
        if self._registry.draining:
            raise MigrationRefused("the server stops")
        key = probe_key(self._registry.parts.node)
        if any(session.authenticated and session.key == key for session in self._registry):
            raise MigrationRefused(f"{plan.host}:{plan.port} is this server itself")
        try:
            _write_private(self._path, msgspec.json.encode(plan))
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
        return result

    def _begin(self, plan: MigrationPlan, open_seconds: float = 0.0) -> MigrationReport:
        self._migration = migration = Migration(
            plan, self._registry, self._reactor, self._shut_ports, self._ended, open_seconds
        )
        migration.start()
        return migration.report

    def _ended(self, report: MigrationReport) -> None:
        self._migration, self._last = None, report
        if report.phase is Phase.INTERRUPTED:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self.log.error("{path}: {error}", path=str(self._path), error=error)
        if report.phase is not Phase.DONE and not self._registry.draining:
            self._listen()


def _write_private(path: Path, data: bytes) -> None:
    """Have C{data}, all of it or nothing, in a file that nobody else may read."""
    # mkstemp gives mode 0600.
    number, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
