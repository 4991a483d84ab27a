"""
The server: all its parts, in the order in which they start and stop.
"""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom
from types import FrameType
from typing import Any, Final

import msgspec
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    inlineCallbacks,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka import __version__
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.loading import bot_files, reload_bots
from domaeka.config import Settings, SettingsSource
from domaeka.errors import ConfigError, DomaekaError, StoreError
from domaeka.gateway.drain import Drain, DrainReport
from domaeka.gateway.migration import MigrationPlan, MigrationReport
from domaeka.gateway.moves import Moves
from domaeka.gateway.parts import Parts
from domaeka.gateway.ports import Ports, adopt, open_port, place_of
from domaeka.gateway.registry import Registry
from domaeka.logs import LoggedService, LogObserver
from domaeka.metrics import Metrics
from domaeka.policies.auth import Signer
from domaeka.policies.limits import AddressLimits, Ban
from domaeka.reload import ReloadReport, compare
from domaeka.startup import check, give_back_memory
from domaeka.state import Secrets, load_secrets, node_name, private_file
from domaeka.store.bans import StoredBans
from domaeka.store.chatlog import StoredChatLog
from domaeka.store.database import Database
from domaeka.store.devices import StoredDevices
from domaeka.store.drivers import sqlite_address
from domaeka.store.mailbox import StoredMailbox
from domaeka.store.rooms import StoredRooms
from domaeka.store.sessions import StoredSessions
from domaeka.web.admin import AdminApi
from domaeka.web.health import HealthPages, LagProbe
from domaeka.web.server import make_site

#: Name of the embedded database in the state directory.
DATABASE_NAME = "domaeka.db"
#: How long phones wait for the store to be opened, in seconds.
STORE_PATIENCE_SECONDS = 5.0
#: When Python looks for garbage in cycles, of which chat makes none.  Source:
#: benchmarks/pipeline.py: the default thresholds cost 7 % of a message.
GC_THRESHOLDS = (20_000, 20, 20)
#: Name of the file in the state directory that says where phones are being moved.
PLAN_NAME = "migration.json"
#: Where phones are being moved is told to phones, and to operators.
_PLACE: Final = frozenset({"host", "port", "reason"})
#: Exit status of a start that cannot work.
EXIT_CANNOT_START = 1


class GatewayService(LoggedService):
    """
    The server: everything that starts and stops, in order.

    @ivar warnings: what the operator is to be told at the start.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        secrets: Secrets,
        directory: Path,
        metrics: Metrics,
        dispatcher: BotDispatcher,
        observer: LogObserver,
        source: SettingsSource,
        more_bots: Sequence[str] = (),
    ) -> None:
        """
        Open the ports, start nothing.

        @param directory: the state directory.
        @param source: where C{settings} are from, to be read again.
        @param more_bots: bots to load beside those in the settings.
        @raise DomaekaError: something cannot work.
        """
        super().__init__(observer)
        self.warnings: list[str] = []
        self._reactor = reactor
        self._settings = settings
        self._dispatcher = dispatcher
        self._directory = directory
        self._source = source
        self._more_bots = tuple(more_bots)
        self._bot_files = bot_files((*settings.bots.load, *more_bots))
        url = settings.storage.url or sqlite_address(private_file(directory / DATABASE_NAME))
        self._database = database = Database(
            url,
            reactor,
            observe_write=lambda took: reactor.callFromThread(metrics.store_write.observe, took),
            observe_failure=metrics.errors.labels("store").inc,
        )
        self._devices = StoredDevices(database, reactor, settings.devices.approval)
        self._rooms = StoredRooms(database, reactor, settings.rooms.approval)
        self._sessions = StoredSessions(
            database,
            reactor,
            settings.session.lifetime,
            lambda: self._parts.verifier.accepted_keys(),
        )
        self._chat_log = StoredChatLog(
            database, reactor, settings.storage.chat_log_days, settings.storage.chat_log
        )
        self._bans = StoredBans(database)
        now = reactor.seconds
        self.node = node = node_name(directory)
        self._secrets = secrets
        self._signer = self._new_signer(settings)
        self._mailbox = StoredMailbox(database, node)
        self._parts = Parts(
            settings=settings,
            signer=self._signer,
            limits=AddressLimits(settings.limits, now),
            sessions=self._sessions,
            devices=self._devices,
            rooms=self._rooms,
            chat_log=self._chat_log if settings.storage.chat_log else None,
            metrics=metrics,
            seconds=now,
            random=SystemRandom(),
            server_version=__version__,
            node=node,
        )
        self._parts.dispatcher = dispatcher
        self._parts.store_bans = self._store_bans
        self._registry = Registry(self._parts, reactor)
        self._devices.add_listener(self._registry.approval_changed)
        self._drain = Drain(self._registry, reactor)
        self._ports = Ports(self._registry, reactor, settings, self._cannot_go_on)
        self._moves = Moves(
            self._registry, reactor, directory / PLAN_NAME, self._ports.shut, self._listen
        )
        self._signalled = False
        self._stopping = False
        self._last_wait: Deferred[Any] | None = None  # for the store, at the end
        self._broken_off = False
        self._http_port: Any = None
        self._pages = HealthPages(
            metrics,
            reactor,
            {
                "store": database.health,
                "chat log": self._chat_log.health,
                "keys": self._check_keys,
                "sweep": self._registry.health,
                "certificate": self._ports.health,
            },
            listening=lambda: self._ports.listening,
            draining=lambda: self._registry.draining or self._moves.away,
            changes=self._changes,
        )
        api = AdminApi(
            self._registry, self._devices, self._rooms, self._bans, dispatcher, operations=self
        )
        routes = (*self._pages.routes(), *api.routes())
        self._site = make_site(
            routes, reactor, metrics, secrets.admin_token, self._parts.limits.shuts_out
        )
        self._probe = LagProbe(metrics, reactor)
        self._watch(metrics)
        self._count_commands()
        self._http_socket = open_port(
            "http.port", settings.http.interface, settings.http.port, settings.socket
        )

    def _new_signer(self, settings: Settings) -> Signer:
        """What knows the keys that are accepted."""
        now, secrets = self._reactor.seconds, self._secrets
        keys = secrets.accepted_keys(now())
        return Signer(keys, secrets.salt, settings.auth.clock_skew, now, secrets.previous_ends)

    def _check_keys(self) -> str | None:
        """What is wrong with the keys that are accepted."""
        if self._secrets.has_published_key(self._reactor.seconds()):
            return "the key that old scripts were published with is accepted: everybody knows it"
        return None

    def _watch(self, metrics: Metrics) -> None:
        """Have the gauges read where things are."""
        budget = self._registry.budget
        metrics.connections.watch(lambda: len(self._registry))
        metrics.phones.watch(lambda: self._registry.phones)
        metrics.draining.watch(lambda: float(self._registry.draining or self._moves.away))
        metrics.bans.watch(lambda: self._parts.limits.banned)
        metrics.sessions.watch(self._sessions.live)
        metrics.breaker_state.refresh = self._watch_breakers
        metrics.certificate_expires.watch(lambda: self._ports.certificate_ends)
        metrics.outbox_bytes.watch(lambda: budget.used)
        metrics.outbox_messages.watch(
            lambda: sum(device.outbox.messages for device in self._registry.devices())
        )
        metrics.store_queue.watch(lambda: self._database.waiting + self._chat_log.waiting)

    def _count_commands(self) -> None:
        """Have the metrics know every command."""
        metrics = self._parts.metrics
        names = {command.name for command in self._dispatcher.commands()}
        metrics.handler.keep(names)
        metrics.handler_failures.keep(names)
        for name in names:
            metrics.handler_failures.register(name)

    def _watch_breakers(self) -> None:
        """Have the metrics know the breaker of every command, and of every service named so far."""
        family = self._parts.metrics.breaker_state
        breakers = self._dispatcher.breakers()
        family.keep(breakers)
        for name, breaker in breakers.items():
            family.register(name).set(float(breaker.state))

    # IService

    def startService(self) -> None:
        """Start everything; the ports have been open since this was made."""
        super().startService()  # type: ignore[no-untyped-call]
        give_back_memory()
        for warning in (*self.warnings, self._check_keys()):
            if warning is not None:
                self.log.warn("{warning}", warning=warning)
        if self._secrets.previous_over(self._reactor.seconds()):
            self.log.info("the previous key has ended: it is not accepted, and may be removed")
        self._chat_log.start()
        self._dispatcher.start()
        self._registry.start()
        self._moves.go_on()
        self._probe.start()
        self._ports.start()
        self._http_port = adopt(self._reactor, self._http_socket, self._site)
        self.log.info("HTTP on {place}", place=place_of(self._http_port))
        opened = self._database.start().addErrback(self._store_failed)
        opened.addCallback(self._store_opened).addErrback(self._cannot_go_on)
        # A database that is down must not keep phones out: those that are known are served.
        self._patience = self._reactor.callLater(STORE_PATIENCE_SECONDS, self._listen)
        self._reactor.callWhenRunning(self._take_signals)

    def _store_failed(self, failure: Failure) -> None:
        """The store cannot be opened: name the setting, where it is one."""
        named = "storage.url: " if self._settings.storage.url else ""
        raise StoreError(f"{named}{failure.getErrorMessage()}")

    def _store_opened(self, _: None) -> "Deferred[Any]":
        """Take back what was kept, then let phones in."""
        loaded = self._all(
            self._bans.load().addCallback(self._parts.limits.load),
            self._mailbox.load().addCallback(self._registry.load_mail),
        )
        return loaded.addCallback(lambda _: self._listen() if self._patience.active() else None)

    def _listen(self) -> None:
        """Let phones in."""
        if self._ports.listening or not self.running or self._registry.draining:
            return
        if self._patience.active():
            self._patience.cancel()
        self._ports.listen()
        # What is there by now stays: no need to look through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    def _store_bans(self, bans: Sequence[Ban]) -> None:
        self._bans.put(bans).addErrback(
            lambda failure: self.log.error(
                "bans are in force, but not stored: {error}", error=failure.getErrorMessage()
            )
        )

    def _cannot_go_on(self, reason: Failure | str) -> None:
        """What is needed cannot be had: say why in one line, and end with that status."""
        if not self.running:
            return
        error = self._source.locate(reason if isinstance(reason, str) else reason.getErrorMessage())
        self.log.critical("domaeka ends: {error}", error=ConfigError(error))  # a text would be cut
        # sys.stderr leads to the log by now.
        print(f"domaeka: {error}", file=sys.__stderr__)
        # twistd ends with 0 once its reactor has stopped in order.
        atexit.register(os._exit, EXIT_CANNOT_START)
        if self._reactor.running:
            self._reactor.stop()
        else:
            self._reactor.callWhenRunning(self._reactor.stop)

    def _take_signals(self) -> None:
        """Have a second SIGTERM or SIGINT cut short what the stop waits for."""
        for number in (signal.SIGTERM, signal.SIGINT):
            stop = signal.getsignal(number)

            def signalled(number: int, frame: FrameType | None, stop: Any = stop) -> None:
                if self._signalled or self._stopping:
                    self._reactor.callFromThread(self._cut_short)
                else:
                    self._signalled = True
                    stop(number, frame)

            if callable(stop):
                signal.signal(number, signalled)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload_asked))

    def _cut_short(self) -> None:
        """Another signal to stop: no more waiting, for phones or, behind them, for the store."""
        if self._last_wait is None:
            self._drain.cut_short()
        else:
            self._broken_off = True
            self.log.warn("the store is waited for no longer")
            self._last_wait.cancel()

    @inlineCallbacks
    def stopService(self) -> Any:
        """Drain, write what is to be kept, end."""
        self._stopping = True
        if self._patience.active():
            self._patience.cancel()
        if not self._drain.running and not self._drain.over:
            self._begin_drain("shutdown")
        yield self._drain.finished()
        yield self._dispatcher.close()
        self._registry.stop()
        mail = list(self._registry.mail())
        self._last_wait = self._all(
            self._mailbox.keep(mail, self._reactor).addErrback(self._log_lost_mail, len(mail)),
            self._sessions.stop(),
            self._devices.stop(),
            self._rooms.stop(),
            self._chat_log.stop(),
        )
        yield self._last_wait
        self._last_wait = self._database.stop().addErrback(lambda failure: None)
        if self._broken_off:
            self._last_wait.cancel()
        yield self._last_wait
        self._probe.stop()
        self._ports.stop()
        self._site.close()
        if self._http_port is not None:
            yield self._http_port.stopListening()
        yield super().stopService()  # type: ignore[no-untyped-call]

    # What an operator does

    def reload(self) -> ReloadReport:
        """
        Read the settings, the secrets, the certificates and the bots again.

        @return: what has changed, and what would only at a restart.
        @raise ConfigError: something is wrong; nothing has changed.
        """
        try:
            return self._reload()
        except ConfigError as error:
            raise ConfigError(self._source.locate(str(error))) from None

    def _reload(self) -> ReloadReport:
        wanted = self._source.load()
        check(wanted)
        settings, report = compare(self._settings, wanted)
        secrets = load_secrets(self._directory, settings.auth, self._reactor.seconds())
        certificates = self._ports.load_certificates()
        places = (*settings.bots.load, *self._more_bots)
        # The last that can fail, and the first that changes something.
        reload_bots(
            places, lambda bots: self._dispatcher.apply(bots, settings.bots, settings.breaker)
        )
        self._count_commands()
        files = bot_files(places)
        if any(files.get(path, file) != file for path, file in self._bot_files.items()):
            report.changed.append("bots")
        self._bot_files = files
        if self._ports.use_certificates(certificates):
            report.changed.append("certificates")
        if secrets != self._secrets:
            report.changed.append("secrets")
        self._settings = settings
        self._secrets = secrets
        self._signer = self._new_signer(settings)
        self._parts.apply(settings, self._signer)
        self._parts.limits.apply(settings.limits)
        self._devices.mode = settings.devices.approval
        self._rooms.mode = settings.rooms.approval
        self._sessions.lifetime = settings.session.lifetime
        self._chat_log.days = settings.storage.chat_log_days
        self._site.token = secrets.admin_token.encode()
        self.observer.configure(settings.logging)
        self._registry.settings_changed()
        self.log.info(
            "settings read again: changed {changed}; only at a restart: {restart}",
            changed=", ".join(report.changed) or "nothing",
            restart=", ".join(report.restart) or "nothing",
        )
        return report

    def _reload_asked(self) -> None:
        """SIGHUP."""
        try:
            self.reload()
        except DomaekaError as error:
            # As it is: a text would be cut.
            self.log.error("nothing has changed: {error}", error=error)
        except Exception:
            self.log.failure("the settings could not be read again")

    def drain(self, reason: str) -> None:
        """
        Empty the server, then end the process.

        @param reason: what phones are told, a word.
        """
        if self._drain.running or self._drain.over:
            return
        self._begin_drain(reason)

        def ended(emptied: bool) -> None:
            if emptied and not self._stopping:
                self._reactor.stop()

        self._drain.finished().addCallback(ended)

    def call_off_drain(self) -> bool:
        """
        Go on as if nothing had been said.

        @return: whether that was possible: not once the process is ending.
        @raise ConfigError: the port is taken by now; the drain goes on.
        """
        if self._stopping or not self._drain.running:
            return False
        self._ports.open()
        self._drain.call_off()
        self._listen()
        self._moves.go_on()
        return True

    @property
    def drain_report(self) -> DrainReport:
        """How a drain goes."""
        return self._drain.report

    def migrate(self, plan: MigrationPlan) -> "Deferred[MigrationReport]":
        """
        Move every phone to another server.

        @return: fires once it has begun; fails with L{MigrationRefused} where it cannot.
        """
        return self._moves.begin(plan)

    def call_off_migration(self) -> bool:
        """@return: whether one ran."""
        return self._moves.call_off()

    @property
    def migration_report(self) -> MigrationReport | None:
        """How a migration goes, or how the last one went."""
        return self._moves.report

    def _changes(self) -> dict[str, object]:
        """How far a drain has come, and a migration: what everybody may know."""
        changes: dict[str, object] = {}
        if self._drain.running:
            changes["drain"] = msgspec.structs.asdict(self._drain.report)
        if (report := self._moves.report) is not None:
            moved = msgspec.structs.asdict(report)
            changes["migration"] = {name: moved[name] for name in moved if name not in _PLACE}
        return changes

    def _begin_drain(self, reason: str) -> None:
        self._moves.interrupt()
        self._ports.shut()
        self._drain.begin(reason)

    def _all(self, *waiting: "Deferred[None]") -> "Deferred[Any]":
        """Wait for all, and log what fails."""
        return DeferredList([one.addErrback(self._log_loss) for one in waiting])

    def _log_lost_mail(self, failure: Failure, count: int) -> None:
        self.log.error(
            "what waited for {count} phones could not be kept: {error}",
            count=count,
            error=failure.getErrorMessage() or "a signal came meanwhile",
        )

    def _log_loss(self, failure: Failure) -> None:
        if failure.check(CancelledError):  # type: ignore[no-untyped-call]
            pass  # said once, for all
        elif failure.check(StoreError):  # type: ignore[no-untyped-call]
            self.log.error("the store: {error}", error=failure.getErrorMessage())
        else:
            self.log.failure("our own mistake", failure)
