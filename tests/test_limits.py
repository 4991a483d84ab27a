"""Tests for L{domaeka.policies.limits}."""

import tracemalloc
from ipaddress import ip_address, ip_network
from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import LimitsSettings
from domaeka.policies.limits import (
    CHECKS_PER_MINUTE,
    CLAIM_CHARS,
    SUSPECT_SECONDS,
    WRONG_SIGNATURE_BAN_SECONDS,
    AddressLimits,
    Admission,
    Ban,
    TokenBucket,
)
from domaeka.policies.networks import address_key
from tests.clocks import WallClock

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
        self.wall = WallClock(self.clock, 1.7e9)
        self.limits = self.limits_of()
        self.signatures = map(str, count())

    def limits_of(self, **settings: object) -> AddressLimits:
        loaded = LimitsSettings(**settings)  # type: ignore[arg-type]
        self.expected: dict[int | None, int] = {}  # devices, by address
        return AddressLimits(
            loaded, self.clock.seconds, self.wall, lambda address: self.expected.get(address, 0)
        )

    def attempts(self, address: str, count: int) -> list[Admission]:
        return [self.limits.admit(address) for _ in range(count)]

    def get_banned(self, address: str) -> list[Ban]:
        """Offend often enough, and be judged."""
        self.sign_wrong(address)
        return self.judged()

    def sign_wrong(self, address: str, claims: tuple[str, str] = ("", "")) -> None:
        """Offend by signatures alone, often enough."""
        for _ in range(5):
            self.limits.failed_signature(address, claims)

    def flood(self, address: str) -> None:
        """Connect too often, and say something."""
        self.attempts(address, 15)
        self.limits.used(address)

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

    def test_expected_devices(self) -> None:
        """An address has as many more attempts a minute as devices may come back to it."""
        self.expected[address_key("192.0.2.1")] = 20
        self.assertEqual(self.attempts("192.0.2.1", 31), [ADMITTED] * 30 + [RATE_LIMITED])
        self.assertEqual(self.attempts("192.0.2.2", 11), [ADMITTED] * 10 + [RATE_LIMITED])
        self.clock.advance(2.0)
        self.assertEqual(self.attempts("192.0.2.1", 2), [ADMITTED, RATE_LIMITED])
        self.limits.give_back("192.0.2.1")
        self.assertEqual(self.attempts("192.0.2.1", 2), [ADMITTED, RATE_LIMITED])
        self.clock.advance(60.0)
        self.assertEqual(self.attempts("192.0.2.1", 31), [ADMITTED] * 30 + [RATE_LIMITED])

    def test_expected_devices_of_ipv6(self) -> None:
        """They are those of the /64, and so are the attempts."""
        self.expected[address_key("2001:db8::1")] = 5
        self.assertEqual(self.attempts("2001:db8::2", 15), [ADMITTED] * 15)
        self.assertEqual(self.attempts("2001:db8::3", 1), [RATE_LIMITED])

    def test_expected_devices_whose_clocks_seem_off(self) -> None:
        """Where our own clock is off, all of them are given back their attempts."""
        self.expected[address_key("192.0.2.1")] = 20
        for _ in range(30):
            self.assertEqual(self.attempts("192.0.2.1", 1), [ADMITTED])
            self.limits.clock_fault("192.0.2.1", next(self.signatures))
        self.assertEqual(self.attempts("192.0.2.1", 31), [ADMITTED] * 30 + [RATE_LIMITED])

    def test_flood_from_where_devices_are_expected(self) -> None:
        """A stranger there is limited and banned as anybody; a verified phone protects both."""
        self.expected[address_key("192.0.2.1")] = 20
        self.attempts("192.0.2.1", 40)
        self.limits.used("192.0.2.1")
        self.limits.verified("192.0.2.1")
        self.assertEqual(self.judged(), [])
        self.clock.advance(60.0)
        self.attempts("192.0.2.1", 40)
        self.limits.used("192.0.2.1")
        self.assertEqual([ban.network for ban in self.judged()], ["192.0.2.1/32"])

    def test_what_address_key_one_address(self) -> None:
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

    def test_clock_is_set(self) -> None:
        """A ban lasts as long as it is for; its dates are by the clock as it is when asked."""
        for number, step in enumerate((-3600.0, -32_400.0, 86_400.0)):
            address = f"192.0.2.{number}"
            self.attempts(address, 10)
            self.wall.step(step)
            self.assertEqual(self.attempts(address, 1), [RATE_LIMITED])
            ban = self.limits.ban(address, "", 60.0)
            assert ban is not None
            self.wall.step(step)
            [shown] = self.limits.bans()
            self.assertEqual((shown.made_at, shown.expires), (self.wall(), self.wall() + 60.0))
            self.clock.advance(59.0)
            self.assertTrue(self.limits.bans_address(address))
            self.clock.advance(1.0)
            self.assertFalse(self.limits.bans_address(address))
            self.assertEqual(self.attempts(address, 1), [ADMITTED])

    def test_clock_was_set_before_a_start(self) -> None:
        """A stored ban ends at its date; one of the future is as long as it would be now."""
        ban = self.limits.ban("192.0.2.1", "", 60.0)
        forever = self.limits.ban("192.0.2.2", "")
        assert ban is not None and forever is not None
        for step, left in ((10.0, 50.0), (-32_400.0, 60.0), (86_400.0, 0.0)):
            self.clock.rightNow = 5.0  # another process
            self.wall.ahead = ban.made_at + step - 5.0
            self.limits = self.limits_of()
            self.limits.load([ban, forever])
            for passed, is_barred in ((left - 1.0, left > 1.0), (1.0, False)):
                self.clock.advance(max(0.0, passed))
                self.assertIs(self.limits.bans_address("192.0.2.1"), is_barred, step)
            self.assertTrue(self.limits.bans_address("192.0.2.2"))

    def test_bans_at_the_sweep(self) -> None:
        """Attempts over the rate earn a ban, but only the sweep passes it."""
        self.flood("192.0.2.1")
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
        self.flood("192.0.2.1")
        self.clock.advance(0.05)
        self.sweep()
        self.assertEqual(self.limits.judge(), [])
        self.limits.verified("192.0.2.1")
        self.clock.advance(10.0)
        self.assertEqual(self.judged(), [])

    def test_many_are_banned_some_at_once(self) -> None:
        """No turn of the reactor makes more than 32 bans, and none is forgotten."""
        for number in range(70):
            self.flood(f"192.0.2.{number}")
        made = [len(self.judged()), *(len(self.limits.judge()) for _ in range(3))]
        self.assertEqual((made, self.limits.banned), ([32, 32, 6, 0], 70))

    def test_repeaters(self) -> None:
        """Each ban is twice as long as the one before, up to a day; a day later it is forgotten."""
        for offend, first, bans in ((self.flood, 3600.0, 7), (self.sign_wrong, 60.0, 13)):
            seconds = []
            for _ in range(bans):
                offend("192.0.2.1")
                [ban] = self.judged()
                assert ban.seconds is not None
                seconds.append(ban.seconds)
                self.clock.advance(seconds[-1])
                self.sweep()
            self.assertEqual(seconds, [min(first * 2**n, 86_400.0) for n in range(bans)])
            self.clock.advance(86_400.0)
            self.sweep()
        self.assertEqual(self.get_banned("192.0.2.1")[0].times, 1)

    def test_a_wrong_key_is_no_flood(self) -> None:
        """
        Wrong signatures alone cost a minute at first, or C{limits.ban_seconds} where that is less;
        whoever floods beside that is banned as a flooder.
        """
        for ban_seconds, floods, seconds in (
            (3600.0, False, WRONG_SIGNATURE_BAN_SECONDS),
            (10.0, False, 10.0),
            (3600.0, True, 3600.0),
        ):
            self.limits = self.limits_of(ban_seconds=ban_seconds)
            if floods:
                self.flood("192.0.2.1")
            self.sign_wrong("192.0.2.1")
            [ban] = self.judged()
            self.assertEqual(ban.seconds, seconds)
            self.assertIn("over the rate" if floods else "wrong signatures", ban.reason)
        self.limits = self.limits_of()
        self.attempts("192.0.2.1", 12)
        for _ in range(3):  # together it is enough
            self.limits.failed_signature("192.0.2.1")
        [ban] = self.judged()
        self.assertEqual(ban.seconds, 3600.0)

    def test_for_whom(self) -> None:
        """A ban knows who the last one said it was: short, and nothing a terminal would obey."""
        self.sign_wrong("192.0.2.1", ("가게봇", "a1b2"))
        [ban] = self.judged()
        self.assertEqual((ban.claimed_bot, ban.claimed_device), ("가게봇", "a1b2"))
        self.sign_wrong("192.0.2.2", ("\x1b[2J\u202e\ud800", "x" * 128))
        [ban] = self.judged()
        self.assertEqual(ban.claimed_bot, "\ufffd[2J\ufffd\ufffd")
        self.assertEqual(ban.claimed_device, "x" * (CLAIM_CHARS - 1) + "…")
        self.flood("192.0.2.3")
        [ban] = self.judged()
        self.assertEqual((ban.claimed_bot, ban.claimed_device), ("", ""))

    def test_names_of_very_many_are_not_remembered(self) -> None:
        """However many addresses sign wrongly, the names of 4,096 at most are kept: the newest."""
        for number in range(5_000):
            self.limits.failed_signature(f"10.0.{number // 250}.{number % 250}", ("봇", "d"))
        self.assertGreater(len(self.limits._claims), 3_500)
        self.assertLessEqual(len(self.limits._claims), 4_096)
        self.sign_wrong("10.0.0.1")
        self.sign_wrong("10.0.19.249", ("봇", "e"))
        self.assertEqual([ban.claimed_device for ban in self.judged()], ["", "e"])
        self.clock.advance(60.0)
        self.sweep()
        self.assertEqual(len(self.limits._claims), 0)

    def test_a_phone_that_was_mended_gets_in_at_once(self) -> None:
        """Once its ban is over, or lifted, what it did before neither limits it nor bans it."""
        for lifted in (False, True):
            self.limits = self.limits_of()
            self.attempts("192.0.2.1", 12)
            [ban] = self.get_banned("192.0.2.1")
            if lifted:
                self.limits.lift("192.0.2.1")
            else:
                self.clock.advance(ban.seconds or 0.0)
            self.assertEqual(self.attempts("192.0.2.1", 10), [ADMITTED] * 10)
            for _ in range(4):
                self.limits.failed_signature("192.0.2.1")
            self.assertEqual(self.judged(), [])
        self.limits.ban("192.0.2.1", "an operator was faster")
        self.limits.lift("192.0.2.1")
        self.limits.failed_signature("192.0.2.1")
        self.assertEqual(self.judged(), [])

    def test_health_checks_are_no_attempts(self) -> None:
        """Connections that end without a word use up nothing: two a second of one address."""
        for _ in range(10 * CHECKS_PER_MINUTE):
            self.assertEqual(self.attempts("192.0.2.1", 1), [ADMITTED])
            self.limits.ended_unused("192.0.2.1")
            self.clock.advance(60.0 / CHECKS_PER_MINUTE)
        self.assertEqual(self.attempts("192.0.2.1", 11), [ADMITTED] * 10 + [RATE_LIMITED])

    def test_a_flood_of_health_checks_is_limited_and_not_banned(self) -> None:
        """It costs its own address its attempts, and no more."""
        for _ in range(1_000):
            if self.limits.admit("192.0.2.1") is ADMITTED:
                self.limits.ended_unused("192.0.2.1")
        self.assertEqual(self.attempts("192.0.2.1", 1), [RATE_LIMITED])
        self.assertEqual(self.judged(), [])
        self.limits.used("192.0.2.1")  # until one of them says something
        self.assertEqual(len(self.judged()), 1)

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
            self.assertTrue(self.limits.allows(address))
        self.assertFalse(self.limits.allows("198.51.100.1"))
        self.assertFalse(self.limits.allows("not an address"))
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
            self.limits.clock_fault("192.0.2.1", next(self.signatures))
        self.assertEqual(self.attempts("192.0.2.1", 10), [ADMITTED] * 10)
        self.limits.clock_fault("192.0.2.1", next(self.signatures))
        self.assertEqual(self.attempts("192.0.2.1", 4), [RATE_LIMITED] * 4)
        self.assertEqual(self.judged(), [])

    def test_an_old_line_is_worth_nothing(self) -> None:
        """One that was recorded excuses one attempt in all, and protects nobody from a ban."""
        for address in ("192.0.2.1", "192.0.2.2"):
            self.assertEqual(self.attempts(address, 10), [ADMITTED] * 10)
            for _ in range(5):
                self.limits.clock_fault(address, "recorded")
        self.assertEqual(self.attempts("192.0.2.1", 7), [ADMITTED] + [RATE_LIMITED] * 6)
        self.assertEqual(self.attempts("192.0.2.2", 6), [RATE_LIMITED] * 6)
        for address in ("192.0.2.1", "192.0.2.2"):
            self.limits.used(address)
        self.assertEqual(len(self.judged()), 2)

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
            st.tuples(st.sampled_from("avfgsuw"), st.integers(0, 11), st.integers(0, 40)),
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
            elif action == "u":
                self.limits.used(address)
            elif action == "s":
                self.sweep()
                for ban in self.limits.judge():
                    banned = ip_network(ban.network)
                    for known, at in verified.items():
                        self.assertFalse(ip_address(known) in banned and now - at < 60.0)
            elif action == "w":
                self.clock.advance(float(seconds))
