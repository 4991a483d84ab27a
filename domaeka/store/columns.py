"""
What all tables share: their metadata, their types, and how rows are brought up to date.

All of it means the same to SQLite, PostgreSQL and MariaDB.  Names that strangers choose are never
compared in SQL, where C{a}, C{A} and C{"a "} may be equal: rows are known by L{key_hash}.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
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
from sqlalchemy.exc import IntegrityError

#: Length of what L{key_hash} returns, in characters.
KEY_CHARS: Final = 64
#: Longest name of a bot, a device, a version or an address, in characters.  Source:
#: docs/protocol.md, "Handshake".
NAME_CHARS: Final = 128
#: Longest title of a room or a person, in characters.  Source: docs/protocol.md, "Handshake".
TITLE_CHARS: Final = 1000

METADATA: Final = MetaData()
#: What C{Table} is given so that MariaDB keeps every character.
TABLE_OPTIONS: Final[Mapping[str, Any]] = {
    "mysql_charset": "utf8mb4",
    "mariadb_charset": "utf8mb4",
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


def key_hash(*names: str) -> str:
    """What a row is known by: equal for equal names only, whatever the database's collation."""
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
    C{text} as every database takes it: without NUL (PostgreSQL refuses it), without lone
    surrogates (nobody can encode them), cut to C{max_chars}.
    """
    text = text[:max_chars]
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

    @param table: one whose primary key is one column.
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
