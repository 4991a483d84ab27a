"""What all commands write by: exit statuses, and texts of strangers made harmless."""

from typing import Final

#: Exit statuses of commands; 1 is for what failed, 2 for wrong options.
UNREACHABLE: Final = 3
REFUSED: Final = 4
INTERRUPTED: Final = 130


def printable(text: str) -> str:
    """C{text} without what a terminal would obey: strangers write it."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\ufffd"
        for character in text
    )


def one_line(text: str) -> str:
    """C{text}, L{printable} and in one line."""
    return printable(text).replace("\n", "\ufffd").replace("\t", " ")


def escaped_json(text: str, ascii_only: bool = False) -> str:
    """
    The same value, in a JSON text that a terminal shows and obeys nothing of.

    @param ascii_only: whether nothing else can be shown.
    """

    def shown(piece: str) -> bool:
        return piece.isprintable() and (piece.isascii() or not ascii_only)

    if shown(text):
        return text
    return "".join(piece if shown(piece) else _escape(piece) for piece in text)


def _escape(character: str) -> str:
    """As JSON writes what is not to stand in a text."""
    number = ord(character)
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"


def duration(seconds: float) -> str:
    """About how long something takes, in at most two units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def size(number: float) -> str:
    """About how many bytes."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def milliseconds(seconds: float | None) -> str:
    """A round trip; empty where there is none."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
