"""
Work on a store without a server: look at it, check it, migrate it, copy it.

All of it waits for the database, and is for commands.
"""

import contextlib
import os
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import URL, Connection, Engine, create_engine, func, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from domaeka.errors import StoreError
from domaeka.store import durable
from domaeka.store.bans import BANS
from domaeka.store.bot_values import BOT_SUMS, BOT_VALUES
from domaeka.store.chatlog import CHAT_BATCHES, CHAT_LINES
from domaeka.store.columns import MARIADB, PREFIX
from domaeka.store.decisions import DECISIONS
from domaeka.store.devices import DEVICES
from domaeka.store.drivers import check_encoding, make_engine, reason_of, sqlite_file
from domaeka.store.imports.importer import IMPORTS
from domaeka.store.outboxes import OUTBOXES
from domaeka.store.revisions import Found, find, is_current, migrate, newest
from domaeka.store.roles import ROLES
from domaeka.store.rooms import ROOMS
from domaeka.store.schedules import SCHEDULES
from domaeka.store.sessions import SESSIONS
from domaeka.store.threads import StoreClosed

#: All tables with rows of ours.
TABLES: Final = (
    BANS,
    BOT_SUMS,
    BOT_VALUES,
    CHAT_BATCHES,
    CHAT_LINES,
    DECISIONS,
    DEVICES,
    IMPORTS,
    OUTBOXES,
    ROLES,
    ROOMS,
    SCHEDULES,
    SESSIONS,
    durable.OUTBOXES,
    durable.MESSAGES,
    durable.TAKEN,
    durable.LOG,
)
#: Most faults that are named of one database.
MAX_FAULTS: Final = 10
#: Longest time that a copy waits for locks of SQLite's, in seconds.
_LOCK_SECONDS: Final = 30.0


class Report(NamedTuple):
    """
    The state of a store.

    @ivar name: its address, without the password.
    @ivar kind: the database, with its version.
    @ivar encoding: of its text.
    @ivar revision: of the tables, in words.
    @ivar rows: the number of rows by table; empty, unless it was checked.
    @ivar faults: each in one line.
    """

    name: str
    kind: str
    encoding: str
    revision: str
    rows: dict[str, int]
    faults: list[str]


def report(address: URL, thorough: bool = False) -> Report:
    """
    Look at a store, and change nothing.

    @param thorough: also check that it is sound, and count the rows: it is read as a whole.
    @raise StoreError: it cannot be used, or not by this version: one line.
    """
    with _connected(address, _reader(address)) as connection:
        check_encoding(connection)
        found = find(connection)
        rows: dict[str, int] = {}
        faults: list[str] = []
        if thorough:
            faults += _integrity(connection)
            if found.revision is not None:
                rows, missing = _count(connection, found)
                faults += missing
        return Report(
            _name(address),
            _kind(connection),
            _encoding(connection),
            _revision(found),
            rows,
            faults[:MAX_FAULTS],
        )


def upgrade(address: URL) -> tuple[str | None, str]:
    """
    Bring the tables of a store up to date.

    @return: the revision before (L{None}: there were no tables), and now.
    @raise StoreError: it could not be done: one line.
    """
    with _connected(address, make_engine(address, writes=True)) as connection:
        check_encoding(connection)
        return migrate(connection)


def back_up(address: URL, target: Path) -> int:
    """
    Copy a database of SQLite's, which may be in use, to a new file that nobody else may read.

    @return: the size of the copy, in bytes.
    @raise StoreError: it could not be done, and there is no new file: one line.  Of a database on a
        server it has the command that does it.
    """
    source = _existing_file(address)
    if source is None:
        command = _dump_command(address, target)
        raise StoreError(f"the store is not in a file of SQLite's; use: {command}")
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise StoreError(f"{target}: there is such a file already") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{target}: {getattr(error, 'strerror', None) or error}") from None
    try:
        with contextlib.closing(sqlite3.connect(source, timeout=_LOCK_SECONDS)) as connection:
            connection.isolation_level = None
            # Also where the file is of a former version, and cannot give pages back.
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("VACUUM INTO ?", (str(target),))
        with target.open("rb") as copy:
            os.fsync(copy.fileno())
            return os.fstat(copy.fileno()).st_size
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error | OSError):
            raise StoreError(f"{source}: not copied: {reason_of(error)}") from None
        raise


def _dump_command(address: URL, target: Path) -> str:
    """The shell command that copies a database on a server; it asks for the password."""
    file, database = shlex.quote(str(target)), shlex.quote(address.database or "")
    options = {"host": address.host, "port": address.port, "user": address.username}
    socket = address.query.get("unix_socket")
    if address.get_backend_name() == "postgresql":
        options = {"username" if name == "user" else name: v for name, v in options.items()}
        host = address.query.get("host")
        options["host"] = options["host"] or (host if isinstance(host, str) else None)
        command = f"pg_dump --format=custom --file={file}"
        end = f"--dbname={database}"
    else:
        options["socket"] = socket if isinstance(socket, str) else None
        command = f"mariadb-dump --single-transaction --result-file={file} --password"
        end = database
    given = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value]
    return " ".join([command, *given, end])


def _name(address: URL) -> str:
    return address.render_as_string(hide_password=True)


def _existing_file(address: URL) -> Path | None:
    """
    The file of SQLite's database, if it is one.

    @raise StoreError: it is not there: SQLite would make it.
    """
    file = sqlite_file(address)
    if file is not None and not file.exists():
        raise StoreError(f"the store {_name(address)} is not there yet: the first start makes it")
    return file


def _reader(address: URL) -> Engine:
    if address.get_backend_name() != "sqlite":
        return make_engine(address, writes=False)
    # Not as the server opens it: that would make a write-ahead log beside a copy.
    return create_engine(address, hide_parameters=True)


@contextlib.contextmanager
def _connected(address: URL, engine: Engine) -> Iterator[Connection]:
    """A transaction; errors are one line."""
    try:
        _existing_file(address)
        with engine.begin() as connection:
            yield connection
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StoreError(f"cannot use the store {_name(address)}: {reason_of(error)}") from None
    except StoreClosed as error:
        raise StoreError(f"cannot use the store {_name(address)}: {error}") from None
    finally:
        engine.dispose()


def _kind(connection: Connection) -> str:
    dialect = connection.dialect
    names = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MySQL"}
    name = "MariaDB" if getattr(dialect, "is_mariadb", False) else names.get(dialect.name, "")
    version = ".".join(map(str, (dialect.server_version_info or ())[:3]))
    return f"{name or dialect.name} {version}"


def _encoding(connection: Connection) -> str:
    if connection.dialect.name == "sqlite":
        return str(connection.scalar(text("PRAGMA encoding")))
    if connection.dialect.name == "postgresql":
        return str(connection.scalar(text("SHOW server_encoding")))
    return "utf8mb4"  # the tables'


def _revision(found: Found) -> str:
    """@raise StoreClosed: it is too new."""
    current = is_current(found)
    if found.revision is None:
        return "none: the first start makes the tables"
    if not current:
        return f"{found.revision}: the next start, or domaeka db upgrade, makes it {newest()}"
    if found.revision != newest():
        return f"{found.revision}, of a newer version that lets this one use it"
    return found.revision


def _integrity(connection: Connection) -> list[str]:
    if connection.dialect.name != "sqlite":
        return []
    rows = connection.scalars(text(f"PRAGMA integrity_check({MAX_FAULTS})"))
    faults = [" ".join(str(row).split()) for row in rows]
    return [] if faults == ["ok"] else faults


def _count(connection: Connection, found: Found) -> tuple[dict[str, int], list[str]]:
    """@return: the number of rows by table, and the faults of the tables."""
    inspector = inspect(connection)
    there = set(inspector.get_table_names())
    current = is_current(found)
    mariadb = connection.dialect.name in MARIADB and current
    rows: dict[str, int] = {}
    faults: list[str] = []
    for table in TABLES:
        name = table.name.removeprefix(PREFIX) if found.is_former else table.name
        if name not in there:
            if current:  # else a migration may make it
                faults.append(f"the table {name} is missing")
            continue
        engine = inspector.get_table_options(name).get("mysql_engine") if mariadb else None
        if engine not in (None, "InnoDB"):
            faults.append(f"the table {name} is {engine}'s: ALTER TABLE {name} ENGINE = InnoDB")
        count = select(func.count()).select_from(text(name))
        rows[name] = connection.scalar(count) or 0
    return rows, faults
