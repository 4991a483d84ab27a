"""
In which rooms bots answer, and on which phone each was last heard.

Everything but an operator's decision is answered from memory.  Before the store has said what it
knows, nothing is answered.
"""

from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Boolean, Column, Row, Table
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from domaeka.errors import StoreError
from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.messages import is_name
from domaeka.store.approvals import ApprovalTable
from domaeka.store.columns import (
    KEY,
    METADATA,
    NAME,
    TABLE_OPTIONS,
    TIME,
    TITLE,
    TITLE_CHARS,
    key_hash,
    milliseconds,
    storable,
)
from domaeka.store.database import Database
from domaeka.store.threads import Scheduler

#: Most rooms known; some 1 KB of memory each.
MAX_ROOMS: Final = 100_000
#: Most rooms of one bot, so that no phone takes the place of all others.
MAX_BOT_ROOMS: Final = 10_000
#: How often it is written that a room was heard, and where, at most, in seconds.
HEARD_SECONDS: Final = 60.0
#: How long a change waits for others before it is written, in seconds.
WRITE_SECONDS: Final = 5.0

ROOMS: Final = Table(
    "rooms",
    METADATA,
    Column("room_key", KEY, primary_key=True),
    Column("bot_name", NAME, nullable=False),
    Column("room_id", TITLE, nullable=False),
    Column("name", TITLE, nullable=False),
    Column("is_group", Boolean, nullable=False),
    Column("approval", NAME, nullable=False),
    Column("device_id", NAME),
    Column("last_heard", TIME),
    **TABLE_OPTIONS,
)


class RoomRecord(msgspec.Struct):
    """
    What is known of a room.  Only to be read, and soon: it goes on changing.

    @ivar device: the phone on which it was last heard; L{None}: entered by an operator, not
        heard yet.
    @ivar last_heard: seconds since 1970, or L{None}.
    @ivar written: when C{last_heard} was last given to the store.
    """

    key: RoomKey
    name: str
    is_group: bool
    approval: Approval
    device: DeviceKey | None = None
    last_heard: float | None = None
    written: float = 0.0


class StoredRooms:
    """The rooms (L{domaeka.interfaces.Rooms})."""

    _log = Logger()

    def __init__(
        self, database: Database, reactor: Scheduler, mode: Literal["auto", "manual"] = "auto"
    ) -> None:
        """
        @param database: not started yet.
        @param mode: C{rooms.approval}.
        """
        #: C{rooms.approval}; may be changed at any time.
        self.mode = mode
        self._seconds = reactor.seconds
        self._database = database
        self._said_full = False
        self._table = ApprovalTable[RoomKey, RoomRecord](
            database,
            reactor,
            ROOMS,
            limit=MAX_ROOMS,
            newest=ROOMS.c.last_heard,
            delay=WRITE_SECONDS,
            from_row=_from_row,
            to_row=_to_row,
            fixed=frozenset({"bot_name", "room_id"}),
            loaded=lambda: None,
            overruled=lambda key, approval: None,
        )
        self._rooms = self._table.records

    # domaeka.interfaces.Rooms

    def enter(self, key: RoomKey, device: DeviceKey, name: str, is_group: bool) -> bool:
        """Chat was heard in a room.  @return: whether it is to be answered."""
        room = self._rooms.get(key)
        if room is None:
            return self._enter_new(key, device, name, is_group)
        now = self._seconds()
        room.device = device
        room.last_heard = now
        if (
            room.name != name
            or room.is_group is not is_group
            or abs(now - room.written) >= HEARD_SECONDS
        ):
            room.name = name
            room.is_group = is_group
            room.written = now
            self._table.changed(key)
        if room.approval is Approval.APPROVED:
            return True
        if room.approval is Approval.PENDING and self.mode == "auto":
            self._table.put(msgspec.structs.replace(room, approval=Approval.APPROVED))
            self._table.changed(key, promoted=True)
            return True
        return False

    def _enter_new(self, key: RoomKey, device: DeviceKey, name: str, is_group: bool) -> bool:
        if not self._table.is_loaded or not self._database.answers:
            return False  # somebody may have refused it; it is entered when it is heard next
        answered = self.mode == "auto"
        if not self._has_room(key):
            if not self._said_full:
                self._said_full = True
                self._log.warn(
                    "no room for new rooms: {rooms} known, {count} of the bot {bot}",
                    rooms=len(self._rooms),
                    count=self._table.of_bot.get(key.bot_name, 0),
                    bot=key.bot_name,
                )
            return answered
        now = self._seconds()
        approval = Approval.APPROVED if answered else Approval.PENDING
        self._table.put(RoomRecord(key, name, is_group, approval, device, now, now))
        self._table.changed(key)
        return answered

    def set_approval(self, key: RoomKey, approval: Approval) -> "Deferred[None]":
        """
        An operator's decision; a room that has not been heard yet is entered.

        @return: fires once it is stored and in force; L{StoreError} if it is not.
        """
        if not self._table.is_loaded:
            return fail(StoreError("the store has not said yet which rooms there are"))
        if not (is_name(key.bot_name) and 0 < len(key.room_id) <= TITLE_CHARS):
            return fail(StoreError("no room can have this name"))
        if key not in self._rooms and not self._has_room(key):
            return fail(StoreError("there is no room for more rooms"))
        return self._table.decide(RoomRecord(key, "", False, approval), approval)

    def _has_room(self, key: RoomKey) -> bool:
        of_bot = self._table.of_bot.get(key.bot_name, 0)
        return len(self._rooms) < MAX_ROOMS and of_bot < MAX_BOT_ROOMS

    # For operators

    def record(self, key: RoomKey) -> RoomRecord | None:
        """What is known of a room."""
        return self._rooms.get(key)

    def named(self, bot_name: str, name: str) -> list[RoomRecord]:
        """The rooms of a bot that bear C{name}, the one heard last first."""
        found = []
        for room in self._table.since(RoomKey(bot_name, "")):
            if room.key.bot_name != bot_name:
                break
            if room.name == name:
                found.append(room)
        return sorted(found, key=lambda room: -(room.last_heard or 0.0))

    def page(
        self, after: RoomKey | None, limit: int, approval: Approval | None = None
    ) -> list[RoomRecord]:
        """
        Rooms in the order of their keys.

        @param after: the last one of the page before.
        @param limit: most rooms returned.
        @param approval: only those in this state.
        """
        return self._table.page(after, limit, approval)

    def stop(self) -> "Deferred[None]":
        """Write what is not written yet.  @return: fires in any case, in bounded time."""
        return self._table.stop()


def _from_row(row: Row[Any]) -> RoomRecord:
    heard = None if row.last_heard is None else row.last_heard / 1000
    return RoomRecord(
        RoomKey(row.bot_name, row.room_id),
        row.name,
        row.is_group,
        Approval(row.approval),
        None if row.device_id is None else DeviceKey(row.bot_name, row.device_id),
        heard,
        heard or 0.0,
    )


def _to_row(room: RoomRecord) -> dict[str, object]:
    return {
        "room_key": key_hash(*room.key),
        "bot_name": room.key.bot_name,
        "room_id": storable(room.key.room_id, TITLE_CHARS),
        "name": storable(room.name, TITLE_CHARS),
        "is_group": room.is_group,
        "approval": room.approval.value,
        "device_id": None if room.device is None else room.device.device_id,
        "last_heard": None if room.last_heard is None else milliseconds(room.last_heard),
    }
