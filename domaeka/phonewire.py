"""
The phone's side of the wire: what a phone says, and what it is told.

The wire itself is described in docs/protocol.md.  L{PhoneWriter} makes whole lines, newline
included; L{read_server_frame} turns a line of the server into one of L{ServerFrame}, or raises
L{WireError}, and nothing else.
"""

import binascii
import itertools
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec

from domaeka.errors import ErrorCode, WireError
from domaeka.messages import (
    Auth,
    Dialect,
    Media,
    MediaType,
    Monitoring,
    Reply,
    encode_frame,
    sayable,
    timestamp_text,
)
from domaeka.messages.names import ADDRESS_ORDER, IMAGE_ORDER, SEOUL
from domaeka.wire import inflated, split_frame

#: Longest line that a phone takes from its server, in bytes: twice what may wait for one device
#: (docs/settings.md, C{queue.max_bytes}), since a picture is one line.
MAX_SERVER_LINE_BYTES: Final = 33_554_432
#: Most pieces of one media frame: more than a chat room shows.
MAX_PIECES: Final = 1000

_encode: Final = msgspec.json.Encoder().encode


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a phone says of itself.

    @ivar version: of its script.
    @ivar device_uuid: the Android id once more; empty: C{device_id}.
    """

    bot_name: str
    device_id: str
    version: str = "3.3.3"
    client_type: str = "MessengerBotR"
    device_uuid: str = ""
    mac_address: str = "unknown"
    ip_address: str = "unknown"
    device_info: str = ""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """
    Something that somebody wrote in a room.

    @ivar channel_id: digits, or L{None} where the phone does not know it.
    """

    room: str
    sender: str
    text: str
    channel_id: str | None = None
    is_group: bool = False
    is_mention: bool = False
    log_id: str | None = None
    user_hash: str | None = None


class _MessageData(msgspec.Struct, omit_defaults=True):
    room: str
    channel_id: str | None
    message_type: str
    content_encoding: str | None
    message_positions: Sequence[int]
    timestamp: str
    timezone: str
    sender: str
    is_group_chat: bool
    log_id: str | None
    user_hash: str | None
    is_mention: bool
    bot_name: str
    client_type: str
    auth: Auth | None
    content_length: int | None = None
    client_id: str | None = None


class _MessageFrame(msgspec.Struct):
    event: str
    data: _MessageData


class _AnalyzeData(msgspec.Struct, rename="camel"):
    room: str
    text: str
    sender: str
    is_group_chat: bool
    channel_id: str | None
    log_id: str | None
    user_hash: str | None
    is_mention: bool
    timestamp: str
    bot_name: str
    client_type: str
    auth: Auth | None


class _AnalyzeFrame(msgspec.Struct):
    event: str
    data: _AnalyzeData


class PhoneWriter:
    """Make the lines of one phone."""

    def __init__(
        self,
        identity: Identity,
        sign: Callable[[str], str] | None,
        seconds: Callable[[], float],
    ) -> None:
        """
        @param sign: the signature of a text to which the salt is yet to be added; L{None}: nothing
            is signed.
        @param seconds: the time now by the phone's clock, in seconds since 1970.
        """
        self.identity = identity
        self._sign = sign
        self._seconds = seconds
        self._signed = "|".join(
            (
                identity.client_type,
                identity.bot_name,
                identity.device_uuid or identity.device_id,
                identity.mac_address,
                identity.ip_address,
            )
        )

    def auth(self) -> Auth | None:
        """A fresh signature, if this phone signs."""
        if self._sign is None:
            return None
        identity = self.identity
        timestamp = int(self._seconds() * 1000)
        return Auth(
            identity.bot_name,
            identity.device_id,
            timestamp,
            self._sign(f"{self._signed}|{timestamp}"),
            identity.client_type,
            identity.device_uuid or identity.device_id,
            identity.mac_address,
            identity.ip_address,
            identity.version,
        )

    def handshake(
        self,
        *,
        bare: bool = False,
        signed: bool = False,
        capabilities: Sequence[str] = (),
        session_token: str | None = None,
    ) -> bytes:
        """
        @param bare: in the form of 3.2.
        @param signed: with C{auth}, as only clients with capabilities do.
        """
        identity = self.identity
        data: dict[str, Any] = {
            "clientType": identity.client_type,
            "botName": identity.bot_name,
            "version": identity.version,
            "deviceID": identity.device_id,
            "deviceIP": identity.ip_address,
            "deviceInfo": identity.device_info,
        }
        if not bare:
            data["timestamp"] = timestamp_text(self._seconds())
            data["timezone"] = "Asia/Seoul"
            data["message_positions"] = (0, 0)
        if capabilities:
            data["capabilities"] = list(capabilities)
        if session_token is not None:
            data["session_token"] = session_token
        if signed and (auth := self.auth()) is not None:
            data["auth"] = auth
        return _encode(data) + b"\n" if bare else encode_frame("handshake", data)

    def chat(
        self,
        said: Said,
        dialect: Dialect = Dialect.V33,
        *,
        client_id: str | None = None,
        pack: Callable[[bytes, bytes], bytes | None] | None = None,
    ) -> bytes:
        """
        @param client_id: what the server is to acknowledge it by; 3.3 only.
        @param pack: given the text's bytes and their base64, the base64 of their gzip stream, or
            L{None} where that saves too little; 3.3 only.
        """
        identity = self.identity
        if dialect is Dialect.V32:
            moment = datetime.fromtimestamp(self._seconds(), SEOUL)
            return (
                _encode(
                    _AnalyzeFrame(
                        "analyze",
                        _AnalyzeData(
                            sayable(said.room),
                            sayable(said.text),
                            sayable(said.sender),
                            said.is_group,
                            said.channel_id,
                            said.log_id,
                            said.user_hash,
                            said.is_mention,
                            moment.strftime("%Y-%m-%d %H:%M:%S"),
                            identity.bot_name,
                            identity.client_type,
                            self.auth(),
                        ),
                    )
                )
                + b"\n"
            )
        raw = said.text.encode("utf-8", "replace")
        tail = binascii.b2a_base64(raw, newline=False)
        packed = pack(raw, tail) if pack is not None else None
        data = _MessageData(
            sayable(said.room),
            said.channel_id,
            "text",
            "base64" if packed is None else "gzip+base64",
            (0, len(tail if packed is None else packed)),
            timestamp_text(self._seconds()),
            "Asia/Seoul",
            sayable(said.sender),
            said.is_group,
            said.log_id,
            said.user_hash,
            said.is_mention,
            identity.bot_name,
            identity.client_type,
            self.auth(),
            None if packed is None else len(raw),
            client_id,
        )
        header = _encode(_MessageFrame("message", data))
        return b"%b%b\n" % (header, tail if packed is None else packed)

    def pong(
        self,
        server_timestamp: object,
        monitoring: Monitoring | None = None,
        event: Literal["pong", "ping"] = "pong",
    ) -> bytes:
        """
        The answer to a ping.

        @param server_timestamp: as it came.
        @param event: 3.2, and one 3.3.2, answer with C{ping}.
        """
        data: dict[str, Any] = {
            "bot_name": self.identity.bot_name,
            "server_timestamp": server_timestamp,
            "monitoring": monitoring or Monitoring(0.0, 0.0, 0.0, 0, 0),
        }
        if (auth := self.auth()) is not None:
            data["auth"] = auth
        return encode_frame(event, data)


def encode_received(message_id: int) -> bytes:
    """Everything up to C{message_id} has arrived."""
    return encode_frame("ack", {"message_id": message_id})


def encode_migrated(new_host: str, new_port: int) -> bytes:
    """The new server has greeted us; this connection will be closed."""
    return encode_frame("migrated", {"new_host": new_host, "new_port": new_port})


# What comes from a server


class Greeting(msgspec.Struct):
    """
    The answer to a handshake.

    @ivar session_expires_in: in seconds, counted from the end of this connection.
    @ivar ping_interval: in seconds.
    @ivar epoch: what the numbers of C{message_id} belong to.
    """

    success: bool = True
    approved: bool = True
    message: str = ""
    server_version: str = ""
    capabilities: list[str] = []
    session_token: str | None = None
    session_expires_in: float | None = None
    resumed: bool = False
    max_frame_bytes: int | None = None
    ping_interval: float | None = None
    node: str | None = None
    epoch: str | None = None


class Delivered(msgspec.Struct):
    """
    Something for a room.

    @ivar message_id: L{None} where the server does not count.
    """

    reply: Reply
    message_id: int | None = None


class Asked(msgspec.Struct):
    """
    A ping.

    @ivar server_timestamp: the very text that is to be echoed.
    """

    server_timestamp: msgspec.Raw = msgspec.Raw(b"null")


class Taken(msgspec.Struct):
    """The server has taken the message that we called C{client_id}."""

    client_id: str


class Closing(msgspec.Struct):
    """
    The server closes soon.

    @ivar reconnect_after: when to come back, in seconds.
    """

    reason: str = ""
    reconnect_after: float = 0.0


class Moving(msgspec.Struct):
    """
    We are to go to another server.

    @ivar migrate_after: when, in seconds.
    @ivar expires: until when this may be followed, in milliseconds since 1970.
    """

    new_host: str
    new_port: int
    migrate_after: float = 0.0
    tls: bool = False
    expires: int = 0
    signature: str = ""

    @property
    def signed_text(self) -> str:
        """What C{signature} is of, but for the salt."""
        tls = "true" if self.tls else "false"
        return f"serverMigration|{self.new_host}|{self.new_port}|{tls}|{self.expires}"


class Complaint(msgspec.Struct):
    """
    What went wrong.

    @ivar code: one of L{ErrorCode}, or what a newer server knows.
    """

    code: str
    message: str = ""


class Unknown(msgspec.Struct):
    """An event that this version does not know: to be dropped."""

    event: str


ServerFrame: TypeAlias = (
    Greeting | Delivered | Asked | Taken | Closing | Moving | Complaint | Unknown
)


class _ReplyData(msgspec.Struct):
    room: str | None = None
    channel_id: str | None = None
    bot_name: str | None = None
    text: str | None = None
    message_type: str | None = None
    content_encoding: str | None = None
    content_length: int | None = None
    message_positions: list[int] = []
    message_format: str | None = None
    media_wait_time: int | float | None = None
    message_id: int | None = None


class _Envelope(msgspec.Struct):
    event: str
    data: msgspec.Raw = msgspec.Raw(b"{}")


_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode
_decode_reply: Final = msgspec.json.Decoder(_ReplyData).decode
_DECODERS: Final[dict[str, Callable[[msgspec.Raw], ServerFrame]]] = {
    "handshakeComplete": msgspec.json.Decoder(Greeting).decode,
    "ping": msgspec.json.Decoder(Asked).decode,
    "ack": msgspec.json.Decoder(Taken).decode,
    "serverShutdown": msgspec.json.Decoder(Closing).decode,
    "serverMigration": msgspec.json.Decoder(Moving).decode,
    "error": msgspec.json.Decoder(Complaint).decode,
}
_REPLY_EVENTS: Final = frozenset({"messageResponse", "scheduleMessage", "broadcastMessage"})


def read_server_frame(
    line: bytes, dialect: Dialect = Dialect.V33, max_bytes: int = MAX_SERVER_LINE_BYTES
) -> ServerFrame:
    """
    Read a line of the server, as strictly as the phones in the field do: what they would drop
    without a word is an error.

    @param line: without its newline.
    @param dialect: of the phone: a reply in the other form is an error.
    @param max_bytes: most that a gzip tail may inflate to.
    @raise WireError: C{BAD_FRAME} or C{FRAME_TOO_LARGE}.
    """
    header, tail = split_frame(line)
    try:
        str(header, "utf-8")  # msgspec does not look into what it skips
        frame = _decode_envelope(header)
        event = frame.event
        if event in _REPLY_EVENTS:
            return _delivered(event, _decode_reply(frame.data), tail, dialect, max_bytes)
        decode = _DECODERS.get(event)
        return decode(frame.data) if decode is not None else Unknown(event)
    except msgspec.ValidationError as error:
        raise WireError(ErrorCode.BAD_FRAME, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise WireError(ErrorCode.BAD_FRAME, "not a JSON object in UTF-8") from None


def _delivered(
    event: str, data: _ReplyData, tail: bytes, dialect: Dialect, max_bytes: int
) -> Delivered:
    content: str | Media
    if dialect is Dialect.V32:
        content = _old_content(data)
    elif data.message_type == "text":
        content = _text(data, tail, max_bytes)
    elif data.message_type in ("image", "audio", "video", "document"):
        content = _media(data.message_type, data, tail)  # type: ignore[arg-type]
    else:
        raise WireError(ErrorCode.BAD_FRAME, "message_type: none, or not one that a phone knows")
    reply = Reply(data.room or "", data.channel_id, data.bot_name or "", content)
    reply.event = event  # type: ignore[assignment]
    return Delivered(reply, data.message_id)


def _text(data: _ReplyData, tail: bytes, max_bytes: int) -> str:
    encoding = data.content_encoding
    if encoding is None:
        text = str(tail, "utf-8")
        _check_positions(data.message_positions, len(text))
        return text
    _check_positions(data.message_positions, len(tail))
    raw = _base64(tail)
    if encoding == "gzip+base64":
        raw = inflated(raw, max_bytes)
        if data.content_length is not None and data.content_length != len(raw):
            raise WireError(ErrorCode.BAD_FRAME, "content_length is not that of the text")
    elif encoding != "base64":
        raise WireError(ErrorCode.BAD_FRAME, "unknown content_encoding")
    return str(raw, "utf-8")


def _media(kind: MediaType, data: _ReplyData, tail: bytes) -> Media:
    text = str(tail, "utf-8")
    positions = data.message_positions
    _check_positions(positions, len(text))
    pieces = [text[a:b] for a, b in itertools.pairwise(positions)]
    return _files(kind, data.message_format or "png", pieces, data.media_wait_time)


def _old_content(data: _ReplyData) -> str | Media:
    text = data.text
    if text is None:
        raise WireError(ErrorCode.BAD_FRAME, "a reply without text")
    for order in (IMAGE_ORDER, ADDRESS_ORDER):
        if text.startswith(order):
            pieces = text[len(order) :].split("|||", MAX_PIECES)
            return _files("image", data.message_format or "png", pieces, data.media_wait_time)
    return text


def _files(kind: MediaType, suffix: str, pieces: list[str], wait: int | float | None) -> Media:
    if len(pieces) > MAX_PIECES:
        raise WireError(ErrorCode.BAD_FRAME, f"more than {MAX_PIECES} files in a frame")
    wait_ms = int(wait) if wait is not None and wait > 0 else None
    if pieces[0].startswith(("http://", "https://")):
        return Media(tuple(pieces), kind, suffix, wait_ms)
    raw = tuple(_base64(piece.encode()) for piece in pieces)
    return Media(raw, kind, suffix, wait_ms)


def _check_positions(positions: list[int], length: int) -> None:
    """Refuse what does not cut C{length} characters into pieces, all of them non-empty."""
    if (
        not 2 <= len(positions) <= MAX_PIECES + 1
        or positions[0] != 0
        or positions[-1] != length
        or any(a >= b for a, b in itertools.pairwise(positions))
    ):
        raise WireError(ErrorCode.BAD_FRAME, "message_positions do not cut the tail")


def _base64(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise WireError(ErrorCode.BAD_FRAME, "the tail is not base64") from None
