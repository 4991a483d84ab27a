"""C{domaeka phone} as people and scripts use it, against a real server."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.utils import getProcessOutput
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, TestCase

from domaeka.cli.configuration import script_lines
from domaeka.phone_script import ScriptServer, fill_script
from domaeka.secrets import Secrets
from tests.integration.support import ROOT, ServerProcess, free_port, sleep
from tests.test_cli import ODD_TEXTS

reactor: Any = _reactor

#: Longest that a test waits for what must come, in seconds.
PATIENCE_SECONDS = 120.0


class Command(ProcessProtocol):
    """
    C{domaeka}, run.

    @ivar out: what it has written on standard output, or on the terminal.
    @ivar notes: what it has written on standard error.
    @ivar ended_by: the signal by which it ended, if one did.
    """

    transport: Any

    def __init__(
        self,
        test: TestCase,
        *arguments: str,
        terminal: bool = False,
        directory: Path | None = None,
    ) -> None:
        """@param directory: where it is run; by default where the tests are."""
        self.out = b""
        self.notes = b""
        self.status: int | None = None
        self.ended_by: int | None = None
        self._ended: Deferred[int] = Deferred()
        command = [sys.executable, "-c", "from domaeka.cli import main; main()", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        self._process = reactor.spawnProcess(
            self,
            command[0],
            command,
            env=environment,
            usePTY=terminal,
            path=None if directory is None else str(directory),
        )
        test.addCleanup(self._kill)

    def write(self, text: str | bytes) -> None:
        """Write to its standard input, or press keys."""
        self.transport.write(text.encode() if isinstance(text, str) else text)

    def signal(self, name: str) -> None:
        """Send it a signal."""
        self._process.signalProcess(name)

    def end_input(self) -> None:
        """There is no more to say."""
        self.transport.closeStdin()

    async def ended(self) -> int:
        """@return: its exit status."""
        return await self._ended

    async def shows(self, text: str) -> None:
        """Wait until it has shown something."""
        deadline = reactor.seconds() + PATIENCE_SECONDS
        while text.encode() not in self.out:
            if reactor.seconds() > deadline or self.status is not None:
                raise AssertionError(f"{text!r} is not in {self.out.decode()!r}")
            await sleep(0.02)

    def _kill(self) -> "Deferred[int] | None":
        if self.status is not None:
            return None
        self._process.signalProcess("KILL")
        return self._ended

    # IProcessProtocol

    def outReceived(self, data: bytes) -> None:
        self.out += data

    def errReceived(self, data: bytes) -> None:
        self.notes += data

    def processEnded(self, reason: Failure) -> None:
        code = getattr(reason.value, "exitCode", None)
        self.status = -1 if code is None else code
        self.ended_by = getattr(reason.value, "signal", None)
        self._ended.callback(self.status)


class PhoneCommandTests(TestCase):
    """C{domaeka phone}."""

    timeout = 300

    async def serve(self) -> ServerProcess:
        server = ServerProcess(self, "--set", 'limits.allow=["127.0.0.0/8"]')
        await server.start()
        return server

    def phone(self, server: ServerProcess, *arguments: str, terminal: bool = False) -> Command:
        place = ("--port", str(server.port), "--state-dir", str(server.state))
        return Command(self, "phone", *place, *arguments, terminal=terminal)

    async def test_piped(self) -> None:
        """In each dialect, each line is answered, the answers stand alone, and it succeeds."""
        server = await self.serve()
        for options in ((), ("--legacy",), ("--script-version", "3.2.1")):
            command = self.phone(server, *options)
            command.write("# echo 안녕하세요 👋\n\n# echo } { 둘\r\n# echo 줄바꿈 없이")
            command.end_input()
            self.assertEqual(await command.ended(), 0, command.notes)
            self.assertEqual(command.out.decode(), "안녕하세요 👋\n} { 둘\n줄바꿈 없이\n")

    async def test_failures(self) -> None:
        """Nothing that answers, nobody there, another key: each its own status and reason."""
        server = await self.serve()
        command = self.phone(server, "--wait", "0.5")
        command.write("아무도 대답하지 않는 말\n")
        command.end_input()
        self.assertEqual(await command.ended(), 1)
        self.assertEqual(command.out, b"")
        self.assertIn(b"no answer", command.notes)
        command = self.phone(server, "--port", str(free_port()))
        self.assertEqual(await command.ended(), 3)
        self.assertIn(b"cannot connect", command.notes)
        other = Path(self.mktemp())
        other.write_text(f'secret_key = "{"k" * 16}"\nsalt = "s"\n', encoding="utf-8")
        other.chmod(0o600)
        for options in ((), ("--script-version", "3.2.1")):
            command = self.phone(server, "--secrets-file", str(other), *options)
            self.assertEqual(await command.ended(), 4)
            self.assertIn(b"AUTH_FAILED", command.notes)

    async def test_typed(self) -> None:
        """At a terminal there is a prompt, keys edit the line, answers come above it."""
        server = await self.serve()
        for options in ((), ("--script-version", "3.2.1")):
            command = self.phone(server, *options, terminal=True)
            await command.shows("connected")
            command.write("# echo 안녕하세여")
            await command.shows("테스트방> # echo 안녕하세여")
            command.write(b"\x7f" + "요\r".encode())
            await command.shows("domaeka: \x1b[0m안녕하세요")
            command.write(b"\x1b[A\r\x03")
            self.assertEqual(await command.ended(), 0)

    async def test_many(self) -> None:
        """Many at once are all served; the summary says so."""
        server = await self.serve()
        command = self.phone(server, "--count", "12", "--messages", "5")
        self.assertEqual(await command.ended(), 0, command.notes)
        self.assertIn(b"60 answered, 0 not", command.out)

    async def test_restart(self) -> None:
        """A server that restarts in the middle is come back to; no line is lost."""
        server = ServerProcess(
            self, "--set", 'limits.allow=["127.0.0.0/8"]', "--set", "shutdown.reconnect_after=1"
        )
        await server.start()
        command = self.phone(server)
        command.write("# echo 하나\n")
        await command.shows("하나\n")
        await server.stop()
        command.write("# echo 둘\n")
        await server.start()
        command.end_input()
        self.assertEqual(await command.ended(), 0, command.notes)
        self.assertEqual(command.out.decode(), "하나\n둘\n")


class ScriptTests(TestCase):
    """The lines for a phone's script."""

    timeout = 30

    async def test_an_engine_reads_them(self) -> None:
        """Whatever the names and secrets are, JavaScript reads what was meant."""
        node = shutil.which("node")
        if node is None:
            raise SkipTest("there is no node here")
        texts = (*ODD_TEXTS, "".join(ODD_TEXTS))
        statements = [
            script_lines(text, text, 9000, Secrets(secret_key=text, salt=text))
            + "\nconsole.log(JSON.stringify(BOT_CONFIG));"
            for text in texts
        ]
        output = await getProcessOutput(node, ("-e", "\n".join(statements)), reactor=reactor)
        for text, line in zip(texts, output.splitlines(), strict=True):
            place = {"host": text, "port": 9000, "priority": 1, "name": "domaeka"}
            self.assertEqual(
                json.loads(line),
                {
                    "BOT_NAME": text,
                    "SECRET_KEY": text,
                    "BOT_SPECIFIC_SALT": text,
                    "SERVER_LIST": [place],
                },
            )

    async def test_an_engine_reads_the_script(self) -> None:
        """So it does in the whole script."""
        node = shutil.which("node")
        if node is None:
            raise SkipTest("there is no node here")
        texts = (*ODD_TEXTS, "".join(ODD_TEXTS))
        statements = []
        for text in texts:
            script = fill_script(text, text, text, [ScriptServer("chat.example", 9000)]).decode()
            head = script.partition("\n};\n")[0] + "\n};\n"
            statements.append(f"{head}console.log(JSON.stringify(BOT_CONFIG));")
        output = await getProcessOutput(node, ("-e", "\n".join(statements)), reactor=reactor)
        for text, line in zip(texts, output.splitlines(), strict=True):
            found = json.loads(line)
            names = ("BOT_NAME", "SECRET_KEY", "BOT_SPECIFIC_SALT")
            self.assertEqual([found[name] for name in names], [text] * 3)
            self.assertEqual(found["SERVER_LIST"][0]["host"], "chat.example")
            self.assertEqual(found["TRUSTED_HOSTS"], [])
