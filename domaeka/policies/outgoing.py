"""A message on its way to a phone, its priority, and its delivery status."""

from collections.abc import Callable
from enum import Enum, IntEnum, StrEnum
from typing import Protocol, TypeAlias

import msgspec

from domaeka.wire import Reply


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


class AckVerdict(Enum):
    """Verdict on an acknowledgement."""

    TAKEN = "taken"
    REPEATED = "repeated"  # all of it was acknowledged, or given up, before
    NEVER_SENT = "never sent"  # negative, or higher than any number given: ignored


DeliveryStatus.__name__ = "Fate"  # /openapi.json shows this name, and the docstring

#: Called at each change of a message's status, with the reason where the app refused it, else with
#: an empty text.  Must neither raise nor touch an outbox.
StatusListener: TypeAlias = Callable[[DeliveryStatus, str], None]


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

    def notify(self, status: DeliveryStatus) -> None:
        """Tell its listener."""
        if self.on_status is not None:
            self.on_status(status, "")


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


def room_of(reply: Reply) -> str:
    """The room of a message, by which turns, pauses and shares are reckoned."""
    return reply.channel_id or reply.room
