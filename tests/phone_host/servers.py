"""The other ends of a bridge script's connections: a relay to a real server, and a false server."""

import base64
import json
from collections.abc import Callable
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.integration.support import HOST, free_port, reactor
from tests.phone_host import CHANNEL


class _End(Protocol):
    """One end of a relayed connection."""

    transport: Any

    def __init__(self, relay: "Relay", up: bool) -> None:
        self._relay = relay
        self._up = up
        self.other: _End | None = None
        self.early: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    # IProtocol

    def connectionMade(self) -> None:
        self._relay.ends.append(self)

    def dataReceived(self, data: bytes) -> None:
        relay = self._relay
        if self in relay.silenced:
            return
        if self._up:
            relay.bytes_up += len(data)
        else:
            relay.bytes_down += len(data)
        if self.other is None:
            self.early.append(data)
        else:
            self.other.write(data)
        if relay.on_data is not None:
            relay.on_data(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self in self._relay.ends:
            self._relay.ends.remove(self)
        if self.other is not None and self not in self._relay.silenced:
            self.other.transport.loseConnection()

    def cut(self) -> None:
        """Break the connection at once."""
        self.transport.abortConnection()
        if self.other is not None:
            self.other.transport.abortConnection()


class Relay(Factory):
    """
    A port in front of a server.  It is shut with the test.

    @ivar accepted: the times at which phones connected.
    @ivar on_data: called with the end that has relayed something.
    """

    noisy = False

    def __init__(self, test: TestCase, server_port: int) -> None:
        self.port = free_port()
        self.ends: list[_End] = []
        self.silenced: set[_End] = set()
        self.accepted: list[float] = []
        self.bytes_up = self.bytes_down = 0
        self.on_data: Callable[[_End], None] | None = None
        self._server: Any = TCP4ClientEndpoint(reactor, HOST, server_port)
        self._listener: Any = None
        self.listen()
        test.addCleanup(self.shut)

    def listen(self) -> None:
        """Take connections."""
        self._listener = reactor.listenTCP(self.port, self, interface=HOST)

    async def stop_listening(self) -> None:
        """Take no more connections."""
        if self._listener is not None:
            await self._listener.stopListening()
            self._listener = None

    async def shut(self) -> None:
        """Take no more, and break those that are there."""
        await self.stop_listening()
        self.cut()

    def cut(self) -> None:
        """Break all connections."""
        for end in list(self.ends):
            end.cut()

    def silence(self) -> None:
        """From now on carry nothing on the connections that are there, which stay open."""
        self.silenced.update(self.ends)

    # IProtocolFactory

    def buildProtocol(self, addr: object) -> _End:
        self.accepted.append(reactor.seconds())
        near, far = _End(self, up=True), _End(self, up=False)

        def connected(_: object) -> None:
            near.other, far.other = far, near
            for data in near.early:
                far.write(data)

        inner = Factory.forProtocol(lambda: far)
        inner.noisy = False
        self._server.connect(inner).addCallback(connected).addErrback(
            lambda _: near.transport.loseConnection()
        )
        return near


class FalseConnection(LineReceiver):
    """
    A phone's connection to a false server.

    @ivar frames: what the phone has said: event and C{data}.
    @ivar tails: what was behind each of these.
    """

    transport: Any
    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def __init__(self, server: "FalseServer") -> None:
        self._server = server
        self.frames: list[tuple[str, dict[str, Any]]] = []
        self.tails: list[bytes] = []
        self.open = True

    def tell(self, event: str, data: object, tail: str = "") -> None:
        """Say something."""
        frame = json.dumps({"event": event, "data": data}, separators=(",", ":"))
        self.transport.write(frame.encode() + tail.encode() + b"\n")

    def reply(self, text: str, room: str = "방", tail: str = "", **fields: Any) -> None:
        """Say something for a room.  @param tail: instead of the text in base64."""
        tail = tail or base64.b64encode(text.encode()).decode()
        data = {
            "room": room,
            "channel_id": CHANNEL,
            "bot_name": "가게봇",
            "message_type": "text",
            "content_encoding": "base64",
            "message_positions": [0, len(tail)],
        }
        self.tell("messageResponse", {**data, **fields}, tail)

    def refuse(self, code: str) -> None:
        """Say an error, and close."""
        self.tell("error", {"code": code, "message": "x"})
        self.transport.loseConnection()

    def of(self, event: str) -> list[dict[str, Any]]:
        """What the phone said under a name."""
        return [data for name, data in self.frames if name == event]

    # IProtocol

    def lineReceived(self, line: bytes) -> None:
        end = line.rindex(b"}") + 1
        frame = json.loads(line[:end])
        self.tails.append(line[end:])
        self.frames.append((frame["event"], frame["data"]))
        if frame["event"] == "handshake" and self._server.greeting is not None:
            self.tell("handshakeComplete", self._server.greeting)
        if "client_id" in frame["data"]:
            self.tell("ack", {"client_id": frame["data"]["client_id"]})
        self._server.received(self, frame["event"], frame["data"])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.open = False


class FalseServer(Factory):
    """
    A server that says what a test wants.

    @ivar greeting: its answer to a handshake, if it gives one.
    @ivar received: called with each frame of a phone.
    """

    noisy = False

    def __init__(self, test: TestCase, *capabilities: str, port: int = 0) -> None:
        """@param port: where it listens; by default any."""
        self.port = port or free_port()
        self.connections: list[FalseConnection] = []
        self.accepted: list[float] = []
        self.greeting: dict[str, Any] | None = {"success": True, "approved": True}
        if capabilities:
            self.greeting |= {"capabilities": list(capabilities), "epoch": "e1"}
        self.received: Callable[[FalseConnection, str, dict[str, Any]], None] = lambda *_: None
        listener = reactor.listenTCP(self.port, self, interface=HOST)
        test.addCleanup(listener.stopListening)
        test.addCleanup(self.cut)

    def cut(self) -> None:
        """Break all connections."""
        for connection in self.connections:
            connection.transport.abortConnection()

    # IProtocolFactory

    def buildProtocol(self, addr: object) -> FalseConnection:
        self.accepted.append(reactor.seconds())
        connection = FalseConnection(self)
        self.connections.append(connection)
        return connection
