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

    def pongs_until_known(self, lead: float, known: float | None, round_trip: float = 0.1) -> int:
        """Pongs after which a clock is known; 0: it is not after twenty."""
        series = ClockSeries()
        for number in range(1, 21):
            if series.agrees(lead, round_trip, known):
                return number
        return 0

    def test_clocks(self) -> None:
        """One ahead of what was known, or set right, is known soon; one behind takes longer."""
        for lead, known, pongs in (
            (100.0, None, 3),
            (100.0, -250.0, 3),
            (1.0, 200.0, 3),
            (-100.0, None, 6),
            (-100.0, 0.0, 6),
            (100.0, 200.0, 6),
        ):
            self.assertEqual(self.pongs_until_known(lead, known), pongs, (lead, known))

    def test_pongs_that_tell_nothing(self) -> None:
        """Those on a slow line, and those of the clock that is known, do not count."""
        self.assertEqual(self.pongs_until_known(100.0, 0.0, 1.1), 0)
        for lead in (-40.0, 20.0, 45.0):
            self.assertEqual(self.pongs_until_known(lead, 0.0), 0, lead)

    def test_in_a_row(self) -> None:
        """They agree with all those before, as far as their way allows."""
        series = ClockSeries()
        steps = [(90.0, 0.1), (90.3, 0.1), (90.4, 0.1), (91.0, 0.1), (90.6, 0.9)]
        self.assertEqual([series.agrees(*step, 0.0) for step in steps], [False] * 5)
        self.assertTrue(series.agrees(91.0, 0.1, 0.0))
