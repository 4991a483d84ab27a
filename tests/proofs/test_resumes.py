"""Clients that come back together to a real server."""

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from domaeka.policies.auth import Signer
from domaeka.wire import Greeting, Identity, PhoneWriter, read_server_frame
from tests.integration.support import HOST, ServerProcess, cpu_seconds, reactor

CLIENTS = 100
#: How long they may take, in seconds of the server's processor time.
MOST_SECONDS = 2.0


class _Client(LineOnlyReceiver):
    """Shakes hands, and no more."""

    delimiter = b"\n"
    transport: Any

    def __init__(self, handshake: bytes) -> None:
        self._handshake = handshake
        self.greeted: Deferred[Greeting] = Deferred()
        self.lost: Deferred[None] = Deferred()

    # IProtocol

    def connectionMade(self) -> None:
        self.transport.write(self._handshake)

    def lineReceived(self, line: bytes) -> None:
        frame = read_server_frame(line)
        if isinstance(frame, Greeting):
            self.greeted.callback(frame)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class ResumeTests(TestCase):
    """Sessions that are taken up again."""

    timeout = 300

    async def greet(self, server: ServerProcess, handshakes: Sequence[bytes]) -> list[Greeting]:
        """Shake hands, all at once, and be gone."""
        clients = [_Client(handshake) for handshake in handshakes]
        endpoint = TCP4ClientEndpoint(reactor, HOST, server.port)
        for client in clients:
            connectProtocol(endpoint, client)
        greetings = await gatherResults([client.greeted for client in clients])
        for client in clients:
            client.transport.loseConnection()
        await gatherResults([client.lost for client in clients])
        return list(greetings)

    async def test_all_at_once(self) -> None:
        """A hundred come back within the same moment, after a restart: answered for 2 s' work."""
        server = ServerProcess(self, "--set", 'limits.allow=["127.0.0.0/8"]')
        await server.start()
        secrets = server.secrets()
        sign = Signer([secrets["secret_key"]], secrets["salt"], 300.0, reactor.seconds).sign
        writers = [
            PhoneWriter(Identity(bot_name="봇", device_id=f"{number:016x}"), sign, reactor.seconds)
            for number in range(CLIENTS)
        ]
        can: tuple[str, ...] = ("session", "ack")
        first = [writer.handshake(signed=True, capabilities=can) for writer in writers]
        tokens = [greeting.session_token for greeting in await self.greet(server, first)]
        await server.stop()
        await server.start()
        back = [
            writer.handshake(capabilities=can, session_token=token)
            for writer, token in zip(writers, tokens, strict=True)
        ]
        used = cpu_seconds(server.pid)
        greetings = await self.greet(server, back)
        used = cpu_seconds(server.pid) - used
        self.assertEqual([greeting.resumed for greeting in greetings], [True] * CLIENTS)
        self.assertLess(used, MOST_SECONDS)

    async def test_another_key(self) -> None:
        """Who was known by a key that is accepted no more, after a restart, is not known again."""
        server = ServerProcess(self)
        await server.start()
        secrets = server.secrets()
        sign = Signer([secrets["secret_key"]], secrets["salt"], 300.0, reactor.seconds).sign
        writer = PhoneWriter(Identity(bot_name="봇", device_id="1"), sign, reactor.seconds)
        can = ("session",)
        (first,) = await self.greet(server, [writer.handshake(signed=True, capabilities=can)])
        await server.stop()
        server.environment["DOMAEKA_AUTH_SECRET_KEY"] = "another key of enough bytes"
        await server.start()
        back = writer.handshake(capabilities=can, session_token=first.session_token)
        (greeting,) = await self.greet(server, [back])
        self.assertFalse(greeting.resumed)
        self.assertIsNone(greeting.session_token)
