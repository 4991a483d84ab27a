"""The tests of shares (C{tests/test_fair_*.py}): each names the pools that it fills."""

from typing import ClassVar

from domaeka.metrics import Metrics
from domaeka.pools import Pool


class FairCase:
    """
    A mix-in of a test case that fills shared pools beside an innocent phone, room or person.

    @cvar pools: those that its tests fill.
    """

    pools: ClassVar[tuple[Pool, ...]] = ()

    def assert_gave_way(self, metrics: Metrics, pool: Pool, least: int = 1) -> None:
        """The pool gave way, and said so: in the metric, and for the log with a claimant."""
        count = metrics.gave_way.labels(pool).value
        assert count >= least, f"{pool} gave way {count:.0f} times"
