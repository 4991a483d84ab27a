"""Tests for L{domaeka.cli.script}, and for the script that C{domaeka init} writes."""

import errno
import os
import stat
from pathlib import Path

import click
from click.testing import CliRunner, Result
from twisted.python.runtime import seconds

from domaeka import phone_script
from domaeka.cli import configuration, main
from domaeka.secrets import load_or_create_secrets, load_secrets, rotate_secret_key
from tests.integration.test_tls import Authority
from tests.test_cli import CommandCase
from tests.test_phone_script import settings_of


class ScriptCase(CommandCase):
    """The command, on a machine with an address."""

    def setUp(self) -> None:
        super().setUp()
        for module in (phone_script, configuration):
            self.patch(module, "own_address", lambda: "192.0.2.9")

    def run_script(self, *arguments: str) -> Result:
        """Run it."""
        return self.run_command("phone-script", "--state-dir", str(self.state), *arguments)


class PhoneScriptTests(ScriptCase):
    """C{domaeka phone-script}."""

    def test_one_command(self) -> None:
        """Without options it is the whole script, for a server that runs here."""
        made = load_or_create_secrets(self.state)
        result = self.run_script()
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        found = settings_of(result.stdout_bytes)
        place = {"host": "192.0.2.9", "port": 9000, "priority": 1, "name": "192.0.2.9"}
        self.assertEqual(found["SERVER_LIST"], [place | {"tls": False, "pin": ""}])
        self.assertEqual(
            (found["BOT_NAME"], found["SECRET_KEY"], found["BOT_SPECIFIC_SALT"]),
            ("domaeka", made.secret_key, made.salt),
        )
        self.assertNotIn(made.admin_token, result.stdout)
        self.assertEqual(self.run_script("-o", "-").stdout, result.stdout)

    def test_any_locale(self) -> None:
        """It is UTF-8, whatever the terminal speaks."""
        load_or_create_secrets(self.state)
        arguments = ["phone-script", "--state-dir", str(self.state), "--bot", "가게봇"]
        for charset in ("ascii", "cp949", "utf-16"):
            result = CliRunner(charset=charset).invoke(main, arguments)
            self.assertIn('BOT_NAME: "가게봇"'.encode(), result.stdout_bytes)

    def test_settings(self) -> None:
        """Port, key and salt are those in force, as `secrets show` has them."""
        load_or_create_secrets(self.state)
        config = self.directory / "other.toml"
        config.write_text("[auth]\nsecret_key = 'k0123456789abcdef'\n[server]\nport = 9100\n")
        config.chmod(0o600)
        self.patch(os, "environ", os.environ | {"DOMAEKA_AUTH_SALT": "소금"})
        found = settings_of(self.run_script("--config", str(config)).stdout_bytes)
        self.assertEqual(
            (found["SECRET_KEY"], found["BOT_SPECIFIC_SALT"]), ("k0123456789abcdef", "소금")
        )
        self.assertEqual(found["SERVER_LIST"][0]["port"], 9100)

    def test_while_the_key_changes(self) -> None:
        """The script has the key that stays, and the note about it is not in the script."""
        old = load_or_create_secrets(self.state)
        new = rotate_secret_key(self.state, 3600.0, seconds())
        result = self.run_script()
        self.assertEqual(settings_of(result.stdout_bytes)["SECRET_KEY"], new.secret_key)
        self.assertNotIn(old.secret_key, result.output)
        self.assertIn("domaeka reload", result.stderr)

    def test_tls(self) -> None:
        """With --pin the certificate of the settings is pinned for every server."""
        load_or_create_secrets(self.state)
        file = self.directory / "server.pem"
        Authority(self.directory, "authority").issue(file)
        Path("domaeka.toml").write_text(f"[tls]\ncertificate = '{file}'\n")
        hosts = ("--host", "a", "--host", "[::1]:5")
        plain, pinned = (
            settings_of(self.run_script("--tls", *hosts, *more).stdout_bytes)["SERVER_LIST"]
            for more in ((), ("--pin",))
        )
        self.assertEqual(
            [(one["host"], one["port"], one["tls"], one["pin"]) for one in plain],
            [("a", 9443, True, ""), ("::1", 5, True, "")],
        )
        (pin,) = {one["pin"] for one in pinned}
        self.assertRegex(pin, "^[0-9a-f]{64}$")

    def test_to_a_file(self) -> None:
        """A file is for nobody else to read, whatever the umask is, and overwritten by force."""
        load_or_create_secrets(self.state)
        self.addCleanup(os.umask, os.umask(0))
        script = self.run_script().stdout_bytes
        result = self.run_script("--output", "bridge.js")
        self.assertEqual((result.exit_code, result.stdout), (0, "Script:   bridge.js\n"))
        file = Path("bridge.js")
        self.assertEqual(file.read_bytes(), script)
        self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600)
        file.write_text("mine")
        file.chmod(0o644)
        result = self.run_script("-o", "bridge.js")
        self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1))
        self.assertEqual(file.read_text(), "mine")
        with file.open() as opened:
            self.assertEqual(self.run_script("-o", "bridge.js", "--force").exit_code, 0)
            self.assertEqual(opened.read(), "mine")
        self.assertEqual(file.read_bytes(), script)
        self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600)

    def test_wrong_files(self) -> None:
        """What cannot be written is one line."""
        load_or_create_secrets(self.state)
        Path("link").symlink_to("nowhere")
        for place in ("nowhere/bridge.js", "link"):
            for more in ((), ("--force",)):
                result = self.run_script("-o", place, *more)
                self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1))
        self.assertTrue(Path("link").is_symlink())

    def test_full_disk(self) -> None:
        """An output for which there is no space is one line."""
        load_or_create_secrets(self.state)

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(click, "echo", full)
        result = self.run_script()
        self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1))

    def test_wrong_use(self) -> None:
        """Names and hosts that would not work are a wrong use, and no script is written."""
        load_or_create_secrets(self.state)
        for arguments in (
            ("--bot", "a\nb"),
            ("--host", "가게.example"),
            ("--host", "a:99999"),
            ("--host", ""),
            ("--host", "a") * 33,
            ("--pin",),
        ):
            result = self.run_script("-o", "bridge.js", *arguments)
            self.assertEqual(result.exit_code, 2, result.output)
        self.assertFalse(Path("bridge.js").exists())

    def test_no_secrets(self) -> None:
        """Where no server was started yet, one line says so; nothing is made."""
        result = self.run_script()
        self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1))
        self.assertIn("Start the server once", result.output)
        self.assertEqual(list(self.state.iterdir()), [])


class InitTests(ScriptCase):
    """C{domaeka init --script}."""

    def init(self, *arguments: str) -> Result:
        """Run it."""
        return self.run_command("init", "--state-dir", str(self.state), *arguments)

    def test_written(self) -> None:
        """The script is beside config and secrets, fits them, and is named."""
        result = self.init("--script", "bridge.js", "--port", "9100", "--bot", "가게봇")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("Script:   bridge.js\n", result.output)
        script = Path("bridge.js")
        found = settings_of(script.read_bytes())
        self.assertEqual(found["SECRET_KEY"], load_secrets(self.state).secret_key)
        self.assertEqual(found["SERVER_LIST"][0]["port"], 9100)
        self.assertEqual(stat.S_IMODE(script.stat().st_mode), 0o600)
        self.assertEqual(
            self.run_script("--bot", "가게봇").stdout_bytes, script.read_bytes()
        )  # it finds the config

    def test_same_server(self) -> None:
        """The lines that are printed name the server of the script."""
        result = self.init("--script", "bridge.js", "--host", "[::1]:9100")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn('{ host: "::1", port: 9100, ', result.output)

    def test_overwrites_nothing(self) -> None:
        """With a script in the way nothing is written at all, but by force."""
        Path("bridge.js").write_text("mine")
        result = self.init("--script", "bridge.js")
        self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1))
        self.assertEqual(set(os.listdir()), {"state", "bridge.js"})
        self.assertEqual(list(self.state.iterdir()), [])
        self.assertEqual(self.init("--script", "bridge.js", "--force").exit_code, 0)
        self.assertNotEqual(Path("bridge.js").read_text(), "mine")

    def test_wrong_use(self) -> None:
        """The config's own file, and a host that no script takes, are a wrong use."""
        for arguments in (("--script", "domaeka.toml"), ("--script", "b.js", "--host", "가게")):
            self.assertEqual(self.init(*arguments).exit_code, 2)
        self.assertEqual(list(self.state.iterdir()), [])
