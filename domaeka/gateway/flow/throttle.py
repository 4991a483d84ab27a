"""Back-pressure: when to pause reading from a phone, and when to resume."""

from typing import Final

from domaeka.gateway.context import Context
from domaeka.gateway.device import Device
from domaeka.gateway.flow.writer import Writer
from domaeka.policies.limits import TokenBucket

#: Most bytes of answers, and of the connection's own frames, that wait for a phone before reading
#: pauses; it resumes at half of them.  Source: docs/protocol.md, "Back-pressure".
ANSWERS_BYTES: Final = 262_144
#: Most messages of a phone that bots work on before reading pauses, and most characters of them.
PENDING_MESSAGES: Final = 1000
PENDING_CHARS: Final = 1_048_576
#: Part of C{queue.max_messages} for messages on their way, so that no answer gives way to another.
#: Source: as many of the least frames as L{domaeka.gateway.flow.writer} writes at once.
BATCH_MESSAGES: Final = 64
#: Messages for which the bucket is asked at once: asking costs 0.5 µs.
PAID_AT_ONCE: Final = 16
#: Least size of an answer, in bytes.  Source: L{domaeka.wire.Reply.size}.
LEAST_ANSWER_BYTES: Final = 400


class Throttle:
    """
    Back-pressure on a phone.

    @ivar open: whether it is read from, by the last decision.
    """

    __slots__ = (
        "_bucket",
        "_calm_bytes",
        "_context",
        "_device",
        "_overdrawn",
        "_paid",
        "_writer",
        "open",
    )

    def __init__(self, writer: Writer, context: Context) -> None:
        self._writer = writer
        self._context = context
        self._device: Device | None = None
        self.open = True
        self.apply()

    def authenticated(self, device: Device) -> None:
        """Watch the messages of C{device}, too."""
        self._device = device

    def apply(self) -> None:
        """Apply settings, at the start or when they have changed."""
        self._calm_bytes = min(ANSWERS_BYTES, self._most_owed())
        limits = self._context.settings.limits
        #: Counts authenticated and refused messages, for both take time.
        self._bucket = (
            TokenBucket(limits.messages_per_second, limits.messages_burst, self._context.seconds)
            if limits.messages_per_second
            else None
        )
        self._overdrawn = False
        self._paid = 0  # messages that may come before the bucket is asked again

    def _most_owed(self) -> int:
        """Room for the smallest answers, in bytes."""
        most = max(1, self._context.settings.queue.max_messages - BATCH_MESSAGES)
        return most * LEAST_ANSWER_BYTES

    def message_came(self) -> None:
        """Count a message against the rate: one over it is still taken, but the next waits."""
        if self._paid:
            self._paid -= 1
        elif self._bucket is not None:
            if not self._bucket.take(PAID_AT_ONCE):
                self._paid = PAID_AT_ONCE - 1
            elif self._bucket.take():
                self._overdrawn = True

    @property
    def calm(self) -> bool:
        """True if L{changed} has nothing to decide."""
        device = self._device
        return (
            device is not None
            and self.open
            and not device.pending
            and not self._overdrawn
            and device.outbox.answer_bytes + self._writer.urgent_bytes <= self._calm_bytes
        )

    def changed(self) -> bool:
        """Decide anew.  @return: whether L{open} has changed."""
        share = 1.0 if self.open else 0.5
        waiting_bytes = self._writer.urgent_bytes
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
