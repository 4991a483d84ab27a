"""
Search in the chat log: newest first, by time, in slices of which each is short.

A filter that fits little in millions of lines takes many slices.  One call searches for about a
second; the caller goes on where it stopped.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import (
    BINARY,
    ColumnElement,
    Connection,
    String,
    UnaryExpression,
    cast,
    func,
    literal,
    literal_column,
    select,
    text,
)
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.interfaces import ChatLine
from domaeka.store.chatlog import BATCH_CHARS, CHAT_LINES, MAX_STORED_CHARS
from domaeka.store.columns import MARIADB, NAME_CHARS, TITLE_CHARS, milliseconds, storable
from domaeka.store.database import Database

#: Fewest and most lines that are looked at in one transaction, and the time that one is to take,
#: in seconds: others that read wait for no longer.
FIRST_SLICE: Final = 500
MAX_SLICE: Final = 20_000
SLICE_SECONDS: Final = 0.05
#: Bounds of one search: time, in seconds, and lines that are looked at.
SEARCH_SECONDS: Final = 1.0
SEARCH_LINES: Final = 500_000
#: Longest time that the store may take for an answer, in seconds.
ANSWER_SECONDS: Final = 10.0
#: Most text of a page, in characters, but for a single line.
PAGE_CHARS: Final = BATCH_CHARS
#: Characters of a room's id that the index has.  Source: revision 0008.
INDEXED_CHARS: Final = 64

#: A time after all others, in milliseconds since 1970.
_END: Final = 2**62
_LINES: Final = CHAT_LINES.c
_T = TypeVar("_T")


class Place(NamedTuple):
    """
    A place between lines, in their order.

    @ivar time: in milliseconds since 1970; by L{ChatFilter.newer_than}, of no meaning.
    @ivar number: the id of the last line before it; L{None}: all lines of that time are before it.
    """

    time: int
    number: int | None


class ChatFilter(NamedTuple):
    """
    The lines that are wanted.

    @ivar room_id: as C{sender}, the whole of it.
    @ivar text: a part of it; upper and lower case differ.
    @ivar since: seconds since 1970, as C{until}, which is not wanted any more.
    @ivar newer_than: an id: only lines that were written after that one, in the order of writing.
    """

    bot_name: str | None = None
    room_id: str | None = None
    sender: str | None = None
    text: str | None = None
    since: float | None = None
    until: float | None = None
    newer_than: int | None = None


class ChatPage(NamedTuple):
    """
    A page of a search.

    @ivar lines: with their ids; fewer than were asked for where the search took long.
    @ivar next: where it goes on, perhaps with no line more; L{None}: all was searched.
    @ivar newest: the id of the line that was written last, of whatever room; later ones are not
        on the page.
    """

    lines: list[tuple[int, ChatLine]]
    next: Place | None
    newest: int


class _Slice(NamedTuple):
    """
    The result of one transaction.

    @ivar is_full: true if the next line found no room.
    """

    lines: list[tuple[int, ChatLine]]
    next: Place | None
    is_full: bool


class ChatSearch:
    """Searches in the chat log, in the lane of those that only read."""

    def __init__(self, database: Database, reactor: Any) -> None:
        self._database = database
        self._reactor = reactor

    @inlineCallbacks
    def find(self, wanted: ChatFilter, limit: int, after: Place | None = None) -> Any:
        """
        Find lines: the latest first; of one time, the one first that was written last.

        @param limit: the most lines.
        @param after: L{ChatPage.next} of the page before, of the same filter.
        @return: a Deferred of a L{ChatPage}; L{StoreError}: the store failed.
        """
        started = self._reactor.seconds()
        newest = yield self._read(_newest)
        place = after or _beginning(wanted)
        found: list[tuple[int, ChatLine]] = []
        room = PAGE_CHARS
        # Most lines of a room, or of any, fit; of those with a text few do.
        is_rare = wanted.sender is not None or wanted.text is not None
        size, looked_at = FIRST_SLICE if is_rare else min(FIRST_SLICE, limit), 0
        while place is not None:
            began = self._reactor.seconds()
            most = limit - len(found)
            lines, place, is_full = yield self._read(
                _look, wanted, newest, place, size, most, room if found else None
            )
            found += lines
            room -= sum(len(line.text) for _, line in lines)
            looked_at += size
            now = self._reactor.seconds()
            is_over = now - started >= SEARCH_SECONDS or looked_at >= SEARCH_LINES
            if is_full or is_over or len(found) == limit:
                break
            size = size * 2 if now - began < SLICE_SECONDS else size // 2
            size = min(MAX_SLICE, max(FIRST_SLICE, size))
        return ChatPage(found, place, newest)

    def _read(self, f: Callable[..., _T], *args: object) -> "Deferred[_T]":
        reading = self._database.run_read(f, *args)
        return reading.addTimeout(ANSWER_SECONDS, self._reactor, _late)


def _late(value: Any, seconds: float) -> Any:
    if isinstance(value, Failure) and value.check(CancelledError):  # type: ignore[no-untyped-call]
        raise StoreError(f"the store has not answered for {seconds:.0f} s")
    return value


def _beginning(wanted: ChatFilter) -> Place:
    """The place before all lines that may be wanted."""
    if wanted.newer_than is not None:
        return Place(0, wanted.newer_than)
    return Place(_END if wanted.until is None else milliseconds(wanted.until), None)


def _newest(connection: Connection) -> int:
    """The id of the line that was written last; 0: there is none."""
    return connection.scalar(select(func.max(_LINES.id))) or 0


def _look(
    connection: Connection,
    wanted: ChatFilter,
    newest: int,
    place: Place,
    size: int,
    most: int,
    room: int | None,
) -> _Slice:
    """
    Look at a slice.

    @param size: the number of its lines.
    @param most: most lines that are found.
    @param room: most characters of their texts; L{None}: L{PAGE_CHARS}, or a single line.
    """
    if connection.dialect.name == "postgresql":
        # It takes slices for larger than they are, and would read the whole table.
        connection.execute(text("SET LOCAL enable_seqscan = off"))
    in_order, conditions = _range(wanted, place, connection.dialect.name)
    seen = select(_LINES.id.label("number"), _LINES.time.label("at")).where(*conditions)
    seen = seen.order_by(*in_order)
    last = connection.execute(seen.offset(size - 1).limit(1)).first()
    if last is not None:
        end: Place | None = Place(last.at, last.number)
    elif wanted.newer_than is None and place.number is not None:
        end = Place(place.time, None)  # of its time there are no more
    else:
        end = None
    slice_ = seen.limit(size).subquery()
    matching = (
        select(_LINES.id, _LINES.time, func.length(_LINES.text).label("chars"))
        .select_from(slice_.join(CHAT_LINES, _LINES.id == slice_.c.number))
        .where(_LINES.id <= newest, *_filters(wanted, connection.dialect.name))
        .order_by(*in_order)
        .limit(most)
    )
    found = connection.execute(matching).all()
    left = PAGE_CHARS if room is None else room
    fitting: list[int] = []
    for row in found:
        left -= row.chars
        if left < 0 and (fitting or room is not None):
            break
        fitting.append(row.id)
    is_full = len(fitting) < len(found)
    if fitting and (is_full or len(fitting) == most):
        row = found[len(fitting) - 1]
        end = Place(row.time, row.id)
    elif is_full:
        end = place
    return _Slice(_lines(connection, fitting), end, is_full)


def _range(
    wanted: ChatFilter, place: Place, kind: str
) -> tuple[list[UnaryExpression[Any]], list[ColumnElement[bool]]]:
    """
    The order of lines, and the conditions for those behind a place: an index has both.

    @param kind: of the database.
    """
    if wanted.newer_than is not None:
        return [_LINES.id.asc()], [_LINES.id > place.number]
    # Not (time, id) < (…, …), for which MariaDB uses no index.
    if place.number is None:
        conditions = [_LINES.time < place.time]
    else:
        conditions = [_LINES.time == place.time, _LINES.id < place.number]
    if wanted.since is not None:
        conditions.append(_LINES.time >= milliseconds(wanted.since))
    if wanted.room_id is not None:
        column = "room_start" if kind in MARIADB else f"substr(room_id, 1, {INDEXED_CHARS})"
        start = storable(wanted.room_id, INDEXED_CHARS)
        conditions.append(literal_column(column, String()) == start)
    return [_LINES.time.desc(), _LINES.id.desc()], conditions


def _filters(wanted: ChatFilter, kind: str) -> list[ColumnElement[bool]]:
    """The conditions for which there is no index."""

    def exact(value: Any) -> ColumnElement[Any]:
        # MariaDB takes upper and lower case, and blanks at the end, for the same.
        return cast(value, BINARY) if kind in MARIADB else value

    whole = (
        (_LINES.bot_name, wanted.bot_name, NAME_CHARS),
        (_LINES.room_id, wanted.room_id, TITLE_CHARS),
        (_LINES.sender, wanted.sender, TITLE_CHARS),
    )
    filters = [
        exact(column) == exact(literal(storable(value, most)))
        for column, value, most in whole
        if value is not None
    ]
    if wanted.text is not None:
        part = literal(storable(wanted.text, MAX_STORED_CHARS))
        position = func.strpos if kind == "postgresql" else func.instr
        filters.append(position(exact(_LINES.text), exact(part)) > 0)
    if wanted.newer_than is not None:
        if wanted.since is not None:
            filters.append(_LINES.time >= milliseconds(wanted.since))
        if wanted.until is not None:
            filters.append(_LINES.time < milliseconds(wanted.until))
    return filters


def _lines(connection: Connection, ids: list[int]) -> list[tuple[int, ChatLine]]:
    """The lines with these ids, in their order."""
    if not ids:
        return []
    rows = connection.execute(select(CHAT_LINES).where(_LINES.id.in_(ids))).all()
    found = {row.id: ChatLine(row.time / 1000, *row[2:]) for row in rows}
    # Meanwhile one may have been removed.
    return [(number, found[number]) for number in ids if number in found]
