"""Rates of claimants: so many a minute for each, and so many for all together."""

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

#: Period of the rates, in seconds.
MINUTE: Final = 60.0
#: Most claimants whose rates are remembered; some 200 bytes each.
MAX_CLAIMANTS: Final = 10_000

_H = TypeVar("_H", bound=Hashable)


class MinuteRates(Generic[_H]):
    """So many a minute for each claimant, and so many for all together, in bounded memory."""

    def __init__(
        self, each: int, seconds: Callable[[], float], together: int | None = None
    ) -> None:
        """
        @param each: how many a claimant may take in a minute, which begins with the first.
        @param seconds: the time now, in seconds, which never steps.
        @param together: how many all of them may take in a minute; L{None}: no bound.
        """
        self._each = each
        self._seconds = seconds
        self._together = together
        self._taken: dict[_H, tuple[float, int]] = {}  # since when, how many; the first ends first
        self._all = (0.0, 0)

    def take(self, claimant: _H) -> bool:
        """True, and one is taken, if C{claimant} may; a claimant who may not costs nobody else."""
        now = self._seconds()
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
