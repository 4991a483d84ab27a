"""
Whether a phone is read from: it can only fill its own line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from domaeka.policies.limits import TokenBucket

if TYPE_CHECKING:
    from domaeka.gateway.device import Device
    from domaeka.gateway.parts import Parts

#: Own answers that may wait for a phone before it is no longer read from, in bytes; it is read
#: again once half has gone.  Source: docs/protocol.md, "Back-pressure".
ANSWERS_BYTES: Final = 262_144
#: Messages of a phone that may wait for their answers, and their text in characters, before it
#: is no longer read from.
PENDING_MESSAGES: Final = 1000
PENDING_CHARS: Final = 1_048_576


class Valve:
    """
    Decide whether a phone that has authenticated is to be read from.

    @ivar open: what was decided last.
    """

    __slots__ = ("_bucket", "_device", "_resume_at", "_seconds", "open")

    def __init__(self, device: Device, parts: Parts) -> None:
        self._device = device
        self._seconds = parts.seconds
        limits = parts.settings.limits
        self._bucket = (
            TokenBucket(limits.messages_per_second, limits.messages_burst, parts.seconds)
            if limits.messages_per_second
            else None
        )
        self._resume_at = 0.0
        self.open = True

    def message_came(self) -> None:
        """Count a message against the rate: one over it is still taken, but the next waits."""
        bucket = self._bucket
        if bucket is not None and (wait := bucket.take()):
            self._resume_at = self._seconds() + wait

    @property
    def must_close(self) -> bool:
        """Whether the phone, which is read from, is given more than it takes."""
        device = self._device
        return (
            device.outbox.answer_bytes > ANSWERS_BYTES
            or device.pending > PENDING_MESSAGES
            or device.pending_chars > PENDING_CHARS
            or self._resume_at > 0.0
        )

    def changed(self) -> bool:
        """Decide anew.  @return: whether L{open} is not what it was."""
        device = self._device
        share = 1.0 if self.open else 0.5
        decision = (
            device.outbox.answer_bytes <= ANSWERS_BYTES * share
            and device.pending <= PENDING_MESSAGES * share
            and device.pending_chars <= PENDING_CHARS * share
        )
        if self._resume_at and decision:
            decision = self._seconds() >= self._resume_at
            if decision:
                self._resume_at = 0.0
                assert self._bucket is not None
                self._bucket.take()  # for the message that went over
        if decision is self.open:
            return False
        self.open = decision
        return True
