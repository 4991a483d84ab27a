"""The differences between databases: opening, encodings, the text of errors."""

import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from sqlalchemy import URL, Connection, Engine, QueuePool, StaticPool, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from domaeka.store.threads import StoreClosed

# It warns of each batch of which a row is refused; the row is in our own log.
logging.getLogger("psycopg").setLevel(logging.ERROR)

#: Longest time that SQLite waits for another process's lock, in seconds.
BUSY_SECONDS: Final = 5.0
#: Largest size at which SQLite's journal stays on disk, in bytes.
_JOURNAL_BYTES: Final = 67_108_864
#: Longest description of a failure, in characters.
_MAX_REASON_CHARS: Final = 200

#: What is said where SQLite's file is damaged.
_MALFORMED: Final = (
    ": stop the server; domaeka db check names the damage; restore a copy "
    '(docs/operations.md, "A damaged database")'
)
#: The error of a connection over which nothing can be written: PostgreSQL's (its appendix A,
#: C{read_only_sql_transaction}), and MariaDB's codes (read_only, a transaction that only reads).
_READ_ONLY_SQLSTATE: Final = "25006"
_READ_ONLY_CODES: Final = frozenset({1290, 1792, 1836})
#: Encodings of PostgreSQL's databases that have Hangul; EUC_KR has 2,350 of the 11,172 syllables.
_KOREAN_ENCODINGS: Final = frozenset({"UTF8", "EUC_KR"})
#: Time-outs by driver, to notice a server that is gone, in seconds (C{tcp_user_timeout}: ms).
_TIMEOUTS: Final[Mapping[str, Mapping[str, int]]] = {
    "psycopg": {"connect_timeout": 5, "tcp_user_timeout": 30_000},
    "pymysql": {"connect_timeout": 5, "read_timeout": 60, "write_timeout": 60},
}


def sqlite_address(path: Path) -> URL:
    """The address of a SQLite database in the file C{path}, whatever its characters."""
    return URL.create("sqlite", database=str(path))


def sqlite_file(address: URL) -> Path | None:
    """The file of a database; L{None}: it is not SQLite's, or in memory."""
    if address.get_backend_name() != "sqlite":
        return None
    (name, *_), options = address.get_dialect()().create_connect_args(address)
    if options.get("uri") and name.startswith("file:"):
        parts = urlsplit(name)
        query = parse_qs(parts.query)
        if "vfs" in query or query.get("mode") == ["memory"]:
            return None
        name = unquote(parts.path)
    return None if name in ("", ":memory:") else Path(os.path.abspath(name))


def make_engine(address: URL, writes: bool) -> Engine:
    options: dict[str, Any] = {"hide_parameters": True}  # they may be chat
    if address.get_backend_name() != "sqlite":
        driver = address.get_driver_name()
        arguments: dict[str, Any] = {
            name: seconds
            for name, seconds in _TIMEOUTS.get(driver, {}).items()
            if name not in address.query
        }
        if driver == "psycopg":
            arguments["client_encoding"] = "utf8"  # by default, that of the database
        engine = create_engine(
            address,
            connect_args=arguments,
            isolation_level="READ COMMITTED",  # no gap locks
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            **options,
        )

        @event.listens_for(engine, "handle_error")
        def failed(context: ExceptionContext) -> None:
            # The server has a successor, or will take writes again: a new connection finds out.
            if _is_read_only(context.original_exception):
                context.is_disconnect = True

        return engine
    if address.database in (None, "", ":memory:"):
        options["poolclass"] = StaticPool  # one connection: another would see another database
    else:
        options.update(poolclass=QueuePool, pool_size=1, max_overflow=0)
    engine = create_engine(
        address,
        # Each thread has its own engine; only the closing is done from another one.
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
        **options,
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        # Only of a file that is made now: in another one each connection would write that down.
        if writes and connection.execute("PRAGMA page_count").fetchone() == (0,):
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        for pragma in (
            "journal_mode=WAL",
            f"journal_size_limit={_JOURNAL_BYTES}",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            f"query_only={'OFF' if writes else 'ON'}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A transaction that turns from reading to writing cannot wait for another's lock.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _is_read_only(error: BaseException) -> bool:
    """True for the error of a server's driver that it takes no writes over this connection."""
    code = error.args[0] if error.args else None
    return getattr(error, "sqlstate", None) == _READ_ONLY_SQLSTATE or code in _READ_ONLY_CODES


class StoreFile:
    """The file of SQLite's database, which somebody may remove or replace while it is used."""

    def __init__(self, path: Path | None) -> None:
        """@param path: L{None}: there is none, and nothing is watched."""
        self._path = path
        self._opened: tuple[int, int] | None = None

    @property
    def is_watched(self) -> bool:
        """True if there is one."""
        return self._opened is not None

    def opened(self) -> None:
        """It has been opened."""
        self._opened = None if self._path is None else self._identity()

    def look(self) -> str | None:
        """L{None} while it is the one that was opened; else what has happened, and what to do."""
        if self._path is None or self._opened is None:
            return None
        try:
            found = self._identity()
        except OSError as error:
            return f"{self._path} cannot be looked at: {error.strerror}"
        if found == self._opened:
            return None
        return (
            f"{self._path} was {'removed' if found is None else 'replaced'} while it is used: stop "
            "the server, restore a copy, start it again; what is stored meanwhile is lost"
        )

    def _identity(self) -> tuple[int, int] | None:
        assert self._path is not None
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


def check_encoding(connection: Connection) -> None:
    """
    Check that a database can hold Korean.

    @raise StoreClosed: it cannot: one line that says what to do.
    """
    if connection.dialect.name != "postgresql":
        return  # SQLite has Unicode only, and MariaDB's tables name their own
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding not in _KOREAN_ENCODINGS:
        raise StoreClosed(
            f"its encoding {encoding} cannot hold Korean: make another database, with "
            "CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
        )


def reason_of(error: Exception) -> str:
    """A database's error in one line, without the values of the statement."""
    cause: BaseException = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        cause = error.orig
    lines = str(cause).strip().splitlines() or [type(error).__name__]
    code = getattr(cause, "sqlite_errorcode", None)
    advice = _MALFORMED if code is not None and code & 0xFF == sqlite3.SQLITE_CORRUPT else ""
    return lines[0][:_MAX_REASON_CHARS] + advice
