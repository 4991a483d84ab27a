"""
The outbox: messages that wait for a phone, connected or not.

An L{Outbox} belongs to a device and outlives its connections.  A message goes through it so::

    put -> waiting -> take -> handed -> sent -> (unacknowledged) -> (unreported) -> gone

and back to waiting, ahead of everything new, where a connection ends in between.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from math import inf
from typing import Final, TypeAlias

from domaeka.policies.budget import Budget as Budget
from domaeka.policies.outgoing import AckVerdict as AckVerdict
from domaeka.policies.outgoing import DeliveryStatus as DeliveryStatus
from domaeka.policies.outgoing import Outgoing as Outgoing
from domaeka.policies.outgoing import Priority as Priority
from domaeka.policies.outgoing import Recorder as Recorder
from domaeka.policies.outgoing import StatusListener as StatusListener
from domaeka.policies.outgoing import room_of
from domaeka.policies.pacing import Pace
from domaeka.policies.reports import Reports, Unreported
from domaeka.policies.tally import BYTES, MESSAGES, Tally
from domaeka.policies.turns import LINE_BYTES, LINE_MESSAGES, Turns
from domaeka.wire import Reply

#: Bytes that one class may send for each byte of C{LOW}, while both wait.
_WEIGHTS: Final = (inf, 8.0, 4.0, 1.0)
#: Bound of restored messages, some of which may be unacknowledged: none.
_ANY_NUMBER: Final = 2**62
#: Sent messages among which one of a room is looked for that gives way: to look at them takes
#: 80 µs.
_LOOKED_THROUGH: Final = 1000


_Queue: TypeAlias = deque[Outgoing]
#: Turns of each class: none, for most outboxes are idle, and empty ones take 500 bytes.
_NO_QUEUES: Final[tuple[Turns | None, ...]] = (None, None, None, None)


class Outbox:
    """
    A bounded queue of messages, in order within a room inside a class.

    C{CRITICAL} goes first, the others share by weight, so that none starves; within a class rooms
    take turns.  Messages handed to a connection that ended go again before anything new, in order,
    under their numbers.

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
    @ivar owner: whose it is, for the log.
    @ivar files_wait: whether files wait for the phone to be done with those before.
    """

    __slots__ = (
        "__weakref__",
        "_again",
        "_bytes",
        "_earliest",
        "_files_until",
        "_handed",
        "_max_bytes",
        "_max_messages",
        "_queues",
        "_reports",
        "_seconds",
        "_served",
        "_starts",
        "_tally",
        "_total",
        "_unacknowledged",
        "_unreported",
        "acknowledges",
        "answer_bytes",
        "away_until",
        "epoch",
        "files_wait",
        "hold_low",
        "messages",
        "next_number",
        "owner",
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
        owner: object = "",
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
        self.owner = owner
        total.shared_by(self)
        self._tally: Tally | None = None  # while it is full, or was a moment ago
        self._queues = _NO_QUEUES
        self._again: _Queue | None = None  # by number: they wait, ahead of all others
        self._handed: _Queue | None = None  # by number, on their way to the socket
        self._unacknowledged: _Queue | None = None  # by number, all lower than those handed
        self._unreported: Reports | None = None  # acknowledged
        self.messages = 0
        self.touched = False
        self._bytes = 0
        self.answer_bytes = 0
        self._files_until = 0.0  # until then no more files leave
        self.files_wait = False
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
        return sum(1 for _ in self._waiting())

    # From senders

    def put(
        self, reply: Reply, priority: Priority, ttl: float, on_status: StatusListener | None = None
    ) -> Outgoing | None:
        """
        Take a message in.  Where there is no room, the room that holds most gives way, or the
        class that holds more than that one: the oldest C{LOW} message, then C{NORMAL}, then
        C{HIGH}, none for a lower one; never C{CRITICAL}.

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
        item = Outgoing(reply, priority, size, ttl, expires_at, on_status)
        if (
            self.messages >= self._max_messages
            or self._bytes + size > self._max_bytes
            or total.used + size > total.limits[priority]
        ) and not self._make_room(item):
            total.dropped += 1
            item.notify(DeliveryStatus.DROPPED)
            return None
        queue = self._queues[priority]
        if queue is None:
            queue = self._new_queue(priority)
        if queue.lanes or len(queue) >= LINE_MESSAGES or size > LINE_BYTES:
            queue.add(item)
        else:
            queue.append(item)
        self.messages += 1
        self.touched = True
        self._bytes += size
        if priority == 1:
            self.answer_bytes += size
        total.used += size
        if self._tally is not None:
            self._tally.add(item)
        if expires_at < self._earliest:
            self._earliest = expires_at
        if self.recorder is not None:
            self.recorder.put(item)
        if self.pace is not None:
            item.since = now
            self.pace.came(reply)
        return item

    def _make_room(self, item: Outgoing) -> bool:
        """Have others give way to a message.  @return: whether there is room."""
        total, size, priority = self._total, item.size, item.priority
        room = room_of(item.reply)
        if size > self._max_bytes:
            total.room_gave_way(self._claimant(room))
            return False  # even an empty outbox had no room
        counted = False
        while True:
            # Unacknowledged messages are not bounded by number: an acknowledgement comes behind
            # all that its client had sent before.
            unbounded = len(self._unacknowledged or ()) + len(self._again or ())
            full = self.messages - unbounded >= self._max_messages
            if not (full or self._bytes + size > self._max_bytes):
                break
            tally = self._counted()
            if not counted:
                tally.add(item)
                counted = True
            gave = self._give_way(priority, MESSAGES if full else BYTES, room)
            total.room_gave_way(self._claimant(room if gave is None else gave))
            if gave is None:
                tally.remove(item)
                return False
        if counted:
            self._counted().remove(item)
        if total.used + size <= total.limits[priority]:
            return True
        if total.make_room(self, priority, size):
            return True
        total.device_gave_way(self.owner)
        return False

    def _counted(self) -> Tally:
        """What each room holds, kept until the outbox is half empty."""
        if self._tally is None:
            self._tally = Tally(self.held())
        return self._tally

    def _claimant(self, room: str) -> str:
        return f"{self.owner}, room {room!r}"

    def give_way(self, priority: int = 0) -> bool:
        """See L{Holder<domaeka.policies.budget.Holder>}."""
        return bool(self.messages) and self._give_way(priority, BYTES, None) is not None

    def _give_way(self, priority: int, measure: int, room: str | None) -> str | None:
        """
        Drop a message of the room that holds most; of the least important class, where that holds
        more.

        @param priority: that of the message for which there is no room; what is more important
            stays.
        @param room: the room of that message, which is counted in already.
        @return: whose message it was; L{None}: there is none.
        """
        tally = self._counted()
        largest = tally.largest(measure)
        least = next((p for p in (3, 2, 1) if p >= priority and self._has(p)), 0)
        if not least or tally.rooms[measure][largest] >= tally.classes[measure][least]:
            if self._drop_in(largest, priority, measure):
                return largest
            if largest == room:
                return None
        if least <= 1 and measure == BYTES and priority < 3:
            sent = self._drop_sent(None)
            if sent is not None:
                return sent
        queue = self._queues[least] if least else None
        if queue is None:
            return None  # full of critical messages, or of those on their way
        rooms = (room_of(item.reply) for item in queue.heads())
        other = max(rooms, key=tally.rooms[measure].__getitem__)
        self._drop(queue, other)
        return other

    def _has(self, priority: int) -> bool:
        """True if a message of a class waits that was never handed over."""
        queue = self._queues[priority]
        return queue is not None and bool(queue or queue.lanes)

    def _drop_in(self, room: str, priority: int, measure: int) -> bool:
        """Drop the message that a room can best do without.  @return: whether it has one."""
        may_be_sent = measure == BYTES and priority < 3
        for least in (3, 2, 1):
            if least == 1 and may_be_sent and self._drop_sent(room) is not None:
                return True
            queue = self._queues[least] if least >= priority else None
            if queue is not None and self._drop(queue, room):
                return True
        return False

    def _drop(self, queue: Turns, room: str) -> bool:
        """Drop the oldest message of a room.  @return: whether it has one."""
        item = queue.take_of(room)
        if item is None:
            return False
        if item.priority == 1:
            self.answer_bytes -= item.size
        self._dropped(item)
        return True

    def _drop_sent(self, room: str | None) -> str | None:
        """
        Give up the oldest message, of a room or of any, that was sent before, or is to go again.

        @return: whose it was; L{None}: there is none.
        """
        sent = self._unacknowledged
        place = _place_of(room, sent)
        if sent is not None and place >= 0:
            item = sent[place]
            del sent[place]
            self._release(item)
            self._total.forgotten += 1
            return room_of(item.reply)
        again = self._again
        place = _place_of(room, again)
        if again is None or place < 0:
            return None
        item = again[place]
        del again[place]
        if item.priority == 1:
            self.answer_bytes -= item.size
        self._dropped(item)
        return room_of(item.reply)

    def _dropped(self, item: Outgoing) -> None:
        self._release(item)
        self._total.dropped += 1
        item.notify(DeliveryStatus.DROPPED)

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
        self.files_done()

    def take(self) -> Outgoing | None:
        """
        Take the next message to write: it is on its way, and has a number.

        @return: L{None} if nothing is to be sent.
        """
        while True:
            if self._files_until:
                self._hold_files()
            if self._again:
                item = self._next_again()
                if item is None:
                    return None
            elif self.pace is not None:
                item = self._next_paced(self.pace)
                if item is None:
                    return None
            else:
                critical, high, normal, low = self._queues
                if high and not (critical or normal or low):
                    queue = high
                elif not (critical or normal or low or self._served):
                    return None
                else:
                    priority = 0 if critical else self._next_class()
                    if priority < 0:
                        return None
                    queue = self._queues[priority]  # type: ignore[assignment]
                item = queue.popleft()
                if not queue and queue.lanes:
                    queue.refill()
            now = self._seconds()
            if item.priority == 1:
                self.answer_bytes -= item.size
            number = item.number
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
        again = self._again
        while again and again[0].number <= message_id:
            item = again.popleft()
            if item.priority == 1:
                self.answer_bytes -= item.size
            self._acknowledged(item)
            verdict = AckVerdict.TAKEN
        return verdict

    def report(self, message_id: int, ok: bool, reason: str) -> Unreported | None:
        """
        Take a delivery report, which acknowledges everything up to C{message_id}, too.

        @param reason: why the app refused the message.
        @return: the message; L{None}: no report on it is awaited, or not any more.
        """
        self.ack(message_id)
        found = self._unreported.take(message_id) if self._unreported else None
        if found is not None and found.on_status is not None:
            status = DeliveryStatus.DELIVERED if ok else DeliveryStatus.REFUSED_BY_APP
            found.on_status(status, "" if ok else reason)
        return found

    def _acknowledged(self, item: Outgoing) -> None:
        """Count out a message that its client has; its report may follow."""
        self._release(item)
        item.notify(DeliveryStatus.ACKNOWLEDGED)
        if self._reports:
            if self._unreported is None:
                self._unreported = Reports(self._reports_gave_way)
            self._unreported.expect(item, self._seconds())

    def _reports_gave_way(self, room: str, count: int) -> None:
        self._total.reports_gave_way(self._claimant(room), count)

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
                if self._again is None:
                    self._again = deque()
                self._again.appendleft(item)
                if item.priority == 1:
                    self.answer_bytes += item.size
                item.message_id = None

    def hold_files(self, until: float) -> None:
        """
        Note that the files which were taken last have left, and block the phone: it reads nothing
        while it sends them.  No more of them leave before it is done, so that what comes for other
        rooms meanwhile goes between.

        @param until: when it is done, at the latest.
        """
        self._files_until = until

    def files_done(self) -> None:
        """Note that the phone is done with all files that have left."""
        self._files_until = 0.0
        self.files_wait = False
        for queue in self._queues:
            if queue is not None:
                queue.unpark()
        if self.pace is not None:
            self.pace.look_again()

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
                self._again = self._handed = self._unacknowledged = None
            self._tally = None
            self._earliest = inf
            self.touched = False
            return 0
        if self.pace is not None:
            self._hold(self.pace)
        if self._tally is not None and not self._half_full:
            self._tally = None
        if now < self._earliest:
            return 0
        before = self._total.expired
        self._earliest = inf

        def stays(item: Outgoing) -> bool:
            if item.expires_at <= now:
                self._lapse(item)
                return False
            self._earliest = min(self._earliest, item.expires_at)
            return True

        def waits(item: Outgoing) -> bool:
            kept = stays(item)
            if not kept and item.priority == 1:
                self.answer_bytes -= item.size
            return kept

        if self._unacknowledged is not None:
            self._unacknowledged = deque(filter(stays, self._unacknowledged)) or None
        if self._again is not None:
            self._again = deque(filter(waits, self._again)) or None
        for queue in self._queues:
            if queue is not None:
                queue.keep(waits)
        for item in self._handed or ():
            self._earliest = min(self._earliest, item.expires_at)
        return self._total.expired - before

    @property
    def _half_full(self) -> bool:
        return self.messages * 2 > self._max_messages or self._bytes * 2 > self._max_bytes

    def stay_away(self, until: float) -> None:
        """
        Note that the phone stays away, or is blocked by media, until C{until}: from then on all
        messages have their whole time, unless the phone is back earlier.
        """
        self.away_until = until
        for item in self.held():
            item.expires_at = max(item.expires_at, until + item.ttl)

    def phone_reads(self) -> None:
        """Note that the phone reads, however slowly: its answers keep their whole time."""
        now = self._seconds()
        for item in self._waiting():
            if item.priority == 1:
                item.expires_at = max(item.expires_at, now + item.ttl)

    @property
    def held_by_pace(self) -> int:
        """The number of messages that wait for their pace."""
        return len(self) if self.pace is not None and self.pace.holds(self._seconds()) else 0

    def clear(self) -> None:
        """Drop all messages: the device is not served any more."""
        self.connection_lost(self._handed or ())
        for item in list(self._waiting()):
            self._release(item)
            self._total.dropped += 1
            item.notify(DeliveryStatus.DROPPED)
        self._again = None
        self._queues = _NO_QUEUES
        self.answer_bytes = 0

    def held(self) -> list[Outgoing]:
        """All messages: those handed to a connection first, each room in order within a class."""
        return [*(self._unacknowledged or ()), *(self._handed or ()), *self._waiting()]

    def _waiting(self) -> Iterator[Outgoing]:
        """All messages that wait to be taken: those that go again first."""
        yield from self._again or ()
        for queue in self._queues:
            if queue is not None:
                yield from queue.items()

    def restore(self, items: Iterable[Outgoing], next_number: int) -> None:
        """
        Restore the messages of an outbox of before, ahead of what waits here, as if a connection
        had just ended.  Only before anything has been taken from this one.
        """
        kept = sorted(items, key=lambda item: item.number)
        self.next_number = next_number
        waiting, self._queues = self._queues, _NO_QUEUES
        max_messages, self._max_messages = self._max_messages, _ANY_NUMBER
        self._tally = None
        self._put_back(item for item in kept if item.number)
        self._again = deque(sorted(self._waiting(), key=lambda item: item.number))
        self._queues = _NO_QUEUES
        self._put_back(item for item in kept if not item.number)
        self._max_messages = max_messages
        self._tally = None  # it knows nothing of those that were here
        for priority, queue in enumerate(waiting):
            for item in queue.items() if queue is not None else ():
                (self._queues[priority] or self._new_queue(priority)).add(item)

    def _put_back(self, items: Iterable[Outgoing]) -> None:
        """Take restored messages in."""
        now = self._seconds()
        for item in items:
            placed = self.put(item.reply, item.priority, item.expires_at - now)
            if placed is not None:
                placed.ttl = item.ttl
                placed.record = item.record
                placed.number = item.number

    # Inside

    def _new_queue(self, priority: int) -> Turns:
        queue = Turns()
        before = self._queues
        self._queues = (*before[:priority], queue, *before[priority + 1 :])
        return queue

    def _hold_files(self) -> None:
        """Set files aside until the phone is done with those before."""
        if self._seconds() >= self._files_until:
            self.files_done()
            return
        again = self._again
        wait = bool(again) and type(again[0].reply.content) is not str  # type: ignore[index]
        for queue in self._queues:
            if queue is not None and queue.park():
                wait = True
        self.files_wait = wait

    def _next_again(self) -> Outgoing | None:
        """The next of the messages that go again, in the order of their numbers."""
        again, pace = self._again, self.pace
        assert again is not None
        item = again[0]
        if self._files_until and type(item.reply.content) is not str:
            return None
        if pace is not None:
            now = self._seconds()
            if pace.rests(now):
                return None
            due = pace.due(item.reply)
            if due > now:
                pace.rest(due, now)
                return None
            self._leaves_by(pace, item, now)
        return again.popleft()

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

    def _next_paced(self, pace: Pace) -> Outgoing | None:
        """Likewise the next message, among those that may leave by their pace."""
        now = self._seconds()
        if pace.rests(now):
            return None
        firsts: dict[int, Outgoing] = {}  # of what may leave, by class
        due = inf
        for priority, queue in enumerate(self._queues):
            some = queue.heads(not self._files_until) if queue else None
            if some:
                place, at = pace.next_of(some)
                due = min(due, at)
                if at <= now:
                    firsts[priority] = some[place]
        if not firsts:
            if due < inf:
                pace.rest(due, now)
            else:  # none waits: virtual time starts anew
                self._starts = None
                self._served = 0.0
            return None
        priority = 0 if 0 in firsts else self._fairest(firsts)
        queue, item = self._queues[priority], firsts[priority]
        assert queue is not None
        queue.take_of(room_of(item.reply))
        self._leaves_by(pace, item, now)
        return item

    def _leaves_by(self, pace: Pace, item: Outgoing, now: float) -> None:
        """Count a message as one that leaves, unless its time is over."""
        if pace.holds(now):
            item.expires_at = max(item.expires_at, now + item.ttl)
        if item.expires_at > now:
            pace.left(item.reply, item.since, now)

    def _fairest(self, firsts: Mapping[int, Outgoing]) -> int:
        """
        The next of some classes, none of them C{CRITICAL}, by their shares: as L{_next_class}.

        @param firsts: the message that would leave, by class.
        """
        starts = self._starts = self._starts or [0.0, 0.0, 0.0, 0.0]
        best = min(firsts, key=lambda priority: max(starts[priority], self._served))
        self._served = max(starts[best], self._served)
        cost = firsts[best].size / _WEIGHTS[best]
        starts[best] = self._served + (cost * 8.0 if best == 3 and self.hold_low else cost)
        return best

    def _hold(self, pace: Pace) -> None:
        """Give all that waits for its pace its whole time from now on."""
        now = self._seconds()
        if pace.holds(now):
            for item in self._waiting():
                item.expires_at = max(item.expires_at, now + item.ttl)

    def _lapse(self, item: Outgoing) -> None:
        """Let C{item} expire."""
        self._release(item)
        self._total.expired += 1
        item.notify(DeliveryStatus.EXPIRED)

    def _release(self, item: Outgoing) -> None:
        """Count C{item} out."""
        self.messages -= 1
        self._bytes -= item.size
        self._total.used -= item.size
        if self._tally is not None:
            self._tally.remove(item)
        if item.record and self.recorder is not None:
            self.recorder.gone(item)


def _place_of(room: str | None, sent: _Queue | None) -> int:
    """The place of the oldest message of a room, or of any, that may give way; -1: none."""
    for place, item in enumerate(islice(sent or (), _LOOKED_THROUGH)):
        if item.priority and (room is None or room_of(item.reply) == room):
            return place
    return -1
