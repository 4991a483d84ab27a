"""The store in a real SQLite file, with real threads."""

import sqlite3
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sqlalchemy import URL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.python.runtime import seconds as wall
from twisted.trial.unittest import TestCase

from domaeka.errors import StoreError
from domaeka.interfaces import Approval, ChatLine, DeviceFacts, DeviceKey, RoomKey
from domaeka.policies.auth import NO_KEY
from domaeka.store import chatlog, revisions
from domaeka.store.background import BATCH_ROWS, FLUSH_SECONDS
from domaeka.store.chatlog import StoredChatLog
from domaeka.store.database import Database
from domaeka.store.devices import StoredDevices
from domaeka.store.drivers import sqlite_address
from domaeka.store.rooms import StoredRooms
from domaeka.store.sessions import StoredSessions
from domaeka.store.threads import StoreClosed

reactor: Any = _reactor
_Steps = Generator["Deferred[Any]", Any, None]

#: Of the phones.
ADDRESS = "192.0.2.1"
PHONE = DeviceKey("봇", "a1")
ROOM = RoomKey("봇", "100")


def line(text: str) -> ChatLine:
    """Something that somebody said."""
    return ChatLine(reactor.seconds(), "in", "봇", "a1", "100", "방", "사람", None, None, text)


class StoreTests(TestCase):
    """Tests of all that is stored, over restarts and accidents."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.url: str | URL = sqlite_address(self.path)
        self.open: list[Database] = []

    def tearDown(self) -> "Deferred[Any]":  # type: ignore[override]
        return gatherResults([database.stop() for database in self.open])

    def database(self) -> Database:
        """One more on the same file; stopped at the end."""
        database = Database(self.url, reactor)
        self.open.append(database)
        return database

    def count(self) -> int:
        """How many lines of chat are in the file, seen from outside."""
        with sqlite3.connect(self.path) as connection:
            (count,) = connection.execute("SELECT count(*) FROM domaeka_chat_lines").fetchone()
            return int(count)

    @inlineCallbacks
    def test_all_survives_a_restart(self) -> _Steps:
        """After an orderly stop everything is there again, and one file is left."""
        database = self.database()
        rooms = StoredRooms(database, reactor, wall=wall)
        devices = StoredDevices(database, reactor, wall=wall)
        sessions = StoredSessions(database, reactor, wall=wall)
        log = StoredChatLog(database, reactor, wall=wall)
        yield database.start()
        devices.enter(PHONE, DeviceFacts("3.3.3"))
        rooms.enter(ROOM, PHONE, "방", True)
        log.append(line("안녕"))
        token = yield sessions.issue(PHONE, ADDRESS, NO_KEY)
        yield devices.set_approval(DeviceKey("봇", "b2"), Approval.BLOCKED)
        for part in (log, rooms, devices, sessions, database):
            yield part.stop()
        self.assertEqual(
            [path.name for path in self.path.parent.glob(f"{self.path.name}*")], [self.path.name]
        )

        database = self.database()
        rooms = StoredRooms(database, reactor, wall=wall)
        devices = StoredDevices(database, reactor, wall=wall)
        sessions = StoredSessions(database, reactor, wall=wall)
        yield database.start()
        self.assertIs(devices.approval(PHONE), Approval.APPROVED)
        self.assertIs(devices.approval(DeviceKey("봇", "b2")), Approval.BLOCKED)
        room = rooms.record(ROOM)
        assert room is not None
        self.assertEqual(room.device, PHONE)
        resumed = yield sessions.resume(token, PHONE, ADDRESS)
        self.assertIsNotNone(resumed.token)
        self.assertEqual(self.count(), 1)
        yield sessions.stop()

    @inlineCallbacks
    def test_lock_of_another_process_is_waited_for(self) -> _Steps:
        """While somebody else holds the file the reactor goes on, and then all is written."""
        database = self.database()
        log = StoredChatLog(database, reactor, wall=wall)
        yield database.start()
        with sqlite3.connect(self.path) as other:
            other.execute("BEGIN EXCLUSIVE")
            for number in range(BATCH_ROWS):
                log.append(line(str(number)))
            yield deferLater(reactor, 0.2, lambda: None)
            # Had the reactor waited, SQLite would have given up before it went on.
            self.assertIsNone(database.health())
            self.assertEqual(log.waiting, BATCH_ROWS)
        yield log.stop()
        self.assertEqual((log.waiting, self.count()), (0, BATCH_ROWS))
        self.assertIsNone(database.health())

    @inlineCallbacks
    def test_ten_thousand_lines_are_flushed(self) -> _Steps:
        """A full queue is written at the stop, well within its time."""
        database = self.database()
        log = StoredChatLog(database, reactor, wall=wall)
        yield database.start()
        for number in range(10_000):
            log.append(line(str(number)))
        before = time.process_time()
        yield log.stop()
        self.assertLess(time.process_time() - before, FLUSH_SECONDS / 2)
        self.assertEqual((self.count(), log.dropped), (10_000, 0))

    @inlineCallbacks
    def test_pages_are_given_back(self) -> _Steps:
        """Once most lines are too old, the file is smaller, soon, and what is left is there."""
        self.patch(chatlog, "_FIRST_FORGET_SECONDS", 0.0)
        self.patch(chatlog, "FORGET_PAUSE_SECONDS", 0.0)
        self.patch(chatlog, "FREED_PAGES", 100)
        database = self.database()
        log = StoredChatLog(database, reactor, wall=wall)
        yield database.start()
        for number in range(20_000):
            log.append(line(f"{number}" * 40)._replace(time=1.0))
        log.append(line("new"))
        while log.waiting:
            yield deferLater(reactor, 0.02, lambda: None)
        before = self.pages()
        log.start()
        while self.count() > 1 or self.pages() > before // 10:
            yield deferLater(reactor, 0.05, lambda: None)
        yield log.stop()
        self.assertEqual(self.count(), 1)

    def pages(self) -> int:
        """How many pages the file has."""
        with sqlite3.connect(self.path) as connection:
            return int(connection.execute("PRAGMA page_count").fetchone()[0])

    @inlineCallbacks
    def test_herd_resumes_in_time(self) -> _Steps:
        """A hundred phones that come back together have their tokens for 2 s of processor time."""
        database = self.database()
        sessions = StoredSessions(database, reactor, wall=wall)
        yield database.start()
        keys = [DeviceKey("bot", str(number)) for number in range(100)]
        tokens = yield gatherResults([sessions.issue(key, ADDRESS, NO_KEY) for key in keys])
        before = time.process_time()
        results = yield gatherResults(
            [sessions.resume(token, key, ADDRESS) for token, key in zip(tokens, keys, strict=True)]
        )
        self.assertLess(time.process_time() - before, 2.0)
        self.assertTrue(all(result.token for result in results))
        yield sessions.stop()

    @inlineCallbacks
    def test_two_servers_share_a_file(self) -> _Steps:
        """Two processes' worth of databases, opened at once, write to one file."""
        first, second = self.database(), self.database()
        logs = [
            StoredChatLog(first, reactor, wall=wall),
            StoredChatLog(second, reactor, wall=wall),
        ]
        yield gatherResults([first.start(), second.start()])
        for number in range(2000):
            logs[number % 2].append(line(str(number)))
        yield gatherResults([log.stop() for log in logs])
        self.assertEqual(self.count(), 2000)

    @inlineCallbacks
    def test_two_servers_migrate_once(self) -> _Steps:
        """Of two that are started at once on a file without tables, one makes them."""
        calls: list[str] = []
        self.patch(revisions, "_upgrade", self.noting(calls, revisions._upgrade))
        yield gatherResults([self.database().start(), self.database().start()])
        self.assertEqual(len(calls), 1)

    def noting(self, calls: list[str], f: Any) -> Any:
        """C{f}, whose calls are noted in C{calls}."""

        def noted(*args: Any) -> Any:
            calls.append(f.__name__)
            return f(*args)

        return noted

    @inlineCallbacks
    def refused(self, words: str) -> _Steps:
        """The start fails with one line that says C{words}."""
        failure = yield self.assertFailure(self.database().start(), StoreClosed)
        self.assertIn(words, str(failure))
        self.assertNotIn("\n", str(failure))

    def test_refuses_a_place_that_is_none(self) -> "Deferred[None]":
        """A directory that is not there stops the start."""
        self.url = sqlite_address(self.path / "nowhere" / "x.db")
        return self.refused("unable to open database file")

    def test_refuses_what_cannot_be_written(self) -> "Deferred[None]":
        """A file that may only be read stops the start."""
        sqlite3.connect(self.path).close()
        self.url = f"sqlite:///file:{self.path}?mode=ro&uri=true"
        return self.refused("readonly")

    def test_refuses_what_is_no_database(self) -> "Deferred[None]":
        """A file of something else stops the start, and is left as it is."""
        self.path.write_bytes(b"not a database at all" * 100)
        return self.refused("not a database")

    @inlineCallbacks
    def test_refuses_what_is_newer(self) -> _Steps:
        """A file of a version to come stops the start."""
        database = self.database()
        yield database.start()
        yield database.stop()
        with sqlite3.connect(self.path) as connection:
            connection.execute(
                "UPDATE domaeka_version SET version_num = '9999', min_version = '9999'"
            )
        yield self.refused("newer version of domaeka")

    @inlineCallbacks
    def test_damaged_store_stops_nothing(self) -> _Steps:
        """A store that lost a table shows it, and decides nothing; whoever is known goes on."""
        database = self.database()
        devices = StoredDevices(database, reactor, wall=wall)
        yield database.start()
        devices.enter(PHONE, DeviceFacts("3.3.3"))
        yield database.run_write(lambda c: c.exec_driver_sql("DROP TABLE domaeka_devices") and None)
        deciding = devices.set_approval(PHONE, Approval.BLOCKED)
        yield self.assertFailure(deciding, StoreError)
        self.assertIn("no such table", database.health() or "")
        self.assertIs(devices.enter(PHONE, DeviceFacts("3.3.3")), Approval.APPROVED)
        yield devices.stop()
