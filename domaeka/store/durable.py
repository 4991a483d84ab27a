"""
Durable delivery in the store: the outboxes of clients that acknowledge, and what they have said.

A batch is one row of a log, which costs little while somebody waits for it; now and then all that
is in the log is brought into the tables at once, of which most has come and gone by then.

A batch may be stored twice, for the answer to a COMMIT may be lost: rows have keys of our own, and
a row that is there is left as it is.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from secrets import randbits
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    Table,
    select,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import DBAPICursor as Cursor
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from domaeka.interfaces import DeviceKey
from domaeka.policies.records import Batch, KeptOutbox, MessageRow, OutboxRow, TakenRow, joined
from domaeka.policies.snapshots import MAX_CLIENT_IDS
from domaeka.store.columns import (
    KEY,
    NAME,
    NAME_CHARS,
    ROW_ID,
    is_refusal,
    key_hash,
    milliseconds,
    storable,
    table,
)
from domaeka.store.database import Database

#: Most of a message in one row, in bytes: MariaDB takes 16 MiB in one statement, where bytes that
#: it must escape count twice.
PART_BYTES: Final = 1_048_576
#: Most changes, and bytes, in the log of a server: on SQLite as many changes of short messages are
#: in the tables after 5 ms.
LOG_ROWS: Final = 2000
LOG_BYTES: Final = 1_048_576
#: Most of a batch that is written in the reactor's thread, in bytes: a third of a millisecond.
AT_ONCE_BYTES: Final = 65_536
_BYTES: Final = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
_POSTGRESQL: Final = postgresql.dialect()  # type: ignore[no-untyped-call]

_T = TypeVar("_T")


def _number(name: str) -> Column[int]:
    return Column(name, BigInteger, primary_key=True, autoincrement=False)


# On SQLite a table without row ids is its own index: half of the pages are written.
OUTBOXES: Final = table(
    "outboxes",
    _number("outbox"),
    Column("node_key", KEY, nullable=False),
    Column("bot_name", NAME, nullable=False),
    Column("device_id", NAME, nullable=False),
    Column("epoch", NAME, nullable=False),
    Column("next_number", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
MESSAGES: Final = table(
    "outgoing",
    _number("outbox"),
    _number("record"),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("data", _BYTES, nullable=False),
    sqlite_with_rowid=False,
)
TAKEN: Final = table(
    "taken",
    _number("outbox"),
    _number("record"),
    Column("client_id", NAME, nullable=False),
    Column("answers", Integer, nullable=False),
    Column("body", _BYTES),
    sqlite_with_rowid=False,
)
LOG: Final = table(
    "durable_log",
    Column("number", ROW_ID, primary_key=True, autoincrement=False),
    Column("node_key", KEY, nullable=False),
    Column("data", _BYTES, nullable=False),
)


_INTO_LOG: Final = f"INSERT INTO {LOG.name} (number, node_key, data) VALUES"
#: Statements that write a batch to the log, unless it is there.
_NOTE: Final = {
    "sqlite": f"{_INTO_LOG} (?, ?, ?) ON CONFLICT DO NOTHING",
    "postgresql": f"{_INTO_LOG} (%s, %s, %s) ON CONFLICT DO NOTHING",
    "mysql": f"{_INTO_LOG} (%s, %s, %s) ON DUPLICATE KEY UPDATE number = number",
}
_NOTE["mariadb"] = _NOTE["mysql"]


class DurableStore:
    """The outboxes of one server's clients."""

    _log = Logger()

    def __init__(self, database: Database, node: str) -> None:
        """@param node: the name of this server; others on the store have outboxes of their own."""
        self._database = database
        self._node_key = key_hash(node)
        self._refused: set[int] = set()  # outboxes; used in the database's thread
        self._logged: list[Batch] = []  # in the log, and not in the tables
        self._rows = self._bytes = 0  # of them
        #: The row of the log for the next batch, and the first that is there: one behind the other,
        #: apart from those of other servers.
        self._next = self._first = randbits(62)

    def store(self, batch: Batch) -> "Deferred[None] | None":
        """
        Store a batch in one transaction, but for rows that the database refuses: the log counts
        them, and they are lost if the server is killed.

        @param batch: the one before, if that failed; else the next one.
        @return: fires then; fails with L{StoreError}; L{None}: it is stored.
        """
        database, rows = self._database, self._rows + batch.rows
        try:
            data = msgspec.msgpack.encode(batch)
        except (ValueError, OverflowError):
            data = b""  # a row that every database refuses
        size = self._bytes + len(data)
        if not data or batch.forgotten or rows > LOG_ROWS or size > LOG_BYTES:
            stored = database.run_direct(partial(self._bring_in, batch))
            return stored.addCallback(self._was_brought_in)
        row = self._next, self._node_key, data
        if len(data) <= AT_ONCE_BYTES and database.write_at_once(_NOTE["sqlite"], row):
            self._was_noted(None, batch, rows, size)
            return None
        noted = database.run_direct(partial(self._note, batch, row))
        return noted.addCallback(self._was_noted, batch, rows, size)

    def _note(
        self,
        batch: Batch,
        row: tuple[object, ...],
        cursor: Cursor,
        dialect: Dialect,
        careful: bool,
    ) -> int | None:
        """Write a batch to the log; if that is refused, to the tables.  @return: as L{_write}."""
        if careful:
            return self._bring_in(batch, cursor, dialect, careful)
        cursor.execute(_NOTE[dialect.name], row)
        return None

    def _was_noted(self, refused: int | None, batch: Batch, rows: int, size: int) -> None:
        if refused is not None:
            self._was_brought_in(refused)
            return
        self._logged.append(batch)
        self._rows, self._bytes = rows, size
        self._next += 1

    def _was_brought_in(self, refused: int) -> None:
        self._logged = []
        self._rows = self._bytes = 0
        self._first = self._next
        if refused:
            self._log.warn(
                "durable delivery: the store refused {refused} rows: a crash loses them",
                refused=refused,
            )

    def _bring_in(self, batch: Batch, cursor: Cursor, dialect: Dialect, careful: bool) -> int:
        """Write all that is in the log, and C{batch}, to the tables.  @return: as L{_write}."""
        refused = self._write(joined([*self._logged, batch]), cursor, dialect, careful)
        mark = _mark(dialect)
        cursor.execute(
            f"DELETE FROM {LOG.name} WHERE number BETWEEN {mark} AND {mark}",
            (self._first, self._next),
        )
        return refused

    def _write(self, batch: Batch, cursor: Cursor, dialect: Dialect, careful: bool) -> int:
        """In the database's thread.  @return: how many rows the database refused."""
        write = _Statements(cursor, dialect, careful)
        # Without its outbox nothing of it would ever be read, or removed.
        self._refused.update(one.outbox for one in write.outboxes(batch.outboxes, self._node_key))
        lost = self._refused
        write.messages([one for one in batch.messages if one.outbox not in lost])
        write.taken([one for one in batch.taken if one.outbox not in lost])
        write.change(MESSAGES, "UPDATE {table} SET number = {value}", batch.numbers)
        write.change(TAKEN, "UPDATE {table} SET answers = {value}", batch.answers)
        write.change(TAKEN, "UPDATE {table} SET body = NULL", batch.answered)
        write.change(MESSAGES, "DELETE FROM {table}", batch.gone)
        for outbox in batch.pruned:
            write.prune(outbox)
        for outbox in batch.forgotten:
            for each in (MESSAGES, TAKEN, OUTBOXES):
                write.run(each, "DELETE FROM {table}", outbox)
            lost.discard(outbox)
        return write.refused

    def load(self) -> "Deferred[list[KeptOutbox]]":
        """All outboxes; fails with L{StoreError}."""
        replayed = self._database.run_direct(self._replay)
        replayed.addCallback(self._was_replayed)
        return replayed.addCallback(lambda _: self._database.run_write(_load, self._node_key))

    def _replay(self, cursor: Cursor, dialect: Dialect, careful: bool) -> tuple[int, int]:
        """
        Bring into the tables what a server before had noted in the log.

        @return: how many rows the database refused; how many batches cannot be read.
        """
        mark = _mark(dialect)
        cursor.execute(
            f"SELECT number, data FROM {LOG.name} WHERE node_key = {mark} ORDER BY number",
            (self._node_key,),
        )
        rows = cursor.fetchall()
        batches, unreadable = [], 0
        for _, data in rows:
            try:
                batches.append(msgspec.msgpack.decode(data, type=Batch))
            except msgspec.DecodeError:
                unreadable += 1
        refused = self._write(joined(batches), cursor, dialect, careful)
        numbers = [(number,) for number, _ in rows]
        if numbers:
            cursor.executemany(f"DELETE FROM {LOG.name} WHERE number = {mark}", numbers)
        return refused, unreadable

    def _was_replayed(self, outcome: tuple[int, int]) -> None:
        refused, unreadable = outcome
        self._was_brought_in(refused)
        if unreadable:
            self._log.error(
                "durable delivery: {count} batches in the store cannot be read, and are dropped",
                count=unreadable,
            )


def _mark(dialect: Dialect) -> str:
    """The place of a value in a statement of the driver."""
    return "?" if dialect.name == "sqlite" else "%s"


def _parts(one: MessageRow) -> Iterable[tuple[object, ...]]:
    data, expires = one.data, milliseconds(one.expires_at)
    for part, start in enumerate(range(0, len(data), PART_BYTES)):
        piece = data[start : start + PART_BYTES]
        yield one.outbox, one.record, part, one.number, expires, piece


def _taken_row(one: TakenRow) -> tuple[object, ...]:
    client_id = storable(one.client_id, NAME_CHARS)
    return one.outbox, one.record, client_id, one.answers, one.body


class _Statements:
    """
    Statements in the words of one kind of database, by a cursor of its driver.

    On PostgreSQL each is one statement over arrays, planned anew each time: one that was prepared
    while the tables were empty is several times slower.
    """

    def __init__(self, cursor: Cursor, dialect: Dialect, careful: bool) -> None:
        """@param careful: true to write each row by itself, so that none stops the others."""
        self._cursor: Any = cursor
        self._kind = dialect
        self._dialect = dialect.name
        self._careful = careful
        self._mark = _mark(dialect)
        self._more: dict[str, Any] = {"prepare": False} if self._dialect == "postgresql" else {}
        #: The number of rows that the database refused.
        self.refused = 0

    def _each(self, rows: Sequence[_T], write: Callable[[Sequence[_T]], None]) -> list[_T]:
        """@return: those that the database refused."""
        if not self._careful:
            write(rows)
            return []
        refused = []
        for row in rows:
            self._cursor.execute("SAVEPOINT domaeka_row")
            try:
                write([row])
            except Exception as error:
                if not is_refusal(error, self._kind):
                    raise
                self._cursor.execute("ROLLBACK TO SAVEPOINT domaeka_row")
                refused.append(row)
            else:
                self._cursor.execute("RELEASE SAVEPOINT domaeka_row")
        self.refused += len(refused)
        return refused

    def outboxes(self, rows: Sequence[OutboxRow], node_key: str) -> list[OutboxRow]:
        """Insert outboxes, or raise their numbers.  @return: those that the database refused."""

        def write(some: Sequence[OutboxRow]) -> None:
            self._insert(
                OUTBOXES, [(o.outbox, node_key, *o.key, o.epoch, o.next_number) for o in some]
            )
            for one in some:
                self.run(
                    OUTBOXES, "UPDATE {table} SET next_number = ?", one.outbox, one.next_number
                )

        return self._each(rows, write)

    def messages(self, rows: Sequence[MessageRow]) -> None:
        """Insert messages, in parts."""
        self._each(
            rows, lambda some: self._insert(MESSAGES, [row for one in some for row in _parts(one)])
        )

    def taken(self, rows: Sequence[TakenRow]) -> None:
        """Insert messages that were taken."""
        self._each(rows, lambda some: self._insert(TAKEN, [_taken_row(one) for one in some]))

    def _insert(self, table: Table, rows: Sequence[tuple[object, ...]]) -> None:
        """Insert rows, each with all columns; those that are there stay as they are."""
        if not rows:
            return
        names = ", ".join(column.name for column in table.columns)
        into = f"INSERT INTO {table.name} ({names})"
        if self._dialect == "postgresql":
            # Without lengths: a cast would cut what is too long.
            kinds = (str(column.type.compile(_POSTGRESQL)) for column in table.columns)
            arrays = ", ".join(f"CAST(%s AS {kind.partition('(')[0]}[])" for kind in kinds)
            self._cursor.execute(
                f"{into} SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING",
                [list(values) for values in zip(*rows, strict=True)],
                **self._more,
            )
            return
        marks = ", ".join(self._mark for _ in table.columns)
        # MariaDB's INSERT IGNORE would cut what is too long.
        mine = "CONFLICT DO NOTHING"
        if self._dialect != "sqlite":
            mine = "DUPLICATE KEY UPDATE outbox = outbox"
        self._cursor.executemany(f"{into} VALUES ({marks}) ON {mine}", rows)

    def change(self, table: Table, verb: str, rows: Sequence[tuple[int, ...]]) -> None:
        """Change rows: each is an outbox, a record and, if C{verb} has one, a value."""
        self._each(rows, lambda some: self._change(table, verb, some))

    def _change(self, table: Table, verb: str, rows: Sequence[tuple[int, ...]]) -> None:
        if not rows:
            return
        if self._dialect != "postgresql":
            verb = verb.format(table=table.name, value=self._mark)
            where = f"WHERE outbox = {self._mark} AND record = {self._mark}"
            self._cursor.executemany(f"{verb} {where}", [(*row[2:], *row[:2]) for row in rows])
            return
        names = ("outbox", "record", "value")[: len(rows[0])]
        arrays = ", ".join("CAST(%s AS BIGINT[])" for _ in names)
        join = "USING" if verb.startswith("DELETE") else "FROM"
        self._cursor.execute(
            f"{verb.format(table=table.name, value='v.value')} {join} unnest({arrays}) "
            f"AS v ({', '.join(names)}) "
            f"WHERE {table.name}.outbox = v.outbox AND {table.name}.record = v.record",
            [list(values) for values in zip(*rows, strict=True)],
            **self._more,
        )

    def run(self, table: Table, verb: str, outbox: int, *values: object) -> None:
        """Change all rows of an outbox."""
        verb = verb.format(table=table.name).replace("?", self._mark)
        where = f"WHERE outbox = {self._mark}"
        self._cursor.execute(f"{verb} {where}", (*values, outbox), **self._more)

    def prune(self, outbox: int) -> None:
        """Keep the last ids of an outbox, and what is not answered."""
        mark = self._mark
        self._cursor.execute(
            f"SELECT record FROM {TAKEN.name} WHERE outbox = {mark} "
            f"ORDER BY record DESC LIMIT 1 OFFSET {MAX_CLIENT_IDS}",
            (outbox,),
            **self._more,
        )
        if (found := self._cursor.fetchone()) is not None:
            self._cursor.execute(
                f"DELETE FROM {TAKEN.name} WHERE outbox = {mark} AND record <= {mark} "
                "AND body IS NULL",
                (outbox, found[0]),
                **self._more,
            )


def _load(connection: Connection, node_key: str) -> list[KeptOutbox]:
    mine = select(OUTBOXES.c.outbox).where(OUTBOXES.c.node_key == node_key)
    kept = {
        row.outbox: KeptOutbox(
            OutboxRow(
                row.outbox, DeviceKey(row.bot_name, row.device_id), row.epoch, row.next_number
            ),
            [],
            [],
        )
        for row in connection.execute(select(OUTBOXES).where(OUTBOXES.c.node_key == node_key))
    }
    messages = select(MESSAGES).where(MESSAGES.c.outbox.in_(mine))
    parts: dict[tuple[int, int], list[Any]] = {}
    for row in connection.execute(
        messages.order_by(MESSAGES.c.outbox, MESSAGES.c.record, MESSAGES.c.part)
    ):
        parts.setdefault((row.outbox, row.record), []).append(row)
    for (outbox, record), found in parts.items():
        data = b"".join(row.data for row in found)
        first = found[0]
        kept[outbox].messages.append(
            MessageRow(outbox, record, first.number, first.expires / 1000, data)
        )
    taken = select(TAKEN).where(TAKEN.c.outbox.in_(mine)).order_by(TAKEN.c.outbox, TAKEN.c.record)
    for row in connection.execute(taken):
        kept[row.outbox].taken.append(
            TakenRow(row.outbox, row.record, row.client_id, row.body, row.answers)
        )
    return list(kept.values())
