"""
What a bridge script on a phone does: bytes in, bytes out, the clock handed in.

The versions in the field, quirks included, as docs/protocol.md tells of them.  L{BridgeScript} is
one run of one script; L{domaeka.testing.FakePhone} gives it sockets and a reactor.
"""

import binascii
import itertools
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from domaeka.errors import DomaekaError
from domaeka.messages import (
    MEDIA_DEFAULT_WAIT_SECONDS,
    MEDIA_SETTLE_SECONDS,
    Dialect,
    Monitoring,
)
from domaeka.phonewire import Identity, PhoneWriter, Said

#: Most queued lines that go out on one connection.  Source: docs/protocol.md, "Handshake".
LINES_A_CONNECTION: Final = 10
#: How long a line waits in the queue, in seconds.  Source: docs/protocol.md, "Handshake".
QUEUE_SECONDS: Final = 30.0
#: Longest line that is read, in bytes: more than any phone has memory for.
MAX_LINE_BYTES: Final = 256 * 1024 * 1024

_DIGITS: Final = re.compile(r"-?[0-9]+\Z", re.ASCII)
_LINE_END: Final = re.compile(rb"[\r\n]")
_MEDIA_TYPES: Final = ("image", "audio", "video", "document")
#: Such as the chat app gives its messages: beyond a double's precision.
_FIRST_LOG_ID: Final = 3_412_345_678_901_234_567
#: Above this a number of JavaScript is not exact.
_EXACT_BELOW: Final = 2**53


class ScriptVersion(msgspec.Struct, frozen=True, kw_only=True):
    """
    In what the scripts differ.

    @ivar version: what it says in its handshake.
    @ivar bare_handshake: whether that is without C{event}.
    @ivar pong_event: the event of its answer to a ping.
    @ivar heeds_refusal: whether it closes at C{success:false}.
    @ivar heeds_wait_time: whether it reads C{media_wait_time}.
    """

    version: str
    dialect: Dialect
    bare_handshake: bool
    pong_event: Literal["ping", "pong"]
    heeds_refusal: bool = True
    heeds_wait_time: bool = True


#: The scripts in the field.  Source: docs/protocol.md, "Old phones".
SCRIPTS: Final[Mapping[str, ScriptVersion]] = {
    "3.2.0": ScriptVersion(
        version="3.2.0",
        dialect=Dialect.V32,
        bare_handshake=True,
        pong_event="ping",
        heeds_refusal=False,
        heeds_wait_time=False,
    ),
    "3.2.1": ScriptVersion(
        version="3.2.1", dialect=Dialect.V32, bare_handshake=True, pong_event="ping"
    ),
    "3.3.2": ScriptVersion(
        version="3.3.2", dialect=Dialect.V33, bare_handshake=False, pong_event="pong"
    ),
    "3.3.2 bare": ScriptVersion(
        version="3.3.2", dialect=Dialect.V33, bare_handshake=True, pong_event="ping"
    ),
    "3.3.3": ScriptVersion(
        version="3.3.3", dialect=Dialect.V33, bare_handshake=False, pong_event="pong"
    ),
}


class Picture(NamedTuple):
    """
    One file that a phone sent into a room.

    @ivar content: its bytes, or the address that it was fetched from.
    @ivar extension: what the phone saved it as.
    """

    content: bytes | str
    extension: str


class Shown(msgspec.Struct, frozen=True):
    """
    What a phone sent into a room: a text, or files.

    @ivar channel_id: the room, after what the phone's numbers have done to it; L{None}: found
        by its name.
    @ivar time: when, by the clock handed in.
    @ivar deaf_seconds: how long the phone reads nothing because of it.
    """

    room: str
    channel_id: str | None
    text: str | None
    media: tuple[Picture, ...]
    event: str
    time: float
    deaf_seconds: float = 0.0

    @property
    def contents(self) -> list[bytes | str]:
        """The files' bytes or addresses."""
        return [picture.content for picture in self.media]


class Dropped(NamedTuple):
    """A line of which the phone made nothing, and why."""

    line: bytes
    why: str


class PhoneRecord:
    """
    All that a phone has received, oldest first.  Grows until L{forget}.

    @ivar replies: what it sent into rooms.
    @ivar pings: the C{data} of each ping that it answered.
    @ivar greetings: the C{data} of each C{handshakeComplete}.
    @ivar errors: code and text of each C{error}; a phone only logs them.
    @ivar notices: event and C{data} of all other events that a phone logs and drops.
    @ivar dropped: lines that it made nothing of.
    @ivar connects: when each TCP connection was made.
    """

    def __init__(self) -> None:
        self.replies: list[Shown] = []
        self.pings: list[dict[str, Any]] = []
        self.greetings: list[dict[str, Any]] = []
        self.errors: list[tuple[str, str]] = []
        self.notices: list[tuple[str, object]] = []
        self.dropped: list[Dropped] = []
        self.connects: list[float] = []

    def forget(self) -> None:
        """Empty all lists."""
        for entries in vars(self).values():
            entries.clear()


class JavaLines:
    """Cut bytes into lines as Java's C{BufferedReader.readLine} does."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._searched = 0
        self._skip_newline = False  # the last line ended with a CR

    def feed(self, data: bytes) -> None:
        """Hold C{data} until L{next_line}."""
        self._pending += data

    def next_line(self) -> bytes | None:
        """The next line, ended by LF, CR or CRLF; L{None} when more bytes are needed."""
        pending = self._pending
        if self._skip_newline and pending:
            self._skip_newline = False
            if pending[0] == 10:
                del pending[0]
        found = _LINE_END.search(pending, self._searched)
        if found is None:
            self._searched = len(pending)
            return None
        end = found.start()
        line = bytes(pending[:end])
        self._skip_newline = pending[end] == 13
        del pending[: end + 1]
        self._searched = 0
        return line

    def take_rest(self) -> bytes:
        """What the stream ended with: a line too, unless empty."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._searched = 0
        return rest

    def __len__(self) -> int:
        """How many bytes wait."""
        return len(self._pending)


class _Queued(NamedTuple):
    line: bytes
    since: float


class _Ignored(DomaekaError):
    """The phone makes nothing of a line."""


class BridgeScript:
    """
    One run of a bridge script.

    After each call, write what L{take_output} gives, hang up if L{closing}, and call L{wake} at
    L{deaf_until}, until when nothing more needs to be read from the socket.
    """

    def __init__(
        self,
        version: ScriptVersion,
        identity: Identity,
        sign: Callable[[str], str] | None,
        record: PhoneRecord,
        seconds: Callable[[], float],
        clock_offset: float = 0.0,
    ) -> None:
        """
        @param identity: of the phone; the version is that of C{version}.
        @param sign: the signature of a text to which the salt is yet to be added; L{None}: nothing
            is signed.
        @param record: where everything received is entered.
        @param seconds: the time now, in seconds since 1970.
        @param clock_offset: how much the phone's clock is fast, in seconds.
        """
        self.clock_offset = clock_offset
        self._version = version
        self._writer = PhoneWriter(
            msgspec.structs.replace(identity, version=version.version),
            sign,
            lambda: seconds() + self.clock_offset,
        )
        self._record = record
        self._seconds = seconds
        self._queue: deque[_Queued] = deque()  # lines wait QUEUE_SECONDS at most
        self._output: list[bytes] = []
        self._lines = JavaLines()
        self._connected = False
        self._socket_open = False
        self._closing = False
        self._deaf_until: float | None = None
        self._failing_writes = 0
        self._failing_delivers = True
        self._last_line: bytes | None = None
        self._said = 0

    # What the script has come to

    @property
    def online(self) -> bool:
        """Whether the script believes that it is connected: deaf, it learns late that it is not."""
        return self._connected

    @property
    def closing(self) -> bool:
        """Whether the script hangs up."""
        return self._closing

    @property
    def deaf_until(self) -> float | None:
        """Until when it reads nothing, or L{None} while it reads."""
        return self._deaf_until

    def take_output(self) -> bytes:
        """What it has written since the last call."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    # What happens to it

    def connection_made(self) -> None:
        """It has connected: handshake and queue go out in the order of its version."""
        self._connected = self._socket_open = True
        self._closing = False
        self._lines = JavaLines()
        self._record.connects.append(self._seconds())
        if self._version.dialect is Dialect.V32:
            self._output.append(self._handshake())
            failed = self._flush_queue()
            self._queue.clear()  # 3.2: the rest never comes
            if failed is not None:
                self._queue.append(failed)
        else:
            self._queue.append(_Queued(self._handshake(), self._seconds()))
            self._flush_queue()

    def bytes_received(self, data: bytes) -> None:
        """Bytes have come.  What cannot be read yet is kept."""
        self._lines.feed(data)
        if len(self._lines) > MAX_LINE_BYTES:
            self._record.dropped.append(Dropped(self._lines.take_rest()[:1000], "endless line"))
            self._closing = True
        self._read()

    def connection_lost(self) -> None:
        """The socket has ended; a deaf phone reads what is left first."""
        self._socket_open = False
        self._read()

    def wake(self) -> None:
        """The time of C{deaf_until} has come: read on."""
        self._deaf_until = None
        self._read()

    def deafen(self, seconds: float) -> None:
        """Read nothing for a time, as in doze, on top of what is sending."""
        self._deaf_until = max(self._deaf_until or 0.0, self._seconds() + seconds)

    # What it says

    def say(self, said: Said) -> None:
        """Somebody wrote something: write it to the socket, or queue it while offline."""
        if said.log_id is None:
            log_id = str(_FIRST_LOG_ID + self._said)
            said = msgspec.structs.replace(said, log_id=log_id)
        self._said += 1
        self._send(self._writer.chat(said, self._version.dialect))

    def repeat(self) -> None:
        """Send the last line of chat again, byte for byte the same."""
        if self._last_line is None:
            raise DomaekaError("nothing was said yet")
        self._send(self._last_line)

    def fail_writes(self, count: int = 1, delivered: bool = True) -> None:
        """
        Let the next lines fail: the script hangs up and keeps them for the next connection.

        @param count: how many lines, one a connection.
        @param delivered: whether the bytes reach the server nevertheless.
        """
        self._failing_writes = count
        self._failing_delivers = delivered

    def _send(self, line: bytes) -> None:
        self._last_line = line
        if self._connected:
            self._write(line)
        else:
            self._queue.append(_Queued(line, self._seconds()))

    def _write(self, line: bytes) -> bool:
        """@return: whether it went well, as the script sees it."""
        if self._socket_open and not self._closing:
            if not self._failing_writes:
                self._output.append(line)
                return True
            self._failing_writes -= 1
            if self._failing_delivers:
                self._output.append(line)
            self._closing = True
        self._queue.append(_Queued(line, self._seconds()))
        return False

    def _flush_queue(self) -> _Queued | None:
        """@return: the line whose write failed, if one did: it waits again."""
        oldest = self._seconds() - QUEUE_SECONDS
        sent = 0
        while self._queue and sent < LINES_A_CONNECTION:
            line, since = self._queue.popleft()
            if since < oldest:
                continue
            if not self._write(line):
                return self._queue[-1]
            sent += 1
        return None

    def _handshake(self) -> bytes:
        return self._writer.handshake(bare=self._version.bare_handshake)

    # What it reads

    def _read(self) -> None:
        while self._connected and not self._closing and self._deaf_until is None:
            line = self._lines.next_line()
            if line is None:
                if self._socket_open:
                    return
                line = self._lines.take_rest()
                if not line:
                    break
            if line:
                try:
                    self._line_received(line)
                except _Ignored as why:
                    self._record.dropped.append(Dropped(line, str(why)))
        if not self._socket_open and self._deaf_until is None:
            self._connected = self._closing = False

    def _line_received(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        cut = text.rfind("}") + 1  # lastIndexOf
        try:
            frame = msgspec.json.decode(text[:cut])
        except (msgspec.DecodeError, RecursionError):
            raise _Ignored("not JSON up to the last brace") from None
        if not isinstance(frame, dict):
            raise _Ignored("not an object")
        event = frame.get("event")
        data = frame.get("data")
        if event == "ping":
            if not isinstance(data, dict):
                raise _Ignored("a ping without data")
            self._record.pings.append(data)
            self._output.append(self._pong(data))
        elif event == "handshakeComplete" and isinstance(data, dict):
            self._record.greetings.append(data)
            self._closing = data.get("success") is False and self._version.heeds_refusal
        elif event == "messageResponse" or (
            event in ("scheduleMessage", "broadcastMessage")
            and self._version.dialect is Dialect.V33
        ):
            if not isinstance(data, dict):
                raise _Ignored("a reply without data")
            self._show(event, data, text[cut:])
        elif event == "error" and isinstance(data, dict):
            self._record.errors.append((str(data.get("code")), str(data.get("message"))))
        else:
            self._record.notices.append((str(event), data))

    def _pong(self, ping: dict[str, Any]) -> bytes:
        monitoring = Monitoring(512.0, 128.5, 25.1, len(self._queue), 1)
        stamp = _as_double(ping.get("server_timestamp"))
        return self._writer.pong(stamp, monitoring, self._version.pong_event)

    def _show(self, event: str, data: dict[str, Any], tail: str) -> None:
        room = data.get("room")
        if not isinstance(room, str) or not room:
            raise _Ignored("no room")
        channel_id = _channel(data.get("channel_id"))
        if self._version.dialect is Dialect.V32:
            text, media = _content_32(data)
        else:
            text, media = _content_33(data, tail)
        deaf = self._deaf_seconds(data) if media else 0.0
        now = self._seconds()
        self._record.replies.append(Shown(room, channel_id, text, media, event, now, deaf))
        if media:
            self._deaf_until = now + deaf

    def _deaf_seconds(self, data: dict[str, Any]) -> float:
        wait_ms = data.get("media_wait_time")
        if isinstance(wait_ms, int | float) and wait_ms > 0 and self._version.heeds_wait_time:
            return wait_ms / 1000 + MEDIA_SETTLE_SECONDS
        return MEDIA_DEFAULT_WAIT_SECONDS + MEDIA_SETTLE_SECONDS


def _as_double(value: object) -> object:
    """C{value} as JavaScript hands it on: numbers are doubles."""
    if type(value) is int and abs(value) > _EXACT_BELOW:
        return int(float(value))
    return value


def _channel(value: object) -> str | None:
    value = _as_double(value)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    if not _DIGITS.match(text):
        raise _Ignored("channel_id is not a number")
    return text


def _content_33(data: dict[str, Any], tail: str) -> tuple[str | None, tuple[Picture, ...]]:
    kind = data.get("message_type")
    positions = data.get("message_positions")
    if not isinstance(kind, str):
        raise _Ignored("no message_type")
    if (
        not isinstance(positions, list)
        or len(positions) < 2
        or not all(type(position) in (int, float) for position in positions)
        or positions == [0, 0]
    ):
        raise _Ignored("no message_positions")
    pieces = [_substring(tail, start, end) for start, end in itertools.pairwise(positions)]
    if kind == "text":
        if data.get("content_encoding") != "base64":
            return pieces[0], ()
        return _decoded(pieces[0]).decode("utf-8", "replace"), ()
    if kind not in _MEDIA_TYPES:
        raise _Ignored("unknown message_type")
    return None, tuple(
        Picture(piece if piece.startswith(("http://", "https://")) else _decoded(piece), "png")
        for piece in pieces
    )


def _content_32(data: dict[str, Any]) -> tuple[str | None, tuple[Picture, ...]]:
    text = data.get("text")
    if not isinstance(text, str) or not text:
        raise _Ignored("no text")
    order, colon, rest = text.partition(":")
    if colon and order == "IMAGE_BASE64":
        return None, tuple(Picture(_decoded(piece), "png") for piece in rest.split("|||"))
    if colon and order == "MEDIA_URL":
        return None, tuple(Picture(url, _extension(url)) for url in rest.split("|||"))
    return text, ()


def _decoded(piece: str) -> bytes:
    try:
        return binascii.a2b_base64(piece, strict_mode=True)
    except (binascii.Error, ValueError):
        raise _Ignored("not base64") from None


def _extension(url: str) -> str:
    name = url.partition("?")[0].rpartition("/")[2]
    return name.rpartition(".")[2] if "." in name else "png"


def _substring(text: str, start: float, end: float) -> str:
    """JavaScript's C{substring}: clamped, and turned round where the end comes first."""
    first, last = sorted((max(0, int(start)), max(0, int(end))))
    return text[first:last]
