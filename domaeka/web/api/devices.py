"""
Devices and rooms: what is known of them, and whether they are served.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred

from domaeka.errors import StoreError
from domaeka.gateway.registry import Registry
from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.messages import MAX_TITLE_CHARS, is_name
from domaeka.store.devices import DeviceRecord, StoredDevices
from domaeka.store.rooms import RoomRecord, StoredRooms
from domaeka.web.api.connections import Queue
from domaeka.web.api.endpoints import (
    PAGE,
    After,
    Ask,
    Endpoint,
    Input,
    Limit,
    Next,
    Time,
    bad_request,
    not_found,
    time_text,
)
from domaeka.web.api.paging import cursor, read_cursor
from domaeka.web.routes import Refusal

#: What the store says no to, or cannot do now.
STORE_REFUSALS: Final[dict[int, str]] = {
    HTTPStatus.SERVICE_UNAVAILABLE: "the store cannot do it: see the message"
}


class Device(msgspec.Struct):
    """A device that is known."""

    bot: str
    device: str
    status: Approval
    connected: bool
    version: str
    client_type: str
    device_ip: Annotated[str, Meta(description="what the phone says of itself")]
    device_info: str
    address: Annotated[str, Meta(description="from where it last connected")]
    first_seen: Annotated[Time | None, Meta(description="null: entered by an operator, not seen")]
    last_seen: Time | None
    queue: Queue


class Devices(msgspec.Struct):
    """A page of devices, in the order of their bots and names."""

    devices: list[Device]
    next: Next


class Room(msgspec.Struct):
    """A room that is known."""

    bot: str
    room: Annotated[str, Meta(description="its channel id, or its name where that is not known")]
    name: str
    is_group: bool
    status: Approval
    device: Annotated[str | None, Meta(description="the phone on which it was last heard")]
    last_heard: Annotated[Time | None, Meta(description="null: entered by an operator, not heard")]


class Rooms(msgspec.Struct):
    """A page of rooms, in the order of their bots and ids."""

    rooms: list[Room]
    next: Next


class RecordsQuery(Input, frozen=True):
    """Which devices, or rooms."""

    bot: str | None = None
    status: Approval | None = None
    limit: Limit = PAGE
    after: After | None = None


class Decision(Input, frozen=True):
    """Only what is approved is served."""

    status: Approval


async def decided(deciding: "Deferred[Any]", so_far: str = "") -> None:
    """
    Wait for the store, and say what it refuses.

    @param so_far: what holds in that case, for people.
    """
    try:
        await deciding
    except StoreError as error:
        text = f"{so_far}: {error}" if so_far else str(error)
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "STORE", text) from None


class DevicePages:
    """What is asked of devices and rooms."""

    def __init__(
        self,
        registry: Registry,
        devices: StoredDevices,
        rooms: StoredRooms,
        room_decided: Callable[[RoomKey, Approval], None],
    ) -> None:
        """@param room_decided: told of each decision on a room."""
        self._registry = registry
        self._devices = devices
        self._rooms = rooms
        self._room_decided = room_decided

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What is to be served."""
        return (
            Endpoint(
                method="GET",
                path="/devices",
                serve=self.list_devices,
                subject="devices",
                summary="Devices that are known",
                query=RecordsQuery,
                answer=Devices,
            ),
            Endpoint(
                method="GET",
                path="/devices/{bot}/{device}",
                serve=self.one_device,
                subject="devices",
                summary="A device",
                answer=Device,
                refusals={HTTPStatus.NOT_FOUND: "it is not known"},
            ),
            Endpoint(
                method="PATCH",
                path="/devices/{bot}/{device}",
                serve=self.decide_device,
                subject="devices",
                summary="Decide on a device, at once; one that is not known is entered",
                body=Decision,
                answer=Device,
                refusals=STORE_REFUSALS,
            ),
            Endpoint(
                method="GET",
                path="/rooms",
                serve=self.list_rooms,
                subject="rooms",
                summary="Rooms that are known",
                query=RecordsQuery,
                answer=Rooms,
            ),
            Endpoint(
                method="GET",
                path="/rooms/{bot}/{room}",
                serve=self.one_room,
                subject="rooms",
                summary="A room",
                answer=Room,
                refusals={HTTPStatus.NOT_FOUND: "it is not known"},
            ),
            Endpoint(
                method="PATCH",
                path="/rooms/{bot}/{room}",
                serve=self.decide_room,
                subject="rooms",
                summary="Decide on a room, at once; one that is not known is entered",
                body=Decision,
                answer=Room,
                refusals=STORE_REFUSALS,
            ),
        )

    def list_devices(self, ask: Ask[RecordsQuery, None]) -> Devices:
        """A page of devices."""
        found, following = _page(self._devices, DeviceKey, ask.query)
        return Devices([self._describe_device(record) for record in found], following)

    def one_device(self, ask: Ask[Any, Any]) -> Device:
        """A device."""
        record = self._devices.record(_device_key(ask))
        if record is None:
            raise not_found("the device is not known")
        return self._describe_device(record)

    async def decide_device(self, ask: Ask[Any, Decision]) -> Device:
        """An operator decides on a device."""
        key = _device_key(ask)
        if not (is_name(key.bot_name) and is_name(key.device_id)):
            raise bad_request("no device can have this name")
        await decided(self._devices.set_approval(key, ask.body.status))
        return self.one_device(ask)

    def list_rooms(self, ask: Ask[RecordsQuery, None]) -> Rooms:
        """A page of rooms."""
        found, following = _page(self._rooms, RoomKey, ask.query)
        return Rooms([describe_room(record) for record in found], following)

    def one_room(self, ask: Ask[Any, Any]) -> Room:
        """A room."""
        record = self._rooms.record(_room_key(ask))
        if record is None:
            raise not_found("the room is not known")
        return describe_room(record)

    async def decide_room(self, ask: Ask[Any, Decision]) -> Room:
        """An operator decides on a room."""
        key = _room_key(ask)
        if not (is_name(key.bot_name) and is_name(key.room_id, MAX_TITLE_CHARS)):
            raise bad_request("no room can have this name")
        await decided(self._rooms.set_approval(key, ask.body.status))
        self._room_decided(key, ask.body.status)
        return self.one_room(ask)

    def _describe_device(self, record: DeviceRecord) -> Device:
        facts = record.facts
        here = self._registry.device(record.key)
        return Device(
            *record.key,
            record.approval,
            here is not None and here.session is not None,
            facts.version,
            facts.client_type,
            facts.device_ip,
            facts.device_info,
            facts.address,
            time_text(record.first_seen),
            time_text(record.last_seen),
            Queue(0, 0, 0)
            if here is None
            else Queue(here.outbox.messages, here.outbox.bytes, here.pending),
        )


def describe_room(record: RoomRecord) -> Room:
    """A room."""
    return Room(
        *record.key,
        record.name,
        record.is_group,
        record.approval,
        None if record.device is None else record.device.device_id,
        time_text(record.last_heard),
    )


def _device_key(ask: Ask[Any, Any]) -> DeviceKey:
    return DeviceKey(ask.names["bot"], ask.names["device"])


def _room_key(ask: Ask[Any, Any]) -> RoomKey:
    return RoomKey(ask.names["bot"], ask.names["room"])


def _page(table: Any, kind: type[Any], query: RecordsQuery) -> tuple[list[Any], str | None]:
    """A page of devices or rooms, and where the next one begins."""
    after = read_cursor(query.after, tuple[str, str])
    # Keys are in the order of their bots: no name is empty.
    start = kind(*after) if after is not None else kind(query.bot, "") if query.bot else None
    found = table.page(start, query.limit + 1, query.status)
    if query.bot is not None:
        found = [record for record in found if record.key.bot_name == query.bot]
    shown = found[: query.limit]
    return shown, cursor(tuple(shown[-1].key)) if len(found) > query.limit else None
