"""What the tests of the server share: whole servers, in virtual time, on a virtual network."""

import atexit
import errno
import gc
import json
import signal
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionRefusedError, ReactorNotRunning, UserError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.api import Bot, Context
from domaeka.bots.loading import Changes, load_bots
from domaeka.config import SettingsSource, SocketSettings
from domaeka.gateway.serving import ServerState
from domaeka.gateway.transport.ports import Sockets
from domaeka.logs import LogObserver
from domaeka.server import GatewayService, Platform, assemble, open_state
from domaeka.testing import STANDARD_IDENTITY, FakePhone, VirtualServer, run_clock
from domaeka.testing.loop import VirtualBotLoop
from tests import forget_after
from tests.bots_fakes import FakeThreads
from tests.clocks import WallClock
from tests.gateway_case import NOW
from tests.storing import FILLED, FakeThread

BOT = STANDARD_IDENTITY.bot_name
HOST = "127.0.0.1"
#: How long a connection takes that a server makes, in seconds.
WAY_SECONDS = 0.01
#: A bot whose answer takes as long as its thread does.
SLOW = Bot("slow")


@SLOW.command("# slow")
def slow(ctx: Context) -> str:
    """Answer later."""
    return "늦게"


class Network(Sockets):
    """
    The TCP of a machine for its servers, without sockets.

    @ivar taken: ports that are bound.
    @ivar holes: ports that take no connection, and refuse none.
    @ivar inherited: ports that were handed over, by their numbers.
    """

    def __init__(self, clock: Clock) -> None:
        self.taken: set[int] = set()
        self.holes: set[int] = set()
        self.inherited: VirtualInherited = VirtualInherited(self)
        self._clock = clock
        self._servers: dict[int, VirtualServer] = {}

    # Sockets

    def bind(
        self, interface: str, port: int, options: SocketSettings, backlog: int
    ) -> "VirtualSocket":
        if port in self.taken:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.taken.add(port)
        return VirtualSocket(self, port)

    def listen(self, listener: "VirtualSocket", factory: Any) -> "VirtualPort":
        self._servers[listener.port] = VirtualServer(self._clock, factory)
        self.inherited.accept(listener.port)
        return VirtualPort(self, listener)

    # Who connects

    def shut(self, port: int) -> None:
        """Nobody listens any more."""
        del self._servers[port]

    def lose_cuts(self, port: int) -> None:
        """From the next connection on, no server notices that one breaks."""
        self._servers[port].unaware = True

    def accepts(self, port: int) -> bool:
        """Whether somebody listens."""
        return port in self._servers

    def connect(self, port: int, factory: Any, host: str = "192.0.2.1") -> "Deferred[Any]":
        """Somebody connects from C{host}."""
        server = self._servers.get(port)
        if server is None and self.inherited.listens(port):
            return self.inherited.wait(port, factory, host)
        if server is None:
            refused: Deferred[Any] = Deferred()
            refused.errback(ConnectionRefusedError())
            return refused
        server.client_host = host
        return server.connect(factory)


class VirtualInherited:
    """Ports that were handed over, and stay open; tests call L{hand_over}."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._open: dict[int, bool] = {}
        self._claimed: set[int] = set()
        self._waiting: list[tuple[int, Any, str, Deferred[Any]]] = []

    def hand_over(self, port: int) -> None:
        """From now on connections wait there until somebody accepts them."""
        self._open[port] = True

    # InheritedSockets

    def claim(self, key: str, port: int) -> None:
        self._claimed.add(port)

    def at(self, interface: str, port: int) -> int | None:
        return port if port in self._open and port not in self._claimed else None

    def open(self, port: int, backlog: int) -> "VirtualSocket":
        self._open[port] = True
        return VirtualSocket(self._network, port, inherited=True)

    def refuse(self, port: int) -> None:
        self._open[port] = False

    # Who connects

    def listens(self, port: int) -> bool:
        """Whether who connects may wait."""
        return self._open.get(port, False)

    def wait(self, port: int, factory: Any, host: str) -> "Deferred[Any]":
        """Somebody connects, and waits to be accepted."""
        connected: Deferred[Any] = Deferred()
        self._waiting.append((port, factory, host, connected))
        return connected

    def accept(self, port: int) -> None:
        """Those who wait have their turn."""
        waiting, self._waiting = self._waiting, []
        for each, factory, host, connected in waiting:
            if each == port:
                self._network.connect(port, factory, host).chainDeferred(connected)
            else:
                self._waiting.append((each, factory, host, connected))


class VirtualSocket:
    """A socket that is bound."""

    def __init__(self, network: Network, port: int, inherited: bool = False) -> None:
        self.port = port
        self.family = socket.AF_UNIX  # no options of TCP
        self._network = network
        self._inherited = inherited

    def getsockname(self) -> tuple[str, int]:
        return HOST, self.port

    def setsockopt(self, *option: object) -> None:
        """As wanted."""

    def close(self) -> None:
        if not self._inherited:
            self._network.taken.remove(self.port)


class VirtualPort:
    """A port that listens."""

    def __init__(self, network: Network, listener: VirtualSocket) -> None:
        self._network = network
        self._socket = listener

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", HOST, self._socket.port)

    def stopListening(self) -> "Deferred[None]":
        self._network.shut(self._socket.port)
        self._socket.close()
        return succeed(None)


class Way:
    """By which a phone connects to a port: an endpoint."""

    def __init__(self, network: Network, port: int) -> None:
        self._network = network
        self._port = port

    def connect(self, factory: Any) -> "Deferred[Any]":
        return self._network.connect(self._port, factory)


class _Connector:
    """An attempt to connect to a port that is a hole."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def stopConnecting(self) -> None:
        self._factory.clientConnectionFailed(self, Failure(UserError()))


class Reactor(MemoryReactor):
    """A reactor of one server: its time is that of all, its network, too."""

    def __init__(self, clock: Clock, network: Network, stop: Callable[[], object]) -> None:
        """@param stop: what a process does before its reactor ends."""
        super().__init__()
        self.seconds = clock.seconds
        self.callLater = clock.callLater
        self.running = True
        self._network = network
        self._stop = stop

    def callFromThread(self, function: Callable[..., object], *args: Any) -> None:
        self.callLater(0, function, *args)

    def stop(self) -> None:
        if self.hasStopped:
            raise ReactorNotRunning
        self.hasStopped = True
        self.callLater(0, self._stop)

    def connectTCP(self, host: str, port: int, factory: Any, *args: Any, **kwargs: Any) -> Any:
        connector = _Connector(factory)
        factory.doStart()
        factory.startedConnecting(connector)
        if port not in self._network.holes:
            # No two connections sign in the same millisecond.
            self.callLater(WAY_SECONDS, self._connect, port, factory, connector)
        return connector

    def _connect(self, port: int, factory: Any, connector: object) -> None:
        self._network.connect(port, factory).addErrback(
            lambda failure: factory.clientConnectionFailed(connector, failure)
        )


class Exchange(Protocol):
    """An HTTP request, and what it is answered."""

    transport: Any

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._answer = b""

    # IProtocol

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        self._answer += data

    @property
    def status(self) -> int:
        """Its status; 0 while there is no answer."""
        return int(self._answer.split()[1]) if self._answer else 0

    @property
    def text(self) -> str:
        """The body."""
        return self._answer.partition(b"\r\n\r\n")[2].decode()

    @property
    def body(self) -> Any:
        """The body, of JSON."""
        return json.loads(self.text)


class Server:
    """
    A server that may be started again and again.

    @ivar threads: of its store.
    @ivar bots_threads: of its bots.
    @ivar changes: of its bots' files, if it watches them.
    @ivar service: of its last start.
    @ivar stopped: fires when the last stop is over.
    """

    def __init__(
        self, case: "ServerCase", port: int, *settings: tuple[str, str], config: Path | None = None
    ) -> None:
        """
        @param port: for phones; HTTP is on the one before.
        @param settings: keys and values that are not the defaults.
        @param config: a file of more.
        """
        self.port = port
        self.state = Path(case.mktemp()).absolute()
        self.state.mkdir(parents=True, mode=0o700)
        with closing(sqlite3.connect(self.state / "domaeka.db")) as database:
            FILLED.backup(database)
        self.threads = FakeThread()
        self.bots_threads = FakeThreads()
        self.settings = [
            ("server.interface", HOST),
            ("server.port", str(port)),
            ("http.port", str(port - 1)),
            ("server.max_connections", "100"),  # as many files as are allowed everywhere
            ("limits.allow", '["192.0.2.0/24", "127.0.0.0/8"]'),
            *settings,
        ]
        self.warnings: list[str] = []
        self.changes: Changes | None = None
        self._config = config
        self._case = case

    def make(self) -> None:
        """Make it; nothing is started."""
        case = self._case
        source = SettingsSource(self._config, self.settings, {})
        settings = source.load()
        self.reactor: Any = Reactor(case.clock, case.network, self._stop)
        platform = Platform(
            self.reactor,
            case.clock.seconds,
            case.wall,
            case.network,
            self.bots_threads,
            VirtualBotLoop(self.reactor, self.bots_threads),
            lambda name, reactor: self.threads,
        )
        state = open_state(str(self.state), {}, settings, case.wall())
        self.secrets = state.secrets
        bots = (*load_bots(settings.bots.load), SLOW)
        observer = LogObserver(settings.logging, case.output)
        try:
            self.parts = assemble(platform, settings, source, state, bots, observer)
        except BaseException:
            assert state.lock is not None
            state.lock.close()
            raise
        self.service = GatewayService(self.parts, state.lock, self.warnings, self.changes)

    def start(self) -> None:
        """Make it, and start it."""
        self.make()
        self.service.startService()
        self._case.run_for(0.0)

    def stop(self) -> None:
        """Have the process end in order."""
        self.reactor.stop()
        self._case.run_for(0.0)

    def _stop(self) -> None:
        self.stopped: Deferred[Any] = self.service.stopService()

    @property
    def serving(self) -> ServerState:
        """What it is doing."""
        return self.parts.context.serving.state

    def is_over(self) -> bool:
        """Whether the process has come to its end."""
        return self.serving is ServerState.STOPPED

    def phone(self, number: int = 1, script: str = "3.3.3", *others: "Server") -> FakePhone:
        """A phone, started.  @param others: servers that are next in its list."""
        case = self._case
        phone = FakePhone(
            case.clock,
            [Way(case.network, server.port) for server in (self, *others)],
            self.secrets.secret_key,
            self.secrets.salt,
            clock_offset=case.wall.ahead,
            script=script,
            identity=replace(STANDARD_IDENTITY, device_id=f"{number:016x}"),
        )
        phone.start()
        case.run_for(0.1)
        return phone

    def begin(self, method: str, path: str, body: object = None, token: str = "") -> Exchange:
        """Send an HTTP request, with the token of the API unless another is given."""
        data = b"" if body is None else json.dumps(body).encode()
        exchange = Exchange(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Bearer {token or self.secrets.admin_token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        factory = Factory.forProtocol(lambda: exchange)
        factory.noisy = False
        self._case.network.connect(self.port - 1, factory, HOST)
        self._case.run_for(0.0)
        return exchange

    def ask(self, method: str, path: str, body: object = None) -> Exchange:
        """Send an HTTP request, and wait for its answer."""
        exchange = self.begin(method, path, body)
        self._case.run_for(0.1)
        return exchange

    def health(self) -> str:
        """What load balancers are told."""
        return str(self.ask("GET", "/health/ready").body["status"])


class ServerCase(SynchronousTestCase):
    """
    Servers in virtual time.

    @ivar said: what was logged.
    @ivar exits: what is to be done when the process has ended.
    @ivar handlers: of signals.
    """

    def setUp(self) -> None:
        forget_after(self)
        self.clock: Any = Clock()
        self.clock.advance(1_000_000.0)
        self.wall = WallClock(self.clock, NOW)
        self.network = Network(self.clock)
        self.said: list[str] = []
        self.output: Any = _Lines()
        observer: Any = self._logged
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        # What is for a process of its own is not for that of the tests.
        for name in ("collect", "freeze", "set_threshold"):
            self.patch(gc, name, lambda *args: None)
        self.exits: list[tuple[object, ...]] = []
        self.patch(atexit, "register", lambda *call: self.exits.append(call))
        self.handlers: dict[int, Any] = {}
        self.patch(signal, "getsignal", lambda number: self.handlers.get(number, self._signalled))
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.server = Server(self, 9000)

    def _logged(self, event: LogEvent) -> None:
        self.said.append(formatEvent(event))

    def _signalled(self, number: int, frame: object) -> None:
        """As the reactor does."""
        self.server.reactor.callFromThread(self.server.reactor.stop)

    def signal(self, number: int) -> None:
        """The first server is sent a signal."""
        self.handlers[number](number, None)
        self.run_for(0.0)

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        run_clock(self.clock, seconds)

    def logged(self, text: str) -> int:
        """How often the log has said so."""
        return sum(text in line for line in self.said)


class _Lines(list[str]):
    """Where a log goes."""

    write = list.append

    def flush(self) -> None:
        pass
