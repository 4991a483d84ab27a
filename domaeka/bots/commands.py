"""Commands: their registration, and the lookup of the one that a message calls."""

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from enum import Enum
from itertools import islice
from types import FunctionType
from typing import Any, Final, get_origin
from unicodedata import is_normalized, normalize

import msgspec
from twisted.internet.defer import Deferred

from domaeka.bots.access import Allow, Cooldown
from domaeka.bots.arguments import Arguments
from domaeka.bots.cron import Schedule
from domaeka.errors import ConfigError

#: Longest name of a command, in characters.  Source: docs/bots.md, "Limits".
MAX_COMMAND_CHARS: Final = 100

#: The beginning of a text in which a listener's pattern is searched, in characters: phones wait
#: meanwhile.  Source: docs/bots.md, "Handlers".
SEARCHED_CHARS: Final = 2000
#: The beginning of a text in which a name is looked for that is to be composed: a syllable is made
#: of three characters at most.
_HEAD_CHARS: Final = 3 * MAX_COMMAND_CHARS + 1
_SPACE: Final = re.compile(r"\s")

#: Modules whose decorators pass on all arguments.
_DECORATOR_MODULES: Final = ("twisted.internet.defer", "domaeka.bots.services")
_AWAITABLE: Final = (Awaitable, Coroutine)
_AWAITABLE_TEXT: Final = re.compile(r"(\w+\.)*(?:(Deferred)|Awaitable|Coroutine)\s*(\[|$)")


class Runs(Enum):
    """Where a function is called: on the reactor, on the bots' loop, or in a thread."""

    ON_REACTOR = "reactor"
    ON_LOOP = "loop"
    IN_THREAD = "thread"


class Event(Enum):
    """What a function of a bot is called for."""

    COMMAND = "command"
    MESSAGE = "on_message"
    BEFORE = "before"
    AFTER = "after"
    ERROR = "on_error"
    START = "on_start"
    STOP = "on_stop"
    SCHEDULE = "schedule"


class Filter(msgspec.Struct, frozen=True, eq=False):
    """Which messages a listener takes: those for which all that is given holds."""

    contains: tuple[str, ...] = ()  # one of them
    pattern: re.Pattern[str] | None = None
    prefix: str = ""
    mention: bool | None = None

    def __call__(self, text: str, is_mention: bool) -> bool:
        """True if a message is taken, if the pattern is found in it."""
        return (
            (not self.prefix or text.startswith(self.prefix))
            and (not self.contains or any(part in text for part in self.contains))
            and (self.mention is None or is_mention is self.mention)
        )


class Command(msgspec.Struct, frozen=True, eq=False):
    """
    A function of a bot: a command, or whatever else L{Event} says.

    @ivar function: given a context, answers.
    @ivar allow: who may use it; L{None}: everybody.
    @ivar runs: where it is called.
    @ivar help: one line for people in the chat.
    @ivar module: the name of the module that registered it.
    @ivar takes: which messages a listener takes.
    @ivar arguments: those that it takes behind its context, if it takes any.
    @ivar schedule: when it is called by itself.
    """

    name: str
    aliases: tuple[str, ...]
    function: Callable[[Any], object]
    bot_name: str
    help: str
    allow: Allow | None
    runs: Runs
    module: str = ""
    event: Event = Event.COMMAND
    takes: Filter | None = None
    arguments: Arguments | None = None
    cooldown: Cooldown | None = None
    schedule: Schedule | None = None

    @property
    def is_gated(self) -> bool:
        """True if not everybody may use it, or not at all times."""
        return self.allow is not None or self.cooldown is not None

    @property
    def usage(self) -> str:
        """Its name, and its arguments, for people in the chat."""
        if self.arguments is None or not self.arguments.usage:
            return self.name
        return f"{self.name} {self.arguments.usage}"

    def __str__(self) -> str:
        """Its name and its bot, for the log."""
        return f"{self.name} of the bot {self.bot_name}"

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


def runs_where(function: Callable[..., object], reactor: bool = False) -> Runs:
    """
    Where C{function} is called: on the bots' loop, if it is C{async def} or annotated to return an
    C{Awaitable}; on the reactor, if C{reactor} says so, or it is wrapped by C{inlineCallbacks}, or
    annotated to return a Deferred; all others in a thread, for they may block.

    @raise BadHandler: it cannot be called, or is a bare generator.
    """
    if not callable(function):
        raise BadHandler(function, "cannot be called")
    called = _called(function)
    inner = inspect.unwrap(called)
    if inspect.isasyncgenfunction(inner):
        raise BadHandler(function, "is an async generator")
    if inspect.isgeneratorfunction(inner):
        if inner is called:
            raise BadHandler(function, "is a generator: wrap it with inlineCallbacks")
        return Runs.ON_REACTOR
    if reactor:
        return Runs.ON_REACTOR
    if inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(inner):
        return Runs.ON_LOOP
    promised = getattr(inner, "__annotations__", {}).get("return")
    if isinstance(promised, str):
        found = _AWAITABLE_TEXT.match(promised)
        if found is None:
            return Runs.IN_THREAD
        return Runs.ON_REACTOR if found[2] else Runs.ON_LOOP
    kind = get_origin(promised) or promised
    if kind is Deferred:
        return Runs.ON_REACTOR
    return Runs.ON_LOOP if kind in _AWAITABLE else Runs.IN_THREAD


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


#: In words what a function is called with, by the number of its arguments.
_CALLED_WITH: Final = ("nothing", "a context and nothing else", "a context and an error")


def _name_of(function: object) -> str:
    name = getattr(_called(function) if callable(function) else function, "__qualname__", None)
    return f"{name}()" if name else f"{function!r:.100}"


def check_call(function: Callable[..., object], count: int) -> None:
    """
    Check that a function can be called with C{count} arguments, and nothing else.

    @raise BadHandler: it cannot.
    """
    called: Any = function
    given = [None] * count
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
            raise BadHandler(function, f"is called with {_CALLED_WITH[count]}: {error}") from None
        if inspect.ismethod(called):
            called = called.__func__
            given.append(None)
        module = getattr(called, "__globals__", {}).get("__name__")
        if module not in _DECORATOR_MODULES or not hasattr(called, "__wrapped__"):
            return
        called = called.__wrapped__


def normal(text: str) -> str:
    """C{text} as names of commands are compared: NFKC, so that full-width letters are plain."""
    return text if text.isascii() else normalize("NFKC", text)


class CommandTable:
    """
    Commands by their names, found by hashing: most chat is no command.  Names are compared after
    NFKC: C{＃} is C{#}, decomposed Hangul is composed, a no-break space is a space.
    """

    def __init__(self, commands: Iterable[Command]) -> None:
        """@raise ConfigError: two have the same name."""
        self._commands: dict[str, Command] = {}
        for command in commands:
            for name in map(normal, (command.name, *command.aliases)):
                other = self._commands.setdefault(name, command)
                if other is not command:
                    raise ConfigError(
                        f"bots.load: the command {name!r} is both in the bot {_owner(other)} "
                        f"and in the bot {_owner(command)}"
                    )
        # Those with a name that another one goes on from: "a" where there is "a b".
        self._extended = {
            command
            for name, command in self._commands.items()
            if any(other.startswith(name + " ") for other in self._commands)
        }
        self._most_spaces = max((name.count(" ") for name in self._commands), default=0)
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
        if lengths is not None:
            found = self._look_up(text, lengths)
            if found is not None and found[0] not in self._extended:
                return found
        elif "가" <= text[:1] <= "힣" or text.isascii():
            return None  # no name begins so, whatever follows: most chat
        return self._find_normal(text)

    def _look_up(self, text: str, lengths: list[int]) -> tuple[Command, int] | None:
        """The command whose name stands in C{text} as it is."""
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

    def _find_normal(self, text: str) -> tuple[Command, int] | None:
        """The command whose name stands in C{text} after NFKC."""
        head = text[:_HEAD_CHARS]
        if head.isascii() or is_normalized("NFKC", head):
            lengths = self._lengths.get(text[:1])
            return None if lengths is None else self._look_up(text, lengths)
        # What stands before each of the first white spaces, the longest first.
        ends = [match.start() for match in islice(_SPACE.finditer(head), self._most_spaces + 1)]
        if len(ends) <= self._most_spaces and len(text) <= _HEAD_CHARS:
            ends.append(len(text))
        for end in reversed(ends):
            command = self._commands.get(normalize("NFKC", text[:end]))
            if command is not None:
                return command, end + 1
        return None

    def __iter__(self) -> Iterator[Command]:
        """Each command once, in the order in which they were registered."""
        return iter(dict.fromkeys(self._commands.values()))


def _owner(command: Command) -> str:
    """The bot of a command, and its place there."""
    return f"{command.bot_name!r} ({command.place})" if command.place else repr(command.bot_name)
