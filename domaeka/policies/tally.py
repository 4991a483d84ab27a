"""Tally of a full outbox: how much of it each room holds, and each class."""

from collections.abc import Iterable
from typing import Final

from domaeka.policies.outgoing import Outgoing, room_of

#: Measures: by bytes, or by the number of messages.
BYTES: Final = 0
MESSAGES: Final = 1


class Tally:
    """
    What an outbox holds, by room and by class.

    @ivar rooms: the bytes, and the messages, of each room; C{classes}: of each class.
    """

    __slots__ = ("classes", "rooms")

    def __init__(self, items: Iterable[Outgoing]) -> None:
        self.rooms: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self.classes = ([0, 0, 0, 0], [0, 0, 0, 0])
        for item in items:
            self.add(item)

    def add(self, item: Outgoing) -> None:
        """Count a message in."""
        room, size, priority = room_of(item.reply), item.size, item.priority
        sizes, counts = self.rooms
        sizes[room] = sizes.get(room, 0) + size
        counts[room] = counts.get(room, 0) + 1
        self.classes[BYTES][priority] += size
        self.classes[MESSAGES][priority] += 1

    def remove(self, item: Outgoing) -> None:
        """Count a message out."""
        room, size, priority = room_of(item.reply), item.size, item.priority
        sizes, counts = self.rooms
        sizes[room] -= size
        counts[room] -= 1
        if not counts[room]:
            del sizes[room], counts[room]
        self.classes[BYTES][priority] -= size
        self.classes[MESSAGES][priority] -= 1

    def largest(self, measure: int) -> str:
        """The room that holds most; there is one."""
        rooms = self.rooms[measure]
        return max(rooms, key=rooms.__getitem__)
