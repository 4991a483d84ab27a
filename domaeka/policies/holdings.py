"""Fair shares of a table: the oldest entry of its largest holder, and rates for each claimant."""

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

#: Period of the rates, in seconds.
MINUTE: Final = 60.0
#: Most claimants whose rates are remembered; some 200 bytes each.
MAX_CLAIMANTS: Final = 10_000

_K = TypeVar("_K", bound=Hashable)
_H = TypeVar("_H", bound=Hashable)


class Holdings(Generic[_K, _H]):
    """
    Entries that may give way, by their holders.

    All is done in constant time, however many entries and holders there are.
    """

    def __init__(self) -> None:
        self._holder_of: dict[_K, _H] = {}
        self._entries: dict[_H, dict[_K, None]] = {}  # of each holder, the oldest first
        self._of_size: dict[int, dict[_H, None]] = {}  # holders by the number of their entries
        self._largest = 0

    def __len__(self) -> int:
        return len(self._holder_of)

    def put(self, key: _K, holder: _H) -> None:
        """Enter C{key}, or renew it: it is the newest of C{holder}."""
        if key in self._holder_of:
            if self._holder_of[key] == holder:
                self.renew(key)
                return
            self.remove(key)
        self._holder_of[key] = holder
        entries = self._entries.setdefault(holder, {})
        self._move(holder, len(entries), len(entries) + 1)
        entries[key] = None

    def renew(self, key: _K) -> None:
        """Make C{key}, if it is there, the newest of its holder."""
        if key in self._holder_of:
            entries = self._entries[self._holder_of[key]]
            del entries[key]
            entries[key] = None

    def remove(self, key: _K) -> None:
        """Forget C{key}, if it is there."""
        if key in self._holder_of:
            holder = self._holder_of.pop(key)
            entries = self._entries[holder]
            self._move(holder, len(entries), len(entries) - 1)
            del entries[key]
            if not entries:
                del self._entries[holder]

    def largest(self) -> _H | None:
        """The holder of the most entries; of several, whoever has had as many for the longest."""
        return next(iter(self._of_size[self._largest])) if self._largest else None

    def first(self) -> _K | None:
        """The entry to give way: the oldest one of the largest holder; L{None}: there is none."""
        return next(iter(self._entries[next(iter(self._of_size[self._largest]))])) if self else None

    def _move(self, holder: _H, before: int, now: int) -> None:
        """Note that the number of a holder's entries has changed by one."""
        if before:
            same = self._of_size[before]
            del same[holder]
            if not same:
                del self._of_size[before]
        if now:
            self._of_size.setdefault(now, {})[holder] = None
        if now > self._largest or self._largest not in self._of_size:
            self._largest = now


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
