"""
The secrets of a server and its phones: made, read, checked and rotated.

No secret is ever in an error, a log line or a C{repr} from here.  Times are in seconds since 1970.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Final

import msgspec

from domaeka.config import MIN_SECRET_KEY_BYTES, PUBLISHED_KEY_SHA256, AuthSettings
from domaeka.errors import ConfigError
from domaeka.state import (
    OTHERS,
    SECRETS_NAME,
    located_errors,
    read_private,
    trusting_owner,
    write_private,
)
from domaeka.toml import parse_toml

#: A new secret, in bytes: 256 bits.
_SECRET_BYTES: Final = 32


class Secrets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The secrets that only the server, its operator and its phones know.

    @ivar admin_token: opens the HTTP API; not needed by phones.
    @ivar previous_secret_key: accepted too, while keys are being changed; empty: none.
    @ivar previous_valid_until: when that ends; 0: never.
    """

    secret_key: str
    salt: str
    admin_token: str = ""
    previous_secret_key: str = ""
    previous_valid_until: float = 0.0

    def __repr__(self) -> str:
        """Without the secrets."""
        return "<Secrets>"

    def accepted_keys(self, now: float) -> tuple[str, ...]:
        """The keys that phones may sign with, the one in force first."""
        previous = self.previous_secret_key
        if not previous or 0 < self.previous_valid_until <= now:
            return (self.secret_key,)
        return (self.secret_key, previous)

    def previous_over(self, now: float) -> bool:
        """True if there is a previous key that is no longer accepted."""
        return bool(self.previous_secret_key) and len(self.accepted_keys(now)) == 1

    @property
    def previous_ends(self) -> float:
        """When the previous key is no longer accepted, in seconds since 1970."""
        return self.previous_valid_until or inf

    def has_published_key(self, now: float) -> bool:
        """True if one of the accepted keys is known to everybody."""
        return any(map(is_published, self.accepted_keys(now)))


def load_or_create_secrets(
    directory: Path, auth: AuthSettings | None = None, now: float = 0.0
) -> Secrets:
    """
    Read the secrets of a server; make them first if it has none yet.

    Processes that start at the same time agree: those of the first one are kept.

    @param auth: settings that override the file, where they are not empty.
    @raise ConfigError: as for L{load_secrets}, or they cannot be written.
    """
    path = directory / SECRETS_NAME
    with located_errors(str(path)):
        if not os.path.lexists(path):
            _create(path)
    return load_secrets(directory, auth, now)


def load_secrets(directory: Path, auth: AuthSettings | None = None, now: float = 0.0) -> Secrets:
    """
    Read the secrets of a server.

    @param auth: settings that override the file, where they are not empty.
    @param now: a previous key that has ended by then is not checked.
    @raise ConfigError: there are none, others may read them, or they are too weak: one line with
        the key and the reason, never the value.
    """
    path = directory / SECRETS_NAME
    result = read_secrets(path, auth, now)
    if len(result.admin_token.encode()) < MIN_SECRET_KEY_BYTES:
        raise ConfigError(f"{path}: admin_token: must have {MIN_SECRET_KEY_BYTES} bytes or more")
    return result


def read_secrets(path: Path, auth: AuthSettings | None = None, now: float = 0.0) -> Secrets:
    """
    Read those of a file's secrets that a phone needs.

    @param auth: settings that override the file, where they are not empty.
    @raise ConfigError: as for L{load_secrets}.
    """
    settings = auth or AuthSettings()
    with trusting_owner(path.parent):
        found = _read(path)
        given = secrets_in_settings(settings)
    result = msgspec.structs.replace(found, **given)
    if "previous_secret_key" in given:
        result = msgspec.structs.replace(result, previous_valid_until=0.0)
    for name in ("secret_key", "previous_secret_key"):
        key: str = getattr(result, name)
        where = _setting_of(settings, name) if name in given else f"{path}: {name}"
        if name == "secret_key" or key in result.accepted_keys(now):
            check_secret_key(where, key, settings.accept_published_key)
    if not result.salt:
        raise ConfigError(f"{path}: salt: must not be empty")
    return result


def secrets_in_settings(auth: AuthSettings) -> dict[str, str]:
    """
    The values for L{Secrets} that settings give, by their names there: as text, or in a file.

    @raise ConfigError: a file cannot be read, is empty, or all may read it.
    """
    given = {}
    for name in ("secret_key", "salt", "previous_secret_key"):
        value: str = getattr(auth, name)
        file = getattr(auth, f"{name}_file")
        if file:
            where = _setting_of(auth, name)
            value = read_private(Path(file), where, stat.S_IRWXO).rstrip("\r\n")
            if not value:
                raise ConfigError(f"{where}: empty")
        if value:
            given[name] = value
    return given


def _setting_of(auth: AuthSettings, name: str) -> str:
    """The setting that gives a secret, with its file."""
    file = getattr(auth, f"{name}_file")
    return f"auth.{name}_file: {file}" if file else f"auth.{name}"


def proof_of(admin_token: str, nonce: str, port: int) -> str:
    """
    The proof that a server knows the admin token, which does not tell it.

    @param nonce: chosen by who asks.
    @param port: the server's port as it sees it: a proof is of no use at another one.
    """
    text = f"domaeka server|{port}|{nonce}"
    return hmac.new(admin_token.encode(), text.encode(), hashlib.sha256).hexdigest()


def rotate_secret_key(directory: Path, keep: float, now: float) -> Secrets:
    """
    Replace the key in C{secrets.toml} by a new one.

    @param keep: how long the old one is still accepted, in seconds; 0: not at all.
    @return: the secrets that are in the file now.
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
    with located_errors(str(path)):
        _write(path, new, os.replace)
    return new


def is_published(key: str) -> bool:
    """True for the key that old scripts were published with."""
    return hashlib.sha256(key.encode()).hexdigest() == PUBLISHED_KEY_SHA256


def check_secret_key(name: str, key: str, accept_published: bool) -> None:
    """
    Refuse a key that is too weak.

    @param name: its name, and where it is from.
    @raise ConfigError: too short, or known to everybody: one line without the key.
    """
    if len(key.encode()) < MIN_SECRET_KEY_BYTES:
        raise ConfigError(f"{name}: must have {MIN_SECRET_KEY_BYTES} bytes or more")
    if not accept_published and is_published(key):
        raise ConfigError(
            f"{name}: the key that old scripts were published with, which everybody knows; for "
            "the days of a move set auth.accept_published_key"
        )


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
    """Write secrets as a whole or not at all; nobody else may read them."""
    values = msgspec.structs.asdict(content).items()
    # JSON's texts and numbers are valid TOML, but for one character.
    lines = (
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values if value
    )
    text = "# The secrets of this server.  Whoever reads them can speak for every phone.\n"
    text += "".join(lines).replace("\x7f", "\\u007f")
    write_private(path, text.encode(), put)


def _read(path: Path) -> Secrets:
    text = read_private(path, str(path), OTHERS)
    try:
        return msgspec.convert(parse_toml(text, path, secret=True), Secrets)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
