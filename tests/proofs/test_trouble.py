"""The store in trouble: real servers on databases that are gone, locked, damaged, read-only."""

import contextlib
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar, cast

import msgspec
from sqlalchemy import URL, Connection, create_engine, text
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from domaeka.client import Greeting
from domaeka.testing import STANDARD_IDENTITY, FakePhone
from domaeka.web.api.records import DECISION_SECONDS
from tests.integration.crowd import Crowd
from tests.integration.support import PATIENCE_SECONDS, ServerProcess, reactor, sleep
from tests.integration.test_api import Api
from tests.proofs.store_servers import StoreServer, mariadb, postgresql

BOT = STANDARD_IDENTITY.bot_name
#: A device that an operator has blocked.
BLOCKED = "b" * 16
KNOWN = "a" * 16
#: Longest time that a stop may take that has nothing to write, in seconds.
STOP_SECONDS = 3.0


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> float:
    """Wait for a condition.  @return: how long it took, in seconds."""
    began = reactor.seconds()
    while not await condition():
        if reactor.seconds() - began > PATIENCE_SECONDS:
            raise AssertionError(f"it never came: {what}")
        await sleep(0.1)
    return float(reactor.seconds() - began)


class TroubleCase(TestCase):
    """Has servers on databases."""

    timeout = 600

    async def both(self, prove: Callable[[StoreServer], Awaitable[None]]) -> None:
        """Prove something on PostgreSQL and on MariaDB at the same time."""
        await self.together(prove(postgresql()), prove(mariadb()))

    async def together(self, *steps: Awaitable[None]) -> None:
        """Do several things at the same time."""
        await gatherResults([Deferred.fromCoroutine(cast(Any, step)) for step in steps])

    def server(self, url: URL | None, *arguments: str) -> ServerProcess:
        """A server; L{None}: on a file of SQLite's in its state directory."""
        server = ServerProcess(self, "--set", 'limits.allow=["127.0.0.0/8"]', *arguments)
        if url is not None:
            server.environment["DOMAEKA_STORAGE_URL"] = url.render_as_string(False)
        return server

    async def begin(self, server: ServerProcess) -> None:
        """Start it, without waiting until it is ready."""
        ready = server.is_ready

        async def is_there() -> bool:
            with contextlib.suppress(Exception):
                return (await server.get("/health/live"))[0] == 200
            return False

        server.is_ready = is_there  # type: ignore[method-assign]
        await server.start()
        server.is_ready = ready  # type: ignore[method-assign]

    async def check(self, server: ServerProcess) -> str:
        """What its health says of the store."""
        _, body = await server.get("/health")
        return str(msgspec.json.decode(body)["checks"]["store"])

    async def online(self, *phones: FakePhone) -> None:
        """Wait until phones are connected."""
        for phone in phones:
            await phone.when(lambda: phone.online)  # noqa: B023

    async def decide(self, server: ServerProcess, device: str, status: str) -> int:
        """An operator decides on a device.  @return: the status of the answer."""
        path = f"/devices/{BOT}/{device}"
        return int((await Api(server).ask("PATCH", path, {"status": status}))[0])

    async def stop(self, server: ServerProcess) -> None:
        """It has nothing to write, and ends at once; nothing of it was critical."""
        began = reactor.seconds()
        await server.stop()
        self.assertLess(reactor.seconds() - began, STOP_SECONDS)
        self.assertNotIn("critical", server.output().lower())
        self.assertNotIn("Traceback", server.output())


class DownTests(TroubleCase):
    """A database server that is down."""

    def stopped_by_it(self) -> list[StoreServer]:
        """Both servers; they run when the test is over."""
        servers = [postgresql(), mariadb()]

        def go_on() -> None:
            for store in servers:
                if not store.is_running:
                    store.start()

        self.addCleanup(go_on)
        return servers

    async def live_before(self, server: ServerProcess) -> None:
        """A server gets to know a phone, an operator blocks another one, and it is stopped."""
        await server.start()
        phone = server.phone(KNOWN)
        await self.online(phone)
        phone.say("# echo 처음")
        await phone.expect("처음")
        self.assertEqual(await self.decide(server, BLOCKED, "blocked"), 200)
        await phone.stop()
        await server.stop()

    async def test_at_the_start(self) -> None:
        """
        A phone that is known says something before the database is there.  It is answered when that
        is up, and one that was blocked is not.  Until then new phones are kept away.
        """
        servers = self.stopped_by_it()
        running = [self.server(store.database()) for store in servers]
        await self.together(*(self.live_before(server) for server in running))
        for store in servers:
            store.stop()
        await self.together(*(self.begin(server) for server in running))
        phones = [(server.phone(KNOWN), server.phone(BLOCKED)) for server in running]
        for server, pair in zip(running, phones, strict=True):

            async def are_there(server: ServerProcess = server) -> bool:
                _, body = await server.get("/health")
                return bool(msgspec.json.decode(body)["connections"] == 2)

            await until(are_there, "both phones")
            for phone in pair:
                phone.say("# echo 아직")
        await sleep(1.0)
        for server, pair in zip(running, phones, strict=True):
            status, body = await server.get("/health/ready")
            self.assertEqual(status, 503)
            self.assertIn(b"not ready: the store has not been read yet", body)
            self.assertEqual([phone.texts() for phone in pair], [[], []])
        for store in servers:
            store.start()
        began = reactor.seconds()
        for server, (known, blocked) in zip(running, phones, strict=True):
            await known.expect("아직")
            self.assertEqual((await server.get("/health/ready"))[0], 200)
            blocked.say("# echo 다시")
            known.say("# echo 다시")
            await known.expect("아직", "다시")
            self.assertEqual(blocked.texts(), [])
        print(f"answered {reactor.seconds() - began:.1f} s after the databases were started")

    async def test_stops(self) -> None:
        """A stop while it is down takes no time, whether the store was ever open or not."""
        servers = self.stopped_by_it()
        opened = [self.server(store.database()) for store in servers]
        never = [self.server(store.database()) for store in servers]
        await self.together(*(server.start() for server in opened))
        for store in servers:
            store.stop()
        await self.together(*(self.begin(server) for server in never))
        for server in never:

            async def has_tried(server: ServerProcess = server) -> bool:
                return "cannot open the store" in server.output()

            await until(has_tried, "the first attempt")
        for server in opened:
            # What fails shows, and the server serves on: a device that is new, too.
            phone = server.phone(KNOWN)
            await self.online(phone)
            phone.say("# echo 새로")
            await phone.expect("새로")
            self.assertEqual(await self.decide(server, BLOCKED, "blocked"), 503)
            await phone.stop()
        for server in never:
            await self.stop(server)
        for server in opened:
            began = reactor.seconds()
            await server.stop()
            self.assertLess(reactor.seconds() - began, STOP_SECONDS)
            self.assertNotIn("critical", server.output().lower())


class ReadOnlyTests(TroubleCase):
    """A database that takes no more writes, as after a failover."""

    #: By kind: how each new connection becomes read-only, no longer so, and how others are cut.
    HOW: ClassVar = {
        True: (
            "ALTER DATABASE {} SET default_transaction_read_only = on",
            "ALTER DATABASE {} SET default_transaction_read_only = off",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
        ),
        False: (
            "SET GLOBAL tx_read_only = 1",
            "SET GLOBAL tx_read_only = 0",
            "BEGIN NOT ATOMIC FOR it IN (SELECT id FROM information_schema.processlist "
            "WHERE db = '{}') DO KILL it.id; END FOR; END",
        ),
    }

    async def test_recovers(self) -> None:
        """Connections that may only read are given up, so that the next ones write."""
        await self.both(self.prove)

    async def prove(self, store: StoreServer) -> None:
        """On one of them."""
        url = store.database()
        on, off, cut = (how.format(url.database) for how in self.HOW[store.is_postgresql])
        server = self.server(url)
        await server.start()
        phone = server.phone(KNOWN)
        await self.online(phone)
        store.execute(on)
        self.addCleanup(store.execute, off)
        store.execute(cut)
        self.assertEqual(await self.decide(server, BLOCKED, "blocked"), 503)
        phone.say("# echo 하나")
        await phone.expect("하나")

        async def shows() -> bool:
            return "read" in (await self.check(server)).lower()

        await until(shows, "the store's fault")
        store.execute(off)

        async def decided() -> bool:
            return await self.decide(server, BLOCKED, "blocked") == 200

        self.assertLess(await until(decided, "a decision"), DECISION_SECONDS)

        engine = create_engine(url)
        self.addCleanup(engine.dispose)

        async def is_written() -> bool:
            with engine.connect() as connection:
                return bool(connection.scalar(text("SELECT count(*) FROM domaeka_chat_lines")))

        await until(is_written, "the chat log")


@contextlib.contextmanager
def locked(store: StoreServer, url: URL, table: str) -> Iterator[Connection]:
    """Nobody else may use a table."""
    engine = create_engine(url)
    with engine.begin() as connection:
        if store.is_postgresql:
            connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        else:
            connection.execute(text(f"LOCK TABLES {table} WRITE"))
        yield connection
        if not store.is_postgresql:
            connection.execute(text("UNLOCK TABLES"))
    engine.dispose()


class LockTests(TroubleCase):
    """Tables that somebody else has locked."""

    async def test_chat_log(self) -> None:
        """While the chat log is locked approvals, tokens and answers are as quick as ever."""
        await self.both(self.prove_lanes)

    async def prove_lanes(self, store: StoreServer) -> None:
        """On one of them."""
        url = store.database()
        server = self.server(url)
        await server.start()
        phone = server.phone(KNOWN)
        await self.online(phone)
        with locked(store, url, "domaeka_chat_lines"):
            phone.say("# echo 하나")
            await phone.expect("하나")
            await sleep(2.0)  # a batch of lines waits for the lock
            began = reactor.seconds()
            self.assertEqual(await self.decide(server, BLOCKED, "blocked"), 200)
            crowd = Crowd(self, [server], 1)
            await crowd.until(lambda talker: bool(talker.seen(Greeting) and talker.replies))
            (greeting,) = crowd.greetings(server)
            self.assertIsNotNone(greeting.session_token)
            print(f"a decision and a token: {reactor.seconds() - began:.1f} s")
            await crowd.finish()
        self.assertEqual(await self.check(server), "ok")

    async def test_decision(self) -> None:
        """An operator who waits for a lock is told after 10 s; what was decided is carried out."""
        await self.both(self.prove_limit)

    async def prove_limit(self, store: StoreServer) -> None:
        """On one of them."""
        url = store.database()
        server = self.server(url)
        await server.start()
        api = Api(server)
        path = f"/devices/{BOT}/{BLOCKED}"
        with locked(store, url, "domaeka_devices"):
            status, answer = await api.ask("PATCH", path, {"status": "blocked"})
            self.assertEqual((status, answer["error"]["code"]), (503, "STORE"))
            self.assertIn("not known whether it is stored", answer["error"]["message"])

        async def is_blocked() -> bool:
            status, answer = await api.ask("GET", path)
            return bool(status == 200 and answer["status"] == "blocked")

        await until(is_blocked, "the decision")


class DamageTests(TroubleCase):
    """SQLite's file, damaged, removed or replaced."""

    async def test_damaged_rows(self) -> None:
        """They are skipped and named; their devices wait for an operator, the others are served."""
        server = self.server(None)
        await server.start()
        phones = [server.phone(device) for device in (KNOWN, BLOCKED)]
        await self.online(*phones)
        for phone in phones:
            phone.say("# echo 처음")
            await phone.expect("처음")
            await phone.stop()
        await server.stop()
        with contextlib.closing(sqlite3.connect(server.state / "domaeka.db")) as database:
            for column, value in (("approval", "'?'"), ("version", "CAST(x'ff' AS TEXT)")):
                database.execute(
                    f"UPDATE domaeka_devices SET {column} = {value} WHERE device_id = ?", (BLOCKED,)
                )
            database.commit()
        await server.start()
        self.assertEqual(server.output().count("1 rows of the store are damaged"), 1)
        known, damaged = (server.phone(device) for device in (KNOWN, BLOCKED))
        await self.online(known, damaged)
        for phone in (damaged, known):
            phone.say("# echo 다시")
        await known.expect("다시")
        self.assertEqual(damaged.texts(), [])
        self.assertEqual(await self.decide(server, BLOCKED, "approved"), 200)
        damaged.say("# echo 나도")
        await damaged.expect("나도")
        await server.stop()
        await server.start()
        self.assertEqual(server.output().count("rows of the store are damaged"), 1)

    async def test_malformed(self) -> None:
        """A file that SQLite finds malformed stops the start with what to do."""
        server = self.server(None)
        await server.start()
        await server.stop()
        path = server.state / "domaeka.db"
        with contextlib.closing(sqlite3.connect(path)) as database:
            size, page = (
                database.execute(query).fetchone()[0]
                for query in (
                    "PRAGMA page_size",
                    "SELECT rootpage FROM sqlite_master WHERE name = 'domaeka_devices'",
                )
            )
        with path.open("r+b") as file:
            file.seek((page - 1) * size)
            file.write(b"\xee" * size)
        with self.assertRaises(AssertionError):
            await server.start()
        self.assertIn("malformed: stop the server; domaeka db check names the", server.output())

    async def test_file_is_gone(self) -> None:
        """A file that is removed, or replaced, shows in the health and in the log."""
        servers = [self.server(None) for _ in range(2)]
        await self.together(*(server.start() for server in servers))
        removed, replaced = (server.state / "domaeka.db" for server in servers)
        removed.unlink()
        other = replaced.with_name("other")
        other.write_bytes(replaced.read_bytes())
        os.replace(other, replaced)
        for server, word in zip(servers, ("removed", "replaced"), strict=True):

            async def shows(server: ServerProcess = server, word: str = word) -> bool:
                return f"was {word} while it is used" in await self.check(server)

            self.assertLess(await until(shows, "the loss"), 60.0)
            self.assertIn(f"was {word} while it is used", server.output())
