"""Tests for L{domaeka.logs}."""

import json
import logging
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Application
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, LogLevel, LogPublisher, STDLibLogObserver
from twisted.python import log
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
    StandardLogging,
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

    def test_what_nobody_caught(self) -> None:
        """Its text may quote chat: it is shown at debug alone.  What was logged on purpose is."""
        caught = failure("boom")
        for uncaught in (
            event("Unhandled", log_namespace="twisted.internet.defer", log_failure=caught),
            {"isError": 1, "failure": caught, "log_namespace": "log_legacy", "log_time": TIME},
        ):
            for line in (text_line, json_line):
                self.assertNotIn("boom", line(uncaught))
                self.assertIn("RuntimeError: boom", line(uncaught, all_texts=True))
        on_purpose = event("failed", log_namespace="shop", log_failure=caught)
        self.assertIn("RuntimeError: boom", text_line(on_purpose))

    def test_what_log_err_was_given(self) -> None:
        """The text of an old event holds its traceback: it is not shown a second time."""
        events: list[Any] = []
        publisher = log.LogPublisher(publishPublisher=LogPublisher(events.append))  # type: ignore
        publisher.msg(failure=failure("boom"), isError=1, why=None)
        (old,) = events
        line = json.loads(json_line(old))
        self.assertEqual(line["message"], "Unhandled Error")
        self.assertIn("raise RuntimeError(text)", line["failure"])
        self.assertNotIn("boom", line["failure"])

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
            "GatewayFactory (ProxyProtocolFactory) (TLS) starting on 9000",
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


class Loud:
    """What must not be looked at."""

    def __init__(self, looked_at: Callable[[str], object]) -> None:
        self.looked_at = looked_at

    def __str__(self) -> str:
        self.looked_at("it was formatted")
        return "loud"


class StandardLoggingTests(SynchronousTestCase):
    """Tests for L{StandardLogging}."""

    def setUp(self) -> None:
        self.output = BrokenOutput()
        self.observer = LogObserver(LoggingSettings(format="json"), self.output)
        self.publisher = LogPublisher(self.observer)  # type: ignore[arg-type]
        self.handler = StandardLogging(self.publisher)
        self.root = logging.Logger("root")
        self.handler.attach(logging.INFO, self.root)
        self.log = logging.Logger("shop.orders")
        self.log.parent = self.root

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.getvalue().splitlines()]

    def test_level_and_name(self) -> None:
        """Each message has its level and its logger's name; levels in between count as lower."""
        for number, level in (
            (logging.INFO, "info"),
            (logging.WARNING - 1, "info"),
            (logging.WARNING, "warn"),
            (logging.ERROR, "error"),
            (logging.CRITICAL, "critical"),
            (99, "critical"),
        ):
            self.log.log(number, "order %s of {x}", number)
            line = self.lines()[-1]
            self.assertEqual(
                (line["level"], line["logger"], line["message"]),
                (level, "shop.orders", f"order {number} of {{x}}"),
            )

    def test_below_the_level(self) -> None:
        """It is not formatted, not even where a library has set a level of its own."""
        self.log.setLevel(1)
        self.log.debug("no %s", Loud(self.fail))
        self.root.debug("no %s", Loud(self.fail))
        self.handler.attach(logging.DEBUG, self.root)
        heard: list[str] = []
        self.log.debug("yes %s", Loud(heard.append))
        self.assertEqual(len(heard), 1)

    def test_reload_sets_the_level(self) -> None:
        """The server's level is that of all loggers, from the next message on."""
        root = logging.getLogger()
        level, hook = root.level, sys.modules["threading"].excepthook
        self.addCleanup(root.setLevel, level)
        self.addCleanup(setattr, sys.modules["threading"], "excepthook", hook)
        self.observer.lead_standard_logging()
        handler = self.observer._standard
        assert handler is not None
        self.addCleanup(root.removeHandler, handler)
        self.assertEqual((root.level, handler.level), (logging.INFO, logging.INFO))
        self.observer.configure(LoggingSettings(level="error"))
        self.assertEqual((root.level, handler.level), (logging.ERROR, logging.ERROR))
        self.assertFalse(logging.getLogger("library").isEnabledFor(logging.WARNING))

    def test_exception(self) -> None:
        """An exception is logged with its traceback, its text and what it was raised from."""
        try:
            try:
                raise KeyError("order")
            except KeyError as error:
                raise RuntimeError("no order") from error
        except RuntimeError:
            self.log.exception("failed")
        (line,) = self.lines()
        self.assertEqual((line["message"], line["level"]), ("failed", "error"))
        for words in (
            "KeyError: 'order'",
            "direct cause",
            "RuntimeError: no order",
            __file__,
        ):
            self.assertIn(words, line["failure"])

    def test_is_bounded(self) -> None:
        """A message can neither flood the log nor fake a line."""
        self.log.info("%s\nfake \x1b[2J", "x" * 1_000_000)
        self.log.info("a\nfake")
        long, short = self.lines()
        self.assertEqual(len(long["message"]), MAX_MESSAGE_CHARS)
        self.assertEqual(short["message"], "a\\nfake")

    def test_that_cannot_be_formatted(self) -> None:
        """A mistake in a log call costs its author no answer, and is shown."""

        def fail(_: str) -> None:
            raise ZeroDivisionError

        self.log.info("%d orders", "no")
        self.log.info("of %s", Loud(fail))
        first, second = (line["message"] for line in self.lines())
        self.assertIn("%d orders", first)
        self.assertIn("TypeError", first)
        self.assertIn("ZeroDivisionError", second)

    def test_threads(self) -> None:
        """Any thread may log; no message is lost or mixed with another."""
        threads = [
            Thread(target=lambda: [*map(self.log.info, map(str, range(200)))]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(self.lines()), 1600)

    def test_full_disk(self) -> None:
        """Where the log cannot be written nothing is raised, and nothing goes round in circles."""
        self.output.full = True
        for _ in range(3):
            self.log.error("lost")
        self.output.full = False
        self.log.error("there")
        self.assertEqual([line.get("lost") for line in self.lines()], [3, None])

    def test_circle(self) -> None:
        """A bot that leads Twisted's log to Python's does not make the two tell each other."""
        back = STDLibLogObserver("back")
        back.logger = self.log
        self.publisher.addObserver(back)  # type: ignore[arg-type]
        self.log.info("once")
        twisteds = Logger("twisted", observer=self.publisher)  # type: ignore[arg-type]
        twisteds.info("twice at most")
        self.assertLessEqual(len(self.lines()), 3)

    def test_what_nobody_caught(self) -> None:
        """asyncio tells of errors that nobody has caught, with their texts: not at info."""
        asyncios = logging.Logger("asyncio")
        asyncios.parent = self.root
        error = RuntimeError("boom")
        asyncios.error("never retrieved\nfuture: %r", error, exc_info=error)
        (line,) = self.lines()
        self.assertEqual((line["message"], line["failure"]), ("never retrieved", "RuntimeError"))


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

    def test_file_that_is_moved(self) -> None:
        """An event goes to the file of the name, also after that was renamed by somebody else."""
        path = Path(self.mktemp())
        observer = observer_for(LoggingSettings(), {"logfile": str(path)}, Clock())  # type: ignore[arg-type]
        observer(event("one"))
        moved = path.rename(f"{path}.1")
        observer(event("two"))
        for file, said in ((moved, "one"), (path, "two")):
            (line,) = file.read_text().splitlines()
            self.assertIn(said, line)
