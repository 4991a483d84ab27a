"""Endpoints of messages: sent to rooms from outside, and followed."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from msgspec.structs import replace

from domaeka.bots.media import is_path, prepare
from domaeka.config import Settings
from domaeka.interfaces import Destination, Directory, KnownRoom, MessageRefused, NotSent, Priority
from domaeka.schema import Accepted, MediaItem, Message, NewMessage
from domaeka.web.api.endpoints import (
    Endpoint,
    EndpointGroup,
    Request,
    bad_request,
    endpoint,
    not_found,
    settled,
    time_text,
)
from domaeka.web.routes import Refusal
from domaeka.wire import Media, media_address

_PRIORITIES: Final = {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}

#: The HTTP status of each reason to refuse a message.
_STATUSES: Final = {
    NotSent.NO_PHONE: HTTPStatus.CONFLICT,
    NotSent.NO_ROOM: HTTPStatus.CONFLICT,
    NotSent.NOT_APPROVED: HTTPStatus.CONFLICT,
    NotSent.AMBIGUOUS: HTTPStatus.CONFLICT,
    NotSent.QUEUE_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
    NotSent.SHUTTING_DOWN: HTTPStatus.SERVICE_UNAVAILABLE,
}


def _candidate(room: KnownRoom) -> dict[str, object]:
    """One of the rooms of a title, for programs."""
    return {
        "room": room.key.room_id,
        "name": room.name,
        "device": None if room.device is None else room.device.device_id,
        "last_heard": time_text(room.last_heard),
        "status": room.approval,
        "decided": room.decided,
    }


class MessagePages(EndpointGroup):
    """The endpoints of messages."""

    def __init__(self, directory: Directory, settings: Callable[[], Settings]) -> None:
        self._directory = directory
        self._settings = settings

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints; a message may be as large as the queue of its device."""
        send, state = super().endpoints()
        return replace(send, max_body_bytes=self._settings().queue.max_bytes), state

    @endpoint(
        "POST",
        "/messages",
        "Send a message to a room",
        status=HTTPStatus.ACCEPTED,
        refusals={
            HTTPStatus.CONFLICT: "`NO_PHONE`: no phone is known for the room; `NO_ROOM`: its name "
            "is not known, give `room`, too; `NOT_APPROVED`: the phone, or the room, is known and "
            "not approved; `AMBIGUOUS`: several rooms have this title, give `channel_id`; "
            "`candidates` in the error has the first 20, each with `room`, `name`, `device`, "
            "`last_heard`, `status` and `decided` (by an operator)",
            HTTPStatus.SERVICE_UNAVAILABLE: "`QUEUE_FULL`: there is no room for it to wait; "
            "`SHUTTING_DOWN`",
        },
    )
    async def send(self, request: Request[Any, NewMessage]) -> Accepted:
        """Queue a message for its phone."""
        new = request.body
        contents = self._contents(new)
        if new.room is None and new.channel_id is None:
            raise bad_request("room: it, or channel_id, or both must be given")
        to = Destination(new.bot, new.device, new.room, new.channel_id)
        priority = _PRIORITIES[new.priority]
        try:
            message = await settled(self._directory.send(to, contents, new.ttl, priority))
        except MessageRefused as error:
            details = {"candidates": list(map(_candidate, error.candidates))}
            raise Refusal(
                _STATUSES[error.why],
                error.why,
                str(error),
                details=details if error.candidates else None,
            ) from None
        return Accepted(message)

    @endpoint(
        "GET",
        "/messages/{id}",
        "What has become of one of the last 10,000 messages",
        refusals={HTTPStatus.NOT_FOUND: "it is not known, or not any more"},
    )
    async def state(self, request: Request[Any, None]) -> Message:
        """The state of a message."""
        message = await settled(self._directory.message(request.names["id"]))
        if message is None:
            raise not_found("no such message, or it was long ago")
        return message

    def _contents(self, new: NewMessage) -> list[str | Media]:
        """The contents of the frames to the phone."""
        if (new.text is None) is (new.media is None):
            raise bad_request("text: it, or media, must be given; not both")
        if new.text is not None:
            longest = self._settings().server.max_text_chars
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


def _item(number: int, item: MediaItem) -> bytes | str:
    """A file, checked: no address in it may be read as a path."""
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
