"""
Schedules: functions of bots that are called at times of the wall clock.

The wall clock is read again every minute at least, so that one that is set counts soon.  Each run
is claimed in the store first: of several servers one has it, and a clock that is set back runs
nothing twice.  A server that ends between the claim and the run has lost that run.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from typing import Any, Final

import msgspec
from twisted.internet.defer import inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.bots import hooks
from domaeka.bots.api import Bot
from domaeka.bots.commands import Command, Event, Runs
from domaeka.bots.coroutines import Call, Coroutines
from domaeka.bots.cron import Schedule
from domaeka.bots.failures import report
from domaeka.bots.sending import Receipt
from domaeka.errors import BotValueError, StoreError
from domaeka.interfaces import Claims

#: Longest time between two looks at the wall clock, in seconds.
LOOK_SECONDS: Final = 60.0
#: A run that begins later than this, in seconds, was missed.  Source: docs/bots.md, "Sending,
#: schedules and storage".
LATE_SECONDS: Final = 60.0
#: The pause before the store is asked again, in seconds.
RETRY_SECONDS: Final = 5.0
#: How far back the last time is looked for when a schedule is first seen, in seconds.
_FIRST_SECONDS: Final = 400 * 86_400.0

_log = Logger()


class ScheduleContext:
    """
    A run of a schedule, for its function.

    @ivar rooms: its rooms, as they were registered.
    @ivar scheduled: when it was due, in the time zone of the schedule.
    """

    def __init__(self, bot: Bot, rooms: tuple[str, ...], scheduled: datetime) -> None:
        self.rooms = rooms
        self.scheduled = scheduled
        self._bot = bot

    def __repr__(self) -> str:
        return f"<ScheduleContext {self.scheduled.isoformat()}>"

    async def send(self, text: str, *, ttl: float | None = None) -> list[Receipt]:
        """
        Send C{text} to each of C{rooms}, as L{Bot.send<domaeka.bots.api.Bot.send>} does.  A plain
        function uses C{bot.send(…).result()}.

        @return: the receipt of each.  Where one fails, the others are sent; then its error is
            raised.
        @raise ValueError: there are no rooms.
        """
        if not self.rooms:
            raise BotValueError("the schedule has no rooms: name them at @bot.schedule")
        asked = [self._bot.send(room, text, ttl=ttl) for room in self.rooms]
        receipts: list[Receipt] = []
        failed: Exception | None = None
        for each in asked:
            try:
                receipts.append(await each)
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return receipts


class _Entry:
    """
    A schedule that is served.

    @ivar seen: the wall clock when it was last looked at.
    @ivar next: when it is due next, worked out then; L{None}: not within 50 years.
    @ivar waits: the time of a run that is not claimed yet.
    @ivar call: its run on the loop; C{inside}: its function is in a thread.
    """

    def __init__(self, bot: Bot, command: Command, now: float) -> None:
        assert command.schedule is not None
        self.bot = bot
        self.command = command
        self.schedule: Schedule = command.schedule
        self.key = "\n".join((bot.name, command.module, command.name, self.schedule.times.name))
        self.seen = now
        self.next = self.schedule.times.next(now)
        self.waits: float | None = None
        self.is_claiming = False
        self.call: Call | None = None
        self.inside = False
        self.said_busy = False
        self.is_over = False

    @property
    def is_running(self) -> bool:
        """True while its function has not come back."""
        return self.call is not None or self.inside

    def due(self, now: float) -> float | None:
        """The time of the last run since it was last looked at, if one is due."""
        times = self.schedule.times
        if now < self.seen:  # the clock was set back: what is due again is claimed already
            self.seen, self.next = now, times.next(now)
            return None
        seen, self.seen = self.seen, now
        if self.next is None or now < self.next:
            return None
        found = times.latest(seen, now)
        self.next = times.next(now)
        return found


class Schedules:
    """The schedules of the bots that are served.  To be used in the reactor's thread."""

    def __init__(
        self,
        loop: Coroutines,
        reactor: Any,
        claims: Claims,
        wall: Callable[[], float],
        timeout: Callable[[], float],
    ) -> None:
        """
        @param loop: runs are watched there, whatever thread their function has.
        @param wall: the wall clock, in seconds since 1970.
        @param timeout: longest time of a run, in seconds.
        """
        self._loop = loop
        self._reactor = reactor
        self._claims = claims
        self._wall = wall
        self._timeout = timeout
        self._entries: dict[str, _Entry] = {}
        self._timer: Any = None
        # One of each kind for an entry, however often the store fails.
        self._retries: dict[tuple[_Entry, Callable[[_Entry], Any]], Any] = {}
        self._holds = 0

    def hold(self) -> None:
        """Begin no run until L{go_on} was called as often: bots are being started."""
        self._holds += 1

    def go_on(self) -> None:
        """See L{hold}.  Begin the runs that were due meanwhile."""
        self._holds -= 1
        for entry in list(self._entries.values()):
            self._claim_soon(entry)

    def serve(self, bots: Iterable[Bot]) -> None:
        """
        Serve the schedules of these bots alone.  Of those that are served already the runs go on;
        runs of others are broken off.
        """
        before, self._entries = self._entries, {}
        for bot, command in _schedules(bots):
            entry = _Entry(bot, command, self._wall())
            if entry.key in self._entries:
                _log.error(
                    "two bots have one schedule, which runs once: {command} of the bot {owner} "
                    "({place})",
                    command=command.name,
                    owner=bot.name,
                    place=command.place,
                )
                continue
            known = before.get(entry.key)
            if known is not None:
                if known.command is command:
                    entry = before.pop(entry.key)
                else:  # loaded anew: it goes on where the one before was
                    entry.seen, entry.next, entry.waits = known.seen, known.next, known.waits
                    self._claim_soon(entry)
            elif entry.schedule.once:
                self._catch_up(entry)
            self._entries[entry.key] = entry
        for entry in before.values():
            entry.is_over = True
            if entry.call is not None:
                entry.call.cancel()
        if not self._entries:
            for retry in self._retries.values():
                retry.cancel()
            self._retries.clear()
        self._look()

    # The clock

    def _look(self) -> None:
        """Look at the wall clock: what is due?"""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if not self._entries:
            return
        now = self._wall()
        delay = LOOK_SECONDS
        for entry in list(self._entries.values()):
            try:
                due = entry.due(now)
                if due is not None:
                    self._due(entry, due)
            except Exception as error:
                report("a schedule: our own mistake", error, {"command": entry.command.name})
            if entry.next is not None:
                delay = min(delay, max(0.01, entry.next - now))
        self._timer = self._reactor.callLater(delay, self._look)

    def _due(self, entry: _Entry, due: float) -> None:
        if self._wall() - due > LATE_SECONDS and not entry.schedule.once:
            self._say_missed(entry, due, "the clock was set, or the server held up")
            return
        entry.waits = due
        self._claim_soon(entry)

    def _claim_soon(self, entry: _Entry) -> None:
        if entry.waits is not None and not entry.is_claiming and not self._holds:
            self._claim(entry)

    def _say_missed(self, entry: _Entry, due: float, why: str) -> None:
        _log.warn(
            "{command} was not called when it was due: {reason} ({place})",
            command=str(entry.command),
            reason=f"{entry.schedule.times.local(due).isoformat()}, {why}",
            place=entry.command.place,
        )

    # Claims

    @inlineCallbacks
    def _claim(self, entry: _Entry) -> Any:
        """Claim the run that waits, and begin it."""
        entry.is_claiming = True
        try:
            while entry.waits is not None and not entry.is_over:
                due = entry.waits
                try:
                    is_mine = yield self._claims.claim(entry.key, due)
                except StoreError as error:
                    late = self._wall() + RETRY_SECONDS - due > LATE_SECONDS
                    if late and not entry.schedule.once and entry.waits == due:
                        entry.waits = None
                        self._say_missed(entry, due, str(error))
                    else:
                        self._again(self._claim_soon, entry)
                        return
                else:
                    if entry.waits == due:
                        entry.waits = None
                    if is_mine and not entry.is_over:
                        self._begin(entry, due)
        except Exception as error:
            report("a schedule: our own mistake", error, {"command": entry.command.name})
        finally:
            entry.is_claiming = False

    @inlineCallbacks
    def _catch_up(self, entry: _Entry) -> Any:
        """Make up for runs that were missed while no server ran."""
        now = self._wall()
        times = entry.schedule.times
        try:
            last = yield self._claims.last(entry.key, now)
            if last is not None:
                missed = times.latest(last, now)
                if missed is not None and not entry.is_over and entry.waits is None:
                    self._due(entry, missed)
                return
            # Seen for the first time: nothing was missed, but from now on.
            begin = times.latest(now - _FIRST_SECONDS, now)
            if begin is not None:
                yield self._claims.claim(entry.key, begin)
        except StoreError:
            if not entry.is_over:
                self._again(self._catch_up, entry)
        except Exception as error:
            report("a schedule: our own mistake", error, {"command": entry.command.name})

    def _again(self, function: Callable[[_Entry], Any], entry: _Entry) -> None:
        key = entry, function

        def retry() -> None:
            del self._retries[key]
            if not entry.is_over:
                function(entry)

        if key not in self._retries:
            self._retries[key] = self._reactor.callLater(RETRY_SECONDS, retry)

    # Runs

    def _begin(self, entry: _Entry, due: float) -> None:
        command = entry.command
        if entry.is_running:
            if not entry.said_busy:
                entry.said_busy = True
                _log.warn(
                    "{command} still runs when it is due again: it is not called until it has "
                    "ended ({place})",
                    command=str(command),
                    place=command.place,
                )
            return
        entry.said_busy = False
        context = ScheduleContext(entry.bot, entry.schedule.rooms, entry.schedule.times.local(due))
        called = command
        if command.runs is Runs.IN_THREAD:
            called = msgspec.structs.replace(command, function=_in_thread(entry))
        ended: list[object] = []  # in virtual time it may have ended at once

        def end(_: object, outcome: object) -> None:
            ended.append(outcome)
            entry.call = None
            if isinstance(outcome, Failure) and not entry.is_over:
                what = f"a schedule failed ({command.place})"
                report(what, outcome, {"command": command.name}, command.function)

        call = self._loop.call(self._carry_out, (called, context), end, command)
        if not ended:
            entry.call = call

    async def _carry_out(self, command: Command, context: ScheduleContext) -> None:
        """On the loop."""
        seconds = self._timeout()
        try:
            async with asyncio.timeout(seconds) as limit:
                answer = await hooks.called(self._loop, command, context)
        except TimeoutError:
            if not limit.expired():
                raise
            _log.error(
                "{what} of the bot {owner} was given up after {held_seconds:.0f} s ({place})",
                what=f"the schedule {command.name}",
                owner=command.bot_name,
                held_seconds=seconds,
                place=command.place,
            )
            return
        if not isinstance(answer, str):
            if answer is not None:
                kind = type(answer).__name__
                _log.warn(
                    "{command} {mistake} ({place})",
                    command=command.name,
                    mistake=f"returned {kind}, which is no text",
                    place=command.place,
                )
        elif answer:
            await context.send(answer)


def _in_thread(entry: _Entry) -> Callable[[ScheduleContext], object]:
    """Its function, for a thread: it still runs while it has not come back, whoever waits."""
    function = entry.command.function

    @wraps(function)
    def called(context: ScheduleContext) -> object:
        entry.inside = True
        try:
            return function(context)
        finally:
            entry.inside = False

    return called


def _schedules(bots: Iterable[Bot]) -> Iterator[tuple[Bot, Command]]:
    """Each schedule, and the bot that has it."""
    for bot in bots:
        for each in bot.handlers.bots():
            for command in each.handlers.own(Event.SCHEDULE):
                yield each, command
