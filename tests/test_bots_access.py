"""Tests for L{domaeka.bots.access} and L{domaeka.bots.gate}: who may, and how often."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, Context, cooldown, operators, people, role, room
from domaeka.bots.gate import MAX_REFUSED, MAX_WINDOWS, Gate, Windows
from domaeka.bots.loading import load_bots
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.errors import ConfigError
from domaeka.policies.retry import BreakerState
from domaeka.texts_ko import COOLDOWN_TEXT, NOT_ALLOWED_TEXT, OPERATORS_TEXT
from tests.bots_fakes import FakeOrigin, Outside, Served, make_chat

HELD = {("staff", "1001", "u7")}


def holds(role: str, channel_id: str | None, user_hash: str | None) -> bool:
    """The roles that are held here."""
    return (role, channel_id, user_hash) in HELD


def soon(left: str) -> str:
    """The answer to one who comes too soon."""
    return COOLDOWN_TEXT.format(left=left)


class AccessCase(SynchronousTestCase):
    """A bot in virtual time."""

    def setUp(self) -> None:
        self.bot = Bot("test")
        self.settings = BotsSettings(operators=("1001/op",))

    def serve(self, *bots: Bot) -> Served:
        served = Served(bots or [self.bot], self.settings, holds=holds)
        self.addCleanup(served.dispatcher.close)
        return served

    def command(self, name: str, **more: Any) -> None:
        self.bot.command(name, reactor=True, **more)(answer(name))


def answer(text: str) -> Callable[[Context], Any]:
    async def function(ctx: Context) -> str:
        return text

    return function


class AllowTests(AccessCase):
    """Tests for C{allow=}."""

    def test_who(self) -> None:
        """Each kind lets in those whom it names, also where several are joined, and nobody else."""
        for allow, allowed in (
            (operators, ["1001/op"]),
            (room("1002", "1003"), ["1002/u1", "1002/a/b", "1002/None", "1003/op"]),
            (people("1001/u1", "1002/a/b"), ["1001/u1", "1002/a/b"]),
            (role("staff"), ["1001/u7"]),
            (role("other") | room("1003") | operators, ["1001/op", "1003/op"]),
        ):
            bot = Bot("test")
            bot.command("# x", allow=allow, reactor=True)(answer("yes"))
            served = self.serve(bot)
            for person in (
                *("1001/op", "1001/u1", "1001/u7", "1001/None", "None/op", "None/u7", "None/None"),
                *("1002/u1", "1002/a/b", "1002/None", "1003/op"),
            ):
                known = zip(("channel_id", "user_hash"), person.split("/", 1), strict=True)
                del served.origin.replies[:]
                # A room may be called like a channel id, a person like anybody.
                served.say(
                    "# x", room="1002", **{key: None if it == "None" else it for key, it in known}
                )
                allowed_here = served.origin.texts == ["yes"]
                self.assertEqual(allowed_here, person in allowed, (str(allow), person))

    def test_refused_once_a_minute(self) -> None:
        """Somebody who may not is answered, once a minute in a room; others are, too."""
        self.command("# x", allow=role("staff"))
        self.command("# y", operators_only=True)
        served = self.serve()
        for _ in range(3):
            served.say("# x")
            served.say("# y")
        self.assertEqual(served.origin.texts, [NOT_ALLOWED_TEXT])
        served.say("# y", user_hash="u2")
        served.say("# x", channel_id="1002")
        self.assertEqual(served.origin.texts[1:], [OPERATORS_TEXT, NOT_ALLOWED_TEXT])
        served.wait(60)
        served.say("# y")
        self.assertEqual(served.origin.texts[3:], [OPERATORS_TEXT])
        self.assertEqual(len(served.origin.done), len(served.said))

    def test_unknown_people_are_one(self) -> None:
        """Where a phone knows no hash, another name does not bring another answer."""
        self.command("# x", allow=operators)
        served = self.serve()
        for _ in range(3):
            served.say("# x", user_hash=None)
        self.assertEqual(served.origin.texts, [OPERATORS_TEXT])

    def test_help_hides(self) -> None:
        """C{# help} shows a person what that person may use."""
        self.command("# x", allow=role("staff") | people("1001/u1"))
        served = self.serve()
        for user_hash, shown in (("u1", True), ("u7", True), ("u2", False)):
            served.say("# help", user_hash=user_hash)
            self.assertEqual("# x" in str(served.origin.texts[-1]), shown, user_hash)

    def test_listeners_are_passed(self) -> None:
        """C{on_message} does not take messages of those who may not: the next one does."""
        self.bot.on_message(allow=role("staff"), reactor=True)(answer("staff"))
        self.bot.on_message(contains="hi", reactor=True)(answer("all"))
        served = self.serve()
        for text, user_hash in (("hi", "u7"), ("hi", "u1"), ("ho", "u1")):
            served.say(text, user_hash=user_hash)
        self.assertEqual(served.origin.texts, ["staff", "all"])

    def test_role_in_a_function(self) -> None:
        """A function may ask for a role, too."""

        @self.bot.command("# x", reactor=True)
        async def ask(ctx: Context) -> str:
            return str(ctx.has_role("staff"))

        served = self.serve()
        for user_hash in ("u7", "u1", None):
            served.say("# x", user_hash=user_hash)
        self.assertEqual(served.origin.texts, ["True", "False", "False"])

    def test_costs_nothing(self) -> None:
        """What is refused takes no place and does not count for the breaker."""
        outside = Outside()
        calls = []
        breaker = BreakerSettings(failure_threshold=1)

        @self.bot.command("# x", allow=operators, cooldown=cooldown(1, 10), reactor=True)
        async def wait(ctx: Context) -> Any:
            calls.append(ctx)
            return await outside.wait()

        settings = BotsSettings(operators=("1001/op",), room_concurrency=1)
        served = Served([self.bot], settings, breaker)
        for user_hash in ("op", "op", "u1"):
            served.say("# x", user_hash=user_hash)
        self.assertEqual((len(calls), served.dispatcher.pending()), (1, 1))
        outside.waiting[0].callback("done")
        self.assertEqual(served.failures, [])
        self.assertIs(served.dispatcher.breakers()["# x"].state, BreakerState.CLOSED)
        self.assertEqual(served.origin.texts, [soon("10초"), OPERATORS_TEXT, "done"])
        served.dispatcher.close()

    def test_bounded(self) -> None:
        """However many people are refused, the oldest ones give way."""
        said: list[str] = []
        gate = Gate(lambda chat, origin, text: said.append(text), lambda: 0.0)
        self.command("# x", allow=operators)
        (command,) = self.bot.commands
        gate.apply((), [command])
        origin = FakeOrigin()
        for number in range(MAX_REFUSED + 1):
            gate.admits(command, make_chat("# x", user_hash=f"u{number}"), origin)
        del said[:]
        for user_hash in ("u1", "u0"):
            gate.admits(command, make_chat("# x", user_hash=user_hash), origin)
        self.assertEqual((said, len(gate._refused)), ([OPERATORS_TEXT], MAX_REFUSED))


class CooldownTests(AccessCase):
    """Tests for C{cooldown=}."""

    def test_answers_once(self) -> None:
        """Who comes too soon is told so once, with the time that is left, until it is over."""
        self.command("# x", cooldown=cooldown(2, 10))
        served = self.serve()
        for pause in (0, 3, 1, 1, 1):
            served.wait(pause)
            served.say("# x")
        self.assertEqual(served.origin.texts, ["# x", "# x", soon("6초")])
        served.wait(4)
        served.say("# x")
        self.assertEqual(served.origin.texts[3:], ["# x"])
        self.assertEqual(served.origin.done, served.said)

    def test_for_whom(self) -> None:
        """Calls are counted for each person in a room, for each room, or all together."""
        people = (("1001", "u1"), ("1001", "u2"), ("1002", "u1"), ("1001", None), ("1001", None))
        for by, answered in (("sender", 4), ("room", 2), ("all", 1)):
            bot = Bot("test")
            limit = cooldown(1, 3600, by=by)  # type: ignore[arg-type]
            bot.command("# x", cooldown=limit, reactor=True)(answer("yes"))
            served = self.serve(bot)
            for channel_id, user_hash in people:
                served.say("# x", channel_id=channel_id, user_hash=user_hash)
            texts = served.origin.texts
            told = {"sender": 1, "room": 1, "all": 2}[by]  # rooms
            self.assertEqual((texts.count("yes"), texts.count(soon("60분"))), (answered, told), by)

    def test_listeners_are_silent(self) -> None:
        """C{on_message} that is called too often does not answer: nobody asked the bot."""
        self.bot.on_message(contains="hi", cooldown=cooldown(1, 5), reactor=True)(answer("hello"))
        served = self.serve()
        for _ in range(3):
            served.say("hi")
        served.wait(5)
        served.say("hi")
        self.assertEqual(served.origin.texts, ["hello", "hello"])

    def test_reload(self) -> None:
        """A reload forgets no call of a command that has the cooldown as before."""

        def bot(*limits: Any) -> Bot:
            made = Bot("test")
            for name, limit in zip(("# x", "# y"), limits, strict=True):
                made.command(name, cooldown=limit, reactor=True)(answer(name))
            return made

        served = self.serve(bot(cooldown(1, 10), cooldown(1, 10)))
        served.say("# x")
        served.say("# y")
        changed = bot(cooldown(1, 10), cooldown(1, 9))
        served.dispatcher.apply([changed], self.settings, served.breaker)
        served.say("# x")
        served.say("# y")
        self.assertEqual(served.origin.texts, ["# x", "# y", soon("10초"), "# y"])

    def test_bounded(self) -> None:
        """However many people call, the one whose time ends first gives way."""
        windows = Windows(cooldown(1, 10), lambda: 0.0)
        for number in range(MAX_WINDOWS + 1):
            self.assertIsNone(windows.take("봇", make_chat("# x", user_hash=f"u{number}")))
        self.assertEqual(windows.take("봇", make_chat("# x", user_hash="u1")), 10.0)
        self.assertIsNone(windows.take("봇", make_chat("# x", user_hash="u0")))
        self.assertEqual(len(windows._open), MAX_WINDOWS)

    def test_ended_ones_are_forgotten(self) -> None:
        """What is over takes no memory."""
        now = [0.0]
        windows = Windows(cooldown(1, 10), lambda: now[0])
        for number in range(100):
            now[0] = float(number)
            windows.take("봇", make_chat("# x", user_hash=f"u{number}"))
        self.assertEqual(len(windows._open), 10)


class MistakeTests(SynchronousTestCase):
    """Mistakes of authors: one line with their own place."""

    def test_wrong_values(self) -> None:
        """Whatever cannot be meant is refused where it is written."""
        for number, (code, said) in enumerate(
            (
                ("room('가게방')", "room('가게방'): a channel id is a number; the title of a room"),
                ("room()", "room() needs at least one text"),
                ("room(1001)", "room() takes texts, not int"),
                ("people('1001')", "people('1001'): a person is CHANNEL/HASH"),
                ("people('방/u1')", "people('방/u1'): a channel id is a number"),
                ("people('1/')", "people('1/'): a person is CHANNEL/HASH"),
                ("role(' a')", "role(' a'): is no name of a role"),
                ("operators | '1001'", "unsupported operand"),
                ("'operators'", "allow: operators, room(…), people(…), role(…), not str"),
                ("role", "not function: it is called, role(…)"),
                ("operators, operators_only=True", "operators_only is short for allow=operators"),
                ("None, cooldown=cooldown", "not function: it is called, cooldown(…)"),
                ("None, cooldown=5", "cooldown: cooldown(rate, per), not int"),
                ("None, cooldown=cooldown(0, 5)", "cooldown: rate is 1 to"),
                ("None, cooldown=cooldown(True, 5)", "rate is a number of calls, not bool"),
                ("None, cooldown=cooldown(1, float('nan'))", "cooldown: per is above 0"),
                ("None, cooldown=cooldown(1, '5')", "per is a number of seconds, not str"),
                ("None, cooldown=cooldown(1, 5, by='user')", "by is 'sender', 'room', 'all', not"),
            )
        ):
            directory = Path(self.mktemp()).absolute()
            directory.mkdir()
            name = f"access_mistake_{number}"
            path = directory / f"{name}.py"
            path.write_text(
                "from domaeka import Bot, cooldown, operators, people, role, room\n"
                "bot = Bot('shop')\n"
                f"@bot.command('# x', allow={code})\n"
                "async def x(ctx): ...\n",
                encoding="utf-8",
            )
            self.patch(sys, "path", [str(directory), *sys.path])
            error = str(self.assertRaises(ConfigError, load_bots, [f"{name}:bot"]))
            self.assertIn(said, error)
            self.assertTrue(error.endswith(f"({path}:3)"), error)
            self.assertNotIn("\n", error)
