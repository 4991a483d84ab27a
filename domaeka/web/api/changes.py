"""Endpoints that change the server itself: drain, migration, reload."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.defer import Deferred

from domaeka.config import Settings
from domaeka.errors import ConfigError, DomaekaError
from domaeka.gateway.lifecycle import DrainReport, MigrationPlan, MigrationRefused, MigrationReport
from domaeka.schema import DrainState, MigrationState, NewMigration, Reloaded
from domaeka.web.api.endpoints import EndpointGroup, Request, endpoint, not_found
from domaeka.web.routes import Refusal

#: The reason sent to phones when an operator stops the server.
_REASON: Final = "operator"


class Operations(Protocol):
    """The operations of the server that an operator may start."""

    def reload(self) -> Reloaded:
        """
        Read settings, secrets, certificates and bots again.

        @raise DomaekaError: something is wrong; nothing has changed.
        """

    def drain(self, reason: str) -> None:
        """
        Empty the server, then end the process; nothing if a drain runs already.

        @param reason: a word, sent to phones.
        """

    def call_off_drain(self) -> bool:
        """
        @return: true if it was possible to serve on.
        @raise ConfigError: the port is taken by now; the drain goes on.
        """

    @property
    def drain_report(self) -> DrainReport:
        """The progress of a drain."""

    def migrate(self, plan: MigrationPlan) -> "Deferred[MigrationReport]":
        """
        Move every phone to another server.

        @return: fires once it has begun; fails with L{MigrationRefused} where it cannot.
        """

    def call_off_migration(self) -> bool:
        """@return: true if one ran."""

    @property
    def migration_report(self) -> MigrationReport | None:
        """The progress of a migration, or the result of the last one."""


class ChangePages(EndpointGroup):
    """The endpoints of changes."""

    def __init__(self, operations: Operations, settings: Callable[[], Settings]) -> None:
        self._operations = operations
        self._settings = settings

    # Stop

    @endpoint("GET", "/drain", "How a stop goes")
    def drain_state(self, request: Request[Any, None]) -> DrainState:
        """The progress of a drain."""
        report = self._operations.drain_report
        return DrainState(
            report.running, report.told, report.connections, report.pending, report.seconds_left
        )

    @endpoint(
        "POST",
        "/drain",
        "Answer what was accepted, tell every phone, then end the process",
        status=HTTPStatus.ACCEPTED,
    )
    def drain(self, request: Request[Any, None]) -> DrainState:
        """Drain."""
        self._operations.drain(_REASON)
        return self.drain_state(request)

    @endpoint(
        "DELETE",
        "/drain",
        "Call off a stop: serve on",
        refusals={HTTPStatus.CONFLICT: "none runs, or it is too late"},
    )
    def call_off_drain(self, request: Request[Any, None]) -> DrainState:
        """Call off a drain."""
        try:
            called_off = self._operations.call_off_drain()
        except ConfigError as error:
            raise _conflict("CANNOT_LISTEN", f"the drain goes on: {error}") from None
        if not called_off:
            raise _conflict("NOT_DRAINING", "no drain runs that could be called off")
        return self.drain_state(request)

    # Move

    @endpoint(
        "GET",
        "/migration",
        "How a move goes, or how the last one went",
        refusals={HTTPStatus.NOT_FOUND: "there was none"},
    )
    def migration_state(self, request: Request[Any, None]) -> MigrationState:
        """The progress of a migration."""
        report = self._operations.migration_report
        if report is None:
            raise not_found("there has been no migration since the start")
        return _describe(report)

    @endpoint(
        "POST",
        "/migration",
        "Move every phone to another server, which is tried first",
        status=HTTPStatus.ACCEPTED,
        refusals={
            HTTPStatus.CONFLICT: "the other server does not answer as it should, or a drain or a "
            "migration runs already"
        },
    )
    async def migrate(self, request: Request[Any, NewMigration]) -> MigrationState:
        """Migrate."""
        new, settings = request.body, self._settings().migration
        after = settings.migrate_after if new.migrate_after is None else new.migrate_after
        spread = settings.spread if new.spread is None else new.spread
        plan = MigrationPlan(new.host, new.port, new.tls, after, spread)
        try:
            return _describe(await self._operations.migrate(plan))
        except MigrationRefused as error:
            raise _conflict("MIGRATION_REFUSED", str(error)) from None

    @endpoint(
        "DELETE",
        "/migration",
        "Call off a move: those that have moved stay there",
        refusals={HTTPStatus.CONFLICT: "none runs"},
    )
    def call_off_migration(self, request: Request[Any, None]) -> MigrationState:
        """Call off a migration: no other phone is moved."""
        if not self._operations.call_off_migration():
            raise _conflict("NOT_MIGRATING", "no migration runs")
        return self.migration_state(request)

    # Settings

    @endpoint(
        "POST",
        "/reload",
        "Read settings, secrets, certificates and bots again",
        subject="settings",
        refusals={HTTPStatus.CONFLICT: "something in them is wrong: nothing has changed"},
    )
    def reload(self, request: Request[Any, None]) -> Reloaded:
        """Read the settings again."""
        try:
            return self._operations.reload()
        except DomaekaError as error:
            raise _conflict("BAD_CONFIG", str(error)) from None


def _describe(report: MigrationReport) -> MigrationState:
    return msgspec.convert(report, MigrationState, from_attributes=True)


def _conflict(code: str, text: str) -> Refusal:
    return Refusal(HTTPStatus.CONFLICT, code, text)
