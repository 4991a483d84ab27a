"""
Roles that people hold: all in memory, and in the store.

A person is known by channel id and user hash together, never by a name, which anybody may take.
What an operator decides is written first, then in force; servers on the store hear of it from each
other.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Column, Connection, func, select
from twisted.internet.defer import Deferred

from domaeka.store.columns import KEY, NAME, NAME_CHARS, TIME, key_hash, milliseconds, table
from domaeka.store.database import Database
from domaeka.store.decisions import DecisionFeed, Key, note
from domaeka.wire import is_name

#: Most roles that people hold, all of them together; some 0.5 KB of memory each.
MAX_ROLES: Final = 10_000
#: The kind of decisions that roles are.
_KIND: Final = "roles"

ROLES: Final = table(
    "roles",
    Column("role_key", KEY, primary_key=True),
    Column("role", NAME, nullable=False),
    Column("channel_id", NAME, nullable=False),
    Column("user_hash", NAME, nullable=False),
    Column("granted_at", TIME, nullable=False),
)


class HeldRole(NamedTuple):
    """A role, and the person who holds it in the rooms with this channel id."""

    role: str
    channel_id: str
    user_hash: str

    def check(self) -> None:
        """@raise ValueError: nobody can hold it: which field is wrong, and why."""
        if not (self.role.isprintable() and is_name(self.role) and self.role == self.role.strip()):
            raise ValueError("role: is no name")
        if not (self.channel_id.isascii() and self.channel_id.isdigit()) or (
            len(self.channel_id) > NAME_CHARS
        ):
            raise ValueError("channel_id: is not a number; the title of a room is none")
        if not (self.user_hash.isprintable() and is_name(self.user_hash)):
            raise ValueError("user_hash: is not what a phone sends")


class StoredRoles:
    """The roles that people hold."""

    def __init__(self, database: Database, node: str = "", *, wall: Callable[[], float]) -> None:
        """
        @param database: not started yet; before it is open, nobody holds a role.
        @param node: the name of this server among others on the store.
        @param wall: the wall clock, in seconds since 1970.
        """
        self._database = database
        self._node = node
        self._wall = wall
        self._held: dict[HeldRole, float] = {}
        database.load_at_start(_read, self._held.update)

    def holds(self, role: str, channel_id: str | None, user_hash: str | None) -> bool:
        """True if a person holds a role; false where the phone does not know who that is."""
        return (role, channel_id, user_hash) in self._held

    def held(self) -> dict[HeldRole, float]:
        """All roles that are held, and the time since when, in seconds since 1970."""
        return dict(self._held)

    def grant(self, held: HeldRole) -> "Deferred[float | None]":
        """
        Have a person hold a role, from when that is stored.

        @return: since when; L{None}: L{MAX_ROLES} are held.  Fails with L{StoreError}, and then
            nothing has changed here.
        @raise ValueError: as of L{HeldRole.check}.
        """
        held.check()
        granting = self._database.run_write(self._grant, held, milliseconds(self._wall()))
        return granting.addCallback(self._granted, held)

    def _granted(self, since: float | None, held: HeldRole) -> float | None:
        if since is not None:
            self._held[held] = since
        return since

    def withdraw(self, held: HeldRole) -> "Deferred[bool]":
        """
        Take a role from a person, once that is stored.

        @return: True if it was held.  Fails with L{StoreError}: it is still held here.
        """
        return self._database.run_write(self._withdraw, held).addCallback(self._withdrawn, held)

    def _withdrawn(self, was_stored: bool, held: HeldRole) -> bool:
        return self._held.pop(held, None) is not None or was_stored

    def watch(self, decisions: DecisionFeed) -> None:
        """Hear of the decisions of other servers on the store."""
        decisions.watch(_KIND, _read, self._decided)

    def _decided(self, keys: Sequence[Key] | None, found: dict[HeldRole, float]) -> None:
        if keys is None:
            self._held.clear()
        for key in keys or ():
            self._held.pop(_from_key(key), None)
        self._held.update(found)

    # In the writing thread

    def _grant(self, connection: Connection, held: HeldRole, now: int) -> float | None:
        self._note(connection, held)  # of two servers one waits here: the count is right
        mine = ROLES.c.role_key == key_hash(*held)
        since = connection.scalar(select(ROLES.c.granted_at).where(mine))
        if since is None:
            number = connection.scalar(select(func.count()).select_from(ROLES)) or 0
            if number >= MAX_ROLES:
                return None
            since = now
            row = {"role_key": key_hash(*held), "granted_at": now} | held._asdict()
            connection.execute(ROLES.insert(), row)
        return since / 1000

    def _withdraw(self, connection: Connection, held: HeldRole) -> bool:
        self._note(connection, held)
        mine = ROLES.c.role_key == key_hash(*held)
        return connection.execute(ROLES.delete().where(mine)).rowcount > 0

    def _note(self, connection: Connection, held: HeldRole) -> None:
        key = (held.role, f"{held.channel_id}/{held.user_hash}")
        note(connection, self._node, _KIND, [key])


def _from_key(key: Key) -> HeldRole:
    role, person = key
    channel_id, _, user_hash = person.partition("/")
    return HeldRole(role, channel_id, user_hash)


def _read(connection: Connection, keys: Sequence[Key] | None = None) -> dict[HeldRole, float]:
    wanted = select(ROLES).order_by(ROLES.c.granted_at).limit(MAX_ROLES)
    if keys is not None:
        hashes = [key_hash(*_from_key(key)) for key in keys]
        wanted = wanted.where(ROLES.c.role_key.in_(hashes))
    return {
        HeldRole(row.role, row.channel_id, row.user_hash): row.granted_at / 1000
        for row in connection.execute(wanted)
    }
