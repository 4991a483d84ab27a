"""
A fair queue of commands: who may run at once, who waits, and who gives way.

A bot name has so many places.  Nobody takes the last ones: a phone holds no more of them than it
leaves free, so half at most, a person no more than his phone may have yet, a command three times as
many.  A room holds one once its phone holds a tenth.  What waits takes turns: the phones of a bot,
the rooms of a phone, the people of a room.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from domaeka.interfaces import DeviceKey
from domaeka.pools import Pool
from domaeka.wire import Chat

T = TypeVar("T")

#: Most messages of one room that wait, beside those that run; of one phone; of one bot.  Those of a
#: phone, and of its characters, are such that what waits never stops the reading of that phone:
#: L{domaeka.gateway.flow.throttle} reads on below half of 936.  Source: docs/bots.md, "Limits".
MAX_WAITING_PER_ROOM: Final = 200
MAX_WAITING_PER_PHONE: Final = 400
MAX_WAITING_PER_BOT: Final = 4000
#: Most characters of messages of one phone that run or wait.  Source: as above.
MAX_CHARS_PER_PHONE: Final = 500_000
#: A text takes this part, at most, of the characters that are left: short ones always find room.
_TEXT_PART: Final = 4
#: The part of a bot's places up to which a phone's rooms may have more than one each.
_BUSY_PART: Final = 10
#: A command of a phone holds so many times as many places, at most, as the phone may have yet.
_COMMAND_TIMES: Final = 3

#: Most holders of a kind that are kept to be used again.
_MAX_SPARE: Final = 32

#: A person of a phone: the user hash; or the room's id in a tuple, where the phone knows no hash.
Who: TypeAlias = str | tuple[str]


class Place(NamedTuple):
    """
    Where a message comes from, and where it goes to.

    @ivar command: what it calls.
    """

    phone: DeviceKey
    room_id: str
    who: Who
    command: Hashable

    @classmethod
    def of(cls, chat: Chat, phone: DeviceKey, command: Hashable) -> "Place":
        """That of a message."""
        room_id = chat.room_id
        return cls(phone, room_id, chat.user_hash or (room_id,), command)

    def __str__(self) -> str:
        """For the log."""
        person = "" if isinstance(self.who, tuple) else f" person {self.who!r}"
        return f"{self.phone} room {self.room_id!r}{person}"


class _Holder:
    """What a person, a room or a phone holds."""

    __slots__ = ("chars", "running", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.chars = 0  # of what waits; of a phone also of what runs


class _Person(_Holder):
    """A person of a phone.  @ivar lanes: where something of his waits."""

    __slots__ = ("lanes",)

    def __init__(self) -> None:
        super().__init__()
        self.lanes: dict[str, _Lane] = {}


class _Room(_Holder):
    """A room of a phone.  @ivar lanes: the people of whom something waits, the next one first."""

    __slots__ = ("lanes",)

    def __init__(self) -> None:
        super().__init__()
        self.lanes: dict[Who, _Lane] = {}


class _Phone(_Holder):
    """A phone.  @ivar ready: the rooms in which something waits, the next one first."""

    __slots__ = ("commands", "people", "ready", "rooms")

    def __init__(self) -> None:
        super().__init__()
        self.rooms: dict[str, _Room] = {}
        self.people: dict[Who, _Person] = {}
        self.commands: dict[Hashable, int] = {}  # how many of each run
        self.ready: dict[str, _Room] = {}


class _Bot(_Holder):
    """A bot.  @ivar ready: the phones of which something waits, the next one first."""

    __slots__ = ("phones", "ready")

    def __init__(self) -> None:
        super().__init__()
        self.phones: dict[str, _Phone] = {}
        self.ready: dict[str, _Phone] = {}


class _Spare:
    """Holders that have nothing, to be used again: to make them costs more than all else."""

    def __init__(self) -> None:
        self.bots: list[_Bot] = []
        self.phones: list[_Phone] = []
        self.rooms: list[_Room] = []
        self.people: list[_Person] = []

    def keep(self, kept: list[Any], holder: object) -> None:
        """Keep one, if there are few."""
        if len(kept) < _MAX_SPARE:
            kept.append(holder)


class Slot:
    """A place that a message holds while it is worked on."""

    __slots__ = ("chars", "holders", "place")

    def __init__(self, place: Place, chars: int, holders: "_Holders") -> None:
        self.place = place
        self.chars = chars
        self.holders = holders


_Holders: TypeAlias = tuple[_Bot, _Phone, _Room, _Person]


class Waiting(Generic[T]):
    """A message that waits.  @ivar deadline: when it has waited too long."""

    __slots__ = ("chars", "deadline", "item", "number", "place")

    def __init__(self, place: Place, item: T, chars: int, deadline: float, number: int) -> None:
        self.place = place
        self.item = item
        self.chars = chars
        self.deadline = deadline
        self.number = number


class _Lane:
    """What waits of one person in one room.  @ivar told: how much it was when its end was told."""

    __slots__ = ("told", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Waiting[Any]] = deque()
        self.told = 0


class Dropped(NamedTuple, Generic[T]):
    """A message that does not wait any more.  @ivar tell: true if its room is to be told."""

    item: T
    tell: bool


class FairQueue(Generic[T]):
    """
    Lets messages start within limits, and forgets whoever has nothing that runs or waits.

    At rest nothing waits that may start: whoever changes something asks L{next}.
    """

    def __init__(
        self,
        bot_limit: int,
        room_limit: int,
        gave_way: Callable[[Pool, object, int], object] = lambda pool, claimant, count: None,
    ) -> None:
        """
        @param bot_limit: how many run at once for a bot; C{room_limit}: for a room.
        @param gave_way: called when somebody is held back, or has to give way.
        """
        self._gave_way = gave_way
        self.limit(bot_limit, room_limit)
        #: The bots for which something runs or waits.
        self.bots: dict[str, _Bot] = {}
        #: All that waits, for all bots, oldest first.
        self._waiting: dict[Waiting[T], None] = {}
        self._number = 0
        self._spare = _Spare()

    @property
    def waiting(self) -> int:
        """The number of messages that wait, for all bots."""
        return len(self._waiting)

    def limit(self, bot_limit: int, room_limit: int) -> None:
        """Set other limits, for what starts from now on."""
        self._bot_limit = bot_limit
        self._room_limit = room_limit
        self._busy = max(room_limit, bot_limit // _BUSY_PART)

    # What comes

    def is_free(self, place: Place, chars: int) -> bool:
        """True if a message that comes now may start at once.  @param chars: of its text."""
        bot = self.bots.get(place.phone.bot_name)
        if bot is None:
            return True
        phone = bot.phones.get(place.phone.device_id)
        if phone is None:
            return bot.running < self._bot_limit
        if _is_too_long(chars, phone.chars):
            return False
        room = phone.rooms.get(place.room_id)
        person = phone.people.get(place.who)
        if room is not None and place.who in room.lanes:
            return False  # behind what waits of the same person
        return self._may_start(bot, phone, room, person, place.command)

    def _may_start(
        self,
        bot: _Bot,
        phone: _Phone,
        room: _Room | None,
        person: _Person | None,
        command: Hashable,
    ) -> bool:
        left = self._bot_limit - bot.running - phone.running
        return (
            left > 0
            and (room is None or self._has_room(phone, room))
            and (person is None or person.running < left)
            and phone.commands.get(command, 0) < _COMMAND_TIMES * left
        )

    def _has_room(self, phone: _Phone, room: _Room) -> bool:
        running = room.running
        return not running or (running < self._room_limit and phone.running < self._busy)

    def enter(self, place: Place, chars: int) -> Slot:
        """Count a message that was free to start, or goes on, as running."""
        holders = self._holders(place)
        self._run(holders, place.command)
        holders[1].chars += chars
        return Slot(place, chars, holders)

    def wait(self, place: Place, item: T, chars: int, deadline: float) -> list[Dropped[T]]:
        """
        Hold a message that is not free to start.

        @param deadline: when it has waited too long, by the clock of L{expire}.
        @return: what gives way for it: messages of whoever has most; or itself.
        """
        self._number += 1
        entry: Waiting[T] = Waiting(place, item, chars, deadline, self._number)
        self._add(entry)
        dropped: list[Dropped[T]] = []
        while entry in self._waiting and (victim := self._victim(entry)) is not None:
            self._gave_way(Pool.BOT_WAITING, victim.place, 1)
            dropped.append(self._drop(victim))
        if not dropped:
            self._note_share(place)
        return dropped

    def _note_share(self, place: Place) -> None:
        """Say that somebody is held back, though there are places, for they are for others."""
        bot, _, room, _ = self._holders(place)
        if bot.running < self._bot_limit and not room.running:
            self._gave_way(Pool.BOT_SLOTS, place, 1)

    # What ends

    def leave(self, slot: Slot) -> None:
        """Count a message that ran as ended.  L{next} gives those that may start now."""
        bot, phone, room, person = slot.holders
        bot.running -= 1
        phone.running -= 1
        room.running -= 1
        person.running -= 1
        phone.chars -= slot.chars
        command = slot.place.command
        left = phone.commands[command] - 1
        if left:
            phone.commands[command] = left
        else:
            del phone.commands[command]
        self._forget(slot.place, slot.holders)

    def next(self, bot_name: str) -> tuple[T, Slot] | None:
        """@return: a message that starts now, and counts as running; L{None} if none may."""
        bot = self.bots.get(bot_name)
        if bot is None:
            return None
        for phone in bot.ready.values():
            if phone.running < self._bot_limit - bot.running:
                entry = self._next_of(bot, phone)
                if entry is not None:
                    place = entry.place
                    holders = self._holders(place)
                    room = holders[2]
                    self._run(holders, place.command)
                    phone.chars += entry.chars
                    self._remove(entry)
                    for turns, key in (
                        (room.lanes, place.who),
                        (phone.ready, place.room_id),
                        (bot.ready, place.phone.device_id),
                    ):
                        _to_end(turns, key)
                    return entry.item, Slot(place, entry.chars, holders)
        return None

    def _next_of(self, bot: _Bot, phone: _Phone) -> Waiting[T] | None:
        """The next message of a phone: of those whose turn it is, of the person who holds least."""
        found: Waiting[T] | None = None
        least = self._bot_limit
        for room in phone.ready.values():
            if not self._has_room(phone, room):
                continue
            for who, lane in room.lanes.items():
                person = phone.people[who]
                if person.running < least:
                    entry: Waiting[T] = lane.waiting[0]
                    if self._may_start(bot, phone, room, person, entry.place.command):
                        found, least = entry, person.running
            if not least:
                break
        return found

    def expire(self, now: float) -> list[Dropped[T]]:
        """Let go of what has waited too long.  @return: it."""
        dropped: list[Dropped[T]] = []
        told: set[tuple[DeviceKey, str, Who]] = set()
        while self._waiting:
            entry = next(iter(self._waiting))
            if entry.deadline > now:
                break
            lane = entry.place[:3]
            self._gave_way(Pool.BOT_WAITING, entry.place, 1)
            one = self._drop(entry)
            dropped.append(Dropped(one.item, one.tell and lane not in told))
            told.add(lane)
        return dropped

    def clear(self) -> list[T]:
        """Forget everything.  @return: what waited."""
        items = [entry.item for entry in self._waiting]
        self._waiting.clear()
        self.bots.clear()
        return items

    # Who gives way

    def _victim(self, entry: Waiting[T]) -> Waiting[T] | None:
        """What must go for C{entry}, which waits; L{None}: it may stay."""
        place = entry.place
        bot, phone, room, _ = self._holders(place)
        if room.waiting > MAX_WAITING_PER_ROOM:
            lane = max(room.lanes.values(), key=lambda lane: len(lane.waiting))
            own = room.lanes[place.who]
            return self._newest((own if len(lane.waiting) <= len(own.waiting) + 1 else lane,))
        if _is_too_long(entry.chars, phone.chars - entry.chars):
            return self._of_largest(phone, entry, lambda holder: holder.chars)
        if phone.waiting > MAX_WAITING_PER_PHONE:
            return self._of_largest(phone, entry, lambda holder: holder.waiting)
        if bot.waiting > MAX_WAITING_PER_BOT:
            most = max(bot.ready.values(), key=lambda one: one.waiting)
            if most.waiting <= phone.waiting + 1:
                most = phone
            return self._of_largest(most, entry, lambda holder: holder.waiting)
        return None

    def _of_largest(
        self, phone: _Phone, entry: Waiting[T], measure: Callable[[_Holder], int]
    ) -> Waiting[T]:
        """The newest message of the room, or the person, of a phone who has most."""
        rooms = phone.ready.values()
        people = [one for one in phone.people.values() if one.lanes]
        holders: list[_Room | _Person] = [*people, *rooms]
        largest = max(holders, key=measure)
        place = entry.place
        if phone is self._holders(place)[1]:
            own = max(measure(phone.rooms[place.room_id]), measure(phone.people[place.who]))
            if measure(largest) <= own:
                return entry
        return self._newest(largest.lanes.values())

    def _newest(self, lanes: Iterable[_Lane]) -> Waiting[T]:
        found: Iterator[Waiting[Any]] = (lane.waiting[-1] for lane in lanes)
        return max(found, key=lambda one: one.number)

    # The books

    def _holders(self, place: Place) -> _Holders:
        """Those to whom a message counts, made where they are not there."""
        (bot_name, device_id), room_id, who, _ = place
        spare = self._spare
        bot = self.bots.get(bot_name)
        if bot is None:
            bot = self.bots[bot_name] = spare.bots.pop() if spare.bots else _Bot()
        phone = bot.phones.get(device_id)
        if phone is None:
            phone = bot.phones[device_id] = spare.phones.pop() if spare.phones else _Phone()
        room = phone.rooms.get(room_id)
        if room is None:
            room = phone.rooms[room_id] = spare.rooms.pop() if spare.rooms else _Room()
        person = phone.people.get(who)
        if person is None:
            person = phone.people[who] = spare.people.pop() if spare.people else _Person()
        return bot, phone, room, person

    def _run(self, holders: _Holders, command: Hashable) -> None:
        bot, phone, room, person = holders
        bot.running += 1
        phone.running += 1
        room.running += 1
        person.running += 1
        phone.commands[command] = phone.commands.get(command, 0) + 1

    def _add(self, entry: Waiting[T]) -> None:
        place = entry.place
        holders = self._holders(place)
        bot, phone, room, person = holders
        for holder in holders:
            holder.waiting += 1
            holder.chars += entry.chars
        lane = room.lanes.get(place.who)
        if lane is None:
            lane = room.lanes[place.who] = person.lanes[place.room_id] = _Lane()
            phone.ready.setdefault(place.room_id, room)
            bot.ready.setdefault(place.phone.device_id, phone)
        lane.waiting.append(entry)
        self._waiting[entry] = None

    def _drop(self, entry: Waiting[T]) -> Dropped[T]:
        """Let go of a message, the first or the last of its lane."""
        lane = self._holders(entry.place)[2].lanes[entry.place.who]
        tell = not lane.told
        lane.told = lane.told or len(lane.waiting)
        self._remove(entry)
        return Dropped(entry.item, tell)

    def _remove(self, entry: Waiting[T]) -> None:
        """Count a message, the first or the last of its lane, as waiting no more."""
        place = entry.place
        holders = self._holders(place)
        bot, phone, room, person = holders
        for holder in holders:
            holder.waiting -= 1
            holder.chars -= entry.chars
        del self._waiting[entry]
        lane = room.lanes[place.who]
        if lane.waiting[0] is entry:
            lane.waiting.popleft()
        else:
            lane.waiting.pop()
        if len(lane.waiting) <= lane.told // 2:
            lane.told = 0
        if not lane.waiting:
            del room.lanes[place.who], person.lanes[place.room_id]
            if not room.lanes:
                del phone.ready[place.room_id]
                if not phone.ready:
                    del bot.ready[place.phone.device_id]
        self._forget(place, holders)

    def _forget(self, place: Place, holders: _Holders) -> None:
        """Forget those who have nothing that runs or waits."""
        bot, phone, room, person = holders
        (bot_name, device_id), room_id, who, _ = place
        spare = self._spare
        if not person.running and not person.waiting:
            del phone.people[who]
            spare.keep(spare.people, person)
        if not room.running and not room.waiting:
            del phone.rooms[room_id]
            spare.keep(spare.rooms, room)
            if not phone.rooms:
                del bot.phones[device_id]
                spare.keep(spare.phones, phone)
                if not bot.phones:
                    del self.bots[bot_name]
                    spare.keep(spare.bots, bot)


def _is_too_long(chars: int, others: int) -> bool:
    """
    True if a text leaves too little of its phone's characters; but where the others are few beside
    it, the longest is let through.
    """
    return _TEXT_PART * chars > MAX_CHARS_PER_PHONE - others and _TEXT_PART * others > chars


def _to_end(turns: dict[Any, Any], key: Hashable) -> None:
    """Have the others go first."""
    if key in turns:
        turns[key] = turns.pop(key)
