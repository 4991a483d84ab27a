"""
The database: its engine, its threads, and its health.

The reactor never waits for it, but for small writes to SQLite's file, where that is free and fast.
Threads write what is decided, what others wait for, and what may wait; one reads.  Each call is a
transaction of its own, from bounded queues.
"""

import sqlite3
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, StaticPool, text
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.engine.interfaces import DBAPICursor as Cursor
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.store.columns import is_refusal
from domaeka.store.drivers import (
    BUSY_SECONDS,
    StoreFile,
    check_encoding,
    make_engine,
    reason_of,
    sqlite_file,
)
from domaeka.store.revisions import VERSION, migrate, touch
from domaeka.store.threads import (
    DatabaseFailed,
    DelayedCall,
    Executor,
    StoreClosed,
    ThreadWorker,
    Worker,
    expected,
)

#: Time that a call may run until the health shows it, in seconds.
SLOW_CALL_SECONDS: Final = 5.0
#: Longest pause between two attempts to open a store that is not there, in seconds: this, and up to
#: 1 s more at random.
RETRY_SECONDS: Final = 4.0
#: Time after which the log says again that it is not there, in seconds.
_SAID_SECONDS: Final = 60.0
#: Interval of the probes of a store that failed, in seconds.
PROBE_SECONDS: Final = 10.0
#: Longest time of writes in the reactor's thread, in seconds, on average of the last eight or so:
#: one that a busy machine held up is no slow disk.  While they take longer, the other thread has
#: them, and that long, in seconds.
AT_ONCE_SECONDS: Final = 0.005
AT_ONCE_PAUSE_SECONDS: Final = 10.0
#: Pages of SQLite's log after which they are brought into the database.  Source: its default.
_CHECKPOINT_PAGES: Final = 1000
#: Interval at which SQLite's file is looked for, in seconds.
LOOK_SECONDS: Final = 15.0
#: Longest time that L{Database.stop} waits for calls, in seconds; of a store in trouble.
STOP_SECONDS: Final = 10.0
TROUBLED_STOP_SECONDS: Final = 2.0

#: The places of the threads among all; see L{Database.start}.
_WRITER: Final = 0
_BULK: Final = 2
_READER: Final = -1

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Database:
    """A database whose calls fail, soon, with L{StoreError} while it is not open."""

    _log = Logger()

    def __init__(
        self,
        url: str | URL,
        reactor: Any,
        *,
        observe_write: Callable[[float], object] = lambda seconds: None,
        observe_failure: Callable[[], object] = lambda: None,
        make_worker: Callable[[str, Any], Worker] = ThreadWorker,
        retry_delay: Callable[[int], float] | None = None,
    ) -> None:
        """
        @param url: SQLAlchemy address.
        @param reactor: keeps the time; results are handed over in its thread.
        @param observe_write: called in the writing thread with how long each call of L{run_write}
            took, in seconds.
        @param observe_failure: called when the store could not be opened, or a call failed.
        @param make_worker: given a name and C{reactor}, makes a thread.
        @param retry_delay: given how many attempts to open it failed, the seconds to the next.
        @raise StoreError: the address cannot be used; one line.
        """
        try:
            address = make_url(url)
            self._writes = make_engine(address, writes=True)
            self._in_memory = isinstance(self._writes.pool, StaticPool)
            self._reads = self._writes if self._in_memory else make_engine(address, writes=False)
            self._direct = self._writes if self._in_memory else make_engine(address, writes=True)
            # On SQLite writers exclude each other: its calls take turns with those of the writer.
            self._is_sqlite = address.get_backend_name() == "sqlite"
            self._bulk = self._writes if self._is_sqlite else make_engine(address, writes=True)
        except ArgumentError:  # its text may hold the password
            raise StoreError("storage.url: not an address that SQLAlchemy knows") from None
        except ImportError as error:
            raise StoreError(f"storage.url: the driver is not installed: {error}") from None
        except (SQLAlchemyError, TypeError, ValueError):
            raise StoreError("storage.url: cannot be used") from None
        #: The address, without its password.
        self.name = address.render_as_string(hide_password=True)
        self._file = StoreFile(sqlite_file(address))
        self._in_file = self._is_sqlite and not self._in_memory
        self._at_once_from = -inf  # writes in the reactor's thread took too long before
        self._at_once_takes = 0.0
        self._reactor = reactor
        self._observe_write = observe_write
        self._observe_failure = observe_failure
        self._make_worker = make_worker
        self._retry_delay = retry_delay or backoffPolicy(maxDelay=RETRY_SECONDS)
        self._loads: list[tuple[Callable[[Connection], Any], Callable[[Any], None]]] = []
        self._waiting_for_open: list[Deferred[None]] = []
        self._executors: list[Executor] = []
        self._raw: PoolProxiedConnection | None = None
        self._open = False
        self._ended: StoreError | None = None
        self._trouble = "it has not been started"
        self._attempts = 0
        self._said = ("", -inf)  # the last reason that was logged, and when
        self._file_fault: str | None = None
        self._look_call: DelayedCall | None = None
        self._timer: DelayedCall | None = None

    # Opening

    def load_at_start(self, read: Callable[[Connection], _T], loaded: Callable[[_T], None]) -> None:
        """
        Read data as part of the opening, in the order of these calls.

        @param read: called in the writing thread, perhaps again and again.
        @param loaded: called once, with the result of C{read}, before L{when_open} fires.
        """
        self._loads.append((read, loaded))

    def start(self) -> "Deferred[None]":
        """Open the database, tables up to date, data loaded.  @return: as of L{when_open}."""
        lanes = ["writer"]
        if not self._in_memory:
            lanes += ["direct", "reader"] if self._is_sqlite else ["direct", "bulk", "reader"]
        self._executors = [
            Executor(self._make_worker(f"store-{lane}", self._reactor), self._reactor.seconds)
            for lane in lanes
        ]
        self._trouble = "it is being opened"
        opened = self.when_open()
        self._attempt()
        return opened

    def when_open(self) -> "Deferred[None]":
        """
        @return: fires once the database is open; fails with L{StoreClosed}, in one line, if it
            never will be: it is SQLite and cannot be used, it is newer than this program, or it
            was stopped.  A database server that is down is tried until it is there.
        """
        if self._ended is not None:
            return fail(self._ended)
        if self._open:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiting_for_open.append(waiter)
        return waiter

    def _attempt(self) -> None:
        self._timer = None
        opening = self._executors[0].submit(partial(_translated, self._open_now))
        opening.addCallback(self._opened).addErrback(self._not_opened)

    def _open_now(self) -> list[Any]:
        """In the writing thread."""
        with self._writes.begin() as connection:
            check_encoding(connection)
            migrate(connection)
            results = [read(connection) for read, _ in self._loads]
        if not self._in_memory:
            with self._reads.connect():
                pass  # stays in the pool
        self._file.opened()
        return results

    def _opened(self, results: list[Any]) -> None:
        if self._ended is not None:
            return
        self._open = True
        for (_, loaded), result in zip(self._loads, results, strict=True):
            loaded(result)
        if self._attempts:
            self._log.info("the store {store} is open", store=self.name)
        if self._file.is_watched:
            self._look_later()
        waiting, self._waiting_for_open = self._waiting_for_open, []
        for waiter in waiting:
            waiter.callback(None)

    def _not_opened(self, failure: Failure) -> None:
        if self._ended is not None:
            return
        self._open = False
        self._observe_failure()
        self._trouble = failure.getErrorMessage()
        hopeless = not isinstance(failure.value, StoreError) or isinstance(
            failure.value, StoreClosed
        )
        if hopeless or (self._is_sqlite and "locked" not in self._trouble):
            if not isinstance(failure.value, StoreError):
                self._log.failure("the store {store}: our own mistake", failure, store=self.name)
            self._end(StoreClosed(f"cannot open the store {self.name}: {self._trouble}"))
            return
        delay = self._retry_delay(self._attempts)
        self._attempts += 1
        said, said_at = self._said
        now = self._reactor.seconds()
        if said != self._trouble or now - said_at >= _SAID_SECONDS:
            self._said = (self._trouble, now)
            self._log.warn(
                "cannot open the store {store}, next try in {retry_seconds:.1f} s: {reason}",
                store=self.name,
                retry_seconds=delay,
                reason=self._trouble,
            )
        self._timer = self._reactor.callLater(delay, self._attempt)

    def _end(self, reason: StoreError) -> None:
        self._ended = reason
        for call in (self._timer, self._look_call):
            if call is not None:
                call.cancel()
        self._timer = self._look_call = None
        waiting, self._waiting_for_open = self._waiting_for_open, []
        for waiter in waiting:
            waiter.errback(reason)

    # Calls

    def run_write(
        self, f: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> "Deferred[_T]":
        """
        Call C{f} with a connection in the writing thread, in a transaction that is committed if
        it returns.  Calls are carried out one after the other, in order.

        @return: the result of C{f}, once all is stored; L{StoreError} if it could not be.
        """
        return self._run(_WRITER, f, args, kwargs)

    def run_bulk(
        self, f: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> "Deferred[_T]":
        """
        Likewise, for tables that may be locked for long, and rows for which nobody waits: on a
        database server in a thread and over a connection of its own, so that it holds up no call of
        L{run_write}.
        """
        return self._run(_WRITER if self._is_sqlite else _BULK, f, args, kwargs)

    def run_read(
        self, f: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> "Deferred[_T]":
        """Likewise, in the reading thread, for functions that only read."""
        return self._run(_READER, f, args, kwargs)

    def run_direct(self, f: Callable[[Cursor, Dialect, bool], _T]) -> "Deferred[_T]":
        """
        Call C{f} in a thread of its own, which waits for no other, in a transaction: with a cursor
        of the driver, the kind of the database, and false.  SQLAlchemy takes four times as long.
        Where the database refuses a row, C{f} is called once more, with true: it is to write each
        by itself.

        @return: the result of C{f}, once all is stored; L{StoreError} if it could not be.
        """
        if self._ended is not None:
            return fail(self._ended)
        if not self._open:
            return fail(StoreError(f"the store is not open: {self._trouble}"))
        call = partial(_translated, self._transact_directly, f)
        return self._executors[0 if self._in_memory else 1].submit(call).addErrback(self._failed)

    def write_at_once(self, statement: str, values: tuple[object, ...]) -> bool:
        """
        Write a few KiB to SQLite's file here and now, by a statement in a transaction of its own:
        10 µs of work, where a thread takes 85 µs.

        @return: whether it is done; if not, nothing is: it is not SQLite's file, or not free, or it
            was slow lately, or something is wrong; L{run_direct} will do it, or say what it is.
        """
        raw = self._raw
        ready = self._open and self._ended is None and self._in_file
        if raw is None or not ready or self._executors[1]:
            return False
        started = self._reactor.seconds()
        if started < self._at_once_from:
            return False
        try:
            raw.dbapi_connection.execute(statement, values)  # type: ignore[union-attr]
        except (sqlite3.Error, ValueError, OverflowError):
            return False
        finally:
            now = self._reactor.seconds()
            self._at_once_takes += (now - started - self._at_once_takes) / 8
            if self._at_once_takes > AT_ONCE_SECONDS:
                self._at_once_takes = 0.0
                self._at_once_from = now + AT_ONCE_PAUSE_SECONDS
        return True

    def _transact_directly(self, f: Callable[[Cursor, Dialect, bool], _T]) -> _T:
        """In the thread."""
        dialect = self._direct.dialect
        was_open = self._raw is not None
        if self._raw is None:
            self._raw = self._direct.raw_connection()
        raw = self._raw
        try:
            try:
                return self._write_directly(raw, f, False)
            except Exception as error:
                if not is_refusal(error, dialect):
                    raise
                raw.rollback()
                return self._write_directly(raw, f, True)
        except Exception as error:
            kind = dialect.loaded_dbapi.Error
            lost = isinstance(error, kind) and dialect.is_disconnect(
                error, raw.dbapi_connection, None
            )
            self._raw = None
            if self._in_memory:
                raw.rollback()
            else:
                raw.invalidate()
            if not isinstance(error, kind):
                raise
            if not (was_open and lost):
                raise DatabaseFailed(reason_of(error)) from None
        return self._transact_directly(f)  # it may have been idle for too long

    def _write_directly(
        self, raw: PoolProxiedConnection, f: Callable[[Cursor, Dialect, bool], _T], careful: bool
    ) -> _T:
        cursor = raw.cursor()
        if self._in_file:
            cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000:.0f}")
            cursor.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        if self._is_sqlite:
            cursor.execute("BEGIN IMMEDIATE")
        result = f(cursor, self._direct.dialect, careful)
        raw.commit()
        if self._in_file:
            # The reactor waits for no lock, and for no checkpoint.
            cursor.execute("PRAGMA busy_timeout=0")
            cursor.execute("PRAGMA wal_autocheckpoint=0")
        cursor.close()
        return result

    def _close_directly(self) -> None:
        """In the thread."""
        if self._raw is not None:
            self._raw.close()
            self._raw = None
        self._direct.dispose()

    def _run(self, index: int, f: Callable[..., Any], args: Any, kwargs: Any) -> "Deferred[Any]":
        if self._ended is not None:
            return fail(self._ended)
        if not self._open:
            return fail(StoreError(f"the store is not open: {self._trouble}"))
        engine = {_WRITER: self._writes, _BULK: self._bulk}.get(index, self._reads)
        call = partial(_translated, self._transact, engine, index != _READER, f, args, kwargs)
        return self._executors[index].submit(call).addErrback(self._failed)

    def _transact(
        self, engine: Engine, writes: bool, f: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """In a thread."""
        started = self._reactor.seconds()
        try:
            with engine.begin() as connection:
                return f(connection, *args, **kwargs)
        finally:
            if writes:
                self._observe_write(self._reactor.seconds() - started)

    def _failed(self, failure: Failure) -> Failure:
        if isinstance(failure.value, StoreError) and self._ended is None:
            self._observe_failure()
        if self._timer is None and self._ended is None and self.health() is not None:
            self._timer = self._reactor.callLater(PROBE_SECONDS, self._probe)
        return failure

    def _probe(self) -> None:
        """Try a call again in each thread whose last call failed."""
        self._timer = None
        lanes = [(_WRITER, touch), (_READER, _look)]
        if not self._is_sqlite:
            lanes.append((_BULK, touch))
        for index, f in lanes:
            if self._executors[index].failure is not None:
                self._run(index, f, (), {}).addErrback(expected)
        if not self._in_memory and self._executors[1].failure is not None:
            self.run_direct(_touch_directly).addErrback(expected)

    # SQLite's file

    def _look_for_file(self) -> None:
        self._look_call = None
        # The failure of a lane is over once a call there succeeds: it must be one that asks.
        looking = self.run_read(self._look_in_thread).addCallbacks(self._looked, expected)
        looking.addErrback(
            lambda failure: self._log.failure("{store}: our own mistake", failure, store=self.name)
        )
        looking.addCallback(lambda _: self._look_later())

    def _look_in_thread(self, connection: Connection) -> str | None:
        _look(connection)
        return self._file.look()

    def _look_later(self) -> None:
        if self._ended is None:
            self._look_call = self._reactor.callLater(LOOK_SECONDS, self._look_for_file)

    def _looked(self, fault: str | None) -> None:
        before, self._file_fault = self._file_fault, fault
        if fault is not None and before is None:
            self._observe_failure()
            self._log.error("the store: {error}", error=StoreError(fault))  # a text would be cut
        elif fault is None and before is not None:
            self._log.info("the store {store}: its file is there again", store=self.name)

    # Health

    @property
    def waiting(self) -> int:
        """The number of calls that wait or run."""
        return sum(map(len, self._executors))

    def health(self) -> str | None:
        """L{None} when well, else the fault, in one line."""
        if self._ended is not None:
            return str(self._ended)
        if not self._open:
            return f"the store is not open: {self._trouble}"
        if self._file_fault is not None:
            return self._file_fault
        now = self._reactor.seconds()
        for executor in self._executors:
            if executor.failure is not None:
                return f"the store failed: {executor.failure}"
            since = executor.running_since
            if since is not None and now - since > SLOW_CALL_SECONDS:
                return f"the store has not answered for {now - since:.0f} s"
        return None

    # The end

    def stop(self) -> "Deferred[None]":
        """
        Take no more calls; finish those that wait, within L{STOP_SECONDS}, of a store in trouble
        within L{TROUBLED_STOP_SECONDS}; close.

        @return: fires when that is done; never fails.
        """
        well = self.health() is None
        if self._ended is None:
            self._end(StoreClosed("the store was stopped"))
        finished: Deferred[None] = Deferred()
        seconds = STOP_SECONDS if well else TROUBLED_STOP_SECONDS
        deadline = self._reactor.callLater(seconds, self._close, finished)
        closings = [self._writes.dispose, self._close_directly, self._reads.dispose]
        if not self._is_sqlite:
            closings.insert(_BULK, self._bulk.dispose)
        open_ones = list(zip(self._executors, closings, strict=False))

        def close_next(_: object) -> None:
            # Not at once: the last connection to SQLite's file takes its log in.
            if open_ones:
                executor, close = open_ones.pop()
                executor.finish(close).addBoth(close_next)
            elif deadline.active():
                deadline.reset(0)

        close_next(None)
        return finished

    def _close(self, finished: "Deferred[None]") -> None:
        if self.waiting:
            self._log.warn("the store {store} did not finish in time", store=self.name)
        for executor in self._executors:
            executor.give_up()
        self._executors = []
        finished.callback(None)


def _translated(call: Callable[..., _T], *args: object) -> _T:
    """Make a call in a thread; an error of the database is one line."""
    try:
        return call(*args)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise DatabaseFailed(reason_of(error)) from None


def _touch_directly(cursor: Cursor, dialect: Dialect, careful: bool) -> None:
    cursor.execute(f"UPDATE {VERSION.name} SET version_num = version_num")


def _look(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))
