"""Tests for L{domaeka.local_socket} and for who is shown the admin token."""

import json
import os
import socket
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import SkipTest
from urllib.parse import urlsplit

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.cli.places import NotProven, Place, Unreachable, http_exchange
from domaeka.errors import ConfigError
from domaeka.local_socket import (
    MAX_PATH_BYTES,
    SOCKET_NAME,
    connect_local,
    local_path,
    open_directory,
    remove_stale,
)
from domaeka.metrics import Metrics
from domaeka.secrets import proof_of
from domaeka.web.local_port import LocalPort
from domaeka.web.proof import ProofPage
from domaeka.web.server import Site
from tests.clocks import WallClock
from tests.test_server import Line

TOKEN = "a token of sixteen bytes or more"


class SocketCase(SynchronousTestCase):
    """A state directory."""

    def setUp(self) -> None:
        # A short path, wherever the tests run: that of a socket has a bound.
        short = TemporaryDirectory()
        self.addCleanup(short.cleanup)
        self.directory = Path(short.name)

    def listen(self, directory: Path) -> socket.socket:
        """Somebody listens there."""
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        with open_directory(directory) as number:
            listener.bind(local_path(directory, number))
        listener.listen()
        return listener


class ConnectTests(SocketCase):
    """Tests for L{connect_local}."""

    def test_long_path(self) -> None:
        """A directory may have a path longer than the kernel takes for a socket."""
        deep = self.directory / ("d" * 100) / ("e" * 100)
        deep.mkdir(parents=True, mode=0o700)
        self.assertGreater(len(str(deep)), MAX_PATH_BYTES)
        self.listen(deep)
        connect_local(deep, 1.0).close()
        self.assertTrue((deep / SOCKET_NAME).is_socket())

    def test_nobody_listens(self) -> None:
        """A socket that is left over, or is not there, is an error of the connection."""
        self.assertRaises(FileNotFoundError, connect_local, self.directory, 1.0)
        self.listen(self.directory).close()
        self.assertRaises(ConnectionRefusedError, connect_local, self.directory, 1.0)

    def test_directory_of_all(self) -> None:
        """Where others may write, anybody may listen: nobody is connected to."""
        self.listen(self.directory)
        for mode in (0o770, 0o707, 0o1777):
            self.directory.chmod(mode)
            error = self.assertRaises(ConfigError, connect_local, self.directory, 1.0)
            self.assertIn("chmod 700", str(error))

    def test_another_user_listens(self) -> None:
        """Who listens must be the directory's owner, or root."""
        if os.geteuid() != 0:
            raise SkipTest("needs root")
        os.chown(self.directory, 12345, 12345)
        self.listen(self.directory)
        connect_local(self.directory, 1.0).close()  # root
        (self.directory / SOCKET_NAME).unlink()
        self.addCleanup(os.seteuid, 0)
        os.chown(self.directory, 0, 0)
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        with open_directory(self.directory) as number:
            listener.bind(local_path(self.directory, number))
        os.seteuid(12345)
        listener.listen()  # the kernel remembers who did this
        os.seteuid(0)
        error = self.assertRaises(ConfigError, connect_local, self.directory, 1.0)
        self.assertIn("uid 12345 listens there", str(error))


class LocalPortTests(SocketCase):
    """Tests for L{LocalPort}."""

    def test_stale(self) -> None:
        """The socket of a server that was killed is replaced; what is none stays."""
        path = str(self.directory / SOCKET_NAME)
        remove_stale(path)
        self.listen(self.directory).close()
        remove_stale(path)
        self.assertFalse(os.path.lexists(path))
        Path(path).write_text("kept")
        reactor = MemoryReactorClock()
        self.assertIn("no socket", LocalPort(self.directory, reactor).listen(None) or "")
        self.assertEqual((Path(path).read_text(), reactor.unixServers), ("kept", []))

    def test_not_possible(self) -> None:
        """Where there can be no socket, the reason is said, and a stop has nothing to do."""
        port = LocalPort(self.directory / "nothing", MemoryReactorClock())
        self.assertEqual(port.listen(None), "No such file or directory")
        self.successResultOf(port.stop())

    def test_private(self) -> None:
        """Its file is for the server's user alone."""
        reactor = MemoryReactorClock()
        port = LocalPort(self.directory, reactor)
        self.assertIsNone(port.listen(None))
        ((path, _, _, mode, _),) = reactor.unixServers
        self.assertEqual((path, mode), (str(self.directory / SOCKET_NAME), 0o600))
        self.successResultOf(port.stop())
        self.successResultOf(port.stop())


class ProofTests(SynchronousTestCase):
    """Tests for L{ProofPage}."""

    def ask(self, nonce: str, host: str = "127.0.0.1") -> tuple[int, Any]:
        """Status and answer."""
        clock = Clock()
        site = Site(
            ProofPage(lambda: TOKEN).routes(),
            clock,
            Metrics(),
            lambda: TOKEN,
            wall=WallClock(clock, 1_790_000_000.0),
        )
        channel = site.buildProtocol(IPv4Address("TCP", host, 5))
        assert channel is not None
        line = Line(channel, host)
        line.transport.hostAddr = IPv4Address("TCP", "127.0.0.1", 8080)
        channel.dataReceived(f"GET /proof?nonce={nonce} HTTP/1.1\r\n\r\n".encode())
        clock.advance(0)
        status, _, body = line.answer()
        return status, json.loads(body)

    def test_proof(self) -> None:
        """The server shows that it has the token, for a nonce and for its own port."""
        nonce = "0123456789abcdef" * 4
        right = {"proof": proof_of(TOKEN, nonce, 8080), "port": 8080}
        self.assertEqual(self.ask(nonce), (200, right))
        self.assertNotIn(TOKEN, right["proof"])
        self.assertNotEqual(right["proof"], proof_of(TOKEN, nonce, 8081))
        self.assertNotEqual(right["proof"], proof_of(TOKEN, nonce[1:], 8080))

    def test_nonsense(self) -> None:
        """What is no nonce is not signed, and other machines are not answered."""
        for nonce in ("", "0" * 31, "0" * 129, "g" * 32, "0" * 32 + "|"):
            self.assertEqual(self.ask(nonce)[0], 400, nonce)
        self.assertEqual(self.ask("0" * 64, "192.0.2.1")[0], 401)


class Impostor:
    """Who listens on a port of this machine, and answers each request with the same bytes."""

    def __init__(self, case: SynchronousTestCase, answer: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        case.addCleanup(self._listener.close)
        self._answer = answer
        self.heard = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Its port."""
        return int(self._listener.getsockname()[1])

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(5)
            while data := connection.recv(65536):
                self.heard += data
                connection.sendall(self._answer)

    def ended(self) -> bytes:
        """All that it was told, once its client has gone."""
        self._thread.join(10)
        return self.heard


class ImpostorTests(SynchronousTestCase):
    """Another user of this machine listens on the server's port."""

    def answer(self, text: str, head: str = "Server: domaeka") -> bytes:
        """An answer of HTTP."""
        return f"HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()

    def test_not_shown(self) -> None:
        """Whatever it answers, it is not shown the token."""
        other = {"proof": proof_of("another token, as long", "0" * 64, 8080), "port": 8080}
        for answer, kind in (
            (self.answer("{}", "Server: BaseHTTP"), Unreachable),
            (self.answer("{}"), NotProven),
            (self.answer(json.dumps(other)), NotProven),
            (self.answer('{"proof": 5, "port": "x"}'), NotProven),
            (self.answer('{"proof": "가", "port": 1}'), NotProven),
            (self.answer("[" * 2000), NotProven),
            (b"SSH-2.0-x\r\n", Unreachable),
        ):
            for own in (True, False):
                impostor = Impostor(self, answer)
                url = urlsplit(f"http://127.0.0.1:{impostor.port}")
                send = http_exchange(Place(url, TOKEN, own=own))
                error = self.assertRaises(kind, send, "GET", "/api/v1/bans", None)
                self.assertTrue(error.message.isprintable())
                self.assertNotIn(TOKEN.encode(), impostor.ended())

    def test_what_needs_a_proof(self) -> None:
        """Plain HTTP on this machine does; TLS and the socket prove who answers."""
        for url, own, needed in (
            ("http://127.0.0.1:8080", False, True),
            ("http://localhost", False, True),
            ("http://[::1]:8080", True, True),
            ("http://10.0.0.1:8080", True, True),
            ("http://chat.example", False, False),
            ("https://127.0.0.1", True, False),
        ):
            self.assertEqual(Place(urlsplit(url), TOKEN, own=own).must_prove, needed, url)
        self.assertFalse(Place.socket(Path("/nowhere"), TOKEN).must_prove)
