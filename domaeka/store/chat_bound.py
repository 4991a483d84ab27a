"""
A bound on the size of the chat log: the oldest lines of whoever has written the most are removed.

The size is estimated from a sample, which costs the same however large the log is.  So it may be
wrong by some percent.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, literal_column, select
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.pools import Pool
from domaeka.store.chatlog import CHAT_LINES, bounds
from domaeka.store.columns import NAME_CHARS, TITLE_CHARS, storable
from domaeka.store.database import Database
from domaeka.store.threads import DelayedCall, Scheduler, StoreClosed

#: Interval of the estimates, in seconds.
CHECK_SECONDS: Final = 60.0
#: Places in the log at which the sample looks, evenly spaced, and ids at each: up to 2,000 lines.
PLACES: Final = 40
PLACE_IDS: Final = 50
#: Bytes of a line in the store beside its text.  Source: 100,000 lines in SQLite, with indexes.
LINE_BYTES: Final = 230
#: Part of the bound down to which lines are removed.
KEPT_SHARE: Final = 0.95
#: Most lines removed in one transaction, most ids looked at for them, and the pause until the next,
#: in seconds: others write meanwhile.
REMOVED_LINES: Final = 500
SEARCHED_IDS: Final = 20_000
PAUSE_SECONDS: Final = 0.05

_LINES: Final = CHAT_LINES.c


class Writer(NamedTuple):
    """
    Whoever wrote lines: a phone.

    @ivar room_id: the one room of which most of its lines are; L{None}: there is none such.
    """

    bot_name: str
    device_id: str
    room_id: str | None = None

    def __str__(self) -> str:
        """As the log has it."""
        room = "" if self.room_id is None else f", room {self.room_id!r}"
        return f"{self.bot_name!r} {self.device_id!r}{room}"


class Estimate(NamedTuple):
    """
    An estimate of the log.

    @ivar size: in bytes.
    @ivar largest: who has written the most; L{None}: there are no lines.
    @ivar lead: bytes by which that is more than the next phone has written.
    """

    size: float
    largest: Writer | None
    lead: float


class _Removed(NamedTuple):
    """C{then}: the id at which to go on; L{None}: there are no more lines of theirs."""

    lines: int
    bytes: int
    then: int | None


class ChatBound:
    """Keeps the chat log below C{storage.chat_log_max_bytes}."""

    _log = Logger()

    def __init__(
        self,
        database: Database,
        reactor: Scheduler,
        max_bytes: int,
        gave_way: Callable[[Pool, object, int], object] = lambda pool, claimant, lines: None,
    ) -> None:
        """
        @param max_bytes: 0: there is no bound.
        @param gave_way: called with the lines that were removed, and who had written them.
        """
        #: C{storage.chat_log_max_bytes}; may be changed at any time.
        self.max_bytes = max_bytes
        self._database = database
        self._reactor = reactor
        self._gave_way = gave_way
        self._call: DelayedCall | None = None
        self._stopped = False
        self._goal = 0.0  # bytes to remove until the next estimate
        self._victim: Writer | None = None
        self._start = 0  # the id from which its lines are looked for

    def start(self) -> None:
        """Begin to look at the size."""
        self._stopped = False
        self._later(CHECK_SECONDS, self._check)

    def stop(self) -> None:
        """Remove no more."""
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _later(self, seconds: float, step: Callable[[], object]) -> None:
        if not self._stopped:
            self._call = self._reactor.callLater(seconds, step)

    def _check(self) -> None:
        self._call = None
        if self.max_bytes:
            self._ask(self._database.run_read(estimate), self._estimated)
        else:
            self._later(CHECK_SECONDS, self._check)

    def _ask(self, asked: "Deferred[Any]", answered: Callable[[Any], object]) -> None:
        asked.addCallback(answered).addErrback(self._failed)

    def _estimated(self, found: Estimate) -> None:
        excess = found.size - KEPT_SHARE * self.max_bytes
        if found.size <= self.max_bytes or found.largest is None or not self.max_bytes:
            self._later(CHECK_SECONDS, self._check)
            return
        self._goal = min(excess, max(found.lead, excess / PLACES))
        if found.largest != self._victim:
            self._victim, self._start = found.largest, 0
        self._remove()

    def _remove(self) -> None:
        self._call = None
        assert self._victim is not None
        self._ask(
            self._database.run_bulk(remove, self._victim, self._start, self._goal), self._removed
        )

    def _removed(self, removed: _Removed) -> None:
        if removed.lines:
            self._gave_way(Pool.CHAT_LOG, self._victim, removed.lines)
        self._goal -= removed.bytes
        self._start = removed.then or 0
        over = self._goal <= 0 or removed.then is None
        self._later(PAUSE_SECONDS, self._check if over else self._remove)

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, StoreError):
            self._log.failure("chat log: our own mistake", failure)
        if not isinstance(failure.value, StoreClosed):
            self._later(CHECK_SECONDS, self._check)


def estimate(connection: Connection) -> Estimate:
    """Estimate the size of the log, and who has written the most of it."""
    first, last = bounds(connection)
    ids = last - first + 1
    if ids <= PLACES * PLACE_IDS:
        starts, width, weight = [first], ids, 1.0
    else:
        starts = [first + (ids - PLACE_IDS) * place // (PLACES - 1) for place in range(PLACES)]
        width, weight = PLACE_IDS, ids / (PLACES * PLACE_IDS)
    phones: Counter[tuple[str, str]] = Counter()
    rooms: Counter[tuple[str, str, str]] = Counter()
    size = _text_bytes(connection)
    for start in starts:
        wanted = select(_LINES.bot_name, _LINES.device_id, _LINES.room_id, size).where(
            _LINES.id >= start, _LINES.id < start + width
        )
        for bot_name, device_id, room_id, text_bytes in connection.execute(wanted):
            phones[bot_name, device_id] += LINE_BYTES + text_bytes
            rooms[bot_name, device_id, room_id] += LINE_BYTES + text_bytes
    most = phones.most_common(2)
    if not most:
        return Estimate(0.0, None, 0.0)
    phone, of_phone = most[0]
    room, of_room = max(
        ((room, size) for room, size in rooms.items() if room[:2] == phone), key=lambda one: one[1]
    )
    return Estimate(
        phones.total() * weight,
        Writer(*phone, room[2] if of_room > of_phone / 2 else None),
        (of_phone - (most[1][1] if len(most) > 1 else 0)) * weight,
    )


def remove(connection: Connection, writer: Writer, start: int, most_bytes: float) -> _Removed:
    """
    Remove the oldest lines of C{writer}, some at a time.

    @param start: the id from which to look for them.
    @param most_bytes: about how much is to be removed.
    """
    first, last = bounds(connection)
    start = max(start, first)
    stop = min(start + SEARCHED_IDS, last + 1)
    theirs: list[ColumnElement[bool]] = [
        _LINES.bot_name == storable(writer.bot_name, NAME_CHARS),
        _LINES.device_id == storable(writer.device_id, NAME_CHARS),
    ]
    if writer.room_id is not None:
        theirs.append(_LINES.room_id == storable(writer.room_id, TITLE_CHARS))
    names = _LINES.bot_name, _LINES.device_id, _LINES.room_id
    found = connection.execute(
        select(_LINES.id, _text_bytes(connection), *names)
        .where(_LINES.id >= start, _LINES.id < stop, *theirs)
        .order_by(_LINES.id)
        .limit(REMOVED_LINES)
    ).all()
    then = found[-1][0] + 1 if len(found) == REMOVED_LINES else stop
    wanted = writer if writer.room_id is not None else writer[:2]
    old: list[int] = []
    removed = 0
    for number, text_bytes, *names_of_line in found:
        if removed >= most_bytes:
            then = number
            break
        # A database may take other names for the same.
        if tuple(names_of_line[: len(wanted)]) == wanted:
            old.append(number)
            removed += LINE_BYTES + text_bytes
    if old:
        connection.execute(CHAT_LINES.delete().where(_LINES.id.in_(old)))
    return _Removed(len(old), removed, None if then > last else then)


def _text_bytes(connection: Connection) -> ColumnElement[int]:
    """The size of a line's text, in bytes, in the words of the database."""
    if connection.dialect.name == "sqlite":  # its octet_length is too new
        return literal_column("length(CAST(text AS BLOB))")
    return literal_column("octet_length(text)")
