"""Tests for L{domaeka.store.drivers}."""

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError

from domaeka.store import bans, chatlog, devices, mailbox, rooms, sessions
from domaeka.store.columns import METADATA
from domaeka.store.drivers import reason_of, sqlite_address
from domaeka.store.threads import StoreClosed
from tests.storing import StoreTestCase

#: All that declare tables.
PARTS = (bans, chatlog, devices, mailbox, rooms, sessions)


class MigrationTests(StoreTestCase):
    """Tests for L{domaeka.store.drivers.migrate}."""

    def test_migrations_make_what_the_code_expects(self) -> None:
        """From nothing, the migrations lead to exactly the tables that the code declares."""
        self.start()
        self.assertEqual(len(METADATA.tables), len(PARTS))
        differences = self.database.run_write(
            lambda c: compare_metadata(MigrationContext.configure(c), METADATA)
        )
        self.assertEqual(self.successResultOf(differences), [])

    def test_tokens_of_before(self) -> None:
        """Tokens of which no key is known die; a migration that was cut short is done again."""
        self.start()

        def back(connection: Connection) -> None:
            for statement in (
                "UPDATE alembic_version SET version_num = '0001'",
                "INSERT INTO sessions (device_key, bot_name, device_id, newest_hash, expires) "
                "VALUES ('k', 'b', 'd', 'h', 1)",
            ):
                connection.execute(text(statement))

        self.successResultOf(self.database.run_write(back))
        self.database._open = False
        self.successResultOf(self.database.start())
        self.assertEqual(self.rows(sessions.SESSIONS), [])

    def test_refuses_what_is_newer(self) -> None:
        """Tables of a version to come are not touched."""
        self.start()
        revision = text("UPDATE alembic_version SET version_num = '9999'")
        self.successResultOf(self.database.run_write(lambda c: c.execute(revision) and None))
        self.database._open = False
        failure = self.failureResultOf(self.database.start(), StoreClosed)
        self.assertIn("newer version of domaeka (revision '9999')", failure.getErrorMessage())


class WordsTests(StoreTestCase):
    """Tests for addresses and errors."""

    def test_any_path_makes_an_address(self) -> None:
        """A path may hold what means something in an address."""
        path = Path("/tmp/a ?#%41&b/d.db")
        self.assertEqual(create_engine(sqlite_address(path)).url.database, str(path))

    def test_errors_are_short(self) -> None:
        """Of an error one line is left, of bounded length, and nothing of what was written."""
        error = OperationalError("INSERT", {"text": "secret"}, Exception("x" * 999 + "\nmore"))
        self.assertEqual(reason_of(error), "x" * 200)
        self.assertEqual(reason_of(OSError()), "OSError")
