"""Starts that cannot work, of a real C{twistd}."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support import HOST, ROOT, free_port

#: Longest that a start may take to fail, in seconds.
PATIENCE = 60.0
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

    def test_machine(self) -> None:
        """Ports that are taken, too few open files, a state directory that cannot be one."""
        port = self.taken.getsockname()[1]
        (self.directory / "file").touch()
        self.start("server.port", f"--port={port}")
        self.start("http.port", f"--http-port={port}")
        place = f"tcp:{port}:interface={HOST}"
        (self.directory / "taken.toml").write_text(f'[server]\nendpoints = ["{place}"]\n')
        why = f"cannot listen on {HOST}:{port}: Address already in use: does another server run?"
        self.start(f"taken.toml:2: server.endpoints: {place}: {why}", "--config", "taken.toml")
        self.start(
            "unix:/nowhere/at/all: No such", "--set", 'server.endpoints=["unix:/nowhere/at/all"]'
        )
        self.start("server.max_connections", "--set", "server.max_connections=2000")
        self.start("state directory", f"--state-dir={self.directory}/file")
        self.start("/sys", "--state-dir=/sys")
        self.start(
            "command line: storage.url: cannot open", "--set", "storage.url=sqlite:////proc/no.db"
        )
        self.check()

    def test_settings(self) -> None:
        """Wrong settings, wherever they come from, and bots that cannot be loaded."""
        (self.directory / "wrong.toml").write_text("[server]\nport = 'x'\n")
        (self.directory / "broken.py").write_text("raise ValueError('one\\ntwo')\n")
        self.start("ping.interval", "--set", "ping.interval=often")
        self.start("'no.such'", "--set", "no.such=1")
        self.start("wrong.toml:2", "--config", "wrong.toml")
        self.start("nothing.toml", "--config", "nothing.toml")
        self.start("DOMAEKA_PING_TIMEOUT", DOMAEKA_PING_TIMEOUT="-1")
        (self.directory / "bots.toml").write_text('[bots]\nload = ["os:path"]\n')
        self.start("domaeka: bots.load: broken:bot: ValueError: one two (", "--bots", "broken:bot")
        self.start("bots.toml:2: bots.load: os:path: not a", "--config", "bots.toml")
        self.start("not a domaeka.Bot", "--bots", "os:path")
        self.start("tcp:99999: port must be", "--set", 'server.endpoints=["tcp:99999"]')
        self.check()

    def test_secrets(self) -> None:
        """Weak secrets, and files of them that others may read; none is shown."""
        key = self.directory / "key"
        key.write_text(SECRET * 2)
        key.chmod(0o604)
        self.start("auth.secret_key", DOMAEKA_AUTH_SECRET_KEY=SECRET)
        self.start("others may read it", DOMAEKA_AUTH_SECRET_KEY_FILE=str(key))
        self.start("not beside", DOMAEKA_AUTH_SALT=SECRET, DOMAEKA_AUTH_SALT_FILE=str(key))
        self.start("tls.certificate", "--set", "tls.certificate=/nothing.pem")
        self.check()
