"""Back-pressure: when to pause reading from a phone, and when to resume."""

from typing import Final

from twisted.logger import Logger

from domaeka.gateway.context import Context
from domaeka.gateway.device import Device
from domaeka.gateway.flow.writer import Writer
from domaeka.gateway.peer import Peer
from domaeka.policies.allowance import Allowance, Overdraft
from domaeka.pools import Pool

#: Most bytes of answers, and of the connection's own frames, that wait for a phone before reading
#: pauses; it resumes at half of them.  Source: docs/protocol.md, "Back-pressure".
ANSWERS_BYTES: Final = 262_144
#: Most messages of a phone that bots work on before reading pauses, and most characters of them.
#: What waits for bots stays below half of either, so that no room stops the reading of its phone
#: (L{domaeka.bots.fair_queue}).
PENDING_MESSAGES: Final = 1000
PENDING_CHARS: Final = 1_048_576
#: Part of C{queue.max_messages} for messages on their way, so that no answer gives way to another.
#: Source: as many of the least frames as L{domaeka.gateway.flow.writer} writes at once.
BATCH_MESSAGES: Final = 64
#: A phone that is not read from for so long is named in the log, in seconds.
LONG_SECONDS: Final = 10.0
#: Least size of an answer, in bytes.  Source: L{domaeka.wire.Reply.size}.
LEAST_ANSWER_BYTES: Final = 400
#: Why a phone is not read from, for the log.
_ANSWERS: Final = "too many answers wait until it takes them"
_WORK: Final = "too many of its messages are worked on"

_log: Final = Logger()


class Throttle:
    """
    Back-pressure on a phone.

    @ivar open: whether it is read from, by the last decision.
    @ivar allowance: how much it may say; its device's, once that is known.
    """

    __slots__ = (
        "_calm_bytes",
        "_context",
        "_device",
        "_paused_at",
        "_peer",
        "_told",
        "_why",
        "_writer",
        "allowance",
        "open",
    )

    def __init__(self, writer: Writer, context: Context, peer: Peer) -> None:
        self._writer = writer
        self._context = context
        self._peer = peer
        self._device: Device | None = None
        self.open = True
        self._why = ""  # it is not read from, or was not the last time
        self._paused_at = 0.0
        self._told = False  # that it is not read from for long
        self.allowance = Allowance(context.settings.limits, context.seconds)
        self.apply()

    def authenticated(self, device: Device) -> None:
        """Watch the messages of C{device}, too, and count against what it said before."""
        self._device = device
        if device.allowance is None:
            device.allowance = self.allowance
        else:
            self.allowance = device.allowance
            self.allowance.apply(self._context.settings.limits)

    def apply(self) -> None:
        """Apply settings, at the start or when they have changed."""
        self._calm_bytes = min(ANSWERS_BYTES, self._most_owed())
        self.allowance.apply(self._context.settings.limits)

    def _most_owed(self) -> int:
        """Room for the smallest answers, in bytes."""
        most = max(1, self._context.settings.queue.max_messages - BATCH_MESSAGES)
        return most * LEAST_ANSWER_BYTES

    @property
    def calm(self) -> bool:
        """True if L{changed} has nothing to decide."""
        device = self._device
        return (
            device is not None
            and self.open
            and not device.pending
            and not self.allowance.overdrawn
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
            if not decision:
                self._why = _WORK
        if waiting_bytes > ANSWERS_BYTES * share:
            decision = False
            self._why = _ANSWERS
        if decision and self.allowance.overdrawn and (overdraft := self.allowance.overdraft()):
            decision = False
            self._why = overdraft
        if decision is self.open:
            return False
        self.open = decision
        now = self._context.steady.now
        if not decision:
            self._paused_at = now
            if isinstance(self._why, Overdraft):
                self._gave_way()
        elif self._told:
            self._told = False
            _log.info(
                "{peer}: read from again, after {paused_seconds:.0f} s",
                peer=self._peer,
                paused_seconds=now - self._paused_at,
            )
        return True

    def attend(self, now: float) -> None:
        """
        Name a phone that is not read from for long.

        @param now: the steady time.
        """
        paused = now - self._paused_at
        if self.open or self._told or paused < LONG_SECONDS:
            return
        self._told = True
        self._gave_way()
        _log.warn(
            "{peer}: not read from for {paused_seconds:.0f} s: {reason}",
            peer=self._peer,
            paused_seconds=paused,
            reason=self._why,
        )

    def _gave_way(self) -> None:
        self._context.metrics.pools.gave_way(Pool.READING, self._peer)
