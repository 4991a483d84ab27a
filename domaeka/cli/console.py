"""Standard input and output of a talk: a pipe, or a terminal with a prompt."""

import contextlib
import os
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from rich.console import Console
from rich.text import Text
from twisted.internet import interfaces, protocol
from twisted.internet.defer import Deferred
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure
from zope.interface import implementer

from domaeka.cli import output, texts
from domaeka.cli.prompt import ERASE, LineEditor
from domaeka.client import Reply
from domaeka.errors import WireError
from domaeka.wire import MAX_LINE_BYTES, LineDecoder

#: Numbers of the standard files.
STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2


def note_error(text: str) -> None:
    """Show a line on standard error."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):  # nobody reads it now
        sys.stderr.write(f"domaeka: {output.printable(text)}\n")
        sys.stderr.flush()


def fill_standard_files() -> None:
    """Open the standard files that are closed to nowhere, before sockets take their numbers."""
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


@contextlib.contextmanager
def standard_files() -> Iterator[tuple[int, int]]:
    """
    Copies of standard input and output that may be closed.

    A transport's changes to the files themselves are undone: the shell goes on with them.
    """
    blocking = [(number, os.get_blocking(number)) for number in (STDIN, STDOUT)]
    try:
        yield os.dup(STDIN), os.dup(STDOUT)
    finally:
        for number, was_blocking in blocking:
            os.set_blocking(number, was_blocking)


@contextlib.contextmanager
def single_keys() -> Iterator[None]:
    """Set the terminal to pass on keys as they are pressed, and to show none."""
    before = termios.tcgetattr(STDIN)
    changed = termios.tcgetattr(STDIN)
    changed[0] &= ~(termios.IXON | termios.ICRNL)
    changed[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
    termios.tcsetattr(STDIN, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


@implementer(interfaces.IHalfCloseableProtocol)
class _Files(protocol.Protocol):
    """The base of both consoles: bytes out, and an end that waits for them."""

    transport: Any

    def __init__(self) -> None:
        self.closed: Deferred[None] = Deferred()

    def close(self) -> "Deferred[None]":
        """@return: fires once everything is written, or nobody reads."""
        if not self.closed.called:
            self.transport.loseConnection()
        return self.closed

    def write(self, text: str) -> None:
        self.transport.write(text.encode("utf-8", "replace"))

    # IProtocol

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self._gone()

    # IHalfCloseableProtocol

    def readConnectionLost(self) -> None:
        """There is no more input."""

    def writeConnectionLost(self) -> None:
        """Nobody reads any more."""
        self._gone()

    def _gone(self) -> None:
        if not self.closed.called:
            self.closed.callback(None)


class Lines(Protocol):
    """A taker of lines."""

    @property
    def accepts_lines(self) -> bool:
        """True while more lines may be written."""

    def line_written(self, line: str) -> None:
        """Take a line."""

    def input_ended(self) -> None:
        """There are no more lines."""


class Pipe(_Files):
    """Lines in, answers out; no more lines are read than can be sent."""

    def __init__(self, talk: Lines) -> None:
        """@param talk: gets the lines; it calls L{read_on} when it takes more."""
        super().__init__()
        self._talk = talk
        self._decoder = LineDecoder(MAX_LINE_BYTES)
        self._ended = False
        self._reading = False

    def show(self, reply: Reply) -> None:
        """Show an answer, and nothing else; a terminal may be behind the pipe."""
        self.write(output.printable(texts.reply_text(reply)) + "\n")

    def read_on(self) -> None:
        """Pass on lines while the talk takes them."""
        if self._reading:
            return
        self._reading = True
        try:
            while self._talk.accepts_lines:
                line = self._decoder.next_line()
                if line is None:
                    if self._ended:
                        self._talk.input_ended()
                    else:
                        self.transport.resumeProducing()
                    return
                self._talk.line_written(str(line, "utf-8", "replace"))
            self.transport.pauseProducing()
        except WireError as error:
            note_error(f"standard input: {error.text}")
            self._ended = True
            self._decoder.take_rest()
            self._talk.input_ended()
        finally:
            self._reading = False

    # IProtocol

    def dataReceived(self, data: bytes) -> None:
        if not self._ended:
            self._decoder.feed(data)
            self.read_on()

    # IHalfCloseableProtocol

    def readConnectionLost(self) -> None:
        if not self._ended:
            self._ended = True
            self._decoder.feed(b"\n")  # the last line may lack its own
            self.read_on()


class Terminal(_Files):
    """A terminal with a prompt at the bottom and the talk above it."""

    def __init__(self, room: str, sender: str) -> None:
        super().__init__()
        self._room = room
        self._sender = sender
        # Not the standard output of now: what bots print may be led elsewhere.
        self._console = Console(file=sys.__stdout__)
        self._editor = LineEditor(f"{output.printable(room)}> ")
        self._open = True
        self.on_line: Callable[[str], None] = lambda line: None
        self.on_end: Callable[[], None] = lambda: None

    def move(self, room: str, sender: str) -> None:
        """Write as C{sender} in C{room} from now on."""
        self._room = room
        self._sender = sender
        self._editor.prompt = f"{output.printable(f'{room}, {sender}')}> "

    def show(self, reply: Reply) -> None:
        """Show what came for a room."""
        other = f"[{reply.room}] " if reply.room != self._room else ""
        style = "" if isinstance(reply.content, str) else "magenta"
        who = (f"{other}{reply.bot_name}: ", "bold cyan")
        self._print(Text.assemble(who, (texts.reply_text(reply), style)))

    def note(self, text: str) -> None:
        """Show a line that is no answer."""
        self._print(Text(text, style="dim"))

    def _print(self, text: Text) -> None:
        text.plain = output.printable(text.plain)
        with self._console.capture() as captured:
            self._console.print(text, highlight=False, soft_wrap=True)
        self.write(ERASE + captured.get())
        self._draw()

    def _draw(self) -> None:
        if self._open:
            self._editor.width = self._console.width
            self.write(self._editor.draw())

    def close(self) -> "Deferred[None]":
        """@return: fires once everything is written, or nobody reads."""
        if self._open:
            self._open = False
            self.write(ERASE)
        return super().close()

    # IProtocol

    def connectionMade(self) -> None:
        self._draw()

    def dataReceived(self, data: bytes) -> None:
        for line in self._editor.feed(data):
            self._print(Text.assemble((f"{self._sender}: ", "bold"), line))
            self.on_line(line)
        self._draw()
        if self._editor.ended:
            self.on_end()

    # IHalfCloseableProtocol

    def readConnectionLost(self) -> None:
        self.on_end()


def open_files(reactor: Any, files: tuple[int, int], console: _Files) -> None:
    """Join C{console} to standard input and output."""
    transport: Any = StandardIO  # its own types lack the reactor
    transport(console, *files, reactor)
