"""From a message to its command, and from there back to the room."""

import asyncio
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import takewhile
from threading import get_ident
from types import CoroutineType
from typing import Any, Final, TypeVar, cast

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.bots.api import Bot, Context
from domaeka.bots.builtin import builtin_bot
from domaeka.bots.commands import Command, CommandTable
from domaeka.bots.lanes import Lanes
from domaeka.bots.services import Service, attach_services, services
from domaeka.bots.steps import first_step
from domaeka.bots.threads import Reactor, Threads
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.interfaces import Origin
from domaeka.messages import Chat, Reply
from domaeka.policies.outbox import FateListener
from domaeka.policies.retry import Breaker, BreakerOpen

_T = TypeVar("_T")

#: How often runs are looked at whether they have taken too long, in seconds.
SWEEP_SECONDS: Final = 1.0
#: A command that takes this part of its longest time has failed, to its breaker.  Source:
#: docs/bots.md, "Breakers".
SLOW_PART: Final = 0.5
#: Most rooms of which is remembered that they know of an open breaker: others hear nothing.
_MAX_TOLD: Final = 10_000

# What is said in the chat.
BUSY_TEXT: Final = "지금은 요청이 많아 받지 못했습니다. 잠시 뒤에 다시 보내 주세요."
FAILED_TEXT: Final = "요청을 처리하다가 오류가 났습니다."
TIMEOUT_TEXT: Final = "시간이 너무 오래 걸려 요청을 그만두었습니다."
OPEN_TEXT: Final = "지금은 이 명령을 쓸 수 없습니다. 잠시 뒤에 다시 보내 주세요."
OPERATORS_TEXT: Final = "운영자만 쓸 수 있는 명령입니다."

#: asyncio's is not Twisted's.
_CANCELLED: Final = (CancelledError, asyncio.CancelledError)

_log = Logger()


class _Served(msgspec.Struct, frozen=True, eq=False):
    """
    A command, with what is looked at for each message.

    @ivar observe: told how long it took, in seconds.
    """

    command: Command
    breaker: Breaker
    observe: Callable[[float], None]


class _Run(Context, eq=False, kw_only=True):
    """
    A context, with what the dispatcher needs of it.

    @ivar deadline: when it has taken too long, by L{BotDispatcher._elapsed}.
    @ivar waits_for: set once it has a place in its lane.
    """

    served: _Served
    permit: int
    began: float
    deadline: float = 0.0
    over: bool = False
    waits_for: Any = None


class BotDispatcher:
    """
    Bring messages to commands: in order, within limits of number and time.

    What goes wrong in a command costs one answer.  A coroutine that does not wait, as most, runs
    within L{submit} and takes no place in any lane.
    """

    def __init__(
        self,
        bots: Iterable[Bot],
        reactor: Reactor,
        threads: Threads,
        settings: BotsSettings,
        breaker: BreakerSettings,
        *,
        observe: Callable[[str], Callable[[float], None]],
        failed: Callable[[str], None],
        busy: Callable[[], None],
    ) -> None:
        """
        @param bots: whose commands are served, beside those built in.
        @param threads: for plain commands; closed with this.
        @param observe: given a command's name: what is told how long it took, in seconds.
        @param failed: given the name of a command that failed or took too long.
        @param busy: called for each message that found no room to wait in.
        @raise ConfigError: two commands have the same name.
        """
        self._reactor = reactor
        self._seconds = reactor.seconds
        self._threads = threads
        self._observe = observe
        self._served: dict[Command, _Served] = {}
        self._count_failed = failed
        self._count_busy = busy
        self._lanes: Lanes[tuple[_Served, int, Chat, Origin]] = Lanes(
            settings.bot_concurrency, settings.room_concurrency
        )
        self._breaker_terms: tuple[BreakerSettings, float] | None = None
        self._breakers: dict[str, Breaker] = {}
        self._told: dict[str, tuple[int, set[tuple[str, str]]]] = {}  # by breaker
        self._warned: set[Command] = set()
        self.apply(bots, settings, breaker)
        self._running: dict[_Run, None] = {}  # those that wait, oldest first
        self._closed = False
        self._thread = get_ident()
        self._sweeper = LoopingCall(self._sweep)
        self._sweeper.clock = cast(IReactorTime, reactor)
        self._swept_at = 0.0
        self._elapsed = 0.0  # seconds that count, up to then

    def apply(self, bots: Iterable[Bot], settings: BotsSettings, breaker: BreakerSettings) -> None:
        """
        Serve C{bots} from now on, within these settings; what runs or waits goes on as it began.

        @raise ConfigError: two commands have the same name; nothing has changed.
        """
        found = tuple(bots)
        commands = CommandTable(
            command for bot in (builtin_bot(found), *found) for command in bot.commands
        )
        self._commands = commands
        self._timeout = settings.timeout
        self._operators = frozenset(
            (channel, user)
            for channel, _, user in (text.partition("/") for text in settings.operators)
        )
        terms = breaker, settings.timeout
        if terms != self._breaker_terms:
            attach_services(self._seconds, breaker)
            self._breaker_terms = terms
            self._breakers = {}
            self._told.clear()  # of openings that are counted anew
        # One that is open stays so.
        self._breakers = {
            command.name: self._breakers.get(command.name)
            or Breaker(
                command.name,
                self._seconds,
                breaker.failure_threshold,
                breaker.recovery_timeout,
                settings.timeout * SLOW_PART,
            )
            for command in commands
        }
        known = self.breakers()
        self._told = {name: told for name, told in self._told.items() if name in known}
        self._served = {
            command: _Served(command, self._breakers[command.name], self._observe(command.name))
            for command in commands
        }
        self._warned &= set(self._served)
        self._lanes.limit(settings.bot_concurrency, settings.room_concurrency)

    def start(self) -> None:
        """Begin to watch the time.  To be called in the reactor's thread."""
        self._thread = get_ident()
        self._swept_at = self._seconds()
        self._sweeper.start(SWEEP_SECONDS, now=False).addErrback(_sweep_ended)

    def breakers(self) -> Mapping[str, Breaker | Service]:
        """Each command and each outside service by name; their C{state} is for metrics."""
        return {**services(), **self._breakers}

    def commands(self) -> tuple[Command, ...]:
        """What the bots answer to, in the order in which it was registered."""
        return tuple(self._commands)

    def pending(self) -> int:
        """How many messages were accepted and are not yet answered."""
        return self._lanes.waiting + len(self._running)

    def close(self) -> "Deferred[None]":
        """
        Break off what runs, forget what waits; both stay unanswered.

        @return: fires, in bounded time, when the threads are done.
        """
        self._closed = True
        if self._sweeper.running:
            self._sweeper.stop()
        for _, _, chat, origin in self._lanes.clear():
            self._done(chat, origin)
        runs = list(self._running)
        self._running.clear()
        for run in runs:
            run.over = True
            run.served.breaker.dropped(run.permit)
            self._done(run._chat, run._origin)
            _cancel(run)
        return self._threads.close()

    # Dispatcher

    def submit(self, chat: Chat, origin: Origin) -> None:
        """See L{domaeka.interfaces.Dispatcher}."""
        found = self._commands.find(chat.text)
        if found is None or self._closed:
            self._done(chat, origin)
            return
        command, start = found
        served = self._served[command]
        lanes = self._lanes
        if not lanes.bots or lanes.is_free(origin.key.bot_name, chat.room_id):
            if self._begin(served, start, chat, origin):
                lanes.enter(origin.key.bot_name, chat.room_id)
            return
        bot_name = origin.key.bot_name
        room_id = chat.room_id
        if not lanes.wait(bot_name, room_id, (served, start, chat, origin), len(chat.text)):
            self._count_busy()
            if lanes.should_tell(bot_name, room_id):
                self._say(chat, origin, BUSY_TEXT)
            self._done(chat, origin)

    # Runtime, for contexts

    def send(
        self,
        origin: Origin,
        reply: Reply,
        ttl: float | None = None,
        on_fate: Callable[[str], object] | None = None,
    ) -> None:
        """Answer, from whatever thread."""
        if get_ident() == self._thread:
            self._answer(origin, reply, ttl, on_fate)
        else:
            self._reactor.callFromThread(self._answer, origin, reply, ttl, on_fate)

    def in_reactor_thread(self) -> bool:
        """Whether the caller may not block."""
        return get_ident() == self._thread

    def call_in_thread(self, function: Callable[..., _T], *args: Any) -> "Deferred[_T]":
        """Call what may block."""
        return self._threads.call(function, *args)

    def is_operator(self, chat: Chat) -> bool:
        """Whether channel id and user hash, together, are those of an operator."""
        return (chat.channel_id, chat.user_hash) in self._operators

    # One run

    def _begin(self, served: _Served, start: int, chat: Chat, origin: Origin) -> bool:
        """Let a command run.  @return: whether it waits; else all is done."""
        command = served.command
        if command.operators_only and not self.is_operator(chat):
            self._say(chat, origin, OPERATORS_TEXT)
            self._done(chat, origin)
            return False
        try:
            permit = served.breaker.begin()
        except BreakerOpen as refusal:
            self._tell_open(refusal, chat, origin)
            self._done(chat, origin)
            return False
        run = _Run(chat, origin, start, self, served=served, permit=permit, began=self._seconds())
        try:
            if command.on_reactor:
                outcome = command.function(run)
            else:
                outcome = self._threads.call(command.function, run)
                outcome.addCallback(self._from_thread, command)
            if type(outcome) is CoroutineType:
                outcome = first_step(outcome)
            if run._turn is not None:
                outcome = run._settled(outcome)
        # Whatever a bot's code does, even sys.exit(), ends its own run only.
        except BaseException as error:
            self._failed(run, error)
            return False
        # To ask whether something is a Deferred takes 0.8 µs.
        if type(outcome) is str or outcome is None or not isinstance(outcome, Deferred):
            self._succeeded(run, outcome)
            return False
        outcome.addCallback(run._settled)
        outcome.addBoth(self._came_back, run)
        if run.over:
            return False
        run.waits_for = outcome
        since = min(max(0.0, run.began - self._swept_at), SWEEP_SECONDS)
        run.deadline = self._elapsed + since + self._timeout
        self._running[run] = None
        return True

    def _from_thread(self, value: object, command: Command) -> object:
        """Go on with what should not have been called in a thread."""
        if isinstance(value, Deferred):
            self._warn_once(command, "gives a Deferred: annotate it so, or use inlineCallbacks")
        elif asyncio.iscoroutine(value):
            self._warn_once(command, "gives a coroutine: make it async def")
            return first_step(value)
        return value

    def _came_back(self, result: object, run: _Run) -> None:
        """What a run waited for has come."""
        if run.over:
            if not isinstance(result, Failure):
                _log.info("{command} came back after its time", command=run.served.command.name)
            elif not isinstance(result.value, _CANCELLED):
                _report("failed after its time", _error_of(result), **_ids(run))
            return
        self._leave(run)
        if isinstance(result, Failure):
            self._failed(run, _error_of(result))
        else:
            self._succeeded(run, result)
        if run.waits_for is not None:
            self._start_next(run)

    def _time_out(self, run: _Run) -> None:
        """A run has taken too long."""
        self._leave(run)
        _log.warn("{command} took too long and was given up", **_ids(run))
        try:
            self._count_failure(run)
            self._say(run._chat, run._origin, TIMEOUT_TEXT)
        finally:
            self._done(run._chat, run._origin)
            _cancel(run)
            self._start_next(run)

    def _succeeded(self, run: _Run, value: object) -> None:
        served = run.served
        took = self._seconds() - run.began
        if took < 0.0:  # wall time may step back
            took = 0.0
        served.breaker.succeeded(run.permit, took)
        served.observe(took)
        chat = run._chat
        origin = run._origin
        if isinstance(value, str):
            if value:
                self._say(chat, origin, value)
        elif value is not None:
            self._warn_once(served.command, f"returned {type(value).__name__}, which is no text")
        self._done(chat, origin)

    def _failed(self, run: _Run, error: BaseException) -> None:
        if isinstance(error, BreakerOpen):
            # The command is well: something that it needs is not.
            run.served.breaker.dropped(run.permit)
            self._tell_open(error, run._chat, run._origin)
        else:
            _report("failed", error, **_ids(run))
            self._count_failure(run)
            self._say(run._chat, run._origin, FAILED_TEXT)
        self._done(run._chat, run._origin)

    def _count_failure(self, run: _Run) -> None:
        served = run.served
        served.breaker.failed(run.permit)
        served.observe(max(0.0, self._seconds() - run.began))
        self._count_failed(served.command.name)

    # Lanes

    def _leave(self, run: _Run) -> None:
        """A run is over: its place is free."""
        run.over = True
        if run.waits_for is not None:
            del self._running[run]
            self._lanes.leave(run._origin.key.bot_name, run._chat.room_id)

    def _start_next(self, run: _Run) -> None:
        """Start what may start where C{run} was."""
        bot_name = run._origin.key.bot_name
        while (item := self._lanes.next(bot_name)) is not None:
            if not self._begin(*item):
                self._lanes.leave(bot_name, item[2].room_id)

    def _sweep(self) -> None:
        """End what has taken too long."""
        now = self._seconds()
        passed = now - self._swept_at
        self._swept_at = now
        if not 0.0 <= passed <= 2 * SWEEP_SECONDS:  # held up, or the clock stepped
            passed = SWEEP_SECONDS
        self._elapsed += passed
        due = self._elapsed
        for run in list(takewhile(lambda run: run.deadline <= due, self._running)):
            if not run.over:
                try:
                    self._time_out(run)
                except Exception as error:
                    _report("could not be given up", error, **_ids(run))

    # Answers

    def _say(self, chat: Chat, origin: Origin, text: str) -> None:
        try:
            origin.send(Reply(chat.room, chat.channel_id, origin.key.bot_name, text))
        except Exception as error:
            _report("an answer was lost", error, bot_name=origin.key.bot_name)

    def _answer(
        self,
        origin: Origin,
        reply: Reply,
        ttl: float | None,
        on_fate: Callable[[str], object] | None,
    ) -> None:
        listener: FateListener | None = None
        if on_fate is not None:
            # A bot may well answer again, but not into an outbox that is at work.
            listener = partial(self._reactor.callFromThread, _tell_fate, on_fate, origin)
        try:
            origin.send(reply, ttl, listener)
        except Exception as error:
            _report("an answer was lost", error, bot_name=origin.key.bot_name)

    def _done(self, chat: Chat, origin: Origin) -> None:
        try:
            origin.message_done(chat)
        except Exception as error:
            _report("a message was not closed", error, bot_name=origin.key.bot_name)

    def _tell_open(self, refusal: BreakerOpen, chat: Chat, origin: Origin) -> None:
        """Say that a breaker is open: once for a room and an opening."""
        opening, rooms = self._told.get(refusal.name, (0, set()))
        if opening != refusal.opening:
            rooms = set()
            self._told[refusal.name] = refusal.opening, rooms
        room = origin.key.bot_name, chat.room_id
        if room not in rooms and len(rooms) < _MAX_TOLD:
            rooms.add(room)
            self._say(chat, origin, OPEN_TEXT)

    def _warn_once(self, command: Command, text: str) -> None:
        if command not in self._warned:
            self._warned.add(command)
            _log.warn("{command} {text}", command=command.name, text=text)


def _cancel(run: _Run) -> None:
    """Break off what a run waits for."""
    assert run.waits_for is not None
    try:
        run.waits_for.cancel()
    except Exception as error:
        _report("could not be cancelled", error, **_ids(run))


def _sweep_ended(failure: Failure) -> None:
    _report("the sweep of commands has ended", _error_of(failure))


def _ids(run: _Run) -> dict[str, str | None]:
    """What the log says of a run: never what was written."""
    return {
        "command": run.served.command.name,
        "bot_name": run._origin.key.bot_name,
        "channel_id": run._chat.channel_id,
        "log_id": run._chat.log_id,
    }


def _error_of(failure: Failure) -> BaseException:
    error = failure.value
    assert error is not None  # Twisted's type allows it for failures that are being made
    return error


def _tell_fate(on_fate: Callable[[str], object], origin: Origin, fate: str) -> None:
    try:
        on_fate(fate)
    except Exception as error:
        _report("a bot failed at what became of a reply", error, bot_name=origin.key.bot_name)


def _report(what: str, error: BaseException, **ids: str | None) -> None:
    """
    Log an error with its traceback, but without its text: that may quote what was written, as
    does that of C{int("what was written")}.  The text is logged at debug.
    """
    _log.error(
        "{what}: {kind} {ids}\n{trace}",
        what=what,
        kind=type(error).__name__,
        ids=ids,
        trace="".join(traceback.format_tb(error.__traceback__)).rstrip(),
    )
    _log.debug("{what}: {kind}: {error}", what=what, kind=type(error).__name__, error=str(error))
