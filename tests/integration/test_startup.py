"""Starts that cannot work, of a real C{twistd}."""

import os
import pwd
import resource
import socket
import subprocess
import sys
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from tests.integration.support import HOST, ROOT, ServerProcess, free_port

#: Longest that a start may take to fail, in seconds.
PATIENCE = 120.0
SECRET = "sesame-sesame"


class StartTests(SynchronousTestCase):
    """One line on standard error, a status that is not 0, and no traceback."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.taken = socket.create_server((HOST, 0))
        self.addCleanup(self.taken.close)
        self.starts: list[tuple[str, subprocess.Popen[str]]] = []
        self.addCleanup(self.end)

    def end(self) -> None:
        """End what still runs."""
        for _, process in self.starts:
            process.kill()
            process.communicate()

    def start(self, named: str, *arguments: str, **environment: str) -> None:
        """
        Start a server that cannot start.

        @param named: what the line must say.
        @param arguments: more options for C{domaeka}.
        @param environment: more of it.
        """
        state = self.directory / f"state{len(self.starts)}"
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
                *("-n", "--pidfile=", "domaeka", f"--state-dir={state}"),
                *(f"--port={free_port()}", f"--http-port={free_port()}"),
                *("--set", f"server.interface={HOST}", *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            # A machine with few open files.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 2000)),
        )
        self.starts.append((named, process))

    def check(self) -> None:
        """Wait until all have failed, and see how."""
        for named, process in self.starts:
            output, errors = process.communicate(timeout=PATIENCE)
            with self.subTest(named):
                self.assertIn(process.returncode, (1, 2), output)
                self.assertEqual(len(errors.splitlines()), 1, errors)
                self.assertIn(named, errors)
                self.assertNotIn("Traceback", output)
                self.assertNotIn(SECRET, output + errors)

    def test_none_works(self) -> None:
        """
        A port that is taken, a place that cannot be had while it runs already, too few open files,
        a bot that cannot be imported, a key that is too weak, which is not shown.
        """
        (self.directory / "broken.py").write_text("raise ValueError('one\\ntwo')\n")
        port = self.taken.getsockname()[1]
        why = f"cannot listen on {HOST}:{port}: Address already in use: does another server run?"
        self.start(f"command line: server.port: {why}", f"--port={port}")
        self.start(
            "unix:/nowhere/at/all: No such", "--set", 'server.endpoints=["unix:/nowhere/at/all"]'
        )
        self.start("server.max_connections", "--set", "server.max_connections=2000")
        self.start("domaeka: bots.load: broken:bot: ValueError: one two (", "--bots", "broken:bot")
        self.start("auth.secret_key", DOMAEKA_AUTH_SECRET_KEY=SECRET)
        self.check()


class TwistdTests(TestCase):
    """What hangs on twistd's own options, and on another server."""

    async def refusal(self, state: Path, *options: str) -> str:
        """
        Have a server start that cannot.

        @param options: twistd's own.
        @return: the one line that it says.
        """
        command = ["-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
        command += [*options, "domaeka", "--port=0", "--http-port=0", f"--state-dir={state}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        _, error, status = await getProcessOutputAndValue(sys.executable, command, environment)
        self.assertEqual((status, len(error.splitlines())), (1, 1), error)
        return str(error.decode())

    async def test_second_server(self) -> None:
        """A second one is refused; after the first was killed there can be one again."""
        first = ServerProcess(self)
        await first.start()
        self.assertIn("another server uses it", await self.refusal(first.state))
        first.signal("KILL")
        await first.ended()
        await first.start()

    async def test_another_user(self) -> None:
        """With --uid the state directory must be that user's, though root could write to it."""
        if os.geteuid() != 0:
            raise SkipTest("needs root")
        state = Path(self.mktemp()).absolute()
        state.mkdir(parents=True, mode=0o700)
        said = await self.refusal(state, "--uid=nobody")
        self.assertIn(f"for uid {pwd.getpwnam('nobody').pw_uid}; give --state-dir", said)
        self.assertEqual(os.listdir(state), [])
