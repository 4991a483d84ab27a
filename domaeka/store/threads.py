"""Threads for a database: one call at a time each, and a bounded queue in front of it."""

from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from domaeka.errors import StoreError

#: Most calls that wait for a thread: more than all parts (one batch each) and an operator can ask
#: for at once.  The store is stuck when it is reached.
MAX_WAITING_CALLS: Final = 1000

_T = TypeVar("_T")


class DelayedCall(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Do not make it."""

    def active(self) -> bool:
        """True while it is still to be made."""

    def reset(self, delay: float, /) -> None:
        """Make it in C{delay} seconds."""


class Scheduler(Protocol):
    """The part of a reactor that keeps time."""

    def seconds(self) -> float:
        """The time now."""

    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any) -> DelayedCall:
        """Call C{callable} in C{delay} seconds."""


class StoreClosed(StoreError):
    """The store has been stopped, or could never be opened: no use in trying again."""


class DatabaseFailed(StoreError):
    """An error of the database itself."""


def expected(failure: Failure) -> None:
    """An errback for calls that may fail with L{StoreError}."""
    failure.trap(StoreError)  # type: ignore[no-untyped-call]


class Worker(Protocol):
    """Carries out calls, off the reactor."""

    def run(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call}; one is given at a time."""

    def close(self) -> None:
        """End it: it is idle, and no call will come."""


class ThreadWorker:
    """A thread of its own: a hand-over costs half of one by Twisted's pool of threads."""

    def __init__(self, name: str, reactor: Any) -> None:
        """@param reactor: where results are handed over."""
        self._reactor = reactor
        self._calls: SimpleQueue[tuple[Callable[[], Any], Deferred[Any]] | None] = SimpleQueue()
        # A thread that hangs in a database's socket must not keep the process from ending.
        Thread(target=self._carry_out, name=name, daemon=True).start()

    def run(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call} in the thread."""
        result: Deferred[_T] = Deferred()
        self._calls.put((call, result))
        return result

    def close(self) -> None:
        """End the thread, without waiting."""
        self._calls.put(None)

    def _carry_out(self) -> None:
        """In the thread."""
        while (wanted := self._calls.get()) is not None:
            call, result = wanted
            try:
                outcome = call()
            except BaseException:
                self._reactor.callFromThread(result.errback, Failure())  # type: ignore[no-untyped-call]
            else:
                self._reactor.callFromThread(result.callback, outcome)
            del wanted, call, result  # nothing is held while it waits


class Executor:
    """A thread, the queue of calls in front of it, and its last failure."""

    def __init__(self, worker: Worker, seconds: Callable[[], float]) -> None:
        #: The error of the last call, if the database failed.
        self.failure: str | None = None
        #: The time at which the running call began; L{None}: none runs.
        self.running_since: float | None = None
        self._worker = worker
        self._seconds = seconds
        self._starting = False
        self._waiting: deque[tuple[Callable[[], Any], Deferred[Any]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + (self.running_since is not None)

    def submit(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call} after all that wait; L{StoreError} if they are too many."""
        if len(self._waiting) >= MAX_WAITING_CALLS:
            return fail(StoreError(f"{MAX_WAITING_CALLS} calls wait for the store"))
        return self.finish(call)

    def finish(self, call: Callable[[], _T]) -> "Deferred[_T]":
        """Carry out C{call} after all that wait, however many they are."""
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
        """Refuse the calls that wait; end the thread, if it is not stuck."""
        waiting, self._waiting = self._waiting, deque()
        for _, result in waiting:
            result.errback(StoreClosed("the store was stopped"))
        if self.running_since is None:
            self._worker.close()
