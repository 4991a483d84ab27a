"""Bans in the store, so that a restart lifts none."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Column, Connection, Integer, Row, String, Table, select
from twisted.internet.defer import Deferred

from domaeka.policies.limits import REPEAT_SECONDS, Ban
from domaeka.store.background import BATCH_ROWS
from domaeka.store.columns import (
    METADATA,
    NAME,
    NAME_CHARS,
    TABLE_OPTIONS,
    TIME,
    TITLE,
    TITLE_CHARS,
    milliseconds,
    storable,
    upsert,
)
from domaeka.store.database import Database

#: Most bans that are read; as many as L{domaeka.config.LimitsSettings.max_tracked_addresses}.
MAX_BANS: Final = 65_536
#: Longest network as text, in characters: an IPv6 one with its scope.
_NETWORK_CHARS: Final = 64

BANS: Final = Table(
    "bans",
    METADATA,
    # What ipaddress makes of a network: lower-case ASCII, so one text whatever the collation.
    Column("network", String(_NETWORK_CHARS), primary_key=True),
    Column("reason", TITLE, nullable=False),
    Column("made_at", TIME, nullable=False),
    Column("expires", TIME),
    Column("times", Integer, nullable=False),
    Column("made_by", NAME, nullable=False),
    **TABLE_OPTIONS,
)


class StoredBans:
    """The bans; who is let in is decided elsewhere, from memory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> "Deferred[list[Ban]]":
        """All that are stored, those that end last first; also those that are over."""
        return self._database.run_read(_read)

    def put(self, bans: Sequence[Ban], lifted: Sequence[Ban] = ()) -> "Deferred[None]":
        """
        Store bans, each in the place of one of the same network.  Those that have been over for so
        long that they count no more are removed.

        @param lifted: to be removed in the same moment.
        """
        found = list({ban.network: ban for ban in bans}.values())
        return self._database.run_write(_put, found, [ban.network for ban in lifted])

    def remove(self, network: str) -> "Deferred[bool]":
        """@return: whether there was one."""
        return self._database.run_write(_remove, network)


def _read(connection: Connection) -> list[Ban]:
    # None never ends; NULL sorts first in some databases, and last in others.
    rows = connection.execute(
        select(BANS).order_by(BANS.c.expires.is_not(None), BANS.c.expires.desc()).limit(MAX_BANS)
    )
    return [_from_row(row) for row in rows]


def _from_row(row: Row[Any]) -> Ban:
    return Ban(
        row.network,
        row.reason,
        row.made_at / 1000,
        None if row.expires is None else row.expires / 1000,
        row.times,
        row.made_by,
    )


def _put(connection: Connection, bans: list[Ban], lifted: list[str]) -> None:
    connection.execute(BANS.delete().where(BANS.c.network.in_(lifted)))
    rows = [
        {
            "network": ban.network,
            "reason": storable(ban.reason, TITLE_CHARS),
            "made_at": milliseconds(ban.made_at),
            "expires": None if ban.expires is None else milliseconds(ban.expires),
            "times": ban.times,
            "made_by": storable(ban.made_by, NAME_CHARS),
        }
        for ban in bans
    ]
    for start in range(0, len(rows), BATCH_ROWS):
        upsert(connection, BANS, rows[start : start + BATCH_ROWS])
    counted_since = max((ban.made_at for ban in bans), default=0.0) - REPEAT_SECONDS
    connection.execute(BANS.delete().where(BANS.c.expires < milliseconds(counted_since)))


def _remove(connection: Connection, network: str) -> bool:
    return connection.execute(BANS.delete().where(BANS.c.network == network)).rowcount > 0
