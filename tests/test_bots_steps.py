"""Tests for L{domaeka.bots.steps}, through the dispatcher."""

import contextlib
import gc
import weakref
from collections.abc import Generator
from typing import Any, cast

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, Context
from domaeka.bots.steps import MAX_STEP_SECONDS, REPORT_SECONDS
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.logs import text_line
from tests.bots_fakes import Outside, Served

LONG = MAX_STEP_SECONDS + 0.1


class Mistake(ValueError):
    """An error to which there are weak references."""


class HoldUpsTests(SynchronousTestCase):
    """What holds up the reactor is named in the log; time passes in commands as they say."""

    def setUp(self) -> None:
        outside = self.outside = Outside()
        bot = self.bot = Bot("shop")

        @bot.command("first", reactor=True)
        async def first(ctx: Context) -> None:
            self.hold(ctx)

        @bot.command("later", reactor=True)
        async def later(ctx: Context) -> None:
            await outside.wait()
            try:
                await outside.wait()
            finally:
                self.hold(ctx)

        @bot.command("fails", reactor=True)
        async def fails(ctx: Context) -> None:
            self.hold(ctx)
            raise ValueError

        @bot.command("deferred")
        @inlineCallbacks
        def deferred(ctx: Context) -> Generator[Any, Any, None]:
            self.hold(ctx)
            yield outside.wait()

        @bot.command("plain")
        def plain(ctx: Context) -> None:
            self.hold(ctx)

        @bot.command("wrong")
        def wrong(ctx: Context) -> Any:
            return first(ctx)

        self.served = Served(
            [bot], BotsSettings(room_concurrency=30), BreakerSettings(failure_threshold=1000)
        )
        self.addCleanup(self.served.dispatcher.close)
        self.events: list[Any] = []
        observer = cast(ILogObserver, self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def hold(self, ctx: Context) -> None:
        self.served.reactor.advance(float(ctx.message.args))

    def told(self) -> list[str]:
        """The lines of the log that name a command, since they were last asked for."""
        lines = [text_line(event) for event in self.events]
        self.events.clear()
        return [line for line in lines if "held up the reactor" in line]

    def test_first_step(self) -> None:
        """Command, bot, place and time are named, of whatever runs on the reactor."""
        for name in ("first", "fails", "deferred"):
            self.served.say(f"{name} {LONG}")
            (line,) = self.told()
            for part in (f"{name} of the bot shop", f"{LONG:.1f} s", "test_bots_steps.py:", name):
                self.assertIn(part, line)

    def test_quick_steps(self) -> None:
        """What is quick is not named, however long it waits between its steps."""
        for name in ("first", "later", "deferred"):
            self.served.say(f"{name} 0.1")
        self.served.wait(5)
        while self.outside.waiting:
            self.outside.waiting.pop(0).callback(None)
        self.assertEqual(self.told(), [])

    def test_later_steps(self) -> None:
        """Every step counts, and a command that is broken off, too."""
        self.served.say(f"later {LONG}")
        self.outside.waiting[0].callback(None)
        self.assertEqual(self.told(), [])
        self.outside.waiting[1].callback(None)
        self.assertEqual(len(self.told()), 1)
        self.served.wait(int(REPORT_SECONDS) + 1)
        self.served.say(f"later {LONG}")
        self.outside.waiting[2].callback(None)
        self.outside.waiting[3].errback(ValueError())
        self.assertEqual(len(self.told()), 1)

    def test_threads(self) -> None:
        """A plain function may take its time in a thread; so may a coroutine, on the loop."""
        for name in ("plain", "wrong"):
            self.served.say(f"{name} {LONG}")
            self.served.threads.work()
            self.assertEqual(self.told(), [], name)

    def test_always_slow(self) -> None:
        """A command is named once in a while, then with how often and how long it was."""
        for took in (0.3, 0.3, 0.5, 0.3):
            self.served.say(f"first {took}")
        self.served.say(f"fails {LONG}")
        self.assertEqual(len(self.told()), 2)
        self.served.wait(int(REPORT_SECONDS))
        self.served.say("first 0.3")
        (line,) = self.told()
        self.assertIn("3 times since it was last said, 0.5 s at most", line)

    def test_reload(self) -> None:
        """What is known of commands goes with them."""
        self.served.say(f"first {LONG}")
        self.served.dispatcher.apply([], BotsSettings(), BreakerSettings())
        self.assertEqual(self.served.dispatcher._hold_ups._reported, {})

    def test_end_of_a_step(self) -> None:
        """An error that a step was given is not kept while the next one waits."""
        bot = Bot("errors")
        waits: Deferred[None] = Deferred()

        @bot.command("errors", reactor=True)
        async def errors(ctx: Context) -> str:
            with contextlib.suppress(ValueError):
                await self.outside.wait()
            await waits
            return "done"

        served = Served([bot])
        served.say("errors")
        error = Mistake()
        kept = weakref.ref(error)
        gc.disable()
        self.addCleanup(gc.enable)
        self.outside.waiting.pop().errback(error)
        del error
        self.assertIsNone(kept())
        waits.callback(None)
        self.assertEqual(served.origin.texts, ["done"])
        served.dispatcher.close()
