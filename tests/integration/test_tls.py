"""TLS for phones, with real certificates and sockets."""

import contextlib
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from domaeka.policies.auth import Signer
from domaeka.testing import FakePhone
from domaeka.wire import Deflater, Dialect, Identity, PhoneWriter, Said
from tests.integration.support import (
    HOST,
    ServerProcess,
    cpu_seconds,
    free_port,
    reactor,
    sleep,
)
from tests.integration.test_phones import until

NAME = "gateway.example"
#: Longest that a client waits, in seconds.
PATIENCE = 60.0


class Authority:
    """Makes certificates."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / f"{name}.pem"
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._write(self.path, self._sign(self._name, self._key, 3650, authority=True))

    def issue(self, path: Path, days: int = 90) -> float:
        """
        Write a certificate for L{NAME}, and its key, into one file.

        @return: when it ends, in seconds since 1970.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
        certificate = self._sign(name, key, days, authority=False)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._write(path, certificate, secret)
        return certificate.not_valid_after_utc.timestamp()

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, authority: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
            .sign(self._key, SHA256())
        )

    def _write(self, path: Path, certificate: x509.Certificate, secret: bytes = b"") -> None:
        fresh = path.with_suffix(".new")
        fresh.write_bytes(certificate.public_bytes(Encoding.PEM) + secret)
        fresh.chmod(0o600)
        fresh.replace(path)


class TlsTests(TestCase):
    """A server with a certificate."""

    timeout = 300

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.authority = Authority(self.directory, "authority")
        self.certificate = self.directory / "server.pem"
        self.ends = self.authority.issue(self.certificate)
        self.port = free_port()

    async def serve(self, *settings: str) -> ServerProcess:
        """A server that listens for TLS beside its plain port."""
        chosen = (
            f"tls.certificate={self.certificate}",
            f"tls.port={self.port}",
            'limits.allow=["127.0.0.0/8"]',
            *settings,
        )
        server = ServerProcess(self, *(part for key in chosen for part in ("--set", key)))
        await server.start()
        return server

    def context(self, client: Path | None = None) -> ssl.SSLContext:
        """What a client trusts, and shows."""
        context = ssl.create_default_context(cafile=self.authority.path)
        if client is not None:
            context.load_cert_chain(client)
        return context

    async def greet(self, context: ssl.SSLContext, port: int = 0) -> tuple[str | None, bytes, int]:
        """Shake hands twice.  @return: TLS' version, what a server says, and its certificate."""

        def talk() -> tuple[str | None, bytes, int]:
            with (
                socket.create_connection((HOST, port or self.port), PATIENCE) as plain,
                context.wrap_socket(plain, server_hostname=NAME) as line,
            ):
                line.sendall(b'{"botName":"b","deviceID":"d","version":"3.2.1"}\n')
                answer = line.recv(1000)
                shown = line.getpeercert(True)
                assert shown is not None
                return line.version(), answer, x509.load_der_x509_certificate(shown).serial_number

        result: tuple[str | None, bytes, int] = await deferToThread(talk)
        return result

    async def refused(self, context: ssl.SSLContext) -> str:
        """Why a client cannot talk: the server's word."""
        with self.assertRaises(ssl.SSLError) as caught:
            await self.greet(context)
        return str(caught.exception.reason)

    def phone(self, server: ServerProcess, device_id: str) -> FakePhone:
        """A phone that speaks TLS."""
        root = Certificate.loadPEM(self.authority.path.read_bytes())
        options: Any = optionsForClientTLS(NAME, trustRoot=root)
        endpoint: Any = TCP4ClientEndpoint(reactor, HOST, self.port)
        return server.phone(device_id, endpoint=wrapClientTLS(options, endpoint))

    async def test_phones(self) -> None:
        """Phones with TLS and without chat side by side; idle ones cost nothing."""
        server = await self.serve()
        phones = [self.phone(server, "1" * 16), server.phone("2" * 16)]
        await until(phones, lambda phone: phone.online)
        texts = [str(number) for number in range(100)] + ["한" * 60_000]
        for phone in phones:
            for text in texts:
                phone.say(f"# echo {text}")
        await until(phones, lambda phone: len(phone.replies) == len(texts))
        for phone in phones:
            self.assertEqual((phone.texts(), len(phone.record.connects)), (texts, 1))
        used = cpu_seconds(server.pid)
        await sleep(1.0)
        self.assertLess(cpu_seconds(server.pid) - used, 0.2)
        self.assertEqual(await self.end(server), self.ends)

    async def end(self, server: ServerProcess) -> float:
        """When the certificate ends, as the metrics have it."""
        metrics = (await server.get("/metrics"))[1].decode()
        words = metrics.partition("\ndomaeka_tls_certificate_expires_seconds ")[2]
        return float(words.split("\n")[0])

    async def test_closed_behind_many_lines(self) -> None:
        """Of a phone that closes behind 200 lines all are read, however they are wrapped."""
        proxied = free_port()
        place = f"haproxy:ssl:{proxied}:interface={HOST}:privateKey={self.certificate}"
        server = await self.serve(f'server.endpoints=["{place}"]')
        secrets = server.secrets()
        sign = Signer([secrets["secret_key"]], secrets["salt"], 0.0, time.time).sign

        def say(number: int, port: int, header: bytes, deflated: bool) -> None:
            identity = Identity(bot_name="b", device_id=str(number), version="3.3.3")
            writer = PhoneWriter(identity, sign, time.time)
            said = b"".join(
                writer.chat(Said(room="방", sender="나", text=f"# echo {each}"), Dialect.V33)
                for each in range(200)
            )
            plain = socket.create_connection((HOST, port), PATIENCE)
            plain.sendall(header)
            with plain, self.context().wrap_socket(plain, server_hostname=NAME) as line:
                capabilities = ("deflate",) if deflated else ()
                line.sendall(writer.handshake(signed=True, capabilities=capabilities))
                self.assertIn(b"handshakeComplete", line.recv(1000))
                line.sendall(Deflater().pack(said) if deflated else said)
                with contextlib.suppress(OSError):  # answers are on their way still
                    line.unwrap()

        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 9000\r\n"
        ways = [
            (port, first, deflated)
            for port, first in ((self.port, b""), (proxied, header))
            for deflated in (False, True)
        ]
        for number, way in enumerate(ways, 1):
            await deferToThread(say, number, *way)
            while not (count := await self.count(server, "closes_total{")) >= number:
                await sleep(0.05)
            self.assertEqual(count, number)
            read = await self.count(server, 'frames_received_total{event="message"}')
            self.assertEqual(read, 200 * number, way)

    async def count(self, server: ServerProcess, metric: str) -> float:
        """What the metrics have counted, whatever the labels."""
        lines = (await server.get("/metrics"))[1].decode().splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith(f"domaeka_{metric}")
        )

    async def test_versions(self) -> None:
        """TLS 1.2 and 1.3, nothing older."""
        await self.serve()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = self.context()
            context.minimum_version = context.maximum_version = version
            said, answer, _ = await self.greet(context)
            self.assertEqual(said, f"TLSv1.{version.name[-1]}")
            self.assertIn(b"handshakeComplete", answer)
        context = self.context()
        context.set_ciphers("ALL:@SECLEVEL=0")  # else the client refuses by itself
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        self.assertEqual(await self.refused(context), "TLSV1_ALERT_PROTOCOL_VERSION")

    async def test_ciphers(self) -> None:
        """Nothing that lets who gets the key later read what was said."""
        await self.serve()
        context = self.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AES128-SHA:AES256-GCM-SHA384:ECDHE-ECDSA-AES128-SHA")
        self.assertIn("HANDSHAKE_FAILURE", await self.refused(context))

    async def test_clients_may_show_a_certificate(self) -> None:
        """Where it is asked for, one of the authority's or none will do, but no other."""
        mine, other = self.directory / "mine.pem", self.directory / "other.pem"
        self.authority.issue(mine)
        Authority(self.directory, "stranger").issue(other)
        server = await self.serve(f"tls.client_authority={self.authority.path}")
        for client in (None, mine):
            self.assertIn(b"handshakeComplete", (await self.greet(self.context(client)))[1])
        self.assertIn("UNKNOWN_CA", await self.refused(self.context(other)))
        await server.stop()
        await self.serve(f"tls.client_authority={self.authority.path}", "tls.require_client=true")
        self.assertIn(b"handshakeComplete", (await self.greet(self.context(mine)))[1])
        self.assertIn("CERTIFICATE_REQUIRED", await self.refused(self.context()))

    async def test_renewed(self) -> None:
        """
        A new certificate is shown after SIGHUP, at an endpoint too; a broken one changes nothing.
        """
        port = free_port()
        server = await self.serve(self.endpoint(port))
        first = [(await self.greet(self.context(), each))[2] for each in (self.port, port)]
        ends = self.authority.issue(self.certificate, days=13)
        server.signal("HUP")
        await self.logged(server, f"certificate {self.certificate}: it ends on")
        await self.logged(server, "settings read again")
        second = [(await self.greet(self.context(), each))[2] for each in (self.port, port)]
        self.assertEqual((len(set(first)), len(set(second)), len({*first, *second})), (1, 1, 2))
        self.assertEqual(await self.end(server), ends)
        self.certificate.write_text("nothing")
        server.signal("HUP")
        await self.logged(server, "no certificate in PEM form")
        third = [(await self.greet(self.context(), each))[2] for each in (self.port, port)]
        self.assertEqual(third, second)

    async def test_never_begins(self) -> None:
        """A connection that does not shake hands, of TLS or of ours, is closed in time."""
        server = await self.serve("server.handshake_timeout=1", "socket.linger_seconds=1")
        begun = b"", b"\x16\x03\x01\x02\x00\x01", b'{"botName":"b"}\n'
        for seconds in await gatherResults([ensureDeferred(self.held(data)) for data in begun]):
            self.assertLess(seconds, 9.0)  # 10 s by default
        line = socket.create_connection((HOST, self.port), PATIENCE)
        self.addCleanup(line.close)
        tls = await deferToThread(self.context().wrap_socket, line, server_hostname=NAME)
        self.assertEqual(await deferToThread(tls.recv, 100), b"")
        self.assertEqual((await server.get("/health"))[0], 200)

    async def held(self, first: bytes) -> float:
        """How long a connection is held that says something, and nothing more."""
        line = socket.create_connection((HOST, self.port), PATIENCE)
        self.addCleanup(line.close)
        line.sendall(first)
        start = reactor.seconds()

        def read() -> None:
            try:
                while line.recv(1000):
                    pass
            except ConnectionResetError:
                pass

        await deferToThread(read)
        seconds: float = reactor.seconds() - start
        return seconds

    async def test_limited(self) -> None:
        """Who connects too often is closed before TLS begins, and the log says nothing of it."""
        port = free_port()
        server = await self.serve(self.endpoint(port), "limits.allow=[]")
        for place, source in ((self.port, "127.6.6.6"), (port, "127.6.6.7")):
            lines = [
                socket.create_connection((HOST, place), PATIENCE, (source, 0)) for _ in range(15)
            ]
            await sleep(0.5)
            closed = 0
            for line in lines:
                line.setblocking(False)
                try:
                    line.recv(1)
                except ConnectionResetError:
                    closed += 1
                except BlockingIOError:
                    pass
                line.close()
            self.assertEqual(closed, 5)
        self.assertNotIn("Traceback", server.output())
        self.assertNotIn("127.6.6", server.output())

    async def test_health_checks(self) -> None:
        """
        Whoever shakes hands and leaves is never banned, nor who leaves in the middle of it; whoever
        sends what is no TLS is.
        """
        server = await self.serve("limits.allow=[]")
        begun = self.hello()

        def look() -> None:
            for source, data in (
                ("127.6.6.8", begun),
                ("127.6.6.9", b""),
                ("127.6.6.10", b"GET / HTTP/1.0\r\n\r\n"),
                ("127.6.6.11", b"x" * 50),
            ):
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection((HOST, self.port), PATIENCE, (source, 0)) as line,
                ):
                    line.sendall(data)
                    time.sleep(0.05)
                    if source == "127.6.6.9":
                        self.context().wrap_socket(line, server_hostname=NAME).close()

        for _ in range(20):
            await deferToThread(look)
        await self.logged(server, "banned 127.6.6.11/32")
        await sleep(0.5)  # the others would have been banned with it
        self.assertEqual(server.output().count("banned 127"), 1)

    def hello(self) -> bytes:
        """What a client begins TLS with."""
        written = ssl.MemoryBIO()
        begins = self.context().wrap_bio(ssl.MemoryBIO(), written, server_hostname=NAME)
        self.assertRaises(ssl.SSLWantReadError, begins.do_handshake)
        return written.read()

    def endpoint(self, port: int) -> str:
        """The setting of an endpoint with TLS."""
        place = f"ssl:{port}:interface={HOST}:privateKey={self.certificate}"
        return f'server.endpoints=["{place}:certKey={self.certificate}"]'

    async def logged(self, server: ServerProcess, words: str) -> None:
        """Wait until the log has said something."""
        while words not in server.output():
            await sleep(0.05)
