"""Tests for L{domaeka.bots.schedules}."""

import asyncio
import gc
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, ScheduleContext, StoreError
from domaeka.bots.loading import load_bots
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.errors import ConfigError
from domaeka.testing.host import MemoryClaims
from tests import forget_after
from tests.bots_fakes import Served


def at(text: str) -> float:
    """Seconds since 1970 of a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


#: Of Berlin, before eight o'clock.
NIGHT = at("2026-12-01 06:58:30")


class FailingClaims(MemoryClaims):
    """Claims in a store that fails until it is mended."""

    broken = True

    def claim(self, schedule: str, due: float) -> "Deferred[bool]":
        if self.broken:
            return fail(StoreError("the store is down"))
        return super().claim(schedule, due)

    def last(self, schedule: str, until: float) -> "Deferred[float | None]":
        if self.broken:
            return fail(StoreError("the store is down"))
        return super().last(schedule, until)


class SchedulesTests(SynchronousTestCase):
    """Tests for L{Schedules}, in virtual time."""

    def setUp(self) -> None:
        forget_after(self)
        self.bot = Bot("greeter")
        self.called: list[str] = []

    def note(self, expression: str = "0 8 * * *", zone: str = "Europe/Berlin", **more: Any) -> None:
        """Have the bot note the times at which it is called."""

        @self.bot.schedule(expression, timezone=zone, **more)
        async def greet(ctx: ScheduleContext) -> None:
            self.called.append(ctx.scheduled.isoformat())

    def serve(self, now: float = NIGHT, **more: Any) -> Served:
        """Serve it from then on."""
        served = Served([self.bot], now=now, **more)
        self.addCleanup(self.stop, served)
        return served

    def stop(self, served: Served) -> None:
        """Stop it: nothing is left behind."""
        self.successResultOf(served.dispatcher.close())
        self.assertEqual(served.reactor.getDelayedCalls(), [])

    def wait(self, served: Served, seconds: int) -> None:
        """Let time pass, minute by minute."""
        served.reactor.pump([60.0] * (seconds // 60) + [float(seconds % 60)])

    def logged(self) -> Callable[[], str]:
        """@return: gives what is logged from now on, as text."""
        events: list[Any] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        return lambda: "\n".join(formatEvent(each) for each in events)

    # When

    def test_greeting(self) -> None:
        """A text that is returned is sent to the rooms, once, when it is due."""

        @self.bot.schedule("0 8 * * *", timezone="Europe/Berlin", rooms=["1001", "점심"])
        async def greet(ctx: ScheduleContext) -> str:
            return f"안녕 {ctx.scheduled:%H:%M} {len(ctx.rooms)}"

        served = self.serve()
        served.host.rooms.hear("1001", "아침")
        served.host.rooms.hear("1002", "점심")
        served.wait(89)
        self.assertEqual(served.host.rooms.texts, [])
        served.wait(1)
        greeting = [("1001", "안녕 08:00 2"), ("1002", "안녕 08:00 2")]
        self.assertEqual(served.host.rooms.texts, greeting)
        self.wait(served, 86_399)
        self.assertEqual(served.host.rooms.texts, greeting)
        self.wait(served, 1)
        self.assertEqual(served.host.rooms.texts, greeting * 2)

    def test_summer_time(self) -> None:
        """Through both changes of a year each day has one run, whatever the clock leaves out."""
        for zone, begin, end in (
            ("Europe/Berlin", "2026-03-28 12:00", "2026-10-24 12:00"),
            ("America/New_York", "2026-03-07 12:00", "2026-10-31 12:00"),
        ):
            for day in (begin, end):
                self.called.clear()
                self.bot = Bot("greeter")
                for minute in (1, 2):
                    self.note(f"30 {minute} * * *", zone)
                served = self.serve(at(day))
                self.wait(served, 3 * 86_400)
                self.assertEqual(len(self.called), 6, self.called)

    def test_clock_set_forward(self) -> None:
        """A clock that is set forward over a time has missed it; the next one counts again."""
        self.note()
        served = self.serve()
        served.wall.step(3600)
        logged = self.logged()
        self.wait(served, 120)
        self.assertEqual(self.called, [])
        self.assertRegex(logged(), r"greet of .* not called .*08:00.*test_bots_schedules\.py:\d+")
        self.wait(served, 86_400)
        self.assertEqual(self.called, ["2026-12-02T08:00:00+01:00"])

    def test_clock_set_forward_to_it(self) -> None:
        """A time that is over for a few seconds was not missed: it is noticed within a minute."""
        self.note()
        served = self.serve()
        served.wall.step(85)
        self.wait(served, 60)
        self.assertEqual(self.called, ["2026-12-01T08:00:00+01:00"])

    def test_clock_set_back(self) -> None:
        """A clock that is set back runs nothing twice, and what is due next is called."""
        self.note("0 8,9 * * *")
        served = self.serve()
        served.wait(90)
        for _ in range(3):
            served.wall.step(-600)
            self.wait(served, 660)
        self.assertEqual(self.called, ["2026-12-01T08:00:00+01:00"])
        self.wait(served, 3600)
        self.assertEqual(self.called[1:], ["2026-12-01T09:00:00+01:00"])

    def test_clock_was_ahead(self) -> None:
        """A clock that was ahead, and is set right, brings the times that it had left out."""
        self.note()
        served = self.serve(NIGHT + 4 * 3600)
        self.wait(served, 60)
        served.wall.step(-4 * 3600 - 60)
        self.wait(served, 120)
        self.assertEqual(self.called, ["2026-12-01T08:00:00+01:00"])

    # Which server

    def test_two_servers(self) -> None:
        """Of two servers on a store one calls it; both go on the next day."""
        self.note()
        first = self.serve()
        second = self.serve(claims=first.host.claims)
        for served in (first, second):
            self.wait(served, 90)
        self.assertEqual(len(self.called), 1)

    def test_missed(self) -> None:
        """Of runs missed while no server ran, one is made up for where that was wished."""
        for missed, called in (("skip", []), ("once", ["2026-12-04T08:00:00+01:00"])):
            self.bot = Bot("greeter")
            self.note(missed=missed)
            served = self.serve()
            self.wait(served, 120)
            self.called.clear()
            again = self.serve(NIGHT + 3 * 86_400 + 300, claims=served.host.claims)
            self.assertEqual(self.called, called)
            self.wait(again, 3600)
            third = self.serve(NIGHT + 3 * 86_400 + 4000, claims=served.host.claims)
            self.wait(third, 60)
            self.assertEqual(self.called, called)

    def test_seen_for_the_first_time(self) -> None:
        """A new schedule has missed nothing; from then on it has, before it ever ran."""
        self.note(missed="once")
        first = self.serve()
        self.assertEqual(self.called, [])
        self.serve(NIGHT + 7200, claims=first.host.claims)
        self.assertEqual(self.called, ["2026-12-01T08:00:00+01:00"])

    # A store in trouble

    def test_store_is_down_for_a_while(self) -> None:
        """A run is claimed once the store is there again, within a minute."""
        self.note()
        claims = FailingClaims()
        served = self.serve(claims=claims)
        served.wait(120)
        claims.broken = False
        served.wait(5)
        self.assertEqual(len(self.called), 1)

    def test_store_is_down_for_long(self) -> None:
        """Then it was missed, with a line in the log; or made up for later."""
        self.note()
        self.note("1 8 * * *", missed="once")
        claims = FailingClaims()
        served = self.serve(claims=claims)
        logged = self.logged()
        served.wait(600)
        self.assertEqual(logged().count("the store is down"), 1)
        claims.broken = False
        served.wait(10)
        self.assertEqual(self.called, ["2026-12-01T08:01:00+01:00"])

    # How

    def test_in_thread_and_on_reactor(self) -> None:
        """Plain functions are called in a thread, those of the reactor there."""

        @self.bot.schedule("0 8 * * *", timezone="Europe/Berlin", rooms=["1001"])
        def plain(ctx: ScheduleContext) -> str:
            return "thread"

        @self.bot.schedule("0 8 * * *", timezone="Europe/Berlin", rooms=["1001"], reactor=True)
        async def on_reactor(ctx: ScheduleContext) -> None:
            receipts = await ctx.send("reactor", ttl=5)
            self.called.append(receipts[0].id)

        served = self.serve()
        served.host.rooms.hear("1001", "방")
        served.wait(90)
        self.assertEqual(served.host.rooms.texts, [("1001", "reactor")])
        self.assertEqual((self.called, served.host.rooms.sent[0].ttl), (["1"], 5))
        served.threads.work()
        self.assertEqual(served.host.rooms.texts[1:], [("1001", "thread")])

    def test_still_running(self) -> None:
        """A run that still goes on when the next is due: that one is left out, said once."""

        @self.bot.schedule("* * * * *", timezone="UTC")
        async def slow(ctx: ScheduleContext) -> None:
            self.called.append("begun")
            await asyncio.sleep(200)
            self.called.append("ended")

        served = self.serve(settings=BotsSettings(timeout=1000))
        logged = self.logged()
        served.wait(280)
        self.assertEqual(self.called, ["begun", "ended", "begun"])
        self.assertEqual(logged().count("still runs"), 1)

    def test_too_long(self) -> None:
        """A run is given up after C{bots.timeout}; the next one is not affected."""

        @self.bot.schedule("* * * * *", timezone="UTC")
        async def slow(ctx: ScheduleContext) -> None:
            self.called.append("begun")
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                self.called.append("cancelled")
                raise

        served = self.serve(settings=BotsSettings(timeout=10))
        served.wait(50)
        self.assertEqual(self.called, ["begun", "cancelled"])
        served.wait(60)
        self.assertEqual(self.called, ["begun", "cancelled"] * 2)

    def test_too_long_on_the_reactor(self) -> None:
        """There, too: what it waits for is cancelled."""
        waiting: list[Deferred[None]] = []

        @self.bot.schedule("* * * * *", timezone="UTC", reactor=True)
        async def slow(ctx: ScheduleContext) -> None:
            waiting.append(Deferred(lambda _: self.called.append("cancelled")))
            await waiting[-1]

        served = self.serve(settings=BotsSettings(timeout=10))
        served.wait(50)
        self.assertEqual((len(waiting), self.called), (1, ["cancelled"]))
        waiting.clear()
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_stuck_in_a_thread(self) -> None:
        """A thread that does not come back is one thread, not one more with each run."""
        stuck = Bot("stuck")
        reactor_calls: list[str] = []

        @stuck.schedule("* * * * *", timezone="UTC")
        def sleep(ctx: ScheduleContext) -> None:
            reactor_calls.append("begun")
            served.wait(50)  # its time is over while it is in the thread
            served.wait(60)  # and the next one is due
            reactor_calls.append("ended")

        served = Served([stuck], now=NIGHT, settings=BotsSettings(timeout=10))
        served.wait(30)
        served.threads.work()
        self.assertEqual(reactor_calls, ["begun", "ended"])
        self.assertEqual(len(served.threads.calls), 0)
        served.wait(60)
        self.assertEqual(len(served.threads.calls), 1)
        self.stop(served)

    def test_errors(self) -> None:
        """An error is logged with its place, and costs that run alone."""

        @self.bot.schedule("* * * * *", timezone="UTC")
        async def bad(ctx: ScheduleContext) -> None:
            self.called.append("called")
            raise ZeroDivisionError

        @self.bot.schedule("* * * * *", timezone="UTC")
        async def lost(ctx: ScheduleContext) -> str:
            return "a text without rooms"

        served = self.serve()
        logged = self.logged()
        self.wait(served, 120)
        self.assertEqual(self.called, ["called", "called"])
        for words in ("ZeroDivisionError", "no rooms"):
            self.assertIn(words, logged())
        self.assertIn("test_bots_schedules.py", logged())

    def test_one_room_fails(self) -> None:
        """Where one room fails, the others have the text."""

        @self.bot.schedule("0 8 * * *", timezone="Europe/Berlin", rooms=["없음", "1001"])
        async def greet(ctx: ScheduleContext) -> str:
            return "안녕"

        served = self.serve()
        served.host.rooms.hear("1001", "방")
        logged = self.logged()
        served.wait(90)
        self.assertEqual(served.host.rooms.texts, [("1001", "안녕")])
        self.assertIn("NoRoom", logged())

    # Start, reload and stop

    def test_after_the_start(self) -> None:
        """A run that is due while functions of C{on_start} still work begins behind them."""

        @self.bot.on_start
        async def start() -> None:
            await asyncio.sleep(8)
            self.called.append("started")

        self.note()
        served = self.serve(NIGHT + 85)
        served.wait(7)
        self.assertEqual(self.called, [])
        served.wait(1)
        self.assertEqual(self.called, ["started", "2026-12-01T08:00:00+01:00"])

    def test_reload(self) -> None:
        """Schedules that are gone are called no more; those that are left go on."""
        self.note()
        served = self.serve()
        served.dispatcher.apply([], BotsSettings(), BreakerSettings())
        served.wait(100)
        self.assertEqual(self.called, [])
        served.dispatcher.apply([self.bot], BotsSettings(), BreakerSettings())
        self.wait(served, 86_400)
        self.assertEqual(self.called, ["2026-12-02T08:00:00+01:00"])

    def test_reload_ends_runs(self) -> None:
        """A run of a schedule that is gone is broken off, as are all at the stop."""

        @self.bot.schedule("* * * * *", timezone="UTC")
        async def slow(ctx: ScheduleContext) -> None:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                self.called.append("cancelled")
                raise

        served = self.serve()
        self.wait(served, 60)
        served.dispatcher.apply([], BotsSettings(), BreakerSettings())
        self.assertEqual(self.called, ["cancelled"])
        served.dispatcher.apply([self.bot], BotsSettings(), BreakerSettings())
        self.wait(served, 60)
        self.successResultOf(served.dispatcher.close())
        self.assertEqual(self.called, ["cancelled"] * 2)

    def test_retries_do_not_add_up(self) -> None:
        """However long the store fails, a schedule asks it again once in five seconds."""
        claims = FailingClaims()
        self.note("* * * * *", "UTC", missed="once")
        served = self.serve(claims=claims)
        served.wait(600)
        waiting = len(served.reactor.getDelayedCalls())
        served.wait(600)
        self.assertEqual(len(served.reactor.getDelayedCalls()), waiting)
        claims.broken = False
        served.wait(6)
        self.assertEqual(len(self.called), 1)


class RegistrationTests(SynchronousTestCase):
    """What is wrong with a schedule is said at its registration."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        sys.path.insert(0, str(self.directory))
        self.addCleanup(sys.path.remove, str(self.directory))

    def test_named_with_file_and_line(self) -> None:
        """Wrong expressions, zones and functions are named with the author's file and line."""
        for number, (given, function, words) in enumerate(
            (
                ('"0 25 * * *", timezone="Asia/Seoul"', "async def f(ctx): ...", "Bad hour"),
                ('"* * * * * *", timezone="Asia/Seoul"', "async def f(ctx): ...", "once a minute"),
                ('"0 8 * * *", timezone="Asia/Soul"', "async def f(ctx): ...", "Asia/Soul"),
                ('"0 8 * * *"', "async def f(ctx): ...", "timezone"),
                ('"0 8 * * *", timezone="UTC", rooms="1"', "async def f(ctx): ...", "not a text"),
                ('"0 8 * * *", timezone="UTC"', "async def f(): ...", "called with a context"),
            )
        ):
            with self.subTest(given):
                name = f"scheduled{number}"
                text = "from domaeka import Bot\nbot = Bot('b')\n\n"
                text += f"@bot.schedule({given})\n{function}\n"
                (self.directory / f"{name}.py").write_text(text, "utf-8")
                error = self.assertRaises(ConfigError, load_bots, [f"{name}:bot"])
                self.assertIn(words, str(error))
                self.assertRegex(str(error), rf"{name}\.py(:|.*line )[45]")

    def test_twice(self) -> None:
        """The same function at the same times is a mistake; at others it is not."""
        bot = Bot("b")

        def greet(ctx: ScheduleContext) -> None: ...

        bot.schedule("0 8 * * *", timezone="UTC")(greet)
        bot.schedule("0 9 * * *", timezone="UTC")(greet)
        bot.schedule("0 8 * * *", timezone="Asia/Seoul")(greet)
        again = bot.schedule("0 8  * * *", timezone="UTC")
        self.assertIn("twice", str(self.assertRaises(TypeError, again, greet)))
