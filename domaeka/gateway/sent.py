"""
What has become of messages that were sent from outside.
"""

from functools import partial
from typing import Final

import msgspec

from domaeka.interfaces import DeviceKey
from domaeka.policies.outbox import Fate, FateListener

#: Of how many messages the fate is remembered; some 500 bytes each.
MAX_SENT: Final = 10_000

#: What a message of several frames has come to is what the worst of them has.
_WORST_FIRST: Final = (Fate.DROPPED, Fate.EXPIRED, Fate.QUEUED, Fate.SENT, Fate.ACKNOWLEDGED)


class SentMessage(msgspec.Struct):
    """
    A message, without what it says.

    @ivar key: the phone.
    @ivar made_at: in seconds since 1970.
    @ivar fates: of each of its frames.
    """

    id: str
    key: DeviceKey
    room: str
    channel_id: str | None
    made_at: float
    fates: list[Fate]

    @property
    def state(self) -> Fate:
        """What has become of it."""
        return next(fate for fate in _WORST_FIRST if fate in self.fates)

    def listener(self, frame: int) -> FateListener:
        """What is to be told of the fate of one of its frames."""
        return partial(self.fates.__setitem__, frame)


class SentMessages:
    """The last messages, by their ids."""

    def __init__(self, epoch: str, max_sent: int = MAX_SENT) -> None:
        """
        @param epoch: what the ids of this run of the server begin with.
        @param max_sent: how many are remembered; the oldest goes first.
        """
        self._epoch = epoch
        self._max_sent = max_sent
        self._last = 0
        self._messages: dict[str, SentMessage] = {}

    def enter(
        self, key: DeviceKey, room: str, channel_id: str | None, frames: int, now: float
    ) -> SentMessage:
        """A message is about to be sent, in so many frames."""
        self._last += 1
        message = SentMessage(
            f"{self._epoch}-{self._last}", key, room, channel_id, now, [Fate.QUEUED] * frames
        )
        if len(self._messages) >= self._max_sent:
            del self._messages[next(iter(self._messages))]
        self._messages[message.id] = message
        return message

    def find(self, message_id: str) -> SentMessage | None:
        """L{None}: never sent by this run of the server, or forgotten."""
        return self._messages.get(message_id)
