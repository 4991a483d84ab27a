"""
The server's side: reads frames of phones, writes frames to them.

L{FrameReader.read} returns one of L{Inbound} for a line, or raises L{WireError} and nothing else;
the C{encode_*} functions make whole lines, newline included.
"""

import binascii
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, TypeAlias, Union
from urllib.parse import quote, urlsplit

import msgspec

from domaeka.errors import ErrorCode, WireError
from domaeka.validation import Fault, fault_of
from domaeka.wire.frames import (
    ABSENT,
    ADDRESS_ORDER,
    CONTROL,
    FROM_PHONE,
    IMAGE_ORDER,
    MAX_NAME_CHARS,
    MAX_TITLE_CHARS,
    SEOUL,
    TIMEZONE,
    UNREADABLE,
    Ack,
    AnalyzeData,
    Auth,
    DeliveryReport,
    Dialect,
    ErrorFrame,
    Greeting,
    HandshakeData,
    Id,
    Media,
    MessageData,
    Migrated,
    Pack,
    Ping,
    Pong,
    Probe,
    ReplayNotice,
    Reply,
    ReplyData,
    ReplyEvent,
    ServerAck,
    ShutdownNotice,
    Unread,
    encode,
    encode_frame,
    is_name,
    sayable,
    unpacked,
)
from domaeka.wire.framing import MAX_LINE_BYTES, inflated, split_frame

#: Longest chat text, in characters.  Source: docs/protocol.md, "Chat".
MAX_TEXT_CHARS: Final = 65_000

# Members of an Enum are slow to look up: 0.2 µs.
_V32: Final = Dialect.V32
_V33: Final = Dialect.V33

#: Longest list of capabilities that is decoded, in bytes.
_CAPABILITIES_BYTES: Final = 4096
_CAPABILITIES: Final = frozenset({"gzip", "deflate", "session", "ack", "probe", "delivery"})

#: Bytes of a file that are encoded at a time: 64 KiB of base64.
_PIECE_BYTES: Final = 49_152
#: Characters that stay as they are in an address.  Braces do not: the header ends at the line's
#: last one.  Bars do not: 3.2 separates addresses with three.
_ADDRESS_SAFE: Final = "%/:?#[]@!$&'()*+,;=~-._"


# From phones


class Handshake(msgspec.Struct, gc=False):
    """
    Identity of a phone.

    @ivar bare: True if it came in the form of 3.2, without C{event}.
    @ivar capabilities: those that this version knows; L{None}: an old phone, which lists none.
    @ivar session_token: L{None} where none was shown; empty where it is not a text.
    @ivar uptime: time since the phone's app was started, in seconds; L{None}: not said.
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
    uptime: float | None
    auth: Auth | None

    @property
    def dialect(self) -> Dialect:
        """Form of chat frames, as the handshake implies it."""
        old = self.bare and self.version.startswith("3.2")
        return Dialect.V32 if old else Dialect.V33


def is_channel_id(text: str) -> bool:
    """True for a channel id: a string of digits."""
    return text.isdigit() and text.isascii()


def title_id(title: str) -> str:
    """
    Id of a room whose channel id the phone does not know: its title.  Strangers choose titles: one
    that looks like a channel id stands in quotes, and is none.
    """
    return f'"{title}"' if is_channel_id(title) else title


class Chat(msgspec.Struct, gc=False):
    """
    A chat message.

    @ivar channel_id: a string of digits, or L{None} where the phone does not know it.
    @ivar sent_at: the time in the phone's own words.
    @ivar packed: a gzip stream, which L{FrameReader.inflate} inflates into C{text}.
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
        """Id of the room: its channel id, or else the L{title_id}."""
        return self.channel_id or title_id(self.room)

    @property
    def timestamp(self) -> datetime | None:
        """Time of writing by the phone's clock, or L{None} where it gives none."""
        if self.sent_at is None:
            return None
        try:
            moment = datetime.fromisoformat(self.sent_at)
        except ValueError:
            return None
        return moment if moment.tzinfo else moment.replace(tzinfo=SEOUL)


Inbound: TypeAlias = Handshake | Chat | Pong | Ack | DeliveryReport | Probe | Migrated


class _Keys(msgspec.Struct, gc=False):
    """Keys that tell a frame from a bare handshake; others, which may be many, are skipped."""

    event: Unread = ABSENT
    bot_name: Unread = msgspec.field(name="botName", default=ABSENT)
    device_id: Unread = msgspec.field(name="deviceID", default=ABSENT)
    version: Unread = ABSENT


#: A type for each event, tagged with it: a frame is decoded in one pass.
_Frame: Any = Union[  # noqa: UP007
    tuple(
        msgspec.defstruct("Frame", [("data", data)], tag_field="event", tag=event, gc=False)
        for event, data in FROM_PHONE.items()
    )
]
_decode_frame: Final = msgspec.json.Decoder(_Frame).decode
_decode_bare: Final = msgspec.json.Decoder(HandshakeData).decode
_decode_keys: Final = msgspec.json.Decoder(_Keys).decode
_decode_capabilities: Final = msgspec.json.Decoder(list[str] | None).decode
_decode_token: Final = msgspec.json.Decoder(str | None).decode


class FrameReader:
    """Reader of phones' lines, within limits."""

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
        @raise WireError: the line is malformed.
        """
        header, tail = split_frame(line)
        try:
            header.decode()  # msgspec does not check what it skips
            frame = _decode_frame(header)
        except UNREADABLE as error:
            return self._read_unusual(header, error)
        data = frame.data
        kind = type(data)
        if kind is MessageData:
            return self._message(data, tail)
        if tail:
            raise WireError(ErrorCode.BAD_FRAME, "only a message may have a tail")
        if kind is AnalyzeData:
            return self._analyze(data)
        if kind is HandshakeData:
            return _handshake(data, bare=False)
        return data  # type: ignore[no-any-return]

    def inflate(self, chat: Chat) -> None:
        """
        Inflate the text of a compressed message; only once its signature has been verified.

        @raise WireError: C{FRAME_TOO_LARGE}, C{BAD_FRAME} or C{MESSAGE_TOO_LONG}.
        """
        if chat.packed is None:
            return
        packed, chat.packed = chat.packed, None
        chat.text = self._text(inflated(packed, self._max_frame_bytes))

    def _read_unusual(self, header: bytes, error: Exception) -> Handshake:
        """Read a bare handshake, or raise the error that describes C{header}."""
        try:
            header.decode()
            keys = _decode_keys(header)
        except UnicodeDecodeError:
            raise WireError(ErrorCode.BAD_FRAME, "not UTF-8") from None
        except (msgspec.DecodeError, RecursionError):
            raise WireError(ErrorCode.BAD_FRAME, "not a JSON object") from None
        if keys.event is ABSENT:
            if keys.bot_name is keys.device_id is keys.version is ABSENT:
                raise WireError(ErrorCode.BAD_FRAME, "neither an event nor a handshake")
            try:
                return _handshake(_decode_bare(header), bare=True)
            except UNREADABLE as bare_error:
                error = bare_error
            event = b'"handshake"'
        else:
            event = bytes(keys.event)
        # The fault names our own fields and types; of the input it quotes an unknown event only.
        fault = Fault("", "not readable")
        if isinstance(error, msgspec.ValidationError):
            fault = fault_of(error)
        if fault.place.startswith(("data.auth", "auth")):
            raise WireError(
                ErrorCode.AUTH_FAILED,
                "auth is not of the right form",
                fatal=event == b'"handshake"',
            ) from None
        if event == b'"handshake"':
            raise WireError(ErrorCode.BAD_HANDSHAKE, f"bad handshake: {fault}") from None
        text = "unknown event" if fault.place == "event" else str(fault)
        raise WireError(ErrorCode.BAD_FRAME, text) from None

    def _message(self, data: MessageData, tail: bytes) -> Chat:
        if data.message_type != "text" and data.message_type is not None:
            raise WireError(ErrorCode.BAD_FRAME, "message_type must be text")
        encoding = data.content_encoding
        if encoding is None:
            return _chat(_V33, data, self._text(tail), data.client_id)
        if len(tail) > self._max_tail_bytes:
            raise self._too_long()
        raw = unpacked(tail)
        if encoding == "base64":
            return _chat(_V33, data, self._text(raw), data.client_id)
        if encoding == "gzip+base64":
            return _chat(_V33, data, "", data.client_id, raw)
        raise WireError(ErrorCode.BAD_FRAME, "unknown content_encoding")

    def _analyze(self, data: AnalyzeData) -> Chat:
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
    data: MessageData | AnalyzeData,
    text: str,
    client_id: str | None = None,
    packed: bytes | None = None,
) -> Chat:
    room = data.room
    sender = data.sender or ""
    if not room or room.isspace() or not room.isprintable() or not sender.isprintable():
        room = _title(room, sender)
    # Nearly all ids are texts that need no further check.
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
    """@return: C{room}.  @raise WireError: it, or C{sender}, is not a valid name."""
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


def _channel_id(value: Id) -> str | None:
    """An id that the phone accepts back: digits, or L{None}."""
    if value is None:
        return None
    text = _id(value)
    return text if text.isdigit() and text.isascii() else None


def _handshake(data: HandshakeData, bare: bool) -> Handshake:
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
    except UNREADABLE:
        raise WireError(
            ErrorCode.BAD_HANDSHAKE, "capabilities: must be an array of texts"
        ) from None
    token: str | None
    try:
        token = _decode_token(data.session_token)
    except UNREADABLE:
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
        data.uptime,
        data.auth,
    )


# To phones

#: Beginning of the frames of each event.
_HEADS: Final[dict[ReplyEvent, bytes]] = {
    "messageResponse": b'{"event":"messageResponse","data":',
    "scheduleMessage": b'{"event":"scheduleMessage","data":',
    "broadcastMessage": b'{"event":"broadcastMessage","data":',
}


def encode_reply(
    reply: Reply,
    dialect: Dialect,
    timestamp: str,
    message_id: int | None = None,
    pack: Pack | None = None,
) -> bytes:
    """
    A whole line in the dialect of the phone, with lone surrogates replaced.

    @param timestamp: the time now, in the format of L{timestamp_text}.
    @param message_id: for a connection with C{ack}.
    @param pack: for a connection with C{gzip}.
    """
    content = reply.content
    if isinstance(content, Media):
        return b"".join(media_pieces(reply, content, dialect, timestamp, message_id))
    try:
        if dialect is _V32:
            old = ReplyData(
                reply.room,
                reply.channel_id,
                reply.bot_name,
                _old_text(content),
                message_id=message_id,
            )
            # messageResponse is the only event of 3.2.
            return b"".join((_HEADS["messageResponse"], encode(old), b"}\n"))
        encoding = "base64"
        length: int | None = None
        raw = content.encode("utf-8", "replace")
        tail = binascii.b2a_base64(raw, newline=False)
        if pack is not None and (packed := pack(raw, tail)) is not None:
            tail = packed
            encoding = "gzip+base64"
            length = len(raw)
        data = ReplyData(
            reply.room,
            reply.channel_id,
            reply.bot_name,
            None,
            "text",
            (0, len(tail)),
            timestamp,
            TIMEZONE,
            encoding,
            length,
            message_id,
        )
        return b"".join((_HEADS[reply.event], encode(data), b"}", tail, b"\n"))
    except UnicodeEncodeError:
        clean = Reply(
            sayable(reply.room), reply.channel_id, sayable(reply.bot_name), content, reply.event
        )
        return encode_reply(clean, dialect, timestamp, message_id, pack)


def _old_text(content: str) -> str:
    text = sayable(content)
    # Text that anybody typed must not become an order.
    return "\u200b" + text if text.startswith((IMAGE_ORDER, ADDRESS_ORDER)) else text


def media_pieces(
    reply: Reply,
    media: Media,
    dialect: Dialect,
    timestamp: str,
    message_id: int | None = None,
) -> Iterator[bytes]:
    """
    Encode files one piece at a time, so that the whole line of L{encode_reply} is never in memory.

    @param media: the content of C{reply}.
    @return: pieces of 64 KiB at most, but for the first.  Errors are raised by the call itself.
    """
    room, bot_name = sayable(reply.room), sayable(reply.bot_name)
    pieces = [
        piece
        if isinstance(piece, bytes)
        else quote(piece, safe=_ADDRESS_SAFE, errors="replace").encode()
        for piece in media.pieces
    ]
    are_files = isinstance(media.pieces[0], bytes)
    if dialect is _V32:
        # The text is long, and comes last.
        old = ReplyData(
            room,
            reply.channel_id,
            bot_name,
            message_id=message_id,
            media_wait_time=media.wait_ms,
        )
        order = (IMAGE_ORDER if are_files else ADDRESS_ORDER).encode()
        head = b"".join((_HEADS["messageResponse"], encode(old)[:-1], b',"text":"', order))
        return _joined(head, pieces, are_files, b"|||", b'"}}\n')
    positions = [0]
    for piece in pieces:
        length = (len(piece) + 2) // 3 * 4 if are_files else len(piece)
        positions.append(positions[-1] + length)
    data = ReplyData(
        room,
        reply.channel_id,
        bot_name,
        None,
        media.kind,
        positions,
        timestamp,
        TIMEZONE,
        message_id=message_id,
        message_format=media.format,
        media_wait_time=media.wait_ms,
    )
    head = b"".join((_HEADS[reply.event], encode(data), b"}"))
    return _joined(head, pieces, are_files, b"", b"\n")


def _joined(
    head: bytes, pieces: list[bytes], are_files: bool, between: bytes, end: bytes
) -> Iterator[bytes]:
    yield head
    for number, piece in enumerate(pieces):
        if number:
            yield between
        if are_files:
            for start in range(0, len(piece), _PIECE_BYTES):
                some = piece[start : start + _PIECE_BYTES]
                yield binascii.b2a_base64(some, newline=False)
        else:
            yield piece
    yield end


def media_address(url: str) -> str:
    """
    C{url} in the form that phones accept.

    @raise ValueError: it does not begin with C{http://} or C{https://}.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or CONTROL.search(url):
        raise ValueError("an address must begin with http:// or https://")
    return quote(url, safe=_ADDRESS_SAFE)


#: Fields of a greeting, none of them written.
_UNSAID: Final[dict[str, Any]] = dict.fromkeys(Greeting.__struct_fields__, msgspec.UNSET)


def encode_handshake_complete(
    *, approved: bool, message: str, server_version: str, timestamp: str, **more: object
) -> bytes:
    """Answer to a handshake.  @param more: fields for clients with capabilities."""
    said = {
        "success": True,
        "approved": approved,
        "message": message,
        "server_version": server_version,
        "timestamp": timestamp,
        "timezone": TIMEZONE,
        "message_positions": (0, 0),
        **more,
    }
    return encode_frame("handshakeComplete", Greeting(**(_UNSAID | said)))


def encode_error(code: ErrorCode, text: str) -> bytes:
    """An error."""
    return encode_frame("error", ErrorFrame(code, text))


def encode_ping(bot_name: str, server_timestamp: str) -> bytes:
    """A ping; the pong echoes C{server_timestamp} exactly."""
    return encode_frame("ping", Ping(bot_name, server_timestamp))


def encode_shutdown(reason: str, reconnect_after: float) -> bytes:
    """Notice: the server closes soon.  @param reconnect_after: in seconds."""
    return encode_frame("serverShutdown", ShutdownNotice(reason, round(reconnect_after, 3)))


def encode_replay() -> bytes:
    """Notice: a signature of this connection came on another one, too."""
    text = "a signature of this connection came on another one: somebody listens to the line"
    return encode_frame("replay", ReplayNotice(text))


def encode_probe() -> bytes:
    """Answer to a client's probe."""
    return encode_frame("probe", Probe())


def encode_ack(client_id: str) -> bytes:
    """Acknowledge the message that the client named C{client_id}."""
    return encode_frame("ack", ServerAck(client_id))
