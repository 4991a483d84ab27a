"""Tests for L{domaeka.store.database}."""

import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DatabaseError, OperationalError
from twisted.logger import capturedLogs, formatEvent

from domaeka.errors import StoreError
from domaeka.store.database import (
    AT_ONCE_PAUSE_SECONDS,
    AT_ONCE_SECONDS,
    LOOK_SECONDS,
    PROBE_SECONDS,
    SLOW_CALL_SECONDS,
    STOP_SECONDS,
    TROUBLED_STOP_SECONDS,
    Database,
)
from domaeka.store.drivers import sqlite_address
from domaeka.store.revisions import VERSION, touch
from domaeka.store.threads import MAX_WAITING_CALLS, StoreClosed
from tests.storing import READ_ONLY, StoreTestCase


def fails(text: str, kind: type[OperationalError] | type[DatabaseError] = OperationalError) -> Any:
    """What raises, as a database does."""

    def fail(*args: object) -> None:
        raise kind("a statement", {"with": "secret chat"}, Exception(text))

    return fail


class OpeningTests(StoreTestCase):
    """Tests for how a L{Database} is opened."""

    def test_all_is_read_before_it_is_open(self) -> None:
        """What is read at the start is handed over in order, before anybody hears of it."""
        seen: list[str] = []
        self.database.load_at_start(lambda c: "first", seen.append)
        self.database.load_at_start(lambda c: "second", seen.append)
        opened = self.database.when_open().addCallback(lambda _: seen.append("open"))
        self.start()
        self.successResultOf(opened)
        self.assertEqual(seen, ["first", "second", "open"])

    def test_calls_fail_until_it_is_open(self) -> None:
        """A call before the opening fails at once; the health says why."""
        failure = self.failureResultOf(self.database.run_write(lambda c: None), StoreError)
        self.assertIn("has not been started", failure.getErrorMessage())
        self.assertIn("not open", self.database.health() or "")
        self.start()
        self.assertIsNone(self.database.health())

    def test_tries_again_until_it_is_there(self) -> None:
        """A database that is busy or down is tried with growing pauses, for ever."""
        attempts: list[float] = []

        def read(connection: Connection) -> None:
            attempts.append(self.clock.seconds() - 1_000_000.0)
            if len(attempts) < 4:
                fails("database is locked")()

        self.database.load_at_start(read, lambda nothing: None)
        opened = self.database.start()
        self.clock.pump([1.0] * 6)
        self.assertNoResult(opened)
        self.assertIn("locked", self.database.health() or "")
        self.clock.advance(1.0)
        self.successResultOf(opened)
        self.assertEqual(attempts, [0.0, 1.0, 3.0, 7.0])
        self.assertEqual(len(self.failures), 3)

    def test_pauses_are_short(self) -> None:
        """A database server that is down is tried at most 5 s later, and told of once a minute."""
        database = Database("sqlite://", self.clock, make_worker=lambda name, reactor: self.thread)
        attempts: list[float] = []

        def read(connection: Connection) -> None:
            attempts.append(self.clock.seconds())
            fails("database is locked")()

        database.load_at_start(read, print)
        database.start().addErrback(lambda _: None)
        with capturedLogs() as events:
            self.clock.pump([0.5] * 200)
        pauses = [after - before for before, after in pairwise(attempts)]
        self.assertLessEqual(max(pauses), 5.0 + 0.5)
        self.assertEqual(len(events), 1)
        database.stop()
        self.clock.advance(TROUBLED_STOP_SECONDS)

    def test_gives_up_where_trying_is_useless(self) -> None:
        """A file that is no database stops the start with one line."""
        self.database = self.make_database("sqlite://")
        self.database.load_at_start(fails("file is not a database", DatabaseError), print)
        failure = self.failureResultOf(self.database.start(), StoreClosed)
        self.assertEqual(
            failure.getErrorMessage(), "cannot open the store sqlite://: file is not a database"
        )
        self.stopped()

    def test_stop_ends_the_trying(self) -> None:
        """A store that is stopped while it is awaited says so, and leaves nothing behind."""
        self.database.load_at_start(fails("database is locked"), print)
        opened = self.database.start()
        self.stopped()
        self.failureResultOf(opened, StoreClosed)
        self.failureResultOf(self.database.when_open(), StoreClosed)
        self.assertTrue(self.thread.closed)

    def test_refuses_bad_addresses(self) -> None:
        """An address that cannot work is refused in one line without its password."""
        for url in ("", "nonsense", "nosuch://u:hunter2@h/d", "postgresql+nosuch://u:hunter2@h/d"):
            error = self.assertRaises(StoreError, Database, url, self.clock)
            self.assertTrue(str(error).startswith("storage.url: "), str(error))
            self.assertNotIn("hunter2", str(error))


class CallTests(StoreTestCase):
    """Tests for the calls of a L{Database}."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_failed_call_is_undone(self) -> None:
        """What raises leaves no trace in the store."""

        def write(connection: Connection) -> None:
            connection.execute(VERSION.delete())
            raise ZeroDivisionError

        self.failureResultOf(self.database.run_write(write), ZeroDivisionError)
        count = self.database.run_read(
            lambda c: c.scalar(select(func.count()).select_from(VERSION))
        )
        self.assertEqual(self.successResultOf(count), 1)

    def test_failure_is_one_line_without_what_was_written(self) -> None:
        """An error says what the database said, and nothing of chat."""
        failure = self.failureResultOf(self.database.run_write(fails("disk\nis full")), StoreError)
        self.assertEqual(failure.getErrorMessage(), "disk")
        self.assertEqual(self.database.health(), "the store failed: disk")
        self.assertEqual(len(self.failures), 1)

    def test_recovers_by_itself(self) -> None:
        """A store that failed is tried until it is well, even if nobody calls."""
        self.break_store()
        self.failureResultOf(self.database.run_write(touch), StoreError)
        self.clock.advance(PROBE_SECONDS)
        self.assertRegex(self.database.health() or "", READ_ONLY)
        self.break_store(False)
        self.clock.advance(PROBE_SECONDS)
        self.assertIsNone(self.database.health())
        self.stopped()

    def test_own_mistakes_are_not_the_stores(self) -> None:
        """An exception that the database has no part in leaves it well."""
        self.failureResultOf(self.database.run_write(lambda c: 1 / 0), ZeroDivisionError)
        self.assertIsNone(self.database.health())
        self.assertEqual(self.failures, [])

    def test_slow_call_shows(self) -> None:
        """A call that does not return shows in the health, and is over when it does."""
        self.thread.stuck = True
        result = self.database.run_write(lambda c: "done")
        self.clock.advance(SLOW_CALL_SECONDS)
        self.assertIsNone(self.database.health())
        self.clock.advance(1.0)
        self.assertEqual(self.database.health(), "the store has not answered for 6 s")
        self.thread.go_on()
        self.assertEqual(self.successResultOf(result), "done")
        self.assertIsNone(self.database.health())

    def test_queue_is_bounded(self) -> None:
        """Calls for which there is no room are refused, the others done in order."""
        self.thread.stuck = True
        seen: list[int] = []

        def see(connection: Connection, number: int) -> None:
            seen.append(number)

        calls = [self.database.run_write(see, n) for n in range(MAX_WAITING_CALLS + 1)]
        self.assertEqual(self.database.waiting, MAX_WAITING_CALLS + 1)
        self.failureResultOf(self.database.run_write(lambda c: None), StoreError)
        self.thread.go_on()
        self.successResultOf(calls[-1])
        self.assertEqual(seen, list(range(MAX_WAITING_CALLS + 1)))

    def test_writes_are_measured(self) -> None:
        """Each write, and no read, is told with its time."""
        self.successResultOf(self.database.run_write(lambda c: self.clock.advance(0.25)))
        self.successResultOf(self.database.run_read(lambda c: None))
        self.assertEqual(self.write_times, [0.25])

    def test_stop_finishes_what_waits(self) -> None:
        """What was asked for before the stop is done; what comes later is refused."""
        self.thread.stuck = True
        result = self.database.run_write(lambda c: "done")
        stopping = self.database.stop()
        self.failureResultOf(self.database.run_write(lambda c: None), StoreClosed)
        self.thread.go_on()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(result), "done")
        self.successResultOf(stopping)
        self.assertTrue(self.thread.closed)

    def test_stop_in_trouble(self) -> None:
        """A store that is in trouble anyway is waited for a short time only."""
        self.break_store()
        self.failureResultOf(self.database.run_write(touch), StoreError)
        self.thread.stuck = True
        self.database.run_write(lambda c: None).addErrback(lambda _: None)
        stopping = self.database.stop()
        self.clock.advance(TROUBLED_STOP_SECONDS)
        self.successResultOf(stopping)

    def test_bulk(self) -> None:
        """What may wait is written in order, and measured, like all else."""
        seen: list[int] = []
        for number in range(3):
            write = self.database.run_bulk(lambda c, n: seen.append(n), number)
            self.successResultOf(write)
        self.assertEqual((seen, len(self.write_times)), ([0, 1, 2], 3))
        self.failureResultOf(self.database.run_bulk(fails("disk is full")), StoreError)
        self.assertEqual(self.database.health(), "the store failed: disk is full")
        self.clock.advance(PROBE_SECONDS)
        self.assertIsNone(self.database.health())
        self.stopped()

    def test_stop_does_not_wait_for_ever(self) -> None:
        """A store that hangs is left behind, and what waited for it is told."""
        self.thread.stuck = True
        self.database.run_write(lambda c: None)
        waiting = self.database.run_write(lambda c: None)
        stopping = self.database.stop()
        self.clock.advance(STOP_SECONDS)
        self.successResultOf(stopping)
        self.failureResultOf(waiting, StoreClosed)
        # Threads that hang are not ended; that of C{run_direct}, where there is one, is idle.
        self.assertEqual(self.thread.closed, not self.database._in_memory)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class DirectTests(StoreTestCase):
    """Tests for calls with a cursor of the driver, and for writes in the reactor's thread."""

    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp())
        self.file = self.make_database(sqlite_address(self.path))
        self.successResultOf(self.file.start())
        self.addCleanup(self.stop)
        self.successResultOf(self.file.run_direct(self.prepare))

    def stop(self) -> None:
        """Stop the file's store."""
        stopping = self.file.stop()
        self.clock.advance(0)
        self.successResultOf(stopping)

    def prepare(self, cursor: Any, dialect: object, careful: bool) -> None:
        """Make a table, and a function that takes a time."""
        cursor.execute("CREATE TABLE notes (number INTEGER)")
        cursor.connection.create_function("takes", 1, self.clock.advance)

    def write(self, seconds: float = 0.0) -> bool:
        """Write something that takes so long."""
        return self.file.write_at_once("INSERT INTO notes VALUES (takes(?))", (seconds,))

    def test_at_once(self) -> None:
        """What is written at once is there for everybody when the call returns."""
        self.assertTrue(self.write())
        with closing(sqlite3.connect(self.path)) as other:
            self.assertEqual(other.execute("SELECT count(*) FROM notes").fetchone(), (1,))

    def test_waits_for_nobody(self) -> None:
        """Where the file is not free, or its thread is at work, nothing is written or awaited."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            self.assertFalse(self.write())
            other.execute("ROLLBACK")
            self.assertTrue(self.write())
        self.thread.stuck = True
        under_way = self.file.run_direct(lambda *given: None)
        self.assertFalse(self.write())
        self.thread.go_on()
        self.successResultOf(under_way)
        self.assertTrue(self.write())

    def test_slow_disk(self) -> None:
        """One slow write changes nothing; on a slow disk the thread has them for a while."""
        self.assertTrue(self.write(AT_ONCE_SECONDS * 4))
        self.assertTrue(self.write())
        written = sum(self.write(AT_ONCE_SECONDS * 2) for _ in range(20))
        self.assertLess(written, 10)
        self.clock.advance(AT_ONCE_PAUSE_SECONDS)
        self.assertTrue(self.write())

    def test_only_to_a_file(self) -> None:
        """No other database is written to at once, and none that is stopped."""
        self.start()
        self.assertFalse(self.database.write_at_once("SELECT 1", ()))
        self.stop()
        self.assertFalse(self.write())

    def test_failure_counts(self) -> None:
        """A failed call counts, shows in the health, and is probed until the store is well."""

        def write(cursor: Any, *more: object) -> None:
            cursor.execute("PRAGMA query_only=ON")
            cursor.execute("INSERT INTO notes VALUES (1)")

        self.failureResultOf(self.file.run_direct(write), StoreError)
        self.assertEqual(len(self.failures), 1)
        self.assertRegex(self.file.health() or "", READ_ONLY)
        self.clock.advance(PROBE_SECONDS)
        self.assertIsNone(self.file.health())
        (look,) = self.clock.getDelayedCalls()
        self.assertEqual(
            cast(Any, look).getTime() - self.clock.seconds(), LOOK_SECONDS - PROBE_SECONDS
        )


class FileTests(StoreTestCase):
    """SQLite's file, while it is used."""

    def test_failure_stays(self) -> None:
        """That the file is there does not say that it takes writes."""
        self.database = self.make_database(sqlite_address(Path(self.mktemp()).absolute()))
        self.start()
        self.break_store()
        self.failureResultOf(self.database.run_write(touch), StoreError)
        self.clock.pump([PROBE_SECONDS] * 3 + [LOOK_SECONDS])
        self.assertRegex(self.database.health() or "", READ_ONLY)
        self.stopped()

    def test_removed(self) -> None:
        """It shows within a minute, with what to do, until it is there again."""
        path = Path(self.mktemp()).absolute()
        self.database = self.make_database(sqlite_address(path))
        self.start()
        self.clock.advance(LOOK_SECONDS)
        self.assertIsNone(self.database.health())
        away = path.rename(path.with_suffix(".away"))
        with capturedLogs() as events:
            self.clock.pump([LOOK_SECONDS] * 3)
        (error,) = (formatEvent(event) for event in events)
        health = self.database.health() or ""
        self.assertIn(health, error)
        self.assertIn("was removed while it is used: stop the server, restore a copy", health)
        self.assertEqual(len(self.failures), 1)
        away.rename(path)
        self.clock.advance(LOOK_SECONDS)
        self.assertIsNone(self.database.health())
        self.thread.stuck = True
        calls = [self.database.run_read(lambda c: None) for _ in range(MAX_WAITING_CALLS + 1)]
        self.clock.advance(LOOK_SECONDS)  # there is no room to look
        self.thread.go_on()
        path.unlink()
        self.clock.advance(LOOK_SECONDS)
        self.assertIn("was removed", self.database.health() or "")
        self.assertEqual(len(calls), MAX_WAITING_CALLS + 1)
        self.stopped()
        self.assertLess(LOOK_SECONDS, 60.0)
