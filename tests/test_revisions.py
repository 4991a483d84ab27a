"""Tests for L{domaeka.store.revisions}."""

from collections.abc import Callable
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Table, inspect, text

from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.policies.limits import Ban
from domaeka.store import (
    bans,
    bot_values,
    chatlog,
    decisions,
    devices,
    durable,
    outboxes,
    revisions,
    roles,
    rooms,
    schedules,
    sessions,
)
from domaeka.store.columns import METADATA, PREFIX
from domaeka.store.imports import importer
from domaeka.store.revisions import VERSION, find, migrate
from domaeka.store.threads import StoreClosed
from tests.storing import StoreTestCase, drop_all

#: All that declare tables.
PARTS = (
    bans,
    bot_values,
    chatlog,
    decisions,
    devices,
    durable,
    importer,
    outboxes,
    roles,
    rooms,
    schedules,
    sessions,
)
HEAD = "0014"
MIN_VERSION = "0004"

#: A row of each table, as the revision 0001 has them.
ROWS = (
    "devices VALUES ('k', 'bot', 'a1', 'blocked', 1, 2, '3.3.3', '', '', '내 전화', '')",
    "rooms VALUES ('k', 'bot', '100', '방', {true}, 'denied', 'a1', 3)",
    "chat_lines (time, direction, bot_name, device_id, room_id, room_name, sender, text) "
    "VALUES (4, 'in', 'bot', 'a1', '100', '방', '사람', '안녕')",
    "sessions (device_key, bot_name, device_id, newest_hash, expires) "
    "VALUES ('k', 'bot', 'a1', 'h', 5)",
    "mailbox VALUES ('n', 'k', 0, 'bot', 'a1', {data})",
    "bans (network, reason, made_at, times, made_by) "
    "VALUES ('192.0.2.1/32', 'flood', 1000, 2, 'sweep')",
)


class RevisionTestCase(StoreTestCase):
    """Has a database without tables."""

    def setUp(self) -> None:
        super().setUp()
        self.do(drop_all)
        self.addCleanup(self.do, drop_all)

    def do(self, f: Callable[[Connection], Any]) -> Any:
        """Call C{f} in a transaction."""
        with self.database._writes.begin() as connection:
            return f(connection)

    def run_statements(self, *statements: str) -> None:
        """Carry out SQL."""
        self.do(lambda c: [c.execute(text(statement)) for statement in statements] and None)

    def names(self) -> set[str]:
        """The tables that are there."""
        return set(self.do(lambda c: inspect(c).get_table_names()))

    def open(self) -> None:
        """Open the database."""
        self.successResultOf(self.database.start())

    def refused(self) -> str:
        """The line with which the opening is refused for good."""
        line = str(self.failureResultOf(self.database.start(), StoreClosed).value)
        self.assertNotIn("\n", line)
        return line

    def count(self, table: Table) -> int:
        """How many rows there are."""
        return len(self.rows(table))

    def former(self, revision: str = "0003") -> None:
        """
        Make a store of a version before the prefix, with a row in each table; on MariaDB as it was
        where the server makes MyISAM's by default.
        """

        def make(connection: Connection) -> None:
            known = revisions._Revisions()
            known.config.attributes["connection"] = connection
            known.config.attributes["version_table"] = "alembic_version"
            command.upgrade(known.config, revision)
            postgresql = connection.dialect.name == "postgresql"
            data = r"'\x00ff'" if postgresql else "x'00ff'"
            for former in sorted(revisions._FORMER_TABLES):
                connection.execute(text(f"ALTER TABLE {PREFIX}{former} RENAME TO {former}"))
                if connection.dialect.name == "mysql":
                    connection.execute(text(f"ALTER TABLE {former} ENGINE = MyISAM"))
            for row in ROWS:
                row = row.format(true="true" if postgresql else "1", data=data)
                connection.exec_driver_sql(f"INSERT INTO {row}")

        self.do(make)

    def assert_engine(self) -> None:
        """MariaDB's tables are InnoDB's."""

        def engines(connection: Connection) -> set[str]:
            if connection.dialect.name != "mysql":
                return {"InnoDB"}
            options = inspect(connection).get_table_options
            ours = (*METADATA.tables.values(), VERSION)
            return {options(table.name)["mysql_engine"] for table in ours}

        self.assertEqual(self.do(engines), {"InnoDB"})


class MigrationTests(RevisionTestCase):
    """Tests for L{migrate}."""

    def test_migrations_make_what_the_code_expects(self) -> None:
        """From nothing, the migrations lead to exactly the tables that the code declares."""
        self.open()
        # Durable has four tables, two of the others have two.
        self.assertEqual(len(METADATA.tables), len(PARTS) + 5)

        def compare(connection: Connection) -> list[Any]:
            ours = {table.name for table in METADATA.tables.values()}

            def is_ours(thing: Any, name: str, kind: str, reflected: bool, to: object) -> bool:
                # The chat log's indexes, and what they need, are in each database's own words.
                return name in ours if kind == "table" else kind != "index" and name != "room_start"

            options = {"version_table": VERSION.name, "include_object": is_ours}
            context = MigrationContext.configure(connection, opts=options)
            return list(compare_metadata(context, METADATA))

        self.assertEqual(self.do(compare), [])
        self.assertEqual(self.do(find), (HEAD, MIN_VERSION, False))
        self.assert_engine()

    def test_says_what_it_did(self) -> None:
        """The revisions before and after are known; the second time nothing is done."""
        self.assertEqual(self.do(migrate), (None, HEAD))
        self.assertEqual(self.do(migrate), (HEAD, HEAD))

    def test_cut_short(self) -> None:
        """Where a statement cannot be taken back, what was done in part is done again."""
        self.do(migrate)
        self.run_statements(
            "DELETE FROM domaeka_version",
            "DROP TABLE domaeka_rooms",
            "ALTER TABLE domaeka_bans DROP COLUMN claimed_device",
        )
        self.open()
        self.assertEqual(self.do(find).revision, HEAD)
        self.assertEqual((self.count(rooms.ROOMS), self.count(bans.BANS)), (0, 0))


class FormerTests(RevisionTestCase):
    """Stores of a version whose tables had no prefix."""

    def assert_kept(self, tokens: int = 1) -> None:
        """All that was stored is there."""
        now = devices.StoredDevices(self.database, self.clock, wall=self.wall)
        known = rooms.StoredRooms(self.database, self.clock, wall=self.wall)
        self.open()
        self.assertIs(now.approval(DeviceKey("bot", "a1")), Approval.BLOCKED)
        room = known.record(RoomKey("bot", "100"))
        assert room is not None
        self.assertEqual((room.name, room.approval), ("방", Approval.DENIED))
        (line,) = self.rows(chatlog.CHAT_LINES)
        self.assertEqual(line["text"], "안녕")
        self.assertEqual(self.count(sessions.SESSIONS), tokens)
        self.assertEqual([row["data"] for row in self.rows(outboxes.OUTBOXES)], [b"\0\xff"])
        found = self.successResultOf(bans.StoredBans(self.database).load())
        self.assertEqual(found, [Ban("192.0.2.1/32", "flood", 1.0, None, 2, "sweep")])
        ours = {table.name for table in METADATA.tables.values()}
        self.assertEqual(self.names(), ours | {VERSION.name, "alembic_version"})
        self.assert_engine()

    def test_all_is_kept(self) -> None:
        """All rows come over, and what is written next finds its place."""
        self.former()
        self.assert_kept()
        self.run_statements(
            "INSERT INTO domaeka_chat_lines (time, direction, bot_name, device_id, room_id, "
            "room_name, sender, text) VALUES (4, 'in', '', '', '', '', '', 'next')"
        )
        self.assertEqual(self.count(chatlog.CHAT_LINES), 2)

    def test_older_ones(self) -> None:
        """So they do from each revision; tokens of which no key is known die."""
        for revision in ("0001", "0002"):
            self.former(revision)
            self.assert_kept(tokens=0 if revision == "0001" else 1)
            self.do(drop_all)
            self.database = self.make_database()

    def test_cut_short(self) -> None:
        """A renaming that was cut short between two tables is finished."""
        self.former()
        self.run_statements("ALTER TABLE bans RENAME TO domaeka_bans")
        self.assert_kept()

    def test_former_code_is_kept_out(self) -> None:
        """Code of before finds its version table, and in it that the store is too new."""
        self.former()
        self.open()
        number = self.do(lambda c: c.scalar(text("SELECT version_num FROM alembic_version")))
        self.assertEqual(number, "0004")


class StrangersTests(RevisionTestCase):
    """Tables of others in the same database."""

    def strange(self, *names: str) -> None:
        """Make tables of somebody else's, with a row each."""
        for name in names:
            self.run_statements(
                f"CREATE TABLE {name} (version_num VARCHAR(32))",
                f"INSERT INTO {name} VALUES ('0003')",
            )

    def assert_untouched(self, *names: str) -> None:
        """They are as they were."""
        self.assertLessEqual(set(names), self.names())
        for name in names:
            rows = self.do(lambda c: c.execute(text(f"SELECT * FROM {name}")).all())  # noqa: B023
            self.assertEqual(rows, [("0003",)])

    def test_are_left_alone(self) -> None:
        """Tables with the names of before, and another program's Alembic, mean nothing."""
        names = ("sessions", "rooms", "devices", "bans", "mailbox", "chat_lines")
        self.strange("alembic_version", *names)
        self.open()
        self.assert_untouched("alembic_version", *names)
        self.assertEqual(self.do(find).revision, HEAD)

    def test_former_tables_under_a_strange_alembic(self) -> None:
        """Tables that look like ours are not, where the version table has another's number."""
        self.former()
        self.run_statements("UPDATE alembic_version SET version_num = '4f1c09aa21de'")
        self.open()
        self.assertIn("sessions", self.names())
        self.assertEqual(self.count(sessions.SESSIONS), 0)

    def test_table_of_our_name(self) -> None:
        """A table that bears our prefix and is not ours stops the start."""
        self.strange("domaeka_rooms")
        self.assertIn("a table domaeka_rooms is there that domaeka has not made", self.refused())
        self.assertEqual(self.names() & {"domaeka_rooms", VERSION.name}, {"domaeka_rooms"})
        self.assert_untouched("domaeka_rooms")

    def test_table_of_a_later_revision(self) -> None:
        """So does one that bears the name of a table that a migration is to make."""
        self.do(migrate)
        self.run_statements(
            "UPDATE domaeka_version SET version_num = '0004'", "DROP TABLE domaeka_imports"
        )
        self.strange("domaeka_imports")
        self.assertIn("a table domaeka_imports is there that domaeka has not made", self.refused())
        self.assert_untouched("domaeka_imports")

    def test_version_table_of_our_name(self) -> None:
        """So does another program's version table of that name."""
        self.strange("domaeka_version")
        self.assertIn("a table domaeka_version is there", self.refused())
        self.assert_untouched("domaeka_version")


class NewerTests(RevisionTestCase):
    """Stores of a version to come."""

    def newer(self, min_version: str) -> None:
        """Make one."""
        self.do(migrate)
        self.run_statements(
            f"UPDATE domaeka_version SET version_num = '9999', min_version = {min_version}"
        )

    def test_refused(self) -> None:
        """Tables of a version that does not say that this code may use them are not touched."""
        for min_version in ("NULL", "'9998'"):
            self.newer(min_version)
            self.assertIn("newer version of domaeka (revision '9999')", self.refused())
            self.do(drop_all)
            self.database = self.make_database()

    def test_allowed(self) -> None:
        """Tables to which things were added only are used, and left as they are."""
        self.newer(f"'{HEAD}'")
        self.open()
        self.assertEqual(self.do(find), ("9999", HEAD, False))
