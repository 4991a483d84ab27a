"""Claims on the runs of schedules: of the servers on the store one has each run."""

from collections.abc import Callable, Sequence
from typing import Final
from uuid import uuid4

from sqlalchemy import Column, Connection, func, select
from twisted.internet.defer import Deferred

from domaeka.store.columns import (
    KEY,
    TIME,
    TITLE,
    TITLE_CHARS,
    key_hash,
    milliseconds,
    storable,
    table,
    write_each,
)
from domaeka.store.database import Database
from domaeka.store.revisions import touch

#: Time for which claims of a schedule are kept behind its newest one, in seconds: a clock that is
#: set back by less runs nothing twice.
KEPT_SECONDS: Final = 7 * 86_400.0
#: Time for which the last claim of a schedule is kept that is not served any more, in seconds.
FORGOTTEN_SECONDS: Final = 400 * 86_400.0

SCHEDULES: Final = table(
    "schedules",
    Column("schedule_key", KEY, primary_key=True),
    Column("due", TIME, primary_key=True, autoincrement=False),
    Column("schedule", TITLE, nullable=False),
    Column("owner", KEY, nullable=False),
)


class StoredClaims:
    """The claims of one server (L{domaeka.interfaces.Claims})."""

    def __init__(self, database: Database, node: str = "", *, wall: Callable[[], float]) -> None:
        """
        @param database: not started yet.
        @param node: the name of this server among others on the store.
        @param wall: the wall clock, in seconds since 1970.
        """
        self._database = database
        self._wall = wall
        # A run is claimed again where the answer was lost, by this process alone.
        self._owner = key_hash(node, uuid4().hex)
        database.load_at_start(self._forget, lambda _: None)

    def claim(self, schedule: str, due: float) -> "Deferred[bool]":
        """
        Claim the run of a schedule that is due then, in seconds since 1970.

        @return: True if this server has it.  Fails with L{StoreError}: it may be asked again.
        """
        return self._database.run_write(self._claim, schedule, milliseconds(due))

    def last(self, schedule: str, until: float) -> "Deferred[float | None]":
        """The time of the last run that was claimed, up to C{until}; L{None}: none is known."""
        return self._database.run_read(_last, key_hash(schedule), milliseconds(until))

    # In the writing thread

    def _claim(self, connection: Connection, schedule: str, due: int) -> bool:
        touch(connection)  # of two servers one waits here
        key = key_hash(schedule)
        mine = (SCHEDULES.c.schedule_key == key, SCHEDULES.c.due == due)
        owner = connection.scalar(select(SCHEDULES.c.owner).where(*mine))
        if owner is not None:
            return bool(owner == self._owner)
        row: dict[str, object] = {"schedule_key": key, "due": due, "owner": self._owner}
        # The name is for people: a database that cannot hold its characters does without it.
        for name in (storable(schedule, TITLE_CHARS), ""):
            if not write_each(connection, [row | {"schedule": name}], _inserter(connection)):
                break
        else:
            return False  # another server was faster
        old = (SCHEDULES.c.schedule_key == key, SCHEDULES.c.due < due - milliseconds(KEPT_SECONDS))
        connection.execute(SCHEDULES.delete().where(*old))
        return True

    def _forget(self, connection: Connection) -> None:
        """Remove what is left of schedules that are served no more."""
        oldest = milliseconds(self._wall() - FORGOTTEN_SECONDS)
        connection.execute(SCHEDULES.delete().where(SCHEDULES.c.due < oldest))


def _inserter(connection: Connection) -> Callable[[Sequence[dict[str, object]]], object]:
    return lambda rows: connection.execute(SCHEDULES.insert(), rows)


def _last(connection: Connection, key: str, until: int) -> float | None:
    wanted = select(func.max(SCHEDULES.c.due)).where(
        SCHEDULES.c.schedule_key == key, SCHEDULES.c.due <= until
    )
    found = connection.scalar(wanted)
    return None if found is None else found / 1000
