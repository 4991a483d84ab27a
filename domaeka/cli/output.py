"""Output of all commands: exit statuses, and texts of strangers made harmless."""

import sys
from typing import Final
from unicodedata import category

#: Exit statuses of commands; 1 is also for all other failures, 2 is for wrong options.
ALL_ANSWERED: Final = 0
UNANSWERED: Final = 1
UNREACHABLE: Final = 3
REFUSED: Final = 4
INTERRUPTED: Final = 130


#: Categories of Unicode that a terminal obeys, or that change where text is shown: control
#: characters (C0, DEL, C1), marks of direction and other formats, halves of surrogate pairs,
#: separators of lines and paragraphs.
_OBEYED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: Those of them that are harmless: the joiners are in emoji and in some scripts.
_HARMLESS: Final = frozenset("\n\t\u200c\u200d")


def printable(text: str) -> str:
    """
    C{text} without what a terminal would obey: strangers write it, and a pipe may end in a
    terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        "\ufffd" if category(each) in _OBEYED and each not in _HARMLESS else each for each in text
    )


def one_line(text: str) -> str:
    """C{text}, in one line, and without what a terminal obeys or does not show."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else " " if each == "\t" else "\ufffd" for each in text
    )


def shows_unicode() -> bool:
    """True if standard output takes more than ASCII."""
    return sys.stdout.encoding.lower().startswith("utf")


def escaped_json(text: str, ascii_only: bool = False) -> str:
    """
    The same JSON value, with all characters escaped that a terminal would obey or not show.

    @param ascii_only: true to escape all but ASCII.
    """

    def shown(piece: str) -> bool:
        return piece.isprintable() and (piece.isascii() or not ascii_only)

    if shown(text):
        return text
    return "".join(piece if shown(piece) else _escape(piece) for piece in text)


def _escape(character: str) -> str:
    """JSON's escape for a character."""
    number = ord(character)
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"


def duration(seconds: float) -> str:
    """A duration, rounded to at most two units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def size(number: float) -> str:
    """A number of bytes, rounded."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def milliseconds(seconds: float | None) -> str:
    """A round trip; empty if there is none."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
