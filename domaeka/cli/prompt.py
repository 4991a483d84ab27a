"""A line of input at the bottom of a terminal: keys in, lines and what to draw out."""

import codecs
from typing import Final

from rich.cells import cell_len

from domaeka.messages import MAX_TEXT_CHARS

#: Lines that are remembered for the arrow keys.
_HISTORY: Final = 200
#: Longest sequence that a key sends, in characters; what is longer is no key.
_MAX_SEQUENCE: Final = 16
#: Back to the left edge, and nothing left of the line.
ERASE: Final = "\r\x1b[2K"


class LineEditor:
    """
    Edit one line, of which wide characters may be part.

    @ivar ended: whether the user wants no more: Ctrl-C, or Ctrl-D in an empty line.
    """

    def __init__(self, prompt: str, width: int = 80) -> None:
        """
        @param prompt: what stands before the line.
        @param width: of the terminal, in cells.
        """
        self.prompt = prompt
        self.width = width
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._sequence = ""  # of a key, as far as it has come
        self._text = ""
        self._cursor = 0
        self._history: list[str] = []
        self._place = 0  # in the history; its length: the line that is being written

    def feed(self, data: bytes) -> list[str]:
        """
        Keys were pressed.

        @return: the lines that were entered.
        """
        entered = []
        for key in self._decoder.decode(data):
            if self.ended:
                break
            if self._sequence:
                self._sequence_key(key)
            elif key == "\x1b":
                self._sequence = key
            elif key in "\r\n":
                entered.append(self._enter())
            elif key < " " or key == "\x7f":
                self._control_key(key)
            elif key.isprintable() or not key.isascii():
                self._insert(key)
        return [line for line in entered if line]

    def draw(self) -> str:
        """What shows the line anew, with the cursor in its place."""
        prompt = _fit(self.prompt, self.width // 2)
        room = self.width - cell_len(prompt) - 1
        before = _fit(self._text[: self._cursor][::-1], room)[::-1]
        after = _fit(self._text[self._cursor :], room - cell_len(before))
        cells = cell_len(after)
        return f"{ERASE}{prompt}{before}{after}" + (f"\x1b[{cells}D" if cells else "")

    def _enter(self) -> str:
        line, self._text, self._cursor = self._text, "", 0
        if line and self._history[-1:] != [line]:
            self._history.append(line)
            del self._history[:-_HISTORY]
        self._place = len(self._history)
        return line

    def _insert(self, text: str) -> None:
        if len(self._text) < MAX_TEXT_CHARS:
            self._text = self._text[: self._cursor] + text + self._text[self._cursor :]
            self._cursor += len(text)

    def _control_key(self, key: str) -> None:
        if key == "\x03" or (key == "\x04" and not self._text):
            self.ended = True
        elif key in "\x7f\b":
            self._delete(self._left(), self._cursor)
        elif key == "\x04":
            self._delete(self._cursor, self._right())
        elif key == "\x15":
            self._delete(0, self._cursor)
        elif key == "\x0b":
            self._delete(self._cursor, len(self._text))
        elif key == "\x17":
            before = self._text[: self._cursor].rstrip()
            self._delete(before.rfind(" ") + 1, self._cursor)
        elif key == "\x01":
            self._cursor = 0
        elif key == "\x05":
            self._cursor = len(self._text)

    def _sequence_key(self, key: str) -> None:
        self._sequence += key
        if len(self._sequence) == 2 and key in "[O":
            return
        if (
            len(self._sequence) > 2
            and not "@" <= key <= "~"
            and len(self._sequence) < _MAX_SEQUENCE
        ):
            return
        sequence, self._sequence = self._sequence[1:].replace("O", "[", 1), ""
        if sequence == "[A":
            self._recall(self._place - 1)
        elif sequence == "[B":
            self._recall(self._place + 1)
        elif sequence == "[C":
            self._cursor = self._right()
        elif sequence == "[D":
            self._cursor = self._left()
        elif sequence in ("[H", "[1~", "[7~"):
            self._cursor = 0
        elif sequence in ("[F", "[4~", "[8~"):
            self._cursor = len(self._text)
        elif sequence == "[3~":
            self._delete(self._cursor, self._right())

    def _recall(self, place: int) -> None:
        if 0 <= place <= len(self._history):
            self._place = place
            self._text = self._history[place] if place < len(self._history) else ""
            self._cursor = len(self._text)

    def _delete(self, start: int, end: int) -> None:
        self._text = self._text[:start] + self._text[end:]
        self._cursor = start

    def _left(self) -> int:
        """Where the character before the cursor begins, with what has no width of its own."""
        place = self._cursor
        while place > 0:
            place -= 1
            if cell_len(self._text[place]):
                break
        return place

    def _right(self) -> int:
        """Where the character at the cursor ends."""
        place = min(self._cursor + 1, len(self._text))
        while place < len(self._text) and not cell_len(self._text[place]):
            place += 1
        return place


def _fit(text: str, cells: int) -> str:
    """As much of the beginning of C{text} as is no wider than C{cells}."""
    for place, character in enumerate(text):
        cells -= cell_len(character)
        if cells < 0:
            return text[:place]
    return text
