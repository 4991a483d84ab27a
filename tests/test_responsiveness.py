"""Tests for L{Responsiveness}: how long a device may be silent."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.liveness import Responsiveness

LEAST, MOST = 33.0, 90.0


class ResponsivenessTests(SynchronousTestCase):
    """Tests for L{Responsiveness}."""

    def setUp(self) -> None:
        self.responsiveness = Responsiveness()
        self.now = 0.0

    def answer(self, *seconds: float) -> float:
        """The device answers pings that come every 30 s.  @return: how long it is given then."""
        for took in seconds:
            self.now += 30.0
            self.responsiveness.answered(self.now, took)
        return self.responsiveness.seconds(LEAST, MOST)

    def test_new(self) -> None:
        """A device of which nothing is known has all the time there is."""
        self.assertEqual(self.responsiveness.seconds(LEAST, MOST), MOST)

    def test_prompt(self) -> None:
        """One that has been prompt for a while is given little, and one slow answer is forgiven."""
        self.assertEqual(self.answer(*[0.1] * 60), LEAST)
        self.assertLess(self.answer(5.0, *[0.1] * 10), LEAST + 1.0)

    def test_slow_now_and_then(self) -> None:
        """One that is slow time and again keeps all its time, however prompt it is in between."""
        self.answer(*[0.1] * 60)
        self.assertEqual(self.answer(*[5.0, *[0.1] * 12] * 10), MOST)

    def test_burst(self) -> None:
        """Answers that come together after one silence are one slow answer."""
        self.answer(*[0.1] * 60)
        self.responsiveness.answered(self.now, 11.0)
        before = self.responsiveness.seconds(LEAST, MOST)
        self.responsiveness.answered(self.now, 6.0, was_silent=False)
        self.assertEqual(self.responsiveness.seconds(LEAST, MOST), before)

    def test_back_from_elsewhere(self) -> None:
        """A connection that ended while the device was heard says nothing."""
        self.answer(*[0.1] * 60)
        self.responsiveness.connection_ended(float("inf"))
        self.responsiveness.back(self.now + 4.0, MOST)
        self.assertEqual(self.responsiveness.seconds(LEAST, MOST), LEAST)

    @given(st.lists(st.floats(0.0, 200.0), max_size=100))
    def test_bounds(self, answers: list[float]) -> None:
        """Never less than three times the longest silence, never more than all the time."""
        self.setUp()
        given_seconds = self.answer(*answers)
        slowest = max(answers, default=0.0)
        self.assertTrue(min(MOST, max(LEAST, 3 * slowest)) <= given_seconds <= MOST)
