"""Tests for C{domaeka roles}, against the API itself."""

from tests.api_case import ROOM_ID
from tests.test_cli_operator import OperatorCase


class RolesTests(OperatorCase):
    """C{domaeka roles}."""

    def test_roles(self) -> None:
        """Given, listed and taken; a person is a channel id and a hash."""
        clerk, other = f"{ROOM_ID}/1a2b", f"{ROOM_ID}/3c/4d"
        self.assertIn(clerk, self.output("roles", "add", "총무", clerk, other))
        self.assertTrue(self.stored_roles.holds("총무", ROOM_ID, "3c/4d"))
        listed = self.output("roles")
        for text in ("총무", clerk, other):
            self.assertIn(text, listed)
        self.assertEqual(self.json("roles")["total"], 2)
        self.assertIn("no more", self.output("roles", "remove", "총무", clerk))
        result = self.run_command("roles", "remove", "총무", clerk, other)
        self.assertEqual((result.exit_code, self.json("roles")["total"]), (1, 0))
        self.assertEqual(self.run_command("roles", "add", "총무", "시험방/1a2b").exit_code, 1)
        for wrong in (ROOM_ID, f"{ROOM_ID}/", "/1a2b"):
            result = self.run_command("roles", "add", "총무", wrong)
            self.assertEqual(result.exit_code, 2)
            self.assertIn("CHANNEL/HASH", result.output)
