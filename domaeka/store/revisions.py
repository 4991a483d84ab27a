"""
The revision of the tables: whose they are, which code may use them, and migrations.

Tables begin with L{PREFIX}, and L{VERSION} among them shows that they are ours.  Nothing else in
the database is read or changed.  Of two servers that are started at once, one migrates.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Inspector, MetaData, String, func, inspect, select, text
from sqlalchemy.exc import DBAPIError

from domaeka.store.columns import MARIADB, PREFIX, table
from domaeka.store.threads import DatabaseFailed, StoreClosed

# At info it describes its own work, at each start.
logging.getLogger("alembic").setLevel(logging.WARNING)

#: The tables' revision, in one row.  C{min_version} is the oldest revision whose code may use
#: tables of this one; L{None}: only code that knows C{version_num}.
VERSION: Final = table(
    "version",
    Column("version_num", String(32), primary_key=True),
    Column("min_version", String(32)),
    metadata=MetaData(),
)
#: Longest time that a server waits while another one migrates, in seconds; then it tries again.
LOCK_SECONDS: Final = 30
#: The advisory lock on PostgreSQL: any number that others are unlikely to use.
_LOCK_KEY: Final = 0x646F6D61656B61  # "domaeka"

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
#: Alembic's C{context} is one for the whole process.
_MIGRATING: Final = Lock()

#: The version table, revisions, and tables of before the prefix, each with columns that tell it.
_FORMER_VERSION: Final = "alembic_version"
_FORMER_REVISIONS: Final = frozenset({"0001", "0002", "0003"})
_FORMER_TABLES: Final[Mapping[str, frozenset[str]]] = {
    "bans": frozenset({"network", "made_at", "expires", "times", "made_by"}),
    "chat_lines": frozenset({"direction", "room_id", "user_hash", "log_id", "text"}),
    "devices": frozenset({"device_key", "approval", "first_seen", "device_info"}),
    "mailbox": frozenset({"node_key", "device_key", "part", "data"}),
    "rooms": frozenset({"room_key", "approval", "is_group", "last_heard"}),
    "sessions": frozenset({"device_key", "newest_hash", "older_hash", "expires"}),
}
#: The revision that code of before the prefix finds where its tables were: it does not start.
_TAKEN_OVER: Final = "0004"


class Found(NamedTuple):
    """
    The state of a database.

    @ivar revision: of our tables; L{None}: there are none.
    @ivar min_version: the oldest revision whose code may use them.
    @ivar is_former: True if they have the names of before the prefix.
    """

    revision: str | None = None
    min_version: str | None = None
    is_former: bool = False


class _Revisions:
    """The revisions that this code knows."""

    def __init__(self) -> None:
        self.config = Config()
        self.config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        scripts = list(ScriptDirectory.from_config(self.config).walk_revisions())
        #: The newest comes first.
        self.known = [script.revision for script in scripts]
        self.min_version = max(getattr(script.module, "min_version", "") for script in scripts)

    def suit(self, found: Found) -> bool:
        """See L{is_current}."""
        if found.revision is None or found.is_former:
            return False
        if found.revision in self.known:
            return found.revision == self.known[0]
        if found.min_version in self.known:
            return True
        raise StoreClosed(
            f"it was made by a newer version of domaeka (revision {found.revision!r:.40})"
        )


def touch(connection: Connection) -> None:
    """
    Write something that changes nothing.  Until the transaction ends, another one that does so
    waits.
    """
    connection.execute(VERSION.update().values(version_num=VERSION.c.version_num))


def newest() -> str:
    """The revision of the tables that this code makes."""
    return _Revisions().known[0]


def is_current(found: Found) -> bool:
    """
    @return: True if tables can be used as they are, false if they are to be migrated.
    @raise StoreClosed: they are newer than this program, and not for it.
    """
    return _Revisions().suit(found)


def find(connection: Connection) -> Found:
    """
    Look at a database, and change nothing.

    @raise StoreClosed: it has a table of ours by its name that is not ours.
    """
    inspector = inspect(connection)
    names = set(inspector.get_table_names())
    if VERSION.name in names:
        columns = {column["name"] for column in inspector.get_columns(VERSION.name)}
        if not {column.name for column in VERSION.columns} <= columns:
            raise not_ours(VERSION.name)
        row = connection.execute(select(VERSION)).first()
        return Found() if row is None else Found(row.version_num, row.min_version)
    former = _former_revision(connection, inspector, names)
    if former is not None:
        return Found(former, None, True)
    theirs = sorted(name for name in names if name.startswith(PREFIX))
    if theirs:
        raise not_ours(theirs[0])
    return Found()


def not_ours(name: str) -> StoreClosed:
    """The error of a table that bears our prefix and is somebody else's."""
    return StoreClosed(
        f"a table {name:.64} is there that domaeka has not made: rename it, or give domaeka a "
        "database of its own"
    )


def _former_revision(connection: Connection, inspector: Inspector, names: set[str]) -> str | None:
    """The revision of tables with the names of before the prefix; L{None}: they are not ours."""
    if _FORMER_VERSION not in names:
        return None
    for name, ours in _FORMER_TABLES.items():
        # MariaDB may have been cut short between two of them.
        there = PREFIX + name if PREFIX + name in names else name
        if there not in names:
            return None
        if not ours <= {column["name"] for column in inspector.get_columns(there)}:
            return None
    rows = connection.execute(text(f"SELECT version_num FROM {_FORMER_VERSION}")).all()
    if len(rows) != 1 or rows[0][0] not in _FORMER_REVISIONS:
        return None
    return str(rows[0][0])


def migrate(connection: Connection) -> tuple[str | None, str]:
    """
    Bring the tables up to date, by the code of the revisions that they lack.

    @return: the revision before (L{None}: there were no tables), and now.
    @raise StoreClosed: they are newer than this program and not for it, or not ours.
    @raise DatabaseFailed: another server migrates them, and takes long.
    """
    revisions = _Revisions()
    before = find(connection)
    if before.revision is not None and revisions.suit(before):
        return before.revision, before.revision
    with _locked(connection):
        found = find(connection)  # another server may have been faster
        if not revisions.suit(found):
            _upgrade(connection, found, revisions)
        now = find(connection).revision
    assert now is not None
    return before.revision, now


def _upgrade(connection: Connection, found: Found, revisions: _Revisions) -> None:
    if found.is_former:
        _rename(connection)
    if not inspect(connection).has_table(VERSION.name):
        VERSION.create(connection)
    if found.is_former:
        connection.execute(VERSION.insert().values(version_num=found.revision))
    # Where statements cannot be taken back, code that is too old is kept out before the first.
    least = VERSION.update().values(min_version=revisions.min_version)
    connection.execute(least)
    revisions.config.attributes["connection"] = connection
    revisions.config.attributes["version_table"] = VERSION.name
    with _MIGRATING:
        command.upgrade(revisions.config, "head")
    connection.execute(least)
    if found.is_former:
        connection.execute(text(f"UPDATE {_FORMER_VERSION} SET version_num = '{_TAKEN_OVER}'"))


def _rename(connection: Connection) -> None:
    """Give tables of before the prefix their names of today."""
    there = inspect(connection).get_table_names()
    names = [name for name in _FORMER_TABLES if PREFIX + name not in there]
    if connection.dialect.name in MARIADB:  # in one statement: all or none
        pairs = ", ".join(f"{name} TO {PREFIX}{name}" for name in names)
        statements = [f"RENAME TABLE {pairs}"] if names else []
    else:
        statements = [f"ALTER TABLE {name} RENAME TO {PREFIX}{name}" for name in names]
    for statement in statements:
        connection.execute(text(statement))


@contextlib.contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    """Keep other servers from migrating.  On SQLite each transaction that writes does."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
        yield
    elif connection.dialect.name in MARIADB:
        # Names are those of all databases of a server, and have up to 64 characters.
        name = func.concat(PREFIX, func.md5(func.database()))
        if not connection.scalar(select(func.get_lock(name, LOCK_SECONDS))):
            raise DatabaseFailed("another server is migrating the tables")
        try:
            yield
            # As each change of a table has: the next server must see the new revision.
            connection.execute(text("COMMIT"))
        finally:
            with contextlib.suppress(DBAPIError):  # a connection that is gone holds none
                connection.execute(select(func.release_lock(name)))
    else:
        yield
