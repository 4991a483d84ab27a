"""Tests for L{domaeka.testing.room}: rooms for the tests of bots."""

import asyncio
import gc
import threading
import traceback
import warnings
from datetime import timedelta

from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, Context, NoServer, ScheduleContext
from domaeka.bots.threads import MAX_THREADS
from domaeka.testing import File, Room, room
from domaeka.testing.loop import VirtualLoop
from domaeka.texts_ko import FAILED_TEXT, NO_ANSWER_TEXT, OPERATORS_TEXT, TIMEOUT_TEXT

PNG = b"\x89PNG\r\n\x1a\n"


def make_bot() -> Bot:
    """A bot with a command of each kind."""
    bot = Bot("room")

    @bot.command("# roll")
    async def roll(ctx: Context, sides: int = 6) -> str:
        ctx.reply(f"{ctx.room.name} {ctx.message.id}")
        return f"{ctx.sender.name} {sides}"

    @bot.command("# name")
    async def name(ctx: Context) -> str:
        answer = await ctx.ask("이름?", timeout=30)
        return f"{answer.text}님"

    @bot.command("# later")
    async def later(ctx: Context, seconds: float) -> str:
        before = ctx.message.timestamp
        await asyncio.sleep(seconds)
        return f"{before:%H:%M} {seconds:g}"

    @bot.command("# plain")
    def plain(ctx: Context) -> str:
        ctx.reply("first")
        return threading.current_thread().name

    @bot.command("# fail")
    async def fail(ctx: Context, kind: str) -> None:
        raise {"exit": SystemExit, "value": ValueError}[kind]("wrong")

    @bot.command("# fail plain")
    def fail_plain(ctx: Context) -> None:
        raise ValueError("in a thread")

    @bot.command("# fail old", reactor=True)
    async def fail_old(ctx: Context) -> None:
        raise ValueError("on the reactor")

    @bot.command("# picture")
    async def picture(ctx: Context) -> None:
        await ctx.reply_media([PNG, "https://example.org/a.png"], format="png")

    @bot.command("# secret", operators_only=True)
    async def secret(ctx: Context) -> str:
        return "비밀"

    @bot.on_message(mention=True)
    async def mentioned(ctx: Context) -> str:
        return "네?"

    return bot


class RoomTests(SynchronousTestCase):
    """Tests for L{Room}."""

    def setUp(self) -> None:
        self.bot = make_bot()
        self.room = Room(self.bot)
        self.addCleanup(self.room.close)

    def test_answers(self) -> None:
        """Answers come in order; who speaks is heard, and others are others."""
        self.assertEqual(self.room.say("# roll 20"), ["테스트방 1", "김하늘 20"])
        self.assertEqual(self.room.say("# roll", sender="이바다")[1], "이바다 6")
        self.assertEqual(self.room.say("그냥 말"), [])
        self.assertEqual(self.room.say("봇아", mention=True), ["네?"])
        self.assertEqual(len(self.room.answers), 5)

    def test_dialog(self) -> None:
        """A question waits for its person, and for so long as it says."""
        self.assertEqual(self.room.say("# name"), ["이름?"])
        self.assertEqual(self.room.say("나는 아니고", sender="이바다"), [])
        self.assertEqual(self.room.say("하늘"), ["하늘님"])
        self.room.say("# name")
        self.assertEqual(self.room.wait(29), [])
        self.assertEqual(self.room.wait(1), [NO_ANSWER_TEXT])

    def test_time(self) -> None:
        """Time passes in wait() alone, and each thing comes in its turn."""
        self.assertEqual(self.room.say("# later 90"), [])
        self.assertEqual(self.room.say("# later 0.25"), [])
        self.assertEqual(self.room.wait(0.5), ["09:00 0.25"])
        self.assertEqual(self.room.wait(89.5), ["09:00 90"])
        self.room.say("# later 60")
        self.assertEqual(self.room.wait(60), ["09:01 60"])
        self.assertEqual(self.room.wait(86_400), [])
        self.room.say("# later 400")
        self.assertEqual(self.room.wait(299), [])
        self.assertEqual(self.room.wait(2), [TIMEOUT_TEXT])
        for wrong in (-1.0, float("nan"), float("inf"), 1e12):
            self.assertRaises(ValueError, self.room.wait, wrong)

    def test_plain_functions(self) -> None:
        """A plain function runs in a thread, which ends with it."""
        before = threading.active_count()
        self.assertEqual(self.room.say("# plain"), ["first", "domaeka-room"])
        self.assertEqual(threading.active_count(), before)

    def test_many_threads(self) -> None:
        """More calls than there may be threads are all made."""

        @self.bot.command("# many")
        async def many(ctx: Context) -> str:
            calls = (asyncio.to_thread(lambda: 1) for _ in range(3 * MAX_THREADS))
            return str(sum(await asyncio.gather(*calls)))

        with Room(self.bot) as other:
            self.assertEqual(other.say("# many"), [str(3 * MAX_THREADS)])

    def test_errors(self) -> None:
        """The error of a function is raised in the test, with the author's lines, from anywhere."""
        for text, function in (
            ("# fail value", "in fail"),
            ("# fail plain", "in fail_plain"),
            ("# fail old", "in fail_old"),
        ):
            error = self.assertRaises(ValueError, self.room.say, text)
            said = "".join(traceback.format_exception(error))
            self.assertIn(function, said)
            self.assertIn("test_testing_room.py", said)
        self.assertRaises(RuntimeError, self.room.say, "# fail exit")
        # The room has heard of it, and goes on.
        self.assertEqual(self.room.answers, [FAILED_TEXT] * 4)
        self.assertEqual(self.room.say("# roll")[1:], ["김하늘 6"])

    def test_errors_as_in_a_room(self) -> None:
        """With errors=False the room gets the answer that people get."""
        with Room(self.bot, errors=False) as other:
            self.assertEqual(other.say("# fail value"), [FAILED_TEXT])

    def test_pictures(self) -> None:
        """Files come as objects with kind, format and content; a test that fails shows no bytes."""
        picture, address = self.room.say("# picture")
        self.assertEqual(picture, File("image", "png", PNG))
        self.assertEqual(repr(picture), "<File image png, 8 bytes>")
        self.assertEqual(address, File("image", "png", "https://example.org/a.png"))

    def test_operators(self) -> None:
        """Operators are all, or those who are named, in every room."""
        self.assertEqual(self.room.say("# secret"), [OPERATORS_TEXT])
        with Room(self.bot, operators=True) as other:
            self.assertEqual(other.say("# secret", sender="아무나"), ["비밀"])
        with Room(self.bot, operators=("김하늘",)) as other:
            self.assertEqual(other.beside("옆방").say("# secret"), ["비밀"])
            self.assertEqual(other.say("# secret", sender="이바다"), [OPERATORS_TEXT])

    def test_rooms(self) -> None:
        """Rooms side by side share bots and time, and keep answers and questions apart."""
        other = self.room.beside("옆방")
        self.assertEqual(other.say("# roll")[0], "옆방 1")
        self.room.say("# name")
        self.assertEqual(other.say("하늘"), [])
        self.room.say("# later 5", sender="이바다")
        self.assertEqual(other.wait(10), [])
        self.assertEqual(self.room.wait(0), ["09:00 5"])

    def test_served_rooms_and_phones(self) -> None:
        """A bot for certain phones and rooms has its phone, and the first of its rooms."""
        bot = Bot("narrow", names=("가게봇",), rooms=("123", "456"))
        bot.command("# where")(lambda ctx: f"{ctx.room.id} {ctx.device.bot_name}")
        with Room(bot) as other:
            self.assertEqual(other.say("# where"), ["123 가게봇"])
            self.assertEqual(other.beside("밖").say("# where"), [])

    def test_start_and_stop(self) -> None:
        """Functions for start and stop are called, and may wait; their errors are raised."""
        done: list[str] = []
        bot = Bot("hooks")

        @bot.on_start
        async def start() -> None:
            done.append("start")

        @bot.on_stop
        async def stop() -> None:
            await asyncio.sleep(2)
            done.append("stop")
            raise ValueError("at the end")

        other = Room(bot)
        self.assertEqual(done, ["start"])
        self.assertRaises(ValueError, other.close)
        self.assertEqual(done, ["start", "stop"])
        other.close()
        self.assertRaises(RuntimeError, other.say, "# help")

    def test_an_error_of_the_test_goes_first(self) -> None:
        """What the test itself raises is not hidden by what the bots raise at the end."""
        bot = Bot("hooks")
        bot.on_stop(lambda: 1 / 0)
        with self.assertRaises(KeyError), Room(bot):
            raise KeyError

    def test_nothing_is_left(self) -> None:
        """Loops, threads and timers end with a room, also with one that is forgotten."""
        gc.collect()  # what others have left
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            forgotten = Room(self.bot)
            forgotten.say("# later 5")
            forgotten.say("# name")
            server = forgotten._server
            loop = server._loop.virtual
            aside = forgotten.beside("옆방")
            del forgotten
            gc.collect()
            self.assertFalse(loop.is_closed())
            del aside
            gc.collect()
        self.assertTrue(loop.is_closed())
        self.assertEqual(list(server._reactor.getDelayedCalls()), [])

    def test_in_a_loop(self) -> None:
        """A test that runs on a loop of asyncio's uses rooms as any other."""

        async def test() -> list[object]:
            answers: list[object] = [*self.room.say("# roll")]
            await asyncio.sleep(0)
            return answers

        self.assertEqual(asyncio.run(test()), ["테스트방 1", "김하늘 6"])

    def test_restless(self) -> None:
        """A function that waits for nothing for ever is an error, not a test that hangs."""

        @self.bot.command("# restless")
        async def restless(ctx: Context) -> None:
            while True:
                await asyncio.sleep(0)

        self.room.close()
        other = Room(self.bot)
        self.addCleanup(other._server._end)
        error = self.assertRaises(RuntimeError, other.say, "# restless")
        self.assertIn("again and again", str(error))

    def test_stuck_thread(self) -> None:
        """A function that holds up its thread is named, with its place."""
        release = threading.Event()

        @self.bot.command("# stuck")
        def stuck(ctx: Context) -> None:
            release.wait(60)

        self.patch(room, "PATIENCE_SECONDS", 0.05)
        other = Room(self.bot)
        error = self.assertRaises(TimeoutError, other.say, "# stuck")
        self.assertIn("still run", str(error))
        self.assertIn(".py:", str(error))
        release.set()
        other.close()

    def test_thread_of_another(self) -> None:
        """A room is used in its own thread; another one hears so."""
        errors: list[BaseException] = []

        def use() -> None:
            try:
                self.room.say("# roll")
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        self.assertEqual(len(errors), 1)

    def test_wrong_use(self) -> None:
        """What is no bot and no text is refused at once."""
        self.assertRaises(TypeError, Room, "room")
        self.assertRaises(TypeError, self.room.say, 5)


class VirtualLoopTests(SynchronousTestCase):
    """Tests for L{VirtualLoop}."""

    def test_calls_of_threads(self) -> None:
        """What another thread asks for is done in the loop's own, when that looks."""
        clock = room._Reactor()
        loop = VirtualLoop(clock)
        self.addCleanup(loop.close)
        threads: list[int] = []
        ask = threading.Thread(
            target=loop.call_soon_threadsafe, args=(lambda: threads.append(threading.get_ident()),)
        )
        ask.start()
        ask.join()
        self.assertEqual(threads, [])
        loop.run_due()
        self.assertEqual(threads, [threading.get_ident()])

    def test_timers(self) -> None:
        """A timer that was cancelled is none."""
        loop = VirtualLoop(room._Reactor())
        self.addCleanup(loop.close)
        timer = loop.call_later(timedelta(minutes=1).total_seconds(), lambda: None)
        self.assertTrue(loop.has_timers)
        timer.cancel()
        self.assertFalse(loop.has_timers)


class UnaskedTests(SynchronousTestCase):
    """What bots do without a message, in a room."""

    def test_send_store_and_schedule(self) -> None:
        """A bot sends to a room beside, keeps values, and is called at times."""
        bot = Bot("news")

        @bot.command("# tell")
        async def tell(ctx: Context, *, text: str) -> str:
            await bot.send("옆방", text)
            return str(await ctx.room.store.incr("told"))

        @bot.schedule("0 12 * * *", timezone="Asia/Seoul", rooms=["1001"])
        def noon(ctx: ScheduleContext) -> str:
            return f"{ctx.scheduled:%H:%M} {bot.store.incr('noons').result(5)}"

        with Room(bot, id="1001") as here, here.beside("옆방") as there:
            self.assertEqual(here.say("# tell 하나"), ["1"])
            self.assertEqual(here.say("# tell 둘"), ["2"])
            self.assertEqual(there.wait(0), ["하나", "둘"])
            self.assertEqual(here.wait(3 * 3600), ["12:00 1"])
            self.assertEqual(here.wait(86_400), ["12:00 2"])
        self.assertRaises(NoServer, bot.store.get, "noons")

    def test_forgotten_in_another_thread(self) -> None:
        """A bot whose room was forgotten where it could not be closed has an error, no hang."""
        bot = Bot("news")
        rooms = [Room(bot)]
        thread = threading.Thread(target=rooms.clear)
        thread.start()
        thread.join()
        gc.collect()
        self.assertRaises(NoServer, bot.store.get, "key")
