"""Tests for L{domaeka.server.operations}: what a running server can be made to do."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.logger import globalLogPublisher

from domaeka.client import Client, Credentials, Identity
from domaeka.client import Server as Place
from domaeka.gateway.lifecycle.migrations import RETRY_SECONDS
from domaeka.gateway.serving import ServerState
from tests.integration.test_tls import Authority
from tests.server_case import BOT, HOST, Server, ServerCase

#: A bot that is changed while its server runs.
BOT_TEXT = """from domaeka import Bot

bot = Bot("reloaded")


@bot.command("{}")
async def answer(ctx):
    return "{}"
"""


class ReloadTests(ServerCase):
    """The settings are read again."""

    def setUp(self) -> None:
        super().setUp()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.config = self.directory / "domaeka.toml"
        self.sections: dict[str, dict[str, object]] = {}
        self.write()
        self.server = Server(self, 9000, config=self.config)

    def write(self, **sections: Mapping[str, object]) -> None:
        """The settings of before, and others."""
        for section, values in sections.items():
            self.sections.setdefault(section, {}).update(values)
        lines = []
        for section, values in self.sections.items():
            lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
        self.config.write_text("\n".join(lines))

    def write_bot(self, answer: str, command: str = "# bot") -> None:
        """A bot that answers so."""
        self.bot = self.directory / "reloaded_bot.py"
        self.bot.write_text(BOT_TEXT.format(command, answer))

    def reload(self) -> Any:
        """Reload over the API.  @return: what is answered."""
        return self.server.ask("POST", "/api/v1/reload").body

    def test_open_connections(self) -> None:
        """What can change does, for who is there already; what cannot is named."""
        self.server.start()
        phone = self.server.phone()
        self.run_for(60.0)
        before = len(phone.record.pings)
        self.write(ping={"interval": 1, "timeout": 1}, queue={"max_messages": 500})
        answer = self.reload()
        self.assertEqual(answer["changed"], ["ping.interval", "ping.timeout"])
        self.assertEqual(answer["needs_restart"], ["queue.max_messages"])
        self.run_for(10.0)
        self.assertGreater(len(phone.record.pings), before + 5)
        self.assertEqual(len(phone.record.connects), 1)

    def test_newcomers(self) -> None:
        """Approvals and limits are those of now for who comes."""
        self.server.start()
        self.write(devices={"approval": "manual"}, logging={"level": "debug"})
        self.signal(signal.SIGHUP)
        self.assertEqual(self.logged("changed devices.approval, logging.level; only at"), 1)
        phone = self.server.phone()
        self.assertFalse(phone.record.greetings[0]["approved"])

    def test_names_and_pace(self) -> None:
        """Built-in commands have their new names at once, and what waits its new pace."""
        self.write(pacing={"room_per_second": 0.01})
        self.server.start()
        phone = self.server.phone()
        for text in ("# echo 하나", "# echo 둘"):
            phone.say(text)
        self.run_for(1.0)
        self.assertEqual(phone.texts(), ["하나"])
        self.write(pacing={"room_per_second": 0}, **{"bots.builtin": {"echo": "# 말", "help": ""}})
        changed = ["bots.builtin.echo", "bots.builtin.help", "pacing.room_per_second"]
        self.assertEqual(self.reload(), {"changed": changed, "needs_restart": []})
        for text in ("# echo 셋", "# help", "# 말 넷"):
            phone.say(text)
        self.run_for(1.0)
        self.assertEqual(phone.texts(), ["하나", "둘", "넷"])
        self.write(**{"bots.builtin": {"echo": "# client_info"}})
        said = self.reload()["error"]["message"]
        self.assertTrue(said.startswith(f"{self.config}:4: bots.builtin.echo: the command"), said)

    def test_nothing(self) -> None:
        """Where nothing is other than it was, that is said."""
        self.server.start()
        self.signal(signal.SIGHUP)
        self.assertEqual(self.logged("changed nothing; only at a restart: nothing"), 1)

    def test_wrong_file(self) -> None:
        """What is wrong changes nothing; the log and the API say where it stands."""
        self.server.start()
        self.write(logging={"level": "debug"}, ping={"interval": "soon"})
        self.signal(signal.SIGHUP)
        self.assertEqual(self.logged(f"nothing has changed: {self.config}:4: ping.interval: "), 1)
        exchange = self.server.ask("POST", "/api/v1/reload")
        self.assertEqual((exchange.status, exchange.body["error"]["code"]), (409, "BAD_CONFIG"))
        self.assertEqual(self.server.parts.context.settings.logging.level, "info")

    def test_own_mistake(self) -> None:
        """A mistake of ours is logged, and nothing else comes of it."""
        self.server.start()
        self.patch(self.server.parts.source, "load", lambda: 1 // 0)
        self.signal(signal.SIGHUP)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.server.health(), "ready")

    def test_bots(self) -> None:
        """A bot that was changed answers anew; one that is broken changes nothing."""
        self.patch(sys, "path", [str(self.directory), *sys.path])
        self.addCleanup(sys.modules.pop, "reloaded_bot", None)
        self.write_bot("처음")
        self.write(bots={"load": ["reloaded_bot:bot"]})
        self.server.start()
        phone = self.server.phone()
        tracebacks: list[str | None] = []
        observer: Any = lambda event: tracebacks.append(event.get("log_traceback"))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for text, said in (
            (None, "처음"),
            ("bot = 1 / 0\n", "처음"),
            (BOT_TEXT.format("# echo", ""), "처음"),  # as one that is built in
            (BOT_TEXT.format("# bot", "이제 다음"), "이제 다음"),
        ):
            if text is not None:
                self.bot.write_text(text)
                self.signal(signal.SIGHUP)
            phone.say("# bot")
            self.run_for(0.1)
            self.assertEqual(phone.texts()[-1], said)
        self.assertEqual(self.logged("bots.load: reloaded_bot:bot: ZeroDivisionError"), 1)
        self.assertEqual(self.logged("bots imported anew: reloaded_bot:bot"), 1)
        # It begins with the author's own line.
        (traceback,) = filter(None, tracebacks)
        self.assertIn('reloaded_bot.py", line 1', traceback.splitlines()[1])

    def test_secrets(self) -> None:
        """A new key is the one in force, and the old token of the API opens nothing any more."""
        self.server.start()
        path = self.server.state / "secrets.toml"
        old, new = self.server.secrets.admin_token, "another token that is long enough"
        path.write_text(path.read_text().replace(old, new))
        self.assertEqual(self.reload()["changed"], ["secrets"])
        self.assertEqual(self.server.ask("GET", "/api/v1/drain").status, 401)
        self.assertEqual(self.server.begin("GET", "/api/v1/drain", token=new).status, 200)

    def test_certificates(self) -> None:
        """Certificates are read again; one that cannot be used changes nothing."""
        authority, file = Authority(self.directory, "authority"), self.directory / "server.pem"
        authority.issue(file)
        self.write(tls={"certificate": str(file), "port": 9443})
        self.server.start()
        self.assertTrue(self.network.accepts(9443))
        authority.issue(file)
        self.assertEqual(self.reload()["changed"], ["certificates"])
        file.write_text("no certificate")
        self.write(logging={"level": "debug"})
        self.signal(signal.SIGHUP)
        self.assertEqual(self.logged("tls.certificate: "), 1)
        self.assertEqual(self.server.parts.context.settings.logging.level, "info")

    def test_denied(self) -> None:
        """Who is in a network that is denied now is closed."""
        self.server.start()
        phone = self.server.phone()
        self.write(limits={"deny": ["192.0.2.0/24"]})
        self.server.settings.clear()
        self.assertTrue(phone.online)
        self.reload()
        self.run_for(0.1)
        self.assertFalse(phone.online)


class DrainTests(ServerCase):
    """A stop that is asked for over the API."""

    def setUp(self) -> None:
        super().setUp()
        self.server.start()
        self.phone = self.server.phone()

    def hold(self) -> None:
        """The phone asks for what takes long; then the drain begins."""
        self.phone.say("# slow")
        self.run_for(0.1)
        self.assertEqual(self.server.ask("POST", "/api/v1/drain").status, 202)

    def test_ends_the_process(self) -> None:
        """Once nobody is there any more the process ends by itself."""
        self.server.begin("POST", "/api/v1/drain")
        self.run_for(1.0)
        self.assertTrue(self.server.is_over())
        self.assertEqual((self.phone.online, self.exits), (False, []))

    def test_seen(self) -> None:
        """How it goes can be seen, and asking again changes nothing."""
        self.hold()
        self.assertEqual(self.server.ask("POST", "/api/v1/drain").status, 202)
        state = self.server.ask("GET", "/api/v1/drain").body
        self.assertEqual((state["draining"], state["unanswered"]), (True, 1))
        self.assertEqual(self.server.health(), "draining")
        self.assertIn("drain", self.server.ask("GET", "/health").body)
        self.assertEqual(self.logged("draining: 1 connections"), 1)

    def test_called_off(self) -> None:
        """Called off, all goes on: who is there is answered, and others are let in."""
        self.hold()
        self.assertFalse(self.network.accepts(9000))
        state = self.server.ask("DELETE", "/api/v1/drain")
        self.assertEqual((state.status, state.body["draining"]), (200, False))
        self.server.bots_threads.work()
        self.run_for(0.1)
        late = self.server.phone(2)
        self.assertEqual((self.phone.texts(), late.online), (["늦게"], True))
        self.run_for(60.0)
        self.assertIs(self.server.serving, ServerState.SERVING)

    def test_port_taken_meanwhile(self) -> None:
        """It cannot be called off while somebody else has the port; then it goes on."""
        self.hold()
        self.network.taken.add(9000)
        exchange = self.server.ask("DELETE", "/api/v1/drain")
        self.assertEqual((exchange.status, exchange.body["error"]["code"]), (409, "CANNOT_LISTEN"))
        self.assertTrue(self.server.ask("GET", "/api/v1/drain").body["draining"])
        self.network.taken.remove(9000)
        self.assertEqual(self.server.ask("DELETE", "/api/v1/drain").status, 200)

    def test_port_that_was_handed_over(self) -> None:
        """
        A port that outlives the process takes connections through a stop; they wait until it is
        called off, or for the next start, and no phone takes the next server in its list.
        """
        other = Server(self, 9100)
        other.start()
        self.server.stop()
        self.phone.stop()
        self.run_for(10.0)
        self.network.inherited.hand_over(9000)
        self.server.start()
        self.phone = self.server.phone(1, "3.3.3", other)
        self.hold()
        late = self.server.phone(2, "3.3.3", other)
        self.assertFalse(late.online)
        self.assertEqual(self.server.ask("DELETE", "/api/v1/drain").status, 200)
        self.run_for(1.0)
        self.assertTrue(late.online)
        self.server.bots_threads.work()
        for _ in range(2):
            self.server.stop()
            self.run_for(60.0)
            self.assertTrue(self.server.is_over())
            self.server.start()
            self.run_for(1.0)
            self.assertTrue(self.phone.online and late.online)
        self.assertEqual(other.parts.connections.registry.connections, 0)

    def test_too_late(self) -> None:
        """When the last phone has gone there is nothing to be called off any more."""
        operations = self.server.service.operations
        self.assertFalse(operations.call_off_drain())
        self.phone.stop()
        self.run_for(1.0)
        operations.drain("operator")
        self.assertFalse(operations.call_off_drain())
        operations.drain("operator")
        self.run_for(0.1)
        self.assertTrue(self.server.is_over())

    def test_before_phones_are_let_in(self) -> None:
        """While it starts there is nobody to wait for: the process ends."""
        self.server.stop()
        self.run_for(10.0)
        self.server.threads.stuck = True
        self.server.start()
        self.server.service.operations.drain("operator")
        self.server.threads.go_on()
        self.run_for(0.1)
        self.assertTrue(self.server.is_over())
        self.assertEqual(self.logged("serves: "), 1)


class MigrationTests(ServerCase):
    """Two servers, and clients that move from one to the other."""

    def setUp(self) -> None:
        super().setUp()
        self.server.settings.append(("shutdown.reconnect_after", "1"))
        self.server.start()
        self.other = Server(self, 9100)
        # With the same secrets.
        secrets = (self.server.state / "secrets.toml").read_bytes()
        (self.other.state / "secrets.toml").write_bytes(secrets)
        (self.other.state / "secrets.toml").chmod(0o600)
        self.other.start()

    def client(self) -> Client:
        """A client that can move."""
        client = Client(
            self.server.reactor,
            [Place(HOST, 9000)],
            Identity(bot_name=BOT, device_id="client"),
            Credentials(self.server.secrets.secret_key, self.server.secrets.salt),
            lambda reply: None,
            lambda event: None,
            wall=self.wall,
        )
        client.startService()
        self.run_for(1.0)
        return client

    def migrate(self, port: int = 9100) -> Any:
        """Have everybody move.  @return: the exchange."""
        body = {"host": HOST, "port": port, "migrate_after": 1, "spread": 1}
        return self.server.ask("POST", "/api/v1/migration", body)

    def phase(self) -> str:
        """How far it has come."""
        return str(self.server.ask("GET", "/api/v1/migration").body["phase"])

    def here(self, server: Server) -> int:
        """How many are connected."""
        return server.parts.connections.registry.connections

    def test_moves(self) -> None:
        """Clients go, old phones follow when the port is shut; the server stays, away."""
        self.client()
        phone = self.server.phone(1, "3.3.3", self.other)
        exchange = self.migrate()
        self.assertEqual((exchange.status, exchange.body["phase"]), (202, "moving"))
        self.assertEqual(self.server.ask("GET", "/health").body["migration"]["told"], 1)
        self.run_for(30.0)
        self.assertEqual(
            (self.phase(), self.here(self.server), self.here(self.other)), ("done", 0, 2)
        )
        self.assertEqual((phone.online, self.server.health()), (True, "draining"))
        self.assertFalse(self.network.accepts(9000))
        self.server.stop()
        self.assertTrue(self.server.is_over())

    def test_port_that_was_handed_over(self) -> None:
        """A port that outlives the process is shut, too: old phones find the other server."""
        self.server.stop()
        self.network.inherited.hand_over(9000)
        self.server.start()
        phone = self.server.phone(1, "3.3.3", self.other)
        self.migrate()
        self.run_for(30.0)
        self.assertEqual((self.phase(), self.here(self.other)), ("done", 1))
        self.assertTrue(phone.online)
        self.server.stop()
        self.server.start()
        self.assertTrue(self.network.accepts(9000))

    def test_called_off(self) -> None:
        """Called off, those that are here stay."""
        self.client()
        self.migrate()
        self.assertEqual(self.server.ask("DELETE", "/api/v1/migration").body["phase"], "called off")
        self.assertFalse(self.server.service.operations.call_off_migration())
        self.assertIs(self.server.serving, ServerState.SERVING)
        self.assertEqual(self.server.health(), "ready")

    def test_restart_in_the_middle(self) -> None:
        """A server that stops meanwhile goes on at its next start, once it serves again."""
        self.client()
        self.migrate()
        self.server.stop()
        self.run_for(10.0)
        self.assertTrue(self.server.is_over())
        self.server.threads.stuck = True
        self.server.start()
        self.assertIs(self.server.serving, ServerState.STARTING)
        self.assertIn("the server starts", self.migrate().body["error"]["message"])
        self.server.threads.go_on()
        self.run_for(1.0)
        self.assertEqual((self.server.serving, self.phase()), (ServerState.MOVING, "moving"))
        self.run_for(240.0)
        self.assertEqual((self.phase(), self.here(self.server)), ("done", 0))

    def test_restart_beside_a_dead_one(self) -> None:
        """It waits for the other server, and again after a drain that is called off."""
        self.client()
        self.migrate()
        self.server.stop()
        self.other.stop()
        self.run_for(10.0)
        self.server.start()
        phone = self.server.phone()
        self.assertEqual(self.phase(), "interrupted")
        phone.say("# slow")
        self.run_for(0.1)
        self.server.ask("POST", "/api/v1/drain")
        self.server.ask("DELETE", "/api/v1/drain")
        self.assertIs(self.server.serving, ServerState.MOVING)
        self.other.start()
        self.run_for(RETRY_SECONDS + 1.0)
        self.assertEqual(self.phase(), "moving")

    def test_refused(self) -> None:
        """Nobody is sent where nobody answers, nor while the server stops."""
        self.network.holes.add(9999)
        body = {"host": HOST, "port": 9999}
        trying = self.server.begin("POST", "/api/v1/migration", body)
        self.assertIs(self.server.serving, ServerState.MOVING)
        self.assertEqual(self.migrate().status, 409)
        self.server.ask("POST", "/api/v1/drain")
        self.assertEqual(trying.status, 409)
        self.assertFalse((self.server.state / "migration.json").exists())

    def test_itself(self) -> None:
        """A server is not moved to itself."""
        self.assertIn("is this server itself", self.migrate(9000).body["error"]["message"])
        self.assertIs(self.server.serving, ServerState.SERVING)
