"""
The import: devices and rooms at once, then the chat, a batch in each transaction.

The id of the last line is stored with each batch: an import that was cut short, in any way, goes on
behind it, and one that is done again takes only what is new.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Any, Final

import msgspec
from sqlalchemy import BigInteger, Column, Connection, Engine, Table, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from domaeka.errors import StoreError
from domaeka.interfaces import ChatLine
from domaeka.store.chatlog import BATCH_CHARS, insert_lines
from domaeka.store.columns import (
    KEY,
    TITLE,
    TITLE_CHARS,
    milliseconds,
    storable,
    table,
    upsert,
    write_each,
)
from domaeka.store.devices import DEVICES, MAX_DEVICES
from domaeka.store.drivers import reason_of
from domaeka.store.imports import mapping
from domaeka.store.imports.mapping import Part
from domaeka.store.imports.source import Row, Source, fingerprint
from domaeka.store.revisions import find, migrate
from domaeka.store.rooms import MAX_BOT_ROOMS, MAX_ROOMS, ROOMS

#: Most lines in a transaction.
BATCH_ROWS: Final = 2000
#: Two lines of one bot and room with one log id are the same line, written by two phones.  Those
#: are found whose ids are at most this far apart, some beyond, and none twice as far apart: it
#: bounds the memory, to some 15 MB.
DOUBLE_IDS: Final = 100_000
_DAY_MILLISECONDS: Final = 86_400_000
#: Most rooms that a note names.
_NAMED_ROOMS: Final = 5

IMPORTS: Final = table(
    "imports",
    Column("source_key", KEY, primary_key=True),
    Column("source", TITLE, nullable=False),
    Column("last_id", BigInteger, nullable=False),
    Column("fingerprint", KEY, nullable=False),
)


class Report(msgspec.Struct):
    """
    The result of an import.

    @ivar source: where it came from, without user and password.
    @ivar after_id: lines up to this id were taken by an import before; 0: there was none.
    @ivar old_lines: lines taken that C{storage.chat_log_days} removes soon after the start.
    @ivar days_needed: the C{storage.chat_log_days} that keeps them all; 0 if there are none.
    @ivar cut_lines: lines taken that the previous system has cut at 64 KiB.
    @ivar notes: what has no place with us, in sentences.
    """

    source: str
    dry_run: bool
    devices: Part = msgspec.field(default_factory=Part)
    rooms: Part = msgspec.field(default_factory=Part)
    lines: Part = msgspec.field(default_factory=Part)
    after_id: int = 0
    old_lines: int = 0
    days_needed: int = 0
    cut_lines: int = 0
    notes: list[str] = []

    @property
    def is_empty(self) -> bool:
        """True if nothing was taken."""
        return not (self.devices.taken or self.rooms.taken or self.lines.taken)


class _Doubles:
    """Lines that were seen, by spans of L{DOUBLE_IDS} ids: those of this span and the last."""

    def __init__(self) -> None:
        self._span = 0
        self._here: set[int] = set()
        self._before: set[int] = set()

    @staticmethod
    def first_id(number: int) -> int:
        """The id of the first line that one with the id C{number} is compared with."""
        return (number // DOUBLE_IDS - 1) * DOUBLE_IDS

    def is_one(self, number: int, line: ChatLine) -> bool:
        """True if C{line}, whose id is C{number}, was seen before."""
        if line.log_id is None:
            return False
        span = number // DOUBLE_IDS
        if span != self._span:
            self._before = self._here if span == self._span + 1 else set()
            self._here = set()
            self._span = span
        key = hash((line.bot_name, line.room_id, line.log_id))  # 64 bits are enough
        is_one = key in self._here or key in self._before
        self._here.add(key)
        return is_one


class Importer:
    """One import into a store that no server uses meanwhile."""

    def __init__(
        self,
        source: Source,
        target: Engine | None,
        *,
        days: float,
        now: float,
        dry_run: bool = False,
        skip_old: bool = False,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> None:
        """
        @param target: the store; L{None}: there is none yet, for a dry run.
        @param days: C{storage.chat_log_days}.
        @param now: seconds since 1970.
        @param dry_run: true to write nothing.
        @param skip_old: true to leave out lines that are older than C{days}.
        @param progress: called with the number of lines read so far, and of all.
        """
        self._source = source
        self._target = target
        self._now = milliseconds(now)
        self._oldest = self._now - days * _DAY_MILLISECONDS
        self._dry_run = dry_run
        self._skip_old = skip_old
        self._progress = progress
        self._report = Report(source.name, dry_run)
        self._first_time = self._now  # of the lines taken

    def run(self) -> Report:
        """
        Import all that is not there yet.

        @raise StoreError: the source cannot be read, or the store not be written: one line.  All
            batches before stay.
        """
        try:
            if self._target is not None:
                with self._target.begin() as connection:
                    if not self._dry_run:
                        migrate(connection)
                    elif find(connection).is_former:
                        raise StoreError(
                            "the store's tables are of a former version: a dry run cannot compare "
                            "what is there; domaeka db upgrade brings them up to date"
                        )
            self._take_devices_and_rooms()
            self._take_lines()
        except SQLAlchemyError as error:  # the source has errors of its own
            raise StoreError(f"the store failed: {reason_of(error)}") from None
        return self._report

    # Devices and rooms

    def _take_devices_and_rooms(self) -> None:
        report = self._report
        devices = mapping.devices(self._source.devices(), report.devices, MAX_DEVICES)
        rooms = mapping.rooms(self._noted_rooms(), report.rooms, MAX_ROOMS)
        mapping.hear(rooms, self._source.heard())
        self._add(DEVICES, devices, report.devices, MAX_DEVICES, MAX_DEVICES)
        self._add(ROOMS, rooms, report.rooms, MAX_ROOMS, MAX_BOT_ROOMS)
        for name, columns in self._source.unused.items():
            if columns:
                report.notes.append(f"{name}: no place for {', '.join(columns)}")

    def _noted_rooms(self) -> Iterator[Row]:
        unlogged: dict[str, None] = {}
        count = 0
        for row in self._source.rooms():
            if not mapping.is_logged(row):
                count += 1
                if len(unlogged) < _NAMED_ROOMS:
                    unlogged[mapping.text(row["room_id"])] = None
            yield row
        if count:
            more = ", …" if count > len(unlogged) else ""
            self._report.notes.append(
                f"kb_rooms: {count} rows ask for no log of their room, which the previous system "
                f"never obeyed; there is no such setting here: {', '.join(unlogged)}{more}"
            )

    def _add(
        self, to: Table, rows: dict[str, dict[str, Any]], part: Part, limit: int, of_bot: int
    ) -> None:
        """Insert the rows of which the store has none; what it has already wins."""
        with _reading(self._target, to) as connection:
            (key,) = to.primary_key.columns
            found = connection.execute(select(key, to.c.bot_name)) if connection else ()
            known = dict(map(tuple, found))
        counts: dict[str, int] = {}
        for bot_name in known.values():
            counts[bot_name] = counts.get(bot_name, 0) + 1
        total = len(known)
        new = []
        for row_key, row in rows.items():
            bot_name = row["bot_name"]
            if row_key in known:
                part.known += 1
            elif total >= limit or counts.get(bot_name, 0) >= of_bot:
                part.refuse(mapping.NO_PLACE, bot_name)
            else:
                counts[bot_name] = counts.get(bot_name, 0) + 1
                total += 1
                new.append(row)
        refused: list[dict[str, Any]] = []
        if new and self._target is not None and not self._dry_run:
            with self._target.begin() as connection:
                insert = to.insert()
                for start in range(0, len(new), BATCH_ROWS):
                    batch = new[start : start + BATCH_ROWS]
                    refused += write_each(connection, batch, partial(connection.execute, insert))
        for row in refused:
            part.refuse(mapping.REFUSED, row["bot_name"])
        part.taken += len(new) - len(refused)

    # Lines

    def _take_lines(self) -> None:
        report = self._report
        after = report.after_id = self._last_id()
        total = self._source.count(after)
        self._progress(0, total)
        doubles = _Doubles()
        first = _Doubles.first_id(after)
        for seen in self._source.lines(first - 1, after) if after and total else ():
            line = mapping.line(seen)
            if not isinstance(line, str):
                doubles.is_one(seen["id"], line)
        batch: list[tuple[int, ChatLine]] = []
        chars = count = 0
        last: Row | None = None
        for last in self._source.lines(after):
            count += 1
            taken = self._judged(last, doubles)
            if taken is not None:
                batch.append((last["id"], taken))
                chars += len(taken.text)
            # Rows that are not taken count, too: they are not to be read again.
            if count % BATCH_ROWS == 0 or chars >= BATCH_CHARS:
                self._write(batch, last)
                batch, chars = [], 0
                self._progress(count, total)
        if last is not None:
            self._write(batch, last)
        self._progress(count, max(count, total))
        if report.old_lines:
            report.days_needed = ceil((self._now - self._first_time) / _DAY_MILLISECONDS) + 1

    def _judged(self, row: Row, doubles: _Doubles) -> ChatLine | None:
        """The line that is to be taken of C{row}; all others are counted."""
        part = self._report.lines
        part.read += 1
        line = mapping.line(row)
        if isinstance(line, str):
            part.refuse(line, f"id {row['id']}")
            return None
        if doubles.is_one(row["id"], line):
            part.merged += 1
            return None
        if self._skip_old and milliseconds(line.time) < self._oldest:
            part.refuse(mapping.TOO_OLD, f"id {row['id']}")
            return None
        return line

    def _write(self, batch: list[tuple[int, ChatLine]], last: Row) -> None:
        """Store a batch, and how far it goes, in one transaction, and count it."""
        refused = {number for number, _ in self._store(batch, last)}
        for number, line in batch:
            if number in refused:
                self._report.lines.refuse(mapping.REFUSED, f"id {number}")
            else:
                self._count(line)

    def _count(self, line: ChatLine) -> None:
        """Count a line that was taken."""
        report = self._report
        report.lines.taken += 1
        at = milliseconds(line.time)
        if at < self._oldest:
            report.old_lines += 1
            self._first_time = min(self._first_time, at)
        if len(line.text.encode("utf-8", "replace")) >= mapping.CUT_BYTES:
            report.cut_lines += 1

    def _store(self, batch: list[tuple[int, ChatLine]], last: Row) -> list[tuple[int, ChatLine]]:
        """@return: what the store refused."""
        if self._dry_run or self._target is None:
            return []
        record = {
            "source_key": self._source.key,
            "source": storable(self._source.name, TITLE_CHARS),
            "last_id": last["id"],
            "fingerprint": fingerprint(last),
        }
        with self._target.begin() as connection:
            refused = write_each(
                connection,
                batch,
                lambda some: insert_lines(connection, [line for _, line in some]),
            )
            upsert(connection, IMPORTS, [record])
        return refused

    def _last_id(self) -> int:
        """The id up to which the store has the lines; 0: none of this source."""
        with _reading(self._target, IMPORTS) as connection:
            records = connection.execute(select(IMPORTS)).all() if connection else []
        last = 0
        for record in records:
            found = self._source.fingerprint(record.last_id)
            if record.source_key == self._source.key and found not in (None, record.fingerprint):
                raise StoreError(
                    f"{self._source.name}: line {record.last_id} is not the one that was imported "
                    "last: is it another database at the same address?"
                )
            # The same database by another name, or moved.
            if record.source_key == self._source.key or found == record.fingerprint:
                last = max(last, record.last_id)
        return last


@contextmanager
def _reading(engine: Engine | None, wanted: Table) -> Iterator[Connection | None]:
    """A connection for reading; L{None} where the table is not there."""
    if engine is None:
        yield None
        return
    with engine.connect() as connection:
        yield connection if inspect(connection).has_table(wanted.name) else None
