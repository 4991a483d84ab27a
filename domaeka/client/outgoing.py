"""What a client has yet to say."""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from math import inf
from typing import Final, TypeAlias

import msgspec

from domaeka.errors import DomaekaError
from domaeka.messages import MAX_TEXT_CHARS
from domaeka.phonewire import Said

#: How long a message waits where nothing else is said, in seconds, and how many wait at most.
#: Source: docs/client.md, "The queue".
MESSAGE_TTL_SECONDS: Final = 30.0
MAX_MESSAGES: Final = 2000
#: Characters of text that wait at most: as for one device at the server.  Source:
#: docs/settings.md, C{queue.max_bytes}.
MAX_CHARS: Final = 16_777_216


class Fate(StrEnum):
    """What has become of a message."""

    TAKEN = "taken"  # the server has it, it says
    WRITTEN = "written"  # handed to the connection; this server says no more
    EXPIRED = "expired"  # it waited too long, or was not acknowledged in time
    TOO_LARGE = "too large"  # this server does not take frames that long
    STOPPED = "stopped"  # the client was stopped first


class QueueFull(DomaekaError):
    """No more messages may wait.  Try again once some have gone."""


#: Told what has become of a message, once.
FateListener: TypeAlias = Callable[[Fate], None]


class Entry(msgspec.Struct):
    """
    One message that waits, or is not acknowledged.

    @ivar client_id: what the server acknowledges it by; never used twice.
    @ivar ttl: how long it may wait, in seconds.
    """

    said: Said
    client_id: str
    ttl: float
    expires_at: float
    on_fate: FateListener | None


class SendQueue:
    """
    Bounded, in order; outlives connections.

    A message goes C{waiting -> unacknowledged -> gone}, and back to waiting, ahead of what is
    new, where a connection ends in between.
    """

    def __init__(self, seconds: Callable[[], float], prefix: str) -> None:
        """
        @param seconds: the time now, in seconds.
        @param prefix: begins every id; no other process of this device has it.
        """
        self._seconds = seconds
        self._prefix = prefix
        self._count = 0
        self._chars = 0
        self._waiting: deque[Entry] = deque()
        self._unacknowledged: dict[str, Entry] = {}
        self._earliest = inf  # nothing expires before
        self._away_until = -inf

    def __len__(self) -> int:
        """How many wait, or are not acknowledged."""
        return len(self._waiting) + len(self._unacknowledged)

    def put(self, said: Said, ttl: float, on_fate: FateListener | None = None) -> None:
        """
        Let a message wait.

        @param ttl: how long, in seconds, above 0.
        @raise ValueError: no server would take it.
        @raise QueueFull: too many wait.
        """
        if not said.text or len(said.text) > MAX_TEXT_CHARS:
            raise ValueError(f"a text has 1 to {MAX_TEXT_CHARS} characters")
        if not said.room or said.room.isspace():
            raise ValueError("a room must have a name")
        if not (isinstance(ttl, float | int) and 0 < ttl < inf):
            raise ValueError("a message must be allowed some time to wait")
        chars = len(said.text)
        if len(self) >= MAX_MESSAGES or self._chars + chars > MAX_CHARS:
            raise QueueFull(f"{len(self)} messages wait already")
        self._count += 1
        self._chars += chars
        expires_at = max(self._seconds(), self._away_until) + ttl
        entry = Entry(said, f"{self._prefix}-{self._count}", ttl, expires_at, on_fate)
        self._earliest = min(self._earliest, expires_at)
        self._waiting.append(entry)

    def take(self) -> Entry | None:
        """The next message to write; exactly one of L{written} and L{too_large} must follow."""
        now = self._seconds()
        while self._waiting:
            entry = self._waiting.popleft()
            if entry.expires_at > now:
                return entry
            self._gone(entry, Fate.EXPIRED)
        return None

    def written(self, entry: Entry, acknowledged: bool) -> None:
        """
        C{entry} was handed to a connection.

        @param acknowledged: whether the server will say that it took it.
        """
        if acknowledged:
            self._unacknowledged[entry.client_id] = entry
        else:
            self._gone(entry, Fate.WRITTEN)

    def too_large(self, entry: Entry) -> None:
        """The server would not take the frame that C{entry} makes."""
        self._gone(entry, Fate.TOO_LARGE)

    def taken(self, client_id: str) -> None:
        """The server has a message, it says.  What it says of others is ignored."""
        entry = self._unacknowledged.pop(client_id, None)
        if entry is not None:
            self._gone(entry, Fate.TAKEN)

    def connection_lost(self) -> None:
        """What was not acknowledged waits again, in order, ahead of all else."""
        self._waiting.extendleft(reversed(self._unacknowledged.values()))
        self._unacknowledged.clear()

    def stay_away(self, until: float) -> None:
        """
        The server is not to be disturbed before C{until}: what waits, or comes to wait, keeps its
        whole time from then on.
        """
        self._away_until = until
        for entry in (*self._waiting, *self._unacknowledged.values()):
            entry.expires_at = max(entry.expires_at, until + entry.ttl)

    def back(self) -> None:
        """A server has greeted us: time runs as usual."""
        self._away_until = -inf

    def expire(self) -> None:
        """Let go of what has waited long enough."""
        now = self._seconds()
        if now < self._earliest:
            return
        gone = [
            entry
            for entry in (*self._unacknowledged.values(), *self._waiting)
            if entry.expires_at <= now
        ]
        lapsed = {entry.client_id for entry in gone}
        self._waiting = deque(entry for entry in self._waiting if entry.client_id not in lapsed)
        for client_id in lapsed:
            self._unacknowledged.pop(client_id, None)
        self._earliest = min(
            (entry.expires_at for entry in (*self._waiting, *self._unacknowledged.values())),
            default=inf,
        )
        for entry in gone:
            self._gone(entry, Fate.EXPIRED)

    def clear(self) -> None:
        """Nothing more will be sent."""
        gone = [*self._unacknowledged.values(), *self._waiting]
        self._unacknowledged.clear()
        self._waiting.clear()
        for entry in gone:
            self._gone(entry, Fate.STOPPED)

    def _gone(self, entry: Entry, fate: Fate) -> None:
        self._chars -= len(entry.said.text)
        if entry.on_fate is not None:
            entry.on_fate(fate)
