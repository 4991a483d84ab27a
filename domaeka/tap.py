"""
C{twistd domaeka}: options, and all the wiring.
"""

import atexit
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from domaeka import __version__
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.loading import load_bots
from domaeka.bots.threads import CommandThreads
from domaeka.config import SECRET_KEYS, Settings, load_settings
from domaeka.errors import ConfigError, DomaekaError
from domaeka.gateway.drain import Drain
from domaeka.gateway.parts import Parts
from domaeka.gateway.protocol import GatewayFactory, open_listener, set_socket_options
from domaeka.gateway.registry import Registry
from domaeka.logs import LoggedService, LogObserver, observer_for
from domaeka.metrics import Metrics
from domaeka.policies.auth import Signer
from domaeka.policies.limits import AddressLimits, Ban
from domaeka.state import Secrets, load_or_create_secrets, state_directory
from domaeka.store.bans import StoredBans
from domaeka.store.chatlog import StoredChatLog
from domaeka.store.database import Database
from domaeka.store.devices import StoredDevices
from domaeka.store.drivers import sqlite_address
from domaeka.store.mailbox import StoredMailbox
from domaeka.store.rooms import StoredRooms
from domaeka.store.sessions import StoredSessions
from domaeka.web.health import HealthPages, LagProbe
from domaeka.web.server import make_site

#: Name of the embedded database in the state directory.
DATABASE_NAME = "domaeka.db"
#: How long phones wait for the store to be opened, in seconds.
STORE_PATIENCE_SECONDS = 5.0
#: When Python looks for garbage in cycles, of which chat makes none.  Source:
#: benchmarks/pipeline.py: the default thresholds cost 7 % of a message.
GC_THRESHOLDS = (20_000, 20, 20)
#: Exit status of a start that cannot work.
EXIT_CANNOT_START = 1


class Options(usage.Options):
    """Options of C{twistd domaeka}."""

    synopsis = "[options]"
    longdesc = (
        "A gateway for chat-bot phones. Every setting of docs/settings.md can be given in the "
        "file named by --config, as DOMAEKA_SECTION_KEY in the environment, or by --set."
    )
    optParameters = (
        ("port", None, None, "The phones' TCP port [default: 9000]"),
        ("http-port", None, None, "The HTTP port: health, metrics, API [default: 8080]"),
        ("config", None, None, "A TOML file of settings"),
        ("state-dir", None, None, "Where the database and the secrets are kept"),
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["bots"] = []
        self["set"] = []

    def opt_bots(self, value: str) -> None:
        """A bot to load, as MODULE:ATTRIBUTE; may be given more than once."""
        self["bots"].append(value)

    def opt_set(self, value: str) -> None:
        """A setting, as SECTION.KEY=VALUE; may be given more than once."""
        key, equals, text = value.partition("=")
        if not equals:
            raise usage.UsageError("--set: must be SECTION.KEY=VALUE")
        self["set"].append((key.strip(), text))

    def opt_version(self) -> None:
        """Show the version, and end."""
        print(f"domaeka {__version__}")
        raise SystemExit(0)

    def settings(self) -> Settings:
        """
        The settings that these options, the environment and the file make together.

        @raise ConfigError: which is wrong, and why.
        """
        overrides = list(self["set"])
        for option, key in (("port", "server.port"), ("http-port", "http.port")):
            if self[option] is not None:
                overrides.append((key, self[option]))
        path = Path(self["config"]) if self["config"] is not None else None
        return load_settings(path, overrides)


def makeService(options: Options) -> "GatewayService":
    """
    Wire a server.  What cannot work ends the process, with one line.

    @param options: parsed by twistd.
    """
    from twisted.internet import reactor

    try:
        return _make_service(options, reactor)
    except DomaekaError as error:
        print(f"domaeka: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CANNOT_START) from None


def _make_service(options: Options, reactor: Any) -> "GatewayService":
    settings = options.settings()
    observer = observer_for(settings.logging, options.parent or {}, reactor)
    directory = state_directory(options["state-dir"], os.environ)
    secrets = load_or_create_secrets(directory, settings.auth)
    # Bots beside the place from which the server is started, as with python -m.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    bots = load_bots((*settings.bots.load, *options["bots"]))
    metrics = Metrics()
    dispatcher = BotDispatcher(
        bots,
        reactor,
        CommandThreads(reactor),
        settings.bots,
        settings.breaker,
        observe=lambda command, took: metrics.handler.labels(command).observe(took),
        failed=lambda command: metrics.handler_failures.labels(command).inc(),
        busy=metrics.refused_messages.inc,
    )
    for name, breaker in dispatcher.breakers().items():
        metrics.handler.register(name)
        metrics.handler_failures.register(name)
        metrics.breaker_state.register(name).watch(breaker_level(breaker))
    service = GatewayService(reactor, settings, secrets, directory, metrics, dispatcher, observer)
    for key, _ in options["set"]:
        if key in SECRET_KEYS:
            service.warnings.append(f"--set {key}: others can read it in the list of processes")
    return service


def breaker_level(breaker: Any) -> Callable[[], float]:
    """What the metric says of a breaker."""
    return lambda: float(breaker.state)


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
    ) -> None:
        """
        Open the ports, start nothing.

        @param directory: the state directory.
        @raise DomaekaError: something cannot work.
        """
        super().__init__(observer)
        self.warnings: list[str] = []
        self._reactor = reactor
        self._settings = settings
        self._dispatcher = dispatcher
        url = settings.storage.url or sqlite_address(directory / DATABASE_NAME)
        self._database = database = Database(
            url,
            reactor,
            observe_write=lambda took: reactor.callFromThread(metrics.store_write.observe, took),
        )
        self._devices = StoredDevices(database, reactor, settings.devices.approval)
        self._rooms = StoredRooms(database, reactor, settings.rooms.approval)
        self._sessions = StoredSessions(database, reactor, settings.session.lifetime)
        self._chat_log = StoredChatLog(
            database, reactor, settings.storage.chat_log_days, settings.storage.chat_log
        )
        self._bans = StoredBans(database)
        now = reactor.seconds
        node = f"{socket.gethostname()}:{settings.server.port}"
        self._mailbox = StoredMailbox(database, node)
        self._parts = Parts(
            settings=settings,
            signer=Signer(
                secrets.accepted_keys(now()), secrets.salt, settings.auth.clock_skew, now
            ),
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
        self._parts.store_ban = self._store_ban
        self._registry = Registry(self._parts, reactor)
        self._devices.add_listener(self._registry.approval_changed)
        self._drain = Drain(self._registry, reactor)
        self._ports: list[Any] = []
        self._http_port: Any = None
        self._pages = HealthPages(
            metrics,
            reactor,
            {"store": database.health, "chat log": self._chat_log.health},
            listening=lambda: bool(self._ports),
            draining=lambda: self._registry.draining,
        )
        self._site = make_site(self._pages.routes(), reactor, metrics, secrets.admin_token)
        self._probe = LagProbe(metrics, reactor)
        self._watch(metrics)
        self._phone_socket = _open(
            "server.port", settings.server.interface, settings.server.port, settings
        )
        self._http_socket = _open(
            "http.port", settings.http.interface, settings.http.port, settings
        )

    def _watch(self, metrics: Metrics) -> None:
        """Have the gauges read where things are."""
        budget = self._registry.budget
        metrics.connections.watch(lambda: len(self._registry))
        metrics.draining.watch(lambda: float(self._registry.draining))
        metrics.sessions.watch(self._sessions.live)
        metrics.outbox_bytes.watch(lambda: budget.used)
        metrics.outbox_messages.watch(
            lambda: sum(device.outbox.messages for device in self._registry.devices())
        )
        metrics.store_queue.watch(lambda: self._database.waiting + self._chat_log.waiting)

    # IService

    def startService(self) -> None:
        """Start everything; the ports have been open since this was made."""
        super().startService()  # type: ignore[no-untyped-call]
        for warning in self.warnings:
            self.log.warn("{warning}", warning=warning)
        self._chat_log.start()
        self._dispatcher.start()
        self._registry.start()
        self._probe.start()
        self._http_port = _adopt(self._reactor, self._http_socket, self._site)
        self.log.info("HTTP on {place}", place=_place(self._http_port))
        self._database.start().addCallback(self._store_opened).addErrback(self._cannot_go_on)
        # A database that is down must not keep phones out: those that are known are served.
        self._patience = self._reactor.callLater(STORE_PATIENCE_SECONDS, self._listen)
        self._reactor.callWhenRunning(self._take_signals)

    def _store_opened(self, _: None) -> "Deferred[Any]":
        """Take back what was kept, then let phones in."""
        loaded = self._all(
            self._bans.load().addCallback(self._parts.limits.load),
            self._mailbox.load().addCallback(self._registry.load_mail),
        )
        return loaded.addCallback(lambda _: self._listen())

    def _listen(self) -> None:
        """Let phones in."""
        if self._ports or not self.running:
            return
        if self._patience.active():
            self._patience.cancel()
        factory = GatewayFactory(self._registry)
        self._listening(_adopt(self._reactor, self._phone_socket, factory), "phones")
        for text in self._settings.server.endpoints:
            self._listen_at(text)
        # What is there by now stays: no need to look through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    def _store_ban(self, ban: Ban) -> None:
        self._bans.put([ban]).addErrback(
            lambda failure: self.log.error(
                "a ban is in force, but not stored: {error}", error=failure.getErrorMessage()
            )
        )

    def _listening(self, port: Any, what: str) -> None:
        self._ports.append(port)
        self.log.info("listening for {what} on {place}", what=what, place=_place(port))

    def _listen_at(self, text: str) -> None:
        """Listen at one of C{server.endpoints}."""
        try:
            endpoint = serverFromString(  # type: ignore[no-untyped-call]
                self._reactor, text
            )
        except (ValueError, TypeError, LookupError, OSError) as error:
            self._cannot_go_on(f"server.endpoints: {text}: {error}")
            return
        factory = GatewayFactory(self._registry, proxied=text.startswith("haproxy:"))

        def listening(port: Any) -> None:
            listener = getattr(port, "socket", None)
            if listener is not None:
                set_socket_options(listener, self._settings.socket)
            self._listening(port, text.partition(":")[0])

        endpoint.listen(factory).addCallback(listening).addErrback(self._cannot_go_on)

    def _cannot_go_on(self, reason: Failure | str) -> None:
        """What is needed cannot be had: say why in one line, and end with that status."""
        if not self.running:
            return
        error = reason if isinstance(reason, str) else reason.getErrorMessage()
        self.log.critical("domaeka ends: {error}", error=error)
        print(f"domaeka: {error}", file=sys.stderr)
        # twistd ends with 0 once its reactor has stopped in order.
        atexit.register(os._exit, EXIT_CANNOT_START)
        if self._reactor.running:
            self._reactor.stop()
        else:
            self._reactor.callWhenRunning(self._reactor.stop)

    def _take_signals(self) -> None:
        """Have a second SIGTERM or SIGINT cut the drain short."""
        for number in (signal.SIGTERM, signal.SIGINT):
            stop = signal.getsignal(number)

            def signalled(number: int, frame: FrameType | None, stop: Any = stop) -> None:
                if self._registry.draining:
                    self._reactor.callFromThread(self._drain.cut_short)
                else:
                    stop(number, frame)

            if callable(stop):
                signal.signal(number, signalled)

    @inlineCallbacks
    def stopService(self) -> Any:
        """Drain, write what is to be kept, end."""
        self._registry.draining = True
        ports, self._ports = self._ports, []
        for port in ports:
            port.stopListening()
        if self._patience.active():
            self._patience.cancel()
        yield self._drain.begin("shutdown")
        yield self._dispatcher.close()
        self._registry.stop()
        yield self._all(
            self._mailbox.save(self._registry.mail()),
            self._sessions.stop(),
            self._devices.stop(),
            self._rooms.stop(),
            self._chat_log.stop(),
        )
        yield self._database.stop()
        self._probe.stop()
        self._site.close()
        if self._http_port is not None:
            yield self._http_port.stopListening()
        yield super().stopService()  # type: ignore[no-untyped-call]

    def _all(self, *waiting: "Deferred[None]") -> "Deferred[Any]":
        """Wait for all, and log what fails."""
        return DeferredList(
            [
                one.addErrback(lambda failure: self.log.failure("while stopping", failure))
                for one in waiting
            ]
        )


def _open(key: str, interface: str, port: int, settings: Settings) -> socket.socket:
    try:
        return open_listener(interface, port, settings.socket)
    except OSError as error:
        place = f"{interface or '*'}:{port}"
        raise ConfigError(f"{key}: cannot listen on {place}: {error.strerror or error}") from None


def _adopt(reactor: Any, listener: socket.socket, factory: Any) -> Any:
    port = reactor.adoptStreamPort(listener.fileno(), listener.family, factory)
    listener.close()  # the reactor has one of its own
    return port


def _place(port: Any) -> str:
    address = port.getHost()
    host = getattr(address, "host", None)
    return str(address) if host is None else f"{host}:{getattr(address, 'port', '')}"
