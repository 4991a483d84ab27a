"""Tests for L{domaeka.store.drivers}."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, OperationalError
from twisted.trial.unittest import SynchronousTestCase

from domaeka.store.drivers import (
    StoreFile,
    _is_read_only,
    reason_of,
    sqlite_address,
    sqlite_file,
)
from tests.storing import StoreTestCase


class WordsTests(StoreTestCase):
    """Tests for addresses and errors."""

    def test_any_path_makes_an_address(self) -> None:
        """A path may hold what means something in an address."""
        path = Path("/srv/a ?#%41&b/d.db")
        self.assertEqual(create_engine(sqlite_address(path)).url.database, str(path))

    def test_errors_are_short(self) -> None:
        """Of an error one line is left, of bounded length, and nothing of what was written."""
        error = OperationalError("INSERT", {"text": "secret"}, Exception("x" * 999 + "\nmore"))
        self.assertEqual(reason_of(error), "x" * 200)
        self.assertEqual(reason_of(OSError()), "OSError")

    def test_malformed(self) -> None:
        """Of a file of SQLite's that is damaged the line says what to do."""
        path = Path(self.mktemp())
        path.write_bytes(b"SQLite format 3\0" + b"\xee" * 4080)
        with closing(sqlite3.connect(path)) as connection:
            error = self.assertRaises(
                sqlite3.DatabaseError, connection.execute, "SELECT * FROM sqlite_master"
            )
        corrupt = sqlite3.DatabaseError("database disk image is malformed")
        corrupt.sqlite_errorcode = sqlite3.SQLITE_CORRUPT | 1 << 8
        for each in (corrupt, DatabaseError("SELECT", {}, corrupt)):
            self.assertIn("malformed: stop the server; domaeka db check", reason_of(each))
        self.assertNotIn("stop the server", reason_of(error))  # it is no database at all

    def test_read_only(self) -> None:
        """A server's word that nothing can be written is known by its number."""
        for words in (("a", 1792), (1290, "the --read-only option"), (1836, "running in")):
            self.assertEqual(_is_read_only(Exception(*words)), words[0] != "a")
        refused = Exception("cannot execute UPDATE in a read-only transaction")
        self.assertFalse(_is_read_only(refused))
        cast(Any, refused).sqlstate = "25006"
        self.assertTrue(_is_read_only(refused))


class StoreFileTests(SynchronousTestCase):
    """Tests for L{StoreFile}."""

    def test_removed_or_replaced(self) -> None:
        """A file is another one even where it has the same name and content."""
        path = Path(self.mktemp())
        path.touch()
        kept = path.open()
        self.addCleanup(kept.close)
        file = StoreFile(path)
        self.assertFalse(file.is_watched)
        file.opened()
        self.assertEqual((file.is_watched, file.look()), (True, None))
        path.rename(path.with_suffix(".away"))
        self.assertIn(f"{path} was removed while it is used", file.look() or "")
        path.touch()
        self.assertIn(f"{path} was replaced while it is used", file.look() or "")
        path.with_suffix(".away").rename(path)
        self.assertIsNone(file.look())

    def test_none(self) -> None:
        """Where there is no file, none is missed."""
        file = StoreFile(None)
        file.opened()
        self.assertEqual((file.is_watched, file.look()), (False, None))


class FileTests(SynchronousTestCase):
    """Tests for L{sqlite_file}."""

    def test_found(self) -> None:
        """The file is known however the address names it."""
        for address, file in (
            ("sqlite:////a/b.db", "/a/b.db"),
            ("sqlite+pysqlite:///b.db?timeout=3", str(Path("b.db").absolute())),
            ("sqlite:///file:///a/b.db?uri=true", "/a/b.db"),
        ):
            self.assertEqual(str(sqlite_file(make_url(address))), file)
        # SQLite takes its own addresses apart once more; what comes before differs by release.
        given = URL.create("sqlite", database="file:/a/b%20c.db", query={"uri": "true"})
        self.assertEqual(str(sqlite_file(given)), "/a/b c.db")

    def test_none(self) -> None:
        """A database in memory, or on a server, has none."""
        for address in (
            "sqlite://",
            "sqlite:///:memory:",
            "sqlite:///file:x?mode=memory&cache=shared&uri=true",
            "sqlite:///file:/x?vfs=memdb&uri=true",
            "mysql+pymysql://h/b.db",
        ):
            self.assertIsNone(sqlite_file(make_url(address)), address)
