"""Tests for L{domaeka.bots.failures}: errors of bots, as the log shows them."""

import asyncio
import gc
import json
import os
from collections.abc import Callable, Generator
from functools import partial
from io import StringIO
from typing import Any, cast

from msgspec.structs import replace
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, Context
from domaeka.bots.commands import Runs, runs_where
from domaeka.config import LoggingSettings
from domaeka.logs import LogObserver
from domaeka.policies.outbox import DeliveryStatus
from domaeka.tracebacks import MAX_TRACEBACK_CHARS
from tests.bots_fakes import Outside, Served

FILE = __file__
#: What somebody wrote: it must not be in the log.
CHAT = "비밀 s3cret"


def line_of(function: Callable[..., object], after: int = 1) -> str:
    """The words by which a traceback names a line of this file, C{after} the C{def}."""
    code = cast(Any, function).__code__
    return f'File "{FILE}", line {code.co_firstlineno + after}, in {code.co_name}'


def fail(text: str) -> None:
    raise ValueError(f"cannot read {text}")


def recurse(depth: int) -> int:
    return recurse(depth + 1) + 1


def ping(depth: int) -> int:
    return pong(depth + 1) + 1


def pong(depth: int) -> int:
    return ping(depth + 1) + 1


class FailureTestCase(SynchronousTestCase):
    """A bot that fails, and the log in both of its forms."""

    def setUp(self) -> None:
        self.outside = Outside()
        self.bot = Bot("shop")
        self.outputs = {}
        for form in ("text", "json"):
            self.outputs[form] = StringIO()
            settings = LoggingSettings(format=cast(Any, form))
            observer = cast(ILogObserver, LogObserver(settings, self.outputs[form]))
            globalLogPublisher.addObserver(observer)
            self.addCleanup(globalLogPublisher.removeObserver, observer)

    def serve(self, function: Callable[..., object]) -> Served:
        """Have C{function} answer."""
        on_reactor = runs_where(function) is not Runs.IN_THREAD
        self.bot.command("!do", reactor=on_reactor)(function)
        self.served = Served([self.bot])
        self.addCleanup(self.served.dispatcher.close)
        return self.served

    def say(self, function: Callable[..., object]) -> dict[str, Any]:
        """Have somebody use the command C{function}.  @return: see L{logged}."""
        self.serve(function).say(f"!do {CHAT}")
        while self.served.threads.calls:
            self.served.threads.work()
        return self.logged()

    def logged(self) -> dict[str, Any]:
        """
        What has been written: one error, equal in both forms, with all its fields and no chat.

        @return: the object of the JSON line.
        """
        text = self.outputs["text"].getvalue()
        (line,) = self.outputs["json"].getvalue().splitlines()
        error: dict[str, Any] = json.loads(line)
        head, *rest = text.splitlines()
        self.assertEqual("\n".join(part.removeprefix("\t") for part in rest), error["failure"])
        self.assertIn(error["message"], head)
        for name, value in (("command", "!do"), ("bot", "봇"), ("device", "d1"), ("room", "1001")):
            self.assertEqual(error[name], value)
            self.assertIn(repr(value), head)
        self.assertNotIn("s3cret", text + line)
        self.assertLessEqual(len(error["failure"]), MAX_TRACEBACK_CHARS)
        return error

    def assertBegins(self, error: dict[str, Any], *lines: str) -> None:
        """The traceback has these lines of this file, before any line of other files."""
        named = [line.strip() for line in error["failure"].splitlines() if "  File " in line]
        named = [line for line in named if "bots_fakes" not in line]
        self.assertEqual(named[: len(lines)], list(lines))


class KindTests(FailureTestCase):
    """Whatever way a command fails, the log shows the author's own lines first."""

    def test_first_step(self) -> None:
        """A coroutine that has not waited."""

        async def command(ctx: Context) -> None:
            fail(ctx.message.args)

        error = self.say(command)
        self.assertBegins(error, line_of(command), line_of(fail))
        self.assertEqual((error["level"], error["error"]), ("error", "ValueError"))
        self.assertIn("raise ValueError(f", error["failure"])

    def test_later_step(self) -> None:
        """A coroutine that has waited."""

        async def command(ctx: Context) -> None:
            await self.outside.wait()
            fail(ctx.message.args)

        self.serve(command).say(f"!do {CHAT}")
        self.outside.waiting[0].callback(None)
        self.assertBegins(self.logged(), line_of(command, 2), line_of(fail))

    def test_inline_callbacks(self) -> None:
        """A generator that has waited."""

        @inlineCallbacks
        def command(ctx: Context) -> Generator[Any, Any, None]:
            yield self.outside.wait()
            fail(ctx.message.args)

        self.serve(command).say(f"!do {CHAT}")
        self.outside.waiting[0].callback(None)
        inner = cast(Any, command).__wrapped__
        self.assertBegins(self.logged(), line_of(inner, 3), line_of(fail))

    def test_deferred(self) -> None:
        """A Deferred that had failed before anybody could wait for it, and lost its traceback."""

        def command(ctx: Context) -> "Deferred[None]":
            failed: Deferred[str] = Deferred()
            failed.addCallback(fail)
            failed.callback(ctx.message.args)
            return cast("Deferred[None]", failed)

        self.assertBegins(self.say(command), line_of(fail))

    def test_thread(self) -> None:
        """A plain function, which runs in a thread."""

        def command(ctx: Context) -> None:
            fail(ctx.message.args)

        self.assertBegins(self.say(command), line_of(command), line_of(fail))

    def test_deep_recursion(self) -> None:
        """A thousand calls are shown as a few, and their number, also where they take turns."""
        for deep, repeated in ((recurse, "line"), (ping, "2 lines")):

            async def command(ctx: Context, deep: Any) -> None:
                deep(1)

            error = self.say(partial(command, deep=deep))
            self.assertBegins(error, line_of(command), line_of(deep))
            self.assertRegex(error["failure"], rf"Previous {repeated} repeated \d{{3}} more times")
            self.assertLess(len(error["failure"]), MAX_TRACEBACK_CHARS // 4)
            self.setUp()

    def test_cause(self) -> None:
        """What an error was raised from is shown as well, and before it."""

        async def command(ctx: Context) -> None:
            try:
                fail(ctx.message.args)
            except ValueError as error:
                raise RuntimeError(ctx.message.args) from error

        failure = self.say(command)["failure"]
        before, _, behind = failure.partition("direct cause of the following exception")
        self.assertIn(line_of(fail), before)
        self.assertIn("ValueError", before)
        self.assertIn(line_of(command, 4), behind)
        self.assertIn("RuntimeError", behind)

    def test_endless_chain(self) -> None:
        """Of errors that went on and on the last are shown, in a bounded text."""

        async def command(ctx: Context) -> None:
            error: Exception | None = None
            for number in range(5000):
                try:
                    raise KeyError(number) from error
                except KeyError as raised:
                    error = raised
            assert error is not None
            raise error

        error = self.say(command)
        self.assertIn("what led to this is left out", error["failure"])
        self.assertIn(line_of(command, 8), error["failure"])

    def test_group(self) -> None:
        """Each error of a group has its own lines."""

        async def command(ctx: Context) -> None:
            errors = []
            for number in range(50):
                try:
                    fail(ctx.message.args) if number else recurse(1)
                except (ValueError, RecursionError) as error:
                    errors.append(error)
            raise ExceptionGroup(ctx.message.args, errors)

        error = self.say(command)
        self.assertBegins(error, line_of(command, 7), line_of(command, 4), line_of(recurse))
        self.assertIn("---- 2 of 50 ----", error["failure"])
        self.assertIn(line_of(fail), error["failure"])
        self.assertIn("more left out", error["failure"])

    def test_libraries_give_way(self) -> None:
        """Where a library calls and calls, its calls are left out before the bot's are."""

        async def command(ctx: Context) -> None:
            nested: list[Any] = []
            for _ in range(100_000):
                nested = [nested]
            fail_with(json.dumps, nested)

        def fail_with(function: Callable[..., Any], value: Any) -> None:
            try:
                function(value, default=repr, indent=1)
            except RecursionError as error:
                raise error.with_traceback(error.__traceback__) from None

        error = self.say(command)
        self.assertBegins(error, line_of(command, 4), line_of(fail_with, 4))

    def test_fate(self) -> None:
        """A listener that is told what became of a reply."""

        async def command(ctx: Context) -> None:
            ctx.reply("answer", on_fate=lambda word: fail(ctx.message.args))

        self.serve(command).say(f"!do {CHAT}")
        ((_, listener),) = self.served.origin.terms
        assert listener is not None
        listener(DeliveryStatus.SENT, "")
        error = self.logged()
        self.assertIn("what became of a reply", error["message"])
        self.assertIn(line_of(fail), error["failure"])

    def test_files_nobody_waits_for(self) -> None:
        """A file that cannot be read is in the log, once, though the command did not wait."""

        async def command(ctx: Context) -> None:
            ctx.reply_media(f"no such directory/{ctx.message.args}.png")

        error = self.say(command)
        self.assertIn("files were not sent: FileNotFoundError: No such", error["message"])
        self.assertIn("in prepare", error["failure"])
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_files_that_are_waited_for_late(self) -> None:
        """One that is waited for after all is no mistake of the log's: the command decides."""

        async def command(ctx: Context) -> str:
            files = ctx.reply_media(f"no such directory/{ctx.message.args}.png")
            await self.outside.wait()
            try:
                await files
            except OSError:
                return "no such picture"
            return "?"

        self.serve(command).say(f"!do {CHAT}")
        self.served.threads.work()
        self.outside.waiting[0].callback(None)
        self.assertEqual(self.served.origin.texts, ["no such picture"])
        self.assertEqual(self.outputs["json"].getvalue(), "")


class OwnTextTests(FailureTestCase):
    """An error's text is shown where its words are ours, or Python's own fixed ones."""

    def check(self, function: Callable[..., object], text: str) -> None:
        error = self.say(function)
        self.assertIn(text, error["error"])
        self.assertIn(text, error["failure"])
        self.assertIn(f'File "{FILE}"', error["failure"].splitlines()[1])

    def test_wrong_item(self) -> None:
        """Something that is no file."""

        async def command(ctx: Context) -> None:
            await ctx.reply_media(cast(Any, 5))

        self.check(command, "can be sent, not int")

    def test_wrong_reply(self) -> None:
        """Something that is no text."""

        async def command(ctx: Context) -> None:
            ctx.reply(cast(Any, ["text"]))

        self.check(command, "a reply is a text, not list")

    def test_no_loop(self) -> None:
        """asyncio, where its loop does not run."""

        async def command(ctx: Context) -> None:
            asyncio.get_running_loop()

        self.check(command, "RuntimeError: no running event loop")

    def test_wrong_signature(self) -> None:
        """A function that takes no context is named, with the place where it is defined."""

        async def command() -> None: ...

        self.bot.command("!do")(fail)
        registered = self.bot.handlers._own.pop()
        # What is refused at the registration never comes here.
        self.bot.handlers._own.append(replace(registered, function=command, runs=Runs.ON_REACTOR))
        Served([self.bot]).say(f"!do {CHAT}")
        error = self.logged()
        said = f"{command.__qualname__}() takes 0 positional arguments but 1 was given"
        self.assertIn(said, error["failure"])
        self.assertIn(said, error["message"])
        self.assertBegins(error, line_of(command, 0))

    def test_file_that_cannot_be_read(self) -> None:
        """What the system says, without the path, which may be chat."""

        async def command(ctx: Context) -> None:
            os.open(f"no such directory/{ctx.message.args}", os.O_RDONLY)

        self.check(command, "FileNotFoundError: No such file or directory")

    def test_forged(self) -> None:
        """An error that only looks like one of Python's gives away nothing of the chat."""
        for kind, text in (
            (TypeError, "s3cret() takes 0 positional arguments but 1 was given"),
            (TypeError, "f() missing 1 required positional argument: 's3cret'"),
            (TypeError, "s3cret"),
            (RuntimeError, "There is no current event loop in thread 's3cret'"),
            (RuntimeError, "no running event loops3cret"),
            (type("s", (OSError,), {}), "s3cret"),
        ):

            async def command(ctx: Context, kind: Any, text: str) -> None:
                error = kind(text)
                error.add_note(ctx.message.args)
                raise error

            self.say(partial(command, kind=kind, text=text))
            self.setUp()
