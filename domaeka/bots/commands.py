"""Commands: what a bot registers, and how a message finds its command."""

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from types import FunctionType
from typing import Any, Final, get_origin

import msgspec
from twisted.internet.defer import Deferred

from domaeka.errors import ConfigError

#: Longest name of a command, in characters.  Source: docs/bots.md, "Limits".
MAX_COMMAND_CHARS: Final = 100

_AWAITABLE: Final = (Deferred, Awaitable, Coroutine)
_AWAITABLE_TEXT: Final = re.compile(r"(\w+\.)*(Deferred|Awaitable|Coroutine)\s*(\[|$)")


class Command(msgspec.Struct, frozen=True, eq=False):
    """
    What a bot answers to.

    @ivar function: given a context, answers.
    @ivar on_reactor: whether it is called there, or in a thread, for it may block.
    @ivar help: one line for people in the chat.
    """

    name: str
    aliases: tuple[str, ...]
    function: Callable[[Any], object]
    bot_name: str
    help: str
    operators_only: bool
    on_reactor: bool


def check_name(name: object) -> None:
    """
    Check the name of a command.

    @raise ValueError: no message could be it.
    """
    if (
        not isinstance(name, str)
        or not name
        or name != name.strip()
        or len(name) > MAX_COMMAND_CHARS
        or not name.isprintable()
    ):
        raise ValueError(
            f"{name!r:.100} cannot be a command: 1 to {MAX_COMMAND_CHARS} printable characters, "
            "no space around them"
        )


def runs_on_reactor(function: Callable[..., object]) -> bool:
    """
    Whether C{function} gives way by itself: C{async def}, wrapped by C{inlineCallbacks}, or
    annotated to return a Deferred.  All else may block.

    @raise TypeError: it cannot be called, or is a bare generator.
    """
    if not callable(function):
        raise TypeError(f"{function!r:.100} cannot be called")
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):  # an object that can be called
        called = type(function).__call__
        function = called if isinstance(called, FunctionType) else function
    inner = inspect.unwrap(function)
    if inspect.isasyncgenfunction(inner):
        raise TypeError(f"{function!r:.100} is an async generator")
    if inspect.isgeneratorfunction(inner):
        if inner is function:
            raise TypeError(f"{function!r:.100} is a generator: wrap it with inlineCallbacks")
        return True
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inner):
        return True
    promised = getattr(inner, "__annotations__", {}).get("return")
    if isinstance(promised, str):
        return _AWAITABLE_TEXT.match(promised) is not None
    return promised in _AWAITABLE or get_origin(promised) in _AWAITABLE


class CommandTable:
    """All commands of all bots, found by hashing: most chat is no command."""

    def __init__(self, commands: Iterable[Command]) -> None:
        """@raise ConfigError: two have the same name."""
        self._commands: dict[str, Command] = {}
        for command in commands:
            for name in (command.name, *command.aliases):
                other = self._commands.setdefault(name, command)
                if other is not command:
                    raise ConfigError(
                        f"bots.load: the command {name!r} is both in the bot {other.bot_name!r} "
                        f"and in the bot {command.bot_name!r}"
                    )
        # First character of a name to the lengths of all that begin with it, longest first.
        self._lengths: dict[str, list[int]] = {}
        for name in self._commands:
            lengths = self._lengths.setdefault(name[0], [])
            if len(name) not in lengths:
                lengths.append(len(name))
        for lengths in self._lengths.values():
            lengths.sort(reverse=True)

    def find(self, text: str) -> tuple[Command, int] | None:
        """
        @return: the command with the longest name that C{text} is, or begins with, a white space
            behind it; and where what follows that space begins.
        """
        lengths = self._lengths.get(text[:1])
        if lengths is None:
            return None
        size = len(text)
        for length in lengths:
            if length < size:
                if not text[length].isspace():
                    continue
            elif length > size:
                continue
            command = self._commands.get(text[:length])
            if command is not None:
                return command, length + 1
        return None

    def __iter__(self) -> Iterator[Command]:
        """Each command once, in the order in which they were registered."""
        return iter(dict.fromkeys(self._commands.values()))
