"""Tests for L{domaeka.policies.quality}."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.quality import Grade, Quality


class QualityTests(SynchronousTestCase):
    """Tests for L{Quality}."""

    def setUp(self) -> None:
        self.quality = Quality()

    def answer(self, *round_trips: float) -> None:
        for round_trip in round_trips:
            self.quality.answered(round_trip)

    def test_smooths(self) -> None:
        """The smoothed round trip and its variation are those of RFC 6298."""
        self.assertIsNone(self.quality.srtt)
        self.answer(1.0)
        self.assertEqual((self.quality.srtt, self.quality.rttvar), (1.0, 0.5))
        self.answer(2.0)
        self.assertEqual((self.quality.srtt, self.quality.rttvar), (1.125, 0.625))

    def test_round_trips(self) -> None:
        """Least, mean, median and 95th percentile are those of the last hundred."""
        self.assertIsNone(self.quality.round_trips())
        self.answer(*[50.0] * 30, *(float(number) for number in range(1, 101)))
        trips = self.quality.round_trips()
        self.assertEqual(trips, (100, 1.0, 50.5, 50.5, 95.0, 100.0))
        self.assertEqual(self.quality.worst, 100.0)

    @given(st.lists(st.floats(0.0, 100.0, width=32), min_size=1, max_size=250))
    def test_window(self, samples: list[float]) -> None:
        """Only the last hundred count, in whatever order they came."""
        quality = Quality()
        for sample in samples:
            quality.answered(sample)
        trips = quality.round_trips()
        last = sorted(samples[-100:])
        assert trips is not None
        self.assertEqual((trips.samples, trips.least, trips.most), (len(last), last[0], last[-1]))
        self.assertLessEqual(sum(sample < trips.p95 for sample in last), 0.95 * len(last))
        self.assertGreaterEqual(sum(sample <= trips.p95 for sample in last), 0.95 * len(last))

    def test_loss(self) -> None:
        """Missed pings of the last twenty count, those in a row most."""
        self.answer(*[0.1] * 19)
        self.quality.missed()
        self.assertEqual((self.quality.loss, self.quality.grade), (0.05, Grade.FAIR))
        for _ in range(2):
            self.quality.missed()
        self.assertEqual(self.quality.grade, Grade.FAILING)
        self.assertEqual(self.quality.reasons(), ["3 of 20 pings unanswered"])
        self.answer(*[0.1] * 20)
        self.assertEqual((self.quality.loss, self.quality.score), (0.0, 100))

    def test_slow_and_unsteady(self) -> None:
        """Long and varying round trips cost points, and are named."""
        self.answer(*[2.0, 6.0] * 10)
        self.assertEqual(self.quality.grade, Grade.POOR)
        self.assertEqual(
            self.quality.reasons(), ["a round trip takes 4.0 s", "round trips vary by 2.2 s"]
        )

    def test_grade_does_not_flicker(self) -> None:
        """A score at a limit leaves the grade as it is; it must get better by some to rise."""
        self.answer(*[0.1] * 18)
        self.assertEqual((self.quality.score, self.quality.grade), (100, Grade.GOOD))
        for _ in range(2):
            self.quality.missed()
            self.answer(0.1)
        self.assertEqual((self.quality.score, self.quality.grade), (80, Grade.FAIR))
        self.answer(*[0.1] * 17)
        self.assertEqual((self.quality.score, self.quality.grade), (90, Grade.GOOD))

    def test_overdue(self) -> None:
        """Pings that are late count as unanswered for as long as they are."""
        self.answer(*[0.1] * 19)
        for overdue, loss, grade in ((3, 0.15, Grade.FAILING), (0, 0.0, Grade.GOOD)):
            self.quality.overdue = overdue
            self.quality.judge()
            self.assertEqual((self.quality.loss, self.quality.grade), (loss, grade))

    @given(
        st.lists(
            st.one_of(st.none(), st.integers(0, 30), st.floats(-1.0, 1e6)),
            max_size=150,
        )
    )
    def test_any_history(self, events: list[float | None]) -> None:
        """The score is 0 to 100 and never better than the grade says, by more than its margin."""
        quality = Quality()
        for event in events:
            if event is None:
                quality.missed()
            elif isinstance(event, int):
                quality.overdue = event
                quality.judge()
            else:
                quality.answered(event)
        self.assertTrue(0 <= quality.score <= 100)
        least, most = {
            Grade.GOOD: (80, 100),
            Grade.FAIR: (55, 84),
            Grade.POOR: (30, 59),
            Grade.FAILING: (0, 34),
        }[quality.grade]
        self.assertTrue(least <= quality.score <= most)
        if quality.score < 97:  # each reason may cost a point without being named
            self.assertTrue(quality.reasons())

    def test_memory(self) -> None:
        """A fresh connection takes 300 bytes at most, one with all samples 1 KiB."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        kept = [Quality() for _ in range(30)]
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 300 * 30)
        for quality in kept:
            for number in range(120):
                quality.answered(number / 7)
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 1024 * 30)
