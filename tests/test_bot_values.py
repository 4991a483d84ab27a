"""Tests for L{domaeka.store.bot_values}."""

import unicodedata
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from domaeka.errors import BotTypeError, BotValueError, StorageFull, StoreError
from domaeka.store import bot_values as module
from domaeka.store.bot_values import (
    ANSWER_SECONDS,
    BOT_SUMS,
    BOT_VALUES,
    MAX_INT,
    MAX_KEY_CHARS,
    MAX_VALUE_BYTES,
    MAX_WAITING_CALLS,
    BotValues,
)
from domaeka.store.threads import StoreClosed
from tests.storing import StoreTestCase

ROOM = "room:18398338829933617"
PERSON = "person:18398338829933617/1a2b"


class BotValuesTests(StoreTestCase):
    """Tests for L{BotValues}."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.values = BotValues(self.database, self.clock)

    def result(self, asked: "Deferred[Any]") -> Any:
        return self.successResultOf(asked)

    def put(self, key: str, value: bytes = b"1", bot: str = "봇", scope: str = "") -> None:
        self.result(self.values.set(bot, scope, key, value))

    def value(self, key: str, bot: str = "봇", scope: str = "") -> bytes | None:
        found: bytes | None = self.result(self.values.get(bot, scope, key))
        return found

    def full(self, asked: "Deferred[Any]") -> str:
        """The bound that is named."""
        return str(self.failureResultOf(asked, StorageFull).value)

    def assert_sums(self) -> None:
        """The sums of each bot are those of its rows."""
        sums: dict[str, tuple[int, int]] = {row["bot"]: (0, 0) for row in self.rows(BOT_SUMS)}
        for row in self.rows(BOT_VALUES):
            number, size = sums[row["bot"]]
            stored = len(row["name"]) + len(row["value"].encode())
            self.assertEqual(row["bytes"], stored)
            sums[row["bot"]] = (number + 1, size + stored)
        found = {row["bot"]: (row["number"], row["bytes"]) for row in self.rows(BOT_SUMS)}
        self.assertEqual(found, sums)

    # One bot

    def test_kept_and_changed(self) -> None:
        """A value comes back as it was stored last; a key that was removed has none."""
        self.assertIsNone(self.value("name"))
        for value in ('{"이름":"😀"}'.encode(), b'"' + b"x" * 100 + b'"', b"[]"):
            self.put("name", value)
            self.assertEqual(self.value("name"), value)
        self.assertTrue(self.result(self.values.delete("봇", "", "name")))
        self.assertFalse(self.result(self.values.delete("봇", "", "name")))
        self.assertIsNone(self.value("name"))
        self.assert_sums()

    def test_apart(self) -> None:
        """Bots, and scopes of a bot, have values of their own under the same keys."""
        places = [(bot, scope) for bot in ("봇", "봇2") for scope in ("", ROOM, PERSON)]
        for number, (bot, scope) in enumerate(places):
            self.put("key", b"%d" % number, bot, scope)
        found = [self.value("key", bot, scope) for bot, scope in places]
        self.assertEqual(found, [b"%d" % number for number in range(6)])
        self.assert_sums()

    def test_another_server(self) -> None:
        """All servers on the store have the same values; a restart changes none."""
        self.put("key", b'"here"')
        other = BotValues(self.database, self.clock)
        self.assertEqual(self.result(other.get("봇", "", "key")), b'"here"')
        self.assertEqual(self.result(other.incr("봇", "", "count")), 1)
        self.assertEqual(self.result(self.values.incr("봇", "", "count")), 2)
        self.assert_sums()

    def test_keys_are_exact(self) -> None:
        """Keys that a collation takes for the same are different ones."""
        keys = [
            "a",
            "A",
            "a ",
            " a",
            "ａ",
            "\u00e1",
            "a\u0301",
            "가",
            unicodedata.normalize("NFD", "가"),
        ]
        keys += ["a\0", "😀", "%", "_", "x" * MAX_KEY_CHARS, "\U0001f600" * MAX_KEY_CHARS]
        for number, key in enumerate(keys):
            self.put(key, b"%d" % number)
        for number, key in enumerate(keys):
            self.assertEqual(self.value(key), b"%d" % number, repr(key))
        listed = self.result(self.values.keys("봇", ""))
        self.assertEqual(listed, sorted(keys))

    def test_listed(self) -> None:
        """Keys are listed in order, by their beginning, page by page, of one scope."""
        keys = sorted(f"{kind}:{number}" for kind in ("메모", "memo", "m") for number in range(5))
        for key in reversed(keys):
            self.put(key)
        self.put("memo:9", scope=ROOM)
        self.put("memo:9", bot="봇2")
        self.assertEqual(self.result(self.values.keys("봇", "")), keys)
        memos = [key for key in keys if key.startswith("메모")]
        self.assertEqual(self.result(self.values.keys("봇", "", "메모")), memos)
        found: list[str] = []
        while page := self.result(self.values.keys("봇", "", "m", found[-1] if found else None, 3)):
            found += page
        self.assertEqual(found, [key for key in keys if key.startswith("m")])
        self.assertEqual(self.result(self.values.keys("봇", "", "none")), [])

    def test_counts(self) -> None:
        """Numbers are added to, whole ones exactly."""
        incr = self.values.incr
        self.assertEqual(self.result(incr("봇", "", "n")), 1)
        self.assertEqual(self.result(incr("봇", "", "n", MAX_INT - 1)), MAX_INT)
        self.assertEqual(self.value("n"), b"%d" % MAX_INT)
        self.assertEqual(self.result(incr("봇", "", "n", -MAX_INT)), 0)
        self.assertEqual(self.result(incr("봇", "", "n", 0.5)), 0.5)
        self.put("price", b"1.25")
        self.assertEqual(self.result(incr("봇", "", "price")), 2.25)
        self.assert_sums()

    def test_no_numbers(self) -> None:
        """What is no number, or gives none that can be kept, is refused and changes nothing."""
        incr = self.values.incr
        huge = b"1" * 400
        for value, by, error in (
            (b'"1"', 1, BotTypeError),
            (b"true", 1, BotTypeError),
            (b"null", 1, BotTypeError),
            (b"1", True, BotTypeError),
            (b"1", "1", BotTypeError),
            (b"1", float("nan"), BotValueError),
            (b"1", float("inf"), BotValueError),
            (b"1", MAX_INT, BotValueError),
            (b"1", 10**400, BotValueError),
            (b"0.5", 10**400, BotValueError),
            (huge, 0.5, BotValueError),
            (b"1.7e308", 1.7e308, BotValueError),
        ):
            self.put("n", value)
            wrong: Any = by
            self.failureResultOf(incr("봇", "", "n", wrong), error)
            self.assertEqual(self.value("n"), value)

    def test_wrong_keys(self) -> None:
        """What can be no key is refused without the store."""
        self.break_store()
        wrong: Any
        for wrong, error in (
            ("", BotValueError),
            ("\ud800", BotValueError),
            (5, BotTypeError),
            ("x" * (MAX_KEY_CHARS + 1), StorageFull),
        ):
            self.failureResultOf(self.values.get("봇", "", wrong), error)
            self.failureResultOf(self.values.set("봇", "", wrong, b"1"), error)
        self.failureResultOf(self.values.keys("봇", "", "\ud800"), BotValueError)
        for limit in (0, module.MAX_KEYS + 1):
            self.failureResultOf(self.values.keys("봇", "", limit=limit), BotValueError)
        self.assertEqual(self.failures, [])

    @settings(max_examples=20, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["set", "delete", "incr"]),
                st.sampled_from(["a", "b"]),
                st.sampled_from(["", ROOM]),
                st.integers(-3, 3),
            ),
            max_size=12,
        )
    )
    def test_sums(self, steps: list[tuple[str, str, str, int]]) -> None:
        """Whatever is done, values are those of a dictionary, and the sums are right."""
        self.result(self.database.run_write(lambda c: c.execute(BOT_VALUES.delete()) and None))
        self.result(self.database.run_write(lambda c: c.execute(BOT_SUMS.delete()) and None))
        expected: dict[tuple[str, str], int] = {}
        for verb, key, scope, number in steps:
            if verb == "set":
                self.put(key, b"%d" % number, scope=scope)
                expected[scope, key] = number
            elif verb == "delete":
                self.result(self.values.delete("봇", scope, key))
                expected.pop((scope, key), None)
            else:
                self.result(self.values.incr("봇", scope, key, number))
                expected[scope, key] = expected.get((scope, key), 0) + number
        for (scope, key), number in expected.items():
            self.assertEqual(self.value(key, scope=scope), b"%d" % number)
        self.assertEqual(len(self.rows(BOT_VALUES)), len(expected))
        self.assert_sums()

    # Bounds

    def test_large_value(self) -> None:
        """The largest value is kept whole; a larger one is not stored."""
        largest = b'"' + b"x" * (MAX_VALUE_BYTES - 2) + b'"'
        self.put("key", largest)
        self.assertEqual(self.value("key"), largest)
        self.assertIn("65536 bytes", self.full(self.values.set("봇", "", "key", largest + b" ")))
        self.assertEqual(self.value("key"), largest)

    def test_many_values(self) -> None:
        """A bot that has all its values stores no other; it may change and remove those."""
        self.patch(module, "MAX_VALUES", 2)
        for key in "ab":
            self.put(key)
        self.assertIn("2 values", self.full(self.values.set("봇", ROOM, "c", b"1")))
        self.assertIn("2 values", self.full(self.values.incr("봇", "", "c")))
        self.put("b", b"22")
        self.put("c", bot="봇2")
        self.result(self.values.delete("봇", "", "a"))
        self.put("c")
        self.assert_sums()

    def test_many_bytes(self) -> None:
        """A bot that has all its bytes stores no more of them, but may store fewer."""
        self.patch(module, "MAX_BYTES", 100)
        self.put("가", b"1" * 97)
        self.assertIn("100 bytes", self.full(self.values.set("봇", "", "b", b"1")))
        self.assertIn("100 bytes", self.full(self.values.set("봇", "", "가", b"1" * 98)))
        self.put("b", b"1" * 99, bot="봇2")
        self.patch(module, "MAX_BYTES", 50)
        self.put("가", b"1" * 96)
        self.put("가", b"1" * 47)
        self.assert_sums()

    def test_full_bot_is_no_fault_of_the_store(self) -> None:
        """The store's health and errors are not those of a bot that wants too much."""
        self.patch(module, "MAX_VALUES", 0)
        self.full(self.values.set("봇", "", "a", b"1"))
        self.assertIsNone(self.database.health())
        self.assertEqual(self.failures, [])

    # Others that wait

    def test_turns(self) -> None:
        """A bot that asks for much has another one wait for one transaction only."""
        self.patch(module, "BATCH_CALLS", 4)
        answered: list[object] = []
        self.thread.stuck = True
        running = self.values.get("봇", "", "a")
        for _ in range(20):
            self.values.incr("봇", "", "n").addCallback(answered.append)
        self.values.incr("봇2", "", "n").addCallback(lambda _: answered.append("other"))
        self.thread.go_on()
        self.assertIsNone(self.result(running))
        self.assertLess(answered.index("other"), 4)
        answered.remove("other")
        self.assertEqual(answered, list(range(1, 21)))

    def test_order(self) -> None:
        """Each call finds what those before it have stored, also while they wait."""
        self.thread.stuck = True
        asked: list[Deferred[Any]] = [
            self.values.get("봇", "", "a"),
            self.values.set("봇", "", "a", b"1"),
            self.values.get("봇", "", "a"),
            self.values.incr("봇", "", "a"),
            self.values.keys("봇", ""),
            self.values.delete("봇", "", "a"),
            self.values.get("봇", "", "a"),
        ]
        self.thread.go_on()
        answers = [self.result(one) for one in asked]
        self.assertEqual(answers, [None, None, b"1", 2, ["a"], True, None])

    def test_too_many_wait(self) -> None:
        """A bot that does not wait for answers is refused; others are not."""
        self.thread.stuck = True
        asked = [self.values.get("봇", "", "a") for _ in range(MAX_WAITING_CALLS + 1)]
        self.failureResultOf(self.values.get("봇", "", "a"), StoreError)
        other = self.values.get("봇2", "", "a")
        self.thread.go_on()
        for one in (*asked, other):
            self.assertIsNone(self.result(one))

    # Trouble

    def test_store_fails(self) -> None:
        """A store that fails is said to, and works again once it is well."""
        self.put("a")
        self.break_store()
        self.failureResultOf(self.values.set("봇", "", "a", b"2"), StoreError)
        self.failureResultOf(self.values.incr("봇", "", "a"), StoreError)
        self.break_store(False)
        self.assertEqual(self.value("a"), b"1")
        self.assert_sums()

    def test_store_hangs(self) -> None:
        """A call is answered in time; those that had not begun are not carried out later."""
        self.thread.stuck = True
        begun = self.values.set("봇", "", "a", b"1")
        waiting = self.values.set("봇", "", "b", b"1")
        self.clock.advance(ANSWER_SECONDS - 1)
        later = self.values.set("봇", "", "c", b"1")
        self.clock.advance(1)
        for late in (begun, waiting):
            self.failureResultOf(late, StoreError)
        self.assertNoResult(later)
        self.thread.go_on()
        self.result(later)
        self.assertEqual(self.result(self.values.keys("봇", "")), ["a", "c"])
        self.assert_sums()

    def test_stop(self) -> None:
        """What waits is stored; what comes later is refused."""
        self.thread.stuck = True
        asked = [self.values.incr("봇", "", "n") for _ in range(3)]
        stopping = self.values.stop()
        self.failureResultOf(self.values.get("봇", "", "n"), StoreClosed)
        self.assertNoResult(stopping)
        self.thread.go_on()
        self.result(stopping)
        self.assertEqual([self.result(one) for one in asked], [1, 2, 3])
        self.stopped(self.values)

    def test_stop_while_the_store_hangs(self) -> None:
        """The stop waits no longer than the calls do."""
        self.thread.stuck = True
        asked = self.values.get("봇", "", "n")
        stopping = self.values.stop()
        self.clock.advance(ANSWER_SECONDS)
        self.result(stopping)
        self.failureResultOf(asked, StoreError)
