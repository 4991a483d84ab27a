"""Tests for L{domaeka.cli.chat}, L{domaeka.cli.new} and L{domaeka.cli.pictures}."""

import asyncio
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, Context
from domaeka.bots.failures import listening
from domaeka.bots.loading import load_bots
from domaeka.cli import output
from domaeka.cli.chat import LocalTalk, PipedLocalTalk
from domaeka.cli.pictures import Pictures, dimensions
from domaeka.config import Settings
from domaeka.testing.loop import VirtualBotLoop
from domaeka.texts_ko import CHAT_PEOPLE, CHAT_ROOMS, FAILED_TEXT
from domaeka.wire import Media, Reply
from tests.bots_fakes import FakeReactor, FakeThreads
from tests.test_cli import CommandCase

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 320, 200)
GIF = b"GIF89a" + struct.pack("<HH", 7, 5)
JPEG = (
    b"\xff\xd8"
    + (b"\xff\xe0" + struct.pack(">H", 4) + b"ab")
    + (b"\xff\xff\xc2" + struct.pack(">HBHH", 8, 8, 40, 30))
)
#: A bot that is changed while somebody talks with it.
BOT_TEXT = 'from domaeka import Bot\nbot = Bot("chat")\nbot.command("# bot")(lambda ctx: "{}")\n'


class TalkCase(SynchronousTestCase):
    """A talk in virtual time."""

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.threads = FakeThreads()
        self.shown: list[tuple[str, object]] = []
        self.notes: list[str] = []
        self.places: list[tuple[str, str]] = []
        self.bot = bot = Bot("chat")

        @bot.command("# who")
        async def who(ctx: Context) -> str:
            return f"{ctx.room.name} {ctx.sender.name} {ctx.is_operator}"

        @bot.command("# name")
        async def name(ctx: Context) -> str:
            return (await ctx.ask("이름?", check=lambda message: True)).text + "님"

        @bot.command("# later")
        async def later(ctx: Context, seconds: int) -> str:
            await asyncio.sleep(seconds)
            return f"{seconds} s"

        @bot.command("# picture")
        async def picture(ctx: Context) -> str:
            await ctx.reply_media([PNG], format="png")
            return "\x1b[31mred"

        @bot.command("# fail")
        async def fail(ctx: Context) -> None:
            raise ValueError("what was written")

        @bot.command("# tell")
        async def tell(ctx: Context, *, text: str) -> str:
            await bot.send(CHAT_ROOMS[1], text)
            return str(await bot.store.incr("told"))

    def talk(self, kind: type[LocalTalk] = LocalTalk, *lines: str, **more: Any) -> Any:
        """A talk that has said C{lines}."""
        talk = kind(
            self.reactor,
            VirtualBotLoop(self.reactor, self.threads),
            self.threads,
            more.pop("bots", [self.bot]),
            more.pop("places", ()),
            Settings(),
            show=self.show,
            note=self.notes.append,
            moved=lambda *place: self.places.append(place),
            pictures=Pictures(Path(self.mktemp()).absolute().parent),
            **more,
        )
        listener = listening(talk.failed)
        listener.__enter__()
        self.addCleanup(listener.__exit__, None, None, None)
        self.addCleanup(talk.finish, output.INTERRUPTED)
        for line in lines:
            talk.line_written(line)
        talk.start()
        return talk

    def show(self, reply: Reply) -> None:
        self.shown.append((reply.room, reply.content))

    @property
    def texts(self) -> list[object]:
        """The answers."""
        return [text for _, text in self.shown]


class LocalTalkTests(TalkCase):
    """Tests for L{LocalTalk}."""

    def test_sends_and_stores(self) -> None:
        """A bot sends to the other room unasked, and keeps values."""
        talk = self.talk()
        for line in ("# tell 안녕", "# tell 또"):
            talk.line_written(line)
        other, here = CHAT_ROOMS[1], CHAT_ROOMS[0]
        self.assertEqual(self.shown, [(other, "안녕"), (here, "1"), (other, "또"), (here, "2")])

    def test_two_people_in_two_rooms(self) -> None:
        """Lines are said as the person and in the room that were asked for."""
        talk = self.talk(operator=True)
        for line in ("# who", "/person 2", "# who", "/room 2", "# who", "/person 1", "# who"):
            talk.line_written(line)
        (one, two), (ha, ba) = CHAT_ROOMS, CHAT_PEOPLE
        wanted = [f"{one} {ha} True", f"{one} {ba} False", f"{two} {ba} False", f"{two} {ha} True"]
        self.assertEqual(self.texts, wanted)
        self.assertEqual(self.places, [(one, ba), (two, ba), (two, ha)])

    def test_words(self) -> None:
        """What is asked for wrongly is said; a text may begin with a slash."""
        self.bot.command("/room")(lambda ctx: None)
        talk = self.talk()
        for line in ("/room 3", "/room", "/help", "//room", "/roomy"):
            talk.line_written(line)
        self.assertEqual(self.notes[:2], ["/room 1 or /room 2"] * 2)
        self.assertIn("/reload", self.notes[2])
        self.assertEqual((len(self.notes), len(self.threads.calls)), (3, 1))

    def test_pictures_and_escapes(self) -> None:
        """A picture is saved and told in a line; nothing reaches the terminal as an escape."""
        self.talk().line_written("# picture")
        picture, text = self.texts
        self.assertRegex(str(picture), r"^\[png 320x200, 24 B → saved to .*/1\.png\]$")
        path = Path(str(picture).partition("saved to ")[2].rstrip("]"))
        self.assertEqual(path.read_bytes(), PNG)
        self.assertEqual(text, "\ufffd[31mred")

    def test_errors(self) -> None:
        """An error is shown with its text and the author's lines."""
        self.talk().line_written("# fail")
        self.assertEqual(self.texts, [FAILED_TEXT])
        self.assertIn("what was written", self.notes[0])
        self.assertIn("test_cli_chat.py", self.notes[0])

    def test_quit(self) -> None:
        """It ends in order, and takes nothing more."""
        talk = self.talk()
        talk.line_written("# later 5")
        talk.line_written("/quit")
        talk.line_written("# who")
        self.assertEqual(self.successResultOf(talk.done), output.ALL_ANSWERED)
        self.assertEqual(self.shown, [])
        self.assertEqual(list(self.reactor.getDelayedCalls()), [])

    def test_reload(self) -> None:
        """Bots are imported anew; a mistake is shown, and the old ones talk on."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        path = directory / "chat_reloaded.py"
        path.write_text(BOT_TEXT.format("처음"))
        sys.path.insert(0, str(directory))
        self.addCleanup(sys.path.remove, str(directory))
        self.addCleanup(sys.modules.pop, "chat_reloaded", None)
        places = ["chat_reloaded:bot"]
        talk = self.talk(bots=load_bots(places), places=places)
        for text in ("다음", "wrong", "다시"):
            path.write_text(BOT_TEXT.format(text) if text != "wrong" else "x = (\n")
            talk.line_written("/reload")
            talk.line_written("# bot")
            self.threads.work()
        self.assertEqual(self.texts, ["다음", "다음", "다시"])
        self.assertIn("chat_reloaded.py:1", self.notes[1])
        self.assertEqual(talk.faults, 1)

    def test_served_rooms_and_phones(self) -> None:
        """A bot for certain rooms and phones is talked with there."""
        bot = Bot("narrow", names=("가게봇",), rooms=("123",))

        @bot.command("# where")
        async def where(ctx: Context) -> str:
            return f"{ctx.room.id} {ctx.device.bot_name}"

        self.talk(bots=[bot]).line_written("# where")
        self.assertEqual(self.texts, ["123 가게봇"])


class PipedLocalTalkTests(TalkCase):
    """Tests for L{PipedLocalTalk}."""

    def piped(self, *lines: str) -> PipedLocalTalk:
        """A talk of these lines, and no more."""
        talk: PipedLocalTalk = self.talk(PipedLocalTalk, *lines, wait=10.0)
        talk.input_ended()
        return talk

    def test_line_by_line(self) -> None:
        """A line is said once the work on the one before it is over: then it ends with 0."""
        talk = self.piped("# later 3", "", "# name", "하늘", "그냥 말", "# who")
        self.reactor.pump([0.1] * 29)
        self.assertEqual(self.shown, [])
        self.reactor.pump([0.1] * 20)
        self.assertEqual(self.successResultOf(talk.done), output.ALL_ANSWERED)
        self.assertEqual(self.texts[:3], ["3 s", "이름?", "하늘님"])
        self.assertEqual((len(self.texts), self.notes), (4, []))

    def test_failures(self) -> None:
        """A function that fails, and a word that is wrong, make it end with 1, after all lines."""
        for line in ("# fail", "/room 9"):
            talk = self.piped(line, "# who")
            self.reactor.pump([0.1] * 10)
            self.assertEqual(self.successResultOf(talk.done), output.UNANSWERED)
            self.assertIn(CHAT_PEOPLE[0], str(self.texts[-1]))

    def test_too_slow(self) -> None:
        """A function that is not over in time is not waited for."""
        talk = self.piped("# later 60", "# who")
        self.reactor.pump([1.0] * 15)
        self.assertEqual(self.successResultOf(talk.done), output.UNANSWERED)
        self.assertEqual(len(self.texts), 1)
        self.assertIn("not over after 10 s", self.notes[0])

    def test_blocked_loop(self) -> None:
        """Where a function blocks the bots' loop, lines go on after the time for each, and end."""
        talk: PipedLocalTalk = self.talk(PipedLocalTalk, wait=10.0)
        self.patch(talk._loop, "call_soon", lambda *call: None)
        for line in ("# who", "# who"):
            talk.line_written(line)
        talk.input_ended()
        self.reactor.pump([1.0] * 19)
        self.assertNoResult(talk.done)
        self.reactor.pump([1.0] * 2)
        self.assertEqual(self.successResultOf(talk.done), output.UNANSWERED)
        self.assertEqual(list(self.reactor.getDelayedCalls()), [])

    def test_other_room(self) -> None:
        """An answer says its room where that is not the one of now; /quit ends the lines."""
        self.piped("# later 15", "/room 2", "# later 8", "/quit", "# who")
        self.reactor.pump([0.1] * 250)
        self.assertEqual(self.texts, [f"[{CHAT_ROOMS[0]}] 15 s", "8 s"])


class PicturesTests(SynchronousTestCase):
    """Tests for L{domaeka.cli.pictures}."""

    def test_dimensions(self) -> None:
        """Width and height are read from each kind; what is torn or of another kind has none."""
        for content, size in ((PNG, (320, 200)), (GIF, (7, 5)), (JPEG, (30, 40))):
            self.assertEqual(dimensions(content), size)
            for end in range(len(content)):
                self.assertIn(dimensions(content[:end]), (None, size))
        self.assertIsNone(dimensions(b"RIFF...."))

    def test_bounded(self) -> None:
        """No more is saved than there is room for, and an odd format makes no path."""
        pictures = Pictures(Path(self.mktemp()).absolute().parent)
        self.assertIn("/1.etcx", pictures.told(Media((b"a",), format="../etc/x")))
        pictures._bytes = 500_000_000
        self.assertIn("not saved", pictures.told(Media((b"a",), "document", "bin")))
        gone = Pictures(Path("/nowhere at all"))
        self.assertIn("not saved: No such file", gone.told(Media((b"a",))))
        self.assertEqual(pictures.told(Media(("http://\x1b",))), "[image http://\ufffd]")


class NewTests(CommandCase):
    """C{domaeka new}."""

    def test_writes(self) -> None:
        """The bot and its test are there; the test passes, and the next steps are named."""
        result = self.run_command("new", "첫봇")
        self.assertEqual(result.exit_code, 0, result.output)
        for said in ("chat --bots 첫봇:bot", "serve --reload --bots 첫봇:bot", "test_첫봇"):
            self.assertIn(said, result.output)
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-m", "unittest", "test_첫봇"],
            env={"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertIn("Ran 3 tests", ran.stderr)

    def test_overwrites_nothing(self) -> None:
        """A file that is there stays as it is, and no other is written."""
        for there in ("shop.py", "test_shop.py", "shop"):
            path = Path(there)
            path.write_text("mine")
            result = self.run_command("new", "shop")
            self.assertEqual(result.exit_code, 1)
            self.assertIn(f"{there}: there is one already", result.output)
            self.assertEqual([path.name for path in Path().glob("*shop*")], [there])
            self.assertEqual(path.read_text(), "mine")
            path.unlink()

    def test_names(self) -> None:
        """A name that no module can have, or that hides one, is refused in one line."""
        names = ("a b", "5", "a.b", "../a", "class", "match", "json", "domaeka", "click", "x" * 51)
        for name in (*names, "", "ｘ", "\x1b[31m"):
            result = self.run_command("new", name)
            self.assertEqual(result.exit_code, 2, name)
            self.assertNotIn("\x1b", result.output)
        self.assertEqual([path.name for path in Path().glob("*.py")], [])
