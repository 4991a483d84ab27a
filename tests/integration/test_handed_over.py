"""Ports that a service manager hands over: this process stands in for it."""

import json
import socket

from twisted.trial.unittest import TestCase

from tests.integration.support import HOST, ServerProcess, free_port, sleep
from tests.integration.test_api import Api
from tests.integration.test_phones import until


class HandedOverTests(TestCase):
    """A server whose port is held by another process."""

    timeout = 300

    async def serve(self, *settings: str, more: tuple[int, ...] = ()) -> ServerProcess:
        """A server that is given the socket of its port, and of C{more}."""
        chosen = ('limits.allow=["127.0.0.0/8"]', *settings)
        server = ServerProcess(self, *(part for key in chosen for part in ("--set", key)))
        for port in (server.port, *more):
            listener = socket.socket()
            self.addCleanup(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            listener.listen(100)
            server.handed_over += (listener,)
        await server.start()
        self.assertIn(f"on {HOST}:{server.port} (server.port, handed over)", server.output())
        return server

    async def test_killed(self) -> None:
        """While the server is away phones are connected, and what they say waits for it."""
        server = await self.serve()
        phones = [server.phone("1" * 16), server.phone("2" * 16, "3.2.1")]
        for phone in phones:
            phone.say("# echo 하나")
        await until(phones, lambda phone: phone.texts() == ["하나"])
        server.signal("KILL")
        await server.ended()
        await until(phones, lambda phone: len(phone.record.connects) == 2)
        for phone in phones:
            phone.say("# echo 둘")
        await server.start()
        await until(phones, lambda phone: phone.texts() == ["하나", "둘"])
        self.assertEqual([len(phone.record.connects) for phone in phones], [2, 2])

    async def test_drain_called_off(self) -> None:
        """
        A stop that is called off lets in again who has come meanwhile, at an endpoint that names a
        socket, too.
        """
        port = free_port()
        endpoints = json.dumps(["systemd:domain=INET:index=1"])
        server = await self.serve(f"server.endpoints={endpoints}", more=(port,))
        for _ in range(2):
            await self.called_off(server, port)

    async def called_off(self, server: ServerProcess, port: int) -> None:
        """A drain is begun, and called off."""
        api = Api(server)
        with socket.create_connection((HOST, server.port)) as deaf:
            # It keeps its connection, and so the drain from its end.
            deaf.sendall(b'{"botName":"b","deviceID":"d","version":"3.2.1"}\n')
            while not (await api.get("/drain"))["connections"]:
                await sleep(0.02)
            self.assertEqual((await api.ask("POST", "/drain"))[0], 202)
            waiting = [socket.create_connection((HOST, each)) for each in (server.port, port)]
            self.assertEqual((await api.ask("DELETE", "/drain"))[0], 200)
            for line in waiting:
                with line:
                    line.sendall(b'{"botName":"b","deviceID":"e","version":"3.2.1"}\n')
                    line.setblocking(False)
                    while True:
                        try:
                            answer = line.recv(1000)
                            break
                        except BlockingIOError:
                            await sleep(0.02)
                self.assertIn(b"handshakeComplete", answer)
