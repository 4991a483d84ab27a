"""
The database of the previous system, only read.

Its files contradict each other about its tables: the columns that are there are read, and of the
others only a few must be there.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import (
    URL,
    Connection,
    DateTime,
    Engine,
    Label,
    LargeBinary,
    NullPool,
    Select,
    TableClause,
    cast,
    column,
    create_engine,
    event,
    func,
    inspect,
    select,
    table,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.types import TIMESTAMP, TypeEngine

from domaeka.errors import StoreError
from domaeka.store.chatlog import MAX_STORED_CHARS
from domaeka.store.columns import key_hash
from domaeka.store.drivers import reason_of

#: A row of the source, by the names of the columns that are there; times have their zone.
Row: TypeAlias = Mapping[str, Any]

#: Most lines that are read at a time: their texts have up to 64 KiB each.  One query for all lines
#: could not be given up: the driver reads what it streams to the end before it closes.
_PAGE_ROWS: Final = 250
#: Time-outs of the driver: to connect, and of a statement that searches all lines, in seconds.
_TIMEOUTS: Final[Mapping[str, int]] = {"connect_timeout": 10, "read_timeout": 3600}
#: Said to each new connection of MariaDB or MySQL: nothing can be written; times of the type
#: C{TIMESTAMP} come in UTC.
_SESSION: Final = ("SET SESSION TRANSACTION READ ONLY", "SET SESSION time_zone = '+00:00'")


class _Shape(NamedTuple):
    needed: tuple[str, ...]
    used: tuple[str, ...]


DEVICES: Final = "kb_bot_devices"
ROOMS: Final = "kb_rooms"
LINES: Final = "kb_chat_logs"
_SHAPES: Final = {
    DEVICES: _Shape(
        ("bot_name", "device_id", "status"),
        ("ip_address", "client_type", "client_version", "created_at", "updated_at"),
    ),
    ROOMS: _Shape(
        ("room_id", "bot_name", "room_name", "status"),
        ("device_id", "created_at", "updated_at", "log_settings"),
    ),
    LINES: _Shape(
        ("id", "message"),
        (
            *("bot_name", "channel_id", "room_id", "room_name", "sender", "user_hash", "log_id"),
            *("server_timestamp", "client_timestamp", "created_at"),
            *("is_group_chat", "is_bot", "is_our_bot_response"),
        ),
    ),
}
#: The time of a line: the first of these that it has.
LINE_TIMES: Final = ("server_timestamp", "client_timestamp", "created_at")


class SourceUnreachable(StoreError):
    """The database cannot be opened."""


class Heard(NamedTuple):
    """The newest line of a room; C{is_group}: of a group, by any of its lines."""

    bot_name: str
    room_id: str
    at: datetime | None
    is_group: bool


class Source:
    """
    A connection to the previous system, in one transaction that reads.

    @ivar name: where it is, without user and password.
    @ivar unused: by table, the columns that are there and have no place with us.
    """

    def __init__(self, url: str, zone: tzinfo) -> None:
        """
        Open it, and see which columns are there.

        @param url: SQLAlchemy address.
        @param zone: the zone of the previous system's times, which it stored without one.
        @raise SourceUnreachable: it cannot be opened.
        @raise StoreError: a table or a column is missing.
        """
        engine = _engine(url)
        self.name = _name(engine.url)
        self.key = key_hash("import", self.name)
        self._zone = zone
        try:
            self._connection: Connection = engine.connect()
        except SQLAlchemyError as error:
            raise SourceUnreachable(f"cannot open {self.name}: {reason_of(error)}") from None
        self.unused: dict[str, list[str]] = {}
        self._tables: dict[str, TableClause] = {}
        #: By table, the zone of each column that holds times.
        self._zones: dict[str, dict[str, tzinfo]] = {}
        try:
            with self._errors():
                for name, shape in _SHAPES.items():
                    self._look_at(name, shape)
        except BaseException:
            self.close()
            raise

    def _look_at(self, name: str, shape: _Shape) -> None:
        inspector = inspect(self._connection)
        if not inspector.has_table(name):
            raise StoreError(
                f"{self.name}: there is no table {name}: is it the previous system's database?"
            )
        types: dict[str, TypeEngine[Any]] = {
            found["name"]: found["type"] for found in inspector.get_columns(name)
        }
        for wanted in shape.needed:
            if wanted not in types:
                raise StoreError(f"{self.name}: the table {name} has no column {wanted}")
        used = [one for one in (*shape.needed, *shape.used) if one in types]
        times = {one: types[one] for one in used if isinstance(types[one], DateTime)}
        self._zones[name] = {
            one: UTC if isinstance(kind, TIMESTAMP) else self._zone for one, kind in times.items()
        }
        # Without their types, enumerations come as the words that they hold.
        self._tables[name] = table(name, *(column(one, times.get(one)) for one in used))
        self.unused[name] = sorted(types.keys() - used)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def devices(self) -> Iterator[Row]:
        """All rows of the devices."""
        return self._rows(DEVICES, select(self._tables[DEVICES]))

    def rooms(self) -> Iterator[Row]:
        """All rows of the rooms."""
        return self._rows(ROOMS, select(self._tables[ROOMS]))

    def heard(self) -> Iterator[Heard]:
        """The newest line of each room that lines name, by names that are equal in each byte."""
        columns = self._tables[LINES].c
        room = columns.get("channel_id", columns.get("room_id"))
        times = [columns[name] for name in LINE_TIMES if name in columns]
        if room is None or "bot_name" not in columns or not times:
            return
        # By each of the columns: one of them may be UTC, and the others not.
        newest = [func.max(time).label(time.name) for time in times]
        names: list[Label[Any]] = [
            func.min(columns.bot_name).label("bot_name"),
            func.min(room).label("room"),
        ]
        group = [func.max(columns.is_group_chat).label("grp")] if "is_group_chat" in columns else []
        query = select(*names, *newest, *group).group_by(
            cast(columns.bot_name, LargeBinary), cast(room, LargeBinary)
        )
        for row in self._rows(LINES, query):
            at = next((row[time.name] for time in times if row[time.name] is not None), None)
            yield Heard(row["bot_name"] or "", row["room"] or "", at, bool(row.get("grp")))

    def count(self, after: int) -> int:
        """The number of lines with ids above C{after}."""
        lines = self._tables[LINES]
        query = select(func.count()).select_from(lines).where(lines.c.id > after)
        with self._errors():
            return int(self._connection.scalar(query) or 0)

    def lines(self, after: int, until: int | None = None) -> Iterator[Row]:
        """The lines with ids above C{after}, and not above C{until}, in their order."""
        lines = self._tables[LINES]
        columns = [
            func.substr(one, 1, MAX_STORED_CHARS).label(one.name) if one.name == "message" else one
            for one in lines.c
            if one.name != "is_group_chat"
        ]
        query = select(*columns).order_by(lines.c.id).limit(_PAGE_ROWS)
        if until is not None:
            query = query.where(lines.c.id <= until)
        while True:
            page = list(self._rows(LINES, query.where(lines.c.id > after)))
            yield from page
            if len(page) < _PAGE_ROWS:
                return
            after = page[-1]["id"]

    def fingerprint(self, line: int) -> str | None:
        """L{fingerprint} of the line with the id C{line}; L{None}: it is not there."""
        for row in self.lines(line - 1, line):
            return fingerprint(row)
        return None

    def _rows(self, name: str, query: Select[Any]) -> Iterator[Row]:
        zones = self._zones[name]
        with self._errors():
            result = self._connection.execute(query)
            names = list(result.keys())
            for values in result:
                row = dict(zip(names, values, strict=True))
                for time, zone in zones.items():
                    if time in row:
                        value = row[time]
                        # MariaDB's 0000-00-00 comes as a text.
                        known = isinstance(value, datetime)
                        row[time] = value.replace(tzinfo=zone) if known else None
                yield row

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise StoreError(f"cannot read {self.name}: {reason_of(error)}") from None


def fingerprint(row: Row) -> str:
    """A hash by which a line is known again."""
    names = ("id", "message", "log_id", "bot_name")
    return key_hash(*(str(row.get(name) or "") for name in names))


def _engine(url: str) -> Engine:
    try:
        address = make_url(url)
        options: dict[str, Any] = {"hide_parameters": True, "poolclass": NullPool}
        if address.get_driver_name() != "pymysql":
            return create_engine(address, **options)
        timeouts = {name: t for name, t in _TIMEOUTS.items() if name not in address.query}
        # One snapshot for all that is read.
        options |= {"connect_args": timeouts, "isolation_level": "REPEATABLE READ"}
        engine = create_engine(address, **options)
    except ImportError as error:
        raise StoreError(
            f"the source's driver is not installed: {error}; write mysql+pymysql://…, and install "
            "domaeka[mysql]"
        ) from None
    except (ArgumentError, SQLAlchemyError, TypeError, ValueError):
        # Its text may hold the password.
        raise StoreError(
            "the source's address cannot be used: mysql+pymysql://USER@HOST/DATABASE"
        ) from None

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        with connection.cursor() as cursor:
            for statement in _SESSION:
                cursor.execute(statement)

    return engine


def _name(address: URL) -> str:
    if not address.host:
        where = address.query.get("unix_socket", "")
        return f"{where}{'/' if where else ''}{address.database or ''}"
    return f"{address.host}:{address.port or 3306}/{address.database or ''}"
