"""Addressing: the phone that serves a room."""

from typing import Final, NamedTuple

from domaeka.interfaces import (
    Approval,
    Destination,
    DeviceKey,
    Devices,
    KnownRoom,
    MessageRefused,
    NotSent,
    RoomIndex,
    RoomKey,
)

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
        key = record.device
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
    if channel_id is None and record is not None and record.key.room_id != name:
        channel_id = record.key.room_id
    return Target(key, name, channel_id)


def _find_room(destination: Destination, rooms: RoomIndex) -> KnownRoom | None:
    """The record of the room; of several of one name the one heard last, on the phone if given."""
    bot_name, device_id, room, channel_id = destination
    if channel_id is not None:
        return rooms.record(RoomKey(bot_name, channel_id))
    if room is None:
        return None
    found = rooms.named(bot_name, room)
    for record in found:
        if device_id is None or record.device == (bot_name, device_id):
            return record
    return found[0] if found else rooms.record(RoomKey(bot_name, room))
