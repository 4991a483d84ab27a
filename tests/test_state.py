"""Tests for L{domaeka.state} and L{domaeka.secrets}."""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from domaeka import secrets, state
from domaeka.config import AuthSettings
from domaeka.errors import ConfigError
from domaeka.secrets import Secrets, load_or_create_secrets, load_secrets
from domaeka.state import (
    lock_directory,
    make_private_file,
    make_state_directory,
    node_name,
    state_path,
)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


class StateDirectoryTests(SynchronousTestCase):
    """Tests for L{state_directory}."""

    def setUp(self) -> None:
        self.base = Path(self.mktemp()).absolute()
        self.base.mkdir(parents=True, mode=0o700)

    def test_order(self) -> None:
        """The option goes first, then systemd's word, then XDG's, then the home directory."""
        environment = {"HOME": str(self.base / "home")}
        expected = self.base / "home/.local/state/domaeka"
        self.assertEqual(make_state_directory(None, environment), expected)
        environment["XDG_STATE_HOME"] = str(self.base / "xdg")
        self.assertEqual(make_state_directory(None, environment), self.base / "xdg/domaeka")
        environment["STATE_DIRECTORY"] = f"{self.base}/one:{self.base}/two"
        self.assertEqual(make_state_directory(None, environment), self.base / "one")
        self.assertEqual(
            make_state_directory(f"{self.base}/given", environment), self.base / "given"
        )

    def test_private(self) -> None:
        """A directory that is made, or found empty, is nobody else's business."""
        found = self.base / "found"
        found.mkdir(mode=0o755)
        for path in (found, self.base / "deep" / "er"):
            self.assertEqual(mode_of(make_state_directory(str(path), {})), 0o700)

    def test_leaves_others_alone(self) -> None:
        """A directory with other things in it keeps its mode, and must not be writable by all."""
        self.base.chmod(0o755)
        (self.base / "something").touch()
        self.assertEqual(mode_of(make_state_directory(str(self.base), {})), 0o755)
        self.base.chmod(0o777)
        self.assertRaises(ConfigError, make_state_directory, str(self.base), {})

    def test_unusable(self) -> None:
        """What cannot be used is named in one line."""
        (self.base / "file").touch()
        for option in (f"{self.base}/file", f"{self.base}/file/below", "/proc/nothing", "a\0b"):
            error = self.assertRaises(ConfigError, make_state_directory, option, {})
            self.assertEqual(len(str(error).splitlines()), 1)
            self.assertIn("state directory", str(error))


class VolumeTests(SynchronousTestCase):
    """
    The root of a volume in a container, which is root's and others may write to.

    Only root can be somebody else for a while.
    """

    UID, ANOTHER = 12345, 12346

    def setUp(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("needs root")
        self.root = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        self.addCleanup(self.become, 0)

    def become(self, uid: int) -> None:
        """Be somebody else from now on."""
        os.seteuid(0)
        os.setegid(uid)
        os.seteuid(uid)

    def volume(self, mode: int, owner: int = 0) -> str:
        """The root, given to us by a group or by all."""
        self.become(0)
        os.chown(self.root, owner, self.UID)
        self.root.chmod(mode)
        self.become(self.UID)
        return str(self.root)

    def refusal(self, option: str) -> str:
        said = str(self.assertRaises(ConfigError, make_state_directory, option, {}))
        self.assertEqual(len(said.splitlines()), 1)
        return said

    def test_own_directory_below(self) -> None:
        """There is a private directory of our own in it, which the commands find, root's too."""
        own = self.root / "domaeka"
        for mode in (0o2777, 0o2775, 0o2770, 0o777, 0o1777):
            volume = self.volume(mode)
            self.assertEqual(make_state_directory(volume, {}), own)
            self.assertEqual((mode_of(own), own.stat().st_uid), (0o700, self.UID))
            load_or_create_secrets(own)
            self.assertEqual(state_path(volume, {}), own)
            self.become(0)
            self.assertEqual(state_path(volume, {}), own)

    def test_opened_by_kubernetes(self, owner: int = 0) -> None:
        """What an fsGroup has opened for its group at a restart is closed again, and kept."""
        directory = make_state_directory(self.volume(0o2770, owner), {})
        made = load_or_create_secrets(directory)
        (directory / state.SECRETS_NAME).chmod(0o660)
        directory.chmod(0o2770)
        self.assertEqual(make_state_directory(str(self.root), {}), directory)
        self.assertEqual(mode_of(directory), 0o700)
        self.assertEqual(load_secrets(directory), made)

    def test_own_root_opened_by_kubernetes(self) -> None:
        """Likewise where the root of the volume is ours, and so the state directory itself."""
        self.test_opened_by_kubernetes(self.UID)

    def test_another_users(self) -> None:
        """A directory of another user is refused, however it is open, and whoever we are."""
        for mode in (0o700, 0o755, 0o777, 0o1777):
            self.assertIn(str(self.root), self.refusal(self.volume(mode, self.ANOTHER)))
        self.volume(0o1777)
        self.become(self.ANOTHER)
        planted = self.root / "domaeka"
        planted.mkdir(0o755)
        for uid in (self.UID, 0):
            self.become(uid)
            self.assertIn("another user", self.refusal(str(planted)))
        self.assertEqual(os.listdir(planted), [])

    def test_planted_link(self) -> None:
        """A symbolic link of another user leads nowhere, though it be to a directory of ours."""
        ours = self.root / "ours"
        for mode in (0o777, 0o1777):
            volume = self.volume(mode)
            ours.mkdir(0o755, exist_ok=True)
            link = self.root / "domaeka"
            self.become(self.ANOTHER)
            link.symlink_to(ours)
            for uid, option in ((self.UID, volume), (self.UID, f"{link}/x"), (0, str(link))):
                self.become(uid)
                self.assertIn("symbolic link of another user", self.refusal(option))
            self.become(0)
            self.assertEqual((os.listdir(ours), mode_of(ours)), ([], 0o755))
            link.unlink()

    def test_own_link(self) -> None:
        """A symbolic link of our own is followed."""
        self.volume(0o1777)
        (self.root / "ours").mkdir()
        (self.root / "link").symlink_to(self.root / "ours")
        self.assertEqual(make_state_directory(f"{self.root}/link", {}), self.root / "link")

    def test_not_for_us(self) -> None:
        """Where we may not write we are told whose it must be."""
        for option in (self.volume(0o755), f"{self.root}/x"):
            self.assertIn(f"install -d -o {self.UID} -m 700", self.refusal(option))


class LockTests(SynchronousTestCase):
    """Tests for L{lock_directory}."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def test_one_server(self) -> None:
        """A second server is refused until the first one has ended."""
        first = lock_directory(self.directory)
        assert first is not None
        error = self.assertRaises(ConfigError, lock_directory, self.directory)
        self.assertIn("another server uses it", str(error))
        first.close()
        second = lock_directory(self.directory)
        assert second is not None
        second.close()

    def test_commands(self) -> None:
        """What only reads the secrets, or changes them, does not mind the server."""
        lock = lock_directory(self.directory)
        assert lock is not None
        load_or_create_secrets(self.directory)
        secrets.rotate_secret_key(self.directory, 0.0, 0.0)
        lock.close()

    def test_no_locks(self) -> None:
        """A file system without locks keeps no server from its work."""

        def refuse(file: object, operation: int) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        self.patch(fcntl, "flock", refuse)
        self.assertIsNone(lock_directory(self.directory))

    def test_cannot_be_written(self) -> None:
        """The file is named."""
        (self.directory / state.LOCK_NAME).mkdir()
        error = self.assertRaises(ConfigError, lock_directory, self.directory)
        self.assertIn(state.LOCK_NAME, str(error))


class PrivateFileTests(SynchronousTestCase):
    """Tests for L{make_private_file}."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.addCleanup(os.umask, os.umask(0o022))

    def test_modes(self) -> None:
        """A new one is private, as is one that all could read; a group keeps what it has."""
        make_private_file(self.path)
        self.assertEqual(mode_of(self.path), 0o600)
        self.path.write_text("kept")
        for mode, then in ((0o644, 0o600), (0o666, 0o600), (0o640, 0o640)):
            self.path.chmod(mode)
            make_private_file(self.path)
            self.assertEqual(mode_of(self.path), then)
        self.assertEqual(self.path.read_text(), "kept")

    def test_another_users(self) -> None:
        """One that all may read, and that is not ours to mend, is refused, with what helps."""

        def refuse(number: int, mode: int) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        make_private_file(self.path)
        self.path.chmod(0o666)
        self.patch(os, "fchmod", refuse)
        error = self.assertRaises(ConfigError, make_private_file, self.path)
        self.assertIn(f"try: chmod 600 {self.path}", str(error))

    def test_no_file(self) -> None:
        """What is none is named, at once."""
        os.mkfifo(self.path)
        error = self.assertRaises(ConfigError, make_private_file, self.path)
        self.assertEqual(str(error), f"{self.path}: not a file")
        error = self.assertRaises(ConfigError, make_private_file, self.path / "x", "storage.url: x")
        self.assertEqual(str(error), "storage.url: x: Not a directory")


class SecretsTests(SynchronousTestCase):
    """Tests for L{load_or_create_secrets} and L{load_secrets}."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir(parents=True)
        self.path = self.directory / state.SECRETS_NAME

    def write(self, text: str) -> None:
        self.path.write_text(text, encoding="utf-8")
        self.path.chmod(0o600)

    def refusal(self, text: str, auth: AuthSettings | None = None) -> str:
        self.write(text)
        return str(self.assertRaises(ConfigError, load_secrets, self.directory, auth))

    def test_made_once(self) -> None:
        """The first start makes them, private and random; the second finds them."""
        first = load_or_create_secrets(self.directory)
        self.assertEqual(mode_of(self.path), 0o600)
        self.assertGreaterEqual(len({first.secret_key, first.salt, first.admin_token}), 3)
        self.assertGreaterEqual(min(map(len, (first.secret_key, first.admin_token))), 43)
        self.assertEqual(load_or_create_secrets(self.directory), first)
        self.assertEqual(os.listdir(self.directory), [state.SECRETS_NAME])

    def test_second_of_two_takes_what_the_first_wrote(self) -> None:
        """A process that comes late by an instant replaces nothing."""
        first = load_or_create_secrets(self.directory)
        secrets._create(self.path)
        self.assertEqual(load_secrets(self.directory), first)
        self.assertEqual(os.listdir(self.directory), [state.SECRETS_NAME])

    def test_settings_go_first(self) -> None:
        """A setting stands before the file."""
        load_or_create_secrets(self.directory)
        auth = AuthSettings(secret_key="k" * 16, salt="소금", previous_secret_key="p" * 16)
        found = load_secrets(self.directory, auth)
        self.assertEqual((found.secret_key, found.salt), ("k" * 16, "소금"))
        self.assertEqual(found.accepted_keys(0.0), ("k" * 16, "p" * 16))

    def test_previous_key_ends(self) -> None:
        """A previous key is accepted until its time, or for ever where none is given."""
        found = Secrets(secret_key="k", salt="s", admin_token="t", previous_secret_key="p")
        self.assertEqual(found.accepted_keys(1e10), ("k", "p"))
        found = Secrets(
            secret_key="k",
            salt="s",
            admin_token="t",
            previous_secret_key="p",
            previous_valid_until=50.0,
        )
        self.assertEqual(found.accepted_keys(49.0), ("k", "p"))
        self.assertEqual(found.accepted_keys(50.0), ("k",))

    def test_readable_by_others(self) -> None:
        """Secrets that others may read are no secrets."""
        load_or_create_secrets(self.directory)
        for mode in (0o640, 0o604, 0o660):
            self.path.chmod(mode)
            error = self.assertRaises(ConfigError, load_secrets, self.directory)
            self.assertIn("chmod 600", str(error))

    def test_weak_or_wrong(self) -> None:
        """What is missing, weak or wrong is named; its value is not shown."""
        token = f'admin_token = "{"t" * 32}"\n'
        for text, named in (
            (f'secret_key = "sesame"\nsalt = "s"\n{token}', "secret_key"),
            (f'secret_key = "sesame-sesame-sesame"\nsalt = ""\n{token}', "salt"),
            (f'secret_key = "sesame-sesame-sesame"\n{token}', "salt"),
            ('secret_key = "sesame-sesame-sesame"\nsalt = "s"\nadmin_token = ""', "admin_token"),
            ('secret_key = "sesame-sesame\nsesame-"', "secrets.toml:1:"),
            ('\nsecret_key = "sesame-sesame', "secrets.toml:2:"),
            ("secret_key = " + "9" * 5000, "secrets.toml"),
            (f"secret_key = 5\nsalt = 's'\n{token}", "secret_key"),
            (f"sesame = 5\nsecret_key = '{'k' * 16}'\nsalt = 's'\n{token}", "sesame"),
        ):
            said = self.refusal(text)
            self.assertIn(named, said)
            self.assertNotIn("sesame-", said)
            self.assertEqual(len(said.splitlines()), 1)

    def test_published_key(self) -> None:
        """The key that everybody knows is let through only where the operator says so."""
        known = "known-to-everybody"
        self.patch(secrets, "PUBLISHED_KEY_SHA256", hashlib.sha256(known.encode()).hexdigest())
        text = f'secret_key = "{known}"\nsalt = "s"\nadmin_token = "{"t" * 32}"\n'
        self.assertIn("auth.accept_published_key", self.refusal(text))
        accepting = AuthSettings(accept_published_key=True)
        found = load_secrets(self.directory, accepting)
        self.assertEqual((found.secret_key, found.has_published_key(0.0)), (known, True))
        found = secrets.rotate_secret_key(self.directory, 10.0, 0.0)
        self.assertEqual([found.has_published_key(now) for now in (9.0, 10.0)], [True, False])

    def test_previous_key_that_has_ended(self) -> None:
        """A weak previous key stops the start while it is accepted, and not once it has ended."""
        self.write(
            f'secret_key = "{"k" * 32}"\nsalt = "s"\nadmin_token = "{"t" * 32}"\n'
            'previous_secret_key = "weak"\nprevious_valid_until = 50.0\n'
        )
        error = self.assertRaises(ConfigError, load_secrets, self.directory, None, 49.0)
        self.assertIn("previous_secret_key", str(error))
        found = load_secrets(self.directory, None, 50.0)
        self.assertEqual([found.previous_over(now) for now in (49.0, 50.0)], [False, True])

    def test_in_files(self) -> None:
        """A setting may name the file that a secret is in; others must not read that."""
        load_or_create_secrets(self.directory)
        file = self.directory / "key"
        file.write_text("k" * 16 + "\n")
        file.chmod(0o440)
        auth = AuthSettings(secret_key_file=str(file))
        self.assertEqual(load_secrets(self.directory, auth).secret_key, "k" * 16)
        for mode, text in ((0o444, "k" * 16), (0o600, "\n"), (0o600, "short")):
            file.chmod(0o600)
            file.write_text(text)
            file.chmod(mode)
            error = self.assertRaises(ConfigError, load_secrets, self.directory, auth)
            self.assertIn(f"auth.secret_key_file: {file}: ", str(error))
            self.assertNotIn("kkk", str(error))

    def test_rotated(self) -> None:
        """A new key takes the place of the old one, which is accepted for a while, or is not."""
        old = load_or_create_secrets(self.directory)
        new = secrets.rotate_secret_key(self.directory, 60.0, 1000.0)
        self.assertEqual(load_secrets(self.directory), new)
        self.assertEqual((new.salt, new.admin_token), (old.salt, old.admin_token))
        self.assertEqual(new.accepted_keys(1059.0), (new.secret_key, old.secret_key))
        self.assertEqual((new.accepted_keys(1060.0), new.previous_ends), ((new.secret_key,), 1060))
        last = secrets.rotate_secret_key(self.directory, 0.0, 1000.0)
        self.assertEqual(last.accepted_keys(0.0), (last.secret_key,))
        self.assertEqual(len({old.secret_key, new.secret_key, last.secret_key}), 3)
        self.assertEqual(os.listdir(self.directory), [state.SECRETS_NAME])
        self.assertEqual(mode_of(self.path), 0o600)

    def test_any_text_is_written_as_it_is(self) -> None:
        """Whatever stands in the file, a new key changes nothing else of it."""
        salt = '소금 👋\x7f"\\\n\t\x01'
        self.write(
            f'secret_key = "{"k" * 16}"\nadmin_token = "{"t" * 32}"\n'
            'salt = "소금 👋\\u007f\\"\\\\\\n\\t\\u0001"\n'
        )
        self.assertEqual(load_secrets(self.directory).salt, salt)
        self.assertEqual(secrets.rotate_secret_key(self.directory, 1.0, 0.0).salt, salt)
        self.assertEqual(load_secrets(self.directory).salt, salt)

    def test_odd_files(self) -> None:
        """A pipe, a directory, bytes that are no text or far too many: one line, at once."""
        os.mkfifo(self.path, 0o600)
        self.assertRaises(ConfigError, load_or_create_secrets, self.directory)
        self.path.unlink()
        self.path.mkdir(mode=0o700)
        self.assertRaises(ConfigError, load_or_create_secrets, self.directory)
        self.path.rmdir()
        self.assertRaises(ConfigError, load_secrets, self.directory)
        for raw in (b"\xff", b"#" * 70_000, b"a=" + b"[" * 5000):
            self.path.write_bytes(raw)
            self.path.chmod(0o600)
            self.assertRaises(ConfigError, load_secrets, self.directory)

    def test_repr_says_nothing(self) -> None:
        """A line of a log that shows the object shows no secret."""
        found = load_or_create_secrets(self.directory)
        self.assertNotIn(found.secret_key, f"{found!r} {found}")


class NodeNameTests(SynchronousTestCase):
    """Tests for L{node_name}."""

    def test_stays(self) -> None:
        """It is made once, for whoever owns the directory only."""
        directory = Path(self.mktemp())
        directory.mkdir()
        name = node_name(directory)
        self.assertEqual(node_name(directory), name)
        self.assertEqual((directory / "node").stat().st_mode & 0o777, 0o600)

    def test_of_its_own(self) -> None:
        """No two servers have the same, though they are on one machine."""
        names = []
        for _ in range(2):
            directory = Path(self.mktemp())
            directory.mkdir()
            names.append(node_name(directory))
        self.assertNotEqual(*names)

    def test_full_disk(self) -> None:
        """One that cannot be written is named, and leaves nothing; an empty one is made anew."""
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "node").touch()

        def full(number: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        fsync = os.fsync
        self.patch(os, "fsync", full)
        error = self.assertRaises(ConfigError, node_name, directory)
        self.assertEqual(str(error), f"{directory}/node: No space left on device")
        self.assertEqual(os.listdir(directory), ["node"])
        self.patch(os, "fsync", fsync)
        self.assertEqual(node_name(directory), node_name(directory))

    def test_no_file(self) -> None:
        """A pipe in its place holds nobody up."""
        directory = Path(self.mktemp())
        directory.mkdir()
        os.mkfifo(directory / "node")
        self.assertRaises(ConfigError, node_name, directory)
