"""A line editor at the bottom of a terminal: keys in, lines and texts to draw out."""

import codecs
from typing import Final

from rich.cells import cell_len

from domaeka.cli.output import printable
from domaeka.wire import MAX_TEXT_CHARS

#: Lines that are remembered for the arrow keys.
_HISTORY: Final = 200
#: Longest sequence that a key sends, in characters; a longer one is no key.
_MAX_SEQUENCE: Final = 16
#: Moves to the left edge and clears the line.
ERASE: Final = "\r\x1b[2K"


class LineEditor:
    """
    Edits a line, which may have wide characters.

    @ivar ended: true once the user has ended it: Ctrl-C, or Ctrl-D in an empty line.
    """

    def __init__(self, prompt: str, width: int = 80) -> None:
        """
        @param prompt: the text before the line.
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
        self._index = 0  # in the history; its length: the line that is being written

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
            else:
                self._insert(key)
        return [line for line in entered if line]

    def draw(self) -> str:
        """The text that draws the line again, with the cursor in its place."""
        prompt = _fit(self.prompt, self.width // 2)
        room = self.width - cell_len(prompt) - 1
        text = printable(self._text)  # what was pasted may hold anything
        before = _fit(text[: self._cursor][::-1], room)[::-1]
        after = _fit(text[self._cursor :], room - cell_len(before))
        cells = cell_len(after)
        return f"{ERASE}{prompt}{before}{after}" + (f"\x1b[{cells}D" if cells else "")

    def _enter(self) -> str:
        line, self._text, self._cursor = self._text, "", 0
        if line and self._history[-1:] != [line]:
            self._history.append(line)
            del self._history[:-_HISTORY]
        self._index = len(self._history)
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
        if 2 < len(self._sequence) < _MAX_SEQUENCE and not "@" <= key <= "~":
            return
        sequence, self._sequence = self._sequence[1:].replace("O", "[", 1), ""
        if sequence == "[A":
            self._recall(self._index - 1)
        elif sequence == "[B":
            self._recall(self._index + 1)
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

    def _recall(self, index: int) -> None:
        if 0 <= index <= len(self._history):
            self._index = index
            self._text = self._history[index] if index < len(self._history) else ""
            self._cursor = len(self._text)

    def _delete(self, start: int, end: int) -> None:
        self._text = self._text[:start] + self._text[end:]
        self._cursor = start

    def _left(self) -> int:
        """The start of the character before the cursor, with combining ones after it."""
        index = self._cursor
        while index > 0:
            index -= 1
            if cell_len(self._text[index]):
                break
        return index

    def _right(self) -> int:
        """The end of the character at the cursor."""
        index = min(self._cursor + 1, len(self._text))
        while index < len(self._text) and not cell_len(self._text[index]):
            index += 1
        return index


def _fit(text: str, cells: int) -> str:
    """The longest beginning of C{text} that is no wider than C{cells}."""
    for index, character in enumerate(text):
        cells -= cell_len(character)
        if cells < 0:
            return text[:index]
    return text
