"""Signals: SIGTERM and SIGINT stop the server, a second one cuts the stop short, SIGHUP reloads."""

import signal
from collections.abc import Callable
from math import inf
from types import FrameType
from typing import Any, Final

from domaeka.gateway.serving import Serving, Step

#: A signal to stop that comes so soon after one that counted is the same request, in seconds.
#: Source: coreutils' C{timeout} signals its child and then its own group, in which the child is.
ECHO_SECONDS: Final = 0.5


class Signals:
    """The server's handlers of signals, around those of the reactor."""

    def __init__(
        self,
        reactor: Any,
        serving: Serving,
        cut_short: Callable[[], object],
        reload: Callable[[], object],
    ) -> None:
        """
        @param cut_short: ends the waiting of a stop; C{reload} reads the settings again.  Both are
            called in the reactor's thread, not in the handler.
        """
        self._reactor = reactor
        self._serving = serving
        self._cut_short = cut_short
        self._reload = reload
        self._counted_at = -inf

    def take(self) -> None:
        """Handle them from now on.  The reactor has set its own handlers by then."""
        for number in (signal.SIGTERM, signal.SIGINT):
            stop = signal.getsignal(number)
            if callable(stop):
                signal.signal(number, self._stopping(stop))
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload))

    def _stopping(
        self, stop: Callable[[int, FrameType | None], Any]
    ) -> Callable[[int, FrameType | None], None]:
        """@param stop: the reactor's handler, which begins the stop."""

        def signalled(number: int, frame: FrameType | None) -> None:
            now = self._reactor.seconds()
            if now - self._counted_at < ECHO_SECONDS:
                return
            first = self._counted_at == -inf and self._serving.may(Step.STOP)
            self._counted_at = now
            if first:
                stop(number, frame)
            else:
                self._reactor.callFromThread(self._cut_short)

        return signalled
