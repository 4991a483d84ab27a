"""Who is let in, over real sockets: limits, bans over a restart, and balancers."""

import math
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from domaeka.testing import FakePhone
from tests.integration.support import (
    HOST,
    PATIENCE_SECONDS,
    ServerProcess,
    free_port,
    reactor,
    sleep,
)
from tests.integration.test_api import Api
from tests.integration.test_phones import until

ATTACKER = "127.6.6.6"
ANOTHER = "127.6.6.9"
BALANCER = "127.6.6.7"
MONITOR = "127.6.6.8"
#: How often these two look: more often than anybody may connect in a minute.
LOOKS = 15
#: How often is looked again, and how long a test waits for what must not come, in seconds.
SETTLE_SECONDS = 0.3
#: After how long a phone that was not answered says it again, in seconds.
SAY_AGAIN_SECONDS = 10.0


class BanTests(TestCase):
    """Limits and bans of a server with its defaults."""

    timeout = 300

    async def serve(self, *arguments: str) -> ServerProcess:
        """A server that limits everybody."""
        server = ServerProcess(self, *arguments)
        await server.start()
        return server

    async def attempts(
        self, port: int, count: int, closed: int, source: str = HOST, first: bytes = b""
    ) -> None:
        """
        Connect C{count} times from an address.

        @param closed: how many of them must be closed, without a byte; the others must not.
        @param first: what is said at once.
        """
        still_open = []
        for _ in range(count):
            line = socket.socket()
            self.addCleanup(line.close)
            line.bind((source, 0))
            line.connect((HOST, port))
            line.sendall(first)
            line.setblocking(False)
            still_open.append(line)
        deadline = reactor.seconds() + PATIENCE_SECONDS
        settled = False
        while not settled:
            settled = len(still_open) <= count - closed
            self.assertLess(reactor.seconds(), deadline, f"{len(still_open)} of {count} are open")
            await sleep(SETTLE_SECONDS)
            still_open = [line for line in still_open if self._is_open(line)]
        for line in still_open:
            line.close()
        self.assertEqual(count - len(still_open), closed, source)

    def _is_open(self, line: socket.socket) -> bool:
        """Whether nothing has come from the other side, not even its end."""
        try:
            self.assertEqual(line.recv(100), b"")
        except BlockingIOError:
            return True
        except ConnectionResetError:
            pass
        return False

    async def answered(self, phones: Sequence[FakePhone], text: str) -> None:
        """
        Wait until each has been answered once more.  A phone that is sent away once more by the
        limit, as it was about to say it, has lost it: it says it again.
        """
        deadline = reactor.seconds() + PATIENCE_SECONDS
        said = -math.inf
        while late := [phone for phone in phones if text not in phone.texts()]:
            self.assertLess(reactor.seconds(), deadline, f"{len(late)} are not answered")
            if reactor.seconds() - said > SAY_AGAIN_SECONDS and all(one.online for one in late):
                said = reactor.seconds()
                for phone in late:
                    phone.say(f"# echo {text}")
            await sleep(SETTLE_SECONDS)

    async def banned(self, api: Api, *addresses: str) -> None:
        """Wait until those are banned; whoever else came before has been judged with them."""
        networks: list[str] = []
        deadline = reactor.seconds() + PATIENCE_SECONDS
        while len(networks) < len(addresses):
            self.assertLess(reactor.seconds(), deadline, networks)
            await sleep(SETTLE_SECONDS)
            networks = [ban["network"] for ban in (await api.get("/bans"))["bans"]]
        self.assertEqual(sorted(networks), sorted(f"{address}/32" for address in addresses))

    async def test_limited_banned_lifted(self) -> None:
        """
        Who connects too often is let in no more, then banned, over a restart, until an operator
        lifts it; he is told nothing, and the log one line.  Twenty phones behind one router all
        get in, before and after the restart.  A balancer that looks again and again is let in, and
        a monitor that floods is limited: neither is banned.
        """
        server = await self.serve()
        api = Api(server)
        phones = [server.phone(f"{number:016x}") for number in range(20)]
        await self.look(server.port)
        await self.attempts(server.port, 16, 6, ATTACKER, b"{")
        await self.banned(api, ATTACKER)
        await self.attempts(server.port, 10, 0, BALANCER)
        self.assertIn(b"domaeka_bans 1.0", (await server.get("/metrics"))[1])
        await self.answered(phones, "1")
        await self.attempts(server.port, 5, 5, ATTACKER)
        await server.stop()
        await server.start()
        await self.attempts(server.port, 5, 5, ATTACKER)
        await self.answered(phones, "2")
        await self.attempts(server.port, 16, 6, ANOTHER, b"{")
        await self.banned(api, ATTACKER, ANOTHER)
        self.assertEqual((await api.ask("DELETE", f"/bans?network={ATTACKER}"))[0], 204)
        await self.attempts(server.port, 1, 0, ATTACKER)
        self.assertEqual(server.output().count(f"banned {ATTACKER}"), 1)
        self.assertNotIn("Traceback", server.output())

    async def look(self, port: int) -> None:
        """A balancer and a monitor connect and leave, in order and with resets."""
        for _ in range(LOOKS):
            for end in (b"", struct.pack("ii", 1, 0)):
                line = socket.create_connection((HOST, port), source_address=(BALANCER, 0))
                if end:
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, end)  # a reset
                line.close()
            for _ in range(10):
                socket.create_connection((HOST, port), source_address=(MONITOR, 0)).close()
            await sleep(SETTLE_SECONDS)

    async def test_lifted_by_what_the_log_says(self) -> None:
        """What the log says to type once a phone is mended lifts its ban, as it stands there."""
        server = await self.serve()
        phone = server.phone("0" * 16, secret_key="a wrong key of enough bytes")
        await until([phone], lambda phone: phone.online)
        for _ in range(6):
            phone.say("# echo 위조")
        line = ""
        while not line:
            await sleep(0.2)
            found = [line for line in server.output().splitlines() if f"banned {HOST}" in line]
            line = "".join(found)
        phone.stop()
        self.assertIn("bot '", line)
        await self.attempts(server.port, 1, 1)
        command = line[line.index("then: ") + 6 :]
        shell = {"PATH": os.environ["PATH"]}
        output = await getProcessOutputAndValue("/bin/sh", ("-c", command), shell, reactor=reactor)
        self.assertEqual(output[2], 0, output)
        await self.attempts(server.port, 10, 0)

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
        await self.attempts(server.port, 1, 1)
        await api.ask("DELETE", "/bans?network=127.0.0.0/24")
        await self.answered([phone], "2")

    async def test_another_server_on_the_store(self) -> None:
        """What an operator decides at one server is in force at another on the same store."""
        store = f"storage.url=sqlite:///{Path(self.mktemp()).absolute()}"
        here, there = [await self.serve("--set", store) for _ in range(2)]
        api = Api(here)
        phone, banned = there.phone("0" * 16), there.phone("1" * 16)
        await self.answered([phone, banned], "1")
        path = f"/devices/{phone.identity.bot_name}/{phone.identity.device_id}"
        self.assertEqual((await api.ask("PATCH", path, {"status": "blocked"}))[0], 200)
        other = Api(there)
        while (await other.get(path))["status"] != "blocked":
            await sleep(SETTLE_SECONDS)
        phone.say("# echo 2")
        await self.answered([banned], "2")
        self.assertEqual(phone.texts(), ["1"])
        ban = {"network": "127.0.0.0/24", "reason": "시험", "seconds": None}
        self.assertEqual((await api.ask("POST", "/bans", ban))[0], 201)
        await banned.when(lambda: not banned.online)
        await api.ask("DELETE", "/bans?network=127.0.0.0/24")
        await self.answered([banned], "3")

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
            await self.attempts(port, 12, closed, first=header)
        header = b"PROXY TCP4 203.0.113.9 203.0.113.9 40000 9000\r\n"
        line = socket.create_connection((HOST, server.port))
        self.addCleanup(line.close)
        line.sendall(header)
        self.assertIn(b"BAD_FRAME", line.recv(1000))
