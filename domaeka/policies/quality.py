"""Quality of a connection, from its answers to pings, in constant memory."""

from array import array
from enum import StrEnum
from typing import Final, NamedTuple

#: Round trips that are remembered.
SAMPLES = 100
#: Pings that are remembered as answered or missed.
PINGS = 20
#: Weights of a new round trip in the smoothed one and in its variation.  Source: RFC 6298, 2.3.
_ALPHA: Final = 1 / 8
_BETA: Final = 1 / 4
#: Points taken for one missed ping in a hundred, and further for each of the last ones missed in a
#: row; most points taken for both.
_LOSS_POINTS: Final = 2.0
_ROW_POINTS: Final = 20.0
_MOST_LOSS_POINTS: Final = 80.0
#: Range of the smoothed round trip, in seconds, over which points are taken, and most points.
_SLOW: Final = (0.4, 3.0, 30.0)
#: The same for the variation of round trips.
_UNSTEADY: Final = (0.2, 2.0, 20.0)
#: Points by which a limit must be passed for a better grade.
_HYSTERESIS: Final = 5
_ALL_PINGS: Final = (1 << PINGS) - 1


class Grade(StrEnum):
    """Grade of a score."""

    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"
    FAILING = "failing"


_RANKS: Final = (Grade.GOOD, Grade.FAIR, Grade.POOR, Grade.FAILING)
#: The least score of each grade but the last.
_LIMITS: Final = (80, 55, 30)


class RoundTrips(NamedTuple):
    """The last round trips, in seconds."""

    samples: int
    least: float
    mean: float
    median: float
    p95: float
    most: float


class Quality:
    """
    Quality of one connection, from its pings.

    A connection without samples takes some 250 bytes, one with all of them less than 1 KiB.

    @ivar srtt: smoothed round trip, in seconds; L{None} before the first (RFC 6298).
    @ivar rttvar: variation of round trips, in seconds (RFC 6298).
    @ivar overdue: pings that are out for longer than usual: they count as unanswered.
    @ivar score: 0 to 100.
    @ivar grade: that of the score, with hysteresis.
    """

    __slots__ = (
        "_missed",
        "_next",
        "_pings",
        "_samples",
        "grade",
        "overdue",
        "rttvar",
        "score",
        "srtt",
    )

    def __init__(self) -> None:
        self.srtt: float | None = None
        self.rttvar = 0.0
        self.overdue = 0
        self.score = 100
        self.grade = Grade.GOOD
        self._samples: array[float] | None = None
        self._next = 0  # place of the next sample, once there are SAMPLES
        self._missed = 0  # a bit for each ping, the latest lowest
        self._pings = 0

    def answered(self, rtt: float) -> None:
        """Note a ping that was answered.  @param rtt: the round trip, in seconds."""
        rtt = max(0.0, rtt)
        if self.srtt is None:
            self.srtt = rtt
            self.rttvar = rtt / 2
        else:
            self.rttvar += _BETA * (abs(self.srtt - rtt) - self.rttvar)
            self.srtt += _ALPHA * (rtt - self.srtt)
        if self._samples is None:
            self._samples = array("f")
        if len(self._samples) < SAMPLES:
            self._samples.append(rtt)
        else:
            self._samples[self._next] = rtt
            self._next = (self._next + 1) % SAMPLES
        self._note(0)

    def missed(self) -> None:
        """Note a ping that will not be answered any more."""
        self._note(1)

    @property
    def known(self) -> bool:
        """True once a ping was answered or is late; until then score and grade mean nothing."""
        return self._pings + self.overdue > 0

    @property
    def worst(self) -> float:
        """The longest of the last round trips, in seconds; 0 before the first."""
        return max(self._samples) if self._samples else 0.0

    @property
    def loss(self) -> float:
        """Part of the last pings that went unanswered, 0 to 1."""
        unanswered, pings = self._unanswered()
        return unanswered.bit_count() / pings if pings else 0.0

    def round_trips(self) -> RoundTrips | None:
        """Statistics of the last round trips; L{None} before the first."""
        if not self._samples:
            return None
        ordered = sorted(self._samples)
        count = len(ordered)
        middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
        # The nearest rank: the least one that 95 of 100 do not exceed.
        p95 = ordered[-(-count * 95 // 100) - 1]
        return RoundTrips(count, ordered[0], sum(ordered) / count, middle, p95, ordered[-1])

    def reasons(self) -> list[str]:
        """The reasons for a score below 100, the weightiest first."""
        unanswered, pings = self._unanswered()
        found = [
            (self._loss_points(), f"{unanswered.bit_count()} of {pings} pings unanswered"),
            (_points(self.srtt or 0.0, _SLOW), f"a round trip takes {self.srtt or 0.0:.1f} s"),
            (_points(self.rttvar, _UNSTEADY), f"round trips vary by {self.rttvar:.1f} s"),
        ]
        return [text for points, text in sorted(found, reverse=True) if points >= 1]

    def _note(self, missed: int) -> None:
        self._missed = (self._missed << 1 | missed) & _ALL_PINGS
        if self._pings < PINGS:
            self._pings += 1
        self.judge()

    def judge(self) -> None:
        """Work out score and grade anew."""
        usual = self.srtt is None or (self.srtt <= _SLOW[0] and self.rttvar <= _UNSTEADY[0])
        if usual and not self._missed and not self.overdue:  # as after most pongs
            self.score, self.grade = 100, Grade.GOOD
            return
        points = self._loss_points()
        points += _points(self.srtt or 0.0, _SLOW) + _points(self.rttvar, _UNSTEADY)
        score = self.score = max(0, round(100 - points))
        rank = _RANKS.index(self.grade)
        while rank < len(_LIMITS) and score < _LIMITS[rank]:
            rank += 1
        while rank > 0 and score >= min(100, _LIMITS[rank - 1] + _HYSTERESIS):
            rank -= 1
        self.grade = _RANKS[rank]

    def _unanswered(self) -> tuple[int, int]:
        """A bit for each of the last pings, the latest lowest, and how many they are."""
        late = (1 << self.overdue) - 1
        return (self._missed << self.overdue | late) & _ALL_PINGS, min(
            PINGS, self._pings + self.overdue
        )

    def _loss_points(self) -> float:
        unanswered, _ = self._unanswered()
        if not unanswered:
            return 0.0
        in_a_row = (~unanswered & (unanswered + 1)).bit_length() - 1
        # Of PINGS, however few there were, so that one miss at the start costs little.
        points = unanswered.bit_count() / PINGS * 100 * _LOSS_POINTS + in_a_row * _ROW_POINTS
        return min(_MOST_LOSS_POINTS, points)


def _points(value: float, scale: tuple[float, float, float]) -> float:
    """Points taken for C{value}: none up to the first of C{scale}, all from the second on."""
    start, end, most = scale
    return most * min(1.0, max(0.0, (value - start) / (end - start)))
