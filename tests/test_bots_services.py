"""Tests for L{domaeka.bots.services}."""

import asyncio
import contextlib
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka import BreakerOpen, breaker
from domaeka.bots.services import attach_services, services
from domaeka.config import BreakerSettings
from domaeka.policies.retry import BreakerState


class BreakerTests(SynchronousTestCase):
    """Tests for L{breaker}."""

    def setUp(self) -> None:
        self.clock = Clock()
        attach_services(
            self.clock.seconds, BreakerSettings(failure_threshold=2, recovery_timeout=60.0)
        )
        self.name = self.id()  # each test has a service of its own
        self.waiting: Deferred[Any] = Deferred()

    def fail_once(self) -> None:
        """A call to the service, by a function of its own, that fails if it is made."""

        @breaker(self.name)
        def ask() -> None:
            raise ValueError

        with contextlib.suppress(ValueError):
            ask()

    @property
    def state(self) -> BreakerState:
        return services()[self.name].state

    def test_plain(self) -> None:
        """A plain function that keeps raising is not called any more."""
        calls = []

        @breaker(self.name)
        def ask(number: int) -> None:
            calls.append(number)
            raise ValueError

        for number in range(2):
            self.assertRaises(ValueError, ask, number)
        self.assertRaises(BreakerOpen, ask, 2)
        self.assertEqual(calls, [0, 1])

    def test_coroutine(self) -> None:
        """Neither is a coroutine, and it stays one."""

        @breaker(self.name)
        async def ask() -> None:
            raise ValueError

        for _ in range(2):
            self.failureResultOf(ensureDeferred(ask()), ValueError)
        self.failureResultOf(ensureDeferred(ask()), BreakerOpen)

    def test_deferred(self) -> None:
        """A Deferred counts when it fires, not when it is made."""

        @breaker(self.name)
        def ask() -> "Deferred[Any]":
            return self.waiting

        asked = ask()
        self.clock.advance(10.0)
        self.assertIs(self.state, BreakerState.CLOSED)
        self.waiting.callback("answer")
        self.assertEqual(self.successResultOf(asked), "answer")  # but it was slow
        self.fail_once()
        self.assertIs(self.state, BreakerState.OPEN)

    def test_functions_share_a_service(self) -> None:
        """Functions of one name open together."""
        self.fail_once()
        self.fail_once()
        self.assertRaises(BreakerOpen, self.fail_once)

    def test_broken_off_says_nothing(self) -> None:
        """A call that its caller broke off is no failure, unless it had been slow."""

        @breaker(self.name)
        async def ask() -> None:
            await self.waiting

        for waited, expected in ((1.0, BreakerState.CLOSED), (10.0, BreakerState.OPEN)):
            for _ in range(2):
                self.waiting = Deferred()
                asked = ensureDeferred(ask())
                self.clock.advance(waited)
                asked.cancel()
                self.failureResultOf(asked, CancelledError)
            self.assertIs(self.state, expected)

    def test_asyncio_breaks_off_too(self) -> None:
        """The cancellation of asyncio is one as well."""

        @breaker(self.name)
        def ask() -> None:
            raise asyncio.CancelledError

        for _ in range(3):
            self.assertRaises(asyncio.CancelledError, ask)
        self.assertIs(self.state, BreakerState.CLOSED)

    def test_works_without_a_server(self) -> None:
        """A service that no server counts for is always called."""
        self.fail_once()
        services()[self.name]._breaker = None
        for _ in range(5):
            self.fail_once()
        self.assertIs(self.state, BreakerState.CLOSED)
