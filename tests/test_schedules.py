"""Tests for L{domaeka.store.schedules}."""

from domaeka.errors import StoreError
from domaeka.store.schedules import FORGOTTEN_SECONDS, KEPT_SECONDS, SCHEDULES, StoredClaims
from domaeka.store.threads import DatabaseFailed
from tests.storing import StoreTestCase

DUE = 1_790_000_040.0


class StoredClaimsTests(StoreTestCase):
    """Tests for L{StoredClaims}."""

    def setUp(self) -> None:
        super().setUp()
        self.claims = StoredClaims(self.database, "node", wall=self.wall)
        self.start()

    def claim(
        self, due: float = DUE, name: str = "봇\ngreet", by: StoredClaims | None = None
    ) -> bool:
        return self.successResultOf((by or self.claims).claim(name, due))

    def last(self, until: float, name: str = "봇\ngreet") -> float | None:
        return self.successResultOf(self.claims.last(name, until))

    def test_one_has_it(self) -> None:
        """Of several servers on the store, also after a restart, one has a run."""
        self.assertTrue(self.claim())
        for _ in range(2):
            other = StoredClaims(self.database, "node", wall=self.wall)
            self.assertFalse(self.claim(by=other))
        self.assertTrue(self.claim(DUE + 60, by=other))
        self.assertFalse(self.claim(DUE + 60))
        self.assertTrue(self.claim(name="봇\nGreet"))

    def test_asked_again(self) -> None:
        """A claim whose answer was lost is still one's own."""
        self.thread.answers = False
        self.failureResultOf(self.claims.claim("s", DUE), DatabaseFailed)
        self.thread.answers = True
        self.assertTrue(self.claim(name="s"))

    def test_last(self) -> None:
        """The last run is known, of this schedule, and up to a time."""
        self.assertIsNone(self.last(DUE))
        for due in (DUE, DUE - 60, DUE + 60.25):
            self.claim(due)
        self.claim(DUE + 30, "other")
        self.assertEqual(self.last(DUE + 60), DUE)
        self.assertEqual(self.last(DUE + 61), DUE + 60.25)
        self.assertIsNone(self.last(DUE - 61))

    def test_old_ones_are_removed(self) -> None:
        """Old claims make room, but for the last one, and those of other schedules."""
        self.claim(DUE - KEPT_SECONDS - 60)
        self.claim(DUE - KEPT_SECONDS - 60, "other")
        self.claim(DUE - KEPT_SECONDS)
        self.claim(DUE)
        found = sorted((row["schedule"], row["due"] / 1000) for row in self.rows(SCHEDULES))
        self.assertEqual(
            found,
            [
                ("other", DUE - KEPT_SECONDS - 60),
                ("봇\ngreet", DUE - KEPT_SECONDS),
                ("봇\ngreet", DUE),
            ],
        )

    def test_forgotten_ones_are_removed(self) -> None:
        """The start removes what schedules have left that are served no more."""
        self.claim(self.wall() - FORGOTTEN_SECONDS - 1, "gone")
        self.claim(self.wall() - FORGOTTEN_SECONDS + 60, "rare")
        self.successResultOf(self.database.run_write(self.claims._forget))
        self.assertEqual([row["schedule"] for row in self.rows(SCHEDULES)], ["rare"])

    def test_store_fails(self) -> None:
        """A store that fails says so, and nobody has the run."""
        self.break_store()
        self.failureResultOf(self.claims.claim("s", DUE), StoreError)
        self.break_store(False)
        self.assertTrue(self.claim(name="s"))

    def test_any_name(self) -> None:
        """A name may have any characters, and any length."""
        for name in ("\0", "\ud800", "x" * 5000):
            self.assertTrue(self.claim(name=name))
            self.assertEqual(self.last(DUE, name), DUE)
