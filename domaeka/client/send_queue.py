"""Queue of messages to send."""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from math import inf
from typing import Final, TypeAlias

import msgspec

from domaeka.errors import DomaekaError
from domaeka.wire import MAX_TEXT_CHARS, Said

#: Default time that a message may wait, in seconds, and most messages that wait.  Source:
#: docs/client.md, "The queue".
MESSAGE_TTL_SECONDS: Final = 30.0
MAX_MESSAGES: Final = 2000
#: Additional time of a message that was written, in seconds.  Source: docs/client.md, "The queue":
#: a path that falls silent is noticed within it.
WRITTEN_SECONDS: Final = 15.0
#: Most characters of text that wait: as for one device at the server.  Source: docs/settings.md,
#: C{queue.max_bytes}.
MAX_CHARS: Final = 16_777_216


class Fate(StrEnum):
    """Outcome of a message."""

    TAKEN = "taken"  # the server has acknowledged it
    WRITTEN = "written"  # written to the connection; the server does not acknowledge
    EXPIRED = "expired"  # it waited too long, or was not acknowledged in time
    TOO_LARGE = "too large"  # the server does not accept frames that long
    STOPPED = "stopped"  # the client was stopped first


class QueueFull(DomaekaError):
    """The queue is full.  Try again once some messages have gone."""


#: Called once with the outcome of a message.
FateListener: TypeAlias = Callable[[Fate], None]


class Entry(msgspec.Struct):
    """
    A message that waits, or is not acknowledged.

    @ivar client_id: id for the server's acknowledgement; unique.
    @ivar ttl: time that it may wait, in seconds.
    @ivar written: true once it has been written to a connection.
    """

    said: Said
    client_id: str
    ttl: float
    expires_at: float
    on_fate: FateListener | None
    written: bool = False


class SendQueue:
    """
    Bounded queue of messages in order; it outlives connections.

    A message goes C{waiting -> unacknowledged -> gone}.  Where a connection ends in between, it
    goes back to waiting, ahead of new ones.
    """

    def __init__(self, seconds: Callable[[], float], prefix: str) -> None:
        """
        @param seconds: the monotonic clock, in seconds.
        @param prefix: beginning of every id; unique among the processes of this device.
        """
        self._seconds = seconds
        self._prefix = prefix
        self._count = 0
        self._chars = 0
        self._waiting: deque[Entry] = deque()
        self._unacknowledged: dict[str, Entry] = {}
        self._earliest = inf  # no message expires before
        self._away_until = -inf

    def __len__(self) -> int:
        """Number of messages that wait, or are not acknowledged."""
        return len(self._waiting) + len(self._unacknowledged)

    def put(self, said: Said, ttl: float, on_fate: FateListener | None = None) -> None:
        """
        Add a message.

        @param ttl: time that it may wait, in seconds, above 0.
        @raise ValueError: no server would accept it.
        @raise QueueFull: too many messages wait.
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
        """The next message to write; then call exactly one of L{written} and L{too_large}."""
        now = self._seconds()
        while self._waiting:
            entry = self._waiting.popleft()
            if entry.expires_at > now:
                return entry
            self._gone(entry, Fate.EXPIRED)
        return None

    def written(self, entry: Entry, acknowledged: bool) -> None:
        """C{entry} was written to a connection; C{acknowledged}: the server will acknowledge it."""
        if acknowledged:
            if not entry.written:
                entry.written = True
                entry.expires_at += WRITTEN_SECONDS
            self._unacknowledged[entry.client_id] = entry
        else:
            self._gone(entry, Fate.WRITTEN)

    def too_large(self, entry: Entry) -> None:
        """C{entry} makes a frame that is too long for the server."""
        self._gone(entry, Fate.TOO_LARGE)

    def taken(self, client_id: str) -> None:
        """The server acknowledges a message.  Unknown ids are ignored."""
        entry = self._unacknowledged.pop(client_id, None)
        if entry is not None:
            self._gone(entry, Fate.TAKEN)

    def connection_lost(self) -> None:
        """Move unacknowledged messages back to the head of the queue, in order."""
        self._waiting.extendleft(reversed(self._unacknowledged.values()))
        self._unacknowledged.clear()

    def suspend_expiry(self, until: float) -> None:
        """
        The server must be left alone before C{until}: messages, present and new ones, keep their
        whole C{ttl} from then on.
        """
        self._away_until = until
        for entry in (*self._waiting, *self._unacknowledged.values()):
            entry.expires_at = max(entry.expires_at, until + entry.ttl)

    def resume_expiry(self) -> None:
        """A server has greeted us: C{ttl} counts as usual."""
        self._away_until = -inf

    def expire(self) -> None:
        """Remove messages whose time is over."""
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
        """Remove all messages: the client stops."""
        gone = [*self._unacknowledged.values(), *self._waiting]
        self._unacknowledged.clear()
        self._waiting.clear()
        for entry in gone:
            self._gone(entry, Fate.STOPPED)

    def _gone(self, entry: Entry, fate: Fate) -> None:
        self._chars -= len(entry.said.text)
        if entry.on_fate is not None:
            entry.on_fate(fate)
