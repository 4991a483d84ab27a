"""Tests for L{domaeka.store.bans}."""

from twisted.logger import capturedLogs, formatEvent

from domaeka.errors import StoreError
from domaeka.policies.limits import Ban
from domaeka.store.bans import BANS, StoredBans
from tests.storing import StoreTestCase

ADDRESS = Ban("203.0.113.7/32", "wrong signatures", 10.0, 3610.0, 2, "sweep", "가게봇", "a1b2")
NETWORK = Ban("2001:db8::/64", "운영자", 20.5, None, 1, "operator")


class StoredBansTests(StoreTestCase):
    """Tests for L{StoredBans}."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.bans = StoredBans(self.database)
        self.successResultOf(self.bans.put([ADDRESS, NETWORK]))

    def test_survive(self) -> None:
        """Bans come back as they were, those that end last first."""
        self.assertEqual(self.successResultOf(self.bans.load()), [NETWORK, ADDRESS])

    def test_newer_takes_the_place_of_the_older(self) -> None:
        """A network has one ban, the last of those put."""
        again = Ban(ADDRESS.network, "again", 4000.0, 11_200.0, 3, "sweep")
        self.successResultOf(self.bans.put([ADDRESS, again]))
        self.assertEqual(self.successResultOf(self.bans.load()), [NETWORK, again])

    def test_lifted(self) -> None:
        """A ban that is lifted is gone; one that is none is not found."""
        self.assertTrue(self.successResultOf(self.bans.remove(ADDRESS.network)))
        self.assertFalse(self.successResultOf(self.bans.remove(ADDRESS.network)))
        self.assertEqual(self.successResultOf(self.bans.load()), [NETWORK])

    def test_old_ones_are_forgotten(self) -> None:
        """What was over long ago goes; what never ends stays."""
        for made_at, kept in ((90_010.0, 3), (90_011.0, 2)):
            new = Ban("198.51.100.1/32", "flood", made_at, made_at + 3600.0)
            self.successResultOf(self.bans.put([new]))
            self.assertEqual(len(self.successResultOf(self.bans.load())), kept)

    def test_many_at_once(self) -> None:
        """A sweep may ban thousands in one transaction."""
        many = [Ban(f"10.{n >> 8}.{n & 255}.0/24", "flood", 0.0, 9.0) for n in range(2000)]
        self.successResultOf(self.bans.put(many))
        self.assertEqual(len(self.successResultOf(self.bans.load())), 2002)
        self.assertEqual(len(self.write_times), 2)

    def test_damaged_row(self) -> None:
        """A ban that cannot be read keeps none of the others from being in force."""
        broken = Ban("198.51.100.1/32", "flood", 1.0, None)
        self.successResultOf(self.bans.put([broken]))
        damage = BANS.update().values(network="?").where(BANS.c.network == broken.network)
        self.successResultOf(self.database.run_write(lambda c: c.execute(damage) and None))
        with capturedLogs() as events:
            self.assertEqual(self.successResultOf(self.bans.load()), [NETWORK, ADDRESS])
        (warning,) = (formatEvent(event) for event in events)
        self.assertIn("bans: 1 rows of the store are damaged", warning)
        self.assertIn("domaeka_bans.network = '?' ('?' does not appear to be", warning)

    def test_failure_is_told(self) -> None:
        """A ban that could not be stored is known not to be."""
        self.break_store()
        self.failureResultOf(self.bans.put([ADDRESS]), StoreError)
        self.failureResultOf(self.bans.remove(ADDRESS.network), StoreError)
