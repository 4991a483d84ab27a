"""Tests for L{domaeka.testing}: the stand-in phone, the virtual network, the server's parts."""

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from domaeka.errors import ErrorCode
from domaeka.interfaces import Approval, DeviceFacts, DeviceKey, RoomKey
from domaeka.policies.auth import NO_KEY
from domaeka.testing import (
    FakeDevices,
    FakeDispatcher,
    FakeOrigin,
    FakePhone,
    FakeRooms,
    FakeServer,
    FakeSessions,
    Reconnection,
    VirtualServer,
    VirtualTransport,
    run_clock,
)
from domaeka.wire import Dialect, FrameReader, LineDecoder, Media, Reply, encode_ping, encode_reply
from tests.test_docs import ROOT, fenced

#: Of the phones.
ADDRESS = "192.0.2.1"

NOW = 1_790_000_000.0
SECRET = "a secret of enough bytes"
SALT = "salt"


def reply_line(content: str | Media) -> bytes:
    """A reply as the server sends it."""
    return encode_reply(Reply("방", "18398338829933617", "가게봇", content), Dialect.V33, "t")


class _Server(Factory):
    """Keep what phones say, and answer texts with themselves."""

    noisy = False

    def __init__(self) -> None:
        self.connections: list[_ServerProtocol] = []

    def buildProtocol(self, addr: object) -> "_ServerProtocol":
        protocol = _ServerProtocol()
        self.connections.append(protocol)
        return protocol


class _ServerProtocol(Protocol):
    transport: Any

    def __init__(self) -> None:
        self._lines = LineDecoder()
        self.texts: list[str] = []
        self.pongs = 0
        self.lost = False

    # IProtocol

    def dataReceived(self, data: bytes) -> None:
        self._lines.feed(data)
        while (line := self._lines.next_line()) is not None:
            message: Any = FrameReader().read(line)
            text = getattr(message, "text", None)
            if text is None:
                self.pongs += type(message).__name__ == "Pong"
                continue
            self.texts.append(text)
            reply = Reply(message.room, message.channel_id, "가게봇", text)
            self.write(encode_reply(reply, message.dialect, "t"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True

    def write(self, data: bytes) -> None:
        """Send something to the phone."""
        self.transport.write(data)


class _Endpoint:
    """Connect to a transport that is there already."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    # IStreamClientEndpoint

    def connect(self, factory: Factory) -> "Deferred[Protocol]":
        protocol: Any = factory.buildProtocol(None)
        protocol.makeConnection(self._transport)
        return succeed(protocol)


class FakePhoneTests(SynchronousTestCase):
    """Tests for L{FakePhone} on a virtual network."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.factory = _Server()
        self.server = VirtualServer(self.clock, self.factory)
        self.phone = self.make(self.server)
        self.phone.start()
        self.run_for(0.0)

    def make(self, *servers: VirtualServer, script: str = "3.3.3", scale: float = 1.0) -> FakePhone:
        """A phone that is not started yet."""
        return FakePhone(self.clock, servers, SECRET, SALT, script=script, reconnect_scale=scale)

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        run_clock(self.clock, seconds)

    def connect_times(self, phone: FakePhone) -> list[float]:
        """When it connected, from now on."""
        return [time - NOW for time in phone.record.connects]

    def test_chat(self) -> None:
        """What is said is answered."""
        expected = self.phone.expect("하나", "둘")
        self.phone.say("하나")
        self.phone.say("둘")
        self.run_for(0.0)
        self.successResultOf(expected)
        self.assertEqual(self.phone.texts("테스트방"), ["하나", "둘"])

    def test_expects_in_vain(self) -> None:
        """Other replies than those expected are an error."""
        expected = self.phone.expect("하나")
        self.phone.say("둘")
        self.run_for(0.0)
        self.failureResultOf(expected, AssertionError)

    def test_comes_back(self) -> None:
        """It is back 4.0 s after each loss, with what was said meanwhile."""
        for _ in range(2):
            self.factory.connections[-1].transport.loseConnection()
            self.run_for(0.0)
            self.phone.say("meanwhile")
            self.run_for(5.0)
        self.assertEqual(self.connect_times(self.phone), [0.0, 4.0, 9.0])
        self.assertEqual(self.factory.connections[-1].texts, ["meanwhile"])

    def test_one_connection(self) -> None:
        """What is said before it has started waits, and makes no connection of its own."""
        phone = self.make(self.server)
        phone.say("early")
        self.run_for(5.0)
        phone.start()
        self.run_for(5.0)
        self.assertEqual(len(phone.record.connects), 1)
        self.assertEqual(phone.texts(), ["early"])

    def test_closed_port(self) -> None:
        """With the port closed it tries after 4, 8, 16, 32, 60, 60 s."""
        reconnection = Reconnection(1)
        self.assertEqual([reconnection.delay() for _ in range(7)], [4, 8, 16, 32, 60, 60, 60])
        self.server.open = False
        self.phone.drop()
        self.run_for(27.0)
        self.server.open = True
        self.run_for(1.0)
        self.assertEqual(self.connect_times(self.phone), [0.0, 28.0])

    def test_next_server(self) -> None:
        """It moves on only when connecting fails, and stays where it was taken."""
        other = _Server()
        phone = self.make(self.server, VirtualServer(self.clock, other))
        self.server.open = False
        phone.start()
        self.run_for(4.0)
        self.assertEqual(len(other.connections), 1)
        self.server.open = True
        phone.drop()
        self.run_for(4.0)
        self.assertEqual(len(other.connections), 2)

    def test_refused_for_ever(self) -> None:
        """success:false sends it away for 4.0 s, again and again."""
        for _ in range(3):
            self.factory.connections[-1].write(
                b'{"event":"handshakeComplete","data":{"success":false}}\n'
            )
            self.run_for(4.0)
        self.assertEqual(self.connect_times(self.phone), [0.0, 4.0, 8.0, 12.0])

    def test_blocked(self) -> None:
        """While it sends files nothing is read from the socket, and pings wait."""
        server = self.factory.connections[0]
        server.write(reply_line(Media((b"png",), wait_ms=3000)))
        self.run_for(1.0)
        server.write(encode_ping("가게봇", "t"))
        self.run_for(3.1)
        self.assertEqual(server.pongs, 0)
        self.assertEqual(self.phone.record.pings, [])
        self.run_for(0.2)
        self.assertEqual(server.pongs, 1)

    def test_writes_until_it_sees_the_end(self) -> None:
        """What is said before it reads that the server has ended its side goes out all the same."""
        server = self.factory.connections[0]
        self.phone.block(1.0)
        server.transport.loseWriteConnection()
        self.run_for(0.5)
        self.phone.say("late")
        self.run_for(1.0)
        self.assertEqual((server.texts, self.phone.online), (["late"], False))

    def test_pauses_its_transport(self) -> None:
        """On any transport, a blocked phone pauses reading."""
        transport = StringTransport()
        phone = FakePhone(self.clock, [_Endpoint(transport)], None)
        phone.start()
        phone.block(2.0)
        self.assertEqual(transport.producerState, "paused")
        self.clock.advance(2.0)
        self.assertEqual(transport.producerState, "producing")

    def test_reload(self) -> None:
        """A reload overlaps two connections; the old one dies last and does not come back."""
        self.phone.reload()
        self.run_for(3.9)
        old, new = self.factory.connections
        self.assertEqual((old.lost, new.lost), (False, False))
        self.phone.say("new")
        self.run_for(5.0)
        self.assertEqual((old.lost, new.lost, new.texts), (True, False, ["new"]))

    def test_repeat(self) -> None:
        """A repeated line is the same line."""
        self.phone.say("twice")
        self.phone.repeat()
        self.run_for(0.0)
        self.assertEqual(self.factory.connections[0].texts, ["twice", "twice"])

    def test_scale(self) -> None:
        """A phone in a hurry comes back sooner."""
        phone = self.make(self.server, scale=0.1)
        phone.start()
        phone.drop()
        self.run_for(1.0)
        self.assertEqual(len(phone.record.connects), 2)
        self.assertAlmostEqual(self.connect_times(phone)[1], 0.4, 3)

    def test_stop(self) -> None:
        """Stopped, it leaves nothing behind, whatever it was doing."""
        self.factory.connections[0].write(reply_line(Media((b"png",))))
        self.phone.reload()
        self.server.open = False
        away = self.make(self.server)
        away.start()
        self.run_for(1.0)
        stopped = [self.phone.stop(), away.stop()]
        self.run_for(0.0)
        for ended in stopped:
            self.successResultOf(ended)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class _Reader(Protocol):
    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.lost: Any = None

    # IProtocol

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = type(reason.value).__name__


@implementer(IHalfCloseableProtocol)
class _Answerer(_Reader):
    # IHalfCloseableProtocol

    def readConnectionLost(self) -> None:
        self.transport.write(b"an answer")
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Not of interest."""


class _Producer:
    def __init__(self) -> None:
        self.calls: list[str] = []

    # IPushProducer

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class VirtualServerTests(SynchronousTestCase):
    """Tests for L{VirtualServer} and L{VirtualTransport}."""

    def setUp(self) -> None:
        self.clock = Clock()
        server = VirtualServer(self.clock, Factory.forProtocol(_Reader))
        connected = server.connect(Factory.forProtocol(_Reader))
        self.client: _Reader = self.successResultOf(connected)
        [self.far] = server.accepted
        self.near: VirtualTransport = self.client.transport
        self.server: _Reader = self.far._protocol

    def test_carries(self) -> None:
        """Bytes arrive, and the end after them."""
        self.near.write(b"all ")
        self.near.writeSequence([b"of ", b"it"])
        self.near.loseConnection()
        self.clock.advance(0)
        self.assertEqual(self.server.data, b"all of it")
        self.assertEqual((self.client.lost, self.server.lost), ("ConnectionDone",) * 2)

    def test_holds_back(self) -> None:
        """What a paused reader does not take pauses the other side's producer."""
        producer = _Producer()
        self.near.registerProducer(producer, True)
        self.far.pauseProducing()
        for _ in range(3):
            self.near.write(b"x" * 60_000)
            self.clock.advance(0)
        self.assertEqual((self.server.data, producer.calls), (b"", ["pause"]))
        self.far.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(len(self.server.data), 180_000)
        self.assertEqual(producer.calls, ["pause", "resume"])

    def test_half_close(self) -> None:
        """Whoever has sent a FIN can still be answered."""
        server = VirtualServer(self.clock, Factory.forProtocol(_Answerer))
        client = self.successResultOf(server.connect(Factory.forProtocol(_Reader)))
        client.transport.loseWriteConnection()
        self.clock.advance(0)
        self.assertEqual((client.data, client.lost), (b"an answer", "ConnectionDone"))

    def test_abort(self) -> None:
        """An abort ends both sides at once."""
        self.near.abortConnection()
        self.clock.advance(0)
        self.assertEqual(self.client.lost, "ConnectionAborted")
        self.assertEqual(self.server.lost, "ConnectionLost")


class FakesTests(SynchronousTestCase):
    """Tests for the stand-ins of the server's parts."""

    key = DeviceKey("가게봇", "d")

    def test_devices(self) -> None:
        """A device becomes what was said, until an operator decides; who knows nothing says so."""
        told: list[tuple[DeviceKey, Approval]] = []
        devices = FakeDevices(Approval.PENDING, lambda *decision: told.append(decision))
        devices.store_is_known = False
        self.assertIsNone(devices.enter(self.key, DeviceFacts("3.3.3")))
        devices.store_is_known = True
        self.assertIs(devices.enter(self.key, DeviceFacts("3.3.3")), Approval.PENDING)
        self.successResultOf(devices.set_approval(self.key, Approval.BLOCKED))
        self.assertEqual((devices.approval(self.key), told), ("blocked", [(self.key, "blocked")]))

    def test_rooms(self) -> None:
        """A room is answered when it is approved."""
        rooms = FakeRooms(Approval.PENDING)
        room = RoomKey("가게봇", "1")
        self.assertFalse(rooms.enter(room, self.key, "방", True))
        self.successResultOf(rooms.set_approval(room, Approval.APPROVED))
        self.assertTrue(rooms.enter(room, self.key, "방", True))

    def test_sessions(self) -> None:
        """A token is good until its successor is shown, and for its own device only."""
        sessions = FakeSessions()
        first = self.successResultOf(sessions.issue(self.key, ADDRESS, NO_KEY))
        other = DeviceKey("가게봇", "another")
        self.assertIsNone(self.successResultOf(sessions.resume(first, other, ADDRESS)).token)
        lost = self.successResultOf(sessions.resume(first, self.key, ADDRESS, "key")).token
        second = self.successResultOf(sessions.resume(first, self.key, ADDRESS)).token
        third = self.successResultOf(sessions.resume(second, self.key, ADDRESS)).token
        for spent in (first, lost):
            self.assertIsNone(self.successResultOf(sessions.resume(spent, self.key, ADDRESS)).token)
        self.assertEqual(sessions.live, {second: self.key, third: self.key})

    def test_dispatcher(self) -> None:
        """Messages are answered and done, at once or when released."""
        dispatcher = FakeDispatcher(lambda chat: chat.text.upper(), hold=True)
        origin = FakeOrigin()
        chat: Any = FrameReader().read(b'{"event":"analyze","data":{"room":"r","text":"a"}}')
        dispatcher.submit(chat, origin)
        self.assertEqual((origin.texts, origin.done), ([], []))
        dispatcher.release()
        self.assertEqual((origin.texts, origin.done), (["A"], [chat]))


class FakeServerTests(SynchronousTestCase):
    """Tests for L{FakeServer}; those of the client show the rest."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = FakeServer(self.clock, SECRET, SALT)
        self.port = VirtualServer(self.clock, self.server)
        self.phone = FakePhone(self.clock, [self.port], SECRET, SALT)

    def test_example(self) -> None:
        """The example of docs/client.md runs."""
        (example,) = (
            code for code in fenced(ROOT / "docs/client.md", "python") if "FakeServer" in code
        )
        exec(example, {})

    def test_serves_phones(self) -> None:
        """Phones of the field are served, too; wrong signatures are not."""
        stranger = FakePhone(self.clock, [self.port], "another secret of enough", SALT)
        for phone in (self.phone, stranger):
            phone.start()
            run_clock(self.clock, 1.0)
            phone.say("안녕", room="방")
            run_clock(self.clock, 1.0)
        self.assertEqual((self.phone.texts(), stranger.texts()), (["안녕"], []))
        self.assertEqual([chat.text for chat in self.server.chats], ["안녕"])

    def test_refuses(self) -> None:
        """Nobody is served while it refuses; those who are here already are."""
        self.phone.start()
        run_clock(self.clock, 1.0)
        self.server.refuse(ErrorCode.BANNED)
        self.phone.say("하나", room="방")
        run_clock(self.clock, 1.0)
        self.assertEqual(self.server.connections, 1)
        self.port.accepted[-1].abortConnection()
        run_clock(self.clock, 60.0)
        self.assertEqual(self.server.connections, 0)
        self.server.refuse(None)
        run_clock(self.clock, 120.0)
        self.assertEqual(self.server.connections, 1)

    def test_stops(self) -> None:
        """Once it is stopped, nothing of it is scheduled any more."""
        self.server.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
