"""Coroutines, driven from their first step on."""

from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any

from twisted.internet.defer import Deferred


def first_step(coroutine: Coroutine[Any, Any, object]) -> object:
    """
    Run C{coroutine} until it waits, in a context of its own.

    Most commands never wait: they cost no Deferred.

    @return: what it returned; a Deferred of that if it waits.
    @raise BaseException: what it raised without having waited.
    """
    context = copy_context()
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    return Deferred.fromCoroutine(_later_steps(coroutine, waits_for, context))


def _later_steps(
    coroutine: Coroutine[Any, Any, object], waits_for: Any, context: Context
) -> Generator[Any, Any, object]:
    """
    What is left of a coroutine after its first step, in the form of a generator that yields
    what it waits for.  All steps run in one context, so that what one sets another may reset.
    """
    while True:
        try:
            try:
                result = yield waits_for
            except BaseException as error:
                waits_for = context.run(coroutine.throw, error)
            else:
                waits_for = context.run(coroutine.send, result)
        except StopIteration as stop:
            return stop.value
