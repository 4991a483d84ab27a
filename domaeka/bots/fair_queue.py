"""A fair queue of commands: limits for each bot and room, round robin over a bot's rooms."""

from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Most messages of one room that wait, beside those that run.  Source: docs/bots.md, "Limits".
MAX_WAITING_PER_ROOM: Final = 400
#: Most messages of one bot that wait, and most characters of them.  Source: as above.
MAX_WAITING_PER_BOT: Final = 4000
MAX_WAITING_CHARS_PER_BOT: Final = 8_000_000
#: Most rooms that are remembered as warned: others get no warning.
_MAX_WARNED = 1000


class _Room(Generic[T]):
    """A room of a bot."""

    __slots__ = ("listed", "running", "waiting", "warned")

    def __init__(self) -> None:
        self.running = 0
        self.waiting: deque[tuple[int, T]] = deque()  # with the characters of each
        self.listed = False  # it is among the ready rooms
        self.warned = False  # that too many wait for it


class _BotQueue(Generic[T]):
    """The queue of a bot."""

    __slots__ = ("chars", "ready", "rooms", "running", "waiting", "warned")

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.chars = 0
        self.rooms: dict[str, _Room[T]] = {}
        self.ready: deque[_Room[T]] = deque()  # something waits there and may start
        self.warned: set[str] = set()  # rooms, that too many wait for the bot


class FairQueue(Generic[T]):
    """
    Let items start within limits: in each room in their order, round robin over the rooms of a bot.
    A bot or a room is forgotten once nothing of it runs or waits.
    """

    def __init__(self, bot_limit: int, room_limit: int) -> None:
        """@param bot_limit: how many items run at once for a bot; C{room_limit}: for a room."""
        self._bot_limit = bot_limit
        self._room_limit = room_limit
        #: The bots for which something runs or waits.
        self.bots: dict[str, _BotQueue[T]] = {}
        #: The number of items that wait, for all bots.
        self.waiting = 0

    def limit(self, bot_limit: int, room_limit: int) -> None:
        """Set other limits, for items that start from now on."""
        self._bot_limit = bot_limit
        self._room_limit = room_limit

    def is_free(self, bot: str, room_id: str) -> bool:
        """True if an item that comes now may start at once."""
        queue = self.bots.get(bot)
        if queue is None:
            return True
        if queue.running >= self._bot_limit:
            return False
        room = queue.rooms.get(room_id)
        return room is None or (room.running < self._room_limit and not room.waiting)

    def enter(self, bot: str, room_id: str) -> None:
        """Count an item that was free to start as running."""
        queue = self.bots.get(bot)
        if queue is None:
            queue = self.bots[bot] = _BotQueue()
        room = queue.rooms.get(room_id)
        if room is None:
            room = queue.rooms[room_id] = _Room()
        queue.running += 1
        room.running += 1

    def wait(self, bot: str, room_id: str, item: T, chars: int) -> bool:
        """
        Hold an item that is not free to start.

        @param chars: the length of its text.
        @return: L{False} if there is no place for it.
        """
        queue = self.bots[bot]
        room = queue.rooms.get(room_id)
        if (
            queue.waiting >= MAX_WAITING_PER_BOT
            or queue.chars + chars > MAX_WAITING_CHARS_PER_BOT
            or (room is not None and len(room.waiting) >= MAX_WAITING_PER_ROOM)
        ):
            return False
        if room is None:
            room = queue.rooms[room_id] = _Room()
        room.waiting.append((chars, item))
        queue.waiting += 1
        queue.chars += chars
        self.waiting += 1
        self._list(queue, room)
        return True

    def should_warn(self, bot: str, room_id: str) -> bool:
        """True if a room is to be warned that L{wait} is full: once, until half of it is free."""
        queue = self.bots[bot]
        room = queue.rooms.get(room_id)
        if room is not None and len(room.waiting) >= MAX_WAITING_PER_ROOM:
            warned, room.warned = room.warned, True
            return not warned
        if room_id in queue.warned or len(queue.warned) >= _MAX_WARNED:
            return False
        queue.warned.add(room_id)
        return True

    def leave(self, bot: str, room_id: str) -> None:
        """Count an item that ran as ended.  L{next} gives the items that may start now."""
        queue = self.bots[bot]
        room = queue.rooms[room_id]
        queue.running -= 1
        room.running -= 1
        self._list(queue, room)
        if not room.running and not room.waiting:
            del queue.rooms[room_id]
            if not queue.rooms:
                del self.bots[bot]

    def next(self, bot: str) -> T | None:
        """@return: the item that starts now, and counts as running; L{None} if none may."""
        queue = self.bots.get(bot)
        if queue is None or queue.running >= self._bot_limit or not queue.ready:
            return None
        room = queue.ready.popleft()
        room.listed = False
        chars, item = room.waiting.popleft()
        queue.running += 1
        room.running += 1
        queue.waiting -= 1
        queue.chars -= chars
        self.waiting -= 1
        self._list(queue, room)
        if room.warned and len(room.waiting) <= MAX_WAITING_PER_ROOM // 2:
            room.warned = False
        if (
            queue.warned
            and queue.waiting <= MAX_WAITING_PER_BOT // 2
            and queue.chars <= MAX_WAITING_CHARS_PER_BOT // 2
        ):
            queue.warned.clear()
        return item

    def clear(self) -> list[T]:
        """Forget everything.  @return: the items that waited."""
        items = [
            item
            for queue in self.bots.values()
            for room in queue.rooms.values()
            for _, item in room.waiting
        ]
        self.bots.clear()
        self.waiting = 0
        return items

    def _list(self, queue: _BotQueue[T], room: _Room[T]) -> None:
        """List a room as ready, if it is."""
        if room.waiting and not room.listed and room.running < self._room_limit:
            room.listed = True
            queue.ready.append(room)
