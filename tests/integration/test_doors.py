"""Commands, and who may stand in the server's place: real servers, sockets and processes."""

import json
import os
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.portforward import ProxyFactory
from twisted.trial.unittest import TestCase

from domaeka.local_socket import MAX_PATH_BYTES, SOCKET_NAME
from tests.integration.support import HOST, ServerProcess, reactor
from tests.integration.test_cli import Command


class Impostor(Protocol):
    """Who answers everybody as if all were well, and keeps what is said."""

    factory: Any
    transport: Any

    # IProtocol

    def dataReceived(self, data: bytes) -> None:
        self.factory.heard += data
        self.transport.write(b"HTTP/1.1 200 OK\r\nServer: domaeka\r\nContent-Length: 2\r\n\r\n{}")


class LocalCommandTests(TestCase):
    """The commands of this machine."""

    timeout = 300

    async def run_command(self, server: ServerProcess, *arguments: str) -> tuple[int, str]:
        """@return: exit status, and what was written."""
        command = Command(self, *arguments, "--state-dir", str(server.state))
        status = await command.ended()
        return status, (command.out + command.notes).decode()

    async def test_by_the_socket(self) -> None:
        """
        Without an address the state directory's socket is used, however long its path is; the
        token is not shown to who listens on the port of the settings, nor after a crash.
        """
        server = ServerProcess(self)
        server.state = server.directory / ("deep" * 25) / "state"
        self.assertGreater(len(str(server.state / SOCKET_NAME)), MAX_PATH_BYTES)
        await server.start()
        factory: Any = Factory.forProtocol(Impostor)
        factory.heard = b""
        port = reactor.listenTCP(0, factory, interface=HOST)
        self.addCleanup(port.stopListening)
        config = server.directory / "other.toml"
        config.write_text(f"[http]\nport = {port.getHost().port}\n")
        options = ("--config", str(config), "--json")
        status, output = await self.run_command(server, "status", *options)
        self.assertEqual(status, 0, output)
        self.assertEqual(json.loads(output)["health"]["status"], "healthy")
        mode = (server.state / SOCKET_NAME).stat().st_mode
        self.assertEqual(mode & 0o777, 0o600)
        server.signal("KILL")
        await server.ended()
        status, output = await self.run_command(server, "status", *options)
        self.assertEqual((status, "does the server run?" in output), (3, True), output)
        (server.state / SOCKET_NAME).unlink()
        status, output = await self.run_command(server, "status", *options)
        self.assertEqual((status, "does not prove" in output), (4, True), output)
        self.assertIn(b"GET /proof?nonce=", factory.heard)
        self.assertNotIn(server.secrets()["admin_token"].encode(), factory.heard)

    async def test_after_a_crash(self) -> None:
        """A socket that a killed server has left is replaced; an orderly stop leaves none."""
        server = ServerProcess(self)
        await server.start()
        server.signal("KILL")
        await server.ended()
        self.assertTrue((server.state / SOCKET_NAME).is_socket())
        await server.start()
        status, output = await self.run_command(server, "bans")
        self.assertEqual(status, 0, output)
        events = Command(self, "events", "--json", "--state-dir", str(server.state))
        await self.reaches(events, server)
        await server.stop()
        self.assertFalse(os.path.lexists(server.state / SOCKET_NAME))

    async def reaches(self, events: Command, server: ServerProcess) -> None:
        """Wait until a command that shows events has shown one."""
        status, output = await self.run_command(server, "bans", "add", "192.0.2.1")
        self.assertEqual(status, 0, output)
        while b'"ban"' not in events.out:
            status, _ = await self.run_command(server, "bans", "lift", "192.0.2.1")
            status, _ = await self.run_command(server, "bans", "add", "192.0.2.1")
        events.signal("INT")
        await events.ended()

    async def test_by_the_port(self) -> None:
        """
        With an address of this machine the server proves itself first; who passes the question on
        to it from another port gets no token.
        """
        server = ServerProcess(self)
        await server.start()
        place = f"http://{HOST}:{server.http_port}"
        status, output = await self.run_command(server, "bans", "--url", place)
        self.assertEqual(status, 0, output)
        relay = reactor.listenTCP(0, ProxyFactory(HOST, server.http_port), interface=HOST)
        self.addCleanup(relay.stopListening)
        place = f"http://{HOST}:{relay.getHost().port}"
        status, output = await self.run_command(server, "bans", "--url", place)
        self.assertEqual((status, "passes requests on" in output), (4, True), output)
        # A tunnel of the operator's own, whose token was named for it.
        token = server.directory / "token"
        token.write_text(server.secrets()["admin_token"])
        status, output = await self.run_command(
            server, "bans", "--url", place, "--token-file", str(token)
        )
        self.assertEqual(status, 0, output)
