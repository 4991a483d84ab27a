"""Tests for L{domaeka.gateway.conversation.keepalive}: who is pinged when, and who is given up."""

from domaeka.gateway.transport.kernel import PeerKernel
from tests.gateway_case import GatewayCase, Peer

#: A gateway in a hurry: a ping every second, and five to answer it.
HURRY = (
    ("ping.interval", "1"),
    ("ping.initial_delay_min", "1"),
    ("ping.initial_delay_max", "1"),
    ("ping.timeout", "5"),
    ("ping.adaptive", "false"),
)


class FirstPingTests(GatewayCase):
    """The ping right behind the handshake."""

    def test_at_once(self) -> None:
        """A connection that has not authenticated is pinged at once, and once."""
        peer = self.greeted()
        self.assertEqual(peer.pings, 1)
        self.run_for(25.0)
        self.assertEqual(peer.pings, 1)

    def test_answer_authenticates(self) -> None:
        """A signed answer authenticates, under either name, and is the first round trip."""
        for event in ("pong", "ping"):
            peer = self.greeted()
            self.run_for(0.5)
            peer.pong(event)
            session = self.conversation()
            self.assertTrue(session.peer.authenticated)
            liveness = session._keepalive.liveness
            assert liveness is not None
            self.assertAlmostEqual(liveness.quality.srtt or 0.0, 0.5, 3)
        self.assertEqual(self.metrics.rtt.count, 2)

    def test_another_echo(self) -> None:
        """Another echo than what was sent authenticates, and says nothing of the time."""
        peer = self.greeted()
        peer.write(peer.writer.pong("2020-01-01T00:00:00.000Z"))
        self.assertTrue(self.conversation().peer.authenticated)
        peer.pong()
        peer.pong()
        self.assertEqual((self.metrics.rtt.count, peer.errors), (1, []))

    def test_monitoring(self) -> None:
        """What a phone says of itself is kept."""
        phone = self.phone()
        self.run_for(1.0)
        monitoring = self.conversation().peer.monitoring
        assert monitoring is not None
        self.assertEqual(monitoring.total_memory, 512.0)
        self.assertEqual(len(phone.record.pings), 1)


class RegularPingTests(GatewayCase):
    """The pings after that."""

    def test_interval(self) -> None:
        """The first comes after 1 to 59 s, then one every 30 s."""
        phone = self.phone()
        self.run_for(1.0)
        self.run_for(60.0)
        first = len(phone.record.pings)
        self.assertIn(first, (2, 3))
        self.run_for(300.0)
        self.assertEqual(len(phone.record.pings) - first, 10)

    def test_answered_late(self) -> None:
        """A phone that takes 12 s for each answer, so that several pings are out, is no worse."""
        self.serve(("ping.initial_delay_max", "2"))
        peer = self.greeted()
        came = [0]
        answered = 0
        for now in range(1, 600):
            self.run_for(1.0)
            came += [now] * (peer.pings - len(came))
            if answered < len(came) and came[answered] + 12 <= now:
                peer.pong(number=answered)
                peer.pong(number=answered)  # another time: that says nothing
                answered += 1
        liveness = self.conversation()._keepalive.liveness
        assert liveness is not None
        self.assertEqual((self.metrics.rtt.count, liveness.quality.loss), (answered, 0.0))
        self.assertLess(len(came), 25)

    def test_all_versions_live_on(self) -> None:
        """A phone of any version that answers is never given up."""
        for script in ("3.2.0", "3.2.1", "3.3.2", "3.3.2 bare", "3.3.3"):
            phone = self.phone(script=script)
            self.run_for(600.0)
            self.assertEqual(len(phone.record.connects), 1, script)
            phone.stop()
            self.run_for(1.0)
        self.assertEqual(self.reasons, {"peer closed": 5})


class SilenceTests(GatewayCase):
    """What ends a connection, and what does not."""

    def setUp(self) -> None:
        super().setUp()
        self.serve(*HURRY)

    def test_silent(self) -> None:
        """A phone that is silent 5 s after a ping left is given up, and not sooner."""
        peer = self.ready()
        self.run_for(5.9)
        self.assertFalse(peer.finished)
        self.run_for(2.2)
        self.assertTrue(peer.lost)
        self.assertEqual(self.reasons, {"ping timeout": 1})
        self.assertEqual(self.metrics.ping_timeouts.value, 1)

    def test_anything_proves_life(self) -> None:
        """Whatever arrives proves life, if only a part of a line."""
        peer = self.ready()
        for _ in range(20):
            self.run_for(2.0)
            peer.write(b"x")
        self.assertFalse(peer.finished)

    def test_by_default(self) -> None:
        """By default a ping is out for 90 s before a phone is given up."""
        self.serve(("ping.initial_delay_min", "10"), ("ping.initial_delay_max", "10"))
        peer = self.ready()
        self.run_for(99.5)
        self.assertFalse(peer.finished)
        self.run_for(4.0)
        self.assertTrue(peer.lost)

    def test_known_to_be_quick(self) -> None:
        """One whose device has long been quick is given up after 33 s, if its kernel is silent."""
        for backlog_bytes, seconds in ((100, 33.0), (0, 90.0)):
            self.serve(("ping.initial_delay_min", "1"), ("ping.initial_delay_max", "1"))
            self.patch(PeerKernel, "backlog_bytes", backlog_bytes)
            self.ready().drop()
            for _ in range(60):
                self.device().responsiveness.answered(0.0, 0.1)
            peer = self.ready()
            self.run_for(seconds - 0.5)
            self.assertFalse(peer.finished)
            self.run_for(4.0)
            self.assertEqual(self.reasons["ping timeout"], 1)

    def test_blocked_by_our_order(self) -> None:
        """While it sends a picture a phone answers nothing; that is no silence."""
        phone = self.phone()
        phone.say("picture 12000")
        self.run_for(13.0)
        self.assertEqual(len(phone.replies), 1)
        self.run_for(20.0)
        self.assertEqual((len(phone.record.connects), self.reasons), (1, {}))

    def test_one_picture_after_another(self) -> None:
        """Pictures are sent one after the other: their times add up."""
        for script in ("3.2.0", "3.3.3"):
            phone = self.phone(script=script)
            for _ in range(3):
                phone.say("picture")
            self.run_for(60.0)
            self.assertEqual((len(phone.replies), len(phone.record.connects)), (3, 1), script)
            phone.stop()
            self.run_for(1.0)

    def test_silent_after_a_picture(self) -> None:
        """The time of a picture over, silence counts again."""
        phone = self.phone()
        phone.say("picture 12000")
        self.run_for(0.5)
        phone.block(1000.0)
        self.run_for(16.0)
        self.assertEqual(self.reasons, {})
        self.run_for(6.0 + 5.0)
        self.assertEqual(self.reasons, {"ping timeout": 1})

    def test_not_read_from(self) -> None:
        """Silence does not count while the phone is not read from."""
        slow = ("limits.messages_per_second", "0.1"), ("limits.messages_burst", "1")
        self.serve(*HURRY, *slow)
        phone = self.phone()
        for text in "abcd":
            phone.say(text)
        self.run_for(60.0)
        self.assertEqual((phone.texts(), self.reasons), (["a", "b", "c", "d"], {}))

    def test_late_sweep(self) -> None:
        """Where the process was held up nobody is given up, and nobody's time runs meanwhile."""
        peer = self.ready()
        self.run_for(3.0)
        self.clock.advance(200.0)
        self.run_for(1.5)
        self.assertFalse(peer.finished)
        self.run_for(4.0)
        self.assertTrue(peer.lost)

    def test_clock_steps(self) -> None:
        """A clock that is set, either way, gives up nobody and makes no round trip."""
        phone = self.phone()
        for step in (86_400.0, -3600.0, -32_400.0, 10.0):
            self.run_for(10.0)
            self.wall.step(step)
            phone.set_clock(self.wall.ahead)
            self.run_for(100.0)
        self.assertEqual((len(phone.record.connects), self.reasons), (1, {}))

    def test_time_runs_from_when_it_left(self) -> None:
        """A ping that waits behind others for the socket has not left."""
        peer = self.ready()
        self.stall(peer)
        sender = self.conversation()._writer
        self.run_for(3.0)
        self.assertTrue(sender.urgent_bytes)
        self.run_for(4.0)
        self.assertFalse(peer.finished)

    def stall(self, peer: Peer) -> None:
        """Have a phone take nothing of what it is given."""
        peer.stop_reading()
        peer.chat(*("x" * 30_000 for _ in range(5)))


class StallTests(GatewayCase):
    """A peer whose kernel takes nothing."""

    def test_too_slow(self) -> None:
        """It is given up after 10 s, and what it was to get waits for its next connection."""
        peer = self.ready()
        peer.stop_reading()
        peer.chat(*["x" * 12_000] * 6)
        self.run_for(9.0)
        self.assertEqual(self.reasons, {})
        self.run_for(3.0)
        self.assertEqual(self.reasons, {"too slow": 1})
        back = self.greeted()
        back.pong()
        self.run_for(0.1)
        self.assertEqual(len(back.texts), 2)

    def test_slow_and_steady(self) -> None:
        """One that takes a little now and then is not given up, however often it falls behind."""
        peer = self.ready()
        for _ in range(5):
            peer.stop_reading()
            peer.chat(*["x" * 12_000] * 6)
            self.run_for(8.0)
            peer.read_on()
            self.run_for(12.0)
            peer.pong()
        self.assertEqual((len(peer.texts), self.reasons), (30, {}))

    def test_not_read_from(self) -> None:
        """One that is not read from may be unable to read: it has longer."""
        peer = self.ready()
        peer.stop_reading()
        peer.chat(*["x" * 30_000] * 6)
        self.run_for(25.0)
        self.assertEqual(self.reasons, {})
        peer.read_on()
        self.assertEqual(len(peer.texts), 6)

    def test_blocked_by_our_order(self) -> None:
        """A phone that is blocked by our order is not slow."""
        phone = self.phone()
        phone.say("picture 12000")
        self.run_for(1.0)
        for _ in range(5):
            phone.say("x" * 40_000)
        self.run_for(20.0)
        self.assertEqual((len(phone.replies), self.reasons), (6, {}))

    def test_stranger(self) -> None:
        """A stranger that reads nothing is bounded, too."""
        peer = self.connect()
        peer.stop_reading()
        for _ in range(300):
            peer.write(peer.writer.handshake() * 2)
        self.run_for(12.0)
        self.assertEqual(self.reasons, {"too slow": 1})
