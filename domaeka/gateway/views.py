"""Views of connections for all outside the gateway: data, never live objects."""

from typing import NamedTuple, Protocol

import msgspec

from domaeka.errors import CloseReason
from domaeka.interfaces import Ban, DeviceKey
from domaeka.schema import Ended, Grade, LineQuality, Traffic
from domaeka.wire import timestamp_text


class ConnectionFigures(NamedTuple):
    """
    Figures of a connection, for filters and orders.

    @ivar made_at: by the steady time, in seconds, as C{last_heard}.
    @ivar score: L{None}, with C{grade} and C{loss}: no ping was answered or missed yet.
    @ivar loss: part of the last pings that went unanswered, 0 to 1.
    @ivar rtt: smoothed round trip, in seconds; L{None} before the first.
    @ivar messages: sum of both directions, as C{bytes}.
    @ivar queued: number of messages held for its device.
    """

    number: int
    key: DeviceKey
    address: str
    version: str
    made_at: float
    last_heard: float
    grade: Grade | None
    score: int | None
    loss: float | None
    rtt: float | None
    messages: int
    bytes: int
    queued: int


class ConnectionName(msgspec.Struct, frozen=True, gc=False):
    """Name of the connection that an event is about."""

    number: int
    key: DeviceKey
    address: str
    version: str


class ClosedConnection(msgspec.Struct, frozen=True, gc=False):
    """
    A connection that has ended.

    @ivar key: the device that it named; empty texts if it named none.
    @ivar made_at: in seconds since 1970, as C{ended_at}.
    @ivar gone_at: when it ended, by the monotonic clock.
    @ivar score: of its quality at the end; L{None}, with C{grade}: no ping was answered or missed.
    @ivar rtt: smoothed round trip at the end, in seconds.
    """

    number: int
    key: DeviceKey
    address: str
    version: str
    reason: CloseReason
    made_at: float
    ended_at: float
    gone_at: float
    bytes_received: int
    bytes_sent: int
    messages_received: int
    messages_sent: int
    score: int | None = None
    grade: Grade | None = None
    rtt: float | None = None

    def as_answer(self) -> Ended:
        """The same for the API."""
        return Ended(
            str(self.number),
            *self.key,
            self.address,
            self.version,
            self.reason,
            timestamp_text(self.made_at),
            timestamp_text(self.ended_at),
            Traffic(self.bytes_received, self.bytes_sent),
            Traffic(self.messages_received, self.messages_sent),
            self.score,
            self.grade,
            None if self.rtt is None else round(self.rtt, 6),
        )


class Watcher(Protocol):
    """Listener to what happens in the gateway.  None of its methods may raise."""

    def connected(self, name: ConnectionName) -> None:
        """A connection has authenticated."""

    def graded(self, name: ConnectionName, quality: LineQuality) -> None:
        """The grade of a connection that has authenticated has changed."""

    def closed(self, closed: ClosedConnection) -> None:
        """A connection that had authenticated has ended."""

    def banned(self, ban: Ban) -> None:
        """A ban is in force."""

    def changed(self, what: str, state: str) -> None:
        """A drain, or a migration, has a new state, in words."""
