"""Tests for L{domaeka.bots.dispatch}."""

import asyncio
import gc
import weakref
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any, cast

from twisted.internet.defer import CancelledError, inlineCallbacks, succeed
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, BreakerOpen, Context
from domaeka.bots.breakers import CommandBreaker
from domaeka.bots.fair_queue import MAX_WAITING_PER_ROOM
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.errors import ConfigError
from domaeka.interfaces import Dispatcher
from domaeka.logs import text_line
from domaeka.policies.outbox import DeliveryStatus, StatusListener
from domaeka.policies.retry import BreakerState
from domaeka.texts_ko import BUSY_TEXT, FAILED_TEXT, OPEN_TEXT, TIMEOUT_TEXT
from domaeka.wire import Reply
from tests.bots_fakes import FakeOrigin, Outside, Served, make_chat


class DispatchTestCase(SynchronousTestCase):
    """A bot with commands for every case."""

    settings = BotsSettings(bot_concurrency=4, room_concurrency=2, timeout=10.0)
    breaker = BreakerSettings(failure_threshold=1000)

    def setUp(self) -> None:
        self.outside = Outside()
        self.bot = Bot("test")
        outside = self.outside

        @self.bot.command("# wait", reactor=True)
        async def wait(ctx: Context) -> Any:
            return await outside.wait(ctx.message.args)

        @self.bot.command("# fail", reactor=True)
        async def fail(ctx: Context) -> None:
            raise ValueError(ctx.message.args)

        @self.bot.command("# deferred")
        @inlineCallbacks
        def deferred(ctx: Context) -> Generator[Any, Any, Any]:
            value = yield outside.wait(ctx.message.args)
            return value

        @self.bot.command("# plain")
        def plain(ctx: Context) -> Any:
            return f"plain {ctx.message.args}"

        self.served = Served([self.bot], self.settings, self.breaker)
        self.origin = self.served.origin
        self.dispatcher = self.served.dispatcher
        self.addCleanup(self.check_end)

    def check_end(self) -> None:
        """However a test goes, each message is done once, and no timer is left."""
        self.dispatcher.close()
        self.assertEqual(sorted(map(id, self.origin.done)), sorted(map(id, self.served.said)))
        self.assertEqual(self.served.reactor.getDelayedCalls(), [])
        self.assertTrue(self.served.threads.closed)

    def logged(self, level: LogLevel) -> str:
        """What is logged at C{level} or above from now on, as text, once the test reads it."""
        return "".join(text_line(event) for event in self.events if event["log_level"] >= level)

    def watch_log(self) -> None:
        self.events: list[Any] = []
        observer = cast(ILogObserver, self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)


class RunTests(DispatchTestCase):
    """How commands of every form are run."""

    def test_is_a_dispatcher(self) -> None:
        """It is what the gateway asks for."""
        dispatcher: Dispatcher = self.dispatcher
        self.assertIs(dispatcher, self.dispatcher)

    def test_no_command_is_done_at_once(self) -> None:
        """Ordinary chat is not answered, and takes no place."""
        chat = self.served.say("안녕")
        self.assertEqual((self.origin.done, self.origin.texts), ([chat], []))

    def test_coroutine_that_does_not_wait(self) -> None:
        """Its answer is there when the message has been taken."""
        chat = self.served.say("# echo hi")
        self.assertEqual((self.origin.texts, self.origin.done), (["hi"], [chat]))
        self.assertEqual(self.served.observed, [("# echo", 0.0)])

    def test_coroutine_that_waits(self) -> None:
        """Its answer comes when it is ready, and the message is done then."""
        self.served.say("# wait")
        self.assertEqual((self.origin.done, self.dispatcher.pending()), ([], 1))
        self.served.wait(2)
        self.outside.waiting[0].callback("answer")
        self.assertEqual((self.origin.texts, self.dispatcher.pending()), (["answer"], 0))
        self.assertEqual(self.served.observed, [("# wait", 2.0)])

    def test_coroutine_with_many_steps(self) -> None:
        """It waits as often as it likes, catches what fails, and keeps its variables."""
        variable: ContextVar[str] = ContextVar("variable", default="unset")
        bot = Bot("steps")

        @bot.command("# steps", reactor=True)
        async def steps(ctx: Context) -> str:
            token = variable.set(ctx.message.args)
            await succeed(None)
            first = await self.outside.wait()
            try:
                await self.outside.wait()
            except ValueError:
                second = variable.get()
            variable.reset(token)
            return f"{first} {second} {variable.get()}"

        served = Served([bot])
        for name in ("one", "two"):
            served.say(f"# steps {name}")
        for number in (0, 1):
            self.outside.waiting[number].callback(number)
        for number in (2, 3):
            self.outside.waiting[number].errback(ValueError())
        self.assertEqual(served.origin.texts, ["0 one unset", "1 two unset"])
        self.assertEqual(variable.get(), "unset")

    def test_deferred(self) -> None:
        """C{inlineCallbacks} work as coroutines do, whether they wait or not."""
        self.served.say("# deferred")
        self.outside.waiting[0].callback("answer")
        self.assertEqual(self.origin.texts, ["answer"])

    def test_plain_runs_in_a_thread(self) -> None:
        """What may block is not called on the reactor."""
        self.served.say("# plain it")
        self.assertEqual(self.origin.texts, [])
        self.served.threads.work()
        self.assertEqual(self.origin.texts, ["plain it"])

    def test_plain_that_gives_something_to_wait_for(self) -> None:
        """A Deferred or coroutine from a thread is waited for, with a warning for the author."""
        self.watch_log()
        bot = Bot("odd")
        bot.command("# one")(lambda ctx: self.outside.wait())
        bot.command("# two")(lambda ctx: later())

        async def later() -> str:
            await asyncio.sleep(1)
            return "answer"

        served = Served([bot])
        for text in ("# one", "# two", "# two"):
            served.say(text)
            served.threads.work()
        self.outside.waiting[0].callback("answer")
        served.wait(1)
        self.assertEqual(served.origin.texts, ["answer"] * 3)
        self.assertEqual(self.logged(LogLevel.warn).count("make it async def"), 1)

    def test_what_is_no_text_is_not_sent(self) -> None:
        """C{None} and an empty text are no answers; anything else is a mistake, said once."""
        self.watch_log()
        bot = Bot("odd")
        values = iter((None, "", 5, 5))

        @bot.command("# value", reactor=True)
        async def value(ctx: Context) -> Any:
            return next(values)

        served = Served([bot])
        for _ in range(4):
            served.say("# value")
        self.assertEqual((served.origin.texts, len(served.origin.done)), ([], 4))
        self.assertEqual(self.logged(LogLevel.warn).count("returned int"), 1)
        self.assertIn("test_dispatch.py:", self.logged(LogLevel.warn))

    def test_refuses_commands_that_clash(self) -> None:
        """Two bots cannot have one command, nor a bot one that is built in."""
        bot = Bot("mine")
        bot.command("# echo")(print)
        error = self.assertRaises(ConfigError, Served, [bot])
        self.assertIn("'# echo'", str(error))
        self.assertIn("'mine'", str(error))


class QueueTests(DispatchTestCase):
    """Who may run at once."""

    def test_room_starts_in_order(self) -> None:
        """Two of a room run at once; the next starts when one of them is done."""
        for name in "abcd":
            self.served.say(f"# wait {name}")
        self.assertEqual(self.outside.names, ["a", "b"])
        self.outside.waiting[1].callback(None)
        self.assertEqual(self.outside.names, ["a", "b", "c"])

    def test_quick_commands_keep_their_place(self) -> None:
        """What would be answered at once does not overtake what waits in its room."""
        for text in ("# wait a", "# wait b", "# wait c", "# echo d"):
            self.served.say(text)
        self.assertEqual(self.origin.texts, [])
        for number in (0, 1, 2):
            self.outside.waiting[number].callback("abc"[number])
        self.assertEqual(self.origin.texts, ["a", "b", "d", "c"])

    def test_bot_is_limited_over_all_its_phones(self) -> None:
        """Phones of one bot share its places, each half of what is left; other bots have theirs."""
        phones = [FakeOrigin(device_id=f"p{number}") for number in range(4)]
        for phone in phones:
            for room in ("1", "2", "3"):
                text = f"# wait {phone.key.device_id}"
                self.dispatcher.submit(make_chat(text, room, f"u{room}"), phone)
        self.assertEqual(self.outside.names, ["p0", "p0", "p1", "p2"])
        other = FakeOrigin(bot_name="other")
        for origin in (phones[3], other):
            self.dispatcher.submit(make_chat("# echo hi", "4"), origin)
        self.assertEqual((phones[3].texts, other.texts), ([], ["hi"]))
        self.outside.waiting[0].callback(None)
        self.assertEqual(self.outside.names[4:], ["p3"])

    def test_many_that_waited_are_answered_at_once(self) -> None:
        """A long queue of quick commands neither recurses nor is lost."""
        for text in ("# wait", "# wait", *(f"# echo {n}" for n in range(MAX_WAITING_PER_ROOM))):
            self.served.say(text)
        self.assertEqual(self.dispatcher.pending(), MAX_WAITING_PER_ROOM + 2)
        self.outside.waiting[0].callback(None)
        self.assertEqual(self.origin.texts, [str(n) for n in range(MAX_WAITING_PER_ROOM)])

    def test_busy_is_said_once(self) -> None:
        """What finds no place is told so, once a burst, and counted each time."""
        for _ in range(2 + MAX_WAITING_PER_ROOM + 3):
            self.served.say("# wait")
        self.assertEqual(self.origin.texts, [BUSY_TEXT])
        self.assertEqual((self.served.busy, len(self.origin.done)), (3, 3))

    def test_close_breaks_off(self) -> None:
        """At the end all is done, unanswered, and nothing more is taken."""
        for _ in range(3):
            self.served.say("# wait")
        self.dispatcher.close()
        self.assertEqual((len(self.origin.done), self.origin.texts), (3, []))
        self.assertEqual(self.dispatcher.pending(), 0)
        self.served.say("# echo hi")
        self.assertEqual((len(self.origin.done), self.origin.texts), (4, []))


class FailureTests(DispatchTestCase):
    """What goes wrong costs one answer."""

    def setUp(self) -> None:
        super().setUp()
        self.watch_log()

    def test_failure_is_answered(self) -> None:
        """The room hears of it, the log has the traceback, and the next one is served."""
        self.served.say("# fail secret words")
        self.served.say("# echo hi")
        self.assertEqual(self.origin.texts, [FAILED_TEXT, "hi"])
        self.assertEqual(self.served.failures, ["# fail"])
        text = self.logged(LogLevel.info)
        self.assertIn("ValueError", text)
        self.assertIn("test_dispatch.py", text)
        self.assertIn("# fail", text)

    def test_chat_is_not_logged(self) -> None:
        """An error's text may quote what was written: it shows at debug alone."""
        self.served.say("# fail secret words")
        self.assertNotIn("secret", self.logged(LogLevel.info))
        self.assertIn("secret", self.logged(LogLevel.debug))

    def test_reply_has_terms(self) -> None:
        """A reply may have a time of its own, and a listener that may answer, or fail."""
        bot = Bot("careful")

        @bot.command("# careful", reactor=True)
        async def careful(ctx: Context) -> None:
            for ttl in (0, -1.0, float("nan"), 1e99, "word", True):
                self.assertRaises((TypeError, ValueError), ctx.reply, "a", ttl=ttl)
            ctx.reply("a", ttl=5.0, on_fate=ctx.reply)
            await ctx.reply_media(b"\x89PNG\r\n\x1a\n", ttl=9, on_fate=int)

        served = Served([bot])
        served.say("# careful")
        (ttl, heard), (longer, failing) = served.origin.terms
        assert heard is not None and failing is not None
        heard(DeliveryStatus.EXPIRED, "")
        failing(DeliveryStatus.DROPPED, "")
        self.assertEqual((ttl, longer, served.origin.texts[::2]), (5.0, 9, ["a", "expired"]))
        self.assertIn("what became of a reply", self.logged(LogLevel.info))

    def test_late_failure_is_answered(self) -> None:
        """One that fails after it has waited is answered as well, with its traceback."""
        for text in ("# wait", "# deferred"):
            self.served.say(text)
        for waiting in self.outside.waiting:
            waiting.errback(ValueError())
        self.assertEqual(self.origin.texts, [FAILED_TEXT] * 2)
        self.assertIn("in wait", self.logged(LogLevel.info))

    def test_nothing_ends_the_server(self) -> None:
        """Not even what would end a program."""
        bot = Bot("bad")
        errors = [SystemExit(), asyncio.CancelledError(), CancelledError(), GeneratorExit()]

        @bot.command("# bad", reactor=True)
        async def bad(ctx: Context) -> None:
            raise errors.pop()

        served = Served([bot])
        for _ in range(4):
            served.say("# bad")
        self.assertEqual(served.origin.texts, [FAILED_TEXT] * 4)

    def test_phone_that_cannot_be_answered(self) -> None:
        """A failure of ours on the way back is logged, and costs that answer."""

        class Broken(FakeOrigin):
            def send(
                self,
                reply: Reply,
                ttl: float | None = None,
                on_status: StatusListener | None = None,
            ) -> None:
                raise ValueError

        origin = Broken()
        self.dispatcher.submit(make_chat("# echo hi"), origin)
        self.assertEqual(len(origin.done), 1)
        self.assertIn("an answer was lost", self.logged(LogLevel.info))

    def test_too_long(self) -> None:
        """What takes too long is broken off, named, answered, and its place is free."""
        self.watch_log()
        for name in ("a", "b", "c"):
            self.served.say(f"# wait {name}")
        self.served.wait(9)
        self.assertEqual(self.origin.texts, [])
        self.served.wait(2)
        self.assertEqual(self.origin.texts, [TIMEOUT_TEXT] * 2)
        self.assertEqual(self.served.failures, ["# wait"] * 2)
        self.assertEqual(self.outside.names, ["a", "b", "c"])
        self.assertIn("test_dispatch.py:", self.logged(LogLevel.warn))

    def test_sweep_outlives_mistakes(self) -> None:
        """What goes wrong with one that takes too long keeps none of the others from its end."""
        self.watch_log()
        mistakes = [ZeroDivisionError()]

        def count(command: str) -> None:
            if mistakes:
                raise mistakes.pop()

        self.dispatcher._count_failed = count
        for name in ("a", "b"):
            self.served.say(f"# wait {name}")
        self.served.wait(11)
        self.assertEqual(self.origin.texts, [TIMEOUT_TEXT])
        self.assertIn("could not be given up", self.logged(LogLevel.error))

    def test_too_long_in_a_thread(self) -> None:
        """A thread cannot be broken off: its late answer is dropped."""
        self.served.say("# plain")
        self.served.wait(11)
        self.served.threads.work()
        self.assertEqual(self.origin.texts, [TIMEOUT_TEXT])

    def test_coroutine_that_goes_on(self) -> None:
        """One that will not be broken off may still reply, but what it returns is dropped."""
        bot = Bot("stubborn")

        @bot.command("# stubborn", reactor=True)
        async def stubborn(ctx: Context) -> str:
            try:
                await self.outside.wait()
            except CancelledError:
                await self.outside.wait()
            ctx.reply("reply")
            return "returned"

        served = Served([bot], self.settings)
        served.say("# stubborn")
        served.wait(11)
        self.outside.waiting[1].callback(None)
        self.assertEqual(served.origin.texts, [TIMEOUT_TEXT, "reply"])
        self.assertIn("came back after its time", self.logged(LogLevel.info))

    def test_held_up(self) -> None:
        """When the process was held up, nobody is blamed."""
        self.served.say("# wait")
        self.served.wait(2)
        self.served.reactor.advance(3600)
        self.served.wait(6)
        self.assertEqual(self.origin.texts, [])
        self.served.wait(2)
        self.assertEqual(self.origin.texts, [TIMEOUT_TEXT])


class BreakerTests(DispatchTestCase):
    """Commands that keep failing are left alone."""

    breaker = BreakerSettings(failure_threshold=3, recovery_timeout=60.0)

    def test_open_is_said_once_in_a_room(self) -> None:
        """A breaker that is open for a person answers his room once, until it opens anew."""
        for _ in range(5):
            self.served.say("# fail")
        self.served.say("# fail", channel_id="2")
        self.assertEqual(self.origin.texts, [FAILED_TEXT] * 3 + [OPEN_TEXT, FAILED_TEXT])
        self.assertEqual(self.open_for("# fail"), ["'봇' 'd1' room '1001' person 'u1'"])
        self.served.wait(60)
        del self.origin.replies[:]
        for _ in range(3):
            self.served.say("# fail")
        self.assertEqual(self.origin.texts, [FAILED_TEXT, OPEN_TEXT])

    def open_for(self, name: str) -> list[str]:
        """For whom alone the breaker of a command is open."""
        breaker = self.dispatcher.breakers()[name]
        assert isinstance(breaker, CommandBreaker)
        self.assertIs(breaker.state, BreakerState.CLOSED)
        return breaker.open_for()

    def reload(self, breaker: BreakerSettings) -> None:
        """The same command, of other code."""
        bot = Bot("test")

        @bot.command("# fail", reactor=True)
        async def fail(ctx: Context) -> None:
            raise ValueError

        self.dispatcher.apply([bot], self.settings, breaker)

    def test_reload(self) -> None:
        """A reload keeps breakers open; with other settings all begin anew, and so does telling."""
        for _ in range(4):
            self.served.say("# fail")
        self.assertEqual(self.origin.texts, [FAILED_TEXT] * 3 + [OPEN_TEXT])
        del self.origin.replies[:]
        self.reload(self.breaker)
        self.served.say("# fail")
        self.assertEqual(self.origin.texts, [])
        self.reload(BreakerSettings(failure_threshold=1))
        for _ in range(2):
            self.served.say("# fail")
        self.assertEqual(self.origin.texts, [FAILED_TEXT, OPEN_TEXT])

    def test_old_code_goes(self) -> None:
        """Code that is served no more is let go once what it began has ended."""
        for _ in range(3):
            self.served.say("# wait")
        old = weakref.ref(self.bot.commands[0].function)
        del self.bot
        self.reload(self.breaker)
        for waiting in self.outside.waiting:
            waiting.callback("fertig")
        gc.collect()
        self.assertEqual((self.origin.texts, old()), (["fertig"] * 3, None))

    def test_other_commands_are_served(self) -> None:
        """Each command has a breaker of its own."""
        for text in ("# fail", "# fail", "# fail", "# echo hi"):
            self.served.say(text)
        self.assertEqual(self.origin.texts[-1], "hi")

    def test_too_long_is_a_failure(self) -> None:
        """A command that hangs for several rooms is left alone too, by all."""
        for room in ("1", "2", "3"):
            self.served.say("# wait", channel_id=room, user_hash=f"u{room}")
        self.served.wait(22)
        self.served.say("# wait", channel_id="4", user_hash="u4")
        self.assertEqual(self.origin.texts, [TIMEOUT_TEXT] * 3 + [OPEN_TEXT])
        self.assertIs(self.dispatcher.breakers()["# wait"].state, BreakerState.OPEN)

    def test_service_that_is_open(self) -> None:
        """A command that needs what is open is answered for once, and is not to blame."""
        bot = Bot("weather")

        @bot.command("# weather", reactor=True)
        async def weather(ctx: Context) -> None:
            raise BreakerOpen("weather", 1)

        served = Served([bot], breaker=self.breaker)
        for _ in range(5):
            served.say("# weather")
        self.assertEqual(served.origin.texts, [OPEN_TEXT])
        self.assertIs(served.dispatcher.breakers()["# weather"].state, BreakerState.CLOSED)
        self.assertEqual(served.failures, [])

    def test_broken_off_probe(self) -> None:
        """A probe that a stop breaks off does not count against its command."""
        for number in range(3):
            self.served.say("# wait")
            self.outside.waiting[number].errback(ValueError())
        self.served.wait(60)
        self.served.say("# wait")
        self.dispatcher.close()
        self.assertEqual(len(self.open_for("# wait")), 1)
        breaker = self.dispatcher.breakers()["# wait"]
        assert isinstance(breaker, CommandBreaker)
        place = self.served.said[-1], self.origin
        breaker.succeeded(breaker.begin(*place), 0.0, *place)
        self.assertEqual(breaker.open_for(), [])
