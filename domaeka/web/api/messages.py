"""
Messages to rooms, sent from outside, and what has become of them.
"""

from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from domaeka.bots.media import (
    MAX_ADDRESS_CHARS,
    MAX_MEDIA_BYTES,
    MAX_MEDIA_ITEMS,
    MAX_WAIT_MS,
    is_path,
    prepare,
)
from domaeka.gateway.registry import Registry
from domaeka.gateway.sent import SentMessage, SentMessages
from domaeka.interfaces import Approval, DeviceKey, Priority, RoomKey
from domaeka.messages import (
    MAX_NAME_CHARS,
    MAX_TITLE_CHARS,
    Media,
    MediaType,
    Reply,
    media_address,
    timestamp_text,
)
from domaeka.policies.outbox import Fate
from domaeka.store.rooms import RoomRecord, StoredRooms
from domaeka.web.api.endpoints import Ask, Endpoint, Input, Time, bad_request, not_found
from domaeka.web.routes import Refusal

_SUBJECT: Final = "messages"
_PRIORITIES: Final = {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}

_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
_Address: TypeAlias = Annotated[
    str,
    Meta(
        max_length=MAX_ADDRESS_CHARS,
        description="begins with `http://` or `https://`; the phone fetches it",
    ),
]
_Room: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_TITLE_CHARS,
        description="its name; of several of one name, without `channel_id`, the one heard last",
    ),
]
# Python's C{$} also stands before a newline at the end.
_ChannelId: TypeAlias = Annotated[
    str, Meta(pattern=rf"^[0-9]{{1,{MAX_NAME_CHARS}}}(?!\n)$", description="digits")
]
_Format: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]{1,16}(?!\n)$",
        description="of `media`: `jpg`, `png` and so on; left out: told by the file",
    ),
]
_WaitTime: TypeAlias = Annotated[
    int,
    Meta(
        ge=1,
        le=MAX_WAIT_MS,
        description="how long the phone stays in the chat app to send `media`, in milliseconds; "
        "it hears nothing meanwhile",
    ),
]
_Priority: TypeAlias = Annotated[
    Literal["high", "normal", "low"],
    Meta(description="`high`: like answers to commands; `low`: bulk, the first to give way"),
]
_TimeToLive: TypeAlias = Annotated[
    float,
    Meta(
        gt=0,
        le=31_536_000,
        description="how long it may wait for the phone, in seconds; left out: `queue.message_ttl`",
    ),
]


class MediaItem(Input, frozen=True):
    """A file: its bytes, or where it is; one of the two."""

    base64: Annotated[bytes | None, Meta(description="the standard alphabet, padded")] = None
    url: _Address | None = None


_Text: TypeAlias = Annotated[
    str, Meta(min_length=1, description="at most `server.max_text_chars` characters")
]
_Media: TypeAlias = Annotated[
    list[MediaItem],
    Meta(
        min_length=1,
        max_length=MAX_MEDIA_ITEMS,
        description=f"at most {MAX_MEDIA_BYTES} bytes in all",
    ),
]


class NewMessage(Input, frozen=True):
    """
    What is to be sent, and where: `room`, `channel_id` or both; `text` or `media`.

    Without `device`, the phone on which the room was last heard sends it.
    """

    bot: _Name
    device: _Name | None = None
    room: _Room | None = None
    channel_id: _ChannelId | None = None
    text: _Text | None = None
    media: _Media | None = None
    message_type: Annotated[MediaType, Meta(description="of `media`")] = "image"
    message_format: _Format | None = None
    media_wait_time: _WaitTime | None = None
    priority: _Priority = "normal"
    ttl: _TimeToLive | None = None


class Accepted(msgspec.Struct):
    """It was taken."""

    id: str


class Message(msgspec.Struct):
    """
    What has become of a message: `queued`, `sent` (handed to the phone's socket), `acknowledged`
    (by a client that does so), `expired` (its time ran out first) or `dropped` (it gave way to
    others).
    """

    id: str
    state: Fate
    bot: str
    device: str
    room: str
    channel_id: str | None
    accepted: Time


class _Target(msgspec.Struct, frozen=True):
    """Where a message goes."""

    key: DeviceKey
    room: str
    channel_id: str | None


class MessagePages:
    """What is asked of messages."""

    def __init__(self, registry: Registry, rooms: StoredRooms) -> None:
        self._registry = registry
        self._rooms = rooms
        parts = registry.parts
        self._sent = SentMessages(f"{parts.random.getrandbits(64):016x}")
        self._max_body_bytes = parts.settings.queue.max_bytes

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What is to be served."""
        return (
            Endpoint(
                method="POST",
                path="/messages",
                serve=self.send,
                subject=_SUBJECT,
                summary="Send a message to a room",
                body=NewMessage,
                answer=Accepted,
                status=HTTPStatus.ACCEPTED,
                max_body_bytes=self._max_body_bytes,
                refusals={
                    HTTPStatus.CONFLICT: "`NO_PHONE`: no phone is known for the room; "
                    "`NO_ROOM`: its name is not known, give `room`, too; "
                    "`NOT_APPROVED`: the phone, or the room, is known and not approved",
                    HTTPStatus.SERVICE_UNAVAILABLE: "`QUEUE_FULL`: there is no room for it to "
                    "wait; `SHUTTING_DOWN`",
                },
            ),
            Endpoint(
                method="GET",
                path="/messages/{id}",
                serve=self.fate,
                subject=_SUBJECT,
                summary="What has become of one of the last 10,000 messages",
                answer=Message,
                refusals={HTTPStatus.NOT_FOUND: "it is not known, or not any more"},
            ),
        )

    def send(self, ask: Ask[Any, NewMessage]) -> Accepted:
        """Have a message wait for its phone."""
        new = ask.body
        registry = self._registry
        contents = self._contents(new)
        if registry.draining:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "SHUTTING_DOWN", "the server takes no new work"
            )
        target = self._target(new)
        settings = registry.parts.settings.queue
        ttl = settings.message_ttl if new.ttl is None else new.ttl
        device = registry.reach(target.key)
        message = self._sent.enter(
            target.key, target.room, target.channel_id, len(contents), registry.parts.seconds()
        )
        for number, content in enumerate(contents):
            reply = Reply(target.room, target.channel_id, target.key.bot_name, content)
            device.send(reply, ttl, message.listener(number), _PRIORITIES[new.priority])
        if all(fate is Fate.DROPPED for fate in message.fates):
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "QUEUE_FULL", "there is no room for it to wait"
            )
        return Accepted(message.id)

    def fate(self, ask: Ask[Any, None]) -> Message:
        """What has become of a message."""
        message = self._sent.find(ask.names["id"])
        if message is None:
            raise not_found("no such message, or it was long ago")
        return _describe(message)

    # What is sent

    def _contents(self, new: NewMessage) -> list[str | Media]:
        """What goes to the phone, a frame each."""
        if (new.text is None) is (new.media is None):
            raise bad_request("text: it, or media, must be given; not both")
        if new.text is not None:
            longest = self._registry.parts.settings.server.max_text_chars
            if len(new.text) > longest:
                raise bad_request(f"text: at most {longest} characters")
            if new.media_wait_time is not None or new.message_format is not None:
                name = "message_format" if new.media_wait_time is None else "media_wait_time"
                raise bad_request(f"{name}: only with media")
            return [new.text]
        assert new.media is not None
        items = [_item(number, item) for number, item in enumerate(new.media)]
        try:
            return list(prepare(items, new.media_wait_time, new.message_type, new.message_format))
        except ValueError as error:
            raise bad_request(f"media: {error}") from None

    # Where it goes

    def _target(self, new: NewMessage) -> _Target:
        """The phone and the room."""
        if new.room is None and new.channel_id is None:
            raise bad_request("room: it, or channel_id, or both must be given")
        record = self._room(new)
        name = new.room or (record.name if record is not None else "")
        if new.device is not None:
            key = DeviceKey(new.bot, new.device)
        elif record is not None and record.device is not None:
            key = record.device
        else:
            raise _no_phone("no phone has heard this room: name a device")
        approval = self._registry.parts.devices.approval(key)
        if approval is None:
            raise _no_phone("the device is not known")
        if approval is not Approval.APPROVED:
            raise _not_approved(f"the device is {approval}")
        if record is not None and record.approval is not Approval.APPROVED:
            raise _not_approved(f"the room is {record.approval}")
        if not name:
            raise Refusal(
                HTTPStatus.CONFLICT, "NO_ROOM", "the room's name is not known: give room, too"
            )
        channel_id = new.channel_id
        if channel_id is None and record is not None and record.key.room_id != name:
            channel_id = record.key.room_id
        return _Target(key, name, channel_id)

    def _room(self, new: NewMessage) -> RoomRecord | None:
        """What is known of the room."""
        if new.channel_id is not None:
            return self._rooms.record(RoomKey(new.bot, new.channel_id))
        assert new.room is not None
        found = self._rooms.named(new.bot, new.room)
        for record in found:
            if new.device is None or record.device == (new.bot, new.device):
                return record
        return found[0] if found else self._rooms.record(RoomKey(new.bot, new.room))


def _item(number: int, item: MediaItem) -> bytes | str:
    """A file, checked: nothing in it may be taken for a path."""
    if (item.base64 is None) is (item.url is None):
        raise bad_request(f"media[{number}]: base64, or url, must be given; not both")
    if item.url is None:
        assert item.base64 is not None
        return item.base64
    try:
        address = media_address(item.url)
    except ValueError as error:
        raise bad_request(f"media[{number}].url: {error}") from None
    if is_path(address):  # with a space ahead
        raise bad_request(f"media[{number}].url: must begin with http:// or https://")
    return address


def _describe(message: SentMessage) -> Message:
    return Message(
        message.id,
        message.state,
        *message.key,
        message.room,
        message.channel_id,
        timestamp_text(message.made_at),
    )


def _no_phone(text: str) -> Refusal:
    return Refusal(HTTPStatus.CONFLICT, "NO_PHONE", text)


def _not_approved(text: str) -> Refusal:
    return Refusal(HTTPStatus.CONFLICT, "NOT_APPROVED", text)
