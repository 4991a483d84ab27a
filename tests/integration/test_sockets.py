"""The gateway on real sockets."""

import contextlib
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.runtime import seconds as wall
from twisted.trial.unittest import TestCase

from domaeka.config import load_settings
from domaeka.errors import CloseReason
from domaeka.gateway.directory import Directory
from domaeka.gateway.serving import Step
from domaeka.gateway.transport.connection import GatewayFactory
from domaeka.gateway.transport.ports import (
    ACCEPTED_A_TURN,
    NOTSENT_LOWAT_BYTES,
    Ports,
    Sockets,
    open_listener,
)
from domaeka.policies.auth import Signer
from domaeka.testing import FakeDispatcher, make_context, transport_context
from domaeka.wire import Chat, Delivered, Identity, PhoneWriter, Said, read_server_frame
from tests.gateway_case import SALT, SECRET

reactor: Any = _reactor

HOST = "127.0.0.1"
#: Longest that anything takes, in seconds.
PATIENCE = 60.0
SETTINGS = (
    ("limits.messages_per_second", "0"),
    ("socket.linger_seconds", "1"),
    ("server.max_connections", "2000"),
)


def answer(chat: Chat) -> str:
    """What is answered: the text, or as many bytes as it asks for."""
    size = chat.text.partition("bytes ")[2]
    return "x" * int(size) if size else chat.text


class Client:
    """A phone in a thread of its own, on a plain blocking socket."""

    def __init__(self, sock: socket.socket, device_id: str = "d" * 16) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE)
        self.lines = sock.makefile("rb")
        self.writer = PhoneWriter(
            Identity(bot_name="봇", device_id=device_id),
            Signer([SECRET], SALT, 0.0, time.time).sign,
            time.time,
        )
        self._said = 0

    def greet(self) -> None:
        """Shake hands, signed, and wait for the answer."""
        self.socket.sendall(self.writer.handshake(signed=True))
        assert b"handshakeComplete" in self.lines.readline()

    def line(self, text: str) -> bytes:
        """Something that somebody says."""
        self._said += 1
        return self.writer.chat(
            Said(room="방", sender="나", text=text, channel_id="1", log_id=str(self._said))
        )

    def say(self, *texts: str) -> None:
        """Say things, all at once."""
        self.socket.sendall(b"".join(self.line(text) for text in texts))

    def hear(self, count: int) -> list[str]:
        """So many answers."""
        return [self._text(self.lines.readline()) for _ in range(count)]

    def hear_all(self) -> list[str]:
        """All answers until the end."""
        return [self._text(line) for line in self.lines if b"messageResponse" in line]

    def close(self, reset: bool = False) -> None:
        """Close, in order or not."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.lines.close()
        self.socket.close()

    def _text(self, line: bytes) -> str:
        frame = read_server_frame(line.rstrip(b"\n"))
        assert isinstance(frame, Delivered) and isinstance(frame.reply.content, str), line
        return frame.reply.content


def open_files() -> int:
    """How many files this process has open."""
    return len(os.listdir("/dev/fd"))


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for this machine that nobody vouches for, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now()
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].touch(mode=0o600)
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


class SocketTests(TestCase):
    """A gateway in this process, and its phones in threads."""

    timeout = 300

    def setUp(self) -> None:
        self.serve()

    def serve(self, *settings: tuple[str, str]) -> None:
        """Serve phones, in the place of who did before."""
        self.bots = FakeDispatcher(answer)
        context = make_context(
            reactor, wall, SECRET, SALT, [*SETTINGS, *settings], dispatcher=self.bots
        )
        self.directory = directory = Directory(context, reactor)
        self.registry = directory.registry
        directory.sweep.start()
        context.serving.take(Step.OPEN)
        self.shared = transport_context(directory)
        self.options = context.settings.socket
        listener = open_listener(HOST, 0, self.options)
        self.listener = reactor.adoptStreamPort(
            listener.fileno(), listener.family, GatewayFactory(self.shared)
        )
        listener.close()
        self.port: int = self.listener.getHost().port
        self.addCleanup(self.listener.stopListening)
        self.addCleanup(self.end, directory)

    async def end(self, directory: Directory) -> None:
        """Cut all connections."""
        for member in directory.registry:
            member.close(CloseReason.SHUTDOWN, cut=True)
        while directory.registry.connections:
            await deferLater(reactor, 0.01)
        directory.sweep.stop()

    def connect(self, port: int = 0, window: int = 0) -> socket.socket:
        """
        A socket that is connected.

        @param window: how much its kernel takes before it is read, in bytes; 0: as it likes.
        """
        sock = socket.socket()
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        sock.settimeout(PATIENCE)
        sock.connect((HOST, port or self.port))
        return sock

    @contextmanager
    def client(self, window: int = 0) -> Iterator[Client]:
        """A phone that has authenticated; for a thread."""
        client = Client(self.connect(window=window))
        try:
            client.greet()
            yield client
        finally:
            client.close()

    async def until(self, condition: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + patience
        while not condition():
            self.assertLess(time.monotonic(), deadline, "waited too long")
            await deferLater(reactor, 0.01)

    # Options

    async def accepted(self) -> socket.socket:
        """The gateway's end of a connection."""
        self.addCleanup(self.connect().close)
        await self.until(lambda: self.registry.connections == 1)
        session: Any
        (session,) = self.registry
        accepted: socket.socket = session._transport.transport.socket
        return accepted

    async def test_options(self) -> None:
        """An accepted connection has every option of the settings."""
        accepted = await self.accepted()
        for level, option, value in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
            (socket.IPPROTO_TCP, 25, NOTSENT_LOWAT_BYTES),
            # But for 12 bytes of time stamps in each segment.
            (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1208),
            # The kernel doubles them, for what it keeps beside the bytes: socket(7).
            (socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072),
            (socket.SOL_SOCKET, socket.SO_SNDBUF, 131_072),
        ):
            self.assertEqual(accepted.getsockopt(level, option), value, option)
        linger = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        self.assertEqual(struct.unpack("ii", linger)[0], 0)

    async def test_other_options(self) -> None:
        """They are what the settings say."""
        self.serve(
            ("socket.nodelay", "false"),
            ("socket.keepalive_idle", "40"),
            ("socket.user_timeout_ms", "70000"),
            ("socket.buffer_bytes", "0"),
            ("socket.max_segment", "0"),
        )
        accepted = await self.accepted()
        tcp = socket.IPPROTO_TCP
        self.assertEqual(accepted.getsockopt(tcp, socket.TCP_NODELAY), 0)
        self.assertEqual(accepted.getsockopt(tcp, socket.TCP_KEEPIDLE), 40)
        self.assertEqual(accepted.getsockopt(tcp, socket.TCP_USER_TIMEOUT), 70_000)
        self.assertGreater(accepted.getsockopt(tcp, socket.TCP_MAXSEG), 1220)

    def test_addresses(self) -> None:
        """The port can be taken again at once, and by nobody else meanwhile."""
        for reuse_port in (0, 1):
            self.serve(("socket.reuse_port", "true" if reuse_port else "false"))
            listener = self.listener.socket
            self.assertTrue(listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))
            taken = listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            self.assertEqual(bool(taken), bool(reuse_port))
        self.serve()
        self.assertRaises(OSError, open_listener, HOST, self.port, self.options)

    def test_both_families(self) -> None:
        """Everywhere means IPv6 and IPv4 where the machine has both."""
        listener = open_listener("", 0, self.options)
        self.addCleanup(listener.close)
        socket.create_connection((HOST, listener.getsockname()[1]), PATIENCE).close()
        if listener.family == socket.AF_INET6:
            socket.create_connection(("::1", listener.getsockname()[1]), PATIENCE).close()

    # Conversations

    async def test_half_closed(self) -> None:
        """A phone that has finished sending still gets its answers, and then the end."""

        def talk() -> list[str]:
            with self.client() as client:
                client.say("하나", "둘")
                client.socket.shutdown(socket.SHUT_WR)
                return client.hear_all()

        self.assertEqual(await deferToThread(talk), ["하나", "둘"])
        await self.until(lambda: not self.registry.connections)

    async def test_pipelined(self) -> None:
        """50,000 messages sent at once get 50,000 answers, in order."""
        count = 50_000

        def talk() -> list[str]:
            with self.client() as client:
                stream = b"".join(client.line(str(number)) for number in range(count))
                sending = deferToThread(client.socket.sendall, stream)
                texts = client.hear(count)
                sending.addErrback(lambda failure: texts.append(str(failure)))
                return texts

        texts = await deferToThread(talk)
        self.assertEqual(texts, [str(number) for number in range(count)])

    async def test_what_did_not_leave(self) -> None:
        """
        What the kernel had not taken for a phone that broke off goes to its next connection, in
        order and none twice.
        """
        texts = [f"{number} {'x' * 10_000}" for number in range(60)]

        def talk() -> tuple[list[str], list[str]]:
            with self.client(window=16_384) as client:
                client.say(*texts)
                first = client.hear(20)
                time.sleep(0.5)
                client.close(reset=True)
            time.sleep(0.2)
            with self.client() as client:
                client.socket.shutdown(socket.SHUT_WR)
                return first, client.hear_all()

        first, rest = await deferToThread(talk)
        self.assertEqual(first, texts[:20])
        taken = len(self.bots.submitted)
        self.assertEqual(rest, texts[taken - len(rest) : taken])
        self.assertTrue(0 < len(rest) <= taken - 20)

    async def test_peer_that_reads_nothing(self) -> None:
        """
        A peer that reads nothing is cut off a second after it is closed, not before, and holds up
        nobody.
        """
        slow = self.connect()
        self.addCleanup(slow.close)
        client = Client(slow, "slow")
        await deferToThread(client.greet)
        await deferToThread(client.say, *["bytes 60000"] * 4)
        session: Any
        (session,) = self.registry
        await self.until(lambda: not session._writer.idle)
        closed_at = time.monotonic()
        session.close(CloseReason.SHUTDOWN)

        def talk() -> list[str]:
            with self.client() as other:
                other.say("말")
                return other.hear(1)

        self.assertEqual(await deferToThread(talk), ["말"])
        await self.until(lambda: session not in list(self.registry))
        self.assertGreater(time.monotonic() - closed_at, 0.9)

    async def test_resets(self) -> None:
        """Connections that are reset, at any point, leave nothing behind."""

        def storm() -> None:
            for number in range(300):
                client = Client(self.connect(), f"{number % 20:016x}")
                if number % 5 > 0:
                    client.socket.sendall(client.writer.handshake(signed=number % 5 > 1))
                if number % 5 > 2:
                    client.say("bytes 50000", "말")
                if number % 5 > 3:
                    client.hear(0)
                client.close(reset=number % 7 > 0)

        await deferToThread(self.connect().close)  # threads have files of their own
        before = open_files()
        await deferToThread(storm)
        await self.until(lambda: not self.registry.connections)
        await self.until(lambda: open_files() <= before)
        self.assertEqual(self.directory.admission.taken, 0)

    async def test_crowd_at_the_door(self) -> None:
        """However many come at once, they are let in a few in each turn of the reactor."""
        listener = open_listener(HOST, 0, load_settings().socket)
        came: list[object] = []
        factory = Factory.forProtocol(Protocol)
        factory.buildProtocol = lambda address: came.append(address)  # type: ignore
        port = Sockets(reactor).listen(listener, factory)
        self.addCleanup(port.stopListening)
        for _ in range(5 * ACCEPTED_A_TURN):
            self.addCleanup(socket.create_connection((HOST, port.getHost().port)).close)
        while len(came) < 5 * ACCEPTED_A_TURN:
            before = len(came)
            await deferLater(reactor, 0)
            self.assertLessEqual(len(came) - before, ACCEPTED_A_TURN)

    async def test_many_at_once(self) -> None:
        """A thousand that come in the same moment are all answered."""

        def talk() -> int:
            clients = [Client(self.connect(), f"{number:016x}") for number in range(1000)]
            for client in clients:
                client.socket.sendall(client.writer.handshake(signed=True))
            for client in clients:
                client.greet()
            for client in clients:
                client.close()
            return len(clients)

        await deferToThread(self.connect().close)  # threads have files of their own
        before = open_files()
        self.assertEqual(await deferToThread(talk), 1000)
        await self.until(lambda: not self.registry.connections)
        await self.until(lambda: open_files() <= before)

    # Other ways in

    async def listen(self, text: str) -> int:
        """Listen at one more place.  @return: its port."""
        chosen = (
            ("server.endpoints", json.dumps([text])),
            ("server.port", "0"),
            ("server.interface", HOST),
        )
        settings = load_settings(None, chosen, {})
        ports = Ports(self.shared, Sockets(reactor), reactor, settings, self.fail)
        ports.listen()
        self.addCleanup(ports.shut)
        number: int = ports._listening[-1].getHost().port
        return number

    async def test_balancer(self) -> None:
        """Behind a balancer the phone is who the balancer says, ahead of TLS or inside."""
        directory = Path(self.mktemp())
        directory.mkdir()
        certificate, key = make_certificate(directory)
        plain = await self.listen(f"haproxy:tcp:0:interface={HOST}")
        place = f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}"
        encrypted = await self.listen(f"haproxy:{place}")
        context = ssl._create_unverified_context()

        def talk(port: int, header_at: int) -> list[str]:
            sock = self.connect(port)
            for layer in range(2):
                if layer == header_at:
                    sock.sendall(b"PROXY TCP4 203.0.113.5 192.0.2.1 40000 9000\r\n")
                if layer == 0 and port == encrypted:
                    sock = context.wrap_socket(sock)
            client = Client(sock)
            client.greet()
            client.say("말")
            self.addCleanup(client.close)
            return client.hear(1)

        for port, header_at in ((plain, 0), (encrypted, 1), (encrypted, 0)):
            self.assertEqual(await deferToThread(talk, port, header_at), ["말"])
        self.assertEqual({session.peer.address for session in self.registry}, {"203.0.113.5"})

    async def test_no_header(self) -> None:
        """Whatever comes instead of a header is cut off, and costs no traceback."""
        port = await self.listen(f"haproxy:tcp:0:interface={HOST}")

        def talk(data: bytes) -> None:
            sock = self.connect(port)
            sock.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(sock.recv(100), b"")
            sock.close()

        for data in (b"PROXY TCP4 a b c d\r\n", os.urandom(5000), b"PROXY UNKNOWN\r\n", b"\xff"):
            await deferToThread(talk, data)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.registry.connections, 0)

    async def test_encrypted(self) -> None:
        """
        Over TLS it is the same: much at once is answered, and when the phone says goodbye the
        connection is over at once.
        """
        directory = Path(self.mktemp())
        directory.mkdir()
        certificate, key = make_certificate(directory)
        port = await self.listen(f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificate)
        context.check_hostname = False
        texts = [f"{number} {'x' * 2000}" for number in range(300)]

        def talk() -> list[str]:
            client = Client(context.wrap_socket(self.connect(port)))
            client.greet()
            heard: list[str] = []
            for start in range(0, len(texts), 20):
                client.say(*texts[start : start + 20])
                heard += client.hear(20)
            plain = client.socket.unwrap()  # type: ignore[attr-defined]
            self.addCleanup(plain.close)
            return heard

        self.assertEqual(await deferToThread(talk), texts)
        await self.until(lambda: not self.registry.connections, patience=2.0)

    async def test_encrypted_end(self) -> None:
        """Over TLS, too, what is written arrives before the connection is closed."""
        directory = Path(self.mktemp())
        directory.mkdir()
        certificate, key = make_certificate(directory)
        port = await self.listen(f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificate)
        context.check_hostname = False

        def talk() -> list[bytes]:
            client = Client(context.wrap_socket(self.connect(port)))
            client.greet()
            client.socket.sendall(b'{"botName":""}\n')
            lines = client.lines.readlines()
            client.close()
            return lines

        lines = await deferToThread(talk)
        self.assertIn(b"BAD_HANDSHAKE", lines[-1])
        await self.until(lambda: not self.registry.connections, patience=2.0)
