"""What the tests of the store share: a database without threads, in virtual time."""

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sqlalchemy import URL, Connection, StaticPool, Table, create_engine, select
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.store.database import Database
from domaeka.store.drivers import migrate
from tests import forget_after

_T = TypeVar("_T")


class FakeThread:
    """Carries calls out at once, or, while C{stuck}, once it is told to."""

    def __init__(self) -> None:
        self.stuck = False
        self.closed = False
        self._calls: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def run(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call}, now or later."""
        if not self.stuck:
            return execute(call)
        result: Deferred[_T] = Deferred()
        self._calls.append((result, call))
        return result

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


def fill(database: Database) -> None:
    """Have the tables of C{database}, which is in memory, from before its start."""
    filled, empty = _FILLED.raw_connection(), database._writes.raw_connection()
    cast(sqlite3.Connection, filled.driver_connection).backup(
        cast(sqlite3.Connection, empty.driver_connection)
    )
    filled.close()
    empty.close()


class StoreTestCase(SynchronousTestCase):
    """Has a database in memory, which is not started yet."""

    def setUp(self) -> None:
        forget_after(self)
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.thread = FakeThread()
        self.write_times: list[float] = []
        self.failures: list[None] = []
        self.database = self.make_database()

    def make_database(self, url: str | URL = "sqlite://") -> Database:
        """One more."""
        return Database(
            url,
            self.clock,
            observe_write=self.write_times.append,
            observe_failure=lambda: self.failures.append(None),
            make_worker=lambda name, reactor: self.thread,
            retry_delay=lambda attempt: 2.0**attempt,
        )

    def start(self) -> None:
        """Open the database."""
        fill(self.database)
        self.successResultOf(self.database.start())

    def break_store(self, broken: bool = True) -> None:
        """Have every call fail, as on a disk that became read-only; or no longer."""
        connection = self.database._writes.raw_connection()
        connection.cursor().execute(f"PRAGMA query_only={'ON' if broken else 'OFF'}")
        connection.close()

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """What is in C{table}."""

        def read(connection: Connection) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(select(table)).mappings()]

        return self.successResultOf(self.database.run_read(read))

    def stopped(self, *parts: Any) -> None:
        """Stop C{parts} and the database: nothing of them must be left."""
        for part in (*parts, self.database):
            stopping = part.stop()
            self.clock.advance(0)
            self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])
