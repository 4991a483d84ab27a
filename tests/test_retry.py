"""Tests for L{domaeka.policies.retry}."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.retry import (
    SETTLED_SECONDS,
    WINDOW_SECONDS,
    Backoff,
    Breaker,
    BreakerOpen,
    BreakerState,
)


class BackoffTests(SynchronousTestCase):
    """Tests for L{Backoff}."""

    def setUp(self) -> None:
        self.clock = Clock()

    def delays(self, random: float, tries: int) -> list[float]:
        backoff = Backoff(self.clock.seconds, lambda: random, 60.0)
        return [backoff.next_delay() for _ in range(tries)]

    def test_first_tries_keep_half_of_their_delay(self) -> None:
        """Two tries wait half of the limit at least, later ones may come at once."""
        self.assertEqual(self.delays(0.0, 4), [1.0, 2.0, 0.0, 0.0])

    def test_limit_doubles_up_to_the_longest(self) -> None:
        """The limit doubles with each try and stays at the longest."""
        self.assertEqual(self.delays(1.0, 8), [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0])

    def test_stays_finite(self) -> None:
        """A server that is gone for months is still tried."""
        self.assertEqual(self.delays(1.0, 5000)[-1], 60.0)

    def test_counts_anew_after_a_connection_that_lasted(self) -> None:
        """Only a connection of half a minute ends the row of tries."""
        backoff = Backoff(self.clock.seconds, lambda: 1.0, 60.0)
        backoff.next_delay()
        for lasted, delay in ((SETTLED_SECONDS - 1, 4.0), (SETTLED_SECONDS, 2.0)):
            backoff.connected()
            self.clock.advance(lasted)
            backoff.lost()
            self.assertEqual(backoff.next_delay(), delay)

    def test_a_try_that_never_connected_ends_nothing(self) -> None:
        """To be lost without having been connected changes nothing."""
        backoff = Backoff(self.clock.seconds, lambda: 1.0, 60.0)
        backoff.next_delay()
        self.clock.advance(1000)
        backoff.lost()
        self.assertEqual(backoff.next_delay(), 4.0)


class BreakerTests(SynchronousTestCase):
    """Tests for L{Breaker}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.breaker = Breaker("it", self.clock.seconds, 3, 60.0, 10.0)

    def fail_times(self, times: int) -> None:
        for _ in range(times):
            self.breaker.failed(self.breaker.begin())

    def test_opens_at_the_threshold(self) -> None:
        """As many failures in a row as were set open it; then no call is made."""
        self.fail_times(2)
        self.assertIs(self.breaker.state, BreakerState.CLOSED)
        self.fail_times(1)
        self.assertIs(self.breaker.state, BreakerState.OPEN)
        error = self.assertRaises(BreakerOpen, self.breaker.begin)
        self.assertEqual((error.name, error.opening), ("it", 1))

    def test_success_makes_a_failure_good(self) -> None:
        """What fails less often than it succeeds stays closed."""
        for _ in range(10):
            self.fail_times(2)
            for _ in range(2):
                self.breaker.succeeded(self.breaker.begin(), 1.0)
        self.assertIs(self.breaker.state, BreakerState.CLOSED)

    def test_old_failures_do_not_count(self) -> None:
        """Failures count for as long as the window is."""
        self.fail_times(2)
        self.clock.advance(WINDOW_SECONDS)
        self.fail_times(2)
        self.assertIs(self.breaker.state, BreakerState.CLOSED)

    def test_slow_is_failed(self) -> None:
        """A call that comes back slowly counts as a failure."""
        for _ in range(3):
            self.breaker.succeeded(self.breaker.begin(), 10.0)
        self.assertIs(self.breaker.state, BreakerState.OPEN)

    def test_lets_one_probe_in(self) -> None:
        """Half open, it lets one call through; its success closes it."""
        self.fail_times(3)
        self.clock.advance(60)
        self.assertIs(self.breaker.state, BreakerState.HALF_OPEN)
        probe = self.breaker.begin()
        self.assertRaises(BreakerOpen, self.breaker.begin)
        self.breaker.succeeded(probe, 1.0)
        self.assertIs(self.breaker.state, BreakerState.CLOSED)

    def test_failed_probe_opens_it_again(self) -> None:
        """The failure of the probe is a new opening."""
        self.fail_times(3)
        self.clock.advance(60)
        self.fail_times(1)
        self.assertEqual(self.assertRaises(BreakerOpen, self.breaker.begin).opening, 2)

    def test_lost_probe_does_not_block(self) -> None:
        """A probe that does not come back is given up, and changes nothing later."""
        self.fail_times(3)
        self.clock.advance(60)
        lost = self.breaker.begin()
        self.clock.advance(60)
        probe = self.breaker.begin()
        self.breaker.succeeded(lost, 1.0)
        self.breaker.failed(lost)
        self.assertIs(self.breaker.state, BreakerState.HALF_OPEN)
        self.breaker.succeeded(probe, 1.0)
        self.assertIs(self.breaker.state, BreakerState.CLOSED)

    def test_dropped_probe_makes_room(self) -> None:
        """A probe that was broken off by its caller is followed by another at once."""
        self.fail_times(3)
        self.clock.advance(60)
        self.breaker.dropped(self.breaker.begin())
        self.breaker.succeeded(self.breaker.begin(), 1.0)
        self.assertIs(self.breaker.state, BreakerState.CLOSED)

    def test_late_outcomes_change_nothing(self) -> None:
        """Calls begun before it opened neither close it nor keep it open."""
        late = [self.breaker.begin() for _ in range(8)]
        self.fail_times(3)
        self.clock.advance(60)
        probe = self.breaker.begin()
        for permit in late[:4]:
            self.breaker.succeeded(permit, 1.0)
        for permit in late[4:]:
            self.breaker.failed(permit)
        self.assertIs(self.breaker.state, BreakerState.HALF_OPEN)
        self.breaker.succeeded(probe, 1.0)
        self.assertIs(self.breaker.state, BreakerState.CLOSED)


class BreakerMachine(RuleBasedStateMachine):
    """Any calls, in any order, ending in any way: what must always hold."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker("it", self.clock.seconds, 2, 10.0, 5.0)
        self.calls: list[tuple[int, BreakerState]] = []  # permits, and the state they came from
        self.probe: int | None = None
        self.probed_at = 0.0
        self.opened_at = 0.0

    def watch(self, before: BreakerState) -> None:
        if self.breaker.state is not before:
            if self.breaker.state is BreakerState.OPEN:
                self.opened_at = self.clock.seconds()
            if self.breaker.state is not BreakerState.HALF_OPEN:
                self.probe = None

    @rule(seconds=st.sampled_from([0.5, 4.0, 10.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def begin(self) -> None:
        state = self.breaker.state
        now = self.clock.seconds()
        try:
            permit = self.breaker.begin()
        except BreakerOpen:
            waits_for_probe = self.probe is not None and now - self.probed_at < 10.0
            assert state is BreakerState.OPEN or waits_for_probe
            return
        assert state is not BreakerState.OPEN
        if state is BreakerState.HALF_OPEN:
            assert self.probe is None or now - self.probed_at >= 10.0
            assert permit not in [known for known, _ in self.calls]
            self.probe = permit
            self.probed_at = now
        self.calls.append((permit, state))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "slow", "failed", "dropped"]))
    def end(self, data: st.DataObject, how: str) -> None:
        permit, origin = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        before = self.breaker.state
        if how == "succeeded":
            self.breaker.succeeded(permit, 1.0)
        elif how == "slow":
            self.breaker.succeeded(permit, 5.0)
        elif how == "failed":
            self.breaker.failed(permit)
        else:
            self.breaker.dropped(permit)
        after = self.breaker.state
        if before is BreakerState.OPEN:
            assert after is BreakerState.OPEN
        if after is BreakerState.CLOSED and before is not after:
            assert permit == self.probe and how == "succeeded"
        if before is BreakerState.HALF_OPEN and after is not before:
            assert permit == self.probe and origin is BreakerState.HALF_OPEN
        if permit == self.probe and how == "dropped":
            self.probe = None
        self.watch(before)

    @invariant()
    def open_for_its_time(self) -> None:
        if self.breaker.state is BreakerState.OPEN:
            assert self.clock.seconds() - self.opened_at < 10.0


BreakerMachine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, database=None
)


class BreakerMachineTests(SynchronousTestCase):
    """Tests for L{Breaker}, by L{BreakerMachine}."""

    def test_what_must_always_hold(self) -> None:
        """No sequence of calls and ends breaks the rules of the states."""
        BreakerMachine.TestCase("runTest").runTest()
