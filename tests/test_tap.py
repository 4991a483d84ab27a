"""Tests for L{domaeka.tap}: what is said on the command line, and the server that comes of it."""

import os
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from twisted.logger import globalLogBeginner

from domaeka import tap
from domaeka.logs import LogObserver
from domaeka.server import GatewayService, open_state
from domaeka.tap import Options, makeService
from tests.server_case import HOST, Reactor, ServerCase
from twisted import internet


class TapCase(ServerCase):
    """C{twistd domaeka}, on a virtual network."""

    def setUp(self) -> None:
        super().setUp()
        self.state = Path(self.mktemp()).absolute()
        self.reactor: Any = Reactor(self.clock, self.network, lambda: None)
        self.patch(internet, "reactor", self.reactor)
        self.patch(tap, "Sockets", lambda reactor: self.network)
        self.patch(LogObserver, "lead_standard_logging", lambda observer: None)
        self.patch(globalLogBeginner, "beginLoggingTo", lambda *args, **kwargs: None)
        self.patch(sys, "stderr", StringIO())

    def options(self, *arguments: str, **twistd: object) -> Options:
        """What was typed.  @param twistd: options of C{twistd} itself."""
        options = Options()
        parent: Any = {"nodaemon": True, **twistd}
        options.parent = parent
        options.parseOptions(["--state-dir", str(self.state), *arguments])
        return options

    def make(self, *arguments: str, **twistd: object) -> GatewayService:
        """A server."""
        usual = ("--set", f"server.interface={HOST}", "--set", "server.max_connections=100")
        service = makeService(self.options(*usual, *arguments, **twistd))
        lock = service._lock
        assert lock is not None
        self.addCleanup(lock.close)
        return service

    def refusal(self, *arguments: str, **twistd: object) -> str:
        """The one line that a start which cannot work ends with."""
        ended = self.assertRaises(SystemExit, makeService, self.options(*arguments, **twistd))
        self.assertEqual(ended.code, 1)
        errors: Any = sys.stderr
        said = errors.getvalue()
        self.assertEqual(len(said.splitlines()), 1, said)
        return str(said)


class OptionsTests(TapCase):
    """What is said on the command line."""

    def test_set_without_a_value(self) -> None:
        """A C{--set} without a value is answered in one line."""
        said = self.assertRaises(SystemExit, self.options, "--set", "server.port")
        self.assertEqual(str(said), "domaeka: --set server.port: must be SECTION.KEY=VALUE")

    def test_version(self) -> None:
        """The version is shown, and nothing is started."""
        output = StringIO()
        self.patch(sys, "stdout", output)
        ended = self.assertRaises(SystemExit, self.options, "--version")
        self.assertEqual((ended.code, output.getvalue()[:8]), (0, "domaeka "))

    def test_settings(self) -> None:
        """Ports have options of their own, which come last; a file may be named."""
        file = Path(self.mktemp())
        file.write_text("[ping]\ninterval = 7\n")
        options = self.options(
            *("--set", "server.port=1", "--port=2", "--http-port=3", f"--config={file}")
        )
        settings = options.source().load()
        self.assertEqual((settings.server.port, settings.http.port), (2, 3))
        self.assertEqual(settings.ping.interval, 7)
        self.assertEqual(self.options().source().load().server.port, 9000)


class MakeServiceTests(TapCase):
    """Tests for L{makeService}."""

    def test_server(self) -> None:
        """What is typed is what is served: ports, bots, the place of the state."""
        service = self.make("--port=9001", "--http-port=8081", "--bots", "tests.server_case:SLOW")
        self.assertEqual(self.network.taken, {9001, 8081})
        parts = service._parts
        self.assertEqual([bot.name for bot in parts.dispatcher.bots()], ["domaeka", "slow"])
        self.assertEqual(
            (parts.state_directory, parts.more_bots), (self.state, ("tests.server_case:SLOW",))
        )
        self.assertEqual(service._warnings, ())

    def test_working_directory(self) -> None:
        """Bots beside the place from which it is started can be loaded."""
        self.patch(sys, "path", [path for path in sys.path if path])
        while str(Path.cwd()) in sys.path:
            sys.path.remove(str(Path.cwd()))
        self.make()
        self.assertEqual(sys.path[0], str(Path.cwd()))

    def test_what_others_can_read(self) -> None:
        """A secret on the command line is warned of, and a file system without locks."""
        self.patch(tap, "open_state", lambda *args: self.unlocked(open_state(*args)))
        key = "auth.secret_key=" + "k" * 40
        arguments = ("--set", f"server.interface={HOST}", "--set", "server.max_connections=100")
        service = makeService(self.options(*arguments, "--set", key))
        locks, secret = service._warnings
        self.assertIn("its file system has no locks", locks)
        self.assertEqual(
            secret, "--set auth.secret_key: others can read it in the list of processes"
        )

    def unlocked(self, state: Any) -> Any:
        """As where there are no locks."""
        state.lock.close()
        return state._replace(lock=None)

    def test_wrong_settings(self) -> None:
        """Wrong settings, wherever they come from: one line that says which, and where."""
        file = Path(self.mktemp())
        file.write_text("[server]\nport = 'x'\n")
        for arguments, said in (
            (("--set", "ping.interval=often"), "command line: ping.interval"),
            (("--set", "no.such=1"), "'no.such'"),
            ((f"--config={file}",), f"{file}:2: server.port: "),
            (("--config=nothing.toml",), "nothing.toml"),
            (("--set", 'server.endpoints=["tcp:99999"]'), "tcp:99999: port must be"),
            (("--set", "tls.certificate=/nothing.pem"), "tls.certificate: /nothing.pem: No such"),
            (("--bots", "os:path"), "bots.load: os:path: not a"),
            (("--set", "server.interface=a..b"), "server.interface: a..b: "),
            (("--set", "storage.url=nonsense"), "command line: storage.url: "),
        ):
            self.patch(sys, "stderr", StringIO())
            self.assertIn(said, self.refusal(*arguments))

    def test_environment(self) -> None:
        """What is wrong in the environment is named by its name there; a key is not shown."""
        for name, value in (("PING_TIMEOUT", "-1"), ("AUTH_SECRET_KEY", "sesame-sesame")):
            self.patch(sys, "stderr", StringIO())
            self.patch(os, "environ", {**os.environ, f"DOMAEKA_{name}": value})
            said = self.refusal()
            self.assertIn(f"DOMAEKA_{name}", said)
            self.assertNotIn("sesame", said)
            os.environ.pop(f"DOMAEKA_{name}")

    def test_ports_that_are_taken(self) -> None:
        """A port that somebody else has is named, with the place of its setting."""
        self.network.taken = {9001}
        said = self.refusal("--set", f"server.interface={HOST}", "--port=9001")
        self.assertIn(f"command line: server.port: cannot listen on {HOST}:9001: Address", said)

    def test_state_directory(self) -> None:
        """A state directory that cannot be one is named, and so is another server's."""
        self.state.write_text("a file")
        self.assertIn(str(self.state), self.refusal())
        self.state.unlink()
        self.make()
        self.patch(sys, "stderr", StringIO())
        self.network.taken.clear()
        self.assertIn("another server uses it", self.refusal())

    def test_pidfile(self) -> None:
        """A pid file that cannot be written is named, before anything is made."""
        self.assertIn("--pidfile: /nowhere/x.pid", self.refusal(pidfile="/nowhere/x.pid"))
        self.assertFalse(self.state.exists())
