"""Tests for L{domaeka.bots.dialogs}: questions to people, in virtual time."""

import asyncio
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase

from domaeka import AskTimeout, Bot, Context
from domaeka.bots import dialogs
from domaeka.bots.api import Message
from domaeka.config import BotsSettings
from domaeka.texts_ko import FAILED_TEXT, NO_ANSWER_TEXT
from tests.bots_fakes import Served


class DialogTests(SynchronousTestCase):
    """Tests for L{Context.ask<domaeka.bots.api.Context.ask>}."""

    def setUp(self) -> None:
        self.bot = bot = Bot("dialogs")
        self.heard: list[str] = []

        @bot.command("# name")
        async def name(ctx: Context) -> str:
            answer = await ctx.ask("이름이 뭐예요?")
            return f"{answer.text}님 ({answer.sender.name})"

        @bot.command("# two")
        async def two(ctx: Context) -> str:
            first = await ctx.ask("하나?", timeout=5)
            second = await ctx.ask("둘?", timeout=5)
            return first.text + second.text

        @bot.command("# old", reactor=True)
        async def old(ctx: Context) -> str:
            return (await ctx.ask("뭐?")).text

        @bot.command("# number")
        async def number(ctx: Context) -> str:
            answer = await ctx.ask("몇?", check=lambda message: bool(int(message.text)) or True)
            return answer.text

        @bot.command("# caught")
        async def caught(ctx: Context) -> str:
            try:
                answer = await ctx.ask("", timeout=3, anyone=True)
            except AskTimeout:
                return "아무도"
            return answer.text

        @bot.on_message
        async def listen(ctx: Context) -> None:
            self.heard.append(ctx.message.text)

        settings = BotsSettings(bot_concurrency=2, room_concurrency=1, timeout=10.0)
        self.served = Served([bot], settings)
        self.origin = self.served.origin
        self.addCleanup(self.check_end)

    def check_end(self) -> None:
        """However a test goes, each message is done once, and nothing is left."""
        dispatcher = self.served.dispatcher
        dispatcher.close()
        self.assertEqual(sorted(map(id, self.origin.done)), sorted(map(id, self.served.said)))
        self.assertEqual(self.served.reactor.getDelayedCalls(), [])
        self.assertEqual(dispatcher.pending(), 0)

    def say(self, *texts: str, **more: Any) -> list[object]:
        """Somebody says all of it.  @return: the answers to it."""
        before = len(self.origin.texts)
        for text in texts:
            self.served.say(text, **more)
        return self.origin.texts[before:]

    def test_answer(self) -> None:
        """The next message of that person is the answer, on the loop and on the reactor."""
        self.assertEqual(self.say("# name", "김하늘"), ["이름이 뭐예요?", "김하늘님 (누구)"])
        self.assertEqual(self.say("# old", "그거"), ["뭐?", "그거"])
        self.assertEqual(self.say("# two", "가", "나"), ["하나?", "둘?", "가나"])
        self.assertEqual(self.heard, [])

    def test_others_may_talk(self) -> None:
        """Others, and other rooms, answer nothing; commands work, and the question waits on."""
        self.say("# name")
        self.say("남", user_hash="u2")
        self.say("다른 방", channel_id="2")
        self.assertEqual(self.say("# echo 잠깐"), ["잠깐"])
        self.assertEqual(self.heard, ["남", "다른 방"])
        self.assertEqual(self.say("나"), ["나님 (누구)"])

    def test_no_answer(self) -> None:
        """Who does not answer in time is told so, if the function does not catch it."""
        self.say("# two", "가")
        self.served.wait(6)
        self.assertEqual(self.origin.texts[-1], NO_ANSWER_TEXT)
        self.say("# caught")
        self.served.wait(4)
        self.assertEqual(self.origin.texts[-1], "아무도")
        self.assertEqual(self.served.failures, [])

    def test_anyone(self) -> None:
        """Whoever is first answers a question to all."""
        self.say("# caught")
        self.assertEqual(self.say("저요", user_hash="u9"), ["저요"])

    def test_check(self) -> None:
        """What does not fit is no answer; a check that fails ends the function."""
        bot = Bot("check")

        @bot.command("# ask")
        async def ask(ctx: Context) -> str:
            def fits(message: Message) -> bool:
                if message.text == "fail":
                    raise ValueError
                return message.text.isdigit()

            return (await ctx.ask("몇?", check=fits)).text

        served = Served([bot])
        self.addCleanup(served.dispatcher.close)
        for text in ("# ask", "다섯", "5", "# ask", "fail"):
            served.say(text)
        self.assertEqual(served.origin.texts, ["몇?", "5", "몇?", FAILED_TEXT])

    def test_one_question_of_a_person(self) -> None:
        """A newer question of a person in a room takes the older one's place."""
        self.say("# name")
        self.assertEqual(self.say("# two"), ["하나?"])
        self.assertEqual(self.say("가", "나"), ["둘?", "가나"])

    def test_no_place_is_held(self) -> None:
        """Questions that wait keep no message from its turn, and no time limit runs."""
        for number in range(5):
            self.say("# name", user_hash=f"u{number}")
        self.assertEqual(self.origin.texts, ["이름이 뭐예요?"] * 5)
        self.assertEqual(len(self.origin.done), 5)
        self.served.wait(30)
        self.assertEqual(self.say("나", user_hash="u3"), ["나님 (누구)"])

    def test_wrong_use(self) -> None:
        """Two questions of one message, a thread, a time that is none: errors of the author."""
        bot = Bot("wrong")

        @bot.command("# twice")
        async def twice(ctx: Context) -> None:
            await asyncio.gather(ctx.ask("하나?"), ctx.ask("둘?"))

        @bot.command("# thread")
        def thread(ctx: Context) -> None:
            ctx.ask("?")

        @bot.command("# never")
        async def never(ctx: Context) -> None:
            await ctx.ask("?", timeout=0)

        served = Served([bot])
        self.addCleanup(served.dispatcher.close)
        for text in ("# thread", "# never", "# twice"):
            served.say(text)
            while served.threads.calls:
                served.threads.work()
        self.assertEqual(served.origin.texts, [FAILED_TEXT, FAILED_TEXT, "하나?", FAILED_TEXT])
        self.assertEqual(served.dispatcher._dialogs.waiting, 0)

    def test_wrong_types(self) -> None:
        """A question that is no text, a check that is no plain function: errors of the author."""
        bot = Bot("wrong types")

        async def checks(message: Message) -> bool:
            return False

        wrong: dict[str, Any] = {
            "# text": {"text": 5},
            "# none": {"text": None},
            "# check": {"text": "?", "check": "답"},
            "# async": {"text": "?", "check": checks},
        }

        async def ask(ctx: Context) -> None:
            await ctx.ask(**wrong[ctx.message.text])

        for name in wrong:
            bot.command(name)(ask)
        served = Served([bot])
        self.addCleanup(served.dispatcher.close)
        for name in wrong:
            served.say(name)
        self.assertEqual(served.origin.texts, [FAILED_TEXT] * 4)
        self.assertEqual(served.dispatcher._dialogs.waiting, 0)

    def test_check_that_exits(self) -> None:
        """A check that ends by whatever error fails its function, at once."""
        for reactor in (False, True):
            for error in (SystemExit(1), StopIteration()):
                bot = Bot("checks")

                def fail(message: Message, error: BaseException = error) -> bool:
                    raise error

                @bot.command("# ask", reactor=reactor)
                async def ask(ctx: Context) -> None:
                    await ctx.ask("?", check=fail)

                served = Served([bot])
                self.addCleanup(served.dispatcher.close)
                served.say("# ask")
                served.say("답")
                self.assertEqual(served.origin.texts, ["?", FAILED_TEXT])

    def test_asked_too_late(self) -> None:
        """A task that its function has left behind hears that nobody can be asked any more."""
        bot = Bot("late")
        heard: list[str] = []

        @bot.command("# late")
        async def late(ctx: Context) -> None:
            async def ask() -> None:
                await asyncio.sleep(1)
                try:
                    await ctx.ask("?")
                except ValueError as error:
                    heard.append(str(error))

            self.later = asyncio.create_task(ask())

        served = Served([bot])
        self.addCleanup(served.dispatcher.close)
        served.say("# late")
        served.wait(1)
        self.assertEqual(heard, ["the function has ended: it asks no more"])

    def test_given_up(self) -> None:
        """A function that waits no longer leaves no question behind."""
        bot = Bot("given up")

        @bot.command("# short")
        async def short(ctx: Context) -> str:
            try:
                async with asyncio.timeout(2):
                    await ctx.ask("?")
            except TimeoutError:
                return "늦었어요"
            return "빨라요"

        @bot.command("# left")
        async def left(ctx: Context) -> str:
            self.task = asyncio.ensure_future(ctx.ask("?"))
            await asyncio.sleep(0)
            return "갑니다"

        served = Served([bot])
        self.addCleanup(served.dispatcher.close)
        served.say("# short")
        served.wait(2)
        served.say("# left")
        self.assertEqual(served.origin.texts, ["?", "늦었어요", "?", "갑니다"])
        self.assertEqual(served.dispatcher._dialogs.waiting, 0)

    def test_too_many(self) -> None:
        """Beyond the bounds of a room its oldest question ends; the others wait on."""
        self.patch(dialogs, "MAX_ROOM_QUESTIONS", 1)
        self.say("# name")
        told = self.say("# name", user_hash="u2")
        self.assertEqual(sorted(told), sorted(["이름이 뭐예요?", NO_ANSWER_TEXT]))
        self.assertEqual(self.say("나", user_hash="u2"), ["나님 (누구)"])

    def test_server_stops(self) -> None:
        """A stop ends what waits."""
        ends: list[str] = []
        bot = Bot("stops")

        @bot.command("# ask")
        async def ask(ctx: Context) -> None:
            try:
                await ctx.ask("?")
            finally:
                ends.append("end")

        @bot.command("# old")
        @inlineCallbacks
        def old(ctx: Context) -> Any:
            try:
                yield ctx.ask("?")
            finally:
                ends.append("end")

        served = Served([bot])
        served.say("# ask")
        served.say("# old", user_hash="u2")
        served.dispatcher.close()
        self.assertEqual(ends, ["end", "end"])

    def test_many_go_on(self) -> None:
        """However many wait to go on with their answers, all do, one after the other."""
        bot, waits = Bot("many"), list[Deferred[None]]()

        @bot.command("# ask")
        @inlineCallbacks
        def ask(ctx: Context) -> Any:
            return (yield ctx.ask("")).text

        @bot.command("# slow", reactor=True)
        def slow(ctx: Context) -> Deferred[None]:
            waits.append(Deferred())
            return waits[-1]

        served = Served([bot], BotsSettings(bot_concurrency=2, room_concurrency=1))
        people = [f"u{number}" for number in range(150)]
        for person in people:
            served.say("# ask", user_hash=person)
        served.say("# slow", user_hash="slow")
        for person in people:
            served.say("answer", user_hash=person)
        waits[0].callback(None)
        self.assertEqual(served.origin.texts, ["answer"] * 150)
        self.assertEqual(served.dispatcher.pending(), 0)
