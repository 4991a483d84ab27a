"""Tests for L{domaeka.rates}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.rates import MAX_CLAIMANTS, MINUTE, MinuteRates


class MinuteRatesTests(SynchronousTestCase):
    """Tests for L{MinuteRates}."""

    now = 1000.0

    def test_each(self) -> None:
        """A claimant has so many in a minute, whoever else has none left."""
        rates = MinuteRates[str](2)
        self.assertEqual([rates.take("a", self.now) for _ in range(3)], [True, True, False])
        self.assertTrue(rates.take("b", self.now))
        self.now += MINUTE
        self.assertEqual([rates.take("a", self.now) for _ in range(3)], [True, True, False])

    def test_together(self) -> None:
        """All together have so many, of which whoever is over its own takes none."""
        rates = MinuteRates[int](2, together=5)
        self.assertEqual(sum(rates.take(0, self.now) for _ in range(100)), 2)
        self.assertEqual(sum(rates.take(number, self.now) for number in range(1, 100)), 3)
        self.now += MINUTE
        self.assertTrue(rates.take(0, self.now))

    def test_bounded(self) -> None:
        """Very many claimants are not all remembered."""
        rates = MinuteRates[int](1)
        for number in range(MAX_CLAIMANTS + 2):
            self.assertTrue(rates.take(number, self.now))
        self.assertFalse(rates.take(MAX_CLAIMANTS + 1, self.now))
        self.assertTrue(rates.take(0, self.now))
