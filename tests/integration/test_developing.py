"""Bots on the desk of who writes them: real processes, files and sockets."""

import asyncio
import contextlib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase, TestCase

from domaeka import Bot, Context
from domaeka.testing import Room
from tests.integration.test_cli import Command

#: A bot that prints, fails and sends a file.
BOT_TEXT = """import asyncio
from domaeka import Bot

bot = Bot("chat")
print("imported")


@bot.command("# slow")
async def slow(ctx):
    await asyncio.sleep(0.2)
    print("slept")
    return "\\x1b[31m" + ctx.sender.name


@bot.command("# plain")
def plain(ctx):
    return ctx.room.name


@bot.command("# name")
async def name(ctx):
    return (await ctx.ask("이름?", check=lambda message: True)).text + "님"


@bot.command("# fail")
def fail(ctx):
    raise ValueError("what is wrong")
"""


class ChatCommandTests(TestCase):
    """C{domaeka chat}, as people and scripts use it."""

    timeout = 300

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        (self.directory / "chat_bot.py").write_text(BOT_TEXT)

    def chat(self, *arguments: str, terminal: bool = False) -> Command:
        """C{domaeka chat} with the bot."""
        given = ("chat", "--bots=chat_bot:bot", *arguments)
        return Command(self, *given, terminal=terminal, directory=self.directory)

    async def test_piped(self) -> None:
        """The answers alone are printed, in the order of the lines; an error has its traceback."""
        chat = self.chat()
        chat.write("# slow\n# plain\n# name\n/person 2\n나는\n/person 1\n하늘\n/room 2\n# plain")
        chat.end_input()
        self.assertEqual(await chat.ended(), 0, chat.notes)
        wanted = ["\ufffd[31m김하늘", "첫째방", "이름?", "하늘님", "둘째방"]
        self.assertEqual(chat.out.decode().splitlines(), wanted)
        for printed in ("imported", "slept"):
            self.assertIn(printed, chat.notes.decode())
        failing = self.chat()
        failing.write("# fail\n# plain\n")
        failing.end_input()
        self.assertEqual(await failing.ended(), 1)
        self.assertIn("첫째방", failing.out.decode())
        for said in ("what is wrong", "chat_bot.py"):
            self.assertIn(said, failing.notes.decode())

    async def test_commands_that_clash(self) -> None:
        """Two bots with one command are refused by one line, with the places of both."""
        (self.directory / "other_bot.py").write_text(BOT_TEXT)
        chat = self.chat("--bots=other_bot:bot")
        chat.end_input()
        self.assertEqual(await chat.ended(), 1)
        (said,) = (line for line in chat.notes.decode().splitlines() if line != "imported")
        for place in ("/chat_bot.py:", "/other_bot.py:"):
            self.assertIn(place, said)

    async def test_typed(self) -> None:
        """At a terminal, people and rooms change, the bot is imported anew, and Ctrl-D ends it."""
        chat = self.chat(terminal=True)
        await chat.shows("첫째방, 김하늘>")
        chat.write("/room 2\r")
        await chat.shows("둘째방, 김하늘>")
        chat.write("/person 2\r# slow\r")
        await chat.shows("[31m이바다")
        await chat.shows("slept")
        (self.directory / "chat_bot.py").write_text(BOT_TEXT.replace("[31m", "새 "))
        chat.write("/reload\r")
        await chat.shows("imported anew: chat_bot:bot")
        chat.write("# slow\r")
        await chat.shows("새 이바다")
        chat.write("\x04")
        self.assertEqual(await chat.ended(), 0)

    async def test_failures(self) -> None:
        """What cannot be loaded is one line."""
        command = Command(self, "chat", "--bots=no_such_bot:bot", directory=self.directory)
        self.assertEqual(await command.ended(), 1)
        self.assertIn("ModuleNotFoundError", command.notes.decode())
        self.assertEqual(len(command.notes.splitlines()), 1)


class RoomTests(SynchronousTestCase):
    """L{Room} with real sockets."""

    def test_sockets(self) -> None:
        """A function that talks over sockets answers in the same say(); a time-out waits."""
        bot = Bot("sockets")

        async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            writer.close()

        @bot.command("# shout")
        async def ask(ctx: Context, text: str) -> str:
            server = await asyncio.start_server(shout, "127.0.0.1")
            async with server, asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                with contextlib.closing(writer):
                    writer.write(f"{text}\n".encode())
                    return (await reader.read()).decode().strip()

        with Room(bot) as room:
            for text in ("a", "b"):
                self.assertEqual(room.say(f"# shout {text}"), [text.upper()])
