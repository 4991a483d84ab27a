"""Tests for L{domaeka.policies.liveness}."""

import tracemalloc
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import PingSettings
from domaeka.policies.liveness import Liveness, Ping, Responsiveness, SteadyTime
from domaeka.policies.quality import Grade

ADAPTIVE = PingSettings(initial_delay_min=30.0, initial_delay_max=30.0)
FIXED = replace(ADAPTIVE, adaptive=False)


class SteadyTimeTests(SynchronousTestCase):
    """Tests for L{SteadyTime}."""

    def setUp(self) -> None:
        self.seconds = 1.7e9
        self.time = SteadyTime(1.0, lambda: self.seconds)

    def test_follows_the_clock(self) -> None:
        """Sweeps that come about in time move it on as the clock does."""
        for step in (1.0, 1.5, 0.5, 2.0):
            self.seconds += step
            self.assertTrue(self.time.advance())
        self.assertEqual(self.time.now, 5.0)

    def test_ages_nobody(self) -> None:
        """After a hold-up nobody is judged, and little time has passed."""
        for step in (2.5, 86_400.0, 3.0):
            self.seconds += step
            self.assertFalse(self.time.advance())
        self.assertEqual(self.time.now, 3.0)
        self.seconds += 1.0
        self.assertTrue(self.time.advance())

    def test_between_two_sweeps(self) -> None:
        """What is exact goes on between two sweeps, and for a period at most."""
        self.seconds += 0.25
        self.assertEqual((self.time.now, self.time.exact()), (0.0, 0.25))
        self.seconds += 60.0
        self.assertEqual(self.time.exact(), 1.0)


class LivenessTests(SynchronousTestCase):
    """Tests for L{Liveness}: a sweep a second, as the gateway makes it."""

    def connect(self, settings: PingSettings) -> None:
        self.now = 0.0
        self.liveness = Liveness(settings, 0.0, Random(1))
        self.pings: list[float] = []

    def leave(self, now: float) -> Ping:
        """A ping leaves."""
        ping = Ping(f"{now}", now)
        self.liveness.ping_left(ping)
        return ping

    def sweep(self, seconds: int, answered: bool = True, delay: int = 0) -> None:
        """
        Let time pass.

        @param answered: whether the phone answers pings, after 0.1 s.
        @param delay: how much later than that it does.
        """
        for _ in range(seconds):
            self.now += 1.0
            if delay and (ping := self.liveness.outstanding(f"{self.now - delay}")):
                self.liveness.pong(ping, self.now, delay + 0.1)
            if self.liveness.due <= self.now:
                self.assertFalse(self.liveness.is_stale(self.now))
                if self.liveness.ping_due(self.now):
                    self.pings.append(self.now)
                    ping = self.leave(self.now)
                    if answered and not delay:
                        self.liveness.pong(ping, self.now, 0.1)

    def stale_after(self) -> float:
        """How long from now, with nothing heard and the phone pinged, until it is given up."""
        start = self.now
        while not self.liveness.is_stale(self.now):
            self.now += 1.0
            if self.liveness.ping_due(self.now):
                self.pings.append(self.now)
                self.leave(self.now)
            self.assertLess(self.now - start, 1000.0)
        self.assertLessEqual(self.liveness.due, self.now)
        return self.now - start

    def test_probe_that_waits(self) -> None:
        """A ping behind talk that waits for a picture to leave is one, however long it waits."""
        self.connect(ADAPTIVE)
        self.liveness.talked_at = 0.0
        due = [self.liveness.ping_due(float(now)) for now in range(9)]
        self.assertEqual(due, [False] * 5 + [True] + [False] * 3)
        self.leave(9.0)
        self.liveness.talked_at = 10.0
        self.assertEqual([self.liveness.ping_due(now) for now in (14.0, 15.0)], [False, True])

    def test_pings_at_intervals(self) -> None:
        """A phone that answers is pinged every 30 s, whatever the mode."""
        for settings_ in (FIXED, ADAPTIVE):
            self.connect(settings_)
            self.sweep(120)
            self.assertEqual(self.pings, [30.0, 60.0, 90.0, 120.0])

    def test_the_first_is_spread(self) -> None:
        """First pings go out after 1 to 59 s."""
        random = Random(2)
        due = [Liveness(PingSettings(), 100.0, random).due for _ in range(200)]
        self.assertTrue(101.0 <= min(due) < 105.0 and 155.0 < max(due) <= 159.0)

    def test_one_ping_at_a_time(self) -> None:
        """While one has not left, no other is sent, and nobody is judged."""
        self.connect(FIXED)
        due = [now for now in range(30, 300) if self.liveness.ping_due(float(now))]
        self.assertEqual(due, [30])
        self.assertFalse(self.liveness.is_stale(300.0))
        self.leave(300.0)
        self.assertEqual(self.liveness.due, 330.0)

    def test_out_of_turn(self) -> None:
        """The ping right after the handshake leaves the plan as it is."""
        self.connect(FIXED)
        self.assertTrue(self.liveness.pong(self.leave(0.0), 0.0, 0.2))
        self.assertEqual(self.liveness.due, 30.0)

    def test_stale(self) -> None:
        """A ping that has been out for 90 s with nothing heard ends it, though others follow."""
        self.connect(FIXED)
        self.sweep(59)
        self.assertEqual(self.stale_after(), 91.0)
        self.assertEqual(self.pings[1:], [60.0, 90.0, 120.0, 150.0])

    def test_whatever_arrives_proves_life(self) -> None:
        """A phone that chats but answers no ping is not given up."""
        self.connect(ADAPTIVE)
        for _ in range(20):
            self.sweep(30, answered=False)
            self.liveness.last_heard = self.now
        quality = self.liveness.quality
        self.assertEqual((quality.grade, quality.loss), (Grade.FAILING, 1.0))

    def test_only_the_ping_that_is_out(self) -> None:
        """A pong out of the blue, or a second one, is nothing."""
        self.connect(FIXED)
        self.assertIsNone(self.liveness.outstanding(None))
        ping = self.leave(1.0)
        self.assertIsNone(self.liveness.outstanding("0.0"))
        self.assertIs(self.liveness.outstanding("1.0"), ping)
        self.assertTrue(self.liveness.pong(ping, 1.0, 0.1))
        self.assertIsNone(self.liveness.outstanding("1.0"))

    def test_slow_and_steady(self) -> None:
        """A phone that always takes its time is fair, has round trips, and is asked no oftener."""
        for delay in (12, 25, 40):
            for settings_ in (FIXED, ADAPTIVE):
                self.connect(settings_)
                self.sweep(1800, delay=delay)
                quality = self.liveness.quality
                self.assertEqual((quality.grade, quality.loss), (Grade.FAIR, 0.0))
                self.assertAlmostEqual(quality.srtt or 0.0, delay + 0.1, 1)
                self.assertLess(len(self.pings), 64)

    def test_answers_after_a_silence(self) -> None:
        """Pings that are answered late, all together, were late and not lost."""
        self.connect(ADAPTIVE)
        self.sweep(300)
        pings = [self.leave(self.now + late) for late in (10.0, 20.0, 30.0, 40.0)]
        self.assertEqual(self.liveness.quality.reasons(), ["3 of 13 pings unanswered"])
        for ping in pings:
            self.assertTrue(self.liveness.pong(ping, 350.0, 350.0 - ping.left_at))
        trips = self.liveness.quality.round_trips()
        self.assertEqual((trips and trips.samples, self.liveness.quality.loss), (14, 0.0))

    def test_lost(self) -> None:
        """Phones answer in order: a ping before one that was answered is lost, once."""
        self.connect(FIXED)
        self.leave(0.0)
        self.assertTrue(self.liveness.pong(self.leave(5.0), 5.0, 0.1))
        self.assertIsNone(self.liveness.outstanding("0.0"))
        self.sweep(65)
        self.assertEqual(self.liveness.quality.reasons(), ["1 of 4 pings unanswered"])

    def test_few_are_waited_for(self) -> None:
        """Pings that are never answered are lost in the end, and forgotten."""
        self.connect(ADAPTIVE)
        for now in range(0, 1000, 10):
            self.leave(float(now))
            self.liveness.last_heard = now + 1.0
        waited = [now for now in range(1000) if self.liveness.outstanding(f"{now}.0")]
        self.assertEqual(waited, list(range(900, 1000, 10)))

    def test_held_up_meanwhile(self) -> None:
        """A round trip during which the process was held up is proof of life, but no sample."""
        self.connect(FIXED)
        self.assertFalse(self.liveness.pong(self.leave(10.0), 11.0, 3600.0))
        self.assertIsNone(self.liveness.quality.round_trips())

    def test_blocked(self) -> None:
        """A phone that sends media by our order is given that time, one frame after another."""
        self.connect(FIXED)
        self.sweep(35, answered=False)
        for _ in range(3):
            self.liveness.blocked(self.now, 16.2)
        self.assertAlmostEqual(self.liveness.blocked_until, 35.0 + 48.6)
        self.assertEqual(self.stale_after(), 134.0)  # since 30: 90 s and 48.6 s

    def test_blocked_is_neither_sample_nor_miss(self) -> None:
        """A ping that overlaps with media says nothing about the line."""
        self.connect(FIXED)
        ping = self.leave(0.0)
        self.liveness.blocked(1.0, 16.2)
        self.assertFalse(self.liveness.pong(ping, 17.0, 17.0))
        self.liveness.blocked(20.0, 16.2)
        self.leave(21.0)
        self.leave(50.0)
        self.assertIsNone(self.liveness.quality.round_trips())
        self.assertEqual(self.liveness.quality.loss, 0.0)

    def test_paused(self) -> None:
        """Silence counts only while the phone is read from."""
        self.connect(FIXED)
        self.sweep(40, answered=False)
        self.liveness.reading_paused(self.now)
        self.assertFalse(self.liveness.is_stale(self.now + 1000.0))
        self.now += 200.0
        self.liveness.reading_resumed(self.now)
        self.assertEqual(self.stale_after(), 80.0)

    def test_follows_up(self) -> None:
        """Adaptive: a ping that goes unanswered is soon followed by others."""
        self.connect(ADAPTIVE)
        self.sweep(65)
        self.sweep(50, answered=False)
        self.assertEqual(self.pings, [30.0, 60.0, 90.0, 100.0, 110.0])

    def test_gives_up_sooner(self) -> None:
        """Adaptive: a line known to answer quickly is given up after 33 s, a new one after 90."""
        self.connect(ADAPTIVE)
        self.sweep(29)
        self.assertEqual(self.stale_after(), 91.0)
        self.connect(ADAPTIVE)
        self.sweep(1499)
        self.assertEqual(self.stale_after(), 34.0)

    def test_timeout_of_a_device(self) -> None:
        """Adaptive: never before three times the longest that an answer took, nor after 90 s."""
        for took, timeout in ((8.0, 33.0), (20.0, 60.0), (35.0, 90.0)):
            self.connect(ADAPTIVE)
            self.sweep(1499)
            self.liveness.pong(self.leave(self.now), self.now + took, took)
            self.now += took
            self.assertGreaterEqual(self.liveness.timeout, timeout)
            self.sweep(1799)
            self.assertEqual(self.liveness.timeout, timeout)

    def test_timeout_shrinks_steadily(self) -> None:
        """Adaptive: each prompt answer of a new device brings the time-out down a little."""
        self.connect(ADAPTIVE)
        timeouts = []
        for _ in range(30):
            self.sweep(30)
            timeouts.append(self.liveness.timeout)
        steps = [before - after for before, after in pairwise([90.0, *timeouts])]
        self.assertTrue(all(1.0 < step < 3.0 for step in steps))
        self.assertAlmostEqual(timeouts[-1], 33.0)

    def test_adapts_and_goes_back(self) -> None:
        """Adaptive: the worse a line, the more pings, down to 10 s; a good one gets its 30 s."""
        self.connect(ADAPTIVE)
        self.sweep(300)
        self.sweep(55, answered=False)
        self.assertEqual(self.liveness.interval, 10.0)
        self.sweep(700)
        self.assertEqual((self.liveness.quality.grade, self.liveness.interval), (Grade.GOOD, 30.0))

    def test_device_is_remembered(self) -> None:
        """What a device's connections before have shown counts at once."""
        self.connect(ADAPTIVE)
        answers = Responsiveness()
        self.liveness.is_of(answers, 0.0)
        self.sweep(1499)
        self.liveness.ended()
        self.connect(ADAPTIVE)
        self.liveness.is_of(answers, 0.0)
        self.assertEqual(self.stale_after() - self.pings[0], 33.0)

    def test_given_up_by_mistake(self) -> None:
        """A phone that is back soon after it was given up was alive: it is given its full time."""
        for away, timeout in ((5, 90.0), (600, 33.0)):
            self.connect(ADAPTIVE)
            answers = Responsiveness()
            self.liveness.is_of(answers, 0.0)
            self.sweep(1499)
            self.stale_after()
            self.liveness.ended()
            self.liveness = Liveness(ADAPTIVE, self.now, Random(1))
            self.liveness.is_of(answers, self.now + away)
            self.assertEqual(self.liveness.timeout, timeout)

    def test_only_its_app_is_silent(self) -> None:
        """A phone whose kernel takes what is written is on a line that lives: it has 90 s."""
        self.connect(ADAPTIVE)
        self.sweep(1499)
        self.sweep(32, answered=False)
        now = self.pings[-4] + 33.0
        self.assertTrue(self.liveness.is_stale(now))
        self.assertFalse(self.liveness.is_stale(now, taken=True))
        self.assertTrue(self.liveness.is_stale(now + 57.0, taken=True))

    def test_what_is_long_past_is_forgotten(self) -> None:
        """Adaptive: what a phone's answers have taken counts for an hour, or two."""
        self.connect(ADAPTIVE)
        self.sweep(1499)
        ping = self.leave(self.now)
        self.now += 20.0
        self.liveness.pong(ping, self.now, 20.0)
        self.sweep(3600)
        self.assertEqual(self.liveness.timeout, 60.0)
        self.sweep(3600)
        self.assertEqual(self.liveness.timeout, 33.0)

    def test_settings_bound(self) -> None:
        """An interval below C{ping.interval_min} stands; so does a short C{ping.timeout}."""
        self.connect(replace(ADAPTIVE, interval=5.0, timeout=12.0))
        self.sweep(100)
        self.assertEqual((self.liveness.interval, self.liveness.timeout), (5.0, 12.0))

    @given(st.lists(st.tuples(st.sampled_from("wpchdrs"), st.integers(0, 60)), max_size=80))
    def test_bounds(self, steps: list[tuple[str, int]]) -> None:
        """Whatever happens: within the bounds, and never given up for less than them."""
        now, answered = 0.0, 0.0
        out: list[Ping] = []
        liveness = Liveness(ADAPTIVE, now, Random(3))
        for action, number in steps:
            if action == "w":
                now += number
            elif action == "p" and liveness.ping_due(now):
                out.append(Ping(f"{now}", now))
                liveness.ping_left(out[-1])
            elif action == "c" and out:
                ping = liveness.outstanding(out[number % len(out)].text)
                if ping is not None:
                    liveness.pong(ping, now, now - ping.left_at)
                liveness.last_heard = answered = now
            elif action == "h":
                liveness.last_heard = answered = now
            elif action == "d":
                liveness.blocked(now, float(number))
            elif action == "r":
                liveness.reading_resumed(now)
            elif action == "s":
                liveness.reading_paused(now)
            self.assertTrue(10.0 <= liveness.interval <= 30.0)
            self.assertTrue(15.0 <= liveness.timeout <= 90.0)
            self.assertGreaterEqual(liveness.timeout, min(90.0, 3 * liveness.quality.worst))
            if liveness.is_stale(now):
                self.assertGreaterEqual(now - answered, liveness.timeout)
                self.assertGreaterEqual(now, liveness.due)

    def test_memory(self) -> None:
        """A fresh connection takes 800 bytes at most, its quality included."""
        random = Random(4)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        kept = [Liveness(ADAPTIVE, float(number), random) for number in range(100)]
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 800 * len(kept))
