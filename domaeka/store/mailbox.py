"""
What devices are owed over an orderly stop: one state of bytes each, taken out once.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Final

from sqlalchemy import Column, Connection, Integer, LargeBinary, Table, select
from sqlalchemy.dialects.mysql import MEDIUMBLOB
from twisted.internet.defer import Deferred, succeed

from domaeka.interfaces import DeviceKey
from domaeka.store.columns import KEY, METADATA, NAME, TABLE_OPTIONS, key_hash
from domaeka.store.database import Database

#: How much of a state is in one row, in bytes: MariaDB takes 16 MiB in one statement, and what
#: it must escape counts twice.
PART_BYTES: Final = 1_048_576
#: How much is written in one transaction, in bytes, but for a single state.
_TRANSACTION_BYTES: Final = 16_777_216

MAILBOX: Final = Table(
    "mailbox",
    METADATA,
    Column("node_key", KEY, primary_key=True),
    Column("device_key", KEY, primary_key=True),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("bot_name", NAME, nullable=False),
    Column("device_id", NAME, nullable=False),
    Column("data", LargeBinary().with_variant(MEDIUMBLOB(), "mysql", "mariadb"), nullable=False),
    **TABLE_OPTIONS,
)


class StoredMailbox:
    """The states of one server's devices while it is not running."""

    def __init__(self, database: Database, node: str) -> None:
        """@param node: the name of this server; others on the store have states of their own."""
        self._database = database
        self._node_key = key_hash(node)

    def save(self, states: Iterable[tuple[DeviceKey, bytes]]) -> "Deferred[None]":
        """
        Store the states of devices, in the place of what is there of them.

        @return: fires once all are stored.  Where it fails, those that come first may be.
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

    def _save(self, _: None, states: list[tuple[DeviceKey, bytes]]) -> "Deferred[None]":
        return self._database.run_write(_save, self._node_key, states)

    def load(self) -> "Deferred[list[tuple[DeviceKey, bytes]]]":
        """
        Take all states out of the store.

        @return: each device's; L{StoreError} where none was taken.
        """
        return self._database.run_write(_take, self._node_key)


def _save(connection: Connection, node_key: str, states: list[tuple[DeviceKey, bytes]]) -> None:
    for key, data in states:
        device_key = key_hash(*key)
        connection.execute(
            MAILBOX.delete().where(
                MAILBOX.c.node_key == node_key, MAILBOX.c.device_key == device_key
            )
        )
        for part, start in enumerate(range(0, max(1, len(data)), PART_BYTES)):
            connection.execute(
                MAILBOX.insert().values(
                    node_key=node_key,
                    device_key=device_key,
                    part=part,
                    bot_name=key.bot_name,
                    device_id=key.device_id,
                    data=data[start : start + PART_BYTES],
                )
            )


def _take(connection: Connection, node_key: str) -> list[tuple[DeviceKey, bytes]]:
    mine = MAILBOX.c.node_key == node_key
    rows = connection.execute(
        select(MAILBOX.c.device_key, MAILBOX.c.bot_name, MAILBOX.c.device_id, MAILBOX.c.data)
        .where(mine)
        .order_by(MAILBOX.c.device_key, MAILBOX.c.part)
    )
    states = []
    for _, group in groupby(rows, key=lambda row: row.device_key):
        parts = list(group)
        key = DeviceKey(parts[0].bot_name, parts[0].device_id)
        states.append((key, b"".join(row.data for row in parts)))
    connection.execute(MAILBOX.delete().where(mine))
    return states
