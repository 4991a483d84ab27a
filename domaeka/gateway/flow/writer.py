"""The writer of a connection: it sends urgent frames and the outbox in batches."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from twisted.logger import Logger

from domaeka.gateway.context import Context
from domaeka.gateway.joints import Transport
from domaeka.policies.outbox import Outbox, Outgoing, Recorder
from domaeka.wire import (
    Deflater,
    Dialect,
    Pack,
    Reply,
    encode_reply,
    media_pieces,
    timestamp_text,
)

#: Most of several frames that is handed to the transport at once, in bytes: a ping waits behind it.
BATCH_BYTES = 16_384
#: Approximate part of a reply with files that is handed to the transport at once, in bytes.
#: Deflating it takes 3 ms.
PIECE_BYTES = 65_536
#: End of a reply that has not been written to its end.
_NOT_YET: Final = 2**62
#: Follows a frame that breaks off: whatever it lacks, with this it is no JSON.
_SPOILT: Final = b'"\n'


def _nobody(reply: Reply) -> None:
    """Ignore media that leave after the end."""


def _nothing() -> None:
    """Ignore the store after the end."""


_log = Logger()


class Writer:
    """
    The writer of a connection.

    Urgent frames, the connection's own (pings, notices, errors), go first; then what waits in the
    device's outbox.  A batch is written only when the kernel has taken the one before, so that
    an urgent frame waits for one batch, or one frame longer than that.  Messages stay in the outbox
    while the peer's kernel acknowledges nothing.  Where they are recorded, they wait, too, until
    their numbers are in the store, as do acknowledgements of the client's messages.  A reply with
    files is encoded and written in pieces, one a turn of the reactor.

    @ivar idle: whether the kernel has all that was written.
    @ivar outbox: the device's, once the connection has authenticated.
    @ivar pack: packs texts, for a client with that capability.
    @ivar urgent_bytes: bytes of urgent frames that are not written yet.
    @ivar is_shut: whether nothing can be written any more.
    @ivar confirmed: messages that the phone has for sure: those ahead of a ping that it answered.
    """

    __slots__ = (
        "_acks",
        "_batch",
        "_batch_bytes",
        "_context",
        "_deflater",
        "_kernel",
        "_media_left",
        "_overtaken",
        "_pieces",
        "_staged",
        "_staging",
        "_transport",
        "_urgent",
        "_waits",
        "_wake",
        "bytes_sent",
        "confirmed",
        "dialect",
        "idle",
        "is_shut",
        "messages_sent",
        "outbox",
        "pack",
        "urgent_bytes",
    )

    def __init__(
        self,
        transport: Transport,
        context: Context,
        media_left: Callable[[Reply], None],
        wake: Callable[[], None],
    ) -> None:
        """
        @param media_left: called with each reply with media that has left for the socket.
        @param wake: called when something may be written that waited for the store.
        """
        self._transport = transport
        self._kernel = transport.kernel
        self._context = context
        self._media_left = media_left
        self._wake = wake
        self._acks: list[bytes] = []  # they wait for the store
        self._staged: tuple[list[bytes], list[bytes]] | None = None  # likewise: acks, and replies
        self._staging = False
        self._overtaken = False  # urgent frames went ahead of what is staged
        self._waits = False  # a call follows when the store is back
        self._urgent: deque[bytes] | None = None
        self.idle = True
        self._batch: list[Outgoing] | None = None  # what is on its way
        self._batch_bytes = 0  # of it that were written, before they were packed
        self._pieces: Iterator[bytes] | None = None  # the rest of it
        self.dialect = Dialect.V33
        self.outbox: Outbox | None = None
        self.pack: Pack | None = None
        self._deflater: Deflater | None = None
        self.is_shut = False
        self.urgent_bytes = 0
        self.bytes_sent = 0
        self.messages_sent = 0
        self.confirmed = 0

    def put_urgent(self, event: str, frame: bytes) -> None:
        """
        Have an urgent frame go out next; L{pump} sends it.

        @param event: its name, for the metric.
        """
        if self.is_shut:
            return
        if self._urgent is None:
            self._urgent = deque()
        self._urgent.append(frame)
        self.urgent_bytes += len(frame)
        self._context.metrics.frames_sent.labels(event).value += 1

    def put_ack(self, frame: bytes) -> None:
        """Have an acknowledgement of the client's message go out once the store has it."""
        if self.outbox is None or self.outbox.recorder is None:
            self.put_urgent("ack", frame)
        elif not self.is_shut:
            self._acks.append(frame)
            self._context.metrics.frames_sent.labels("ack").value += 1

    def pump(self) -> None:
        """Write what waits, batch by batch, as long as the kernel takes it all."""
        outbox = None if self._kernel.is_silent else self.outbox
        recorder = None if self.outbox is None else self.outbox.recorder
        while self.idle and (
            self._urgent or self._acks or (outbox is not None and outbox.messages)
        ):
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
            if recorder is not None and not frames:
                if not self._stage(outbox, recorder):
                    return
                continue
            if recorder is None and outbox is not None and length < BATCH_BYTES:
                batch = self._take_replies(outbox, frames, length)
            if not frames:
                return
            self._batch = batch
            self._write(frames)

    def _write(self, frames: list[bytes]) -> None:
        """Write a batch."""
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        self._batch_bytes = len(data)
        self.idle = False
        data = self._packed(data)
        if self._pieces is not None:
            self._transport.write_more(data)  # other connections come before the next piece
        elif not data or self._transport.write(data):
            self.drained()

    # What waits for the store

    def _stage(self, outbox: Outbox | None, recorder: Recorder) -> bool:
        """Have acknowledgements and a batch wait for the store.  @return: whether there are any."""
        journal = self._context.journal
        assert journal is not None
        acks: list[bytes] = []
        if not journal.fails:
            acks, self._acks = self._acks, acks
        replies: list[bytes] = []
        if outbox is not None:
            self._batch = self._take_replies(outbox, replies, sum(map(len, acks)))
        if not acks and not replies:
            return False
        number = recorder.ticket if acks else max(item.ticket for item in self._batch or ())
        self._batch_bytes = 0
        self.idle = False
        self._staged = acks, replies
        self._overtaken = False
        self._staging = True
        journal.after(number, self._stored)
        self._staging = False
        return True

    def _stored(self, stored: bool) -> None:
        """Write what waited for the store; if that fails, answers only, without their numbers."""
        staged, self._staged = self._staged, None
        if staged is None:
            return  # the connection is over
        acks, replies = staged
        if not stored:
            self._acks[:0] = acks
            acks = []
            replies = self._encoded_again()
            self._wait_for_store()
        if not acks and not replies:
            self.idle = True
            return
        if self._overtaken and self._transport.unsent_bytes:
            self._batch_bytes = sum(map(len, acks)) + sum(map(len, replies))
            self._transport.write_more(self._packed(b"".join((*acks, *replies))))
        else:
            self._write([*acks, *replies])
        if self.idle and not self._staging:
            self._wake()

    def _wait_for_store(self) -> None:
        """Send the acknowledgements that wait once the store is back."""
        journal = self._context.journal
        if self._waits or journal is None:
            return

        def back() -> None:
            self._waits = False
            self._wake()

        self._waits = True
        journal.once_stored(journal.gathering - 1, back)

    def _encoded_again(self) -> list[bytes]:
        """The batch, without numbers that the store does not have."""
        journal = self._context.journal
        assert journal is not None
        replies: list[bytes] = []
        self._pieces = None
        timestamp = timestamp_text(self._context.wall())
        length = 0
        for item in self._batch or ():
            if item.ticket > journal.stored:
                item.message_id = None
            length = self._encode(item, replies, length, timestamp)
        return replies

    def unstage(self) -> None:
        """Write nothing more of what waits for the store: it goes out on the next connection."""
        if self._staged is not None:
            self._staged = self._pieces = None
        self._acks = []

    def start_deflating(self) -> None:
        """Send all behind the urgent frames in a deflate stream."""
        self.write_urgent()
        self._deflater = Deflater()

    def _packed(self, data: bytes) -> bytes:
        """C{data}, deflated if agreed on, and counted."""
        if self._deflater is not None:
            stages = self._context.metrics.compression_bytes
            stages.labels("plain").value += len(data)
            data = self._deflater.pack(data)
            stages.labels("wire").value += len(data)
        self.bytes_sent += len(data)
        self._context.metrics.bytes_sent.value += len(data)
        return data

    def _take_replies(
        self, outbox: Outbox, frames: list[bytes], length: int
    ) -> list[Outgoing] | None:
        """Fill C{frames} up to a batch.  @return: the messages in them."""
        outgoing = outbox.take()
        if outgoing is None:
            return None
        timestamp = timestamp_text(self._context.wall())
        batch = []
        while outgoing is not None:
            length = self._encode(outgoing, frames, length, timestamp)
            batch.append(outgoing)
            if length >= BATCH_BYTES or type(outgoing.reply.content) is not str:
                break  # the phone is blocked from the moment when media have left
            outgoing = outbox.take()
        self.messages_sent += len(batch)
        self._context.metrics.messages_sent.value += len(batch)
        return batch

    def _encode(self, item: Outgoing, frames: list[bytes], length: int, timestamp: str) -> int:
        """Encode a message behind C{length} bytes of C{frames}.  @return: their length with it."""
        reply = item.reply
        content = reply.content
        number = item.message_id
        try:
            if isinstance(content, str):
                frame = encode_reply(reply, self.dialect, timestamp, number, self.pack)
            else:
                self._pieces = media_pieces(reply, content, self.dialect, timestamp, number)
                frame = self._next_pieces()
        except Exception:
            # It would fail on each connection: an error of a bot costs one answer.
            _log.failure(
                "a reply of {bot!r} to the room {room!r} cannot be written, and is dropped",
                bot=reply.bot_name,
                room=reply.channel_id or reply.room,
            )
            self._context.metrics.errors.labels("bot").inc()
            frame = b""
        frames.append(frame)
        length += len(frame)
        item.end = length if self._pieces is None else _NOT_YET
        return length

    def _next_pieces(self) -> bytes:
        """The next part of a reply with files, uncompressed."""
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
        """Note that the kernel has all that was written."""
        if self._staged is not None:
            return  # urgent frames, which went ahead of it
        if self._pieces is not None and (data := self._next_pieces()):
            self._batch_bytes += len(data)
            if self._pieces is None and self._batch:
                self._batch[-1].end = self._batch_bytes
            self._transport.write_more(self._packed(data))
            return
        self.idle = True
        batch, self._batch = self._batch, None
        if batch and self.outbox is not None:
            self.outbox.sent(batch[-1])
            for outgoing in batch:
                if type(outgoing.reply.content) is not str:
                    self._media_left(outgoing.reply)

    def shut(self) -> None:
        """
        Write nothing more: what had not left waits again.  A frame that breaks off is spoilt, for a
        phone would show its part; clients with a deflate stream see by themselves that it ends.
        """
        unsent_bytes = self._transport.take_back()
        if (unsent_bytes or self._pieces is not None) and self._deflater is None:
            self._transport.write_more(_SPOILT)
        self.release(unsent_bytes)
        self._urgent = None
        self.urgent_bytes = 0
        self.is_shut = True

    def write_urgent(self) -> None:
        """Write urgent frames now, behind all that is on its way; none within a frame."""
        if self._urgent and self._pieces is None:
            data = self._packed(b"".join(self._urgent))
            self._urgent = None
            self.urgent_bytes = 0
            if self.idle:
                self.idle = self._transport.write(data)
            else:
                self._overtaken = True
                self._batch_bytes += len(data)
                self._transport.write_more(data)

    def release(self, unsent_bytes: int, read_all: bool = False) -> bool:
        """
        Give the outbox back: what never left waits again.

        @param unsent_bytes: bytes written that the kernel has not taken.
        @param read_all: whether the phone surely has all that was sent, as when it closes in order
            after us; else what may be lost is counted.
        @return: whether something that waits again may still leave, in part or whole.
        """
        self.unstage()
        may_leave = bool(unsent_bytes) or self._pieces is not None
        outbox, self.outbox = self.outbox, None
        if outbox is None:
            return may_leave
        sent_bytes = self._batch_bytes - unsent_bytes
        if unsent_bytes and self._deflater is not None:
            sent_bytes = 0  # the ends of replies in the stream are unknown
        unsent = [outgoing for outgoing in self._batch or () if outgoing.end > sent_bytes]
        self._batch = None
        if self._pieces is not None:
            self._pieces = iter(())
        outbox.connection_lost(unsent)
        if not (read_all or outbox.acknowledges):
            unconfirmed = self.messages_sent - len(unsent) - self.confirmed
            self._context.metrics.unconfirmed_messages.value += unconfirmed
        return may_leave

    def end(self) -> None:
        """Release all memory: the connection is gone."""
        self._urgent = self._pieces = self._deflater = self.pack = None
        self._media_left = _nobody
        self._wake = _nothing

    @property
    def is_idle(self) -> bool:
        """True when all but the outbox has left."""
        return self.idle and not self._urgent
