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
from twisted.internet.defer import ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from domaeka.client import Lost
from domaeka.phonewire import Identity, PhoneWriter, Said
from domaeka.policies.auth import Signer
from domaeka.testing import SCRIPTS, STANDARD_IDENTITY, FakePhone
from tests.integration.crowd import BOT, Crowd, most_within, reactor
from tests.integration.support import HOST, ServerProcess, free_port, sleep
from tests.integration.test_api import Api

#: Phones of each version, and clients, of which one test has as many.
PHONES_EACH = 5
CLIENTS = 12
#: Clients that move, and over how many seconds they are told to.
MOVERS = 100
SPREAD_SECONDS = 10.0
#: Phones are back after 1.0 s rather than 4.0 s.
HURRY = 0.25
#: What a stop may take beside C{shutdown.drain_timeout}, in seconds: the interpreter's end with it.
STOP_SLACK_SECONDS = 3.0
SETTINGS = (
    *("--set", 'limits.allow=["127.0.0.0/8"]', "--bots", "tests.integration.slow_bot:bot"),
    *("--set", "shutdown.reconnect_after=1", "--set", "server.max_connections=500"),
)


class ChangeCase(TestCase):
    """Servers that are changed."""

    timeout = 180

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

    async def until(self, condition: Any, patience: float = 20.0) -> None:
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
            "select device_id, direction, text from chat_lines order by id"
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
        server = await self.serve(
            *("--set", "shutdown.drain_timeout=10", "--set", "shutdown.reconnect_after=4")
        )
        phones = self.field(server)
        crowd = Crowd(self, [server], CLIENTS, 0.1)
        await self.online(*phones)
        await crowd.greeted()
        for number in range(40):
            for phone in phones:
                ask(phone, f"# slow 1.5 늦게 {number}" if number % 20 == 10 else f"# echo {number}")
            await sleep(0.05)
        server.signal("TERM")
        began = reactor.seconds()
        await sleep(0.3)
        status, body = await server.get("/health/ready")
        self.assertEqual((status, b"draining" in body), (HTTPStatus.SERVICE_UNAVAILABLE, True))
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection((HOST, server.port), 1.0).close()
        await server.ended()
        self.assertLess(reactor.seconds() - began, 10.0)
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
            asked = [line.removeprefix("# slow 1.5 ") for line in asked]
            self.assertGreater(len(asked), 30)
            self.assertEqual(sorted(phone.texts()), sorted(asked))
            self.assertEqual(phone.texts(), lines[device, "out"])

    async def test_phone_that_reads_nothing(self) -> None:
        """It cannot hold a stop up, and others do not notice it."""
        server = await self.serve(
            *("--set", "shutdown.drain_timeout=4", "--set", "socket.linger_seconds=1")
        )
        (other,) = self.field(server)[:1]
        deaf = await deferToThread(self._deaf_phone, server)
        self.addCleanup(deaf.close)
        await self.online(other)
        other.say("# echo 말")
        await other.when_replies(1)

        async def much_was_taken() -> bool:
            _, answer = await Api(server).ask("GET", "/connections")
            return any(one["messages"]["received"] > 2 for one in answer["connections"])

        await self.until(much_was_taken)
        server.signal("TERM")
        began = reactor.seconds()
        await self.until(lambda: not other.online, 2.0)
        await server.ended()
        took = reactor.seconds() - began
        self.assertTrue(2.5 < took < 4.0 + STOP_SLACK_SECONDS, took)

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

    async def test_work_of_a_phone_that_is_away(self) -> None:
        """What was acknowledged is answered, though the client was away as the stop began."""
        server = await self.serve()
        crowd = Crowd(self, [server], 1, 0.2)
        await crowd.greeted()
        (talker,) = crowd.talkers
        await crowd.finish()
        talker.said.append("0.99")
        said = Said(room="방", channel_id="1", sender="나", text="# slow 2 0.99")
        await talker.client.say(said)
        await talker.stop()
        server.signal("TERM")
        began = reactor.seconds()
        await server.ended()
        self.assertGreater(reactor.seconds() - began, 1.0)
        await server.start()
        talker.client.startService()
        await crowd.finish()

    async def test_second_signal(self) -> None:
        """It cuts a stop short, and what must be written is: sessions, and what waits."""
        server = await self.serve()
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
        phone.say("# slow 20 늦게")
        await sleep(0.5)
        server.signal("TERM")
        began = reactor.seconds()
        await sleep(1.0)
        self.assertTrue(phone.online)
        server.signal("TERM")
        await server.ended()
        self.assertLess(reactor.seconds() - began, 1.0 + STOP_SLACK_SECONDS)
        self.assertEqual(server.ended_by, signal.SIGTERM)
        await server.start()
        await crowd.greeted()
        self.assertTrue(all(greeting.resumed for greeting in crowd.greetings(server)))
        await crowd.finish()
        away.client.startService()
        away.said.append("50.99")
        await gone.finish()

    async def test_store_that_hangs(self) -> None:
        """A signal ends the wait for a store that hangs, and what is lost by it is said."""
        server = await self.serve()
        crowd = Crowd(self, [server], 1)
        await crowd.greeted()
        await crowd.finish()
        with contextlib.closing(sqlite3.connect(server.state / "domaeka.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            server.signal("TERM")
            await sleep(2.0)
            server.signal("TERM")
            began = reactor.seconds()
            await server.ended()
        self.assertLess(reactor.seconds() - began, STOP_SLACK_SECONDS)
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
    """Moves from one server to another."""

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

    async def done(self, old: ServerProcess, phase: str = "done", patience: float = 60.0) -> Any:
        """Wait for the end of a move.  @return: its report."""
        api = Api(old)

        async def ended() -> bool:
            return bool((await api.get("/migration"))["phase"] == phase)

        await self.until(ended, patience)
        return await api.get("/migration")

    async def moves(self, one_store: bool) -> None:
        """A crowd moves, and those of old behind it."""
        old, new = await self.pair(one_store)
        phones = self.field(old, new)
        crowd = Crowd(self, [old], MOVERS)
        await crowd.greeted(old)
        await self.online(*phones)
        await sleep(1.0)
        status, state = await self.move(old, new, migrate_after=3.0, spread=SPREAD_SECONDS)
        self.assertEqual((status, state["phase"]), (HTTPStatus.ACCEPTED, "moving"))
        plan = old.state / "migration.json"
        self.assertEqual(plan.stat().st_mode & 0o777, 0o600)
        await sleep(SPREAD_SECONDS / 2)
        health = (await old.get("/health"))[1]
        self.assertIn(b'"migration":{"phase":"moving"', health)
        self.assertTrue(all(phone.online for phone in phones))
        report = await self.done(old)
        figures = [report[name] for name in ("told", "arrived", "missing", "remaining")]
        self.assertEqual(figures, [MOVERS, MOVERS, 0, 0])
        self.assertFalse(plan.exists())
        self.assertIn(b'"status":"draining"', (await old.get("/health"))[1])
        await crowd.greeted(new)
        arrivals = crowd.arrivals(new)
        self.assertEqual(len(arrivals), MOVERS)
        even = MOVERS / SPREAD_SECONDS
        self.assertLessEqual(most_within(arrivals, 1.0), 2 * even)
        self.assertTrue(all(greeting.resumed is one_store for greeting in crowd.greetings(new)))
        self.assertEqual([talker.seen(Lost) for talker in crowd.talkers], [[]] * MOVERS)
        await self.online(*phones)
        for phone in phones:
            ask(phone, "# echo 여기")
        await self.until(lambda: all(phone.texts() == ["여기"] for phone in phones))
        self.assertGreater(min(phone.record.connects[-1] for phone in phones), max(arrivals))
        await crowd.finish()
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection((HOST, old.port), 1.0).close()

    async def test_one_store(self) -> None:
        """
        A hundred clients under traffic lose nothing, and nothing is doubled; they arrive evenly,
        and are known there by their tokens.  Phones of old follow when the port is shut.
        """
        await self.moves(one_store=True)

    async def test_two_stores(self) -> None:
        """The same where the other server has a store of its own: signatures serve."""
        await self.moves(one_store=False)

    async def test_refused(self) -> None:
        """
        Nobody is sent to where nobody answers, to a server with other secrets, to this one
        itself, or anywhere while the server stops.
        """
        old, new = await self.pair(False)
        stranger = await self.serve()
        hole = socket.create_server((HOST, 0))  # takes connections, and says nothing
        self.addCleanup(hole.close)
        for port, why in (
            (free_port(), "refused"),
            (stranger.port, "AUTH_FAILED"),
            (old.port, "is this server itself"),
        ):
            body = {"host": HOST, "port": port}
            status, answer = await Api(old).ask("POST", "/migration", body)
            self.assertEqual(status, HTTPStatus.CONFLICT)
            self.assertIn(why, answer["error"]["message"])
        trying = ensureDeferred(
            Api(old).ask("POST", "/migration", {"host": HOST, "port": hole.getsockname()[1]})
        )
        await sleep(0.5)
        self.assertEqual((await self.move(old, new))[0], HTTPStatus.CONFLICT)
        began = reactor.seconds()
        await old.stop()
        self.assertLess(reactor.seconds() - began, STOP_SLACK_SECONDS)
        with contextlib.suppress(Exception):  # whether it is still told depends on who is first
            self.assertEqual((await trying)[0], HTTPStatus.CONFLICT)
        self.assertFalse((old.state / "migration.json").exists())
        self.assertNotIn("Traceback", old.output())

    async def test_called_off(self) -> None:
        """Called off, nobody else goes, and those that are there stay there; chat goes on."""
        old, new = await self.pair(True)
        crowd = Crowd(self, [old], CLIENTS)
        await crowd.greeted(old)
        await self.move(old, new, migrate_after=1.0, spread=8.0)
        await self.until(lambda: len(crowd.arrivals(new)) >= 2)
        api = Api(old)
        status, state = await api.ask("DELETE", "/migration")
        self.assertEqual((status, state["phase"]), (HTTPStatus.OK, "called off"))
        told = state["told"]
        self.assertTrue(2 <= told < CLIENTS, told)
        await sleep(4.0)
        self.assertEqual(len(crowd.arrivals(new)), told)
        self.assertTrue(await old.is_ready())
        self.assertFalse((old.state / "migration.json").exists())
        await crowd.finish()

    async def test_halts(self) -> None:
        """Where they cannot arrive it halts, and all are served on as if nothing had been."""
        old, new = await self.pair(False)
        crowd = Crowd(self, [old], CLIENTS)
        await crowd.greeted(old)
        await self.move(old, new, migrate_after=0.5, spread=1.0)
        new.signal("KILL")
        report = await self.done(old, "halted", 80.0)
        self.assertEqual((report["arrived"], report["remaining"]), (0, CLIENTS))
        self.assertTrue(await old.is_ready())
        await crowd.finish()
        self.assertEqual([talker.seen(Lost) for talker in crowd.talkers], [[]] * CLIENTS)

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

    async def test_restart_beside_a_dead_one(self) -> None:
        """After a restart nobody is sent to a server that has died; the move can be called off."""
        old, new = await self.pair(False)
        crowd = Crowd(self, [old], CLIENTS)
        await crowd.greeted(old)
        await self.move(old, new, migrate_after=1.0, spread=1.0)
        new.signal("KILL")
        await old.stop()
        await old.start()
        await crowd.greeted(old)
        api = Api(old)
        state = await api.get("/migration")
        self.assertEqual((state["phase"], state["sent_on"]), ("interrupted", 0))
        self.assertIn(str(new.port), state["reason"])
        self.assertEqual((await api.ask("DELETE", "/migration"))[0], HTTPStatus.OK)
        self.assertFalse((old.state / "migration.json").exists())
        await crowd.finish()

    async def test_crossed(self) -> None:
        """Two servers cannot move to each other."""
        old, new = await self.pair(False)
        crowd = Crowd(self, [old], 1)
        await crowd.greeted(old)
        self.assertEqual((await self.move(old, new))[0], HTTPStatus.ACCEPTED)
        status, answer = await self.move(new, old)
        self.assertEqual(status, HTTPStatus.CONFLICT)
        self.assertIn("is moving its own phones", answer["error"]["message"])
        await crowd.finish()

    async def test_goes_on_after_a_restart(self) -> None:
        """
        A server that is stopped meanwhile goes on with it when it is started again: those that
        come back are sent on, and nothing is lost.
        """
        old, new = await self.pair(True)
        crowd = Crowd(self, [old], CLIENTS)
        await crowd.greeted(old)
        await self.move(old, new, migrate_after=1.0, spread=8.0)
        await self.until(lambda: len(crowd.arrivals(new)) >= 2)
        await old.stop()
        self.assertTrue((old.state / "migration.json").exists())
        await old.start()
        api = Api(old)
        self.assertEqual((await api.get("/migration"))["port"], new.port)
        await crowd.greeted(new)
        self.assertGreater((await api.get("/migration"))["sent_on"], 0)
        await crowd.finish()
        (phone,) = self.field(old)[:1]
        ask(phone, "# echo 아직 여기")
        await phone.expect("아직 여기")
