"""
One connection's conversation with a server, seen from the client: bytes in, events and bytes out.

docs/protocol.md says what happens on the wire.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, TypeAlias

import msgspec

from domaeka.client.outgoing import SendQueue
from domaeka.errors import CloseReason, WireError
from domaeka.messages import Dialect, Monitoring
from domaeka.phonewire import (
    MAX_SERVER_LINE_BYTES,
    Asked,
    Closing,
    Complaint,
    Delivered,
    Greeting,
    Identity,
    Moving,
    PhoneWriter,
    Taken,
    Unknown,
    encode_migrated,
    encode_received,
    read_server_frame,
)
from domaeka.policies.compression import Deflater, Inflater, pack_text
from domaeka.wire import LineDecoder

#: Everything that a client can do beside the protocol of old.
CAPABILITIES: Final = ("gzip", "deflate", "session", "ack")
#: How long a server may take to greet us, in seconds: as long as it gives a phone to shake hands.
#: Source: docs/settings.md, C{server.handshake_timeout}.
GREETING_SECONDS: Final = 10.0
#: Ping intervals without a word that end a connection.  Source: docs/client.md, "Watchdog".
SILENT_INTERVALS: Final = 2.5
#: The interval where the server does not say, in seconds; and how long silence is always borne
#: before the first ping, which may come late.  Source: docs/protocol.md, "Ping".
_PING_INTERVAL_SECONDS: Final = 30.0
_FIRST_PING_SECONDS: Final = 75.0
#: Shortest and longest interval that is believed, in seconds.
_INTERVALS: Final = (1.0, 3600.0)
#: Bytes of chat that are handed over at a time.
_BATCH_BYTES: Final = 65_536
#: How far the clock must be set back to be believed, in milliseconds: less is a second signature
#: of the same millisecond, or a clock that is being trimmed.
_CLOCK_SET_BACK_MS: Final = 5_000
#: Of how many servers' numberings the last message is remembered.
_MAX_EPOCHS: Final = 16
#: Longest token that is kept, in characters: that of 256 bits takes 43.
_MAX_TOKEN_CHARS: Final = 1024


class State(Enum):
    """How far a conversation has come."""

    NEW = "new"
    SHAKING = "shaking"  # our handshake is out
    GREETED = "greeted"
    ENDED = "ended"


class Numbers(msgspec.Struct):
    """The last message that has come, of one numbering."""

    last: int = 0


class Memory:
    """What a client remembers from one connection to the next."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        """@param seconds: the time now, in seconds since 1970."""
        self._seconds = seconds
        self._numbers: dict[str | None, Numbers] = {}
        self._token: str | None = None
        self._lifetime = 0.0
        self._ends_at: float | None = None
        self._last_ms = 0
        self._last_signer: object = None

    def numbers(self, epoch: str | None) -> Numbers:
        """How far a numbering has come: servers that we come back to have their own."""
        numbers = self._numbers.pop(epoch, None) or Numbers()
        self._numbers[epoch] = numbers  # as the last one
        if len(self._numbers) > _MAX_EPOCHS:
            del self._numbers[next(iter(self._numbers))]
        return numbers

    def signing_time(self, signer: object) -> float:
        """
        The time for a signature, in seconds since 1970.

        Two signatures of one millisecond are the same; one that comes on a second connection is
        taken for a replay.  So no two connections share a millisecond.
        """
        now = int(self._seconds() * 1000)
        if self._last_ms - now > _CLOCK_SET_BACK_MS:
            self._last_ms = now - 1
        if signer is not self._last_signer:
            now = max(now, self._last_ms + 1)
            self._last_signer = signer
        self._last_ms = max(now, self._last_ms)
        return (self._last_ms + 0.5) / 1000  # half: floats of today's time round either way

    @property
    def token(self) -> str | None:
        """A session token that may still be good."""
        if self._ends_at is not None and self._seconds() >= self._ends_at:
            self._token = None
        return self._token

    def keep_token(self, token: str, lifetime: float) -> None:
        """
        A server gave us a token.

        @param lifetime: from the end of this connection, in seconds.
        """
        if len(token) <= _MAX_TOKEN_CHARS:
            self._token = token
            self._lifetime = lifetime
            self._ends_at = None

    def connection_lost(self) -> None:
        """The life of the token, if it is the one that the connection held, begins to run out."""
        if self._token is not None and self._ends_at is None:
            self._ends_at = self._seconds() + self._lifetime


class Unreadable(msgspec.Struct):
    """A frame that no phone would understand: dropped."""

    why: str


Event: TypeAlias = Greeting | Delivered | Closing | Moving | Complaint | Unknown | Unreadable


class Conversation:
    """
    Talk to one server over one connection.

    Give it L{feed}, then take L{next_event} until there is none, then write L{data_to_send}.
    With capabilities, nothing is sent behind the handshake before the greeting has come.

    @ivar sending: whether chat may be taken from the queue; the owner sets and clears it.
    @ivar ended: why the connection must be closed at once, if it must.
    @ivar granted: the capabilities that the server took.
    """

    def __init__(
        self,
        identity: Identity,
        sign: Callable[[str], str] | None,
        queue: SendQueue,
        memory: Memory,
        seconds: Callable[[], float],
        dialect: Dialect = Dialect.V33,
        capabilities: Sequence[str] = CAPABILITIES,
    ) -> None:
        """
        @param sign: the signature of a text to which the salt is yet to be added; L{None}: nothing
            is signed.
        @param seconds: the time now, in seconds since 1970.
        @param capabilities: what is offered; none: the protocol of old.
        """
        self._writer = PhoneWriter(identity, sign, lambda: memory.signing_time(self))
        self._queue = queue
        self._memory = memory
        self._seconds = seconds
        self._dialect = dialect
        self._capabilities = capabilities
        self._decoder = LineDecoder(MAX_SERVER_LINE_BYTES)
        self._inflater: Inflater | None = None
        self._deflater: Deflater | None = None
        self._output: list[bytes] = []
        self._numbers = Numbers()
        self._to_acknowledge = 0
        self._pong = b""
        self._max_frame_bytes: int | None = None
        self._patience = GREETING_SECONDS
        self._interval = _PING_INTERVAL_SECONDS
        self._heard_at = 0.0
        self._state = State.NEW
        self.granted: frozenset[str] = frozenset()
        self.sending = False
        self.ended: CloseReason | None = None

    @property
    def greeted(self) -> bool:
        """Whether the server has answered our handshake, and we may speak."""
        return self._state is State.GREETED

    def begin(self) -> None:
        """The connection is made: shake hands."""
        self._state = State.SHAKING
        self._heard_at = self._seconds()
        self._output.append(
            self._writer.handshake(
                bare=self._dialect is Dialect.V32,
                signed=bool(self._capabilities),
                capabilities=self._capabilities,
                session_token=self._memory.token if "session" in self._capabilities else None,
            )
        )

    def feed(self, data: bytes) -> None:
        """Bytes have come."""
        self._heard_at = self._seconds()
        if self._inflater is None:
            self._decoder.feed(data)
        else:
            self._inflater.feed(data)

    def next_event(self) -> Event | None:
        """@return: what the server said; L{None} when more bytes are needed, or all is over."""
        while self.ended is None:
            try:
                line = self._next_line()
            except WireError:
                self.ended = CloseReason.BAD_STREAM
                break
            if line is None:
                break
            try:
                frame = read_server_frame(line, self._dialect)
            except WireError as error:
                return Unreadable(error.text)
            if isinstance(frame, Asked):
                self._asked(frame)
            elif isinstance(frame, Taken):
                self._queue.taken(frame.client_id)
            elif isinstance(frame, Greeting):
                if self._greeting(frame):
                    return frame
            elif not isinstance(frame, Delivered) or self._is_new(frame):
                return frame
        return None

    def data_to_send(self) -> bytes:
        """
        What to write next; empty: nothing for now.

        To be asked again, while the transport takes more, until it is empty.
        """
        pieces, self._output = self._output, []
        if self._pong:
            pieces.append(self._pong)
            self._pong = b""
        if self._to_acknowledge:
            pieces.append(encode_received(self._to_acknowledge))
            self._to_acknowledge = 0
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
        """Another server has greeted us: say so, here."""
        self._output.append(encode_migrated(host, port))

    def is_overdue(self) -> bool:
        """Whether the server has been silent for too long: it is gone, or cannot reach us."""
        return self._seconds() - self._heard_at >= self._patience

    def bear_with(self) -> None:
        """The silence so far was ours: we were held up, and it says nothing of the server."""
        self._heard_at = self._seconds()

    def _next_line(self) -> bytes | None:
        line = self._decoder.next_line()
        while line is None and self._inflater is not None:
            piece = self._inflater.next_piece()
            if not piece:
                break
            self._decoder.feed(piece)
            line = self._decoder.next_line()
        return line

    def _greeting(self, greeting: Greeting) -> bool:
        """@return: whether it is news."""
        if self._state is not State.SHAKING:
            return False
        if not greeting.success:
            self._state = State.ENDED
            return True
        self._state = State.GREETED
        self.granted = granted = frozenset(greeting.capabilities).intersection(self._capabilities)
        self._max_frame_bytes = greeting.max_frame_bytes
        if greeting.ping_interval is not None:
            self._interval = min(max(greeting.ping_interval, _INTERVALS[0]), _INTERVALS[1])
        self._patience = max(self._interval * SILENT_INTERVALS, _FIRST_PING_SECONDS)
        if greeting.session_token is not None:
            self._memory.keep_token(greeting.session_token, greeting.session_expires_in or 0.0)
        if "ack" in granted:
            self._numbers = self._memory.numbers(greeting.epoch)
        if "deflate" in granted:
            self._deflater = Deflater()
            self._inflater = Inflater()
            # The compressed stream begins right behind the greeting's newline.
            self._inflater.feed(self._decoder.take_rest())
        return True

    def _asked(self, ping: Asked) -> None:
        self._patience = self._interval * SILENT_INTERVALS
        waiting = Monitoring(message_queue_size=len(self._queue))
        event = "ping" if self._dialect is Dialect.V32 else "pong"
        # Only the answer to the last one counts; a server that does not read gets no more.
        self._pong = self._writer.pong(ping.server_timestamp, waiting, event)  # type: ignore[arg-type]

    def _is_new(self, frame: Delivered) -> bool:
        """Whether a message has not come before.  That it came is acknowledged either way."""
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
            return line
        return None
