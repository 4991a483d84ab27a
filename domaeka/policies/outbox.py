"""
The outbox: messages that wait for a phone, connected or not.

An L{Outbox} belongs to a device and outlives its connections.  A message goes through it so::

    put -> waiting -> take -> handed -> sent -> (unacknowledged) -> (unreported) -> gone

and back to waiting, ahead of everything new, where a connection ends in between.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum, IntEnum, StrEnum
from math import inf
from typing import Final, NamedTuple, Protocol, TypeAlias

import msgspec

from domaeka.policies.pacing import Pace
from domaeka.wire import Reply

#: Bytes that one class may send for each byte of C{LOW}, while both wait.
_WEIGHTS: Final = (inf, 8.0, 4.0, 1.0)
#: Part of the bytes of all outboxes together up to which each class finds room, so that broadcasts
#: do not take the room of answers.
_SHARES: Final = (2.0**32, 1.0, 0.75, 0.5)
#: Most messages of an outbox whose delivery report is awaited, and the longest time for which it
#: is, in seconds: a script reports within 30 s, and later while files are sent or it is away.
MAX_UNREPORTED: Final = 1000
REPORT_SECONDS: Final = 300.0
#: Bound of restored messages, some of which may be unacknowledged: none.
_ANY_NUMBER: Final = 2**62


class Priority(IntEnum):
    """Priority of a message to a phone."""

    CRITICAL = 0  # notices
    HIGH = 1  # answers to commands
    NORMAL = 2  # messages
    LOW = 3  # bulk and statistics


class DeliveryStatus(StrEnum):
    """Delivery status of a message: the words of the API."""

    QUEUED = "queued"
    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    DELIVERED = "delivered"
    REFUSED_BY_APP = "refused_by_app"
    EXPIRED = "expired"
    DROPPED = "dropped"


DeliveryStatus.__name__ = "Fate"  # /openapi.json shows this name, and the docstring


class AckVerdict(Enum):
    """Verdict on an acknowledgement."""

    TAKEN = "taken"
    REPEATED = "repeated"  # all of it was acknowledged, or given up, before
    NEVER_SENT = "never sent"  # negative, or higher than any number given: ignored


#: Called at each change of a message's status, with the reason where the app refused it, else with
#: an empty text.  Must neither raise nor touch an outbox.
StatusListener: TypeAlias = Callable[[DeliveryStatus, str], None]


class Budget:
    """
    Memory that all outboxes share, and their common counters.

    @ivar used: bytes that wait, are on their way, or are not acknowledged.
    @ivar limits: bytes up to which each class finds room.
    @ivar expired: messages whose time ran out.
    @ivar dropped: messages that gave way to others, or found no room.
    @ivar forgotten: messages that were sent, and gave way before they were acknowledged.
    @ivar bad_acks: acknowledgements of what was never sent.
    """

    __slots__ = ("bad_acks", "dropped", "expired", "forgotten", "limits", "used")

    def __init__(self, max_bytes: int) -> None:
        """@param max_bytes: most bytes in all outboxes together."""
        self.limits = tuple(int(max_bytes * share) for share in _SHARES)
        self.used = 0
        self.expired = 0
        self.dropped = 0
        self.forgotten = 0
        self.bad_acks = 0


class Outgoing(msgspec.Struct):
    """
    A message that waits for a phone.

    @ivar size: its approximate size, in bytes.
    @ivar ttl: the time for which it may wait, in seconds.
    @ivar number: its place among all that were handed to connections; 0: never handed.
    @ivar message_id: the same, for a connection that acknowledges.
    @ivar end: its end within the batch that was written, in bytes.
    @ivar record: its number for the L{Recorder}; 0: none.
    @ivar ticket: the batch of the store with its number.
    @ivar since: since when it waits, where the outbox keeps a pace.
    """

    reply: Reply
    priority: Priority
    size: int
    ttl: float
    expires_at: float
    on_status: StatusListener | None = None
    number: int = 0
    message_id: int | None = None
    end: int = 0
    record: int = 0
    ticket: int = 0
    since: float = 0.0


class Recorder(Protocol):
    """
    Notes the messages of an outbox for a store.  None of its methods may raise.

    @ivar ticket: the batch of the store with its last change that somebody may wait for.
    """

    ticket: int

    def put(self, item: Outgoing) -> None:
        """A message waits: it gets a record."""

    def numbered(self, item: Outgoing) -> None:
        """A message has got its number, and its ticket."""

    def gone(self, item: Outgoing) -> None:
        """A message with a record is held no longer."""


class Unreported(NamedTuple):
    """A message that a client has acknowledged, and whose delivery report is awaited."""

    room: str
    channel_id: str | None
    on_status: StatusListener | None
    acknowledged_at: float


_Queue: TypeAlias = deque[Outgoing]
#: A queue for each class: none, for most outboxes are idle, and an empty deque takes 760 bytes.
_NO_QUEUES: Final[tuple[_Queue | None, ...]] = (None, None, None, None)


class Outbox:
    """
    A bounded queue of messages, in order within a class, and so within a room inside a class.

    C{CRITICAL} goes first, the others share by weight, so that none starves.  Messages handed to a
    connection that ended go again before anything new, in order, under their numbers.

    @ivar acknowledges: whether the last connection acknowledges messages.
    @ivar messages: number of messages held: waiting, on their way, or not acknowledged.
    @ivar touched: whether L{expire} may have anything to do, or to tidy up.
    @ivar answer_bytes: bytes of answers (C{HIGH}) that wait to be taken.
    @ivar epoch: name of the numbering, never used before.
    @ivar next_number: number of the next message that is handed over for the first time.
    @ivar hold_low: while set, C{LOW} has an eighth of its share.
    @ivar away_until: earliest return of a phone that was asked to stay away.
    @ivar recorder: notes its messages, if they are to outlive the process.
    @ivar pace: how fast they leave, if not at once; what waits for it has its whole time.
    """

    __slots__ = (
        "_again",
        "_bytes",
        "_earliest",
        "_handed",
        "_max_bytes",
        "_max_messages",
        "_queues",
        "_reports",
        "_seconds",
        "_served",
        "_starts",
        "_total",
        "_unacknowledged",
        "_unreported",
        "acknowledges",
        "answer_bytes",
        "away_until",
        "epoch",
        "hold_low",
        "messages",
        "next_number",
        "pace",
        "recorder",
        "touched",
    )

    def __init__(
        self,
        max_messages: int,
        max_bytes: int,
        total: Budget,
        seconds: Callable[[], float],
        epoch: str = "",
    ) -> None:
        """
        @param max_messages: most messages held, beside those that have been sent and are not
            acknowledged.
        @param max_bytes: most bytes held, with those.
        @param total: shared by all outboxes.
        @param seconds: the time now, in seconds.
        """
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._total = total
        self._seconds = seconds
        self.epoch = epoch
        self.hold_low = False
        self.acknowledges = False
        self._reports = False  # its last connection reports on delivery, too
        self.next_number = 1
        self.away_until = -inf
        self.recorder: Recorder | None = None
        self.pace: Pace | None = None
        self._queues = _NO_QUEUES
        self._handed: _Queue | None = None  # by number, on their way to the socket
        self._unacknowledged: _Queue | None = None  # by number, all lower than those handed
        self._unreported: dict[int, Unreported] | None = None  # acknowledged
        self.messages = 0
        self.touched = False
        self._bytes = 0
        self.answer_bytes = 0
        self._again = 0  # waiting messages with a number: at the heads of the queues
        self._earliest = inf  # lower bound of all expiry times
        # Start-time fair queueing: each class's next start time, and the virtual time.
        self._starts: list[float] | None = None
        self._served = 0.0

    @property
    def bytes(self) -> int:
        """Size of L{messages}, in bytes."""
        return self._bytes

    def __len__(self) -> int:
        """Number of messages that wait to be taken."""
        return sum(len(queue) for queue in self._queues if queue)

    # From senders

    def put(
        self, reply: Reply, priority: Priority, ttl: float, on_status: StatusListener | None = None
    ) -> Outgoing | None:
        """
        Take a message in.  Where there is no room, the oldest C{LOW} one gives way, then
        C{NORMAL}, then C{HIGH}, none for a lower one; never C{CRITICAL}.

        @param ttl: the time for which it may wait, in seconds; for a phone that stays away, from
            its earliest return on.
        @param on_status: notified of its status, from C{SENT} on.
        @return: L{None} if it was dropped or had no time; the listener has been notified.
        """
        now = self._seconds()
        size = reply.size
        away_until = self.away_until
        expires_at = (now if now > away_until else away_until) + ttl
        total = self._total
        if not expires_at > now:
            total.expired += 1
            if on_status is not None:
                on_status(DeliveryStatus.EXPIRED, "")
            return None
        if (
            self.messages >= self._max_messages
            or self._bytes + size > self._max_bytes
            or total.used + size > total.limits[priority]
        ) and not self._make_room(priority, size):
            total.dropped += 1
            if on_status is not None:
                on_status(DeliveryStatus.DROPPED, "")
            return None
        item = Outgoing(reply, priority, size, ttl, expires_at, on_status)
        queue = self._queues[priority]
        if queue is None:
            queue = self._new_queue(priority)
        queue.append(item)
        self.messages += 1
        self.touched = True
        self._bytes += size
        if priority == 1:
            self.answer_bytes += size
        total.used += size
        if expires_at < self._earliest:
            self._earliest = expires_at
        if self.recorder is not None:
            self.recorder.put(item)
        if self.pace is not None:
            item.since = now
            self.pace.came(reply)
        return item

    def _make_room(self, priority: Priority, size: int) -> bool:
        """Have others give way to a message.  @return: whether there is room."""
        total = self._total
        limit = total.limits[priority]
        if size > self._max_bytes or total.used - self._bytes + size > limit:
            return False  # even an empty outbox had no room
        unacknowledged = self._unacknowledged or deque()
        while True:
            # Unacknowledged messages are not bounded by number: an acknowledgement comes behind
            # all that its client had sent before.
            unbounded = len(unacknowledged) + self._again
            full = self.messages - unbounded >= self._max_messages
            if not (full or self._bytes + size > self._max_bytes or total.used + size > limit):
                return True
            if self._queues[3]:
                self._drop(3)
            elif priority < 3 and self._queues[2]:
                self._drop(2)
            elif unacknowledged and not full and priority < 3:
                self._release(unacknowledged.popleft())
                total.forgotten += 1
            elif priority < 2 and self._queues[1]:
                self._drop(1)
            else:
                return False  # full of critical messages, or of those on their way

    def _drop(self, priority: int) -> None:
        """Drop the oldest of a class."""
        item = self._pop(priority)
        self._release(item)
        self._total.dropped += 1
        _notify(item, DeliveryStatus.DROPPED)

    # From the connection

    def connected(self, acknowledges: bool, reports: bool = False) -> None:
        """
        Begin a connection, in the place of the one before, which must not call any more: all that
        had been handed to it and is still held goes again.

        @param acknowledges: whether the connection acknowledges messages.
        @param reports: whether it reports on their delivery, too.
        """
        self.connection_lost(self._handed or ())
        self.acknowledges = acknowledges
        self._reports = reports and acknowledges
        if not self._reports:
            self._unreported = None
        self.away_until = -inf

    def take(self) -> Outgoing | None:
        """
        Take the next message to write: it is on its way, and has a number.

        @return: L{None} if nothing is to be sent.
        """
        while True:
            if self.pace is not None:
                priority = self._next_paced(self.pace)
                if priority < 0:
                    return None
            elif self._again:
                priority = self._first_again()
            else:
                critical, high, normal, low = self._queues
                if high and not (critical or normal or low):
                    priority = 1
                elif not (critical or normal or low or self._served):
                    return None
                else:
                    priority = 0 if critical else self._next_class()
                    if priority < 0:
                        return None
            now = self._seconds()
            item = self._queues[priority].popleft()  # type: ignore[union-attr]
            if priority == 1:
                self.answer_bytes -= item.size
            number = item.number
            if number:
                self._again -= 1
            if item.expires_at <= now:
                self._lapse(item)
                continue
            if not number:
                item.number = number = self.next_number
                self.next_number = number + 1
                if self.recorder is not None:
                    self.recorder.numbered(item)
            if self.acknowledges:
                item.message_id = number
            if self._handed is None:
                self._handed = deque()
            self._handed.append(item)
            return item

    def sent(self, item: Outgoing) -> None:
        """Note that C{item}, and all that was taken before it, has left for the socket."""
        handed = self._handed
        number = item.number
        while handed and handed[0].number <= number:
            item = handed.popleft()
            if item.message_id is not None:
                if self._unacknowledged is None:
                    self._unacknowledged = deque()
                self._unacknowledged.append(item)
            else:
                self._release(item)
            if item.on_status is not None:
                item.on_status(DeliveryStatus.SENT, "")

    def ack(self, message_id: int) -> AckVerdict:
        """Take an acknowledgement of everything up to C{message_id}."""
        if not 0 < message_id < self.next_number:
            self._total.bad_acks += 1
            return AckVerdict.NEVER_SENT
        verdict = AckVerdict.REPEATED
        for sent in (self._unacknowledged, self._handed):
            while sent and sent[0].number <= message_id:
                self._acknowledged(sent.popleft())
                verdict = AckVerdict.TAKEN
        # A client may acknowledge messages before they are sent again.
        while self._again:
            priority = self._first_again()
            queue = self._queues[priority]
            if not queue or queue[0].number > message_id:
                break
            self._acknowledged(self._pop(priority))
            verdict = AckVerdict.TAKEN
        return verdict

    def report(self, message_id: int, ok: bool, reason: str) -> Unreported | None:
        """
        Take a delivery report, which acknowledges everything up to C{message_id}, too.

        @param reason: why the app refused the message.
        @return: the message; L{None}: no report on it is awaited, or not any more.
        """
        self.ack(message_id)
        found = self._unreported.pop(message_id, None) if self._unreported else None
        if found is not None and found.on_status is not None:
            status = DeliveryStatus.DELIVERED if ok else DeliveryStatus.REFUSED_BY_APP
            found.on_status(status, "" if ok else reason)
        return found

    def _acknowledged(self, item: Outgoing) -> None:
        """Count out a message that its client has; its report may follow."""
        self._release(item)
        _notify(item, DeliveryStatus.ACKNOWLEDGED)
        if self._reports:
            unreported = self._unreported = self._unreported or {}
            now, reply = self._seconds(), item.reply
            while unreported:
                oldest = next(iter(unreported))
                late = now - unreported[oldest].acknowledged_at >= REPORT_SECONDS
                if not late and len(unreported) < MAX_UNREPORTED:
                    break
                del unreported[oldest]
            unreported[item.number] = Unreported(reply.room, reply.channel_id, item.on_status, now)

    def connection_lost(self, unsent: Collection[Outgoing]) -> None:
        """
        End the connection: messages that had not left for the socket, or were not acknowledged,
        wait again, ahead of all else.

        @param unsent: messages that were taken and had not left.
        """
        if self.pace is not None:
            self._hold(self.pace)
            self.pace.ended()
        handed = self._handed
        if handed and len(unsent) < len(handed):
            unsent_from = min((item.number for item in unsent), default=self.next_number)
            gone = [item for item in handed if item.number < unsent_from]
            if gone:
                self.sent(gone[-1])
        for queue in (self._handed, self._unacknowledged):
            while queue:
                item = queue.pop()
                priority = item.priority
                back = self._queues[priority]
                if back is None:
                    back = self._new_queue(priority)
                back.appendleft(item)
                if priority == 1:
                    self.answer_bytes += item.size
                self._again += 1
                item.message_id = None

    # From the sweep and the drain

    def expire(self, now: float) -> int:
        """
        Drop messages that have waited too long, for the phone or for its acknowledgement.  Those on
        their way to the socket stay until they are there.

        @return: the number of messages that expired.
        """
        if not self.messages:
            if self._handed is not None:
                self._queues = _NO_QUEUES
                self._handed = self._unacknowledged = None
            self._earliest = inf
            self.touched = False
            return 0
        if self.pace is not None:
            self._hold(self.pace)
        if now < self._earliest:
            return 0
        before = self._total.expired
        self._earliest = inf
        sent = self._unacknowledged
        if sent is not None:
            self._unacknowledged = self._keep(sent, now, self._lapse)
        self._queues = tuple(
            None if queue is None else self._keep(queue, now, self._lapse_waiting)
            for queue in self._queues
        )
        for item in self._handed or ():
            self._earliest = min(self._earliest, item.expires_at)
        return self._total.expired - before

    def stay_away(self, until: float) -> None:
        """
        Note that the phone stays away, or is blocked by media, until C{until}: from then on all
        messages have their whole time, unless the phone is back earlier.
        """
        self.away_until = until
        for queue in (*self._queues, self._handed, self._unacknowledged):
            for item in queue or ():
                item.expires_at = max(item.expires_at, until + item.ttl)

    def phone_reads(self) -> None:
        """Note that the phone reads, however slowly: its answers keep their whole time."""
        now = self._seconds()
        for item in self._queues[1] or ():
            item.expires_at = max(item.expires_at, now + item.ttl)

    @property
    def held_by_pace(self) -> int:
        """The number of messages that wait for their pace."""
        return len(self) if self.pace is not None and self.pace.holds(self._seconds()) else 0

    def clear(self) -> None:
        """Drop all messages: the device is not served any more."""
        self.connection_lost(self._handed or ())
        for priority in range(4):
            while self._queues[priority]:
                self._drop(priority)

    def held(self) -> list[Outgoing]:
        """All messages: those handed to a connection first, each class in order."""
        held = [*(self._unacknowledged or ()), *(self._handed or ())]
        for queue in self._queues:
            held += queue or ()
        return held

    def restore(self, items: Iterable[Outgoing], next_number: int) -> None:
        """
        Restore the messages of an outbox of before, ahead of what waits here, as if a connection
        had just ended.  Only before anything has been taken from this one.
        """
        now = self._seconds()
        self.next_number = next_number
        waiting = self._queues
        self._queues = _NO_QUEUES
        max_messages, self._max_messages = self._max_messages, _ANY_NUMBER
        for item in sorted(items, key=lambda item: item.number or inf):
            placed = self.put(item.reply, item.priority, item.expires_at - now)
            if placed is not None:
                placed.ttl = item.ttl
                placed.record = item.record
                if item.number:
                    placed.number = item.number
                    self._again += 1
        self._max_messages = max_messages
        for priority, queue in enumerate(waiting):
            if queue:
                (self._queues[priority] or self._new_queue(priority)).extend(queue)

    # Inside

    def _new_queue(self, priority: int) -> _Queue:
        queue: _Queue = deque()
        before = self._queues
        self._queues = (*before[:priority], queue, *before[priority + 1 :])
        return queue

    def _next_class(self) -> int:
        """The next class by start-time fair queueing; -1: no message waits."""
        _, high, normal, low = self._queues
        if not high and not (normal and low):
            if normal:
                return 2
            if low:
                return 3
            if self._served:  # none waits: virtual time starts anew
                self._starts = None
                self._served = 0.0
            return -1
        starts = self._starts
        if starts is None:
            starts = self._starts = [0.0, 0.0, 0.0, 0.0]
        served = self._served  # a class that did not wait starts no earlier
        best = 3
        least = inf
        if low:
            least = max(starts[3], served)
        if normal and (start := starts[2] if starts[2] > served else served) <= least:
            best, least = 2, start
        if high and (start := starts[1] if starts[1] > served else served) <= least:
            best, least = 1, start
        self._served = least
        cost = self._queues[best][0].size / _WEIGHTS[best]  # type: ignore[index]
        starts[best] = least + (cost * 8.0 if best == 3 and self.hold_low else cost)
        return best

    def _next_paced(self, pace: Pace) -> int:
        """
        Likewise, among the classes of which a message may leave by its pace: it is moved to the
        head of its class, and counts as one that leaves, unless its time is over.
        """
        now = self._seconds()
        if pace.rests(now):
            return -1
        again = self._first_again() if self._again else -1
        places: dict[int, int] = {}  # of what may leave, by class
        due = inf
        for priority, queue in enumerate(self._queues):
            if queue and again in (-1, priority):
                place, at = pace.next_of((queue[0],) if self._again else queue)
                due = min(due, at)
                if at <= now:
                    places[priority] = place
        if not places:
            if due < inf:
                pace.rest(due, now)
            else:  # none waits: virtual time starts anew
                self._starts = None
                self._served = 0.0
            return -1
        priority = min(places) if again >= 0 or 0 in places else self._fairest(places)
        queue = self._queues[priority]
        assert queue is not None
        item = queue[places[priority]]
        if places[priority]:
            del queue[places[priority]]
            queue.appendleft(item)
        if pace.holds(now):
            item.expires_at = max(item.expires_at, now + item.ttl)
        if item.expires_at > now:
            pace.left(item.reply, item.since, now)
        return priority

    def _fairest(self, places: Mapping[int, int]) -> int:
        """
        The next of some classes, none of them C{CRITICAL}, by their shares: as L{_next_class}.

        @param places: of the message that would leave, by class.
        """
        starts = self._starts = self._starts or [0.0, 0.0, 0.0, 0.0]
        best = min(places, key=lambda priority: max(starts[priority], self._served))
        self._served = max(starts[best], self._served)
        cost = self._queues[best][places[best]].size / _WEIGHTS[best]  # type: ignore[index]
        starts[best] = self._served + (cost * 8.0 if best == 3 and self.hold_low else cost)
        return best

    def _hold(self, pace: Pace) -> None:
        """Give all that waits for its pace its whole time from now on."""
        now = self._seconds()
        if pace.holds(now):
            for queue in self._queues:
                for item in queue or ():
                    item.expires_at = max(item.expires_at, now + item.ttl)

    def _first_again(self) -> int:
        """The class of the waiting message with the lowest number."""
        best = -1
        least: float = inf
        for priority, queue in enumerate(self._queues):
            if queue:
                number = queue[0].number
                if 0 < number < least:
                    best, least = priority, number
        return best

    def _pop(self, priority: int) -> Outgoing:
        """Take the oldest waiting message of a class; L{_release} counts it out."""
        queue = self._queues[priority]
        assert queue is not None
        item = queue.popleft()
        self._unqueued(item)
        return item

    def _unqueued(self, item: Outgoing) -> None:
        """Note that C{item} waits no longer."""
        if item.priority == 1:
            self.answer_bytes -= item.size
        if item.number:
            self._again -= 1

    def _keep(self, queue: _Queue, now: float, drop: Callable[[Outgoing], None]) -> _Queue | None:
        """The messages of C{queue} that have not expired."""
        kept: _Queue = deque()
        for item in queue:
            if item.expires_at <= now:
                drop(item)
                continue
            kept.append(item)
            if item.expires_at < self._earliest:
                self._earliest = item.expires_at
        return kept or None

    def _lapse_waiting(self, item: Outgoing) -> None:
        self._unqueued(item)
        self._lapse(item)

    def _lapse(self, item: Outgoing) -> None:
        """Let C{item} expire."""
        self._release(item)
        self._total.expired += 1
        _notify(item, DeliveryStatus.EXPIRED)

    def _release(self, item: Outgoing) -> None:
        """Count C{item} out."""
        self.messages -= 1
        self._bytes -= item.size
        self._total.used -= item.size
        if item.record and self.recorder is not None:
            self.recorder.gone(item)


def _notify(item: Outgoing, status: DeliveryStatus) -> None:
    if item.on_status is not None:
        item.on_status(status, "")
