"""Tests for L{domaeka.policies.holdings}."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.holdings import Holdings

KEYS = st.integers(0, 12)


class HoldingsMachine(RuleBasedStateMachine):
    """Like a dict of keys and holders, searched through."""

    def __init__(self) -> None:
        super().__init__()
        self.holdings = Holdings[str, int]()
        self.model: dict[int, str] = {}  # the oldest first

    @rule(key=KEYS, holder=st.sampled_from("abc"))
    def put(self, key: int, holder: str) -> None:
        """One is entered, or renewed."""
        self.holdings.put(holder, key)
        self.model.pop(key, None)
        self.model[key] = holder

    @rule(key=KEYS)
    def remove(self, key: int) -> None:
        """One is removed, if it is there."""
        assert self.holdings.remove(key) is (self.model.pop(key, None) is not None)

    @invariant()
    def gives_way(self) -> None:
        """The oldest of one of those who hold the most gives way."""
        sizes = {holder: list(self.model.values()).count(holder) for holder in self.model.values()}
        assert list(self.holdings) == list(self.model)
        first = self.holdings.first()
        if first is None:
            assert not sizes
            return
        largest = self.model[first]
        assert sizes[largest] == self.holdings.count_of(largest) == max(sizes.values())
        held = [key for key, holder in self.model.items() if holder == largest]
        assert self.holdings.of(largest) == held and held[0] == first


class HoldingsTests(SynchronousTestCase):
    """Tests for L{Holdings}."""

    def test_like_a_search(self) -> None:
        """Whatever is entered, renewed and removed, the right one gives way."""
        run_state_machine_as_test(HoldingsMachine)
