"""The end of a server that cannot go on."""

import atexit
import os
import sys
from typing import Any, Final

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.config import SettingsSource
from domaeka.errors import ConfigError
from domaeka.logs import MAX_MESSAGE_CHARS, quote

#: Exit status of a start that cannot work.
EXIT_CANNOT_START: Final = 1


class Fatal:
    """Ends the process if it cannot get something that it needs."""

    log = Logger()

    def __init__(self, reactor: Any, source: SettingsSource) -> None:
        """@param source: locates the setting that an error names."""
        self._reactor = reactor
        self._source = source

    def end(self, reason: Failure | str) -> None:
        """
        Log the reason in one line, and end with L{EXIT_CANNOT_START}; nothing if the end has begun.

        @param reason: a setting, a colon, and the error.
        """
        try:
            # At once where the reactor runs, else as soon as it does.
            self._reactor.callWhenRunning(self._reactor.stop)
        except ReactorNotRunning:
            return  # it stops already
        error = self._source.locate(reason if isinstance(reason, str) else reason.getErrorMessage())
        self.log.critical("domaeka ends: {error}", error=ConfigError(error))  # a text would be cut
        # sys.stderr leads to the log by now.
        print(f"domaeka: {quote(error, MAX_MESSAGE_CHARS)}", file=sys.__stderr__)
        # twistd ends with 0 once its reactor has stopped in order.
        atexit.register(os._exit, EXIT_CANNOT_START)
