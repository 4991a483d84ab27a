"""Files with secrets that belong to another user are refused, whoever we are."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import load_settings
from domaeka.errors import ConfigError
from domaeka.secrets import load_or_create_secrets, load_secrets
from domaeka.state import lock_directory, make_private_file, make_state_directory
from domaeka.toml import trusting

#: A user who is neither root nor we.
ANOTHER = 54321


class OwnersTests(SynchronousTestCase):
    """A state directory of ours, with files of another user in it."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(mode=0o700)
        load_or_create_secrets(self.directory)

    def give_away(self, path: Path) -> None:
        """Have a file belong to another user, as far as anybody can tell."""
        if os.geteuid() == 0:
            os.chown(path, ANOTHER, -1)
            return
        own = os.geteuid() + 1
        self.patch(os, "geteuid", lambda: own)

    def refusal(self, error: ConfigError, path: Path) -> None:
        """One line that says which file, whose, and what to do."""
        text = str(error)
        self.assertEqual(len(text.splitlines()), 1)
        for word in (str(path), "uid ", "chown "):
            self.assertIn(word, text)

    def test_state_directory(self) -> None:
        """A state directory of another user is refused at the start, whatever its mode."""
        self.give_away(self.directory)
        error = self.assertRaises(ConfigError, make_state_directory, str(self.directory), {})
        self.refusal(error, self.directory)

    def test_secrets(self) -> None:
        """So are secrets in a directory of ours."""
        path = self.directory / "secrets.toml"
        self.give_away(path)
        if os.geteuid() != 0:
            return  # the directory is as much another's now
        self.refusal(self.assertRaises(ConfigError, load_secrets, self.directory), path)

    def test_settings(self) -> None:
        """So is a config file with a secret, or a file of one; without a secret it is taken."""
        config, key = self.directory / "config.toml", self.directory / "key"
        config.write_text("[server]\nport = 9001\n")
        self.give_away(config)
        self.assertEqual(load_settings(config, [], {}).server.port, 9001)
        config.write_text('[auth]\nsecret_key = "sixteen bytes or more"\n')
        config.chmod(0o600)
        self.refusal(self.assertRaises(ConfigError, load_settings, config, [], {}), config)
        key.write_text("sixteen bytes or more")
        key.chmod(0o600)
        self.give_away(key)
        if os.geteuid() == 0:
            auth = load_settings(None, [("auth.secret_key_file", str(key))], {}).auth
            self.refusal(self.assertRaises(ConfigError, load_secrets, self.directory, auth), key)

    def test_database(self) -> None:
        """So is a file of SQLite's, and it is left as it is."""
        path = self.directory / "domaeka.db"
        path.write_bytes(b"theirs")
        path.chmod(0o666)
        self.give_away(path)
        self.refusal(self.assertRaises(ConfigError, make_private_file, path), path)
        self.assertEqual((path.read_bytes(), path.stat().st_mode & 0o777), (b"theirs", 0o666))

    def test_who_the_server_will_be(self) -> None:
        """C{twistd --uid} names one user more, for as long as the server is made."""
        path = self.directory / "key"
        make_private_file(path)
        self.give_away(path)
        with trusting(path.stat().st_uid):
            make_private_file(path)
        self.assertRaises(ConfigError, make_private_file, path)

    def test_commands_of_root(self) -> None:
        """Root's commands take what belongs to the user whose the state directory is."""
        if os.geteuid() != 0:
            return
        for path in (self.directory, self.directory / "secrets.toml"):
            os.chown(path, ANOTHER, -1)
        load_secrets(self.directory)
        lock = lock_directory(self.directory)
        assert lock is not None
        lock.close()
        os.chown(self.directory / "secrets.toml", ANOTHER + 1, -1)
        self.assertRaises(ConfigError, load_secrets, self.directory)
