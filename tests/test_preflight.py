"""Tests for L{domaeka.server.preflight}."""

import os
import pwd
import resource
import shlex
import shutil
import sysconfig
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from domaeka.config import Settings, load_settings
from domaeka.errors import ConfigError
from domaeka.server.preflight import (
    acting_as,
    allow_open_files,
    check_pidfile,
    open_state,
    operator_command,
)
from domaeka.state import state_path


class OpenFilesTests(SynchronousTestCase):
    """Tests for L{allow_open_files}."""

    def setUp(self) -> None:
        self.limits = (1024, 4096)
        self.patch(resource, "getrlimit", lambda which: self.limits)
        self.patch(resource, "setrlimit", self.set_limits)

    def set_limits(self, which: int, limits: tuple[int, int]) -> None:
        """As the kernel does."""
        if limits[0] > self.limits[1]:
            raise ValueError("current limit exceeds maximum limit")
        self.limits = limits

    def settings(self, connections: int) -> Settings:
        return load_settings(None, [("server.max_connections", str(connections))], {})

    def test_enough(self) -> None:
        """Where there are enough already nothing is changed."""
        for limits in ((1024, 4096), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)):
            self.limits = limits
            allow_open_files(self.settings(200))
            self.assertEqual(self.limits, limits)

    def test_raised(self) -> None:
        """
        The limit is raised to what is needed: half as many may be closing, and as many may have
        fallen silent; that far only where the machine allows it.
        """
        for connections, raised in ((1500, 4050), (2000, 4096)):
            self.limits = (1024, 4096)
            allow_open_files(self.settings(connections))
            self.assertEqual(self.limits, (raised, 4096))

    def test_too_few(self) -> None:
        """What the machine does not allow is said in one line."""
        error = self.assertRaises(ConfigError, allow_open_files, self.settings(3000))
        for word in ("server.max_connections", "4800", "4096", "LimitNOFILE"):
            self.assertIn(word, str(error))
        self.assertEqual(len(str(error).splitlines()), 1)


class OpenStateTests(SynchronousTestCase):
    """Tests for L{open_state}."""

    def setUp(self) -> None:
        self.base = Path(self.mktemp()).absolute()
        self.base.mkdir(parents=True)
        self.addCleanup(os.umask, os.umask(0o022))

    def open(self, url: str = "") -> None:
        """A server takes its place, and goes."""
        settings = load_settings(None, [("storage.url", url)] if url else [], {})
        lock = open_state(str(self.base / "state"), {}, settings, 0.0).lock
        assert lock is not None
        lock.close()

    def modes(self, path: Path) -> dict[str, int]:
        """Of each file of a directory."""
        return {entry.name: entry.stat().st_mode & 0o777 for entry in path.iterdir()}

    def test_private(self) -> None:
        """Nobody else may read anything of it, wherever SQLite's files are."""
        self.open()
        names = {"domaeka.db", "node", "secrets.toml", "server.lock"}
        self.assertEqual(self.modes(self.base / "state"), dict.fromkeys(names, 0o600))
        elsewhere = self.base / "db"
        elsewhere.mkdir()
        for name in ("x.db-wal", "x.db-shm"):
            (elsewhere / name).touch(0o644)
        self.open(f"sqlite:///{elsewhere}/x.db")
        names = {"x.db", "x.db-wal", "x.db-shm"}
        self.assertEqual(self.modes(elsewhere), dict.fromkeys(names, 0o600))

    def test_cannot_be_written(self) -> None:
        """The setting and the file are named in one line."""
        error = self.assertRaises(ConfigError, self.open, f"sqlite:///{self.base}")
        said = f"storage.url: cannot open {self.base}: Is a directory"
        self.assertEqual(str(error), said)

    def test_two_servers(self) -> None:
        """A second one changes nothing before it is refused."""
        settings = load_settings(None, (), {})
        first = open_state(str(self.base), {}, settings, 0.0)
        assert first.lock is not None
        (self.base / "node").unlink()
        self.assertRaises(ConfigError, open_state, str(self.base), {}, settings, 0.0)
        self.assertFalse((self.base / "node").exists())
        first.lock.close()


class ActingAsTests(SynchronousTestCase):
    """Tests for L{acting_as}."""

    def test_nobody_else(self) -> None:
        """Without twistd's options, or with our own user, nothing changes."""
        for uid, gid in ((None, None), (os.geteuid(), None)):
            with acting_as(uid, gid):
                self.assertEqual(os.geteuid(), os.getuid())

    def test_only_root(self) -> None:
        """Whoever is not root is told."""
        self.patch(os, "geteuid", lambda: 12345)
        with self.assertRaises(ConfigError) as caught, acting_as(12346, None):
            pass
        self.assertIn("only root", str(caught.exception))

    def test_made_by_that_user(self) -> None:
        """What is made is the user's; then we are root again."""
        if os.geteuid() != 0:
            raise SkipTest("needs root")
        user = pwd.getpwnam("nobody")
        before = os.geteuid(), os.getegid(), os.getgroups()
        base = Path(self.mktemp())
        base.mkdir()
        os.chown(base, user.pw_uid, -1)
        number = os.open(base, os.O_RDONLY)
        self.addCleanup(os.close, number)
        with acting_as(user.pw_uid, None):
            os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=number))
            self.assertNotIn(0, os.getgroups())
        made = (base / "x").stat()
        self.assertEqual((made.st_uid, made.st_gid), (user.pw_uid, user.pw_gid))
        self.assertEqual((os.geteuid(), os.getegid(), os.getgroups()), before)

    def test_unknown(self) -> None:
        """A number that is nobody's is named: twistd would end with a traceback."""
        if os.geteuid() != 0:
            raise SkipTest("needs root")
        with self.assertRaises(ConfigError) as caught, acting_as(4_000_000_001, None):
            pass
        self.assertIn("4000000001", str(caught.exception))


class PidfileTests(SynchronousTestCase):
    """Tests for L{check_pidfile}."""

    def test_place(self) -> None:
        """A place that cannot be written is named, with what helps; none, or a good one, is not."""
        check_pidfile({"pidfile": ""})
        check_pidfile({"pidfile": os.path.abspath("x.pid")})
        error = self.assertRaises(ConfigError, check_pidfile, {"pidfile": "/nowhere/x.pid"})
        for said in ("/nowhere/x.pid", "--pidfile="):
            self.assertIn(said, str(error))


class OperatorCommandTests(SynchronousTestCase):
    """Tests for L{operator_command}."""

    def setUp(self) -> None:
        self.patch(shutil, "which", lambda name: f"/usr/bin/{name}")
        self.patch(os, "environ", {"HOME": "/home/shop", "STATE_DIRECTORY": "/var/lib/domaeka"})

    def command(self, directory: str) -> str:
        """What is to be typed."""
        return operator_command("bans lift 192.0.2.1/32", Path(directory))

    def test_usual_server(self) -> None:
        """Where all is as commands expect it, nothing more is typed."""
        usual = str(state_path(None, {"HOME": "/home/shop"}))
        self.assertEqual(self.command(usual), "domaeka bans lift 192.0.2.1/32")

    def test_unusual_server(self) -> None:
        """A directory that a shell would take apart is named: its socket leads to the server."""
        typed = shlex.split(self.command("/srv/a b{}"))
        self.assertEqual(typed[4:], ["--state-dir", "/srv/a b{}"])
        # An operator's shell does not have systemd's environment.
        self.assertIn("--state-dir /var/lib/domaeka", self.command("/var/lib/domaeka"))

    def test_not_on_the_path(self) -> None:
        """In a virtual environment that is not active, the command is named with its place."""
        self.patch(shutil, "which", lambda name: None)
        beside = Path(self.mktemp()).absolute()
        beside.mkdir()
        self.patch(sysconfig, "get_path", lambda which: str(beside))
        self.assertTrue(self.command("/srv/d").startswith("domaeka bans lift "))
        (beside / "domaeka").touch()
        self.assertTrue(self.command("/srv/d").startswith(f"{beside}/domaeka bans lift "))
