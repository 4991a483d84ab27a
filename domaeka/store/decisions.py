"""
Decisions, numbered in the store: a server knows within L{POLL_SECONDS} what another one on it has
decided on devices, rooms, bans and roles.

A number is given within the transaction of its decision, one transaction at a time, so that none
becomes visible after a higher one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Column, Connection, func, select
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.store.columns import (
    KEY,
    NAME,
    NAME_CHARS,
    TITLE,
    TITLE_CHARS,
    key_hash,
    storable,
    table,
)
from domaeka.store.database import Database
from domaeka.store.revisions import touch
from domaeka.store.threads import DelayedCall, Scheduler, StoreClosed

#: Interval at which the store is asked for decisions of other servers, in seconds.
POLL_SECONDS: Final = 2.0
#: Most decisions read at a time.
MAX_READ: Final = 1000
#: Decisions that are kept; a server that has missed more reads everything again.
KEPT_DECISIONS: Final = 100_000

DECISIONS: Final = table(
    "decisions",
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("node_key", KEY, nullable=False),
    Column("kind", NAME, nullable=False),
    Column("bot_name", NAME, nullable=False),
    Column("name", TITLE, nullable=False),
)

#: Bot name, and device or room; of a ban an empty text, and its network; of a role its name, and
#: who holds it.
Key = tuple[str, str]


class _Watcher(NamedTuple):
    """See L{DecisionFeed.watch}."""

    read: Callable[[Connection, Sequence[Key] | None], Any]
    decided: Callable[[Sequence[Key] | None, Any], object]


class _Found(NamedTuple):
    """Decisions of one kind: their keys (L{None}: all that there are), and what was read."""

    kind: str
    keys: list[Key] | None
    read: Any


class _News(NamedTuple):
    """
    Decisions of other servers.

    @ivar newest: the number up to which they are known now.
    @ivar more: True if there are more.
    """

    newest: int
    found: list[_Found]
    more: bool


class DecisionFeed:
    """Decisions of other servers on the same store."""

    _log = Logger()

    def __init__(self, database: Database, reactor: Scheduler, node: str) -> None:
        """
        @param database: not started yet; what is watched is to be loaded after this was made.
        @param node: the name of this server among others on the store.
        """
        self._database = database
        self._reactor = reactor
        self._node_key = key_hash(node)
        self._watchers: dict[str, _Watcher] = {}
        self._known = 0
        self._timer: DelayedCall | None = None
        self._stopped = False
        database.load_at_start(_newest, self._begin)

    def watch(
        self,
        kind: str,
        read: Callable[[Connection, Sequence[Key] | None], Any],
        decided: Callable[[Sequence[Key] | None, Any], object],
    ) -> None:
        """
        Hear of decisions of one kind.

        @param read: called in the writing thread with the keys that were decided on; L{None}: very
            many, so that all that is stored is to be read.
        @param decided: called in the reactor with them, and what C{read} has returned.
        """
        self._watchers[kind] = _Watcher(read, decided)

    def stop(self) -> None:
        """Ask no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, newest: int) -> None:
        self._known = newest
        self._ask_in(POLL_SECONDS)

    def _ask_in(self, seconds: float) -> None:
        if not self._stopped:
            self._timer = self._reactor.callLater(seconds, self._ask)

    def _ask(self) -> None:
        # In the writing thread: a decision made here is in force before a later one is heard of.
        self._timer = None
        asking = self._database.run_write(self._read, self._known)
        asking.addCallback(self._heard).addErrback(self._failed)

    def _read(self, connection: Connection, known: int) -> _News:
        newest = _newest(connection)
        if newest == known:
            return _News(known, [], False)
        oldest = connection.scalar(select(func.min(DECISIONS.c.number))) or 0
        if newest < known or known + 1 < oldest:  # another database, or too many
            everything = [
                _Found(kind, None, watcher.read(connection, None))
                for kind, watcher in self._watchers.items()
            ]
            return _News(newest, everything, False)
        rows = connection.execute(
            select(DECISIONS)
            .where(DECISIONS.c.number > known)
            .order_by(DECISIONS.c.number)
            .limit(MAX_READ)
        ).all()
        keys: dict[str, dict[Key, None]] = {}
        for row in rows:
            if row.node_key != self._node_key and row.kind in self._watchers:
                keys.setdefault(row.kind, {})[row.bot_name, row.name] = None
        return _News(
            rows[-1].number,
            [
                _Found(kind, list(each), self._watchers[kind].read(connection, list(each)))
                for kind, each in keys.items()
            ],
            rows[-1].number < newest,
        )

    def _heard(self, news: _News) -> None:
        self._known = news.newest
        try:
            for kind, keys, found in news.found:
                self._watchers[kind].decided(keys, found)
        finally:
            self._ask_in(0 if news.more else POLL_SECONDS)

    def _failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, StoreError):
            self._log.failure("decisions: our own mistake", failure)
        if self._timer is None and not isinstance(failure.value, StoreClosed):
            self._ask_in(POLL_SECONDS)


def note(connection: Connection, node: str, kind: str, keys: Iterable[Key]) -> None:
    """
    Number decisions, for other servers, in the transaction that stores them, and before it writes
    anything else: of two such transactions the second waits for the first.
    """
    touch(connection)
    first = _newest(connection) + 1
    node_key = key_hash(node)
    rows = [
        {
            "number": number,
            "node_key": node_key,
            "kind": kind,
            "bot_name": storable(bot_name, NAME_CHARS),
            "name": storable(name, TITLE_CHARS),
        }
        for number, (bot_name, name) in enumerate(keys, first)
    ]
    if rows:
        connection.execute(DECISIONS.insert(), rows)
        last = first + len(rows) - 1
        connection.execute(DECISIONS.delete().where(DECISIONS.c.number <= last - KEPT_DECISIONS))


def _newest(connection: Connection) -> int:
    return connection.scalar(select(func.max(DECISIONS.c.number))) or 0
