"""Every shared pool has a row in docs/security.md, and a test that fills it."""

import importlib
import re

from twisted.trial.unittest import SynchronousTestCase

from domaeka.metrics import Metrics
from domaeka.pools import NEWS_SECONDS, Pool, Pools, Yielded
from tests.fairness import FairCase
from tests.test_floors import ROOT


class TableTests(SynchronousTestCase):
    """docs/security.md, "Shares"."""

    def test_every_pool_has_a_row(self) -> None:
        _, _, section = (ROOT / "docs/security.md").read_text("utf-8").partition("\n## Shares\n")
        rows = re.findall(r"^\| `([^`]+)` \|", section.partition("\n## ")[0], re.MULTILINE)
        self.assertEqual(sorted(rows), sorted(Pool))

    def test_every_pool_is_filled_by_a_test(self) -> None:
        filled = {
            pool
            for path in ROOT.glob("tests/test_fair_*.py")
            for case in vars(importlib.import_module(f"tests.{path.stem}")).values()
            if isinstance(case, type) and issubclass(case, FairCase)
            for pool in case.pools
        }
        self.assertEqual(set(Pool) - filled, set())


class PoolsTests(SynchronousTestCase):
    """What is said when one gives way."""

    def setUp(self) -> None:
        self.metrics = Metrics()
        self.pools = self.metrics.pools

    def test_counted_at_once(self) -> None:
        """The metric has each time, before anything is logged."""
        self.pools.gave_way(Pool.PLACES, "192.0.2.1")
        self.pools.gave_way(Pool.PLACES, "192.0.2.2", 3)
        self.assertEqual(self.metrics.gave_way.labels(Pool.PLACES).value, 4)

    def test_told_once_a_minute(self) -> None:
        """The log hears of the first at once, and then of all of a minute together."""
        self.pools.gave_way(Pool.PLACES, "192.0.2.1")
        self.assertEqual(self.pools.news(5.0), [Yielded(Pool.PLACES, "192.0.2.1", 1)])
        self.pools.gave_way(Pool.PLACES, "192.0.2.2", 2)
        self.pools.gave_way(Pool.PLACES, "192.0.2.3", 3)
        self.assertEqual(self.pools.news(5.0 + NEWS_SECONDS - 1), [])
        later = self.pools.news(5.0 + NEWS_SECONDS)
        self.assertEqual(later, [Yielded(Pool.PLACES, "192.0.2.3", 5)])
        self.assertEqual(self.pools.news(1000.0), [])

    def test_names_of_strangers_are_cut(self) -> None:
        """A claimant's name costs no more than a line has room for."""
        told = Pools(lambda pool, count: None)
        told.gave_way(Pool.PLACES, "가" * 10_000)
        self.assertLessEqual(len(told.news(0.0)[0].claimant), 200)
