"""The arguments of a command, read from its message as the signature of its function says."""

import functools
import inspect
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from types import FunctionType, NoneType, SimpleNamespace, UnionType
from typing import Any, Final, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from domaeka import texts_ko
from domaeka.errors import DomaekaError

#: Most digits of a number: to read a longer one takes time that grows with the square of them.
MAX_DIGITS: Final = 100
#: Longest part of a message that an answer quotes, in characters.
MAX_QUOTED_CHARS: Final = 50
#: Most choices that a usage line, or an answer, lists.
MAX_LISTED: Final = 10

#: Quotes that group words: each with the one that ends the group.
_QUOTES: Final = {'"': '"', "'": "'", "“": "”", "‘": "’"}
_GROUP_ENDS: Final = {end: re.compile(rf"{end}(?=\s|\Z)") for end in _QUOTES.values()}
_WORD: Final = re.compile(r"\S+")
_SPACE: Final = re.compile(r"\s*")
#: The full-width forms of ASCII.  All of NFKC would read "5²" as 52.
_NARROW: Final = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}
_INT: Final = re.compile(rf"[+-]?[0-9]{{1,{MAX_DIGITS}}}")
_FLOAT: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
#: Longest number as a text: digits, a sign, a point, an exponent.
_MAX_NUMBER_CHARS: Final = MAX_DIGITS + 7
_BOOLS: Final = {
    **dict.fromkeys(("예", "네", "참", "켬", "켜기", "true", "on", "yes", "y", "1"), True),
    **dict.fromkeys(
        ("아니오", "아니요", "거짓", "끔", "끄기", "false", "off", "no", "n", "0"), False
    ),
}
#: Marks the parameter that must be given.
_REQUIRED: Final = inspect.Parameter.empty


class BadArguments(DomaekaError):
    """
    The arguments of a command do not fit.  A command may raise it, too.

    Its text is for the room, and stands before the command's usage; empty: the usage alone.
    """


class _Kind(NamedTuple):
    """
    A type that a word may have.

    @ivar wanted: its name, for the room.
    @ivar read: gives the value of a word.  @raise ValueError: it has none.
    @ivar choices: all values as they are written; empty: they are not listed.
    """

    wanted: str
    read: Callable[[str], object]
    choices: tuple[str, ...] = ()


class _Parameter(NamedTuple):
    """
    A parameter that is read from a message.

    @ivar default: L{_REQUIRED}: it must be given.
    @ivar implied: true if L{None} is passed where it is left out, for the function has no default.
    """

    name: str
    kinds: tuple[_Kind, ...]
    default: object
    implied: bool = False

    @property
    def wanted(self) -> str:
        """The values that fit, for the room."""
        return texts_ko.ARGUMENT_OR.join(kind.wanted for kind in self.kinds)

    def read(self, word: str) -> object:
        """The value of a word.  @raise BadArguments: it does not fit."""
        for kind in self.kinds:
            try:
                return kind.read(word)
            except ValueError:
                continue
        raise BadArguments(
            texts_ko.ARGUMENT_UNFIT.format(name=self.name, given=_quoted(word), wanted=self.wanted)
        )

    def missing(self) -> BadArguments:
        """The error where it is left out."""
        return BadArguments(texts_ko.ARGUMENT_MISSING.format(name=self.name, wanted=self.wanted))

    def usage(self, more: str = "") -> str:
        """Its part of the usage line.  @param more: stands behind its name."""
        parts = [part for kind in self.kinds for part in kind.choices]
        if any(not kind.choices for kind in self.kinds):
            parts.append(self.name)
        shown = _listed(parts, "|") + more
        if self.default is _REQUIRED:
            return f"<{shown}>"
        default = "" if more else _shown(self.default)
        return f"[{shown}={default}]" if default else f"[{shown}]"


class Arguments:
    """
    The arguments that a function takes behind its context.

    @ivar usage: them in a line, without the command's name: C{<required>}, C{[optional=default]},
        C{[several…]}, and choices as C{a|b|c}; empty if there are none.
    """

    def __init__(
        self,
        positional: Sequence[_Parameter],
        rest: _Parameter | None = None,
        tail: _Parameter | None = None,
    ) -> None:
        """
        @param positional: those that take a word each.
        @param rest: takes all further words.
        @param tail: takes the text behind the words, as it was written.
        """
        self._positional = tuple(positional)
        self._rest = rest
        self._tail = tail
        last = [one.usage("…") for one in (rest, tail) if one is not None]
        self.usage = " ".join([*(one.usage() for one in positional), *last])

    @classmethod
    def of(cls, function: Callable[..., object]) -> "Arguments | None":
        """
        The arguments by a function's signature.

        Its first parameter is the context.  A function that takes any arguments (C{**named}) passes
        them on: those of the function that it wraps count.

        @return: L{None} if it takes the context alone.
        @raise TypeError: a parameter cannot be read from a message.  The text is one line that
            goes on behind the function's name.
        """
        parameters, names = _parameters(function)
        if not parameters:
            raise TypeError("takes no context")
        context, *others = parameters
        if context.kind is context.KEYWORD_ONLY:
            raise TypeError("takes no context: its first parameter is keyword-only")
        if context.kind is context.VAR_POSITIONAL or not others:
            return None
        if any(one.kind is one.VAR_KEYWORD for one in others):
            return None  # it wraps a function that nobody can see
        positional: list[_Parameter] = []
        rest = tail = None
        for one in others:
            if one.kind is one.VAR_POSITIONAL:
                kinds, _ = _kinds(one, names)
                rest = _Parameter(one.name, kinds, ())
            elif one.kind is not one.KEYWORD_ONLY:
                positional.append(_positional(one, names, positional))
            elif tail is not None:
                raise TypeError(
                    f"has the keyword-only parameters {tail.name!r} and {one.name!r}: only one can "
                    "take the rest of the text"
                )
            elif rest is not None:
                raise TypeError(
                    f"has the parameters '*{rest.name}' and {one.name!r}: only one can take the "
                    "rest of the text"
                )
            else:
                tail = _tail(one, names)
        return cls(positional, rest, tail)

    def parse(self, text: str) -> tuple[tuple[object, ...], dict[str, object]]:
        """
        Read the arguments from the text behind a command, in time that grows with its length.

        Words are set apart by white space.  Quotes around some make them one, without the quotes;
        a quote within a word, or one that is not closed, is a character.

        @return: what the function is given behind its context: arguments, and those by name.  Those
            that are left out have the function's own defaults.
        @raise BadArguments: they do not fit.
        """
        words = _Words(text)
        values: list[object] = []
        for one in self._positional:
            word = words.next()
            if word is not None:
                values.append(one.read(word))
            elif one.default is _REQUIRED:
                raise one.missing()
            elif one.implied:
                values.append(None)
        if self._rest is not None:
            while (word := words.next()) is not None:
                values.append(self._rest.read(word))
        left = words.left()
        if self._tail is None:
            if left:
                raise BadArguments(texts_ko.ARGUMENTS_TOO_MANY.format(given=_quoted(left)))
            return tuple(values), {}
        if left:
            return tuple(values), {self._tail.name: left}
        if self._tail.default is _REQUIRED:
            raise self._tail.missing()
        return tuple(values), {self._tail.name: None} if self._tail.implied else {}


class _Words:
    """The words of a text, one after the other."""

    def __init__(self, text: str) -> None:
        self._text = text.strip()
        self._at = 0
        self._unclosed: set[str] = set()  # ends of groups that do not come any more

    def next(self) -> str | None:
        """The next word; L{None}: there is none."""
        start = self._at
        text = self._text
        if start == len(text):
            return None
        end = _QUOTES.get(text[start])
        # It is searched for in vain only once, so that many open quotes take no longer than one.
        if end is not None and end not in self._unclosed:
            found = _GROUP_ENDS[end].search(text, start + 1)
            if found is not None:
                self._go_to(found.end())
                return text[start + 1 : found.start()]
            self._unclosed.add(end)
        word = _WORD.match(text, start)
        assert word is not None
        self._go_to(word.end())
        return word[0]

    def left(self) -> str:
        """The text behind the words that were taken."""
        return self._text[self._at :]

    def _go_to(self, end: int) -> None:
        space = _SPACE.match(self._text, end)
        assert space is not None
        self._at = space.end()


# The signature


def _parameters(function: Any) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """The parameters that count, and the names that their annotations may use."""
    if isinstance(function, functools.partial):
        inner, names = _parameters(function.func)

        def stand_in() -> None: ...

        stand_in.__signature__ = inspect.Signature(inner)  # type: ignore[attr-defined]
        bound = functools.partial(stand_in, *function.args, **function.keywords)
        found = inspect.signature(bound).parameters.values()
        return [one for one in found if one.name not in function.keywords], names
    target = function
    if not (inspect.isroutine(function) or isinstance(function, type)):
        call = type(function).__call__
        target = call.__get__(function) if isinstance(call, FunctionType) else function
    own = target.__func__ if inspect.ismethod(target) else target
    try:
        parameters = list(inspect.signature(target, follow_wrapped=False).parameters.values())
    except ValueError:  # functools.cache, which passes on all; or not written in Python
        parameters = [inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL)]
        passes_on = True
    else:
        passes_on = any(one.kind is one.VAR_KEYWORD for one in parameters)
    if passes_on and hasattr(own, "__wrapped__"):
        parameters, names = _parameters(own.__wrapped__)
        return parameters[1:] if own is not target else parameters, names
    written = vars(function).get("__init__") if isinstance(function, type) else own
    return parameters, getattr(written, "__globals__", {})


def _positional(
    parameter: inspect.Parameter, names: dict[str, Any], before: Iterable[_Parameter]
) -> _Parameter:
    """@raise TypeError: it cannot be read from a message."""
    kinds, optional = _kinds(parameter, names)
    implied = optional and parameter.default is _REQUIRED
    default = None if implied else parameter.default
    if default is _REQUIRED:
        for one in before:
            if one.default is not _REQUIRED:
                raise TypeError(
                    f"has the required parameter {parameter.name!r} behind {one.name!r}, which may "
                    "be left out"
                )
    return _Parameter(parameter.name, kinds, default, implied)


def _tail(parameter: inspect.Parameter, names: dict[str, Any]) -> _Parameter:
    """@raise TypeError: it is no text."""
    kinds, optional = _kinds(parameter, names)
    if kinds != (_STR,):
        raise TypeError(
            f"has the keyword-only parameter {parameter.name!r}, which takes the rest of the text: "
            f"it must be str, not {_name_of(parameter)}"
        )
    implied = optional and parameter.default is _REQUIRED
    return _Parameter(parameter.name, kinds, None if implied else parameter.default, implied)


# Types


def _kinds(parameter: inspect.Parameter, names: dict[str, Any]) -> tuple[tuple[_Kind, ...], bool]:
    """
    The types that a parameter may have, and true if L{None} is among them.

    @raise TypeError: one cannot be read from a message.
    """
    annotation: Any = str if parameter.annotation is parameter.empty else parameter.annotation
    try:
        annotation = get_type_hints(SimpleNamespace(__annotations__={"one": annotation}), names)[
            "one"
        ]
    except Exception as error:  # it may be any code
        raise TypeError(
            f"has the parameter {parameter.name!r}, whose annotation {_name_of(parameter)} cannot "
            f"be resolved: {type(error).__name__}: {error}"
        ) from None
    union = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if union else (annotation,)
    kinds: list[_Kind] = []
    for member in members:
        if member is NoneType and len(members) > 1:
            continue
        kind = _kind(member)
        if kind is None:
            raise TypeError(
                f"has the parameter {parameter.name!r} of the type {_name_of(parameter)}: it must "
                "be str, int, float, bool, a Literal of texts and whole numbers, an Enum, or a "
                "union of these and None"
            )
        kinds.append(kind)
    # Every word is a text.
    kinds.sort(key=lambda kind: kind is _STR)
    return tuple(kinds), NoneType in members


def _name_of(parameter: inspect.Parameter) -> str:
    """The type of a parameter, as it was written, in one line."""
    return _one_line(inspect.formatannotation(parameter.annotation), 100)


def _kind(annotation: Any) -> _Kind | None:
    if isinstance(annotation, type) and annotation in _SIMPLE:
        return _SIMPLE[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Enum) and annotation.__members__:
        members = annotation.__members__.items()
        values = {str(one.value): one for _, one in members if _is_choice(one.value)}
        shown = (_shown(one) for one in annotation)
        return _choice(values | dict(members), shown)
    if get_origin(annotation) is Literal and all(map(_is_choice, get_args(annotation))):
        choices = {str(value): value for value in get_args(annotation)}
        return _choice(choices, choices)
    return None


def _is_choice(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _choice(values: dict[str, Any], shown: Iterable[str]) -> _Kind:
    """
    A choice of C{values}, by their names, in any case and width; where two are the same but for
    that, each as it is written.
    """
    folded: dict[str, object] = {}
    for name, value in values.items():
        folded.setdefault(_folded(name), value)

    longest = max(map(len, folded))

    def read(word: str) -> object:
        if word in values:
            return values[word]
        return _looked_up(word, folded, longest)

    choices = tuple(_one_line(one, MAX_QUOTED_CHARS) for one in shown)
    return _Kind(texts_ko.ARGUMENT_CHOICE.format(_listed(choices, ", ")), read, choices)


def _looked_up(word: str, folded: dict[str, Any], longest: int) -> object:
    """@param longest: the length of the longest in C{folded}, in characters."""
    # Decomposed Hangul has three characters for one; a word that is far longer is not folded.
    if len(word) > 3 * longest or (key := _folded(word)) not in folded:
        raise ValueError
    return folded[key]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _read_bool(word: str) -> object:
    return _looked_up(word, _BOOLS, 5)


def _read_int(word: str) -> object:
    return int(_number(word, _INT))


def _read_float(word: str) -> object:
    value = float(_number(word, _FLOAT))
    if not math.isfinite(value):
        raise ValueError
    return value


def _number(word: str, pattern: re.Pattern[str]) -> str:
    """@raise ValueError: it is no number, or too long."""
    if len(word) > _MAX_NUMBER_CHARS:
        raise ValueError
    word = word.translate(_NARROW)
    if pattern.fullmatch(word) is None:
        raise ValueError
    return word


_STR: Final = _Kind(texts_ko.ARGUMENT_STR, lambda word: word)
_SIMPLE: Final = {
    str: _STR,
    int: _Kind(texts_ko.ARGUMENT_INT, _read_int),
    float: _Kind(texts_ko.ARGUMENT_FLOAT, _read_float),
    bool: _Kind(texts_ko.ARGUMENT_BOOL, _read_bool),
}


# Texts


def _shown(value: object) -> str:
    """A default or a choice as it is written in a chat; empty: it has no such form."""
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) and value.value else value.name
    if isinstance(value, bool):
        return texts_ko.ARGUMENT_TRUE if value else texts_ko.ARGUMENT_FALSE
    if isinstance(value, str | int | float):
        return _one_line(str(value), MAX_QUOTED_CHARS)
    return ""


def _listed(parts: Sequence[str], between: str) -> str:
    more = [] if len(parts) <= MAX_LISTED else ["…"]
    return between.join([*parts[:MAX_LISTED], *more])


def _quoted(text: str) -> str:
    return f"“{_one_line(text, MAX_QUOTED_CHARS)}”"


def _one_line(text: str, chars: int) -> str:
    """C{text}, cut to so many characters, without line breaks and such."""
    cut = text[: chars + 1]
    if len(cut) > chars:
        cut = cut[: chars - 1] + "…"
    return "".join(sign if sign.isprintable() else " " for sign in cut)
