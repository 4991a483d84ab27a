"""Bans in the store, so that a restart lifts none."""

from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Any, Final

from sqlalchemy import Column, Connection, Integer, Row, String
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from domaeka.errors import StoreError
from domaeka.policies.limits import REPEAT_SECONDS, Ban
from domaeka.store.background import BATCH_ROWS
from domaeka.store.columns import (
    NAME,
    NAME_CHARS,
    TIME,
    TITLE,
    TITLE_CHARS,
    Read,
    milliseconds,
    read_rows,
    seconds_in,
    storable,
    table,
    text_in,
    upsert,
    write_each,
)
from domaeka.store.database import Database
from domaeka.store.decisions import DecisionFeed, Key, note

#: Most bans that are read; as many as L{domaeka.config.LimitsSettings.max_tracked_addresses}.
MAX_BANS: Final = 65_536  #: The kind of decisions that bans are.
_KIND: Final = "bans"
#: Longest network as text, in characters: an IPv6 one with its scope.
_NETWORK_CHARS: Final = 64

BANS: Final = table(
    "bans",
    # As ipaddress writes a network: lower-case ASCII, so one text whatever the collation.
    Column("network", String(_NETWORK_CHARS), primary_key=True),
    Column("reason", TITLE, nullable=False),
    Column("made_at", TIME, nullable=False),
    Column("expires", TIME),
    Column("times", Integer, nullable=False),
    Column("made_by", NAME, nullable=False),
    Column("claimed_bot", NAME, nullable=False, server_default=""),
    Column("claimed_device", NAME, nullable=False, server_default=""),
)


class StoredBans:
    """The bans; others decide from memory if an address may connect."""

    _log = Logger()

    def __init__(self, database: Database, node: str = "") -> None:
        """@param node: the name of this server among others on the store."""
        self._database = database
        self._node = node

    def load(self) -> "Deferred[list[Ban]]":
        """All stored bans, those that end last first; also those that are over."""
        return self._database.run_read(_read).addCallback(self._loaded)

    def _loaded(self, found: Read[Ban]) -> list[Ban]:
        if found.damaged:
            self._log.warn(
                "{what}: {count} rows of the store are damaged, and are skipped: {place} = "
                "{reason}",
                what="bans",
                count=len(found.damaged),
                place=f"{BANS.name}.{BANS.c.network.name}",
                reason=StoreError(found.described),  # a text would be cut
            )
        return found.rows

    def put(self, bans: Sequence[Ban], lifted: Sequence[Ban] = ()) -> "Deferred[None]":
        """
        Store bans, each in the place of one of the same network, and remove those that ended so
        long ago that they count no more.

        @param lifted: bans to remove in the same transaction.
        @return: fails with L{StoreError} if none could be stored.
        """
        found = list({ban.network: ban for ban in bans}.values())
        lifted_ones = [ban.network for ban in lifted]
        return self._database.run_write(self._put, found, lifted_ones).addCallback(self._refused)

    def _refused(self, networks: list[str]) -> None:
        if networks:
            self._log.warn("bans: the store refused {refused} of them", refused=len(networks))

    def remove(self, network: str) -> "Deferred[bool]":
        """Remove the ban of a network.  @return: True if there was one."""
        return self._database.run_write(self._remove, network)

    def watch(
        self,
        decisions: DecisionFeed,
        made: Callable[[Ban], object],
        lifted: Callable[[str], object],
    ) -> None:
        """
        Hear of bans that other servers on the store have made and lifted.

        @param made: called with each that was made, and again if that was heard of before.
        @param lifted: called with the network of each that is there no more.
        """

        def decided(keys: Sequence[Key] | None, found: Read[Ban]) -> None:
            there = {ban.network for ban in found.rows}
            for network in {network for _, network in keys or ()} - there:
                lifted(network)
            for ban in found.rows:
                made(ban)

        decisions.watch(_KIND, _read, decided)

    # In the writing thread

    def _put(self, connection: Connection, bans: list[Ban], lifted: list[str]) -> list[str]:
        """@return: the networks whose bans the database refused."""
        self._note(connection, [*lifted, *(ban.network for ban in bans)])
        return _put(connection, bans, lifted)

    def _remove(self, connection: Connection, network: str) -> bool:
        self._note(connection, [network])
        return connection.execute(BANS.delete().where(BANS.c.network == network)).rowcount > 0

    def _note(self, connection: Connection, networks: list[str]) -> None:
        note(connection, self._node, _KIND, [("", network) for network in networks])


def _read(connection: Connection, keys: Sequence[Key] | None = None) -> Read[Ban]:
    # None never ends; NULL sorts first in some databases, and last in others.
    order = (BANS.c.expires.is_not(None), BANS.c.expires.desc())
    networks = None if keys is None else [network for _, network in keys]
    return read_rows(connection, BANS, order, MAX_BANS, _from_row, networks)


def _from_row(row: Row[Any]) -> Ban:
    made_at = seconds_in(row.made_at)
    if made_at is None or not isinstance(row.times, int):
        raise TypeError("a number is missing")
    ip_network(text_in(row.network))  # raises where it is none
    return Ban(
        row.network,
        text_in(row.reason),
        made_at,
        seconds_in(row.expires),
        row.times,
        text_in(row.made_by),
        text_in(row.claimed_bot),
        text_in(row.claimed_device),
    )


def _put(connection: Connection, bans: list[Ban], lifted: list[str]) -> list[str]:
    """@return: the networks whose bans the database refused."""
    connection.execute(BANS.delete().where(BANS.c.network.in_(lifted)))
    rows: list[dict[str, object]] = [
        {
            "network": ban.network,
            "reason": storable(ban.reason, TITLE_CHARS),
            "made_at": milliseconds(ban.made_at),
            "expires": None if ban.expires is None else milliseconds(ban.expires),
            "times": ban.times,
            "made_by": storable(ban.made_by, NAME_CHARS),
            "claimed_bot": storable(ban.claimed_bot, NAME_CHARS),
            "claimed_device": storable(ban.claimed_device, NAME_CHARS),
        }
        for ban in bans
    ]
    refused = []
    for start in range(0, len(rows), BATCH_ROWS):
        some = rows[start : start + BATCH_ROWS]
        refused += write_each(connection, some, lambda ones: upsert(connection, BANS, ones))
    if rows and len(refused) == len(rows):
        raise StoreError("the store refused the ban")
    counted_since = max((ban.made_at for ban in bans), default=0.0) - REPEAT_SECONDS
    connection.execute(BANS.delete().where(BANS.c.expires < milliseconds(counted_since)))
    return [str(row["network"]) for row in refused]
