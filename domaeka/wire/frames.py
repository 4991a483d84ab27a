"""
Frames: the type of each one, declared once for both sides.

A field that the reader checks has its type and its bounds here; a field that is only written is
L{Unread}.  Fields stand in the order in which they are written: msgspec looks for each one after
the last.  Frames are never part of a reference cycle, so the garbage collector skips them
(gc=False).
"""

import binascii
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from domaeka.errors import ErrorCode, WireError

#: Longest bot, version or device name, and longest id, in characters.  Source:
#: docs/protocol.md, "Handshake".
MAX_NAME_CHARS: Final = 128
#: Longest room or sender name, in characters.  Source: docs/protocol.md, "Handshake".
MAX_TITLE_CHARS: Final = 1000
#: Longest id that a client gives its message, in characters.  Source: docs/protocol.md, "ack".
MAX_CLIENT_ID_CHARS: Final = 64

#: Longest reason of a delivery report, in characters.  Source: docs/protocol.md, "delivery".
MAX_REASON_CHARS: Final = 64
#: Reason of a report on a message that waited in vain for a notification of its room: the app can
#: answer only where there was one.  Source: as above.
NO_NOTIFICATION: Final = "no notification"
#: Reasons of a report on a message that the app did not take, or failed to.  Source: as above.
APP_REFUSED: Final = "the app refused"
APP_FAILED: Final = "the app failed"
#: Longest uptime of a phone's app, in seconds: ten years.  Source: docs/protocol.md, "delivery".
MAX_UPTIME_SECONDS: Final = 315_360_000.0

#: Time for which a phone stays blocked after the wait time of a media frame, in seconds, and the
#: wait time where a frame has none.  Source: docs/protocol.md, "Media".
MEDIA_SETTLE_SECONDS: Final = 1.2
MEDIA_DEFAULT_WAIT_SECONDS: Final = 15.0

#: Time zone of phones that name none, and its name in frames.
TIMEZONE: Final = "Asia/Seoul"
SEOUL: Final = timezone(timedelta(hours=9), TIMEZONE)
#: Beginning of a 3.2 text that orders a phone to send files.  Source: docs/protocol.md, "Replies".
IMAGE_ORDER: Final = "IMAGE_BASE64:"
ADDRESS_ORDER: Final = "MEDIA_URL:"
#: Finds a control character (Unicode category Cc).
CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
#: Exceptions of msgspec for malformed input.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Dialect(Enum):
    """Form of chat frames on a connection."""

    V32 = "3.2"
    V33 = "3.3"


def is_name(text: object, max_chars: int = MAX_NAME_CHARS) -> bool:
    """True if C{text} is a valid name of a bot, version, device or, with C{max_chars}, a room."""
    return (
        isinstance(text, str)
        and 0 < len(text) <= max_chars
        and not text.isspace()
        and (text.isprintable() or not CONTROL.search(text))
    )


def sayable(text: str) -> str:
    """C{text} with lone surrogates, which UTF-8 cannot encode, replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


# Types of fields

if TYPE_CHECKING:
    #: A value of any type that is not decoded here.
    Unread: TypeAlias = Any
else:
    Unread = msgspec.Raw

_T = TypeVar("_T")


def _always(value: _T) -> _T:
    """A field that is written even when it has the default: C{value}."""
    return msgspec.field(default_factory=lambda: value)


#: Value of a field that is absent.
ABSENT: Final[Unread] = msgspec.Raw()
_NULL: Final[Unread] = msgspec.Raw(b"null")

_Name: TypeAlias = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
_Title: TypeAlias = Annotated[str, Meta(max_length=MAX_TITLE_CHARS)]
#: An id; phones write it as text or as a number.
Id: TypeAlias = _Name | int | float | None

MediaType: TypeAlias = Literal["image", "audio", "video", "document"]
ReplyEvent: TypeAlias = Literal["messageResponse", "scheduleMessage", "broadcastMessage"]
#: Compress a tail: the argument is the text's bytes and their base64, the result the base64 of
#: their gzip stream, or L{None} where that saves too little.
Pack: TypeAlias = Callable[[bytes, bytes], bytes | None]


# From a phone


class Auth(msgspec.Struct, rename="camel", kw_only=True, gc=False):
    """
    The C{auth} object of a frame, not verified yet.  The signature is last, as scripts have it:
    whoever sees a part of it knows all that it signs.
    """

    client_type: _Name | None = None
    bot_name: _Name = msgspec.field(name="botName")
    device_uuid: _Name | None = msgspec.field(name="deviceUUID", default=None)
    device_id: _Name = msgspec.field(name="deviceID")
    mac_address: _Name | None = None
    ip_address: _Name | None = None
    timestamp: int | float
    version: _Name | None = None
    signature: _Name


class HandshakeData(msgspec.Struct, rename="camel", omit_defaults=True, gc=False, kw_only=True):
    """Identity and capabilities of a phone."""

    client_type: str | None = None
    bot_name: str
    version: str
    device_id: str = msgspec.field(name="deviceID")
    device_ip: str | None = msgspec.field(name="deviceIP", default=None)
    device_info: str | None = None
    timestamp: Unread = ABSENT
    timezone: Unread = ABSENT
    message_positions: Unread = msgspec.field(name="message_positions", default=ABSENT)
    capabilities: Unread = _NULL
    session_token: Unread = msgspec.field(name="session_token", default=_NULL)
    uptime: Annotated[float, Meta(ge=0.0, le=MAX_UPTIME_SECONDS)] | None = None
    auth: Auth | None = None


class MessageData(msgspec.Struct, omit_defaults=True, gc=False):
    """A chat message; the text is the frame's tail."""

    room: _Title | None = None
    channel_id: Id = _always(None)
    message_type: str | None = None
    content_encoding: str | None = None
    message_positions: Unread = ABSENT
    timestamp: Id = None
    timezone: Unread = ABSENT
    sender: _Title | None = None
    is_group_chat: bool | None = None
    log_id: Id = _always(None)
    user_hash: Id = _always(None)
    is_mention: bool | None = None
    bot_name: Unread = ABSENT
    client_type: Unread = ABSENT
    auth: Auth | None = _always(None)
    content_length: int | None = None
    client_id: Annotated[str, Meta(min_length=1, max_length=MAX_CLIENT_ID_CHARS)] | None = None


class AnalyzeData(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    """A chat message in the form of 3.2."""

    room: _Title | None = None
    text: str
    sender: _Title | None = None
    is_group_chat: bool | None = None
    channel_id: Id = None
    log_id: Id = None
    user_hash: Id = None
    is_mention: bool | None = None
    timestamp: Id = None
    bot_name: Unread = ABSENT
    client_type: Unread = ABSENT
    auth: Auth | None = None


class Monitoring(msgspec.Struct, gc=False):
    """Load figures of a phone; memory in MB."""

    total_memory: float | None = None
    memory_usage: float | None = None
    memory_percent: float | None = None
    message_queue_size: float | None = None
    active_rooms: float | None = None


class Pong(msgspec.Struct, omit_defaults=True, gc=False):
    """Answer to a ping.  C{server_timestamp} is only to be compared."""

    bot_name: Unread = ABSENT
    server_timestamp: Id = _always(None)
    monitoring: Monitoring | None = None
    auth: Auth | None = None


class Ack(msgspec.Struct, gc=False):
    """Acknowledgement of a client: it has everything up to C{message_id}."""

    message_id: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class DeliveryReport(msgspec.Struct, gc=False):
    """
    Final result of a message at its phone, which a client gives once.

    @ivar message_id: the number of the message.
    @ivar ok: true if the chat app took it.
    @ivar reason: why the app did not; empty where it did.
    """

    message_id: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    ok: bool
    # Without control characters: people read it.
    reason: Annotated[
        str, Meta(max_length=MAX_REASON_CHARS, pattern="^[^\x00-\x1f\x7f-\x9f]*$")
    ] = ""


class Probe(msgspec.Struct, gc=False):
    """Question of a client: is the server there?  It is answered with the same frame."""


class Migrated(msgspec.Struct, gc=False):
    """Notice of a client: the new server has greeted it, and it will close this connection."""

    new_host: Annotated[str, Meta(min_length=1, max_length=253)]  # RFC 1035: a name's length
    new_port: Annotated[int, Meta(ge=1, le=65535)]


#: Frames of phones by their event.  3.2, and one 3.3.2, answer a ping with C{ping}.
FROM_PHONE: Final[dict[str, Any]] = {
    "handshake": HandshakeData,
    "message": MessageData,
    "analyze": AnalyzeData,
    "pong": Pong,
    "ping": Pong,
    "ack": Ack,
    "delivery": DeliveryReport,
    "probe": Probe,
    "migrated": Migrated,
}


# From the server


class Greeting(msgspec.Struct, kw_only=True):
    """
    Answer to a handshake.  Fields that are not written are C{UNSET} on the server.

    @ivar epoch: the numbering that C{message_id} belongs to.
    @ivar session_expires_in: in seconds, counted from the end of this connection.
    @ivar ping_interval: in seconds.
    """

    success: bool = True
    approved: bool = True
    message: str = ""
    server_version: str = ""
    timestamp: Unread = ABSENT
    timezone: Unread = ABSENT
    message_positions: Unread = ABSENT
    capabilities: list[str] = []
    epoch: str | None = None
    session_token: str | None = None
    session_expires_in: float | None = None
    resumed: bool = False
    max_frame_bytes: int | None = None
    ping_interval: float | None = None
    node: str | None = None


class ReplyData(msgspec.Struct, omit_defaults=True, gc=False):
    """Message for a room: for 3.3 its text or files are the tail, for 3.2 C{text} holds them."""

    room: str | None = None
    channel_id: str | None = _always(None)
    bot_name: str | None = None
    text: str | None = None
    message_type: str | None = None
    message_positions: Sequence[int] = ()
    timestamp: Unread = ABSENT
    timezone: Unread = ABSENT
    content_encoding: str | None = None
    content_length: int | None = None
    message_id: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    message_format: str | None = None
    media_wait_time: int | float | None = None


class Ping(msgspec.Struct):
    """A ping.  The pong echoes C{server_timestamp} exactly."""

    bot_name: Unread = _NULL
    server_timestamp: Unread = _NULL


class ServerAck(msgspec.Struct):
    """Acknowledgement of the server: it has the message that the client named C{client_id}."""

    client_id: str


class ShutdownNotice(msgspec.Struct):
    """Notice: the server closes soon, and expects clients back in C{reconnect_after} seconds."""

    reason: str = ""
    reconnect_after: float = 0.0


class ReplayNotice(msgspec.Struct):
    """Notice: a signature of this connection came on another one, too."""

    message: str = ""


class MigrationNotice(msgspec.Struct):
    """
    Notice: the client is to go to another server.

    @ivar migrate_after: when to go, in seconds.
    @ivar expires: the notice is valid until then, in milliseconds since 1970.
    """

    new_host: str
    new_port: int
    migrate_after: float = 0.0
    tls: bool = False
    expires: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    signature: str = ""

    @property
    def signed_text(self) -> str:
        """The text that C{signature} signs, without the salt."""
        tls = "true" if self.tls else "false"
        return f"serverMigration|{self.new_host}|{self.new_port}|{tls}|{self.expires}"


class ErrorFrame(msgspec.Struct):
    """An error.  C{code}: an L{ErrorCode}, or a code of a newer server."""

    code: str
    message: str = ""


#: Frames of the server by their event.
FROM_SERVER: Final[dict[str, Any]] = {
    "handshakeComplete": Greeting,
    "messageResponse": ReplyData,
    "scheduleMessage": ReplyData,
    "broadcastMessage": ReplyData,
    "ping": Ping,
    "ack": ServerAck,
    "probe": Probe,
    "serverShutdown": ShutdownNotice,
    "serverMigration": MigrationNotice,
    "replay": ReplayNotice,
    "error": ErrorFrame,
}


# Used by both sides


class Media(msgspec.Struct, frozen=True):
    """
    Files for a room: C{pieces} are all bytes or all addresses, and at least one.

    @ivar wait_ms: time that the phone stays in the chat app, in milliseconds, above 0, or L{None}.
    """

    pieces: tuple[bytes, ...] | tuple[str, ...]
    kind: MediaType = "image"
    format: str = "png"
    wait_ms: int | None = None


class Reply(msgspec.Struct):
    """A text or files for a room, in no dialect yet.  C{channel_id}: digits, or L{None}."""

    room: str
    channel_id: str | None
    bot_name: str
    content: str | Media
    event: ReplyEvent = "messageResponse"

    @property
    def size(self) -> int:
        """Approximate bytes on the wire; never less than half of the actual size."""
        if isinstance(self.content, str):
            return 400 + 4 * len(self.content)
        return 400 + sum(len(piece) * 4 // 3 for piece in self.content.pieces)

    def blocked_seconds(self, version: str) -> float:
        """Seconds for which a phone that receives this reads nothing; C{version}: its script's."""
        if isinstance(self.content, str):
            return 0.0
        wait_ms = self.content.wait_ms
        if wait_ms is None or version == "3.2.0":
            return MEDIA_DEFAULT_WAIT_SECONDS + MEDIA_SETTLE_SECONDS
        return wait_ms / 1000 + MEDIA_SETTLE_SECONDS


encode: Final = msgspec.json.Encoder().encode


def encode_frame(event: str, data: object) -> bytes:
    """A line without a tail, newline included."""
    return encode({"event": event, "data": data}) + b"\n"


def unpacked(tail: bytes) -> bytes:
    """Decode the base64 of a tail.  @raise WireError: C{BAD_FRAME}: it is not base64."""
    try:
        return binascii.a2b_base64(tail, strict_mode=True)
    except binascii.Error:
        raise WireError(ErrorCode.BAD_FRAME, "the tail is not base64") from None


#: Cache of the last second and millisecond written, with their texts: many frames share one.
_last_second: tuple[int, str] = (0, "1970-01-01T00:00:00")
_last_millisecond: tuple[int, str] = (0, "1970-01-01T00:00:00.000Z")


def timestamp_text(seconds: float) -> str:
    """C{seconds} since 1970 in the wire's format: ISO 8601, UTC, milliseconds."""
    global _last_millisecond, _last_second
    # Half a microsecond more: 0.001 s times 1000 may be less than 1.
    milliseconds = int(seconds * 1000 + 0.0005)
    known, text = _last_millisecond
    if milliseconds == known:
        return text
    second, rest = divmod(milliseconds, 1000)
    known, text = _last_second
    if second != known:
        text = datetime.fromtimestamp(second, UTC).isoformat()[:-6]
        _last_second = (second, text)
    text = f"{text}.{rest:03d}Z"
    _last_millisecond = (milliseconds, text)
    return text
