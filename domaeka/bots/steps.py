"""Coroutines, driven from their first step on, and how long their steps hold up the reactor."""

from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import Context, copy_context
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from domaeka.bots.commands import Command

#: A step that takes longer is logged, in seconds: phones, pings and all other rooms wait
#: meanwhile.  Source: docs/bots.md, "Limits".
MAX_STEP_SECONDS: Final = 0.2
#: A command is logged once in this time, in seconds.  Source: as above.
REPORT_SECONDS: Final = 60.0

_log = Logger()


class HoldUps:
    """The commands that hold up the reactor: one entry for each that was logged."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        """@param seconds: the time now, in seconds."""
        self.seconds = seconds
        # The time of the last log line; the number of hold-ups since then, and the longest.
        self._reported: dict[Command, tuple[float, int, float]] = {}

    def keep(self, commands: Iterable[Command]) -> None:
        """Forget all other commands."""
        kept = set(commands)
        self._reported = {
            command: report for command, report in self._reported.items() if command in kept
        }

    def step_ended(self, command: Command, began: float) -> None:
        """A step of C{command} that began then, by L{seconds}, is over: log it if it was long."""
        now = self.seconds()
        took = now - began
        if took <= MAX_STEP_SECONDS:
            return
        reported_at, times, longest = self._reported.get(command, (None, 0, 0.0))
        if reported_at is not None and 0.0 <= now - reported_at < REPORT_SECONDS:
            self._reported[command] = reported_at, times + 1, max(longest, took)
            return
        self._reported[command] = now, 0, 0.0
        more = f"; {times} times since it was last said, {longest:.1f} s at most" if times else ""
        _log.warn(
            "{command} of the bot {owner} held up the reactor for {held_seconds:.1f} s: nothing "
            "else went on meanwhile{more} ({place})",
            command=command.name,
            owner=command.bot_name,
            held_seconds=took,
            more=more,
            place=command.place,
        )


def first_step(
    coroutine: Coroutine[Any, Any, object], command: Command, hold_ups: HoldUps
) -> object:
    """
    Run C{coroutine} until it waits, in a context of its own.  Most never wait: no Deferred is made.

    @param hold_ups: times each later step; the caller times this one.
    @return: its result; a Deferred of that if it waits.
    @raise BaseException: the error that it raised without having waited.
    """
    context = copy_context()
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    return Deferred.fromCoroutine(_later_steps(coroutine, waits_for, context, command, hold_ups))


def _later_steps(
    coroutine: Coroutine[Any, Any, object],
    waits_for: Any,
    context: Context,
    command: Command,
    hold_ups: HoldUps,
) -> Generator[Any, Any, object]:
    """
    The rest of a coroutine after its first step, as a generator that yields each thing it waits
    for.  All steps run in one context, so that one step can reset a variable that another set.
    """
    while True:
        step: Callable[[Any], Any]
        given: Any
        try:
            given = yield waits_for
            step = coroutine.send
        except BaseException as error:
            given = error
            step = coroutine.throw
        began = hold_ups.seconds()
        try:
            waits_for = context.run(step, given)
        except StopIteration as stop:
            return stop.value
        finally:
            given = None  # an error leads back to this frame
            hold_ups.step_ended(command, began)
