"""Operations on a running server, for the API and for signals."""

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from domaeka.bots.loading import reload_bots
from domaeka.errors import ConfigError, DomaekaError
from domaeka.gateway import Step
from domaeka.gateway.lifecycle.drain import DrainReport
from domaeka.gateway.lifecycle.migration import MigrationPlan, MigrationReport
from domaeka.reload import compare
from domaeka.schema import Reloaded
from domaeka.secrets import load_secrets
from domaeka.server.assembly import Parts, count_commands
from domaeka.server.preflight import check
from domaeka.tracebacks import traceback_text, whole_text

#: The target of a migration is for phones and operators only.
_PLACE = frozenset({"host", "port", "reason"})


class Operations:
    """Reload, drain and migrate: L{domaeka.web.api.changes.Operations}."""

    log = Logger()

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._context = parts.context
        self._serving = parts.context.serving
        self._drain = parts.drain
        self._migrations = parts.migrations

    # Reload

    def reload(self) -> Reloaded:
        """
        Read the settings, the secrets, the certificates and the bots again.

        @raise ConfigError: something is wrong; nothing has changed.  It is logged, with the
            traceback of a bot that cannot be imported.
        """
        try:
            return self._reload()
        except DomaekaError as error:
            located = ConfigError(self._parts.source.locate(str(error)))
            cause = error.__cause__
            self.log.error(
                "nothing has changed: {error}",
                error=located,  # a text would be cut
                log_traceback=None if cause is None else traceback_text(cause, whole_text),
            )
            raise located from None

    def reload_signalled(self) -> None:
        """L{reload}, at SIGHUP."""
        try:
            self.reload()
        except ConfigError:
            pass  # the log has it
        except Exception:
            self.log.failure("the settings could not be read again")

    def _reload(self) -> Reloaded:
        parts, context, stores = self._parts, self._context, self._parts.stores
        wanted = parts.source.load()
        check(wanted)
        settings, report = compare(context.settings, wanted)
        secrets = load_secrets(parts.state_directory, settings.auth, context.wall())
        certificates = parts.ports.load_certificates()
        # The last step that can fail, and the first that changes something.
        bots = reload_bots(
            (*settings.bots.load, *parts.more_bots),
            lambda bots: parts.dispatcher.apply(bots, settings.bots, settings.breaker),
        )
        count_commands(context.metrics, parts.dispatcher)
        self.log.info(
            "bots imported anew: {anew}; left as they were: {left}",
            anew=", ".join(bots.anew) or "none",
            left=", ".join(bots.left) or "none",
        )
        if bots.anew:
            report.changed.append("bots")
        if parts.ports.use_certificates(certificates):
            report.changed.append("certificates")
        if secrets != parts.keys.secrets:
            report.changed.append("secrets")
        parts.keys.secrets = secrets
        context.apply(settings, parts.keys.signer(settings.auth.clock_skew))
        context.limits.apply(settings.limits)
        stores.devices.mode = settings.devices.approval
        stores.rooms.mode = settings.rooms.approval
        stores.sessions.lifetime = settings.session.lifetime
        stores.chat_log.days = settings.storage.chat_log_days
        stores.chat_bound.max_bytes = settings.storage.chat_log_max_bytes
        parts.observer.configure(settings.logging)
        parts.connections.decisions.apply_settings()
        self.log.info(
            "settings read again: changed {changed}; only at a restart: {restart}",
            changed=", ".join(report.changed) or "nothing",
            restart=", ".join(report.needs_restart) or "nothing",
        )
        return report

    # Drain

    def drain(self, reason: str) -> None:
        """Empty the server, then end the process; nothing if a drain runs already."""
        if not self._serving.may(Step.DRAIN):
            return
        self.empty(reason)

        def ended(emptied: bool) -> None:
            if emptied and self._serving.may(Step.CALL_OFF):
                self._parts.reactor.stop()

        self._drain.finished().addCallback(ended)

    def empty(self, reason: str) -> None:
        """Accept no more connections, and begin the drain."""
        self._migrations.interrupt()
        self._parts.ports.shut()
        self._drain.begin(reason)

    def call_off_drain(self) -> bool:
        """Serve on, if the process is not ending yet.  @return: true if it was possible."""
        if not self._serving.may(Step.CALL_OFF) or not self._drain.running:
            return False
        self._parts.ports.open()
        self._drain.call_off()
        self._parts.ports.listen()
        self._migrations.go_on()
        return True

    @property
    def drain_report(self) -> DrainReport:
        """The progress of a drain."""
        return self._drain.report

    # Migration

    def migrate(self, plan: MigrationPlan) -> "Deferred[MigrationReport]":
        """Move every phone to another server."""
        return self._migrations.begin(plan)

    def call_off_migration(self) -> bool:
        """@return: true if one ran."""
        return self._migrations.call_off()

    @property
    def migration_report(self) -> MigrationReport | None:
        """The progress of a migration, or the result of the last one."""
        return self._migrations.report

    def changes(self) -> dict[str, object]:
        """The progress of a drain and of a migration, without what only operators may know."""
        changes: dict[str, object] = {}
        if self._drain.running:
            changes["drain"] = msgspec.structs.asdict(self._drain.report)
        if (report := self._migrations.report) is not None:
            moved = msgspec.structs.asdict(report)
            changes["migration"] = {name: moved[name] for name in moved if name not in _PLACE}
        return changes
