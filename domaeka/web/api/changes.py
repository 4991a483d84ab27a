"""
Changes of the server itself: a stop, a move, other settings.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Final, Protocol, TypeAlias

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred

from domaeka.config import Settings
from domaeka.errors import ConfigError, DomaekaError
from domaeka.gateway.drain import DrainReport
from domaeka.gateway.migration import MigrationPlan, MigrationRefused, MigrationReport, Phase
from domaeka.web.api.endpoints import Ask, Endpoint, Input, not_found
from domaeka.web.routes import Refusal

#: What phones are told where an operator stops the server.
_REASON: Final = "operator"


class ReloadReport(Protocol):
    """What reading the settings again has come to: their keys."""

    @property
    def changed(self) -> list[str]:
        """Those in force."""

    @property
    def restart(self) -> list[str]:
        """Those that would only be at a restart."""


class Operations(Protocol):
    """What an operator may do to the server."""

    def reload(self) -> ReloadReport:
        """
        Read the settings again, and what belongs to them.

        @raise DomaekaError: something is wrong; nothing has changed.
        """

    def drain(self, reason: str) -> None:
        """
        Empty the server, then end the process; nothing where that runs already.

        @param reason: what phones are told, a word.
        """

    def call_off_drain(self) -> bool:
        """
        @return: whether it was possible to serve on.
        @raise ConfigError: the port is taken by now; the drain goes on.
        """

    @property
    def drain_report(self) -> DrainReport:
        """How a drain goes."""

    def migrate(self, plan: MigrationPlan) -> "Deferred[MigrationReport]":
        """
        Move every phone to another server.

        @return: fires once it has begun; fails with L{MigrationRefused} where it cannot.
        """

    def call_off_migration(self) -> bool:
        """@return: whether one ran."""

    @property
    def migration_report(self) -> MigrationReport | None:
        """How a migration goes, or how the last one went."""


class Reloaded(msgspec.Struct):
    """What reading the settings again has come to: their keys."""

    changed: Annotated[
        list[str],
        Meta(
            description="in force; `secrets`, `certificates` and `bots` where they are not what "
            "they were"
        ),
    ]
    needs_restart: Annotated[list[str], Meta(description="changed, and not in force")]


class DrainState(msgspec.Struct):
    """How a stop goes."""

    draining: bool
    told: Annotated[int, Meta(description="phones that were told to come back later")]
    connections: int
    unanswered: Annotated[int, Meta(description="messages without an answer yet")]
    seconds_left: Annotated[float, Meta(description="until all connections are cut off")]


_MoveAfter: TypeAlias = Annotated[
    float,
    Meta(
        ge=0,
        le=3600,
        description="when a client is to move, at least, in seconds (twice it at most); left out: "
        "`migration.migrate_after`",
    ),
]
_Spread: TypeAlias = Annotated[
    float,
    Meta(
        gt=0,
        le=86_400,
        description="over how many seconds the notices go out; left out: `migration.spread`",
    ),
]


class NewMigration(Input, frozen=True):
    """Where phones are to go."""

    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    tls: bool = False
    migrate_after: _MoveAfter | None = None
    spread: _Spread | None = None


class MigrationState(msgspec.Struct):
    """How a move goes, or how the last one went."""

    phase: Annotated[
        Phase,
        Meta(
            description="`moving`: clients are told, and arrive; `emptying`: the port is shut, old "
            "phones are closed; `halted`: too many clients did not arrive, or the other server "
            "answers no more; `interrupted`: by a restart, phones are served here until the other "
            "server answers"
        ),
    ]
    host: str
    port: int
    told: Annotated[int, Meta(description="clients that were told to move")]
    arrived: Annotated[int, Meta(description="those that have said that they are there")]
    missing: Annotated[int, Meta(description="those that have not, in time")]
    sent_on: Annotated[int, Meta(description="clients that came here, and were sent on at once")]
    remaining: Annotated[int, Meta(description="connections that are still here")]
    reason: Annotated[
        str, Meta(description="why it has halted, or cannot go on yet; else empty")
    ] = ""


class ChangePages:
    """What is asked of changes."""

    def __init__(self, operations: Operations, settings: Callable[[], Settings]) -> None:
        """@param settings: those in force."""
        self._operations = operations
        self._settings = settings

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What is to be served."""
        drain = Endpoint(
            method="GET",
            path="/drain",
            serve=self.drain_state,
            subject="drain",
            summary="How a stop goes",
            answer=DrainState,
        )
        migration = Endpoint(
            method="GET",
            path="/migration",
            serve=self.migration_state,
            subject="migration",
            summary="How a move goes, or how the last one went",
            answer=MigrationState,
            refusals={HTTPStatus.NOT_FOUND: "there was none"},
        )
        replace = msgspec.structs.replace
        return (
            drain,
            replace(
                drain,
                method="POST",
                serve=self.drain,
                summary="Answer what was accepted, tell every phone, then end the process",
                status=HTTPStatus.ACCEPTED,
            ),
            replace(
                drain,
                method="DELETE",
                serve=self.call_off_drain,
                summary="Call off a stop: serve on",
                refusals={HTTPStatus.CONFLICT: "none runs, or it is too late"},
            ),
            migration,
            replace(
                migration,
                method="POST",
                serve=self.migrate,
                summary="Move every phone to another server, which is tried first",
                body=NewMigration,
                status=HTTPStatus.ACCEPTED,
                refusals={
                    HTTPStatus.CONFLICT: "the other server does not answer as it should, or a "
                    "drain or a migration runs already"
                },
            ),
            replace(
                migration,
                method="DELETE",
                serve=self.call_off_migration,
                summary="Call off a move: those that have moved stay there",
                refusals={HTTPStatus.CONFLICT: "none runs"},
            ),
            Endpoint(
                method="POST",
                path="/reload",
                serve=self.reload,
                subject="settings",
                summary="Read settings, secrets, certificates and bots again",
                answer=Reloaded,
                refusals={HTTPStatus.CONFLICT: "something in them is wrong: nothing has changed"},
            ),
        )

    # Stop

    def drain_state(self, ask: Ask[Any, Any]) -> DrainState:
        """How a stop goes."""
        report = self._operations.drain_report
        return DrainState(
            report.running, report.told, report.connections, report.pending, report.seconds_left
        )

    def drain(self, ask: Ask[Any, None]) -> DrainState:
        """Stop."""
        self._operations.drain(_REASON)
        return self.drain_state(ask)

    def call_off_drain(self, ask: Ask[Any, None]) -> DrainState:
        """Serve on."""
        try:
            called_off = self._operations.call_off_drain()
        except ConfigError as error:
            raise _conflict("CANNOT_LISTEN", f"the drain goes on: {error}") from None
        if not called_off:
            raise _conflict("NOT_DRAINING", "no drain runs that could be called off")
        return self.drain_state(ask)

    # Move

    def migration_state(self, ask: Ask[Any, Any]) -> MigrationState:
        """How a move goes."""
        report = self._operations.migration_report
        if report is None:
            raise not_found("there has been no migration since the start")
        return _describe(report)

    async def migrate(self, ask: Ask[Any, NewMigration]) -> MigrationState:
        """Move."""
        new, settings = ask.body, self._settings().migration
        after = settings.migrate_after if new.migrate_after is None else new.migrate_after
        spread = settings.spread if new.spread is None else new.spread
        plan = MigrationPlan(new.host, new.port, new.tls, after, spread)
        try:
            return _describe(await self._operations.migrate(plan))
        except MigrationRefused as error:
            raise _conflict("MIGRATION_REFUSED", str(error)) from None

    def call_off_migration(self, ask: Ask[Any, None]) -> MigrationState:
        """Move nobody else."""
        if not self._operations.call_off_migration():
            raise _conflict("NOT_MIGRATING", "no migration runs")
        return self.migration_state(ask)

    # Settings

    def reload(self, ask: Ask[Any, None]) -> Reloaded:
        """Read the settings again."""
        try:
            report = self._operations.reload()
        except DomaekaError as error:
            raise _conflict("BAD_CONFIG", str(error)) from None
        return Reloaded(report.changed, report.restart)


def _describe(report: MigrationReport) -> MigrationState:
    return msgspec.convert(report, MigrationState, from_attributes=True)


def _conflict(code: str, text: str) -> Refusal:
    return Refusal(HTTPStatus.CONFLICT, code, text)
