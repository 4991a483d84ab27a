"""
The common part of all tables: their metadata and types, and how rows are brought up to date, with
the same meaning for SQLite, PostgreSQL and MariaDB.

Names that strangers choose are never compared in SQL, where C{a}, C{A} and C{"a "} may be equal:
the key of a row is L{key_hash}.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    select,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
)

#: Length of a L{key_hash}, in characters.
KEY_CHARS: Final = 64
#: Longest name of a bot, a device, a version or an address, in characters.  Source:
#: docs/protocol.md, "Handshake".
NAME_CHARS: Final = 128
#: Longest title of a room or a person, in characters.  Source: docs/protocol.md, "Handshake".
TITLE_CHARS: Final = 1000

#: SQLAlchemy's names of MariaDB and MySQL.
MARIADB: Final = ("mariadb", "mysql")

METADATA: Final = MetaData()
#: The begin of each table's name, which tells it from those of others in the same database.
PREFIX: Final = "domaeka_"
#: Options of C{Table}, so that MariaDB keeps every character, and takes back what has failed.
OPTIONS: Final[dict[str, Any]] = {
    f"{kind}_{option}": value
    for kind in MARIADB
    for option, value in (("charset", "utf8mb4"), ("engine", "InnoDB"))
}

KEY: Final = String(KEY_CHARS)
NAME: Final = String(NAME_CHARS)
TITLE: Final = String(TITLE_CHARS)
#: Milliseconds since 1970.
TIME: Final = BigInteger()
#: A number that the database gives; SQLite does so for C{INTEGER} only.
ROW_ID: Final = BigInteger().with_variant(Integer(), "sqlite")
#: MariaDB's own C{TEXT} ends at 64 KiB.
LONG_TEXT: Final = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
#: What MariaDB says of a row under the name of an operation's failure: too large, or characters
#: that cannot be converted.  Source: its error codes.
_ROW_CODES: Final = frozenset({1118, 1300, 1366, 1977, 3988})
#: PostgreSQL's class of errors for rows and values beyond its limits.  Source: its appendix A.
_ROW_SQLSTATE: Final = "54"

_T = TypeVar("_T")


def table(name: str, *columns: Column[Any], metadata: MetaData = METADATA, **options: Any) -> Table:
    """Declare a table.  @param name: without L{PREFIX}.  @param options: more of C{Table}'s."""
    return Table(PREFIX + name, metadata, *columns, **OPTIONS, **options)


def key_hash(*names: str) -> str:
    """The key of a row: equal for equal names only, whatever the database's collation."""
    digest = hashlib.sha256()
    for name in names:
        raw = name.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b" % (len(raw), raw))  # so that ("ab", "c") is not ("a", "bc")
    return digest.hexdigest()


def milliseconds(seconds: float) -> int:
    """C{seconds} as they are stored."""
    return round(seconds * 1000)


def storable(text: str, max_chars: int) -> str:
    """
    C{text} as every database takes it: without NUL (PostgreSQL refuses it) and lone surrogates
    (no encoding has them), cut to C{max_chars}.
    """
    text = text[:max_chars]
    if text.isprintable():  # most are, and neither is
        return text
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, object]],
    fixed: Collection[str] = (),
) -> None:
    """
    Bring rows up to date, and insert those that are not there.

    @param table: its primary key is one column.
    @param rows: all with the same columns, each key once.
    @param fixed: columns that only a new row gets.
    """
    (key,) = table.primary_key.columns
    # Always in one order: two servers that want the same rows never wait for each other.
    ordered = sorted(rows, key=lambda row: str(row[key.name]))
    known = set(connection.scalars(select(key).where(key.in_([row[key.name] for row in ordered]))))
    changing = [name for name in ordered[0] if name != key.name and name not in fixed]
    update = (
        table.update()
        .where(key == bindparam("row_key"))
        .values({name: bindparam("new_" + name) for name in changing})
    )

    def change(row: Mapping[str, object]) -> dict[str, object]:
        return {"row_key": row[key.name]} | {"new_" + name: row[name] for name in changing}

    if known:
        connection.execute(update, [change(row) for row in ordered if row[key.name] in known])
    new = [dict(row) for row in ordered if row[key.name] not in known]
    if not new:
        return
    try:
        with connection.begin_nested():
            connection.execute(table.insert(), new)
    except IntegrityError:  # another server was faster with some of them
        for row in new:
            if not connection.execute(update, change(row)).rowcount:
                connection.execute(table.insert(), row)


def write_each(
    connection: Connection, rows: Sequence[_T], write: Callable[[Sequence[_T]], object]
) -> list[_T]:
    """
    Write rows together; if that fails, each by itself, once: one never stops the others.

    @param write: writes those that it is given.
    @return: those that the database refused.
    @raise Exception: the connection or the server failed, or all rows did so for a reason that is
        not theirs: nothing is to be committed, and all may be tried again.
    """
    try:
        _write_within(connection, rows, write)
        return []
    except (StatementError, ValueError, OverflowError) as error:
        if _is_trouble(error) or (len(rows) == 1 and not _is_of_row(error)):
            raise
        first = error
    if len(rows) == 1:
        return list(rows)
    refused = []
    theirs = False
    for row in rows:
        try:
            _write_within(connection, [row], write)
        except (StatementError, ValueError, OverflowError) as error:
            if _is_trouble(error):
                raise
            refused.append(row)
            theirs |= _is_of_row(error)
    if len(refused) == len(rows) and not theirs:
        raise first
    return refused


def _write_within(
    connection: Connection, rows: Sequence[_T], write: Callable[[Sequence[_T]], object]
) -> None:
    """Write within a savepoint."""
    savepoint = connection.begin_nested()
    try:
        write(rows)
    except BaseException:
        # It may be gone already: on a full disk SQLite takes the whole transaction back.
        with suppress(SQLAlchemyError):
            savepoint.rollback()
        raise
    savepoint.commit()


def is_refusal(error: Exception, dialect: Dialect) -> bool:
    """True if an error of a driver is surely the fault of the values that were to be written."""
    kind = dialect.loaded_dbapi.Error
    if isinstance(error, kind):
        return _is_of_row(DBAPIError.instance("", None, error, kind, dialect=dialect))
    return isinstance(error, ValueError | OverflowError)


def _is_of_row(error: BaseException) -> bool:
    """True if it is surely the fault of the values that were to be written."""
    if not isinstance(error, DBAPIError) or isinstance(error, DataError | IntegrityError):
        return True  # some cannot even be handed to the driver
    if str(getattr(error.orig, "sqlstate", "")).startswith(_ROW_SQLSTATE):
        return True
    return bool(error.orig and error.orig.args and error.orig.args[0] in _ROW_CODES)


def _is_trouble(error: Exception) -> bool:
    """True if it is the fault of the connection, or of the server's work: locks, space, time."""
    if not isinstance(error, DBAPIError):
        return False
    operation = isinstance(error, OperationalError | InterfaceError)
    return error.connection_invalidated or (operation and not _is_of_row(error))
