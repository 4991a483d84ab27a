"""Tests for L{domaeka.policies.rates}."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.rates import MAX_CLAIMANTS, MINUTE, MinuteRates


class MinuteRatesTests(SynchronousTestCase):
    """Tests for L{MinuteRates}."""

    def setUp(self) -> None:
        self.clock = Clock()

    def test_each(self) -> None:
        """A claimant has so many in a minute, whoever else has none left."""
        rates = MinuteRates[str](2, self.clock.seconds)
        self.assertEqual([rates.take("a") for _ in range(3)], [True, True, False])
        self.assertTrue(rates.take("b"))
        self.clock.advance(MINUTE)
        self.assertEqual([rates.take("a") for _ in range(3)], [True, True, False])

    def test_together(self) -> None:
        """All together have so many, of which whoever is over its own takes none."""
        rates = MinuteRates[int](2, self.clock.seconds, together=5)
        self.assertEqual(sum(rates.take(0) for _ in range(100)), 2)
        self.assertEqual(sum(rates.take(number) for number in range(1, 100)), 3)
        self.clock.advance(MINUTE)
        self.assertTrue(rates.take(0))

    def test_bounded(self) -> None:
        """Very many claimants are not all remembered."""
        rates = MinuteRates[int](1, self.clock.seconds)
        for number in range(MAX_CLAIMANTS + 2):
            self.assertTrue(rates.take(number))
        self.assertFalse(rates.take(MAX_CLAIMANTS + 1))
        self.assertTrue(rates.take(0))
