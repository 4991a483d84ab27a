"""
What the tests of the store share: a database without threads, in virtual time.

It is SQLite's, in memory, or the one at C{DOMAEKA_TEST_STORE}, of which all tables of ours are
emptied: C{tests.proofs.test_stores} runs them so on database servers.
"""

import os
import sqlite3
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar, cast

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    StaticPool,
    Table,
    create_engine,
    inspect,
    select,
    text,
)
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.store.columns import METADATA, PREFIX
from domaeka.store.database import Database
from domaeka.store.revisions import migrate
from domaeka.store.threads import DatabaseFailed
from tests import forget_after
from tests.clocks import WallClock

_T = TypeVar("_T")

#: The words of each database for what L{StoreTestCase.break_store} does to it.
READ_ONLY: Final = "(?i)read.?only"


class FakeThread:
    """
    Carries calls out at once, or, while C{stuck}, once it is told to.

    @ivar answers: false: what is carried out is not answered, as where a connection is cut.
    """

    def __init__(self) -> None:
        self.stuck = False
        self.closed = False
        self.answers = True
        self._calls: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def run(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call}, now or later."""
        if not self.answers:
            return execute(call).addCallback(self._lost)
        if not self.stuck:
            return execute(call)
        result: Deferred[_T] = Deferred()
        self._calls.append((result, call))
        return result

    def _lost(self, answer: object) -> NoReturn:
        raise DatabaseFailed("the connection is lost")

    def go_on(self) -> None:
        """Carry out what was held up, and what comes."""
        self.stuck = False
        calls, self._calls = self._calls, []
        for result, call in calls:
            execute(call).chainDeferred(result)

    def close(self) -> None:
        """Nothing will come."""
        self.closed = True


#: Tables that are up to date, to start from: to make them anew takes longer than most tests.
_FILLED = create_engine("sqlite://", poolclass=StaticPool)
with _FILLED.begin() as _connection:
    migrate(_connection)
#: The same, as SQLite has it.
FILLED = cast(sqlite3.Connection, _FILLED.raw_connection().driver_connection)


#: The address of the database of each test.
STORE: Final = os.environ.get("DOMAEKA_TEST_STORE", "sqlite://")
#: The database server that is there; L{None}: each database is in memory.
_SERVER: Final[Engine | None] = create_engine(STORE) if "sqlite" not in STORE else None
_with_tables: set[Engine] = set()


def drop_all(connection: Connection) -> None:
    """Remove all tables that the tests make, by whatever names."""
    names = inspect(connection).get_table_names()
    former = {table.name.removeprefix(PREFIX) for table in METADATA.tables.values()}
    for name in names:
        if name.startswith(PREFIX) or name in {"alembic_version", *former}:
            connection.execute(text(f"DROP TABLE {name}"))
    _with_tables.clear()


def _empty() -> None:
    """Empty the tables on the server, which are made by the first test that wants them."""
    if _SERVER is not None:
        with _SERVER.begin() as connection:
            if not _with_tables:
                migrate(connection)
                _with_tables.add(_SERVER)
            for table in METADATA.tables.values():
                connection.execute(table.delete())


def fill(database: Database) -> None:
    """Have the tables of C{database}, if it is in memory, from before its start."""
    if database._writes.dialect.name != "sqlite":
        return
    empty = database._writes.raw_connection()
    FILLED.backup(cast(sqlite3.Connection, empty.driver_connection))
    empty.close()


def _break_server(broken: bool) -> None:
    """Have new connections to the server be read-only, or no longer."""
    assert _SERVER is not None
    with _SERVER.begin() as connection:
        if _SERVER.dialect.name == "postgresql":
            connection.execute(text("SET TRANSACTION READ WRITE"))
            name = connection.scalar(text("SELECT current_database()"))
            option = f"default_transaction_read_only = {'on' if broken else 'off'}"
            connection.execute(text(f"ALTER DATABASE {name} SET {option}"))
        else:
            connection.execute(text(f"SET GLOBAL tx_read_only = {int(broken)}"))


class StoreTestCase(SynchronousTestCase):
    """Has a database in memory, which is not started yet."""

    def setUp(self) -> None:
        forget_after(self)
        _empty()
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.wall = WallClock(self.clock, 1_790_000_000.0)
        self.thread = FakeThread()
        self.write_times: list[float] = []
        self.failures: list[None] = []
        self.database = self.make_database()

    def make_database(self, url: str | URL = STORE) -> Database:
        """One more."""
        database = Database(
            url,
            self.clock,
            observe_write=self.write_times.append,
            observe_failure=lambda: self.failures.append(None),
            make_worker=lambda name, reactor: self.thread,
            retry_delay=lambda attempt: 2.0**attempt,
        )
        if _SERVER is not None:  # it allows so many connections, and trial keeps every case
            self.addCleanup(database._close_directly)
            self.addCleanup(database._writes.dispose)
            self.addCleanup(database._reads.dispose)
            self.addCleanup(database._bulk.dispose)
        return database

    def start(self) -> None:
        """Open the database."""
        fill(self.database)
        self.successResultOf(self.database.start())

    def break_store(self, broken: bool = True) -> None:
        """Have every write fail, as on a disk that became read-only; or no longer."""
        database = self.database
        kind = database._writes.dialect.name
        session = {
            "sqlite": f"PRAGMA query_only={'ON' if broken else 'OFF'}",
            "postgresql": f"SET default_transaction_read_only={'on' if broken else 'off'}",
            "mysql": f"SET SESSION TRANSACTION READ {'ONLY' if broken else 'WRITE'}",
        }[kind]
        if _SERVER is not None:
            if broken:
                self.addCleanup(_break_server, False)
            _break_server(broken)
        # The connections that are there already; a server's are given up at the first failure.
        for engine in {database._writes, database._bulk}:
            connection = engine.raw_connection()
            connection.cursor().execute(session)
            connection.commit()
            connection.close()

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """What is in C{table}; where its rows are numbered, in that order: databases have none."""
        numbered = [column for column in table.primary_key if column.name == "id"]

        def read(connection: Connection) -> list[dict[str, Any]]:
            found = connection.execute(select(table).order_by(*numbered))
            return [dict(row) for row in found.mappings()]

        return self.successResultOf(self.database.run_read(read))

    def stopped(self, *parts: Any) -> None:
        """Stop C{parts} and the database: nothing of them must be left."""
        for part in (*parts, self.database):
            stopping = part.stop()
            self.clock.advance(0)
            self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])
