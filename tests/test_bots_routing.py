"""Tests for L{domaeka.bots.routing}: which function of which bot takes a message."""

import asyncio
import re
from typing import Any
from unicodedata import normalize

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, Context
from domaeka.bots.failures import listening
from domaeka.bots.patterns import Searches
from domaeka.bots.routing import Router
from domaeka.errors import ConfigError
from domaeka.interfaces import DeviceKey
from domaeka.texts_ko import FAILED_TEXT
from tests.bots_fakes import FakeOrigin, Served, make_chat


class RouterTests(SynchronousTestCase):
    """Tests for L{Router}."""

    def found(
        self, *bots: Bot, text: str, phone: str = "봇", room: str = "1001", mention: bool = False
    ) -> tuple[str, str] | None:
        """The name of the function that takes a message, and its arguments."""
        chat = make_chat(text, channel_id=room)
        chat.is_mention = mention
        match = Router(bots).find(chat, DeviceKey(phone, "d1"))
        return None if match is None else (match[0].name, text[match[1] :])

    def bot(self, name: str, *commands: str, **more: object) -> Bot:
        bot = Bot(name, **more)  # type: ignore[arg-type]
        for command in commands:
            bot.command(command)(lambda ctx: None)
        return bot

    def test_phones_and_rooms(self) -> None:
        """A bot serves the phones and rooms that it names; others may have the same command."""
        bots = (
            self.bot("one", "# a", names=["가게"]),
            self.bot("two", "# a", "# b", names=["집"], rooms=["7"]),
            self.bot("all", "# c"),
        )
        for phone, room, text, name in (
            ("가게", "1", "# a", "# a"),
            ("집", "1", "# a", None),
            ("집", "7", "# b", "# b"),
            ("다른", "7", "# b", None),
            ("다른", "1", "# c", "# c"),
        ):
            found = self.found(*bots, text=text, phone=phone, room=room)
            self.assertEqual(found and found[0], name, (phone, room, text))

    def test_slow_pattern(self) -> None:
        """A search that would not end is broken off, and its listener named, with its place."""
        bot = Bot("slow")
        bot.on_message(pattern="(a+)+$")(lambda ctx: None)
        router = Router([bot], searches=Searches(lambda: 0.0))
        with capturedLogs() as events:
            self.assertIsNone(router.find(make_chat("a" * 100 + "!"), DeviceKey("봇", "d1")))
        (said,) = [formatEvent(event) for event in events]
        self.assertIn("takes more than 0.03 s", said)
        self.assertIn("test_bots_routing.py:", said)

    def test_clash(self) -> None:
        """Two bots for the same phone and room have no command in common."""
        Router([self.bot("a", "# a", names=["x"]), self.bot("b", "# a", names=["y"])])
        Router([self.bot("a", "# a", rooms=["1"]), self.bot("b", "# a", rooms=["2"])])
        for more in ({}, {"names": ["x", "z"]}, {"rooms": ["1"]}):
            bots = [self.bot("a", "# a", names=["x"]), self.bot("b", "# a", **more)]
            self.assertRaises(ConfigError, Router, bots)

    def test_names_are_compared_after_nfkc(self) -> None:
        """Full-width letters, decomposed Hangul and other spaces name the same command."""
        bot = self.bot("a", "# roll", "# 안녕", "# 안녕 하세요")
        for text, name, rest in (
            ("＃ roll 6", "# roll", "6"),
            ("#\u00a0roll\u00a06", "# roll", "6"),
            ("＃　ｒｏｌｌ　6", "# roll", "6"),
            (normalize("NFD", "# 안녕 여러분"), "# 안녕", normalize("NFD", "여러분")),
            (normalize("NFD", "# 안녕"), "# 안녕", ""),
            ("# 안녕\u00a0하세요 네", "# 안녕 하세요", "네"),
        ):
            self.assertEqual(self.found(bot, text=text), (name, rest), text)
        self.assertIsNone(self.found(bot, text=normalize("NFD", "# 안녕하")))
        self.assertRaises(ValueError, bot.command, normalize("NFD", "# 안녕"))

    def test_prefix(self) -> None:
        """A prefix stands before each name."""
        bot = self.bot("a", "roll", prefix="!")
        self.assertEqual(self.found(bot, text="!roll 6"), ("!roll", "6"))
        self.assertIsNone(self.found(bot, text="roll 6"))

    def test_included(self) -> None:
        """A bot serves what it includes; nobody includes itself, or a name twice."""
        inner, outer = self.bot("inner", "# a"), self.bot("outer", "# b", names=["x"])
        outer.include(inner)
        outer.include(inner)
        self.assertEqual([command.name for command in outer.commands], ["# b", "# a"])
        self.assertEqual(self.found(outer, text="# a", phone="x"), ("# a", ""))
        self.assertIsNone(self.found(outer, text="# a", phone="y"))
        self.assertRaises(ValueError, inner.include, outer)
        self.assertRaises(ValueError, outer.include, self.bot("other", "# b"))
        self.assertEqual([command.name for command in outer.commands], ["# b", "# a"])
        self.assertRaises(ValueError, outer.include, self.bot("other", names=["y"]))

    def test_listeners(self) -> None:
        """A message that is no command goes to the first function that takes it."""
        bot = self.bot("a", "# a")

        @bot.on_message(contains=("안녕", "하이"))
        async def greet(ctx: Context) -> None: ...

        @bot.on_message(pattern=r"\d+원", prefix="값")
        async def price(ctx: Context) -> None: ...

        @bot.on_message(mention=True)
        async def called(ctx: Context) -> None: ...

        for text, mention, name in (
            ("# a 안녕", False, "# a"),
            ("여러분 하이", True, "a.greet"),
            ("값 300원", False, "a.price"),
            ("300원", False, None),
            ("뭐라고", True, "a.called"),
        ):
            found = self.found(bot, text=text, mention=mention)
            self.assertEqual(found and found[0], name, text)

        self.assertIsNone(self.found(bot, text="값" + "." * 2000 + "300원"))

        @bot.on_message
        def rest(ctx: Context) -> None: ...

        self.assertEqual(self.found(bot, text="뭐라고"), ("a.rest", "뭐라고"))


class HookTests(SynchronousTestCase):
    """Functions around others."""

    def setUp(self) -> None:
        self.calls: list[object] = []
        self.bot = Bot("hooks")

    def say(self, *texts: str) -> FakeOrigin:
        """Have a server with the bot hear messages."""
        served = Served([self.bot])
        self.addCleanup(served.dispatcher.close)
        for text in texts:
            served.say(text)
            while served.threads.calls:
                served.threads.work()
        return served.origin

    def test_around(self) -> None:
        """Those before and after are called around each function, wherever that runs."""
        bot = self.bot

        @bot.before
        async def first(ctx: Context) -> None:
            self.calls.append("before")

        @bot.after
        def last(ctx: Context, error: BaseException | None) -> None:
            self.calls.append(error)

        @bot.command("# loop")
        async def loop(ctx: Context) -> str:
            return "loop"

        @bot.command("# thread")
        def thread(ctx: Context) -> str:
            return "thread"

        @bot.command("# reactor", reactor=True)
        async def on_reactor(ctx: Context) -> str:
            return "reactor"

        origin = self.say("# loop", "# thread", "# reactor", "# echo not theirs")
        self.assertEqual(origin.texts, ["loop", "thread", "reactor", "not theirs"])
        self.assertEqual(self.calls, ["before", None] * 3)

    def test_kept_from(self) -> None:
        """One that answers, or returns False, keeps a message from its function."""
        bot = self.bot

        @bot.before
        async def judge(ctx: Context) -> object:
            return {"no": False, "text": "지금은 안 됩니다"}.get(ctx.message.args)

        @bot.command("# a")
        async def answer(ctx: Context) -> str:
            return "answer"

        self.assertEqual(
            self.say("# a", "# a no", "# a text").texts, ["answer", "지금은 안 됩니다"]
        )

    def test_errors(self) -> None:
        """A function for errors may say something else; the error is logged in any case."""
        bot, inner = self.bot, Bot("inner")
        bot.include(inner)

        @bot.on_error
        async def explain(ctx: Context, error: Exception) -> str | None:
            self.calls.append(type(error).__name__)
            return "앗" if ctx.message.args else None

        @inner.command("# fail")
        def fail(ctx: Context) -> None:
            raise KeyError

        origin = self.say("# fail", "# fail x")
        self.assertEqual(self.calls, ["KeyError"] * 2)
        self.assertEqual(origin.texts, ["요청을 처리하다가 오류가 났습니다.", "앗"])

    def test_start_and_stop(self) -> None:
        """They are called at start and stop, and by a reload for the bots that come and go."""
        for bot in (self.bot, other := Bot("other")):
            name = bot.name

            @bot.on_start
            async def start(name: str = name) -> None:
                self.calls.append(f"{name} starts")

            @bot.on_stop
            def stop(name: str = name) -> None:
                self.calls.append(f"{name} stops")

        served = Served([self.bot])
        dispatcher = served.dispatcher
        dispatcher.apply([other], served.settings, served.breaker)
        served.threads.work()
        closing = dispatcher.close()
        served.threads.work()
        self.successResultOf(closing)
        self.assertEqual(self.calls, ["hooks starts", "hooks stops", "other starts", "other stops"])

    def test_tasks_left_behind(self) -> None:
        """Tasks that go on after their bot was taken away are named, with file and line."""
        tasks: list[asyncio.Task[None]] = []

        async def forever() -> None:
            await asyncio.Event().wait()

        @self.bot.on_start
        async def start() -> None:
            tasks.append(asyncio.create_task(forever()))

        @self.bot.command("# more")
        async def more(ctx: Context) -> None:
            tasks.append(asyncio.create_task(forever()))

        @self.bot.on_stop
        async def stop() -> None:
            tasks[0].cancel()

        served = Served([self.bot])
        self.addCleanup(served.dispatcher.close)
        served.say("# more")
        with capturedLogs() as events:
            served.dispatcher.apply([], served.settings, served.breaker)
        (said,) = [formatEvent(event) for event in events]
        self.assertIn("still runs: end it in on_stop", said)
        self.assertIn("test_bots_routing.py:", said)

    def test_hook_that_exits(self) -> None:
        """One that ends by whatever error is reported, and the others are called."""
        errors = (SystemExit(1), asyncio.CancelledError(), TimeoutError("its own"))
        for error in errors:

            @self.bot.on_start
            async def fail(error: BaseException = error) -> None:
                raise error

        @self.bot.on_start
        async def start() -> None:
            self.calls.append("started")

        found: list[BaseException] = []
        with listening(lambda report: found.append(report.error)):
            served = Served([self.bot])
        self.addCleanup(served.dispatcher.close)
        self.assertEqual(found, list(errors))
        self.assertEqual(self.calls, ["started"])

    def test_errors_around_an_error(self) -> None:
        """Functions of on_error and after hide no error and no answer, however they end."""

        @self.bot.on_error
        async def fail(ctx: Context, error: BaseException) -> None:
            raise SystemExit(1)

        @self.bot.after
        async def cancelled(ctx: Context, error: BaseException | None) -> None:
            raise asyncio.CancelledError

        @self.bot.command("# wrong")
        async def wrong(ctx: Context) -> None:
            raise ZeroDivisionError

        @self.bot.command("# right")
        async def right(ctx: Context) -> str:
            return "답"

        served = Served([self.bot])
        self.addCleanup(served.dispatcher.close)
        found: list[type[BaseException]] = []
        with listening(lambda report: found.append(type(report.error))):
            served.say("# wrong")
            served.say("# right")
        cancels = asyncio.CancelledError
        self.assertEqual(found, [SystemExit, cancels, ZeroDivisionError, cancels])
        self.assertEqual(served.origin.texts, [FAILED_TEXT, "답"])

    def test_coroutine_of_a_plain_function(self) -> None:
        """A plain function that gives a coroutine answers, with functions around it, too."""

        async def answer() -> str:
            return "답"

        self.bot.before(lambda ctx: None)
        self.bot.command("# plain")(lambda ctx: answer())
        served = Served([self.bot])
        self.addCleanup(served.dispatcher.close)
        served.say("# plain")
        while served.threads.calls:
            served.threads.work()
        self.assertEqual(served.origin.texts, ["답"])

    def test_wrong_types(self) -> None:
        """What no message could match is refused where it is written."""
        given: Any
        for given in (
            {"contains": (1,)},
            {"contains": 5},
            {"prefix": 5},
            {"mention": "yes"},
            {"pattern": b"x"},
            {"pattern": re.compile(b"x")},
        ):
            self.assertRaises(TypeError, self.bot.on_message, **given)
        self.assertRaises(ValueError, self.bot.on_message, pattern="(")
        for given in ({"rooms": (1001,)}, {"names": (1,)}, {"rooms": None}, {"prefix": 5}):
            self.assertRaises(TypeError, Bot, "wrong", **given)
        for given in ({"aliases": (5,)}, {"help": 5}):
            self.assertRaises(TypeError, self.bot.command, "# wrong", **given)

    def test_stop_that_hangs(self) -> None:
        """One that holds up the stop is waited for no longer than that allows, and is named."""

        @self.bot.on_stop
        async def hang() -> None:
            await asyncio.Event().wait()

        served = Served([self.bot])
        closing = served.dispatcher.close()
        with capturedLogs() as events:
            served.wait(5)
        self.successResultOf(closing)
        said = "\n".join(str(formatEvent(event)) for event in events)
        self.assertRegex(said, r"waited for no longer \(.*test_bots_routing\.py:\d+")

    def test_hook_that_hangs(self) -> None:
        """One that hangs, or fails, holds up nothing for long, and is named."""

        @self.bot.on_start
        async def hang() -> None:
            await asyncio.Event().wait()

        @self.bot.on_start
        async def fail() -> None:
            raise ValueError

        @self.bot.on_start
        async def start() -> None:
            self.calls.append("started")

        served = Served([self.bot])
        self.addCleanup(served.dispatcher.close)
        self.assertEqual(self.calls, [])
        served.wait(10)
        self.assertEqual(self.calls, ["started"])
