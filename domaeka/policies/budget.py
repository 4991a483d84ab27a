"""
Memory that all outboxes share: who may take it, and who gives way where it is full.

A class finds room up to its part of it.  A phone that holds less than its fair share of that part
finds room up to all of it, and is never the one that gives way: the largest holder is.
"""

from collections.abc import Callable
from heapq import nlargest
from typing import Final, Protocol
from weakref import WeakSet

#: Part of the bytes of all outboxes together up to which each class finds room, so that broadcasts
#: do not take the room of answers.
_SHARES: Final = (2.0**32, 1.0, 0.75, 0.5)
#: Holders that are ranked at once, and the messages that give way until they are ranked anew: to
#: look at a thousand outboxes takes 0.25 ms.
_RANKED: Final = 16


class Holder(Protocol):
    """An outbox that shares the memory.  C{owner}: whose it is, for the log."""

    owner: object

    @property
    def bytes(self) -> int:
        """The size of all that it holds."""

    def give_way(self, priority: int = 0) -> bool:
        """
        Drop the message that it can best do without.

        @param priority: what is more important than this one stays.
        @return: L{False}: it has none but those on their way, and critical ones.
        """


class Budget:
    """
    Memory that all outboxes share, and their common counters.

    @ivar used: bytes that wait, are on their way, or are not acknowledged.
    @ivar limits: bytes up to which each class finds room.
    @ivar expired: messages whose time ran out.
    @ivar dropped: messages that gave way to others, or found no room.
    @ivar forgotten: messages that were sent, and gave way before they were acknowledged.
    @ivar bad_acks: acknowledgements of what was never sent.
    @ivar room_gave_way: called with whose message gave way, where an outbox was full.
    @ivar device_gave_way: likewise, where all were full together.
    @ivar reports_gave_way: called with the room whose reports are awaited no more, and how many.
    """

    __slots__ = (
        "_fair_part",
        "_holders",
        "_ranked",
        "_ranked_for",
        "bad_acks",
        "device_gave_way",
        "dropped",
        "expired",
        "forgotten",
        "limits",
        "reports_gave_way",
        "room_gave_way",
        "used",
    )

    def __init__(
        self,
        max_bytes: int,
        room_gave_way: Callable[[object], object] = lambda claimant: None,
        device_gave_way: Callable[[object], object] = lambda claimant: None,
        reports_gave_way: Callable[[object, int], object] = lambda claimant, count: None,
    ) -> None:
        """@param max_bytes: most bytes in all outboxes together."""
        self.limits = tuple(int(max_bytes * share) for share in _SHARES)
        self.room_gave_way = room_gave_way
        self.device_gave_way = device_gave_way
        self.reports_gave_way = reports_gave_way
        self.used = 0
        self.expired = 0
        self.dropped = 0
        self.forgotten = 0
        self.bad_acks = 0
        self._holders: WeakSet[Holder] = WeakSet()
        self._ranked: list[Holder] = []  # the largest, the largest last
        self._ranked_for = 0  # messages that may give way before they are ranked anew
        self._fair_part = 1.0  # of one holder

    def shared_by(self, holder: Holder) -> None:
        """Take in one more outbox, for as long as it exists."""
        self._holders.add(holder)

    def make_room(self, holder: Holder, priority: int, size: int) -> bool:
        """
        Have others give way to a message of C{holder}, or C{holder} itself where it holds most.

        @return: whether there is room.
        """
        whole = self.limits[1]
        self._ranked_for -= 1
        self._rank_if_due()
        while True:
            limit = self.limits[priority]
            if holder.bytes + size <= limit * self._fair_part:
                limit = max(limit, whole)
            if self.used + size <= limit:
                return True
            largest = self._largest() if limit == whole else None
            if largest is None or largest is holder or largest.bytes <= holder.bytes + size:
                if not holder.give_way(priority):
                    return False
                self.device_gave_way(holder.owner)
            elif largest.give_way():
                self._ranked_for -= 1
                self.device_gave_way(largest.owner)
            else:  # not ranked anew for that: it would be the largest again
                self._ranked.remove(largest)

    def _largest(self) -> Holder | None:
        """The largest holder that may be able to give way."""
        self._rank_if_due()
        ranked = self._ranked
        if not ranked:
            self._ranked_for = 0
            return None
        if len(ranked) > 1 and ranked[-1].bytes < ranked[-2].bytes:
            ranked.sort(key=_held)
        return ranked[-1]

    def _rank_if_due(self) -> None:
        if self._ranked_for > 0:
            return
        holders = [holder for holder in self._holders if holder.bytes]
        self._ranked = nlargest(_RANKED, holders, key=_held)[::-1]
        self._ranked_for = _RANKED
        self._fair_part = 1.0 / max(2, len(holders))  # one that holds nothing yet may ask


def _held(holder: Holder) -> int:
    return holder.bytes
