"""
A table of things that an operator may approve or refuse: all of it in memory, and its copy in
the store.

What is heard of them is written later.  A decision is written first, then in force.
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import msgspec
from sqlalchemy import Column, Connection, Row, Table, case, select
from twisted.internet.defer import Deferred

from domaeka.interfaces import Approval
from domaeka.store.background import BATCH_ROWS, BackgroundWriter
from domaeka.store.columns import upsert
from domaeka.store.database import Database
from domaeka.store.threads import Scheduler

#: An operator said no: it holds whatever is heard.
REFUSED: Final = frozenset({Approval.DENIED, Approval.REVOKED, Approval.BLOCKED})


class _Record(Protocol):
    @property
    def key(self) -> Any:
        """What it is known by: a tuple."""

    @property
    def approval(self) -> Approval:
        """Whether it is served."""


_K = TypeVar("_K", bound=tuple[str, str])
_R = TypeVar("_R", bound=_Record)


class _Change(NamedTuple, Generic[_R]):
    record: _R
    promoted: bool  # from pending to approved, by what was heard and not by an operator


class ApprovalTable(Generic[_K, _R]):
    """The memory, and what is written of it."""

    def __init__(
        self,
        database: Database,
        reactor: Scheduler,
        table: Table,
        *,
        limit: int,
        newest: Column[int],
        delay: float,
        from_row: Callable[[Row[Any]], _R],
        to_row: Callable[[_R], dict[str, object]],
        fixed: frozenset[str],
        loaded: Callable[[], None],
        overruled: Callable[[_K, Approval], None],
    ) -> None:
        """
        @param database: not started yet.
        @param table: with a primary key of one column, and a column C{approval}.
        @param limit: most records that are read.
        @param newest: the column by which it is judged which of them.
        @param delay: how long a change waits for others before it is written, in seconds.
        @param fixed: columns that never change.
        @param loaded: told that the store has said what it knows.
        @param overruled: told that another server on this store had decided otherwise.
        """
        #: What is known; only L{put} changes it.
        self.records: dict[_K, _R] = {}
        #: How many records are pending.
        self.pending = 0
        #: How many records there are of each bot.
        self.of_bot: dict[str, int] = {}
        #: Whether the store has said what it knows.
        self.is_loaded = False
        self._keys: list[_K] = []  # sorted
        self._changed: dict[_K, bool] = {}  # see _Change.promoted
        self._database = database
        self._table = table
        (self._key_column,) = table.primary_key.columns
        self._limit = limit
        self._newest = newest
        self._from_row = from_row
        self._to_row = to_row
        self._fixed = fixed
        self._loaded = loaded
        self._overruled = overruled
        self._writer = BackgroundWriter(
            database,
            reactor,
            table.name,
            delay=delay,
            take=self._take,
            write=self._write,
            written=self._written,
            failed=self._put_back,
        )
        database.load_at_start(self._read, self._load)

    # In memory

    def put(self, record: _R) -> None:
        """Remember C{record} in the place of the one of its key."""
        before = self.records.get(record.key)
        if before is None:
            insort(self._keys, record.key)
            self._count(record)
        elif before.approval is Approval.PENDING:
            self.pending -= 1
        self.pending += record.approval is Approval.PENDING
        self.records[record.key] = record

    def page(self, after: _K | None, limit: int, approval: Approval | None) -> list[_R]:
        """At most C{limit} records behind the key C{after}, in order, all or in one state."""
        found: list[_R] = []
        for record in self.since(after):
            if len(found) >= limit:
                break
            if approval is None or record.approval is approval:
                found.append(record)
        return found

    def since(self, after: _K | None) -> Iterator[_R]:
        """All records behind the key C{after}, which may be one that is not there, in order."""
        start = 0 if after is None else bisect_right(self._keys, after)
        for position in range(start, len(self._keys)):
            yield self.records[self._keys[position]]

    # Written later

    def changed(self, key: _K, promoted: bool = False) -> None:
        """
        Have a record written.

        @param promoted: it was pending, and what was heard of it has approved it.
        """
        self._changed[key] = promoted or self._changed.get(key, False)
        self._writer.wake()

    def stop(self) -> "Deferred[None]":
        """Write what is not written yet.  @return: fires in any case, in bounded time."""
        return self._writer.stop()

    def _take(self) -> list[_Change[_R]]:
        keys = list(self._changed)[:BATCH_ROWS]
        # Copies: the writing thread must not see a record change.
        return [_Change(copy(self.records[key]), self._changed.pop(key)) for key in keys]

    def _put_back(self, batch: list[_Change[_R]]) -> None:
        for change in batch:
            key = change.record.key
            self._changed[key] = change.promoted or self._changed.get(key, False)

    def _write(self, connection: Connection, batch: list[_Change[_R]]) -> list[Approval | None]:
        """
        Store what was heard, and change nothing that an operator decided.

        @return: the state of each, as it is in the store now.
        """
        rows = [self._to_row(change.record) for change in batch]
        upsert(connection, self._table, rows, fixed=self._fixed | {"approval"})
        keys = [row[self._key_column.name] for row in rows]
        promoted = [key for key, change in zip(keys, batch, strict=True) if change.promoted]
        column = self._table.c.approval
        if promoted:
            connection.execute(
                self._table.update()
                .where(self._key_column.in_(promoted), column == Approval.PENDING.value)
                .values(approval=Approval.APPROVED.value)
            )
        found = connection.execute(
            select(self._key_column, column).where(self._key_column.in_(keys))
        )
        stored = {key: Approval(approval) for key, approval in found}
        return [stored.get(key) for key in keys]

    def _written(self, batch: list[_Change[_R]], stored: list[Approval | None]) -> None:
        for (record, _), approval in zip(batch, stored, strict=True):
            now = self.records[record.key]
            # Unless somebody has decided here since.
            if approval not in (None, record.approval) and now.approval is record.approval:
                self._force(now, approval)
                self._overruled(record.key, approval)

    # Written first

    def decide(
        self,
        unknown: _R,
        approval: Approval,
        besides: Callable[[Connection], None] | None = None,
    ) -> "Deferred[None]":
        """
        An operator's decision.

        @param unknown: what is entered where nothing of its key is known.
        @param besides: what is to happen in the same transaction.
        @return: fires once it is stored and in force.
        """
        record = copy(self.records.get(unknown.key, unknown))
        return self._database.run_write(
            self._store_decision, record, approval, besides
        ).addCallback(
            lambda _: self._force(self.records.get(unknown.key, unknown), approval),
        )

    def _store_decision(
        self,
        connection: Connection,
        record: _R,
        approval: Approval,
        besides: Callable[[Connection], None] | None,
    ) -> None:
        row = self._to_row(record) | {"approval": approval.value}
        upsert(connection, self._table, [row], fixed=row.keys() - {"approval"})
        if besides is not None:
            besides(connection)

    def _force(self, record: _R, approval: Approval) -> None:
        self.put(msgspec.structs.replace(record, approval=approval))  # type: ignore[type-var]

    # At the start

    def _read(self, connection: Connection) -> list[_R]:
        # What an operator refused must be known, whatever else finds no room.
        approved_last = case((self._table.c.approval == Approval.APPROVED.value, 1), else_=0)
        rows = connection.execute(
            select(self._table).order_by(approved_last, self._newest.desc()).limit(self._limit)
        )
        return [self._from_row(row) for row in rows]

    def _load(self, records: list[_R]) -> None:
        for record in records:
            self.records[record.key] = record
            self.pending += record.approval is Approval.PENDING
            self._count(record)
        self._keys = sorted(self.records)
        self.is_loaded = True
        self._loaded()

    def _count(self, record: _R) -> None:
        bot_name = record.key[0]
        self.of_bot[bot_name] = self.of_bot.get(bot_name, 0) + 1
