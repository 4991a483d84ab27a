"""Pacing of a device: its pace, and the timer that goes on when a pause is over."""

from collections.abc import Callable
from typing import Any

from domaeka.gateway.context import Context
from domaeka.policies.outbox import Outbox
from domaeka.policies.pacing import Pace


class Pacer:
    """
    The pace of a device.  It outlives connections, so that a phone that comes back gets no burst.
    """

    __slots__ = ("_call", "_context", "_due", "_pace", "_wake")

    def __init__(self, context: Context, wake: Callable[[], object]) -> None:
        """@param wake: called when messages may leave."""
        self._context = context
        self._wake = wake
        self._pace = Pace(context.random, self._later, context.metrics.pacing_wait.observe)
        self._call: Any | None = None  # IDelayedCall
        self._due = 0.0

    def apply(self, outbox: Outbox) -> None:
        """Have an outbox keep the pace that the settings say."""
        pacing = self._context.settings.pacing
        self._pace.set(pacing.phone_per_second, pacing.room_per_second)
        if outbox.pace is None:
            self._pace.connected(self._context.seconds())
            outbox.pace = self._pace

    def connected(self) -> None:
        """Note that messages wait for nothing else from now on."""
        self._pace.connected(self._context.seconds())

    def stop(self) -> None:
        """End the timer: nothing leaves now."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _later(self, seconds: float) -> None:
        due = self._context.seconds() + seconds
        if self._call is not None and self._due <= due:
            return
        self.stop()
        self._due = due
        self._call = self._context.call_later(seconds, self._over)

    def _over(self) -> None:
        self._call = None
        self._wake()
