"""
The log: one event a line, as text or as JSON, safe to look at.

What strangers send ends up in log lines.  So whatever cannot be printed is escaped (control
characters, newlines, ANSI sequences, bidirectional overrides, lone surrogates) and everything is
cut.  A traceback follows its line, indented, in text; in JSON it stands in the same line.

C{twistd} makes its own observer unless the application has one, and asks for it only after
C{makeService} and before it logs its own first line.  So L{observer_for} makes one that writes
where twistd's options say, and L{LoggedService} gives it to the application.
"""

import io
import json
import os
import re
import signal
import sys
import syslog
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from twisted.application.service import MultiService
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile
from zope.interface import implementer

from domaeka.config import LoggingSettings
from domaeka.errors import ConfigError

#: Longest text of one field, in characters: enough for every name and id of docs/protocol.md but
#: a room's, which may have 1,000.
MAX_FIELD_CHARS: Final = 200
#: Longest message, and longest sum of the fields beside it in JSON, in characters.
MAX_MESSAGE_CHARS: Final = 3000
MAX_FIELDS_CHARS: Final = 3000
#: Longest traceback, in characters.  Of a longer one the beginning and, twice that, the end stay.
MAX_TRACEBACK_CHARS: Final = 16_000
#: What Twisted's ports say at info, whatever their factories are told.
_PORT_TALK: Final = re.compile(r"\S+( \(\w+\))* starting on \S+|\(\S+ Port \S+ Closed\)")
#: Size at which a log file is put aside, in bytes, and how many of those are kept.
LOG_FILE_BYTES: Final = 16 * 1024 * 1024
LOG_FILES_KEPT: Final = 10
#: Mode of a log file that is made: at debug, chat may be in it.
LOG_FILE_MODE: Final = 0o640

_LEVELS: Final = (
    LogLevel.debug,
    LogLevel.info,
    LogLevel.warn,
    LogLevel.error,
    LogLevel.critical,
)
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

    What is quoted once is not changed by quoting it again.

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
    """An event's text, in one line, quoted.  Never raises for what is in the event."""
    form = event.get("log_format")
    if form is None:
        failure = _failure_of(event)
        form = "" if failure is None else str(event.get("why") or "Unhandled Error")
    fields = {
        key: value[: MAX_FIELD_CHARS - 1] + "…"
        if isinstance(value, str) and len(value) > MAX_FIELD_CHARS and not key.startswith("log_")
        else value
        for key, value in event.items()
    }
    fields["log_format"] = form
    return quote(formatEvent(fields), MAX_MESSAGE_CHARS)


def text_line(event: LogEvent) -> str:
    """An event as text: time, level, logger and message; then the traceback, if it has one."""
    message = message_of(event)
    traceback = _traceback_of(event)
    if not message and not traceback:
        return ""
    line = f"{_time_of(event)} {_level_of(event):<8} {_logger_of(event)}: {message}\n"
    if traceback:
        line += "".join(f"\t{part}\n" for part in traceback.split("\n"))
    return line


def json_line(event: LogEvent) -> str:
    """
    An event as a JSON object: C{time}, C{level}, C{logger}, C{message}, then those of its fields
    that are plain values, then C{failure} if it has a traceback.
    """
    message = message_of(event)
    traceback = _traceback_of(event)
    if not message and not traceback:
        return ""
    line: dict[str, object] = {
        "time": _time_of(event),
        "level": _level_of(event),
        "logger": _logger_of(event),
        "message": message,
    }
    room = MAX_FIELDS_CHARS
    for key, value in event.items():
        if key in _RESERVED or key.startswith("log_"):
            continue
        if isinstance(value, str):
            value = quote(str(value))
        elif isinstance(value, float):
            # JSON knows neither NaN nor the infinities.
            value = value if abs(value) < 1e308 else str(value)
        elif value is not None and not isinstance(value, (bool, int)):
            continue
        room -= len(key) + (len(value) if isinstance(value, str) else 20)
        if room < 0:
            break
        line[quote(key)] = value
    if traceback:
        line["failure"] = traceback
    return json.dumps(line, ensure_ascii=False) + "\n"


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


def _traceback_of(event: LogEvent) -> str:
    """The traceback of an event: quoted, cut, its lines apart; or nothing."""
    failure = _failure_of(event)
    if failure is None:
        return ""
    try:
        text = str(failure.getTraceback()).rstrip("\n")
    except Exception as error:
        text = f"(no traceback: {type(error).__name__})"
    lines = _shorten(text).split("\n")
    return _shorten("\n".join(quote(line, MAX_TRACEBACK_CHARS) for line in lines))


def _shorten(text: str) -> str:
    if len(text) <= MAX_TRACEBACK_CHARS:
        return text
    third = (MAX_TRACEBACK_CHARS - 100) // 3
    left_out = len(text) - 3 * third
    return f"{text[:third]}\n… {left_out} characters left out …\n{text[-2 * third :]}"


class Output(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object:
        """Take whole lines."""

    def flush(self) -> object:
        """Bring them out."""


@implementer(ILogObserver)
class LogObserver:
    """
    Write events to one place.  Any thread may call it.  It never raises: lines that could not be
    written are counted, and their number is the first thing written when that works again.

    @ivar lost: how many those are.
    """

    def __init__(self, settings: LoggingSettings, output: Output) -> None:
        """
        @param settings: level and format.
        @param output: where lines go.
        """
        self._output = output
        self._lock = threading.RLock()
        self.lost = 0
        self.configure(settings)

    def configure(self, settings: LoggingSettings) -> None:
        """Take another level and format, from the next event on."""
        self._line = json_line if settings.format == "json" else text_line
        least = LogLevel.levelWithName(settings.level)
        self._shown = frozenset(level for level in _LEVELS if level >= least)

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
            # Wherever this could be told is where it cannot be written.
            self.lost += 1
        else:
            self.lost = 0


def _is_port_talk(event: LogEvent) -> bool:
    """Whether Twisted tells what the server has told in words of its own: where it listens."""
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
    C{twistd.log}, or syslog.  A file is put aside at L{LOG_FILE_BYTES} and at SIGUSR1.

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
    return LogObserver(settings, _open(path or "twistd.log", reactor))


def _open(path: str, reactor: IReactorFromThreads) -> Any:
    try:
        file = LogFile.fromFullPath(  # type: ignore[no-untyped-call]
            path,
            rotateLength=LOG_FILE_BYTES,
            maxRotatedFiles=LOG_FILES_KEPT,
            # A file that is there keeps its mode.
            defaultMode=None if os.path.exists(path) else LOG_FILE_MODE,
        )
    except OSError as error:
        raise ConfigError(f"--logfile: {path}: {error.strerror or error}") from None
    # As twistd does, unless somebody else wants the signal.
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return file


class LoggedService(MultiService):
    """The service that holds all others; it brings the application its log observer."""

    def __init__(self, observer: LogObserver) -> None:
        """@param observer: what twistd is to log with, unless its C{--logger} says otherwise."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.observer = observer

    # IService

    def setServiceParent(self, parent: Any) -> None:
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.observer)  # type: ignore[no-untyped-call]
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
