"""Tests for L{domaeka.bots.threads}, with real threads."""

import queue
import threading
from collections.abc import Callable
from typing import Any, ClassVar, cast

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, Context
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.threads import (
    JOIN_SECONDS,
    MAX_CALLS,
    MAX_THREADS,
    CommandThreads,
    ThreadsBusy,
)
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.logs import text_line
from domaeka.testing.loop import VirtualBotLoop
from tests.bots_fakes import FakeOrigin, make_chat

#: How long a test waits for a thread before it gives up, in seconds; none takes so long.
PATIENCE = 10.0


class QueueReactor(Clock):
    """A clock that holds what threads ask for until the test's own thread is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: queue.Queue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.Queue()

    def callFromThread(self, callable: Callable[..., Any], *args: Any) -> None:
        self.asked.put((callable, args))

    def run_one(self) -> None:
        """Wait for a thread, and do what it asks."""
        call, args = self.asked.get(timeout=PATIENCE)
        call(*args)


class CommandThreadsTests(SynchronousTestCase):
    """Tests for L{CommandThreads}."""

    def setUp(self) -> None:
        self.reactor = QueueReactor()
        self.threads = CommandThreads(self.reactor)
        self.release = threading.Event()
        self.addCleanup(self.release.set)

    def test_calls_in_a_thread(self) -> None:
        """The call is made in another thread, its outcome comes back to ours."""
        result = self.threads.call(threading.get_ident)
        self.reactor.run_one()
        self.assertNotEqual(self.successResultOf(result), threading.get_ident())
        failed = self.threads.call(int, "x")
        self.reactor.run_one()
        self.failureResultOf(failed, ValueError)
        closed = self.threads.close()
        self.reactor.run_one()
        self.successResultOf(closed)

    def test_given_up_is_dropped(self) -> None:
        """A call that is given up fails at once; what it gives later is dropped."""
        result = self.threads.call(self.release.wait, PATIENCE)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.release.set()
        self.reactor.run_one()

    def test_failure_after_it_was_given_up(self) -> None:
        """It is in the log with its traceback, and with what the log says of a command's run."""
        events: list[Any] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

        class Run:
            """What is given to a command."""

            log_fields: ClassVar = {"command": "!late", "bot": "bot"}

        def late(run: Run) -> None:
            started.set()
            self.release.wait(PATIENCE)
            raise ValueError("s3cret")

        started = threading.Event()
        result = self.threads.call(late, Run())
        self.assertTrue(started.wait(PATIENCE))
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.release.set()
        self.reactor.run_one()
        (line,) = (text_line(event) for event in events if event["log_level"] is LogLevel.error)
        self.assertIn("failed after it was given up: ValueError (command '!late', bot 'bot'", line)
        self.assertIn("in late", line.splitlines()[2])

    def test_is_bounded(self) -> None:
        """A function has half of the calls that may wait; after the end none is made."""
        most = MAX_THREADS // 2 + MAX_CALLS // 2
        calls = [self.threads.call(self.release.wait, PATIENCE) for _ in range(most)]
        self.failureResultOf(self.threads.call(self.release.wait, PATIENCE), ThreadsBusy)
        for call in reversed(calls):
            call.cancel()
            self.failureResultOf(call, CancelledError)
        self.release.set()
        for _ in range(MAX_THREADS // 2):
            self.reactor.run_one()
        self.assertTrue(self.reactor.asked.empty())
        self.threads.close()
        self.failureResultOf(self.threads.call(print), ThreadsBusy)

    def test_stuck_thread_does_not_hold_the_end(self) -> None:
        """A thread that never ends is left behind, and is daemonic."""
        began: queue.Queue[threading.Thread] = queue.Queue()

        def stuck() -> None:
            began.put(threading.current_thread())
            self.release.wait(PATIENCE)

        self.threads.call(stuck)
        self.assertTrue(began.get(timeout=PATIENCE).daemon)
        closed = self.threads.close()
        self.assertNoResult(closed)
        self.reactor.advance(JOIN_SECONDS)
        self.successResultOf(closed)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_no_threads_for_those_who_need_none(self) -> None:
        """A server without plain commands makes no thread."""
        before = threading.active_count()
        self.successResultOf(self.threads.close())
        self.assertEqual(threading.active_count(), before)


class PlainCommandTests(SynchronousTestCase):
    """A plain command, in a real thread."""

    def test_replies_come_from_the_reactor(self) -> None:
        """What a thread sends goes through the reactor's thread, in order."""
        bot = Bot("b")

        @bot.command("# a")
        def plain(ctx: Context) -> str:
            ctx.reply("하나")
            ctx.reply_media(b"\x89PNG\r\n\x1a\n")
            return "셋"

        reactor = QueueReactor()
        threads = CommandThreads(reactor)
        dispatcher = BotDispatcher(
            [bot],
            reactor,
            threads,
            BotsSettings(),
            BreakerSettings(),
            loop=VirtualBotLoop(reactor, threads),
            observe=lambda command: lambda took: None,
            failed=lambda command: None,
            busy=lambda: None,
        )
        origin = FakeOrigin()
        dispatcher.submit(make_chat("# a"), origin)
        self.assertEqual((origin.texts, dispatcher.pending()), ([], 1))
        for count in (0, 2):  # both replies come together, and before the end
            self.assertEqual(len(origin.texts), count)
            reactor.run_one()
        self.assertEqual((origin.texts[0], origin.texts[2]), ("하나", "셋"))
        self.assertEqual(dispatcher.pending(), 0)
        dispatcher.close()
