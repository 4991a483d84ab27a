"""
The log: one event a line, as text or as JSON, safe to look at.

Log lines contain text from strangers.  So characters that cannot be printed are escaped (control
characters, newlines, ANSI sequences, bidirectional overrides, lone surrogates) and all texts are
cut.  In text, a traceback follows its line, indented; in JSON it is in the same line.

Everything that a log line names is a field of its JSON form.  An event may hold its traceback as
text, in C{log_traceback}: L{domaeka.tracebacks} makes those.

C{twistd} makes its own observer unless the application has one, and asks for it only after
C{makeService} and before it logs its own first line.  So L{observer_for} makes one that writes
where twistd's options say, and L{LoggedService} gives it to the application.
"""

import io
import json
import logging
import re
import signal
import sys
import syslog
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol, cast

from twisted.application.service import MultiService
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LoggingFile,
    LogLevel,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
)
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str
from zope.interface import implementer

from domaeka.config import LoggingSettings
from domaeka.errors import ConfigError
from domaeka.logfile import LogFile
from domaeka.tracebacks import MAX_TRACEBACK_CHARS as MAX_TRACEBACK_CHARS
from domaeka.tracebacks import own_text, shorten, traceback_text, whole_text

#: Longest text of one field, in characters: enough for every name and id of docs/protocol.md but
#: a room's, which may have 1,000.
MAX_FIELD_CHARS: Final = 200
#: Longest message, and longest sum of the fields beside it in JSON, in characters.
MAX_MESSAGE_CHARS: Final = 3000
MAX_FIELDS_CHARS: Final = 3000
#: The lines that Twisted's ports log at info, whatever their factories are told.
_PORT_TALK: Final = re.compile(r"\S+( \(\w+\))* starting on \S+|\(\S+ Port \S+ Closed\)")

#: The levels, lowest first, with the least of C{logging}'s numbers for each.
_LEVELS: Final = {
    LogLevel.debug: logging.DEBUG,
    LogLevel.info: logging.INFO,
    LogLevel.warn: logging.WARNING,
    LogLevel.error: logging.ERROR,
    LogLevel.critical: logging.CRITICAL,
}
#: Loggers of errors that nobody has caught: a bot's may be among them, and nobody chose to have its
#: text in the log.
_UNCAUGHT: Final = frozenset(("twisted", "log_legacy", "asyncio", "concurrent", "threading"))
#: The names in a message's form: C{{bot!r}}, C{{delay:.1f}}, C{{plan.host}}.
_PLACEHOLDER: Final = re.compile(r"\{(\w+)")
_uncaught_log: Final = Logger("threading")
#: Names that JSON lines, or Twisted's old log events, use for something else.
_RESERVED: Final = frozenset(
    (
        *("time", "level", "logger", "message", "failure"),
        *("system", "isError", "format", "why", "logLevel"),
    )
)


def quote(text: str, limit: int = MAX_FIELD_CHARS) -> str:
    """
    Make a stranger's text fit for a log, a terminal or a status page.

    Quoting a quoted text does not change it.

    @param limit: longest result, in characters, 1 or more.
    """
    if len(text) <= limit and text.isprintable():
        return text
    escaped = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text[:limit]
    )
    if len(text) <= limit and len(escaped) <= limit:
        return escaped
    return escaped[: limit - 1] + "…"


def message_of(event: LogEvent) -> str:
    """An event's text, in one line, quoted.  Never raises, whatever is in the event."""
    form = event.get("log_format")
    # The text of an old event with a failure holds its whole traceback.
    if form is None or (form == "{log_text}" and event.get("isError")):
        failure = _failure_of(event)
        if failure is not None:
            form = str(event.get("why") or "Unhandled Error").replace("{", "{{").replace("}", "}}")
    fields = {
        key: value[: MAX_FIELD_CHARS - 1] + "…"
        if isinstance(value, str) and len(value) > MAX_FIELD_CHARS and not _is_twisteds(key)
        else value
        for key, value in event.items()
    }
    fields["log_format"] = form or ""
    return quote(formatEvent(fields), MAX_MESSAGE_CHARS)


def text_line(event: LogEvent, all_texts: bool = False) -> str:
    """
    An event as text: time, level, logger and message; then the traceback, if it has one.

    @param all_texts: if true, texts of errors that nobody has caught are shown, too: they may
        quote chat.
    """
    message = message_of(event)
    traceback = _traceback_of(event, all_texts)
    if not message and not traceback:
        return ""
    line = f"{_time_of(event)} {_level_of(event):<8} {_logger_of(event)}: {message}\n"
    if traceback:
        line += "".join(f"\t{part}\n" for part in traceback.split("\n"))
    return line


def json_line(event: LogEvent, all_texts: bool = False) -> str:
    """
    An event as a JSON object: C{time}, C{level}, C{logger}, C{message}, then its fields, then
    C{failure} if it has a traceback.

    Fields are all that the message names, and the event's other plain values.  A phone or a
    connection that it names gives its C{log_fields} instead.

    @param all_texts: as of L{text_line}.
    """
    message = message_of(event)
    traceback = _traceback_of(event, all_texts)
    if not message and not traceback:
        return ""
    line: dict[str, object] = {
        "time": _time_of(event),
        "level": _level_of(event),
        "logger": _logger_of(event),
        "message": message,
    }
    room = MAX_FIELDS_CHARS
    for key, value in _fields_of(event):
        if isinstance(value, str):
            value = quote(str(value))
        elif isinstance(value, float):
            # JSON knows neither NaN nor the infinities.
            value = value if abs(value) < 1e308 else str(value)
        room -= len(key) + (len(value) if isinstance(value, str) else 20)
        if room < 0:
            break
        line[quote(key)] = value
    if traceback:
        line["failure"] = traceback
    return json.dumps(line, ensure_ascii=False) + "\n"


def _fields_of(event: LogEvent) -> Iterator[tuple[str, str | float | None]]:
    form = event.get("log_format")
    named = _PLACEHOLDER.findall(form) if isinstance(form, str) else ()
    for key, value in event.items():
        if key in _RESERVED or _is_twisteds(key):
            continue
        if value is None or isinstance(value, (str, bool, int, float)):
            yield key, value
        elif isinstance(fields := getattr(value, "log_fields", None), Mapping):
            yield from fields.items()
        elif key in named:
            yield key, safe_str(value)


def _is_twisteds(key: str) -> bool:
    """True for a key of an event that is not a field, but internal to Twisted."""
    return key.startswith("log_") and key != "log_id"


def _time_of(event: LogEvent) -> str:
    try:
        moment = datetime.fromtimestamp(event["log_time"], UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return "-"
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def _level_of(event: LogEvent) -> str:
    return str(event.get("log_level", LogLevel.info).name)


def _logger_of(event: LogEvent) -> str:
    return quote(str(event.get("log_namespace", "-")))


def _failure_of(event: LogEvent) -> Any:
    """The Failure of an event; old events have it under another name."""
    return event.get("log_failure") or (event.get("failure") if event.get("isError") else None)


def _traceback_of(event: LogEvent, all_texts: bool) -> str:
    """The traceback of an event: quoted, cut, its lines apart; or nothing."""
    text = event.get("log_traceback")
    if not isinstance(text, str):
        failure = _failure_of(event)
        if failure is None:
            return ""
        text_of = own_text if _is_uncaught(event) and not all_texts else whole_text
        try:
            text = traceback_text(failure.value, text_of, failure.getTracebackObject())
        except Exception as error:
            text = f"(no traceback: {type(error).__name__})"
    lines = shorten(text.rstrip("\n")).split("\n")
    return shorten("\n".join(quote(line, MAX_TRACEBACK_CHARS) for line in lines))


def _is_uncaught(event: LogEvent) -> bool:
    """True for an event about an error that nobody has caught."""
    return str(event.get("log_namespace", "")).partition(".")[0] in _UNCAUGHT


class Output(Protocol):
    """The destination of lines."""

    def write(self, text: str, /) -> object:
        """Take whole lines."""

    def flush(self) -> object:
        """Write out what is buffered."""


@implementer(ILogObserver)
class LogObserver:
    """
    Writes events to one output.  Any thread may call it.  It never raises: lines that cannot be
    written are counted, and their number is the first line when writing works again.

    @ivar lost: the number of these lines.
    """

    def __init__(self, settings: LoggingSettings, output: Output) -> None:
        self._output = output
        self._lock = threading.RLock()
        self._standard: StandardLogging | None = None
        self.lost = 0
        self.configure(settings)

    def configure(self, settings: LoggingSettings) -> None:
        """Take another level and format, from the next event on."""
        least = LogLevel.levelWithName(settings.level)
        # At debug, chat may be in the log.
        line = json_line if settings.format == "json" else text_line
        self._line = partial(line, all_texts=least is LogLevel.debug)
        self._shown = frozenset(level for level in _LEVELS if level >= least)
        self._least = _LEVELS[least]
        if self._standard is not None:
            self._standard.attach(self._least)

    def lead_standard_logging(self) -> None:
        """Take over Python's C{logging} from the level that is shown on, and threads' errors."""
        self._standard = StandardLogging()
        self._standard.attach(self._least)
        threading.excepthook = thread_ended

    @contextmanager
    def while_importing(self) -> Iterator[None]:
        """
        Send what bots print to the log while they are imported, before twistd does so.  If they
        cannot be imported, all that was logged is written at once.
        """
        try:
            with printed("stdout"):
                yield
        except BaseException:
            globalLogBeginner.beginLoggingTo([cast(ILogObserver, self)], redirectStandardIO=False)
            raise

    # ILogObserver

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) not in self._shown or _is_port_talk(event):
            return
        try:
            line = self._line(event)
        except Exception as error:
            line = self._line(_about(event, "unloggable event: {error}", type(error).__name__))
        if line:
            with self._lock:
                self._write(line, event)

    def _write(self, line: str, event: LogEvent) -> None:
        if self.lost:
            line = self._line(_about(event, "{lost} events were not logged", self.lost)) + line
        try:
            self._output.write(line)
            self._output.flush()
        except Exception:
            # The only place to report this is the one that cannot be written.
            self.lost += 1
        else:
            self.lost = 0


class _Printed(LoggingFile):
    """A standard output whose lines are logged; all else goes to the real one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.__stdout__, name)


@contextmanager
def printed(namespace: str) -> Iterator[None]:
    """Send what is printed to the log, as lines of C{namespace}."""
    with redirect_stdout(cast(Any, _Printed(Logger(namespace)))):
        yield


class StandardLogging(logging.Handler):
    """
    Sends the records of Python's own C{logging}, from bots and libraries, to Twisted's log: with
    level, logger's name and traceback.  Any thread may call it, and it never raises.
    """

    def __init__(self, publish: Callable[[LogEvent], object] = globalLogPublisher) -> None:
        super().__init__()
        self._publish = publish
        self._thread = threading.local()

    def attach(self, level: int, logger: logging.Logger | None = None) -> None:
        """Take the records of C{logger}, by default the root, from C{level} on."""
        logger = logger or logging.getLogger()
        logger.setLevel(level)
        self.setLevel(level)
        logger.addHandler(self)

    # logging.Handler

    def createLock(self) -> None:
        """No lock: a thread that takes long to format something must not block the reactor."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Handle a record without the lock that the base class takes."""
        kept = self.filter(record)
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        # An observer that sends Twisted's log to Python's would make an endless loop.
        if getattr(self._thread, "emits", False):
            return
        event = self._event_of(record)
        self._thread.emits = True
        try:
            self._publish(event)
        finally:
            self._thread.emits = False

    def _event_of(self, record: logging.LogRecord) -> LogEvent:
        try:
            text = record.getMessage()
        except Exception as error:
            text = f"{safe_str(record.msg)} (it cannot be formatted: {type(error).__name__})"
        event: LogEvent = {
            "log_format": "{log_text}",
            "log_text": text,
            "log_level": max(
                (one for one, number in _LEVELS.items() if number <= record.levelno),
                default=LogLevel.debug,
            ),
            "log_namespace": record.name,
            "log_time": record.created,
        }
        text_of = whole_text
        if _is_uncaught(event) and self.level > logging.DEBUG:
            text_of = own_text
            # After the first line asyncio describes the task and its error.
            event["log_text"] = text.partition("\n")[0]
        raised = record.exc_info[1] if record.exc_info else None
        if raised is not None:
            event["log_traceback"] = traceback_text(raised, text_of)
        elif record.stack_info:
            event["log_traceback"] = record.stack_info
        return event


def thread_ended(args: threading.ExceptHookArgs) -> None:
    """Log the error that ended a thread of a bot or a library."""
    error = args.exc_value
    if error is not None and not isinstance(error, SystemExit):
        name = args.thread.name if args.thread is not None else None
        failure = Failure(error)  # type: ignore[no-untyped-call]
        _uncaught_log.failure("the thread {thread!r} has ended by an error", failure, thread=name)


def _is_port_talk(event: LogEvent) -> bool:
    """True for Twisted's own lines about ports: the server logs better ones."""
    if event.get("log_namespace") != "log_legacy":
        return False
    text = " ".join(map(str, event.get("message", ())))
    return _PORT_TALK.fullmatch(text) is not None


def _about(event: LogEvent, form: str, value: object) -> LogEvent:
    """An event of our own, with the level and the time of C{event}."""
    return {
        "log_format": form,
        "log_level": event.get("log_level", LogLevel.info),
        "log_namespace": __name__,
        "log_time": event.get("log_time"),
        "lost" if isinstance(value, int) else "error": value,
    }


class _Syslog:
    """Lines for syslog."""

    def __init__(self, prefix: str) -> None:
        syslog.openlog(prefix)

    def write(self, text: str) -> None:
        for line in text.splitlines():
            syslog.syslog(line)

    def flush(self) -> None:
        pass


def observer_for(
    settings: LoggingSettings, twistd: Mapping[str, Any], reactor: IReactorFromThreads
) -> LogObserver:
    """
    Make the observer that writes where twistd's own would: standard output, C{--logfile} or
    C{twistd.log}, or syslog.  At SIGUSR1 a file is opened anew, if it was moved or removed.

    @param twistd: twistd's options: C{options.parent} in C{makeService}.
    @raise ConfigError: a daemon was told to log to its standard output, or the file cannot be
        written.
    """
    if twistd.get("syslog"):
        return LogObserver(settings, _Syslog(twistd.get("prefix") or "twisted"))
    path = twistd.get("logfile")
    foreground = twistd.get("nodaemon") or twistd.get("debug")
    if path == "-" and not foreground:
        raise ConfigError("--logfile: a daemon has no standard output to log to")
    if path == "-" or (foreground and not path):
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal that cannot show a character must not cost the line.
            sys.stdout.reconfigure(errors="backslashreplace")
        return LogObserver(settings, sys.stdout)
    return LogObserver(settings, _open(path or "twistd.log", twistd, reactor))


def _open(path: str, twistd: Mapping[str, Any], reactor: IReactorFromThreads) -> LogFile:
    def owner(name: str) -> int:
        """The user, or group, of twistd's options that will open it again."""
        return -1 if twistd.get(name) is None else int(twistd[name])

    try:
        file = LogFile(path, owner("uid"), owner("gid"))
    except OSError as error:
        raise ConfigError(f"--logfile: {path}: {error.strerror or error}") from None
    # As twistd does, unless something else handles the signal.
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.reopen))
    return file


class LoggedService(MultiService):
    """The service that holds all others; it gives the application its log observer."""

    def __init__(self, observer: LogObserver) -> None:
        """@param observer: twistd's log observer, unless its C{--logger} names another."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.observer = observer

    # IService

    def setServiceParent(self, parent: Any) -> None:
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.observer)  # type: ignore[no-untyped-call]
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
