"""Tests for L{domaeka.clock}, and for what depends on it in a gateway whose wall clock is set."""

import re
from datetime import datetime

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.api import Bot, Context
from domaeka.bots.dispatch import BotDispatcher
from domaeka.clock import MonotonicClock, keep_going
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.interfaces import DeviceKey, Priority
from domaeka.policies.auth import Signer
from domaeka.testing.loop import VirtualBotLoop
from domaeka.texts_ko import OPEN_TEXT, TIMEOUT_TEXT
from domaeka.wire import Reply
from tests.bots_fakes import FakeReactor, FakeThreads
from tests.gateway_case import KEY, NOW, SALT, SECRET, GatewayCase

#: By how much the wall clock is set, in seconds: on and back an hour, as where the machine keeps
#: local time; nine hours, as in Korea; and a day.
STEPS = (-3600.0, -32_400.0, 3600.0, 86_400.0)


class _Reactor(ReactorBase):
    """Twisted's own, as it is installed, but for sockets; its time is the wall clock's, as ever."""

    def __init__(self) -> None:
        self.wall = 1_790_000_000.0
        super().__init__()

    def installWaker(self) -> None:
        """Nothing sleeps."""

    def seconds(self) -> float:
        return self.wall


class KeepGoingTests(SynchronousTestCase):
    """Tests for L{keep_going}, with the reactor of the Twisted that is installed."""

    def setUp(self) -> None:
        self.machine = 12.0  # seconds since it was switched on
        self.reactor = _Reactor()
        self.called: list[str] = []

    def keep_going(self) -> None:
        keep_going(self.reactor, lambda: self.machine)

    def pass_time(self, seconds: float) -> None:
        """Time passes, for both clocks."""
        self.machine += seconds
        self.reactor.wall += seconds
        self.reactor.runUntilCurrent()

    def test_needed(self) -> None:
        """Without it, what is scheduled waits for as long as the clock was set back."""
        self.reactor.callLater(1.0, self.called.append, "late")
        self.reactor.wall -= 3600.0
        self.pass_time(2.0)
        self.assertEqual(self.called, [])

    def test_steps(self) -> None:
        """What is scheduled comes in its time, and the reactor sleeps until then."""
        self.keep_going()
        for step in STEPS:
            self.reactor.callLater(5.0, self.called.append, "in time")
            self.reactor.runUntilCurrent()
            self.reactor.wall += step
            self.assertAlmostEqual(self.reactor.timeout() or 0.0, 5.0, places=5)
            self.pass_time(4.9)
            self.assertEqual(self.called, [])
            self.pass_time(0.2)
            self.assertEqual(self.called, ["in time"])
            self.called.clear()

    def test_scheduled_before(self) -> None:
        """What was scheduled already comes in its time, too, and can be put off."""
        self.reactor.callLater(5.0, self.called.append, "first")
        second = self.reactor.callLater(5.0, self.called.append, "second")
        self.reactor.runUntilCurrent()
        self.keep_going()
        self.reactor.wall -= 3600.0
        second.reset(7.0)
        self.pass_time(5.1)
        self.assertEqual(self.called, ["first"])
        self.pass_time(2.0)
        self.assertEqual(self.called, ["first", "second"])

    def test_loops(self) -> None:
        """A LoopingCall goes on at its pace, though it began before; and counts no missed turns."""
        for before in (True, False):
            self.reactor = _Reactor()
            counts: list[int] = []
            loop = LoopingCall.withCount(counts.append)
            loop.clock = self.reactor  # type: ignore[assignment]  # zope's interfaces
            if not before:
                self.keep_going()
            loop.start(1.0, now=False)
            self.reactor.runUntilCurrent()
            if before:
                self.keep_going()
            for step in STEPS:
                self.pass_time(1.01)
                self.reactor.wall += step
            self.assertEqual(counts, [1] * len(STEPS))
            loop.stop()

    def test_goes_on_from_the_date(self) -> None:
        """The time goes on from what it was, so that whoever takes it for a date is about right."""
        self.keep_going()
        self.pass_time(10.0)
        self.assertAlmostEqual(self.reactor.seconds(), self.reactor.wall, places=5)

    def test_once(self) -> None:
        """To ask for it again changes nothing."""
        self.keep_going()
        self.reactor.wall -= 3600.0
        self.keep_going()
        self.assertAlmostEqual(self.reactor.seconds(), 1_790_000_000.0, places=5)


class MonotonicClockTests(SynchronousTestCase):
    """Tests for L{MonotonicClock}."""

    def test_stands_and_goes_on(self) -> None:
        """Steps back are left out; what passes, and steps forward, are not."""
        behind = iter((100.0, 101.0, 51.0, 52.0, 60.0, 20.0, 21.0))
        time = MonotonicClock(lambda: next(behind))
        self.assertEqual([time() for _ in range(6)], [101.0, 101.0, 102.0, 110.0, 110.0, 111.0])


class StepTests(GatewayCase):
    """A gateway whose wall clock is set goes on as if nothing had been."""

    def test_pings(self) -> None:
        """Phones whose clocks follow are pinged, answer, and are given up when they do not."""
        for step in STEPS:
            self.serve()
            peer = self.ready()
            self.run_for(10.0)
            self.wall.step(step)
            for _ in range(4):
                self.run_for(31.0)
                peer.pong()
            self.assertGreaterEqual(peer.pings, 3)
            self.assertFalse(peer.finished)
            liveness = self.conversation()._keepalive.liveness
            assert liveness is not None
            self.assertLess(liveness.quality.worst, 60.0)
            self.run_for(125.0)
            self.assertEqual(self.reasons, {"ping timeout": 1})

    def test_who_shakes_no_hands(self) -> None:
        """The time for a handshake is as long as ever."""
        for step in STEPS:
            self.serve(("server.handshake_timeout", "10"))
            peer = self.connect()
            self.wall.step(step)
            self.run_for(8.0)
            self.assertFalse(peer.finished)
            self.run_for(3.5)
            self.assertTrue(peer.finished)

    def test_commands(self) -> None:
        """A command that hangs is given up in its time, and a breaker lets try again in its own."""
        bot = Bot("bot")

        @bot.command("# hang")
        def hang(ctx: Context) -> "Deferred[None]":
            return Deferred()

        for step in STEPS:
            dispatcher = BotDispatcher(
                [bot],
                self.clock,
                FakeThreads(),
                BotsSettings(timeout=5.0),
                BreakerSettings(failure_threshold=1, recovery_timeout=20.0),
                loop=VirtualBotLoop(FakeReactor(), FakeThreads()),
                observe=lambda command: lambda took: None,
                failed=lambda command: None,
                busy=lambda: None,
            )
            self.serve(dispatcher=dispatcher)
            dispatcher.start()
            peer = self.ready()
            peer.chat("# hang")
            self.wall.step(step)
            self.run_for(4.0)
            self.assertEqual(peer.texts, [])
            self.run_for(2.5)
            peer.chat("# hang")
            self.assertEqual(peer.texts, [TIMEOUT_TEXT, OPEN_TEXT])
            self.wall.step(step)
            self.run_for(20.0)
            peer.chat("# hang")
            self.assertEqual(dispatcher.pending(), 1)
            dispatcher.close()

    def test_expiry(self) -> None:
        """What waits for a phone that is away waits for its time, and no longer."""
        for step in STEPS:
            self.serve()
            device = self.registry.get_or_create(DeviceKey("봇", "away"))
            device.send(Reply("방", "1", "봇", "text"), 10.0, None, Priority.NORMAL)
            self.wall.step(step)
            self.run_for(9.0)
            self.assertEqual(device.outbox.messages, 1)
            self.run_for(2.5)
            self.assertEqual((device.outbox.messages, self.metrics.expired_messages.value), (0, 1))

    def test_signatures(self) -> None:
        """Whether a signature is of now is judged by the wall clock, at once."""
        for step in STEPS:
            self.serve()
            peer = self.ready()
            self.wall.step(step)
            peer.clock_offset = -step  # it has not followed
            peer.chat("하나")
            self.assertEqual((peer.texts, peer.errors), ([], ["AUTH_FAILED"]))
            self.assertEqual(self.counted(self.metrics.auth_failures), {"wrong time": 1})
            peer.clock_offset = 0.0
            peer.chat("둘")
            self.assertEqual(peer.texts, ["둘"])

    def test_dates(self) -> None:
        """What is written down bears the date of the wall clock as it is then."""
        peer = self.ready()
        self.wall.step(-3600.0)
        peer.chat("하나")
        self.assertEqual([round(line.time - self.wall()) for line in self.chat_log.lines], [0, 0])

    def test_dates_on_the_wire(self) -> None:
        """So does what phones are told."""
        told: list[bytes] = []
        peer = self.connect()
        take = peer.dataReceived
        peer.dataReceived = lambda data: told.append(data) or take(data)  # type: ignore[method-assign,func-returns-value]
        self.wall.step(-32_400.0)
        peer.handshake()
        peer.pong()
        peer.chat("하나")
        dates = re.findall(rb'"(?:server_)?timestamp":"([^"]+)"', b"".join(told))
        self.assertEqual(len(dates), 3)  # the greeting's, the ping's, the answer's
        for date in dates:
            ahead = datetime.fromisoformat(date.decode()).timestamp() - self.wall()
            self.assertApproximates(ahead, 0.0, 1.0)

    def test_restart(self) -> None:
        """What waits over a stop has the rest of its time in the next process."""
        self.registry.get_or_create(KEY).send(
            Reply("방", "1", "봇", "text"), 60.0, None, Priority.NORMAL
        )
        self.run_for(10.0)
        kept = list(self.directory.snapshot())
        self.clock.rightNow = 3.0
        self.wall.ahead = NOW + 30.0 - 3.0  # 20 s later
        self.serve()
        self.directory.restore(kept)
        [item] = self.device().outbox.held()
        self.assertApproximates(item.expires_at, 33.0, 1.0)

    def test_health(self) -> None:
        """A sweep that is late is seen to be, whatever the wall clock says."""
        for passed in (0.0, 3.0):
            self.serve()
            self.run_for(passed)
            self.assertIsNone(self.directory.sweep.health())
            self.wall.step(86_400.0)
            self.assertIsNone(self.directory.sweep.health())
            self.clock.rightNow += 60.0
            self.assertEqual(self.directory.sweep.health(), "it last ran 60 s ago")

    def test_round_trips(self) -> None:
        """A step while a ping is out is in no round trip; the phone's clock is off by it."""
        peer = self.ready()
        while not peer.pings:
            self.run_for(1.0)
        self.run_for(0.25)
        self.wall.step(-200.0)
        peer.clock_offset = 200.0
        peer.pong()
        session = self.conversation()
        assert session._keepalive.liveness is not None
        self.assertLess(session._keepalive.liveness.quality.worst, 2.0)
        self.assertEqual(round(session._keepalive.clock_skew or 0.0), 200)

    def test_ended_connections(self) -> None:
        """How many connections of a device ended within the hour is counted by time that passed."""
        for step in STEPS:
            self.serve()
            self.ready().drop()
            self.wall.step(step)
            self.assertEqual(self.directory.history.recent(self.clock.seconds())[KEY], 1)
            self.run_for(3601.0)
            self.assertEqual(self.directory.history.recent(self.clock.seconds())[KEY], 0)

    def test_previous_key(self) -> None:
        """Its end is a date: it comes when the wall clock says so, and so does what that ends."""
        for step, ends in ((86_400.0, True), (-86_400.0, False)):
            self.serve()
            signer = Signer(["n" * 24, SECRET], SALT, 300.0, self.wall, self.wall() + 60.0)
            self.context.apply(self.context.settings, signer)
            self.directory.decisions.apply_settings()
            peer = self.ready()
            self.wall.step(step)
            self.run_for(100.0 if not ends else 3.0)
            self.assertEqual(peer.errors, ["AUTH_FAILED"] * ends)
