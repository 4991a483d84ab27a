"""Tests for L{domaeka.client.conversation}, against a server that behaves."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from domaeka.client.conversation import CAPABILITIES, Conversation, Event, SessionState, Unreadable
from domaeka.client.send_queue import Fate, SendQueue
from domaeka.errors import CloseReason, ErrorCode
from domaeka.policies.auth import Signer
from domaeka.policies.outbox import Outbox
from domaeka.testing import FakeServer, VirtualServer, run_clock
from domaeka.wire import (
    Deflater,
    Delivered,
    Dialect,
    Greeting,
    Identity,
    Media,
    Reply,
    Said,
    encode_ack,
    encode_error,
    encode_frame,
    encode_ping,
    encode_reply,
)
from tests.clocks import WallClock

KEY, SALT = "k" * 16, "salt"
PHONE = Identity(bot_name="가게봇", device_id="a1b2")
NOW = 1_790_000_000.0


def said(text: str) -> Said:
    return Said(room="방", sender="나", text=text)


class Line(Protocol):
    """One connection: a conversation, and what it was told."""

    transport: Any

    def __init__(self, pair: "Pair", conversation: Conversation, piece: int) -> None:
        """@param piece: how many bytes the conversation gets at a time."""
        self.conversation = conversation
        self._pair = pair
        self._piece = piece

    # IProtocol

    def connectionMade(self) -> None:
        self.conversation.begin()
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        for start in range(0, len(data), self._piece):
            self.conversation.feed(data[start : start + self._piece])
            while (event := self.conversation.next_event()) is not None:
                self._pair.events.append(event)
                if isinstance(event, Greeting):
                    self.conversation.sending = True
        self.flush()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._pair.queue.connection_lost()
        self._pair.session.connection_lost()

    def flush(self) -> None:
        while data := self.conversation.data_to_send():
            self.transport.write(data)


class _Lines(Factory):
    noisy = False

    def __init__(self, line: Line) -> None:
        self._line = line

    # IProtocolFactory

    def buildProtocol(self, addr: IAddress | None) -> Line:
        return self._line


class Pair:
    """A client's queue and session, and a server; connections between them are made and cut."""

    def __init__(self, server: FakeServer, clock: Clock, wall: WallClock) -> None:
        self.server = server
        self.clock = clock
        self.queue = SendQueue(clock.seconds, "test")
        self.session = SessionState(clock.seconds, wall)
        self.events: list[Event] = []
        self.fates: list[Fate] = []
        self._wall = wall
        self._port = VirtualServer(clock, server)

    def say(self, text: str) -> None:
        self.queue.put(said(text), 30.0, self.fates.append)

    def texts(self) -> list[str | Media]:
        return [event.reply.content for event in self.events if isinstance(event, Delivered)]

    def connect(
        self,
        capabilities: Sequence[str] = CAPABILITIES,
        dialect: Dialect = Dialect.V33,
        *,
        piece: int = 10**9,
    ) -> Line:
        """A connection on which nothing moves before C{talk}."""
        client = Conversation(
            PHONE,
            Signer([KEY], SALT, 300.0, self._wall).sign,
            self.queue,
            self.session,
            self.clock.seconds,
            dialect,
            capabilities,
        )
        line = Line(self, client, piece)
        self._port.connect(_Lines(line))
        return line

    def talk(self, line: Line, budget: int | None = None) -> int:
        """
        Carry bytes both ways until nothing moves.

        @param budget: after how many bytes the line is cut.
        @return: how many have been written.
        """
        ours, theirs = line.transport, self._port.accepted[-1]
        if budget is not None:
            theirs.join(ours, budget)
        line.flush()
        run_clock(self.clock, 0.0)
        return int(ours.bytes_written + theirs.bytes_written)

    def cut(self, line: Line) -> None:
        line.transport.abortConnection()
        run_clock(self.clock, 0.01)  # no two connections sign in the same millisecond


class ConversationCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.serve()

    def serve(self, **options: Any) -> None:
        """A client and a server, in the place of those before."""
        self.clock = Clock()
        self.wall = WallClock(self.clock, NOW)
        self.server = FakeServer(self.clock, KEY, SALT, wall=self.wall, **options)
        self.pair = Pair(self.server, self.clock, self.wall)

    @property
    def outbox(self) -> Outbox:
        """What waits for the client."""
        (device,) = self.server.directory.registry.devices()
        return device.outbox


class ExchangeTests(ConversationCase):
    """What is said arrives, whatever the server can do."""

    def test_every_choice_of_capabilities(self) -> None:
        """With all capabilities, with each alone, with none: what was said is answered in order."""
        texts: list[str | Media] = ["하나", "} 둘 {", "셋\n" * 10_000, "넷 👋"]
        for capabilities in (CAPABILITIES, *((one,) for one in CAPABILITIES), ()):
            self.setUp()
            for text in texts:
                self.pair.say(str(text))
            line = self.pair.connect(capabilities)
            line.conversation.sending = not capabilities
            self.pair.talk(line)
            self.assertEqual(self.pair.texts(), texts, capabilities)
            expected = Fate.TAKEN if "ack" in capabilities else Fate.WRITTEN
            self.assertEqual(self.pair.fates, [expected] * 4)
            self.assertEqual(self.outbox.messages, 0)

    def test_server_without_capabilities(self) -> None:
        """A server that knows of no capability is spoken to as the phones of old do."""
        self.serve(capabilities=())
        self.pair.say("안녕")
        line = self.pair.connect()
        self.pair.talk(line)
        self.assertEqual(self.pair.texts(), ["안녕"])
        granted = line.conversation.granted
        self.assertEqual((granted, self.server.chats[0].client_id), (frozenset(), None))

    def test_old_dialect(self) -> None:
        """A 3.2 phone is served in its own form, and answers pings in its own way."""
        self.pair.say("옛 형식")
        line = self.pair.connect((), Dialect.V32)
        line.conversation.sending = True
        self.pair.talk(line)
        self.server.ping()
        self.pair.talk(line)
        self.assertEqual(self.pair.texts(), ["옛 형식"])
        self.assertEqual(self.server.chats[0].dialect, Dialect.V32)
        self.assertGreater(self.server.received("pong"), 0)

    def test_byte_by_byte(self) -> None:
        """It does not matter in what pieces the bytes come."""
        for capabilities in (CAPABILITIES, ("gzip", "ack")):
            self.setUp()
            for number in range(5):
                self.pair.say(f"{number}" * 50)
            self.pair.talk(self.pair.connect(capabilities, piece=1))
            self.assertEqual(self.pair.texts(), [f"{number}" * 50 for number in range(5)])

    def test_handshake_goes_first(self) -> None:
        """Nothing follows the handshake until the server has answered."""
        self.pair.say("먼저")
        line = self.pair.connect()
        line.flush()
        self.assertEqual(line.transport.dataBuffer.count(b"\n"), 1)

    def test_chat_is_deflated(self) -> None:
        """On a C{deflate} connection a run of chat takes a quarter of its bytes, or less."""
        for number in range(200):
            self.pair.say(f"오늘 점심 뭐 먹지? 아무거나 {number}")
        plain = self.pair.talk(self.pair.connect(("ack",)))
        self.setUp()
        for number in range(200):
            self.pair.say(f"오늘 점심 뭐 먹지? 아무거나 {number}")
        self.assertLess(self.pair.talk(self.pair.connect()), plain / 4)


class CutTests(ConversationCase):
    """Connections that end at any byte."""

    def _exchange(self, cuts: Sequence[int], capabilities: Sequence[str]) -> int:
        """@return: how many bytes the last connection took."""
        self.setUp()
        expected = [f"메시지 {number}" for number in range(6)]
        for text in expected:
            self.pair.say(text)
        for budget in (*cuts, None):
            line = self.pair.connect(capabilities)
            carried = self.pair.talk(line, budget)
            self.pair.cut(line)
        self.assertEqual([chat.text for chat in self.server.chats], expected, cuts)
        self.assertEqual(self.pair.texts(), expected, cuts)
        self.assertEqual(self.pair.fates, [Fate.TAKEN] * 6, cuts)
        return carried

    def test_one_cut_anywhere(self) -> None:
        """A connection cut at any byte loses nothing, doubles nothing, and keeps the order."""
        whole = self._exchange((), ("session", "ack"))
        for cut in range(1, whole, 17):
            self._exchange((cut,), ("session", "ack"))

    @given(st.lists(st.integers(1, 6000), max_size=5), st.booleans())
    def test_many_cuts(self, cuts: list[int], deflate: bool) -> None:
        """Nor do several connections, one cut after the other."""
        self._exchange(cuts, CAPABILITIES if deflate else ("session", "ack"))

    def test_server_that_forgot(self) -> None:
        """Under a new numbering the old number means nothing: what comes is taken."""
        self.pair.say("하나")
        line = self.pair.connect()
        self.pair.talk(line)
        self.pair.cut(line)
        self.server.start()
        self.pair.say("둘")
        self.pair.talk(self.pair.connect())
        self.assertEqual(self.pair.texts(), ["하나", "둘"])

    def test_server_that_is_come_back_to(self) -> None:
        """What came before a stay elsewhere is known again."""
        session = self.pair.session
        session.numbers("one").last = 7
        for other in range(15):
            session.numbers(f"other {other}")
        self.assertEqual(session.numbers("one").last, 7)
        for other in range(16):
            session.numbers(f"another {other}")
        self.assertEqual(session.numbers("one").last, 0)


class SessionTests(ConversationCase):
    """Session tokens."""

    def test_resumes(self) -> None:
        """A client that comes back shows the token that it was given last."""
        greetings = []
        for _ in range(3):
            line = self.pair.connect()
            self.pair.talk(line)
            self.pair.cut(line)
            greetings += [event for event in self.pair.events if isinstance(event, Greeting)][-1:]
        self.assertEqual([greeting.resumed for greeting in greetings], [False, True, True])
        self.assertEqual(len({greeting.session_token for greeting in greetings}), 3)

    def test_token_of_a_lost_answer(self) -> None:
        """When the answer with the fresh token is lost, the one before is shown again."""
        line = self.pair.connect()
        self.pair.talk(line)
        self.pair.cut(line)
        line = self.pair.connect()
        self.pair.talk(line, budget=1000)
        self.pair.cut(line)
        self.pair.talk(self.pair.connect())
        first, *_, last = self.pair.events
        assert isinstance(first, Greeting) and isinstance(last, Greeting)
        self.assertTrue(last.resumed)

    def test_expires(self) -> None:
        """A token's life runs from the end of its connection; then it is not shown."""
        self.serve(settings=[("session.lifetime", "3600")])
        line = self.pair.connect()
        self.pair.talk(line)
        run_clock(self.clock, 10_000.0)
        self.assertIsNotNone(self.pair.session.token)
        self.pair.cut(line)
        self.clock.advance(3598.5)
        self.assertIsNotNone(self.pair.session.token)
        self.clock.advance(1.5)
        self.assertIsNone(self.pair.session.token)

    def test_clock_set_back(self) -> None:
        """A clock that was a day ahead is believed again once it has been set."""
        time = 1e9 + 86_400.0
        session = SessionState(lambda: time, lambda: time)
        first, second = object(), object()
        session.signing_time(first)
        time -= 86_400.0
        signed = session.signing_time(first)
        self.assertApproximates(signed, time, 0.002)
        self.assertGreater(session.signing_time(second), signed)

    def test_no_millisecond_twice(self) -> None:
        """Two connections never sign in the same millisecond: a server would see a replay."""
        self.pair.talk(self.pair.connect())
        second = self.pair.connect()
        self.pair.talk(second)
        self.assertTrue(second.conversation.greeted)


class SilenceTests(ConversationCase):
    """Servers that say nothing."""

    def test_no_greeting(self) -> None:
        """A server has ten seconds to answer the handshake."""
        self.server.greets = False
        client = self.pair.connect().conversation
        self.clock.advance(9.9)
        self.assertIsNone(client.overdue())
        self.clock.advance(0.1)
        self.assertIs(client.overdue(), CloseReason.HANDSHAKE_TIMEOUT)

    def test_watchdog(self) -> None:
        """After the first ping, two and a half intervals without a word are too many."""
        self.serve(settings=[("ping.interval", "10"), ("ping.timeout", "20")])
        self.server.stop()
        line = self.pair.connect()
        client = line.conversation
        self.pair.talk(line)
        self.clock.advance(74.9)
        self.assertIsNone(client.overdue())
        self.server.ping()
        self.pair.talk(line)
        self.assertEqual(self.server.received("pong"), 1)
        self.clock.advance(24.9)
        self.assertIsNone(client.overdue())
        self.clock.advance(0.1)
        self.assertIs(client.overdue(), CloseReason.PING_TIMEOUT)
        client.restart_timeouts()
        self.assertIsNone(client.overdue())


class AcknowledgementTests(ConversationCase):
    """Messages that are written and not acknowledged."""

    def setUp(self) -> None:
        super().setUp()
        self.server.stop()
        self.connect()

    def connect(self) -> None:
        """A new connection, on which nothing gets through any more once it is greeted."""
        line = self.pair.connect(("ack",))
        self.pair.talk(line)
        self.client = line.conversation

    def say(self, text: str = "안녕") -> str:
        """Write a message.  @return: its id."""
        self.pair.say(text)
        while self.client.data_to_send():
            pass
        return f"test-{self.pair.queue._count}"

    def hear(self, frame: bytes) -> None:
        self.client.feed(frame)
        while self.client.next_event() is not None:
            pass

    def wait(self, seconds: float) -> CloseReason | None:
        """Check every second, as a client does.  @return: what came of it."""
        for _ in range(int(seconds)):
            self.clock.advance(1.0)
            if (reason := self.client.overdue()) is not None:
                return reason
        return None

    def time(self, heard: bool = False) -> float:
        """How long the client waits for an acknowledgement, in seconds; pings are C{heard}."""
        begun = self.clock.seconds()
        while (reason := self.wait(10)) is None:
            if heard:
                self.hear(encode_ping("", "t"))
        self.assertIs(reason, CloseReason.TOO_SLOW)
        return self.clock.seconds() - begun

    def test_given_up(self) -> None:
        """A message that is not acknowledged for fifteen seconds ends the connection."""
        self.assertIsNone(self.wait(30))
        self.say()
        self.assertIsNone(self.wait(14))
        self.say()
        self.assertIs(self.wait(2), CloseReason.TOO_SLOW)

    def test_any_acknowledgement_is_progress(self) -> None:
        """A server that takes one message after the other, however slowly, is left in peace."""
        ids = [self.say() for _ in range(5)]
        for client_id in ids:
            self.assertIsNone(self.wait(14))
            self.hear(encode_ack(client_id))
        self.assertIsNone(self.wait(30))

    def test_expired_messages_count(self) -> None:
        """Messages that are let go of because their time is over still show that nothing moves."""
        self.pair.queue.put(said("짧은 시간"), 3.0)
        while self.client.data_to_send():
            pass
        self.clock.advance(18.5)
        self.pair.queue.expire()
        self.assertEqual(len(self.pair.queue), 0)
        self.assertLess(self.time(), 16.0)

    def test_long_message(self) -> None:
        """A message that is long may take longer: a slow line is not a dead one."""
        self.say("가" * 60_000)
        self.assertIsNone(self.wait(40))
        self.assertIs(self.wait(20), CloseReason.TOO_SLOW)

    def test_refused_message(self) -> None:
        """A message that is answered with an error will not be acknowledged: nothing is awaited."""
        self.say()
        self.hear(encode_error(ErrorCode.MESSAGE_TOO_LONG, "too long"))
        self.assertIsNone(self.wait(60))

    def test_server_that_closes(self) -> None:
        """A server that closes acknowledges nothing more; if it stays, time runs from then on."""
        self.say()
        self.client.sending = False
        self.assertIsNone(self.wait(60))
        self.client.sending = True
        self.assertIsNone(self.wait(14))

    def test_held_up(self) -> None:
        """A process that was held up has given the server no time to acknowledge."""
        self.say()
        self.clock.advance(20.0)
        self.client.restart_timeouts()
        self.assertIsNone(self.wait(14))

    def test_dead_line(self) -> None:
        """A line on which nothing at all comes is given up as soon the next time."""
        for _ in range(3):
            self.say()
            self.assertEqual(self.time(), 16.0)
            self.connect()

    def test_server_that_holds_back(self) -> None:
        """
        A server that is heard and takes nothing may only be holding back: each time it is waited
        for longer, until a connection has lasted on which everything is acknowledged.
        """
        times = []
        for _ in range(5):
            self.say()
            times.append(self.time(heard=True))
            self.connect()
        self.assertEqual(times, [16.0, 31.0, 61.0, 121.0, 121.0])
        self.hear(encode_ack(self.say()))
        self.assertEqual(self.client.ack_timeout, 120.0)
        self.assertIsNone(self.wait(30))
        self.hear(encode_ack(self.say()))
        self.assertEqual(self.client.ack_timeout, 15.0)


class BadServerTests(ConversationCase):
    """Servers that misbehave."""

    def test_frame_that_no_phone_reads(self) -> None:
        """A frame that makes no sense is reported and dropped; the next one is read."""
        line = self.pair.connect(("ack",))
        self.pair.talk(line)
        self.server.tell("?", b"nonsense\n" + encode_frame("messageResponse", {"room": "r"}))
        self.pair.say("그 다음")
        self.pair.talk(line)
        unreadable = [event for event in self.pair.events if isinstance(event, Unreadable)]
        self.assertEqual(len(unreadable), 2)
        self.assertEqual(self.pair.texts(), ["그 다음"])

    def test_broken_stream(self) -> None:
        """A compressed stream that breaks off, or never ends, ends the connection."""
        bomb = Deflater().pack(b"x" * 40_000_000)
        for data in (b"\xff\xff\xff", b"\x03\x00", bomb):
            line = self.pair.connect()
            self.pair.talk(line)
            client = line.conversation
            client.feed(data)
            turns = 1
            self.assertIsNone(client.next_event())
            while client.has_more:
                turns += 1
                client.begin_turn()
                self.assertIsNone(client.next_event())
            self.assertIs(client.ended, CloseReason.BAD_STREAM)
            self.assertEqual(turns > 10, data is bomb)

    def test_empty_lines(self) -> None:
        """A server that sends nothing but these is left, too; one long line is none of them."""
        for packed in (False, True):
            line = self.pair.connect() if packed else self.pair.connect(("ack",))
            self.pair.talk(line)
            client = line.conversation
            deflater = Deflater()
            for data, left in ((b"x", False), (b"\n", True)):
                for _ in range(1100):
                    client.feed(deflater.pack(data) if packed else data)
                    while client.next_event() is not None:
                        pass
                self.assertEqual(client.ended, CloseReason.BAD_STREAM if left else None)

    def test_frames_that_say_nothing(self) -> None:
        """A server that sends nothing else for ever is left."""
        for frame in (b'{"event":"z"}\n', b"nonsense\n", encode_ping("", "t")):
            line = self.pair.connect()
            self.pair.talk(line)
            client = line.conversation
            client.feed(Deflater().pack(frame * 100_000))
            events, turns = 0, 1
            while client.ended is None:
                events += client.next_event() is not None
                if client.has_more:
                    turns += 1
                    client.begin_turn()
            self.assertIs(client.ended, CloseReason.BAD_STREAM)
            self.assertLessEqual(events, 1_001)
            self.assertLessEqual(turns, 5)

    def test_absurd_numbers(self) -> None:
        """Numbers beyond all measure cost a frame, or are cut to what may be."""
        line = self.pair.connect(("ack",))
        self.pair.talk(line)
        for number in (b"-1", b"9" * 300):
            frame = b'{"event":"messageResponse","data":{"room":"r","message_type":"text",'
            line.conversation.feed(
                frame + b'"message_positions":[0,1],"message_id":' + number + b"}}x\n"
            )
            self.assertIsInstance(line.conversation.next_event(), Unreadable)
            self.assertEqual(line.conversation.data_to_send(), b"")
        session = SessionState(self.clock.seconds, self.clock.seconds)
        session.keep_token("token", 1e300)
        session.connection_lost()
        self.clock.advance(31 * 86_400.0)
        self.assertIsNone(session.token)

    def test_frame_too_large_for_the_server(self) -> None:
        """What the server would cut the connection for is not sent to it."""
        line = self.pair.connect()
        self.pair.talk(line)
        line.conversation._max_frame_bytes = 2000
        self.pair.say("가" * 3000)
        self.pair.say("나")
        self.pair.talk(line)
        self.assertEqual(self.pair.fates, [Fate.TOO_LARGE, Fate.TAKEN])

    def test_doubled_and_late_numbers(self) -> None:
        """What has come already is dropped, and acknowledged again."""
        line = self.pair.connect(("ack",))
        self.pair.say("하나")
        self.pair.talk(line)
        again = Reply("방", None, PHONE.bot_name, "다시")
        self.server.tell("messageResponse", encode_reply(again, Dialect.V33, "", 1))
        acks = self.server.received("ack")
        self.pair.talk(line)
        self.assertEqual(self.pair.texts(), ["하나"])
        self.assertEqual(self.server.received("ack"), acks + 1)
