"""Tests for the counts and judgements of L{benchmarks.faults}."""

from dataclasses import replace
from math import inf
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.faults import present, report
from benchmarks.faults.phones import Line, Tally, tally
from benchmarks.faults.rows import ROWS, Row
from benchmarks.faults.run import LIBRARY, OLD, PRESENT, SCRIPT, Lane
from domaeka.testing import STANDARD_IDENTITY
from domaeka.wire import Delivered, PhoneWriter, Said, read_server_frame

#: Of the fault: lines from 5 s before it on count.
BEGAN, ENDED, QUIET = 100.0, 130.0, 200.0


class Talked:
    """A phone that has talked."""

    def __init__(self, *lines: Line, answers: tuple[int, ...] = ()) -> None:
        self.lines = list(lines)
        self.answers = list(answers)

    def start(self, delay: float) -> None:
        """Nothing."""

    def be_quiet(self) -> None:
        """Nothing."""

    def stop(self) -> "Deferred[None]":
        """Nothing."""
        return succeed(None)


def counted(*phones: Talked) -> Tally:
    """Count the lines of these phones."""
    return tally(phones, 5.0, BEGAN, ENDED, QUIET)


class TallyTests(SynchronousTestCase):
    """Tests for L{tally}."""

    def test_back(self) -> None:
        """A phone is back with its first answer after the end of the fault, whatever was asked."""
        found = counted(Talked(Line(99.0, [99.1]), Line(101.0, [133.0]), Line(131.0, [133.1])))
        self.assertEqual(found.back, [3.0])

    def test_never_back(self) -> None:
        """A phone without an answer is never back, and silent to the end."""
        found = counted(Talked(Line(99.0, [99.0]), Line(131.0, [])))
        self.assertEqual(found.back, [inf])
        self.assertEqual(found.silence, [QUIET - 99.0])

    def test_lines_that_count(self) -> None:
        """Lines that were said long before the fault do not count."""
        found = counted(Talked(Line(94.0, []), Line(96.0, [96.0])))
        self.assertEqual((found.said, found.lost), (1, 0))

    def test_lost(self) -> None:
        """A line without an answer is lost, before the end of the fault or after it."""
        found = counted(Talked(Line(101.0, [], told=True), Line(131.0, []), Line(133.0, [])))
        self.assertEqual((found.said, found.lost), (3, 3))
        self.assertEqual((found.lost_after, found.told), (1, 1))

    def test_served(self) -> None:
        """An answer after 30 s serves nobody, but the line is not lost."""
        found = counted(Talked(Line(101.0, [131.0]), Line(102.0, [132.5])))
        self.assertEqual((found.served, found.lost, found.latest), (1, 0, 30.5))

    def test_doubled(self) -> None:
        """Each answer but the first is one too many; its place is of no matter."""
        found = counted(Talked(Line(101.0, [102.0, 140.0, 141.0]), answers=(0, 1, 0, 0)))
        self.assertEqual((found.doubled, found.disordered), (2, 0))

    def test_disordered(self) -> None:
        """An answer behind one to a later line is out of order."""
        self.assertEqual(counted(Talked(answers=(0, 3, 1, 2, 4))).disordered, 2)


GOOD = Tally([4.0] * 5, [36.0] * 5, 100, 90, 0, 0, 0, 34.0, 0, 0)
SLOW = replace(GOOD, back=[20.0] * 5, served=80)


def row(key: str) -> Row:
    """A row of the table."""
    return next(one for one in ROWS if one.key == key)


def lane(name: str, found: Tally, key: str = "cut-30") -> Lane:
    """A lane that was measured."""
    return Lane(row(key), name, cast(Any, None), [], tally=found)


class ShortcomingTests(SynchronousTestCase):
    """Tests for L{report.shortcomings}."""

    def judge(
        self,
        ours: Tally,
        theirs: Tally = SLOW,
        name: str = OLD,
        key: str = "cut-30",
        slack: float = 0,
    ) -> str:
        """List the targets that are missed."""
        present_lane = lane(PRESENT, theirs, key)
        return "; ".join(report.shortcomings(lane(name, ours, key), present_lane, slack))

    def test_good(self) -> None:
        """Back in time, nothing lost: nothing is said."""
        self.assertEqual(self.judge(GOOD), "")

    def test_late(self) -> None:
        """The limits are 1.5 times the target, and half of the present system's time."""
        late = replace(GOOD, back=[11.0] * 5)
        self.assertEqual(
            self.judge(late),
            "back after 11.0 s: 5 s are wanted; back after 11.0 s: not half of 20.0 s",
        )
        self.assertEqual(self.judge(late, slack=5), "")

    def test_script_stays_away(self) -> None:
        """No server can bring an old phone back before its script's 4 s are over."""
        quick = replace(GOOD, back=[5.5] * 5)
        self.assertEqual(self.judge(quick, quick, key="kill"), "")
        self.assertIn("not half of 5.5 s", self.judge(quick, quick, LIBRARY, "kill"))

    def test_bridge_script(self) -> None:
        """The bridge script has the library's targets, but for what its kernel decides."""
        quick = replace(GOOD, back=[4.5] * 5)
        self.assertEqual(self.judge(quick, quick, SCRIPT, "kill"), "")
        self.assertIn("not half of", self.judge(replace(quick, back=[5.5]), quick, SCRIPT, "kill"))
        late = replace(GOOD, back=[7.0] * 5, lost=2, told=1)
        self.assertIn("7.0 s: 4 s are wanted", self.judge(late, name=SCRIPT))
        self.assertIn("1 lines lost of which nobody", self.judge(late, name=SCRIPT))

    def test_last_phone(self) -> None:
        """Of a hundred phones the last one counts."""
        found = replace(GOOD, back=[1.0] * 99 + [13.0])
        self.assertIn("back after 13.0 s: 8 s are wanted", self.judge(found, key="crowd"))

    def test_never(self) -> None:
        """Where the present system is never back, old phones need not be; the library must."""
        never = replace(GOOD, back=[inf] * 5, served=10, lost=90, lost_after=90)
        self.assertEqual(self.judge(never, never, key="nat"), "")
        self.assertIn("not half of 4.0 s", self.judge(never, GOOD, key="kill"))
        self.assertIn("back after never s: 25 s", self.judge(never, never, LIBRARY, "nat"))

    def test_unnoticed(self) -> None:
        """Where a fault is not to be noticed, answers go on."""
        found = replace(GOOD, back=[1.0] * 5, silence=[2.1, 2.0, 2.0, 2.1, 120.0])
        self.assertEqual(
            self.judge(found, key="mtu"), "silent for 120.0 s: it was not to be noticed"
        )
        self.assertEqual(self.judge(replace(found, silence=[2.1] * 5), key="mtu"), "")

    def test_lost(self) -> None:
        """Nothing said after the fault may be lost, nor what the library tells nobody of."""
        found = replace(GOOD, lost=3, lost_after=2, told=1)
        self.assertIn("2 lines lost of what was said after", self.judge(found, key="cut-120"))
        self.assertIn("2 lines lost of which nobody", self.judge(found, name=LIBRARY))
        self.assertIn("3 lines lost", self.judge(found))

    def test_fewer_served(self) -> None:
        """No fewer lines may be served than by the present system."""
        self.assertIn("70 of 100 lines served", self.judge(replace(GOOD, served=70)))

    def test_doubled_and_disordered(self) -> None:
        """Neither may happen; but lines that a kernel hands over late come behind newer ones."""
        found = replace(GOOD, doubled=1, disordered=2)
        both = "1 answers doubled; 2 answers out of order"
        self.assertEqual(self.judge(found, key="cut-5"), both)
        self.assertEqual(self.judge(found), "1 answers doubled")


class TableTests(SynchronousTestCase):
    """Tests for L{report.table} and L{report.as_data}."""

    def test_never(self) -> None:
        """An answer that never came is named in words, and is C{null} for programs."""
        lanes = [lane(PRESENT, replace(GOOD, back=[inf] * 5)), lane(OLD, GOOD)]
        self.assertIn("never (never)", report.table(lanes))
        rows = report.as_data(lanes, {}, [], [])["rows"]
        self.assertEqual(rows["cut-30"]["lanes"][PRESENT]["back"], [None] * 5)


class PresentTests(SynchronousTestCase):
    """Tests for the model of the present system."""

    def test_answer(self) -> None:
        """A phone can read its answer."""
        writer = PhoneWriter(STANDARD_IDENTITY, None, lambda: 1.0)
        said = Said(room="방", sender="나", text="# echo 7 안녕", channel_id="18398338829933617")
        event, data, tail = present.read(writer.chat(said).strip())
        self.assertEqual(event, "message")
        line = present.answer(data, tail)
        assert line is not None
        frame = read_server_frame(line.strip())
        assert isinstance(frame, Delivered)
        self.assertEqual((frame.reply.room, frame.reply.content), ("방", "7 안녕"))

    def test_no_command(self) -> None:
        """Other chat is not answered."""
        writer = PhoneWriter(STANDARD_IDENTITY, None, lambda: 1.0)
        said = Said(room="방", sender="나", text="안녕", channel_id="1")
        _, data, tail = present.read(writer.chat(said).strip())
        self.assertIsNone(present.answer(data, tail))
