"""Tests for L{domaeka.cli.keys}."""

import json

from domaeka.state import load_or_create_secrets, load_secrets
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
        self.assertIn(f'const SECRET_KEY = "{new.secret_key}";', shown)
        self.assertIn('const SERVER_HOST = "chat.example";', shown)
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
        config = self.directory / "domaeka.toml"
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
