"""The client library over TCP and TLS."""

import socket
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor as _reactor
from twisted.internet import ssl, tcp
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    wrapClientTLS,
)
from twisted.trial.unittest import TestCase

from domaeka.client import (
    Client,
    ClientEvent,
    Credentials,
    Greeting,
    Identity,
    Lost,
    Said,
    Server,
)
from domaeka.client.link import LINGER_SECONDS
from domaeka.testing import FakeServer
from tests.integration.support import HOST, PATIENCE_SECONDS, sleep

reactor: Any = _reactor


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


def kernel_limits(port: int) -> list[tuple[int, ...]]:
    """Of each connection of this process to C{port}: what the kernel bears with, in seconds."""
    sockets = [
        reader.getHandle()
        for reader in reactor.getReaders()
        if isinstance(reader, tcp.Client) and reader.getPeer().port == port
    ]
    return [
        (
            one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) // 1000,
            one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        )
        for one in sockets
    ]


class TCPTests(TestCase):
    """Servers without TLS."""

    timeout = 300

    async def test_kernel_watches(self) -> None:
        """The kernel gives up a peer that acknowledges nothing, and asks one that is silent."""
        fake = FakeServer(reactor, "k" * 16, "salt")
        self.addCleanup(fake.stop)
        port = reactor.listenTCP(0, fake, interface=HOST)
        self.addCleanup(port.stopListening)
        number = port.getHost().port
        client = Client(
            reactor,
            [Server(HOST, number)],
            Identity(bot_name="가게봇", device_id="client"),
            Credentials("k" * 16, "salt"),
            lambda reply: None,
        )
        client.startService()
        self.addCleanup(client.stopService)
        deadline = reactor.seconds() + PATIENCE_SECONDS
        while not client.greeted:
            self.assertLess(reactor.seconds(), deadline)
            await sleep(0.02)
        self.assertEqual(kernel_limits(number), [(20, 1, 30, 15, 1)])


class TLSTests(TestCase):
    """Servers with TLS."""

    timeout = 300

    async def _talk(self, host: str, trusted: bool) -> tuple[list[str], list[ClientEvent]]:
        """Say something to a server whose certificate is for C{localhost}; stop."""
        certificate, key = make_certificate(Path(self.mktemp()), "localhost")
        fake = FakeServer(reactor, "k" * 16, "salt")
        self.addCleanup(fake.stop)
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
        deadline = reactor.seconds() + PATIENCE_SECONDS
        while not replies and not any(isinstance(event, Lost) for event in events):
            self.assertLess(reactor.seconds(), deadline)
            await sleep(0.02)
        if replies:
            self.assertEqual(kernel_limits(port.getHost().port), [(20, 1, 30, 15, 1)])
        started = reactor.seconds()
        await client.stopService()
        self.assertLess(reactor.seconds() - started, LINGER_SECONDS)  # it was not cut off
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
