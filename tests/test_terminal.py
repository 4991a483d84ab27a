"""Nothing that others chose is obeyed by a terminal, whatever it goes through."""

import json
import unicodedata
from typing import Any

import click
import msgspec
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from domaeka.cli import COMMANDS, _Commands
from domaeka.cli.console import Pipe
from domaeka.cli.output import duration, escaped_json, milliseconds, one_line, printable, size
from domaeka.cli.prompt import ERASE, LineEditor
from domaeka.client import Reply
from domaeka.errors import ConfigError

#: What terminals obey: sequences, C0 and C1, marks of direction, separators.
HOSTILE = "A\x1b]0;PWNED\x07B\x9bmC\u202eD\u2028E\u2066F\u200eG\x08H\x7fI\r\ufeffJ"
#: What is no order, though Python does not call it printable.
HARMLESS = "가\u3000나\xa0👨\u200d👩\u200d👧 \U0001faea\n\t"


def orders(text: str) -> list[str]:
    """The characters of a text that a terminal obeys."""
    return [
        each
        for each in text
        if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and each not in "\n\t\u200c\u200d"
    ]


class PrintableTests(SynchronousTestCase):
    """Tests for L{printable}."""

    @given(st.text(st.characters()))
    def test_no_orders(self, text: str) -> None:
        """Nothing is left to obey; all else stays in its place."""
        shown = printable(text)
        self.assertEqual(orders(shown), [])
        self.assertEqual(len(shown), len(text))

    def test_what_people_write(self) -> None:
        """Emoji that are joined, new ones, and wide spaces stay as they are."""
        self.assertEqual(printable(HARMLESS), HARMLESS)


class PipeTests(SynchronousTestCase):
    """C{domaeka phone | cat}: a pipe may end in a terminal."""

    def test_answers(self) -> None:
        """What somebody in a chat had a bot repeat is harmless there, too."""
        talk: Any = None
        pipe = Pipe(talk)
        transport = StringTransport()
        pipe.transport = transport
        for content in (HOSTILE, HARMLESS):
            pipe.show(Reply(room="방", channel_id="1", bot_name="봇", content=content))
        shown = transport.value().decode()
        self.assertEqual(orders(shown), [])
        self.assertTrue(shown.endswith(HARMLESS + "\n"))


class PromptTests(SynchronousTestCase):
    """The line of input: what is pasted may be a stranger's, too."""

    def test_pasted(self) -> None:
        """It is sent as it is, and shown harmless."""
        pasted = "가\x9bm\u202e나"
        editor = LineEditor("> ")
        editor.feed(pasted.encode())
        self.assertEqual(orders(editor.draw().removeprefix(ERASE)), [])
        self.assertEqual(editor.feed(b"\r"), [pasted])


class ErrorTests(SynchronousTestCase):
    """Errors of commands, which quote names, addresses and values."""

    def test_every_error(self) -> None:
        """Whatever kind of error it is, and wherever it comes from."""
        group = _Commands(name="domaeka")
        for error in (
            ConfigError(HOSTILE),
            click.ClickException(HOSTILE),
            click.UsageError(HOSTILE),
            click.BadParameter(HOSTILE),
        ):

            @click.command()
            def status(error: Exception = error) -> None:
                raise error

            self.patch(group, "get_command", lambda ctx, name, command=status: command)
            result = CliRunner().invoke(group, ["status"])
            self.assertNotEqual(result.exit_code, 0)
            self.assertIn("PWNED", result.output)
            self.assertEqual(orders(result.output), [])
        self.assertIn("status", COMMANDS)


class TextTests(SynchronousTestCase):
    """Texts of strangers."""

    @given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans())
    def test_json(self, text: str, ascii_only: bool) -> None:
        """Whatever a name holds, JSON says the same, and a terminal has nothing to obey."""
        written = escaped_json(msgspec.json.encode({"name": text}).decode(), ascii_only)
        self.assertEqual(json.loads(written), {"name": text})
        self.assertTrue(written.isprintable())
        self.assertTrue(written.isascii() or not ascii_only)

    @given(st.text())
    def test_one_line(self, text: str) -> None:
        """Whatever a name holds, it stays in its line and commands nothing."""
        self.assertTrue(one_line(text).isprintable())

    def test_figures(self) -> None:
        """Figures are short enough for a table."""
        self.assertEqual(
            [duration(s) for s in (0.4, 59, 61, 3700, 90_000)],
            [
                "0 s",
                "59 s",
                "1 m",
                "1 h 1 m",
                "1 d 1 h",
            ],
        )
        self.assertEqual(
            [size(n) for n in (0, 1023, 1536, 5 * 2**30)],
            [
                "0 B",
                "1023 B",
                "1.5 KiB",
                "5.0 GiB",
            ],
        )
        self.assertEqual([milliseconds(s) for s in (None, 0.0012, 0.25)], ["", "1.2 ms", "250 ms"])
