"""
The rooms in which bots answer, and the phone on which each was last heard.

All but an operator's decision is answered from memory.  Before the store has been read, no chat is
answered.
"""

from collections.abc import Iterator
from itertools import takewhile
from typing import Any, Final

import msgspec
from sqlalchemy import Boolean, Column, Row
from twisted.logger import Logger

from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.policies.holdings import Holdings
from domaeka.pools import Pool
from domaeka.store.approvals import ApprovalTable
from domaeka.store.columns import (
    KEY,
    NAME,
    TIME,
    TITLE,
    TITLE_CHARS,
    key_hash,
    milliseconds,
    seconds_in,
    storable,
    table,
    text_in,
)
from domaeka.wire import is_name

#: Most rooms known; some 1 KB of memory each.
MAX_ROOMS: Final = 100_000
#: Most rooms of one bot, so that no phone takes the place of all others.
MAX_BOT_ROOMS: Final = 10_000
#: Shortest interval at which a room's C{device} and C{last_heard} are written, in seconds.
HEARD_SECONDS: Final = 60.0
#: Time that a change waits for others before it is written, in seconds.
WRITE_SECONDS: Final = 5.0

ROOMS: Final = table(
    "rooms",
    Column("room_key", KEY, primary_key=True),
    Column("bot_name", NAME, nullable=False),
    Column("room_id", TITLE, nullable=False),
    Column("name", TITLE, nullable=False),
    Column("is_group", Boolean, nullable=False),
    Column("approval", NAME, nullable=False),
    Column("device_id", NAME),
    Column("last_heard", TIME),
    Column("decided", Boolean, nullable=False),
)


class RoomRecord(msgspec.Struct):
    """
    A room that is known.  Only to be read, and soon: it goes on changing.

    @ivar device: the phone on which it was last heard; L{None}: entered by an operator, not
        heard yet.
    @ivar before: another phone on which it was heard before that.  Not kept over a restart, as is
        C{entered_by}: the phone on which it was heard first.
    @ivar decided: true if an operator has decided on it.
    @ivar last_heard: seconds since 1970, or L{None}.
    @ivar written: when C{last_heard} was last given to the store.
    @ivar judged_at: when C{device} last heard the room, or reported, in seconds since 1970, that a
        message was delivered here, or could not be: C{can_answer}.  Not kept over a restart.
    """

    key: RoomKey
    name: str
    is_group: bool
    approval: Approval
    device: DeviceKey | None = None
    last_heard: float | None = None
    written: float = 0.0
    judged_at: float = 0.0
    can_answer: bool = False
    decided: bool = False
    before: DeviceKey | None = None
    entered_by: DeviceKey | None = None

    def is_answerable(self, app_started_at: float | None) -> bool | None:
        """
        True if the app of C{device} can answer here, false if not.

        @param app_started_at: in seconds since 1970; L{None}: not known.
        @return: L{None}: not known.
        """
        if app_started_at is None:
            return None
        if self.judged_at >= app_started_at:
            return self.can_answer
        return True if (self.last_heard or 0.0) >= app_started_at else None


class StoredRooms(ApprovalTable[RoomKey, RoomRecord]):
    """The rooms (L{domaeka.interfaces.Rooms})."""

    _log = Logger()

    _table = ROOMS
    _limit = MAX_ROOMS
    _newest = ROOMS.c.last_heard
    _delay = WRITE_SECONDS
    _fixed = frozenset({"bot_name", "room_id"})

    def __init__(self, *args: Any, **named: Any) -> None:
        """See L{ApprovalTable}."""
        self._titled: dict[str, dict[RoomKey, None]] = {}  # the rooms that bear each title
        #: Those that may give way: by their bots, and of each bot by the phones that entered them.
        self._bots = Holdings[str, RoomKey]()
        self._phones: dict[str, Holdings[DeviceKey | None, RoomKey]] = {}
        super().__init__(*args, **named)

    # domaeka.interfaces.Rooms

    def enter(self, key: RoomKey, device: DeviceKey, name: str, is_group: bool) -> bool:
        """Chat was heard in a room.  @return: True if it is to be answered."""
        room = self._records.get(key)
        if room is None:
            return self._enter_new(key, device, name, is_group)
        now = self._wall()
        if room.device is not device:
            if room.device != device:
                room.before = room.device
            room.device = device
        room.last_heard = room.judged_at = now
        room.can_answer = True
        if (
            room.name != name
            or room.is_group is not is_group
            or abs(now - room.written) >= HEARD_SECONDS
        ):
            if room.name != name:
                self._lose_title(room)
                room.name = name
                self._titled.setdefault(name, {})[key] = None
            room.is_group = is_group
            room.written = now
            self._note_holder(room)
            self._heard_of(key)
        if room.approval is Approval.APPROVED:
            return True
        if room.approval is Approval.PENDING and self.mode != "manual":
            self._put(msgspec.structs.replace(room, approval=Approval.APPROVED))
            self._heard_of(key, promoted=True)
            return True
        return False

    def reported(self, key: RoomKey, device: DeviceKey, ok: bool) -> None:
        """The chat app of C{device} took a message for a room, or cannot answer there."""
        room = self._records.get(key)
        if room is not None and room.device == device:
            room.judged_at = self._wall()
            room.can_answer = ok

    def _enter_new(self, key: RoomKey, device: DeviceKey, name: str, is_group: bool) -> bool:
        if not self._is_loaded or self._is_damaged(key):
            return False  # an operator may have refused it
        answered = self.mode != "manual"
        approval = Approval.APPROVED if answered else Approval.PENDING
        if not self._make_room(key, approval):
            if self._full_is_news():
                self._log.warn(
                    "no room for new rooms: {rooms} known, {count} of the bot {bot}",
                    rooms=len(self._records),
                    count=self._of_bot.get(key.bot_name, 0),
                    bot=key.bot_name,
                )
            return answered
        now = self._wall()
        new = RoomRecord(key, name, is_group, approval, device, now, now, entered_by=device)
        self._put(new)
        self._heard_of(key)
        return answered

    def _make_room(self, key: RoomKey, approval: Approval) -> bool:
        """
        Likewise; of the phone that has entered the most, the room that was heard longest ago goes:
        of the same bot if that has as many as a bot may have, else of the bot that has the most.
        """
        while not self._has_room(key):
            of_bot = self._of_bot.get(key.bot_name, 0) >= MAX_BOT_ROOMS
            one = key if of_bot else self._bots.first()
            bot_name = None if one is None else one.bot_name
            phones = None if bot_name is None else self._phones.get(bot_name)
            first = None if phones is None else phones.first()
            if first is None:
                return False
            holder = self._records[first].entered_by
            self._gave_way(Pool.ROOMS, bot_name if holder is None else holder)
            self._let_go(first)
        return True

    def _objection(self, key: RoomKey, approval: Approval) -> str | None:
        if not (is_name(key.bot_name) and 0 < len(key.room_id) <= TITLE_CHARS):
            return "no room can have this name"
        if key not in self._records and not self._has_room(key):
            of_bot = self._of_bot.get(key.bot_name, 0) >= MAX_BOT_ROOMS
            if key.bot_name not in self._phones if of_bot else not self._bots:
                return "there is no room for more rooms"
        return None

    def _unheard(self, key: RoomKey, approval: Approval) -> RoomRecord:
        return RoomRecord(key, "", False, approval)

    def forget_device(self, device: DeviceKey) -> None:
        """Remove C{device}, which was forgotten, from the rooms that were last heard on it."""
        for room in self._rooms_of(device.bot_name):
            if room.before == device:
                room.before = None
            if room.device == device:
                room.device, room.before = room.before, None
                self._heard_of(room.key)

    def _put(self, record: RoomRecord) -> None:
        before = self._records.get(record.key)
        if before is not None:
            self._lose_title(before)
        super()._put(record)
        self._titled.setdefault(record.name, {})[record.key] = None
        if self._is_loaded:
            self._note_holder(record)

    def _loaded(self) -> None:
        for room in sorted(self._records.values(), key=lambda room: room.last_heard or 0.0):
            self._note_holder(room)

    def _note_holder(self, room: RoomRecord) -> None:
        """Note if a room may give way to others."""
        key = room.key
        if self._is_settled(room):
            self._keep(key)
        else:
            self._bots.put(key.bot_name, key)
            self._phones.setdefault(key.bot_name, Holdings()).put(room.entered_by, key)

    def _keep(self, key: RoomKey) -> None:
        """Have a room give way to none, any more."""
        phones = self._phones.get(key.bot_name)
        if phones is not None:
            self._bots.remove(key)
            phones.remove(key)
            if not phones:
                del self._phones[key.bot_name]

    def _remove(self, key: RoomKey) -> RoomRecord:
        room = super()._remove(key)
        self._lose_title(room)
        self._keep(key)
        return room

    def _lose_title(self, room: RoomRecord) -> None:
        rooms = self._titled[room.name]
        del rooms[room.key]
        if not rooms:
            del self._titled[room.name]

    def _has_room(self, key: RoomKey) -> bool:
        of_bot = self._of_bot.get(key.bot_name, 0)
        return len(self._records) < MAX_ROOMS and of_bot < MAX_BOT_ROOMS

    # For operators

    def named(self, bot_name: str, name: str) -> list[RoomRecord]:
        """The rooms of a bot with this name, the one heard last first."""
        keys = (key for key in self._titled.get(name, ()) if key.bot_name == bot_name)
        found = (self._records[key] for key in keys)
        return sorted(found, key=lambda room: -(room.last_heard or 0.0))

    def bot_names(self) -> list[str]:
        """The bot names of all phones that have heard rooms."""
        return list(self._of_bot)

    def _rooms_of(self, bot_name: str) -> Iterator[RoomRecord]:
        rooms = self._since(RoomKey(bot_name, ""))
        return takewhile(lambda room: room.key.bot_name == bot_name, rooms)

    def _from_row(self, row: Row[Any]) -> RoomRecord:
        heard = seconds_in(row.last_heard)
        bot_name = text_in(row.bot_name)
        phone = None if row.device_id is None else DeviceKey(bot_name, text_in(row.device_id))
        return RoomRecord(
            RoomKey(bot_name, text_in(row.room_id)),
            text_in(row.name),
            row.is_group,
            Approval(row.approval),
            phone,
            heard,
            heard or 0.0,
            decided=bool(row.decided),
            entered_by=phone,
        )

    def _to_row(self, room: RoomRecord) -> dict[str, object]:
        return {
            "room_key": key_hash(*room.key),
            "bot_name": room.key.bot_name,
            "room_id": storable(room.key.room_id, TITLE_CHARS),
            "name": storable(room.name, TITLE_CHARS),
            "is_group": room.is_group,
            "approval": room.approval.value,
            "device_id": None if room.device is None else room.device.device_id,
            "last_heard": None if room.last_heard is None else milliseconds(room.last_heard),
            "decided": room.decided,
        }
