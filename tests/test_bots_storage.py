"""Tests for L{domaeka.bots.storage}, and of C{ctx.room.store} and C{ctx.sender.store}."""

import enum
from datetime import datetime
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, NoServer, StorageFull
from domaeka.bots.api import Context
from domaeka.bots.storage import encoded
from tests.bots_fakes import FakeOrigin, Served


class Colour(enum.StrEnum):
    RED = "red"


class EncodedTests(SynchronousTestCase):
    """Tests for L{encoded}."""

    def test_json(self) -> None:
        """What JSON has is written as JSON."""
        values: list[Any] = [None, True, -(2**53), 1.5, "메모", [], {}, {"a": [1, {"b": None}]}, ""]
        for value in values:
            self.assertNotEqual(encoded(value), b"")
        self.assertEqual(encoded((1, ("a",))), b'[1,["a"]]')
        self.assertEqual(encoded(Colour.RED), b'"red"')

    def test_no_json(self) -> None:
        """What would come back as something else is refused by its type, never by its text."""
        for value, word in (
            (float("nan"), "finite"),
            ([float("inf")], "finite"),
            ({1: "비밀"}, "int"),
            ({"비밀"}, "set"),
            ([b"secret"], "bytes"),
            (datetime(2026, 12, 1), "datetime"),
            (object(), "object"),
            (lambda: None, "function"),
        ):
            with self.subTest(word):
                error = self.assertRaises(TypeError, encoded, value)
                self.assertIn(word, str(error))
                self.assertNotIn("비밀", str(error))

    def test_too_much(self) -> None:
        """Too deep, too long, or not to be stored."""
        deep: list[Any] = []
        deep.append(deep)
        self.assertRaises(ValueError, encoded, deep)
        self.assertRaises(ValueError, encoded, "\ud800")
        self.assertRaises(StorageFull, encoded, "x" * 65_536)
        self.assertRaises(StorageFull, encoded, ["x"] * 1_000_000)


class StoreTests(SynchronousTestCase):
    """Tests for L{domaeka.bots.storage.BotStore}."""

    def setUp(self) -> None:
        self.bot = Bot("memo")

    def test_memo(self) -> None:
        """A command on the loop keeps a memo, also over a restart."""

        @self.bot.command("# memo")
        async def memo(ctx: Context, text: str = "") -> str:
            if text:
                await self.bot.store.set("memo", {"text": text})
            found = await self.bot.store.get("memo", {"text": "없음"})
            return str(found["text"])

        served = Served([self.bot])
        served.say("# memo")
        served.say("# memo 우유")
        self.successResultOf(served.dispatcher.close())
        again = Served([self.bot], values=served.host.values)
        again.say("# memo")
        self.assertEqual(served.origin.texts + again.origin.texts, ["없음", "우유", "우유"])

    def test_all_calls(self) -> None:
        """Each call, on the reactor."""
        got: list[object] = []

        @self.bot.command("# all", reactor=True)
        async def everything(ctx: Context) -> None:
            store = self.bot.store
            got.append(await store.incr("n"))
            got.append(await store.incr("n", 2.5))
            got.append(await store.get("n"))
            await store.set("m", [1])
            got.append(await store.keys())
            got.append(await store.keys("m"))
            got.append(await store.delete("n"))
            got.append(await store.delete("n"))
            got.append(await store.get("n"))

        Served([self.bot]).say("# all")
        self.assertEqual(got, [1, 3.5, 3.5, ["m", "n"], ["m"], True, False, None])

    def test_many_keys(self) -> None:
        """More keys than a page has are all listed."""
        served = Served([self.bot])
        for number in range(2500):
            served.host.values.set("memo", "", f"{number:04}", b"1")
        keys = self.bot.store.keys("1").result()
        self.assertEqual(keys, [f"{number:04}" for number in range(1000, 2000)])
        self.assertEqual(len(self.bot.store.keys().result()), 2500)

    def test_in_a_thread(self) -> None:
        """A plain function calls C{result()}."""

        @self.bot.command("# count")
        def count(ctx: Context) -> str:
            return str(self.bot.store.incr("n").result())

        served = Served([self.bot])
        served.say("# count")
        served.threads.work()
        self.assertEqual(served.origin.texts, ["1"])

    def test_rooms_and_people(self) -> None:
        """Rooms and people have values of their own; a person is the same whatever the name."""

        @self.bot.command("# count")
        async def count(ctx: Context) -> str:
            numbers = [
                await ctx.room.store.incr("n"),
                await ctx.sender.store.incr("n"),
                await ctx.message.sender.store.incr("n"),
                await self.bot.store.incr("n"),
            ]
            return " ".join(map(str, numbers))

        served = Served([self.bot])
        served.say("# count")
        served.say("# count", user_hash="u2")
        served.say("# count", channel_id="1002")
        served.say("# count")
        self.assertEqual(served.origin.texts, ["1 1 2 1", "2 1 2 2", "1 1 2 3", "3 3 4 4"])

    def test_rooms_of_one_title(self) -> None:
        """Where no phone knows the id of a room, those of other bot names are other rooms."""

        @self.bot.command("# count")
        async def count(ctx: Context) -> str:
            return str(await ctx.room.store.incr("n"))

        served = Served([self.bot])
        served.say("# count", channel_id=None)
        served.origin = other = FakeOrigin("봇2")
        served.say("# count", channel_id=None)
        self.assertEqual(other.texts, ["1"])

    def test_nobody_knows_who(self) -> None:
        """A person without a hash has no values: the error says why."""
        errors: list[Exception] = []

        @self.bot.command("# me")
        async def me(ctx: Context) -> None:
            try:
                await ctx.sender.store.get("x")
            except ValueError as error:
                errors.append(error)

        served = Served([self.bot])
        served.say("# me", user_hash=None)
        served.say("# me", channel_id=None)
        self.assertEqual(["user hash" in str(error) for error in errors], [True, True])

    def test_an_answer_has_its_sender(self) -> None:
        """The person who answers a question has values, too."""

        @self.bot.command("# name")
        async def name(ctx: Context) -> str:
            answer = await ctx.ask("이름?")
            await answer.sender.store.set("name", answer.text)
            return str(await ctx.sender.store.get("name"))

        served = Served([self.bot])
        served.say("# name")
        served.say("하늘")
        self.assertEqual(served.origin.texts, ["이름?", "하늘"])

    def test_apart(self) -> None:
        """Bots of other names have other values; included ones, too."""
        other = Bot("other")
        self.bot.include(other)
        Served([self.bot])
        self.bot.store.set("key", 1).result()
        self.assertIsNone(other.store.get("key").result())

    def test_errors(self) -> None:
        """What is wrong is an error where it is called, or awaited."""
        Served([self.bot])
        store = self.bot.store
        self.assertRaises(TypeError, store.set, "x", {1})
        self.assertRaises(TypeError, store.keys, 1)
        self.assertRaises(TypeError, store.get(1).result)  # type: ignore[arg-type]
        self.assertRaises(ValueError, store.get("").result)
        self.assertRaises(StorageFull, store.set("x" * 201, 1).result)
        store.set("x", "text").result()
        self.assertRaises(TypeError, store.incr("x").result)

    def test_without_a_server(self) -> None:
        """At the import, and in a context of no server, the error says so."""
        self.assertIn("import", str(self.assertRaises(NoServer, self.bot.store.get, "x")))
        served = Served([self.bot])
        self.successResultOf(served.dispatcher.close())
        self.assertIn("any more", str(self.assertRaises(NoServer, self.bot.store.get, "x")))

    def test_stored_at_the_stop(self) -> None:
        """A function of C{on_stop} may store something."""

        @self.bot.on_stop
        async def stop() -> None:
            await self.bot.store.set("stopped", True)

        served = Served([self.bot])
        self.successResultOf(served.dispatcher.close())
        found = self.successResultOf(served.host.values.get("memo", "", "stopped"))
        self.assertEqual(found, b"true")
