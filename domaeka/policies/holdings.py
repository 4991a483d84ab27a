"""What claimants hold of something that is shared, and who holds most."""

from collections.abc import Iterator
from typing import Generic, TypeVar

_Holder = TypeVar("_Holder")
_Item = TypeVar("_Item")


class Counts(Generic[_Holder]):
    """
    The number of units that each claimant holds.

    To find the largest holder takes no time, and a change as much as it has units.
    """

    def __init__(self) -> None:
        self._counts: dict[_Holder, int] = {}
        self._levels: dict[int, dict[_Holder, None]] = {}  # those who hold so many
        self._top = 0
        #: The units that all hold.
        self.total = 0

    def __len__(self) -> int:
        """The number of claimants that hold something."""
        return len(self._counts)

    def __getitem__(self, holder: _Holder) -> int:
        """The units that a claimant holds."""
        return self._counts.get(holder, 0)

    def add(self, holder: _Holder, units: int = 1) -> None:
        """Count units more."""
        self._move(holder, self[holder] + units)
        self._top = max(self._top, self[holder])
        self.total += units

    def remove(self, holder: _Holder, units: int = 1) -> None:
        """Count units that it holds no more."""
        self._move(holder, self[holder] - units)
        self.total -= units
        while self._top and self._top not in self._levels:
            self._top -= 1

    def largest(self) -> _Holder:
        """Whoever holds most; of several the one that has held so many longest.  There is one."""
        return next(iter(self._levels[self._top]))

    def _move(self, holder: _Holder, count: int) -> None:
        before = self._counts.pop(holder, 0)
        if before:
            level = self._levels[before]
            del level[holder]
            if not level:
                del self._levels[before]
        if count:
            self._counts[holder] = count
            self._levels.setdefault(count, {})[holder] = None


class Holdings(Generic[_Holder, _Item]):
    """
    The items of a pool by their holders: the oldest item of the largest holder gives way first.

    Each step takes the same time, however many items and holders there are.
    """

    def __init__(self) -> None:
        self._holders: dict[_Item, _Holder] = {}  # the oldest item first
        self._items: dict[_Holder, dict[_Item, None]] = {}  # likewise
        self._counts: Counts[_Holder] = Counts()

    def __len__(self) -> int:
        """Number of items."""
        return len(self._holders)

    def __iter__(self) -> Iterator[_Item]:
        """The items, the oldest first."""
        return iter(self._holders)

    def __contains__(self, item: _Item) -> bool:
        return item in self._holders

    def put(self, holder: _Holder, item: _Item) -> None:
        """Enter an item, or enter it anew: it is its new holder's alone, and the newest."""
        self.remove(item)
        self._holders[item] = holder
        self._items.setdefault(holder, {})[item] = None
        self._counts.add(holder)

    def remove(self, item: _Item) -> bool:
        """Remove an item.  @return: whether it was here."""
        if item not in self._holders:
            return False
        holder = self._holders.pop(item)
        items = self._items[holder]
        del items[item]
        if not items:
            del self._items[holder]
        self._counts.remove(holder)
        return True

    def count_of(self, holder: _Holder) -> int:
        """Number of items of a holder."""
        return self._counts[holder]

    def of(self, holder: _Holder) -> list[_Item]:
        """The items of a holder, the oldest first."""
        return list(self._items.get(holder, ()))

    def first(self) -> _Item | None:
        """The item that gives way first; L{None}: there is none."""
        return next(iter(self._items[self._counts.largest()])) if self._holders else None
