"""
Names from inside Twisted, which does not promise to keep them.

No other module uses any of them.  tests/test_twisted_internals.py tests each with the installed
Twisted: that it exists, and that it does what this module says.
"""

import socket
from collections.abc import Callable
from typing import Any, Final, cast

from twisted.internet import tcp, unix
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web import http

#: Most that is still received of a connection that is lost, in bytes.  Source: twice what the
#: kernel makes of C{socket.buffer_bytes} (it doubles that; socket(7)).
REST_BYTES: Final = 262_144

# The reactor


def set_seconds(reactor: Any, seconds: Callable[[], float]) -> None:
    """
    Make C{seconds} the clock of C{reactor}, for calls that are scheduled already, too.

    Borrowed: a reactor's C{callLater}, C{timeout} and C{runUntilCurrent}, and a C{LoopingCall},
    read the attribute C{reactor.seconds} each time; a C{DelayedCall} reads its own, for C{reset}
    and C{delay}.  Waiting for files and sockets takes a duration, which no clock changes.
    """
    reactor.seconds = seconds
    for call in reactor.getDelayedCalls():
        call.seconds = seconds


def seconds_are_set(reactor: Any) -> bool:
    """True if L{set_seconds} was called."""
    return "seconds" in vars(reactor)


# A connection's socket.  Borrowed from abstract.FileDescriptor: no public name tells how many
# bytes the kernel has not taken, or writes to it at once.


def immediate_writer(transport: Any) -> Callable[[bytes], object] | None:
    """
    The function that writes bytes to the kernel at once, where C{transport} is a socket; only to
    be called while no bytes written before wait.

    @return: gives the number of bytes taken, or an error; L{None}: there is no such function.
    """
    write: Callable[[bytes], object] | None = getattr(transport, "writeSomeData", None)
    return write


def unsent_bytes(transport: Any) -> int:
    """Bytes written to a socket that the kernel has not taken."""
    return (
        len(getattr(transport, "dataBuffer", b""))
        - getattr(transport, "offset", 0)
        + int(getattr(transport, "_tempDataLen", 0))
    )


def take_unsent(transport: Any) -> int:
    """
    Free the bytes that were written to a socket and our kernel has not taken; Twisted keeps those
    of a closed one.

    @return: the number of them.
    """
    count = unsent_bytes(transport)
    transport.dataBuffer = b""
    transport.offset = transport._tempDataLen = 0
    transport._tempDataBuffer = []
    return count


# TLS


def _nothing(data: bytes) -> None:
    """Write nothing: the connection is lost."""


class _TLSTransport(BufferingTLSTransport):
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        aggregator: Any = self._aggregator
        aggregator._write = _nothing

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]
        if reason is not None:
            reason.cleanFailure()  # type: ignore[no-untyped-call]


class TLSFactory(TLSMemoryBIOFactory):
    """
    Make TLS connections that are freed as soon as they are lost.

    Borrowed: C{_tlsShutdownFinished}.  Where a peer sends no close_notify, Twisted's frames and the
    failure in them form a cycle, which holds OpenSSL's 300 KB until a full garbage collection; so
    does, before Twisted 26.10, the C{_write} of C{_aggregator}.
    """

    protocol = _TLSTransport


# A port


def accept_at_most(port: Any, connections: int) -> None:
    """
    Bound the connections that a TCP port accepts in one turn of the reactor, so that the
    others are served in between.  Twisted accepts more each time, while more come.

    All that has arrived over one of its connections is received even if that is lost.

    Borrowed: C{numberAccepts}, which C{tcp.Port} adapts in each turn; C{transport}, the class of
    its connections.  There is no public way to make a port of another class from a bound socket.
    """
    if isinstance(port, tcp.Port):
        port.__class__ = _BoundedPort
        port.most = connections  # type: ignore[attr-defined]


def receive_rest(transport: Any) -> None:
    """
    Give a connection's protocol all that has arrived in the kernel, L{REST_BYTES} at most; nothing
    where C{transport} is no socket.

    Borrowed: C{socket} and C{bufferSize} of C{tcp.Connection}.
    """
    sock = getattr(transport, "socket", None)
    if sock is None:
        return
    left = REST_BYTES
    while left > 0:
        try:
            data = sock.recv(transport.bufferSize)
        except OSError:
            return
        if not data:
            return
        left -= len(data)
        transport.protocol.dataReceived(data)


def peek(transport: Any, most: int) -> bytes:
    """
    A copy of what has arrived in the kernel and is not received yet, C{most} bytes of it; empty
    where C{transport} is no socket.

    Borrowed: C{socket} of C{tcp.Connection}.
    """
    sock = getattr(transport, "socket", None)
    if sock is None:
        return b""
    try:
        return bytes(sock.recv(most, socket.MSG_PEEK))
    except OSError:
        return b""


class _Connection(tcp.Server):
    """
    A connection that receives all that has arrived before it is lost.  After a reset, or a failed
    write, bytes are left in the kernel, which the peer takes for delivered.

    Borrowed: C{connectionLost} of C{tcp.Connection}, which closes its socket before it tells the
    protocol.
    """

    def connectionLost(self, reason: Failure) -> None:
        if reason.type is ConnectionLost:  # else we cut it off
            receive_rest(self)
        super().connectionLost(reason)


class _BoundedPort(tcp.Port):
    most: int
    numberAccepts = property(lambda self: self.most, lambda self, adapted: None)
    transport = _Connection


def keep_file(port: Any) -> None:
    """
    Leave the file of a Unix port alone when it ends: who made it removes it.  Twisted's port
    removes it, and never ends if it is not there any more.

    Borrowed: C{_bindPath} of C{unix.Port}, which at the end is asked for nothing else; before
    Twisted 26.10 its public C{port}.
    """
    if isinstance(port, unix.Port):
        path = "_bindPath" if hasattr(port, "_bindPath") else "port"
        setattr(port, path, b"\0")  # as that of a socket without a file


# HTTP


class HTTPChannel(http.HTTPChannel):
    """
    Twisted's HTTP parser, with access to its private parts.

    Borrowed: C{_command} and C{_path}, since a public request exists only once its body is
    complete, too late to bound it; C{_respondToBadRequestAndDisconnect} and C{_send100Continue},
    since their responses lack our headers; C{_optimisticEagerReadSize}, since it is 16 KiB.
    """

    def __init__(self, read_ahead_bytes: int) -> None:
        """@param read_ahead_bytes: pipelined requests that are held before reading stops."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._optimisticEagerReadSize = read_ahead_bytes

    @property
    def request_line(self) -> tuple[str, bytes]:
        """Method and target of the request that is received, once its headers are complete."""
        method, target = cast(tuple[bytes, bytes], (self._command, self._path))
        return method.decode("ascii"), target

    def malformed(self) -> None:
        """Respond to bytes that are not HTTP/1.1, or have too many headers, and close."""
        raise NotImplementedError

    def may_continue(self) -> bool:
        """True if a client with C{Expect: 100-continue} may send the body of its request."""
        raise NotImplementedError

    # http.HTTPChannel

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.malformed()

    def _send100Continue(self) -> None:
        if self.may_continue():
            super()._send100Continue()  # type: ignore[no-untyped-call]
