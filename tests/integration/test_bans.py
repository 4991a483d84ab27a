"""Who is let in, over real sockets: limits, bans over a restart, and balancers."""

import socket
from collections.abc import Sequence
from pathlib import Path
from resource import getpagesize

from twisted.trial.unittest import TestCase

from domaeka.testing import FakePhone
from tests.integration.support import HOST, ServerProcess, free_port, sleep
from tests.integration.test_api import Api
from tests.integration.test_phones import until

ATTACKER = "127.6.6.6"
#: Until a connection that is not let in has been closed, in seconds.
CLOSED_SECONDS = 0.3
#: Longest until those who have earned it are banned, in seconds.
JUDGED_SECONDS = 20.0


class BanTests(TestCase):
    """Limits and bans of a server with its defaults."""

    timeout = 90

    async def serve(self, *arguments: str) -> ServerProcess:
        """A server that limits everybody."""
        server = ServerProcess(self, *arguments)
        await server.start()
        return server

    async def attempts(self, port: int, count: int, source: str = HOST, first: bytes = b"") -> int:
        """
        Connect C{count} times from an address.

        @param first: what is said at once.
        @return: how many times that was closed, without a byte.
        """
        lines = []
        for _ in range(count):
            line = socket.socket()
            self.addCleanup(line.close)
            line.bind((source, 0))
            line.connect((HOST, port))
            line.sendall(first)
            line.setblocking(False)
            lines.append(line)
        await sleep(CLOSED_SECONDS)
        closed = 0
        for line in lines:
            try:
                self.assertEqual(line.recv(100), b"")
                closed += 1
            except ConnectionResetError:
                closed += 1
            except BlockingIOError:
                line.close()
        return closed

    async def answered(self, phones: Sequence[FakePhone], text: str) -> None:
        """Wait until each has been answered once more."""
        await until(phones, lambda phone: phone.online)
        for phone in phones:
            phone.say(f"# echo {text}")
        await until(phones, lambda phone: text in phone.texts())

    async def test_limited_banned_lifted(self) -> None:
        """
        Who connects too often is let in no more, then banned, over a restart, until an operator
        lifts it; he is told nothing, and the log one line.  Twenty phones behind one router all
        get in, before and after the restart.
        """
        server = await self.serve()
        api = Api(server)
        phones = [server.phone(f"{number:016x}") for number in range(20)]
        self.assertEqual(await self.attempts(server.port, 16, ATTACKER), 6)
        for _ in range(int(JUDGED_SECONDS / 0.2)):
            bans = (await api.get("/bans"))["bans"]
            if bans:
                break
            await sleep(0.2)
        self.assertEqual([ban["network"] for ban in bans], [f"{ATTACKER}/32"])
        self.assertIn(b"domaeka_bans 1.0", (await server.get("/metrics"))[1])
        await self.answered(phones, "1")
        self.assertEqual(await self.attempts(server.port, 5, ATTACKER), 5)
        await server.stop()
        await server.start()
        self.assertEqual(await self.attempts(server.port, 5, ATTACKER), 5)
        await self.answered(phones, "2")
        await sleep(JUDGED_SECONDS - 4.0)  # they have been judged
        self.assertEqual((await api.get("/bans"))["total"], 1)
        self.assertEqual((await api.ask("DELETE", f"/bans?network={ATTACKER}"))[0], 204)
        self.assertEqual(await self.attempts(server.port, 1, ATTACKER), 0)
        self.assertEqual(server.output().count(ATTACKER), 1)

    async def test_operators_ban(self) -> None:
        """An operator's ban ends what is connected, tells it so, and holds over a restart."""
        server = await self.serve()
        api = Api(server)
        phone = server.phone("0" * 16)
        await self.answered([phone], "1")
        ban = {"network": "127.0.0.0/24", "reason": "시험", "seconds": None}
        self.assertEqual((await api.ask("POST", "/bans", ban))[0], 201)
        await phone.when(lambda: not phone.online)
        self.assertEqual([code for code, _ in phone.record.errors], ["BANNED"])
        await server.stop()
        await server.start()
        self.assertEqual(await self.attempts(server.port, 1), 1)
        await api.ask("DELETE", "/bans?network=127.0.0.0/24")
        await self.answered([phone], "2")

    async def test_balancer(self) -> None:
        """
        Behind a balancer each phone has its own limit, an IPv6 network one; on any other port
        nobody is believed to be someone else.
        """
        port = free_port()
        endpoint = f"haproxy:tcp:{port}:interface={HOST}"
        server = await self.serve("--set", f'server.endpoints=["{endpoint}"]')
        for family, source, closed in (
            ("TCP4", "203.0.113.1", 2),
            ("TCP4", "203.0.113.2", 2),
            ("TCP6", "2001:db8:0:1::1", 2),
            ("TCP6", "2001:db8:0:1::ffff", 12),
            ("TCP6", "2001:db8:0:2::1", 2),
        ):
            header = f"PROXY {family} {source} {source} 40000 9000\r\n{{".encode()
            self.assertEqual(await self.attempts(port, 12, first=header), closed, source)
        header = b"PROXY TCP4 203.0.113.9 203.0.113.9 40000 9000\r\n"
        line = socket.create_connection((HOST, server.port))
        self.addCleanup(line.close)
        line.sendall(header)
        self.assertIn(b"BAD_FRAME", line.recv(1000))

    async def test_memory_comes_back(self) -> None:
        """Lines that never end cost memory only as long as they are there."""
        server = ServerProcess(self, "--set", 'limits.allow=["127.0.0.0/8"]')
        await server.start()
        before = resident_mib(server.pid)
        for _ in range(3):
            lines = [socket.create_connection((HOST, server.port)) for _ in range(100)]
            for line in lines:
                line.sendall(b"{" + b"x" * 1_040_000)
            await sleep(0.5)
            for line in lines:
                line.close()
            await sleep(1.0)
        self.assertLess(resident_mib(server.pid) - before, 24)


def resident_mib(pid: int) -> int:
    """How much memory a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * getpagesize() >> 20
