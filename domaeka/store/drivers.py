"""
What is particular to one kind of database: how it is opened, brought up to date, and what its
errors say.
"""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, QueuePool, StaticPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from domaeka.store.threads import StoreClosed

#: How long SQLite waits for another process's lock, in seconds.
_BUSY_SECONDS: Final = 5.0
#: How large SQLite's journal may stay on disk, in bytes.
_JOURNAL_BYTES: Final = 67_108_864
#: Longest description of a failure, in characters.
_MAX_REASON_CHARS: Final = 200

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
#: Alembic's C{context} is one for the whole process.
_MIGRATING: Final = Lock()
#: A server that has gone is noticed: time-outs by driver, in seconds (C{tcp_user_timeout}: ms).
_TIMEOUTS: Final[Mapping[str, Mapping[str, int]]] = {
    "psycopg": {"connect_timeout": 10, "tcp_user_timeout": 30_000},
    "pymysql": {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60},
}


def sqlite_address(path: Path) -> URL:
    """The address of a SQLite database in the file C{path}, whatever characters that has."""
    return URL.create("sqlite", database=str(path))


def make_engine(address: URL, writes: bool) -> Engine:
    options: dict[str, Any] = {"hide_parameters": True}  # they may be chat
    if address.get_backend_name() != "sqlite":
        timeouts = _TIMEOUTS.get(address.get_driver_name(), {})
        return create_engine(
            address,
            connect_args={k: v for k, v in timeouts.items() if k not in address.query},
            isolation_level="READ COMMITTED",  # no gap locks
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            **options,
        )
    if address.database in (None, "", ":memory:"):
        options["poolclass"] = StaticPool  # one connection: another would see another database
    else:
        options.update(poolclass=QueuePool, pool_size=1, max_overflow=0)
    engine = create_engine(
        address,
        # Each thread has its own engine; only the closing is done from another one.
        connect_args={"check_same_thread": False, "timeout": _BUSY_SECONDS},
        **options,
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
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


def migrate(connection: Connection) -> None:
    """
    Bring the tables up to date.

    @raise StoreClosed: they are newer than this program.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    heads = MigrationContext.configure(connection).get_current_heads()
    for head in heads:
        try:
            scripts.get_revision(head)
        except CommandError:
            raise StoreClosed(
                f"it was made by a newer version of domaeka (revision {head!r:.40})"
            ) from None
    if set(heads) != set(scripts.get_heads()):
        config.attributes["connection"] = connection
        with _MIGRATING:
            command.upgrade(config, "head")


def reason_of(error: Exception) -> str:
    """What a database said, in one line, without what it was given."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error_text = str(error.orig)
    else:
        error_text = str(error)
    lines = error_text.strip().splitlines() or [type(error).__name__]
    return lines[0][:_MAX_REASON_CHARS]
