"""
What comes from a phone: lines to typed messages.

Limits on lengths stand in the types: msgspec checks them as it decodes.
"""

import binascii
from datetime import datetime
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from domaeka.errors import ErrorCode, WireError
from domaeka.messages.names import CONTROL, MAX_NAME_CHARS, MAX_TITLE_CHARS, SEOUL, Dialect, is_name
from domaeka.wire import MAX_LINE_BYTES, inflated, split_frame

#: Longest chat text, in characters.  Source: docs/protocol.md, "Chat".
MAX_TEXT_CHARS: Final = 65_000
#: Longest id that a client gives its message, in characters.  Source: docs/protocol.md, "ack".
MAX_CLIENT_ID_CHARS: Final = 64

# To look a member up in its Enum takes 0.2 µs.
_V32: Final = Dialect.V32
_V33: Final = Dialect.V33

#: Longest list of them, in bytes: to decode a longer one would take its time.
_CAPABILITIES_BYTES: Final = 4096
_CAPABILITIES: Final = frozenset({"gzip", "deflate", "session", "ack"})

_ABSENT: Final = msgspec.Raw()

_Name: TypeAlias = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
_Title: TypeAlias = Annotated[str, Meta(max_length=MAX_TITLE_CHARS)]
_Id: TypeAlias = _Name | int | float | None


# No message can be part of a cycle: the garbage collector need not look at them (gc=False).


class Auth(msgspec.Struct, rename="camel", gc=False):
    """The C{auth} object of a frame, as it came: nothing in it is to be believed yet."""

    bot_name: _Name = msgspec.field(name="botName")
    device_id: _Name = msgspec.field(name="deviceID")
    timestamp: int | float
    signature: _Name
    client_type: _Name | None = None
    device_uuid: _Name | None = msgspec.field(name="deviceUUID", default=None)
    mac_address: _Name | None = None
    ip_address: _Name | None = None
    version: _Name | None = None


class Handshake(msgspec.Struct, gc=False):
    """
    A phone says who it is.

    @ivar bare: whether it came in the form of 3.2, without C{event}.
    @ivar capabilities: those that we know; L{None} where it lists none, as old phones.
    @ivar session_token: L{None} where none was shown; what is no text reads as an empty one.
    """

    bot_name: str
    version: str
    device_id: str
    client_type: str
    device_ip: str
    device_info: str
    bare: bool
    capabilities: frozenset[str] | None
    session_token: str | None
    auth: Auth | None

    @property
    def dialect(self) -> Dialect:
        """The form of chat that this handshake promises."""
        old = self.bare and self.version.startswith("3.2")
        return Dialect.V32 if old else Dialect.V33


class Chat(msgspec.Struct, gc=False):
    """
    Somebody wrote something in a room.

    @ivar channel_id: a string of digits, or L{None} where the phone does not know it.
    @ivar sent_at: the phone's text for the time.
    @ivar packed: a gzip stream to be inflated into C{text} by L{FrameReader.inflate}.
    """

    dialect: Dialect
    room: str
    channel_id: str | None
    sender: str
    text: str
    is_group: bool
    log_id: str | None
    user_hash: str | None
    is_mention: bool
    sent_at: str | None
    client_id: str | None
    auth: Auth | None
    packed: bytes | None = None

    @property
    def room_id(self) -> str:
        """What the room is known by: its channel id, or else its name."""
        return self.channel_id or self.room

    @property
    def timestamp(self) -> datetime | None:
        """When it was written, by the phone's clock, or L{None} if it does not say."""
        if self.sent_at is None:
            return None
        try:
            moment = datetime.fromisoformat(self.sent_at)
        except ValueError:
            return None
        return moment if moment.tzinfo else moment.replace(tzinfo=SEOUL)


class Monitoring(msgspec.Struct, gc=False):
    """What a phone says of itself; memory in MB."""

    total_memory: float | None = None
    memory_usage: float | None = None
    memory_percent: float | None = None
    message_queue_size: float | None = None
    active_rooms: float | None = None


class Pong(msgspec.Struct, gc=False):
    """The answer to a ping.  C{server_timestamp} is only to be compared."""

    server_timestamp: _Id = None
    monitoring: Monitoring | None = None
    auth: Auth | None = None


class Ack(msgspec.Struct, gc=False):
    """The client has everything up to C{message_id}."""

    message_id: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Migrated(msgspec.Struct, gc=False):
    """The client has been greeted by the new server and will close this connection."""

    new_host: Annotated[str, Meta(min_length=1, max_length=253)]  # RFC 1035: a name's length
    new_port: Annotated[int, Meta(ge=1, le=65535)]


Inbound: TypeAlias = Handshake | Chat | Pong | Ack | Migrated


class _HandshakeData(msgspec.Struct, gc=False):
    bot_name: str = msgspec.field(name="botName")
    version: str
    device_id: str = msgspec.field(name="deviceID")
    client_type: str | None = msgspec.field(name="clientType", default=None)
    device_ip: str | None = msgspec.field(name="deviceIP", default=None)
    device_info: str | None = msgspec.field(name="deviceInfo", default=None)
    capabilities: msgspec.Raw = msgspec.Raw(b"null")
    session_token: msgspec.Raw = msgspec.Raw(b"null")
    auth: Auth | None = None


# The fields in the order in which phones write them: msgspec looks for each behind the last.


class _MessageData(msgspec.Struct, gc=False):
    room: _Title | None = None
    channel_id: _Id = None
    message_type: str | None = None
    content_encoding: str | None = None
    timestamp: _Id = None
    sender: _Title | None = None
    is_group_chat: bool | None = None
    log_id: _Id = None
    user_hash: _Id = None
    is_mention: bool | None = None
    auth: Auth | None = None
    content_length: int | None = None
    client_id: Annotated[str, Meta(min_length=1, max_length=MAX_CLIENT_ID_CHARS)] | None = None


class _AnalyzeData(msgspec.Struct, rename="camel", gc=False, kw_only=True):
    room: _Title | None = None
    text: str
    sender: _Title | None = None
    is_group_chat: bool | None = None
    channel_id: _Id = None
    log_id: _Id = None
    user_hash: _Id = None
    is_mention: bool | None = None
    timestamp: _Id = None
    auth: Auth | None = None


class _HandshakeFrame(msgspec.Struct, tag_field="event", tag="handshake", gc=False):
    data: _HandshakeData


class _Keys(msgspec.Struct, gc=False):
    """What tells of an object what it is; a stranger's may have a hundred thousand keys more."""

    event: msgspec.Raw = _ABSENT
    bot_name: msgspec.Raw = msgspec.field(name="botName", default=_ABSENT)
    device_id: msgspec.Raw = msgspec.field(name="deviceID", default=_ABSENT)
    version: msgspec.Raw = _ABSENT


class _MessageFrame(msgspec.Struct, tag_field="event", tag="message", gc=False):
    data: _MessageData


class _AnalyzeFrame(msgspec.Struct, tag_field="event", tag="analyze", gc=False):
    data: _AnalyzeData


class _PongFrame(msgspec.Struct, tag_field="event", tag="pong", gc=False):
    data: Pong


class _PingFrame(msgspec.Struct, tag_field="event", tag="ping", gc=False):
    data: Pong


class _AckFrame(msgspec.Struct, tag_field="event", tag="ack", gc=False):
    data: Ack


class _MigratedFrame(msgspec.Struct, tag_field="event", tag="migrated", gc=False):
    data: Migrated


_decode_frame: Final = msgspec.json.Decoder(
    _HandshakeFrame
    | _MessageFrame
    | _AnalyzeFrame
    | _PongFrame
    | _PingFrame
    | _AckFrame
    | _MigratedFrame
).decode
_decode_bare: Final = msgspec.json.Decoder(_HandshakeData).decode
_decode_keys: Final = msgspec.json.Decoder(_Keys).decode
_decode_capabilities: Final = msgspec.json.Decoder(list[str] | None).decode
_decode_token: Final = msgspec.json.Decoder(str | None).decode
#: What msgspec raises on bytes that are not what they should be.
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class FrameReader:
    """Turn lines into messages, within limits."""

    def __init__(
        self, max_text_chars: int = MAX_TEXT_CHARS, max_frame_bytes: int = MAX_LINE_BYTES
    ) -> None:
        """
        @param max_text_chars: longest chat text, in characters.
        @param max_frame_bytes: most that a gzip tail may inflate to, in bytes.
        """
        self._max_text_chars = max_text_chars
        self._max_frame_bytes = max_frame_bytes
        # A character takes up to four bytes; base64 makes four of three.
        self._max_text_bytes = max_text_chars * 4
        self._max_tail_bytes = (self._max_text_bytes + 2) // 3 * 4

    def read(self, line: bytes) -> Inbound:
        """
        @param line: without its newline.
        @raise WireError: whatever is wrong with it.
        """
        header, tail = split_frame(line)
        try:
            header.decode()  # msgspec does not look into what it skips
            frame = _decode_frame(header)
        except _UNREADABLE as error:
            return self._read_unusual(header, error)
        if type(frame) is _MessageFrame:
            return self._message(frame.data, tail)
        if tail:
            raise WireError(ErrorCode.BAD_FRAME, "only a message may have a tail")
        if type(frame) is _AnalyzeFrame:
            return self._analyze(frame.data)
        if type(frame) is _HandshakeFrame:
            return _handshake(frame.data, bare=False)
        return frame.data  # type: ignore[no-any-return]

    def inflate(self, chat: Chat) -> None:
        """
        Inflate the text of a chat that came packed, in steps and within the frame limit.

        Only to be called once the signature held.

        @raise WireError: C{FRAME_TOO_LARGE}, C{BAD_FRAME} or C{MESSAGE_TOO_LONG}.
        """
        if chat.packed is None:
            return
        packed, chat.packed = chat.packed, None
        chat.text = self._text(inflated(packed, self._max_frame_bytes))

    def _read_unusual(self, header: bytes, error: Exception) -> Handshake:
        """Read a bare handshake, or say what is wrong with C{header}."""
        try:
            header.decode()
            keys = _decode_keys(header)
        except UnicodeDecodeError:
            raise WireError(ErrorCode.BAD_FRAME, "not UTF-8") from None
        except (msgspec.DecodeError, RecursionError):
            raise WireError(ErrorCode.BAD_FRAME, "not a JSON object") from None
        if keys.event is _ABSENT:
            if keys.bot_name is keys.device_id is keys.version is _ABSENT:
                raise WireError(ErrorCode.BAD_FRAME, "neither an event nor a handshake")
            try:
                return _handshake(_decode_bare(header), bare=True)
            except _UNREADABLE as bare_error:
                error = bare_error
            event = b'"handshake"'
        else:
            event = bytes(keys.event)
        # It names fields and types of ours, and quotes nothing of theirs but an unknown event.
        text = str(error) if isinstance(error, msgspec.ValidationError) else "not readable"
        if "`$.data.auth" in text or "`$.auth" in text:
            raise WireError(
                ErrorCode.AUTH_FAILED,
                "auth is not of the right form",
                fatal=event == b'"handshake"',
            ) from None
        if event == b'"handshake"':
            raise WireError(ErrorCode.BAD_HANDSHAKE, f"bad handshake: {text}") from None
        if text.startswith("Invalid value '"):
            text = "unknown event"
        raise WireError(ErrorCode.BAD_FRAME, text) from None

    def _message(self, data: _MessageData, tail: bytes) -> Chat:
        if data.message_type != "text" and data.message_type is not None:
            raise WireError(ErrorCode.BAD_FRAME, "message_type must be text")
        encoding = data.content_encoding
        if encoding is None:
            return _chat(_V33, data, self._text(tail), data.client_id)
        if len(tail) > self._max_tail_bytes:
            raise self._too_long()
        try:
            raw = binascii.a2b_base64(tail, strict_mode=True)
        except binascii.Error:
            raise WireError(ErrorCode.BAD_FRAME, "the tail is not base64") from None
        if encoding == "base64":
            return _chat(_V33, data, self._text(raw), data.client_id)
        if encoding == "gzip+base64":
            return _chat(_V33, data, "", data.client_id, raw)
        raise WireError(ErrorCode.BAD_FRAME, "unknown content_encoding")

    def _analyze(self, data: _AnalyzeData) -> Chat:
        if len(data.text) > self._max_text_chars:
            raise self._too_long()
        return _chat(_V32, data, data.text)

    def _text(self, raw: bytes) -> str:
        if len(raw) > self._max_text_bytes:
            raise self._too_long()
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise WireError(ErrorCode.BAD_FRAME, "the text is not UTF-8") from None
        if len(text) > self._max_text_chars:
            raise self._too_long()
        return text

    def _too_long(self) -> WireError:
        return WireError(
            ErrorCode.MESSAGE_TOO_LONG, f"a text has at most {self._max_text_chars} characters"
        )


def _chat(
    dialect: Dialect,
    data: _MessageData | _AnalyzeData,
    text: str,
    client_id: str | None = None,
    packed: bytes | None = None,
) -> Chat:
    room = data.room
    sender = data.sender or ""
    if not room or room.isspace() or not room.isprintable() or not sender.isprintable():
        room = _title(room, sender)
    # Ids are texts without surprises, but for one in a million.
    channel_id = data.channel_id
    if type(channel_id) is not str or not channel_id.isdigit() or not channel_id.isascii():
        channel_id = _channel_id(channel_id)
    log_id = data.log_id
    if log_id is not None and (type(log_id) is not str or not log_id.isprintable()):
        log_id = _id(log_id)
    user_hash = data.user_hash
    if user_hash is not None and (type(user_hash) is not str or not user_hash.isprintable()):
        user_hash = _id(user_hash)
    sent_at = data.timestamp
    return Chat(
        dialect,
        room,
        channel_id,
        sender,
        text,
        data.is_group_chat is True,
        log_id or None,
        user_hash or None,
        data.is_mention is True,
        sent_at if type(sent_at) is str else None,
        client_id,
        data.auth,
        packed,
    )


def _title(room: str | None, sender: str) -> str:
    """Say what is wrong with a room's or a sender's name, or that it is only unusual."""
    if not room or room.isspace():
        raise WireError(ErrorCode.BAD_FRAME, "room: must not be blank")
    if CONTROL.search(room) or CONTROL.search(sender):
        raise WireError(ErrorCode.BAD_FRAME, "room, sender: no control characters")
    return room


def _id(value: str | int | float) -> str:
    """An id as text."""
    if isinstance(value, float):
        if not value.is_integer():
            raise WireError(ErrorCode.BAD_FRAME, "an id must be text or a whole number")
        value = int(value)
    text = str(value)
    if len(text) > MAX_NAME_CHARS or (not text.isprintable() and CONTROL.search(text)):
        raise WireError(
            ErrorCode.BAD_FRAME,
            f"an id: at most {MAX_NAME_CHARS} characters, none of them a control character",
        )
    return text


def _channel_id(value: _Id) -> str | None:
    """An id that the phone can take back: digits, or L{None}."""
    if value is None:
        return None
    text = _id(value)
    return text if text.isdigit() and text.isascii() else None


def _handshake(data: _HandshakeData, bare: bool) -> Handshake:
    for what, value in (
        ("botName", data.bot_name),
        ("version", data.version),
        ("deviceID", data.device_id),
    ):
        if not is_name(value):
            raise WireError(
                ErrorCode.BAD_HANDSHAKE,
                f"{what}: 1 to {MAX_NAME_CHARS} characters, not blank, no control characters",
            )
    offered = data.capabilities
    try:
        if len(offered) > _CAPABILITIES_BYTES:
            raise WireError(ErrorCode.BAD_HANDSHAKE, "capabilities: too many")
        capabilities = _decode_capabilities(offered)
    except _UNREADABLE:
        raise WireError(
            ErrorCode.BAD_HANDSHAKE, "capabilities: must be an array of texts"
        ) from None
    token: str | None
    try:
        token = _decode_token(data.session_token)
    except _UNREADABLE:
        token = ""
    return Handshake(
        data.bot_name,
        data.version,
        data.device_id,
        (data.client_type or "MessengerBotR")[:MAX_NAME_CHARS],
        (data.device_ip or "")[:MAX_NAME_CHARS],
        (data.device_info or "")[:MAX_TITLE_CHARS],
        bare,
        None if capabilities is None else _CAPABILITIES.intersection(capabilities),
        token,
        data.auth,
    )
