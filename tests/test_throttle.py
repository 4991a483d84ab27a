"""Tests for L{domaeka.gateway.flow.throttle}: a phone can only fill its own line."""

from domaeka.config import load_settings
from domaeka.gateway.flow.throttle import ANSWERS_BYTES, PENDING_MESSAGES
from domaeka.interfaces import DeviceKey
from domaeka.testing import FakeDispatcher
from tests.gateway_case import GatewayCase, Peer

OTHER = DeviceKey("봇", "e" * 16)
NO_RATE = ("limits.messages_per_second", "0")


class BackPressureTests(GatewayCase):
    """What stops the reading of a phone, and what lets it go on."""

    def setUp(self) -> None:
        super().setUp()
        self.serve(NO_RATE)

    def flood(self, peer: Peer, count: int, size: int = 1000) -> list[str]:
        """Have a phone say much without reading."""
        texts = [f"{number} {'x' * size}" for number in range(count)]
        peer.stop_reading()
        for text in texts:
            peer.chat(text)
        return texts

    def test_answers(self) -> None:
        """
        A phone with more than 256 KiB of answers waiting is not read from until half has gone,
        and everything is answered in order.
        """
        peer = self.ready()
        texts = self.flood(peer, 400, 3000)
        outbox = self.device().outbox
        self.assertTrue(ANSWERS_BYTES < outbox.answer_bytes < ANSWERS_BYTES + 20_000)
        self.assertLess(len(self.bots.submitted), 400)
        peer.read_on()
        self.run_for(1.0)
        self.assertEqual((peer.texts, self.context.budget.dropped), (texts, 0))

    def test_until_half_has_gone(self) -> None:
        """It is not read from again at the first answer, but at half of them."""
        self.bots.hold = True
        peer = self.ready()
        for number in range(2000):
            peer.chat(str(number))
        submitted = len(self.bots.submitted)
        for part, more in ((submitted // 2 - 10, False), (submitted // 2 + 10, True)):
            held = self.bots.held
            self.bots.held = held[: part - (submitted - len(held))]
            rest = held[len(self.bots.held) :]
            self.bots.release()
            self.bots.held = rest + self.bots.held
            self.run_for(1.1)
            self.assertEqual(len(self.bots.submitted) > submitted, more)

    def test_pending(self) -> None:
        """A phone whose messages wait for slow bots is not read from."""
        self.bots.hold = True
        peer = self.ready()
        texts = [str(number) for number in range(PENDING_MESSAGES + 200)]
        for text in texts:
            peer.chat(text)
        self.assertLess(len(self.bots.submitted), PENDING_MESSAGES + 2)
        self.bots.hold = False
        self.bots.release()
        self.run_for(3.0)
        self.assertEqual((peer.texts, self.context.budget.dropped), (texts, 0))

    def test_pending_and_answers_together(self) -> None:
        """Answers never give way to answers, however many messages wait for theirs."""
        peer = self.ready()
        peer.stop_reading()
        for number in range(800):
            peer.chat(str(number))
        self.bots.hold = True
        for number in range(800, 2000):
            peer.chat(str(number))
        self.bots.hold = False
        self.bots.release()
        peer.read_on()
        self.run_for(3.0)
        self.assertEqual(self.context.budget.dropped, 0)
        self.assertEqual(peer.texts, [str(number) for number in range(2000)])

    def test_long_pending_texts(self) -> None:
        """What waits for bots is bounded in characters, too."""
        self.bots.hold = True
        peer = self.ready()
        for _ in range(40):
            peer.chat("가" * 60_000)
        self.assertLess(self.device().pending_chars, 1_048_576 + 60_001)
        self.assertLess(len(self.bots.submitted), 20)

    def test_only_its_own_line(self) -> None:
        """Others are served meanwhile."""
        self.flood(self.ready(), 400, 3000)
        other = self.ready(OTHER)
        other.chat("말")
        self.assertEqual(other.texts, ["말"])

    def test_greetings_of_a_stranger(self) -> None:
        """Nobody can have us keep answers to handshakes without end."""
        peer = self.connect()
        peer.stop_reading()
        for _ in range(100):
            peer.write(peer.writer.handshake() * 200)
        session = self.conversation()
        self.assertLess(session._writer.urgent_bytes, 2 * ANSWERS_BYTES)
        self.assertLess(session.peer.bytes_received, 1_000_000)
        self.run_for(45.0)
        self.assertEqual(self.reasons, {"authentication timeout": 1})

    def test_many_in_order(self) -> None:
        """2,000 messages sent at once get 2,000 answers, in order."""
        peer = self.ready()
        texts = [str(number) for number in range(2000)]
        peer.chat(*texts)
        self.run_for(5.0)
        self.assertEqual(peer.texts, texts)


class RateTests(GatewayCase):
    """C{limits.messages_per_second}."""

    def setUp(self) -> None:
        super().setUp()
        self.serve(("limits.messages_per_second", "20"), ("limits.messages_burst", "50"))

    def test_nothing_is_dropped(self) -> None:
        """Over the rate the phone is not read from for a while, and all is answered."""
        peer = self.ready()
        texts = [str(number) for number in range(200)]
        peer.chat(*texts)
        self.assertTrue(50 <= len(peer.texts) <= 52)
        self.run_for(5.0)
        self.assertTrue(140 <= len(peer.texts) <= 155, len(peer.texts))
        self.run_for(4.0)
        self.assertEqual(peer.texts, texts)

    def test_what_does_not_count(self) -> None:
        """Pongs do not count."""
        peer = self.ready()
        for _ in range(200):
            peer.pong()
        peer.chat("말")
        self.assertEqual(peer.texts, ["말"])

    def test_messages_that_are_not_believed_count(self) -> None:
        """To tell repeats, or clocks that are off, costs time as well."""
        peer = self.greeted()
        peer.clock_offset = 400.0
        line = peer.line("말")
        for _ in range(10):
            peer.write(line * 20)
        self.assertTrue(50 < self.metrics.auth_failures.labels("wrong time").value < 75)
        self.assertFalse(peer.finished)

    def test_limit_is_lifted(self) -> None:
        """A pause ends where the rate is lifted meanwhile."""
        peer = self.ready()
        texts = [str(number) for number in range(100)]
        peer.chat(*texts)
        changed = load_settings(None, [("limits.messages_per_second", "0")], {})
        self.context.settings = changed
        self.conversation().apply_settings()
        self.run_for(1.1)
        self.assertEqual(peer.texts, texts)

    def test_empty_texts_count(self) -> None:
        """Messages that are ignored are no way around it."""
        peer = self.ready()
        for _ in range(100):
            peer.chat("")
        self.assertLess(self.conversation().peer.messages_received, 60)

    def test_clock_steps_back(self) -> None:
        """A pause ends in time, though the clock is set back meanwhile."""
        peer = self.ready()
        texts = [str(number) for number in range(60)]
        peer.chat(*texts)
        self.wall.step(-200.0)  # what is signed already still holds
        self.run_for(60.0)
        self.assertEqual(peer.texts, texts)

    def test_ends_in_a_pause(self) -> None:
        """A phone that has said too much, and finished, still gets all its answers."""
        peer = self.ready()
        texts = [str(number) for number in range(100)]
        peer.chat(*texts)
        peer.finish()
        self.run_for(5.0)
        self.assertEqual((peer.texts, peer.lost), (texts, True))


class FewMessagesTests(GatewayCase):
    """C{queue.max_messages} below what would wait by default."""

    def test_still_in_order(self) -> None:
        """With room for few messages a phone is read from more slowly, and loses none."""
        bots = FakeDispatcher(lambda chat: chat.text, hold=True)
        self.serve(NO_RATE, ("queue.max_messages", "100"), dispatcher=bots)
        peer = self.ready()
        peer.stop_reading()
        texts = [str(number) for number in range(500)]
        for text in texts:
            peer.chat(text)
        self.assertLess(len(bots.submitted), 100)
        bots.hold = False
        bots.release()
        peer.read_on()
        self.run_for(2.0)
        self.assertEqual((peer.texts, self.context.budget.dropped), (texts, 0))
