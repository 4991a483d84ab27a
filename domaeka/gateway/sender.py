"""
What goes out on one connection, and when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from twisted.logger import Logger

from domaeka.messages import Dialect, Pack, Reply, encode_reply, media_pieces, timestamp_text
from domaeka.policies.compression import Deflater
from domaeka.policies.outbox import Outbox, Outgoing

if TYPE_CHECKING:
    from domaeka.gateway.parts import Parts

#: Most that is handed to the transport at once, in bytes, where it is more than one frame: what
#: a ping waits behind.
BATCH_BYTES = 16_384
#: About how much of a reply with files is handed to the transport at once, in bytes.  To deflate
#: it takes 3 ms.
PIECE_BYTES = 65_536
#: Where a reply ends of which not all has been written.
_NOT_YET: Final = 2**62


class KernelFigures(NamedTuple):
    """
    What the kernel knows of a line.

    @ivar rtt: smoothed round trip, in seconds.
    @ivar rtt_variation: likewise.
    @ivar retransmits: segments sent again, since the connection was made.
    """

    rtt: float
    rtt_variation: float
    retransmits: int


class Carrier(Protocol):
    """What a conversation asks of the connection under it.  L{GatewayProtocol} is one."""

    def write(self, data: bytes) -> bool:
        """
        Send, in order.  Only to be called once all before has been taken.

        @return: whether the kernel has it all; if not, L{Sender.drained} follows.
        """

    def write_more(self, data: bytes) -> None:
        """Send behind what has not been taken yet."""

    @property
    def unsent_bytes(self) -> int:
        """How much of what was written the kernel has not taken, in bytes."""

    @property
    def backlog_bytes(self) -> int:
        """How much of what was written the peer's kernel has not taken, in bytes."""

    def kernel_figures(self) -> KernelFigures | None:
        """What the kernel knows of the line; L{None} where it does not say."""

    def limit_lines(self, max_bytes: int) -> None:
        """Take no longer lines from now on."""

    def start_inflating(self) -> None:
        """What comes behind the line that was read last is a deflate stream."""

    def pause_reading(self) -> None:
        """Bring no more lines."""

    def resume_reading(self) -> None:
        """Bring lines again."""

    def finish(self) -> None:
        """Send what is written, then a FIN; read on until the peer's."""

    def disconnect(self) -> None:
        """Close once what is written has left."""

    def abort(self) -> None:
        """Close at once."""


class Sender:
    """
    Feed a connection, one batch at a time.

    The connection's own frames (pings, notices, errors) go first; then what waits in the
    device's outbox.  A batch is written only when the kernel has taken the one before, so that
    an urgent frame waits for one batch, or one frame longer than that.  A reply with files is
    encoded and written in pieces, one a turn of the reactor.

    @ivar dialect: which form replies take.
    @ivar idle: whether the kernel has all that was written.
    @ivar outbox: the device's, once the connection has authenticated.
    @ivar pack: packs texts, where the client takes them so.
    @ivar urgent_bytes: how many bytes of the connection's own frames have not been written yet.
    @ivar confirmed: how many messages the phone has for sure: those ahead of a ping it answered.
    """

    log = Logger()

    __slots__ = (
        "_batch",
        "_batch_bytes",
        "_carrier",
        "_deflater",
        "_media_left",
        "_parts",
        "_pieces",
        "_urgent",
        "bytes_sent",
        "confirmed",
        "dialect",
        "idle",
        "messages_sent",
        "outbox",
        "pack",
        "urgent_bytes",
    )

    def __init__(self, carrier: Carrier, parts: Parts, media_left: Callable[[Reply], None]) -> None:
        """@param media_left: told of each reply with media once it has left for the socket."""
        self._carrier = carrier
        self._parts = parts
        self._media_left = media_left
        self._urgent: deque[bytes] | None = None
        self.idle = True
        self._batch: list[Outgoing] | None = None  # what is on its way
        self._batch_bytes = 0  # of it that were written, before they were packed
        self._pieces: Iterator[bytes] | None = None  # the rest of it
        self.dialect = Dialect.V33
        self.outbox: Outbox | None = None
        self.pack: Pack | None = None
        self._deflater: Deflater | None = None
        self.urgent_bytes = 0
        self.bytes_sent = 0
        self.messages_sent = 0
        self.confirmed = 0

    def urge(self, event: str, frame: bytes) -> None:
        """
        Have a frame of the connection's own go out next; L{pump} sends it.

        @param event: the frame's, to be counted.
        """
        if self._urgent is None:
            self._urgent = deque()
        self._urgent.append(frame)
        self.urgent_bytes += len(frame)
        self._parts.metrics.frames_sent.labels(event).value += 1

    def pump(self) -> None:
        """Write what waits, batch by batch, for as long as the kernel takes it all."""
        outbox = self.outbox
        while self.idle and (self._urgent or (outbox is not None and outbox.messages)):
            frames: list[bytes] = []
            length = 0
            if self._urgent:
                while self._urgent and length < BATCH_BYTES:
                    frames.append(self._urgent.popleft())
                    length += len(frames[-1])
                self.urgent_bytes -= length
                if not self._urgent:
                    self._urgent = None  # an empty one takes 700 bytes
            batch = None
            if outbox is not None and length < BATCH_BYTES:
                batch = self._take_replies(outbox, frames, length)
            if not frames:
                return
            data = frames[0] if len(frames) == 1 else b"".join(frames)
            self._batch = batch
            self._batch_bytes = len(data)
            self.idle = False
            data = self._packed(data)
            if self._pieces is not None:
                self._carrier.write_more(data)  # others have a turn before the next piece
            elif not data or self._carrier.write(data):
                self.drained()

    def start_deflating(self) -> None:
        """Behind what is urgent now, all goes out in a deflate stream."""
        self.last_words()
        self._deflater = Deflater()

    def _packed(self, data: bytes) -> bytes:
        """C{data} as it goes out, counted."""
        if self._deflater is not None:
            stages = self._parts.metrics.compression_bytes
            stages.labels("plain").value += len(data)
            data = self._deflater.pack(data)
            stages.labels("wire").value += len(data)
        self.bytes_sent += len(data)
        self._parts.metrics.bytes_sent.value += len(data)
        return data

    def _take_replies(
        self, outbox: Outbox, frames: list[bytes], length: int
    ) -> list[Outgoing] | None:
        """Fill C{frames} up to a batch.  @return: whose they are."""
        outgoing = outbox.take()
        if outgoing is None:
            return None
        timestamp = timestamp_text(self._parts.seconds())
        dialect = self.dialect
        batch = []
        while outgoing is not None:
            reply = outgoing.reply
            content = reply.content
            number = outgoing.message_id
            try:
                if isinstance(content, str):
                    frame = encode_reply(reply, dialect, timestamp, number, self.pack)
                else:
                    self._pieces = media_pieces(reply, content, dialect, timestamp, number)
                    frame = self._next_pieces()
            except Exception:
                # It would fail again on each connection: a bot's mistake costs one answer.
                self.log.failure("a reply that cannot be written is dropped")
                self._parts.metrics.errors.labels("bot").inc()
                frame = b""
            frames.append(frame)
            length += len(frame)
            outgoing.end = length if self._pieces is None else _NOT_YET
            batch.append(outgoing)
            if length >= BATCH_BYTES or type(content) is not str:
                break  # behind media the phone is deaf: that counts from when they have left
            outgoing = outbox.take()
        self.messages_sent += len(batch)
        self._parts.metrics.messages_sent.value += len(batch)
        return batch

    def _next_pieces(self) -> bytes:
        """What comes next of a reply with files, in plain."""
        assert self._pieces is not None
        some: list[bytes] = []
        length = 0
        for piece in self._pieces:
            some.append(piece)
            length += len(piece)
            if length >= PIECE_BYTES:
                break
        else:
            self._pieces = None
        return b"".join(some)

    def drained(self) -> None:
        """The kernel has all that was written."""
        if self._pieces is not None and (data := self._next_pieces()):
            self._batch_bytes += len(data)
            if self._pieces is None and self._batch:
                self._batch[-1].end = self._batch_bytes
            self._carrier.write_more(self._packed(data))
            return
        self.idle = True
        batch, self._batch = self._batch, None
        if batch and self.outbox is not None:
            self.outbox.sent(batch[-1])
            for outgoing in batch:
                if type(outgoing.reply.content) is not str:
                    self._media_left(outgoing.reply)

    def last_words(self) -> None:
        """
        Write what is urgent now, behind whatever is on its way: nothing, where that is a part of
        a frame.
        """
        if self._urgent and self._pieces is None:
            data = self._packed(b"".join(self._urgent))
            self._urgent = None
            self.urgent_bytes = 0
            if self.idle:
                self.idle = self._carrier.write(data)
            else:
                self._batch_bytes += len(data)
                self._carrier.write_more(data)

    def release(self, unsent_bytes: int, read_all: bool = False) -> None:
        """
        Give the outbox back: what never left waits again.

        @param unsent_bytes: how much of what was written the kernel has not taken.
        @param read_all: whether the phone is known to have all that was sent, as when it closes
            in order behind us; else what may be lost is counted.
        """
        outbox, self.outbox = self.outbox, None
        if outbox is None:
            return
        sent_bytes = self._batch_bytes - unsent_bytes
        if unsent_bytes and self._deflater is not None:
            sent_bytes = 0  # where a reply ends in the stream is not known
        unsent = [outgoing for outgoing in self._batch or () if outgoing.end > sent_bytes]
        self._batch = None
        if self._pieces is not None:
            self._pieces = iter(())
        outbox.connection_lost(unsent)
        if not (read_all or outbox.acknowledges):
            unconfirmed = self.messages_sent - len(unsent) - self.confirmed
            self._parts.metrics.unconfirmed_messages.value += unconfirmed

    @property
    def in_frame(self) -> bool:
        """Whether what was written last is a part of a frame."""
        return self._pieces is not None

    @property
    def urgent_waits(self) -> bool:
        """Whether a frame of the connection's own has not been written yet."""
        return bool(self._urgent)

    @property
    def all_taken(self) -> bool:
        """Whether the peer's kernel has all that was written."""
        return not self._carrier.backlog_bytes

    @property
    def owes_nothing(self) -> bool:
        """Whether all that was given has left, the outbox apart."""
        return self.idle and not self._urgent
