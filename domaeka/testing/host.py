"""A server for what bots send, store and schedule, in memory: for tests without a database."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from twisted.internet.defer import Deferred, execute, succeed

from domaeka.bots.coroutines import Coroutines
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.schedules import Schedules
from domaeka.bots.unasked import BotHost
from domaeka.errors import StorageFull
from domaeka.interfaces import (
    Approval,
    Destination,
    DeviceKey,
    MessageRefused,
    NotSent,
    Priority,
    RoomKey,
)
from domaeka.schema import DeliveryStatus, Message
from domaeka.store.bot_values import (
    MAX_BYTES,
    MAX_VALUES,
    added,
    check_key,
    check_number,
    check_page,
    check_value,
    share_fault,
)
from domaeka.wire import Media

#: Most messages that are remembered.
MAX_SENT: Final = 10_000


class MemoryValues:
    """Values of bots in a dict (L{domaeka.interfaces.KeptValues}), with the store's bounds."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[str, bytes], bytes]] = {}  # by bot
        self._bytes: dict[str, int] = {}  # of all values of a bot, with their keys

    def get(self, bot: str, scope: str, key: str) -> "Deferred[bytes | None]":
        """The value of a key."""
        return execute(lambda: self._of(bot).get((scope, check_key(key))))

    def set(self, bot: str, scope: str, key: str, value: bytes) -> "Deferred[None]":
        """Store a value."""

        def put() -> None:
            check_value(value)
            self._put(bot, (scope, check_key(key)), value)

        return execute(put)

    def delete(self, bot: str, scope: str, key: str) -> "Deferred[bool]":
        """Remove a key."""

        def remove() -> bool:
            name = check_key(key)
            value = self._of(bot).pop((scope, name), None)
            if value is None:
                return False
            self._bytes[bot] -= len(name) + len(value)
            return True

        return execute(remove)

    def incr(self, bot: str, scope: str, key: str, by: int | float = 1) -> "Deferred[int | float]":
        """Add to a number."""

        def add() -> int | float:
            check_number(by)
            place = scope, check_key(key)
            number = added(self._of(bot).get(place), by)
            self._put(bot, place, msgspec.json.encode(number))
            return number

        return execute(add)

    def keys(
        self, bot: str, scope: str, prefix: str = "", after: str | None = None, limit: int = 100
    ) -> "Deferred[list[str]]":
        """The keys of a scope."""

        def found() -> list[str]:
            begin, last = check_page(prefix, after, limit)
            names = (name for place, name in self._of(bot) if place == scope)
            return [
                name.decode()
                for name in sorted(name for name in names if name.startswith(begin) and name > last)
            ][:limit]

        return execute(found)

    def _of(self, bot: str) -> dict[tuple[str, bytes], bytes]:
        return self._values.setdefault(bot, {})

    def _put(self, bot: str, place: tuple[str, bytes], value: bytes) -> None:
        values = self._of(bot)
        kept = self._bytes.get(bot, 0)
        before = values.get(place)
        scope = place[0]
        more = len(value) - len(before) if before is not None else len(place[1]) + len(value)
        if before is None and len(values) >= MAX_VALUES:
            raise StorageFull(f"a bot has {MAX_VALUES} values at most")
        if more > 0 and kept + more > MAX_BYTES:
            raise StorageFull(f"the values of a bot have {MAX_BYTES} bytes at most")
        if scope and (2 * len(values) + 2 > MAX_VALUES or 2 * (kept + more) > MAX_BYTES):
            held = [len(key[1]) + len(one) for key, one in values.items() if key[0] == scope]
            number = int(before is None)
            fault = share_fault(len(held), sum(held), len(values), kept, number, more)
            if fault is not None:
                raise fault
        values[place] = value
        self._bytes[bot] = kept + more


class MemoryClaims:
    """Claims on the runs of schedules, in a set (L{domaeka.interfaces.Claims})."""

    def __init__(self) -> None:
        self.made: set[tuple[str, float]] = set()

    def claim(self, schedule: str, due: float) -> "Deferred[bool]":
        """Claim a run."""
        is_new = (schedule, due) not in self.made
        self.made.add((schedule, due))
        return succeed(is_new)

    def last(self, schedule: str, until: float) -> "Deferred[float | None]":
        """The last run that was claimed."""
        found = (due for name, due in self.made if name == schedule and due <= until)
        return succeed(max(found, default=None))


class MemoryRoom(NamedTuple):
    """A room that a phone has heard."""

    key: RoomKey
    name: str
    device: DeviceKey | None
    approval: Approval = Approval.APPROVED
    last_heard: float | None = 0.0
    before: DeviceKey | None = None
    decided: bool = False


class SentUnasked(NamedTuple):
    """A message that a bot has sent unasked."""

    destination: Destination
    contents: tuple[str | Media, ...]
    ttl: float | None


class MemoryRooms:
    """
    Rooms, and the phones that take all that is sent to them.

    @ivar rooms: the rooms that were heard; change it at will.
    @ivar sent: the last messages that were sent, L{MAX_SENT} at most.
    @ivar refuse: the reason to refuse all that is sent.
    """

    def __init__(
        self, show: Callable[[Destination, str | Media], object] = lambda destination, content: None
    ) -> None:
        """@param show: called with each text, and each frame of files, that is sent."""
        self.rooms: list[MemoryRoom] = []
        self.sent: deque[SentUnasked] = deque(maxlen=MAX_SENT)
        self._number = 0
        self.refuse: NotSent | None = None
        self._show = show

    def hear(
        self, channel_id: str, name: str, bot_name: str = "봇", device_id: str = "d1", **more: Any
    ) -> MemoryRoom:
        """A phone has heard a room."""
        device = DeviceKey(bot_name, device_id)
        room = MemoryRoom(RoomKey(bot_name, channel_id), name, device, **more)
        self.rooms.append(room)
        return room

    # domaeka.interfaces.RoomBook

    def bot_names(self) -> Sequence[str]:
        """The bot names of all phones."""
        return list(dict.fromkeys(room.key.bot_name for room in self.rooms))

    def record(self, key: RoomKey) -> MemoryRoom | None:
        """A room."""
        return next((room for room in self.rooms if room.key == key), None)

    def named(self, bot_name: str, name: str) -> Sequence[MemoryRoom]:
        """The rooms of a bot with a title, the one heard last first."""
        found = (room for room in self.rooms if (room.key.bot_name, room.name) == (bot_name, name))
        return sorted(found, key=lambda room: -(room.last_heard or 0.0))

    # Of domaeka.interfaces.Directory

    def send(
        self,
        destination: Destination,
        contents: Sequence[str | Media],
        ttl: float | None,
        priority: Priority,
    ) -> str:
        """A phone takes a message."""
        if self.refuse is not None:
            raise MessageRefused(self.refuse, "it is refused")
        self.sent.append(SentUnasked(destination, tuple(contents), ttl))
        for content in contents:
            self._show(destination, content)
        self._number += 1
        return str(self._number)

    def message(self, message_id: str) -> Message | None:
        """A message, which was sent."""
        behind = self._number - int(message_id)
        if not 0 <= behind < len(self.sent):
            return None
        to = self.sent[-1 - behind].destination
        return Message(
            message_id,
            DeliveryStatus.SENT,
            to.bot_name,
            to.device_id or "",
            to.room or "",
            to.channel_id,
            "",
            None,
        )

    @property
    def texts(self) -> list[tuple[str | None, object]]:
        """The channel id, or else the title, and the content of all that was sent."""
        return [
            (to.channel_id or to.room, content)
            for to, contents, _ in self.sent
            for content in contents
        ]


class MemoryHost:
    """
    What a dispatcher needs for its bots to send, store and keep schedules, in memory.

    @ivar host: what is attached.
    @ivar rooms: the rooms, and what was sent to them.
    @ivar values: what bots have stored; C{claims}: the runs of schedules.
    """

    def __init__(
        self,
        dispatcher: BotDispatcher,
        reactor: Any,
        loop: Coroutines,
        wall: Callable[[], float],
        *,
        timeout: float = 60.0,
        rooms: MemoryRooms | None = None,
        values: MemoryValues | None = None,
        claims: MemoryClaims | None = None,
    ) -> None:
        """
        Attach all that to a dispatcher, which is not started yet.

        @param wall: the wall clock, in seconds since 1970.
        @param values: of a dispatcher before; likewise C{claims}: as over a restart.
        """
        self.rooms = rooms or MemoryRooms()
        self.values = values or MemoryValues()
        self.claims = claims or MemoryClaims()
        schedules = Schedules(loop, reactor, self.claims, wall, lambda: timeout)
        directory: Any = self.rooms  # as far as bots need one
        self.host = BotHost(
            dispatcher, reactor, directory, self.rooms, self.values, schedules, True
        )
        dispatcher.attach(self.host)
