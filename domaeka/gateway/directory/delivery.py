"""Delivery tracking: the status of messages that came by the admin API."""

from collections.abc import Callable
from typing import Final

import msgspec

from domaeka.interfaces import DeviceKey, StatusListener
from domaeka.policies.holdings import Holdings
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
    """
    The last messages, by their ids.

    Where there are too many, the phone that most of them went to gives way: its oldest.
    """

    def __init__(
        self,
        epoch: str,
        max_sent: int = MAX_SENT,
        gave_way: Callable[[DeviceKey], object] = lambda key: None,
    ) -> None:
        """
        @param epoch: the prefix of this process's ids.
        @param max_sent: most that are remembered.
        @param gave_way: called with the phone of each message that is forgotten.
        """
        self._epoch = epoch
        self._max_sent = max_sent
        self._gave_way = gave_way
        self._last = 0
        self._messages: dict[str, Delivery] = {}
        self._ids: Holdings[DeviceKey, str] = Holdings()  # of the same, by phone

    def enter(
        self, key: DeviceKey, room: str, channel_id: str | None, frames: int, now: float
    ) -> Delivery:
        """Track a message of so many frames."""
        self._last += 1
        name = f"{self._epoch}-{self._last}"
        message = Delivery(name, key, room, channel_id, now, [DeliveryStatus.QUEUED] * frames)
        if len(self._messages) >= self._max_sent and (first := self._ids.first()) is not None:
            self._ids.remove(first)
            self._gave_way(self._messages.pop(first).key)
        self._messages[name] = message
        self._ids.put(key, name)
        return message

    def find(self, message_id: str) -> Delivery | None:
        """The message; L{None}: never sent by this process, or forgotten."""
        return self._messages.get(message_id)
