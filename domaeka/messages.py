"""
Lines to typed messages and back.

The wire itself is described in docs/protocol.md.  L{FrameReader.read} turns a line into one of
L{Handshake}, L{Chat}, L{Pong}, L{Ack} and L{Migrated}, or raises L{WireError}, and nothing else;
the C{encode_*} functions make whole lines, newline included.
"""

import binascii
import re
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote, urlsplit

import msgspec

from domaeka.errors import ErrorCode, WireError
from domaeka.wire import MAX_LINE_BYTES, split_frame

#: Longest chat text, in characters.  Source: docs/protocol.md, "Chat".
MAX_TEXT_CHARS = 65_000
#: Longest bot, version or device name, and longest id, in characters.  Source:
#: docs/protocol.md, "Handshake".
MAX_NAME_CHARS = 128
#: Longest room or sender name, in characters.  Source: docs/protocol.md, "Handshake".
MAX_TITLE_CHARS = 1000
#: Longest id that a client gives its message, in characters.  Source: docs/protocol.md, "ack".
MAX_CLIENT_ID_CHARS = 64
#: How long a phone stays deaf beyond the wait time of a media frame, in seconds, and how long
#: the wait is where none is given.  Source: docs/protocol.md, "Media".
MEDIA_SETTLE_SECONDS = 1.2
MEDIA_DEFAULT_WAIT_SECONDS = 15.0
#: How much a gzip tail is inflated at a time, in bytes.
_INFLATE_STEP = 65_536

_SEOUL = timezone(timedelta(hours=9), "Asia/Seoul")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_ID_DIGITS = re.compile(r"[0-9]{1,64}\Z", re.ASCII)
#: What begins a text that a 3.2 phone takes for an order.  Source: docs/protocol.md, "Replies".
_ORDERS_32 = ("IMAGE_BASE64:", "MEDIA_URL:")

MediaType: TypeAlias = Literal["image", "audio", "video", "document"]
_Id: TypeAlias = str | int | float | None


class Dialect(Enum):
    """Which form of chat a connection understands."""

    V32 = "3.2"
    V33 = "3.3"


# What comes from a phone


class Auth(msgspec.Struct, rename="camel", gc=False):
    """The C{auth} object of a frame, as it came: nothing in it is to be believed yet."""

    bot_name: str = msgspec.field(name="botName")
    device_id: str = msgspec.field(name="deviceID")
    timestamp: int | float
    signature: str
    client_type: str | None = None
    device_uuid: str | None = msgspec.field(name="deviceUUID", default=None)
    mac_address: str | None = None
    ip_address: str | None = None
    version: str | None = None


class Handshake(msgspec.Struct):
    """
    A phone says who it is.

    @ivar bare: whether it came in the form of 3.2, without C{event}.
    @ivar session_token: as it came, of whatever type.
    """

    bot_name: str
    version: str
    device_id: str
    client_type: str
    device_ip: str
    device_info: str
    bare: bool
    capabilities: frozenset[str]
    session_token: object
    auth: Auth | None

    @property
    def dialect(self) -> Dialect:
        """The form of chat that this handshake promises."""
        old = self.bare and self.version.startswith("3.2")
        return Dialect.V32 if old else Dialect.V33


class Chat(msgspec.Struct):
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
        return moment if moment.tzinfo else moment.replace(tzinfo=_SEOUL)


class Monitoring(msgspec.Struct, gc=False):
    """What a phone says of itself; memory in MB."""

    total_memory: float | None = None
    memory_usage: float | None = None
    memory_percent: float | None = None
    message_queue_size: float | None = None
    active_rooms: float | None = None


class Pong(msgspec.Struct):
    """The answer to a ping.  C{server_timestamp} is only to be compared."""

    server_timestamp: _Id = None
    monitoring: Monitoring | None = None
    auth: Auth | None = None


class Ack(msgspec.Struct, gc=False):
    """The client has everything up to C{message_id}."""

    message_id: int


class Migrated(msgspec.Struct, gc=False):
    """The client has been greeted by the new server and will close this connection."""

    new_host: str
    new_port: int


Inbound: TypeAlias = Handshake | Chat | Pong | Ack | Migrated


class _HandshakeData(msgspec.Struct):
    bot_name: str = msgspec.field(name="botName")
    version: str
    device_id: str = msgspec.field(name="deviceID")
    client_type: str | None = msgspec.field(name="clientType", default=None)
    device_ip: str | None = msgspec.field(name="deviceIP", default=None)
    device_info: str | None = msgspec.field(name="deviceInfo", default=None)
    capabilities: list[str] | None = None
    session_token: Any = None
    auth: Auth | None = None


class _MessageData(msgspec.Struct):
    room: str | None = None
    channel_id: _Id = None
    message_type: str | None = None
    content_encoding: str | None = None
    content_length: int | None = None
    timestamp: _Id = None
    sender: str | None = None
    is_group_chat: bool | None = None
    log_id: _Id = None
    user_hash: _Id = None
    is_mention: bool | None = None
    client_id: str | None = None
    auth: Auth | None = None


class _AnalyzeData(msgspec.Struct, rename="camel"):
    text: str
    room: str | None = None
    channel_id: _Id = None
    sender: str | None = None
    is_group_chat: bool | None = None
    log_id: _Id = None
    user_hash: _Id = None
    is_mention: bool | None = None
    timestamp: _Id = None
    auth: Auth | None = None


class _HandshakeFrame(msgspec.Struct, tag_field="event", tag="handshake"):
    data: _HandshakeData


class _MessageFrame(msgspec.Struct, tag_field="event", tag="message"):
    data: _MessageData


class _AnalyzeFrame(msgspec.Struct, tag_field="event", tag="analyze"):
    data: _AnalyzeData


class _PongFrame(msgspec.Struct, tag_field="event", tag="pong"):
    data: Pong


class _PingFrame(msgspec.Struct, tag_field="event", tag="ping"):
    data: Pong


class _AckFrame(msgspec.Struct, tag_field="event", tag="ack"):
    data: Ack


class _MigratedFrame(msgspec.Struct, tag_field="event", tag="migrated"):
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
_decode_keys: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
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
        self._max_tail_bytes = (max_text_chars * 4 + 2) // 3 * 4

    def read(self, line: bytes) -> Inbound:
        """
        @param line: without its newline.
        @raise WireError: whatever is wrong with it.
        """
        header, tail = split_frame(line)
        try:
            # msgspec does not look into what it skips.
            str(header, "utf-8")
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
        return frame.data  # type: ignore[union-attr,return-value,no-any-return]

    def inflate(self, chat: Chat) -> None:
        """
        Inflate the text of a chat that came packed, in steps and within the frame limit.

        Only to be called once the signature held.

        @raise WireError: C{FRAME_TOO_LARGE}, C{BAD_FRAME} or C{MESSAGE_TOO_LONG}.
        """
        if chat.packed is None:
            return
        inflater = zlib.decompressobj(wbits=31)
        pieces: list[bytes] = []
        total = 0
        data = chat.packed
        chat.packed = None
        try:
            while data and not inflater.eof:
                piece = inflater.decompress(data, _INFLATE_STEP)
                total += len(piece)
                if total > self._max_frame_bytes:
                    raise WireError(
                        ErrorCode.FRAME_TOO_LARGE,
                        f"inflates to more than {self._max_frame_bytes} bytes",
                    )
                pieces.append(piece)
                data = inflater.unconsumed_tail
        except zlib.error:
            raise WireError(ErrorCode.BAD_FRAME, "the tail is not a gzip stream") from None
        if not inflater.eof or inflater.unused_data:
            raise WireError(ErrorCode.BAD_FRAME, "the gzip stream does not end with its frame")
        chat.text = self._text(b"".join(pieces))

    def _read_unusual(self, header: bytes, error: Exception) -> Handshake:
        """Read a bare handshake, or say what is wrong with C{header}."""
        try:
            str(header, "utf-8")
            keys = _decode_keys(header)
        except UnicodeDecodeError:
            raise WireError(ErrorCode.BAD_FRAME, "not UTF-8") from None
        except (msgspec.DecodeError, RecursionError):
            raise WireError(ErrorCode.BAD_FRAME, "not a JSON object") from None
        if "event" not in keys:
            if not keys.keys() & {"botName", "deviceID", "version"}:
                raise WireError(ErrorCode.BAD_FRAME, "neither an event nor a handshake")
            try:
                return _handshake(_decode_bare(header), bare=True)
            except _UNREADABLE as bare_error:
                error = bare_error
            event = b'"handshake"'
        else:
            event = bytes(keys["event"])
        text = "not readable"
        if isinstance(error, msgspec.ValidationError):
            text = str(error)
        if "`$.data.auth" in text or "`$.auth" in text:
            raise WireError(ErrorCode.AUTH_FAILED, "auth is not of the right form") from None
        if event == b'"handshake"':
            raise WireError(ErrorCode.BAD_HANDSHAKE, f"bad handshake: {text}") from None
        if text.startswith("Invalid value '"):
            text = "unknown event"
        raise WireError(ErrorCode.BAD_FRAME, text) from None

    def _message(self, data: _MessageData, tail: bytes) -> Chat:
        if data.message_type not in ("text", None):
            raise WireError(ErrorCode.BAD_FRAME, "message_type must be text")
        encoding = data.content_encoding
        packed: bytes | None = None
        text = ""
        if encoding is None:
            text = self._text(tail)
        else:
            if len(tail) > self._max_tail_bytes:
                raise self._too_long()
            try:
                raw = binascii.a2b_base64(tail, strict_mode=True)
            except binascii.Error:
                raise WireError(ErrorCode.BAD_FRAME, "the tail is not base64") from None
            if encoding == "base64":
                text = self._text(raw)
            elif encoding == "gzip+base64":
                packed = raw
            else:
                raise WireError(ErrorCode.BAD_FRAME, "unknown content_encoding")
        client_id = data.client_id
        if client_id is not None and not 0 < len(client_id) <= MAX_CLIENT_ID_CHARS:
            raise WireError(
                ErrorCode.BAD_FRAME, f"client_id: 1 to {MAX_CLIENT_ID_CHARS} characters"
            )
        return _chat(Dialect.V33, data, text, client_id, packed)

    def _analyze(self, data: _AnalyzeData) -> Chat:
        if len(data.text) > self._max_text_chars:
            raise self._too_long()
        return _chat(Dialect.V32, data, data.text, None, None)

    def _text(self, raw: bytes) -> str:
        if len(raw) > self._max_text_chars * 4:
            raise self._too_long()
        try:
            text = str(raw, "utf-8")
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
    client_id: str | None,
    packed: bytes | None,
) -> Chat:
    channel_id = _id(data.channel_id)
    if channel_id is not None and not _ID_DIGITS.match(channel_id):
        channel_id = None  # the phone could not take it back
    room = data.room or ""
    if not room or room.isspace():
        raise WireError(ErrorCode.BAD_FRAME, "room must not be blank")
    sender = data.sender or ""
    _check_title("room", room)
    _check_title("sender", sender)
    sent_at = data.timestamp
    return Chat(
        dialect,
        room,
        channel_id,
        sender,
        text,
        data.is_group_chat is True,
        _id(data.log_id),
        _id(data.user_hash),
        data.is_mention is True,
        sent_at if isinstance(sent_at, str) and len(sent_at) <= MAX_NAME_CHARS else None,
        client_id,
        data.auth,
        packed,
    )


def _id(value: _Id) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, float):
        if not value.is_integer():
            raise WireError(ErrorCode.BAD_FRAME, "an id must be digits or text")
        value = int(value)
    text = str(value)
    if len(text) > MAX_NAME_CHARS or (not text.isprintable() and _CONTROL.search(text)):
        raise WireError(ErrorCode.BAD_FRAME, f"an id has at most {MAX_NAME_CHARS} characters")
    return text


def _check_title(what: str, text: str) -> None:
    if len(text) > MAX_TITLE_CHARS or (not text.isprintable() and _CONTROL.search(text)):
        raise WireError(
            ErrorCode.BAD_FRAME,
            f"{what}: at most {MAX_TITLE_CHARS} characters, none of them a control character",
        )


def is_name(text: object) -> bool:
    """Whether C{text} can name a bot, a version or a device."""
    return (
        isinstance(text, str)
        and 0 < len(text) <= MAX_NAME_CHARS
        and not text.isspace()
        and (text.isprintable() or not _CONTROL.search(text))
    )


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
    return Handshake(
        data.bot_name,
        data.version,
        data.device_id,
        (data.client_type or "MessengerBotR")[:MAX_NAME_CHARS],
        (data.device_ip or "")[:MAX_NAME_CHARS],
        (data.device_info or "")[:MAX_TITLE_CHARS],
        bare,
        frozenset(data.capabilities or ()) & {"gzip", "deflate", "session", "ack"},
        data.session_token,
        data.auth,
    )


# What goes to a phone


class Media(msgspec.Struct, frozen=True):
    """
    Files for a room: C{pieces} are all bytes or all addresses.

    @ivar wait_ms: how long the phone stays in the chat app, in milliseconds, above 0, or L{None}.
    """

    pieces: tuple[bytes, ...] | tuple[str, ...]
    kind: MediaType = "image"
    format: str = "png"
    wait_ms: int | None = None


class Reply(msgspec.Struct):
    """
    Something for a room, in no dialect yet.

    @ivar channel_id: a string of digits, or L{None}.
    @ivar content: a text, or files.
    """

    room: str
    channel_id: str | None
    bot_name: str
    content: str | Media
    event: Literal["messageResponse", "scheduleMessage", "broadcastMessage"] = "messageResponse"

    @property
    def size(self) -> int:
        """About how many bytes it takes on the wire; never less than half of it."""
        if isinstance(self.content, str):
            return 400 + 4 * len(self.content)
        return 400 + sum(len(piece) * 4 // 3 for piece in self.content.pieces)

    def deaf_seconds(self, version: str) -> float:
        """
        How long a phone that gets this reads nothing, in seconds.

        @param version: of the phone's script.
        """
        if isinstance(self.content, str):
            return 0.0
        wait_ms = self.content.wait_ms
        if wait_ms is None or version == "3.2.0":
            return MEDIA_DEFAULT_WAIT_SECONDS + MEDIA_SETTLE_SECONDS
        return wait_ms / 1000 + MEDIA_SETTLE_SECONDS


_encode: Final = msgspec.json.Encoder().encode


def encode_frame(event: str, data: object) -> bytes:
    """A line without a tail."""
    return _encode({"event": event, "data": data}) + b"\n"


class _ReplyData(msgspec.Struct, omit_defaults=True):
    room: str
    channel_id: str | None
    bot_name: str
    message_type: str
    message_positions: Sequence[int]
    timestamp: str
    timezone: str
    content_encoding: str | None = None
    content_length: int | None = None
    message_format: str | None = None
    media_wait_time: int | None = None
    message_id: int | None = None


class _ReplyFrame(msgspec.Struct):
    event: str
    data: _ReplyData


class _OldReplyData(msgspec.Struct, omit_defaults=True):
    room: str
    channel_id: str | None
    bot_name: str
    text: str
    media_wait_time: int | None = None
    message_id: int | None = None


class _OldReplyFrame(msgspec.Struct):
    event: str
    data: _OldReplyData


def encode_reply(
    reply: Reply,
    dialect: Dialect,
    timestamp: str,
    message_id: int | None = None,
    pack: Callable[[bytes, bytes], bytes | None] | None = None,
) -> bytes:
    """
    A whole line in the phone's own dialect.

    @param timestamp: the time now, as L{timestamp_text} gives it.
    @param message_id: for a connection that acknowledges.
    @param pack: given the text's bytes and their base64, the base64 of their gzip stream, or
        L{None} where that saves too little.
    """
    room = _clean(reply.room)
    if dialect is Dialect.V32:
        old = _OldReplyData(
            room, reply.channel_id, reply.bot_name, _old_text(reply.content), None, message_id
        )
        if isinstance(reply.content, Media):
            old.media_wait_time = reply.content.wait_ms
        return _encode(_OldReplyFrame("messageResponse", old)) + b"\n"
    data = _ReplyData(
        room, reply.channel_id, reply.bot_name, "text", (0, 0), timestamp, "Asia/Seoul"
    )
    data.message_id = message_id
    content = reply.content
    if isinstance(content, str):
        raw = content.encode("utf-8", "replace")
        tail = binascii.b2a_base64(raw, newline=False)
        data.content_encoding = "base64"
        packed = pack(raw, tail) if pack is not None else None
        if packed is not None:
            tail = packed
            data.content_encoding = "gzip+base64"
            data.content_length = len(raw)
        data.message_positions = (0, len(tail))
    else:
        pieces = [_piece(piece) for piece in content.pieces]
        positions = [0]
        for piece in pieces:
            positions.append(positions[-1] + len(piece))
        tail = b"".join(pieces)
        data.message_type = content.kind
        data.message_format = content.format
        data.message_positions = positions
        data.media_wait_time = content.wait_ms
    return b"%b%b\n" % (_encode(_ReplyFrame(reply.event, data)), tail)


def _piece(piece: bytes | str) -> bytes:
    if isinstance(piece, bytes):
        return binascii.b2a_base64(piece, newline=False)
    return piece.encode("ascii")


def _old_text(content: str | Media) -> str:
    if isinstance(content, str):
        text = _clean(content)
        # What a stranger typed must not become an order.
        return "\u200b" + text if text.startswith(_ORDERS_32) else text
    order = _ORDERS_32[0] if isinstance(content.pieces[0], bytes) else _ORDERS_32[1]
    return order + "|||".join(str(_piece(piece), "ascii") for piece in content.pieces)


def _clean(text: str) -> str:
    """C{text} with what UTF-8 cannot say (lone surrogates) replaced."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def media_address(url: str) -> str:
    """
    C{url} in the form in which a phone can be given it.

    @raise ValueError: not an address that begins with C{http://} or C{https://}.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or _CONTROL.search(url):
        raise ValueError("an address must begin with http:// or https://")
    # The header ends at the line's last brace; 3.2 cuts at "|||".
    return quote(url, safe="%/:?#[]@!$&'()*+,;=~-._")


def timestamp_text(seconds: float) -> str:
    """C{seconds} since 1970 as the wire writes times: ISO 8601, UTC, milliseconds."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def encode_handshake_complete(
    *, approved: bool, message: str, server_version: str, timestamp: str, **more: object
) -> bytes:
    """
    The answer to a handshake.

    @param more: what is said to clients with capabilities only.
    """
    data: dict[str, object] = {
        "success": True,
        "approved": approved,
        "message": message,
        "server_version": server_version,
        "timestamp": timestamp,
        "timezone": "Asia/Seoul",
        "message_positions": (0, 0),
    }
    data.update(more)
    return encode_frame("handshakeComplete", data)


def encode_error(code: ErrorCode, text: str) -> bytes:
    """A notice of what went wrong."""
    return encode_frame("error", {"code": code, "message": text})


def encode_ping(bot_name: str, server_timestamp: str) -> bytes:
    """A ping; the pong echoes C{server_timestamp} exactly."""
    return encode_frame("ping", {"bot_name": bot_name, "server_timestamp": server_timestamp})


def encode_shutdown(reason: str, reconnect_after: float) -> bytes:
    """
    A notice that the server closes soon.

    @param reconnect_after: in seconds.
    """
    return encode_frame(
        "serverShutdown", {"reason": reason, "reconnect_after": round(reconnect_after, 3)}
    )


def encode_ack(client_id: str) -> bytes:
    """The message that the client called C{client_id} has been taken."""
    return encode_frame("ack", {"client_id": client_id})
