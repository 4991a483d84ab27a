"""Stops, moves and other settings, of real servers under traffic."""

import contextlib
import shutil
import signal
import socket
import sqlite3
from collections import defaultdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from domaeka.client import Lost, MigrationNotice
from domaeka.policies.auth import Signer
from domaeka.testing import SCRIPTS, STANDARD_IDENTITY, FakePhone
from domaeka.wire import Identity, PhoneWriter, Said
from tests.integration.crowd import BOT, Crowd, most_within, reactor
from tests.integration.support import (
    HOST,
    PATIENCE_SECONDS,
    STOP_SECONDS,
    ServerProcess,
    sleep,
)
from tests.integration.test_api import Api

#: Phones of each version, and clients, of which one test has as many.
PHONES_EACH = 5
CLIENTS = 12
#: Clients that move, and over how many seconds they are told to.
MOVERS = 100
SPREAD_SECONDS = 10.0
#: Phones are back after 1.0 s rather than 4.0 s.
HURRY = 0.25
#: Of the hundred, how often each says something, in seconds: what two servers can bear that have
#: a tenth of a machine.
MOVERS_PERIOD = 2.0
#: A C{shutdown.drain_timeout} that would be too long: the server is killed before, and the test
#: fails.
TOO_LONG = ("--set", f"shutdown.drain_timeout={2 * STOP_SECONDS}")
SETTINGS = (
    *("--set", 'limits.allow=["127.0.0.0/8"]', "--bots", "tests.integration.slow_bot:bot"),
    *("--set", "shutdown.reconnect_after=1", "--set", "server.max_connections=500"),
)


class ChangeCase(TestCase):
    """Servers that are changed."""

    timeout = 600

    async def serve(self, *arguments: str) -> ServerProcess:
        """A server, started."""
        server = ServerProcess(self, *SETTINGS, *arguments)
        await server.start()
        return server

    async def sibling(self, first: ServerProcess, *arguments: str) -> ServerProcess:
        """Another server with the same secrets."""
        server = ServerProcess(self, *SETTINGS, *arguments)
        server.state.mkdir(mode=0o700)
        shutil.copy(first.state / "secrets.toml", server.state)
        await server.start()
        return server

    async def until(self, condition: Any, patience: float = PATIENCE_SECONDS) -> None:
        """Wait until something holds; it may be a coroutine function."""
        deadline = reactor.seconds() + patience
        while True:
            held = condition()
            if held is not None and hasattr(held, "__await__"):
                held = await held
            if held:
                return
            self.assertLess(reactor.seconds(), deadline, "waited too long")
            await sleep(0.05)

    def field(self, *servers: ServerProcess) -> list[FakePhone]:
        """Phones of every version, with these servers in their list."""
        secrets = servers[0].secrets()
        phones = []
        for number in range(PHONES_EACH * len(SCRIPTS)):
            phone = FakePhone(
                reactor,
                [TCP4ClientEndpoint(reactor, HOST, server.port) for server in servers],
                secrets["secret_key"],
                secrets["salt"],
                script=list(SCRIPTS)[number % len(SCRIPTS)],
                identity=_identity(f"{number:016x}"),
                reconnect_scale=HURRY,
            )
            self.addCleanup(phone.stop)
            phone.start()
            phones.append(phone)
        return phones

    async def online(self, *phones: FakePhone) -> None:
        """Wait until phones are connected."""
        await self.until(lambda: all(phone.online for phone in phones))


def _identity(device_id: str) -> Identity:
    return msgspec.structs.replace(STANDARD_IDENTITY, device_id=device_id)


def ask(phone: FakePhone, text: str) -> None:
    """Somebody writes in a room of this phone's own."""
    number = int(phone.identity.device_id, 16)
    phone.say(text, f"방 {number}", str(number + 1000))


def chat(server: ServerProcess) -> dict[tuple[str, str], list[str]]:
    """What the chat log holds of each device and direction."""
    lines: dict[tuple[str, str], list[str]] = defaultdict(list)
    with contextlib.closing(sqlite3.connect(server.state / "domaeka.db")) as database:
        for device, direction, text in database.execute(
            "select device_id, direction, text from domaeka_chat_lines order by id"
        ):
            lines[device, direction].append(text)
    return lines


class DrainTests(ChangeCase):
    """Stops."""

    async def test_under_traffic(self) -> None:
        """
        SIGTERM: what was accepted is answered, each is told its own time, nobody is let in, and
        it ends by the signal, in time.  After the restart clients go on: nothing is lost, nothing
        doubled.
        """
        server = await self.serve(*TOO_LONG, *("--set", "shutdown.reconnect_after=4"))
        phones = self.field(server)
        crowd = Crowd(self, [server], CLIENTS, 0.1)
        await self.online(*phones)
        await crowd.greeted()
        for number in range(40):
            for phone in phones:
                ask(phone, f"# slow 3 늦게 {number}" if number % 20 == 10 else f"# echo {number}")
            await sleep(0.05)
        server.signal("TERM")

        async def draining() -> bool:
            status, body = await server.get("/health/ready")
            return status == HTTPStatus.SERVICE_UNAVAILABLE and b"draining" in body

        await self.until(draining)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection((HOST, server.port), 1.0).close()
        await server.ended()
        self.assertEqual(server.ended_by, signal.SIGTERM)
        self.heard_out(server, phones)
        waits = crowd.waits()
        for phone in phones:
            (notice,) = [data for event, data in phone.record.notices if event == "serverShutdown"]
            waits.append(notice["reconnect_after"])  # type: ignore[index]
        self.assertGreater(len(set(waits)), 0.8 * len(waits))  # of a thousand milliseconds
        self.assertTrue(all(4.0 <= wait <= 8.0 for wait in waits), waits)
        await server.start()
        await crowd.greeted()
        self.assertTrue(all(greeting.resumed for greeting in crowd.greetings(server)))
        await self.online(*phones)
        for phone in phones:
            ask(phone, "# echo 다시")
        await self.until(lambda: all(phone.texts()[-1:] == ["다시"] for phone in phones))
        await crowd.finish()
        self.heard_out(server, phones)

    def heard_out(self, server: ServerProcess, phones: list[FakePhone]) -> None:
        """Each thing that the server had taken from a phone was answered, once."""
        lines = chat(server)
        for phone in phones:
            device = phone.identity.device_id
            asked = [line.removeprefix("# echo ") for line in lines[device, "in"]]
            asked = [line.removeprefix("# slow 3 ") for line in asked]
            self.assertGreater(len(asked), 30)
            self.assertEqual(sorted(phone.texts()), sorted(asked))
            self.assertEqual(phone.texts(), lines[device, "out"])

    async def test_phone_that_reads_nothing(self) -> None:
        """
        It cannot hold a stop up, and others do not notice it: they are closed first, and it is
        cut off when C{shutdown.drain_timeout} is over.
        """
        server = await self.serve(
            *("--set", "shutdown.drain_timeout=4", "--set", "socket.linger_seconds=1")
        )
        other = server.phone("00000000000000ff")
        await self.online(other)
        other.say("# echo 말")
        await other.when_replies(1)
        deaf = await deferToThread(self._deaf_phone, server)
        self.addCleanup(deaf.close)

        async def is_owed_something() -> bool:
            _, answer = await Api(server).ask("GET", "/connections")
            return any(
                one["device"] == "deaf" and one["messages"]["received"]
                for one in answer["connections"]
            )

        await self.until(is_owed_something)
        began = reactor.seconds()
        server.signal("TERM")
        await self.until(lambda: not other.online)
        await server.ended()
        self.assertGreater(reactor.seconds() - began, 2.5)
        self.assertEqual(server.ended_by, signal.SIGTERM)
        # What the server says of each, in this order.
        said = server.output()
        self.assertRegex(said, r"(?s)draining: 2 .*'0+ff' ended: shutdown.*'deaf' ended: .*drained")

    def _deaf_phone(self, server: ServerProcess) -> socket.socket:
        """A phone that says much and takes nothing of what it is answered.  For a thread."""
        secrets = server.secrets()
        signer = Signer([secrets["secret_key"]], secrets["salt"], 0.0, reactor.seconds)
        writer = PhoneWriter(_identity("deaf"), signer.sign, reactor.seconds)
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((HOST, server.port))
        deaf.sendall(writer.handshake(signed=True))
        said = Said(room="방", sender="나", text="# echo " + "x" * 60_000, channel_id="1")
        for _ in range(8):
            deaf.sendall(writer.chat(said))
        return deaf

    async def test_second_signal(self) -> None:
        """
        It cuts a stop short, and what must be written is: sessions, and what waits.  The first
        one may come twice.
        """
        server = await self.serve(*TOO_LONG)
        crowd = Crowd(self, [server], 3, 0.2)
        gone = Crowd(self, [server], 1, 0.2, first=50)
        await crowd.greeted()
        await gone.greeted()
        await gone.finish()
        (away,) = gone.talkers
        await away.stop()
        message = {"bot": BOT, "device": "talker-50", "room": "방", "text": "50.99", "ttl": 60}
        self.assertEqual((await Api(server).ask("POST", "/messages", message))[0], 202)
        (phone,) = self.field(server)[:1]
        await self.online(phone)
        phone.say("# echo 먼저")
        await phone.expect("먼저")
        phone.say(f"# slow {2 * STOP_SECONDS} 늦게")
        await self.until(lambda: len(chat(server)[phone.identity.device_id, "in"]) == 2)
        server.signal("TERM")
        await sleep(0.1)
        server.signal("TERM")
        await sleep(0.9)
        self.assertTrue(phone.online)
        server.signal("TERM")
        await server.ended()
        self.assertEqual(server.ended_by, signal.SIGTERM)
        self.assertEqual(phone.texts(), ["먼저"])
        await server.start()
        await crowd.greeted()
        self.assertTrue(all(greeting.resumed for greeting in crowd.greetings(server)))
        await crowd.finish()
        away.client.startService()
        away.said.append("50.99")
        await gone.finish()

    async def test_store_that_hangs(self) -> None:
        """A signal ends the wait for a store that hangs, and what is lost by it is said."""
        server = await self.serve("--set", "storage.durable=off")
        crowd = Crowd(self, [server], 1)
        await crowd.greeted()
        await crowd.finish()
        with contextlib.closing(sqlite3.connect(server.state / "domaeka.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            server.signal("TERM")
            await sleep(2.0)
            server.signal("TERM")
            await server.ended()
        lost = "what waited for 1 phones could not be kept: a signal came meanwhile"
        self.assertIn(lost, server.output())
        self.assertNotIn("Traceback", server.output())

    async def test_called_off(self) -> None:
        """
        A stop that was begun over the API can be seen, and called off while a connection is
        there; then all goes on.  Begun again, it ends the process by itself.
        """
        server = await self.serve()
        api = Api(server)
        crowd = Crowd(self, [server], CLIENTS, 0.1)
        phones = self.field(server)
        await self.online(*phones)
        await crowd.greeted()
        await sleep(1.0)
        phones[0].say("# slow 3 늦게")
        await sleep(0.2)
        self.assertEqual((await api.ask("POST", "/drain"))[0], HTTPStatus.ACCEPTED)
        await sleep(0.3)
        state = await api.get("/drain")
        self.assertTrue(state["draining"] and state["unanswered"] >= 1, state)
        self.assertIn(b"domaeka_draining 1.0", (await server.get("/metrics"))[1])
        self.assertIn(b'"drain":{', (await server.get("/health"))[1])
        with socket.create_server((HOST, server.port)):
            status, answer = await api.ask("DELETE", "/drain")
            self.assertEqual((status, answer["error"]["code"]), (409, "CANNOT_LISTEN"))
            self.assertTrue((await api.get("/drain"))["draining"])
        status, state = await api.ask("DELETE", "/drain")
        self.assertEqual((status, state["draining"]), (HTTPStatus.OK, False))
        self.assertTrue(await server.is_ready())
        await phones[0].when_replies(1)
        self.assertEqual(phones[0].record.connects[1:], [])
        await self.online(*phones)
        await crowd.greeted()
        await crowd.finish()
        await api.ask("POST", "/drain")
        await server.ended()
        self.assertEqual(server.exit_status, 0)


class MigrationTests(ChangeCase):
    """Migrations from one server to another."""

    async def pair(self, one_store: bool, *arguments: str) -> tuple[ServerProcess, ServerProcess]:
        """Two servers, on one store or on one each."""
        if one_store:
            path = Path(self.mktemp()).absolute()
            path.mkdir(parents=True)
            arguments = (*arguments, "--set", f"storage.url=sqlite:///{path}/shared.db")
        old = await self.serve(*arguments)
        return old, await self.sibling(old, *arguments)

    async def move(self, old: ServerProcess, new: ServerProcess, **more: float) -> Any:
        """Have everybody moved.  @return: status and body."""
        return await Api(old).ask("POST", "/migration", {"host": HOST, "port": new.port, **more})

    async def done(self, old: ServerProcess, phase: str = "done", patience: float = 120.0) -> Any:
        """Wait for the end of a move.  @return: its report."""
        api = Api(old)

        async def ended() -> bool:
            return bool((await api.get("/migration"))["phase"] == phase)

        await self.until(ended, patience)
        return await api.get("/migration")

    async def test_one_store(self) -> None:
        """
        A hundred clients under traffic lose nothing, and nothing is doubled; they are told to go
        evenly, and are known there by their tokens.  Phones of old follow when the port is shut.
        """
        old, new = await self.pair(True)
        phones = self.field(old, new)
        crowd = Crowd(self, [old], MOVERS, MOVERS_PERIOD)
        await crowd.greeted(old)
        await self.online(*phones)
        await sleep(1.0)
        status, state = await self.move(old, new, migrate_after=3.0, spread=SPREAD_SECONDS)
        self.assertEqual((status, state["phase"]), (HTTPStatus.ACCEPTED, "moving"))
        plan = old.state / "migration.json"
        self.assertEqual(plan.stat().st_mode & 0o777, 0o600)
        health = (await old.get("/health"))[1]
        self.assertIn(b'"migration":{"phase":"moving"', health)
        await self.until(lambda: len(crowd.arrivals(new)) > MOVERS / 2)
        self.assertTrue(all(phone.online for phone in phones))
        report = await self.done(old)
        figures = [report[name] for name in ("told", "arrived", "missing", "remaining")]
        self.assertEqual(figures, [MOVERS, MOVERS, 0, 0])
        self.assertFalse(plan.exists())
        self.assertIn(b'"status":"draining"', (await old.get("/health"))[1])
        await crowd.greeted(new)
        arrivals = crowd.arrivals(new)
        self.assertEqual(len(arrivals), MOVERS)
        departures = crowd.departures()
        self.assertEqual(len(departures), MOVERS)
        self.assertLessEqual(most_within(departures, 1.0), 2 * MOVERS / SPREAD_SECONDS)
        self.assertTrue(all(greeting.resumed for greeting in crowd.greetings(new)))
        self.assertEqual([talker.seen(Lost) for talker in crowd.talkers], [[]] * MOVERS)
        await self.online(*phones)
        for phone in phones:
            ask(phone, "# echo 여기")
        await self.until(lambda: all(phone.texts() == ["여기"] for phone in phones))
        self.assertGreater(min(phone.record.connects[-1] for phone in phones), max(arrivals))
        await crowd.finish()
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection((HOST, old.port), 1.0).close()

    async def test_dies_halfway(self) -> None:
        """When the other server dies those that were there come back, and are not sent on again."""
        old, new = await self.pair(False)
        crowd = Crowd(self, [old], CLIENTS)
        await crowd.greeted(old)
        await self.move(old, new, migrate_after=0.5, spread=3.0)
        await self.until(lambda: len(crowd.arrivals(new)) >= CLIENTS / 2)
        new.signal("KILL")
        report = await self.done(old, "halted")
        self.assertIn("did not arrive", report["reason"])
        self.assertTrue(await old.is_ready())
        await crowd.greeted(old)
        self.assertLess(len(crowd.arrivals(old)), 3 * CLIENTS)

    async def test_goes_on_after_a_restart(self) -> None:
        """
        A server that is stopped meanwhile goes on with it when it is started again: those that
        come back are sent on, and nothing is lost.  Phones of old are served meanwhile.
        """
        old, new = await self.pair(True)
        crowd = Crowd(self, [old], CLIENTS)
        await crowd.greeted(old)
        await self.move(old, new, migrate_after=1.0, spread=8.0)
        await self.until(lambda: any(talker.seen(MigrationNotice) for talker in crowd.talkers))
        await old.stop()
        self.assertTrue((old.state / "migration.json").exists())
        await old.start()
        phone = old.phone("00000000000000ff")
        ask(phone, "# echo 아직 여기")
        await phone.expect("아직 여기")
        api = Api(old)
        self.assertEqual((await api.get("/migration"))["port"], new.port)
        await crowd.greeted(new)
        # Those that came before the other server was tried again were told like all others.
        late = Crowd(self, [old], 1, first=CLIENTS)
        await late.greeted(new)
        self.assertGreater((await api.get("/migration"))["sent_on"], 0)
        await crowd.finish()
        await late.finish()
