"""A server for tests of clients: the gateway itself, with test doubles for stores and bots."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from random import Random
from typing import Any, Final

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol

from domaeka.config import load_settings
from domaeka.errors import CloseReason, ErrorCode
from domaeka.gateway import Step
from domaeka.gateway.authentication import Authentication
from domaeka.gateway.context import Context
from domaeka.gateway.conversation import Conversation
from domaeka.gateway.directory import Directory
from domaeka.gateway.journal import Journal
from domaeka.gateway.transport.connection import GatewayFactory, TransportContext
from domaeka.interfaces import (
    ChatLog,
    Devices,
    Dispatcher,
    Rooms,
    Sessions,
    StatusListener,
)
from domaeka.metrics import Metrics
from domaeka.policies.auth import Signer
from domaeka.policies.limits import AddressLimits
from domaeka.testing.fakes import FakeDevices, FakeDispatcher, FakeRooms, FakeSessions
from domaeka.wire import (
    Chat,
    Media,
    MigrationNotice,
    Reply,
    encode_error,
    encode_frame,
    encode_ping,
    encode_shutdown,
)

#: Addresses of the tests' peers: their attempts are not limited.
_ALLOW: Final = ("limits.allow", '["192.0.2.0/24", "127.0.0.0/8"]')
#: Seeds of the servers in a process, so that their epochs differ.
_seeds: Final = count(1)


def make_context(
    reactor: Any,
    wall: Callable[[], float],
    secret_key: str,
    salt: str,
    settings: Iterable[tuple[str, str]] = (),
    *,
    dispatcher: Dispatcher,
    devices: Devices | None = None,
    rooms: Rooms | None = None,
    chat_log: ChatLog | None = None,
    sessions: Sessions | None = None,
    random: Random | None = None,
    journal: Journal | None = None,
    expected: Callable[[int], int] = lambda key: 0,
) -> Context:
    """
    The context of a gateway; C{settings} differ from the defaults, other parts are doubles.

    @param expected: as of L{AddressLimits}.
    """
    loaded = load_settings(None, [_ALLOW, *settings], {})
    metrics = Metrics()
    signer = Signer([secret_key], salt, loaded.auth.clock_skew, wall)
    return Context(
        reactor=reactor,
        wall=wall,
        settings=loaded,
        signer=signer,
        authentication=Authentication(loaded.auth, signer, reactor.seconds, wall, metrics),
        limits=AddressLimits(
            loaded.limits, reactor.seconds, wall, expected, metrics.pools.gave_way
        ),
        sessions=sessions,
        devices=devices or FakeDevices(),
        rooms=rooms or FakeRooms(),
        chat_log=chat_log,
        dispatcher=dispatcher,
        metrics=metrics,
        random=random or Random(1),
        server_version="0",
        node="here",
        journal=journal,
    )


def transport_context(directory: Directory) -> TransportContext:
    """The state that connections in C{directory} share."""
    converse = partial(Conversation, directory.context, directory.manager)
    return TransportContext(directory.context, directory.admission, converse)


class FakeServer(Factory):
    """
    A server process for a virtual or a real port: the gateway, which also obeys the test.

    @ivar context: the context of its parts; new with each L{start}.
    @ivar directory: its directory of connections; new with each L{start}.
    @ivar bots: the dispatcher that answers; like C{devices} and C{sessions}, it outlives restarts.
    @ivar greets: False if new connections are accepted and never answered.
    @ivar refusal: the frame that answers, and ends, each new connection; L{None}: it is served.
    """

    noisy = False

    context: Context
    directory: Directory

    def __init__(
        self,
        reactor: Any,
        secret_key: str,
        salt: str,
        *,
        wall: Callable[[], float] | None = None,
        answer: Callable[[Chat], str | Media | None] = lambda chat: chat.text,
        sessions: FakeSessions | None = None,
        capabilities: Iterable[str] = ("gzip", "deflate", "session", "ack", "delivery", "probe"),
        settings: Iterable[tuple[str, str]] = (),
    ) -> None:
        """
        Make a server that is started.

        @param wall: the wall clock, in seconds since 1970; by default the reactor's time.
        @param answer: returns the reply to a message; by default its own text.
        @param sessions: session tokens to share with other servers.
        @param capabilities: those that it accepts.
        @param settings: keys and values that differ from the defaults.
        """
        self.bots = FakeDispatcher(answer)
        self.devices = FakeDevices()
        self.sessions = sessions or FakeSessions()
        self.greets = True
        self.refusal: bytes | None = None
        self._reactor = reactor
        self._wall: Callable[[], float] = wall or reactor.seconds
        self._secrets = secret_key, salt
        self._capabilities = frozenset(capabilities)
        self._settings = tuple(settings)
        self.start()

    def start(self) -> None:
        """Start a new process: all numbers, and all messages that waited, are forgotten."""
        self.context = context = make_context(
            self._reactor,
            self._wall,
            *self._secrets,
            self._settings,
            dispatcher=self.bots,
            devices=self.devices,
            sessions=self.sessions,
            random=Random(next(_seeds)),
        )
        context.capabilities &= self._capabilities
        self.directory = Directory(context, self._reactor)
        context.serving.take(Step.OPEN)
        self._factory = GatewayFactory(transport_context(self.directory), wrapped=True)
        self.go_on()

    def go_on(self) -> None:
        """Send pings and check deadlines by itself, as a server does."""
        self.directory.sweep.start()

    def stop(self) -> None:
        """Stop sending pings and checking deadlines; frames are still answered."""
        self.directory.sweep.stop()

    # IProtocolFactory

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Make the protocol of a connection."""
        if not self.greets:
            return Protocol()
        return self._factory.buildProtocol(addr) if self.refusal is None else _Refuser(self.refusal)

    # Received

    @property
    def chats(self) -> list[Chat]:
        """Chat messages that were taken, each once, in order."""
        return [chat for chat, _ in self.bots.submitted]

    @property
    def connections(self) -> int:
        """Number of connections."""
        return self.directory.registry.connections

    def received(self, frame: str) -> float:
        """Number of frames of a kind, as the metrics name it: C{handshake}, C{pong}…"""
        return self.context.metrics.frames_received.labels(frame).value

    # Sent

    def tell(self, event: str, frame: bytes, close: CloseReason | None = None) -> None:
        """Send a frame to all connections.  @param close: the reason to close them after it."""
        for member in self.directory.registry:
            member.tell(event, frame)
            if close is not None:
                member.close(close)

    def send(
        self,
        content: str | Media,
        room: str = "방",
        channel_id: str | None = None,
        on_status: StatusListener | None = None,
    ) -> None:
        """
        Send a message for a room to every device that has been seen.

        @param on_status: called with each status of it, and the reason where it was refused.
        """
        for device in self.directory.registry.devices():
            device.send(Reply(room, channel_id, device.key.bot_name, content), None, on_status)

    def ping(self) -> None:
        """Ping all connections."""
        self.tell("ping", encode_ping("", f"t{self._reactor.seconds()}"))

    def shut_down(self, reconnect_after: float, close: bool = True) -> None:
        """Notify all connections that the server closes, and close them."""
        frame = encode_shutdown("restart", reconnect_after)
        self.tell("serverShutdown", frame, CloseReason.SHUTDOWN if close else None)

    def migrate(
        self,
        host: str,
        port: int,
        *,
        after: float = 0.0,
        expires_in: float = 600.0,
        tls: bool = False,
        signed: bool = True,
    ) -> None:
        """Notify all connections that they are to go to another server."""
        moving = MigrationNotice(
            host, port, after, tls, int((self._wall() + expires_in) * 1000), "0" * 64
        )
        if signed:
            moving.signature = self.context.signer.sign(moving.signed_text)
        self.tell("serverMigration", encode_frame("serverMigration", moving))

    def end(self, code: ErrorCode, close: bool = True) -> None:
        """Send an error to all connections, and close them."""
        frame = encode_error(code, code.lower())
        self.tell("error", frame, CloseReason.INTERNAL if close else None)

    def refuse(self, code: ErrorCode | None) -> None:
        """Refuse new connections with an error; L{None}: serve them again."""
        self.refusal = None if code is None else encode_error(code, code.lower())


class _Refuser(Protocol):
    """Answer the first bytes with one frame, and close."""

    transport: Any

    def __init__(self, frame: bytes) -> None:
        self._frame = frame

    # IProtocol

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(self._frame)
        self.transport.loseConnection()
