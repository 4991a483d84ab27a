"""Tests for L{domaeka.policies.clock_check}."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.clock_check import (
    AGREE_SECONDS,
    LATELY_SECONDS,
    LEAST_DEVICES,
    MAX_DEVICES,
    ClockCheck,
)
from domaeka.wire import Auth
from tests.clocks import WallClock

HOUR = 3600.0
START = 1_790_000_000.0


class ClockCheckTests(SynchronousTestCase):
    """Tests for L{ClockCheck}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wall = WallClock(self.clock, START)
        self.check = ClockCheck(300.0, self.clock.seconds, self.wall)

    def auth(self, device: object, ahead: float = 0.0, **more: str) -> Auth:
        """As a phone whose clock is so far ahead of the true time signs now."""
        timestamp = (START + self.clock.seconds() + ahead) * 1000
        fields = {"device_uuid": str(device), "mac_address": "unknown", "ip_address": "unknown"}
        return Auth(
            bot_name="봇",
            device_id=str(device),
            timestamp=timestamp,
            signature="",
            version="3.3.3",
            client_type="MessengerBotR",
            **fields | more,
        )

    def hear(self, auth: Auth) -> None:
        """Its signature holds: its time is judged as the server does."""
        if abs(auth.timestamp / 1000 - self.wall()) > self.check.window:
            self.check.wrong(auth)
        else:
            self.check.right((auth.bot_name, auth.device_id), auth.timestamp)

    def hear_all(self, count: int, ahead: float = 0.0) -> None:
        """So many phones sign, the same each time."""
        for device in range(count):
            self.hear(self.auth(device, ahead))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and periods with it."""
        for _ in range(int(seconds // (LATELY_SECONDS / 2))):
            self.clock.advance(LATELY_SECONDS / 2)
            self.check.turn()

    def test_server_ahead_or_behind(self) -> None:
        """An hour off, either way, is found as soon as three phones have signed, and named."""
        for step, side in ((HOUR, "ahead"), (-HOUR, "behind")):
            self.setUp()
            self.wall.step(step)
            self.hear_all(LEAST_DEVICES - 1)
            self.assertIsNone(self.check.health())
            self.hear_all(LEAST_DEVICES)
            self.assertEqual(self.check.offset(), step)
            fault = self.check.health() or ""
            self.assertIn(f"clock is 3600 s {side}, by the signatures of 3 of 3 phones", fault)
            self.assertIn("NTP", fault)
            self.assertLessEqual(len(fault), 200)  # what /health cuts

    def test_while_it_runs(self) -> None:
        """Of phones that were right before the step, the check waits for most, and no longer."""
        self.hear_all(10)
        self.wall.step(HOUR)
        self.clock.advance(1.0)
        self.hear_all(5)
        self.assertIsNone(self.check.health())
        self.clock.advance(1.0)
        self.hear_all(6)
        self.assertEqual(self.check.offset(), HOUR)

    def test_set_right(self) -> None:
        """Once the clock is set right the check is well at once, and stays so."""
        self.wall.step(HOUR)
        self.hear_all(5)
        self.assertEqual(self.check.offset(), HOUR)
        self.wall.step(-HOUR)
        self.assertIsNone(self.check.health())
        self.clock.advance(1.0)
        self.hear_all(5)
        self.pass_time(HOUR)
        self.assertEqual(self.check.offset(), 0.0)

    def test_phones_right_again(self) -> None:
        """Right signatures end it, too: of half of those that are heard."""
        self.hear_all(6, HOUR)
        self.assertEqual(self.check.offset(), -HOUR)
        self.clock.advance(1.0)
        for device in range(3):
            self.hear(self.auth(device))
        self.assertIsNone(self.check.health())

    def test_wrong_window(self) -> None:
        """A clock that is off by less than is accepted refuses nobody, and is not named."""
        self.wall.step(299.0)
        self.hear_all(10)
        self.assertEqual(self.check.offset(), 0.0)

    def test_phones_with_wrong_clocks(self) -> None:
        """A few phones do not set it off, be they of one wrong time or each of its own."""
        for device in range(3):
            self.hear(self.auth(f"wrong {device}", HOUR))
        self.hear_all(3)
        self.assertIsNone(self.check.health())
        self.setUp()
        for device in range(10):
            self.hear(self.auth(device, HOUR + device * (AGREE_SECONDS / 2 + 1)))
        self.assertIsNone(self.check.health())

    def test_one_phone(self) -> None:
        """One phone does not, however often it signs."""
        for _ in range(100):
            self.clock.advance(0.1)
            self.hear(self.auth("a", HOUR))
        self.assertIsNone(self.check.health())

    def test_phones_differ_a_little(self) -> None:
        """Phones agree that differ by less than a minute; one that is elsewhere is outvoted."""
        self.wall.step(-HOUR)
        for device in range(5):
            self.hear(self.auth(device, device * 10.0))
        self.hear(self.auth("elsewhere", 3 * HOUR))
        self.assertEqual(self.check.offset(), -HOUR - 20.0)
        self.assertIn("5 of 6 phones", self.check.health() or "")

    def test_silence(self) -> None:
        """What was heard long ago counts no more, be it right or wrong."""
        self.hear_all(10)
        self.pass_time(LATELY_SECONDS)
        for device in range(3):
            self.hear(self.auth(f"wrong {device}", HOUR))
        self.assertEqual(self.check.offset(), -HOUR)
        self.pass_time(2 * LATELY_SECONDS)
        self.assertIsNone(self.check.health())

    def test_recorded_lines(self) -> None:
        """Recorded lines say nothing of phones that have signed since."""
        recorded = [self.auth(device) for device in range(10)]
        self.clock.advance(HOUR)
        self.hear_all(10)
        for auth in recorded * 3:
            self.hear(auth)
        self.assertIsNone(self.check.health())

    def test_recorded_line_again_and_again(self) -> None:
        """Of a phone that is gone a recorded line counts once, and not for long."""
        recorded = [self.auth(device) for device in range(3)]
        self.clock.advance(HOUR)
        for _ in range(4):
            for auth in recorded:
                self.hear(auth)
            self.clock.advance(LATELY_SECONDS / 4 + 1)
            self.check.turn()
        self.assertIsNone(self.check.health())

    def test_one_line_under_many_names(self) -> None:
        """What is not signed makes no other device of one line."""
        for uuid in ("a", "unknown"):
            recorded = self.auth("a", device_uuid=uuid)
            self.clock.advance(HOUR)
            for number in range(10):
                recorded.device_id = str(number)
                self.hear(recorded)
            self.assertIsNone(self.check.health())

    def test_bounded(self) -> None:
        """However many devices sign, so many are remembered at most, and the check works."""
        self.hear_all(MAX_DEVICES + 100)
        self.assertEqual(len(self.check._right), MAX_DEVICES)
        self.wall.step(HOUR)
        self.clock.advance(1.0)
        self.hear_all(MAX_DEVICES + 100)
        self.assertEqual((len(self.check._wrong), len(self.check._right)), (MAX_DEVICES, 0))
        self.assertEqual(self.check.offset(), HOUR)
