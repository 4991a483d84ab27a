"""A client's conversation with a server over one connection: bytes in, events and bytes out."""

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, TypeAlias

import msgspec

from domaeka.client.send_queue import SendQueue
from domaeka.errors import CloseReason, WireError
from domaeka.policies.retry import SETTLED_SECONDS
from domaeka.wire import (
    MAX_SERVER_LINE_BYTES,
    Ack,
    Deflater,
    Delivered,
    DeliveryReport,
    Dialect,
    ErrorFrame,
    Greeting,
    Identity,
    Inflater,
    LineDecoder,
    Migrated,
    MigrationNotice,
    Monitoring,
    PhoneWriter,
    Ping,
    Probe,
    ReplayNotice,
    ServerAck,
    ShutdownNotice,
    Unknown,
    encode_frame,
    pack_text,
    read_server_frame,
)

#: Capabilities that this client supports.
CAPABILITIES: Final = ("gzip", "deflate", "session", "ack", "delivery")
#: Timeout for the greeting, in seconds: the server's own for a handshake.  Source:
#: docs/settings.md, C{server.handshake_timeout}.
GREETING_SECONDS: Final = 10.0
#: Silent ping intervals after which a connection is given up.  Source: docs/client.md, "Watchdog".
SILENT_INTERVALS: Final = 2.5
#: Least and longest timeout for the acknowledgement of a message, in seconds.  Source:
#: docs/client.md, "Watchdog".
ACK_SECONDS: Final = 15.0
MAX_ACK_SECONDS: Final = 120.0
#: Least speed of a connection, in bytes per second: a long message has more time.  Source: as
#: above.
_LEAST_SPEED: Final = 8_192
#: Ping interval where the server gives none, and least timeout before the first ping, which may
#: come late, in seconds.  Source: docs/protocol.md, "Ping".
_PING_INTERVAL_SECONDS: Final = 30.0
_FIRST_PING_SECONDS: Final = 75.0
#: Bounds for the ping interval that a server gives, in seconds.
_INTERVALS: Final = (1.0, 3600.0)
#: Bytes of chat that are written at a time.
_BATCH_BYTES: Final = 65_536
#: Most lines, and bytes of them, that are read in one turn of the reactor: some 5 ms of work.
_LINES_A_TURN: Final = 500
_BYTES_A_TURN: Final = 1_048_576
#: Most frames within so many seconds that say nothing to a phone: pings, unknown and unreadable
#: ones.  Source: docs/client.md, "Watchdog".
_MAX_USELESS: Final = 1_000
_USELESS_SECONDS: Final = 60.0
#: Least step back of the wall clock that is followed, in milliseconds: smaller ones are a second
#: signature in one millisecond, or a clock that is being adjusted.
_CLOCK_SET_BACK_MS: Final = 5_000
#: Most numberings of which the last message is remembered.
_MAX_EPOCHS: Final = 16
#: Most delivery reports that are kept; the oldest gives way.
_MAX_REPORTS: Final = 500
#: Time for which a report that was written is kept, in seconds: nobody acknowledges it, so that it
#: goes once more over the next connection.  Source: docs/protocol.md, "delivery".
_REPORT_SECONDS: Final = 60.0
#: Longest lifetime of a token that is believed, in seconds: 30 days.
_MAX_TOKEN_SECONDS: Final = 2_592_000.0
#: Longest token that is kept, in characters; one of 256 bits has 43.
_MAX_TOKEN_CHARS: Final = 1024


class State(Enum):
    """State of a conversation."""

    NEW = "new"
    SHAKING = "shaking"  # the handshake has been sent
    GREETED = "greeted"
    ENDED = "ended"


class LastNumber(msgspec.Struct):
    """Number of the last message that was received, in one numbering."""

    last: int = 0


class _Report(msgspec.Struct):
    """A delivery report; C{written_at}: when it was last written, by the monotonic clock."""

    epoch: str | None
    report: DeliveryReport
    written_at: float | None = None


class SessionState:
    """
    State that a client keeps from one connection to the next.

    @ivar ack_timeout: timeout for acknowledgements, in seconds.
    @ivar began_at: when it was made, by the monotonic clock, in seconds.
    """

    def __init__(self, seconds: Callable[[], float], wall: Callable[[], float]) -> None:
        """
        @param seconds: the monotonic clock, in seconds.
        @param wall: the wall clock, in seconds since 1970.
        """
        self._seconds = seconds
        self._wall = wall
        self._numbers: dict[str | None, LastNumber] = {}
        self._token: str | None = None
        self._lifetime = 0.0
        self._ends_at: float | None = None
        self._last_ms = 0
        self._last_signer: object = None
        self.ack_timeout = ACK_SECONDS
        self.began_at = seconds()
        self._reports: deque[_Report] = deque(maxlen=_MAX_REPORTS)

    def report(self, epoch: str | None, report: DeliveryReport) -> None:
        """Keep a delivery report for a connection with this numbering."""
        self._reports.append(_Report(epoch, report))

    def unwritten_reports(self, epoch: str | None) -> list[DeliveryReport]:
        """The delivery reports of a numbering that are to be written now, oldest first."""
        found = []
        for entry in self._reports:
            if entry.epoch == epoch and entry.written_at is None:
                entry.written_at = self._seconds()
                found.append(entry.report)
        return found

    def greeted(self) -> None:
        """A connection begins: the last reports are to be written again."""
        oldest = self._seconds() - _REPORT_SECONDS
        kept = [one for one in self._reports if one.written_at is None or one.written_at > oldest]
        self._reports.clear()
        for entry in kept:
            entry.written_at = None
            self._reports.append(entry)

    def numbers(self, epoch: str | None) -> LastNumber:
        """The last number in a numbering; each server has its own."""
        numbers = self._numbers.pop(epoch, None) or LastNumber()
        self._numbers[epoch] = numbers  # at the end: the most recent
        if len(self._numbers) > _MAX_EPOCHS:
            del self._numbers[next(iter(self._numbers))]
        return numbers

    def signing_time(self, signer: object) -> float:
        """
        A time for a signature, in seconds since 1970; no two connections get the same millisecond,
        since equal signatures on two connections count as a replay.
        """
        now = int(self._wall() * 1000)
        if self._last_ms - now > _CLOCK_SET_BACK_MS:
            self._last_ms = now - 1
        if signer is not self._last_signer:
            now = max(now, self._last_ms + 1)
            self._last_signer = signer
        self._last_ms = max(now, self._last_ms)
        return (self._last_ms + 0.5) / 1000  # half a millisecond: floats round either way

    @property
    def token(self) -> str | None:
        """The session token, unless it has expired."""
        if self._ends_at is not None and self._seconds() >= self._ends_at:
            self._token = None
        return self._token

    def keep_token(self, token: str, lifetime: float) -> None:
        """Keep a token; C{lifetime} counts from the end of this connection, in seconds."""
        if len(token) <= _MAX_TOKEN_CHARS:
            self._token = token
            self._lifetime = min(max(lifetime, 0.0), _MAX_TOKEN_SECONDS)
            self._ends_at = None

    def connection_lost(self) -> None:
        """The connection has ended: the token begins to expire."""
        if self._token is not None and self._ends_at is None:
            self._ends_at = self._seconds() + self._lifetime


class Unreadable(msgspec.Struct):
    """A frame that no phone would understand; it is dropped."""

    why: str


Event: TypeAlias = (
    Greeting
    | Delivered
    | ShutdownNotice
    | MigrationNotice
    | ReplayNotice
    | ErrorFrame
    | Unknown
    | Unreadable
)


class Conversation:
    """
    Talk to one server over one connection.

    Give it L{feed}, then take L{next_event} until there is none, then write L{data_to_send}.
    With capabilities, nothing is sent between the handshake and the greeting.

    @ivar sending: True if chat may be taken from the queue; the owner sets and clears it.
    @ivar ended: the reason to close the connection at once, if there is one.
    @ivar has_more: True if more is here than L{next_event} gives in one turn of the reactor.
    @ivar granted: the capabilities that the server accepted.
    @ivar epoch: the numbering of its messages; L{None}: they have none.
    """

    def __init__(
        self,
        identity: Identity,
        sign: Callable[[str], str] | None,
        queue: SendQueue,
        session: SessionState,
        seconds: Callable[[], float],
        dialect: Dialect = Dialect.V33,
        capabilities: Sequence[str] = CAPABILITIES,
    ) -> None:
        """
        @param sign: sign a text, to which it adds the salt; L{None}: nothing is signed.
        @param seconds: the monotonic clock, in seconds.
        @param capabilities: those to offer; none: the protocol of old phones.
        """
        self._writer = PhoneWriter(identity, sign, lambda: session.signing_time(self))
        self._queue = queue
        self._session = session
        self._seconds = seconds
        self._dialect = dialect
        self._capabilities = capabilities
        self._decoder = LineDecoder(MAX_SERVER_LINE_BYTES)
        self._inflater: Inflater | None = None
        self._is_in_vain = False  # no line has come of what was fed last
        self._deflater: Deflater | None = None
        self._output: list[bytes] = []
        self._numbers = LastNumber()
        self._to_acknowledge = 0
        self._pong = b""
        self._max_frame_bytes: int | None = None
        self._timeout = GREETING_SECONDS
        self._interval = _PING_INTERVAL_SECONDS
        self._heard_at = 0.0
        self._greeted_at = 0.0
        self._unanswered: str | None = None  # the last message, until it is acknowledged
        self._answered_at = 0.0  # the timeout for acknowledgements runs from here
        self._longest = 0  # of the messages up to it, in bytes
        self._state = State.NEW
        self._lines_left = _LINES_A_TURN
        self._bytes_left = _BYTES_A_TURN
        self._useless = 0
        self._useless_since = 0.0
        self.has_more = False
        self.granted: frozenset[str] = frozenset()
        self.epoch: str | None = None
        self.sending = False
        self.ended: CloseReason | None = None

    @property
    def greeted(self) -> bool:
        """True if the server has greeted us, so that frames may be sent."""
        return self._state is State.GREETED

    @property
    def ack_timeout(self) -> float:
        """Timeout for acknowledgements, in seconds; a long message has more."""
        return self._session.ack_timeout

    def begin(self) -> None:
        """The connection is made: send the handshake."""
        self._state = State.SHAKING
        self._heard_at = self._seconds()
        self._output.append(
            self._writer.handshake(
                bare=self._dialect is Dialect.V32,
                signed=bool(self._capabilities),
                capabilities=self._capabilities,
                session_token=self._session.token if "session" in self._capabilities else None,
                uptime=(
                    self._heard_at - self._session.began_at
                    if "delivery" in self._capabilities
                    else None
                ),
            )
        )

    def feed(self, data: bytes) -> None:
        """Bytes were received: in another turn of the reactor, most likely."""
        self._heard_at = self._seconds()
        self.begin_turn()
        if self._inflater is None:
            self._decoder.feed(data)
            self._is_in_vain = True
        else:
            self._inflater.feed(data)

    def next_event(self) -> Event | None:
        """
        @return: the next event; L{None}: more bytes are needed, L{ended} is set, or this turn has
            brought enough (L{has_more}).
        """
        while self.ended is None:
            if self._lines_left <= 0 or self._bytes_left <= 0:
                self.has_more = True
                break
            self._lines_left -= 1
            try:
                line = self._next_line()
            except WireError:
                self.ended = CloseReason.BAD_STREAM
                break
            if line is None:
                self._note_empty_lines()
                self.has_more = self._bytes_left <= 0
                break
            self._is_in_vain = False
            self._bytes_left -= len(line)
            try:
                frame = read_server_frame(line, self._dialect)
            except WireError as error:
                self._useless_received()
                return Unreadable(error.text)
            if isinstance(frame, Ping | Probe | ReplayNotice | Unknown):
                self._useless_received()
            if isinstance(frame, Ping):
                self._ping_received(frame)
            elif isinstance(frame, ServerAck):
                self._queue.taken(frame.client_id)
                self._ack_received(frame.client_id)
            elif isinstance(frame, Greeting):
                if self._greeting(frame):
                    return frame
            elif isinstance(frame, Probe):
                continue  # never asked for
            elif not isinstance(frame, Delivered) or self._is_new(frame):
                if isinstance(frame, ErrorFrame):
                    self._unanswered = None  # it may answer any message, instead of an ack
                return frame
        return None

    def begin_turn(self) -> None:
        """Another turn of the reactor: as much may be read as in the one before."""
        self._lines_left = _LINES_A_TURN
        self._bytes_left = _BYTES_A_TURN
        self.has_more = False

    def _useless_received(self) -> None:
        """Count a frame that says nothing: a server that sends but those would keep us busy."""
        now = self._seconds()
        if now - self._useless_since >= _USELESS_SECONDS:
            self._useless_since, self._useless = now, 0
        self._useless += 1
        if self._useless > _MAX_USELESS:
            self.ended = CloseReason.BAD_STREAM

    def _note_empty_lines(self) -> None:
        """Count what came and was nothing but empty lines as a frame that says nothing."""
        if self._is_in_vain and not self._decoder.held_bytes:
            self._useless_received()
        self._is_in_vain = False

    def data_to_send(self) -> bytes:
        """The bytes to write next.  To be called until it is empty, or the transport is paused."""
        pieces, self._output = self._output, []
        if self._pong:
            pieces.append(self._pong)
            self._pong = b""
        if self._to_acknowledge:
            pieces.append(encode_frame("ack", Ack(self._to_acknowledge)))
            self._to_acknowledge = 0
        if self.greeted and "delivery" in self.granted:
            reports = self._session.unwritten_reports(self.epoch)
            pieces.extend(encode_frame("delivery", report) for report in reports)
        size = 0
        while self.sending and size < _BATCH_BYTES:
            line = self._next_chat()
            if line is None:
                break
            pieces.append(line)
            size += len(line)
        data = b"".join(pieces)
        if data and self._deflater is not None:
            return self._deflater.pack(data)
        return data

    def migrated(self, host: str, port: int) -> None:
        """Notify this server that another one has greeted us."""
        self._output.append(encode_frame("migrated", Migrated(host, port)))

    def overdue(self) -> CloseReason | None:
        """
        Check the timeouts; to be called every second.

        A server that is heard and does not acknowledge may be holding back: on the next connection
        the timeout for acknowledgements is twice as long, so that back-pressure does not end one
        connection after the other.

        @return: the reason to close the connection, if there is one.
        """
        now = self._seconds()
        if now - self._heard_at >= self._timeout:
            return CloseReason.PING_TIMEOUT if self.greeted else CloseReason.HANDSHAKE_TIMEOUT
        if self._unanswered is None or not self.sending:  # a server that closes acknowledges none
            self._answered_at = now
        elif now - self._answered_at >= self.ack_timeout + self._longest / _LEAST_SPEED:
            if self._heard_at > self._answered_at:
                self._session.ack_timeout = min(2 * self._session.ack_timeout, MAX_ACK_SECONDS)
            return CloseReason.TOO_SLOW
        return None

    def restart_timeouts(self) -> None:
        """Restart the timeouts: we were held up ourselves, so the silence means nothing."""
        self._heard_at = self._answered_at = self._seconds()

    def _next_line(self) -> bytes | None:
        line = self._decoder.next_line()
        while line is None and self._inflater is not None and self._bytes_left > 0:
            piece = self._inflater.next_piece()
            if not piece:
                break
            self._bytes_left -= len(piece)
            self._decoder.feed(piece)
            self._is_in_vain = True
            line = self._decoder.next_line()
        return line

    def _greeting(self, greeting: Greeting) -> bool:
        """@return: True if it is the first one."""
        if self._state is not State.SHAKING:
            return False
        if not greeting.success:
            self._state = State.ENDED
            return True
        self._state = State.GREETED
        self._greeted_at = self._seconds()
        self._session.greeted()
        self.granted = granted = frozenset(greeting.capabilities).intersection(self._capabilities)
        self._max_frame_bytes = greeting.max_frame_bytes
        if greeting.ping_interval is not None:
            self._interval = min(max(greeting.ping_interval, _INTERVALS[0]), _INTERVALS[1])
        self._timeout = max(self._interval * SILENT_INTERVALS, _FIRST_PING_SECONDS)
        if greeting.session_token is not None:
            self._session.keep_token(greeting.session_token, greeting.session_expires_in or 0.0)
        if "ack" in granted:
            self.epoch = greeting.epoch
            self._numbers = self._session.numbers(greeting.epoch)
        if "deflate" in granted:
            self._deflater = Deflater()
            self._inflater = Inflater()
            # The compressed stream begins right after the greeting's newline.
            self._inflater.feed(self._decoder.take_rest())
        return True

    def _ping_received(self, ping: Ping) -> None:
        self._timeout = self._interval * SILENT_INTERVALS
        waiting = Monitoring(message_queue_size=len(self._queue))
        event = "ping" if self._dialect is Dialect.V32 else "pong"
        # Only the answer to the last ping counts, so no more than one waits.
        self._pong = self._writer.pong(ping.server_timestamp, waiting, event)  # type: ignore[arg-type]

    def _ack_received(self, client_id: str) -> None:
        """Any acknowledgement is progress; they come in the order of the messages."""
        self._answered_at = now = self._seconds()
        if client_id == self._unanswered:
            self._unanswered = None
            if now - self._greeted_at >= SETTLED_SECONDS:
                self._session.ack_timeout = ACK_SECONDS

    def _is_new(self, frame: Delivered) -> bool:
        """True if a message has not come before.  It is acknowledged either way."""
        number = frame.message_id
        if number is None or "ack" not in self.granted:
            return True
        is_new = number > self._numbers.last
        if is_new:
            self._numbers.last = number
        self._to_acknowledge = self._numbers.last
        return is_new

    def _next_chat(self) -> bytes | None:
        """The line of the next message in the queue."""
        acknowledged = "ack" in self.granted
        gzip = "gzip" in self.granted and self._deflater is None
        while (entry := self._queue.take()) is not None:
            line = self._writer.chat(
                entry.said,
                self._dialect,
                client_id=entry.client_id if acknowledged else None,
                pack=pack_text if gzip else None,
            )
            if self._max_frame_bytes is not None and len(line) > self._max_frame_bytes:
                self._queue.too_large(entry)
                continue
            self._queue.written(entry, acknowledged)
            if acknowledged:
                if self._unanswered is None:
                    self._answered_at = self._seconds()
                    self._longest = 0
                self._longest = max(self._longest, len(line))
                self._unanswered = entry.client_id
            return line
        return None
