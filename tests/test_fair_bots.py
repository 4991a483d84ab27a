"""What bots share: nobody takes from other phones, rooms and people."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, Context, cooldown
from domaeka.bots import dialogs, gate
from domaeka.bots.breakers import MAX_GUARDS
from domaeka.bots.coroutines import BotLoop
from domaeka.bots.dispatch import WAIT_SECONDS
from domaeka.bots.fair_queue import MAX_WAITING_PER_PHONE, Place
from domaeka.bots.link import MAX_WAITING
from domaeka.bots.patterns import AVOID_SECONDS, MAX_BROKEN_OFF, MAX_OF_A_ROOM, Searches, search
from domaeka.bots.routing import Router
from domaeka.bots.threads import (
    MAX_HANGING,
    MAX_OF_A_PERSON,
    MAX_PHONE_HANGING,
    MAX_ROOM_HANGING,
    MAX_THREADS,
    CommandThreads,
    ThreadsBusy,
)
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.errors import SendRefused, StorageFull
from domaeka.gateway.flow import throttle
from domaeka.interfaces import DeviceKey
from domaeka.metrics import Metrics
from domaeka.policies.retry import BreakerState
from domaeka.pools import Pool
from domaeka.store import bot_values
from domaeka.store.bot_values import BotValues
from domaeka.testing import host
from domaeka.testing.host import MemoryValues
from domaeka.texts_ko import BUSY_TEXT, FAILED_TEXT, LATE_TEXT, NO_ANSWER_TEXT, OPEN_TEXT
from tests.bots_fakes import FakeOrigin, Outside, Served, make_chat
from tests.fairness import FairCase
from tests.storing import StoreTestCase
from tests.test_bots_threads import PATIENCE, QueueReactor


class FairBotsCase(SynchronousTestCase, FairCase):
    """A server with a bot, a phone of strangers, and an innocent phone."""

    settings = BotsSettings(timeout=300.0)

    def setUp(self) -> None:
        self.metrics = Metrics()
        self.outside = outside = Outside()
        self.bot = bot = Bot("shop")

        @bot.command("# slow", reactor=True)
        async def slow(ctx: Context) -> Any:
            return await outside.wait(ctx.sender.hash or ctx.room.id)

        @bot.command("# other", reactor=True)
        async def other(ctx: Context) -> Any:
            return await outside.wait(ctx.message.args)

        @bot.command("# price", reactor=True)
        async def price(ctx: Context) -> str:
            if ctx.message.args == "broken":
                raise KeyError
            return f"{int(ctx.message.args)} won"

        self.add_commands(bot)
        self.served = Served(
            [bot],
            self.settings,
            BreakerSettings(),
            gave_way=self.metrics.pools.gave_way,
        )
        self.dispatcher = self.served.dispatcher
        self.addCleanup(self.dispatcher.close)
        self.strangers = FakeOrigin(device_id="strangers")
        self.phone = FakeOrigin(device_id="innocent")

    def add_commands(self, bot: Bot) -> None:
        """More of them, before the server begins."""

    def say(
        self, text: str, room: str, person: str | None, origin: FakeOrigin | None = None
    ) -> list[object]:
        """Somebody says something, on the strangers' phone by default.  @return: the answers."""
        origin = origin or self.strangers
        before = len(origin.texts)
        self.dispatcher.submit(make_chat(text, room, person), origin)
        return origin.texts[before:]

    def assert_served(self, room: str = "home", person: str | None = "honest") -> None:
        """Somebody else is answered at once, on either phone, whatever he asks."""
        for origin in (self.phone, self.strangers):
            self.assertEqual(self.say("# price 3", room, person, origin), ["3 won"])
            self.say("# other mine", room, person, origin)
            self.assertEqual(self.outside.names[-1], "mine")
            self.outside.waiting[-1].callback("here")
            self.assertEqual(origin.texts[-1], "here")


class BreakerTests(FairBotsCase):
    """Failures of some people and rooms."""

    pools = (Pool.BOT_BREAKERS,)

    def test_wrong_arguments_of_a_person(self) -> None:
        """They count for that person, who is told; the room and all others go on."""
        answers = [self.say("# price x", "their", "stranger") for _ in range(7)]
        self.assertEqual(answers, [[FAILED_TEXT]] * 5 + [[OPEN_TEXT], []])
        self.assertEqual(self.say("# price 3", "their", "neighbour"), ["3 won"])
        self.assert_served()

    def test_wrong_arguments_of_many(self) -> None:
        """However many people of however many rooms type what does not fit."""
        for number in range(100):
            self.say("# price x", f"r{number % 20}", f"u{number}")
        self.assertEqual(self.say("# price 3", "r1", "neighbour"), ["3 won"])
        self.assert_served()

    def test_one_person_in_many_rooms(self) -> None:
        """It is left alone for that person in each of them, and for nobody else."""
        for number in range(100):
            self.say("# price broken", f"r{number % 20}", "stranger")
        self.assertEqual(self.say("# price 3", "r1", "stranger"), [OPEN_TEXT])
        self.assertEqual(self.say("# price 3", "r1", "neighbour"), ["3 won"])
        self.assert_served()

    def test_many_people_of_a_room(self) -> None:
        """It is left alone for that room."""
        for number in range(5):
            self.say("# price broken", "their", f"u{number}")
        self.assertEqual(self.say("# price 3", "their", "u9"), [OPEN_TEXT])
        self.assert_served()

    def test_room_whose_people_are_not_known(self) -> None:
        """The room stands for its people."""
        for _ in range(5):
            self.say("# price broken", "their", None)
        self.assertEqual(self.say("# price 3", "their", None), [OPEN_TEXT])
        self.assert_served()
        self.assert_served(person=None)

    def test_several_rooms(self) -> None:
        """What fails for different people in five rooms, and for none succeeds, is left alone."""
        for number in range(5):
            self.say("# price broken", f"r{number}", f"u{number}")
        self.assertEqual(self.say("# price 3", "home", "honest", self.phone), [OPEN_TEXT])
        self.served.wait(60)
        self.assertEqual(self.say("# price 3", "home", "honest", self.phone), ["3 won"])
        self.assert_served()

    def test_several_rooms_while_it_works(self) -> None:
        """Where it succeeds for others meanwhile, it is theirs that do not work."""
        for number in range(40):
            self.say("# price broken", f"r{number}", f"u{number}")
            self.assertEqual(self.say("# price 3", "home", "honest", self.phone), ["3 won"])

    def test_bots_with_one_command(self) -> None:
        """Each has a breaker of its own."""
        bots = [Bot("one", rooms=["1"]), Bot("two", rooms=["2"])]
        for bot in bots:

            @bot.command("# same", reactor=True)
            async def same(ctx: Context) -> str:
                return str({"works": "it works"}[ctx.message.args])

        self.dispatcher.apply(bots, self.settings, BreakerSettings())
        for number in range(5):
            self.say("# same not", "1", f"u{number}")
        self.assertEqual(self.say("# same works", "1", "u9"), [OPEN_TEXT])
        self.assertEqual(self.say("# same works", "2", "u9"), ["it works"])

    def test_books_are_bounded(self) -> None:
        """Whoever failed first is forgotten first; others lose nothing by it."""
        for number in range(MAX_GUARDS + 10):
            self.say("# price x", "their", f"u{number}")
        command = next(one for one in self.bot.commands if one.name == "# price")
        breaker = self.dispatcher.breaker(command)
        self.assertLessEqual(len(breaker._guards), MAX_GUARDS)
        self.assert_gave_way(self.metrics, Pool.BOT_BREAKERS)
        self.assert_served()
        self.served.wait(61)
        for _ in range(MAX_GUARDS):
            self.assertEqual(self.say("# price 3", "home", "honest"), ["3 won"])
        self.assertEqual(breaker._guards, {})
        self.assertIs(breaker.state, BreakerState.CLOSED)


class CooldownTests(FairBotsCase):
    """People whose calls are counted."""

    pools = (Pool.BOT_COOLDOWNS,)

    def add_commands(self, bot: Bot) -> None:
        @bot.command("# once", cooldown=cooldown(1, 60), reactor=True)
        async def once(ctx: Context) -> str:
            return "here"

    def test_many_people(self) -> None:
        """However many call, others may as often as they might; somebody else's time is over."""
        self.patch(gate, "MAX_WINDOWS", 10)
        for number in range(30):
            self.assertEqual(self.say("# once", "their", f"u{number}"), ["here"])
        self.assertNotEqual(self.say("# once", "their", "u29"), ["here"])
        for origin in (self.phone, self.strangers):
            room = f"home of {origin.key.device_id}"
            self.assertEqual(self.say("# once", room, "honest", origin), ["here"])
        self.assert_gave_way(self.metrics, Pool.BOT_COOLDOWNS, 20)


class SlotTests(FairBotsCase):
    """Commands that are slow, or hang."""

    pools = (Pool.BOT_SLOTS,)

    def test_one_person_in_many_rooms(self) -> None:
        """He has a third of the places, and the log says who is held back."""
        for number in range(60):
            self.say(("# slow", "# other")[number % 2], f"r{number // 6}", "stranger")
        self.assertEqual(len(self.outside.names), 10)
        self.assert_gave_way(self.metrics, Pool.BOT_SLOTS)
        self.assert_served()

    def test_many_people_in_ten_rooms(self) -> None:
        """They leave a place to another room, for the same command, too."""
        for number in range(60):
            self.say("# slow", f"r{number // 6}", f"u{number}")
        self.assertEqual(len(self.outside.names), 12)
        for person in ("honest", None):
            self.say("# slow", "home", person)
            self.outside.waiting[-1].callback("done")
            self.assertEqual(self.strangers.texts[-1], "done")
            self.assert_served(person=person)

    def test_a_command_that_hangs(self) -> None:
        """Wherever it is used, it leaves places to other commands, and half to other phones."""
        for number in range(300):
            self.say("# slow", f"r{number}", f"u{number}")
        self.assertEqual(len(self.outside.names), 13)
        self.assert_served()

    def test_a_phone(self) -> None:
        """It has half of the places, the last of them for yet another command."""
        for number in range(300):
            self.say(("# slow", "# other")[number % 2], f"r{number}", f"u{number}")
        self.assertEqual(len(self.outside.names), 14)
        self.assertEqual(self.say("# price 3", "home", "honest", self.phone), ["3 won"])

    def test_rooms_whose_people_are_not_known(self) -> None:
        """Likewise, where a phone knows no hashes."""
        for number in range(60):
            self.say("# slow", f"r{number % 10}", None)
        self.assert_served(person=None)

    def test_several_phones(self) -> None:
        """Each takes half of what is left: four greedy ones leave places."""
        for phone in range(4):
            origin = FakeOrigin(device_id=f"p{phone}")
            for number in range(60):
                text = "# slow" if number % 2 else "# other"
                self.say(text, f"r{number}", f"u{number}", origin)
        self.assertLess(len(self.outside.names), 30)
        self.assertEqual(self.say("# price 3", "home", "honest", self.phone), ["3 won"])


class ResumeTests(FairBotsCase):
    """Answers to questions, whose functions go on slowly."""

    pools = (Pool.BOT_SLOTS,)

    def add_commands(self, bot: Bot) -> None:
        outside = self.outside

        @bot.command("# ask", reactor=True)
        async def ask(ctx: Context) -> Any:
            await ctx.ask("?")
            return await outside.wait("goes on")

    def test_they_go_on_in_their_turn(self) -> None:
        """Who answers in many rooms at once has no more places than others."""
        for number in range(20):
            self.say("# ask", f"r{number}", "stranger")
        for number in range(20):
            self.say("here", f"r{number}", "stranger")
        self.assertEqual(self.outside.names, ["goes on"] * 10)
        self.assert_served()
        self.outside.waiting[0].callback("done")
        self.assertEqual(self.outside.names.count("goes on"), 11)
        self.served.wait(int(WAIT_SECONDS) + 1)
        self.assertEqual(self.strangers.texts.count(LATE_TEXT), 9)
        self.assertEqual(self.dispatcher.pending(), 10)
        self.assert_served()


class WaitingTests(FairBotsCase):
    """Messages that wait for their turn."""

    pools = (Pool.BOT_WAITING,)

    def flood(self, person: Callable[[int], str | None], rooms: int = 10) -> None:
        for number in range(3 * MAX_WAITING_PER_PHONE):
            self.say("# slow", f"r{number % rooms}", person(number))

    def test_whoever_has_most_gives_way(self) -> None:
        """Others find room to wait, and are served in their turn."""
        self.flood(lambda number: "stranger")
        for _ in range(4):
            self.say("# slow", "home", "honest")
        told = {reply.channel_id for reply in self.strangers.replies}
        self.assertNotIn("home", told)
        self.assertEqual(self.outside.names[-1], "honest")
        for _ in range(3):
            self.outside.waiting[-1].callback("done")
            self.assertEqual(self.outside.names[-1], "honest")
        self.assert_gave_way(self.metrics, Pool.BOT_WAITING)

    def test_another_person_of_the_room(self) -> None:
        """He does not wait behind all of them."""
        self.flood(lambda number: "stranger", rooms=1)
        self.say("# slow", "r0", "honest")
        self.outside.waiting[0].callback("done")
        self.outside.waiting[1].callback("done")
        self.assertIn("honest", self.outside.names)

    def test_nobody_stops_a_phone(self) -> None:
        """What waits is less than what would have the phone not be read from, or not again."""
        for person in (lambda number: f"u{number}", lambda number: None):
            self.flood(person)
        least = throttle.PENDING_MESSAGES // 2 - throttle.BATCH_MESSAGES // 2
        self.assertLess(self.dispatcher.pending(), least)
        self.assert_served()

    def test_long_texts(self) -> None:
        """Nor do long texts, which leave room for short ones."""
        for number in range(200):
            self.say("# slow " + "가" * 60_000, f"r{number % 20}", f"u{number}")
        phone = self.dispatcher._queue.bots["봇"].phones["strangers"]
        self.assertLess(phone.chars, throttle.PENDING_CHARS // 2)
        self.assert_served()

    def test_time_to_live(self) -> None:
        """What waits too long is told so, whoever holds the places."""
        for _ in range(4):
            self.say("# slow", "their", "stranger")
        self.served.wait(int(WAIT_SECONDS) - 1)
        self.assertEqual(self.strangers.texts, [])
        self.served.wait(2)
        self.assertEqual(self.strangers.texts, [LATE_TEXT])
        self.assertEqual(len(self.strangers.done), 1)


HANG = "ThreadTests.hang"


class Given:
    """A command's context.  @ivar in_queue: as L{domaeka.bots.runs.Run.in_queue}."""

    def __init__(self, device_id: str, room: str, person: str) -> None:
        self.in_queue = Place(DeviceKey("봇", device_id), room, person, "command")


class ThreadTests(SynchronousTestCase, FairCase):
    """Plain functions that do not come back, in real threads."""

    pools = (Pool.BOT_THREADS,)

    def setUp(self) -> None:
        self.reactor = QueueReactor()
        self.threads = CommandThreads(self.reactor)
        self.release = threading.Event()
        self.addCleanup(self.release.set)

    def hang(self, *given: Any) -> None:
        self.release.wait(PATIENCE)

    def assert_goes_on(self) -> None:
        """Another function is called at once."""
        result = self.threads.call(threading.get_ident)
        self.reactor.run_one()
        self.assertNotEqual(self.successResultOf(result), threading.get_ident())

    def test_half_of_the_threads(self) -> None:
        """A function that is slow leaves threads to others."""
        for _ in range(2 * MAX_THREADS):
            self.threads.call(self.hang)
        self.assert_goes_on()

    def test_replaced(self) -> None:
        """Threads that hang are replaced, counted, and then their function is not called."""
        hanging = 0
        while True:
            result = self.threads.call(self.hang)
            if result.called:
                self.failureResultOf(result, ThreadsBusy)
                break
            result.cancel()
            self.failureResultOf(result, CancelledError)
            hanging += 1
        self.assertEqual(hanging, MAX_HANGING // 2)
        said = self.threads.health()
        self.assertEqual(said, f"{hanging} threads hang, the first of them in {HANG}")
        self.assert_goes_on()
        self.release.set()
        for _ in range(hanging):
            self.reactor.run_one()
        self.assertIsNone(self.threads.health())
        self.threads.call(self.hang)
        self.reactor.run_one()

    def hang_for(self, room: str, person: str) -> "Deferred[Any]":
        """A call for somebody, which hangs where it may begin; it is broken off."""
        result = self.threads.call(self.hang, Given("strangers", room, person))
        result.addErrback(lambda failure: failure.trap(CancelledError)).cancel()
        return result

    def assert_others_are_called(self) -> None:
        """The same function is called for others."""
        self.release.set()
        for given in (Given("innocent", "home", "honest"), "other"):
            result = self.threads.call(self.hang, given)
            while not result.called:
                self.reactor.run_one()
            self.successResultOf(result)

    def test_of_a_person(self) -> None:
        """Somebody for whom a function hangs has no more calls of it in any room; others have."""
        for number in range(MAX_OF_A_PERSON):
            self.hang_for(f"r{number}", "stranger")
        self.failureResultOf(self.hang_for("r9", "stranger"), ThreadsBusy)
        self.assertEqual(self.threads.health(), "3 threads hang, the first of them in " + HANG)
        self.assert_others_are_called()

    def test_at_once_of_a_person(self) -> None:
        """He has three threads for a function before any of them hangs; others have theirs."""
        for number in range(MAX_THREADS):
            self.threads.call(self.hang, Given("strangers", f"r{number}", "stranger"))
        pool = self.threads._pool
        assert pool is not None
        self.assertEqual(len(pool.threads), MAX_OF_A_PERSON)
        self.assert_others_are_called()

    def test_of_a_room(self) -> None:
        """So it is for the people of a room together."""
        for number in range(MAX_ROOM_HANGING):
            self.hang_for("their", f"u{number}")
        self.failureResultOf(self.hang_for("their", "u9"), ThreadsBusy)
        self.assert_others_are_called()

    def test_of_a_phone(self) -> None:
        """So it is for a phone, whatever its rooms."""
        for number in range(MAX_PHONE_HANGING):
            self.hang_for(f"r{number}", f"u{number}")
        self.failureResultOf(self.hang_for("r99", "u99"), ThreadsBusy)
        self.assert_others_are_called()

    def test_in_a_coroutine(self) -> None:
        """A thread that a coroutine asks for is of those for whom it runs."""
        loop = BotLoop(self.reactor, self.threads)
        self.addCleanup(loop.close)
        ended: list[Any] = []

        async def wait(given: Given) -> None:
            async with asyncio.timeout(0.01):
                await asyncio.to_thread(self.hang)

        stranger = Given("strangers", "r1", "stranger")
        for number in range(1, MAX_OF_A_PERSON + 2):
            loop.call(wait, (stranger,), lambda about, outcome: ended.append(outcome), stranger)
            while len(ended) < number:
                self.reactor.run_one()
        self.assertIsInstance(ended[-1].value, ThreadsBusy)
        self.assert_others_are_called()

    def test_a_loop_waits_no_longer(self) -> None:
        """A thread for C{asyncio.to_thread} that nobody waits for counts as hanging."""
        loop = BotLoop(self.reactor, self.threads)
        self.addCleanup(loop.close)

        async def wait() -> None:
            async with asyncio.timeout(0.01):
                await asyncio.to_thread(self.hang)

        ended: list[object] = []
        loop.call(wait, (), lambda about, outcome: ended.append(outcome))
        while not ended or not self.threads.health():
            self.reactor.run_one()
        self.assertIn("1 threads hang, the first of them in Thread", str(self.threads.health()))

    def test_is_told(self) -> None:
        """A message for which there is no thread is told so, and counts for no breaker."""
        metrics = Metrics()
        bot = Bot("shop")

        @bot.command("# plain", reactor=True)
        async def plain(ctx: Context) -> None:
            raise ThreadsBusy("hangs")

        served = Served([bot], gave_way=metrics.pools.gave_way)
        self.addCleanup(served.dispatcher.close)
        for _ in range(6):
            served.say("# plain")
        self.assertEqual(served.origin.texts, [BUSY_TEXT] * 6)
        self.assert_gave_way(metrics, Pool.BOT_THREADS, 6)


class QuestionTests(FairBotsCase):
    """Questions that wait for people."""

    pools = (Pool.BOT_QUESTIONS,)

    def setUp(self) -> None:
        self.patch(dialogs, "MAX_QUESTIONS", 40)
        self.patch(dialogs, "MAX_ROOM_QUESTIONS", 20)
        self.patch(dialogs, "MAX_PERSON_QUESTIONS", 10)
        super().setUp()

    def add_commands(self, bot: Bot) -> None:
        @bot.command("# ask", reactor=True)
        async def ask(ctx: Context) -> str:
            answer = await ctx.ask("?")
            return f"you said {answer.text}"

    def assert_asked(self) -> None:
        """Somebody else is asked, and goes on with the answer."""
        for origin in (self.phone, self.strangers):
            room = f"home of {origin.key.device_id}"
            self.assertEqual(self.say("# ask", room, "honest", origin), ["?"])

    def assert_answered(self) -> None:
        for origin in (self.phone, self.strangers):
            room = f"home of {origin.key.device_id}"
            self.assertEqual(self.say("yes", room, "honest", origin), ["you said yes"])

    def check(self, person: Callable[[int], str], room: Callable[[int], str]) -> None:
        self.assert_asked()
        for number in range(100):
            self.say("# ask", room(number), person(number))
        self.assertLessEqual(self.dispatcher._dialogs.waiting, 40)
        self.assertIn(NO_ANSWER_TEXT, self.strangers.texts)
        self.assert_answered()
        self.assert_asked()
        self.assert_answered()
        self.assert_gave_way(self.metrics, Pool.BOT_QUESTIONS)

    def test_of_a_person(self) -> None:
        self.check(lambda number: "stranger", lambda number: f"r{number}")

    def test_of_a_room(self) -> None:
        self.check(lambda number: f"u{number}", lambda number: "their")

    def test_of_a_phone(self) -> None:
        self.check(lambda number: f"u{number}", lambda number: f"r{number % 5}")

    def test_long_texts(self) -> None:
        """The text that a function has been given is kept with its question, and counts."""
        self.patch(dialogs, "MAX_QUESTIONS", 400)
        self.assert_asked()
        for number in range(100):
            self.say("# ask " + "가" * 9_500, f"r{number}", f"u{number}")
        self.assertLessEqual(self.dispatcher._dialogs.waiting, 42)
        self.assert_answered()


class PatternTests(SynchronousTestCase, FairCase):
    """Regular expressions of listeners, in texts that strangers made for them."""

    pools = (Pool.BOT_PATTERNS,)
    bad: ClassVar[str] = "a" * 100 + "!"

    def setUp(self) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.searched = 0
        self.bot = Bot("shop")
        self.bot.on_message(pattern="(a+)+$")(lambda ctx: None)
        searches = Searches(lambda: self.now, self.metrics.pools.gave_way, self.search)
        self.router = Router([self.bot], searches=searches)

    def search(self, pattern: Any, text: str) -> bool | None:
        self.searched += 1
        return None if text == self.bad else search(pattern, text)

    def finds(self, text: str, person: str | None, room: str = "their") -> bool:
        return self.router.find(make_chat(text, room, person), DeviceKey("봇", "d1")) is not None

    def test_is_broken_off(self) -> None:
        """A search that would take longer than the sun burns ends."""
        pattern: Any = self.bot.handlers.all()[0].takes
        self.assertIsNone(search(pattern.pattern, self.bad))
        self.assertIs(search(pattern.pattern, "aaa"), True)
        self.assertIs(search(pattern.pattern, "b"), False)

    def test_person_is_avoided(self) -> None:
        """His messages are not searched for that pattern for a while; others' are."""
        self.finds(self.bad, "stranger")
        self.assertFalse(self.finds("aaa", "stranger"))
        self.assertEqual(self.searched, 1)
        self.assertTrue(self.finds("aaa", "honest"))
        self.assert_gave_way(self.metrics, Pool.BOT_PATTERNS)
        self.now += AVOID_SECONDS
        self.assertTrue(self.finds("aaa", "stranger"))

    def test_person_in_many_rooms(self) -> None:
        """He is avoided in all of them; others are not."""
        for number in range(20):
            self.finds(self.bad, "stranger", f"r{number}")
        self.assertEqual(self.searched, 1)
        self.assertTrue(self.finds("aaa", "honest", "r1"))

    def test_many_people_of_a_room(self) -> None:
        """The room is avoided; others are not."""
        for number in range(20):
            self.finds(self.bad, f"u{number}")
        self.assertEqual(self.searched, MAX_OF_A_ROOM)
        self.assertTrue(self.finds("aaa", "honest", "home"))
        self.now += AVOID_SECONDS
        self.assertTrue(self.finds("aaa", "honest"))

    def test_many_people(self) -> None:
        """They cost a bounded time: then the pattern is not searched for, for a while."""
        for number in range(100):
            self.finds(self.bad, f"u{number}", f"r{number % 20}")
        self.assertEqual(self.searched, MAX_BROKEN_OFF)
        self.now += AVOID_SECONDS
        self.assertTrue(self.finds("aaa", "honest"))


class CallTests(FairBotsCase):
    """Calls of a bot for its server that wait."""

    pools = (Pool.BOT_CALLS,)

    def test_of_a_room(self) -> None:
        """A room has no more of them than are left; others have theirs."""
        serving: Any = self.served.host.host
        serving.gave_way = self.metrics.pools.gave_way
        self.patch(serving.values, "get", lambda *args: Deferred())
        store = self.bot.store.scoped("room:their")
        waiting = [store.get("key") for _ in range(MAX_WAITING // 2)]
        self.assertRaises(SendRefused, store.get, "key")
        self.assert_gave_way(self.metrics, Pool.BOT_CALLS)
        waiting.append(self.bot.store.scoped("room:home").get("key"))
        answer = self.bot.store.scoped("room:home").set("key", 1)
        self.assertIsNone(answer.result(timeout=0))


class ValueTests(StoreTestCase, FairCase):
    """Values that a bot keeps for rooms and people."""

    pools = (Pool.BOT_VALUES,)

    def setUp(self) -> None:
        super().setUp()
        self.metrics = Metrics()
        self.start()

    def check(self, values: Any, value: bytes) -> None:
        """A room stores all that it can; another one has room, and it can still remove."""
        for number in range(100):
            stored = values.set("shop", "room:their", f"k{number:03}", value)
            if stored.addErrback(lambda failure: failure.trap(StorageFull)).result is not None:
                break
        self.assertEqual(number, 10)
        for scope in ("room:home", "person:1/2", ""):
            self.assertIsNone(self.successResultOf(values.set("shop", scope, "k000", value)))
        self.failureResultOf(values.incr("shop", "room:their", "new"), StorageFull)
        self.assertTrue(self.successResultOf(values.delete("shop", "room:their", "k000")))

    def test_number(self) -> None:
        """It holds no more values than are left."""
        for module in (bot_values, host):
            self.patch(module, "MAX_VALUES", 20)
        self.check(BotValues(self.database, self.clock, self.metrics.pools.gave_way), b"1")
        self.assert_gave_way(self.metrics, Pool.BOT_VALUES, 2)
        self.check(MemoryValues(), b"1")

    def test_bytes(self) -> None:
        """Nor more bytes."""
        for module in (bot_values, host):
            self.patch(module, "MAX_BYTES", 2000)
        self.check(BotValues(self.database, self.clock), b"1" * 96)
        self.check(MemoryValues(), b"1" * 96)
