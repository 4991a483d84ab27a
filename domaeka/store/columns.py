"""
The common part of all tables: their metadata and types, and how rows are brought up to date, with
the same meaning for SQLite, PostgreSQL and MariaDB.

Names that strangers choose are never compared in SQL, where C{a}, C{A} and C{"a "} may be equal:
the key of a row is L{key_hash}.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    Row,
    Select,
    String,
    Table,
    Text,
    select,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
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

#: Most rows that are read together where one of them is damaged.
_READ_TOGETHER: Final = 500
#: Most damaged rows that are named, and most characters of the name of one, and of the reason.
_NAMED_KEYS: Final = 3
_NAMED_CHARS: Final = 80
_REASON_CHARS: Final = 200

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
    @param fixed: columns that only a new row gets; not all of them.
    """
    (key,) = table.primary_key.columns
    # Always in one order: two servers that want the same rows never wait for each other.
    ordered = sorted((dict(row) for row in rows), key=lambda row: str(row[key.name]))
    changing = [name for name in ordered[0] if name != key.name and name not in fixed]
    kind = connection.dialect.name
    if kind in ("mysql", "mariadb"):
        insert = mysql.insert(table)
        values = {name: insert.inserted[name] for name in changing}
        connection.execute(insert.on_duplicate_key_update(values), ordered)
        return
    # The two classes are alike, and not related.
    new = (postgresql if kind == "postgresql" else sqlite).insert(table)
    values = {name: new.excluded[name] for name in changing}
    connection.execute(new.on_conflict_do_update(index_elements=[key], set_=values), ordered)


class Read(NamedTuple, Generic[_T]):
    """
    Rows that were read.

    @ivar damaged: the keys of rows that could not be, and C{reason}: of the first.
    """

    rows: list[_T]
    damaged: list[str]
    reason: str

    @property
    def described(self) -> str:
        """The damaged ones, in words."""
        named = ", ".join(repr(key)[:_NAMED_CHARS] for key in self.damaged[:_NAMED_KEYS])
        more = len(self.damaged) - _NAMED_KEYS
        return f"{named}{f' and {more} more' if more > 0 else ''} ({self.reason})"


def read_rows(
    connection: Connection,
    table: Table,
    order: Sequence[ColumnElement[Any]],
    limit: int,
    from_row: Callable[[Row[Any]], _T],
    keys: Collection[str] | None = None,
) -> Read[_T]:
    """
    Read the rows of a table, but for those that are damaged.

    @param table: its primary key is one column.
    @param from_row: makes of a row what is returned; raises where there is something else in it
        than we write.
    @param keys: only the rows of these keys.
    @raise Exception: the connection or the database failed.
    """
    (key,) = table.primary_key.columns
    found: dict[object, _T] = {}
    damaged: list[str] = []
    reasons: list[str] = []

    def made(rows: Iterable[Row[Any]]) -> None:
        for row in rows:
            name = row._mapping[key.name]
            try:
                found[name] = from_row(row)
            except (ValueError, TypeError, OverflowError) as error:
                damaged.append(str(name))
                reasons.append(str(error))

    def read(wanted: Select[Any]) -> Exception | None:
        """Read some.  @return: the error of one of them, whichever it is."""
        try:
            with connection.begin_nested():
                rows = connection.execute(wanted).all()
        except (SQLAlchemyError, ValueError, TypeError) as error:
            if not _is_unreadable(error):
                raise
            return error
        made(rows)
        return None

    wanted = () if keys is None else (key.in_(keys),)
    if read(select(table).where(*wanted).order_by(*order).limit(limit)) is not None:
        chosen = select(key).where(*wanted).order_by(*order).limit(limit)
        there = list(connection.scalars(chosen))
        waiting = [there]
        while waiting:
            some = waiting.pop()
            error = read(select(table).where(key.in_(some)))
            if error is not None and len(some) == 1:
                damaged.append(str(some[0]))
                reasons.append(str(getattr(error, "orig", error)))
            elif error is not None:
                size = min(_READ_TOGETHER, (len(some) + 1) // 2)
                waiting += [some[start : start + size] for start in range(0, len(some), size)]
        found = {name: found[name] for name in there if name in found}
    reason = (reasons[0].splitlines() or [""])[0][:_REASON_CHARS] if reasons else ""
    return Read(list(found.values()), damaged, reason)


def text_in(value: object) -> str:
    """The text of a column.  @raise TypeError: it is none."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of a text")
    return value


def seconds_in(value: object) -> float | None:
    """The time of a column, in seconds.  @raise TypeError: it is none."""
    if value is not None and not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} in place of a time")
    return None if value is None else value / 1000


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


def _is_unreadable(error: Exception) -> bool:
    """True if an error of reading is the fault of what is in a row."""
    if not isinstance(error, DBAPIError):
        return True
    if isinstance(error.orig, sqlite3.Error):
        # Only errors of the module itself have no code, as that of a text that is not UTF-8.
        return getattr(error.orig, "sqlite_errorcode", None) is None
    trouble = isinstance(error, OperationalError | InterfaceError)
    return not (trouble or error.connection_invalidated)


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
