"""Who may start now: so many at once for a bot, so many for a room, rooms by turns."""

from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Most messages of one room that wait, beside those that are worked on.  Source: docs/bots.md,
#: "Limits".
MAX_WAITING_PER_ROOM: Final = 400
#: Most messages of one bot that wait, and most characters of them.  Source: as above.
MAX_WAITING_PER_BOT: Final = 4000
MAX_WAITING_CHARS_PER_BOT: Final = 8_000_000
#: Most rooms of which is remembered that they were told: others hear nothing.
_MAX_TOLD = 1000


class _Room(Generic[T]):
    """One room of one bot."""

    __slots__ = ("listed", "running", "told", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.waiting: deque[tuple[int, T]] = deque()  # with the characters of each
        self.listed = False  # whether it is among the ready ones
        self.told = False  # that it has too many waiting


class _Lane(Generic[T]):
    """One bot."""

    __slots__ = ("chars", "ready", "rooms", "running", "told", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.chars = 0
        self.rooms: dict[str, _Room[T]] = {}
        self.ready: deque[_Room[T]] = deque()  # something waits there and may start
        self.told: set[str] = set()  # rooms, that the bot has too many waiting


class Lanes(Generic[T]):
    """
    Let work start in the order in which it came to its room, within limits.

    Rooms in which something waits take turns.  What is not in use takes no memory: neither a
    bot nor a room is remembered once nothing of it runs or waits.
    """

    def __init__(self, bot_limit: int, room_limit: int) -> None:
        """
        @param bot_limit: how many run at once for a bot.
        @param room_limit: how many run at once for a room.
        """
        self._bot_limit = bot_limit
        self._room_limit = room_limit
        #: Those of which something runs or waits.
        self.bots: dict[str, _Lane[T]] = {}
        #: How many wait, of all bots.
        self.waiting = 0

    def limit(self, bot_limit: int, room_limit: int) -> None:
        """Other limits, for what begins from now on."""
        self._bot_limit = bot_limit
        self._room_limit = room_limit

    def is_free(self, bot: str, room_id: str) -> bool:
        """Whether what comes now may start at once."""
        lane = self.bots.get(bot)
        if lane is None:
            return True
        if lane.running >= self._bot_limit:
            return False
        room = lane.rooms.get(room_id)
        return room is None or (room.running < self._room_limit and not room.waiting)

    def enter(self, bot: str, room_id: str) -> None:
        """Something that was free to start runs."""
        lane = self.bots.get(bot)
        if lane is None:
            lane = self.bots[bot] = _Lane()
        room = lane.rooms.get(room_id)
        if room is None:
            room = lane.rooms[room_id] = _Room()
        lane.running += 1
        room.running += 1

    def wait(self, bot: str, room_id: str, item: T, chars: int) -> bool:
        """
        Hold what is not free to start.

        @param chars: how long its text is.
        @return: L{False} if there is no room for it.
        """
        lane = self.bots[bot]
        room = lane.rooms.get(room_id)
        if (
            lane.waiting >= MAX_WAITING_PER_BOT
            or lane.chars + chars > MAX_WAITING_CHARS_PER_BOT
            or (room is not None and len(room.waiting) >= MAX_WAITING_PER_ROOM)
        ):
            return False
        if room is None:
            room = lane.rooms[room_id] = _Room()
        room.waiting.append((chars, item))
        lane.waiting += 1
        lane.chars += chars
        self.waiting += 1
        self._list(lane, room)
        return True

    def should_tell(self, bot: str, room_id: str) -> bool:
        """
        Whether a room is to be told that L{wait} found no place: once, until half of the places
        are free again.
        """
        lane = self.bots[bot]
        room = lane.rooms.get(room_id)
        if room is not None and len(room.waiting) >= MAX_WAITING_PER_ROOM:
            told, room.told = room.told, True
            return not told
        if room_id in lane.told or len(lane.told) >= _MAX_TOLD:
            return False
        lane.told.add(room_id)
        return True

    def leave(self, bot: str, room_id: str) -> None:
        """Something that ran has ended.  L{next} says what may start now."""
        lane = self.bots[bot]
        room = lane.rooms[room_id]
        lane.running -= 1
        room.running -= 1
        self._list(lane, room)
        if not room.running and not room.waiting:
            del lane.rooms[room_id]
            if not lane.rooms:
                del self.bots[bot]

    def next(self, bot: str) -> T | None:
        """@return: what starts now, and counts as running; L{None} if nothing may."""
        lane = self.bots.get(bot)
        if lane is None or lane.running >= self._bot_limit or not lane.ready:
            return None
        room = lane.ready.popleft()
        room.listed = False
        chars, item = room.waiting.popleft()
        lane.running += 1
        room.running += 1
        lane.waiting -= 1
        lane.chars -= chars
        self.waiting -= 1
        self._list(lane, room)
        if room.told and len(room.waiting) <= MAX_WAITING_PER_ROOM // 2:
            room.told = False
        if (
            lane.told
            and lane.waiting <= MAX_WAITING_PER_BOT // 2
            and lane.chars <= MAX_WAITING_CHARS_PER_BOT // 2
        ):
            lane.told.clear()
        return item

    def clear(self) -> list[T]:
        """Forget everything.  @return: what waited."""
        items = [
            item
            for lane in self.bots.values()
            for room in lane.rooms.values()
            for _, item in room.waiting
        ]
        self.bots.clear()
        self.waiting = 0
        return items

    def _list(self, lane: _Lane[T], room: _Room[T]) -> None:
        """Note that a room is ready, if it is."""
        if room.waiting and not room.listed and room.running < self._room_limit:
            room.listed = True
            lane.ready.append(room)
