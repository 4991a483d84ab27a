"""Tests for L{domaeka.policies.holdings}."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.holdings import MAX_CLAIMANTS, MINUTE, Holdings, MinuteRates

KEYS = st.integers(0, 12)


class HoldingsMachine(RuleBasedStateMachine):
    """Like a dict of keys and holders, searched through."""

    def __init__(self) -> None:
        super().__init__()
        self.holdings = Holdings[int, str]()
        self.model: dict[int, str] = {}  # the oldest first

    @rule(key=KEYS, holder=st.sampled_from("abc"))
    def put(self, key: int, holder: str) -> None:
        """One is entered, or renewed."""
        self.holdings.put(key, holder)
        self.model.pop(key, None)
        self.model[key] = holder

    @rule(key=KEYS)
    def renew(self, key: int) -> None:
        """One is renewed, if it is there."""
        self.holdings.renew(key)
        if key in self.model:
            self.model[key] = self.model.pop(key)

    @rule(key=KEYS)
    def remove(self, key: int) -> None:
        """One is removed, if it is there."""
        self.holdings.remove(key)
        self.model.pop(key, None)

    @invariant()
    def gives_way(self) -> None:
        """The oldest of one of those who hold the most gives way."""
        sizes = {holder: list(self.model.values()).count(holder) for holder in self.model.values()}
        assert len(self.holdings) == len(self.model)
        largest, first = self.holdings.largest(), self.holdings.first()
        if not sizes:
            assert largest is None and first is None
            return
        assert largest is not None and sizes[largest] == max(sizes.values())
        assert first == next(key for key, holder in self.model.items() if holder == largest)


class HoldingsTests(SynchronousTestCase):
    """Tests for L{Holdings}."""

    def test_like_a_search(self) -> None:
        """Whatever is entered, renewed and removed, the right one gives way."""
        run_state_machine_as_test(HoldingsMachine)


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
