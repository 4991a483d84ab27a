"""
The loop of bots: C{async def} functions run on asyncio, in a thread of its own beside the reactor.
A function that blocks holds up other bots, never phones.

Calls go over in batches, and results come back likewise: many share one wake-up.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from threading import Thread, get_ident
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.bots.failures import report
from domaeka.bots.threads import JOIN_SECONDS, RUN, Reactor, Threads
from domaeka.errors import BotTypeError

#: A step that holds up the loop for longer is logged, in seconds.  Source: docs/bots.md, "Limits".
MAX_HOLD_UP_SECONDS: Final = 1.0
#: The same hold-up is logged again after this time, in seconds.
REPORT_SECONDS: Final = 60.0
#: Most tasks that are named of bots that a reload has taken away.
MAX_NAMED_TASKS: Final = 10
#: What is on the loop's stack of its own accord.
_NOT_AUTHORS: Final = ("asyncio", "domaeka", "selectors", "threading")
#: The beginning of asyncio's error where a Deferred is awaited.
_DEFERRED_AWAITED: Final = "Task got bad yield: <Deferred"

_T = TypeVar("_T")

_log = Logger()


class Handover:
    """Calls of any thread, made in another one in their order, many in one turn."""

    def __init__(self, schedule: Callable[[Callable[[], None]], object]) -> None:
        """@param schedule: has a function called in the other thread soon."""
        self._schedule = schedule
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_due = False

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Have C{function} called soon."""
        self._calls.append((function, args))
        # Set back before the calls are taken: one that comes meanwhile is taken, or is due again.
        if not self._is_due:
            self._is_due = True
            self._schedule(self._make)

    def _make(self) -> None:
        self._is_due = False
        calls = self._calls
        for _ in range(len(calls)):
            function, args = calls.popleft()
            try:
                function(*args)
            except Exception:
                _log.failure("a call from another thread: our own mistake")


class Pending(Future[_T]):
    """
    A result that comes from the reactor: C{await} it on the bots' loop or on the reactor; in a
    thread call C{result()}.

    @ivar awaited: True once somebody waits for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.awaited = False

    def __await__(self) -> Generator[Any, None, _T]:
        """Wait on the loop that runs, or on the reactor."""
        self.awaited = True
        if self.done():
            return self.result()
        if is_on_loop():
            return (yield from asyncio.wrap_future(self))
        deferred: Deferred[_T] = Deferred()
        self.add_done_callback(partial(_tell, deferred))
        return (yield from deferred.__await__())

    def result(self, timeout: float | None = None) -> _T:
        """Wait in a thread."""
        self.awaited = True
        return super().result(timeout)

    def follow(self, deferred: "Deferred[_T]") -> None:
        """Have the result of C{deferred}.  To be called in the reactor's thread."""
        deferred.addCallbacks(self.finish, lambda failure: self.fail(failure.value))

    def finish(self, result: _T) -> None:
        """Have this result, unless it is not waited for any more.  Likewise."""
        if not self.done() and self.set_running_or_notify_cancel():
            self.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Fail, likewise."""
        if not self.done() and self.set_running_or_notify_cancel():
            self.set_exception(error)


def _tell(deferred: "Deferred[Any]", future: "Future[Any]") -> None:
    error = future.exception()
    deferred.callback(future.result()) if error is None else deferred.errback(error)


#: The loops of bots.
_loops: Final["WeakSet[asyncio.AbstractEventLoop]"] = WeakSet()


def is_on_loop() -> bool:
    """True if the caller runs on a loop of bots."""
    try:
        return asyncio.get_running_loop() in _loops
    except RuntimeError:
        return False


class Call:
    """
    A call on the loop.

    @ivar about: what is called, for the log.
    @ivar task: asyncio's task of it, once it has begun; used in the loop's thread.
    """

    __slots__ = ("_ended", "_loop", "about", "args", "function", "is_cancelled", "task")

    def __init__(
        self,
        loop: "BotLoop",
        function: Callable[..., Awaitable[object]],
        args: tuple[Any, ...],
        ended: Callable[[Any, object], object],
        about: Any,
    ) -> None:
        self._loop = loop
        self.function = function
        self.args = args
        self._ended = ended
        self.about = about
        self.task: asyncio.Task[object] | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """Cancel it: a call that has not begun is not made."""
        self.is_cancelled = True
        self._loop.call_soon(self._cancel)

    # In the loop's thread

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def begin(self) -> None:
        """Begin it."""
        if self.is_cancelled:
            self._end(Failure(asyncio.CancelledError()))  # type: ignore[no-untyped-call]
            return
        try:
            awaitable = self.function(*self.args)
            if not asyncio.iscoroutine(awaitable):
                awaitable = _awaited(awaitable)
            self.task = self._loop.create_task(awaitable, self)
        except BaseException:  # even sys.exit()
            self._end(Failure())  # type: ignore[no-untyped-call]
            return
        self.args = ()

    def done(self, task: "asyncio.Task[object]") -> None:
        """Its task has ended."""
        self.task = None
        if task.cancelled():
            self._end(Failure(asyncio.CancelledError()))  # type: ignore[no-untyped-call]
        elif (error := task.exception()) is not None:
            self._end(Failure(_explained(error)))  # type: ignore[no-untyped-call]
        else:
            self._end(task.result())

    def _end(self, outcome: object) -> None:
        self._loop.hand_over(self._ended, self.about, outcome)


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _explained(error: BaseException) -> BaseException:
    """C{error}, or one that says more."""
    if isinstance(error, RuntimeError) and str(error).startswith(_DEFERRED_AWAITED):
        text = "a Deferred is awaited on the bots' loop: register the function with reactor=True"
        return BotTypeError(text).with_traceback(error.__traceback__)
    return error


#: The name of the bot whose function runs: tasks that the function begins are of that bot.
_bot: Final[ContextVar[str]] = ContextVar("domaeka_bot")


def belongs_to(bot_name: str) -> None:
    """Have what runs now, and tasks that it begins, belong to a bot."""
    _bot.set(bot_name)


def _make_task(
    loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any
) -> "asyncio.Task[Any]":
    """A task that a function of a bot begins."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **named)
    owner = _bot.get("")
    if owner:
        _owners[task] = owner
    return task


_owners: Final["WeakKeyDictionary[asyncio.Task[Any], str]"] = WeakKeyDictionary()


class HoldUp(NamedTuple):
    """What holds up the loop: since when, by the reactor's clock, what, and its place."""

    since: float
    what: str
    place: str


class Coroutines(Protocol):
    """A loop for C{async def} functions."""

    @property
    def hold_up(self) -> HoldUp | None:
        """What has held it up for L{MAX_HOLD_UP_SECONDS} or more."""

    def hand_over(self, function: Callable[..., object], *args: Any) -> None:
        """Call C{function} in the reactor's thread, from whatever thread."""

    def call(
        self,
        function: Callable[..., Awaitable[object]],
        args: tuple[Any, ...],
        ended: Callable[[Any, object], object],
        about: Any = None,
    ) -> Call:
        """
        Call C{function} on the loop, and await what it gives.

        @param ended: called in the reactor's thread with C{about}, and the result or a Failure.
        @param about: what is called, for the log: its text, and C{place}.
        """

    def call_soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call C{function} on the loop, from whatever thread."""

    def name_tasks(self, bots: Collection[str]) -> None:
        """
        Log the tasks that functions of bots have begun, and that still run.  To be called on the
        loop.

        @param bots: the names of bots that are served no more.
        """

    def check(self) -> float:
        """
        Look if the loop is held up, and log what does so.  To be called each second.

        @return: for how long it has been held up, in seconds; 0.0: it is not.
        """

    def close(self) -> "Deferred[None]":
        """Cancel what runs.  @return: fires, in bounded time, when the loop has ended."""


class BotLoop:
    """An asyncio loop in a daemonic thread, made when it is first needed."""

    def __init__(self, reactor: Reactor, threads: Threads) -> None:
        """@param threads: for C{asyncio.to_thread}."""
        self._reactor = reactor
        self._threads = threads
        self._handover = Handover(reactor.callFromThread)
        self.hand_over: Callable[..., None] = self._handover.call
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0  # the loop's
        self._inbox = Handover(self._wake)
        self._closed = False
        self._ended: Deferred[None] | None = None
        # Tasks of calls, by which a hold-up is named.
        self._calls: dict[asyncio.Task[object], Call] = {}
        self._done = self._task_done  # one for all: each that is made takes memory
        self._asked_at: float | None = None  # the loop has not answered since
        self._reported_at = -REPORT_SECONDS
        self.hold_up: HoldUp | None = None

    def call(
        self,
        function: Callable[..., Awaitable[object]],
        args: tuple[Any, ...],
        ended: Callable[[Any, object], object],
        about: Any = None,
    ) -> Call:
        """See L{Coroutines}."""
        call = Call(self, function, args, ended, about)
        self.call_soon(call.begin)
        return call

    def call_soon(self, function: Callable[..., object], *args: Any) -> None:
        """See L{Coroutines}."""
        if not self._closed:
            self._inbox.call(function, *args)

    def _wake(self, make: Callable[[], None]) -> None:
        if self._loop is None:
            self._loop = self._make_loop()
            self._run(self._loop)
        self._loop.call_soon_threadsafe(make)

    def _make_loop(self) -> asyncio.AbstractEventLoop:
        loop = self._new_loop()
        loop.set_default_executor(_Executor(self._threads, self._handover))
        loop.set_exception_handler(_report)
        loop.set_task_factory(_make_task)
        _loops.add(loop)
        return loop

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        # A function that is stuck must not keep the process from ending.
        Thread(target=self._carry_out, args=(loop,), name="domaeka-bots-loop", daemon=True).start()

    # In the loop's thread

    def _carry_out(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        self._thread = get_ident()
        while not self._closed:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue  # a task has raised it, and has ended by it
        try:
            loop.run_until_complete(_wind_up(loop))
        finally:
            loop.close()
            self._reactor.callFromThread(self._has_ended)

    def create_task(self, coroutine: Any, call: Call) -> "asyncio.Task[object]":
        """Begin the coroutine of a call."""
        # Not by the loop's own factory: most calls begin no task.
        context = copy_context()
        context.run(belongs_to, getattr(call.about, "bot_name", ""))
        context.run(RUN.set, call.about)
        task = asyncio.Task(coroutine, loop=self._loop, context=context)
        self._calls[task] = call
        task.add_done_callback(self._done)
        return task

    def _task_done(self, task: "asyncio.Task[object]") -> None:
        self._calls.pop(task).done(task)

    def name_tasks(self, bots: Collection[str]) -> None:
        """Log the tasks of bots that a reload has taken away: they go on.  On the loop."""
        left = [task for task, owner in _owners.items() if owner in bots and not task.done()]
        for task in left[:MAX_NAMED_TASKS]:
            _log.warn(
                "{what} of a bot that was taken away still runs: end it in on_stop ({place})",
                what=f"a task ({task.get_name()})",
                place=_place_of(task),
            )
        if len(left) > MAX_NAMED_TASKS:
            _log.warn("and {more} tasks more", more=len(left) - MAX_NAMED_TASKS)

    # Hold-ups

    def check(self) -> float:
        """See L{Coroutines}."""
        if self._loop is None or self._closed:
            return 0.0
        now = self._reactor.seconds()
        if self._asked_at is None:
            self._asked_at = now
            self.call_soon(self._answered)
            return 0.0
        held = now - self._asked_at
        if held < MAX_HOLD_UP_SECONDS:
            return held
        what, place = self._current(self._loop)
        self.hold_up = HoldUp(self._asked_at, what, place)
        if now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            _log.warn(
                "{what} has held up the bots' loop for {held_seconds:.1f} s: no other async def "
                "goes on meanwhile ({place})",
                what=what,
                held_seconds=held,
                place=place,
            )
        return held

    def _answered(self) -> None:
        self._handover.call(self._goes_on)

    def _goes_on(self) -> None:
        self._asked_at = None
        if self.hold_up is not None:
            held = self._reactor.seconds() - self.hold_up.since
            _log.info(
                "the bots' loop goes on after {held_seconds:.1f} s ({what})",
                held_seconds=held,
                what=self.hold_up.what,
            )
            self.hold_up = None
            self._reported_at = -REPORT_SECONDS

    def _current(self, loop: asyncio.AbstractEventLoop) -> tuple[str, str]:
        """What runs on the loop now, and its place."""
        task = asyncio.current_task(loop)
        if task is None:
            return "a callback", _running_in(self._thread)
        call = self._calls.get(cast("asyncio.Task[object]", task))
        if call is not None and call.about is not None:
            return str(call.about), call.about.place
        return f"a task ({task.get_name()})", _place_of(task)

    # The end

    def close(self) -> "Deferred[None]":
        """See L{Coroutines}.  Waits for L{JOIN_SECONDS} at most."""
        if self._closed or self._loop is None:
            self._closed = True
            return succeed(None)
        self._closed = True
        ended: Deferred[None] = Deferred()
        self._ended = ended
        ended.addTimeout(JOIN_SECONDS, cast(IReactorTime, self._reactor))
        ended.addErrback(_still_runs)
        self._loop.call_soon_threadsafe(self._loop.stop)
        return ended

    def _has_ended(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None and not ended.called:
            ended.callback(None)


class _Executor(ThreadPoolExecutor):
    """C{asyncio.to_thread}: in the threads of plain commands, which hold up no end."""

    def __init__(self, threads: Threads, handover: Handover) -> None:
        super().__init__(1)  # it makes none before its own submit() is called
        self._threads_of_bots = threads
        self._handover = handover

    def submit(self, function: Any, /, *args: Any, **named: Any) -> "Future[Any]":
        future = _InThread(self._handover)
        self._handover.call(self._start, future, partial(function, *args, **named))
        return future

    def _start(self, future: "_InThread", function: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        calling = self._threads_of_bots.call(function)
        future.calling = calling
        calling.addCallbacks(
            future.set_result, lambda failure: future.set_exception(_awaitable(failure.value))
        )


class _InThread(Future[Any]):
    """
    A call in a thread.  It is given up where nobody waits for it any more, as the threads count
    those that hang.

    @ivar calling: fires with its result; used in the reactor's thread.
    """

    def __init__(self, handover: Handover) -> None:
        super().__init__()
        self._handover = handover
        self.calling: Deferred[Any] | None = None

    def cancel(self) -> bool:
        """See C{concurrent.futures.Future}."""
        if super().cancel():
            return True
        self._handover.call(self._give_up)
        return False

    def _give_up(self) -> None:
        if self.calling is not None:
            self.calling.cancel()


def _awaitable(error: BaseException) -> BaseException:
    """C{error}, or one that can be raised where a future is awaited."""
    if not isinstance(error, StopIteration):
        return error
    raised = RuntimeError("a function in a thread has raised StopIteration")
    raised.__cause__ = error
    return raised


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An error of a task that nobody awaited, or of a callback."""
    error = context.get("exception")
    if error is not None:
        report("a task of a bot has failed", _explained(error), {})
    else:
        place = _place_of(context.get("task") or context.get("future"))
        _log.warn("bots: {what} ({place})", what=context.get("message"), place=place)


def _place_of(task: object) -> str:
    """The file and line of a task's function; empty: not known."""
    code = getattr(task.get_coro(), "cr_code", None) if isinstance(task, asyncio.Task) else None
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def _running_in(thread: int) -> str:
    """The place in the author's code that a thread is at now; empty: in none."""
    place = ""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_AUTHORS:
            code = frame.f_code
            place = f"{code.co_filename}:{frame.f_lineno}, in {code.co_qualname}"
        frame = frame.f_back
    return place


async def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all tasks, and wait for them."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()


def _still_runs(failure: Failure) -> None:
    failure.trap(TimeoutError)  # type: ignore[no-untyped-call]
    _log.warn("functions that still run on the bots' loop are left behind")
