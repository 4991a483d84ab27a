"""
The state directory, and the secrets in it.

No secret is ever in an error, a log line or a C{repr} from here.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Final

import msgspec

from domaeka.config import MIN_SECRET_KEY_BYTES, PUBLISHED_KEY_SHA256, AuthSettings
from domaeka.errors import ConfigError
from domaeka.toml import check_private, parse_toml

#: Where in the state directory the secrets are.
SECRETS_NAME: Final = "secrets.toml"
#: Where in the state directory the name of the server is, and how long it may be, in characters.
NODE_NAME: Final = "node"
_MAX_NODE_CHARS: Final = 128
#: A new secret, in bytes: 256 bits.
_SECRET_BYTES: Final = 32
#: Largest file of secrets that is read, in bytes: five texts, and comments.
_MAX_FILE_BYTES: Final = 65_536


class Secrets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What only the server, its operator and its phones know.

    @ivar admin_token: opens the HTTP API; not needed by phones.
    @ivar previous_secret_key: accepted too, while keys are being changed; empty: none.
    @ivar previous_valid_until: when that ends, in seconds since 1970; 0: not by itself.
    """

    secret_key: str
    salt: str
    admin_token: str = ""
    previous_secret_key: str = ""
    previous_valid_until: float = 0.0

    def __repr__(self) -> str:
        """Nothing of what is secret."""
        return "<Secrets>"

    def accepted_keys(self, now: float) -> tuple[str, ...]:
        """
        The keys that phones may sign with, the one in force first.

        @param now: the time now, in seconds since 1970.
        """
        previous = self.previous_secret_key
        if not previous or 0 < self.previous_valid_until <= now:
            return (self.secret_key,)
        return (self.secret_key, previous)

    def previous_over(self, now: float) -> bool:
        """Whether there is a previous key that is accepted no more."""
        return bool(self.previous_secret_key) and len(self.accepted_keys(now)) == 1

    @property
    def previous_ends(self) -> float:
        """When the previous key is no longer accepted, in seconds since 1970."""
        return self.previous_valid_until or inf

    def has_published_key(self, now: float) -> bool:
        """Whether one of the keys that are accepted is known to everybody."""
        return any(map(is_published, self.accepted_keys(now)))


def state_directory(option: str | None, environment: Mapping[str, str]) -> Path:
    """
    Find the state directory, and make it if it is not there.

    A new or an empty one gets mode 0700; one that others may write to is refused.

    @raise ConfigError: it cannot be used: one line that says why.
    """
    path = state_path(option, environment)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != 0o700:
            # A directory with other things in it is not ours to close.
            with os.scandir(path) as entries:
                if next(entries, None) is None:
                    path.chmod(0o700)
                    status = path.stat()
    except FileExistsError:
        raise ConfigError(f"state directory {path}: there is a file of that name") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"state directory {path}: {_why(error)}") from None
    if status.st_mode & 0o022:
        raise ConfigError(f"state directory {path}: others may write to it; try: chmod 700 {path}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"state directory {path}: not writable")
    return path


def state_path(option: str | None, environment: Mapping[str, str]) -> Path:
    """
    Where the state directory is, or would be: C{option}, else the first of C{$STATE_DIRECTORY},
    else C{$XDG_STATE_HOME/domaeka}, else C{~/.local/state/domaeka}.

    @raise ConfigError: there is no home directory.
    """
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


def load_or_create_secrets(
    directory: Path, auth: AuthSettings | None = None, now: float = 0.0
) -> Secrets:
    """
    Read the secrets of a server, after making them if it has none yet.

    Processes that start at once agree: the first one's stand.

    @param auth: settings that go before what is in the file, where they are not empty.
    @param now: as for L{load_secrets}.
    @raise ConfigError: as for L{load_secrets}, or they cannot be written.
    """
    path = directory / SECRETS_NAME
    try:
        if not os.path.lexists(path):
            _create(path)
    except OSError as error:
        raise ConfigError(f"{path}: {_why(error)}") from None
    return load_secrets(directory, auth, now)


def load_secrets(directory: Path, auth: AuthSettings | None = None, now: float = 0.0) -> Secrets:
    """
    Read the secrets of a server.

    @param auth: settings that go before what is in the file, where they are not empty.
    @param now: in seconds since 1970: a previous key that has ended by then may be any.
    @raise ConfigError: there are none, others may read them, or they are too weak: one line that
        says which and why, and never the value.
    """
    path = directory / SECRETS_NAME
    result = read_secrets(path, auth, now)
    if len(result.admin_token.encode()) < MIN_SECRET_KEY_BYTES:
        raise ConfigError(f"{path}: admin_token: must have {MIN_SECRET_KEY_BYTES} bytes or more")
    return result


def read_secrets(path: Path, auth: AuthSettings | None = None, now: float = 0.0) -> Secrets:
    """
    Read a file of secrets, as far as a phone needs them.

    @param auth: settings that go before what is in the file, where they are not empty.
    @param now: as for L{load_secrets}.
    @raise ConfigError: as for L{load_secrets}.
    """
    found = _read(path)
    settings = auth or AuthSettings()
    given = given_secrets(settings)
    result = msgspec.structs.replace(found, **given)
    if "previous_secret_key" in given:
        result = msgspec.structs.replace(result, previous_valid_until=0.0)
    for name in ("secret_key", "previous_secret_key"):
        key: str = getattr(result, name)
        where = _place(settings, name) if name in given else f"{path}: {name}"
        if name == "secret_key" or key in result.accepted_keys(now):
            check_key(where, key, settings.accept_published_key)
    if not result.salt:
        raise ConfigError(f"{path}: salt: must not be empty")
    return result


def given_secrets(auth: AuthSettings) -> dict[str, str]:
    """
    What settings give of L{Secrets}, by its name there: as it is, or in a file.

    @raise ConfigError: a file cannot be read, is empty, or all may read it.
    """
    given = {}
    for name in ("secret_key", "salt", "previous_secret_key"):
        value: str = getattr(auth, name)
        file = getattr(auth, f"{name}_file")
        if file:
            where = _place(auth, name)
            value = _read_text(Path(file), where, stat.S_IRWXO).rstrip("\r\n")
            if not value:
                raise ConfigError(f"{where}: empty")
        if value:
            given[name] = value
    return given


def _place(auth: AuthSettings, name: str) -> str:
    """The setting that gives a secret, with its file."""
    file = getattr(auth, f"{name}_file")
    return f"auth.{name}_file: {file}" if file else f"auth.{name}"


def rotate_secret_key(directory: Path, keep: float, now: float) -> Secrets:
    """
    Put a new key in the place of that in C{secrets.toml}.

    @param keep: how long the old one is still accepted, in seconds; 0: not at all.
    @param now: in seconds since 1970.
    @return: what is in the file now.
    @raise ConfigError: as for L{load_secrets}, or it cannot be written.
    """
    old = load_secrets(directory, AuthSettings(accept_published_key=True), now)
    new = msgspec.structs.replace(
        old,
        secret_key=secrets.token_urlsafe(_SECRET_BYTES),
        previous_secret_key=old.secret_key if keep else "",
        previous_valid_until=float(int(now + keep)) if keep else 0.0,
    )
    path = directory / SECRETS_NAME
    try:
        _write(path, new, os.replace)
    except OSError as error:
        raise ConfigError(f"{path}: {_why(error)}") from None
    return new


def is_published(key: str) -> bool:
    """Whether a key is the one that old scripts were published with."""
    return hashlib.sha256(key.encode()).hexdigest() == PUBLISHED_KEY_SHA256


def check_key(name: str, key: str, accept_published: bool) -> None:
    """
    Refuse a key that is too weak.

    @param name: what it is called, and where it stands.
    @raise ConfigError: too short, or known to everybody: one line without the key.
    """
    if len(key.encode()) < MIN_SECRET_KEY_BYTES:
        raise ConfigError(f"{name}: must have {MIN_SECRET_KEY_BYTES} bytes or more")
    if not accept_published and is_published(key):
        raise ConfigError(
            f"{name}: the key that old scripts were published with, which everybody knows; for "
            "the days of a move set auth.accept_published_key"
        )


def private_file(path: Path) -> Path:
    """
    A file of the state directory that nobody else may read: the one that is there, or a new one.

    @raise ConfigError: it cannot be made: one line that says why.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigError(f"{path}: {_why(error)}") from None
    return path


def node_name(directory: Path) -> str:
    """
    What a server is called among others: made once, whatever its machine is called later.

    @raise ConfigError: it cannot be read or written: one line that says why.
    """
    path = directory / NODE_NAME
    try:
        name = path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        name = ""
    except OSError as error:
        raise ConfigError(f"{path}: {_why(error)}") from None
    if not name:
        name = f"{socket.gethostname()[:64]}-{secrets.token_hex(4)}"
        private_file(path).write_text(name + "\n", encoding="utf-8")
    return name[:_MAX_NODE_CHARS]


def _create(path: Path) -> None:
    """Write new secrets, unless another process has done so meanwhile."""
    new = Secrets(
        secret_key=secrets.token_urlsafe(_SECRET_BYTES),
        salt=secrets.token_urlsafe(_SECRET_BYTES),
        admin_token=secrets.token_urlsafe(_SECRET_BYTES),
    )
    # A link, unlike a rename, replaces nothing.
    with contextlib.suppress(FileExistsError):
        _write(path, new, os.link)


def _write(path: Path, content: Secrets, put: Callable[[str, Path], None]) -> None:
    """Write secrets as a whole or not at all, for nobody else to read."""
    values = msgspec.structs.asdict(content).items()
    # JSON's texts and numbers are TOML's, but for one character.
    lines = (
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values if value
    )
    text = "# The secrets of this server.  Whoever reads them can speak for every phone.\n"
    text += "".join(lines).replace("\x7f", "\\u007f")
    write_private(path, text.encode(), put)


def write_private(path: Path, data: bytes, put: Callable[[str, Path], None] = os.replace) -> None:
    """
    Have C{data}, all of it or nothing, in a file that nobody else may read.

    @param put: brings a temporary file to its place.
    """
    number, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                # It stays the server's own, though an administrator writes it.
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


def _read(path: Path) -> Secrets:
    text = _read_text(path, str(path), stat.S_IRWXG | stat.S_IRWXO)
    try:
        return msgspec.convert(parse_toml(text, path, secret=True), Secrets)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read_text(path: Path, where: str, forbidden: int) -> str:
    """
    What is in a file with a secret.

    @param where: what errors begin with.
    @param forbidden: bits that its mode must not have.
    """
    try:
        # O_NONBLOCK: a pipe in the file's place must not hold us up.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{where}: not a file")
            check_private(status, path, where, forbidden)
            raw = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {_why(error)}") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"{where}: more than {_MAX_FILE_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not UTF-8") from None


def _why(error: OSError | ValueError) -> str:
    """One plain reason."""
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT:
            return "there is no such file or directory"
        return error.strerror or str(error)
    return str(error)
