"""The two clocks: the wall clock for dates, and the reactor's monotonic one for durations."""

from collections.abc import Callable
from time import monotonic as monotonic
from typing import Any

from domaeka.twisted_internals import seconds_are_set, set_seconds


def keep_going(reactor: Any, steady: Callable[[], float] = monotonic) -> None:
    """
    Make C{reactor.seconds}, and all that is scheduled with it, independent of the wall clock.

    The reactor's time goes on from its present value at the machine's own pace, so that calls
    scheduled already stay in place, those of a
    L{LoopingCall<twisted.internet.task.LoopingCall>} included.  Code that takes it for a date, in
    a bot or in Twisted (C{twisted.web}'s access log), is wrong only by what the wall clock has
    been set since.  This lasts as long as the process.

    @param reactor: Twisted's.
    @param steady: a monotonic clock, in seconds from any point.
    """
    if seconds_are_set(reactor):
        return
    ahead: float = reactor.seconds() - steady()

    def seconds() -> float:
        return steady() + ahead

    set_seconds(reactor, seconds)


class MonotonicClock:
    """A clock that stands still while the one behind it is set back, and then goes on."""

    __slots__ = ("_ahead", "_last", "_seconds")

    def __init__(self, seconds: Callable[[], float]) -> None:
        """@param seconds: the clock behind it, in seconds."""
        self._seconds = seconds
        self._ahead = 0.0
        self._last = seconds()

    def __call__(self) -> float:
        """The time, in seconds; steps forward are part of it."""
        now = self._seconds()
        if now < self._last:
            self._ahead += self._last - now
        self._last = now
        return now + self._ahead
