"""Tests for L{domaeka.store.drivers}."""

from pathlib import Path

from sqlalchemy import URL, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from twisted.trial.unittest import SynchronousTestCase

from domaeka.store.drivers import reason_of, sqlite_address, sqlite_file
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
