"""
The chat log: written in batches, off the reactor, and forgotten after some days.

A line costs its connection no more than a place in a queue.  While the store is slow or gone
lines wait there, as far as it is large.
"""

from collections import deque
from itertools import islice
from sys import getsizeof
from typing import Final

from sqlalchemy import Column, Connection, String, Table, select
from sqlalchemy.exc import DataError
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.interfaces import ChatLine
from domaeka.store.background import BATCH_ROWS, BackgroundWriter
from domaeka.store.columns import (
    LONG_TEXT,
    METADATA,
    NAME,
    NAME_CHARS,
    ROW_ID,
    TABLE_OPTIONS,
    TIME,
    TITLE,
    TITLE_CHARS,
    milliseconds,
    storable,
)
from domaeka.store.database import Database
from domaeka.store.threads import DelayedCall, Scheduler, StoreClosed

#: Most lines that wait: 50 s of 200 messages a second.
MAX_WAITING_LINES: Final = 10_000
#: Most memory that their texts take, in bytes.
MAX_WAITING_BYTES: Final = 67_108_864
#: Most text in one transaction, in characters, but for a single line.
BATCH_CHARS: Final = 1_000_000
#: Longest text that is stored, in characters; what is beyond is cut.  MariaDB takes 16 MiB in
#: one statement, a character being four bytes, and eight where it must be escaped.
MAX_STORED_CHARS: Final = 1_000_000
#: How long a line waits for others, in seconds.
WRITE_SECONDS: Final = 0.5
#: How often old lines are removed, in seconds; the first time soon after the start.
FORGET_SECONDS: Final = 3600.0
_FIRST_FORGET_SECONDS: Final = 60.0
#: How many lines are removed in one transaction, and the pause until the next, in seconds.
FORGET_LINES: Final = 1000
FORGET_PAUSE_SECONDS: Final = 0.1

_DAY_SECONDS: Final = 86_400.0

CHAT_LINES: Final = Table(
    "chat_lines",
    METADATA,
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
    **TABLE_OPTIONS,
)


class StoredChatLog:
    """The chat log (L{domaeka.interfaces.ChatLog})."""

    _log = Logger()

    def __init__(
        self, database: Database, reactor: Scheduler, days: float = 30, enabled: bool = True
    ) -> None:
        """
        @param days: how long lines are kept.
        @param enabled: whether lines are written; old ones are removed in any case.
        """
        #: C{storage.chat_log_days}; may be changed at any time.
        self.days = days
        #: How many lines found no room, or were such that the store could not take them.
        self.dropped = 0
        self._enabled = enabled
        self._database = database
        self._reactor = reactor
        self._lines: deque[ChatLine] = deque()
        self._bytes = 0
        self._forget_call: DelayedCall | None = None
        self._stopped = False
        self._writer = BackgroundWriter(
            database,
            reactor,
            "chat log",
            delay=WRITE_SECONDS,
            take=self._take,
            write=_write,
            written=self._written,
            failed=lambda batch: None,  # it is still in the queue
        )

    def start(self) -> None:
        """Begin to remove old lines."""
        self._forget_call = self._reactor.callLater(_FIRST_FORGET_SECONDS, self._forget)

    # domaeka.interfaces.ChatLog

    def append(self, line: ChatLine) -> None:
        """Never blocks and never raises: what finds no room is counted and dropped."""
        if not self._enabled:
            return
        lines = self._lines
        size = getsizeof(line.text)
        if len(lines) >= MAX_WAITING_LINES or self._bytes + size > MAX_WAITING_BYTES:
            self.dropped += 1
            return
        lines.append(line)
        self._bytes += size
        if len(lines) >= BATCH_ROWS:
            self._writer.hurry()
        else:
            self._writer.wake()

    @property
    def waiting(self) -> int:
        """How many lines are not in the store yet."""
        return len(self._lines)

    def health(self) -> str | None:
        """L{None} when well, else what is wrong."""
        if self._writer.trouble is None:
            return None
        return f"chat log: {len(self._lines)} lines wait, {self.dropped} dropped"

    def stop(self) -> "Deferred[None]":
        """
        Write what waits.

        @return: fires when that is done, or could not be in time; never fails.
        """
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

    def _take(self) -> list[ChatLine]:
        batch: list[ChatLine] = []
        room = BATCH_CHARS
        for line in islice(self._lines, BATCH_ROWS):
            room -= len(line.text)
            if room < 0 and batch:
                break
            batch.append(line)
        return batch

    def _written(self, batch: list[ChatLine], refused: int) -> None:
        for _ in batch:
            self._bytes -= getsizeof(self._lines.popleft().text)
        if refused:
            self.dropped += refused
            self._log.warn("chat log: the store refused {refused} lines", refused=refused)

    # Old lines

    def _forget(self) -> None:
        self._forget_call = None
        before = self._reactor.seconds() - self.days * _DAY_SECONDS
        self._database.run_write(_forget, milliseconds(before)).addCallbacks(
            self._forgot, self._not_forgot
        )

    def _forgot(self, count: int) -> None:
        if not self._stopped:
            delay = FORGET_PAUSE_SECONDS if count >= FORGET_LINES else FORGET_SECONDS
            self._forget_call = self._reactor.callLater(delay, self._forget)

    def _not_forgot(self, failure: Failure) -> None:
        if not isinstance(failure.value, StoreError):
            self._log.failure("chat log: our own mistake", failure)
        if not isinstance(failure.value, StoreClosed):
            self._forgot(0)


def _write(connection: Connection, batch: list[ChatLine]) -> int:
    """
    Store a batch.

    @return: how many lines could not be stored whatever one tries.
    """
    rows = [
        {
            "time": milliseconds(line.time),
            "direction": line.direction,
            "bot_name": storable(line.bot_name, NAME_CHARS),
            "device_id": storable(line.device_id, NAME_CHARS),
            "room_id": storable(line.room_id, TITLE_CHARS),
            "room_name": storable(line.room_name, TITLE_CHARS),
            "sender": storable(line.sender, TITLE_CHARS),
            "user_hash": line.user_hash and storable(line.user_hash, NAME_CHARS),
            "log_id": line.log_id and storable(line.log_id, NAME_CHARS),
            "text": storable(line.text, MAX_STORED_CHARS),
        }
        for line in batch
    ]
    try:
        with connection.begin_nested():
            connection.execute(CHAT_LINES.insert(), rows)
        return 0
    except DataError:
        pass
    refused = 0
    for row in rows:  # one of them must not hold up the others for ever
        try:
            with connection.begin_nested():
                connection.execute(CHAT_LINES.insert(), row)
        except DataError:
            refused += 1
    return refused


def _forget(connection: Connection, before: int) -> int:
    """
    Remove some of the lines that are older than C{before}.

    @return: how many; L{FORGET_LINES} where there may be more.
    """
    # In the order in which they were written: no index is needed, and none kept up.
    oldest = connection.execute(
        select(CHAT_LINES.c.id, CHAT_LINES.c.time).order_by(CHAT_LINES.c.id).limit(FORGET_LINES)
    ).all()
    old = [row.id for row in oldest if row.time < before]
    if old:
        connection.execute(
            CHAT_LINES.delete().where(CHAT_LINES.c.id <= max(old), CHAT_LINES.c.time < before)
        )
    return len(old)
