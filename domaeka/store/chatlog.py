"""
The chat log: written in batches, off the reactor, and forgotten after some days.  A line costs its
connection a place in a queue.  While the store is slow or gone, lines wait there until it is full.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from sys import getsizeof
from typing import Any, Final

import msgspec
from sqlalchemy import Column, ColumnElement, Connection, String, func, select
from sqlalchemy.exc import DBAPIError
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.interfaces import ChatLine
from domaeka.pools import Pool
from domaeka.store.background import BATCH_ROWS, BackgroundWriter
from domaeka.store.columns import (
    KEY,
    LONG_TEXT,
    NAME,
    NAME_CHARS,
    ROW_ID,
    TIME,
    TITLE,
    TITLE_CHARS,
    key_hash,
    milliseconds,
    storable,
    table,
    write_each,
)
from domaeka.store.database import Database
from domaeka.store.threads import DelayedCall, Scheduler, StoreClosed

#: Most lines that wait: eight minutes of 200 messages a second.
MAX_WAITING_LINES: Final = 100_000
#: Most memory that their texts take, in bytes.
MAX_WAITING_BYTES: Final = 67_108_864
#: Most text in one transaction, in characters, but for a single line.
BATCH_CHARS: Final = 1_000_000
#: Longest text that is stored, in characters; the rest is cut.  MariaDB takes 16 MiB in one
#: statement; a character is four bytes, and eight if it must be escaped.
MAX_STORED_CHARS: Final = 1_000_000
#: Time that a line waits for others, in seconds.
WRITE_SECONDS: Final = 0.5
#: Interval of the removals of old lines, in seconds; the first comes soon after the start.
FORGET_SECONDS: Final = 3600.0
_FIRST_FORGET_SECONDS: Final = 60.0
#: Most lines removed in one transaction, and the pause until the next, in seconds.
FORGET_LINES: Final = 1000
FORGET_PAUSE_SECONDS: Final = 0.1
#: Part of SQLite's file that may be free: new lines fill it again.  What is more goes back to the
#: file system, so many pages in one transaction.
FREE_SHARE: Final = 0.1
FREED_PAGES: Final = 500

#: Most ids searched in one transaction for lines of a device or a room: there is no index for
#: that, and other writes come in between.
_SEARCHED_IDS: Final = 20_000
_DAY_SECONDS: Final = 86_400.0
#: What C{PRAGMA auto_vacuum} says of a file that can give pages back.
_INCREMENTAL: Final = 2

# Its indexes are those of the migrations: each database has its own words for them.
CHAT_LINES: Final = table(
    "chat_lines",
    Column("id", ROW_ID, primary_key=True, autoincrement=True),
    Column("time", TIME, nullable=False),
    Column("direction", String(3), nullable=False),
    Column("bot_name", NAME, nullable=False),
    Column("device_id", NAME, nullable=False),
    Column("room_id", TITLE, nullable=False),
    Column("room_name", TITLE, nullable=False),
    Column("sender", TITLE, nullable=False),
    Column("user_hash", NAME),
    Column("log_id", NAME),
    Column("text", LONG_TEXT, nullable=False),
)


#: The last batch of each server, by which a batch is known whose COMMIT was not answered.
CHAT_BATCHES: Final = table(
    "chat_batches",
    Column("node_key", KEY, primary_key=True),
    Column("batch", String(32), nullable=False),
)


class _Batch(msgspec.Struct):
    """Lines that are written together.  C{again}: they may be in the store already."""

    name: str
    again: bool
    lines: list[ChatLine]

    def __len__(self) -> int:
        return len(self.lines)


class _Shares:
    """Lines, and their bytes, of each phone that wait."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, ...], list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._of)

    def clear(self) -> None:
        self._of.clear()

    def add(self, line: ChatLine, size: int, lines: int = 1) -> None:
        """Count a line of C{size} bytes; both below 0: it waits no more."""
        share = self._of.setdefault(line[2:4], [0, 0])
        share[0] += lines
        share[1] += size

    def largest(self, by_lines: bool) -> tuple[str, ...]:
        """The phone that has the most, of lines or of bytes."""
        return max(self._of, key=lambda phone: self._of[phone][not by_lines])

    def has_more(self, phone: tuple[str, ...], line: ChatLine, size: int, by_lines: bool) -> bool:
        """True if C{phone} has more than that of C{line} would have with it."""
        lines, held = self._of.get(line[2:4], (0, 0))
        return self._of[phone][0] > lines + 1 if by_lines else self._of[phone][1] > held + size


class StoredChatLog:
    """
    The chat log (L{domaeka.interfaces.ChatLog}): each line is stored once, or counted as dropped.
    """

    _log = Logger()

    def __init__(
        self,
        database: Database,
        reactor: Scheduler,
        days: float = 30,
        enabled: bool = True,
        *,
        node: str = "",
        wall: Callable[[], float],
        observe_dropped: Callable[[int], object] = lambda lines: None,
        gave_way: Callable[[Pool, object], object] = lambda pool, claimant: None,
    ) -> None:
        """
        @param days: how long lines are kept.
        @param node: the name of this server among others on the store.
        @param enabled: False: no lines are written; old ones are removed in any case.
        @param wall: the wall clock, in seconds since 1970, by which they grow old.
        @param observe_dropped: called with each number of lines that are dropped.
        @param gave_way: called for each line that finds no room, with its phone.
        """
        self._gave_way = gave_way
        #: C{storage.chat_log_days}; may be changed at any time.
        self.days = days
        #: The number of lines that found no room, or could not be stored.
        self.dropped = 0
        self._observe_dropped = observe_dropped
        #: C{storage.chat_log}.
        self.enabled = enabled
        self._database = database
        self._reactor = reactor
        self._wall = wall
        # With the size of each: a text may grow while it is stored, by what Python notes of it.
        self._lines: deque[tuple[ChatLine, int]] = deque()
        self._bytes = 0
        self._shares = _Shares()  # empty, but while there was no room of late
        self._in_flight: _Batch | None = None  # the first lines, until they are in the store
        self._node_key = key_hash(node)
        self._dropped_since = 0  # since the last line of the log on this
        self._forget_call: DelayedCall | None = None
        self._stopped = False
        self._writer = BackgroundWriter(
            database,
            reactor,
            "chat log",
            delay=WRITE_SECONDS,
            take=self._take,
            write=partial(_write, self._node_key),
            written=self._written,
            bulk=True,
        )

    def start(self) -> None:
        """Begin to remove old lines."""
        self._forget_call = self._reactor.callLater(_FIRST_FORGET_SECONDS, self._forget)

    # domaeka.interfaces.ChatLog

    def append(self, line: ChatLine) -> None:
        """Never blocks and never raises: a line that finds no room is counted and dropped."""
        if not self.enabled:
            return
        lines = self._lines
        size = getsizeof(line.text)
        if (
            len(lines) >= MAX_WAITING_LINES or self._bytes + size > MAX_WAITING_BYTES
        ) and not self._make_room(line, size):
            return
        if self._shares:
            self._shares.add(line, size)
        lines.append((line, size))
        self._bytes += size
        if len(lines) == 1:  # the writer knows of those behind it
            self._writer.wake()
        elif len(lines) >= BATCH_ROWS:
            self._writer.hurry()

    def _make_room(self, line: ChatLine, size: int) -> bool:
        """
        Have the last lines of the phone that has the most give way to C{line}.

        @return: false, if C{line} is dropped: its own phone has the most.
        """
        shares = self._shares
        if not shares:
            for waiting in self._lines:
                shares.add(*waiting)
        while len(self._lines) >= MAX_WAITING_LINES or self._bytes + size > MAX_WAITING_BYTES:
            by_lines = len(self._lines) >= MAX_WAITING_LINES
            phone = shares.largest(by_lines)
            if shares.has_more(phone, line, size, by_lines):
                place = self._last_of(phone)
            else:
                phone, place = line[2:4], None
            self._gave_way(Pool.WAITING_CHAT_LINES, f"{phone[0]!r} {phone[1]!r}")
            self._drop(1)
            if place is None:
                return False
            dropped, dropped_size = self._lines[place]
            del self._lines[place]
            self._bytes -= dropped_size
            shares.add(dropped, -dropped_size, -1)
        return True

    def _last_of(self, phone: tuple[str, ...]) -> int | None:
        """The place of the last line of a phone that is not being written; L{None}: none is."""
        for back, (line, _) in enumerate(reversed(self._lines), 1):
            place = len(self._lines) - back
            if place < len(self._in_flight or ()):
                break
            if line[2:4] == phone:
                return place
        return None

    def _drop(self, lines: int) -> None:
        if not self._dropped_since:
            self._log.warn(
                "chat log: {count} lines wait for the store: those that come now are dropped",
                count=len(self._lines),
            )
        self._dropped_since += lines
        self.dropped += lines
        self._observe_dropped(lines)

    @property
    def waiting(self) -> int:
        """The number of lines that are not in the store yet."""
        return len(self._lines)

    def health(self) -> str | None:
        """L{None} when well, else the fault."""
        if self._writer.trouble is None and not self._dropped_since:
            return None
        return f"chat log: {len(self._lines)} lines wait, {self.dropped} dropped"

    def stop(self) -> "Deferred[None]":
        """Write the lines that wait.  @return: fires, and never fails, in bounded time."""
        self._stopped = True
        if self._forget_call is not None:
            self._forget_call.cancel()
            self._forget_call = None
        return self._writer.stop().addCallback(self._flushed)

    def _flushed(self, _: None) -> None:
        if self._lines or self.dropped:
            self._log.warn(
                "chat log: {lost} lines could not be written",
                lost=len(self._lines) + self.dropped,
            )

    # Batches

    def _take(self) -> _Batch:
        if self._in_flight is not None:
            self._in_flight.again = True
            return self._in_flight
        lines: list[ChatLine] = []
        room = BATCH_CHARS
        for line, _ in islice(self._lines, BATCH_ROWS):
            room -= len(line.text)
            if room < 0 and lines:
                break
            lines.append(line)
        batch = _Batch(os.urandom(16).hex(), False, lines)
        self._in_flight = batch if lines else None
        return batch

    def _written(self, batch: _Batch, refused: int) -> None:
        self._in_flight = None
        for _ in batch.lines:
            line, size = self._lines.popleft()
            self._bytes -= size
            if self._shares:
                self._shares.add(line, -size, -1)
        if len(self._lines) < MAX_WAITING_LINES // 2 and self._bytes < MAX_WAITING_BYTES // 2:
            self._shares.clear()
        if self._dropped_since and len(self._lines) < MAX_WAITING_LINES // 2:
            dropped, self._dropped_since = self._dropped_since, 0
            self._log.warn(
                "chat log: {lost} lines were dropped while the store did not take them",
                lost=dropped,
            )
        if refused:
            self.dropped += refused
            self._observe_dropped(refused)
            self._log.warn("chat log: the store refused {refused} lines", refused=refused)

    # Lines of a device, or a room

    @inlineCallbacks
    def forget_lines(self, bot_name: str, device_id: str | None, room_id: str | None) -> Any:
        """
        Remove the lines so far of a device, or of a room; L{None}: of any.

        @return: a Deferred that fires once all are removed; L{StoreError} if some are not.
        """

        def is_meant(line: ChatLine) -> bool:
            return (
                line.bot_name == bot_name
                and device_id in (None, line.device_id)
                and room_id in (None, line.room_id)
            )

        lines = self._lines
        self._shares.clear()
        in_flight = len(self._in_flight or ())
        self._lines = deque(islice(lines, in_flight))
        for line, size in islice(lines, in_flight, None):
            if is_meant(line):
                self._bytes -= size
            else:
                self._lines.append((line, size))
        wanted = [CHAT_LINES.c.bot_name == storable(bot_name, NAME_CHARS)]
        if device_id is not None:
            wanted.append(CHAT_LINES.c.device_id == storable(device_id, NAME_CHARS))
        if room_id is not None:
            wanted.append(CHAT_LINES.c.room_id == storable(room_id, TITLE_CHARS))
        # Behind the batch that is being written.
        first, last = yield self._database.run_bulk(bounds)
        for start in range(first, last + 1, _SEARCHED_IDS):
            stop = min(start + _SEARCHED_IDS, last + 1)
            yield self._database.run_bulk(_remove, start, stop, wanted)

    # Old lines

    def _forget(self) -> None:
        self._forget_call = None
        before = self._wall() - self.days * _DAY_SECONDS
        self._database.run_bulk(_forget, milliseconds(before)).addCallbacks(
            self._forgot, self._not_forgot
        )

    def _forgot(self, again: bool) -> None:
        if not self._stopped:
            delay = FORGET_PAUSE_SECONDS if again else FORGET_SECONDS
            self._forget_call = self._reactor.callLater(delay, self._forget)

    def _not_forgot(self, failure: Failure) -> None:
        if not isinstance(failure.value, StoreError):
            self._log.failure("chat log: our own mistake", failure)
        if not isinstance(failure.value, StoreClosed):
            self._forgot(False)


#: The columns that a line has, in its order, with the most characters of each; L{None}: a number.
_COLUMNS: Final[dict[str, int | None]] = {
    "time": None,
    "direction": 3,
    "bot_name": NAME_CHARS,
    "device_id": NAME_CHARS,
    "room_id": TITLE_CHARS,
    "room_name": TITLE_CHARS,
    "sender": TITLE_CHARS,
    "user_hash": NAME_CHARS,
    "log_id": NAME_CHARS,
    "text": MAX_STORED_CHARS,
}
_INTO: Final = f"{CHAT_LINES.name} ({', '.join(_COLUMNS)})"
#: Characters that mean something to C{COPY}, and what it takes for them; the first comes first.
_COPIED: Final = (("\\", r"\\"), ("\n", r"\n"), ("\r", r"\r"), ("\t", r"\t"))


def insert_lines(connection: Connection, lines: Sequence[ChatLine]) -> None:
    """Insert lines, if there are any, in the driver's own words: SQLAlchemy's take longer."""
    if not lines:
        return
    times, *texts = zip(*lines, strict=True)
    columns: list[Sequence[Any]] = [list(map(milliseconds, times))]
    for column, most in zip(texts, islice(_COLUMNS.values(), 1, None), strict=True):
        columns.append(_storable(column, most))
    if connection.dialect.name == "postgresql":
        _copy(connection, columns)
        return
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    marks = ", ".join(mark for _ in _COLUMNS)
    connection.exec_driver_sql(
        f"INSERT INTO {_INTO} VALUES ({marks})", list(zip(*columns, strict=True))
    )


def _storable(column: Sequence[Any], most: Any) -> Sequence[Any]:
    """The texts of a column as they are stored; they are looked at together."""
    there = column if all(column) else [text for text in column if text]
    if max(map(len, there), default=0) <= most and "".join(there).isprintable():
        return column
    return [text and storable(text, most) for text in column]


def _copy(connection: Connection, columns: list[Sequence[Any]]) -> None:
    """
    Insert rows by PostgreSQL's C{COPY}.

    @raise DBAPIError: as SQLAlchemy raises it.
    """
    columns = [list(map(str, columns[0])), *map(_copied, columns[1:])]
    rows = "\n".join(map("\t".join, zip(*columns, strict=True)))
    driver: Any = connection.connection
    dialect = connection.dialect
    cursor = driver.cursor()
    try:
        with cursor.copy(f"COPY {_INTO} FROM STDIN") as copy:
            copy.write(rows)
    except dialect.loaded_dbapi.Error as error:
        lost = dialect.is_disconnect(error, driver.dbapi_connection, cursor)
        raise DBAPIError.instance(
            "COPY",
            None,
            error,
            dialect.loaded_dbapi.Error,
            connection_invalidated=lost,
            dialect=dialect,
        ) from None
    finally:
        cursor.close()


def _copied(column: Sequence[Any]) -> Sequence[str]:
    """Texts as C{COPY} takes them."""
    joined = "".join(text for text in column if text)
    for character, mark in _COPIED:
        if character in joined:
            column = [text and text.replace(character, mark) for text in column]
    return column if all(column) else [r"\N" if text is None else text for text in column]


def _write(node_key: str, connection: Connection, batch: _Batch) -> int:
    """Store a batch, unless it is there.  @return: how many lines the database refused."""
    mine = CHAT_BATCHES.c.node_key == node_key
    if batch.again and connection.scalar(select(CHAT_BATCHES.c.batch).where(mine)) == batch.name:
        return 0
    if not connection.execute(CHAT_BATCHES.update().where(mine).values(batch=batch.name)).rowcount:
        connection.execute(CHAT_BATCHES.insert().values(node_key=node_key, batch=batch.name))
    return len(write_each(connection, batch.lines, partial(insert_lines, connection)))


def bounds(connection: Connection) -> tuple[int, int]:
    """The first and the last id of a line; 0 and -1 where there is none."""
    ids = CHAT_LINES.c.id
    first, last = connection.execute(select(func.min(ids), func.max(ids))).one()
    return (0, -1) if first is None else (first, last)


def _remove(
    connection: Connection, start: int, stop: int, wanted: list[ColumnElement[bool]]
) -> None:
    """Remove lines with ids from C{start} up to, but not, C{stop}."""
    ids = CHAT_LINES.c.id
    connection.execute(CHAT_LINES.delete().where(ids >= start, ids < stop, *wanted))


def _forget(connection: Connection, before: int) -> bool:
    """
    Remove lines older than C{before}; once there are none, give free pages back.

    @return: true if there may be more to do.
    """
    ids, times = CHAT_LINES.c.id, CHAT_LINES.c.time
    oldest = select(ids).where(times < before).order_by(times).limit(FORGET_LINES)
    old = connection.scalars(oldest).all()
    if old:
        connection.execute(CHAT_LINES.delete().where(ids.in_(old)))
    return len(old) == FORGET_LINES or _give_back(connection)


def _give_back(connection: Connection) -> bool:
    """Give free pages of SQLite's file back.  @return: true if some were."""
    if connection.dialect.name != "sqlite":
        return False

    def pragma(name: str) -> Any:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

    free = pragma("freelist_count")
    if free < FREED_PAGES or free < FREE_SHARE * pragma("page_count"):
        return False
    if pragma("auto_vacuum") != _INCREMENTAL:  # the file is of a former version
        return False
    driver: Any = connection.connection
    cursor = driver.cursor()
    for _ in range(FREED_PAGES):  # of more pages at once, Python's driver would free one as well
        cursor.execute("PRAGMA incremental_vacuum(1)")
    return True
