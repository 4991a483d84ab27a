"""
A table of things that an operator may approve or refuse: all of it in memory, and its copy in the
store.  News of them is written later.  A decision is written first, then in force.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import islice
from typing import Any, ClassVar, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, cast

import msgspec
from sqlalchemy import Column, Connection, Row, Table, case
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.interfaces import REFUSED, Approval
from domaeka.pools import Pool
from domaeka.store.background import BATCH_ROWS, BackgroundWriter
from domaeka.store.columns import PREFIX, Read, key_hash, read_rows, upsert, write_each
from domaeka.store.database import Database
from domaeka.store.decisions import DecisionFeed, Key, note
from domaeka.store.threads import Scheduler

#: Most records that gave way and are still in the store, which is in trouble: of more, the next
#: start finds the first again.
MAX_GONE: Final = 10_000


class _Record(Protocol):
    @property
    def key(self) -> Any:
        """Its key: a tuple."""

    @property
    def approval(self) -> Approval:
        """The state that decides if it is served."""

    @property
    def decided(self) -> bool:
        """True if an operator has decided on it."""


_K = TypeVar("_K", bound=tuple[str, str])
_R = TypeVar("_R", bound=_Record)


class _Change(NamedTuple, Generic[_R]):
    record: _R
    promoted: bool  # from pending to approved, by what was heard and not by an operator
    gave_way: bool = False  # it is to be removed, unless an operator has decided on it


class ApprovalTable(Generic[_K, _R]):
    """
    Records in memory, and their copy in the store; a subclass says of which things.

    @cvar _table: named as what it holds, behind L{PREFIX}; with one column as primary key, and
        columns C{approval} and C{decided}.
    @cvar _limit: most records that are read.
    @cvar _newest: the column that orders them: the highest are read.
    @cvar _delay: how long a change waits for others before it is written, in seconds.
    @cvar _fixed: columns that never change.
    """

    _log = Logger()

    _table: ClassVar[Table]
    _limit: ClassVar[int]
    _newest: ClassVar[Column[Any]]
    _delay: ClassVar[float]
    _fixed: ClassVar[frozenset[str]]

    def __init__(
        self,
        database: Database,
        reactor: Scheduler,
        mode: Literal["auto", "signed", "manual"] = "auto",
        *,
        node: str = "",
        wall: Callable[[], float],
        gave_way: Callable[[Pool, object], object] = lambda pool, claimant: None,
    ) -> None:
        """
        @param database: not started yet.
        @param mode: C{manual}: an operator approves new ones; else they are approved at once.
        @param node: the name of this server among others on the store.
        @param wall: the wall clock, in seconds since 1970.
        @param gave_way: called with each pool that gave way, and at whose cost.
        """
        #: C{devices.approval} or C{rooms.approval}; may be changed at any time.
        self.mode = mode
        self._records: dict[_K, _R] = {}  # only _put changes it
        self._pending = 0  # how many of the records are
        self._of_bot: dict[str, int] = {}  # how many there are of each bot
        self._is_loaded = False  # the records of the store have been read
        self._damaged: frozenset[str] = frozenset()  # keys of rows that cannot be read
        self._said_full = False
        self._keys: list[_K] = []  # sorted
        self._changed: dict[_K, bool] = {}  # see _Change.promoted
        self._gone: dict[_K, _R] = {}  # gave way, and are to be removed from the store
        self._database = database
        self._reactor = reactor
        self._node = node
        self._wall = wall
        self._gave_way = gave_way
        self._things = self._table.name.removeprefix(PREFIX)  # for people
        (self._key_column,) = self._table.primary_key.columns
        self._writer = BackgroundWriter(
            database,
            reactor,
            self._things,
            delay=self._delay,
            take=self._take,
            write=self._write,
            written=self._written,
            failed=self._put_back,
        )
        database.load_at_start(self._read, self._load)

    # For a subclass to define

    def _from_row(self, row: Row[Any]) -> _R:
        raise NotImplementedError

    def _to_row(self, record: _R) -> dict[str, object]:
        raise NotImplementedError

    def _unheard(self, key: _K, approval: Approval) -> _R:
        """A new record, for a key that an operator decides on before it was heard of."""
        raise NotImplementedError

    def _objection(self, key: _K, approval: Approval) -> str | None:
        """The reason why an operator's decision cannot be taken; L{None}: it can."""
        raise NotImplementedError

    def _make_room(self, key: _K, approval: Approval) -> bool:
        """
        Have others give way to a new record, if need be.

        @return: false if there is no room, and none can give way.
        """
        raise NotImplementedError

    def _loaded(self) -> None:
        """The records of the store have been read."""

    def _notify(self, key: _K, approval: Approval) -> None:
        """An operator's decision is in force: made here, or at another server on this store."""

    def _store_besides(self, connection: Connection, key: _K, approval: Approval | None) -> None:
        """Write whatever else a decision on C{key}, or forgetting it (L{None}), changes."""

    # In memory

    def _put(self, record: _R) -> None:
        """Remember C{record}, and forget the one before of its key."""
        before = self._records.get(record.key)
        if before is None:
            insort(self._keys, record.key)
            self._count(record)
        elif before.approval is Approval.PENDING:
            self._pending -= 1
        self._pending += record.approval is Approval.PENDING
        self._records[record.key] = record

    def record(self, key: _K) -> _R | None:
        """The record of C{key}, if there is one."""
        return self._records.get(key)

    def _is_damaged(self, key: _K) -> bool:
        """True if there is a row of C{key} that cannot be read, and no operator has decided."""
        return bool(self._damaged) and key_hash(*key) in self._damaged

    def page(self, after: _K | None, limit: int, approval: Approval | None = None) -> list[_R]:
        """
        A page of records, in the order of the keys.

        @param after: the last key of the page before.
        @param limit: most records returned.
        @param approval: only those in this state.
        """
        records = self._since(after)
        return list(islice((r for r in records if approval in (None, r.approval)), limit))

    def _since(self, after: _K | None) -> Iterator[_R]:
        """All records behind the key C{after}, which need not be there, in order."""
        start = 0 if after is None else bisect_right(self._keys, after)
        for position in range(start, len(self._keys)):
            yield self._records[self._keys[position]]

    # Written later

    def _heard_of(self, key: _K, promoted: bool = False) -> None:
        """Have a record written.  @param promoted: as of L{_Change}."""
        if self._gone:
            self._gone.pop(key, None)
        self._changed[key] = promoted or self._changed.get(key, False)
        self._writer.wake()

    def stop(self) -> "Deferred[None]":
        """Write all changes that wait.  @return: fires in any case, in bounded time."""
        return self._writer.stop()

    def _full_is_news(self) -> bool:
        """There is no room for more.  @return: True if that is to be logged: once."""
        said, self._said_full = self._said_full, True
        return not said

    def _let_go(self, key: _K) -> None:
        """Forget C{key}, which gives way to a new one, here and later in the store."""
        self._gone[key] = self._remove(key)
        if len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]
        self._writer.wake()

    def _is_settled(self, record: _R) -> bool:
        """True if a record never gives way: an operator has decided on it."""
        return (
            record.decided
            or record.approval in REFUSED
            or (self.mode == "manual" and record.approval is Approval.APPROVED)
        )

    def _take(self) -> list[_Change[_R]]:
        gone = [self._gone.pop(key) for key in list(islice(self._gone, BATCH_ROWS))]
        keys = list(islice(self._changed, BATCH_ROWS - len(gone)))
        # Copies: the writing thread must not see a record change.
        news = [_Change(copy(self._records[key]), self._changed.pop(key)) for key in keys]
        return [_Change(record, False, True) for record in gone] + news

    def _put_back(self, batch: list[_Change[_R]]) -> None:
        for record, promoted, gave_way in batch:
            if gave_way and record.key not in self._records and len(self._gone) < MAX_GONE:
                self._gone[record.key] = record
            elif not gave_way and record.key in self._records:  # else it was forgotten meanwhile
                self._changed[record.key] = promoted or self._changed.get(record.key, False)

    def _write(self, connection: Connection, batch: list[_Change[_R]]) -> int:
        """Store news, not decisions.  @return: how many rows the database refused."""
        gone = [self._to_row(each.record)[self._key_column.name] for each in batch if each.gave_way]
        if gone:
            undecided = ~self._table.c.decided
            refused_ones = self._table.c.approval.in_([each.value for each in REFUSED])
            connection.execute(
                self._table.delete().where(self._key_column.in_(gone), undecided, ~refused_ones)
            )
        batch = [change for change in batch if not change.gave_way]
        if not batch:
            return 0
        rows = [self._to_row(change.record) for change in batch]
        fixed = self._fixed | {"approval", "decided"}
        refused = write_each(
            connection, rows, lambda some: upsert(connection, self._table, some, fixed)
        )
        promoted = [
            row[self._key_column.name]
            for row, change in zip(rows, batch, strict=True)
            if change.promoted
        ]
        if promoted:
            is_pending = self._table.c.approval == Approval.PENDING.value
            connection.execute(
                self._table.update()
                .where(self._key_column.in_(promoted), is_pending)
                .values(approval=Approval.APPROVED.value)
            )
        return len(refused)

    def _written(self, batch: list[_Change[_R]], refused: int) -> None:
        if refused:
            self._log.warn(
                "{what}: the store refused {refused} of them", what=self._things, refused=refused
            )

    # Written first

    def set_approval(self, key: _K, approval: Approval) -> "Deferred[None]":
        """
        Carry out an operator's decision; a key that was not heard of yet is entered.

        @return: fires once it is stored and in force; L{StoreError} if it is not.
        """
        objection = (
            self._objection(key, approval)
            if self._is_loaded
            else f"the store has not said yet which {self._things} there are"
        )
        if objection is not None:
            return fail(StoreError(objection))
        unheard = self._unheard(key, approval)

        def decided(_: None) -> None:
            self._force(self._records.get(key, unheard), approval)
            self._notify(key, approval)

        record = copy(self._records.get(key, unheard))
        storing = self._database.run_write(
            self._store_decision, record, approval, self._is_damaged(key)
        )
        return storing.addCallback(decided)

    def _store_decision(
        self, connection: Connection, record: _R, approval: Approval, mends: bool
    ) -> None:
        note(connection, self._node, self._things, [record.key])
        row = self._to_row(record) | {"approval": approval.value, "decided": True}
        fixed = () if mends else row.keys() - {"approval", "decided"}
        upsert(connection, self._table, [row], fixed)
        self._store_besides(connection, record.key, approval)

    def _force(self, record: _R, approval: Approval) -> None:
        if record.key not in self._records:
            self._make_room(record.key, approval)
        decided = msgspec.structs.replace(record, approval=approval, decided=True)  # type: ignore[type-var]
        self._put(decided)

    # Forgotten

    def forget(self, key: _K) -> "Deferred[None]":
        """
        Forget C{key}, which is known: if it is heard of again, it is new.

        @return: fires once the store has forgotten it too; if that fails, with L{StoreError}, it
            is known again, as it was.
        """
        promoted = self._changed.get(key)
        record = self._remove(key)

        def failed(failure: Failure) -> Failure:
            self._put(record)
            if promoted is not None:
                self._heard_of(key, promoted)
            return failure

        def forgotten(_: None) -> None:
            self._damaged -= {key_hash(*key)}

        forgetting = self._database.run_write(self._store_forgotten, record)
        return forgetting.addCallbacks(forgotten, failed)

    def _remove(self, key: _K) -> _R:
        """Remove the record of C{key}, which there is, from memory.  @return: it."""
        record = self._records.pop(key)
        del self._keys[bisect_left(self._keys, key)]
        self._pending -= record.approval is Approval.PENDING
        self._count(record, -1)
        self._changed.pop(key, None)
        return record

    def _store_forgotten(self, connection: Connection, record: _R) -> None:
        note(connection, self._node, self._things, [record.key])
        row_key = self._to_row(record)[self._key_column.name]
        connection.execute(self._table.delete().where(self._key_column == row_key))
        self._store_besides(connection, record.key, None)

    # Decided at another server

    def watch(self, decisions: DecisionFeed) -> None:
        """Take over what is decided at other servers on the store."""
        decisions.watch(self._things, self._read_again, self._decided_elsewhere)

    def _read_again(self, connection: Connection, keys: Sequence[Key] | None) -> Read[_R]:
        return self._read(connection, None if keys is None else [key_hash(*key) for key in keys])

    def _decided_elsewhere(self, keys: Sequence[Key] | None, found: Read[_R]) -> None:
        damaged = {str(key) for key in found.damaged}
        for record in found.rows:
            now = self._records.get(record.key)
            if now is None:
                room = self._make_room(record.key, record.approval)
                if room or record.approval in REFUSED:
                    self._put(record)
                    self._notify(record.key, record.approval)
            elif now.approval is not record.approval or now.decided is not record.decided:
                self._force(now, record.approval)
                self._notify(record.key, record.approval)
        for key in set(keys or ()) - {record.key for record in found.rows}:
            forgotten = self._records.get(cast(_K, key))
            if forgotten is not None and key_hash(*key) not in damaged:
                self._remove(forgotten.key)

    # At the start

    def _read(self, connection: Connection, keys: Sequence[str] | None = None) -> Read[_R]:
        # An operator's decisions first: they must be known, whatever else finds no room.
        refused = self._table.c.approval.in_([each.value for each in REFUSED])
        first = case((refused, 0), (self._table.c.decided, 1), else_=2)
        order = (first, self._newest.desc())
        return read_rows(connection, self._table, order, self._limit, self._from_row, keys)

    def _load(self, found: Read[_R]) -> None:
        self._damaged = frozenset(str(key) for key in found.damaged)
        if found.damaged:
            self._log.warn(
                "{what}: {count} rows of the store are damaged, and are skipped: {place} = "
                "{reason}; what they are of is not served until an operator decides on it",
                what=self._things,
                count=len(found.damaged),
                place=f"{self._table.name}.{self._key_column.name}",
                reason=StoreError(found.described),  # a text would be cut
            )
        for record in sorted(found.rows, key=lambda record: record.key):
            self._put(record)
        self._is_loaded = True
        self._loaded()

    def _count(self, record: _R, change: int = 1) -> None:
        bot_name = record.key[0]
        self._of_bot[bot_name] = self._of_bot.get(bot_name, 0) + change
