"""Allowance: how much a phone may say in a time, whichever connection it says it on."""

from collections.abc import Callable
from enum import StrEnum
from math import inf
from typing import Final

from domaeka.config import BYTES_PER_SECOND, LimitsSettings
from domaeka.policies.limits import TokenBucket

#: Time's worth of bytes that may come at once, in seconds: 4 MiB by default, the backlog of a phone
#: that was away, or four of the longest frames.
BURST_SECONDS: Final = 16.0
#: Messages for which their bucket is asked at once: asking costs 0.5 µs.
PAID_AT_ONCE: Final = 16


class Overdraft(StrEnum):
    """Which rate a phone is over, in words for the log."""

    NONE = ""
    MESSAGES = "its messages come faster than limits.messages_per_second"
    BYTES = "its messages come faster than limits.bytes_per_second"


class Allowance:
    """
    The messages and bytes that a phone may say.  What goes over a rate is taken, and paid for
    before the next is read.

    It belongs to a device, so that a new connection brings no new burst.

    @ivar overdrawn: whether a message, or a byte, has gone over its rate.
    """

    __slots__ = (
        "_bucket",
        "_burst",
        "_bytes_left",
        "_filled_at",
        "_limits",
        "_message_due",
        "_paid",
        "_rate",
        "_seconds",
        "overdrawn",
    )

    def __init__(self, limits: LimitsSettings, seconds: Callable[[], float]) -> None:
        """@param seconds: the time now, in seconds."""
        self._seconds = seconds
        self._limits: LimitsSettings | None = None
        self.apply(limits)

    def apply(self, limits: LimitsSettings) -> None:
        """Apply settings, at the start or when they may have changed."""
        if limits == self._limits:
            return
        self._limits = limits
        seconds, rate = self._seconds, limits.messages_per_second
        #: Counts authenticated and refused messages, for both take time.
        self._bucket = TokenBucket(rate, limits.messages_burst, seconds) if rate else None
        self.overdrawn = self._message_due = False
        self._paid = 0  # messages that may come before the bucket is asked again
        self._rate = limits.bytes_per_second
        if not rate and self._rate == BYTES_PER_SECOND:
            self._rate = 0.0
        # Half of the burst is here, and the other half there once that is used up: so time is
        # asked for where it is, and not for each line.
        self._burst = self._rate * BURST_SECONDS / 2
        self._filled_at = seconds() - BURST_SECONDS
        self._bytes_left = self._burst or inf

    def message_came(self) -> None:
        """Count a message against the rate: one over it is still taken, but the next waits."""
        if self._paid:
            self._paid -= 1
        elif self._bucket is not None:
            if not self._bucket.take(PAID_AT_ONCE):
                self._paid = PAID_AT_ONCE - 1
            elif self._bucket.take():
                self.overdrawn = self._message_due = True

    def bytes_came(self, count: int) -> None:
        """Count bytes of lines against their rate, likewise."""
        self._bytes_left -= count
        if self._bytes_left <= 0:
            self.overdrawn = True

    def overdraft(self) -> Overdraft:
        """Pay for what went over the rates, as far as it can be by now."""
        if self._message_due and self._bucket is not None and self._bucket.take():
            return Overdraft.MESSAGES
        self._message_due = False
        if self._bytes_left <= 0:
            now = self._seconds()
            gained = (now - self._filled_at) * self._rate
            self._filled_at = now
            self._bytes_left = min(self._burst, self._bytes_left + gained)
            if self._bytes_left <= 0:
                return Overdraft.BYTES
        self.overdrawn = False
        return Overdraft.NONE
