"""
The first proof of a connection: made lately, by the clock of the phone that makes it.

A signature covers neither its line nor its connection.  One that was recorded before this process
began, or of a connection to another server with the same key, is not in this server's memory: only
its time tells.
"""

from collections.abc import Callable
from typing import Final

#: Greatest age of the first proof of a connection, in seconds: 30 s in the phone's queue, and the
#: line.  Source: docs/protocol.md, "auth".
FIRST_PROOF_SECONDS: Final = 45.0
#: Times are signed in whole milliseconds, rounded down: the most that this takes, in seconds.
_ROUNDING: Final = 0.001
#: Pongs in a row, of pings at random times, that agree on a clock which nobody knew: of one that
#: was set forward, or set right; and of one that is behind, as all is that was recorded.
SERIES_PONGS: Final = 3
LONG_SERIES_PONGS: Final = 6
#: Most by which a clock that was set right is off, in seconds.
_RIGHT_SECONDS: Final = 5.0
#: Longest round trip of a pong that counts, in seconds: in a longer one there is time to look for a
#: recorded line that suits.
SERIES_TRIP_SECONDS: Final = 1.0
#: Most by which pongs differ, in seconds, beside their round trips.
_SERIES_SECONDS: Final = 0.05


class FirstProofs:
    """Judge the times of first proofs, by the phones' own clocks."""

    def __init__(self, seconds: Callable[[], float], wall: Callable[[], float]) -> None:
        """
        @param seconds: the time now, in seconds, which never steps.
        @param wall: the wall clock, in seconds since 1970.
        """
        self._seconds = seconds
        self._wall = wall
        self._began_at = seconds()

    def is_timely(self, timestamp: float, lead: float | None) -> bool:
        """
        True if a signature was made within L{FIRST_PROOF_SECONDS}, and since this process began.

        @param timestamp: its time by the phone's clock, in milliseconds since 1970.
        @param lead: of that clock over ours, in seconds; L{None}: not known, and taken for right.
        """
        age = self._wall() + (lead or 0.0) - timestamp / 1000
        oldest = min(FIRST_PROOF_SECONDS, self._seconds() - self._began_at + _ROUNDING)
        return -FIRST_PROOF_SECONDS <= age <= oldest


class ClockSeries:
    """
    Pongs of a phone whose clock is not known, or is another than the one known: it was set.

    Whoever has recorded some of its lines cannot answer pings at random times with signatures
    that are as far apart, unless there are some each second.
    """

    __slots__ = ("_least", "_most", "_pongs")

    def __init__(self) -> None:
        self._least = self._most = 0.0  # the lead is between these, by all pongs so far
        self._pongs = 0

    def agrees(self, lead: float, round_trip: float, known: float | None) -> bool:
        """
        Take a pong.

        @param lead: of its time over ours, in seconds, if it was signed half way.
        @param round_trip: of its ping, in seconds.
        @param known: the lead that was known; L{None}: none was.
        @return: whether so many in a row agree that the clock is known now.
        """
        before, way = known or 0.0, round_trip / 2
        # By the clock that is known it may be old, and will be in time soon.
        if round_trip > SERIES_TRIP_SECONDS or abs(lead - way - before) <= FIRST_PROOF_SECONDS:
            return False
        least, most = lead - way - _SERIES_SECONDS, lead + way + _SERIES_SECONDS
        if self._pongs and least <= self._most and self._least <= most:
            self._least, self._most = max(least, self._least), min(most, self._most)
            self._pongs += 1
        else:
            self._least, self._most, self._pongs = least, most, 1
        behind = lead < before and abs(lead) > _RIGHT_SECONDS
        return self._pongs >= (LONG_SERIES_PONGS if behind else SERIES_PONGS)
