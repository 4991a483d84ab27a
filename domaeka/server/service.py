"""The server as a service: its start and its stop."""

import gc
from collections.abc import Iterable
from functools import partial
from typing import IO, Any, Final

from twisted.internet.defer import CancelledError, Deferred, DeferredList, inlineCallbacks, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka import __version__
from domaeka.bots.loading import Changes
from domaeka.errors import DomaekaError, StoreError
from domaeka.gateway import ServerState, Step
from domaeka.gateway.context import Context
from domaeka.gateway.transport.ports import place_of
from domaeka.logs import LoggedService
from domaeka.server.assembly import Parts
from domaeka.server.operations import Operations
from domaeka.server.preflight import give_back_memory
from domaeka.server.signals import Signals
from domaeka.server.watching import Watching
from domaeka.store.outboxes import KEEP_SECONDS
from domaeka.web.admin import AdminApi
from domaeka.web.admission import MAX_OF_THE_SOCKET
from domaeka.web.api.chat import ChatPages
from domaeka.web.health import HealthPages, LagProbe
from domaeka.web.local_port import LocalPort
from domaeka.web.proof import ProofPage
from domaeka.web.server import Site

#: Longest time that phones wait for the store to be opened, in seconds.
STORE_SECONDS: Final = 5.0
#: Thresholds of Python's collector of cycles; chat makes no cycles.  Source:
#: benchmarks/pipeline.py: the default thresholds cost 7 % of a message.
GC_THRESHOLDS: Final = (20_000, 20, 20)


class GatewayService(LoggedService):
    """The server: everything that starts and stops, in order."""

    log = Logger()

    def __init__(
        self,
        parts: Parts,
        lock: IO[bytes] | None = None,
        warnings: Iterable[str] = (),
        changes: Changes | None = None,
    ) -> None:
        """
        Start nothing.

        @param lock: keeps other servers out of the state directory; closed after the stop.
        @param warnings: logged at the start, for the operator.
        @param changes: of the bots' files: at each the bots are imported anew.
        """
        super().__init__(parts.observer)
        self._parts = parts
        self._lock = lock
        self._warnings = tuple(warnings)
        self._reactor = parts.reactor
        self._serving = parts.context.serving
        self.operations = Operations(parts)
        self._watching: Watching | None = None
        if changes is not None:
            reload = self.operations.reload_signalled
            self._watching = Watching(parts.reactor, changes.noticed, reload)
        self._site, self._local_site = _make_sites(parts, self.operations)
        self._local_port = LocalPort(parts.state_directory, parts.reactor)
        self._probe = LagProbe(parts.context.metrics, parts.reactor)
        self._http_port: Any = None
        self._opening: Any = None
        self._writing: Deferred[Any] | None = None  # to the store, at the end

    # IService

    def startService(self) -> None:
        """Start everything; the ports' sockets have been there since this was made."""
        super().startService()  # type: ignore[no-untyped-call]
        parts, stores = self._parts, self._parts.stores
        give_back_memory()
        for warning in (*self._warnings, parts.keys.health()):
            if warning is not None:
                self.log.warn("{warning}", warning=warning)
        if parts.keys.secrets.previous_over(parts.context.wall()):
            self.log.info("the previous key has ended: it is not accepted, and may be removed")
        stores.chat_log.start()
        stores.chat_bound.start()
        parts.disk.start()
        self._bots_started = parts.dispatcher.start()
        parts.connections.sweep.start()
        self._probe.start()
        if self._watching is not None:
            self._watching.start()
        parts.ports.start()
        self._http_port = parts.http.listen(self._site)
        self.log.info("HTTP on {place}", place=place_of(self._http_port))
        error = self._local_port.listen(self._local_site)
        if error is not None:
            self.log.warn(
                "no socket in the state directory: {error}: commands use the HTTP port", error=error
            )
        # A database that is down must not keep phones out: what they say is held meanwhile.
        parts.context.held.begin()
        self._opening = self._reactor.callLater(STORE_SECONDS, self._let_in)
        opened = stores.database.start().addErrback(self._store_failed)
        opened.addCallback(self._store_opened).addErrback(parts.fatal.end)
        signals = Signals(
            self._reactor, self._serving, self._cut_short, self.operations.reload_signalled
        )
        self._reactor.callWhenRunning(signals.take)

    def _store_failed(self, failure: Failure) -> None:
        """The store cannot be opened: name the setting, if there is one."""
        named = "storage.url: " if self._parts.context.settings.storage.url else ""
        raise StoreError(f"{named}{failure.getErrorMessage()}")

    def _store_opened(self, _: None) -> "Deferred[Any]":
        """Load the bans and the messages that were kept, then let phones in."""
        parts, stores = self._parts, self._parts.stores
        loaded = self._all(
            stores.bans.load().addCallback(parts.context.limits.load),
            stores.outboxes.load().addCallback(parts.connections.restore),
            stores.durable.load().addCallback(parts.connections.restore_records),
        )
        return loaded.addCallback(lambda _: self._store_read())

    def _store_read(self) -> None:
        """Answer what was said meanwhile, and let phones in."""
        self._parts.connections.decisions.store_read()
        self._parts.dispatcher.store_read()
        self._let_in()

    def _let_in(self) -> None:
        """Let phones in: the store is open, or took too long."""
        if not self._serving.may(Step.OPEN):
            return
        if self._opening.active():
            self._opening.cancel()
        self._parts.ports.listen()
        self._serving.take(Step.OPEN)
        self._log_start()
        self._parts.migrations.go_on()
        # All objects so far stay: the collector need not look through them again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    def _log_start(self) -> None:
        """Log in one line what runs here, with the ports as they were opened."""
        parts = self._parts
        source = parts.source
        bots = parts.dispatcher.bots()
        counts = ((bot.name, len(bot.commands)) for bot in bots)
        listed = ", ".join(f"{name} ({n} command{'s' * (n != 1)})" for name, n in counts)
        self.log.info(
            "domaeka {version} serves: {settings}, state directory {directory}, bots {listed}, "
            "phones on {phones}, HTTP on {http}",
            version=__version__,
            settings="no settings file"
            if source.path is None
            else f"settings file {source.path}" + (" (found here)" if source.found else ""),
            directory=str(parts.state_directory),
            bots=len(bots),
            listed=DomaekaError(listed),  # a text would be cut
            phones=", ".join(parts.ports.places),
            http=place_of(self._http_port),
        )

    @inlineCallbacks
    def stopService(self) -> Any:
        """Drain, write to the store what is kept, end."""
        parts = self._parts
        draining = self._serving.state is ServerState.DRAINING  # it may be over, too
        self._serving.take(Step.STOP)
        if self._opening.active():
            self._opening.cancel()
        if self._watching is not None:
            self._watching.stop()
        if not draining:
            self.operations.empty("shutdown")
        yield parts.drain.finished()
        yield parts.dispatcher.close()
        parts.connections.sweep.stop()
        self._writing = self._write_to_store()
        yield self._writing
        self._probe.stop()
        parts.disk.stop()
        parts.ports.stop()
        for site in (self._site, self._local_site):
            site.close()
        yield self._local_port.stop()
        yield self._http_port.stopListening()
        yield super().stopService()  # type: ignore[no-untyped-call]
        if self._lock is not None:
            self._lock.close()
        self._serving.take(Step.END)

    @inlineCallbacks
    def _write_to_store(self) -> Any:
        """Write to the store what is kept; then close it.  Both can be cancelled."""
        stores = self._parts.stores
        waiting = list(self._parts.connections.snapshot())
        kept = stores.outboxes.keep(waiting, self._reactor) if waiting else succeed(None)
        journal = self._parts.context.journal
        flushed: Deferred[None] = succeed(None) if journal is None else journal.flush()
        stores.decisions.stop()
        stores.chat_bound.stop()
        yield self._all(
            kept.addErrback(self._log_lost_messages, len(waiting)),
            flushed.addTimeout(KEEP_SECONDS, self._reactor).addErrback(self._log_unstored),
            stores.sessions.stop(),
            stores.devices.stop(),
            stores.rooms.stop(),
            stores.chat_log.stop(),
            stores.bot_values.stop(),
        )
        yield stores.database.stop().addErrback(lambda _: None)

    def _cut_short(self) -> None:
        """Another signal to stop: wait no longer for phones or, after them, for the store."""
        if self._writing is None:
            self._parts.drain.cut_short()
            return
        self.log.warn("the store is waited for no longer")
        # First the writes; then the end of the database itself.
        self._writing.cancel()
        self._writing.cancel()

    def _all(self, *waiting: "Deferred[None]") -> "Deferred[Any]":
        """Wait for all, and log what fails."""
        return DeferredList([one.addErrback(self._log_loss) for one in waiting])

    def _log_lost_messages(self, failure: Failure, count: int) -> None:
        self.log.error(
            "what waited for {count} phones could not be kept: {error}",
            count=count,
            error=failure.getErrorMessage() or "a signal came meanwhile",
        )

    def _log_unstored(self, failure: Failure) -> None:
        signalled = failure.check(CancelledError)  # type: ignore[no-untyped-call]
        late = f"the store has not answered for {KEEP_SECONDS:.0f} s"
        self.log.error(
            "durable delivery: the last changes could not be stored: {error}",
            error="a signal came meanwhile" if signalled else late,
        )

    def _log_loss(self, failure: Failure) -> None:
        if failure.check(CancelledError):  # type: ignore[no-untyped-call]
            pass  # logged once, for all
        elif failure.check(StoreError):  # type: ignore[no-untyped-call]
            self.log.error("the store: {error}", error=failure.getErrorMessage())
        else:
            self.log.failure("our own mistake", failure)


def _unread(context: Context) -> str | None:
    """A check of whether new phones would be answered."""
    return "the store has not been read yet" if context.held.holding else None


def _make_sites(parts: Parts, operations: Operations) -> tuple[Site, Site]:
    """Health pages and admin API: the site of the HTTP port, and that of the local socket."""
    context, stores = parts.context, parts.stores
    pages = HealthPages(
        context.metrics,
        parts.reactor,
        {
            "store": stores.database.health,
            "chat log": stores.chat_log.health,
            "durable delivery": lambda: context.journal.health() if context.journal else None,
            "keys": parts.keys.health,
            "sweep": parts.connections.sweep.health,
            "clock": context.authentication.clock_check.health,
            "bots": parts.dispatcher.health,
            "certificate": parts.ports.health,
            "disk": parts.disk.health,
        },
        needed={"store": lambda: _unread(context)},
        listening=lambda: parts.ports.listening,
        draining=lambda: context.serving.is_leaving,
        changes=operations.changes,
        wall=context.wall,
    )
    api = AdminApi(
        parts.directory,
        stores.devices,
        stores.rooms,
        stores.bans,
        stores.roles,
        parts.dispatcher,
        operations=operations,
        limits=context.limits,
        metrics=context.metrics,
        settings=lambda: context.settings,
        secrets=lambda: parts.keys.secrets,
        forget_chat=stores.chat_log.forget_lines,
        chat=ChatPages(stores.chat_search, stores.chat_log),
        watchers=context.events.watchers,
        timer=parts.reactor,
        wall=context.wall,
    )

    def ban_lifted(network: str) -> None:
        """Another server on the store has lifted a ban."""
        ban = context.limits.lift(network)
        if ban is not None:
            api.events.lifted(ban)

    stores.devices.add_listener(api.events.device_decided)
    stores.bans.watch(stores.decisions, parts.connections.decisions.ban_heard, ban_lifted)
    site = partial(
        Site,
        (*pages.routes(), *api.routes(), *ProofPage(parts.keys.admin_token).routes()),
        parts.reactor,
        context.metrics,
        parts.keys.admin_token,
        context.limits.bans_address,
        context.limits.denies,
        hosts=lambda: context.settings.http.hosts,
        wall=context.wall,
    )
    # Apart, so that no client of the port can take an operator's place.
    return site(), site(most=MAX_OF_THE_SOCKET)
