"""The operator's commands, as processes, against real servers with a phone."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from domaeka.cli.api_client import ApiClient
from domaeka.cli.places import Place, Unreachable, http_exchange, read_url
from domaeka.secrets import load_or_create_secrets
from domaeka.testing import STANDARD_IDENTITY, FakePhone
from tests.integration.crowd import Crowd
from tests.integration.support import HOST, ServerProcess, reactor
from tests.integration.test_cli import Command

BOT = STANDARD_IDENTITY.bot_name
ROOM = "테스트방"
ROOM_ID = "18398338829933617"
DEVICE_ID = "a1b2c3d4e5f60718"


class Stranger(Protocol):
    """A server of something else: it says what it always says, and hangs up."""

    transport: Any

    # IProtocol

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(self.factory.answer)
        self.transport.loseConnection()


class ReachTests(TestCase):
    """Servers that are not ours."""

    timeout = 300

    async def test_strangers(self) -> None:
        """Whatever answers, it is told apart from a server of ours; nothing of it is obeyed."""
        factory: Any = Factory.forProtocol(Stranger)
        port = reactor.listenTCP(0, factory, interface=HOST)
        self.addCleanup(port.stopListening)
        url = read_url(f"http://{HOST}:{port.getHost().port}", "--url")
        send = http_exchange(Place(url, "token"))
        api = ApiClient(lambda place: send)
        for answer in (
            b"",
            b"SSH-2.0-\x1b[2J\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n<html>",
            b"HTTP/1.1 301 Moved\r\nLocation: http://example.org/\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        ):
            factory.answer = answer
            api.url, api.state_dir = "http://localhost", self.secrets()
            with self.assertRaises(Unreachable) as caught:
                await deferToThread(api.request, "GET", "/bans")
            self.assertTrue(caught.exception.message.isprintable(), answer)

    def secrets(self) -> str:
        """A state directory."""
        directory = Path(self.mktemp())
        directory.mkdir(mode=0o700)
        load_or_create_secrets(directory)
        return str(directory)


class OperatorTests(TestCase):
    """What an operator types."""

    timeout = 300

    async def serve(self, like: ServerProcess | None = None) -> ServerProcess:
        """@param like: whose secrets it has."""
        bot = "tests.integration.slow_bot:bot"
        server = ServerProcess(self, "--set", 'limits.allow=["127.0.0.0/8"]', "--bots", bot)
        if like is not None:
            server.state.mkdir(mode=0o700)
            shutil.copy(like.state / "secrets.toml", server.state)
        await server.start()
        return server

    async def heard(self, server: ServerProcess) -> FakePhone:
        """A phone that has said something, and was answered."""
        phone = server.phone(DEVICE_ID)
        phone.say("# echo 하나", ROOM, channel_id=ROOM_ID)
        await phone.when(lambda: phone.texts() == ["하나"])
        return phone

    def command(self, server: ServerProcess, *arguments: str, terminal: bool = False) -> Command:
        """A command that runs."""
        place = f"http://{HOST}:{server.http_port}"
        options = ("--url", place, "--state-dir", str(server.state))
        return Command(self, *arguments, *options, terminal=terminal)

    async def run_command(self, server: ServerProcess, *arguments: str) -> tuple[int, str]:
        """@return: exit status, and what was written."""
        command = self.command(server, *arguments)
        status = await command.ended()
        return status, (command.out + command.notes).decode()

    async def json(self, server: ServerProcess, *arguments: str) -> Any:
        """What a command that succeeds writes for scripts."""
        status, output = await self.run_command(server, *arguments, "--json")
        self.assertEqual(status, 0, output)
        return json.loads(output)

    async def test_seeing_and_deciding(self) -> None:
        """A phone, its room and its line are seen, decided on and sent to."""
        server = await self.serve()
        phone = await self.heard(server)
        status, output = await self.run_command(server, "status")
        self.assertEqual(status, 0, output)
        self.assertIn("healthy", output)
        status, output = await self.run_command(server, "connections", BOT, DEVICE_ID)
        self.assertEqual(status, 0, output)
        self.assertIn(HOST, output)
        found = await self.json(server, "devices", "block", BOT, DEVICE_ID)
        self.assertEqual(found["devices"][0]["status"], "blocked")
        await self.json(server, "devices", "approve", BOT, DEVICE_ID)
        found = await self.json(server, "rooms", "approve", BOT, ROOM)
        self.assertEqual(found["rooms"][0]["room"], ROOM_ID)
        found = await self.json(
            server, *("send", "--bot", BOT, "--room", ROOM, "밖에서 온 말", "--wait")
        )
        self.assertEqual(found["state"], "sent")
        await phone.when(lambda: "밖에서 온 말" in phone.texts())
        await self.json(server, "bans", "add", "203.0.113.7")
        self.assertEqual((await self.json(server, "bans"))["total"], 1)
        await self.json(server, "bans", "lift", "203.0.113.7")
        await self.watched(server)

    async def watched(self, server: ServerProcess) -> None:
        """On a terminal the connections are shown until Ctrl-C, which is a good end."""
        command = self.command(server, "connections", "--watch", "--interval=0.2", terminal=True)
        await command.shows(DEVICE_ID)
        command.write(b"\x03")
        self.assertEqual(await command.ended(), 0, command.out)
        self.assertIn(b"\x1b[?1049l", command.out)  # the screen is as it was

    async def test_chat(self) -> None:
        """What is said and answered is read as it is stored, and found again."""
        server = await self.serve()
        command = self.command(server, "chat-log", "--follow", "--bot", BOT)
        phone = await self.heard(server)
        await command.shows(": # echo 하나\n")
        await command.shows("(bot): 하나\n")
        phone.say("# echo 100% 둘", ROOM, channel_id=ROOM_ID)
        await command.shows("(bot): 100% 둘\n")
        command.signal("INT")
        self.assertEqual(await command.ended(), 0, command.notes)
        for filters, texts in (
            (("--text", "0%", "--room", ROOM), ["# echo 100% 둘", "100% 둘"]),
            (("--limit", "1"), ["100% 둘"]),
            (("--since", "1h", "--room", "no such room"), []),
        ):
            status, output = await self.run_command(server, "chat-log", "--json", *filters)
            self.assertEqual(status, 0, output)
            lines = [line for line in output.splitlines() if line.startswith("{")]
            self.assertEqual([json.loads(line)["text"] for line in lines], texts)

    async def test_calling_off(self) -> None:
        """A move that runs, and a stop, are seen, and called off; all goes on."""
        server = await self.serve()
        other = await self.serve(like=server)
        phone = await self.heard(server)
        crowd = Crowd(self, [server], 1)
        await crowd.greeted()
        await self.json(server, "migrate", f"{HOST}:{other.port}", "--migrate-after=60")
        self.assertEqual((await self.json(server, "migrate", "--status"))["phase"], "moving")
        self.assertEqual((await self.json(server, "migrate", "--off"))["phase"], "called off")
        phone.say("# hold 늦게", ROOM, channel_id=ROOM_ID)
        await self.json(server, "drain")
        self.assertTrue((await self.json(server, "drain", "--status"))["draining"])
        self.assertFalse((await self.json(server, "drain", "--off"))["draining"])
        status, output = await self.run_command(server, "migrate", "--status")
        self.assertEqual((status, output[:10]), (0, "called off"))
        phone.say("# release", "옆방")
        await phone.when(lambda: phone.texts() == ["하나", "늦게"])

    async def test_changes(self) -> None:
        """Settings are read again, phones moved, the server ended; nobody answers then."""
        server = await self.serve()
        other = await self.serve(like=server)
        await self.heard(server)
        self.assertEqual((await self.json(server, "reload"))["changed"], [])
        target = f"{HOST}:{other.port}"
        found = await self.json(server, "migrate", target, "--wait")
        self.assertEqual((found["phase"], found["port"]), ("done", other.port))
        status, output = await self.run_command(server, "migrate", "--off")
        self.assertEqual(status, 1, output)
        self.assertFalse((await self.json(server, "drain", "--status"))["draining"])
        pid = server.pid
        status, output = await self.run_command(server, "drain", "--wait")
        self.assertEqual(status, 0, output)
        self.assertIn("the server has ended", output)
        with self.assertRaises(ProcessLookupError):
            os.kill(pid, signal.SIG_DFL)
        status, output = await self.run_command(server, "status")
        self.assertEqual((status, len(output.splitlines())), (3, 1), output)
        self.assertIn("Connection refused", output)
