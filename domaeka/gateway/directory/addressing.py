"""Addressing: the phone that serves a room."""

from typing import Final, NamedTuple

from domaeka.interfaces import (
    REFUSED,
    Approval,
    Destination,
    DeviceKey,
    Devices,
    KnownRoom,
    MessageRefused,
    NotSent,
    RoomIndex,
    RoomKey,
    room_without_id,
)
from domaeka.wire import is_channel_id, title_id

#: Most rooms that are named where several have a title.
MAX_CANDIDATES: Final = 20
_APPROVED: Final = Approval.APPROVED


class Target(NamedTuple):
    """Target of a message: the phone, and the room by its name and, where known, its id."""

    key: DeviceKey
    room: str
    channel_id: str | None


def find_target(destination: Destination, devices: Devices, rooms: RoomIndex) -> Target:
    """
    The phone and the room of a message.

    @raise MessageRefused: there is none, or it is not served.
    """
    bot_name, device_id, room, channel_id = destination
    record = _find_room(destination, rooms)
    name = room or (record.name if record is not None else "")
    if device_id is not None:
        key = DeviceKey(bot_name, device_id)
    elif record is not None and record.device is not None:
        key = _phone_of(record, devices)
    else:
        raise MessageRefused(NotSent.NO_PHONE, "no phone has heard this room: name a device")
    approval = devices.approval(key)
    if approval is None:
        raise MessageRefused(NotSent.NO_PHONE, "the device is not known")
    if approval is not _APPROVED:
        raise MessageRefused(NotSent.NOT_APPROVED, f"the device is {approval}")
    if record is not None and record.approval is not _APPROVED:
        raise MessageRefused(NotSent.NOT_APPROVED, f"the room is {record.approval}")
    if not name:
        raise MessageRefused(NotSent.NO_ROOM, "the room's name is not known: give room, too")
    known = record.key.room_id if record is not None else channel_id
    return Target(key, name, known if known is not None and is_channel_id(known) else None)


def _phone_of(record: KnownRoom, devices: Devices) -> DeviceKey:
    """
    The phone on which a room was last heard, of those that are approved.

    @raise MessageRefused: no phone knows the room's id, and several have heard one of this title,
        which may be as many rooms.
    """
    assert record.device is not None
    approved = [
        phone
        for phone in (record.device, record.before)
        if phone is not None and devices.approval(phone) is _APPROVED
    ]
    if len(approved) > 1 and not is_channel_id(record.key.room_id):
        text = "several phones have heard this title, and none knows the room's id: name a device"
        raise MessageRefused(NotSent.AMBIGUOUS, text, [record])
    return approved[0] if approved else record.device


def _find_room(destination: Destination, rooms: RoomIndex) -> KnownRoom | None:
    """
    The record of the room.

    Strangers choose titles, so a title never decides between rooms: it is enough where one room
    of the bot has it, those that an operator has refused apart.  It never passes for a channel id:
    where it is the id of another room, either may be meant.  A room without an id has nothing but
    its title, so a phone that alone has heard it there decides.
    """
    bot_name, device_id, room, channel_id = destination
    if channel_id is not None:
        return rooms.record(RoomKey(bot_name, channel_id))
    if room is None:
        return None
    named = rooms.named(bot_name, room)
    found = [record for record in named if record.approval not in REFUSED]
    if found and is_channel_id(room):
        by_id = rooms.record(RoomKey(bot_name, room))
        if by_id is not None and by_id not in found and by_id.approval not in REFUSED:
            found.append(by_id)
    if len(found) > 1:
        own = room_without_id(found, device_id)
        if own is not None:
            return own
        first = found[:MAX_CANDIDATES]
        ids = [one.key.room_id for one in first if is_channel_id(one.key.room_id)]  # no titles
        text = f"{len(found)} rooms have this title or id: give channel_id: {', '.join(ids)}"
        if len(ids) < len(first):
            text += "; or the device of a room without an id"
        raise MessageRefused(NotSent.AMBIGUOUS, text, first)
    for record in found or named:
        return record
    return rooms.record(RoomKey(bot_name, title_id(room)))
