"""Writes that may come later: a batch at a time, off the reactor, until the store takes it."""

from collections.abc import Callable, Sized
from typing import Final, Generic, TypeVar

from sqlalchemy import Connection
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.store.database import Database
from domaeka.store.threads import DelayedCall, Scheduler, StoreClosed

#: Most rows written in one transaction: a few milliseconds' work, and no more is held up by it.
BATCH_ROWS: Final = 500
#: The pause before a batch that could not be written is tried again, in seconds.
RETRY_SECONDS: Final = 5.0
#: Longest time that L{BackgroundWriter.stop} goes on writing, in seconds.
FLUSH_SECONDS: Final = 10.0

_B = TypeVar("_B", bound=Sized)
_R = TypeVar("_R")


class BackgroundWriter(Generic[_B, _R]):
    """Write to the store, one batch after the other; its owner holds the queue, and bounds it."""

    _log = Logger()

    def __init__(
        self,
        database: Database,
        reactor: Scheduler,
        what: str,
        *,
        delay: float,
        take: Callable[[], _B],
        write: Callable[[Connection, _B], _R],
        written: Callable[[_B, _R], None],
        failed: Callable[[_B], None] = lambda batch: None,
        bulk: bool = False,
    ) -> None:
        """
        @param what: the name of the data, for the log.
        @param delay: how long the first of a batch waits for others, in seconds.
        @param take: the next batch, at most L{BATCH_ROWS}; empty when nothing waits.
        @param write: stores a batch; called in the writing thread.
        @param written: called when a batch is in the store.
        @param failed: called when it is not: C{take} should offer it again.
        @param bulk: whether it is written by L{Database.run_bulk}.
        """
        self._run = database.run_bulk if bulk else database.run_write
        self._reactor = reactor
        self._what = what
        self._delay = delay
        self._take = take
        self._write = write
        self._written = written
        self._failed = failed
        self._timer: DelayedCall | None = None
        self._writing = False
        self._stopping: Deferred[None] | None = None
        self._stopped = False
        #: The error of the last batch, if it could not be written.
        self.trouble: str | None = None

    def wake(self) -> None:
        """Something waits: write it soon."""
        if self._timer is None and not self._writing and not self._stopped:
            self._timer = self._reactor.callLater(self._delay, self._next)

    def hurry(self) -> None:
        """A whole batch waits: write it now, unless the store is in trouble."""
        if self._writing or self._stopped or self.trouble is not None:
            return
        self._cancel_timer()
        self._next()

    def _next(self) -> None:
        self._timer = None
        batch = self._take()
        if not batch:
            self._finish()
            return
        self._writing = True
        writing = self._run(self._write, batch)
        writing.addCallbacks(self._stored, self._lost, callbackArgs=(batch,), errbackArgs=(batch,))
        writing.addErrback(
            lambda failure: self._log.failure("{what}: our own mistake", failure, what=self._what)
        )

    def _stored(self, result: _R, batch: _B) -> None:
        self._writing = False
        if self.trouble is not None:
            self.trouble = None
            self._log.info("{what}: written again", what=self._what)
        try:
            self._written(batch, result)
        finally:
            if not self._stopped:
                # Others that wait for the writing thread come between two batches.
                more = len(batch) >= BATCH_ROWS or self._stopping is not None
                self._timer = self._reactor.callLater(0 if more else self._delay, self._next)

    def _lost(self, failure: Failure, batch: _B) -> None:
        self._writing = False
        self._failed(batch)
        if self.trouble is not None or isinstance(failure.value, StoreClosed):
            pass  # said before, or nothing new
        elif isinstance(failure.value, StoreError):
            self._log.warn(
                "{what}: not written, will be tried again: {reason}",
                what=self._what,
                reason=failure.getErrorMessage(),
            )
        else:
            self._log.failure("{what}: our own mistake", failure, what=self._what)
        self.trouble = failure.getErrorMessage()
        if self._stopping is not None or isinstance(failure.value, StoreClosed):
            self._finish()
        elif not self._stopped:
            self._timer = self._reactor.callLater(RETRY_SECONDS, self._next)

    def stop(self) -> "Deferred[None]":
        """
        Write all that waits, within L{FLUSH_SECONDS}.

        @return: fires when that is done, or could not be; never fails.
        """
        if self._stopped or self._stopping is not None:
            return succeed(None)
        self._cancel_timer()
        stopped: Deferred[None] = Deferred()
        self._stopping = stopped
        deadline = self._reactor.callLater(FLUSH_SECONDS, self._finish)
        if not self._writing:
            self._next()

        def over(_: None) -> None:
            self._stopped = True
            self._cancel_timer()
            if deadline.active():
                deadline.cancel()

        return stopped.addCallback(over)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _finish(self) -> None:
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.callback(None)
