"""Tests for L{domaeka.cli.importing}."""

import json
import sqlite3
from contextlib import closing
from typing import Any

from click.testing import Result
from sqlalchemy import create_engine

from domaeka.state import lock_directory
from domaeka.store.chatlog import CHAT_LINES
from domaeka.store.drivers import sqlite_address
from tests.previous_system import METADATA, PreviousSystem
from tests.test_cli import CommandCase


class ImportTests(CommandCase):
    """C{domaeka import}."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.directory / "previous.db"
        engine = create_engine(sqlite_address(self.path))
        PreviousSystem(400).fill(engine)
        engine.dispose()
        self.store = self.state / "domaeka.db"

    def take(self, *options: str, status: int = 0) -> Result:
        """Run it."""
        address = f"sqlite:///{self.path}"
        result = self.run_command("import", address, "--state-dir", str(self.state), *options)
        self.assertEqual(result.exit_code, status, result.output)
        return result

    def answer(self, query: str) -> Any:
        """The answer of the store to a query."""
        with closing(sqlite3.connect(self.store)) as connection:
            return connection.execute(query).fetchall()

    def test_taken(self) -> None:
        """What was taken is shown; afterwards nothing is new."""
        shown = self.take().output
        self.assertRegex(shown, r"\ndevices +17 +16 +0 +1 +0\n")
        self.assertRegex(shown, r"\nNot taken: chat lines, without text: 1 \(id \d+\)\n")
        self.assertRegex(
            shown,
            r"\nAttention: \d+ of the lines taken are older than storage.chat_log_days = 30: ",
        )
        self.assertNotIn("\nNothing is new", shown)
        self.assertEqual(self.store.stat().st_mode & 0o777, 0o600)
        shown = self.take().output
        self.assertIn("\nChat lines up to id 400 were read by an import before.\n", shown)
        self.assertTrue(shown.endswith("\nNothing is new: the store stays as it was.\n"))

    def test_dry_run(self) -> None:
        """It makes nothing, and may run beside a server."""
        self.state.rmdir()
        shown = self.take("--dry-run").output
        self.assertIn("nothing is written (--dry-run)", shown)
        self.assertFalse(self.state.exists())
        self.take("--skip-old")
        lock = lock_directory(self.state)
        assert lock is not None
        self.addCleanup(lock.close)
        self.assertIn("\nNothing is new", self.take("--dry-run").output)

    def test_json(self) -> None:
        """For scripts: an object in a line."""
        shown = json.loads(self.take("--json").output)
        self.assertEqual(shown["devices"]["taken"], 16)
        self.assertEqual(shown["lines"]["read"], 400)
        self.assertEqual(shown["lines"]["refused"]["without text"]["count"], 1)

    def test_server_runs(self) -> None:
        """A server that runs would not see what is imported."""
        lock = lock_directory(self.state)
        assert lock is not None
        self.addCleanup(lock.close)
        output = self.take(status=1).output
        self.assertEqual(len(output.splitlines()), 1)
        self.assertIn("stop it first", output)
        self.assertFalse(self.store.exists())

    def test_time_zone(self) -> None:
        """Times are Korean, if nothing else is said."""
        times = f"SELECT max(time) FROM {CHAT_LINES.name} WHERE direction = 'in'"
        self.take()
        (before,) = self.answer(times)
        self.store.unlink()
        self.take("--timezone", "+08:00")
        (after,) = self.answer(times)
        self.assertEqual(after[0] - before[0], 3_600_000)
        for zone in ("Nowhere/City", "+24:00", "../etc", ""):
            self.take("--timezone", zone, status=2)

    def test_cannot(self) -> None:
        """Each thing that cannot be is answered in one line."""
        self.path.unlink()
        engine = create_engine(sqlite_address(self.path))
        METADATA.create_all(engine)
        METADATA.tables["kb_rooms"].drop(engine)
        engine.dispose()
        output = self.take(status=1).output
        self.assertIn("there is no table kb_rooms", output)
        self.path = self.directory / "no" / "where.db"
        output += self.take(status=3).output
        self.assertEqual(len(output.splitlines()), 2)
