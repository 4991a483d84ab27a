"""What the tests of the store share: a database without threads, in virtual time."""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Table, select
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.store.database import Database

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


class StoreTestCase(SynchronousTestCase):
    """Has a database in memory, which is not started yet."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.thread = FakeThread()
        self.write_times: list[float] = []
        self.database = self.make_database()

    def make_database(self, url: str | URL = "sqlite://") -> Database:
        """One more."""
        return Database(
            url,
            self.clock,
            observe_write=self.write_times.append,
            make_worker=lambda name, reactor: self.thread,
            retry_delay=lambda attempt: 2.0**attempt,
        )

    def start(self) -> None:
        """Open the database."""
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
