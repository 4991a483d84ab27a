"""TOML files: read, with the line of each error and key, and checked for who may read them."""

import os
import pwd
import re
import shlex
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from domaeka.errors import ConfigError

#: Users beside root and our own whose files with secrets are taken.
_trusted: Final[ContextVar[frozenset[int]]] = ContextVar("trusted", default=frozenset())


@contextmanager
def trusting(uid: int | None) -> Iterator[None]:
    """
    Take files with secrets of one more user: who the server will be, or whose a state directory
    is.

    @param uid: L{None}: of nobody else.
    """
    token = _trusted.set(_trusted.get() | ({uid} if uid is not None else set()))
    try:
        yield
    finally:
        _trusted.reset(token)


def is_trusted(uid: int) -> bool:
    """True for root, our own user, and who L{trusting} names."""
    return uid in (0, os.geteuid()) or uid in _trusted.get()


def owner_text(uid: int) -> str:
    """A user, for people."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except (KeyError, OverflowError):
        return f"uid {uid}"


def read_toml(path: Path, check: Callable[[os.stat_result], None] | None = None) -> dict[str, Any]:
    """
    Read a TOML file.

    @param check: refuses a file by its status, before it is read.
    @raise ConfigError: one line: what is wrong with it, and where.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if check is not None:
                check(os.fstat(file.fileno()))
            text = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    return parse_toml(text, path)


def parse_toml(text: str, path: Path, secret: bool = False) -> dict[str, Any]:
    """
    Read TOML.

    @param secret: true if an error must quote nothing of it.
    @raise ConfigError: as of L{read_toml}.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        why, _, place = str(error).rpartition(" (at ")
        found = re.match(r"line (\d+)", place)
        line = found[1] if found else len(text.splitlines())  # "end of document"
        raise ConfigError(f"{path}:{line}: {'not TOML' if secret else why or place}") from None
    except (ValueError, RecursionError):  # from int() and from the parser's own depth
        raise ConfigError(f"{path}: a number too long, or nested too deep") from None


def check_private(
    status: os.stat_result, path: Path, where: str, forbidden: int = stat.S_IRWXO
) -> None:
    """
    Refuse a file with a secret that others may read, or that belongs to somebody else: its owner
    knows what is in it, and may change it at any time.

    @param where: the beginning of the error.
    @param forbidden: bits that its mode must not have; a group may read it by default.
    @raise ConfigError: it has one of them, or is neither ours nor root's.
    """
    check_owner(status, path, where)
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        raise ConfigError(f"{where}: mode {mode:04o}: others may read it; try: chmod 600 {path}")


def check_owner(status: os.stat_result, path: Path, where: str) -> None:
    """
    Refuse a file that belongs to another user.

    @param where: the beginning of the error.
    @raise ConfigError: one line that says whose it is, and what to do.
    """
    if not is_trusted(status.st_uid):
        name = shlex.quote(str(path))
        raise ConfigError(
            f"{where}: belongs to {owner_text(status.st_uid)}, who knows what is in it and may "
            f"change it; if it is yours, try: chown {os.geteuid()} {name}"
        )


def check_trusted(status: os.stat_result, path: Path) -> None:
    """
    Refuse a file, found and not named by anybody, that others have written or may write.

    @param status: of the file, or of the link that leads to it.
    @raise ConfigError: one line that says whose it is, and what to do.
    """
    mode = stat.S_IMODE(status.st_mode)
    if not is_trusted(status.st_uid):
        raise ConfigError(
            f"{path}: belongs to another user, so it is not taken unasked: name it by --config, "
            "or start from another directory"
        )
    if not stat.S_ISLNK(status.st_mode) and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{path}: mode {mode:04o}: others may write to it, so it is not taken unasked: name it "
            f"by --config, or try: chmod go-w {path}"
        )


def lines_of(path: Path) -> dict[str, int]:
    """The line of each key in a TOML file of plain C{[section]} tables."""
    lines: dict[str, int] = {}
    section = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := re.match(r"\s*\[([\w.]+)\]", line):
            section = match[1]
            lines.setdefault(section, number)
        elif match := re.match(r"\s*([\w.-]+)\s*=", line):
            lines.setdefault(f"{section}.{match[1]}" if section else match[1], number)
    return lines
