"""Shares of a pool: the oldest item of the largest holder gives way first."""

from collections.abc import Iterator
from typing import Generic, TypeVar

_Claimant = TypeVar("_Claimant")
_Item = TypeVar("_Item")


class Shares(Generic[_Claimant, _Item]):
    """
    The items of a pool, by claimant.

    Each step takes the same time, however many items and claimants there are.
    """

    def __init__(self) -> None:
        self._claimants: dict[_Item, _Claimant] = {}
        #: The items of each claimant, the oldest first.
        self._items: dict[_Claimant, dict[_Item, None]] = {}
        #: By number of items: the claimants that hold so many, the first to come to it first.
        self._by_size: list[dict[_Claimant, None]] = [{}]

    def __len__(self) -> int:
        """Number of items."""
        return len(self._claimants)

    def __iter__(self) -> Iterator[_Item]:
        """The items, the oldest first."""
        return iter(self._claimants)

    def __contains__(self, item: _Item) -> bool:
        return item in self._claimants

    def add(self, claimant: _Claimant, item: _Item) -> None:
        """Enter an item, which is here no more if it was; it is the newest."""
        self.remove(item)
        self._claimants[item] = claimant
        items = self._items.setdefault(claimant, {})
        self._resize(claimant, len(items), len(items) + 1)
        items[item] = None

    def remove(self, item: _Item) -> bool:
        """Remove an item.  @return: whether it was here."""
        if item not in self._claimants:
            return False
        claimant = self._claimants.pop(item)
        items = self._items[claimant]
        self._resize(claimant, len(items), len(items) - 1)
        del items[item]
        if not items:
            del self._items[claimant]
        return True

    def of(self, claimant: _Claimant) -> list[_Item]:
        """The items of a claimant, the oldest first."""
        return list(self._items.get(claimant, ()))

    def first(self) -> _Item | None:
        """The item that gives way first; L{None}: there is none."""
        if not self._claimants:
            return None
        largest = next(iter(self._by_size[-1]))
        return next(iter(self._items[largest]))

    def _resize(self, claimant: _Claimant, before: int, after: int) -> None:
        by_size = self._by_size
        if after == len(by_size):
            by_size.append({})
        if after:
            by_size[after][claimant] = None
        if before:
            del by_size[before][claimant]
            if before == len(by_size) - 1 and not by_size[before]:
                del by_size[before]
