"""
Tests for L{domaeka.twisted_internals}: whether the Twisted that is installed has what is borrowed,
and whether that does what is said of it there.

What C{set_seconds} does is tried in L{tests.test_clock}.
"""

import ast
import errno
import gc
import os
import socket
import weakref
from errno import EWOULDBLOCK
from pathlib import Path
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.abstract import FileDescriptor
from twisted.internet.base import DelayedCall
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http

import domaeka
from domaeka.twisted_internals import (
    REST_BYTES,
    HTTPChannel,
    TLSFactory,
    accept_at_most,
    immediate_writer,
    keep_file,
    peek,
    receive_rest,
    take_unsent,
    unsent_bytes,
)

#: What is borrowed of each class.  C{offset} of L{FileDescriptor} is a word of others, too.
BORROWED: tuple[tuple[type, str], ...] = (
    (tcp.Connection, "writeSomeData"),
    (FileDescriptor, "dataBuffer"),
    (FileDescriptor, "_tempDataLen"),
    (FileDescriptor, "_tempDataBuffer"),
    (tcp.Port, "numberAccepts"),
    (tcp.Port, "transport"),
    (tcp.Connection, "bufferSize"),
    (BufferingTLSTransport, "_tlsShutdownFinished"),
    (http.HTTPChannel, "_command"),
    (http.HTTPChannel, "_path"),
    (http.HTTPChannel, "_respondToBadRequestAndDisconnect"),
    (http.HTTPChannel, "_send100Continue"),
    (http.HTTPChannel, "_optimisticEagerReadSize"),
)
#: Those that others have for something of their own.
OURS_TOO = {"_command", "_path", "transport"}
MODULE = "twisted_internals.py"


class BorrowedTests(SynchronousTestCase):
    """Who borrows."""

    def test_there(self) -> None:
        """Twisted has each name: as an attribute, or as one that its methods set."""
        for owner, name in BORROWED:
            known = {
                word
                for each in owner.__mro__
                for method in vars(each).values()
                for word in getattr(getattr(method, "__code__", None), "co_names", ())
            }
            self.assertTrue(hasattr(owner, name) or name in known, f"{owner.__name__}.{name}")
        self.assertIn("seconds", vars(DelayedCall(0.0, print, (), {}, print, print)))

    def test_nobody_else(self) -> None:
        """No other module of ours uses any of them; the test network imitates a socket."""
        names = {name for _, name in BORROWED} - OURS_TOO
        for path in Path(domaeka.__file__).parent.rglob("*.py"):
            if path.name != MODULE and path.parent.name != "testing":
                words = {
                    word
                    for node in ast.walk(ast.parse(path.read_text("utf-8")))
                    for word in (getattr(node, "attr", ""), getattr(node, "name", ""))
                }
                self.assertEqual(words & names, set(), path)


class _Idle:
    """A reactor whose sockets are never ready."""

    def addReader(self, reader: object) -> None:
        """Nothing comes."""

    removeReader = addWriter = removeWriter = addReader


class _Socket:
    """A socket whose kernel takes four bytes at a time."""

    def __init__(self) -> None:
        self.sent = b""
        self.error: OSError | None = None

    def setblocking(self, blocking: bool) -> None:
        """It never blocks."""

    def fileno(self) -> int:
        """Nobody looks."""
        return -1

    def send(self, data: bytes) -> int:
        """Take some."""
        if self.error is not None:
            raise self.error
        self.sent += bytes(data[:4])
        return min(4, len(data))


class SocketTests(SynchronousTestCase):
    """What waits for a kernel."""

    def setUp(self) -> None:
        self.socket = _Socket()
        inside: tuple[Any, ...] = (self.socket, Protocol(), _Idle())
        self.line = tcp.Connection(*inside)
        self.line.connected = 1

    def test_unsent(self) -> None:
        """All that was written counts until the kernel has it."""
        self.assertEqual(unsent_bytes(self.line), 0)
        self.line.write(b"abcdefghij")
        self.assertEqual(unsent_bytes(self.line), 10)
        self.line.doWrite()
        self.line.writeSequence([b"kl", b"m"])
        self.assertEqual(unsent_bytes(self.line), 9)
        while unsent_bytes(self.line):
            self.line.doWrite()
        self.assertEqual(self.socket.sent, b"abcdefghijklm")

    def test_dropped(self) -> None:
        """What is dropped is gone, wherever it was."""
        self.line.write(b"abcdefghij")
        self.line.doWrite()
        self.line.write(b"klm")
        self.assertEqual(take_unsent(self.line), 9)
        self.assertEqual(unsent_bytes(self.line), 0)
        kept = [value for value in vars(self.line).values() if value in (b"klm", [b"klm"])]
        self.assertEqual((kept, self.line.dataBuffer), ([], b""))

    def test_written_now(self) -> None:
        """The kernel has at once what it takes; that it takes nothing, and errors, are told."""
        write = immediate_writer(self.line)
        assert write is not None
        self.assertEqual((write(b"abcdef"), self.socket.sent), (4, b"abcd"))
        self.socket.error = OSError(EWOULDBLOCK, "not now")
        self.assertEqual(write(b"ef"), 0)
        self.socket.error = OSError(5, "broken")
        self.assertIsInstance(write(b"ef"), Exception)

    def test_no_socket(self) -> None:
        """What is no socket has nothing of the kind."""
        transport = StringTransport()
        transport.write(b"abc")
        self.assertEqual((immediate_writer(transport), unsent_bytes(transport)), (None, 0))


class _Listener:
    """A listening socket at which there is always one more."""

    def __init__(self, number: int) -> None:
        """@param number: of a file."""
        self._number = number

    def accept(self) -> tuple[Any, tuple[str, int]]:
        """One more."""
        return self, ("192.0.2.1", 1)

    def fileno(self) -> int:
        """Each is the same file."""
        return self._number

    def close(self) -> None:
        """Nobody wanted it."""


class PortTests(SynchronousTestCase):
    """A port."""

    def accepted(self, most: int | None) -> list[int]:
        """How many connections are accepted in each of three turns."""
        came: list[object] = []
        factory: Any = Factory.forProtocol(Protocol)
        factory.buildProtocol = came.append
        port: Any = tcp.Port(0, factory, reactor=_Idle())
        file = socket.socket()
        self.addCleanup(file.close)
        port.socket, port._addressType = _Listener(file.fileno()), lambda *address: address
        port.numberAccepts = 100  # as where it begins to listen
        if most is not None:
            accept_at_most(port, most)
        counts = []
        for _turn in range(3):
            came.clear()
            port.doRead()
            counts.append(len(came))
        return counts

    def test_few_at_a_time(self) -> None:
        """However many come, it is so many in each turn."""
        self.assertEqual(self.accepted(7), [7, 7, 7])

    def test_looked_at(self) -> None:
        """What has arrived can be looked at, and is still received; what is no socket has none."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        ours.setblocking(False)
        transport: Any = StringTransport()
        self.assertEqual(peek(transport, 10), b"")
        transport.socket = ours
        self.assertEqual(peek(transport, 10), b"")
        theirs.send(b"a line")
        self.assertEqual([peek(transport, 4), peek(transport, 10)], [b"a li", b"a line"])
        transport.bufferSize, transport.protocol = 4, _Hearer()
        receive_rest(transport)
        self.assertEqual(transport.protocol.heard, [b"a li", b"ne"])

    def test_needed(self) -> None:
        """Twisted by itself accepts more each time."""
        first, _, third = self.accepted(None)
        self.assertGreater(third, first)


class UnixPortTests(SynchronousTestCase):
    """Tests for L{keep_file}."""

    def listen(self) -> tuple[Any, Path]:
        """A port, and its file, which is gone."""
        path = Path(self.mktemp())
        reactor: Any = MemoryReactorClock()
        factory: Any = Factory()
        port: Any = unix.Port(os.fsencode(path), factory, reactor=reactor)
        port.startListening()
        self.addCleanup(port.socket.close)
        path.unlink()
        return port, path

    def test_ends_without_it(self) -> None:
        """A port whose file is gone ends."""
        port, path = self.listen()
        keep_file(port)
        path.touch()
        port.connectionLost(Failure(ConnectionDone()))
        self.assertFalse(port.connected)
        self.assertTrue(path.exists())

    def test_needed(self) -> None:
        """By itself it does not."""
        port, _ = self.listen()
        self.assertRaises(FileNotFoundError, port.connectionLost, Failure(ConnectionDone()))


class _PeerSocket:
    """A socket of a peer that has sent all it had, and is gone."""

    def __init__(self, came: list[bytes]) -> None:
        self.came = came

    def setblocking(self, blocking: bool) -> None:
        """As wanted."""

    def fileno(self) -> int:
        return 7

    def recv(self, most: int) -> bytes:
        if not self.came:
            raise OSError(errno.ECONNRESET, "Connection reset by peer")
        return self.came.pop(0)

    def setsockopt(self, *option: object) -> None:
        """As wanted."""

    def shutdown(self, how: int) -> None:
        """Nothing more is sent."""

    def close(self) -> None:
        """The end."""


class _Hearer(Protocol):
    """Remembers what came, and how it ended."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.aborts = False

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)
        if self.aborts:
            transport: Any = self.transport
            transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.heard.append(reason.type)


class LostConnectionTests(SynchronousTestCase):
    """A connection that is lost while something waits in the kernel."""

    def heard(self, came: list[bytes], reason: Exception, aborts: bool = False) -> list[object]:
        """What a protocol hears of it."""
        factory: Any = Factory()
        port: Any = tcp.Port(0, factory, reactor=_Idle())
        accept_at_most(port, 1)
        hearer = _Hearer()
        hearer.aborts = aborts
        connection = self.connection(port.transport, came, hearer)
        connection.connectionLost(Failure(reason))
        self.clock.advance(0.0)
        return hearer.heard

    def connection(self, kind: Any, came: list[bytes], hearer: _Hearer) -> Any:
        """A connection at which C{came} waits."""
        self.clock = Clock()
        idle: Any = _Idle()
        idle.callLater = self.clock.callLater
        factory: Any = Factory()
        port = tcp.Port(0, factory, reactor=idle)
        hearer.transport = kind(_PeerSocket(came), hearer, ("192.0.2.1", 1), port, 1, idle)
        return hearer.transport

    def test_received_first(self) -> None:
        """What has arrived is received, then the loss is told."""
        self.assertEqual(self.heard([b"a", b"b"], ConnectionLost()), [b"a", b"b", ConnectionLost])

    def test_bounded(self) -> None:
        """Of one that has sent a lot, so much and no more."""
        piece = bytes(65_536)
        heard = self.heard([piece] * 100, ConnectionLost())
        self.assertEqual(heard, [*[piece] * (REST_BYTES // len(piece)), ConnectionLost])

    def test_ended_in_order(self) -> None:
        """Of one that we have ended, or the peer in order, nothing is received any more."""
        for reason in (ConnectionDone, ConnectionAborted):
            self.assertEqual(self.heard([b"a"], reason()), [reason])

    def test_cut_off_meanwhile(self) -> None:
        """A protocol that cuts it off hears of its end once."""
        heard = self.heard([b"a", b"b"], ConnectionLost(), aborts=True)
        self.assertEqual(heard, [b"a", b"b", ConnectionLost])

    def test_needed(self) -> None:
        """Twisted by itself drops what has arrived."""
        hearer = _Hearer()
        self.connection(tcp.Server, [b"a"], hearer).connectionLost(Failure(ConnectionLost()))
        self.assertEqual(hearer.heard, [ConnectionLost])


class _Channel(HTTPChannel):
    def __init__(self) -> None:
        super().__init__(read_ahead_bytes=50)
        self.requestFactory = _Request
        self.continues = True
        self.wrong = 0
        self.lines: list[tuple[str, bytes]] = []

    def malformed(self) -> None:
        self.wrong += 1
        self.loseConnection()

    def may_continue(self) -> bool:
        return self.continues


class _Request(http.Request):
    channel: Any

    def gotLength(self, length: int | None) -> None:
        super().gotLength(length)
        self.channel.lines.append(self.channel.request_line)

    def process(self) -> None:
        """The answer takes long."""


class HTTPTests(SynchronousTestCase):
    """HTTP."""

    def setUp(self) -> None:
        self.channel = _Channel()
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)
        self.channel.setTimeout(None)

    def test_request_line(self) -> None:
        """Method and target are known before a byte of the body is there."""
        self.channel.dataReceived(b"POST /a%20b?c HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        self.assertEqual(self.channel.lines, [("POST", b"/a%20b?c")])

    def test_malformed(self) -> None:
        """Nothing is written of Twisted's own to one who speaks something else."""
        for data in (b"\r\nnonsense\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"):
            self.setUp()
            self.channel.dataReceived(data)
            self.assertEqual((self.channel.wrong, self.transport.value()), (1, b""))

    def test_continue(self) -> None:
        """A client that asks whether it may go on is told so, or nothing."""
        for may, told in ((True, b"HTTP/1.1 100 Continue\r\n\r\n"), (False, b"")):
            self.setUp()
            self.channel.continues = may
            head = b"POST / HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            self.channel.dataReceived(head)
            self.assertEqual(self.transport.value(), told)

    def test_reads_ahead(self) -> None:
        """While a request is answered, reading stops behind so many bytes of those after it."""
        request = b"GET / HTTP/1.1\r\n\r\n"
        self.channel.dataReceived(request)
        self.channel.dataReceived(b"G" * 50)
        self.assertEqual(self.transport.producerState, "producing")
        self.channel.dataReceived(b"G")
        self.assertEqual(self.transport.producerState, "paused")


class TLSTests(SynchronousTestCase):
    """TLS whose peer is gone without a goodbye."""

    def left(self, kind: type[TLSMemoryBIOFactory]) -> object:
        """What is left of a connection that was lost, before a collection."""
        options: Any = CertificateOptions()
        inner: Any = Factory.forProtocol(Protocol)
        clock: Any = Clock()
        factory: Any = kind(options, False, inner, clock)
        line = factory.buildProtocol(None)
        line.makeConnection(StringTransport())
        line.connectionLost(Failure(ConnectionLost()))
        transport = weakref.ref(line)
        del line
        return transport()

    def test_freed_at_once(self) -> None:
        """Nothing of it waits for a collection, as it would in Twisted's own hands."""
        gc.disable()
        self.addCleanup(gc.enable)
        self.assertIsNone(self.left(TLSFactory))
        self.assertIsNotNone(self.left(TLSMemoryBIOFactory))
