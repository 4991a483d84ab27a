"""Tests for C{domaeka db}, C{domaeka check-config --store} and L{domaeka.store.maintenance}."""

import contextlib
import sqlite3
import stat
from pathlib import Path

from domaeka.state import lock_directory
from domaeka.store.columns import METADATA, PREFIX
from domaeka.store.maintenance import TABLES
from tests.storing import FILLED
from tests.test_cli import CommandCase

PARTS = [table.name.removeprefix(PREFIX) for table in TABLES]
#: Those that there were before the prefix.
FORMER = ("bans", "chat_lines", "devices", "mailbox", "rooms", "sessions")
BAN = "INSERT INTO domaeka_bans VALUES ('192.0.2.1/32', '도배', 1, NULL, 1, '', '', '')"


class StoreCommandCase(CommandCase):
    """Has a store in the state directory."""

    def setUp(self) -> None:
        super().setUp()
        self.file = self.state / "domaeka.db"
        with contextlib.closing(sqlite3.connect(self.file)) as connection:
            FILLED.backup(connection)
        self.run_statements(BAN)

    def run_statements(self, *statements: str) -> None:
        """Carry out SQL in the store."""
        with contextlib.closing(sqlite3.connect(self.file)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def output(self, *arguments: str, status: int = 0, state: Path | None = None) -> str:
        """What a command says of the store; an error is one line."""
        words = ("--state-dir", str(state or self.state))
        result = self.run_command(*arguments, *words)
        self.assertEqual(result.exit_code, status, result.output)
        self.assertEqual(len(result.stderr.splitlines()), status)
        return result.output

    def server(self, address: str) -> str:
        """The path of a config with a store on a server."""
        path = self.directory / "server.toml"
        path.write_text(f"[storage]\nurl = '{address}'\n", encoding="utf-8")
        path.chmod(0o600)
        return str(path)


class CheckTests(StoreCommandCase):
    """C{domaeka db check}."""

    def test_good(self) -> None:
        """It shows the database, the revision and numbers of rows, and leaves no file behind."""
        before = self.file.read_bytes()
        output = self.output("db", "check")
        for words in ("sqlite:///", "SQLite 3", "revision             0014", "good"):
            self.assertIn(words, output)
        for part in PARTS:
            self.assertRegex(output, rf"{PREFIX}{part} +{int(part == 'bans')} rows")
        self.assertEqual([path.name for path in self.state.iterdir()], ["domaeka.db"])
        self.assertEqual(self.file.read_bytes(), before)

    def test_knows_every_table(self) -> None:
        """All tables are counted."""
        self.assertEqual(sorted(METADATA.tables), sorted(table.name for table in TABLES))

    def test_missing_table(self) -> None:
        """A table that is gone is named."""
        self.run_statements("DROP TABLE domaeka_rooms")
        self.assertIn("the table domaeka_rooms is missing", self.output("db", "check", status=1))

    def test_damaged(self) -> None:
        """A file with a page that is overwritten is not sound; one of something else is none."""
        lines = (
            "INSERT INTO domaeka_chat_lines VALUES (NULL, 1, 'in', '', '', '', '', '', '', '', '')"
        )
        self.run_statements(*[lines] * 500)
        pages = bytearray(self.file.read_bytes())
        pages[-4096:] = b"\xee" * 4096
        self.file.write_bytes(pages)
        self.assertIn("Error: ", self.output("db", "check", status=1))
        self.file.write_bytes(b"something else" * 999)
        self.assertIn("file is not a database", self.output("db", "check", status=1))

    def test_not_there(self) -> None:
        """A store that is not there is not made."""
        self.file.unlink()
        for words in (("check",), ("upgrade",), ("backup", "copy.db")):
            self.assertIn("is not there yet", self.output("db", *words, status=1))
        self.assertEqual(list(self.state.iterdir()), [])

    def test_newer(self) -> None:
        """A store of a version to come is refused, unless that lets this one use it."""
        self.run_statements("UPDATE domaeka_version SET version_num = '9999'")
        self.assertIn("9999, of a newer version that lets this", self.output("db", "check"))
        self.run_statements("UPDATE domaeka_version SET min_version = '9999'")
        for command in ("check", "upgrade"):
            self.assertIn("newer version of domaeka", self.output("db", command, status=1))


class UpgradeTests(StoreCommandCase):
    """C{domaeka db upgrade}."""

    def make_former(self) -> None:
        """Make the store one of the version before the prefix."""
        self.run_statements(
            *(f"ALTER TABLE {PREFIX}{part} RENAME TO {part}" for part in FORMER),
            *(f"DROP TABLE {PREFIX}{part}" for part in PARTS if part not in FORMER),
            "DROP TABLE domaeka_version",
            "CREATE TABLE alembic_version (version_num VARCHAR(32))",
            "INSERT INTO alembic_version VALUES ('0003')",
        )

    def test_migrates(self) -> None:
        """It says from which revision to which, and keeps all rows; the second time: nothing."""
        self.make_former()
        output = self.output("db", "check")
        self.assertIn("0003: the next start, or domaeka db upgrade, makes it 0014", output)
        self.assertRegex(output, r"\nbans +1 rows")
        self.assertEqual(self.output("db", "upgrade"), "from revision 0003 to 0014\n")
        self.assertRegex(self.output("db", "check"), r"domaeka_bans +1 rows")
        self.assertEqual(self.output("db", "upgrade"), "revision 0014: nothing to do\n")

    def test_server_runs(self) -> None:
        """While a server uses the state directory nothing is changed."""
        self.make_former()
        lock = lock_directory(self.state)
        assert lock is not None
        with lock:
            self.assertIn("another server uses it", self.output("db", "upgrade", status=1))
        self.assertIn("0003: ", self.output("db", "check"))


class BackupTests(StoreCommandCase):
    """C{domaeka db backup}."""

    def test_copies_what_is_in_use(self) -> None:
        """A copy has all that was committed, is a store, and nobody else's to read."""
        copies = self.directory / "copies"
        copies.mkdir()
        copy = copies / "domaeka.db"
        with contextlib.closing(sqlite3.connect(self.file, isolation_level=None)) as server:
            server.execute("PRAGMA journal_mode=WAL")
            server.execute("UPDATE domaeka_bans SET times = 2")
            server.execute("BEGIN IMMEDIATE")
            server.execute("UPDATE domaeka_bans SET times = 3")
            self.output("db", "backup", str(copy))
            server.execute("COMMIT")
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            found = connection.execute("SELECT network, times FROM domaeka_bans").fetchall()
            (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
        self.assertEqual((found, mode), ([("192.0.2.1/32", 2)], 2))  # it can give pages back
        self.assertEqual(stat.S_IMODE(copy.stat().st_mode), 0o600)
        self.assertIn("good", self.output("db", "check", state=copies))

    def test_overwrites_nothing(self) -> None:
        """A file that is there stays as it is, be it the store itself."""
        kept = self.directory / "kept"
        kept.write_text("kept")
        for path in (kept, self.file):
            before = path.read_bytes()
            output = self.output("db", "backup", str(path), status=1)
            self.assertIn("there is such a file already", output)
            self.assertEqual(path.read_bytes(), before)

    def test_failure_leaves_nothing(self) -> None:
        """Where it cannot be done, that is said, and there is no copy in part."""
        nowhere = self.directory / "nowhere" / "x.db"
        self.assertIn("No such file", self.output("db", "backup", str(nowhere), status=1))
        copy = self.directory / "copy.db"
        self.file.write_bytes(b"something else" * 999)
        self.assertIn("not copied: file is not", self.output("db", "backup", str(copy), status=1))
        self.assertFalse(copy.exists())

    def test_on_a_server(self) -> None:
        """Of a database on a server, the command that copies it is said, without the password."""
        for address, command in (
            (
                "postgresql+psycopg://me:hunter2@db.example.org:5433/chat",
                "use: pg_dump --format=custom --file='my copy' --host=db.example.org --port=5433 "
                "--username=me --dbname=chat",
            ),
            (
                "mysql+pymysql://me:hunter2@db.example.org/chat",
                "use: mariadb-dump --single-transaction --result-file='my copy' --password "
                "--host=db.example.org --user=me chat",
            ),
        ):
            output = self.output(
                "db", "backup", "my copy", "--config", self.server(address), status=1
            )
            self.assertIn(command, output)
            self.assertNotIn("hunter2", output)


class CheckConfigTests(StoreCommandCase):
    """C{domaeka check-config --store}."""

    def test_good(self) -> None:
        """It says which database there is, in one line, and does not migrate."""
        (self.directory / "domaeka.toml").write_text("")
        self.run_statements("UPDATE domaeka_version SET version_num = '0003'")
        output = self.output("check-config", "--store")
        self.assertRegex(
            output, r"\nstore: SQLite 3[\d.]+, UTF-8, revision 0003: the next start.*\n$"
        )
        self.assertIn("0003: ", self.output("db", "check"))
        self.file.unlink()
        self.assertIn("is not there yet: the first start", self.output("check-config", "--store"))

    def test_wrong(self) -> None:
        """A store that cannot be used is an error of the line of its address."""
        config = self.server("sqlite:////nowhere/at/all.db")
        self.assertIn("not there yet", self.output("check-config", "--store", config))
        (self.directory / "x.db").write_bytes(b"something else" * 999)
        config = self.server("sqlite:///x.db")
        output = self.output("check-config", "--store", config, status=1)
        self.assertIn("server.toml:2: storage.url: cannot use the store sqlite:///x.db: ", output)
        self.assertEqual(self.output("check-config", config).count("\n"), 1)
