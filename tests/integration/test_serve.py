"""C{domaeka serve}, and the commands beside it: one directory, nothing named."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.integration.support import ROOT, free_port, sleep
from tests.integration.test_cli import Command

BOT = """\
from domaeka import Bot

bot = Bot("shop")


@bot.command("# price")
async def price(ctx):
    return "100"
"""


class ServeTests(TestCase):
    """As a newcomer has it: a settings file, a bot, and each command from the same directory."""

    timeout = 120

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.config = self.directory / "domaeka.toml"
        self.port, self.http_port = free_port(), free_port()
        self.config.write_text(
            f'[server]\nport = {self.port}\ninterface = "127.0.0.1"\n'
            f"[http]\nport = {self.http_port}\n[limits]\nallow = ['127.0.0.0/8']\n"
        )
        self.config.chmod(0o644)
        (self.directory / "shop_bot.py").write_text(BOT)
        before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = str(self.directory)
        self.addCleanup(self.restore, before)

    def restore(self, state_home: str | None) -> None:
        """The environment is that of others, too."""
        del os.environ["XDG_STATE_HOME"]
        if state_home is not None:
            os.environ["XDG_STATE_HOME"] = state_home

    def command(self, *arguments: str, terminal: bool = False) -> Command:
        """A command, run in that directory."""
        return Command(self, *arguments, terminal=terminal, directory=self.directory)

    async def serve(self) -> Command:
        """A server that serves."""
        server = self.command("serve", "--bots", "shop_bot:bot")
        await server.shows(" serves: ")
        return server

    async def output(self, *arguments: str, stdin: str = "") -> str:
        """What a command that succeeds writes."""
        command = self.command(*arguments)
        command.write(stdin)
        command.end_input()
        self.assertEqual(await command.ended(), 0, command.notes)
        return command.out.decode()

    async def test_newcomer(self) -> None:
        """
        The line at the start is true; phone and commands find the server, right after a rotation
        too; events go on over a restart; SIGTERM ends the server as it ends twistd.
        """
        server = await self.serve()
        (line,) = (line for line in server.out.decode().splitlines() if " serves: " in line)
        for text in (
            f"settings file {self.config} (found here)",
            f"state directory {self.directory}/domaeka",
            "bots domaeka (3 commands), shop (1 command)",
            f"phones on 127.0.0.1:{self.port}, HTTP on 127.0.0.1:{self.http_port}",
        ):
            self.assertIn(text, line)
        events = self.command("events", "--json")
        shown = self.command("events", terminal=True)
        self.assertEqual(await self.output("phone", stdin="# price\n"), "100\n")
        await events.shows('"closed"')
        await shown.shows("peer closed")
        shown.write(b"\x03")
        self.assertEqual(await shown.ended(), 0, shown.out)
        await self.output("secrets", "rotate")
        for options in ((), ("--script-version", "3.2.1")):
            answer = await self.output("phone", *options, stdin="# price\n")
            self.assertEqual(answer, "100\n")
        self.assertIn("secrets", await self.output("reload"))
        self.assertEqual(await self.output("phone", stdin="# price\n"), "100\n")
        (bot,) = (
            bot
            for bot in json.loads(await self.output("bots", "--json"))["bots"]
            if bot["name"] == "shop"
        )
        self.assertEqual([one["calls"] for one in bot["commands"]], [4])
        server.signal("TERM")
        await server.ended()
        self.assertEqual(server.ended_by, signal.SIGTERM)
        await self.serve()
        while b"connected again" not in events.notes:
            await sleep(0.05)
        await self.output("bans", "add", "203.0.113.7")
        await events.shows('"ban"')
        events.signal("INT")
        self.assertEqual(await events.ended(), 0, events.notes)

    async def test_reader_that_leaves(self) -> None:
        """Who has read enough of the events ends them, in silence, though nothing happens."""
        await self.serve()
        run = "from domaeka.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", run, "events"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.addCleanup(process.kill)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        self.assertEqual(await deferToThread(process.wait, 60), 0)
        self.assertEqual(process.stderr.read(), b"")
        process.stderr.close()
