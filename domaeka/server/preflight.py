"""Checks of the machine and the settings, before a server starts."""

import contextlib
import ctypes
import os
import pwd
import resource
import shlex
import shutil
import socket
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from twisted.internet.task import Clock

from domaeka.config import Settings
from domaeka.errors import ConfigError, StoreError
from domaeka.gateway.joints import CLOSING_SHARE, LATE_SHARE
from domaeka.gateway.transport.certificates import Certificates, files_of
from domaeka.gateway.transport.endpoints import parse_endpoint
from domaeka.secrets import Secrets, check_secret_key, load_or_create_secrets, secrets_in_settings
from domaeka.state import (
    lock_directory,
    make_private_file,
    make_state_directory,
    node_name,
    state_path,
)
from domaeka.store.database import Database
from domaeka.store.drivers import sqlite_address, sqlite_file
from domaeka.web.admission import MAX_CONNECTIONS

#: Name of the embedded database in the state directory.
DATABASE_NAME: Final = "domaeka.db"
#: Suffixes of SQLite's files beside a database.
_SQLITE_FILES: Final = ("", "-wal", "-shm", "-journal")
#: Open files beside those of connections: the store, the log, ports, the socket in the state
#: directory with its 20 connections, and what bots open.
OTHER_FILES: Final = 100
#: Buffers from this size on get memory of their own, in bytes.  Source: glibc's initial value.
MMAP_THRESHOLD: Final = 131_072
#: Source: malloc.h.
_M_MMAP_THRESHOLD: Final = -3


class State(NamedTuple):
    """
    The files of a server on disk.

    @ivar node: its name among others.
    @ivar database: SQLAlchemy address.
    @ivar lock: keeps other servers out while it is open; L{None}: the file system has no locks.
    """

    directory: Path
    secrets: Secrets
    node: str
    database: URL
    lock: IO[bytes] | None


def open_state(
    option: str | None, environment: Mapping[str, str], settings: Settings, now: float
) -> State:
    """
    Find or make the files of a server, and keep other servers out.

    @param now: in seconds since 1970.
    @raise ConfigError: another server uses them, or one cannot be read or written: one line with
        the file and the reason.
    """
    directory = make_state_directory(option, environment)
    lock = lock_directory(directory)
    secrets = load_or_create_secrets(directory, settings.auth, now)
    node = node_name(directory)
    database = make_database_files(settings, directory)
    return State(directory, secrets, node, database, lock)


def make_database_files(settings: Settings, directory: Path) -> URL:
    """
    Make the files of SQLite's database, or close those that are there to others.

    @return: as of L{database_address}.
    @raise ConfigError: as of that, or one cannot be written: one line.
    """
    address = database_address(settings, directory)
    file = sqlite_file(address)
    if file is not None:
        url = settings.storage.url
        for path in (file.with_name(file.name + end) for end in _SQLITE_FILES):
            if path == file or path.exists():
                make_private_file(path, f"storage.url: cannot open {path}" if url else "")
    return address


def database_address(settings: Settings, directory: Path) -> URL:
    """
    The address of the store.

    @param directory: the state directory, which need not be there.
    @raise ConfigError: C{storage.url} cannot be used.
    """
    url = settings.storage.url
    if not url:
        return sqlite_address(directory / DATABASE_NAME)
    try:
        Database(url, Clock())
    except StoreError as error:
        raise ConfigError(str(error)) from None
    return make_url(url)


@contextlib.contextmanager
def acting_as(uid: int | None, gid: int | None) -> Iterator[None]:
    """
    Act as the user that C{twistd --uid} and C{--gid} make of root later: files made meanwhile are
    that user's, and rights that the user lacks are found now.

    @raise ConfigError: twistd could not change to this user.
    """
    before = os.geteuid(), os.getegid(), os.getgroups()
    if (uid is None and gid is None) or uid == before[0]:
        yield
        return
    if before[0] != 0:
        raise ConfigError("--uid, --gid: only root can become somebody else")
    if uid is not None:
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            raise ConfigError(f"--uid: {uid}: the system knows no such user") from None
        os.initgroups(user.pw_name, user.pw_gid if gid is None else gid)
    os.setegid(user.pw_gid if gid is None else gid)
    os.seteuid(0 if uid is None else uid)
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])


def check_pidfile(twistd: Mapping[str, Any]) -> None:
    """
    Check that twistd can write its pid file: its own error would be a traceback.

    @raise ConfigError: it cannot.
    """
    path = twistd.get("pidfile")
    if not path or twistd.get("chroot"):
        return
    target = path if os.path.lexists(path) else os.path.dirname(path)
    if not os.access(target, os.W_OK):
        raise ConfigError(
            f"--pidfile: {path}: not writable; give another one, or --pidfile= for none"
        )


def check(settings: Settings) -> None:
    """
    Check what the settings alone do not show: secrets, files, addresses, limits of the machine.
    Ports in use are no error here: the running server may use them.

    @raise ConfigError: which setting is wrong, and why.
    """
    for name, value in secrets_in_settings(settings.auth).items():
        if name != "salt":
            check_secret_key(f"auth.{name}", value, settings.auth.accept_published_key)
    allow_open_files(settings)
    for key, host in (
        ("server.interface", settings.server.interface),
        ("http.interface", settings.http.interface),
    ):
        try:
            socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"{key}: {host}: {why}") from None
    if settings.tls.certificate:
        Certificates(files_of(settings.tls))
    for endpoint in map(parse_endpoint, settings.server.endpoints):
        if endpoint.files is not None:
            Certificates(endpoint.files)
        # systemd gives its sockets to the server only.
        if endpoint.port is None and not endpoint.inner.startswith("systemd:"):
            endpoint.made_by_twisted(Clock())
    database_address(settings, Path())


def allow_open_files(settings: Settings) -> None:
    """
    Raise the limit of open files to what C{settings} need; and, as far as the machine allows it, to
    what there may be in the worst case, where all phones fall silent at once.

    @raise ConfigError: the machine does not allow it: one line that says what is missing.
    """
    connections = settings.server.max_connections
    # Beside closing connections there may be some that a balancer has not named the peer of yet.
    proxied = any(text.startswith("haproxy:") for text in settings.server.endpoints)
    share = 1 + CLOSING_SHARE * (2 if proxied else 1)
    needed = int(connections * share) + MAX_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    most = needed + int(connections * LATE_SHARE)
    wanted = most if hard == resource.RLIM_INFINITY else max(needed, min(most, hard))
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        raise ConfigError(
            f"server.max_connections: {connections} need {needed} open files, and there may be "
            f"{hard}: raise LimitNOFILE in systemd's unit, or ulimit -Hn"
        ) from None


def give_back_memory() -> None:
    """
    Make the C library return large buffers that were freed.  By default it keeps more and more of
    them: 100 lines of 1 MB that never end cost 75 MB for ever.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)


def operator_command(arguments: str, directory: Path) -> str:
    """
    The shell command by which an operator on this machine tells this server to do something, with
    the options that it needs to find the server.

    @param arguments: the words after C{domaeka}, quoted for a shell.
    """
    # In a virtual environment that is not active, for example.
    beside = os.path.join(sysconfig.get_path("scripts"), "domaeka")
    found = "domaeka" if shutil.which("domaeka") or not os.path.exists(beside) else beside
    words = [shlex.quote(found), arguments]
    # An operator's shell does not have the variable that systemd set for the server.
    environment = {name: os.environ[name] for name in os.environ if name != "STATE_DIRECTORY"}
    try:
        usual = state_path(None, environment) == directory
    except ConfigError:
        usual = False
    if not usual:
        words += ["--state-dir", shlex.quote(str(directory))]
    return " ".join(words)
