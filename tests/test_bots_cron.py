"""Tests for L{domaeka.bots.cron}."""

from datetime import UTC, datetime

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.cron import MAX_EXPRESSION_CHARS, Schedule, Timetable


def at(text: str) -> float:
    """Seconds since 1970 of a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def dues(expression: str, zone: str, begin: str, end: str) -> list[str]:
    """The times that are due between two times, all in UTC."""
    times, found, last = Timetable(expression, zone), [], at(begin)
    while (due := times.next(last)) is not None and due <= at(end):
        found.append(datetime.fromtimestamp(due, UTC).strftime("%m-%d %H:%M"))
        last = due
    return found


class TimetableTests(SynchronousTestCase):
    """Tests for L{Timetable}."""

    def test_by_the_zone(self) -> None:
        """The clock of the zone counts, which may be a day ahead."""
        found = dues("0 8 * * MON-FRI", "Asia/Seoul", "2026-12-03 00:00", "2026-12-07 00:00")
        self.assertEqual(found, ["12-03 23:00", "12-06 23:00"])

    def test_summer_time_begins(self) -> None:
        """A time that the clock leaves out is due right behind the gap, once."""
        found = dues("30 2 * * *", "Europe/Berlin", "2026-03-28 00:00", "2026-03-31 00:00")
        self.assertEqual(found, ["03-28 01:30", "03-29 01:00", "03-30 00:30"])
        found = dues("30 2 * * *", "America/New_York", "2026-03-07 00:00", "2026-03-10 00:00")
        self.assertEqual(found, ["03-07 07:30", "03-08 07:00", "03-09 06:30"])

    def test_summer_time_ends(self) -> None:
        """A time that the clock shows twice is due the first time, once."""
        found = dues("30 2 * * *", "Europe/Berlin", "2026-10-24 00:00", "2026-10-27 00:00")
        self.assertEqual(found, ["10-24 00:30", "10-25 00:30", "10-26 01:30"])
        found = dues("30 1 * * *", "America/New_York", "2026-10-31 00:00", "2026-11-03 00:00")
        self.assertEqual(found, ["10-31 05:30", "11-01 05:30", "11-02 06:30"])

    def test_within_the_second_hour(self) -> None:
        """In the hour that the clock shows again, nothing is due that was due in the first."""
        times = Timetable("45 2 * * *", "Europe/Berlin")
        again = at("2026-10-25 01:15")  # 02:15, for the second time
        self.assertEqual(times.next(again), at("2026-10-26 01:45"))
        self.assertEqual(times.latest(at("2026-10-24 12:00"), again), at("2026-10-25 00:45"))

    def test_each_minute_is_real(self) -> None:
        """What is due each so many minutes is so in each real hour."""
        found = dues("*/30 * * * *", "Europe/Berlin", "2026-10-24 23:59", "2026-10-25 02:00")
        self.assertEqual([one[6:] for one in found], ["00:00", "00:30", "01:00", "01:30", "02:00"])
        found = dues("*/30 * * * *", "Europe/Berlin", "2026-03-29 00:29", "2026-03-29 01:30")
        self.assertEqual([one[6:] for one in found], ["00:30", "01:00", "01:30"])

    @given(
        st.sampled_from(["0 8 * * *", "*/7 1-3 * * *", "30 2 * 3,10 *", "5,35 */2 25-31 * SUN"]),
        st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Seoul", "Australia/Lord_Howe"]),
        st.integers(0, 366 * 1440).map(lambda minute: at("2026-01-01 00:00") + 60 * minute),
        st.integers(0, 4 * 1440),
    )
    @example("30 2 * 3,10 *", "Europe/Berlin", at("2026-10-25 00:10"), 120)
    @settings(deadline=None, max_examples=50)
    def test_latest(self, expression: str, zone: str, begin: float, minutes: int) -> None:
        """The last time of a span is the one that a walk from time to time ends with."""
        times, end = Timetable(expression, zone), begin + 60 * minutes
        last = None
        due = times.next(begin)
        while due is not None and due <= end:
            self.assertGreater(due, last or begin)
            last, due = due, times.next(due)
        self.assertEqual(times.latest(begin, end), last)

    def test_latest_of_very_many(self) -> None:
        """Ten years of minutes are not walked through."""
        asked = 0

        class Counted(Timetable):
            def next(self, after: float) -> float | None:
                nonlocal asked
                asked += 1
                return super().next(after)

        times = Counted("* * * * *", "UTC")
        end = at("2026-12-01 12:00")
        self.assertEqual(times.latest(end - 10 * 366 * 86_400, end + 30), end)
        self.assertLess(asked, 100)

    def test_wrong_ones(self) -> None:
        """What is wrong is said in one line."""
        for expression, words in (
            ("61 * * * *", "Bad minute"),
            ("* * * *", "has 4 fields"),
            ("", "has 0 fields"),
            ("* * * * * *", "once a minute at most"),
            ("*/0 * * * *", "Bad minute"),
            ("0 8 * * 안녕", "Bad day-of-week"),
            ("0 0 L/2 * 1#L", "is wrong"),
            ("0 0 31 2 *", "31 2"),
            ("1," * MAX_EXPRESSION_CHARS, "at most"),
        ):
            with self.subTest(expression):
                error = self.assertRaises(ValueError, Timetable, expression, "Asia/Seoul")
                self.assertIn(words, str(error))
                self.assertNotIn("\n", str(error))
        for zone in ("Asia/Soul", "", "../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000):
            with self.subTest(zone):
                error = self.assertRaises(ValueError, Timetable, "0 8 * * *", zone)
                self.assertIn("is not known", str(error))

    def test_wrong_schedules(self) -> None:
        """So is what is said beside the times."""
        for rooms, missed, kind in (
            ((), "twice", ValueError),
            (("",), "skip", TypeError),
            ((1,), "skip", TypeError),
            (("1001",) * 101, "skip", ValueError),
        ):
            given: tuple[str, ...] = rooms  # type: ignore[assignment]
            self.assertRaises(kind, Schedule.of, "0 8 * * *", "UTC", given, missed)
