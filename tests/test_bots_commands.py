"""Tests for L{domaeka.bots.commands}."""

import functools
from collections.abc import Callable, Generator
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, breaker
from domaeka.bots.commands import (
    MAX_COMMAND_CHARS,
    BadHandler,
    Command,
    CommandTable,
    Runs,
    check_call,
    runs_where,
)
from domaeka.errors import ConfigError


def make_command(name: str, *aliases: str, bot_name: str = "bot") -> Command:
    return Command(name, aliases, print, bot_name, "", None, Runs.IN_THREAD)


def found(table: CommandTable, text: str) -> tuple[str, str] | None:
    """The command's name and the arguments."""
    match = table.find(text)
    return None if match is None else (match[0].name, text[match[1] :])


class CommandTableTests(SynchronousTestCase):
    """Tests for L{CommandTable}."""

    def setUp(self) -> None:
        self.table = CommandTable(
            [
                make_command("# echo"),
                make_command("# echoes", "# 메아리"),
                make_command("# echo on"),
            ]
        )

    def test_white_space_ends_the_command(self) -> None:
        """A message is a command if it is it, or if white space follows."""
        for text, expected in (
            ("# echo", ("# echo", "")),
            ("# echo hi", ("# echo", "hi")),
            ("# echo\nhi", ("# echo", "hi")),
            ("# echoes hi", ("# echoes", "hi")),
            ("# 메아리 hi", ("# echoes", "hi")),
            ("# echo!", None),
            (" # echo hi", None),
            ("#  echo hi", None),
            ("# ech", None),
            ("hi", None),
            ("", None),
        ):
            self.assertEqual(found(self.table, text), expected, text)

    def test_arguments_are_exact(self) -> None:
        """One white space is cut, and nothing else."""
        self.assertEqual(found(self.table, "# echo  a \n b \n"), ("# echo", " a \n b \n"))

    def test_longest_name_counts(self) -> None:
        """Of two commands that fit, it is the longer one."""
        self.assertEqual(found(self.table, "# echo on it"), ("# echo on", "it"))
        self.assertEqual(found(self.table, "# echo once"), ("# echo", "once"))

    def test_refuses_what_is_no_name(self) -> None:
        """A decorator without a name says how it is written; a bot is not called a command."""
        bot = Bot("shop")
        command: Any = bot.command
        self.assertIn(
            '@bot.command("NAME")', str(self.assertRaises(ValueError, command, lambda ctx: None))
        )
        self.assertIn("not int", str(self.assertRaises(ValueError, command, 5)))
        for name in ("", " a", "a ", "a\nb", "a" * (MAX_COMMAND_CHARS + 1)):
            self.assertIn("a command", str(self.assertRaises(ValueError, command, name)))
            self.assertIn("a bot", str(self.assertRaises(ValueError, Bot, name)))
        self.assertIn("a bot", str(self.assertRaises(ValueError, Bot, None)))

    def test_refuses_a_name_that_is_taken(self) -> None:
        """Two bots with the same command: both are named."""
        commands = [make_command("# a", bot_name="one"), make_command("# b", "# a", bot_name="two")]
        error = self.assertRaises(ConfigError, CommandTable, commands)
        self.assertEqual(
            str(error), "bots.load: the command '# a' is both in the bot 'one' and in the bot 'two'"
        )

    def test_says_where_names_clash(self) -> None:
        """Where their author wrote them is named."""
        commands = [
            Command("# a", (), plain, name, "", None, Runs.IN_THREAD) for name in ("one", "two")
        ]
        error = str(self.assertRaises(ConfigError, CommandTable, commands))
        place = f"test_bots_commands.py:{plain.__code__.co_firstlineno}, in plain)"
        self.assertEqual(error.count(place), 2, error)

    @given(
        st.lists(st.text("ab ", min_size=1, max_size=5).map(str.strip).filter(bool), unique=True),
        st.text("ab \n", max_size=10),
    )
    def test_finds_what_a_scan_would(self, names: list[str], text: str) -> None:
        """Hashing finds the same command as looking at each."""
        table = CommandTable([make_command(name) for name in names])
        fitting = [
            name for name in names if text == name or text.startswith((name + " ", name + "\n"))
        ]
        expected = None
        if fitting:
            name = max(fitting, key=len)
            expected = (name, text[len(name) + 1 :])
        self.assertEqual(found(table, text), expected)


async def coroutine(ctx: object) -> None: ...


def plain(ctx: object) -> str:
    return ""


@inlineCallbacks
def inline(ctx: object) -> Generator[Any, Any, None]:
    yield None


def generator(ctx: object) -> Generator[Any, Any, None]:
    yield None


async def async_generator(ctx: object) -> Any:
    yield None


def deferred(ctx: object) -> "Deferred[None]":
    return Deferred()


def deferred_by_module(ctx: object) -> "defer.Deferred[None]":
    return Deferred()


def deferred_type(ctx: object) -> Deferred[None]:
    return Deferred()


@functools.wraps(coroutine)
def wrapper(ctx: object) -> Any:
    return coroutine(ctx)


class Object:
    """Things with methods."""

    async def __call__(self, ctx: object) -> None: ...

    def plain(self, ctx: object) -> str:
        return ""

    @inlineCallbacks
    def inline(self, ctx: object) -> Generator[Any, Any, None]:
        yield None


def injected(function: Callable[..., object]) -> Callable[..., object]:
    """Give a function one more argument."""

    @functools.wraps(function)
    def call(ctx: object) -> object:
        return function(ctx, "more")

    return call


def generous(*args: object, **named: object) -> None: ...


def spoilt(ctx: object, more: object) -> None: ...


@inlineCallbacks
def inline_spoilt(ctx: object, more: object) -> Generator[Any, Any, None]:
    yield None


async def keyword(ctx: object, *, more: object) -> None: ...


class Taker:
    """Made of a context."""

    def __init__(self, ctx: object) -> None: ...

    def method(self) -> None: ...

    @inlineCallbacks
    def inline(self) -> Generator[Any, Any, None]:
        yield None

    @classmethod
    def kind(cls, ctx: object) -> None: ...

    @staticmethod
    def still() -> None: ...


class Nothing:
    """Made of nothing."""


class CallTests(SynchronousTestCase):
    """What can be called with a context, and nothing else."""

    def test_takes(self) -> None:
        """Whatever can take the call is taken, wrapped or not."""
        functions: list[Callable[..., object]] = [
            generous,
            injected(spoilt),
            functools.partial(spoilt, more=1),
            functools.partial(spoilt, 1),
            lambda ctx, more=1, *rest, last=2: None,
            breaker("call tests")(plain),
            Taker,
            Taker.kind,
            len,
            functools.cache(plain),
        ]
        for function in functions:
            check_call(function, 1)

    def test_refuses(self) -> None:
        """What cannot is refused, with the file, the line and the name of what its author wrote."""
        taker = Taker(None)
        functions: list[tuple[Callable[..., object], str]] = [
            (lambda: None, "<lambda>"),
            (spoilt, "in spoilt"),
            (inline_spoilt, "in inline_spoilt"),
            (breaker("call tests")(spoilt), "in spoilt"),
            (breaker("call tests")(inline_spoilt), "in inline_spoilt"),
            (keyword, "in keyword"),
            (functools.partial(plain, 1), "in plain"),
            (functools.partial(cast(Any, plain), nothing=1), "in plain"),
            (taker.method, "in Taker.method"),
            (taker.inline, "in Taker.inline"),
            (Taker.still, "in Taker.still"),
            (Object.plain, "in Object.plain"),
            (Nothing, ""),
            (functools.cache(spoilt), "in spoilt"),
        ]
        for function, name in functions:
            error = self.assertRaises(BadHandler, check_call, function, 1)
            self.assertIn(name, error.place)
            if name:
                self.assertIn("test_bots_commands.py:", error.place)


class RunsWhereTests(SynchronousTestCase):
    """Tests for L{runs_where}."""

    def test_what_gives_way_runs_on_the_reactor(self) -> None:
        """What returns a Deferred, however it is wrapped; and coroutines that say so."""
        functions: list[Callable[..., object]] = [
            inline,
            deferred,
            deferred_by_module,
            deferred_type,
            Object().inline,
        ]
        for function in functions:
            self.assertIs(runs_where(function), Runs.ON_REACTOR, function)
        self.assertIs(runs_where(coroutine, reactor=True), Runs.ON_REACTOR)

    def test_coroutines_run_on_the_loop(self) -> None:
        """C{async def}, however it is wrapped."""
        functions: list[Callable[..., object]] = [
            coroutine,
            wrapper,
            functools.partial(coroutine),
            Object(),
        ]
        for function in functions:
            self.assertIs(runs_where(function), Runs.ON_LOOP, function)

    def test_all_else_runs_in_a_thread(self) -> None:
        """What does not say that it gives way may block."""
        for function in (plain, functools.partial(plain), Object().plain, lambda ctx: None, print):
            self.assertIs(runs_where(function), Runs.IN_THREAD, function)

    def test_refuses_what_cannot_work(self) -> None:
        """A forgotten C{inlineCallbacks} is found at the start, not in the chat."""
        for function in (generator, async_generator, "text"):
            self.assertRaises(TypeError, runs_where, function)
