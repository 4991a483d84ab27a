"""
The database: its engine, its own threads, its migrations, and whether it is well.

The reactor never waits for it.  One thread writes and one reads, each call in a transaction of
its own; what waits for them is bounded.
"""

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, StaticPool, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.store.drivers import make_engine, migrate, reason_of
from domaeka.store.threads import (
    DatabaseFailed,
    DelayedCall,
    Lane,
    StoreClosed,
    ThreadWorker,
    Worker,
)

#: A call that has been out this long, in seconds, shows in the health.
SLOW_CALL_SECONDS: Final = 5.0
#: One that has been out this long is no reason to believe that the next is answered: nobody new
#: is approved.
LATE_CALL_SECONDS: Final = 1.0
#: How often a store that failed is tried, in seconds.
PROBE_SECONDS: Final = 10.0
#: How long L{Database.stop} waits for calls, in seconds.
STOP_SECONDS: Final = 10.0

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Database:
    """
    A database of which the reactor never has to wait.

    Calls fail with L{StoreError}, soon, while it is not open.
    """

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
        @param reactor: keeps the time, and is where results are handed over.
        @param observe_write: told how long each call of L{run_write} took, in seconds; called in
            the writing thread.
        @param observe_failure: called when the store could not be opened, or did not do what was
            asked of it.
        @param make_worker: given a name and C{reactor}, a thread.
        @param retry_delay: given how many attempts to open it failed, the seconds to the next.
        @raise StoreError: the address is none that could work; one line.
        """
        try:
            address = make_url(url)
            self._writes = make_engine(address, writes=True)
            self._in_memory = isinstance(self._writes.pool, StaticPool)
            self._reads = self._writes if self._in_memory else make_engine(address, writes=False)
        except ArgumentError:  # its text may hold the password
            raise StoreError("storage.url: not an address that SQLAlchemy knows") from None
        except ImportError as error:
            raise StoreError(f"storage.url: the driver is not installed: {error}") from None
        except (SQLAlchemyError, TypeError, ValueError):
            raise StoreError("storage.url: cannot be used") from None
        #: The address, without its password.
        self.name = address.render_as_string(hide_password=True)
        self._is_sqlite = address.get_backend_name() == "sqlite"
        self._reactor = reactor
        self._observe_write = observe_write
        self._observe_failure = observe_failure
        self._make_worker = make_worker
        self._retry_delay = retry_delay or backoffPolicy()
        self._loads: list[tuple[Callable[[Connection], Any], Callable[[Any], None]]] = []
        self._waiting_for_open: list[Deferred[None]] = []
        self._lanes: list[Lane] = []
        self._open = False
        self._ended: StoreError | None = None
        self._trouble = "it has not been started"
        self._attempts = 0
        self._timer: DelayedCall | None = None

    # Opening

    def load_at_start(self, read: Callable[[Connection], _T], loaded: Callable[[_T], None]) -> None:
        """
        Have something read as part of the opening, in the order in which this is called.

        @param read: called in the writing thread, perhaps again and again.
        @param loaded: called once, with what was read, before anybody learns that it is open.
        """
        self._loads.append((read, loaded))

    def start(self) -> "Deferred[None]":
        """
        Open the database: bring its tables up to date, read what was asked for.

        @return: as of L{when_open}.
        """
        writer = Lane(self._make_worker("store-writer", self._reactor), self._reactor.seconds)
        self._lanes = [writer]
        if not self._in_memory:
            reader = self._make_worker("store-reader", self._reactor)
            self._lanes.append(Lane(reader, self._reactor.seconds))
        self._trouble = "it is being opened"
        opened = self.when_open()
        self._attempt()
        return opened

    def when_open(self) -> "Deferred[None]":
        """
        @return: fires once the database is open; fails with L{StoreClosed}, in one line, when it
            never will be: it is SQLite and cannot be used, it is newer than this program, or it
            was stopped.  A server that is down is tried until it is there.
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
        opening = self._lanes[0].submit(partial(self._translated, self._open_now))
        opening.addCallback(self._opened).addErrback(self._not_opened)

    def _open_now(self) -> list[Any]:
        """In the writing thread."""
        with self._writes.begin() as connection:
            migrate(connection)
            results = [read(connection) for read, _ in self._loads]
        if not self._in_memory:
            with self._reads.connect():
                pass  # stays in the pool
        return results

    def _opened(self, results: list[Any]) -> None:
        if self._ended is not None:
            return
        self._open = True
        for (_, loaded), result in zip(self._loads, results, strict=True):
            loaded(result)
        if self._attempts:
            self._log.info("the store {name} is open", name=self.name)
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
                self._log.failure("the store {name}: our own mistake", failure, name=self.name)
            self._end(StoreClosed(f"cannot open the store {self.name}: {self._trouble}"))
            return
        delay = self._retry_delay(self._attempts)
        self._attempts += 1
        self._log.warn(
            "cannot open the store {name}, next try in {delay:.1f} s: {reason}",
            name=self.name,
            delay=delay,
            reason=self._trouble,
        )
        self._timer = self._reactor.callLater(delay, self._attempt)

    def _end(self, reason: StoreError) -> None:
        self._ended = reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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

        @return: what C{f} returned, once it is stored; L{StoreError} when it could not be.
        """
        return self._run(0, self._write, f, args, kwargs)

    def run_read(
        self, f: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> "Deferred[_T]":
        """Likewise, in the reading thread, for what writes nothing."""
        return self._run(-1, self._read, f, args, kwargs)

    def _run(self, lane: int, call: Callable[..., Any], *args: object) -> "Deferred[Any]":
        if self._ended is not None:
            return fail(self._ended)
        if not self._open:
            return fail(StoreError(f"the store is not open: {self._trouble}"))
        result = self._lanes[lane].submit(partial(self._translated, call, *args))
        result.addErrback(self._failed)
        return result

    def _write(self, f: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with self._writes.begin() as connection:
            return f(connection, *args, **kwargs)

    def _read(self, f: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with self._reads.begin() as connection:
            return f(connection, *args, **kwargs)

    def _translated(self, call: Callable[..., _T], *args: object) -> _T:
        """In a thread: carry out C{call} and measure it; what the database says is one line."""
        started = self._reactor.seconds()
        try:
            return call(*args)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise DatabaseFailed(reason_of(error)) from None
        finally:
            if call == self._write:
                # Wall time may step back.
                self._observe_write(max(0.0, self._reactor.seconds() - started))

    def _failed(self, failure: Failure) -> Failure:
        if isinstance(failure.value, StoreError) and self._ended is None:
            self._observe_failure()
        if self._timer is None and self._ended is None and self.health() is not None:
            self._timer = self._reactor.callLater(PROBE_SECONDS, self._probe)
        return failure

    def _probe(self) -> None:
        """See whether what failed works again, if nobody has tried."""
        self._timer = None
        for lane, f in ((0, _touch), (-1, _look)):
            if self._lanes[lane].failure is not None:
                call = self.run_write if lane == 0 else self.run_read
                call(f).addErrback(_expected)

    # How it fares

    @property
    def waiting(self) -> int:
        """How many calls wait or are being carried out."""
        return sum(map(len, self._lanes))

    def health(self) -> str | None:
        """L{None} when well, else one line that says what is wrong."""
        if self._ended is not None:
            return str(self._ended)
        if not self._open:
            return f"the store is not open: {self._trouble}"
        now = self._reactor.seconds()
        for lane in self._lanes:
            if lane.failure is not None:
                return f"the store failed: {lane.failure}"
            if lane.running_since is not None and now - lane.running_since > SLOW_CALL_SECONDS:
                return f"the store has not answered for {now - lane.running_since:.0f} s"
        return None

    @property
    def answers(self) -> bool:
        """Whether it is well, and nothing waits for it: else nobody new is to be approved."""
        since = self._reactor.seconds() - LATE_CALL_SECONDS
        late = any(
            lane.running_since is not None and lane.running_since < since for lane in self._lanes
        )
        return not late and self.health() is None

    # The end

    def stop(self) -> "Deferred[None]":
        """
        Take no more calls; finish those that wait, within L{STOP_SECONDS}; close.

        @return: fires when that is done, and never fails.
        """
        if self._ended is None:
            self._end(StoreClosed("the store was stopped"))
        finished: Deferred[None] = Deferred()
        deadline = self._reactor.callLater(STOP_SECONDS, self._close, finished)
        open_ones = list(zip(self._lanes, (self._writes, self._reads), strict=False))

        def close_next(_: object) -> None:
            # One after the other: the last connection to SQLite's file takes its log in.
            if open_ones:
                lane, engine = open_ones.pop()
                lane.finish(engine.dispose).addBoth(close_next)
            elif deadline.active():
                deadline.reset(0)

        close_next(None)
        return finished

    def _close(self, finished: "Deferred[None]") -> None:
        if self.waiting:
            self._log.warn("the store {name} did not finish in time", name=self.name)
        for lane in self._lanes:
            lane.give_up()
        self._lanes = []
        finished.callback(None)


def _expected(failure: Failure) -> None:
    failure.trap(StoreError)  # type: ignore[no-untyped-call]


def _touch(connection: Connection) -> None:
    """Write something that changes nothing."""
    connection.execute(text("UPDATE alembic_version SET version_num = version_num"))


def _look(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))
