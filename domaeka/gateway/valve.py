"""
Whether a phone is read from: it can only fill its own line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from domaeka.policies.limits import TokenBucket

if TYPE_CHECKING:
    from domaeka.gateway.device import Device
    from domaeka.gateway.parts import Parts
    from domaeka.gateway.sender import Sender

#: Own answers, and answers of the connection's own, that may wait for a phone before it is no
#: longer read from, in bytes; it is read again once half has gone.  Source: docs/protocol.md,
#: "Back-pressure".
ANSWERS_BYTES: Final = 262_144
#: Messages of a phone that may wait for their answers, and their text in characters, before it
#: is no longer read from.
PENDING_MESSAGES: Final = 1000
PENDING_CHARS: Final = 1_048_576
#: How many of C{queue.max_messages} are left to what is on its way: no answer gives way to
#: another.  Source: as many of the least frames as L{domaeka.gateway.sender} writes at once.
BATCH_MESSAGES: Final = 64
#: Least size of an answer, in bytes.  Source: L{domaeka.messages.Reply.size}.
LEAST_ANSWER_BYTES: Final = 400


class Valve:
    """
    Decide whether a phone is to be read from.

    @ivar open: what was decided last.
    """

    __slots__ = (
        "_bucket",
        "_calm_bytes",
        "_device",
        "_overdrawn",
        "_parts",
        "_sender",
        "open",
    )

    def __init__(self, sender: Sender, parts: Parts) -> None:
        self._sender = sender
        self._parts = parts
        self._device: Device | None = None
        self.open = True
        self.apply()

    def authenticated(self, device: Device) -> None:
        """Messages of C{device} are taken from now on."""
        self._device = device

    def apply(self) -> None:
        """Take over the settings as they are now."""
        self._calm_bytes = min(ANSWERS_BYTES, self._most_owed())
        limits = self._parts.settings.limits
        #: Of messages that are believed and of those that are not, for both take time.
        self._bucket = (
            TokenBucket(limits.messages_per_second, limits.messages_burst, self._parts.seconds)
            if limits.messages_per_second
            else None
        )
        self._overdrawn = False

    def _most_owed(self) -> int:
        """How much room answers find, in bytes, each of them as small as can be."""
        most = max(1, self._parts.settings.queue.max_messages - BATCH_MESSAGES)
        return most * LEAST_ANSWER_BYTES

    def message_came(self) -> None:
        """Count a message against the rate: one over it is still taken, but the next waits."""
        if self._bucket is not None and self._bucket.take():
            self._overdrawn = True

    @property
    def calm(self) -> bool:
        """Whether L{changed} has nothing to decide: no message waits, and few bytes do."""
        device = self._device
        return (
            device is not None
            and self.open
            and not device.pending
            and not self._overdrawn
            and device.outbox.answer_bytes + self._sender.urgent_bytes <= self._calm_bytes
        )

    def changed(self) -> bool:
        """Decide anew.  @return: whether L{open} is not what it was."""
        share = 1.0 if self.open else 0.5
        waiting_bytes = self._sender.urgent_bytes
        decision = True
        device = self._device
        if device is not None:
            answer_bytes = device.outbox.answer_bytes
            waiting_bytes += answer_bytes
            decision = (
                device.pending * LEAST_ANSWER_BYTES + answer_bytes <= self._most_owed() * share
                and device.pending <= PENDING_MESSAGES * share
                and device.pending_chars <= PENDING_CHARS * share
            )
        decision = decision and waiting_bytes <= ANSWERS_BYTES * share
        if decision and self._overdrawn:
            assert self._bucket is not None
            # The message that went over is paid for before the next is read.
            decision = not self._bucket.take()
            self._overdrawn = not decision
        if decision is self.open:
            return False
        self.open = decision
        return True
