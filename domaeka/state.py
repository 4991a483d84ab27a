"""The state directory, and the files in it that only the server's user may read."""

import contextlib
import errno
import fcntl
import os
import secrets
import shlex
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from domaeka.errors import ConfigError
from domaeka.toml import check_owner, check_private, is_trusted, owner_text, trusting

#: Name of the file of secrets in the state directory.
SECRETS_NAME: Final = "secrets.toml"
#: Name of the file with the server's name in it, and the longest name, in characters.
NODE_NAME: Final = "node"
_MAX_NODE_CHARS: Final = 128
#: Name of the file on which the running server has a lock.
LOCK_NAME: Final = "server.lock"
#: Name of our own directory in the root of a volume.
_OWN_NAME: Final = "domaeka"
#: Bits of a mode by which others than the owner may write, and may do anything.
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
#: The mode that Kubernetes makes of 0700 in a volume with an fsGroup, at each start of a pod.
_FS_GROUP_MODE: Final = stat.S_ISGID | stat.S_IRWXU | stat.S_IRWXG
#: Largest private file that is read, in bytes: five secrets, and comments.
_MAX_FILE_BYTES: Final = 65_536


class DirectoryInUse(ConfigError):
    """A server uses the state directory."""


def make_state_directory(option: str | None, environment: Mapping[str, str]) -> Path:
    """
    Find the state directory, and make it if it is not there.

    A new or an empty one gets mode 0700, as does one of ours that Kubernetes has opened for a
    group; any other that others may write to is refused, and so is one that is neither ours nor
    root's.

    @raise ConfigError: it cannot be used: one line that says why.
    """
    path = state_path(option, environment)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _close_to_others(number)
            status = os.fstat(number)
        finally:
            os.close(number)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"state directory {path}: there is a file of that name") from None
    except PermissionError as error:
        raise ConfigError(f"state directory {path}: {_reason_of(error)} {_owner_hint()}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"state directory {path}: {_reason_of(error)}") from None
    if not is_trusted(status.st_uid):
        # Its owner may have put the secrets there, and may change them at any time.
        uid, name = os.geteuid(), shlex.quote(str(path))
        raise ConfigError(
            f"state directory {path}: it belongs to another user, {owner_text(status.st_uid)}: "
            f"give one of your own: install -d -o {uid} -m 700 DIR; if all that is in it is "
            f"yours, try: chown -R {uid} {name}"
        )
    if status.st_mode & _OTHERS_WRITE:
        raise ConfigError(
            f"state directory {path}: others may write to it; try: chmod 700 {path}, or give a "
            "directory below it"
        )
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise ConfigError(f"state directory {path}: its file system is read-only")
    effective = os.access in os.supports_effective_ids
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective):
        raise ConfigError(f"state directory {path}: not writable {_owner_hint()}")
    return path


def _close_to_others(number: int) -> None:
    """
    Give a directory of ours mode 0700 if it is not in use yet, or if only an fsGroup has opened
    it; then close its files, too.
    """
    status = os.fstat(number)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode == stat.S_IRWXU:
        return
    names = os.listdir(number)
    # A directory with other things in it is not ours to close.
    if names and (mode != _FS_GROUP_MODE or SECRETS_NAME not in names):
        return
    os.fchmod(number, stat.S_IRWXU)
    for name in names:
        found = os.stat(name, dir_fd=number, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode) and found.st_uid == status.st_uid:
            os.chmod(name, stat.S_IMODE(found.st_mode) & ~OTHERS, dir_fd=number)


def _owner_hint() -> str:
    """The end of an error: whose the directory has to be."""
    uid = os.geteuid()
    return f"for uid {uid}; give --state-dir one of its own: install -d -o {uid} -m 700 DIR"


def state_path(option: str | None, environment: Mapping[str, str]) -> Path:
    """
    The path of the state directory, which need not exist: C{option}, else the first of
    C{$STATE_DIRECTORY}, else C{$XDG_STATE_HOME/domaeka}, else C{~/.local/state/domaeka}.

    If that is the root of a volume in a container (root owns it and others may write to it), the
    path is C{domaeka} below it.

    @raise ConfigError: there is no home directory, or somebody else has put a symbolic link there.
    """
    path = _named_path(option, environment)
    if _is_volume(path):
        path /= _OWN_NAME
    for part in (path, *path.parents):
        try:
            status = part.lstat()
        except (OSError, ValueError):
            continue  # made, or refused, later
        if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
            raise ConfigError(
                f"state directory {path}: {part} is a symbolic link of another user (uid "
                f"{status.st_uid}): give the directory itself"
            )
    return path


def _is_volume(path: Path) -> bool:
    """True if the state directory is to be one of our own below C{path}."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return False
    if not stat.S_ISDIR(status.st_mode) or not status.st_mode & _OTHERS_WRITE:
        return False
    # Root, too, must find the files that a server has put there.
    used = os.path.lexists(path / _OWN_NAME / SECRETS_NAME)
    return used or (status.st_uid == 0 and os.geteuid() != 0)


def _named_path(option: str | None, environment: Mapping[str, str]) -> Path:
    """The path that L{state_path} is given."""
    if option:
        return Path(os.path.abspath(os.path.expanduser(option)))
    # systemd separates several by colons.
    if given := environment.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(os.path.abspath(given))
    xdg = environment.get("XDG_STATE_HOME", "")
    # Source: XDG Base Directory Specification: a relative path is to be ignored.
    if os.path.isabs(xdg):
        return Path(xdg) / "domaeka"
    home = environment.get("HOME") or os.path.expanduser("~")
    if not os.path.isabs(home):
        raise ConfigError("state directory: there is no home directory; give --state-dir")
    return Path(home) / ".local" / "state" / "domaeka"


@contextlib.contextmanager
def trusting_owner(directory: Path) -> Iterator[None]:
    """
    Take files with secrets of the user whose C{directory} is, as root does for a server's: a
    server itself has refused one that is not its own or root's.
    """
    try:
        uid = directory.stat().st_uid
    except (OSError, ValueError):  # it is not there, or refused later
        uid = None
    with trusting(uid):
        yield


def lock_directory(directory: Path) -> IO[bytes] | None:
    """
    Keep other servers out of a state directory.

    @return: a lock, held until it is closed or the process has ended, in any way; L{None} where
        the file system has no locks.
    @raise DirectoryInUse: another server is there.
    @raise ConfigError: it cannot be written.
    """
    path = directory / LOCK_NAME
    with trusting_owner(directory):  # root may lock that of a server
        lock = os.fdopen(_open_private(path, str(path)), "r+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if error.errno != errno.EWOULDBLOCK:
            return None
        raise DirectoryInUse(
            f"state directory {directory}: another server uses it, or has not ended yet; give each "
            "its own with --state-dir"
        ) from None
    return lock


def make_private_file(path: Path, where: str = "") -> None:
    """
    Make a file that nobody else may read, or close one that exists to others; its group keeps the
    rights that it has.

    @param where: the beginning of errors; by default the path.
    @raise ConfigError: it cannot be made, or not be written: one line that says why.
    """
    os.close(_open_private(path, where or str(path)))


def _open_private(path: Path, where: str) -> int:
    with located_errors(where):
        number = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY, 0o600)
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{where}: not a file")
        check_owner(status, path, where)
        if status.st_mode & stat.S_IRWXO:
            with contextlib.suppress(PermissionError):  # another user's
                os.fchmod(number, 0o600)
            check_private(os.fstat(number), path, where)
    except BaseException:
        os.close(number)
        raise
    return number


def node_name(directory: Path) -> str:
    """
    The name of a server among others: made once, and kept if its machine is renamed.

    @raise ConfigError: it cannot be read or written: one line that says why.
    """
    path = directory / NODE_NAME
    name = read_private(path, str(path), 0).strip() if os.path.lexists(path) else ""
    if not name:
        name = f"{socket.gethostname()[:64]}-{secrets.token_hex(4)}"
        with located_errors(str(path)):
            write_private(path, f"{name}\n".encode())
    return name[:_MAX_NODE_CHARS]


def write_private(path: Path, data: bytes, put: Callable[[str, Path], None] = os.replace) -> None:
    """
    Write C{data}, all of it or nothing, to a file that nobody else may read.

    @param put: moves a temporary file to its place.
    """
    number, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                # It stays the server's own if an administrator writes it.
                before = path.stat()
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
        put(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def read_private(path: Path, where: str, forbidden: int) -> str:
    """
    The text of a file with a secret.

    @param where: the beginning of errors.
    @param forbidden: bits that its mode must not have.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in the place must not block us
    with located_errors(where), open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{where}: not a file")
        check_private(status, path, where, forbidden)
        raw = file.read(_MAX_FILE_BYTES + 1)
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"{where}: more than {_MAX_FILE_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not UTF-8") from None


@contextlib.contextmanager
def located_errors(where: str) -> Iterator[None]:
    """Turn errors of files into a L{ConfigError} that begins with C{where}."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {_reason_of(error)}") from None


def _reason_of(error: OSError | ValueError) -> str:
    """The reason, for people."""
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT:
            return "there is no such file or directory"
        return error.strerror or str(error)
    return str(error)
