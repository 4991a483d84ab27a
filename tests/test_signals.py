"""Tests for L{domaeka.server.signals}."""

import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway.serving import Serving, Step
from domaeka.server.signals import ECHO_SECONDS, Signals


class _Reactor(Clock):
    def callFromThread(self, function: Callable[[], object]) -> None:
        self.callLater(0, function)


class SignalsTests(SynchronousTestCase):
    """Tests for L{Signals}."""

    def setUp(self) -> None:
        self.clock = _Reactor()
        self.done: list[str] = []
        self.before: Any = lambda number, frame: self.done.append("stop")
        self.handlers: dict[int, Any] = {}
        self.patch(signal, "getsignal", lambda number: self.before)
        self.patch(signal, "signal", self.handlers.__setitem__)
        self.serving = Serving()
        self.signals = Signals(
            self.clock,
            self.serving,
            lambda: self.done.append("cut short"),
            lambda: self.done.append("reload"),
        )
        self.signals.take()

    def send(self, number: int = signal.SIGTERM) -> None:
        """One signal."""
        self.handlers[number](number, None)

    def test_twice_at_once_is_once(self) -> None:
        """What C{timeout} sends, to its child and to the group of both, is one request."""
        self.send()
        self.clock.advance(ECHO_SECONDS - 0.1)
        self.send(signal.SIGINT)
        self.clock.advance(0)
        self.assertEqual(self.done, ["stop"])

    def test_a_second_one_counts(self) -> None:
        """Half a second later somebody has lost patience; that one has an echo of its own."""
        for _ in range(2):
            self.send()
            self.send()
            self.clock.advance(ECHO_SECONDS)
        self.assertEqual(self.done, ["stop", "cut short"])

    def test_one_after_the_other(self) -> None:
        """Signals without a pause do not put off the second request for ever."""
        for _ in range(10):
            self.send()
            self.clock.advance(ECHO_SECONDS / 2)
        self.assertEqual(len(self.done), 5)

    def test_of_a_server_that_stops(self) -> None:
        """The first one cuts short a stop that nobody began by a signal."""
        self.serving.take(Step.STOP)
        self.send(signal.SIGINT)
        self.clock.advance(0)
        self.assertEqual(self.done, ["cut short"])

    def test_reload(self) -> None:
        """SIGHUP has the settings read, in a turn of the reactor."""
        self.send(signal.SIGHUP)
        self.assertEqual(self.done, [])
        self.clock.advance(0)
        self.assertEqual(self.done, ["reload"])

    def test_left_alone(self) -> None:
        """What was ignored, as C{nohup} has it, stays ignored."""
        self.handlers.clear()
        self.before = signal.SIG_IGN
        self.signals.take()
        self.assertEqual(list(self.handlers), [signal.SIGHUP])
