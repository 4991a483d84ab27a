"""Tests for what L{benchmarks} says of what it measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from benchmarks import report, suite, turns

NOTHING_WRONG = dict.fromkeys(("lost", "closed"), 0)


def window(server: float = 0.9, generator: float = 0.3, waited: float = 0.0) -> suite.Window:
    """A window of one second, and which part of it both sides were busy."""
    return suite.Window(
        1.0, 1000, 1.0, 2.0, 5.0, 10.0, server, waited, generator, 0.0, NOTHING_WRONG
    )


def results(one: suite.Window) -> suite.Results:
    """A run in which all windows are alike."""
    return {row.key: {"ours": [one, one]} for row in (*suite.ROWS, suite.IDLE)}


class NotesTests(SynchronousTestCase):
    """Tests for L{report.notes}."""

    def test_generator_was_limit(self) -> None:
        """Where the generator had no time left, and the server had, that is said in words."""
        text = "\n".join(report.notes(results(window(server=0.6, generator=0.99))))
        self.assertIn("THE GENERATOR WAS THE LIMIT in chat ×1, ours (2 of 2 windows)", text)

    def test_server_was_limit(self) -> None:
        """Where the server had no time left, the generator was not the limit, however busy."""
        text = "\n".join(report.notes(results(window(server=0.99, generator=0.99))))
        self.assertIn("the generator was never the limit", text)

    def test_machine_was_not_quiet(self) -> None:
        """Where servers waited for their core, that is said; and that they did not, if so."""
        loud = "\n".join(report.notes(results(window(server=0.5, waited=0.5))))
        self.assertIn("servers waited for their core for 50%", loud)
        quiet = "\n".join(report.notes(results(window())))
        self.assertIn("the machine was quiet", quiet)

    def test_fewer_than_sent(self) -> None:
        """A server that does not keep up with messages by the clock is named."""
        text = "\n".join(report.notes(results(window())))
        self.assertIn("FEWER CAME BACK than were sent in 2,000 a second, ours: 1,000", text)
        self.assertNotIn("500 a second, ours: ", text)


class BaselineTests(SynchronousTestCase):
    """Tests for L{report.write_baseline}."""

    def test_replaces_the_one_before(self) -> None:
        """What is around it stays, what was there goes."""
        path = Path(self.mktemp())
        path.write_text("a\n<!-- baseline: begin -->\nold\n<!-- baseline: end -->\nb\n", "utf-8")
        report.write_baseline(path, "head", "| table |")
        text = path.read_text("utf-8")
        self.assertTrue(text.startswith("a\n") and text.endswith("\nb\n"))
        self.assertIn("| table |", text)
        self.assertNotIn("old", text)

    def test_no_place(self) -> None:
        """A document without a place for it is left alone."""
        path = Path(self.mktemp())
        path.write_text("a\n", "utf-8")
        self.assertRaises(ValueError, report.write_baseline, path, "head", "table")
        self.assertEqual(path.read_text("utf-8"), "a\n")


class RecorderTests(SynchronousTestCase):
    """Tests for L{turns.Recorder}."""

    def calls(self, **files: str) -> list[tuple[str, bool]]:
        """Run C{a.start()}: the calls' names, and whether they turned back."""
        names: dict[str, Callable[[], Any]] = {}
        for file, source in files.items():
            exec(compile(source, f"/house/{file}.py", "exec"), names)
        path = Path(self.mktemp())
        recorder = turns.Recorder(path, "/house/")
        recorder.start()
        try:
            names["start"]()
        finally:
            recorder.stop()
        record = msgspec.json.decode(path.read_bytes(), type=turns.Record)
        return [(call.name, call.back) for call in record.calls]

    def test_turns_back(self) -> None:
        """A call into a file further up the stack turns back."""
        found = self.calls(a="def start(): there()\ndef again(): pass", b="def there(): again()")
        self.assertEqual(found, [("start", False), ("there", False), ("again", True)])

    def test_does_not_turn_back(self) -> None:
        """A call inside a file does not, nor one into a file that has been left."""
        found = self.calls(
            a="def start(): here(); there(); there()\ndef here(): pass", b="def there(): pass"
        )
        self.assertEqual([back for _, back in found], [False] * 4)

    def test_returns_through_others(self) -> None:
        """What an exception ends is no longer on the stack."""
        found = self.calls(
            a="def start():\n try: there()\n except ValueError: pass\n there2()",
            b="def there(): raise ValueError\ndef there2(): pass",
        )
        self.assertEqual([back for _, back in found], [False] * 3)

    def test_lag_probe(self) -> None:
        """The probe of the reactor's lag is left out, and what it calls."""
        found = self.calls(
            a="class LagProbe:\n def tick(self): there()\nstart = LagProbe().tick",
            b="def there(): pass",
        )
        self.assertEqual(found, [])
