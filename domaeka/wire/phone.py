"""
The phone's side: writes frames of a phone, reads frames of the server.

L{PhoneWriter} makes whole lines, newline included; L{read_server_frame} returns one of
L{ServerFrame} for a line, or raises L{WireError} and nothing else.
"""

import binascii
import itertools
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec

from domaeka import __version__
from domaeka.errors import ErrorCode, WireError
from domaeka.validation import fault_of
from domaeka.wire.frames import (
    ADDRESS_ORDER,
    FROM_SERVER,
    IMAGE_ORDER,
    SEOUL,
    TIMEZONE,
    UNREADABLE,
    AnalyzeData,
    Auth,
    Dialect,
    ErrorFrame,
    Greeting,
    HandshakeData,
    Media,
    MediaType,
    MessageData,
    MigrationNotice,
    Monitoring,
    Pack,
    Ping,
    Pong,
    Probe,
    ReplayNotice,
    Reply,
    ReplyData,
    ServerAck,
    ShutdownNotice,
    encode,
    encode_frame,
    sayable,
    timestamp_text,
    unpacked,
)
from domaeka.wire.framing import inflated, split_frame

#: Longest line that a phone accepts, also once inflated, in bytes: twice the outbox of a device
#: (docs/settings.md, C{queue.max_bytes}), since a picture is one line.
MAX_SERVER_LINE_BYTES: Final = 33_554_432
#: Longest wait time of media that is believed, in milliseconds: an hour.
MAX_WAIT_MS: Final = 3_600_000
#: Most files in a media frame: more than a chat room shows.
MAX_PIECES: Final = 1000


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """
    Identity that a phone gives in its handshake and signatures.

    @ivar version: of its script, or of another client.
    @ivar client_type: kind of the client; the phones' app is C{MessengerBotR}.
    @ivar device_uuid: the Android id; empty: the same as C{device_id}.
    """

    bot_name: str
    device_id: str
    version: str = __version__
    client_type: str = "domaeka"
    device_uuid: str = ""
    mac_address: str = "unknown"
    ip_address: str = "unknown"
    device_info: str = ""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A chat message from a room.  C{channel_id}: digits, or L{None} where it is not known."""

    room: str
    sender: str
    text: str
    channel_id: str | None = None
    is_group: bool = False
    is_mention: bool = False
    log_id: str | None = None
    user_hash: str | None = None


class PhoneWriter:
    """Writer of one phone's lines."""

    def __init__(
        self,
        identity: Identity,
        sign: Callable[[str], str] | None,
        seconds: Callable[[], float],
    ) -> None:
        """
        @param sign: sign a text, to which it adds the salt; L{None}: nothing is signed.
        @param seconds: the phone's clock, in seconds since 1970.
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
        """A new signature; L{None} if this phone does not sign."""
        if self._sign is None:
            return None
        identity = self.identity
        timestamp = int(self._seconds() * 1000)
        return Auth(
            client_type=identity.client_type,
            bot_name=identity.bot_name,
            device_uuid=identity.device_uuid or identity.device_id,
            device_id=identity.device_id,
            mac_address=identity.mac_address,
            ip_address=identity.ip_address,
            timestamp=timestamp,
            version=identity.version,
            signature=self._sign(f"{self._signed}|{timestamp}"),
        )

    def handshake(
        self,
        *,
        bare: bool = False,
        signed: bool = False,
        capabilities: Sequence[str] = (),
        session_token: str | None = None,
        uptime: float | None = None,
    ) -> bytes:
        """
        @param bare: True for the form of 3.2.
        @param signed: True to add C{auth}, as only clients with capabilities do.
        @param uptime: for C{delivery}: time since the app was started, in seconds.
        """
        identity = self.identity
        data = HandshakeData(
            client_type=identity.client_type,
            bot_name=identity.bot_name,
            version=identity.version,
            device_id=identity.device_id,
            device_ip=identity.ip_address,
            device_info=identity.device_info,
            auth=self.auth() if signed else None,
        )
        if not bare:
            data.timestamp = timestamp_text(self._seconds())
            data.timezone = TIMEZONE
            data.message_positions = (0, 0)
        if capabilities:
            data.capabilities = list(capabilities)
        if session_token is not None:
            data.session_token = session_token
        data.uptime = uptime
        return encode(data) + b"\n" if bare else encode_frame("handshake", data)

    def chat(
        self,
        said: Said,
        dialect: Dialect = Dialect.V33,
        *,
        client_id: str | None = None,
        pack: Pack | None = None,
    ) -> bytes:
        """
        @param client_id: id for the server's acknowledgement; 3.3 only.
        @param pack: compresses the text; 3.3 only.
        """
        identity = self.identity
        if dialect is Dialect.V32:
            moment = datetime.fromtimestamp(self._seconds(), SEOUL)
            old = AnalyzeData(
                room=sayable(said.room),
                text=sayable(said.text),
                sender=sayable(said.sender),
                is_group_chat=said.is_group,
                channel_id=said.channel_id,
                log_id=said.log_id,
                user_hash=said.user_hash,
                is_mention=said.is_mention,
                timestamp=moment.strftime("%Y-%m-%d %H:%M:%S"),
                bot_name=identity.bot_name,
                client_type=identity.client_type,
                auth=self.auth(),
            )
            return encode_frame("analyze", old)
        raw = said.text.encode("utf-8", "replace")
        tail = binascii.b2a_base64(raw, newline=False)
        packed = pack(raw, tail) if pack is not None else None
        data = MessageData(
            sayable(said.room),
            said.channel_id,
            "text",
            "base64" if packed is None else "gzip+base64",
            (0, len(tail if packed is None else packed)),
            timestamp_text(self._seconds()),
            TIMEZONE,
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
        return b'{"event":"message","data":%b}%b\n' % (
            encode(data),
            tail if packed is None else packed,
        )

    def pong(
        self,
        server_timestamp: Any,
        monitoring: Monitoring | None = None,
        event: Literal["pong", "ping"] = "pong",
    ) -> bytes:
        """
        Answer to a ping.

        @param server_timestamp: that of the ping.
        @param event: 3.2, and one 3.3.2, answer with C{ping}.
        """
        data = Pong(
            self.identity.bot_name,
            server_timestamp,
            monitoring or Monitoring(0.0, 0.0, 0.0, 0, 0),
            self.auth(),
        )
        return encode_frame(event, data)


# From a server


class Delivered(msgspec.Struct):
    """Message for a room.  C{message_id}: L{None} where the server does not number messages."""

    reply: Reply
    message_id: int | None = None


class Unknown(msgspec.Struct):
    """A frame whose event this version does not know: to be dropped."""

    event: str


ServerFrame: TypeAlias = (
    Greeting
    | Delivered
    | Ping
    | ServerAck
    | Probe
    | ShutdownNotice
    | MigrationNotice
    | ReplayNotice
    | ErrorFrame
    | Unknown
)


class _Envelope(msgspec.Struct):
    event: str
    data: msgspec.Raw = msgspec.Raw(b"{}")


_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode
_DECODERS: Final[dict[str, Callable[[msgspec.Raw], Any]]] = {
    event: msgspec.json.Decoder(data).decode for event, data in FROM_SERVER.items()
}


def read_server_frame(line: bytes, dialect: Dialect = Dialect.V33) -> ServerFrame:
    """
    Read a line of the server; frames that phones in the field silently drop are errors.

    @param line: without its newline.
    @param dialect: of the phone: a reply in the other form is an error.
    @raise WireError: C{BAD_FRAME} or C{FRAME_TOO_LARGE}.
    """
    header, tail = split_frame(line)
    try:
        str(header, "utf-8")  # msgspec does not check what it skips
        frame = _decode_envelope(header)
        event = frame.event
        decode = _DECODERS.get(event)
        if decode is None:
            return Unknown(event)
        data = decode(frame.data)
        if type(data) is ReplyData:
            return _delivered(event, data, tail, dialect)
        return data  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise WireError(ErrorCode.BAD_FRAME, str(fault_of(error))) from None
    except UNREADABLE:
        raise WireError(ErrorCode.BAD_FRAME, "not a JSON object in UTF-8") from None


def _delivered(event: str, data: ReplyData, tail: bytes, dialect: Dialect) -> Delivered:
    content: str | Media
    if dialect is Dialect.V32:
        content = _old_content(data)
    elif data.message_type == "text":
        content = _text(data, tail)
    elif data.message_type in ("image", "audio", "video", "document"):
        content = _media(data.message_type, data, tail)  # type: ignore[arg-type]
    else:
        raise WireError(ErrorCode.BAD_FRAME, "message_type: none, or not one that a phone knows")
    reply = Reply(data.room or "", data.channel_id, data.bot_name or "", content)
    reply.event = event  # type: ignore[assignment]
    return Delivered(reply, data.message_id)


def _text(data: ReplyData, tail: bytes) -> str:
    encoding = data.content_encoding
    if encoding is None:
        text = str(tail, "utf-8")
        _check_positions(data.message_positions, len(text))
        return text
    _check_positions(data.message_positions, len(tail))
    raw = unpacked(tail)
    if encoding == "gzip+base64":
        raw = inflated(raw, MAX_SERVER_LINE_BYTES)
        if data.content_length is not None and data.content_length != len(raw):
            raise WireError(ErrorCode.BAD_FRAME, "content_length is not that of the text")
    elif encoding != "base64":
        raise WireError(ErrorCode.BAD_FRAME, "unknown content_encoding")
    return str(raw, "utf-8")


def _media(kind: MediaType, data: ReplyData, tail: bytes) -> Media:
    text = str(tail, "utf-8")
    positions = data.message_positions
    _check_positions(positions, len(text))
    pieces = [text[a:b] for a, b in itertools.pairwise(positions)]
    return _files(kind, data.message_format or "png", pieces, data.media_wait_time)


def _old_content(data: ReplyData) -> str | Media:
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
    wait_ms = int(min(wait, MAX_WAIT_MS)) if wait is not None and wait > 0 else None
    if pieces[0].startswith(("http://", "https://")):
        return Media(tuple(pieces), kind, suffix, wait_ms)
    raw = tuple(unpacked(piece.encode()) for piece in pieces)
    return Media(raw, kind, suffix, wait_ms)


def _check_positions(positions: Sequence[int], length: int) -> None:
    """Refuse positions that do not cut C{length} characters into non-empty pieces."""
    if (
        not 2 <= len(positions) <= MAX_PIECES + 1
        or positions[0] != 0
        or positions[-1] != length
        or any(a >= b for a, b in itertools.pairwise(positions))
    ):
        raise WireError(ErrorCode.BAD_FRAME, "message_positions do not cut the tail")
