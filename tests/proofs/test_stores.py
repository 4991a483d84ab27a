"""The store on database servers: its unit tests, encodings, and servers that share a database."""

import os
import sys
from pathlib import Path
from subprocess import run
from typing import Any, cast

from sqlalchemy import URL, Connection, Table, create_engine, inspect, select, text
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.python.runtime import seconds as wall
from twisted.trial.unittest import TestCase

from domaeka.errors import StoreError
from domaeka.interfaces import Approval, ChatLine, DeviceFacts, DeviceKey, RoomKey
from domaeka.policies.auth import NO_KEY
from domaeka.policies.limits import Ban
from domaeka.policies.records import Batch, MessageRow, OutboxRow, TakenRow
from domaeka.store import durable, maintenance, revisions
from domaeka.store.bans import BANS, StoredBans
from domaeka.store.bot_values import BOT_SUMS, BOT_VALUES, BotValues
from domaeka.store.chatlog import CHAT_LINES, StoredChatLog
from domaeka.store.database import Database
from domaeka.store.devices import DEVICES, StoredDevices
from domaeka.store.durable import MESSAGES, DurableStore
from domaeka.store.outboxes import StoredOutboxes
from domaeka.store.revisions import VERSION
from domaeka.store.rooms import ROOMS, StoredRooms
from domaeka.store.schedules import SCHEDULES, StoredClaims
from domaeka.store.sessions import SESSIONS, StoredSessions
from domaeka.store.threads import StoreClosed
from tests.integration.support import reactor, sleep
from tests.proofs.store_servers import StoreServer, mariadb, postgresql

#: Of the phones.
ADDRESS = "192.0.2.1"

ROOT = Path(__file__).parent.parent.parent
#: Without what a server is not asked for.
_UNIT_TESTS = tuple(
    f"tests.{path.stem}"
    for path in sorted((ROOT / "tests").glob("test_*.py"))
    if "(StoreTestCase)" in path.read_text("utf-8") or path.stem == "test_revisions"
)


class _Trial(ProcessProtocol):
    """Unit tests, on a database."""

    def __init__(self, url: URL) -> None:
        self.output = b""
        self.ended: Deferred[_Trial] = Deferred()
        self.passed = False
        kind = url.get_backend_name()
        options = ("--reporter=text", f"--temp-directory=_trial_temp-{kind}")
        reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, "-m", "twisted.trial", *options, *_UNIT_TESTS],
            env=os.environ | {"DOMAEKA_TEST_STORE": url.render_as_string(False)},
            path=str(ROOT),
        )

    # IProcessProtocol

    def outReceived(self, data: bytes) -> None:
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self.passed = reason.check(ProcessDone) is not None
        self.ended.callback(self)


class UnitTests(TestCase):
    """The unit tests of the store."""

    timeout = 900

    async def test_on_servers(self) -> None:
        """They pass on PostgreSQL, and on a MariaDB that makes MyISAM's tables by default."""
        trials = [_Trial(server().database()).ended for server in (postgresql, mariadb)]
        for trial in await gatherResults(trials):
            self.assertTrue(trial.passed, trial.output.decode(errors="replace"))
            self.assertNotIn(b"skips=", trial.output)


class StoreCase(TestCase):
    """Has databases that end with the test."""

    timeout = 300

    def make_database(self, url: URL) -> Database:
        """Make one; the caller starts it."""
        database = Database(url, reactor)
        self.addCleanup(database.stop)
        return database

    async def rows(self, database: Database, table: Table) -> list[dict[str, Any]]:
        """What is in a table."""

        def read(connection: Connection) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(select(table)).mappings()]

        return await database.run_read(read)


class EncodingTests(StoreCase):
    """PostgreSQL's databases whose encoding is not UTF-8."""

    async def test_without_korean(self) -> None:
        """One that cannot hold Korean is refused, in one line that says what to do."""
        for encoding in ("LATIN1", "SQL_ASCII"):
            url = postgresql().database(f"ENCODING '{encoding}' TEMPLATE template0")
            opening: Deferred[Any] = self.make_database(url).start()
            error: object = await self.assertFailure(opening, StoreClosed)
            self.assertIn(f"its encoding {encoding} cannot hold Korean: make", str(error))
            self.assertNotIn("\n", str(error))

    async def test_euc_kr(self) -> None:
        """One that holds a part of Korean stores all but the rows that it cannot hold."""
        options = "ENCODING 'EUC_KR' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        database = self.make_database(postgresql().database(options))
        log = StoredChatLog(database, reactor, wall=wall)
        devices = StoredDevices(database, reactor, wall=wall)
        rooms = StoredRooms(database, reactor, wall=wall)
        sessions = StoredSessions(database, reactor, wall=wall)
        await database.start()
        for sign in "가\U0001f600나":
            log.append(ChatLine(1.0, "in", "봇", "a1", "100", "방", "사람", None, None, sign))
            key = DeviceKey(sign, "a1")
            devices.enter(key, DeviceFacts("3.3.3"))
            rooms.enter(RoomKey("봇", sign), key, sign, True)
        names = [DeviceKey(sign, "a1") for sign in "가\U0001f600나"]
        issued = [sessions.issue(key, ADDRESS, NO_KEY) for key in names]
        await issued[0]
        await self.assertFailure(issued[1], StoreError)
        token = await issued[2]
        self.assertIsNotNone((await sessions.resume(token, names[2], ADDRESS)).token)
        bans = StoredBans(database)
        await bans.put(
            [Ban(f"192.0.2.{n}/32", sign, 1.0, None) for n, sign in enumerate("가\U0001f600나")]
        )
        await self.assertFailure(
            bans.put([Ban("192.0.2.9/32", "\U0001f600", 1.0, None)]), StoreError
        )
        values = BotValues(database, reactor)
        stored: list[Any] = [
            values.set(bot, "", "k", f'"{sign}"'.encode())
            for bot in "봇\U0001f600"
            for sign in "가\U0001f600"
        ]
        await stored[0]
        for refused in stored[1:]:
            await self.assertFailure(refused, StoreError)
        self.assertEqual(await values.get("봇", "", "k"), '"가"'.encode())
        claims = StoredClaims(database, wall=wall)
        for answer in (True, True):
            self.assertEqual(await claims.claim("봇\U0001f600", 1_790_000_000.0), answer)
        outboxes = StoredOutboxes(database, "node")
        await outboxes.save([(key, b"x") for key in names])
        for part in (log, devices, rooms, sessions):
            await part.stop()
        self.assertEqual(
            [row["text"] for row in await self.rows(database, CHAT_LINES)], ["가", "나"]
        )
        self.assertEqual(log.dropped, 1)
        for table, column in (
            (DEVICES, "bot_name"),
            (ROOMS, "name"),
            (SESSIONS, "bot_name"),
            (BANS, "reason"),
        ):
            found = {row[column] for row in await self.rows(database, table)}
            self.assertEqual(found, {"가", "나"}, table.name)
        self.assertEqual(len(await outboxes.load()), 2)
        await devices.set_approval(names[0], Approval.BLOCKED)
        self.assertIsNone(database.health())

    async def test_durable_in_euc_kr(self) -> None:
        """Durable delivery stores Korean there, and of what it cannot hold the rest."""
        options = "ENCODING 'EUC_KR' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        database = self.make_database(postgresql().database(options))
        await database.start()
        store = DurableStore(database, "node")
        outboxes = [
            OutboxRow(n, DeviceKey(sign, "a1"), "e", 9) for n, sign in enumerate("가\U0001f600나")
        ]
        ids = [TakenRow(0, n, sign, b"x", 0) for n, sign in enumerate("가\U0001f600나")]
        messages = [MessageRow(n, 5, 0, 1.0, "\U0001f600".encode()) for n in range(3)]
        for _ in range(2):
            await maybeDeferred(store.store, Batch(outboxes, messages, ids))
        kept = {one.row.outbox: one for one in await store.load()}
        self.assertEqual([one.row for one in kept.values()], [outboxes[0], outboxes[2]])
        self.assertEqual(kept[0].taken, [ids[0], ids[2]])
        self.assertEqual(len(await self.rows(database, MESSAGES)), 2)


class ClaimsTests(StoreCase):
    """Claims on the runs of schedules, of four servers on one database."""

    async def claim_together(self, server: StoreServer) -> None:
        """Of those that claim a run at once, one has it."""
        url = server.database()
        databases = [self.make_database(url) for _ in range(4)]
        nodes = [StoredClaims(database, wall=wall) for database in databases]
        for database in databases:
            await database.start()
        found = await gatherResults(
            [
                node.claim(f"봇\n{name}", 1_790_000_000.0 + 60 * minute)
                for minute in range(50)
                for name in ("아침", "저녁")
                for node in nodes
            ]
        )
        by_run = [found[first : first + 4] for first in range(0, len(found), 4)]
        self.assertEqual([sum(mine) for mine in by_run], [1] * 100)
        self.assertEqual(len(await self.rows(databases[0], SCHEDULES)), 100)

    async def test_postgresql(self) -> None:
        """On PostgreSQL."""
        await self.claim_together(postgresql())

    async def test_mariadb(self) -> None:
        """On MariaDB."""
        await self.claim_together(mariadb())


class BotValuesTests(StoreCase):
    """Values of bots, of four servers on one database."""

    async def count_together(self, server: StoreServer) -> None:
        """What all change at once is right in the end, and so are the sums."""
        url = server.database()
        databases = [self.make_database(url) for _ in range(4)]
        for database in databases:
            await database.start()
        nodes = [BotValues(database, reactor) for database in databases]
        value = b'"' + b"x" * 1000 + b'"'
        counts = [
            node.incr(bot, "", "n") for _ in range(100) for bot in ("봇", "봇2") for node in nodes
        ]
        others: list[Any] = [
            change
            for number in range(50)
            for node in nodes
            for change in (
                node.set("봇", "room:1", f"{number % 10}", value),
                node.delete("봇", "room:1", f"{number % 7}"),
            )
        ]
        new: list[Any] = [
            node.set(f"봇{number}", "", "n", b"1") for number in range(3, 9) for node in nodes
        ]
        await gatherResults(new)
        found = await gatherResults(counts)
        await gatherResults(others)
        self.assertEqual(sorted(found), sorted([*range(1, 401)] * 2))
        rows = await self.rows(databases[0], BOT_VALUES)
        for sums in await self.rows(databases[1], BOT_SUMS):
            mine = [row["bytes"] for row in rows if row["bot"] == sums["bot"]]
            self.assertEqual((sums["number"], sums["bytes"]), (len(mine), sum(mine)))

    async def test_postgresql(self) -> None:
        """On PostgreSQL."""
        await self.count_together(postgresql())

    async def test_mariadb(self) -> None:
        """On MariaDB."""
        await self.count_together(mariadb())


class LostConnectionTests(StoreCase):
    """Connections of durable delivery that end while nobody uses them."""

    async def lose(self, server: StoreServer, others: str, end: str) -> None:
        """The next batch is stored over a new one."""
        url = server.database()
        database = self.make_database(url)
        await database.start()
        store = DurableStore(database, "node")
        await maybeDeferred(store.store, Batch([OutboxRow(1, DeviceKey("b", "a1"), "e", 1)]))
        admin = create_engine(url, isolation_level="AUTOCOMMIT")
        self.addCleanup(admin.dispose)
        with admin.connect() as connection:
            for number in connection.scalars(text(others)).all():
                connection.execute(text(end.format(number)))
        await maybeDeferred(store.store, Batch([OutboxRow(2, DeviceKey("b", "a2"), "e", 1)]))
        self.assertEqual(len(await self.rows(database, durable.LOG)), 2)

    async def test_postgresql(self) -> None:
        """On PostgreSQL."""
        others = (
            "SELECT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await self.lose(postgresql(), others, "SELECT pg_terminate_backend({})")

    async def test_mariadb(self) -> None:
        """On MariaDB."""
        others = (
            "SELECT id FROM information_schema.processlist "
            "WHERE db = database() AND id <> connection_id()"
        )
        await self.lose(mariadb(), others, "KILL {}")


class MaintenanceTests(StoreCase):
    """C{domaeka db} on servers."""

    async def check(self, server: StoreServer, kind: str) -> URL:
        """A database is looked at, migrated and checked.  @return: its address."""
        url = server.database()
        found = maintenance.report(url, thorough=True)
        self.assertRegex(found.kind, rf"^{kind} \d")
        self.assertIn("none: the first start", found.revision)
        self.assertEqual(maintenance.upgrade(url), (None, revisions.newest()))
        database = self.make_database(url)
        await database.start()
        await StoredBans(database).put([Ban("192.0.2.1/32", "도배", 1.0, None)])
        found = maintenance.report(url, thorough=True)
        self.assertEqual((found.rows["domaeka_bans"], found.faults), (1, []))
        return url

    async def test_postgresql(self) -> None:
        """On PostgreSQL; the command for a copy is one that copies, and a copy can be restored."""
        url = await self.check(postgresql(), "PostgreSQL")
        copy = Path(self.mktemp()).absolute()
        error = self.assertRaises(StoreError, maintenance.back_up, url, copy)
        run(str(error).partition("use: ")[2], shell=True, check=True)
        new = postgresql().database()
        name = new.database or ""
        run(
            ["pg_restore", "-h", str(new.query["host"]), "-U", "domaeka", "-d", name, copy],
            check=True,
        )
        found = maintenance.report(new, thorough=True)
        self.assertEqual((found.rows["domaeka_bans"], found.faults), (1, []))

    async def test_mariadb(self) -> None:
        """On MariaDB; a table of another engine is a fault."""
        url = await self.check(mariadb(), "MariaDB")
        mariadb().execute(f"ALTER TABLE {url.database}.domaeka_rooms ENGINE = MyISAM")
        found = maintenance.report(url, thorough=True)
        self.assertEqual(len(found.faults), 1)
        self.assertIn("the table domaeka_rooms is MyISAM's", found.faults[0])


class SharedTests(StoreCase):
    """Servers that are started at once on one database."""

    async def open_many(self, server: StoreServer) -> None:
        """Four of them: one makes the tables."""
        url = server.database()
        made: list[object] = []

        def upgrade(*args: Any) -> None:
            made.append(None)
            original(*args)

        original = cast(Any, revisions._upgrade)
        self.patch(revisions, "_upgrade", upgrade)
        databases = [self.make_database(url) for _ in range(4)]
        await gatherResults([database.start() for database in databases])
        self.assertEqual(len(made), 1)
        self.assertEqual(len(await self.rows(databases[0], VERSION)), 1)

    async def wait_for(self, server: StoreServer) -> None:
        """A server waits while somebody else migrates, and goes on when that is over."""
        url = server.database()
        other = create_engine(url)
        self.addCleanup(other.dispose)
        database = self.make_database(url)
        with other.begin() as connection, revisions._locked(connection):
            opening = database.start()
            await sleep(1.0)
            self.assertNoResult(opening)
            self.assertFalse(inspect(connection).has_table(VERSION.name))
        await opening

    async def test_postgresql(self) -> None:
        """On PostgreSQL one migrates."""
        await self.open_many(postgresql())
        await self.wait_for(postgresql())

    async def test_mariadb(self) -> None:
        """On MariaDB one migrates; servers on its other databases do not wait."""
        await self.open_many(mariadb())
        await self.wait_for(mariadb())
        other = create_engine(mariadb().database())
        self.addCleanup(other.dispose)
        with other.begin() as connection, revisions._locked(connection):
            await self.make_database(mariadb().database()).start()
