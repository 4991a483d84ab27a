"""
The rows of the previous system, in the words of ours.

Names that its database took for equal, as C{Shop.i} and C{shop.i}, are two with us.  Rows that are
equal by our words become one: a refusal wins over an approval, and that over waiting.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from domaeka.interfaces import Approval, ChatLine, DeviceKey, RoomKey
from domaeka.store.columns import NAME_CHARS, TITLE_CHARS, key_hash, milliseconds, storable
from domaeka.store.imports.source import LINE_TIMES, Heard, Row
from domaeka.wire import is_name, title_id

#: Most examples of rows that were not taken, for each reason.
MAX_EXAMPLES: Final = 3
#: From this length on, in bytes, a text was cut by a column of the type C{TEXT}: it holds 65,535
#: bytes, and a character has up to four.
CUT_BYTES: Final = 65_532

#: Reasons for which a row is not taken.
BAD_NAME: Final = "a name that no bot, device or room can have"
BAD_STATUS: Final = "an unknown status"
NO_PLACE: Final = "no place for more"
NO_TEXT: Final = "without text"
NO_TIME: Final = "without time"
REFUSED: Final = "the store refuses it"
TOO_OLD: Final = "older than storage.chat_log_days"

#: By strength, the strongest last.
_STRENGTH: Final = {
    approval: strength
    for strength, approval in enumerate(
        (
            Approval.PENDING,
            Approval.APPROVED,
            Approval.DENIED,
            Approval.REVOKED,
            Approval.BLOCKED,
        )
    )
}
_STATUSES: Final = frozenset(approval.value for approval in Approval)
_LONG_AGO: Final = datetime(1, 1, 1, tzinfo=UTC)


class Refused(msgspec.Struct):
    """Rows that were not taken for one reason; the examples name them, and quote no chat."""

    count: int = 0
    examples: list[str] = []


class Part(msgspec.Struct):
    """
    The result for one table.

    C{read} is the sum of all other numbers.

    @ivar taken: rows of ours that were made of it; in a dry run, that would be.
    @ivar known: rows that the store had already, which stay as they are.
    @ivar merged: rows that said the same once more.
    @ivar refused: those that were not taken, by reason.
    """

    read: int = 0
    taken: int = 0
    known: int = 0
    merged: int = 0
    refused: dict[str, Refused] = {}

    def refuse(self, reason: str, example: str) -> None:
        """Count a row that is not taken."""
        entry = self.refused.setdefault(reason, Refused())
        entry.count += 1
        if len(entry.examples) < MAX_EXAMPLES:
            entry.examples.append(example)


class _Merged:
    """The rows of one device or room: the newest, the strongest decision, and the times."""

    def __init__(self, key: tuple[str, str], row: Row, approval: Approval) -> None:
        self.key = key
        self.row = row
        self.approval = approval
        self.first = row.get("created_at")
        self.last = _changed(row)

    def add(self, row: Row, approval: Approval) -> None:
        if _STRENGTH[approval] > _STRENGTH[self.approval]:
            self.approval = approval
        if (first := row.get("created_at")) is not None:
            self.first = first if self.first is None else min(self.first, first)
        last = _changed(row)
        if (last or _LONG_AGO) > (self.last or _LONG_AGO):
            self.row, self.last = row, last


def devices(rows: Iterable[Row], part: Part, limit: int) -> dict[str, dict[str, Any]]:
    """Rows of L{domaeka.store.devices.DEVICES}, by their keys; at most C{limit}."""
    merged: dict[str, _Merged] = {}
    for row in rows:
        key = DeviceKey(text(row["bot_name"]), text(row["device_id"]))
        good = is_name(key.bot_name) and is_name(key.device_id)
        _merge(merged, key, row, part, limit, good)
    return {row_key: _device(row_key, one) for row_key, one in merged.items()}


def _device(row_key: str, one: _Merged) -> dict[str, Any]:
    def name(column: str) -> str:
        return storable(text(one.row.get(column)), NAME_CHARS)

    first = one.first or one.last
    return {
        "device_key": row_key,
        "bot_name": one.key[0],
        "device_id": one.key[1],
        "approval": one.approval.value,
        "first_seen": _milliseconds(first),
        "last_seen": _milliseconds(one.last),
        "version": name("client_version"),
        "client_type": name("client_type"),
        "device_ip": name("ip_address"),
        "device_info": "",
        "address": "",
    }


def rooms(rows: Iterable[Row], part: Part, limit: int) -> dict[str, dict[str, Any]]:
    """Rows of L{domaeka.store.rooms.ROOMS}, by their keys, not heard yet; at most C{limit}."""
    merged: dict[str, _Merged] = {}
    for row in rows:
        bot_name = text(row["bot_name"])
        name = text(row["room_name"])
        key = RoomKey(
            bot_name, storable(room_id(text(row["room_id"]), bot_name, name), TITLE_CHARS)
        )
        _merge(merged, key, row, part, limit, is_name(bot_name) and bool(key.room_id))
    return {row_key: _room(row_key, one) for row_key, one in merged.items()}


def _room(row_key: str, one: _Merged) -> dict[str, Any]:
    device_id = text(one.row.get("device_id"))
    return {
        "room_key": row_key,
        "bot_name": one.key[0],
        "room_id": one.key[1],
        "name": storable(text(one.row["room_name"]), TITLE_CHARS),
        "is_group": False,
        "approval": one.approval.value,
        "device_id": device_id if is_name(device_id) else None,
        "last_heard": None,
    }


def hear(rooms: Mapping[str, dict[str, Any]], lines: Iterable[Heard]) -> None:
    """Enter into C{rooms} when each was last heard, and whether it is a group."""
    for line in lines:
        room = rooms.get(key_hash(line.bot_name, room_id(line.room_id, line.bot_name, "")))
        if room is not None:
            at = _milliseconds(line.at)
            room["last_heard"] = max(filter(None, (room["last_heard"], at)), default=None)
            room["is_group"] = room["is_group"] or line.is_group


def is_logged(row: Row) -> bool:
    """False if somebody asked the previous system not to log a room; it never obeyed."""
    try:
        settings = msgspec.json.decode(text(row.get("log_settings")))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return True
    return not isinstance(settings, dict) or settings.get("enabled") is not False


def line(row: Row) -> ChatLine | str:
    """A line of the chat log, or the reason why it is not taken."""
    message = row["message"]
    if message is None:
        return NO_TEXT
    time = next((row[name] for name in LINE_TIMES if row.get(name) is not None), None)
    if time is None:
        return NO_TIME
    bot_name = text(row.get("bot_name"))
    room_name = text(row.get("room_name"))
    channel = text(row["channel_id"] if "channel_id" in row else row.get("room_id"))
    return ChatLine(
        time.timestamp(),
        "out" if row.get("is_bot") or row.get("is_our_bot_response") else "in",
        bot_name,
        "",
        room_id(channel, bot_name, room_name),
        room_name,
        text(row.get("sender")),
        text(row.get("user_hash")) or None,
        text(row.get("log_id")) or None,
        text(message),
    )


def room_id(channel: str, bot_name: str, room_name: str) -> str:
    """
    The id of a room.

    Older rows have the bot's name behind it: C{123_Shop} of the bot C{Shop} is C{123}.  A room
    without an id is known by its name.  Source: docs/protocol.md, "Chat".
    """
    first, _, rest = channel.partition("_")
    return (first if rest == bot_name else channel) or title_id(room_name)


def text(value: object) -> str:
    """A column as text; empty if there is nothing in it."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _merge(
    merged: dict[str, _Merged],
    key: tuple[str, str],
    row: Row,
    part: Part,
    limit: int,
    good: bool,
) -> None:
    part.read += 1
    shown = " ".join(key)
    row_key = key_hash(*key)
    status = text(row["status"])
    if not good:
        part.refuse(BAD_NAME, shown)
    elif status not in _STATUSES:
        part.refuse(BAD_STATUS, shown)
    elif row_key in merged:
        part.merged += 1
        merged[row_key].add(row, Approval(status))
    elif len(merged) >= limit:
        part.refuse(NO_PLACE, shown)
    else:
        merged[row_key] = _Merged(key, row, Approval(status))


def _changed(row: Row) -> datetime | None:
    found: Iterator[Any] = (row.get(name) for name in ("updated_at", "created_at"))
    return next((time for time in found if time is not None), None)


def _milliseconds(time: datetime | None) -> int | None:
    return None if time is None else milliseconds(time.timestamp())
