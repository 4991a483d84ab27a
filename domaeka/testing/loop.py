"""An asyncio loop in virtual time, in the thread that moves its clock: for tests of bots."""

import asyncio
import selectors
from threading import get_ident
from typing import Any, Final, cast

from twisted.internet.defer import Deferred, succeed

from domaeka.bots.coroutines import BotLoop

#: Most turns in which a loop does what is due, and what follows from it, without any time passing.
MAX_TURNS: Final = 20_000


class VirtualLoop(asyncio.SelectorEventLoop):
    """
    A loop that does at once what is due by a clock, and nothing else.

    @ivar is_restless: True if there was more to do after L{MAX_TURNS}: a function waits for
        nothing, again and again.
    """

    def __init__(self, clock: Any) -> None:
        """@param clock: as C{twisted.internet.task.Clock}."""
        self._sockets = selectors.DefaultSelector()
        super().__init__(self._sockets)
        self._own_sockets = len(self._sockets.get_map())
        self._thread = get_ident()
        self._clock = clock
        self._has_more = False
        self._closes = False  # once it does not run any more
        self._due: dict[Any, asyncio.TimerHandle] = {}  # calls of the clock
        self.is_restless = False

    def time(self) -> float:
        """The time by the clock."""
        return float(self._clock.seconds())

    def call_soon(self, *args: Any, **named: Any) -> asyncio.Handle:  # type: ignore[override]
        """As of any loop."""
        self._has_more = True
        return super().call_soon(*args, **named)

    def call_soon_threadsafe(  # type: ignore[override]
        self, *args: Any, **named: Any
    ) -> asyncio.Handle:
        """
        As of any loop.  Called in the loop's thread, what is due is done before this returns,
        unless the loop runs; called in another one, it is done by the next L{run_due}.
        """
        self._has_more = True
        handle = super().call_soon_threadsafe(*args, **named)
        if get_ident() == self._thread:
            self.run_due()
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, *args: Any, **named: Any
    ) -> asyncio.TimerHandle:
        """As of any loop, by the clock."""
        handle = super().call_at(when, *args, **named)

        def due() -> None:
            self._due.pop(call, None)
            self._has_more = True
            self.run_due()

        call = self._clock.callLater(max(0.0, when - self.time()), due)
        self._due[call] = handle
        return handle

    def run_due(self) -> None:
        """Do what is due, and what follows from it."""
        if self.is_running() or self.is_closed():
            return
        # A test may itself run on a loop of asyncio's, which knows of no other one in its thread.
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            for _ in range(MAX_TURNS):
                if not self._has_more:
                    break
                self._has_more = False
                super().call_soon(self.stop)
                try:
                    self.run_forever()
                except (SystemExit, KeyboardInterrupt):  # of a task, which has ended by it
                    self._has_more = True
            self.is_restless = self._has_more
        finally:
            asyncio._set_running_loop(outer)
        if self._closes:
            self._closes = False
            self.close()

    # Real time, for what is outside of the virtual one

    @property
    def has_timers(self) -> bool:
        """True if something is due at a later time by the clock."""
        return any(not handle.cancelled() for handle in self._due.values())

    @property
    def has_sockets(self) -> bool:
        """True if something waits for a real socket, or a pipe."""
        return len(self._sockets.get_map()) > self._own_sockets

    def poll(self, timeout: float) -> None:
        """Wait for real sockets, for C{timeout} real seconds at most, and do what is due."""
        self._sockets.select(timeout)
        self._has_more = True
        self.run_due()

    def close(self) -> None:
        """End, and leave nothing with the clock."""
        if self.is_running():
            self._closes = True
            return
        for call in self._due:
            call.cancel()
        self._due.clear()
        super().close()


class VirtualBotLoop(BotLoop):
    """The loop of bots, in virtual time."""

    @property
    def virtual(self) -> VirtualLoop:
        """The loop itself."""
        if self._loop is None:
            self.call_soon(lambda: None)
        return cast(VirtualLoop, self._loop)

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualLoop(self._reactor)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """It runs when something is due."""

    def close(self) -> "Deferred[None]":
        """Cancel all tasks."""
        loop = self._loop
        if isinstance(loop, VirtualLoop) and not loop.is_closed():
            for task in asyncio.all_tasks(loop):
                loop.call_soon(task.cancel)
            loop.run_due()
            self._closed = True
            loop.close()
        self._closed = True
        return succeed(None)
