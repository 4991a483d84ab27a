"""Counts of what claimants hold of something that is shared, and who holds most."""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Shares(Generic[K]):
    """
    The number of units that each claimant holds.

    To find the largest holder takes no time, and a change as much as it has units.
    """

    def __init__(self) -> None:
        self._counts: dict[K, int] = {}
        self._levels: dict[int, dict[K, None]] = {}  # those who hold so many
        self._top = 0
        #: The units that all hold.
        self.total = 0

    def __len__(self) -> int:
        """The number of claimants that hold something."""
        return len(self._counts)

    def __getitem__(self, claimant: K) -> int:
        """The units that a claimant holds."""
        return self._counts.get(claimant, 0)

    def add(self, claimant: K, units: int = 1) -> None:
        """Count units more."""
        self._move(claimant, self[claimant] + units)
        self._top = max(self._top, self[claimant])
        self.total += units

    def remove(self, claimant: K, units: int = 1) -> None:
        """Count units that it holds no more."""
        self._move(claimant, self[claimant] - units)
        self.total -= units
        while self._top and self._top not in self._levels:
            self._top -= 1

    def largest(self) -> K:
        """Whoever holds most; of several the one that has held so many longest."""
        return next(iter(self._levels[self._top]))

    def _move(self, claimant: K, count: int) -> None:
        before = self._counts.pop(claimant, 0)
        if before:
            level = self._levels[before]
            del level[claimant]
            if not level:
                del self._levels[before]
        if count:
            self._counts[claimant] = count
            self._levels.setdefault(count, {})[claimant] = None
