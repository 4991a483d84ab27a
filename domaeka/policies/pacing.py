"""
Pacing: messages leave for a phone, and for each of its rooms, no faster than people write.

The acknowledgements, pings and notices of a connection are no messages, and are not paced.
"""

from collections.abc import Callable, Iterable
from math import inf
from random import Random
from typing import Final, Protocol

from domaeka.policies.outgoing import room_of
from domaeka.wire import Reply

#: Longest random pause on top of the least one, as a part of it: regular pauses stand out, too.
JITTER: Final = 0.5
#: Most rooms of a phone whose last message is remembered, some 100 bytes each; the one that was
#: written to longest ago gives way.
MAX_ROOMS: Final = 1000
#: Time after the end of a pause within which the next message is still held back by pacing, in
#: seconds: that of a sweep.
GRACE_SECONDS: Final = 1.0


class Waiting(Protocol):
    """A message that waits."""

    @property
    def reply(self) -> Reply:
        """Its room."""


class Pace:
    """
    The pace of messages to a phone.

    Each message to a room, and each to the phone, is followed by a pause: the least one, and a
    random part of L{JITTER} of it.  Of the rooms that messages wait for, the one whose pause ends
    first is next: none waits for another that has more to say.
    """

    __slots__ = (
        "_held_until",
        "_later",
        "_observe",
        "_phone_due",
        "_phone_pause",
        "_quiet_until",
        "_random",
        "_room_due",
        "_room_pause",
        "_since",
    )

    def __init__(
        self,
        random: Random,
        later: Callable[[float], object],
        observe: Callable[[float], object],
    ) -> None:
        """
        @param later: called with the seconds after which a message may leave, at each time at which
            none may.
        @param observe: called with the time that each message has waited, in seconds.
        """
        self._random = random
        self._later = later
        self._observe = observe
        self._phone_pause = self._room_pause = 0.0
        self._phone_due = -inf
        self._room_due: dict[str, float] = {}  # the one written to longest ago is the first
        self._since = -inf
        self._quiet_until = -inf  # none of those that wait may leave before
        self._held_until = -inf  # the end of the last pause that something waited for

    def set(self, phone_per_second: float, room_per_second: float) -> None:
        """Set how many messages leave in a second, at most; 0: any number."""
        pauses = tuple(1.0 / rate if rate else 0.0 for rate in (phone_per_second, room_per_second))
        if pauses != (self._phone_pause, self._room_pause):
            self._phone_pause, self._room_pause = pauses
            self._phone_due = -inf
            self._room_due.clear()
            self._quiet_until = -inf

    def connected(self, now: float) -> None:
        """Note that from C{now} on messages wait for nothing but their pace."""
        self._since = now
        self.ended()

    def ended(self) -> None:
        """Note that the connection is over: what waits does so for another reason."""
        self._quiet_until = self._held_until = -inf

    def came(self, reply: Reply) -> None:
        """Note that one more message waits."""
        self._quiet_until = min(self._quiet_until, self.due(reply))

    def look_again(self) -> None:
        """Note that more of what waits may leave now than before."""
        self._quiet_until = -inf

    def rests(self, now: float) -> bool:
        """True if nothing that waits may leave yet."""
        if now >= self._quiet_until:
            return False
        self._later(self._quiet_until - now)
        return True

    def rest(self, until: float, now: float) -> None:
        """Hold back all that waits."""
        self._quiet_until = self._held_until = until
        self._later(until - now)

    def holds(self, now: float) -> bool:
        """True while messages wait for their pace, which takes nothing from their time."""
        return now < self._held_until + GRACE_SECONDS

    def next_of(self, waiting: Iterable[Waiting]) -> tuple[int, float]:
        """
        The message that may leave first.

        @param waiting: messages, in order.
        @return: its place among them, -1: there is none; and when it may leave.
        """
        best, least = -1, inf
        seen = set()
        for place, item in enumerate(waiting):
            room = room_of(item.reply)
            if room in seen:
                continue
            seen.add(room)
            due = self._room_due.get(room, -inf)
            if due < least or best < 0:
                best, least = place, due
                if due == -inf:
                    break
        return best, max(least, self._phone_due)

    def left(self, reply: Reply, since: float, now: float) -> None:
        """
        Note that a message leaves.

        @param since: since when it has waited.
        """
        self._observe(max(0.0, now - max(since, self._since)))
        room = room_of(reply)
        rooms = self._room_due
        rooms.pop(room, None)
        if len(rooms) >= MAX_ROOMS:
            del rooms[next(iter(rooms))]
        jitter = 1.0 + JITTER * self._random.random()
        rooms[room] = now + self._room_pause * jitter
        self._phone_due = now + self._phone_pause * jitter

    def due(self, reply: Reply) -> float:
        """When a message may leave."""
        return max(self._phone_due, self._room_due.get(room_of(reply), -inf))
