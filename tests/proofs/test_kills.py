"""Processes that are killed while they are at work, by SIGKILL, and what comes after them."""

import contextlib
import os
import sqlite3
import sys
from pathlib import Path
from random import Random
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from domaeka.client import Greeting
from domaeka.store.background import BATCH_ROWS
from tests.integration.crowd import Crowd
from tests.integration.support import ServerProcess, reactor, sleep
from tests.proofs import LONG
from tests.proofs.store_servers import mariadb, postgresql

KILLS = 20 if LONG else 4
CLIENTS = 20
#: What they say in all, in messages a second.
RATE = 200
#: How long the clients chat before a kill, in seconds, on average.
CHAT_SECONDS = 1.0

#: Writes chat as fast as it can, until it is killed.
_WRITER = """
import sys
from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.python.runtime import seconds as wall
from domaeka.interfaces import ChatLine
from domaeka.store.chatlog import StoredChatLog
from domaeka.store.database import Database
from domaeka.store.drivers import sqlite_address

database = Database(sqlite_address(sys.argv[1]), reactor)
log = StoredChatLog(database, reactor, wall=wall)

def write():
    for number in range(500):
        log.append(ChatLine(1.0, "in", "bot", "a1", "100", "room", "me", None, None, "x" * 300))
    if database.write_count > 5:
        print("written", flush=True)

def observe(seconds):
    database.write_count += 1

database.write_count = 0
database._observe_write = observe
database.start().addCallback(lambda _: LoopingCall(write).start(0.01))
reactor.run()
"""


def read(path: Path, query: str) -> Any:
    """What an SQLite file answers."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (answer,) = connection.execute(query).fetchone()
        return answer


class _Writer(ProcessProtocol):
    """Kills a process as soon as it has printed something."""

    def __init__(self) -> None:
        self.ended: Deferred[object] = Deferred()

    # IProcessProtocol

    def outReceived(self, data: bytes) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            cast(Any, self.transport).signalProcess("KILL")

    def errReceived(self, data: bytes) -> None:
        sys.stderr.buffer.write(data)

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(reason.value)


class KillTests(TestCase):
    """Whatever is killed, the next one goes on."""

    timeout = 900
    random = Random()

    async def test_writer(self) -> None:
        """A process that is killed while it writes leaves whole batches and a sound file."""
        path = Path(self.mktemp()).absolute()
        count = 0
        for _ in range(KILLS):
            writer = _Writer()
            reactor.spawnProcess(
                writer,
                sys.executable,
                [sys.executable, "-c", _WRITER, str(path)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            self.assertIsInstance(await writer.ended, ProcessTerminated)
            self.assertEqual(read(path, "PRAGMA quick_check"), "ok")
            before, count = count, read(path, "SELECT count(*) FROM domaeka_chat_lines")
            self.assertGreater(count, before)
            self.assertEqual(count % BATCH_ROWS, 0)

    async def serve(self, *arguments: str) -> ServerProcess:
        """A server with a bot that takes its time, for any number of clients."""
        bot = "tests.integration.slow_bot:bot"
        server = ServerProcess(
            self, "--set", 'limits.allow=["127.0.0.0/8"]', "--bots", bot, *arguments
        )
        await server.start()
        return server

    async def kill(self, server: ServerProcess, crowd: Crowd) -> None:
        """Kill it again and again under a crowd, once all are back each time."""
        for kill in range(1, KILLS + 1):
            await crowd.until(lambda talker: len(talker.seen(Greeting)) >= kill)  # noqa: B023
            await sleep(self.random.uniform(0.1, 2.0 * CHAT_SECONDS))
            server.signal("KILL")
            await server.ended()
            await server.start()
        await crowd.until(lambda talker: len(talker.seen(Greeting)) > KILLS)

    async def test_server(self) -> None:
        """
        Clients whose server is killed under them are back by themselves, with their sessions, and
        are answered; its store is sound.
        """
        server = await self.serve("--set", "storage.durable=off")
        crowd = Crowd(self, [server], CLIENTS)
        await self.kill(server, crowd)
        heard = {talker: len(talker.replies) for talker in crowd.talkers}
        await crowd.until(lambda talker: len(talker.replies) > heard[talker])
        self.assertEqual({greeting.resumed for greeting in crowd.greetings(server)}, {True})
        await server.stop()
        self.assertEqual(read(server.state / "domaeka.db", "PRAGMA quick_check"), "ok")

    async def durable(self, *arguments: str) -> None:
        server = await self.serve("--set", "storage.durable=ack", *arguments)
        crowd = Crowd(self, [server], CLIENTS, CLIENTS / RATE)
        await self.kill(server, crowd)
        await crowd.finish()
        print(sum(len(talker.said) for talker in crowd.talkers), "messages,", KILLS, "kills")

    async def test_durable(self) -> None:
        """
        With durable delivery, all that was said around the kills is answered once, in order, also
        by commands that were under way: a tenth takes half a second.
        """
        await self.durable()

    async def test_durable_on_postgresql(self) -> None:
        """The same on PostgreSQL."""
        url = postgresql().database().render_as_string(False)
        await self.durable("--set", f"storage.url={url}")

    async def test_durable_on_mariadb(self) -> None:
        """The same on MariaDB."""
        url = mariadb().database().render_as_string(False)
        await self.durable("--set", f"storage.url={url}")
