"""Tests for L{domaeka.cli.keys}."""

import json
import os

from domaeka.secrets import load_or_create_secrets, load_secrets
from tests.test_cli import CommandCase


class RotateTests(CommandCase):
    """C{domaeka secrets rotate}."""

    def rotate(self, *arguments: str) -> str:
        """What it writes."""
        result = self.run_command("secrets", "rotate", "--state-dir", str(self.state), *arguments)
        self.assertEqual(result.exit_code, 0, result.output)
        return result.output

    def test_rotated(self) -> None:
        """The lines for the script are shown with the new key; the old one is kept, not shown."""
        old = load_or_create_secrets(self.state)
        shown = self.rotate("--host", "chat.example")
        new = load_secrets(self.state)
        self.assertIn(f'SECRET_KEY: "{new.secret_key}",', shown)
        self.assertIn('host: "chat.example", port: 9000', shown)
        self.assertIn("domaeka reload", shown)
        self.assertEqual(new.previous_secret_key, old.secret_key)
        self.assertNotIn(old.secret_key, shown)
        self.assertNotIn(new.admin_token, shown)

    def test_again_too_soon(self) -> None:
        """Phones that still have the key before last are not locked out by mistake."""
        first = load_or_create_secrets(self.state)
        self.rotate()
        result = self.run_command("secrets", "rotate", "--state-dir", str(self.state))
        self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1))
        self.assertIn("accepted until", result.output)
        self.assertEqual(load_secrets(self.state).previous_secret_key, first.secret_key)
        self.rotate("--force")
        self.assertNotEqual(load_secrets(self.state).previous_secret_key, first.secret_key)

    def test_not_kept(self) -> None:
        """An old key that somebody knows is not kept."""
        load_or_create_secrets(self.state)
        self.assertIn("not accepted any more", self.rotate("--keep", "0"))
        self.assertEqual(load_secrets(self.state).previous_secret_key, "")

    def test_json(self) -> None:
        """For scripts: an object in a line."""
        load_or_create_secrets(self.state)
        shown = json.loads(self.rotate("--json", "--keep", "0.5"))
        new = load_secrets(self.state)
        self.assertEqual(shown["secret_key"], new.secret_key)
        self.assertEqual(shown["previous_valid_until"], new.previous_valid_until)

    def test_cannot(self) -> None:
        """Where there are no secrets, or settings give the key, one line says so."""
        load_or_create_secrets(self.state)
        key = self.directory / "key"
        key.write_text("k" * 16)
        key.chmod(0o600)
        config = self.directory / "given.toml"
        config.write_text(f"[auth]\nsecret_key_file = '{key}'\n")
        before = self.directory / "before.toml"
        before.write_text(f"[auth]\nprevious_secret_key_file = '{key}'\n")
        for arguments, named in (
            (("--state-dir", str(self.directory / "nowhere")), "secrets.toml"),
            (("--state-dir", str(self.state), "--config", str(config)), "auth.secret_key"),
            (("--state-dir", str(self.state), "--config", str(before)), "auth.previous_secret_key"),
        ):
            result = self.run_command("secrets", "rotate", *arguments)
            self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1))
            self.assertIn(named, result.output)
        for keep in ("-1", "nan"):
            self.assertEqual(self.run_command("secrets", "rotate", "--keep", keep).exit_code, 2)


class ShowTests(CommandCase):
    """C{domaeka secrets show}."""

    def show(self, *arguments: str, status: int = 0) -> str:
        """What it writes."""
        result = self.run_command("secrets", "show", "--state-dir", str(self.state), *arguments)
        self.assertEqual(result.exit_code, status, result.output)
        return result.output

    def test_shows_what_init_did(self) -> None:
        """The same lines, as often as they are asked for; no secret but those of phones."""
        arguments = ("--host", "chat.example", "--bot", "가게봇", "--state-dir", str(self.state))
        written = self.run_command("init", *arguments).output
        shown = self.show(*arguments[:4])
        self.assertEqual(shown[shown.index("var ") :], written[written.index("var ") :])
        self.assertIn('BOT_NAME: "가게봇"', shown)
        self.assertNotIn(load_secrets(self.state).admin_token, shown)

    def test_what_is_in_force(self) -> None:
        """What the settings give stands in the place of what is in the file, and so it says."""
        made = load_or_create_secrets(self.state)
        config = self.directory / "other.toml"
        config.write_text("[auth]\nsecret_key = 'k0123456789abcdef'\n[server]\nport = 9100\n")
        config.chmod(0o600)
        shown = self.show("--config", str(config))
        for text in ('"k0123456789abcdef"', "port: 9100", made.salt, "auth.secret_key"):
            self.assertIn(text, shown)
        self.assertNotIn(made.secret_key, shown)
        self.patch(os, "environ", os.environ | {"DOMAEKA_AUTH_SALT": "소금"})
        shown = json.loads(self.show("--json"))
        self.assertEqual((shown["secret_key"], shown["salt"]), (made.secret_key, "소금"))

    def test_while_the_key_changes(self) -> None:
        """The new key is shown, and until when the old one is accepted."""
        old = load_or_create_secrets(self.state)
        self.run_command("secrets", "rotate", "--state-dir", str(self.state))
        shown = self.show()
        self.assertIn("accepted until 2", shown)
        self.assertNotIn(old.secret_key, shown)

    def test_only_to_who_may_read_them(self) -> None:
        """Whoever has no right to the file is shown nothing; nor is it made, or left open."""
        self.assertIn("secrets.toml", self.show(status=1))
        self.assertFalse((self.state / "secrets.toml").exists())
        made = load_or_create_secrets(self.state)

        def refuse(*arguments: object, **more: object) -> int:
            raise PermissionError(13, "Permission denied")

        opened = os.open
        self.patch(os, "open", refuse)  # whoever runs the tests may be root, who may read anything
        shown = self.show(status=1)
        self.patch(os, "open", opened)
        self.assertIn("Permission denied", shown)
        (self.state / "secrets.toml").chmod(0o644)
        for text in (shown, self.show(status=1)):
            self.assertEqual(len(text.splitlines()), 1)
            self.assertNotIn(made.secret_key, text)
