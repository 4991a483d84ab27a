"""Tests for L{domaeka.bots.coroutines}: on the bots' loop, in virtual time and in real."""

import asyncio
from threading import Event, get_ident
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from domaeka import Bot, Context
from domaeka.bots import coroutines
from domaeka.bots.coroutines import BotLoop, Pending
from domaeka.bots.threads import CommandThreads
from domaeka.config import BotsSettings
from domaeka.texts_ko import FAILED_TEXT, TIMEOUT_TEXT
from tests.bots_fakes import Served
from tests.integration.support import reactor
from tests.test_dispatch import DispatchTestCase


class LoopCommandTests(DispatchTestCase):
    """Commands on the loop, in virtual time."""

    settings = BotsSettings(bot_concurrency=4, room_concurrency=2, timeout=10.0)

    def serve(self) -> Served:
        """Serve what was registered with C{self.loop_bot}."""
        served = Served([self.loop_bot], self.settings, self.breaker)
        self.addCleanup(served.dispatcher.close)
        return served

    def setUp(self) -> None:
        super().setUp()
        self.loop_bot = Bot("loop")
        self.watch_log()

    def test_waits_by_asyncio(self) -> None:
        """What asyncio offers works as it is; the answer comes in its time."""

        @self.loop_bot.command("# sleep")
        async def sleep(ctx: Context) -> str:
            ctx.reply("begun")
            async with asyncio.timeout(100):
                await asyncio.gather(asyncio.sleep(2), asyncio.sleep(3))
            return "done"

        served = self.serve()
        chat = served.say("# sleep")
        served.wait(2)
        self.assertEqual((served.origin.texts, served.origin.done), (["begun"], []))
        served.wait(1)
        self.assertEqual((served.origin.texts, served.origin.done), (["begun", "done"], [chat]))
        self.assertEqual(served.observed, [("# sleep", 3.0)])

    def test_is_cancelled(self) -> None:
        """A command that takes too long is cancelled where it waits, and answered."""
        ends: list[str] = []

        @self.loop_bot.command("# hang")
        async def hang(ctx: Context) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        served = self.serve()
        served.say("# hang")
        served.wait(11)
        self.assertEqual((served.origin.texts, ends), ([TIMEOUT_TEXT], ["cancelled"]))

    def test_errors(self) -> None:
        """An error, even sys.exit(), costs one answer; the loop goes on."""

        @self.loop_bot.command("# fail")
        async def fail(ctx: Context) -> str:
            if ctx.message.args == "exit":
                raise SystemExit
            raise ValueError

        served = self.serve()
        for text in ("# fail", "# fail exit", "# echo still"):
            served.say(text)
        self.assertEqual(served.origin.texts, [FAILED_TEXT, FAILED_TEXT, "still"])

    def test_deferred_is_refused(self) -> None:
        """A Deferred that is awaited on the loop is an error that says what to write."""

        @self.loop_bot.command("# old")
        async def old(ctx: Context) -> None:
            await deferLater(cast(Any, served.reactor), 1, lambda: None)

        served = self.serve()
        served.say("# old")
        self.assertEqual(served.origin.texts, [FAILED_TEXT])
        self.assertIn("reactor=True", self.logged(LogLevel.error))

    def test_rooms_keep_their_order(self) -> None:
        """In a room no more run at once than may; what waits starts in its order."""
        begun: list[str] = []

        @self.loop_bot.command("# wait")
        async def wait(ctx: Context) -> None:
            begun.append(ctx.message.args)
            await asyncio.sleep(2)

        served = self.serve()
        for number in range(4):
            served.say(f"# wait {number}")
        self.assertEqual(begun, ["0", "1"])
        served.wait(2)
        self.assertEqual(begun, ["0", "1", "2", "3"])

    def test_files(self) -> None:
        """Files are read in a thread; what is said behind them comes behind them."""
        path = self.mktemp() + ".png"
        with open(path, "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")

        @self.loop_bot.command("# picture")
        async def picture(ctx: Context) -> str:
            waits = ctx.reply_media(path)
            if ctx.message.args:
                await waits
            return "behind"

        served = self.serve()
        for text in ("# picture", "# picture wait"):
            served.origin.replies.clear()
            served.say(text)
            self.assertEqual(served.origin.texts, [])
            served.threads.work()
            self.assertEqual([type(each).__name__ for each in served.origin.texts][1:], ["str"])

    def test_close(self) -> None:
        """What runs is broken off when the server stops."""
        ends: list[object] = []

        @self.loop_bot.command("# wait")
        async def wait(ctx: Context) -> None:
            try:
                await asyncio.sleep(5)
            finally:
                ends.append(ctx.message.args)

        served = self.serve()
        served.say("# wait 1")
        served.dispatcher.close()
        self.assertEqual((ends, served.reactor.getDelayedCalls()), (["1"], []))


class BotLoopTests(TestCase):
    """Tests for L{BotLoop}: a real thread beside the reactor."""

    def setUp(self) -> None:
        self.threads = CommandThreads(reactor)
        self.loop = BotLoop(reactor, self.threads)
        self.addCleanup(self.threads.close)
        self.addCleanup(self.loop.close)

    def call(self, function: Any, *args: Any) -> "Deferred[Any]":
        """Call a function on the loop.  @return: its result."""
        result: Deferred[Any] = Deferred(lambda _: call.cancel())
        call = self.loop.call(function, args, lambda _, outcome: result.callback(outcome))
        return result

    async def test_beside_the_reactor(self) -> None:
        """A function runs in another thread, its result comes back in this one."""

        async def where() -> int:
            return get_ident()

        self.assertNotEqual(await self.call(where), get_ident())

    async def test_threads(self) -> None:
        """C{asyncio.to_thread} runs in the threads of plain commands, and gives its errors."""

        async def ask(number: int) -> float:
            return await asyncio.to_thread(lambda: 1 / number)

        self.assertEqual(await self.call(ask, 2), 0.5)
        await self.assertFailure(self.call(ask, 0), ZeroDivisionError)

    async def test_results_of_the_reactor(self) -> None:
        """What comes from the reactor is awaited on the loop, on the reactor, or in a thread."""

        async def ask() -> str:
            pending: Pending[str] = Pending()
            self.loop.hand_over(lambda: pending.follow(deferLater(reactor, 0, lambda: "answer")))
            return await pending

        self.assertEqual(await self.call(ask), "answer")
        pending: Pending[str] = Pending()
        pending.follow(deferLater(reactor, 0, lambda: "answer"))
        self.assertEqual(await pending, "answer")
        self.assertEqual(await self.threads.call(pending.result), "answer")

    async def test_exit(self) -> None:
        """C{sys.exit()} ends its own call only."""

        async def leave() -> None:
            raise SystemExit(3)

        async def stay() -> str:
            return "here"

        await self.assertFailure(self.call(leave), SystemExit)
        self.assertEqual(await self.call(stay), "here")

    async def test_cancelled(self) -> None:
        """A call that is cancelled ends; one that has not begun is not made."""
        begun: list[str] = []

        async def wait(name: str) -> None:
            begun.append(name)
            await asyncio.Event().wait()

        outcomes: list[object] = []
        first = self.loop.call(wait, ("first",), lambda _, outcome: outcomes.append(outcome))
        while not begun:
            await deferLater(reactor, 0.01, lambda: None)
        held = Event()
        self.loop.call_soon(held.wait)
        second = self.loop.call(wait, ("second",), lambda _, outcome: outcomes.append(outcome))
        first.cancel()
        second.cancel()
        held.set()
        while len(outcomes) < 2:
            await deferLater(reactor, 0.01, lambda: None)
        self.assertEqual(begun, ["first"])
        for outcome in outcomes:
            assert isinstance(outcome, Failure)
            self.assertIsInstance(outcome.value, asyncio.CancelledError)

    async def test_hold_up(self) -> None:
        """What blocks the loop is named, and no longer once it goes on."""
        self.patch(coroutines, "MAX_HOLD_UP_SECONDS", 0.05)
        held = Event()

        async def block() -> str:
            held.wait()
            return "over"

        result = self.call(block)
        while self.loop.hold_up is None:
            self.loop.check()
            await deferLater(reactor, 0.01, lambda: None)
        self.assertIn("test_bots_coroutines.py", self.loop.hold_up.place)
        held.set()
        self.assertEqual(await result, "over")
        while self.loop.hold_up is not None:
            await deferLater(reactor, 0.01, lambda: None)

    async def test_callback_that_blocks(self) -> None:
        """A callback that blocks the loop is named by its place in the author's code."""
        self.patch(coroutines, "MAX_HOLD_UP_SECONDS", 0.05)
        held = Event()
        self.addCleanup(held.set)
        self.loop.call_soon(lambda: held.wait())
        while self.loop.hold_up is None:
            self.loop.check()
            await deferLater(reactor, 0.01, lambda: None)
        self.assertIn("test_bots_coroutines.py:", self.loop.hold_up.place)

    async def test_stop_iteration(self) -> None:
        """A thread's StopIteration, which no future takes, fails the function all the same."""

        async def search() -> None:
            await asyncio.to_thread(next, iter(()))

        with self.assertRaises(RuntimeError):
            await self.call(search)

    async def test_stuck_at_the_end(self) -> None:
        """A function that blocks for ever holds up no stop for long."""
        self.patch(coroutines, "JOIN_SECONDS", 0.1)
        held = Event()
        self.addCleanup(held.set)

        async def block() -> None:
            held.wait()

        self.call(block)
        while self.loop.check() == 0.0:
            await deferLater(reactor, 0.01, lambda: None)
        await self.loop.close()

    async def test_what_is_cancelled_at_the_end(self) -> None:
        """Tasks that a bot has left behind are cancelled, and may clean up."""
        ends: list[str] = []

        async def behind() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ends.append("cleaned up")

        async def leave_behind() -> None:
            self.task = asyncio.create_task(behind())

        await self.call(leave_behind)
        await self.loop.close()
        self.assertEqual(ends, ["cleaned up"])
