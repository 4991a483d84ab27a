"""Tests for L{domaeka.policies.last_seen}."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.last_seen import EXPECTED_SECONDS, LastSeen
from domaeka.policies.networks import address_key
from tests.clocks import WallClock

DAY = 86_400.0


class LastSeenTests(SynchronousTestCase):
    """Tests for L{LastSeen}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wall = WallClock(self.clock, 1.7e9)
        self.last_seen = LastSeen(self.wall)

    def see(self, device: str, address: str) -> None:
        """A device is there now."""
        self.last_seen.seen(("봇", device), address, self.wall())

    def count(self, address: str) -> int:
        """Number of devices expected at an address."""
        key = address_key(address)
        assert key is not None
        return self.last_seen.count(key)

    def test_each_once(self) -> None:
        """However often a device comes, it counts once; others beside it."""
        for device in ("a", "b", "a", "a"):
            self.see(device, "192.0.2.1")
        self.assertEqual((self.count("192.0.2.1"), self.count("192.0.2.2")), (2, 0))

    def test_last_address(self) -> None:
        """A device counts where it was last."""
        self.see("a", "192.0.2.1")
        self.see("a", "192.0.2.2")
        self.assertEqual((self.count("192.0.2.1"), self.count("192.0.2.2")), (0, 1))

    def test_what_address_key_one_address(self) -> None:
        """A /64 of IPv6 does, and an IPv4 address however it is written."""
        self.see("a", "2001:db8::1")
        self.see("b", "2001:db8::ffff")
        self.see("c", "::ffff:192.0.2.1")
        self.assertEqual((self.count("2001:db8::2"), self.count("2001:db8:0:1::1")), (2, 0))
        self.assertEqual(self.count("192.0.2.1"), 1)

    def test_no_address(self) -> None:
        """What is no IP address is not held."""
        self.see("a", "192.0.2.1")
        self.see("a", "local")
        self.assertEqual((self.count("192.0.2.1"), len(self.last_seen)), (0, 0))

    def test_thirty_days(self) -> None:
        """A device is expected for 30 days, and its entry goes with them."""
        self.see("a", "192.0.2.1")
        self.clock.advance(DAY)
        self.see("b", "192.0.2.1")
        self.see("a", "192.0.2.1")
        self.see("c", "192.0.2.1")
        self.clock.advance(EXPECTED_SECONDS)
        self.assertEqual(self.count("192.0.2.1"), 3)
        self.see("c", "192.0.2.1")
        self.clock.advance(1.0)
        self.assertEqual((self.count("192.0.2.1"), len(self.last_seen)), (1, 1))

    def test_forgotten(self) -> None:
        """A device that is forgotten is expected nowhere."""
        self.see("a", "192.0.2.1")
        self.last_seen.forget(("봇", "a"))
        self.last_seen.forget(("봇", "b"))
        self.assertEqual((self.count("192.0.2.1"), len(self.last_seen)), (0, 0))

    @given(
        st.lists(
            st.tuples(
                st.sampled_from("abcd"), st.integers(0, 2), st.sampled_from((0.0, 1.0, 11 * DAY))
            ),
            max_size=40,
        )
    )
    def test_counts(self, sightings: list[tuple[str, int, float]]) -> None:
        """Whoever came when and where, the count is that of the devices last seen there."""
        self.setUp()
        last: dict[str, tuple[int, float]] = {}
        for device, number, wait in sightings:
            self.clock.advance(wait)
            self.see(device, f"192.0.2.{number}")
            last[device] = number, self.wall()
            for each in range(3):
                expected = sum(
                    number == each and at >= self.wall() - EXPECTED_SECONDS
                    for number, at in last.values()
                )
                self.assertEqual(self.count(f"192.0.2.{each}"), expected)
        self.assertLessEqual(len(self.last_seen), len(last))
