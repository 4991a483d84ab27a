"""Tests for connections: bytes in, bytes out, and how a connection ends."""

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from domaeka.errors import CloseReason
from domaeka.gateway.conversation import Conversation
from domaeka.gateway.flow.read_scheduler import STRANGERS_BYTES, ReadScheduler
from domaeka.gateway.flow.writer import Writer
from domaeka.gateway.peer import State
from domaeka.gateway.transport.connection import (
    CROWDED_LINES_A_TURN,
    LINES_A_TURN,
    MAX_DISCARDED_BYTES,
    REST_SECONDS,
    STRANGERS_LINES_A_TURN,
    GatewayProtocol,
    peer_address,
)
from domaeka.interfaces import DeviceKey
from domaeka.wire import Deflater, Delivered, Inflater, LineDecoder, Media, Reply, read_server_frame
from tests.gateway_case import KEY, GatewayCase, Peer


class _Kernel(StringTransport):
    """A transport like Twisted's: a kernel that takes some bytes at once, and a buffer."""

    def __init__(self, takes: list[int]) -> None:
        """@param takes: how many bytes it takes at each try; then all."""
        super().__init__()
        self.taken = b""
        self.dataBuffer = b""
        self.offset = 0
        self.fails = False
        self._takes = takes

    def writeSomeData(self, data: bytes) -> int | Exception:
        if self.fails:
            return ConnectionLost()
        count = min(len(data), self._takes.pop(0) if self._takes else len(data))
        self.taken += data[:count]
        return count

    def write(self, data: bytes) -> None:
        self.dataBuffer += data

    def writable(self) -> None:
        """The reactor says that the kernel has room."""
        while self.dataBuffer:
            count = self.writeSomeData(self.dataBuffer)
            assert isinstance(count, int)
            self.dataBuffer = self.dataBuffer[count:]
            if count == 0:
                return
        if self.producer is not None:
            self.producer.resumeProducing()


def counted_turns(case: GatewayCase) -> list[object]:
    """The turns in which phones are gone on with, from now on."""
    turns: list[object] = []

    def call_soon(call: Callable[[], object]) -> None:
        turns.append(call)
        case.context.call_soon(call)

    case.shared.phones = ReadScheduler(call_soon, case.context.seconds)
    return turns


class ReadTests(GatewayCase):
    """Bytes in."""

    def test_cut_anywhere(self) -> None:
        """However a stream is cut into pieces, the same is made of it."""
        lines = [Peer.line, Peer.line]
        for step in (1, 2, 3, 7, 61):
            peer = self.connect()
            stream = peer.writer.handshake() + b"".join(line(peer, "말 } 끝") for line in lines)
            for start in range(0, len(stream), step):
                peer.write(stream[start : start + step])
            self.assertEqual((peer.texts, peer.errors), (["말 } 끝"] * 2, []))

    def test_line_ends(self) -> None:
        """A CR before a newline, and empty lines, mean nothing."""
        peer = self.greeted()
        peer.write(b"\r\n\n", peer.line("말").replace(b"\n", b"\r\n"), b"\n\r\n")
        self.assertEqual((peer.texts, peer.errors), (["말"], []))

    def test_nothing_behind_the_end(self) -> None:
        """What follows in the same read a line that ends the connection is dropped."""
        peer = self.ready()
        peer.write(b'{"botName":""}\n', peer.line("말"))
        self.assertEqual((peer.errors, peer.texts), (["BAD_HANDSHAKE"], []))

    def test_others_have_their_turn(self) -> None:
        """Of much that comes at once some is read in a turn; all in order."""
        turns = counted_turns(self)
        peer = self.ready()
        texts = [str(number) for number in range(3 * LINES_A_TURN - 1)]
        peer.chat(*texts)
        self.assertEqual((peer.texts, len(turns)), (texts, 2))

    def test_fewer_where_others_wait(self) -> None:
        """While one that says much waits for its turn, of another less is read at once."""
        turns: list[Callable[[], object]] = []
        eager, other = self.ready(DeviceKey("봇", "1")), self.ready(DeviceKey("봇", "2"))
        self.shared.phones = ReadScheduler(turns.append, self.context.seconds)
        texts = [str(number) for number in range(LINES_A_TURN + 1)]
        eager.chat(*texts)
        other.chat(*texts)
        self.assertEqual(eager.texts, texts[:LINES_A_TURN])
        self.assertEqual(other.texts, texts[:CROWDED_LINES_A_TURN])
        while turns:
            turns.pop()()
            self.run_for(0.0)
        self.assertEqual((eager.texts, other.texts), (texts, texts))

    def test_strangers_share_a_turn(self) -> None:
        """Of a stranger little is read in a turn, of all together not much more."""
        turns: list[Callable[[], object]] = []
        self.shared.strangers = ReadScheduler(turns.append, self.context.seconds)
        eager, large, late = (self.connect(DeviceKey("봇", str(number))) for number in range(3))
        eager.write(eager.writer.handshake() * (STRANGERS_LINES_A_TURN + 1))
        large.write(b"{%b}\n" % (b"x" * STRANGERS_BYTES))
        late.handshake()
        self.assertEqual(large.errors, ["BAD_FRAME"])
        self.assertEqual((len(eager.greetings), len(late.greetings)), (STRANGERS_LINES_A_TURN, 0))
        turns.pop()()
        self.run_for(0.0)
        self.assertEqual(len(eager.greetings), STRANGERS_LINES_A_TURN + 1)
        self.assertEqual((len(late.greetings), turns), (1, []))

    def test_sends_on_behind_the_end(self) -> None:
        """Who goes on sending when the connection is closing is cut off."""
        peer = self.ready()
        peer.polite = False
        peer.write(b'{"botName":""}\n', bytes(MAX_DISCARDED_BYTES))
        self.assertFalse(peer.lost)
        peer.write(bytes(MAX_DISCARDED_BYTES))
        self.assertTrue(peer.lost)

    def test_lost_with_a_part_of_a_frame(self) -> None:
        """What came of a frame is not held any longer than the connection."""
        peer = self.ready()
        protocol = self.server.accepted[-1]._protocol
        peer.write(bytes(100_000))
        self.assertEqual(protocol._decoder.held_bytes, 100_000)
        peer.drop()
        self.assertEqual(protocol._decoder.held_bytes, 0)

    def test_answers_go_out_together(self) -> None:
        """What is read together is answered together."""
        peer = self.ready()
        transport = self.server.accepted[-1]
        writes: list[bytes] = []
        write = transport.write
        transport.write = lambda data: (writes.append(data), write(data))[1]  # type: ignore
        peer.chat(*"abcdef")
        self.assertEqual((len(writes), peer.texts), (1, list("abcdef")))

    @given(st.lists(st.binary(max_size=60), max_size=20))
    def test_garbage(self, pieces: list[bytes]) -> None:
        """Whatever is sent, it is answered with errors, and nothing of ours goes wrong."""
        peer = self.connect()
        for piece in pieces:
            peer.write(piece + b"\n" if len(piece) % 2 else piece)
            if peer.lost:
                break
        self.assertEqual(self.metrics.errors.labels("INTERNAL").value, 0)
        self.assertTrue({"BAD_FRAME", "BAD_HANDSHAKE", "AUTH_REQUIRED"}.issuperset(peer.errors))
        peer.drop()
        self.assertEqual(self.registry.connections, 0)


class LostTests(GatewayCase):
    """Lines that wait for their turn as the connection is lost: the phone takes them for sent."""

    def setUp(self) -> None:
        super().setUp()
        self.texts = [str(number) for number in range(3 * LINES_A_TURN)]

    def begin(self, *capabilities: str) -> GatewayProtocol:
        """A phone that has authenticated, on a kernel that never tells of an end by itself."""
        self.kernel = _Kernel([])
        protocol = self.factory.buildProtocol(None)
        assert isinstance(protocol, GatewayProtocol)
        self.peer = self.connect()
        protocol.makeConnection(self.kernel)
        protocol.dataReceived(self.peer.writer.handshake(signed=True, capabilities=capabilities))
        self.before = self.conversation()
        return protocol

    def lines(self, *texts: str) -> bytes:
        """So many lines."""
        return b"".join(map(self.peer.line, texts))

    @property
    def read(self) -> list[str]:
        """What was read."""
        return [chat.text for chat, _ in self.bots.submitted]

    def test_all_are_read(self) -> None:
        """
        All are read, in order, in later turns; then the conversation ends.  What is answered waits
        for the next connection.
        """
        for end, reason in (
            (ConnectionDone, CloseReason.PEER_CLOSED),
            (ConnectionLost, CloseReason.CONNECTION_LOST),
        ):
            self.serve()
            protocol = self.begin()
            protocol.dataReceived(self.lines(*self.texts))
            protocol.connectionLost(Failure(end()))
            self.assertEqual(self.read, self.texts[:LINES_A_TURN])
            self.assertIsNone(self.before.peer.reason)
            self.run_for(0.0)
            self.assertEqual((self.read, self.before.peer.reason), (self.texts, reason))
            self.assertEqual(self.device().outbox.messages, 2 * LINES_A_TURN)
            back = self.greeted()
            back.pong()
            self.run_for(1.0)
            self.assertEqual(self.kernel.taken.count(b"messageResponse"), LINES_A_TURN)
            self.assertEqual(back.texts, self.texts[LINES_A_TURN:])

    def test_compressed(self) -> None:
        """Of a deflate stream likewise all that came."""
        protocol = self.begin("deflate")
        deflater = Deflater()
        texts = [f"{number}" for number in range(20 * LINES_A_TURN)]
        protocol.dataReceived(deflater.pack(self.lines(*texts)))
        protocol.connectionLost(Failure(ConnectionLost()))
        self.run_for(0.0)
        self.assertEqual((self.read, self.before.peer.closing), (texts, True))

    def test_in_its_turn(self) -> None:
        """What comes though it is not received, as with TLS, waits for its turn, too."""
        turns: list[Callable[[], object]] = []
        protocol = self.begin()
        self.shared.phones = ReadScheduler(turns.append, self.context.seconds)
        for text in self.texts:
            protocol.dataReceived(self.lines(text))
        self.assertEqual(self.read, self.texts)
        protocol.dataReceived(self.lines(*self.texts))
        protocol.dataReceived(self.lines(*self.texts))
        self.assertEqual(len(self.read), 4 * LINES_A_TURN)

    def test_over_the_rate(self) -> None:
        """One that says more than it may is read at its rate, even if it is gone."""
        self.serve(("limits.messages_per_second", "100"), ("limits.messages_burst", "32"))
        protocol = self.begin()
        protocol.dataReceived(self.lines(*self.texts))
        protocol.connectionLost(Failure(ConnectionDone()))
        self.run_for(0.1)
        self.assertLess(len(self.read), len(self.texts))
        self.run_for(5.0)
        self.assertEqual((self.read, self.before.peer.closing), (self.texts, True))

    def test_not_for_ever(self) -> None:
        """What cannot be read in time is given up."""
        self.serve(("limits.messages_per_second", "1"), ("limits.messages_burst", "1"))
        protocol = self.begin()
        protocol.dataReceived(self.lines(*self.texts))
        protocol.connectionLost(Failure(ConnectionDone()))
        self.run_for(REST_SECONDS - 0.1)
        self.assertFalse(self.before.peer.closing)
        self.run_for(0.2)
        self.assertTrue(self.before.peer.closing)
        self.assertLess(len(self.read), len(self.texts))

    def test_not_behind_our_end(self) -> None:
        """What the server has ended is over at once; so is one that is ended meanwhile."""
        for ends_first in (True, False):
            self.serve()
            protocol = self.begin()
            protocol.dataReceived(self.lines(*self.texts))
            if ends_first:
                self.before.close(CloseReason.SHUTDOWN, cut=True)
            protocol.connectionLost(Failure(ConnectionLost()))
            if not ends_first:
                self.before.close(CloseReason.SHUTDOWN, cut=True)
            self.run_for(0.0)
            self.assertEqual(self.read, self.texts[:LINES_A_TURN])
            self.assertEqual(self.reasons, {CloseReason.SHUTDOWN: 1.0})

    def test_read_behind_our_end(self) -> None:
        """Where a connection is read on though the server has ended it, that holds here, too."""
        protocol = self.begin()
        protocol.dataReceived(self.lines(*self.texts))
        protocol.connectionLost(Failure(ConnectionLost()))
        protocol.stop_writing()
        self.before.close(CloseReason.NO_HANDSHAKE)
        self.run_for(0.0)
        self.assertEqual(self.read, self.texts)
        self.assertEqual(self.reasons, {CloseReason.NO_HANDSHAKE: 1.0})

    def test_taken_over_meanwhile(self) -> None:
        """The phone's next connection may come before: nothing is lost of what was answered."""
        self.serve(("limits.messages_per_second", "10"), ("limits.messages_burst", "32"))
        protocol = self.begin()
        protocol.dataReceived(self.lines(*self.texts))
        protocol.connectionLost(Failure(ConnectionLost()))
        self.run_for(1.0)
        back = self.greeted()
        back.pong()
        self.run_for(1.0)
        self.assertEqual(self.reasons, {CloseReason.TAKEN_OVER: 1.0})
        answered = self.kernel.taken.count(b"messageResponse") + len(back.texts)
        self.assertEqual(answered, len(self.read))


class WriteTests(GatewayCase):
    """Bytes out."""

    def serve_on(self, transport: Any) -> GatewayProtocol:
        """A phone that has authenticated, on a transport of its own."""
        protocol = self.factory.buildProtocol(None)
        assert isinstance(protocol, GatewayProtocol)
        self.peer = self.connect()
        protocol.makeConnection(transport)
        protocol.dataReceived(self.peer.writer.handshake(signed=True))
        return protocol

    def test_kernel_that_takes_all(self) -> None:
        """What the kernel takes at once needs no turn of the reactor."""
        kernel = _Kernel([])
        protocol = self.serve_on(kernel)
        protocol.dataReceived(self.peer.line("말"))
        self.assertEqual((kernel.taken.count(b"\n"), kernel.dataBuffer), (2, b""))
        self.assertTrue(self.conversation().is_idle)

    def test_kernel_that_takes_some(self) -> None:
        """However little the kernel takes at a time, no byte is lost, doubled or out of order."""
        for takes in ([], [0] * 3, [1, 2, 3, 0, 5], [100, 0, 200, 0], [700, 1, 0]):
            kernel = _Kernel(takes)
            protocol = self.serve_on(kernel)
            protocol.dataReceived(b"".join(self.peer.line(text) for text in "abcdef"))
            while kernel.dataBuffer:
                kernel.writable()
            frames = [read_server_frame(line) for line in kernel.taken.splitlines()]
            texts = [frame.reply.content for frame in frames if isinstance(frame, Delivered)]
            self.assertEqual((len(frames), texts), (7, list("abcdef")))

    def test_error_of_the_kernel(self) -> None:
        """A write that fails shows again where the rest is written, and breaks nothing."""
        kernel = _Kernel([])
        protocol = self.serve_on(kernel)
        kernel.fails = True
        protocol.dataReceived(self.peer.line("말"))
        self.assertIn(b"messageResponse", kernel.dataBuffer)
        session = self.conversation()
        protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(session.peer.reason, CloseReason.CONNECTION_LOST)
        self.assertEqual(self.device().outbox.messages, 1)

    def test_picture_for_one_that_reads_nothing(self) -> None:
        """Cut again and again in the middle of a picture, no more than a piece is ever held."""
        media = Media((bytes(6_000_000),))
        self.registry.get_or_create(KEY).send(Reply("방", "1", "봇", media))
        for _ in range(3):
            peer = self.connect()
            peer.stop_reading()
            peer.handshake(signed=True, capabilities=("ack",))
            self.run_for(1.0)
            self.assertTrue(0 < len(self.server.accepted[-1].dataBuffer) < 70_000)
            peer.drop()
        back = self.client("ack")
        self.run_for(1.0)
        (picture,) = [frame for frame in back.frames if isinstance(frame, Delivered)]
        assert isinstance(picture.reply.content, Media)
        self.assertEqual((picture.reply.content.pieces, picture.message_id), (media.pieces, 1))

    def test_lost_with_a_part_of_a_reply(self) -> None:
        """What was not taken of a reply is not held any longer than the connection."""
        kernel = _Kernel([500, 0])
        protocol = self.serve_on(kernel)
        protocol.dataReceived(self.peer.line("말" * 10_000))
        self.assertTrue(kernel.dataBuffer)
        protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(kernel.dataBuffer, b"")
        self.assertEqual(self.device().outbox.messages, 1)

    def test_freed_at_once(self) -> None:
        """
        Of a connection that is lost nothing waits for a collection: not what it had to say to one
        that read nothing, 300 KB, nor anything else.
        """
        kernel = _Kernel([0] * 100)
        protocol = self.serve_on(kernel)
        for _ in range(20):
            protocol.dataReceived(self.peer.writer.handshake())
            self.run_for(0.1)
        protocol.dataReceived(b'{"event":"mess')
        self.assertGreater(self.conversation()._writer.urgent_bytes, 1000)
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        before = self.held()
        protocol.connectionLost(Failure(ConnectionLost()))
        kernel.unregisterProducer()  # as Twisted does
        del protocol
        self.assertEqual(
            before - self.held(), Counter((GatewayProtocol, LineDecoder, Conversation, Writer))
        )

    def held(self) -> "Counter[type]":
        """How much there is of what a connection consists of."""
        kinds = GatewayProtocol, LineDecoder, Conversation, Writer
        return Counter(type(each) for each in gc.get_objects() if type(each) in kinds)

    def test_clean_end(self) -> None:
        """A connection that the peer has closed ends as such."""
        protocol = self.serve_on(_Kernel([]))
        session = self.conversation()
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(
            (session.peer.reason, session.peer.state), (CloseReason.PEER_CLOSED, State.CLOSING)
        )


class CloseTests(GatewayCase):
    """How a connection is closed: what is written goes out, then a FIN, then the deadline."""

    def close(self) -> None:
        """Close the newest connection."""
        self.conversation().close(CloseReason.SHUTDOWN)
        self.run_for(0.0)

    def test_in_order(self) -> None:
        """What is written arrives, then the end; it is over when the peer has closed, too."""
        peer = self.ready()
        peer.stop_reading()
        peer.chat(*["x" * 10_000] * 6)
        self.close()
        peer.read_on()
        self.assertTrue(4 <= len(peer.texts) <= 6)
        self.assertEqual((peer.finished, peer.lost), (True, True))
        self.assertEqual(self.reasons, {"shutdown": 1})

    def test_peer_that_reads_nothing(self) -> None:
        """A peer that reads nothing is cut off at the deadline."""
        peer = self.ready()
        peer.stop_reading()
        peer.chat(*["x" * 10_000] * 8)
        self.close()
        self.run_for(4.5)
        self.assertEqual(self.registry.connections, 1)
        self.run_for(2.0)
        self.assertEqual((self.registry.connections, self.reasons), (0, {"shutdown": 1}))

    def test_peer_that_goes_on(self) -> None:
        """So is one that goes on talking and never closes; nobody listens."""
        peer = self.ready()
        peer.polite = False
        self.close()
        for _ in range(60):
            if not peer.lost:
                peer.chat("말")
            self.run_for(0.1)
        self.assertTrue(peer.lost)
        self.assertEqual(self.bots.submitted, [])

    def test_linger_seconds(self) -> None:
        """The deadline is a setting."""
        self.serve(("socket.linger_seconds", "1"))
        self.ready().polite = False
        self.close()
        self.run_for(2.1)
        self.assertEqual(self.registry.connections, 0)

    def test_while_not_read_from(self) -> None:
        """A connection that is closed while it is not read from still sees the peer's end."""
        self.bots.hold = True
        peer = self.ready()
        for number in range(1100):
            peer.chat(str(number))
        self.assertFalse(self.conversation()._throttle.open)
        self.close()
        self.assertEqual((peer.lost, self.registry.connections), (True, 0))

    def test_peer_closed_first(self) -> None:
        """Where both have finished there is nothing to wait for."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("말")
        peer.finish()
        self.close()
        self.assertEqual((peer.lost, self.registry.connections), (True, 0))


class DeflateTests(GatewayCase):
    """Whole connections that are compressed."""

    def setUp(self) -> None:
        super().setUp()
        self.peer = self.connect()
        self.received = b""
        self.peer.dataReceived = self.keep  # type: ignore[method-assign]
        self.deflater = Deflater()
        self.inflater = Inflater()
        self.greeting = LineDecoder()
        self.peer.handshake(signed=True, capabilities=("deflate", "ack"))

    def keep(self, data: bytes) -> None:
        """Bytes come."""
        self.received += data

    def lines(self) -> list[bytes]:
        """What the gateway has said behind its greeting."""
        _, _, packed = self.received.partition(b"\n")
        self.received = b"\n"
        self.inflater.feed(packed)
        lines = b""
        while piece := self.inflater.next_piece():
            lines += piece
        return lines.splitlines()

    def test_both_ways(self) -> None:
        """Behind the handshake all is deflated, both ways."""
        self.assertIn(b'"deflate"', self.received.partition(b"\n")[0])
        for _ in range(3):
            packed = self.deflater.pack(self.peer.line("말", client_id="a"))
            for start in range(0, len(packed), 5):
                self.peer.write(packed[start : start + 5])
            events = [line[:16] for line in self.lines()]
            self.assertEqual(events.count(b'{"event":"ack","'), 1)

    def test_counted(self) -> None:
        """What came is counted, as it came and as it was meant."""
        before = self.counted(self.metrics.compression_bytes)
        line = self.peer.line("nothing")
        packed = self.deflater.pack(line)
        self.peer.write(packed)
        after = self.counted(self.metrics.compression_bytes)
        for stage, data in (("plain", line), ("wire", packed)):
            self.assertEqual(after[stage] - before.get(stage, 0), len(data))

    def test_behind_the_handshake(self) -> None:
        """The stream may begin in the same piece that ends the handshake."""
        self.peer.drop()
        peer = self.connect()
        peer.dataReceived = self.keep  # type: ignore[method-assign]
        self.received = b""
        handshake = peer.writer.handshake(signed=True, capabilities=("deflate",))
        peer.write(handshake + self.deflater.pack(peer.line("말")))
        self.assertEqual(len(self.lines()), 1)

    def test_garbage(self) -> None:
        """What cannot be inflated ends the connection."""
        self.peer.write(b"\xff" * 100)
        self.assertIn(b"BAD_FRAME", self.lines()[0])
        self.assertEqual(self.reasons, {"bad stream": 1})

    def test_bomb(self) -> None:
        """What inflates to a line without end is refused at the limit, without being held."""
        self.peer.write(self.deflater.pack(b"x" * 5_000_000))
        self.run_for(0.1)
        self.assertIn(b"FRAME_TOO_LARGE", self.lines()[0])
        self.assertEqual(self.reasons, {"frame too large": 1})

    def test_others_have_their_turn(self) -> None:
        """A little that inflates to many lines is read in several turns."""
        turns = counted_turns(self)
        self.peer.write(self.deflater.pack(b"\n" * 5_000_000))
        self.assertEqual(len(turns), 4)
        self.peer.write(self.deflater.pack(self.peer.line("말")))
        self.assertEqual(len(self.lines()), 1)


class AddressTests(GatewayCase):
    """Tests for L{peer_address}."""

    def test_forms(self) -> None:
        """An IPv4 address that came over IPv6 is shown as one of IPv4."""
        for address, text in (
            (IPv4Address("TCP", "192.0.2.1", 1), "192.0.2.1"),
            (IPv6Address("TCP", "::ffff:192.0.2.1", 1), "192.0.2.1"),
            (IPv6Address("TCP", "2001:db8::1", 1), "2001:db8::1"),
            (UNIXAddress(None), "local"),
            (None, "local"),
        ):
            self.assertEqual(peer_address(address), text)
