"""
What waits for a phone, connected or not.

An L{Outbox} belongs to a device and outlives its connections.  A message goes through it so::

    put -> waiting -> take -> handed -> sent -> (unacknowledged) -> gone

and back to waiting, ahead of everything new, where a connection ends in between.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from enum import Enum, IntEnum, StrEnum
from math import inf
from typing import Final, TypeAlias

import msgspec

from domaeka.messages import Reply

#: Bytes that one class may send for each byte of C{LOW}, while both wait.
_WEIGHTS: Final = (inf, 8.0, 4.0, 1.0)
#: Up to which part of the bytes of all outboxes together each class finds room: what is sent to
#: many must not take the room of answers.
_SHARES: Final = (2.0**32, 1.0, 0.75, 0.5)
#: What another outbox held is not bounded by number once more: it may not have been acknowledged.
_ANY_NUMBER: Final = 2**62


class Priority(IntEnum):
    """Who goes first to a phone."""

    CRITICAL = 0  # notices
    HIGH = 1  # answers to commands
    NORMAL = 2  # messages
    LOW = 3  # bulk and statistics


class Fate(StrEnum):
    """What has become of a message: the words of the API."""

    QUEUED = "queued"
    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    EXPIRED = "expired"
    DROPPED = "dropped"


class AckVerdict(Enum):
    """What an acknowledgement was worth."""

    TAKEN = "taken"
    REPEATED = "repeated"  # all of it was known, or given up, already
    NEVER_SENT = "never sent"  # negative, or of the future: ignored


#: Told each change of a message's fate.  Must neither raise nor touch an outbox.
FateListener: TypeAlias = Callable[[Fate], None]


class Budget:
    """
    The room that all outboxes share, and what they have in common to report.

    @ivar used: bytes that wait, or are on their way, or are not acknowledged.
    @ivar limits: up to how many bytes each class finds room.
    @ivar expired: how many have run out of time.
    @ivar dropped: how many have given way to others, or found no room.
    @ivar forgotten: how many were sent, and given up, for want of room, before they were
        acknowledged.
    @ivar bad_acks: how many acknowledgements were of what was never sent.
    """

    __slots__ = ("bad_acks", "dropped", "expired", "forgotten", "limits", "used")

    def __init__(self, max_bytes: int) -> None:
        """@param max_bytes: most bytes that may wait, in all outboxes together."""
        self.limits = tuple(int(max_bytes * share) for share in _SHARES)
        self.used = 0
        self.expired = 0
        self.dropped = 0
        self.forgotten = 0
        self.bad_acks = 0


class Outgoing(msgspec.Struct):
    """
    One message that waits for a phone.

    @ivar size: about how many bytes it takes.
    @ivar ttl: how long it may wait, in seconds.
    @ivar expires_at: when it has waited long enough.
    @ivar number: its place among all that were handed to connections; 0: never handed.
    @ivar message_id: the same, for a connection that acknowledges.
    @ivar end: where it ends in what was written with it, in bytes.
    """

    reply: Reply
    priority: Priority
    size: int
    ttl: float
    expires_at: float
    on_fate: FateListener | None = None
    number: int = 0
    message_id: int | None = None
    end: int = 0


_Queue: TypeAlias = deque[Outgoing]
#: Of each class.  Most outboxes are idle, and an empty deque takes 760 bytes.
_NO_QUEUES: Final[tuple[_Queue | None, ...]] = (None, None, None, None)


class Outbox:
    """
    Bounded; the urgent first; in order within a class, and so within a room inside a class.

    C{CRITICAL} goes first, the others share by weight, so that nobody starves.  What had been
    handed to a connection that ended goes again before anything new, in order, under its number.

    @ivar acknowledges: whether the last connection says what has arrived.
    @ivar messages: how many are held: waiting, on their way, or not acknowledged.
    @ivar touched: whether L{expire} may have anything to do, or to tidy up.
    @ivar answer_bytes: how many bytes of answers (C{HIGH}) wait to be taken.
    @ivar epoch: says which numbering this is.
    @ivar next_number: goes to the next message that is handed over for the first time.
    @ivar hold_low: while set, C{LOW} has an eighth of its share.
    @ivar away_until: when the phone may be back, that was told to stay away.
    """

    __slots__ = (
        "_again",
        "_bytes",
        "_earliest",
        "_handed",
        "_max_bytes",
        "_max_messages",
        "_queues",
        "_seconds",
        "_served",
        "_total",
        "_turns",
        "_unacknowledged",
        "acknowledges",
        "answer_bytes",
        "away_until",
        "epoch",
        "hold_low",
        "messages",
        "next_number",
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
        @param epoch: says which numbering this is; never used before.
        """
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._total = total
        self._seconds = seconds
        self.epoch = epoch
        self.hold_low = False
        self.acknowledges = False
        self.next_number = 1
        self.away_until = -inf
        self._queues = _NO_QUEUES
        self._handed: _Queue | None = None  # by number, on their way to the socket
        self._unacknowledged: _Queue | None = None  # by number, all lower than those handed
        self.messages = 0
        self.touched = False
        self._bytes = 0
        self.answer_bytes = 0
        self._again = 0  # how many that wait have a number: at the heads of the queues
        self._earliest = inf  # nothing expires before
        # Start-time fair queueing: who is served next, and where the last one served stood.
        self._turns: list[float] | None = None
        self._served = 0.0

    @property
    def bytes(self) -> int:
        """How many bytes L{messages} take."""
        return self._bytes

    def __len__(self) -> int:
        """How many wait to be taken."""
        return sum(len(queue) for queue in self._queues if queue)

    # From those who send

    def put(
        self,
        reply: Reply,
        priority: Priority,
        ttl: float,
        on_fate: FateListener | None = None,
    ) -> Outgoing | None:
        """
        Take a message in.  Where there is no room, the oldest C{LOW} one gives way, then
        C{NORMAL}, then C{HIGH}, none for a lower one; never C{CRITICAL}.

        @param ttl: how long it may wait, in seconds; for a phone that was told to stay away,
            counted from when it may be back.
        @param on_fate: told what becomes of it, from C{SENT} on.
        @return: L{None} if it was dropped, or had no time, and the listener has been told.
        """
        now = self._seconds()
        size = reply.size
        away_until = self.away_until
        expires_at = (now if now > away_until else away_until) + ttl
        total = self._total
        if not expires_at > now:
            total.expired += 1
            if on_fate is not None:
                on_fate(Fate.EXPIRED)
            return None
        if (
            self.messages >= self._max_messages
            or self._bytes + size > self._max_bytes
            or total.used + size > total.limits[priority]
        ) and not self._make_room(priority, size):
            total.dropped += 1
            if on_fate is not None:
                on_fate(Fate.DROPPED)
            return None
        item = Outgoing(reply, priority, size, ttl, expires_at, on_fate)
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
        return item

    def _make_room(self, priority: Priority, size: int) -> bool:
        """Let others give way to a message."""
        total = self._total
        limit = total.limits[priority]
        if size > self._max_bytes or total.used - self._bytes + size > limit:
            return False  # not even if all of them did
        unacknowledged = self._unacknowledged or deque()
        while True:
            # An acknowledgement comes behind what its client had sent before: of what has left
            # for the socket, any number may be owed one.
            owed = len(unacknowledged) + self._again
            full = self.messages - owed >= self._max_messages
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
                return False  # full of what is critical, or on its way

    def _drop(self, priority: int) -> None:
        """The oldest of a class gives way."""
        item = self._pop(priority)
        self._release(item)
        self._total.dropped += 1
        _tell(item, Fate.DROPPED)

    # From the connection

    def connected(self, acknowledges: bool) -> None:
        """
        A connection begins, and takes the place of the one before it, if any: all that had been
        handed to that one and is still held goes again.  The one before must say nothing more.

        @param acknowledges: whether it says what has arrived.
        """
        self.connection_lost(self._handed or ())
        self.acknowledges = acknowledges
        self.away_until = -inf

    def take(self) -> Outgoing | None:
        """
        The next message to write, now on its way, with its number.

        @return: L{None} when nothing is to be sent.
        """
        while True:
            if self._again:
                priority = self._first_again()
            else:
                critical, high, normal, low = self._queues
                if high and not (critical or normal or low):
                    priority = 1
                elif not (critical or normal or low or self._served):
                    return None
                else:
                    priority = 0 if critical else self._whose_turn()
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
            if self.acknowledges:
                item.message_id = number
            if self._handed is None:
                self._handed = deque()
            self._handed.append(item)
            return item

    def sent(self, item: Outgoing) -> None:
        """C{item} has left for the socket, as has whatever was taken before it."""
        handed = self._handed
        number = item.number
        while handed and handed[0].number <= number:
            item = handed.popleft()
            if self.acknowledges:
                if self._unacknowledged is None:
                    self._unacknowledged = deque()
                self._unacknowledged.append(item)
            else:
                self.messages -= 1
                self._bytes -= item.size
                self._total.used -= item.size
            if item.on_fate is not None:
                item.on_fate(Fate.SENT)

    def ack(self, message_id: int) -> AckVerdict:
        """The phone has everything up to C{message_id}, it says."""
        if not 0 < message_id < self.next_number:
            self._total.bad_acks += 1
            return AckVerdict.NEVER_SENT
        verdict = AckVerdict.REPEATED
        for sent in (self._unacknowledged, self._handed):
            while sent and sent[0].number <= message_id:
                item = sent.popleft()
                self._release(item)
                _tell(item, Fate.ACKNOWLEDGED)
                verdict = AckVerdict.TAKEN
        # A client may say what it has before it is sent that again.
        while self._again:
            priority = self._first_again()
            queue = self._queues[priority]
            if not queue or queue[0].number > message_id:
                break
            item = self._pop(priority)
            self._release(item)
            _tell(item, Fate.ACKNOWLEDGED)
            verdict = AckVerdict.TAKEN
        return verdict

    def connection_lost(self, unsent: Collection[Outgoing]) -> None:
        """
        The connection ended, and will say nothing more.  What had not left for the socket, and
        what was not acknowledged, waits again, ahead of all else.

        @param unsent: what was taken and had not left.
        """
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
        Let go of what has waited long enough.  What is on its way to the socket stays until it
        is there; what was sent on a living connection is given up quietly.

        @return: how many expired.
        """
        if not self.messages:
            if self._handed is not None:
                self._queues = _NO_QUEUES
                self._handed = self._unacknowledged = None
            self._earliest = inf
            self.touched = False
            return 0
        if now < self._earliest:
            return 0
        before = self._total.expired
        self._earliest = inf
        sent = self._unacknowledged
        if sent is not None:
            self._unacknowledged = self._keep(sent, now, self._release)
        self._queues = tuple(
            None if queue is None else self._keep(queue, now, self._lapse_waiting)
            for queue in self._queues
        )
        for item in self._handed or ():
            self._earliest = min(self._earliest, item.expires_at)
        return self._total.expired - before

    def stay_away(self, until: float) -> None:
        """
        The phone was told not to come back, or has been given what keeps it from reading, before
        C{until}: what waits, or comes to wait, keeps its whole time from then on, unless it comes
        back earlier.
        """
        self.away_until = until
        for queue in (*self._queues, self._handed, self._unacknowledged):
            for item in queue or ():
                item.expires_at = max(item.expires_at, until + item.ttl)

    def line_moves(self) -> None:
        """The phone takes what it is sent, however slowly: its answers keep their whole time."""
        now = self._seconds()
        for item in self._queues[1] or ():
            item.expires_at = max(item.expires_at, now + item.ttl)

    def clear(self) -> None:
        """The device is not served any more: all that waits is dropped."""
        self.connection_lost(self._handed or ())
        for priority in range(4):
            while self._queues[priority]:
                self._drop(priority)

    def held(self) -> list[Outgoing]:
        """All that is held: what was handed to a connection first, each class in order."""
        held = [*(self._unacknowledged or ()), *(self._handed or ())]
        for queue in self._queues:
            held += queue or ()
        return held

    def restore(self, items: Iterable[Outgoing], next_number: int) -> None:
        """
        Take over what another one held, as if a connection had just ended, ahead of what waits
        here.  Only for one from which nothing has been taken.

        @param next_number: of that other one.
        """
        now = self._seconds()
        self.next_number = next_number
        waiting = self._queues
        self._queues = _NO_QUEUES
        max_messages, self._max_messages = self._max_messages, _ANY_NUMBER
        # Those with a number go to the heads of their queues, in order.
        for item in sorted(items, key=lambda item: item.number or inf):
            placed = self.put(item.reply, item.priority, item.expires_at - now)
            if placed is not None:
                placed.ttl = item.ttl
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

    def _whose_turn(self) -> int:
        """
        Who goes next, of those who share: start-time fair queueing.

        @return: a class, or -1: nobody.
        """
        _, high, normal, low = self._queues
        if not high and not (normal and low):
            if normal:
                return 2
            if low:
                return 3
            if self._served:  # nobody is owed anything
                self._turns = None
                self._served = 0.0
            return -1
        turns = self._turns
        if turns is None:
            turns = self._turns = [0.0, 0.0, 0.0, 0.0]
        served = self._served  # who did not wait has lost the turns before
        best = 3
        least = inf
        if low:
            least = max(turns[3], served)
        if normal and (turn := turns[2] if turns[2] > served else served) <= least:
            best, least = 2, turn
        if high and (turn := turns[1] if turns[1] > served else served) <= least:
            best, least = 1, turn
        self._served = least
        cost = self._queues[best][0].size / _WEIGHTS[best]  # type: ignore[index]
        turns[best] = least + (cost * 8.0 if best == 3 and self.hold_low else cost)
        return best

    def _first_again(self) -> int:
        """The class with the lowest number."""
        best = -1
        least: float = inf
        for priority, queue in enumerate(self._queues):
            if queue:
                number = queue[0].number
                if 0 < number < least:
                    best, least = priority, number
        return best

    def _pop(self, priority: int) -> Outgoing:
        """The oldest that waits in a class, out of it, but not yet out of the accounts."""
        queue = self._queues[priority]
        assert queue is not None
        item = queue.popleft()
        if priority == 1:
            self.answer_bytes -= item.size
        if item.number:
            self._again -= 1
        return item

    def _keep(self, queue: _Queue, now: float, let_go: Callable[[Outgoing], None]) -> _Queue | None:
        """Those of C{queue} whose time has not come."""
        kept: _Queue = deque()
        for item in queue:
            if item.expires_at <= now:
                let_go(item)
                continue
            kept.append(item)
            if item.expires_at < self._earliest:
                self._earliest = item.expires_at
        return kept or None

    def _lapse_waiting(self, item: Outgoing) -> None:
        if item.priority == 1:
            self.answer_bytes -= item.size
        if item.number:
            self._again -= 1
        self._lapse(item)

    def _lapse(self, item: Outgoing) -> None:
        """The time of C{item} has run out."""
        self._release(item)
        self._total.expired += 1
        _tell(item, Fate.EXPIRED)

    def _release(self, item: Outgoing) -> None:
        """C{item} is not held any more."""
        self.messages -= 1
        self._bytes -= item.size
        self._total.used -= item.size


def _tell(item: Outgoing, fate: Fate) -> None:
    if item.on_fate is not None:
        item.on_fate(fate)
