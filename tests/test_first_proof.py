"""Tests for L{domaeka.policies.first_proof}."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.first_proof import ClockSeries, FirstProofs

START = 1_790_000_000.0


class FirstProofsTests(SynchronousTestCase):
    """Tests for L{FirstProofs}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.proofs = FirstProofs(self.clock.seconds, lambda: START + self.clock.seconds())

    def timely(self, at: float, lead: float | None = None) -> bool:
        """Whether what was signed then, in seconds since the start, is timely."""
        return self.proofs.is_timely((START + at) * 1000, lead)

    def test_age(self) -> None:
        """45 s either way by the phone's clock; one that nobody knows is taken for right."""
        self.clock.advance(1000.0)
        for lead in (None, 0.0, -250.0, 250.0):
            for age, timely in ((45.1, False), (44.9, True), (-44.9, True), (-45.1, False)):
                self.assertEqual(self.timely(1000.0 - age + (lead or 0.0), lead), timely)

    def test_before_the_process(self) -> None:
        """What was signed before this process began is not timely, whatever the wall clock does."""
        self.clock.advance(10.0)
        self.assertFalse(self.timely(-0.5))
        self.assertTrue(self.timely(0.5))
        self.assertFalse(self.timely(99.5, 100.0))
        self.assertTrue(self.timely(100.5, 100.0))


class ClockSeriesTests(SynchronousTestCase):
    """Tests for L{ClockSeries}."""

    def test_three_that_agree(self) -> None:
        """A clock is known by three pongs in a row that agree, as far as their way allows."""
        series = ClockSeries()
        steps = [(5.0, 0.1), (5.9, 0.1), (90.0, 0.1), (90.0, 0.1), (93.0, 0.1), (95.9, 2.0)]
        self.assertEqual([series.agrees(*step) for step in steps], [False] * 6)
        self.assertTrue(series.agrees(93.5, 0.1))
