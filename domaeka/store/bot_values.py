"""
Values of bots: JSON under a key, apart for each bot, and in it for each room and person.

Each bot has bounds of its own, and turns of its own: none takes the room or the time of another.
Its sums are in a row that each change locks and changes, so that they are right, and L{incr
<BotValues.incr>} is atomic, with several servers on the store.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import msgspec
from sqlalchemy import BigInteger, Column, Connection, Integer, LargeBinary, and_, func, select
from sqlalchemy.dialects import mysql
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import BotTypeError, BotValueError, StorageFull, StoreError
from domaeka.interfaces import MAX_VALUE_BYTES as MAX_VALUE_BYTES
from domaeka.pools import Pool
from domaeka.store.columns import (
    KEY,
    LONG_TEXT,
    NAME,
    NAME_CHARS,
    TITLE,
    TITLE_CHARS,
    key_hash,
    storable,
    table,
    upsert,
    write_each,
)
from domaeka.store.database import Database
from domaeka.store.revisions import touch
from domaeka.store.threads import DelayedCall, Scheduler, StoreClosed

#: Longest key, in characters.  Source: docs/design.md, "Bounds"; so are those below.
MAX_KEY_CHARS: Final = 200
#: Most values of a bot, and most bytes of them with their keys.
MAX_VALUES: Final = 100_000
MAX_BYTES: Final = 67_108_864
#: Most keys that are listed at a time.
MAX_KEYS: Final = 1000
#: Largest whole number that L{BotValues.incr} makes; floats hold no larger ones exactly.
MAX_INT: Final = 2**53
#: Most calls of a bot that wait.
MAX_WAITING_CALLS: Final = 1000
#: Most calls carried out in one transaction, so that nobody else waits long for the thread.
BATCH_CALLS: Final = 100
#: Longest time that a bot waits for an answer, in seconds.
ANSWER_SECONDS: Final = 10.0
#: Longest key in bytes of UTF-8.
_NAME_BYTES: Final = 4 * MAX_KEY_CHARS

#: Keys are compared as bytes: collations take some for the same, and order them by their own rules.
_NAME: Final = LargeBinary(_NAME_BYTES).with_variant(
    mysql.VARBINARY(_NAME_BYTES), "mysql", "mariadb"
)

BOT_VALUES: Final = table(
    "bot_values",
    Column("scope_key", KEY, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("bot", NAME, nullable=False),
    Column("scope", TITLE, nullable=False),
    Column("value", LONG_TEXT, nullable=False),
    Column("bytes", Integer, nullable=False),
)
#: The sums of each bot.
BOT_SUMS: Final = table(
    "bot_sums",
    Column("bot_key", KEY, primary_key=True),
    Column("bot", NAME, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

_T = TypeVar("_T")


class _Sums:
    """The sums of a bot, whose row this transaction has locked."""

    __slots__ = ("bytes", "changed", "number")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.bytes = size
        self.changed = False

    def full(
        self, number: int, size: int, held: Callable[[], tuple[int, int]] | None
    ) -> StorageFull | None:
        """
        The bound that a change would go over; a bot that is over it may take less room.

        @param held: counts the values of the room or the person, and their bytes; L{None}: they are
            the bot's own.  It is called only above half of a bound: below it nobody holds more
            than is left.
        """
        if number > 0 and self.number + number > MAX_VALUES:
            return StorageFull(f"a bot has {MAX_VALUES} values at most")
        if size > 0 and self.bytes + size > MAX_BYTES:
            return StorageFull(f"the values of a bot have {MAX_BYTES} bytes at most")
        if held is not None and (
            (number > 0 and 2 * (self.number + number) > MAX_VALUES)
            or (size > 0 and 2 * (self.bytes + size) > MAX_BYTES)
        ):
            return share_fault(*held(), self.number, self.bytes, number, size)
        return None

    def add(self, number: int, size: int) -> None:
        """Count a change."""
        self.number += number
        self.bytes += size
        self.changed = True


#: Carries out a call in the database's thread.  It gives the result, or its error; an error that it
#: raises is one of the whole transaction.
_Work = Callable[[Connection, _Sums | None], object]


class _Call:
    """A call that waits, or runs."""

    __slots__ = ("answer", "bot", "deadline", "scope", "work", "writes")

    def __init__(self, bot: str, scope: str, work: _Work, writes: bool) -> None:
        self.bot = bot
        self.scope = scope
        self.work = work
        self.writes = writes
        self.answer: Deferred[Any] = Deferred()
        self.deadline: DelayedCall | None = None

    def finish(self, result: object) -> None:
        """Answer, unless that was done."""
        if self.deadline is None:
            return
        if self.deadline.active():
            self.deadline.cancel()
        self.deadline = None
        if isinstance(result, Exception):
            self.answer.errback(result)
        else:
            self.answer.callback(result)


class BotValues:
    """
    The values of all bots.

    A scope is a text that keeps values apart: empty for those of the bot itself, C{room:…} and
    C{person:…} for those of a room or a person.  The calls of a bot are carried out in their order,
    so that each finds what those before it have stored.

    All fail with L{StoreError} if the store fails, or after L{ANSWER_SECONDS}; what was begun by
    then may yet be stored.  Keys that are no texts that can be stored are a L{BotTypeError} or a
    L{BotValueError}, those that are too long L{StorageFull}.
    """

    _log = Logger()

    def __init__(
        self,
        database: Database,
        reactor: Scheduler,
        gave_way: Callable[[Pool, object, int], object] = lambda pool, claimant, count: None,
    ) -> None:
        """@param gave_way: called when a value is refused, for there is no room."""
        self._gave_way = gave_way
        self._database = database
        self._reactor = reactor
        self._waiting: dict[str, deque[_Call]] = {}  # by bot, the next one first
        self._out: list[_Call] | None = None
        self._emptied: Deferred[None] | None = None
        self._stopped = False

    def get(self, bot: str, scope: str, key: str) -> "Deferred[bytes | None]":
        """The value of a key, in JSON; L{None}: it has none."""
        return self._with_key(bot, scope, key, _get)

    def set(self, bot: str, scope: str, key: str, value: bytes) -> "Deferred[None]":
        """
        Store a value.  Fails with L{StorageFull} where it, or all of the bot, is too much.

        @param value: JSON in UTF-8.
        """
        try:
            check_value(value)
        except StorageFull as error:
            return fail(error)
        return self._with_key(bot, scope, key, partial(_set, bot, scope, value.decode()), True)

    def delete(self, bot: str, scope: str, key: str) -> "Deferred[bool]":
        """Remove a key and its value.  @return: True if there was one."""
        return self._with_key(bot, scope, key, _delete, True)

    def incr(self, bot: str, scope: str, key: str, by: int | float = 1) -> "Deferred[int | float]":
        """
        Add to a number; a key without a value counts as 0.

        @return: the new number.  Fails with L{BotTypeError} where the value, or C{by}, is no
            number; L{BotValueError}: the sum is not finite, or above L{MAX_INT}.
        """
        try:
            check_number(by)
        except BotTypeError as error:
            return fail(error)
        return self._with_key(bot, scope, key, partial(_incr, bot, scope, by), True)

    def keys(
        self, bot: str, scope: str, prefix: str = "", after: str | None = None, limit: int = 100
    ) -> "Deferred[list[str]]":
        """
        The keys of a scope, in the order of their code points.

        @param after: only those behind this key: the last one of the page before.
        @param limit: 1 to L{MAX_KEYS}.
        """
        try:
            begin, last = check_page(prefix, after, limit)
        except BotValueError as error:
            return fail(error)
        return self._ask(bot, partial(_keys, key_hash(bot, scope), begin, last, limit), False)

    def stop(self) -> "Deferred[None]":
        """
        Take no more calls.

        @return: fires when those that wait are answered, within L{ANSWER_SECONDS}; never fails.
        """
        self._stopped = True
        if self._out is None:
            return succeed(None)
        emptied: Deferred[None] = Deferred()
        deadline = self._reactor.callLater(ANSWER_SECONDS, self._empty)
        self._emptied = emptied

        def cancel(_: None) -> None:
            if deadline.active():
                deadline.cancel()

        return emptied.addCallback(cancel)

    # Calls that come while a transaction runs share the next one

    def _with_key(
        self, bot: str, scope: str, key: str, work: Callable[..., object], writes: bool = False
    ) -> "Deferred[Any]":
        try:
            name = check_key(key)
        except (BotTypeError, BotValueError, StorageFull) as error:
            return fail(error)
        place = (key_hash(bot, scope), name)
        return self._ask(bot, partial(work, place=place), writes, scope)

    def _ask(self, bot: str, work: _Work, writes: bool, scope: str = "") -> "Deferred[Any]":
        if self._stopped:
            return fail(StoreClosed("the store was stopped"))
        waiting = self._waiting.setdefault(bot, deque())
        if len(waiting) >= MAX_WAITING_CALLS:
            return fail(StoreError(f"{MAX_WAITING_CALLS} calls of this bot wait for the store"))
        call = _Call(bot, scope, work, writes)
        call.deadline = self._reactor.callLater(ANSWER_SECONDS, self._late, call)
        waiting.append(call)
        if self._out is None:
            self._send()
        return call.answer

    def _late(self, call: _Call) -> None:
        waiting = self._waiting.get(call.bot)
        if waiting and waiting[0] is call:  # those of a bot are late in their order
            waiting.popleft()
            if not waiting:
                del self._waiting[call.bot]
        call.finish(StoreError(f"the store has not answered for {ANSWER_SECONDS:.0f} s"))

    def _send(self) -> None:
        batch: list[_Call] = []
        while self._waiting and len(batch) < BATCH_CALLS:
            bot, waiting = next(iter(self._waiting.items()))
            batch.append(waiting.popleft())
            del self._waiting[bot]
            if waiting:  # behind all others
                self._waiting[bot] = waiting
        self._out = batch
        self._database.run_write(_carry_out, batch).addCallbacks(
            self._carried_out, self._lost, callbackArgs=(batch,), errbackArgs=(batch,)
        ).addErrback(self._mistaken).addBoth(self._next)

    def _carried_out(self, results: list[object], batch: list[_Call]) -> None:
        for call, result in zip(batch, results, strict=True):
            if isinstance(result, StorageFull):
                self._gave_way(Pool.BOT_VALUES, f"the bot {call.bot!r} {call.scope}", 1)
            call.finish(result)

    def _lost(self, failure: Failure, batch: list[_Call]) -> None:
        failed = isinstance(failure.value, StoreError)
        reason = failure.getErrorMessage() if failed else "the store could not be written"
        for call in batch:
            call.finish(StoreError(reason))
        if not failed:
            self._mistaken(failure)

    def _mistaken(self, failure: Failure) -> None:
        self._log.failure("values of bots: our own mistake", failure)

    def _next(self, _: object) -> None:
        self._out = None
        if self._waiting:
            self._send()
        else:
            self._empty()

    def _empty(self) -> None:
        emptied, self._emptied = self._emptied, None
        if emptied is not None:
            emptied.callback(None)


# The bounds, for the stand-in of tests, too


def check_key(key: object) -> bytes:
    """
    @return: a key, as it is stored.
    @raise BotTypeError: it is no text.  @raise BotValueError: it is empty, or cannot be stored.
    @raise StorageFull: it is too long.
    """
    if not isinstance(key, str):
        raise BotTypeError(f"a key is a text, not {type(key).__name__}")
    if len(key) > MAX_KEY_CHARS:
        raise StorageFull(f"a key has {MAX_KEY_CHARS} characters at most")
    if not key:
        raise BotValueError("a key is not empty")
    return _stored(key)


def check_value(value: bytes) -> None:
    """@raise StorageFull: a value is too long."""
    if len(value) > MAX_VALUE_BYTES:
        raise StorageFull(f"a value has {MAX_VALUE_BYTES} bytes of JSON at most")


def share_fault(
    held: int, held_bytes: int, all_values: int, all_bytes: int, number: int, size: int
) -> StorageFull | None:
    """
    The bound of a room or a person that a change would go over: it holds no more values, and no
    more bytes, than its bot may have yet.

    @param held: its values; C{held_bytes}: their bytes.
    @param all_values: those of the bot; C{all_bytes}: their bytes.
    @param number: how many values more; C{size}: how many bytes more.
    """
    if (number > 0 and held + number > MAX_VALUES - all_values) or (
        size > 0 and held_bytes + size > MAX_BYTES - all_bytes
    ):
        return StorageFull("this room or person has stored as much as the bot has room for yet")
    return None


def check_page(prefix: str, after: str | None, limit: int) -> tuple[bytes, bytes]:
    """
    @return: the beginning of keys, and the key before them, as they are stored.
    @raise BotValueError: one of them cannot be stored, or C{limit} is out of range.
    """
    if not 1 <= limit <= MAX_KEYS:
        raise BotValueError(f"keys: limit is 1 to {MAX_KEYS}")
    return _stored(prefix), _stored(after or "")


def check_number(by: object) -> None:
    """@raise BotTypeError: what is to be added is no number."""
    if isinstance(by, bool) or not isinstance(by, int | float):
        raise BotTypeError(f"incr: by is a number, not {type(by).__name__}")


def added(value: str | bytes | None, by: int | float) -> int | float:
    """
    Add to a number that is stored, in JSON.

    @raise BotTypeError: that is no number.
    @raise BotValueError: the sum is not finite, or above L{MAX_INT}.
    """
    try:
        before = 0 if value is None else msgspec.json.decode(value, type=int | float)
    except msgspec.DecodeError:
        raise BotTypeError("incr: the value that is stored is no number") from None
    try:
        number = before + by
        fits = abs(number) <= MAX_INT if isinstance(number, int) else math.isfinite(number)
    except OverflowError:  # a whole number that no float holds
        fits = False
    if not fits:
        raise BotValueError(f"incr: the sum is not finite, or above {MAX_INT}")
    return number


def _stored(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError:
        raise BotValueError("a key has a character that cannot be stored") from None


# In the database's thread

_Place = tuple[str, bytes]


def _carry_out(connection: Connection, batch: Sequence[_Call]) -> list[object]:
    """@return: the result of each call, or its error."""
    sums = _lock(connection, {call.bot for call in batch if call.writes})
    results: list[object] = []
    for call in batch:
        if call.writes and call.bot not in sums:
            results.append(StoreError("the store refused the bot's name"))
        else:
            results.append(call.work(connection, sums.get(call.bot)))
    for bot, now in sums.items():
        if now.changed:
            connection.execute(
                BOT_SUMS.update()
                .where(BOT_SUMS.c.bot_key == key_hash(bot))
                .values(number=now.number, bytes=now.bytes)
            )
    return results


def _lock(connection: Connection, bots: set[str]) -> dict[str, _Sums]:
    """
    Have other servers wait with changes of these bots until this transaction ends.

    @return: the sums of each, but for those whose names the database refused.
    """
    rows: list[dict[str, object]] = [
        {"bot_key": key_hash(bot), "bot": storable(bot, NAME_CHARS), "number": 0, "bytes": 0}
        for bot in bots
    ]
    if not rows:
        return {}
    names = {key_hash(bot): bot for bot in bots}
    known = select(func.count()).where(BOT_SUMS.c.bot_key.in_(names))
    if connection.scalar(known) != len(names):
        touch(connection)  # MariaDB calls it a deadlock where three insert the same row at once
    write_each(
        connection, rows, lambda some: upsert(connection, BOT_SUMS, some, ("number", "bytes"))
    )
    found = connection.execute(select(BOT_SUMS).where(BOT_SUMS.c.bot_key.in_(names)))
    return {names[row.bot_key]: _Sums(row.number, row.bytes) for row in found}


def _is_at(place: _Place) -> Any:
    return and_(BOT_VALUES.c.scope_key == place[0], BOT_VALUES.c.name == place[1])


def _found(connection: Connection, place: _Place) -> Any:
    """The row of a key; L{None}: there is none."""
    wanted = select(BOT_VALUES.c.value, BOT_VALUES.c.bytes).where(_is_at(place))
    return connection.execute(wanted).one_or_none()


def _get(connection: Connection, sums: _Sums | None, *, place: _Place) -> object:
    found = _found(connection, place)
    return None if found is None else found.value.encode()


def _set(
    bot: str, scope: str, value: str, connection: Connection, sums: _Sums | None, *, place: _Place
) -> object:
    found = _found(connection, place)
    return _put(connection, bot, scope, place, value, found, sums)


def _put(
    connection: Connection,
    bot: str,
    scope: str,
    place: _Place,
    value: str,
    found: Any,
    sums: _Sums | None,
) -> StoreError | None:
    """Store a value.  @param found: the row that is there.  @return: the error, if it is not."""
    assert sums is not None
    size = len(place[1]) + len(value.encode())
    number, more = (1, size) if found is None else (0, size - found.bytes)

    def held() -> tuple[int, int]:
        count, total = func.count(), func.coalesce(func.sum(BOT_VALUES.c.bytes), 0)
        of_scope = select(count, total).where(BOT_VALUES.c.scope_key == place[0])
        row = connection.execute(of_scope).one()
        return int(row[0]), int(row[1])

    if (full := sums.full(number, more, held if scope else None)) is not None:
        return full
    row = {"value": value, "bytes": size}
    if found is None:
        row |= {"scope_key": place[0], "name": place[1]}
        row |= {"bot": storable(bot, NAME_CHARS), "scope": storable(scope, TITLE_CHARS)}

    def write(_: object) -> None:
        if found is None:
            connection.execute(BOT_VALUES.insert(), row)
        else:
            connection.execute(BOT_VALUES.update().where(_is_at(place)).values(row))

    if write_each(connection, [row], write):
        return StoreError("the store refused the value: it cannot hold all characters in it")
    sums.add(number, more)
    return None


def _delete(connection: Connection, sums: _Sums | None, *, place: _Place) -> object:
    assert sums is not None
    found = _found(connection, place)
    if found is None:
        return False
    connection.execute(BOT_VALUES.delete().where(_is_at(place)))
    sums.add(-1, -found.bytes)
    return True


def _incr(
    bot: str,
    scope: str,
    by: int | float,
    connection: Connection,
    sums: _Sums | None,
    *,
    place: _Place,
) -> object:
    found = _found(connection, place)
    try:
        number = added(None if found is None else found.value, by)
    except (BotTypeError, BotValueError) as error:
        return error
    value = msgspec.json.encode(number).decode()
    fault = _put(connection, bot, scope, place, value, found, sums)
    return number if fault is None else fault


def _keys(
    scope_key: str,
    begin: bytes,
    last: bytes,
    limit: int,
    connection: Connection,
    sums: _Sums | None,
) -> object:
    name = BOT_VALUES.c.name
    wanted = select(name).where(BOT_VALUES.c.scope_key == scope_key, name > last)
    if begin:
        wanted = wanted.where(name >= begin, name < begin + b"\xff")  # no UTF-8 has that byte
    found = connection.scalars(wanted.order_by(name).limit(limit))
    return [cast(bytes, one).decode() for one in found]
