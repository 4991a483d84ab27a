"""An asyncio loop in virtual time, in the thread that moves its clock: for tests of bots."""

import asyncio
from typing import Any

from twisted.internet.defer import Deferred, succeed

from domaeka.bots.coroutines import BotLoop


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that does at once what is due by a clock, and nothing else."""

    def __init__(self, clock: Any) -> None:
        """@param clock: as C{twisted.internet.task.Clock}."""
        super().__init__()
        self._clock = clock
        self._has_more = False
        self._closes = False  # once it does not run any more
        self._due: set[Any] = set()  # calls of the clock

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
        """As of any loop; what is due is done before this returns, unless the loop runs."""
        self._has_more = True
        handle = super().call_soon_threadsafe(*args, **named)
        self.run_due()
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, *args: Any, **named: Any
    ) -> asyncio.TimerHandle:
        """As of any loop, by the clock."""
        handle = super().call_at(when, *args, **named)

        def due() -> None:
            self._due.discard(call)
            self._has_more = True
            self.run_due()

        call = self._clock.callLater(max(0.0, when - self.time()), due)
        self._due.add(call)
        return handle

    def run_due(self) -> None:
        """Do what is due, and what follows from it."""
        if self.is_running() or self.is_closed():
            return
        while self._has_more:
            self._has_more = False
            super().call_soon(self.stop)
            try:
                self.run_forever()
            except (SystemExit, KeyboardInterrupt):  # of a task, which has ended by it
                self._has_more = True
        if self._closes:
            self._closes = False
            self.close()

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
