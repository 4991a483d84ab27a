"""Threads for functions that may block: plain commands, and the reading of files."""

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any, Final, Protocol, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from domaeka.bots.failures import report
from domaeka.errors import BotError

_T = TypeVar("_T")

#: Most threads.  Source: docs/bots.md, "Limits"; as many as one bot may use at once.
MAX_THREADS: Final = 30
#: Most calls that run or wait for a thread.  Source: as above.
MAX_CALLS: Final = 1000
#: Longest time that a stop waits for busy threads, in seconds.
JOIN_SECONDS: Final = 2.0

_log = Logger()


class ThreadsBusy(BotError):
    """No thread is free, and too many calls wait."""


class Reactor(Protocol):
    """The part of the reactor that bots need."""

    def seconds(self) -> float:
        """The time now, in seconds."""

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any) -> Any:
        """Call it in C{delay} seconds."""

    def callFromThread(self, callable: Callable[..., Any], *args: Any) -> None:
        """Call it in the reactor's thread."""


class Threads(Protocol):
    """A pool that calls functions that may block."""

    def call(self, function: Callable[..., _T], *args: Any, **named: Any) -> "Deferred[_T]":
        """
        Call C{function}.

        @return: its result.  Cancel it to wait no longer: a call that has not begun is not made;
            one that has cannot be stopped, and its result is dropped.
        """

    def close(self) -> "Deferred[None]":
        """Take no more calls.  @return: fires, in bounded time, when the threads are done."""


class _DaemonPool(ThreadPool):
    """A pool whose threads do not hold up the end of the process."""

    threadFactory = staticmethod(partial(Thread, daemon=True))  # type: ignore[assignment]


class _Call:
    """A call; only the reactor's thread writes C{given_up}."""

    __slots__ = ("function", "given", "given_up")

    def __init__(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        self.function = function
        self.given = args[0] if args else None
        self.given_up = False

    @property
    def fields(self) -> dict[str, str | None]:
        """Fields for the log, where it was given a command's context."""
        return dict(getattr(self.given, "log_fields", {}))


class CommandThreads:
    """
    A bounded pool of daemonic threads, made when first needed: a thread that is stuck for ever
    costs its place in the pool, and does not hold up the end of the process.
    """

    def __init__(self, reactor: Reactor) -> None:
        """@param reactor: results come back in its thread."""
        self._reactor = reactor
        self._pool: ThreadPool | None = None
        self._calls = 0
        self._closed = False

    def call(self, function: Callable[..., _T], *args: Any, **named: Any) -> "Deferred[_T]":
        """See L{Threads}.  Fails with L{ThreadsBusy} if too many calls wait, or after L{close}."""
        if self._closed or self._calls >= MAX_CALLS:
            return fail(ThreadsBusy("no thread is free"))
        if self._pool is None:
            self._pool = _DaemonPool(0, MAX_THREADS, "domaeka-bots")
            self._pool.start()
        call = _Call(function, args)

        def give_up(_: object) -> None:
            call.given_up = True

        result: Deferred[_T] = Deferred(give_up)
        self._calls += 1
        context = copy_context()

        def work() -> _T:
            if call.given_up:
                raise CancelledError
            return context.run(function, *args, **named)

        def came_back(succeeded: bool, value: Any) -> None:
            self._reactor.callFromThread(self._came_back, call, result, value)

        self._pool.callInThreadWithCallback(came_back, work)
        return result

    def _came_back(self, call: _Call, result: "Deferred[Any]", value: object) -> None:
        self._calls -= 1
        if not call.given_up:
            if isinstance(value, Failure):
                result.errback(value)
            else:
                result.callback(value)
        elif not isinstance(value, Failure):
            name = getattr(call.function, "__qualname__", None)
            _log.warn("{function} came back after it was given up", function=name, **call.fields)
        elif not isinstance(value.value, CancelledError):
            report("a call failed after it was given up", value, call.fields, call.function)

    def close(self) -> "Deferred[None]":
        """See L{Threads}.  Waits for L{JOIN_SECONDS} at most."""
        self._closed = True
        if self._pool is None:
            return succeed(None)
        pool, self._pool = self._pool, None
        joined: Deferred[None] = Deferred()
        joined.addTimeout(JOIN_SECONDS, cast(IReactorTime, self._reactor))
        joined.addErrback(_still_busy)

        def join() -> None:
            pool.stop()
            self._reactor.callFromThread(joined.callback, None)

        Thread(target=join, name="domaeka-bots-join", daemon=True).start()
        return joined


def _still_busy(failure: Failure) -> None:
    failure.trap(TimeoutError)  # type: ignore[no-untyped-call]
    _log.warn("commands that are still running in threads are left behind")
