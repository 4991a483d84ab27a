"""Settings read again, by a real server."""

import json
import socket
import ssl
from http import HTTPStatus
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from tests.integration.crowd import reactor
from tests.integration.support import HOST, ServerProcess, free_port, sleep
from tests.integration.test_api import Api
from tests.integration.test_changes import HURRY, ChangeCase
from tests.integration.test_sockets import make_certificate

#: A bot that is changed while its server runs.
BOT_TEXT = """from domaeka import Bot, breaker

bot = Bot("reloaded")


@bot.command("{}")
def answer(ctx):
    return breaker("named late")(lambda: "{}")()
"""


class ReloadTests(ChangeCase):
    """Other settings, by SIGHUP."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.config = self.directory / "domaeka.toml"
        self.settings: dict[str, dict[str, Any]] = {
            "ping": {"interval": 60, "initial_delay_min": 60, "initial_delay_max": 60},
            "shutdown": {"reconnect_after": 1},
            "bots": {"load": ["reloaded_bot:bot"]},
        }
        self.write_bot("처음")

    def write_bot(self, answer: str, command: str = "# bot") -> None:
        """A bot that answers so."""
        self.bot = self.directory / "reloaded_bot.py"
        self.bot.write_text(BOT_TEXT.format(command, answer))

    def write_config(self, **sections: dict[str, Any]) -> None:
        """The settings of before, and others."""
        for section, values in sections.items():
            self.settings.setdefault(section, {}).update(values)
        self.config.write_text(
            "\n".join(
                f"[{section}]\n"
                + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
                for section, values in self.settings.items()
            )
        )

    async def serve(self, *arguments: str) -> ServerProcess:
        """A server with the config file."""
        server = ServerProcess(
            self, f"--config={self.config}", "--set", f"server.interface={HOST}", *arguments
        )
        server.environment["PYTHONPATH"] += f":{self.directory}"
        await server.start()
        return server

    async def hang_up(self, server: ServerProcess) -> str:
        """SIGHUP.  @return: what the log says of it."""
        before = len(server.output())
        server.signal("HUP")

        def said() -> str:
            lines = server.output()[before:].splitlines()
            return next(
                (
                    line
                    for line in lines
                    if "settings read again" in line or "nothing has changed" in line
                ),
                "",
            )

        await self.until(said)
        return said()

    async def test_at_once(self) -> None:
        """
        What can change does, for open connections too: pings, limits, approvals, the log's
        level, bots.  What cannot is named.
        """
        self.write_config(limits={"allow": ["127.0.0.0/8"]})
        server = await self.serve()
        phone = server.phone(f"{1:016x}", "3.3.3", HURRY)
        phone.say("# bot")
        await phone.expect("처음")
        pings = len(phone.record.pings)
        self.write_bot("다음")
        self.write_config(
            ping={"interval": 0.5},
            limits={"messages_per_second": 4, "messages_burst": 1},
            logging={"level": "debug"},
            devices={"approval": "manual"},
            queue={"max_messages": 500},
            storage={"chat_log": False},
        )
        said = await self.hang_up(server)
        self.assertIn("only at a restart: queue.max_messages, storage.chat_log", said)
        for key in ("ping.interval", "limits.messages_burst", "logging.level", "devices.approval"):
            self.assertIn(key, said)
        began = reactor.seconds()
        for _ in range(9):
            phone.say("# bot")
        await phone.expect("처음", *["다음"] * 9)
        self.assertGreater(reactor.seconds() - began, 1.5)
        await self.until(lambda: len(phone.record.pings) >= pings + 3)
        late = server.phone(f"{2:016x}", "3.3.3", HURRY)
        await late.when(lambda: len(late.record.greetings) > 0)
        self.assertFalse(late.record.greetings[0]["approved"])
        late.say("# bot")
        await sleep(0.5)
        self.assertEqual(late.texts(), [])
        self.write_config(devices={"approval": "signed"}, limits={"messages_per_second": 0})
        self.write_bot("다음", "# other")
        await self.hang_up(server)
        late.say("# other")
        await late.expect("다음")
        self.assertIn("bots imported anew: reloaded_bot:bot;", server.output())
        await self.hang_up(server)
        self.assertIn("anew: none; left as they were: reloaded_bot:bot", server.output())
        metrics = (await server.get("/metrics"))[1].decode()
        self.assertIn('breaker_state{name="# other"}', metrics)
        self.assertIn('breaker_state{name="named late"}', metrics)
        self.assertNotIn('"# bot"', metrics)
        (stranger,) = [await deferToThread(socket.create_connection, (HOST, server.port), 5.0)]
        stranger.close()
        await self.until(lambda: " debug " in server.output(), 5.0)
        self.assertEqual([len(each.record.connects) for each in (phone, late)], [1, 1])

    async def test_watched(self) -> None:
        """With --reload a file that is saved is imported anew; a mistake is logged by its line."""
        self.write_config(limits={"allow": ["127.0.0.0/8"]})
        server = await self.serve("--reload")
        phone = server.phone(f"{1:016x}", "3.3.3", HURRY)
        phone.say("# bot")
        await phone.expect("처음")
        self.bot.write_text("x = (\n")
        await self.until(lambda: "reloaded_bot.py:1" in server.output())
        self.write_bot("다음")
        await self.until(lambda: "bots imported anew: reloaded_bot:bot;" in server.output())
        phone.say("# bot")
        await phone.expect("처음", "다음")
        self.assertEqual(len(phone.record.connects), 1)

    async def test_certificates(self) -> None:
        """A certificate that was replaced is shown to who comes; who is there stays."""
        shown = await deferToThread(make_certificate, self.directory)
        port = free_port()
        self.write_config(
            limits={"allow": ["127.0.0.0/8"]},
            tls={"certificate": str(shown[0]), "key": str(shown[1]), "port": port},
        )
        server = await self.serve()

        def connect() -> tuple[ssl.SSLSocket, bytes]:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            line = context.wrap_socket(socket.create_connection((HOST, port), 5.0))
            self.addCleanup(line.close)
            line.sendall(b'{"botName":"b","version":"3.2.1","deviceID":"d"}\n')
            self.assertIn(b"handshakeComplete", line.recv(65_536))
            return line, line.getpeercert(binary_form=True) or b""

        first, before = await deferToThread(connect)
        await deferToThread(make_certificate, self.directory)
        self.assertIn("changed certificates;", await self.hang_up(server))
        _, after = await deferToThread(connect)
        self.assertNotEqual(before, after)
        first.settimeout(5.0)
        await deferToThread(first.sendall, b"{}\n")
        self.assertIn(b"BAD_FRAME", await deferToThread(first.recv, 65_536))
        good = shown[0].read_bytes()
        shown[0].write_text("no certificate")
        self.write_config(logging={"level": "debug"})
        said = await self.hang_up(server)
        self.assertRegex(said, "nothing has changed: .*domaeka.toml:[0-9]+: tls.certificate: ")
        shown[0].write_bytes(good)
        shown[1].chmod(0o644)
        self.assertIn("key.pem: mode 0644: others may read it", await self.hang_up(server))
        status, answer = await Api(server).ask("POST", "/reload")
        self.assertEqual((status, answer["error"]["code"]), (HTTPStatus.CONFLICT, "BAD_CONFIG"))
        self.assertNotIn(" debug ", server.output())
        self.assertEqual((await deferToThread(connect))[1], after)
