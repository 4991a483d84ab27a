"""The client library against a real server, over lines that break."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor as _reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    wrapClientTLS,
)
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
    Lost,
    Reply,
    Said,
    Server,
)
from domaeka.testing import FakeServer
from tests.integration.support import HOST, ServerProcess, sleep
from tests.integration.test_api import Api

reactor: Any = _reactor

MESSAGES = 1000
#: Longest that one may wait, in seconds.
TTL = 100
#: After how many of them the server has something to say, too.
PUSHED_AFTER = 10
#: How many bytes the broken line carries, up to, before it is cut.
MOST_BYTES = 8_000


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

    timeout = 120

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

    async def _exchange(self, capabilities: Sequence[str]) -> None:
        server = ServerProcess(
            self,
            *("--set", 'limits.allow=["127.0.0.0/8"]', "--set", "shutdown.reconnect_after=1"),
            *("--set", f"queue.message_ttl={TTL}"),
        )
        await server.start()
        line = BrokenLine(server.port, Random(7))
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
        self.assertGreater(line.cuts, 5)
        self.assertTrue(greetings[-1].resumed)

    async def test_broken_line(self) -> None:
        """Over a line cut at any byte, and a restart of the server, all is answered once."""
        await self._exchange(("session", "ack"))

    async def test_broken_compressed_line(self) -> None:
        """The same on a compressed one."""
        await self._exchange(CAPABILITIES)


def make_certificate(directory: Path, host: str) -> tuple[Path, Path]:
    """A certificate for C{host} that stands for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now()
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(parents=True)
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


class TLSTests(TestCase):
    """Servers with TLS."""

    timeout = 30

    async def _talk(self, host: str, trusted: bool) -> tuple[list[str], list[ClientEvent]]:
        """Say something to a server whose certificate is for C{localhost}; stop."""
        certificate, key = make_certificate(Path(self.mktemp()), "localhost")
        fake = FakeServer(reactor.seconds, "k" * 16, "salt")
        listening: Any = SSL4ServerEndpoint(
            reactor,
            0,
            ssl.DefaultOpenSSLContextFactory(str(key), str(certificate)),
            interface=HOST,
        )
        port = await listening.listen(fake)
        self.addCleanup(port.stopListening)
        authority = ssl.Certificate.loadPEM(certificate.read_bytes()) if trusted else None

        def endpoint(server: Server) -> Any:
            options = ssl.optionsForClientTLS(host, trustRoot=authority)
            plain: Any = TCP4ClientEndpoint(reactor, HOST, server.port)
            return wrapClientTLS(options, plain)

        events: list[ClientEvent] = []
        replies: list[str] = []
        client = Client(
            reactor,
            [Server(host, port.getHost().port, tls=True)],
            Identity(bot_name="가게봇", device_id="client"),
            Credentials("k" * 16, "salt"),
            lambda reply: replies.append(str(reply.content)),
            events.append,
            endpoint=endpoint,
        )
        client.startService()
        client.say(Said(room="방", sender="나", text="가" * 50_000))
        deadline = reactor.seconds() + 5.0
        while not replies and not any(isinstance(event, Lost) for event in events):
            self.assertLess(reactor.seconds(), deadline)
            await sleep(0.02)
        started = reactor.seconds()
        await client.stopService()
        self.assertLess(reactor.seconds() - started, 2.0)
        return replies, events

    async def test_good_certificate(self) -> None:
        """A server whose certificate is good for its name is spoken to, and left in order."""
        replies, _ = await self._talk("localhost", trusted=True)
        self.assertEqual(replies, ["가" * 50_000])

    async def test_bad_certificates(self) -> None:
        """A certificate of nobody that is trusted, or for another name, ends the connection."""
        for host, trusted in (("localhost", False), ("elsewhere.example", True)):
            replies, events = await self._talk(host, trusted)
            self.assertEqual(replies, [])
            self.assertFalse(any(isinstance(event, Greeting) for event in events))
