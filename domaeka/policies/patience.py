"""
How long a device may be silent before it is given up.
"""

from math import inf
from typing import Final

#: A device is never given up before this many times the longest that it has been silent of late.
#: Source: docs/protocol.md, "Liveness".
TIMES_SLOWEST: Final = 3.0
#: What "of late" is, at least, in seconds; twice as much at most.
RECENT_SECONDS: Final = 3600.0
#: An answer that takes longer is slow: chat is no longer a conversation then.
SLOW_SECONDS: Final = 3.0
#: Prompt answers, beyond those that slow ones have used up, by which a line is fully trusted: a
#: quarter of an hour's.  On a line that fails for a while every four minutes, as in a subway, one
#: ping in 13 is answered slowly: it hardly gets there.
TRUSTED_ANSWERS: Final = 30
#: How many of them a slow one uses up, and how many there may be: one slow answer in an hour, as
#: on LTE, leaves most of the trust, and two of them none.
SLOW_COST: Final = 40
MOST_ANSWERS: Final = 60
#: How many may be missing: a line has to be prompt for so much longer after many slow answers.
MOST_MISSING: Final = 40


class Patience:
    """
    What is known of how long a device takes to answer; it outlives the device's connections.

    A device of which nothing is known has all the time there is.  With each prompt answer it has
    less, down to three times the longest that it has been silent of late; a slow answer gives it
    back what many prompt ones took.
    """

    __slots__ = ("_recent_until", "_silent_from", "_slowest", "_slowest_before", "_trust")

    def __init__(self) -> None:
        self._trust = 0  # prompt answers that count
        # The longest silence of this stretch of time, and of the one before, in seconds.
        self._slowest = 0.0
        self._slowest_before = 0.0
        self._recent_until = 0.0
        # Since when it was silent as its last connection ended.
        self._silent_from = inf

    def seconds(self, least: float, most: float) -> float:
        """
        How long the device may be silent, in seconds.

        @param least: where it is trusted and quick.
        @param most: where nothing is known of it.
        """
        least = max(least, TIMES_SLOWEST * max(self._slowest, self._slowest_before))
        if least >= most or self._trust <= 0:
            return most
        return most - (most - least) * min(1.0, self._trust / TRUSTED_ANSWERS)

    def answered(self, now: float, seconds: float, was_silent: bool = True) -> None:
        """
        The device was heard.

        @param seconds: after so many.
        @param was_silent: whether that ended a silence: what comes behind says it again.
        """
        if now >= self._recent_until:
            self._slowest_before, self._slowest = self._slowest, 0.0
            self._recent_until = now + RECENT_SECONDS
        self._slowest = max(seconds, self._slowest)
        if seconds <= SLOW_SECONDS:
            self._trust = min(MOST_ANSWERS, self._trust + 1)
        elif was_silent:
            self._trust = max(-MOST_MISSING, self._trust - SLOW_COST)

    def connection_ended(self, silent_from: float) -> None:
        """
        The device's connection has ended, not because of a newer one.

        @param silent_from: since when it was silent; infinite: it was not.
        """
        self._silent_from = silent_from

    def back(self, now: float, timeout: float) -> None:
        """
        The device has another connection.  Soon after a silence that means that it was alive.

        @param timeout: C{ping.timeout}: what is soon.
        """
        silence = now - self._silent_from
        self._silent_from = inf
        if 0.0 < silence <= 2 * timeout:
            self.answered(now, silence)
