"""
Tracebacks for the log: the bot's own lines first, and nothing in them that may be chat.

An error's text may quote chat, as that of C{int("what was written")} does.  So it is shown only if
its words are known: L{own_text}.  Lines of source code are always shown.
"""

import functools
import inspect
import linecache
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, Final, NamedTuple, TypeAlias

from domaeka.errors import BotError

#: Longest traceback, in characters.  One that is longer even with the bot's calls alone keeps its
#: beginning and, twice as long, its end.
MAX_TRACEBACK_CHARS: Final = 16_000
#: Most errors of a traceback: those of its chain, and those in groups; the last ones count.
MAX_ERRORS: Final = 20
#: Most groups in one another.
_MAX_DEPTH: Final = 5
#: Most calls of one error: ten times what Python allows by default.
_MAX_CALLS: Final = 10_000
#: Repetitions of calls that are shown, as Python does, and most calls of a repetition.
_REPEATS_SHOWN: Final = 3
_MAX_CYCLE: Final = 8
#: Longest text of an error, and longest line of source code, in characters.
_MAX_TEXT_CHARS: Final = 1_000_000
_MAX_SOURCE_CHARS: Final = 200

_CAUSE: Final = "The above exception was the direct cause of the following exception:"
_CONTEXT: Final = "During handling of the above exception, another exception occurred:"

_OUR_CODE: Final = str(Path(__file__).parent) + os.sep
_PYTHONS_CODE: Final = tuple({sysconfig.get_path(n) + os.sep for n in ("stdlib", "platstdlib")})
_INSTALLED: Final = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))

#: Python's error for a call with wrong arguments: the function's name, then fixed words.
_WRONG_CALL: Final = re.compile(
    r"([\w.<>]{1,200})\(\) (takes (?:from \d{1,3} to )?\d{1,3} positional arguments? but \d{1,3} "
    r"(?:was|were) given|missing \d{1,3} required (?:positional|keyword-only) arguments?)(?=:|$)"
)
#: asyncio's error where its event loop does not run, or not in this thread.
_WRONG_LOOP: Final = re.compile(
    r"no running event loop|There is no current event loop in thread(?= ')"
    r"|asyncio\.run\(\) cannot be called from a running event loop"
    r"|This event loop is already running|await wasn't used with future"
    r"|Timeout (?:context manager )?should be used inside a task"
)

#: Given an error and the qualified name of the function that was called, the text to show.
TextOf: TypeAlias = Callable[[BaseException, str], str]


def whole_text(error: BaseException, name: str = "") -> str:
    """The whole text of an error, its notes included."""
    try:
        texts = [str(error), *map(str, getattr(error, "__notes__", ()))]
    except Exception as another:
        return f"(no text: {type(another).__name__})"
    return "\n".join(texts).rstrip()[-_MAX_TEXT_CHARS:]


def own_text(error: BaseException, name: str = "") -> str:
    """
    The text of an error, if all its words are known not to be chat: that of L{BotError}, the
    system's text for an error's number, and a few fixed sentences of Python's about calls and event
    loops.  Only the fixed words of these are taken over, so that not even an error made to look
    like one gives anything away.

    @param name: the qualified name of the function that was called, known from its code.
    @return: empty for any other error.
    """
    if isinstance(error, BotError):
        return str(error)
    if isinstance(error, OSError) and type(error.errno) is int:
        return os.strerror(error.errno)  # without the path
    text = error.args[0] if len(error.args) == 1 and type(error.args[0]) is str else ""
    if type(error) is TypeError and (found := _WRONG_CALL.match(text)):
        return f"{name if found[1] == name else '…'}() {found[2]}"
    if type(error) is RuntimeError and (found := _WRONG_LOOP.match(text)):
        return found[0]
    return ""


def said_in_short(
    error: BaseException, text_of: TextOf, function: Callable[..., object] | None = None
) -> str:
    """An error's type, and its text as far as C{text_of} shows it, after a call of C{function}."""
    return _said(error, text_of, _name_of(code_of(function)))


def _name_of(code: CodeType | None) -> str:
    return "" if code is None else code.co_qualname


def _said(error: BaseException, text_of: TextOf, name: str) -> str:
    kind = type(error)
    module = kind.__module__
    named = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    text = text_of(error, name)
    return f"{named}: {text}" if text else named


def code_of(function: Callable[..., object] | None) -> CodeType | None:
    """The code of C{function} without its wrappers, if it is written in Python."""
    found: Any = function
    while isinstance(found, functools.partial):
        found = found.func
    try:
        found = inspect.unwrap(found)
    except ValueError:  # it is wrapped around itself
        return None
    if not inspect.isroutine(found):  # an object that can be called
        found = type(found).__call__
    code = getattr(found, "__code__", None)
    return code if isinstance(code, CodeType) else None


def traceback_text(
    error: BaseException,
    text_of: TextOf,
    traceback: TracebackType | None = None,
    function: Callable[..., object] | None = None,
) -> str:
    """
    An error's traceback as Python prints it, but it begins with the bot's own first call, and the
    calls before that follow the error.  An error at the call of C{function} itself begins with the
    place where that is defined.

    @param text_of: gives the text to show of each error.
    @param traceback: where C{error} has lost its own.
    @return: L{MAX_TRACEBACK_CHARS} at most; calls of libraries are left out of a longer one first.
    """
    linecache.checkcache()  # a bot may have been imported anew
    text = ""
    for whole in (True, False):
        writer = _Writer(text_of, function, whole)
        text = "\n".join(writer.lines(error, traceback or error.__traceback__))
        if len(text) <= MAX_TRACEBACK_CHARS:
            break
    return shorten(text)


def shorten(text: str) -> str:
    """C{text}, cut in its middle to L{MAX_TRACEBACK_CHARS}."""
    if len(text) <= MAX_TRACEBACK_CHARS:
        return text
    third = (MAX_TRACEBACK_CHARS - 100) // 3
    left_out = len(text) - 3 * third
    return f"{text[:third]}\n… {left_out} characters left out …\n{text[-2 * third :]}"


class _Call(NamedTuple):
    """A line of a traceback."""

    file: str
    line: int
    name: str
    is_bots: bool


class _Writer:
    """Writes one traceback."""

    def __init__(
        self, text_of: TextOf, function: Callable[..., object] | None, whole: bool
    ) -> None:
        """@param whole: true to show calls of libraries."""
        self._text_of = text_of
        self._whole = whole
        code = code_of(function)
        ours = code is None or code.co_filename.startswith(_OUR_CODE)
        self._code = None if ours else code
        self._package = "" if ours else _top(getattr(function, "__module__", None))
        self._name = _name_of(code)
        self._left = MAX_ERRORS

    def lines(
        self, error: BaseException, traceback: TracebackType | None, depth: int = 0
    ) -> Iterator[str]:
        """The whole traceback: causes first, then C{error}, then its members if it is a group."""
        for number, (words, one) in enumerate(self._chain(error)):
            if words:
                yield from ("", words, "") if number else (words, "")
            calls = list(self._calls(traceback if one is error else one.__traceback__))
            if isinstance(one, SyntaxError) and os.path.isfile(one.filename or ""):
                calls.append(_Call(str(one.filename), one.lineno or 0, "", True))
            first = next((at for at, call in enumerate(calls) if call.is_bots), None)
            if first is None and one is error and not depth and self._code is not None:
                code = self._code
                first = len(calls)
                calls.append(_Call(code.co_filename, code.co_firstlineno, code.co_name, True))
            if calls:
                yield "Traceback (most recent call last):"
            yield from self._shown(calls[first or 0 :], self._whole or first is None)
            yield _said(one, self._text_of, self._name)
            if isinstance(one, BaseExceptionGroup):
                yield from self._parts(one, depth)
            if first and self._whole:
                yield "It came there by way of:"
                yield from self._shown(calls[:first], True)

    def _parts(self, group: BaseExceptionGroup[Any], depth: int) -> Iterator[str]:
        """The errors in a group, each behind its number."""
        for number, part in enumerate(group.exceptions, 1):
            if not self._left or depth == _MAX_DEPTH:
                yield f"  … {len(group.exceptions) - number + 1} more left out …"
                return
            yield f"  ---- {number} of {len(group.exceptions)} ----"
            for line in self.lines(part, part.__traceback__, depth + 1):
                yield f"  {line}"

    def _chain(self, error: BaseException) -> list[tuple[str, BaseException]]:
        """An error and its causes, the first one first, each after the words that link them."""
        chain: list[BaseException] = []
        words = []
        seen = set()
        one: BaseException | None = error
        while one is not None and id(one) not in seen:
            seen.add(id(one))
            chain.append(one)
            self._left = max(0, self._left - 1)
            if one.__cause__ is not None:
                words.append(_CAUSE)
                one = one.__cause__
            elif one.__context__ is not None and not one.__suppress_context__:
                words.append(_CONTEXT)
                one = one.__context__
            else:
                one = None
            if one is not None and not self._left:
                words[-1] = "… what led to this is left out …"
                break
        words.append("")
        return list(zip(words, chain, strict=False))[::-1]

    def _calls(self, traceback: TracebackType | None) -> Iterator[_Call]:
        left = _MAX_CALLS
        while traceback is not None and left:
            code = traceback.tb_frame.f_code
            module = traceback.tb_frame.f_globals.get("__name__")
            is_bots = not _is_library(code.co_filename) or (
                bool(self._package) and _top(module) == self._package
            )
            yield _Call(code.co_filename, traceback.tb_lineno or 0, code.co_name, is_bots)
            traceback = traceback.tb_next
            left -= 1

    def _shown(self, calls: list[_Call], libraries: bool) -> Iterator[str]:
        """Each call with its line of source code."""
        for shown, some in groupby(calls, lambda call: libraries or call.is_bots):
            if not shown:
                yield f"  … {len(list(some))} calls of libraries left out …"
                continue
            for block, times in _repeats(list(some)):
                for call in block * min(times, _REPEATS_SHOWN):
                    yield from _lines_of(call)
                if times > _REPEATS_SHOWN:
                    lines = "line" if len(block) == 1 else f"{len(block)} lines"
                    yield f"  [Previous {lines} repeated {times - _REPEATS_SHOWN} more times]"


def _repeats(calls: list[_Call]) -> Iterator[tuple[list[_Call], int]]:
    """Cut C{calls} into sequences that repeat themselves, and single calls."""
    at = 0
    while at < len(calls):
        for size in range(1, _MAX_CYCLE + 1):
            block = calls[at : at + size]
            times = 1
            while calls[at + times * size : at + (times + 1) * size] == block:
                times += 1
            if times > _REPEATS_SHOWN:
                break
        else:
            block, times = calls[at : at + 1], 1
        yield block, times
        at += len(block) * times


def _lines_of(call: _Call) -> Iterator[str]:
    place = f'  File "{call.file}", line {call.line}'
    yield f"{place}, in {call.name}" if call.name else place
    source = linecache.getline(call.file, call.line).strip()[:_MAX_SOURCE_CHARS]
    if source:
        yield f"    {source}"


def _is_library(file: str) -> bool:
    """True for code that is ours, Python's, or installed: not a bot's beside the server."""
    return file.startswith(("<", _OUR_CODE, *_PYTHONS_CODE)) or any(
        name in file for name in _INSTALLED
    )


def _top(module: object) -> str:
    """The package that a module is in."""
    return module.partition(".")[0] if isinstance(module, str) else ""
