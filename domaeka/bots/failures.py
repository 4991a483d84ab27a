"""Reports in the log of errors in bots' code."""

from collections.abc import Callable, Mapping

from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.tracebacks import own_text, said_in_short, traceback_text, whole_text

_log = Logger()


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
