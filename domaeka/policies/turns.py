"""
Turns: the messages of one class that wait for a phone, room by room.

Each room is a lane, in order.  The lanes share the phone by start-time fair queueing: a message
starts where the one of its room before it has ended, or now where none waits, and the least start
is next.  So a room gets as many bytes as another while both wait, and the first message of a room
that had nothing to say goes ahead of whatever others have piled up.
"""

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, TypeAlias

from domaeka.policies.outgoing import Outgoing, room_of

#: Most messages that go in the order in which they came, before rooms take turns, and the most
#: bytes of such a message: one batch of a writer has some 30 of them.  Lanes cost 1 µs a message.
LINE_MESSAGES: Final = 16
LINE_BYTES: Final = 2048
#: Cost of a second in which files block the phone, in bytes of text: a mobile line of 128 kbit/s
#: says as much.
BLOCKED_SECOND_BYTES: Final = 16_384
#: Most rooms whose turn is remembered while they have nothing to say, and others have.
MAX_REMEMBERED: Final = 1000

_Lane: TypeAlias = deque[Outgoing]
#: The start of a lane, a number that no other has, its room, and itself.
_Entry: TypeAlias = tuple[float, int, str, _Lane]


class Turns(deque[Outgoing]):
    """
    Messages of one class.  As a queue it has those that go next: it is empty while none may.

    Whoever takes one by C{popleft} calls L{refill} where it is empty then and there are L{lanes};
    whoever appends one does so only where L{add} would.

    @ivar lanes: all other messages, by room, the oldest first; none is empty.
    """

    __slots__ = ("_ends", "_heap", "_last", "_parked", "_served", "lanes")

    def __init__(self) -> None:
        super().__init__()
        self.lanes: dict[str, _Lane] = {}
        self._heap: list[_Entry] = []  # of lanes that are gone, too, until they are on top
        self._parked: list[_Entry] = []  # lanes whose next message is files
        self._last = 0
        self._served = 0.0  # the start of the last message that was next: the virtual time
        #: Where rooms that have nothing more to say have ended, if that is ahead.
        self._ends: dict[str, float] = {}

    def add(self, item: Outgoing) -> None:
        """Add a message behind those of its room."""
        if not self.lanes and len(self) < LINE_MESSAGES and item.size <= LINE_BYTES:
            self.append(item)
            return
        self._lane(room_of(item.reply)).append(item)
        if not self:
            self.refill()

    def _lane(self, room: str) -> _Lane:
        """The lane of a room, which may be a new one."""
        lane = self.lanes.get(room)
        if lane is None:
            lane = self.lanes[room] = deque()
            self._last += 1
            start = max(self._served, self._ends.pop(room, 0.0))
            heappush(self._heap, (start, self._last, room, lane))
        return lane

    def _top(self) -> _Entry | None:
        """The lane that is next; L{None}: none may go on."""
        heap = self._heap
        while heap and self.lanes.get(heap[0][2]) is not heap[0][3]:
            heappop(heap)
        return heap[0] if heap else None

    def refill(self) -> None:
        """Have the next message of the lanes go next."""
        top = self._top()
        if top is None:
            return
        start, _, room, lane = top
        item = lane.popleft()
        self.append(item)
        self._served = start
        end = start + _cost(item)
        if lane:
            self._last += 1
            heapreplace(self._heap, (end, self._last, room, lane))
            return
        heappop(self._heap)
        del self.lanes[room]
        if self.lanes:
            self._remember(room, end)
        else:  # none waits: virtual time starts anew
            self._served = 0.0
            self._ends = {}

    def _remember(self, room: str, end: float) -> None:
        """A room gets no new turn by having nothing to say for a moment."""
        ends = self._ends
        if len(ends) >= MAX_REMEMBERED:
            served = self._served
            self._ends = ends = {room: end for room, end in ends.items() if end > served}
            if len(ends) >= MAX_REMEMBERED:
                del ends[min(ends, key=ends.__getitem__)]
        ends[room] = end

    def take_of(self, room: str) -> Outgoing | None:
        """Take the oldest message of a room, out of turn; L{None}: it has none."""
        for place, item in enumerate(self):
            if room_of(item.reply) == room:
                del self[place]
                break
        else:
            lane = self.lanes.get(room)
            if lane is None:
                return None
            item = lane.popleft()
            if not lane:
                del self.lanes[room]
                if len(self._heap) + len(self._parked) > 2 * len(self.lanes) + LINE_MESSAGES:
                    self._tidy()
        if not self:
            self.refill()
        return item

    def _tidy(self) -> None:
        """Remove the lanes that are empty or gone."""
        lanes = self.lanes = {room: lane for room, lane in self.lanes.items() if lane}
        self._parked = [entry for entry in self._parked if lanes.get(entry[2]) is entry[3]]
        self._heap = [entry for entry in self._heap if lanes.get(entry[2]) is entry[3]]
        heapify(self._heap)
        if not lanes:
            self._served = 0.0
            self._ends = {}

    # Files, while the phone sends those before

    def park(self) -> bool:
        """Set files aside, and what follows them in their rooms.  @return: whether any wait."""
        while self and type(self[0].reply.content) is not str:
            # All others that go next came behind: into the lanes, at their heads.
            while self:
                item = self.pop()
                self._lane(room_of(item.reply)).appendleft(item)
            while (top := self._top()) and type(top[3][0].reply.content) is not str:
                self._parked.append(heappop(self._heap))
            self.refill()
        return bool(self._parked)

    def unpark(self) -> None:
        """Have files take their turns again."""
        for entry in self._parked:
            heappush(self._heap, entry)
        self._parked = []
        if not self:
            self.refill()

    # All of them

    def items(self) -> Iterator[Outgoing]:
        """All messages, each room in order."""
        yield from self
        for lane in self.lanes.values():
            yield from lane

    def heads(self, files: bool = True) -> list[Outgoing]:
        """
        The first message of each room, at least.

        @param files: whether with files, and what follows them in their rooms.
        """
        heads = [*self, *(lane[0] for lane in self.lanes.values())]
        if files:
            return heads
        barred: set[str] = set()
        texts = []
        for item in heads:
            if type(item.reply.content) is not str:
                barred.add(room_of(item.reply))
            elif room_of(item.reply) not in barred:
                texts.append(item)
        return texts

    def keep(self, stays: Callable[[Outgoing], bool]) -> None:
        """Remove the messages that C{stays} denies; each is asked about once, in order."""
        for some in (self, *self.lanes.values()):
            kept = [item for item in some if stays(item)]
            if len(kept) < len(some):
                some.clear()
                some.extend(kept)
        self._tidy()
        if not self:
            self.refill()


def _cost(item: Outgoing) -> float:
    """The cost of a message to the others, in bytes."""
    reply = item.reply
    if type(reply.content) is str:
        return item.size
    return item.size + BLOCKED_SECOND_BYTES * reply.blocked_seconds("")
