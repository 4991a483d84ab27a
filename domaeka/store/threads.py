"""
Threads for a database: one call at a time each, and a bounded queue in front of it.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from domaeka.errors import StoreError

#: Most calls that wait for a thread.  Above what all parts have out at once (one batch each) and
#: what an operator can ask for; the store is stuck when it is reached.
MAX_WAITING_CALLS: Final = 1000

_T = TypeVar("_T")


class DelayedCall(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """It is not to come."""

    def active(self) -> bool:
        """Whether it is still to come."""

    def reset(self, delay: float, /) -> None:
        """It is to come in C{delay} seconds."""


class Scheduler(Protocol):
    """The part of a reactor that keeps time."""

    def seconds(self) -> float:
        """The time now."""

    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any) -> DelayedCall:
        """Call C{callable} in C{delay} seconds."""


class StoreClosed(StoreError):
    """The store has been stopped, or could never be opened: no use in trying again."""


class DatabaseFailed(StoreError):
    """What the database itself said."""


class Worker(Protocol):
    """Where calls are carried out, off the reactor."""

    def run(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call}; one is given at a time."""

    def close(self) -> None:
        """Nothing is running, and nothing will come."""


class ThreadWorker:
    """A thread of its own."""

    def __init__(self, name: str, reactor: Any) -> None:
        """@param reactor: where results are handed over."""
        self._reactor = reactor
        self._pool = ThreadPool(1, 1, name)
        # One that hangs in a database's socket must not keep the process from ending.
        self._pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]
        self._pool.start()

    def run(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call} in the thread."""
        return deferToThreadPool(self._reactor, self._pool, call)

    def close(self) -> None:
        """End the thread, which is idle: this does not wait."""
        self._pool.stop()


class Lane:
    """One thread: what waits for it, and how it fared."""

    def __init__(self, worker: Worker, seconds: Callable[[], float]) -> None:
        #: What the database said last, where that was a failure.
        self.failure: str | None = None
        #: When the call was begun that is out now.
        self.running_since: float | None = None
        self._worker = worker
        self._seconds = seconds
        self._starting = False
        self._waiting: deque[tuple[Callable[[], Any], Deferred[Any]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + (self.running_since is not None)

    def submit(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call} behind what waits; L{StoreError} where that is too much."""
        if len(self._waiting) >= MAX_WAITING_CALLS:
            return fail(StoreError(f"{MAX_WAITING_CALLS} calls wait for the store"))
        return self.finish(call)

    def finish(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call} behind all that waits, however much that is."""
        result: Deferred[_T] = Deferred()
        self._waiting.append((call, result))
        self._next()
        return result

    def _next(self) -> None:
        if self._starting:
            return  # the loop below goes on
        self._starting = True
        while self._waiting and self.running_since is None:
            call, result = self._waiting.popleft()
            self.running_since = self._seconds()
            self._worker.run(call).addBoth(self._done, result)
        self._starting = False

    def _done(self, outcome: Any, result: "Deferred[Any]") -> None:
        self.running_since = None
        failed = isinstance(outcome, Failure)
        if not failed:
            self.failure = None
        elif isinstance(outcome.value, DatabaseFailed):
            self.failure = outcome.getErrorMessage()
        result.errback(outcome) if failed else result.callback(outcome)
        self._next()

    def give_up(self) -> None:
        """Refuse what waits; end the thread, if it is not stuck."""
        waiting, self._waiting = self._waiting, deque()
        for _, result in waiting:
            result.errback(StoreClosed("the store was stopped"))
        if self.running_since is None:
            self._worker.close()
