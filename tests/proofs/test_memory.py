"""Memory that a real server holds only as long as it is needed."""

import socket
from collections.abc import Sequence

from twisted.trial.unittest import TestCase

from domaeka.policies.auth import Signer
from domaeka.wire import Identity, PhoneWriter
from tests.integration.support import HOST, PATIENCE_SECONDS, ServerProcess, reactor, sleep
from tests.proofs import LONG
from tests.proofs.test_attacks import resident_bytes

ROUNDS = 30 if LONG else 4
#: What a server may have grown by, over all rounds, in bytes.  C's malloc keeps some of what it
#: once had: 44 MB after twelve rounds and no more later, while Python's own objects grew by
#: 0.4 MB.  Rounds that were held would be 108 MB after four.
GROWN_BYTES = 64 * 2**20
#: How long those who read nothing are there, in seconds.
SAY_SECONDS = 1.5


class MemoryTests(TestCase):
    """What is held for a connection is free once it is lost, without a collection."""

    timeout = 600

    async def serve(self) -> ServerProcess:
        """A server that limits nobody."""
        server = ServerProcess(self, "--set", 'limits.allow=["127.0.0.0/8"]')
        await server.start()
        return server

    async def leave(self, server: ServerProcess, lines: Sequence[socket.socket]) -> None:
        """Close all, and wait until the server knows it."""
        for line in lines:
            line.close()
        deadline = reactor.seconds() + PATIENCE_SECONDS
        while b"\ndomaeka_connections 0.0\n" not in (await server.get("/metrics"))[1]:
            self.assertLess(reactor.seconds(), deadline)
            await sleep(0.1)

    async def test_lines_that_never_end(self) -> None:
        """A hundred lines of a megabyte, again and again, leave nothing that grows."""
        server = await self.serve()
        before = resident_bytes(server.pid)
        for _ in range(ROUNDS):
            lines = [socket.create_connection((HOST, server.port)) for _ in range(100)]
            for line in lines:
                line.sendall(b"{" + b"x" * 1_040_000)
            await self.leave(server, lines)
        self.assertLess(resident_bytes(server.pid) - before, GROWN_BYTES)

    async def test_strangers_that_read_nothing(self) -> None:
        """What ninety were to be told at a time, 300 KB each, leaves no more either."""
        server = await self.serve()
        secrets = server.secrets()
        sign = Signer([secrets["secret_key"]], secrets["salt"], 300.0, reactor.seconds).sign
        writer = PhoneWriter(Identity(bot_name="봇", device_id="d"), sign, reactor.seconds)
        before = resident_bytes(server.pid)
        for _ in range(ROUNDS):
            lines = []
            for _ in range(90):
                line = socket.socket()
                self.addCleanup(line.close)
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                line.connect((HOST, server.port))
                line.setblocking(False)
                lines.append(line)
            end = reactor.seconds() + SAY_SECONDS
            while reactor.seconds() < end:
                for line in lines:
                    try:
                        line.send(writer.handshake() * 100)
                    except OSError:
                        continue  # it is full, or was closed
                await sleep(0.01)
            await self.leave(server, lines)
        self.assertLess(resident_bytes(server.pid) - before, GROWN_BYTES)
