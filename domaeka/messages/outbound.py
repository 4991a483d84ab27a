"""What goes to a phone: whole lines."""

import binascii
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias
from urllib.parse import quote, urlsplit

import msgspec

from domaeka.errors import ErrorCode
from domaeka.messages.names import ADDRESS_ORDER, CONTROL, IMAGE_ORDER, Dialect, sayable

#: How long a phone stays deaf beyond the wait time of a media frame, in seconds, and how long
#: the wait is where none is given.  Source: docs/protocol.md, "Media".
MEDIA_SETTLE_SECONDS: Final = 1.2
MEDIA_DEFAULT_WAIT_SECONDS: Final = 15.0

_V32: Final = Dialect.V32  # to look it up in its Enum takes 0.2 µs
#: How much of a file is encoded at a time, in bytes; makes 64 KiB of base64.
_PIECE_BYTES: Final = 49_152
#: What may stand in an address.  No brace: the header ends at the line's last one.  No bar: 3.2
#: cuts at three.
_ADDRESS_SAFE: Final = "%/:?#[]@!$&'()*+,;=~-._"

MediaType: TypeAlias = Literal["image", "audio", "video", "document"]
ReplyEvent: TypeAlias = Literal["messageResponse", "scheduleMessage", "broadcastMessage"]


class Media(msgspec.Struct, frozen=True):
    """
    Files for a room: C{pieces} are all bytes or all addresses, and at least one.

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
    event: ReplyEvent = "messageResponse"

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


class _ReplyData(msgspec.Struct, omit_defaults=True, gc=False):
    room: str
    channel_id: str | None
    bot_name: str
    message_type: str
    message_positions: Sequence[int]
    timestamp: str
    timezone: str
    content_encoding: str | None = None
    content_length: int | None = None
    message_id: int | None = None
    message_format: str | None = None
    media_wait_time: int | None = None


class _OldReplyData(msgspec.Struct, omit_defaults=True, gc=False):
    room: str
    channel_id: str | None
    bot_name: str
    text: str
    message_id: int | None = None


class _OldMediaHead(msgspec.Struct, omit_defaults=True, gc=False):
    """All but C{text}, which follows it."""

    room: str
    channel_id: str | None
    bot_name: str
    message_id: int | None = None
    media_wait_time: int | None = None


#: How the frames of each event begin.
_HEADS: Final[dict[ReplyEvent, bytes]] = {
    "messageResponse": b'{"event":"messageResponse","data":',
    "scheduleMessage": b'{"event":"scheduleMessage","data":',
    "broadcastMessage": b'{"event":"broadcastMessage","data":',
}

#: Compresses a tail: given the text's bytes and their base64, the base64 of their gzip stream, or
#: L{None} where that saves too little.
Pack: TypeAlias = Callable[[bytes, bytes], bytes | None]


def encode_reply(
    reply: Reply,
    dialect: Dialect,
    timestamp: str,
    message_id: int | None = None,
    pack: Pack | None = None,
) -> bytes:
    """
    A whole line in the phone's own dialect.

    What UTF-8 cannot say (lone surrogates) is replaced.

    @param timestamp: the time now, as L{timestamp_text} gives it.
    @param message_id: for a connection that acknowledges.
    @param pack: for a connection that takes C{gzip}.
    """
    content = reply.content
    if isinstance(content, Media):
        return b"".join(media_pieces(reply, content, dialect, timestamp, message_id))
    try:
        if dialect is _V32:
            old = _OldReplyData(
                reply.room, reply.channel_id, reply.bot_name, _old_text(content), message_id
            )
            # 3.2 knows one event only.
            return b"".join((_HEADS["messageResponse"], _encode(old), b"}\n"))
        encoding = "base64"
        length: int | None = None
        raw = content.encode("utf-8", "replace")
        tail = binascii.b2a_base64(raw, newline=False)
        if pack is not None and (packed := pack(raw, tail)) is not None:
            tail = packed
            encoding = "gzip+base64"
            length = len(raw)
        data = _ReplyData(
            reply.room,
            reply.channel_id,
            reply.bot_name,
            "text",
            (0, len(tail)),
            timestamp,
            "Asia/Seoul",
            encoding,
            length,
            message_id,
        )
        return b"".join((_HEADS[reply.event], _encode(data), b"}", tail, b"\n"))
    except UnicodeEncodeError:
        clean = Reply(
            sayable(reply.room), reply.channel_id, sayable(reply.bot_name), content, reply.event
        )
        return encode_reply(clean, dialect, timestamp, message_id, pack)


def _old_text(content: str) -> str:
    text = sayable(content)
    # What a stranger typed must not become an order.
    return "\u200b" + text if text.startswith((IMAGE_ORDER, ADDRESS_ORDER)) else text


def media_pieces(
    reply: Reply,
    media: Media,
    dialect: Dialect,
    timestamp: str,
    message_id: int | None = None,
) -> Iterator[bytes]:
    """
    A whole line with files, as L{encode_reply} has it, a piece at a time: what has not been
    asked for takes no room.

    @param media: what C{reply} holds.
    @return: pieces of 64 KiB at most, but for the first.  What cannot be written is found now.
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
        old = _OldMediaHead(room, reply.channel_id, bot_name, message_id, media.wait_ms)
        order = (IMAGE_ORDER if are_files else ADDRESS_ORDER).encode()
        head = b"".join((_HEADS["messageResponse"], _encode(old)[:-1], b',"text":"', order))
        return _joined(head, pieces, are_files, b"|||", b'"}}\n')
    positions = [0]
    for piece in pieces:
        length = (len(piece) + 2) // 3 * 4 if are_files else len(piece)
        positions.append(positions[-1] + length)
    data = _ReplyData(
        room,
        reply.channel_id,
        bot_name,
        media.kind,
        positions,
        timestamp,
        "Asia/Seoul",
        message_id=message_id,
        message_format=media.format,
        media_wait_time=media.wait_ms,
    )
    head = b"".join((_HEADS[reply.event], _encode(data), b"}"))
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
    C{url} in the form in which a phone can be given it.

    @raise ValueError: not an address that begins with C{http://} or C{https://}.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or CONTROL.search(url):
        raise ValueError("an address must begin with http:// or https://")
    return quote(url, safe=_ADDRESS_SAFE)


#: The second, and the millisecond, for which a time was last written, and their texts: most come
#: many to one.
_last_second: tuple[int, str] = (0, "1970-01-01T00:00:00")
_last_millisecond: tuple[int, str] = (0, "1970-01-01T00:00:00.000Z")


def timestamp_text(seconds: float) -> str:
    """C{seconds} since 1970 as the wire writes times: ISO 8601, UTC, milliseconds."""
    global _last_millisecond, _last_second
    # Half a microsecond more: 0.001 s times 1000 may fall short of 1.
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


def encode_migration(
    new_host: str, new_port: int, migrate_after: float, tls: bool, expires: int, signature: str
) -> bytes:
    """
    A notice that the phone is to go to another server.

    @param migrate_after: in seconds.
    @param expires: in milliseconds since 1970.
    @param signature: of C{serverMigration|new_host|new_port|tls|expires|salt}.
    """
    data = {
        "new_host": new_host,
        "new_port": new_port,
        "migrate_after": round(migrate_after, 3),
        "tls": tls,
        "expires": expires,
        "signature": signature,
    }
    return encode_frame("serverMigration", data)


def encode_ack(client_id: str) -> bytes:
    """The message that the client called C{client_id} has been taken."""
    return encode_frame("ack", {"client_id": client_id})
