"""Tests for L{domaeka.logs}."""

import json
from io import StringIO
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Application
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import LoggingSettings
from domaeka.errors import ConfigError
from domaeka.logs import (
    MAX_FIELD_CHARS,
    MAX_FIELDS_CHARS,
    MAX_MESSAGE_CHARS,
    MAX_TRACEBACK_CHARS,
    LoggedService,
    LogObserver,
    json_line,
    observer_for,
    quote,
    text_line,
)

#: 2026-10-05 12:34:56.789 UTC.
TIME = 1_791_203_696.789


def event(form: str, **fields: Any) -> dict[str, Any]:
    """An event as L{Logger} makes it."""
    return {
        "log_format": form,
        "log_time": TIME,
        "log_level": LogLevel.info,
        "log_namespace": "domaeka.gateway",
    } | fields


def failure(text: str) -> Failure:
    """A Failure with C{text}."""
    try:
        raise RuntimeError(text)
    except RuntimeError:
        return Failure()


class BrokenOutput(StringIO):
    """An output that can be full."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


class QuoteTests(SynchronousTestCase):
    """Tests for L{quote}."""

    def test_leaves_names_alone(self) -> None:
        """What people call rooms and themselves stays readable."""
        for name in ("도매카 방", "Kim 😀 (광주)", 'a "b" \\ c'):
            self.assertEqual(quote(name), name)

    def test_escapes_what_cannot_be_seen(self) -> None:
        """Newlines, terminal sequences, text direction and broken characters show as escapes."""
        self.assertEqual(
            quote("a\nb\r\t\x1b[31m\u202e\u2028\x00\ud800"),
            "a\\nb\\r\\t\\x1b[31m\\u202e\\u2028\\x00\\ud800",
        )

    @given(st.text(st.characters()), st.integers(1, 50))
    def test_any_text(self, text: str, limit: int) -> None:
        """Whatever comes in, the result is printable, bounded, and stays as it is."""
        quoted = quote(text, limit)
        self.assertTrue(quoted.isprintable())
        self.assertLessEqual(len(quoted), limit)
        self.assertEqual(quote(quoted, limit), quoted)


class TextLineTests(SynchronousTestCase):
    """Tests for L{text_line}."""

    def test_line(self) -> None:
        """Time in UTC, level, logger and message."""
        self.assertEqual(
            text_line(event("phone {bot!r} is back", bot="루덴스")),
            "2026-10-05T12:34:56.789Z info     domaeka.gateway: phone '루덴스' is back\n",
        )

    def test_stranger_cannot_add_a_line(self) -> None:
        """A name with newlines in it makes one line all the same."""
        line = text_line(event("hello {name}", name="x\n2026-10-05T12:00:00Z info root: y\x1b[2J"))
        self.assertEqual(line.count("\n"), 1)
        self.assertTrue(line[:-1].isprintable())

    def test_is_cut(self) -> None:
        """A long field is cut, and so is a message of many."""
        line = text_line(event("{a} end", a="x" * 10_000))
        self.assertIn("x" * (MAX_FIELD_CHARS - 1) + "… end", line)
        long = text_line(event("{a}" * 1000, a="x" * 100))
        self.assertLess(len(long), MAX_MESSAGE_CHARS + 100)

    def test_traceback_is_indented_and_bounded(self) -> None:
        """What an exception says can neither fake lines nor flood the log."""
        text = text_line(
            event("failed", log_failure=failure("\x1b\nfake" + "y" * 99_999 + "\nend"))
        )
        head, *rest = text[:-1].split("\n")
        self.assertTrue(head.endswith(": failed"))
        self.assertTrue(all(line.startswith("\t") for line in rest))
        self.assertTrue(all(line[1:].isprintable() for line in rest))
        self.assertLess(len(text), MAX_TRACEBACK_CHARS + 500)
        self.assertIn("\tend", text)

    def test_old_failures(self) -> None:
        """What twisted.python.log.err was given shows its traceback, too."""
        line = text_line(
            {"isError": 1, "failure": failure("boom"), "why": "Oops", "log_time": TIME}
        )
        self.assertIn("Oops\n\tTraceback", line)

    def test_what_cannot_be_formatted(self) -> None:
        """A field that is missing costs no event."""
        self.assertIn("nothing here {", text_line(event("nothing here {missing}")))


class JsonLineTests(SynchronousTestCase):
    """Tests for L{json_line}."""

    def test_line(self) -> None:
        """The stable keys, then the plain fields."""
        line = json_line(event("{bot} left", bot="봇", bytes=5, rtt=0.25, ok=True, peer=object()))
        self.assertEqual(line.count("\n"), 1)
        self.assertEqual(
            list(json.loads(line).items()),
            [
                ("time", "2026-10-05T12:34:56.789Z"),
                ("level", "info"),
                ("logger", "domaeka.gateway"),
                ("message", "봇 left"),
                ("bot", "봇"),
                ("bytes", 5),
                ("rtt", 0.25),
                ("ok", True),
            ],
        )

    def test_traceback_is_in_the_line(self) -> None:
        """One event, one object, one line."""
        line = json_line(event("failed", log_failure=failure("boom")))
        self.assertEqual(line.count("\n"), 1)
        self.assertIn("RuntimeError: boom", json.loads(line)["failure"])

    def test_fields_are_bounded(self) -> None:
        """However many fields there are, and however long they are."""
        many = {f"field{number}": "x" * 1000 for number in range(1000)}
        line = json_line(event("many", **many))
        self.assertLess(len(line), MAX_FIELDS_CHARS + 1000)

    def test_fields_cannot_pose_as_keys(self) -> None:
        """A field named as a key of the line does not replace it."""
        self.assertEqual(json.loads(json_line(event("x", level="fake")))["level"], "info")

    def test_odd_numbers(self) -> None:
        """JSON has no word for infinity: it is text."""
        line = json.loads(json_line(event("x", a=float("inf"), b=float("nan"), c=2**70)))
        self.assertEqual((line["a"], line["b"], line["c"]), ("inf", "nan", 2**70))


class LogObserverTests(SynchronousTestCase):
    """Tests for L{LogObserver}."""

    def setUp(self) -> None:
        self.output = BrokenOutput()
        self.observer = LogObserver(LoggingSettings(), self.output)
        self.log = Logger("test", observer=self.observer)  # type: ignore[arg-type]

    def test_level(self) -> None:
        """What is below the level is not even formatted; the level can change at any time."""
        self.log.debug("{boom()}", boom=self.fail)
        self.assertEqual(self.output.getvalue(), "")
        self.observer.configure(LoggingSettings(level="debug", format="json"))
        self.log.debug("now")
        self.assertEqual(json.loads(self.output.getvalue())["message"], "now")

    def test_ports(self) -> None:
        """What Twisted says of its ports is left out: the server has said where it listens."""
        for text in (
            "GatewayFactory (AnnouncedFactory) (TLS) starting on 9000",
            "(TCP Port 9000 Closed)",
            "something else",
        ):
            self.observer(
                event("{log_text}", log_namespace="log_legacy", log_text=text, message=(text,))
            )
        self.assertEqual(len(self.output.getvalue().splitlines()), 1)
        self.assertIn("something else", self.output.getvalue())

    def test_full_disk(self) -> None:
        """Lines that cannot be written are counted and reported, and nothing is raised."""
        self.output.full = True
        self.log.info("one")
        self.log.info("two")
        self.output.full = False
        self.log.info("three")
        lines = self.output.getvalue().splitlines()
        self.assertIn("2 events were not logged", lines[0])
        self.assertIn("three", lines[1])
        self.assertEqual(self.observer.lost, 0)

    def test_hopeless_event(self) -> None:
        """An event that is nonsense makes a line that says so."""
        self.observer({"log_format": "x", "log_time": "noon", 7: "8" * 999})  # type: ignore[dict-item]
        self.assertIn("unloggable event: AttributeError", self.output.getvalue())


class LoggedServiceTests(SynchronousTestCase):
    """Tests for L{LoggedService} and L{observer_for}."""

    def test_gives_its_observer_to_the_application(self) -> None:
        """The application that twistd makes logs with our observer."""
        observer = LogObserver(LoggingSettings(), StringIO())
        service = LoggedService(observer)
        application = Application("test")
        service.setServiceParent(application)
        self.assertIs(ILogObserver(application), observer)

    def test_daemon_has_no_standard_output(self) -> None:
        """A daemon that should log to nowhere is stopped at the start."""
        with self.assertRaises(ConfigError):
            observer_for(LoggingSettings(), {"logfile": "-"}, Clock())  # type: ignore[arg-type]

    def test_file_that_cannot_be_opened(self) -> None:
        """The start is stopped with one line that names the file."""
        options = {"logfile": "/nonexistent/x.log", "nodaemon": True}
        with self.assertRaises(ConfigError) as caught:
            observer_for(LoggingSettings(), options, Clock())  # type: ignore[arg-type]
        self.assertIn("/nonexistent/x.log", str(caught.exception))
