"""Tests for L{domaeka.policies.signatures}."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies import signatures as signatures_module
from domaeka.policies.signatures import MAX_REMEMBERED, Seen, SignatureTable
from domaeka.wire import Auth
from tests.clocks import WallClock
from tests.test_auth import SIGNED_AT, sample


class SignatureTableTests(SynchronousTestCase):
    """Tests for L{SignatureTable}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(SIGNED_AT)
        self.table = SignatureTable(300.0, self.clock.seconds, self.clock.seconds)

    def judge(self, number: int = 0, connection: int = 1, line: bytes = b"", **more: Any) -> Seen:
        """Judge a line signed at C{number} milliseconds."""
        auth = self.auth(number, **more)
        return self.table.judge(auth, connection, line or b"line %d" % number)

    def auth(self, number: int, **more: Any) -> Auth:
        """The C{auth} with a number, signed at so many milliseconds."""
        fields = {"timestamp": SIGNED_AT * 1000 + number, "signature": f"{number:064}"}
        return sample(**fields | more)

    def sweep(self) -> int:
        """Forget what is no longer valid.  @return: in how many turns."""
        return 1 + sum(1 for _ in self.table.sweep())

    def test_swept_in_steps(self) -> None:
        """No step forgets more than a few thousand signatures, however many there are."""
        for number in range(6_000):
            self.judge(number, device_id=f"{number % 600}")
        self.clock.advance(400.0)
        self.assertEqual(self.sweep(), 4)
        self.assertEqual((len(self.table), self.table._devices), (0, {}))

    def test_repeat(self) -> None:
        """The very same line again is a repeat, on the same connection or the next."""
        self.assertEqual(self.judge(), Seen.FRESH)
        for connection in (1, 2, 2, 1):
            self.assertEqual(self.judge(connection=connection), Seen.REPEAT)
        self.assertEqual(len(self.table), 1)

    def test_same_millisecond(self) -> None:
        """Other lines under one signature are normal on its connection; each counts once."""
        for line in (b"a", b"b", b"c"):
            self.assertEqual(self.judge(line=line), Seen.FRESH)
        for line in (b"a", b"b", b"c"):
            for connection in (1, 2):
                self.assertEqual(self.judge(connection=connection, line=line), Seen.REPEAT)

    def test_replay(self) -> None:
        """Another line under a signature of another connection is a replay, each time."""
        self.judge()
        for line in (b"other", b"other", b"more"):
            self.assertEqual(self.judge(connection=2, line=line), Seen.REPLAY)
        self.assertEqual(self.judge(line=b"other"), Seen.FRESH)

    def test_other_device(self) -> None:
        """The device id is not signed: the signature is known again under another, or name."""
        self.judge()
        for number in range(100):
            self.assertEqual(
                self.judge(connection=2, line=b"x", device_id=f"{number}"), Seen.REPLAY
            )
        self.assertEqual(self.judge(connection=2, line=b"x", bot_name="b"), Seen.REPLAY)
        self.assertEqual(len(self.table._devices), 1)

    def test_expires(self) -> None:
        """A signature is forgotten when its time is over anyway, and not before."""
        self.judge(0)
        self.judge(0, line=b"same millisecond")
        self.judge(1000)
        self.clock.advance(300.0)
        self.sweep()
        self.assertEqual(self.judge(0), Seen.REPEAT)
        self.clock.advance(0.5)
        self.sweep()
        self.assertEqual(len(self.table), 1)
        self.clock.advance(1.0)
        self.sweep()
        self.assertEqual((len(self.table), self.table._devices), (0, {}))

    def test_clock_set_forward_and_back(self) -> None:
        """A clock that is set forward forgets nothing that is valid once it is set back."""
        wall = WallClock(self.clock, SIGNED_AT)
        self.table = SignatureTable(300.0, self.clock.seconds, wall)
        self.judge()
        wall.step(7200.0)
        self.clock.advance(20.0)
        self.sweep()
        wall.step(-7200.0)
        self.assertEqual(self.judge(connection=2, line=b"x"), Seen.REPLAY)
        wall.step(7200.0)
        for _ in range(120):
            self.clock.advance(60.0)
            self.sweep()
        self.assertEqual(len(self.table), 0)

    def test_bounded(self) -> None:
        """Of one device the last 4,096 are known; what is not newer than one forgotten is stale."""
        at_once = signatures_module._FORGOTTEN_AT_ONCE
        for number in range(MAX_REMEMBERED + 1):
            self.assertLessEqual(len(self.table), MAX_REMEMBERED)
            self.assertEqual(self.judge(number), Seen.FRESH)
        self.assertEqual(len(self.table), MAX_REMEMBERED + 1 - at_once)
        for number in (-5, 0, at_once - 1):
            self.assertEqual(self.judge(number, line=b"x"), Seen.STALE)
        self.assertEqual(self.judge(at_once), Seen.REPEAT)
        self.assertEqual(self.judge(1, device_id="another"), Seen.FRESH)

    def test_out_of_order(self) -> None:
        """Lines that waited on the phone come after younger ones."""
        self.assertEqual(self.judge(5000), Seen.FRESH)
        self.assertEqual(self.judge(0), Seen.FRESH)

    def test_stale_until_it_expires(self) -> None:
        """What was forgotten for want of room is stale until it would have expired."""
        self.patch(signatures_module, "MAX_REMEMBERED", 2)
        for number in (2000, 0, 1000):
            self.judge(number)
        self.clock.advance(301.5)
        self.sweep()
        self.assertEqual(self.judge(1500), Seen.STALE)
        self.clock.advance(1.0)
        self.sweep()
        self.assertEqual(self.table._devices, {})

    def test_further_lines_are_bounded(self) -> None:
        """Lines under one signature are bounded as well, and swept with it."""
        self.patch(signatures_module, "MAX_REMEMBERED", 3)
        for number in range(10):
            self.assertEqual(self.judge(line=b"%d" % number), Seen.FRESH)
        (device,) = self.table._devices.values()
        self.assertEqual(len(device.further or ()), 3)
        self.assertEqual(self.judge(line=b"9"), Seen.REPEAT)
        self.judge(100_000)
        self.clock.advance(301.0)
        self.sweep()
        self.assertIsNone(device.further)

    def test_devices_are_bounded(self) -> None:
        """Past the most devices the oldest is put out: what it has signed is stale."""
        self.patch(signatures_module, "MAX_DEVICES", 2)
        for number in range(3):
            self.assertEqual(self.judge(number, device_id=f"{number}"), Seen.FRESH)
        self.assertEqual(len(self.table), 2)
        self.assertEqual(self.judge(0, device_id="0"), Seen.STALE)
        self.assertEqual(self.judge(9, device_id="0"), Seen.FRESH)

    @given(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), max_size=30)
    )
    def test_against_a_model(self, steps: list[tuple[int, int, int]]) -> None:
        """No line is ever taken twice, and no signature serves two connections."""
        self.table = SignatureTable(300.0, self.clock.seconds, self.clock.seconds)
        owners: dict[int, int] = {}
        lines: set[tuple[int, int]] = set()
        for number, connection, line in steps:
            seen = self.judge(number, connection, b"%d %d" % (number, line))
            owner = owners.setdefault(number, connection)
            if (number, line) in lines:
                self.assertEqual(seen, Seen.REPEAT)
            elif owner != connection:
                self.assertEqual(seen, Seen.REPLAY)
            else:
                self.assertEqual(seen, Seen.FRESH)
                lines.add((number, line))

    def test_ahead_is_bounded(self) -> None:
        """Of signatures ahead of the time so many are known; those forgotten are stale."""
        for number in range(2 * MAX_REMEMBERED):
            auth = self.auth(number, timestamp=(SIGNED_AT + 1000) * 1000 + number)
            self.table.spoil(auth, 1, b"line", ahead=True)
        self.assertLessEqual(len(self.table), MAX_REMEMBERED)
        self.assertIs(self.judge(99_999), Seen.FRESH)  # of now
        self.clock.advance(1000.0)
        for number, seen in ((0, Seen.STALE), (2 * MAX_REMEMBERED - 1, Seen.REPLAY)):
            auth = self.auth(number, timestamp=(SIGNED_AT + 1000) * 1000 + number)
            self.assertIs(self.table.judge(auth, 2, b"other"), seen)
        self.clock.advance(400.0)
        for _ in self.table.sweep():
            pass
        self.assertEqual((len(self.table), self.table._devices, self.table._unserved), (0, {}, {}))

    def test_spoilt(self) -> None:
        """Of a line that was not served, only its repetition is, by a peer that is trusted."""
        line = b"a line of which the half came"
        self.table.spoil(self.auth(1), 1, line[:10])
        self.assertIs(self.table.judge(self.auth(1), 2, b"another line"), Seen.REPLAY)
        for trusted, seen in ((False, Seen.DOUBTFUL), (True, Seen.FRESH), (True, Seen.REPEAT)):
            self.assertIs(self.table.judge(self.auth(1), 2, line, trusted=trusted), seen)
        self.assertIs(self.table.judge(self.auth(1), 3, b"another line"), Seen.REPLAY)
