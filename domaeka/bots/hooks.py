"""Functions around others: before and after them, at their errors, at start and stop."""

import asyncio
from typing import Any, cast

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger

from domaeka.bots.commands import Command, Runs
from domaeka.bots.coroutines import Coroutines, Pending, belongs_to
from domaeka.bots.failures import report
from domaeka.bots.runs import Run

_log = Logger()


async def called(loop: Coroutines, command: Command, *args: Any, **named: Any) -> Any:
    """Call a function where it belongs, from the bots' loop.  @return: its result."""
    if command.runs is Runs.ON_LOOP:
        belongs_to(command.bot_name)
        return await cast(Any, command.function)(*args, **named)
    if command.runs is Runs.IN_THREAD:
        value = await asyncio.to_thread(command.function, *args, **named)
        return await value if asyncio.iscoroutine(value) else value
    done: Pending[Any] = Pending()

    def call() -> None:
        calling = maybeDeferred(command.function, *args, **named)
        done.follow(calling)  # whose result nobody waits for, once it was cancelled
        done.add_done_callback(lambda _: loop.hand_over(calling.cancel))

    loop.hand_over(call)
    return await done


async def called_alone(loop: Coroutines, hook: Command, seconds: float) -> None:
    """Call a function of start or stop, for so long at most.  Its error is its own, and logged."""
    what = hook.event.value
    try:
        async with asyncio.timeout(seconds) as limit:
            await called(loop, hook)
    except BaseException as error:  # even sys.exit()
        if _is_broken_off(error):
            raise
        if limit.expired() and isinstance(error, TimeoutError):
            _log.error(
                "{what} of the bot {owner} was given up after {held_seconds:.0f} s ({place})",
                what=what,
                owner=hook.bot_name,
                held_seconds=seconds,
                place=hook.place,
            )
        else:
            report(f"{what} failed", error, {"command": hook.name}, hook.function)


async def wrapped(run: Run) -> object:
    """Call the function of a run, and those around it.  @return: the answer."""
    served, loop = run.served, run.loop
    error: BaseException | None = None
    try:
        for hook in served.before:
            verdict = await called(loop, hook, run)
            if verdict is False:
                return None
            if isinstance(verdict, str):
                return verdict
        return await called(loop, served.command, run, *run.arguments, **(run.named or {}))
    except Exception as failed:
        error = failed
        for hook in served.on_error:
            text = await _guarded(run, hook, failed)
            if isinstance(text, str):
                run.error_text = text
        raise
    except BaseException as failed:
        error = failed
        raise
    finally:
        for hook in served.after:
            await _guarded(run, hook, error)


async def _guarded(run: Run, hook: Command, error: BaseException | None) -> object:
    """Call a function whose own error must not hide another one."""
    try:
        return await called(run.loop, hook, run, error)
    except BaseException as failed:  # even sys.exit()
        if _is_broken_off(failed):
            raise
        report(f"a function of {hook.event.value} failed", failed, run.log_fields, hook.function)
        return None


def _is_broken_off(error: BaseException) -> bool:
    """True if we have cancelled the task that runs, rather than a function something of its own."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
