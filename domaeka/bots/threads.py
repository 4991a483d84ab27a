"""Threads for functions that may block: plain commands, and the reading of files."""

from collections import Counter
from collections.abc import Callable, Hashable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from threading import Thread
from typing import Any, Final, Protocol, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from domaeka.bots.failures import report
from domaeka.bots.fair_queue import Place
from domaeka.errors import BotError

_T = TypeVar("_T")

#: Most threads.  Source: docs/bots.md, "Limits"; as many as one bot may use at once.
MAX_THREADS: Final = 30
#: Most calls that wait for a thread.  Source: as above.
MAX_CALLS: Final = 1000
#: Most threads more, in the place of those whose calls were given up and do not come back.  Source:
#: as above.
MAX_HANGING: Final = 30
#: Most threads that one function has for a person of a phone, those that hang included.  Source: as
#: above; as many as run for a room at once.
MAX_OF_A_PERSON: Final = 3
#: Most threads in which one function hangs for a room, and for a phone.  Source: as above.
MAX_ROOM_HANGING: Final = 5
MAX_PHONE_HANGING: Final = 10
#: Longest time that a stop waits for busy threads, in seconds.
JOIN_SECONDS: Final = 2.0

#: The run in whose coroutine something is called on the bots' loop; C{asyncio.to_thread} hands it
#: on.
RUN: Final[ContextVar[object]] = ContextVar("domaeka_run")

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

    def health(self) -> str | None:
        """A L{HealthCheck<domaeka.interfaces.HealthCheck>}: threads that hang."""

    def close(self) -> "Deferred[None]":
        """Take no more calls.  @return: fires, in bounded time, when the threads are done."""


class _DaemonPool(ThreadPool):
    """A pool whose threads do not hold up the end of the process."""

    threadFactory = staticmethod(partial(Thread, daemon=True))  # type: ignore[assignment]


class _Call:
    """
    A call.

    @ivar key: the function that is called in the end.
    @ivar person: the function, and the person for whom; L{None}: the call is nobody's.
    @ivar holders: the function, and those for whom, with the number of calls that may hang.
    @ivar begun: it is in a thread.
    """

    __slots__ = (
        "begun",
        "function",
        "given",
        "given_up",
        "holders",
        "key",
        "person",
        "result",
        "work",
    )

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        self.function = function
        key: Any = function
        given = args
        run: Any = None
        while isinstance(key, partial):
            key, given = key.func, key.args + given
            # asyncio.to_thread() has a context of its own call it
            context = getattr(key, "__self__", None)
            if isinstance(context, Context) and given:
                run = context.get(RUN)
                key, given = given[0], given[1:]
        self.key: Hashable = key if isinstance(key, Hashable) else id(key)
        self.given = given[0] if given else None
        self.person: Hashable = None
        self.holders: dict[Hashable, int] = {self.key: MAX_HANGING}
        place = getattr(run if run is not None else self.given, "in_queue", None)
        if isinstance(place, Place):
            phone, room_id, who, _ = place
            self.person = self.key, phone, who
            self.holders[self.key, phone] = MAX_PHONE_HANGING
            self.holders[self.key, phone, (room_id,)] = MAX_ROOM_HANGING
            self.holders[self.person] = MAX_OF_A_PERSON  # where nobody is known, it is the room
        self.work: Callable[[], Any] = partial(copy_context().run, function, *args, **named)
        self.result: Deferred[Any] = Deferred()
        self.begun = False
        self.given_up = False

    @property
    def fields(self) -> dict[str, str | None]:
        """Fields for the log, where it was given a command's context."""
        return dict(getattr(self.given, "log_fields", {}))

    @property
    def name(self) -> str:
        """The name of its function."""
        return getattr(self.key, "__qualname__", "a function")


class CommandThreads:
    """
    A bounded pool of daemonic threads, made when first needed.

    A function has half of the threads at most, and of the calls that wait; functions take turns.  A
    thread whose call was given up hangs until it comes back, and another one takes its place,
    L{MAX_HANGING} at most.  A function whose calls hang is not called while as many of them hang
    as may hang yet; nor is it for a person, a room or a phone for whom too many of them hang.  None
    holds up the end of the process.
    """

    def __init__(self, reactor: Reactor) -> None:
        """@param reactor: results come back in its thread."""
        self._reactor = reactor
        self._pool: ThreadPool | None = None
        self._waiting: dict[Hashable, dict[_Call, None]] = {}  # by function, the next one first
        self._running: Counter[Hashable] = Counter()  # by function
        self._hanging: dict[_Call, None] = {}  # the one that was given up first is the first
        self._hangs: Counter[Hashable] = Counter()  # by function, and by those for whom
        self._of_people: Counter[Hashable] = Counter()  # those that run or hang, by person
        self._closed = False

    def call(self, function: Callable[..., _T], *args: Any, **named: Any) -> "Deferred[_T]":
        """
        See L{Threads}.  Fails with L{ThreadsBusy} if too many calls of the function wait or hang,
        or too many of the person, the room or the phone, or after L{close}.
        """
        call = _Call(function, args, named)
        if self._closed:
            return fail(ThreadsBusy("the threads are closed"))
        reason = self._reason_against(call)
        if reason:
            return fail(ThreadsBusy(reason))
        call.result = Deferred(lambda _: self._give_up(call))
        self._waiting.setdefault(call.key, {})[call] = None
        self._begin()
        return call.result

    def _reason_against(self, call: _Call) -> str:
        waiting = self._waiting.get(call.key, ())
        free = MAX_CALLS - sum(map(len, self._waiting.values()))
        if len(waiting) >= free:
            return "too many calls wait for a thread"
        hangs = self._hangs
        if hangs:
            if hangs[call.key] and hangs[call.key] >= MAX_HANGING - len(self._hanging):
                return f"{call.name} hangs in too many threads"
            if any(hangs[one] >= most for one, most in call.holders.items()):
                return f"{call.name} hangs too often for this person, room or phone"
        return ""

    def health(self) -> str | None:
        """See L{Threads}."""
        if not self._hanging:
            return None
        first = next(iter(self._hanging))
        return f"{len(self._hanging)} threads hang, the first of them in {first.name}"

    def _begin(self) -> None:
        """Have threads make calls that wait, the functions in turn."""
        if self._closed:
            return
        running = self._running
        free = min(MAX_THREADS, MAX_THREADS + MAX_HANGING - len(self._hanging)) - running.total()
        while free > 0:
            call = self._next()
            if call is None:
                return
            key = call.key
            self._take(call)
            if key in self._waiting:
                self._waiting[key] = self._waiting.pop(key)  # behind the others
            free -= 1
            if self._pool is None:
                self._pool = _DaemonPool(0, MAX_THREADS + MAX_HANGING, "domaeka-bots")
                self._pool.start()
            self._make(self._pool, call)

    def _next(self) -> _Call | None:
        """The call that is next; L{None}: none may have a thread."""
        people = self._of_people
        for key, waiting in self._waiting.items():
            if self._running[key] < MAX_THREADS // 2:
                for call in waiting:
                    if call.person is None or people[call.person] < MAX_OF_A_PERSON:
                        return call
        return None

    def _make(self, pool: ThreadPool, call: _Call) -> None:
        self._running[call.key] += 1
        if call.person is not None:
            self._of_people[call.person] += 1
        call.begun = True
        pool.callInThreadWithCallback(partial(self._worked, call), call.work)

    def _take(self, call: _Call) -> None:
        """A call waits no longer."""
        waiting = self._waiting[call.key]
        del waiting[call]
        if not waiting:
            del self._waiting[call.key]

    def _give_up(self, call: _Call) -> None:
        call.given_up = True
        if not call.begun:
            self._take(call)
            return
        self._left(call)
        self._hanging[call] = None
        self._hangs.update(call.holders.keys())
        self._begin()

    def _left(self, call: _Call) -> None:
        self._running[call.key] -= 1
        if not self._running[call.key]:
            del self._running[call.key]

    def _worked(self, call: _Call, succeeded: bool, value: Any) -> None:
        """In a thread."""
        self._reactor.callFromThread(self._came_back, call, value)

    def _came_back(self, call: _Call, value: object) -> None:
        call.work = _nothing
        if call.person is not None:
            self._of_people[call.person] -= 1
            if not self._of_people[call.person]:
                del self._of_people[call.person]
        if not call.given_up:
            self._left(call)
            self._begin()
            if isinstance(value, Failure):
                call.result.errback(value)
            else:
                call.result.callback(value)
            return
        del self._hanging[call]
        self._hangs.subtract(call.holders.keys())
        self._hangs = +self._hangs
        self._begin()
        if not isinstance(value, Failure):
            name = call.name
            _log.warn("{function} came back after it was given up", function=name, **call.fields)
        elif not isinstance(value.value, CancelledError):
            report("a call failed after it was given up", value, call.fields, call.function)

    def close(self) -> "Deferred[None]":
        """See L{Threads}.  Waits for L{JOIN_SECONDS} at most."""
        self._closed = True
        pool = self._pool
        if pool is None:
            return succeed(None)
        for waiting in self._waiting.values():
            for call in waiting:
                self._make(pool, call)
        self._waiting.clear()
        joined: Deferred[None] = Deferred()
        joined.addTimeout(JOIN_SECONDS, cast(IReactorTime, self._reactor))
        joined.addErrback(_still_busy)

        def join() -> None:
            pool.stop()
            self._reactor.callFromThread(joined.callback, None)

        Thread(target=join, name="domaeka-bots-join", daemon=True).start()
        return joined


def _nothing() -> None:
    """What a call that has come back holds no longer."""


def _still_busy(failure: Failure) -> None:
    failure.trap(TimeoutError)  # type: ignore[no-untyped-call]
    _log.warn("commands that are still running in threads are left behind")
