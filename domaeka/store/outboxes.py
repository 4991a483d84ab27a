"""
Outbox snapshots over an orderly stop: bytes for each device, taken out once.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Column, Connection, Integer, LargeBinary, select
from sqlalchemy.dialects.mysql import MEDIUMBLOB
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.interfaces import DeviceKey
from domaeka.store.columns import KEY, NAME, key_hash, table, write_each
from domaeka.store.database import Database
from domaeka.store.threads import StoreClosed

#: Most of a state in one row, in bytes: MariaDB takes 16 MiB in one statement, where bytes that
#: it must escape count twice.
PART_BYTES: Final = 1_048_576
#: Most that is written in one transaction, in bytes, but for a single state.
_TRANSACTION_BYTES: Final = 16_777_216

#: Longest time that saving is tried at the end, and the pause between, in seconds.
KEEP_SECONDS: Final = 15.0
RETRY_SECONDS: Final = 1.0

OUTBOXES: Final = table(
    "mailbox",
    Column("node_key", KEY, primary_key=True),
    Column("device_key", KEY, primary_key=True),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("bot_name", NAME, nullable=False),
    Column("device_id", NAME, nullable=False),
    Column("data", LargeBinary().with_variant(MEDIUMBLOB(), "mysql", "mariadb"), nullable=False),
)


class StoredOutboxes:
    """Outbox snapshots of one server's devices while it is not running."""

    _log = Logger()

    def __init__(self, database: Database, node: str) -> None:
        """@param node: the name of this server; others on the store have states of their own."""
        self._database = database
        self._node_key = key_hash(node)

    def save(self, states: Iterable[tuple[DeviceKey, bytes]]) -> "Deferred[None]":
        """
        Store the states of devices, in the place of what is there of them.

        @return: fires once all are stored, but for those that the store refuses, which the log
            counts.  Where it fails, those that come first may be.
        """
        group: list[tuple[DeviceKey, bytes]] = []
        groups = [group]
        size = 0
        for key, data in states:
            if group and size + len(data) > _TRANSACTION_BYTES:
                group = []
                groups.append(group)
                size = 0
            group.append((key, data))
            size += len(data)
        saved: Deferred[None] = succeed(None)
        for some in groups:
            saved.addCallback(self._save, some)
        return saved

    def keep(self, states: Iterable[tuple[DeviceKey, bytes]], reactor: Any) -> "Deferred[None]":
        """
        Likewise, at the end: a save that fails is tried again, for L{KEEP_SECONDS}.

        @return: fails with L{StoreError} if the last one failed.
        """
        kept: Deferred[None] = self._keep(list(states), reactor)
        return kept.addTimeout(KEEP_SECONDS, reactor, _too_late)

    @inlineCallbacks
    def _keep(self, states: list[tuple[DeviceKey, bytes]], reactor: Any) -> Any:
        until = reactor.seconds() + KEEP_SECONDS
        while True:
            try:
                yield self.save(states)
                return
            except StoreError as error:
                late = reactor.seconds() + RETRY_SECONDS >= until
                if late or isinstance(error, StoreClosed):
                    raise
            yield deferLater(reactor, RETRY_SECONDS)

    def _save(self, _: None, states: list[tuple[DeviceKey, bytes]]) -> "Deferred[None]":
        saved = self._database.run_write(_save, self._node_key, states)
        return saved.addCallback(self._refused)

    def _refused(self, count: int) -> None:
        if count:
            self._log.warn("outboxes: the store refused {refused} of them", refused=count)

    def load(self) -> "Deferred[list[tuple[DeviceKey, bytes]]]":
        """Take all states out of the store.  @return: each; L{StoreError}: none was taken."""
        return self._database.run_write(_take, self._node_key)


def _too_late(result: Any, seconds: float) -> Any:
    if isinstance(result, Failure) and result.check(CancelledError):  # type: ignore[no-untyped-call]
        raise StoreError(f"the store has not answered within {seconds:.0f} s")
    return result


def _save(connection: Connection, node_key: str, states: list[tuple[DeviceKey, bytes]]) -> int:
    """@return: how many the database refused."""
    return len(write_each(connection, states, lambda some: _write(connection, node_key, some)))


def _write(
    connection: Connection, node_key: str, states: Sequence[tuple[DeviceKey, bytes]]
) -> None:
    for key, data in states:
        device_key = key_hash(*key)
        connection.execute(
            OUTBOXES.delete().where(
                OUTBOXES.c.node_key == node_key, OUTBOXES.c.device_key == device_key
            )
        )
        for part, start in enumerate(range(0, max(1, len(data)), PART_BYTES)):
            connection.execute(
                OUTBOXES.insert().values(
                    node_key=node_key,
                    device_key=device_key,
                    part=part,
                    bot_name=key.bot_name,
                    device_id=key.device_id,
                    data=data[start : start + PART_BYTES],
                )
            )


def _take(connection: Connection, node_key: str) -> list[tuple[DeviceKey, bytes]]:
    mine = OUTBOXES.c.node_key == node_key
    rows = connection.execute(
        select(OUTBOXES.c.device_key, OUTBOXES.c.bot_name, OUTBOXES.c.device_id, OUTBOXES.c.data)
        .where(mine)
        .order_by(OUTBOXES.c.device_key, OUTBOXES.c.part)
    )
    states = []
    for _, group in groupby(rows, key=lambda row: row.device_key):
        parts = list(group)
        key = DeviceKey(parts[0].bot_name, parts[0].device_id)
        states.append((key, b"".join(row.data for row in parts)))
    connection.execute(OUTBOXES.delete().where(mine))
    return states
