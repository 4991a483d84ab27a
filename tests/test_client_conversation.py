"""Tests for L{domaeka.client.conversation}, against a server that behaves."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.client.conversation import CAPABILITIES, Conversation, Event, Memory, Unreadable
from domaeka.client.outgoing import Fate, SendQueue
from domaeka.errors import CloseReason
from domaeka.messages import Dialect, Media, encode_frame
from domaeka.phonewire import Delivered, Greeting, Identity, Said
from domaeka.policies.auth import Signer
from domaeka.policies.compression import Deflater
from domaeka.testing import FakeConversation, FakeServer

KEY, SALT = "k" * 16, "salt"
PHONE = Identity(bot_name="가게봇", device_id="a1b2")
NOW = 1_790_000_000.0


def said(text: str) -> Said:
    return Said(room="방", sender="나", text=text)


class Pair:
    """A client's queue and memory, and a server; connections between them are made and cut."""

    def __init__(self, server: FakeServer, clock: Clock) -> None:
        self.server = server
        self.clock = clock
        self.queue = SendQueue(clock.seconds, "test")
        self.memory = Memory(clock.seconds)
        self.events: list[Event] = []
        self.fates: list[Fate] = []
        self.carried = 0

    def say(self, text: str) -> None:
        self.queue.put(said(text), 30.0, self.fates.append)

    def texts(self) -> list[str | Media]:
        return [event.reply.content for event in self.events if isinstance(event, Delivered)]

    def connect(
        self, capabilities: Sequence[str] = CAPABILITIES, dialect: Dialect = Dialect.V33
    ) -> tuple[Conversation, FakeConversation]:
        client = Conversation(
            PHONE,
            Signer([KEY], SALT, 300.0, self.clock.seconds).sign,
            self.queue,
            self.memory,
            self.clock.seconds,
            dialect,
            capabilities,
        )
        client.begin()
        return client, self.server.conversation()

    def talk(
        self,
        client: Conversation,
        server: FakeConversation,
        budget: int = 10**9,
        piece: int = 10**9,
    ) -> None:
        """Carry bytes both ways until nothing moves, or C{budget} of them have been carried."""
        self.carried = 0
        moved = True
        while moved:
            moved = False
            for source, sink in ((client, server.receive), (server, self._receiver(client))):
                while data := source.data_to_send():
                    moved = True
                    data = data[: budget - self.carried]
                    self.carried += len(data)
                    for start in range(0, len(data), piece):
                        sink(data[start : start + piece])
                    if self.carried == budget:
                        return

    def _receiver(self, client: Conversation):  # type: ignore[no-untyped-def]
        def receive(data: bytes) -> None:
            client.feed(data)
            while (event := client.next_event()) is not None:
                self.events.append(event)
                if isinstance(event, Greeting):
                    client.sending = True

        return receive

    def cut(self, server: FakeConversation) -> None:
        self.queue.connection_lost()
        self.memory.connection_lost()
        server.connection_lost()


class ConversationCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.server = FakeServer(self.clock.seconds, KEY, SALT)
        self.pair = Pair(self.server, self.clock)


class ExchangeTests(ConversationCase):
    """What is said arrives, whatever the server can do."""

    def test_every_choice_of_capabilities(self) -> None:
        """With all capabilities, with each alone, with none: what was said is answered in order."""
        texts: list[str | Media] = ["하나", "} 둘 {", "셋\n" * 10_000, "넷 👋"]
        for capabilities in (CAPABILITIES, *((one,) for one in CAPABILITIES), ()):
            self.setUp()
            for text in texts:
                self.pair.say(str(text))
            client, server = self.pair.connect(capabilities)
            client.sending = not capabilities
            self.pair.talk(client, server)
            self.assertEqual(self.pair.texts(), texts, capabilities)
            expected = Fate.TAKEN if "ack" in capabilities else Fate.WRITTEN
            self.assertEqual(self.pair.fates, [expected] * 4)
            device = self.server.store.device((PHONE.bot_name, PHONE.device_id))
            if "ack" in capabilities:
                self.assertEqual(device.unacknowledged, {})

    def test_server_without_capabilities(self) -> None:
        """A server that knows of no capability is spoken to as the phones of old do."""
        self.server.capabilities = frozenset()
        self.pair.say("안녕")
        client, server = self.pair.connect()
        self.pair.talk(client, server)
        self.assertEqual(self.pair.texts(), ["안녕"])
        self.assertEqual((client.granted, self.server.chats[0].client_id), (frozenset(), None))

    def test_old_dialect(self) -> None:
        """A 3.2 phone is served in its own form, and answers pings in its own way."""
        self.pair.say("옛 형식")
        client, server = self.pair.connect((), Dialect.V32)
        client.sending = True
        self.pair.talk(client, server)
        self.assertEqual(self.pair.texts(), ["옛 형식"])
        self.assertTrue(self.server.handshakes[0].bare)

    def test_byte_by_byte(self) -> None:
        """It does not matter in what pieces the bytes come."""
        for capabilities in (CAPABILITIES, ("gzip", "ack")):
            self.setUp()
            for number in range(5):
                self.pair.say(f"{number}" * 50)
            client, server = self.pair.connect(capabilities)
            self.pair.talk(client, server, piece=1)
            self.assertEqual(self.pair.texts(), [f"{number}" * 50 for number in range(5)])

    def test_handshake_goes_first(self) -> None:
        """Nothing follows the handshake until the server has answered."""
        self.pair.say("먼저")
        client, _ = self.pair.connect()
        self.assertEqual(client.data_to_send().count(b"\n"), 1)
        self.assertEqual(client.data_to_send(), b"")

    def test_chat_is_deflated(self) -> None:
        """On a C{deflate} connection a run of chat takes a quarter of its bytes, or less."""
        for number in range(200):
            self.pair.say(f"오늘 점심 뭐 먹지? 아무거나 {number}")
        self.pair.talk(*self.pair.connect(("ack",)))
        plain = self.pair.carried
        self.setUp()
        for number in range(200):
            self.pair.say(f"오늘 점심 뭐 먹지? 아무거나 {number}")
        self.pair.talk(*self.pair.connect())
        self.assertLess(self.pair.carried, plain / 4)


class CutTests(ConversationCase):
    """Connections that end at any byte."""

    def _exchange(self, cuts: Sequence[int], capabilities: Sequence[str]) -> None:
        self.setUp()
        expected = [f"메시지 {number}" for number in range(6)]
        for text in expected:
            self.pair.say(text)
        for budget in (*cuts, 10**9):
            self.clock.advance(0.01)
            client, server = self.pair.connect(capabilities)
            self.pair.talk(client, server, budget)
            self.pair.cut(server)
        self.assertEqual([chat.text for chat in self.server.chats], expected, cuts)
        self.assertEqual(self.pair.texts(), expected, cuts)
        self.assertEqual(self.pair.fates, [Fate.TAKEN] * 6, cuts)

    def test_one_cut_anywhere(self) -> None:
        """A connection cut at any byte loses nothing, doubles nothing, and keeps the order."""
        self._exchange((), ("session", "ack"))
        whole = self.pair.carried
        for cut in range(1, whole, 17):
            self._exchange((cut,), ("session", "ack"))

    @given(st.lists(st.integers(1, 6000), max_size=5), st.booleans())
    def test_many_cuts(self, cuts: list[int], deflate: bool) -> None:
        """Nor do several connections, one cut after the other."""
        self._exchange(cuts, CAPABILITIES if deflate else ("session", "ack"))

    def test_server_that_forgot(self) -> None:
        """Under a new numbering the old number means nothing: what comes is taken."""
        self.pair.say("하나")
        client, server = self.pair.connect()
        self.pair.talk(client, server)
        self.pair.cut(server)
        self.server.forget()
        self.pair.say("둘")
        self.pair.talk(*self.pair.connect())
        self.assertEqual(self.pair.texts(), ["하나", "둘"])

    def test_server_that_is_come_back_to(self) -> None:
        """What came before a stay elsewhere is known again."""
        memory = self.pair.memory
        memory.numbers("one").last = 7
        for other in range(15):
            memory.numbers(f"other {other}")
        self.assertEqual(memory.numbers("one").last, 7)
        for other in range(16):
            memory.numbers(f"another {other}")
        self.assertEqual(memory.numbers("one").last, 0)


class SessionTests(ConversationCase):
    """Session tokens."""

    def test_resumes(self) -> None:
        """A client that comes back shows the token that it was given last."""
        greetings = []
        for _ in range(3):
            client, server = self.pair.connect()
            self.pair.talk(client, server)
            self.pair.cut(server)
            greetings += [event for event in self.pair.events if isinstance(event, Greeting)][-1:]
        self.assertEqual([greeting.resumed for greeting in greetings], [False, True, True])
        self.assertEqual(self.server.handshakes[2].session_token, greetings[1].session_token)

    def test_token_of_a_lost_answer(self) -> None:
        """When the answer with the fresh token is lost, the one before is shown again."""
        client, server = self.pair.connect()
        self.pair.talk(client, server)
        self.pair.cut(server)
        client, server = self.pair.connect()
        self.pair.talk(client, server, budget=1000)
        self.pair.cut(server)
        self.pair.talk(*self.pair.connect())
        first, *_, last = self.pair.events
        assert isinstance(first, Greeting) and isinstance(last, Greeting)
        self.assertTrue(last.resumed)

    def test_expires(self) -> None:
        """A token's life runs from the end of its connection; then it is not shown."""
        client, server = self.pair.connect()
        self.pair.talk(client, server)
        self.clock.advance(10_000.0)
        self.assertIsNotNone(self.pair.memory.token)
        self.pair.cut(server)
        self.clock.advance(3599.0)
        self.assertIsNotNone(self.pair.memory.token)
        self.clock.advance(1.0)
        self.assertIsNone(self.pair.memory.token)

    def test_clock_set_back(self) -> None:
        """A clock that was a day ahead is believed again once it has been set."""
        time = 1e9 + 86_400.0
        memory = Memory(lambda: time)
        first, second = object(), object()
        memory.signing_time(first)
        time -= 86_400.0
        signed = memory.signing_time(first)
        self.assertApproximates(signed, time, 0.002)
        self.assertGreater(memory.signing_time(second), signed)

    def test_no_millisecond_twice(self) -> None:
        """Two connections never sign in the same millisecond: a server would see a replay."""
        first, server = self.pair.connect()
        self.pair.talk(first, server)
        second, other = self.pair.connect()
        self.pair.talk(second, other)
        self.assertTrue(second.greeted)


class SilenceTests(ConversationCase):
    """Servers that say nothing."""

    def test_no_greeting(self) -> None:
        """A server has ten seconds to answer the handshake."""
        client, _ = self.pair.connect()
        self.clock.advance(9.9)
        self.assertFalse(client.is_overdue())
        self.clock.advance(0.1)
        self.assertTrue(client.is_overdue())

    def test_watchdog(self) -> None:
        """After the first ping, two and a half intervals without a word are too many."""
        self.server.ping_interval = 10.0
        client, server = self.pair.connect()
        self.pair.talk(client, server)
        self.clock.advance(74.9)
        self.assertFalse(client.is_overdue())
        self.server.ping()
        self.pair.talk(client, server)
        self.assertEqual(len(server.pongs), 1)
        self.clock.advance(24.9)
        self.assertFalse(client.is_overdue())
        self.clock.advance(0.1)
        self.assertTrue(client.is_overdue())
        client.bear_with()
        self.assertFalse(client.is_overdue())


class BadServerTests(ConversationCase):
    """Servers that misbehave."""

    def test_frame_that_no_phone_reads(self) -> None:
        """A frame that makes no sense is reported and dropped; the next one is read."""
        client, server = self.pair.connect(("ack",))
        self.pair.talk(client, server)
        server.write(b"nonsense\n" + encode_frame("messageResponse", {"room": "r"}))
        self.pair.say("그 다음")
        self.pair.talk(client, server)
        unreadable = [event for event in self.pair.events if isinstance(event, Unreadable)]
        self.assertEqual(len(unreadable), 2)
        self.assertEqual(self.pair.texts(), ["그 다음"])

    def test_broken_stream(self) -> None:
        """A compressed stream that breaks off, or never ends, ends the connection."""
        bomb = Deflater().pack(b"x" * 40_000_000)
        for data in (b"\xff\xff\xff", b"\x03\x00", bomb):
            client, server = self.pair.connect()
            self.pair.talk(client, server)
            client.feed(data)
            self.assertIsNone(client.next_event())
            self.assertIs(client.ended, CloseReason.BAD_STREAM)

    def test_frame_too_large_for_the_server(self) -> None:
        """What the server would cut the connection for is not sent to it."""
        client, server = self.pair.connect()
        self.pair.talk(client, server)
        client._max_frame_bytes = 2000
        self.pair.say("가" * 3000)
        self.pair.say("나")
        self.pair.talk(client, server)
        self.assertEqual(self.pair.fates, [Fate.TOO_LARGE, Fate.TAKEN])

    def test_doubled_and_late_numbers(self) -> None:
        """What has come already is dropped, and acknowledged again."""
        client, server = self.pair.connect(("ack",))
        self.pair.say("하나")
        self.pair.talk(client, server)
        device = self.server.store.device((PHONE.bot_name, PHONE.device_id))
        device.next_number = 1
        self.server.send("다시")
        self.pair.talk(client, server)
        self.assertEqual(self.pair.texts(), ["하나"])
        self.assertEqual(device.unacknowledged, {})
