"""
Behaviour of a bridge script on a phone: bytes in, bytes out, the clock given.

The versions in the field, with their quirks.  Source: docs/protocol.md, "Old phones".
"""

import binascii
import itertools
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from domaeka.errors import DomaekaError
from domaeka.wire import (
    MEDIA_DEFAULT_WAIT_SECONDS,
    MEDIA_SETTLE_SECONDS,
    Dialect,
    Identity,
    Monitoring,
    PhoneWriter,
    Said,
)

#: Most queued lines that are sent on one connection.  Source: docs/protocol.md, "Handshake".
LINES_A_CONNECTION: Final = 10
#: Time that a line waits in the queue, in seconds.  Source: docs/protocol.md, "Handshake".
QUEUE_SECONDS: Final = 30.0
#: Longest line that is read, in bytes: more than any phone has memory for.
MAX_LINE_BYTES: Final = 256 * 1024 * 1024

_DIGITS: Final = re.compile(r"-?[0-9]+\Z", re.ASCII)
_LINE_END: Final = re.compile(rb"[\r\n]")
_MEDIA_TYPES: Final = ("image", "audio", "video", "document")
#: A log id of the usual size, which a double cannot represent exactly.
_FIRST_LOG_ID: Final = 3_412_345_678_901_234_567
#: Bound below which a number of JavaScript is exact.
_EXACT_BELOW: Final = 2**53


class ScriptVersion(msgspec.Struct, frozen=True, kw_only=True):
    """
    Differences between the scripts.

    @ivar version: the version in its handshake.
    @ivar bare_handshake: True if its handshake has no C{event}.
    @ivar pong_event: the event of its answer to a ping.
    @ivar heeds_refusal: True if it closes at C{success:false}.
    @ivar heeds_wait_time: True if it reads C{media_wait_time}.
    """

    version: str
    dialect: Dialect = Dialect.V33
    bare_handshake: bool = False
    pong_event: Literal["ping", "pong"] = "pong"
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
    "3.3.2": ScriptVersion(version="3.3.2"),
    "3.3.2 bare": ScriptVersion(version="3.3.2", bare_handshake=True, pong_event="ping"),
    "3.3.3": ScriptVersion(version="3.3.3"),
}


class SentFile(NamedTuple):
    """
    A file that a phone sent into a room.

    @ivar content: its bytes, or the address that it was fetched from.
    @ivar extension: the extension of its name on the phone.
    """

    content: bytes | str
    extension: str


class SentMessage(msgspec.Struct, frozen=True):
    """
    A message that a phone sent into a room: a text, or files.

    @ivar channel_id: the room's id, with the phone's loss of precision; L{None}: the room was found
        by its name.
    @ivar time: time of sending, by the given clock.
    @ivar blocked_seconds: time for which the phone reads nothing because of it.
    """

    room: str
    channel_id: str | None
    text: str | None
    media: tuple[SentFile, ...]
    event: str
    time: float
    blocked_seconds: float = 0.0

    @property
    def contents(self) -> list[bytes | str]:
        """The files' bytes or addresses."""
        return [picture.content for picture in self.media]


class Dropped(NamedTuple):
    """A line that the phone ignores, and the reason."""

    line: bytes
    why: str


class PhoneRecord:
    """
    Everything that a phone has received, oldest first.  Grows until L{forget}.

    @ivar replies: messages that it sent into rooms.
    @ivar pings: the C{data} of each ping that it answered.
    @ivar greetings: the C{data} of each C{handshakeComplete}.
    @ivar errors: code and text of each C{error}; a phone only logs them.
    @ivar notices: event and C{data} of all other events, which a phone logs and drops.
    @ivar dropped: lines that it ignored.
    @ivar connects: the time of each TCP connection.
    """

    def __init__(self) -> None:
        self.replies: list[SentMessage] = []
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


class JavaLineReader:
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
        """Rest of the stream: its last line, unless empty."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._searched = 0
        return rest

    def __len__(self) -> int:
        """Number of bytes held."""
        return len(self._pending)


class _Queued(NamedTuple):
    line: bytes
    since: float


class _Ignored(DomaekaError):
    """The phone ignores a line."""


class BridgeScript:
    """
    One run of a bridge script.

    After each call, write L{take_output}, hang up if L{closing}, and call L{wake} at
    L{blocked_until}; until then the socket need not be read.

    @ivar online: True if the script believes that it is connected: while blocked, it notices the
        end late.
    @ivar closing: True if the script is to hang up.
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
        @param identity: of the phone; the version is that of C{version}, and the client type the
            app's.
        @param sign: sign a text, to which it adds the salt; L{None}: nothing is signed.
        @param record: everything received is recorded there.
        @param seconds: the time now, in seconds since 1970.
        @param clock_offset: time by which the phone's clock is fast, in seconds.
        """
        self.clock_offset = clock_offset
        self._version = version
        self._writer = PhoneWriter(
            msgspec.structs.replace(identity, version=version.version, client_type="MessengerBotR"),
            sign,
            lambda: seconds() + self.clock_offset,
        )
        self._record = record
        self._seconds = seconds
        self._queue: deque[_Queued] = deque()  # lines wait QUEUE_SECONDS at most
        self._output: list[bytes] = []
        self._lines = JavaLineReader()
        self.online = False
        self._socket_open = False
        self.closing = False
        self._blocked_until: float | None = None
        self._failing_writes = 0
        self._failing_delivers = True
        self._last_line: bytes | None = None
        self._said = 0

    # State

    @property
    def blocked_until(self) -> float | None:
        """Time until which it reads nothing; L{None} while it reads."""
        return self._blocked_until

    def take_output(self) -> bytes:
        """Bytes written since the last call."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    # From the connection

    def connection_made(self) -> None:
        """A connection is made: send handshake and queue in the order of its version."""
        self.online = self._socket_open = True
        self.closing = False
        self._lines = JavaLineReader()
        self._record.connects.append(self._seconds())
        if self._version.dialect is Dialect.V32:
            self._output.append(self._handshake())
            failed = self._flush_queue()
            self._queue.clear()  # 3.2 forgets the rest
            if failed is not None:
                self._queue.append(failed)
        else:
            self._queue.append(_Queued(self._handshake(), self._seconds()))
            self._flush_queue()

    def bytes_received(self, data: bytes) -> None:
        """Bytes were received.  Those that cannot be read yet are held."""
        self._lines.feed(data)
        if len(self._lines) > MAX_LINE_BYTES:
            self._record.dropped.append(Dropped(self._lines.take_rest()[:1000], "endless line"))
            self.closing = True
        self._read()

    def connection_lost(self) -> None:
        """The socket has ended; a blocked phone first reads what is held."""
        self._socket_open = False
        self._read()

    def wake(self) -> None:
        """Go on reading: the time of C{blocked_until} has come."""
        self._blocked_until = None
        self._read()

    def block(self, seconds: float) -> None:
        """Read nothing for some seconds, as in doze, in addition to the wait for media."""
        self._blocked_until = max(self._blocked_until or 0.0, self._seconds() + seconds)

    # Chat

    def say(self, said: Said) -> None:
        """Somebody wrote a message: write it to the socket, or queue it while offline."""
        if said.log_id is None:
            log_id = str(_FIRST_LOG_ID + self._said)
            said = msgspec.structs.replace(said, log_id=log_id)
        self._said += 1
        self._send(self._writer.chat(said, self._version.dialect))

    def repeat(self) -> None:
        """Send the last line of chat again, with the same bytes."""
        if self._last_line is None:
            raise DomaekaError("nothing was said yet")
        self._send(self._last_line)

    def fail_writes(self, count: int = 1, delivered: bool = True) -> None:
        """
        Let the next lines fail: the script hangs up and keeps them for the next connection.

        @param count: number of lines, one on each connection.
        @param delivered: True if the server receives the bytes all the same.
        """
        self._failing_writes = count
        self._failing_delivers = delivered

    def _send(self, line: bytes) -> None:
        self._last_line = line
        if self.online:
            self._write(line)
        else:
            self._queue.append(_Queued(line, self._seconds()))

    def _write(self, line: bytes) -> bool:
        """@return: True if the script believes that it succeeded."""
        if self._socket_open and not self.closing:
            if not self._failing_writes:
                self._output.append(line)
                return True
            self._failing_writes -= 1
            if self._failing_delivers:
                self._output.append(line)
            self.closing = True
        self._queue.append(_Queued(line, self._seconds()))
        return False

    def _flush_queue(self) -> _Queued | None:
        """@return: the line whose write failed and which waits again, if there is one."""
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

    # Reading

    def _read(self) -> None:
        while self.online and not self.closing and self._blocked_until is None:
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
        if not self._socket_open and self._blocked_until is None:
            self.online = self.closing = False

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
            self.closing = data.get("success") is False and self._version.heeds_refusal
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
        blocked = self._blocked_seconds(data) if media else 0.0
        now = self._seconds()
        self._record.replies.append(SentMessage(room, channel_id, text, media, event, now, blocked))
        if media:
            self._blocked_until = now + blocked

    def _blocked_seconds(self, data: dict[str, Any]) -> float:
        wait_ms = data.get("media_wait_time")
        if isinstance(wait_ms, int | float) and wait_ms > 0 and self._version.heeds_wait_time:
            return wait_ms / 1000 + MEDIA_SETTLE_SECONDS
        return MEDIA_DEFAULT_WAIT_SECONDS + MEDIA_SETTLE_SECONDS


def _as_double(value: object) -> object:
    """C{value} as JavaScript represents it: numbers are doubles."""
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


def _content_33(data: dict[str, Any], tail: str) -> tuple[str | None, tuple[SentFile, ...]]:
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
        SentFile(piece if piece.startswith(("http://", "https://")) else _decoded(piece), "png")
        for piece in pieces
    )


def _content_32(data: dict[str, Any]) -> tuple[str | None, tuple[SentFile, ...]]:
    text = data.get("text")
    if not isinstance(text, str) or not text:
        raise _Ignored("no text")
    order, colon, rest = text.partition(":")
    if colon and order == "IMAGE_BASE64":
        return None, tuple(SentFile(_decoded(piece), "png") for piece in rest.split("|||"))
    if colon and order == "MEDIA_URL":
        return None, tuple(SentFile(url, _extension(url)) for url in rest.split("|||"))
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
    """JavaScript's C{substring}: clamped, and swapped where the end comes first."""
    first, last = sorted((max(0, int(start)), max(0, int(end))))
    return text[first:last]
