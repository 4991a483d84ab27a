"""The socket in the state directory: HTTP for the commands of this machine."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError

from domaeka.local_socket import SOCKET_MODE, SOCKET_NAME, local_path, remove_stale
from domaeka.twisted_internals import keep_file


class LocalPort:
    """
    Listens in a state directory.

    Only who may write to the directory can, so a command knows whom it reaches: nobody can be in
    the server's place while it is down.
    """

    def __init__(self, directory: Path, reactor: Any) -> None:
        self._directory = directory
        self._reactor = reactor
        self._port: Any = None
        #: The directory, open: the path of the socket may lead through it.
        self._number: int | None = None

    def listen(self, factory: Any) -> str | None:
        """
        Listen; a socket of a server that was killed is removed.

        @return: the reason why it is not possible; L{None}: it is.
        """
        try:
            self._number = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            path = local_path(self._directory, self._number)
            remove_stale(path)
            self._port = self._reactor.listenUNIX(path, factory, mode=SOCKET_MODE)
            keep_file(self._port)
        except CannotListenError as error:
            why = error.socketError
        except OSError as error:
            why = error
        else:
            return None
        self._close_directory()
        return getattr(why, "strerror", None) or str(why)

    def stop(self) -> "Deferred[Any]":
        """Listen no more, and remove the socket.  @return: fires once that is done."""
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        with suppress(OSError):  # somebody has removed it, or all of the directory
            os.unlink(self._directory / SOCKET_NAME)
        return maybeDeferred(port.stopListening).addBoth(self._close_directory)

    def _close_directory(self, result: Any = None) -> Any:
        if self._number is not None:
            os.close(self._number)
            self._number = None
        return result
