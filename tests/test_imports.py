"""Tests for L{domaeka.store.imports}, with SQLite in the place of the previous system's MariaDB."""

import contextlib
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Engine, StaticPool, Table, create_engine, func, select, text
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import StoreError
from domaeka.store import durable, revisions
from domaeka.store.chatlog import CHAT_LINES
from domaeka.store.columns import PREFIX, key_hash
from domaeka.store.devices import DEVICES
from domaeka.store.drivers import make_engine, sqlite_address
from domaeka.store.imports import importer, mapping
from domaeka.store.imports.importer import IMPORTS, Importer, Report
from domaeka.store.imports.source import Source, SourceUnreachable
from domaeka.store.rooms import ROOMS
from tests import previous_system
from tests.previous_system import END, SEOUL, PreviousSystem
from tests.storing import FILLED

DURABLE = (durable.OUTBOXES, durable.MESSAGES, durable.TAKEN)
ZONE = timezone(SEOUL)
NOW = END.replace(tzinfo=ZONE).timestamp()
OLD = PreviousSystem(400)
#: A database with these rows, to start from.
_OLD_ENGINE = create_engine("sqlite://", poolclass=StaticPool)
OLD.fill(_OLD_ENGINE)
_OLD_FILE = cast(sqlite3.Connection, _OLD_ENGINE.raw_connection().driver_connection)


def copy(database: sqlite3.Connection, path: Path) -> None:
    """Copy a database into a file."""
    with contextlib.closing(sqlite3.connect(path)) as file:
        database.backup(file)


class ImportCase(SynchronousTestCase):
    """A database of the previous system, and a store, in files."""

    #: True to begin with the rows of L{OLD}.
    filled = False

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir(parents=True)
        copy(FILLED, self.directory / "store.db")
        self.previous = self.engine("previous.db")
        self.store = make_engine(sqlite_address(self.directory / "store.db"), writes=True)
        self.addCleanup(self.store.dispose)
        self.url = f"sqlite:///{self.directory}/previous.db"
        if self.filled:
            copy(_OLD_FILE, self.directory / "previous.db")
        else:
            previous_system.METADATA.create_all(self.previous)

    def engine(self, name: str) -> Engine:
        """A database in a file."""
        engine = create_engine(sqlite_address(self.directory / name))
        self.addCleanup(engine.dispose)
        return engine

    def take(self, url: str = "", zone: tzinfo = ZONE, **options: Any) -> Report:
        """Import it."""
        source = Source(url or self.url, zone)
        defaults: dict[str, Any] = {"target": self.store, "days": 100_000, "now": NOW}
        try:
            return Importer(source, **defaults | options).run()
        finally:
            source.close()

    def say(self, *statements: str) -> None:
        """Change the previous system's database."""
        with self.previous.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def add(self, table: Table, **row: Any) -> None:
        """Add a row to it."""
        with self.previous.begin() as connection:
            connection.execute(table.insert(), row)

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """The rows of the store, in the order of their keys."""
        with self.store.connect() as connection:
            found = connection.execute(select(table).order_by(*table.primary_key.columns))
            return [dict(row) for row in found.mappings()]

    def assert_complete(self, report: Report) -> None:
        """Each row that was read is counted once."""
        for part in (report.devices, report.rooms, report.lines):
            refused = sum(one.count for one in part.refused.values())
            self.assertEqual(part.read, part.taken + part.known + part.merged + refused)


class AllTests(ImportCase):
    """The whole of it."""

    filled = True

    def wanted_lines(self) -> list[dict[str, Any]]:
        """The lines that must come out, by simpler means."""
        seen = set()
        wanted = []
        for row in OLD.lines:
            room = row["channel_id"] or row["room_name"] or ""
            key = (row["bot_name"], room, row["log_id"])
            local = row["server_timestamp"] or row["client_timestamp"]
            if row["message"] is None or not (local or row["created_at"]):
                continue
            if row["log_id"] and key in seen:
                continue
            seen.add(key)
            at = local.replace(tzinfo=ZONE) if local else row["created_at"].replace(tzinfo=UTC)
            line = {
                "time": round(at.timestamp() * 1000),
                "direction": "out" if row["is_bot"] or row["is_our_bot_response"] else "in",
                "bot_name": row["bot_name"],
                "device_id": "",
                "room_id": room,
                "room_name": row["room_name"] or "",
                "sender": row["sender"] or "",
                "user_hash": row["user_hash"] or None,
                "log_id": row["log_id"] or None,
                "text": row["message"],
            }
            wanted.append(line)
        return wanted

    def test_lines(self) -> None:
        """Every line is there once, in its order, at its time."""
        report = self.take()
        self.assert_complete(report)
        wanted = self.wanted_lines()
        lines = self.rows(CHAT_LINES)
        self.assertEqual([line.pop("id") for line in lines], [*range(1, len(wanted) + 1)])
        self.assertEqual(lines, wanted)
        part = report.lines
        self.assertEqual((part.read, part.taken), (400, len(wanted)))
        self.assertEqual({mapping.NO_TEXT, mapping.NO_TIME}, part.refused.keys())
        self.assertGreater(part.merged, 5)
        self.assertEqual((report.cut_lines, report.old_lines, report.days_needed), (1, 0, 0))

    def test_devices(self) -> None:
        """Each is there by its exact name; a refusal wins."""
        report = self.take()
        rows = {(row["bot_name"], row["device_id"]): row for row in self.rows(DEVICES)}
        self.assertEqual(rows.keys(), {(d["bot_name"], d["device_id"]) for d in OLD.devices})
        self.assertEqual((report.devices.taken, report.devices.merged), (16, 1))
        first = OLD.devices[0]
        row = rows[first["bot_name"], first["device_id"]]
        self.assertEqual((row["approval"], row["version"]), ("denied", first["client_version"]))
        made = first["created_at"].replace(tzinfo=ZONE).timestamp()
        self.assertEqual(row["first_seen"], made * 1000)
        self.assertEqual(row["device_key"], key_hash(first["bot_name"], first["device_id"]))

    def test_rooms(self) -> None:
        """Rows of one room become one, which was heard last when its newest line was."""
        report = self.take()
        rows = {(row["bot_name"], row["room_id"]): row for row in self.rows(ROOMS)}
        bot_name = OLD.rooms[0]["bot_name"]
        wanted = {(r["bot_name"], r["room_id"]) for r in OLD.rooms}
        wanted ^= {(bot_name, f"1844_{bot_name}"), (bot_name, "1844")}
        self.assertEqual(rows.keys(), wanted)
        self.assertEqual(report.rooms.merged, len(OLD.rooms) - len(wanted))
        strength = ("pending", "approved", "denied", "revoked", "blocked")
        for key, row in rows.items():
            lines = [
                one["server_timestamp"]
                for one in OLD.lines
                if (one["bot_name"], one["channel_id"]) == key and one["server_timestamp"]
            ]
            newest = max(lines).replace(tzinfo=ZONE).timestamp() * 1000 if lines else None
            self.assertEqual(row["last_heard"], newest)
            same = [r for r in OLD.rooms if (r["bot_name"], r["room_id"]) == key]
            if same:
                self.assertEqual(
                    row["approval"], max((r["status"] for r in same), key=strength.index)
                )
                latest = max(same, key=lambda r: r["updated_at"])
                self.assertEqual(
                    (row["device_id"], row["name"]), (latest["device_id"], latest["room_name"])
                )
        self.assertEqual({row["is_group"] for row in rows.values()}, {True, False})
        (note,) = [note for note in report.notes if "ask for no log" in note]
        unlogged = sum(r["log_settings"] == '{"enabled":false}' for r in OLD.rooms)
        self.assertIn(f" {unlogged} rows ", note)
        self.assertIn("kb_bot_devices: no place for descryption, id, max_mess", str(report.notes))

    def test_again(self) -> None:
        """A second import changes nothing, and says so; a third takes what is new."""
        self.take()
        before = [self.rows(table) for table in (DEVICES, ROOMS, CHAT_LINES, IMPORTS)]
        report = self.take()
        self.assertTrue(report.is_empty)
        self.assertEqual((report.after_id, report.lines.read), (400, 0))
        self.assertEqual((report.devices.known, report.devices.merged), (16, 1))
        self.assert_complete(report)
        after = [self.rows(table) for table in (DEVICES, ROOMS, CHAT_LINES, IMPORTS)]
        self.assertEqual(before, after)
        last = OLD.lines[-1]
        self.add(previous_system.LINES, **last | {"id": 401})  # written by a second phone
        self.add(previous_system.LINES, **last | {"id": 402, "log_id": "1"})
        report = self.take()
        self.assertEqual((report.lines.merged, report.lines.taken), (1, 1))

    def test_interrupted(self) -> None:
        """An import that was cut short goes on where it was, and comes to the same."""
        self.patch(importer, "BATCH_ROWS", 50)
        wanted = self.wanted_lines()
        for stop_at in (50, 100, 150, 300):
            with self.assertRaises(_Ended):
                self.take(progress=_ending(stop_at))
        report = self.take()
        self.assertEqual((report.after_id, report.lines.read), (300, 100))
        self.assertEqual(
            [{**line, "id": 0} for line in self.rows(CHAT_LINES)],
            [{**line, "id": 0} for line in wanted],
        )

    def test_moved(self) -> None:
        """The same database by another name is known again; another one of its name, too."""
        self.take()
        (self.directory / "previous.db").rename(self.directory / "moved.db")
        moved = f"sqlite:///{self.directory}/moved.db"
        self.assertTrue(self.take(moved).is_empty)
        PreviousSystem(400, seed=8).fill(self.engine("previous.db"))
        with self.assertRaisesRegex(StoreError, "line 400 is not the one that was imported last"):
            self.take()

    def test_pruned(self) -> None:
        """The last line need not be there any more."""
        self.take()
        self.say("DELETE FROM kb_chat_logs WHERE id > 390")
        self.assertTrue(self.take().is_empty)

    def test_ours_win(self) -> None:
        """A device and a room that the store has stay as they are."""
        self.take()
        with self.store.begin() as connection:
            for table in (DEVICES, ROOMS):
                connection.execute(table.update().values(approval="blocked"))
            connection.execute(ROOMS.delete().where(ROOMS.c.room_id == "test"))
        report = self.take()
        self.assertEqual({row["approval"] for row in self.rows(DEVICES)}, {"blocked"})
        self.assertEqual((report.rooms.taken, report.devices.taken), (1, 0))
        self.assert_complete(report)

    def test_dry_run(self) -> None:
        """It says the same, and writes nothing; a store need not be there."""
        dry = self.take(target=None, dry_run=True)
        self.assertEqual(self.take(dry_run=True), dry)
        self.assertEqual([self.rows(t) for t in (DEVICES, ROOMS, CHAT_LINES, IMPORTS)], [[]] * 4)
        wet = self.take()
        self.assertEqual((wet.devices, wet.rooms, wet.lines), (dry.devices, dry.rooms, dry.lines))

    def test_dry_run_on_a_former_store(self) -> None:
        """Tables with the names of before cannot be compared: it says what to do."""
        with self.store.begin() as connection:
            for name in revisions._FORMER_TABLES:
                connection.execute(text(f"ALTER TABLE {PREFIX}{name} RENAME TO {name}"))
            connection.execute(text(f"DROP TABLE {revisions.VERSION.name}"))
            for name in (IMPORTS.name, *(one.name for one in DURABLE)):
                connection.execute(text(f"DROP TABLE {name}"))
            connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
            connection.execute(text("INSERT INTO alembic_version VALUES ('0003')"))
        with self.assertRaisesRegex(StoreError, "domaeka db upgrade"):
            self.take(dry_run=True)
        self.assertGreater(self.take().lines.taken, 0)

    def test_old(self) -> None:
        """Lines that would soon be removed are counted, with what keeps them, or are left out."""
        dry = self.take(days=30, dry_run=True)
        oldest = dry.lines.taken - dry.old_lines
        self.assertEqual(dry.days_needed, 76)
        self.assertEqual(self.take(days=76, dry_run=True).old_lines, 0)
        report = self.take(days=30, skip_old=True)
        self.assertEqual((report.lines.taken, report.old_lines), (oldest, 0))
        self.assertEqual(report.lines.refused[mapping.TOO_OLD].count, dry.old_lines)
        self.assert_complete(report)

    def test_nothing_is_written_there(self) -> None:
        """Reports name rows, and quote no chat."""
        shown = str(self.take())
        for row in OLD.lines:
            if len(row["message"] or "") > 20:
                self.assertNotIn(row["message"], shown)


class _Ended(Exception):
    """Somebody has ended the import."""


def _ending(at: int) -> Callable[[int, int], None]:
    """Ends an import behind so many lines of all."""
    before = []

    def progress(done: int, total: int) -> None:
        before.append(total)
        if 400 - before[0] + done >= at and done:
            raise _Ended

    return progress


class RowsTests(ImportCase):
    """Single rows, and tables that are otherwise."""

    def device(self, **row: Any) -> None:
        """Add a device."""
        known = {"bot_name": "봇", "device_id": "d", "status": "approved", "created_at": END}
        self.add(previous_system.DEVICES, **known | row)

    def line(self, **row: Any) -> None:
        """Add a line."""
        known = {"bot_name": "봇", "channel_id": "1", "message": "m", "server_timestamp": END}
        self.add(previous_system.LINES, **known | row)

    def test_room_ids(self) -> None:
        """The bot's name behind an id is cut off; nothing else is."""
        for channel, room_id in (
            ("123", "123"),
            ("123_Shop_1", "123"),
            ("123_Shop", "123_Shop"),
            ("test_room_001", "test_room_001"),
            ("0", "0"),
            ("", "방"),
        ):
            self.assertEqual(mapping.room_id(channel, "Shop_1", "방"), room_id)

    def test_not_taken(self) -> None:
        """Rows without a name, or with a state that is unknown, are counted by their reasons."""
        self.device()
        self.device(bot_name="")
        self.device(device_id="a\nb")
        self.say(
            "INSERT INTO kb_bot_devices (bot_name, device_id, status, created_at) VALUES "
            "('봇', 'e', '', '2025-01-01')"
        )
        report = self.take()
        counts = {reason: one.count for reason, one in report.devices.refused.items()}
        self.assertEqual(counts, {mapping.BAD_NAME: 2, mapping.BAD_STATUS: 1})
        self.assertEqual(report.devices.refused[mapping.BAD_STATUS].examples, ["봇 e"])
        self.assertEqual(report.devices.taken, 1)

    def test_strongest(self) -> None:
        """A refusal wins over an approval, and that over waiting, in whatever order they come."""
        for device_id, statuses in (
            ("a", ("approved", "pending")),
            ("b", ("denied", "approved")),
            ("c", ("blocked", "denied", "pending")),
        ):
            for status in statuses:
                self.device(device_id=device_id, status=status)
        self.take()
        found = {row["device_id"]: row["approval"] for row in self.rows(DEVICES)}
        self.assertEqual(found, {"a": "approved", "b": "denied", "c": "blocked"})

    def test_no_place(self) -> None:
        """No more are taken than a server would read."""
        self.patch(importer, "MAX_DEVICES", 2)
        self.patch(importer, "MAX_BOT_ROOMS", 1)
        for number in range(3):
            self.device(device_id=str(number))
            self.add(
                previous_system.ROOMS,
                bot_name="봇",
                room_id=str(number),
                device_id="d",
                room_name="방",
                status="approved",
            )
        report = self.take()
        self.assertEqual(report.devices.refused[mapping.NO_PLACE].count, 1)
        self.assertEqual(report.rooms.refused[mapping.NO_PLACE].count, 2)
        self.assert_complete(report)
        self.device(device_id="")
        self.say(
            "DELETE FROM kb_bot_devices WHERE device_id = '0'",
            "UPDATE kb_bot_devices SET device_id = 'x'",
        )
        report = self.take()
        self.assertEqual(report.devices.refused[mapping.NO_PLACE].count, 1)

    def test_doubles_far_apart(self) -> None:
        """Memory is bounded: lines that are very far apart are not compared."""
        width = importer.DOUBLE_IDS
        for number in (1, width + 1, 3 * width, 4 * width, 7 * width):
            self.line(id=number, log_id="7")
        self.line(id=7 * width + 1, log_id="7", channel_id="2")
        self.assertEqual(self.take().lines.merged, 2)
        self.line(id=7 * width + 2, log_id="7")
        self.line(id=9 * width, log_id="7")
        report = self.take()
        self.assertEqual((report.lines.merged, report.lines.taken), (1, 1))

    def test_time_zone(self) -> None:
        """Times are of the zone that is given; those of the type TIMESTAMP are UTC."""
        self.line(id=1)
        self.line(id=2, server_timestamp=None, created_at=END)
        self.take(zone=timezone(timedelta(hours=-3)))
        first, second = (row["time"] / 1000 for row in self.rows(CHAT_LINES))
        self.assertEqual(
            datetime.fromtimestamp(first, UTC).replace(tzinfo=None), END + timedelta(hours=3)
        )
        self.assertEqual(datetime.fromtimestamp(second, UTC).replace(tzinfo=None), END)

    def test_few_columns(self) -> None:
        """Of the other design of the chat's table all is taken that is there."""
        self.say(
            "DROP TABLE kb_chat_logs",
            "CREATE TABLE kb_chat_logs (id INTEGER, room_id TEXT, sender TEXT, message TEXT, "
            "bot_name TEXT, created_at DATETIME, response TEXT)",
            "INSERT INTO kb_chat_logs VALUES (3, '9_봇', '나', '안녕', '봇', '2025-09-30', '')",
            "ALTER TABLE kb_rooms DROP COLUMN log_settings",
        )
        report = self.take()
        (line,) = self.rows(CHAT_LINES)
        self.assertEqual((line["room_id"], line["sender"], line["text"]), ("9", "나", "안녕"))
        self.assertIn("kb_chat_logs: no place for response", report.notes)

    def test_missing(self) -> None:
        """A table, or a column that is needed, is named in a line."""
        for statement, named in (
            ("ALTER TABLE kb_rooms DROP COLUMN status", "the table kb_rooms has no column status"),
            ("DROP TABLE kb_bot_devices", "there is no table kb_bot_devices"),
        ):
            self.say(statement)
            with self.assertRaisesRegex(StoreError, named):
                self.take()

    def test_addresses(self) -> None:
        """An address that cannot be used is answered in a line, without its password."""
        for url, named in (
            ("nonsense", "cannot be used"),
            ("mysql+nodriver://h/kb", "cannot be used"),
            ("mysql+pymysql://u:secret@h:port/kb", "cannot be used"),
        ):
            with self.assertRaisesRegex(StoreError, named) as raised:
                self.take(url)
            self.assertNotIn("secret", str(raised.exception))
        with self.assertRaises(SourceUnreachable):
            self.take(f"sqlite:///{self.directory}/no/where.db")

    def refuse(self, table: Table, condition: str) -> None:
        """Have the store refuse rows."""
        with self.store.begin() as connection:
            connection.execute(
                text(
                    f"CREATE TRIGGER no_{table.name} BEFORE INSERT ON {table.name} "
                    f"WHEN {condition} BEGIN SELECT RAISE(ABORT, 'not this one'); END"
                )
            )

    def test_store_refuses(self) -> None:
        """Rows that the store refuses are counted, stop no others, and are not tried again."""
        self.refuse(CHAT_LINES, "NEW.text = 'bad'")
        self.refuse(DEVICES, "NEW.device_id = 'bad'")
        for device_id in ("a", "bad", "b"):
            self.device(device_id=device_id)
        for number, message in enumerate(("bad", "x" * 65_535, "good", "bad"), 1):
            self.line(id=number, message=message)
        report = self.take(days=30, now=NOW + 1e8)
        self.assert_complete(report)
        self.assertEqual([row["device_id"] for row in self.rows(DEVICES)].count("bad"), 0)
        self.assertEqual((report.devices.taken, report.lines.taken), (2, 2))
        self.assertEqual((report.old_lines, report.cut_lines), (2, 1))
        refused = report.lines.refused[mapping.REFUSED]
        self.assertEqual((refused.count, refused.examples), (2, ["id 1", "id 4"]))
        self.assertEqual([len(row["text"]) for row in self.rows(CHAT_LINES)], [65_535, 4])
        again = self.take()
        self.assertEqual((again.lines.read, again.devices.known), (0, 2))

    def test_store_fails(self) -> None:
        """A store that fails is named in a line; what was taken before stays."""
        self.line(id=1)
        self.take()
        self.line(id=2, message="x" * 65_535)
        with self.store.begin() as connection:  # no larger than it is
            connection.execute(text("PRAGMA max_page_count = 1"))
        with self.assertRaisesRegex(StoreError, "^the store failed: database or disk is full$"):
            self.take()
        with self.store.connect() as connection:
            self.assertEqual(connection.scalar(select(func.max(IMPORTS.c.last_id))), 1)
