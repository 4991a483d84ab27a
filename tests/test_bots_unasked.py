"""Tests for L{domaeka.bots.unasked}, C{link} and C{sending}: what bots send unasked."""

import asyncio
import gc
from collections.abc import Callable
from threading import Event, Thread
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from domaeka import AmbiguousRoom, Bot, NoRoom, NoServer, Receipt, SendRefused
from domaeka.bots.api import Context
from domaeka.bots.coroutines import BotLoop
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.link import MAX_WAITING, Answer
from domaeka.bots.threads import CommandThreads
from domaeka.bots.unasked import READY_SECONDS, BotHost
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.interfaces import Approval, DeviceKey, NotSent, RoomKey
from domaeka.testing.host import MemoryHost, MemoryRoom
from domaeka.wire import Media
from tests import forget_after
from tests.bots_fakes import FakeOrigin, Served, make_chat
from tests.integration.support import reactor, sleep

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


class UnaskedCase(SynchronousTestCase):
    """Has a bot that is served."""

    def setUp(self) -> None:
        forget_after(self)
        self.bot = Bot("news")
        self.served = Served([self.bot])
        self.rooms = self.served.host.rooms

    def logged(self) -> Callable[[], str]:
        """@return: gives what is logged from now on, as text."""
        events: list[Any] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        return lambda: "\n".join(formatEvent(each) for each in events)

    def sent_to(self, *args: Any, **named: Any) -> tuple[str, str | None, str | None]:
        """Send something.  @return: the bot name, the device and the channel id that it went to."""
        self.bot.send(*args, **named).result()
        to = self.rooms.sent[-1].destination
        return to.bot_name, to.device_id, to.channel_id


class RoomTests(UnaskedCase):
    """Which room and phone a message goes to."""

    def test_by_channel_id(self) -> None:
        """The phone on which the room was last heard, whatever its bot name."""
        self.rooms.hear("1001", "방", "봇", last_heard=5.0)
        self.rooms.hear("1001", "방", "봇2", last_heard=9.0)
        self.assertEqual(self.sent_to("1001", "안녕"), ("봇2", None, "1001"))
        self.rooms.hear("1001", "방", "봇3", approval=Approval.PENDING, last_heard=10.0)
        self.assertEqual(self.sent_to("1001", "안녕"), ("봇2", None, "1001"))

    def test_another_phone(self) -> None:
        """The phone that is named, of the bot name that heard the room on it."""
        self.rooms.hear("1001", "방", "봇", "d1", last_heard=9.0)
        self.rooms.hear("1001", "방", "봇2", "d2", last_heard=5.0)
        self.assertEqual(self.sent_to("1001", "안녕", device="d2"), ("봇2", "d2", "1001"))
        self.assertEqual(self.sent_to("1001", "안녕", device="d3"), ("봇", "d3", "1001"))

    def test_among_its_names(self) -> None:
        """A bot with names sends over their phones only."""
        self.rooms.hear("1001", "방", "봇", last_heard=5.0)
        self.rooms.hear("1001", "방", "봇2", last_heard=9.0)
        self.bot.names = frozenset(["봇"])
        self.assertEqual(self.sent_to("1001", "안녕")[0], "봇")
        self.bot.names = frozenset(["봇3"])
        self.assertRaises(NoRoom, self.bot.send("1001", "안녕").result)

    def test_by_title(self) -> None:
        """
        A title will do where one room alone has it, on however many phones, those that an operator
        has refused apart.
        """
        self.rooms.hear("1001", "방", "봇", last_heard=9.0)
        self.rooms.hear("1001", "방", "봇2", last_heard=5.0)
        self.rooms.hear("1002", "방", approval=Approval.DENIED)
        self.assertEqual(self.sent_to("방", "안녕"), ("봇", None, "1001"))
        self.rooms.hear("1003", "방")
        error = self.assertRaises(AmbiguousRoom, self.bot.send("방", "안녕").result)
        self.assertEqual(error.candidates, ("1001", "1003"))
        self.assertNotIn("방", str(error))

    def test_title_is_all_that_is_known(self) -> None:
        """A room whose id no phone knows is sent to by its title."""
        device = DeviceKey("봇", "d1")
        self.rooms.rooms.append(MemoryRoom(RoomKey("봇", "친구"), "친구", device))
        self.assertEqual(self.sent_to("친구", "안녕"), ("봇", None, None))
        self.assertEqual(self.rooms.sent[-1].destination.room, "친구")
        self.rooms.rooms.append(MemoryRoom(RoomKey("봇2", "친구"), "친구", device))
        self.assertRaises(AmbiguousRoom, self.bot.send("친구", "안녕").result)

    def test_title_of_a_stranger_beside_it(self) -> None:
        """Its phone tells it apart from a room of the same title on another one."""
        self.rooms.rooms.append(MemoryRoom(RoomKey("봇", "친구"), "친구", DeviceKey("봇", "old")))
        self.rooms.hear("1003", "친구")
        self.assertRaises(AmbiguousRoom, self.bot.send("친구", "안녕").result)
        self.bot.send("친구", "안녕", device="old").result()
        destination = self.rooms.sent[-1].destination
        self.assertEqual(destination, ("봇", "old", "친구", None))

    def test_title_that_looks_like_an_id(self) -> None:
        """Nobody takes the place of a room by giving another one its id as a title."""
        self.rooms.hear("1001", "방")
        self.rooms.hear("1002", "1001")
        self.assertEqual(self.sent_to("1001", "안녕")[2], "1001")
        self.rooms.hear("1003", "1004")
        self.assertRaises(NoRoom, self.bot.send("1004", "안녕").result)

    def test_no_room(self) -> None:
        """A room that is not known, or not approved."""
        self.assertRaises(NoRoom, self.bot.send("1001", "안녕").result)
        self.assertRaises(NoRoom, self.bot.send("방", "안녕").result)
        self.rooms.hear("1001", "방", approval=Approval.PENDING)
        error = self.assertRaises(SendRefused, self.bot.send("방", "안녕").result)
        self.assertEqual(error.why, "NOT_APPROVED")

    def test_refused(self) -> None:
        """What the server says is told as an error of its own, with its code."""
        self.rooms.hear("1001", "방")
        self.rooms.refuse = NotSent.QUEUE_FULL
        error = self.assertRaises(SendRefused, self.bot.send("1001", "안녕").result)
        self.assertEqual(error.why, "QUEUE_FULL")


class SendTests(UnaskedCase):
    """Sending from everywhere."""

    def setUp(self) -> None:
        super().setUp()
        self.rooms.hear("1001", "방")

    def test_everywhere(self) -> None:
        """From the loop, the reactor and a thread: the receipt has an id, and knows its state."""
        got: list[object] = []

        @self.bot.command("# loop")
        async def on_loop(ctx: Context) -> None:
            receipt = await self.bot.send("1001", "loop", ttl=30)
            got.append((receipt.id, await receipt.status()))

        @self.bot.command("# reactor", reactor=True)
        async def on_reactor(ctx: Context) -> None:
            receipt = await self.bot.send("1001", "reactor")
            got.append((receipt.id, await receipt.status()))

        @self.bot.command("# thread")
        def in_thread(ctx: Context) -> None:
            receipt = self.bot.send("1001", "thread").result()
            got.append((receipt.id, receipt.status().result()))

        self.served = served = Served([self.bot])
        served.host.rooms.hear("1001", "방")
        served.say("# loop")
        served.say("# reactor")
        served.say("# thread")
        served.threads.work()
        self.assertEqual(got, [("1", "sent"), ("2", "sent"), ("3", "sent")])
        texts = [("1001", "loop"), ("1001", "reactor"), ("1001", "thread")]
        self.assertEqual(served.host.rooms.texts, texts)
        self.assertEqual(served.host.rooms.sent[0].ttl, 30)

    def test_media(self) -> None:
        """Files; those that must be read are read in a thread."""
        path = self.mktemp() + ".png"
        with open(path, "wb") as file:
            file.write(PNG)
        self.bot.send_media("1001", PNG).result()
        answer = self.bot.send_media("1001", [path], kind="image")
        self.assertFalse(answer.done())
        self.served.threads.work()
        answer.result()
        for sent in self.rooms.sent:
            self.assertIsInstance(sent.contents[0], Media)
        missing = self.bot.send_media("1001", path + "x")
        self.served.threads.work()
        self.assertRaises(OSError, missing.result)

    def test_wrong(self) -> None:
        """What cannot be sent is an error where it is called."""
        send: Any = self.bot.send
        for args, named, kind in (
            (("1001", 5), {}, TypeError),
            (("1001", ""), {}, ValueError),
            ((1001, "안녕"), {}, TypeError),
            (("", "안녕"), {}, ValueError),
            (("1001", "안녕"), {"ttl": -1}, ValueError),
            (("1001", "안녕"), {"ttl": "1"}, TypeError),
            (("1001", "안녕"), {"device": 1}, TypeError),
        ):
            self.assertRaises(kind, send, *args, **named)
        self.assertRaises(TypeError, self.bot.send_media, "1001", [5])
        self.assertEqual(self.rooms.texts, [])

    def test_nobody_awaits_it(self) -> None:
        """An error that nobody awaits is logged with the author's file and line."""
        logged = self.logged()
        gc.disable()  # at once, not when garbage is collected
        self.addCleanup(gc.enable)
        self.bot.send("없음", "비밀")
        self.assertRegex(logged(), r"send\(\) at .*test_bots_unasked\.py:\d+ has failed.*NoRoom")
        self.assertNotIn("비밀", logged())

    def test_awaited_errors_are_not_logged(self) -> None:
        """One that was seen is not."""
        logged = self.logged()
        self.assertRaises(NoRoom, self.bot.send("없음", "안녕").result)
        gc.collect()
        self.assertEqual(logged(), "")


class ServedTests(UnaskedCase):
    """From when until when a bot may send."""

    def setUp(self) -> None:
        super().setUp()
        self.rooms.hear("1001", "방")

    def test_before(self) -> None:
        """A bot that no server has served says so at once: no hang at the import."""
        error = self.assertRaises(NoServer, Bot("other").send, "1001", "안녕")
        self.assertIn("import", str(error))

    def test_after_the_stop(self) -> None:
        """A thread that outlives the server has an error."""
        self.successResultOf(self.served.dispatcher.close())
        errors: list[Exception] = []

        def work() -> None:
            try:
                self.bot.send("1001", "안녕").result(10)
            except Exception as error:
                errors.append(error)

        thread = Thread(target=work)
        thread.start()
        thread.join(20)
        self.assertEqual([type(error) for error in errors], [NoServer])

    def test_waiting_at_the_stop(self) -> None:
        """What waits for the server when it stops is answered by an error."""
        self.served.threads.call = lambda *args, **named: Deferred()  # type: ignore[method-assign]
        answer = self.bot.send_media("1001", "/some/file.png")
        self.assertFalse(answer.done())
        self.successResultOf(self.served.dispatcher.close())
        self.assertRaises(NoServer, answer.result)

    def test_reload(self) -> None:
        """A bot that was loaded anew is another one: the one before may send no more."""
        new = Bot("news")
        self.served.dispatcher.apply([new], BotsSettings(), BreakerSettings())
        self.assertRaises(NoServer, self.bot.send, "1001", "안녕")
        self.assertEqual(new.send("1001", "안녕").result().id, "1")

    def test_reload_that_leaves_it(self) -> None:
        """One that was left goes on, also where another bot includes it now."""
        outer = Bot("outer")
        outer.include(self.bot)
        self.served.dispatcher.apply([outer], BotsSettings(), BreakerSettings())
        self.assertIsInstance(self.bot.send("1001", "안녕").result(), Receipt)

    def test_at_start_and_stop(self) -> None:
        """Functions of C{on_start} and C{on_stop} may send."""
        bot = Bot("other")

        @bot.on_start
        async def start() -> None:
            await bot.send("1001", "hello")

        @bot.on_stop
        async def stop() -> None:
            await bot.send("1001", "bye")

        self.served.dispatcher.apply([bot], BotsSettings(), BreakerSettings())
        self.successResultOf(self.served.dispatcher.close())
        self.assertEqual(self.rooms.texts, [("1001", "hello"), ("1001", "bye")])


class LinkTests(UnaskedCase):
    """Tests for L{domaeka.bots.link}."""

    def setUp(self) -> None:
        super().setUp()
        host = self.served.host
        schedules: Any = None
        rooms: Any = self.rooms
        self.host = BotHost(
            self.served.dispatcher, self.served.reactor, rooms, rooms, host.values, schedules
        )
        self.bot.link.attach(self.host)

    def test_until_the_store_is_read(self) -> None:
        """At the start, calls wait until the store has been read."""
        self.host.start()
        answer = self.bot.send("1001", "안녕")
        value = self.bot.store.incr("n")
        self.rooms.hear("1001", "방")
        self.assertFalse(answer.done() or value.done())
        self.host.store_read()
        self.assertEqual((answer.result().id, value.result()), ("1", 1))
        self.assertEqual(len(self.served.reactor.getDelayedCalls()), 1)  # the dispatcher's sweep

    def test_store_is_late(self) -> None:
        """They do not wait for ever: a room that is not known yet is told from one that is not."""
        self.host.start()
        answer = self.bot.send("1001", "안녕")
        self.served.reactor.advance(READY_SECONDS)
        error = self.assertRaises(SendRefused, answer.result)
        self.assertEqual(error.why, "NOT_READY")
        self.host.store_read()
        self.assertRaises(NoRoom, self.bot.send("1001", "안녕").result)

    def test_flood(self) -> None:
        """A bot that floods is refused beyond a bound, until the server has kept up."""
        self.host.start()
        self.rooms.hear("1001", "방")
        answers = [self.bot.send("1001", "안녕") for _ in range(MAX_WAITING)]
        error = self.assertRaises(SendRefused, self.bot.send, "1001", "안녕")
        self.assertEqual(error.why, "QUEUE_FULL")
        self.host.store_read()
        self.assertEqual(len({answer.result().id for answer in answers}), MAX_WAITING)
        self.assertTrue(self.bot.send("1001", "안녕").done())

    def test_result_is_for_threads(self) -> None:
        """To wait where that would hold up all else is refused, not done."""
        self.host.start()
        answer = self.bot.send("1001", "안녕")
        self.assertIn("await it", str(self.assertRaises(TypeError, answer.result)))

    def test_cancelled(self) -> None:
        """What was cancelled before it began is not done; a result that comes late is dropped."""
        self.host.start()
        self.rooms.hear("1001", "방")
        self.assertTrue(self.bot.send("1001", "안녕").cancel())
        self.host.store_read()
        self.assertEqual(self.rooms.texts, [])
        late: Answer[None] = Answer("x", lambda: False)
        deferred: Deferred[None] = Deferred()
        late.follow(deferred)
        late.cancel()
        deferred.callback(None)
        self.assertTrue(late.cancelled())
        self.assertEqual(self.flushLoggedErrors(), [])


class ThreadsTests(TestCase):
    """With a real loop and real threads beside the reactor."""

    def setUp(self) -> None:
        forget_after(self)
        self.bot = Bot("news")
        self.threads = CommandThreads(reactor)
        self.loop = BotLoop(reactor, self.threads)
        self.origin = FakeOrigin()

    def serve(self) -> None:
        """Serve the bot."""
        self.dispatcher = BotDispatcher(
            [self.bot],
            reactor,
            self.threads,
            BotsSettings(),
            BreakerSettings(),
            loop=self.loop,
            observe=lambda command: lambda took: None,
            failed=lambda command: None,
            busy=lambda: None,
        )
        self.host = MemoryHost(self.dispatcher, reactor, self.loop, lambda: 0.0)
        self.host.rooms.hear("1001", "방")
        self.dispatcher.start()

    async def test_from_everywhere_at_once(self) -> None:
        """Many threads and tasks send, and count, at once; then the server stops beneath them."""
        told: list[Exception] = []
        over = Event()

        @self.bot.command("# loop")
        async def on_loop(ctx: Context) -> None:
            await asyncio.gather(*(self.bot.store.incr("n") for _ in range(100)))
            await self.bot.send("1001", "loop")

        @self.bot.command("# thread")
        def in_thread(ctx: Context) -> None:
            for _ in range(100):
                self.bot.store.incr("n").result(60)
            self.bot.send("1001", "thread").result(60)

        def outlive() -> None:
            try:
                while True:
                    self.bot.store.incr("more").result(60)
            except NoServer as error:
                told.append(error)
            over.set()

        self.serve()
        Thread(target=outlive, daemon=True).start()
        chats = [make_chat(text) for text in ("# loop", "# thread") * 3]
        for chat in chats:
            self.dispatcher.submit(chat, self.origin)
        while len(self.origin.done) < len(chats):
            await sleep(0.01)
        self.assertEqual(await self.host.values.get("news", "", "n"), b"600")
        texts = sorted(str(text) for _, text in self.host.rooms.texts)
        self.assertEqual(texts, ["loop"] * 3 + ["thread"] * 3)
        await self.dispatcher.close()
        while not over.is_set():
            await sleep(0.01)
        self.assertEqual(len(told), 1)
