"""What the tests of the gateway share: a gateway in virtual time, and peers that say anything."""

from typing import Any, Literal

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from domaeka.gateway.device import Device
from domaeka.gateway.directory import Directory
from domaeka.gateway.flow.writer import Writer
from domaeka.gateway.journal import Journal
from domaeka.gateway.lifecycle.drain import Drain
from domaeka.gateway.serving import Step
from domaeka.gateway.transport.connection import GatewayFactory
from domaeka.interfaces import DeviceKey, Dispatcher
from domaeka.metrics import Counter, Family
from domaeka.policies.auth import NO_KEY, Signer
from domaeka.testing import (
    FakeChatLog,
    FakeDevices,
    FakeDispatcher,
    FakePhone,
    FakeResumption,
    FakeRooms,
    VirtualServer,
    make_context,
    run_clock,
    transport_context,
)
from domaeka.wire import (
    Chat,
    Delivered,
    Dialect,
    ErrorFrame,
    Greeting,
    Identity,
    LineDecoder,
    Media,
    PhoneWriter,
    Ping,
    Said,
    ServerAck,
    encode_frame,
    read_server_frame,
)
from domaeka.wire.phone import ServerFrame
from tests import forget_after
from tests.clocks import WallClock

#: What the wall clock shows at the beginning, in seconds since 1970.
NOW = 1_790_000_000.0
SECRET = "a secret of enough bytes"
SALT = "salt"
KEY = DeviceKey("봇", "d" * 16)
PICTURE = b"\x89PNG"


class FakeSessions:
    """
    Tokens of a store that speaks when it is told to.

    @ivar asked: the device and token of each question, and the Deferred that waits for its
        answer; the token of one that asks for its first is L{None}.
    @ivar ended: the tokens whose connections have ended.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[DeviceKey, object, Deferred[Any]]] = []
        self.ended: list[tuple[DeviceKey, str]] = []

    def issue(self, key: DeviceKey, address: str, key_id: str) -> "Deferred[str]":
        """A device proved itself."""
        return self._ask(key, None)

    def resume(
        self, token: object, key: DeviceKey, address: str, key_id: str | None = None
    ) -> "Deferred[Any]":
        """A device showed a token."""
        return self._ask(key, token)

    def connection_ended(self, key: DeviceKey, token: str) -> None:
        """The connection to which a token was given has ended."""
        self.ended.append((key, token))

    def answer(self, token: str | Exception | None, key_id: str = NO_KEY) -> None:
        """Answer the oldest question."""
        _, shown, waits = self.asked.pop(0)
        if isinstance(token, Exception):
            waits.errback(token)
        else:
            waits.callback(token if shown is None else FakeResumption(token, key_id))

    def _ask(self, key: DeviceKey, token: object) -> "Deferred[Any]":
        waits: Deferred[Any] = Deferred()
        self.asked.append((key, token, waits))
        return waits


class BrokenWriter(Writer):
    """One of which nobody can tell whether it owes anything: a mistake of ours."""

    __slots__ = ()

    @property
    def is_idle(self) -> bool:
        raise ZeroDivisionError


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """
    One connection to the gateway, of a phone or of somebody else.

    What it says has been read when its method returns.

    @ivar frames: what it was told, oldest first.
    @ivar finished: whether the gateway has finished sending.
    @ivar lost: whether the connection is gone.
    @ivar refused: whether it was not let in.
    @ivar polite: whether it closes when the gateway does, as phones do.
    """

    transport: Any

    def __init__(
        self, clock: Clock, wall: WallClock, identity: Identity, dialect: Dialect, secret: str
    ) -> None:
        self.frames: list[ServerFrame] = []
        self.finished = False
        self.lost = False
        self.refused = False
        self.polite = True
        self.dialect = dialect
        self.clock_offset = 0.0
        self.writer = PhoneWriter(
            identity,
            Signer([secret], SALT, 0.0, wall).sign,
            lambda: wall() + self.clock_offset,
        )
        self.unsigned = PhoneWriter(identity, None, wall)
        self._clock = clock
        self._lines = LineDecoder(2**28)
        self._said = 0

    # IProtocol

    def dataReceived(self, data: bytes) -> None:
        self._lines.feed(data)
        while (line := self._lines.next_line()) is not None:
            self.frames.append(read_server_frame(line, self.dialect))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True

    # IHalfCloseableProtocol

    def readConnectionLost(self) -> None:
        self.finished = True
        if self.polite:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Its own FIN has left."""

    def refuse(self) -> None:
        """It was not let in."""
        self.refused = self.lost = True

    # What it says

    def write(self, *lines: bytes) -> None:
        """Send bytes, at once."""
        self.transport.write(b"".join(lines))
        run_clock(self._clock, 0.0)

    def handshake(self, **more: Any) -> None:
        """Say who it is."""
        self.write(self.writer.handshake(**more))

    def line(self, text: str, **more: Any) -> bytes:
        """A signed line of chat, unlike any other."""
        self._said += 1
        said = Said(
            room=more.pop("room", "방"),
            sender="보내는이",
            text=text,
            channel_id=more.pop("channel_id", "18398338829933617"),
            is_group=True,
            log_id=str(self._said),
            user_hash="0a1b2c",
        )
        writer = self.writer if more.pop("signed", True) else self.unsigned
        return writer.chat(said, self.dialect, **more)

    def chat(self, *texts: str, **more: Any) -> None:
        """Somebody writes in a room."""
        self.write(*(self.line(text, **more) for text in texts))

    def pong(self, event: Literal["ping", "pong"] = "pong", number: int = -1) -> None:
        """Answer a ping, the last one if no other is named."""
        asked = [frame for frame in self.frames if isinstance(frame, Ping)]
        stamp = msgspec.json.decode(asked[number].server_timestamp) if asked else "?"
        self.write(self.writer.pong(stamp, event=event))

    def ack(self, message_id: int) -> None:
        """It has everything up to a number."""
        self.write(encode_frame("ack", {"message_id": message_id}))

    def finish(self) -> None:
        """Finish sending, and read on."""
        self.transport.loseWriteConnection()
        run_clock(self._clock, 0.0)

    def drop(self) -> None:
        """Break the connection."""
        self.transport.abortConnection()
        run_clock(self._clock, 0.0)

    def stop_reading(self) -> None:
        """Take nothing from the kernel."""
        self.transport.pauseProducing()

    def read_on(self) -> None:
        """Take everything from the kernel."""
        self.transport.resumeProducing()
        run_clock(self._clock, 0.0)

    # What it was told

    def take(self) -> list[ServerFrame]:
        """What it was told since the last call."""
        frames, self.frames = self.frames, []
        return frames

    @property
    def texts(self) -> list[str]:
        """The texts among the replies."""
        return [
            frame.reply.content
            for frame in self.frames
            if isinstance(frame, Delivered) and isinstance(frame.reply.content, str)
        ]

    @property
    def numbers(self) -> list[int | None]:
        """The numbers of the replies."""
        return [frame.message_id for frame in self.frames if isinstance(frame, Delivered)]

    @property
    def errors(self) -> list[str]:
        """The codes of the errors."""
        return [frame.code for frame in self.frames if isinstance(frame, ErrorFrame)]

    @property
    def greetings(self) -> list[Greeting]:
        """The answers to handshakes."""
        return [frame for frame in self.frames if isinstance(frame, Greeting)]

    @property
    def pings(self) -> int:
        """How many pings there were."""
        return sum(isinstance(frame, Ping) for frame in self.frames)

    @property
    def taken(self) -> list[str]:
        """Which of its messages have been acknowledged."""
        return [frame.client_id for frame in self.frames if isinstance(frame, ServerAck)]


class _PeerFactory(Factory):
    noisy = False

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    # IProtocolFactory

    def buildProtocol(self, addr: object) -> Peer:
        return self._peer


def content_of(chat: Chat) -> str | Media | None:
    """What bots answer: the text itself, or a picture, or nothing."""
    if chat.text.startswith("picture"):
        return Media((PICTURE,), wait_ms=int(chat.text.partition(" ")[2] or 0) or None)
    return None if chat.text == "nothing" else chat.text


class GatewayCase(SynchronousTestCase):
    """A gateway on a virtual network, in virtual time, with a stand-in for each of its parts."""

    def setUp(self) -> None:
        forget_after(self)
        self.clock: Any = Clock()
        self.wall = WallClock(self.clock, NOW)
        self.serve()

    def serve(
        self,
        *settings: tuple[str, str],
        sessions: FakeSessions | None = None,
        dispatcher: Dispatcher | None = None,
        journal: Journal | None = None,
    ) -> None:
        """
        Start a gateway, in the place of the one before.

        @param settings: keys and values that are not the defaults.
        """
        self.devices = FakeDevices(
            listener=lambda key, approval: self.directory.decisions.approval_changed(key, approval)
        )
        self.rooms = FakeRooms()
        self.chat_log = FakeChatLog()
        #: Number of devices that may come back to an address, by its key.
        self.expected: dict[int | None, int] = {}
        self.bots = FakeDispatcher(content_of)
        self.context = make_context(
            self.clock,
            self.wall,
            SECRET,
            SALT,
            settings,
            devices=self.devices,
            rooms=self.rooms,
            chat_log=self.chat_log,
            sessions=sessions,
            dispatcher=dispatcher or self.bots,
            journal=journal,
            expected=lambda key: self.expected.get(key, 0),
        )
        self.metrics = self.context.metrics
        if hasattr(self, "factory"):
            self.directory.sweep.stop()
        self.directory: Directory = Directory(self.context, self.clock)
        self.registry = self.directory.registry
        self.directory.sweep.start()
        self.context.serving.take(Step.OPEN)
        self.shared = transport_context(self.directory)
        self.factory = GatewayFactory(self.shared)
        self.server = VirtualServer(self.clock, self.factory)
        self.drain = Drain(self.directory, self.clock)

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        run_clock(self.clock, seconds)

    # Peers

    def connect(
        self,
        key: DeviceKey = KEY,
        *,
        dialect: Dialect = Dialect.V33,
        secret: str = SECRET,
        version: str | None = None,
        client_type: str = "MessengerBotR",
    ) -> Peer:
        """Somebody connects."""
        identity = Identity(
            bot_name=key.bot_name,
            device_id=key.device_id,
            version=version or ("3.2.1" if dialect is Dialect.V32 else "3.3.3"),
            client_type=client_type,
        )
        peer = Peer(self.clock, self.wall, identity, dialect, secret)
        self.run_for(0.01)  # no two connections sign in the same millisecond
        self.server.connect(_PeerFactory(peer)).addErrback(lambda _: peer.refuse())
        self.run_for(0.0)
        return peer

    def greeted(self, key: DeviceKey = KEY, **more: Any) -> Peer:
        """A phone that has shaken hands."""
        peer = self.connect(key, **more)
        peer.handshake(bare=peer.dialect is Dialect.V32)
        return peer

    def ready(self, key: DeviceKey = KEY, **more: Any) -> Peer:
        """A phone that has authenticated."""
        peer = self.greeted(key, **more)
        peer.pong()
        peer.take()
        return peer

    def client(self, *capabilities: str, key: DeviceKey = KEY) -> Peer:
        """A client with capabilities, whose handshake is signed."""
        peer = self.connect(key)
        peer.handshake(signed=True, capabilities=capabilities)
        return peer

    def phone(self, **more: Any) -> FakePhone:
        """A phone in the field, started."""
        phone = FakePhone(
            self.clock, [self.server], SECRET, SALT, clock_offset=self.wall.ahead, **more
        )
        phone.start()
        self.run_for(0.0)
        return phone

    # What became of it

    def conversations(self) -> list[Any]:
        """Those of all connections, the oldest first; tests look inside."""
        return list(self.registry)

    def conversation(self) -> Any:
        """The newest connection's."""
        return self.conversations()[-1]

    def device(self, key: DeviceKey = KEY) -> Device:
        """A device that is known."""
        device = self.registry.device(key)
        assert device is not None
        return device

    def counted(self, family: "Family[Counter]") -> dict[str, float]:
        """What a metric has counted, by its label."""
        return {value: child.value for value, child in family.items() if child.value}

    @property
    def reasons(self) -> dict[str, float]:
        """Why connections have ended, and how many."""
        return self.counted(self.metrics.closes)
