"""Tests for L{domaeka.policies.limits}."""

import tracemalloc
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import LimitsSettings
from domaeka.policies.limits import SUSPECT_SECONDS, AddressLimits, Admission, Ban, TokenBucket

ADMITTED, RATE_LIMITED = Admission.ADMITTED, Admission.RATE_LIMITED


class TokenBucketTests(SynchronousTestCase):
    """Tests for L{TokenBucket}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.bucket = TokenBucket(rate=2.0, burst=1.0, seconds=self.clock.seconds)

    def test_says_how_long_to_wait(self) -> None:
        """A refused sender learns when the same cost would be paid."""
        self.assertEqual(self.bucket.take(), 0.0)
        self.assertEqual(self.bucket.take(), 0.5)
        self.clock.advance(0.5)
        self.assertEqual(self.bucket.take(), 0.0)

    def test_a_clock_that_steps_back_takes_nothing(self) -> None:
        """What was gained stays, and time counts on from the new one."""
        self.bucket.take()
        self.clock.rightNow -= 3600.0
        self.assertAlmostEqual(self.bucket.take(), 0.5)
        self.clock.advance(0.5)
        self.assertEqual(self.bucket.take(), 0.0)

    @given(
        st.floats(0.01, 1000.0),
        st.integers(1, 50),
        st.lists(st.floats(0.0, 10.0), max_size=100),
        st.floats(1e9, 2e9),
    )
    def test_bounds_the_average(
        self, rate: float, burst: int, waits: list[float], start: float
    ) -> None:
        """Never more than the burst and the rate allow; who waited as told is let through."""
        clock = Clock()
        clock.rightNow = start
        bucket = TokenBucket(rate, float(burst), clock.seconds)
        for taken, wait in enumerate(waits, 1):
            clock.advance(wait)
            refused = bucket.take()
            if refused:
                clock.advance(refused)
                self.assertEqual(bucket.take(), 0.0)
            elapsed = clock.seconds() - start
            self.assertLessEqual(taken, burst + elapsed * rate * (1 + 1e-6) + 1e-2)


class AddressLimitsTests(SynchronousTestCase):
    """Tests for L{AddressLimits}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1.7e9
        self.limits = self.limits_of()

    def limits_of(self, **settings: object) -> AddressLimits:
        return AddressLimits(LimitsSettings(**settings), self.clock.seconds)  # type: ignore[arg-type]

    def attempts(self, address: str, count: int) -> list[Admission]:
        return [self.limits.admit(address) for _ in range(count)]

    def get_banned(self, address: str) -> list[Ban]:
        """Offend often enough, and be judged."""
        for _ in range(5):
            self.limits.failed_signature(address)
        return self.judged()

    def sweep(self) -> int:
        """Forget what is over.  @return: in how many steps."""
        return sum(1 for _ in self.limits.sweep())

    def judged(self) -> list[Ban]:
        """Have the time to prove itself go by, and be judged."""
        self.clock.advance(SUSPECT_SECONDS)
        self.sweep()
        return self.limits.judge()

    def test_limits_each_address(self) -> None:
        """Ten attempts a minute, one more every 6 s, and none is paid for when refused."""
        self.assertEqual(self.attempts("192.0.2.1", 12), [ADMITTED] * 10 + [RATE_LIMITED] * 2)
        self.assertEqual(self.attempts("192.0.2.2", 1), [ADMITTED])
        self.clock.advance(6.0)
        self.assertEqual(self.attempts("192.0.2.1", 2), [ADMITTED, RATE_LIMITED])

    def test_what_counts_as_one_address(self) -> None:
        """A /64 of IPv6 does, and an IPv4 address however it is written."""
        for same in (("2001:db8::1", "2001:db8::ffff%eth0"), ("192.0.2.1", "::ffff:192.0.2.1")):
            self.assertEqual(self.attempts(same[0], 10), [ADMITTED] * 10)
            self.assertEqual(self.attempts(same[1], 1), [RATE_LIMITED])
        self.assertEqual(self.attempts("2001:db8:0:1::1", 1), [ADMITTED])

    def test_no_address(self) -> None:
        """What comes over a local socket is not limited."""
        for text in ("", "/run/socket", "1.2.3.4.5", "1.2.3\x00.4", ":" * 50):
            self.assertEqual(self.attempts(text, 11), [ADMITTED] * 11)
            self.limits.failed_signature(text)
            self.limits.verified(text)

    def test_gives_back(self) -> None:
        """Attempts that authenticate never run out."""
        for _ in range(50):
            self.assertEqual(self.attempts("192.0.2.1", 1), [ADMITTED])
            self.limits.give_back("192.0.2.1")

    def test_a_clock_that_steps_back_shuts_nobody_out(self) -> None:
        """At worst the bucket is empty, as of now."""
        self.attempts("192.0.2.1", 10)
        self.clock.rightNow -= 86_400.0
        self.assertEqual(self.attempts("192.0.2.1", 1), [RATE_LIMITED])
        self.clock.advance(6.0)
        self.assertEqual(self.attempts("192.0.2.1", 1), [ADMITTED])

    def test_bans_at_the_sweep(self) -> None:
        """Attempts over the rate earn a ban, but only the sweep passes it."""
        self.attempts("192.0.2.1", 20)
        self.assertEqual(self.attempts("192.0.2.1", 1), [RATE_LIMITED])
        [ban] = self.judged()
        self.assertEqual((ban.network, ban.times, ban.made_by), ("192.0.2.1/32", 1, ""))
        self.assertEqual(self.attempts("192.0.2.1", 1), [Admission.BANNED])
        self.assertEqual((self.limits.banned, self.limits.bans()), (1, [ban]))
        self.clock.advance(3600.0)
        self.assertEqual(self.attempts("192.0.2.1", 1), [ADMITTED])
        self.assertEqual(self.limits.bans(), [])

    def test_only_what_comes_within_a_minute_counts(self) -> None:
        """Five wrong signatures spread further are no attack; within a minute they are."""
        for pause in (15.0, 14.0):
            self.limits = self.limits_of()
            for _ in range(5):
                self.limits.failed_signature("2001:db8::1")
                self.clock.advance(pause)
            bans = [ban.network for ban in self.judged()]
            self.assertEqual(bans, [] if pause == 15.0 else ["2001:db8::/64"])

    def test_an_address_with_a_verified_phone_is_not_banned(self) -> None:
        """Twenty phones behind one router may all return; a minute later that is over."""
        self.limits.verified("192.0.2.1")
        self.clock.advance(50.0)
        self.assertEqual(self.get_banned("192.0.2.1"), [])
        self.clock.advance(10.0)
        self.assertEqual(len(self.get_banned("192.0.2.1")), 1)

    def test_phones_that_return_at_once_have_time_to_prove_themselves(self) -> None:
        """A sweep in the middle of it bans nobody, nor does the one after it."""
        self.attempts("192.0.2.1", 20)
        self.clock.advance(0.05)
        self.sweep()
        self.assertEqual(self.limits.judge(), [])
        self.limits.verified("192.0.2.1")
        self.clock.advance(10.0)
        self.assertEqual(self.judged(), [])

    def test_many_are_banned_some_at_once(self) -> None:
        """No turn of the reactor makes more than 32 bans, and none is forgotten."""
        for number in range(70):
            self.attempts(f"192.0.2.{number}", 15)
        made = [len(self.judged()), *(len(self.limits.judge()) for _ in range(3))]
        self.assertEqual((made, self.limits.banned), ([32, 32, 6, 0], 70))

    def test_repeaters(self) -> None:
        """Each ban is twice as long as the one before, up to a day; a day later it is forgotten."""
        seconds = []
        for _ in range(7):
            [ban] = self.get_banned("192.0.2.1")
            assert ban.expires is not None
            seconds.append(ban.expires - ban.made_at)
            self.clock.advance(seconds[-1])
            self.sweep()
        self.assertEqual(seconds, [3600.0 * n for n in (1, 2, 4, 8, 16, 24, 24)])
        self.clock.advance(86_400.0)
        self.sweep()
        self.assertEqual(self.get_banned("192.0.2.1")[0].times, 1)

    def test_survives_a_restart(self) -> None:
        """Bans that are loaded hold, and those that are over still count."""
        [ban] = self.get_banned("192.0.2.1")
        self.limits = self.limits_of()
        self.limits.load([ban])
        self.assertEqual(self.attempts("192.0.2.1", 1), [Admission.BANNED])
        self.clock.advance(3600.0)
        self.assertEqual(self.get_banned("192.0.2.1")[0].times, 2)

    def test_operators_bans(self) -> None:
        """An operator bans networks, for ever if need be, and lifts bans."""
        self.limits.ban("192.0.2.0/24", "scanners", made_by="ops")
        self.limits.ban("2001:db8::/32", "", 10.0)
        for address in ("192.0.2.9", "2001:db8:9::1"):
            self.assertEqual(self.attempts(address, 1), [Admission.BANNED])
        self.clock.advance(10.0)
        self.assertEqual(self.attempts("2001:db8:9::1", 1), [ADMITTED])
        self.assertIsNotNone(self.limits.lift("192.0.2.0/24"))
        self.assertIsNone(self.limits.lift("192.0.2.0/24"))
        self.assertEqual(self.attempts("192.0.2.9", 1), [ADMITTED])
        self.assertRaises(ValueError, self.limits.ban, "here", "")

    def test_an_old_ban_hides_no_wider_one(self) -> None:
        """A ban of one address that is over does not shield it from that of its network."""
        self.get_banned("192.0.2.1")
        self.clock.advance(3600.0)
        self.limits.ban("192.0.2.0/24", "scanners")
        self.assertEqual(self.attempts("192.0.2.1", 1), [Admission.BANNED])
        self.assertEqual(self.get_banned("192.0.2.1"), [])

    def test_lists_win(self) -> None:
        """What is allowed is never limited or banned; what is denied never let in."""
        self.limits = self.limits_of(allow=("192.0.2.0/24", "2001:db8::1/128"), deny=("0.0.0.0/0",))
        self.assertEqual(self.attempts("198.51.100.1", 1), [Admission.DENIED])
        self.limits.ban("192.0.2.1", "")
        for address in ("192.0.2.1", "2001:db8::1"):
            self.assertEqual(self.attempts(address, 20), [ADMITTED] * 20)
        self.assertEqual(self.get_banned("192.0.2.1"), [])

    def test_denies(self) -> None:
        """Who is denied is known without an attempt; the more particular network decides."""
        limits = self.limits_of(allow=("203.0.113.7/32",), deny=("203.0.113.0/24", "2001:db8::/32"))
        for address, denied in (
            ("203.0.113.7", False),
            ("203.0.113.8", True),
            ("2001:db8::1", True),
            ("192.0.2.1", False),
            ("local", False),
        ):
            self.assertEqual(limits.denies(address), denied, address)

    def test_settings_change(self) -> None:
        """New settings hold at once; bans and what is known stay."""
        self.get_banned("192.0.2.1")
        self.limits.apply(LimitsSettings(connections_per_minute=1, deny=("192.0.2.2/32",)))
        self.assertEqual(self.attempts("192.0.2.1", 1), [Admission.BANNED])
        self.assertEqual(self.attempts("192.0.2.2", 1), [Admission.DENIED])
        self.assertEqual(self.attempts("192.0.2.3", 2), [ADMITTED, RATE_LIMITED])

    def test_never_forgets_who_is_refused(self) -> None:
        """A crowd of new addresses does not buy an attacker new attempts."""
        self.limits = self.limits_of(max_tracked_addresses=64)
        self.attempts("192.0.2.1", 10)
        for number in range(1000):
            self.limits.admit(f"10.0.{number // 250}.{number % 250}")
        self.assertEqual(self.attempts("192.0.2.1", 1), [RATE_LIMITED])

    def test_a_crowd_shuts_nobody_out(self) -> None:
        """Where all addresses known are being refused, a new one is let in, uncounted."""
        self.limits = self.limits_of(max_tracked_addresses=8)
        for number in range(8):
            self.attempts(f"10.0.0.{number}", 10)
        self.assertEqual(self.attempts("192.0.2.1", 20), [ADMITTED] * 20)
        self.assertEqual(self.attempts("10.0.0.3", 1), [RATE_LIMITED])

    def test_bans_are_bounded(self) -> None:
        """A full table takes no ban, but in the place of that which ends first if it is lifted."""
        self.limits = self.limits_of(max_tracked_addresses=4)
        for number in range(4):
            self.get_banned(f"192.0.2.{number}")
            self.clock.advance(1.0)
        self.assertEqual(self.get_banned("192.0.2.9"), [])
        self.assertIsNone(self.limits.ban("198.51.100.0/24", ""))
        first = self.limits.first_to_end()
        assert first is not None
        self.limits.lift(first.network)
        self.assertIsNotNone(self.limits.ban("198.51.100.0/24", ""))
        self.assertEqual((len(self.limits.bans()), self.limits.banned), (4, 4))
        self.assertEqual(self.attempts("192.0.2.0", 1), [ADMITTED])

    def test_old_bans_make_room_for_new_ones(self) -> None:
        """A table full of bans that are over keeps no new one out."""
        self.limits = self.limits_of(max_tracked_addresses=4)
        for number in range(4):
            self.get_banned(f"192.0.2.{number}")
        self.clock.advance(3600.0)
        self.assertEqual(len(self.get_banned("192.0.2.9")), 1)

    def test_large_tables_are_swept_in_steps(self) -> None:
        """No step of a sweep deals with more than 2,048 addresses, and nothing is left out."""
        for number in range(10_000):
            self.limits.admit(f"10.0.{number // 250}.{number % 250}")
        self.assertEqual(self.sweep(), 6)
        self.clock.advance(60.0)
        self.sweep()
        self.assertEqual(self.sweep(), 1)

    def test_clock_faults(self) -> None:
        """Attempts of phones whose clocks are off are given back, but not over ten a minute."""
        for _ in range(10):
            self.assertEqual(self.attempts("192.0.2.1", 1), [ADMITTED])
            self.limits.clock_fault("192.0.2.1")
        self.assertEqual(self.attempts("192.0.2.1", 10), [ADMITTED] * 10)
        self.limits.clock_fault("192.0.2.1")  # a line that was recorded, again and again
        self.assertEqual(self.attempts("192.0.2.1", 5), [RATE_LIMITED] * 5)
        self.assertEqual(self.judged(), [])

    def test_memory(self) -> None:
        """However many addresses are tried once, only so many are remembered, for little."""
        self.limits = self.limits_of(max_tracked_addresses=1024)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for number in range(5_000):
            self.limits.admit(str(ip_address(number * 37_199 + 1)))
        _, peak = tracemalloc.get_traced_memory()
        self.assertLess(peak, 1024 * 250)

    @given(
        st.lists(
            st.tuples(st.sampled_from("avfgsw"), st.integers(0, 11), st.integers(0, 40)),
            max_size=120,
        )
    )
    def test_invariants(self, steps: list[tuple[str, int, int]]) -> None:
        """The rate is kept, tables are bounded, and verified phones' addresses never banned."""
        self.limits = self.limits_of(max_tracked_addresses=64, connections_per_minute=3)
        admitted: dict[str, list[float]] = {}
        verified: dict[str, float] = {}
        for action, number, seconds in steps:
            address = f"192.0.2.{number % 4}" if number < 8 else f"2001:db8:{number}::1"
            now = self.clock.seconds()
            if action == "a" and self.limits.admit(address) is ADMITTED:
                times = admitted.setdefault(address, [])
                times.append(now)
                self.assertLessEqual(sum(now - at < 20.0 for at in times), 4)
            elif action == "v":
                self.limits.verified(address)
                verified[address] = now
            elif action == "f":
                self.limits.failed_signature(address)
            elif action == "s":
                self.sweep()
                for ban in self.limits.judge():
                    banned = ip_network(ban.network)
                    for known, at in verified.items():
                        self.assertFalse(ip_address(known) in banned and now - at < 60.0)
            elif action == "w":
                self.clock.advance(float(seconds))
