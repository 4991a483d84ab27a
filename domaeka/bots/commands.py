"""Commands: their registration, and the lookup of the one that a message calls."""

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

#: Modules whose decorators pass on all arguments.
_DECORATOR_MODULES: Final = ("twisted.internet.defer", "domaeka.bots.services")
_AWAITABLE: Final = (Deferred, Awaitable, Coroutine)
_AWAITABLE_TEXT: Final = re.compile(r"(\w+\.)*(Deferred|Awaitable|Coroutine)\s*(\[|$)")


class Command(msgspec.Struct, frozen=True, eq=False):
    """
    A command of a bot.

    @ivar function: given a context, answers.
    @ivar on_reactor: True if it is called on the reactor; else in a thread, for it may block.
    @ivar help: one line for people in the chat.
    @ivar module: the name of the module that registered it.
    """

    name: str
    aliases: tuple[str, ...]
    function: Callable[[Any], object]
    bot_name: str
    help: str
    operators_only: bool
    on_reactor: bool
    module: str = ""

    @property
    def place(self) -> str:
        """Its place in the author's code, as L{place_of} gives it."""
        return place_of(self.function)


class BadHandler(TypeError):
    """A function cannot answer to a command.  @ivar place: as of L{place_of}."""

    def __init__(self, function: object, fault: str) -> None:
        """@param fault: what is wrong with it."""
        super().__init__(f"{_name_of(function)} {fault}")
        self.place = place_of(function)


def check_name(name: object, what: str = "a command") -> None:
    """
    Check the name of C{what}.

    @raise ValueError: no message could be it; or it is not a text (a function, perhaps, where the
        name was left out).
    """
    if not isinstance(name, str):
        hint = ' (the decorator is @bot.command("NAME"))' if inspect.isroutine(name) else ""
        raise ValueError(f"the name of {what} is a text, not {type(name).__name__}{hint}")
    if not name or name != name.strip() or len(name) > MAX_COMMAND_CHARS or not name.isprintable():
        raise ValueError(
            f"{name!r:.100} cannot be the name of {what}: 1 to {MAX_COMMAND_CHARS} printable "
            "characters, no space around them"
        )


def runs_on_reactor(function: Callable[..., object]) -> bool:
    """
    True if C{function} does not block: C{async def}, wrapped by C{inlineCallbacks}, or annotated
    to return a Deferred.  All others may block.

    @raise BadHandler: it cannot be called with a context, or is a bare generator.
    """
    if not callable(function):
        raise BadHandler(function, "cannot be called")
    _check_call(function)
    called = _called(function)
    inner = inspect.unwrap(called)
    if inspect.isasyncgenfunction(inner):
        raise BadHandler(function, "is an async generator")
    if inspect.isgeneratorfunction(inner):
        if inner is called:
            raise BadHandler(function, "is a generator: wrap it with inlineCallbacks")
        return True
    if inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(inner):
        return True
    promised = getattr(inner, "__annotations__", {}).get("return")
    if isinstance(promised, str):
        return _AWAITABLE_TEXT.match(promised) is not None
    return promised in _AWAITABLE or get_origin(promised) in _AWAITABLE


def place_of(function: object) -> str:
    """
    The place in the author's code: file, line and name; empty for functions that are built in or
    not written in Python.
    """
    inner = inspect.unwrap(_called(function)) if callable(function) else function
    code = getattr(inner, "__code__", None)
    if code is None or getattr(inner, "__module__", None) == "domaeka.bots.builtin":
        return ""
    return f"{code.co_filename}:{code.co_firstlineno}, in {code.co_qualname}"


def _called(function: Any) -> Any:
    """The function, or method, that is called in the end."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function):
        return function
    called = (
        vars(function).get("__init__") if isinstance(function, type) else type(function).__call__
    )
    return called if isinstance(called, FunctionType) else function


def _name_of(function: object) -> str:
    name = getattr(_called(function) if callable(function) else function, "__qualname__", None)
    return f"{name}()" if name else f"{function!r:.100}"


def _check_call(function: Callable[..., object]) -> None:
    """@raise BadHandler: it cannot be called with a context, and nothing else."""
    called: Any = function
    given = [None]
    while True:
        try:
            # The arguments of a decorator's own function count, not those that it passes on.
            inspect.signature(called, follow_wrapped=False).bind(*given)
        except (TypeError, ValueError) as error:
            # A function that is not written in Python may have no signature.
            if isinstance(error, ValueError):
                if hasattr(called, "__wrapped__"):  # functools.cache, which passes on all
                    called = called.__wrapped__
                    continue
                if not place_of(called):
                    return
            raise BadHandler(
                function, f"is called with a context and nothing else: {error}"
            ) from None
        if inspect.ismethod(called):
            called = called.__func__
            given.append(None)
        module = getattr(called, "__globals__", {}).get("__name__")
        if module not in _DECORATOR_MODULES or not hasattr(called, "__wrapped__"):
            return
        called = called.__wrapped__


class CommandTable:
    """The commands of all bots, found by hashing: most chat is no command."""

    def __init__(self, commands: Iterable[Command]) -> None:
        """@raise ConfigError: two have the same name."""
        self._commands: dict[str, Command] = {}
        for command in commands:
            for name in (command.name, *command.aliases):
                other = self._commands.setdefault(name, command)
                if other is not command:
                    raise ConfigError(
                        f"bots.load: the command {name!r} is both in the bot {_owner(other)} "
                        f"and in the bot {_owner(command)}"
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
        @return: the command with the longest name that C{text} is, or begins with before a white
            space; and where its arguments, behind that space, begin.
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


def _owner(command: Command) -> str:
    """The bot of a command, and its place there."""
    return f"{command.bot_name!r} ({command.place})" if command.place else repr(command.bot_name)
