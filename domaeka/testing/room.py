"""
A room in which bots answer, in virtual time: for tests of bots, in three lines.

::

    room = Room(bot)
    assert room.say("# echo 안녕") == ["안녕"]
    room.close()
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from datetime import datetime, timedelta, timezone
from functools import partial
from hashlib import sha256
from itertools import count
from math import inf, isfinite
from threading import Event, Thread, active_count, get_ident
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeVar
from weakref import finalize

from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from domaeka.bots.api import Bot
from domaeka.bots.dispatch import STOP_SECONDS, BotDispatcher
from domaeka.bots.failures import Report, listening
from domaeka.bots.threads import MAX_THREADS
from domaeka.clock import monotonic
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.interfaces import DeviceKey, StatusListener
from domaeka.policies.outbox import DeliveryStatus
from domaeka.testing.host import MemoryHost, MemoryRooms
from domaeka.testing.loop import VirtualBotLoop
from domaeka.tracebacks import traceback_text, whole_text
from domaeka.wire import Chat, Dialect, Media, MediaType, Reply

#: Longest real time in which L{Room.say} waits for threads and real sockets, in seconds.
PATIENCE_SECONDS: Final = 5.0
#: Longest virtual time that may pass at once, in seconds.
MAX_WAIT_SECONDS: Final = 400 * 86_400.0
#: Real time between looks at sockets while there are also threads, in seconds.
_LOOK_SECONDS: Final = 0.01
#: The date of a room's beginning.
_BEGIN: Final = datetime(2026, 1, 1, 9, 0, tzinfo=timezone(timedelta(hours=9)))
#: The statuses of each answer.
_FATE: Final = (DeliveryStatus.SENT, DeliveryStatus.ACKNOWLEDGED, DeliveryStatus.DELIVERED)

_T = TypeVar("_T")


class File(NamedTuple):
    """
    A picture, or another file, that a bot has sent.

    @ivar kind: C{image}, C{audio}, C{video} or C{document}.
    @ivar format: C{png}, C{jpg} and so on.
    @ivar content: its bytes, or its address.
    """

    kind: MediaType
    format: str
    content: bytes | str

    def __repr__(self) -> str:
        """Without the bytes: a test shows it."""
        content = self.content
        said = f"{len(content)} bytes" if isinstance(content, bytes) else repr(content)
        return f"<File {self.kind} {self.format}, {said}>"


#: A text or a file.
Answer: TypeAlias = str | File


class Room:
    """
    A room, and the people in it: they talk, and bots answer as they do at a server, but no time
    passes except in L{wait}.

    Functions may do what they may at a server: C{asyncio.sleep}, C{ctx.ask}, threads, real sockets,
    for which L{say} waits for 5 s of real time at most; values are in memory, schedules come in
    L{wait}, from 09:00 on 2026-01-01 in Seoul on.  Only the reactor is another one.
    Use it in the thread that made it.  L{close} it, or use it in C{with}; a room that is forgotten
    is closed, too.
    """

    def __init__(
        self,
        *bots: Bot,
        name: str = "테스트방",
        id: str | None = None,
        phone: str | None = None,
        is_group: bool = True,
        operators: bool | Iterable[str] = False,
        errors: bool = True,
        settings: BotsSettings | None = None,
    ) -> None:
        """
        @param id: the channel id; by default the first of the bots' C{rooms}, or made of the name.
        @param phone: the phone's bot name; by default the first of the bots' C{names}, or C{봇}.
        @param operators: True: everybody is an operator; or the names of those who are.
        @param errors: raise what bots' functions raise, in the test; False: a room has the answer
            that says so, as at a server.
        @param settings: those of C{bots}.
        @raise ConfigError: two commands have the same name.
        """
        for bot in bots:
            if not isinstance(bot, Bot):
                raise TypeError(f"a room is for bots, not {type(bot).__name__}")
        if phone is None:
            phone = min((name for bot in bots for name in bot.names), default="봇")
        if id is None:
            id = min((room for bot in bots for room in bot.rooms), default=None)
        trusted = operators if isinstance(operators, bool) else frozenset(_names(operators))
        server = _Server(bots, phone, trusted, errors, settings or BotsSettings())
        self._enter(server, name, id, is_group)
        server.start()

    def _enter(self, server: "_Server", name: str, id: str | None, is_group: bool) -> None:
        self._server = server
        self.name = name
        #: The channel id.
        self.id = id or _number(f"room {name}")
        self._is_group = is_group
        #: All answers so far, oldest first.
        self.answers: list[Answer] = []
        server.enter(self.id, name)
        server.users += 1
        finalize(self, server.left)

    def beside(self, name: str, *, id: str | None = None, is_group: bool = True) -> "Room":
        """Another room of the same bots and the same phone."""
        room = object.__new__(type(self))
        room._enter(self._server, name, id, is_group)
        return room

    def say(
        self, text: str, *, sender: str = "김하늘", hash: str | None = None, mention: bool = False
    ) -> list[Answer]:
        """
        Somebody says C{text}.

        @param hash: the sender's hash; by default one that belongs to the name.
        @param mention: the bot is mentioned.
        @return: the answers that have come since this room was last asked for them, in order.
        @raise Exception: what a function has raised, with its traceback, unless the room was made
            with C{errors=False}; several of them in an C{ExceptionGroup}.
        @raise TimeoutError: a function has held up a thread for 5 s of real time.
        """
        if not isinstance(text, str):
            raise TypeError(f"people say texts, not {type(text).__name__}")
        try:
            self._server.say(self.name, self.id, self._is_group, text, sender, hash, mention)
        finally:
            answers = self._taken()  # what came beside an error belongs to no later message
        return answers

    def wait(self, seconds: float) -> list[Answer]:
        """
        Have time pass, for all rooms beside this one as well.

        @return: as of L{say}.
        @raise Exception: as of L{say}.
        """
        try:
            self._server.wait(seconds)
        finally:
            answers = self._taken()
        return answers

    def user_hash(self, sender: str) -> str:
        """The hash of a person whom L{say} is given without one."""
        return _digest(f"user {sender}")

    def close(self) -> None:
        """
        Stop the bots, as at the end of a server, and those of all rooms beside this one.

        @raise Exception: what a function has raised meanwhile, as of L{say}.
        """
        self._server.close()

    def __enter__(self) -> Self:
        """This room."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Close it; an error of the test goes before those of the bots."""
        if error is not None:
            self._server.errors = False
        self.close()

    def _taken(self) -> list[Answer]:
        answers, self._server.rooms[self.id] = self._server.rooms[self.id], []
        self.answers += answers
        return answers


def _names(names: Iterable[str]) -> Iterable[str]:
    return (names,) if isinstance(names, str) else names


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def _number(text: str) -> str:
    return str(int(_digest(text), 16))


class _Reactor(Clock):
    """A clock that takes calls from threads; L{make_calls} makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox: deque[Callable[[], object]] = deque()
        self.called = Event()

    def callFromThread(self, callable: Callable[..., object], *args: Any) -> None:
        self.inbox.append(partial(callable, *args))
        self.called.set()

    def make_calls(self) -> None:
        """Make the calls, and those that come meanwhile."""
        self.called.clear()
        while self.inbox:
            self.inbox.popleft()()


class _Threads:
    """
    A thread for each call, which ends with it.

    @ivar running: the threads, of which at most L{MAX_THREADS} run.
    """

    def __init__(self, reactor: _Reactor) -> None:
        self._reactor = reactor
        self.running: set[Thread] = set()
        self._waiting: deque[Thread] = deque()

    def call(self, function: Callable[..., _T], *args: Any, **named: Any) -> "Deferred[_T]":
        result: Deferred[_T] = Deferred()
        call = partial(copy_context().run, function, *args, **named)

        def work() -> None:
            try:
                value: object = call()
            except BaseException:  # even sys.exit()
                value = Failure()  # type: ignore[no-untyped-call]
            self._reactor.callFromThread(self._came_back, thread, result, value)

        # A function that is stuck must not keep the process from ending.
        thread = Thread(target=work, name="domaeka-room", daemon=True)
        self._waiting.append(thread)
        self._begin()
        return result

    def _begin(self) -> None:
        while self._waiting and len(self.running) < MAX_THREADS:
            thread = self._waiting.popleft()
            self.running.add(thread)
            thread.start()

    def _came_back(self, thread: Thread, result: "Deferred[Any]", value: object) -> None:
        thread.join()
        self.running.discard(thread)
        self._begin()
        if not result.called:  # it was cancelled
            result.errback(value) if isinstance(value, Failure) else result.callback(value)

    def health(self) -> str | None:
        """Threads that hang are told of where a test waits for them."""
        return None

    def close(self) -> "Deferred[None]":
        self._waiting.clear()
        return succeed(None)

    def places(self) -> str:
        """The places in which threads are stuck now."""
        frames = sys._current_frames()
        found = (frames.get(thread.ident or 0) for thread in self.running)
        return ", ".join(_place(frame) for frame in found if frame is not None)


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class _Phone:
    """The phone of all rooms: it sends all that it is given."""

    def __init__(self, key: DeviceKey, rooms: dict[str, list[Answer]]) -> None:
        self.key = key
        self._rooms = rooms

    def send(
        self, reply: Reply, ttl: float | None = None, on_status: StatusListener | None = None
    ) -> None:
        self._rooms.setdefault(reply.channel_id or "", []).extend(_answers(reply.content))
        if on_status is not None:
            for status in _FATE:
                on_status(status, "")

    def message_done(self, chat: Chat) -> None:
        """There is no window to count in."""

    def describe(self) -> Mapping[str, str]:
        return {}


def _answers(content: str | Media) -> Iterable[Answer]:
    if isinstance(content, str):
        return (content,)
    return [File(content.kind, content.format, piece) for piece in content.pieces]


class _Server:
    """
    The dispatcher of some rooms, in virtual time.  It knows none of them, so that they can be
    forgotten.

    @ivar rooms: answers that were not given out yet, by channel id.
    @ivar users: the number of rooms that are not forgotten.
    """

    def __init__(
        self,
        bots: tuple[Bot, ...],
        phone: str,
        operators: bool | frozenset[str],
        errors: bool,
        settings: BotsSettings,
    ) -> None:
        self.rooms: dict[str, list[Answer]] = {}
        self.users = 0
        self.errors = errors
        self._operators = operators
        self._bots = bots
        self._settings = settings
        self._breaker = BreakerSettings()
        self._reactor = reactor = _Reactor()
        self._threads = _Threads(reactor)
        self._loop = VirtualBotLoop(reactor, self._threads)
        self._phone = _Phone(DeviceKey(phone, "room"), self.rooms)
        self._reports: list[Report] = []
        self._numbers = count(1)
        self._thread = get_ident()
        self._threads_before = active_count()
        self._works: Deferred[None] = succeed(None)  # the bots' start or stop
        self._closed = False
        self._dispatcher = BotDispatcher(
            bots,
            reactor,
            self._threads,
            settings,
            self._breaker,
            loop=self._loop,
            observe=lambda command: lambda took: None,
            failed=lambda command: None,
            busy=lambda: None,
        )
        self._sendings = MemoryRooms(
            lambda to, content: self.rooms.setdefault(to.channel_id or "", []).extend(
                _answers(content)
            )
        )
        self._host = MemoryHost(
            self._dispatcher,
            reactor,
            self._loop,
            lambda: _BEGIN.timestamp() + reactor.seconds(),
            timeout=settings.timeout,
            rooms=self._sendings,
        )

    def enter(self, channel_id: str, name: str) -> None:
        """There is a room of this name."""
        self.rooms.setdefault(channel_id, [])
        self._sendings.hear(channel_id, name, *self._phone.key)

    def start(self) -> None:
        with self._watching():
            self._works = self._dispatcher.start()

    def say(
        self,
        room: str,
        channel_id: str,
        is_group: bool,
        text: str,
        sender: str,
        user_hash: str | None,
        mention: bool,
    ) -> None:
        person = user_hash or _digest(f"user {sender}")
        self._trust(channel_id, sender, person)
        now = _BEGIN + timedelta(seconds=self._reactor.seconds())
        chat = Chat(
            dialect=Dialect.V33,
            room=room,
            channel_id=channel_id,
            sender=sender,
            text=text,
            is_group=is_group,
            log_id=str(next(self._numbers)),
            user_hash=person,
            is_mention=mention,
            sent_at=now.isoformat(timespec="milliseconds"),
            client_id=None,
            auth=None,
        )
        with self._watching():
            self._dispatcher.submit(chat, self._phone)

    def _trust(self, channel_id: str, sender: str, person: str) -> None:
        """Make an operator of somebody who is to be one."""
        trusted = self._operators
        if trusted if isinstance(trusted, bool) else sender in trusted:
            operator = f"{channel_id}/{person}"
            if operator not in self._settings.operators:
                operators = *self._settings.operators, operator
                self._settings = replace(self._settings, operators=operators)
                self._dispatcher.apply(self._bots, self._settings, self._breaker)

    def wait(self, seconds: float) -> None:
        if not (isfinite(seconds) and 0 <= seconds <= MAX_WAIT_SECONDS):
            raise ValueError(f"from 0 to {MAX_WAIT_SECONDS:.0f} s can pass, not {seconds}")
        clock = self._reactor
        with self._watching() as watching:
            end = clock.seconds() + seconds
            while (due := self._next()) <= end:
                clock.advance(max(0.0, due - clock.seconds()))
                watching.settle()
            clock.advance(max(0.0, end - clock.seconds()))

    def _next(self) -> float:
        """The time of the next call of the clock that has something to do."""
        idle = self._dispatcher.idle_sweep
        calls = (call for call in self._reactor.getDelayedCalls() if call is not idle)
        return min((call.getTime() for call in calls), default=inf)  # type: ignore[misc]

    def close(self) -> None:
        if self._closed:
            return
        with self._watching() as watching:
            self._closed = True
            try:
                self._works = self._dispatcher.close()
                watching.settle()
                for _ in range(round(STOP_SECONDS) + 1):
                    if self._works.called:
                        break
                    self._reactor.advance(1.0)
                    watching.settle()
            finally:
                self._end()

    def _end(self) -> None:
        self._closed = True
        self._host.host.unlink(self._bots)  # where the bots were not stopped
        self._loop.close()
        for call in list(self._reactor.getDelayedCalls()):
            call.cancel()  # type: ignore[misc]

    def left(self) -> None:
        """A room was forgotten: close with the last one."""
        self.users -= 1
        if self.users or self._closed:
            return
        # It may be called wherever Python collects garbage, in this very loop as well.
        if get_ident() != self._thread or self._loop.virtual.is_running():
            self._end()
            return
        self.errors = False
        self.close()

    def _watching(self) -> "_Watching":
        if self._closed:
            raise RuntimeError("the room is closed")
        if get_ident() != self._thread:
            raise RuntimeError("a room is used in the thread that made it")
        return _Watching(self)

    def settle(self, deadline: float) -> None:
        """Do all that is due now, and wait for what takes real time."""
        reactor, threads, loop = self._reactor, self._threads, self._loop.virtual
        while True:
            reactor.make_calls()
            loop.run_due()
            if loop.is_restless:
                raise RuntimeError(
                    "a function on the bots' loop waits for nothing, again and again"
                )
            if reactor.inbox:
                continue
            patience = deadline - monotonic()
            outside = self._waits_outside(loop)
            if threads.running:
                if patience <= 0:
                    raise TimeoutError(
                        f"threads still run after {PATIENCE_SECONDS:.0f} s: {threads.places()}"
                    )
                if not outside:
                    reactor.called.wait(patience)
                    continue
            if not outside or patience <= 0:
                return
            loop.poll(min(patience, _LOOK_SECONDS))

    def _waits_outside(self, loop: Any) -> bool:
        """True if functions that have begun wait for what no virtual time brings."""
        if loop.is_closed() or not (self._dispatcher.pending() or not self._works.called):
            return False
        if loop.has_sockets:
            return True
        return not loop.has_timers and active_count() > self._threads_before

    def report(self, report: Report) -> None:
        self._reports.append(report)

    def take_errors(self) -> list[Exception]:
        """The errors of functions, with tracebacks."""
        reports, self._reports = self._reports, []
        return [_raisable(report) for report in reports] if self.errors else []


class _Watching:
    """A turn of a server: at its end what is due is done, and errors of functions are raised."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._listening = listening(server.report)
        self._deadline = monotonic() + PATIENCE_SECONDS

    def settle(self) -> None:
        self._server.settle(self._deadline)

    def __enter__(self) -> Self:
        self._listening.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.settle()
        finally:
            self._listening.__exit__(None, None, None)
        errors = self._server.take_errors()
        if error is None and errors:
            if len(errors) == 1:
                raise errors[0]
            raise ExceptionGroup("functions of bots have failed", errors)


def _raisable(report: Report) -> Exception:
    """The error of a report, with its traceback."""
    error = report.error
    if not isinstance(error, Exception):  # sys.exit() would end the tests
        said = RuntimeError(f"a function has raised {type(error).__name__}")
        said.__cause__ = error
        return said
    if error.__traceback__ is None:
        if isinstance(report.traceback, TracebackType):
            return error.with_traceback(report.traceback)
        error.add_note(traceback_text(error, whole_text, report.traceback, report.function))
    return error
