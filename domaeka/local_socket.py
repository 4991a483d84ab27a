"""
The Unix socket in the state directory, by which commands on this machine reach the server.

Whoever listens there may write to the directory, so nobody else is shown the admin token.
"""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from domaeka.errors import ConfigError
from domaeka.toml import owner_text

#: Name of the socket in the state directory, and its mode.
SOCKET_NAME: Final = "api.sock"
SOCKET_MODE: Final = 0o600
#: Longest path of a socket, in bytes.  Source: unix(7), sun_path, and macOS's, which is shorter.
MAX_PATH_BYTES: Final = 103
#: Source: unix(7), SO_PEERCRED: a struct ucred of pid, uid and gid.
_UCRED: Final = struct.Struct("3i")


def local_path(directory: Path, number: int) -> str:
    """
    A path of the socket that is short enough for the kernel.

    @param number: the directory, open: it must stay so while the path is used.
    @raise OSError: there is none.
    """
    path = str(directory / SOCKET_NAME)
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        return path
    handle = f"/proc/self/fd/{number}"
    if not os.path.isdir(handle):
        raise OSError(f"its path has more than {MAX_PATH_BYTES} bytes")
    return f"{handle}/{SOCKET_NAME}"


def remove_stale(path: str) -> None:
    """
    Remove the socket of a server that was killed.  Only to be called under the directory's lock.

    @raise OSError: something else has that name, or it cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(f"{SOCKET_NAME} is there and is no socket")
        os.unlink(path)


@contextlib.contextmanager
def open_directory(directory: Path) -> Iterator[int]:
    """The directory, open."""
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield number
    finally:
        os.close(number)


def connect_local(directory: Path, timeout: float) -> socket.socket:
    """
    Connect to the server of a state directory.

    @param timeout: longest time that connecting may take, in seconds.
    @raise ConfigError: others may write to the directory, or another user listens there.
    @raise OSError: nobody listens.
    """
    with open_directory(directory) as number:
        status = os.fstat(number)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"state directory {directory}: others may write to it: the token is not shown to "
                f"who listens there; try: chmod 700 {directory}"
            )
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(local_path(directory, number))
            peer = _user_of(connection)
        except BaseException:
            connection.close()
            raise
    if peer not in (None, 0, status.st_uid):
        connection.close()
        raise ConfigError(
            f"{directory / SOCKET_NAME}: {owner_text(peer)} listens there, and the directory "
            f"belongs to {owner_text(status.st_uid)}: the token is not shown"
        )
    return connection


def _user_of(connection: socket.socket) -> int | None:
    """The user who listens; L{None} where the platform does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    user: int = _UCRED.unpack(raw)[1]
    return user
