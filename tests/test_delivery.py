"""
Delivery as a whole: a real gateway and the real client library, on lines that break.

Both keep what was accepted until it is acknowledged, so that nothing is lost, doubled or out of
order, wherever a line is cut.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from twisted.logger import capturedLogs, formatEvent

from domaeka.client import CAPABILITIES, Client, Credentials, Fate, Identity, Said, Server
from domaeka.errors import CloseReason
from domaeka.interfaces import DeviceKey, Priority
from domaeka.policies import outbox
from domaeka.testing import FakeSessions
from domaeka.wire import Media, Reply
from tests.gateway_case import KEY, SALT, SECRET, GatewayCase

#: Longer than any exchange here takes, in seconds.
TTL = 3600.0
#: Most lines that an exchange may take.
MAX_LINES = 5000


class DeliveryCase(GatewayCase):
    """A gateway to which a client comes back as long as anything is left to say."""

    def setUp(self) -> None:
        super().setUp()
        sessions: Any = FakeSessions()
        self.serve(
            ("queue.message_ttl", str(TTL)),
            ("limits.messages_per_second", "0"),
            sessions=sessions,
        )
        self.heard: list[str | Media] = []

    def library(self, key: DeviceKey, capabilities: Sequence[str]) -> Client:
        """A client that comes back at once, whatever happens to its line."""
        return Client(
            self.clock,
            [Server("here")],
            Identity(bot_name=key.bot_name, device_id=key.device_id),
            Credentials(SECRET, SALT),
            lambda reply: self.heard.append(reply.content),
            capabilities=capabilities,
            endpoint=lambda server: self.server,  # type: ignore[arg-type,return-value]
            random=lambda: 0.0,
            wall=self.wall,
        )

    def push(self, texts: Iterable[str], key: DeviceKey = KEY) -> None:
        """Send messages that answer nothing."""
        device = self.registry.get_or_create(key)
        for text in texts:
            device.send(Reply("방", "1", key.bot_name, text), TTL, None, Priority.NORMAL)
        self.run_for(0.0)

    def exchange(
        self,
        said: Sequence[str],
        pushed: Sequence[str],
        cuts: Iterable[int],
        *,
        at_once: int = 10_000,
        capabilities: Sequence[str] = CAPABILITIES,
    ) -> int:
        """
        Have a client say things, be answered, and be told things besides, over lines that are
        cut.  Each arrives once, in order.

        @param cuts: after how many bytes each line is cut; those beyond its end hold.
        @param at_once: how many messages each way are not acknowledged at a time, at most.
        @return: how many lines it took.
        """
        key = DeviceKey("봇", "+".join(capabilities))
        device = self.registry.get_or_create(key)
        client = self.library(key, capabilities)
        to_say, to_push = iter(said), iter(pushed)
        fates: list[object] = []
        self.server.accepted.clear()
        self.server.cuts = iter(cuts)
        self.bots.submitted.clear()
        self.heard.clear()

        def say(fate: object = None) -> None:
            fates.append(fate)
            text = next(to_say, None)
            if text is not None:
                client.say(Said(room="방", sender="나", text=text), TTL).addCallback(say)

        def push(fate: object = outbox.DeliveryStatus.ACKNOWLEDGED) -> None:
            text = next(to_push, None) if fate is outbox.DeliveryStatus.ACKNOWLEDGED else None
            if text is not None:
                reply = Reply("방", "1", key.bot_name, text)
                device.send(reply, TTL, told, Priority.NORMAL)

        def told(fate: outbox.DeliveryStatus, reason: str) -> None:
            self.clock.callLater(0.0, push, fate)

        for _ in range(min(at_once, len(said))):
            say()
            push()
        client.startService()
        while fates.count(Fate.TAKEN) < len(said) or device.outbox.messages:
            self.run_for(0.5)
            assert len(self.server.accepted) < MAX_LINES, "it does not end"
        client.stopService()
        self.run_for(0.0)
        self.assertEqual([chat.text for chat, _ in self.bots.submitted], [*said])
        answers, others = set(said), set(pushed)
        self.assertEqual([text for text in self.heard if text in answers], [*said])
        self.assertEqual([text for text in self.heard if text in others], [*pushed])
        return len(self.server.accepted)


class CutTests(DeliveryCase):
    """Clients with C{ack}."""

    def test_at_every_byte(self) -> None:
        """Line after line, each cut three bytes later than the one before, till all has arrived."""
        said = [f"{number} 말" for number in range(1000)]
        pushed = [f"{number} 밀어 보냄" for number in range(1000)]
        lines = self.exchange(said, pushed, range(0, 3 * MAX_LINES, 3), at_once=2)
        # The greeting is over after some 1,400 bytes.
        self.assertGreater(lines, 700)

    def test_all_at_once(self) -> None:
        """Hundreds of messages, and their answers, on their way at once, are cut at random."""
        random = Random(1)
        for capabilities in (CAPABILITIES, ("ack",), ("ack", "gzip")):
            said = [f"{number} {'말' * random.randrange(200)}" for number in range(400)]
            pushed = [f"{number} 밀어 보냄" for number in range(120)]
            cuts = [random.randrange(1, 8_000) for _ in range(40)]
            lines = self.exchange(said, pushed, cuts, capabilities=capabilities)
            self.assertGreater(lines, 10)
        budget = self.context.budget
        self.assertEqual((budget.used, budget.dropped, budget.forgotten), (0, 0, 0))

    def test_server_that_does_not_notice(self) -> None:
        """A phone that lost its network is back before its old connection has ended."""
        self.server.unaware = True
        said = [f"{number} 말" for number in range(300)]
        pushed = [f"{number} 밀어 보냄" for number in range(300)]
        cuts = Random(2).choices(range(4000), k=200)
        self.exchange(said, pushed, cuts, at_once=5)
        self.assertGreater(self.reasons["taken over"], 20)


class UnacknowledgedTests(DeliveryCase):
    """Phones without C{ack}."""

    @property
    def unconfirmed(self) -> float:
        """How many messages may have been lost, by the metric."""
        return self.metrics.unconfirmed_messages.value

    def test_what_had_not_left(self) -> None:
        """
        What had not been handed to the socket comes with the next connection; nothing comes
        twice, nor out of order, and no more is lost than is counted.
        """
        pushed = [f"{number} {'밀' * 3000}" for number in range(200)]
        heard: list[int] = []
        for start in range(0, 200, 10):
            peer = self.greeted()
            peer.pong()
            peer.stop_reading()
            self.push(pushed[start : start + 10])
            if start % 20:
                peer.read_on()
                self.run_for(60.0)
                peer.pong()
            peer.drop()
            heard += map(pushed.index, peer.texts)
        self.assertEqual(heard, sorted(set(heard)))
        lost = len(pushed) - len(heard)
        self.assertTrue(0 < lost <= self.unconfirmed < 100)

    def test_confirmed_by_a_pong(self) -> None:
        """A phone that answers a ping has all that was sent ahead of it."""
        peer = self.ready()
        peer.chat("하나", "둘")
        peer.drop()
        self.assertEqual(self.unconfirmed, 2)
        peer = self.ready()
        peer.chat("하나", "둘")
        self.run_for(60.0)
        peer.pong()
        peer.chat("셋")
        peer.drop()
        self.assertEqual(self.unconfirmed, 3)

    def test_ends_in_order(self) -> None:
        """Where the phone closes behind the server it has read all; where it is replaced, not."""
        peer = self.ready()
        peer.chat("하나")
        self.conversation().close(CloseReason.SHUTDOWN)
        self.run_for(1.0)
        self.assertEqual((self.unconfirmed, self.reasons), (0, {"shutdown": 1}))
        peer = self.ready()
        peer.chat("하나")
        self.ready()
        self.assertEqual(self.unconfirmed, 1)
        client = self.client("ack")
        client.chat("하나")
        client.drop()
        self.assertEqual(self.unconfirmed, 1)


class SlowLineTests(GatewayCase):
    """What a phone is given counts against the time of nothing that waits behind it."""

    def test_pictures(self) -> None:
        """However long a phone is blocked over pictures, those behind them arrive, and the text."""
        for script in ("3.2.0", "3.2.1", "3.3.3"):
            phone = self.phone(script=script)
            self.run_for(1.0)
            phone.say("nothing")
            self.run_for(0.1)
            device = self.registry.devices()[-1]
            media = Media((b"\x89PNG" + bytes(500_000),))
            for _ in range(5):
                device.send(Reply("방", "1", device.key.bot_name, media))
            device.send(Reply("방", "1", device.key.bot_name, "끝"))
            self.run_for(100.0)
            self.assertEqual((len(phone.replies), phone.texts()), (6, ["끝"]), script)
            phone.stop()
            self.run_for(1.0)

    def test_slow_reader(self) -> None:
        """Answers wait for a phone for as long as it takes something now and then."""
        peer = self.ready()
        received = peer.dataReceived

        def one_piece(data: bytes) -> None:
            received(data)
            peer.stop_reading()

        peer.dataReceived = one_piece  # type: ignore[method-assign]
        texts = [f"{number} {'x' * 60_000}" for number in range(10)]
        for text in texts:
            self.device().send(Reply("방", "1", KEY.bot_name, text))
        for _ in range(40):
            self.run_for(8.0)
            peer.read_on()
        self.assertEqual(peer.texts, texts)
        self.assertEqual(self.context.budget.expired, 0)

    def test_said(self) -> None:
        """What a phone never came back for is named in the log, once a while."""
        self.ready().drop()
        with capturedLogs() as events:
            for _ in range(5):
                self.device().send(Reply("방", "1", KEY.bot_name, "말"))
                self.run_for(32.0)
        told = [event for event in events if "waited too long" in event["log_format"]]
        self.assertTrue(formatEvent(told[0]).startswith(f"{KEY.bot_name!r} {KEY.device_id!r}: "))
        self.assertEqual((len(told), self.context.budget.expired), (1, 5))
