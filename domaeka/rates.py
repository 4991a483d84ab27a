"""Rates of claimants: so many a minute for each, and so many for all together."""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

#: Period of the rates, in seconds.
MINUTE: Final = 60.0
#: Most claimants whose rates are remembered; some 200 bytes each.
MAX_CLAIMANTS: Final = 10_000

_H = TypeVar("_H", bound=Hashable)


class MinuteRates(Generic[_H]):
    """So many a minute for each claimant, and so many for all together, in bounded memory."""

    def __init__(self, each: int, together: int | None = None) -> None:
        """
        @param each: how many a claimant may take in a minute, which begins with the first.
        @param together: how many all of them may take in a minute; L{None}: no bound.
        """
        self._each = each
        self._together = together
        self._taken: dict[_H, tuple[float, int]] = {}  # since when, how many; the first ends first
        self._all = (0.0, 0)

    def take(self, claimant: _H, now: float) -> bool:
        """
        Take one, if C{claimant} may; one who may not costs nobody else.

        @param now: the time, in seconds, by a clock that never steps.
        @return: True if it was taken.
        """
        taken = self._taken
        while taken:
            oldest = next(iter(taken))
            if now - taken[oldest][0] < MINUTE and len(taken) <= MAX_CLAIMANTS:
                break
            del taken[oldest]
        since, count = taken.get(claimant, (now, 0))
        if count >= self._each:
            return False
        if self._together is not None:
            began, of_all = self._all
            if now - began >= MINUTE:
                began, of_all = now, 0
            if of_all >= self._together:
                return False
            self._all = began, of_all + 1
        taken[claimant] = since, count + 1
        return True
