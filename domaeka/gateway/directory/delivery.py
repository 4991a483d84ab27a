"""Delivery tracking: the status of messages that came by the admin API."""

from typing import Final

import msgspec

from domaeka.interfaces import DeviceKey, StatusListener
from domaeka.schema import DeliveryStatus

#: Messages that are remembered with their status; some 500 bytes each.
MAX_SENT: Final = 10_000

_S: Final = DeliveryStatus
#: The status of a message of several frames is that of the worst of them.
_WORST_FIRST: Final = (
    _S.DROPPED,
    _S.EXPIRED,
    _S.REFUSED_BY_APP,
    _S.QUEUED,
    _S.SENT,
    _S.ACKNOWLEDGED,
    _S.DELIVERED,
)


class Delivery(msgspec.Struct):
    """
    A message, without its contents.

    @ivar key: the phone.
    @ivar made_at: in seconds since 1970.
    @ivar statuses: one for each of its frames.
    @ivar reason: why the phone's app refused one; empty: it refused none.
    """

    id: str
    key: DeviceKey
    room: str
    channel_id: str | None
    made_at: float
    statuses: list[DeliveryStatus]
    reason: str = ""

    @property
    def state(self) -> DeliveryStatus:
        """Its delivery status."""
        return next(status for status in _WORST_FIRST if status in self.statuses)

    def listener(self, frame: int) -> StatusListener:
        """Listener for the status of one of its frames."""

        def listen(status: DeliveryStatus, reason: str) -> None:
            self.statuses[frame] = status
            self.reason = self.reason or reason

        return listen


class Deliveries:
    """The last messages, by their ids."""

    def __init__(self, epoch: str, max_sent: int = MAX_SENT) -> None:
        """
        @param epoch: the prefix of this process's ids.
        @param max_sent: most that are remembered; the oldest goes first.
        """
        self._epoch = epoch
        self._max_sent = max_sent
        self._last = 0
        self._messages: dict[str, Delivery] = {}

    def enter(
        self, key: DeviceKey, room: str, channel_id: str | None, frames: int, now: float
    ) -> Delivery:
        """Track a message of so many frames."""
        self._last += 1
        name = f"{self._epoch}-{self._last}"
        message = Delivery(name, key, room, channel_id, now, [DeliveryStatus.QUEUED] * frames)
        if len(self._messages) >= self._max_sent:
            del self._messages[next(iter(self._messages))]
        self._messages[message.id] = message
        return message

    def find(self, message_id: str) -> Delivery | None:
        """The message; L{None}: never sent by this process, or forgotten."""
        return self._messages.get(message_id)
