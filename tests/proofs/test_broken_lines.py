"""The client library against a real server, over lines that break."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from random import Random
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from domaeka.client import (
    CAPABILITIES,
    Client,
    ClientEvent,
    Credentials,
    Fate,
    Greeting,
    Identity,
    Reply,
    Said,
    Server,
)
from tests.integration.support import HOST, ServerProcess, sleep
from tests.integration.test_api import Api
from tests.proofs import LONG

reactor: Any = _reactor

MESSAGES = 1000
#: The places at which the line is cut, one after the other.
SEEDS = range(7, 27 if LONG else 8)
#: Longest that one may wait, in seconds.
TTL = 100
#: After how many of them the server has something to say, too.
PUSHED_AFTER = 10
#: How many bytes the broken line carries, up to, before it is cut.
MOST_BYTES = 8_000
#: How often it is cut at least.
CUTS = 6


class _End(Protocol):
    """One end of a carried connection: what comes in goes out at the other."""

    transport: Any

    def __init__(self, line: "BrokenLine") -> None:
        self._line = line
        self._other: _End | None = None
        self._early: list[bytes] = []

    def join(self, other: "_End") -> None:
        self._other = other
        for data in self._early:
            other.transport.write(data)

    # IProtocol

    def dataReceived(self, data: bytes) -> None:
        data, cut = self._line.carried(data)
        if self._other is None:
            self._early.append(data)
        else:
            self._other.transport.write(data)
        if cut:
            for end in (self, self._other):
                if end is not None:
                    # What was carried arrives; then the line is dead.
                    end.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._other is not None:
            self._other.transport.loseConnection()


class BrokenLine(Factory):
    """A port that carries to a server, and cuts the line after some bytes, at any byte."""

    noisy = False

    def __init__(self, port: int, random: Random) -> None:
        self._server: Any = TCP4ClientEndpoint(reactor, HOST, port)
        self._random = random
        self._left = 0
        self.cuts = 0
        self.whole = False  # no more cuts

    def carried(self, data: bytes) -> tuple[bytes, bool]:
        """@return: what of C{data} is carried, and whether that was the end."""
        self._left -= len(data)
        if self.whole or self._left > 0:
            return data, False
        self.cuts += 1
        return data[: self._left or None], True

    def buildProtocol(self, addr: object) -> _End:
        self._left = self._random.randrange(100, MOST_BYTES)
        near, far = _End(self), _End(self)

        class _Far(Factory):
            noisy = False

            def buildProtocol(self, addr: object) -> _End:
                return far

        def connected(_: object) -> None:
            near.join(far)
            far.join(near)

        self._server.connect(_Far()).addCallback(connected).addErrback(
            lambda _: near.transport.loseConnection()
        )
        return near


class ClientTests(TestCase):
    """Nothing lost, nothing doubled, in order."""

    timeout = 600

    async def _client(
        self,
        server: ServerProcess,
        port: int,
        capabilities: Sequence[str],
        on_event: Callable[[ClientEvent], None],
    ) -> Client:
        secrets = server.secrets()
        self.replies: list[str] = []

        def take(reply: Reply) -> None:
            self.replies.append(str(reply.content))

        client = Client(
            reactor,
            [Server(HOST, port)],
            Identity(bot_name="가게봇", device_id="client"),
            Credentials(secrets["secret_key"], secrets["salt"]),
            take,
            on_event,
            capabilities=capabilities,
            random=lambda: 0.0,
        )
        client.startService()
        self.addCleanup(client.stopService)
        return client

    async def _exchange(self, capabilities: Sequence[str], seed: int) -> None:
        server = ServerProcess(
            self,
            *("--set", 'limits.allow=["127.0.0.0/8"]', "--set", "shutdown.reconnect_after=1"),
            *("--set", f"queue.message_ttl={TTL}"),
        )
        await server.start()
        line = BrokenLine(server.port, Random(seed))
        port = await TCP4ServerEndpoint(reactor, 0, interface=HOST).listen(line)
        self.addCleanup(port.stopListening)
        api = Api(server)
        greetings: list[Greeting] = []
        client = await self._client(
            server,
            port.getHost().port,
            capabilities,
            lambda event: greetings.append(event) if isinstance(event, Greeting) else None,
        )
        fates: list[Deferred[Fate]] = []
        for number in range(MESSAGES):
            text = f"# echo {number} " + "가나다라" * 20
            fates.append(client.say(Said(room="방", sender="나", text=text), ttl=TTL))
            if number == 0:
                self.assertEqual(await fates[0], Fate.TAKEN)
            if number % PUSHED_AFTER == 0:
                push = {"bot": "가게봇", "device": "client", "room": "방", "text": f"push {number}"}
                status, answer = await api.ask("POST", "/messages", push)
                self.assertEqual(status, HTTPStatus.ACCEPTED, answer)
            if number == MESSAGES // 2:
                await server.stop()
                await server.start()
        while line.cuts < CUTS:
            await sleep(0.05)
        line.whole = True
        for fate in fates[1:]:
            self.assertEqual(await fate, Fate.TAKEN)
        while len(self.replies) < MESSAGES + MESSAGES // PUSHED_AFTER and client.running:
            await sleep(0.05)
        await sleep(0.2)
        words = [reply.split() for reply in self.replies]
        pushed = [int(number) for word, number in words if word == "push"]
        self.assertEqual(pushed, list(range(0, MESSAGES, PUSHED_AFTER)))
        numbers = [int(number) for number, word in words if number != "push"]
        self.assertEqual(numbers, list(range(MESSAGES)))
        self.assertTrue(greetings[-1].resumed)

    async def test_broken_line(self) -> None:
        """Over a line cut at any byte, and a restart of the server, all is answered once."""
        for seed in SEEDS:
            await self._exchange(("session", "ack"), seed)

    async def test_broken_compressed_line(self) -> None:
        """The same on a compressed one."""
        for seed in SEEDS:
            await self._exchange(CAPABILITIES, seed)
