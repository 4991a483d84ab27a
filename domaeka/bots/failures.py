"""Reports in the log of errors in bots' code."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Final, NamedTuple

from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.tracebacks import own_text, said_in_short, traceback_text, whole_text

_log = Logger()


class Report(NamedTuple):
    """An error in a bot's code: what happened, in our words, and the function that was called."""

    what: str
    error: BaseException
    traceback: TracebackType | None
    function: Callable[..., object] | None


#: Listeners of this process, as its log is one.
_listeners: Final[list[Callable[[Report], object]]] = []


@contextmanager
def listening(listener: Callable[[Report], object]) -> Iterator[None]:
    """Have C{listener} called with each error that is reported, in the thread that reports it."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report(
    what: str,
    failed: BaseException | Failure,
    ids: Mapping[str, str | None],
    function: Callable[..., object] | None = None,
) -> None:
    """
    Log an error with its traceback, the bot's own lines first.  Its text may quote the chat, as
    that of C{int("a message")} does: it is logged at debug, unless it is known to quote nothing.

    @param what: what happened, in our own words.
    @param ids: bot, device, room, log id and command, as far as they are known: never the text of
        a message.
    @param function: the bot's function that was called.
    """
    traceback = None
    error = failed
    if isinstance(failed, Failure):  # its error may have lost its traceback
        assert failed.value is not None  # Twisted's type allows it for failures that are being made
        error = failed.value
        traceback = failed.getTracebackObject()  # type: ignore[no-untyped-call]
    for listener in tuple(_listeners):
        listener(Report(what, error, traceback or error.__traceback__, function))
    known = {"command": None, "bot": None, "device": None, "room": None, "log_id": None, **ids}
    _log.error(
        "{what}: {error} (command {command!r}, bot {bot!r}, device {device!r}, room {room!r}, log "
        "id {log_id!r})",
        what=what,
        error=said_in_short(error, own_text, function),
        log_traceback=traceback_text(error, own_text, traceback, function),
        **known,
    )
    _log.debug("{what}: {error}", what=what, error=said_in_short(error, whole_text), **known)
