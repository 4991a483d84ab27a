"""Tests for L{domaeka.bots.arguments}."""

import functools
import math
import unicodedata
from collections.abc import Callable, Generator
from enum import Enum
from time import process_time
from typing import Annotated, Any, Literal, Optional, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase

from domaeka import BadArguments, breaker
from domaeka.bots.arguments import MAX_DIGITS, MAX_QUOTED_CHARS, Arguments


class Color(Enum):
    RED = "빨강"
    BLUE = "파랑"


class Level(Enum):
    LOW = 1
    HIGH = 2


Size = Literal["small", "Large"]


def arguments(function: Callable[..., object]) -> Arguments:
    """Those of a function that takes more than the context."""
    found = Arguments.of(function)
    assert found is not None
    return found


def roll(ctx: object, sides: int = 6, *, note: str = "") -> Any:
    return sides, note


def paint(ctx: object, color: Color, level: "Level | None", *more: Size) -> Any:
    return color, level, more


def memo(ctx: object, title: str, *, text: str) -> Any:
    return title, text


def words(ctx: object, *words: str) -> Any:
    return words


def mixed(ctx: object, count: Literal["all", 7] | int | None, loud: bool = True) -> Any:
    return count, loud


def number(ctx: object, value: float) -> Any:
    return value


def annotated(ctx: "Unknown", count: Annotated[Optional[int], "how many"] = None) -> Any:  # type: ignore[name-defined]  # noqa: F821, UP045
    return count


class Calls:
    """Handlers that are methods."""

    def method(self, ctx: object, count: int) -> Any:
        return count

    @inlineCallbacks
    def wrapped(self, ctx: object, count: int) -> Generator[Any, Any, Any]:
        yield None
        return count

    def __call__(self, ctx: object, count: int) -> Any:
        return count


@inlineCallbacks
def inline(ctx: object, count: int) -> Generator[Any, Any, Any]:
    yield None
    return count


@breaker("arguments")
async def guarded(ctx: object, count: int) -> Any:
    return count


@functools.cache
def cached(ctx: object, count: int) -> Any:
    return count


def passing_on(function: Callable[..., object]) -> Callable[..., object]:
    """A decorator of an author."""

    @functools.wraps(function)
    def wrapper(ctx: object, *args: Any, **named: Any) -> object:
        return function(ctx, *args, **named)

    return wrapper


class SignatureTests(SynchronousTestCase):
    """The arguments that a function takes."""

    def test_usage(self) -> None:
        """A line shows what must be given, what may be, with defaults, and what may be chosen."""

        choices: Any = Literal["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"]

        def many(ctx: object, of: choices, text: str = "x" * 99) -> None: ...

        for function, usage in (
            (roll, "[sides=6] [note…]"),
            (paint, "<빨강|파랑> [LOW|HIGH] [small|Large…]"),
            (memo, "<title> <text…>"),
            (words, "[words…]"),
            (mixed, "[all|7|count] [loud=예]"),
            (number, "<value>"),
            (annotated, "[count]"),
            (many, f"<a|b|c|d|e|f|g|h|i|j|…> [text={'x' * 49}…]"),
        ):
            self.assertEqual(arguments(function).usage, usage)

    def test_context_alone(self) -> None:
        """A function that takes the context alone, or all that there is, has no arguments."""

        def passes_on_nothing_known(ctx: object, *args: object, **named: object) -> None: ...

        for function in (
            lambda ctx: None,
            lambda *args: None,
            lambda *args, **named: None,
            print,
            passes_on_nothing_known,
            functools.partial(roll, sides=2, note=""),
            functools.wraps(roll)(lambda ctx: None),
        ):
            self.assertIsNone(Arguments.of(cast(Any, function)), function)

    def test_decorators_and_methods(self) -> None:
        """Those of the function count that is called in the end, without what is given before."""
        for function in (
            inline,
            guarded,
            cached,
            Calls(),
            Calls().method,
            Calls().wrapped,
            passing_on(inline),
            functools.partial(inline),
            functools.partial(Calls.method, Calls()),
        ):
            self.assertEqual(arguments(cast(Any, function)).parse("3"), ((3,), {}), function)
        bound = arguments(functools.partial(roll, sides=2))
        self.assertEqual((bound.usage, bound.parse("a b")), ("[note…]", ((), {"note": "a b"})))

    def test_local_names(self) -> None:
        """Annotations that are texts mean what they would in the function's module."""
        function = arguments(paint)
        self.assertEqual(function.parse("red high")[0], (Color.RED, Level.HIGH))

    def test_refused(self) -> None:
        """What cannot be read from a message is refused, with the parameter and its type."""

        def unknown(ctx: object, one: "Unknown") -> None: ...  # type: ignore[name-defined]  # noqa: F821

        def unfit(ctx: object, one: dict[str, int]) -> None: ...

        def unfit_member(ctx: object, one: int | bytes = 1) -> None: ...

        def flag(ctx: object, one: Literal[True]) -> None: ...

        def nothing(ctx: object, one: None) -> None: ...

        def two_tails(ctx: object, *, one: str = "", two: str = "") -> None: ...

        def rest_and_tail(ctx: object, *one: str, two: str = "") -> None: ...

        def number_tail(ctx: object, *, one: int) -> None: ...

        def hole(ctx: object, one: int | None, two: int) -> None: ...

        for function, texts in (
            (unknown, ("'one'", "'Unknown'", "NameError")),
            (unfit, ("'one'", "dict[str, int]")),
            (unfit_member, ("'one'", "int | bytes")),
            (flag, ("'one'", "Literal[True]")),
            (nothing, ("'one'", "None")),
            (two_tails, ("'one'", "'two'")),
            (rest_and_tail, ("'*one'", "'two'")),
            (number_tail, ("'one'", "must be str, not int")),
            (hole, ("'one'", "'two'")),
            (lambda: None, ("no context",)),
            (lambda *, ctx: None, ("no context",)),
        ):
            error = str(self.assertRaises(TypeError, Arguments.of, function))
            self.assertNotIn("\n", error)
            for text in texts:
                self.assertIn(text, error)


class ParseTests(SynchronousTestCase):
    """Arguments read from a text."""

    def called(self, function: Callable[..., object], text: str) -> Any:
        """The answer of a function that is called with the arguments in a text."""
        given, named = arguments(function).parse(text)
        return function(None, *given, **named)

    def refusal(self, function: Callable[..., object], text: str) -> str:
        """The answer for the room."""
        return str(self.assertRaises(BadArguments, arguments(function).parse, text))

    def test_defaults(self) -> None:
        """What is left out has the function's default, or is None where that may be."""
        self.assertEqual(self.called(roll, "  "), (6, ""))
        self.assertEqual(self.called(paint, "BLUE"), (Color.BLUE, None, ()))
        self.assertEqual(self.called(mixed, ""), (None, True))

    def test_tail(self) -> None:
        """The last text is as it was written, but for the white space around it."""
        self.assertEqual(self.called(roll, ' 20  a  "b"\n c\t\n'), (20, 'a  "b"\n c'))
        self.assertEqual(self.called(memo, "'두 말' 값"), ("두 말", "값"))
        self.assertIn("text", self.refusal(memo, "title "))

    def test_quotes(self) -> None:
        """Quotes group words; one within a word, or not closed, is a character."""
        for text, expected in (
            ("\"a b\" 'c d' “e f” ‘g h’", ("a b", "c d", "e f", "g h")),
            ('it\'s 5" "a', ("it's", '5"', '"a')),
            ("'it's fine' x", ("it's fine", "x")),
            ('"a"b c"', ('a"b c',)),
            ("\"\" ''", ("", "")),
            ('“a" b”\n\n‘c', ('a" b', "‘c")),
            ("\u3000a\u00a0b", ("a", "b")),
            ('"', ('"',)),
        ):
            self.assertEqual(self.called(words, text), expected, text)

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9)))
    def test_quoted_words_come_back(self, given: list[str]) -> None:
        """Whatever was put between quotes comes back, unless it has a quote that ends it."""
        given = [word for word in given if '"' not in word]
        text = " ".join(f'"{word}"' for word in given)
        self.assertEqual(self.called(words, text), tuple(given))

    @given(st.text("a \n\"'“”‘’\u3000"))
    def test_nothing_is_lost(self, text: str) -> None:
        """Words are the text without white space around them, and the quotes of groups."""
        found = self.called(words, text)
        kept = "".join("".join(found).split())
        whole = "".join(text.split())
        dropped = len(whole) - len(kept)
        self.assertEqual(dropped % 2, 0)
        self.assertLessEqual(dropped, 2 * len(found))
        left = iter(whole)
        self.assertTrue(all(sign in left for sign in kept))

    def test_whole_numbers(self) -> None:
        """Full-width digits are numbers; what Python alone would read, or read slowly, is not."""
        for text, value in (
            ("7", 7),
            ("-7", -7),
            ("+7", 7),
            ("１２", 12),
            ("－３", -3),
            ("007", 7),
        ):
            self.assertEqual(self.called(roll, text), (value, ""))
        longest = "9" * MAX_DIGITS
        self.assertEqual(self.called(roll, longest), (int(longest), ""))
        for text in ("1_000", "0x10", "5²", "①", "٣", "7.0", longest + "9", "9" * 10**6, "-", "칠"):
            self.assertIn("정수", self.refusal(roll, text))

    @given(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
    def test_any_number(self, whole: int, value: float) -> None:
        """Each number is read as Python writes it."""
        self.assertEqual(self.called(number, str(value)), value)
        self.assertEqual(self.called(number, f"{whole}"), float(whole))

    def test_numbers(self) -> None:
        """A number is finite."""
        self.assertEqual(self.called(number, "１．５"), 1.5)
        self.assertTrue(math.isclose(self.called(number, "-.5e1"), -5.0))
        for text in ("nan", "inf", "-Infinity", "1e999", "1_0.0", "1e", ".", "0" * 10**6, ""):
            self.assertIn("value", self.refusal(number, text or '""'))

    def test_booleans(self) -> None:
        """Yes and no, in Korean and English."""
        decomposed = unicodedata.normalize("NFD", "아니오")
        for text, value in (
            *((word, True) for word in ("예", "참", "네", "true", "ON", "Yes", "1", "１")),
            *((word, False) for word in ("아니오", decomposed, "거짓", "False", "off", "NO", "0")),
        ):
            self.assertEqual(self.called(mixed, f"1 {text}"), (1, value))
        self.assertIn("예, 아니오", self.refusal(mixed, "1 maybe"))

    def test_choices(self) -> None:
        """A choice is found in any case and width; of two that differ in that, as written."""

        def choose(ctx: object, one: Literal["a", "A", 1]) -> object:
            return one

        for text, value in (("a", "a"), ("A", "A"), ("ａ", "a"), ("1", 1), ("１", 1)):
            self.assertEqual(self.called(choose, text), value)
        for text in ("빨강", "RED", "red", unicodedata.normalize("NFD", "빨강")):
            self.assertEqual(self.called(paint, text)[0], Color.RED)
        self.assertEqual(
            self.called(paint, "red 2 SMALL large"),
            (
                Color.RED,
                Level.HIGH,
                ("small", "Large"),
            ),
        )
        answer = self.refusal(paint, "초록")
        self.assertIn("“초록”", answer)
        self.assertIn("빨강, 파랑 가운데 하나", answer)
        self.assertIn("초록", self.refusal(paint, f"{'초록' * 10**5}"))

    def test_unions(self) -> None:
        """The first type that fits counts; a text fits last."""

        def either(ctx: object, one: str | int) -> object:
            return one

        self.assertEqual(self.called(mixed, "ALL off"), ("all", False))
        self.assertEqual(self.called(mixed, "8"), (8, True))
        self.assertEqual([self.called(either, text) for text in ("8", "여덟")], [8, "여덟"])
        self.assertIn("all, 7 가운데 하나 또는 정수", self.refusal(mixed, "none"))

    def test_too_many_and_too_few(self) -> None:
        """The answer says which is missing, or where the text that is too much begins."""
        self.assertIn("title", self.refusal(memo, ""))
        self.assertIn("“c d”", self.refusal(mixed, "1 1 c d"))

    def test_answer_is_short(self) -> None:
        """A quoted text is cut, and stays in its line."""
        answer = self.refusal(mixed, "1 1 \u202e a\n" + "긴 글 " * 10_000)
        self.assertIn("…”", answer)
        self.assertNotIn("\n", answer)
        self.assertNotIn("\u202e", answer)
        self.assertLess(len(answer), MAX_QUOTED_CHARS + 40)

    def test_linear_time(self) -> None:
        """Eight times the text takes no 30 times as long, whatever quotes are open in it."""
        parse = arguments(words).parse
        for hostile in ('"a ', "'a “b ‘c ", " \n", "a' "):

            def seconds(count: int, hostile: str = hostile) -> float:
                text = '"' + hostile * (count // len(hostile)) + "x"
                began = process_time()
                parse(text)
                return process_time() - began

            short = min(seconds(5_000) for _ in range(5))
            long = min(seconds(40_000) for _ in range(3))
            self.assertLess(long, 30 * max(short, 0.001), hostile)
