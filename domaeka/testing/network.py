"""
TCP without sockets: connections between protocols in one process, in virtual time.

Unlike C{twisted.test.iosim} it has back-pressure and half-closes, and needs no pumping: everything
moves by C{callLater(0)} on the given clock.
"""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
)
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from domaeka.errors import DomaekaError

#: Bytes that a kernel holds for a reader that does not read; as C{socket.buffer_bytes}.
KERNEL_BYTES: Final = 65_536
#: Where C{struct tcp_info} has segments in flight, and bytes acknowledged.  Source: linux/tcp.h.
_TCP_INFO: Final = struct.Struct("=24xI92xQ104x")
#: Bytes that a transport holds before it pauses its producer; as Twisted's transports.
PRODUCER_BYTES: Final = 65_536


class Scheduler(Protocol):
    """The part of a reactor that schedules calls."""

    def seconds(self) -> float:
        """The time now."""

    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any) -> Any:
        """Call C{callable} in C{delay} seconds."""


def run_clock(clock: Clock, seconds: float) -> None:
    """Advance C{clock} from call to call, so that each sees its own time, unlike C{advance}."""
    end = clock.seconds() + seconds
    while True:
        calls: list[Any] = list(clock.getDelayedCalls())
        times = [call.getTime() for call in calls]
        if not times or min(times) > end:
            break
        clock.advance(max(0.0, min(times) - clock.seconds()))
    clock.advance(max(0.0, end - clock.seconds()))


class _Cable:
    """
    Medium between the ends of a connection, which may be cut.

    @ivar unaware: the end that does not notice it.
    @ivar silent: true while nothing gets through either way, which neither end notices.
    """

    def __init__(self, length: int | None, unaware: "VirtualTransport | None" = None) -> None:
        self.left = length
        self.unaware = unaware
        self.silent = False

    def transmit(self, length: int) -> int:
        """@return: the number of bytes, of C{length}, that get through."""
        if self.left is None:
            return length
        length = min(length, self.left)
        self.left -= length
        return length

    @property
    def is_cut(self) -> bool:
        return self.left == 0


class VirtualSocket:
    """
    The socket of an end.

    @ivar options: the options that were set, by level and number.
    @ivar refuses: options that this kernel does not have.
    """

    def __init__(self, end: "VirtualTransport") -> None:
        self._end = end
        self.options: dict[tuple[int, int], int] = {}
        self.refuses: set[int] = set()

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        """Only C{TCP_INFO} is there, and of it only what is acknowledged."""
        if (level, option) != (socket.IPPROTO_TCP, socket.TCP_INFO):
            raise OSError("no such option")
        end = self._end
        return _TCP_INFO.pack(bool(end.in_flight), end.acknowledged_bytes)[:length]

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Keep an option."""
        if option in self.refuses:
            raise OSError("no such option")
        self.options[level, option] = value


@implementer(ITransport, IConsumer, IPushProducer)
class VirtualTransport:
    """
    An end of a virtual connection.

    @ivar acknowledged_bytes: bytes that the peer's kernel has.
    @ivar in_flight: bytes that the kernel has sent, and the peer's has not acknowledged.
    """

    def __init__(
        self, reactor: Scheduler, protocol: Any, host: IPv4Address, peer: IPv4Address
    ) -> None:
        self.bytes_written = 0  # by its protocol
        self.acknowledged_bytes = 0
        self.in_flight = bytearray()
        self._socket = VirtualSocket(self)
        self._reactor = reactor
        self._protocol = protocol
        self._host = host
        self._peer_address = peer
        self._peer: VirtualTransport = self  # until L{join}
        self._cable = _Cable(None)
        self._out = bytearray()  # written, not yet in the peer's kernel
        self._kernel = bytearray()  # arrived, not yet read
        self._paused = False
        self._closing = False  # lost once everything is sent
        self._closing_write = False
        self._write_closed = False  # our FIN is sent
        self._peer_ended = False  # a FIN follows what has arrived
        self._end_read = False
        self._reset: Exception | None = None
        self._lost = False
        self._scheduled = False
        self._producer: Any = None
        self._streaming = False
        self._producer_paused = False

    def join(
        self, peer: "VirtualTransport", length: int | None = None, unaware: bool = False
    ) -> None:
        """
        Connect to the other end.

        @param length: number of bytes, both directions together, after which the connection is
            cut; L{None}: it is not.
        @param unaware: True if this end does not notice the cut.
        """
        self._peer = peer
        peer._peer = self
        self._cable = peer._cable = _Cable(length, self if unaware else None)

    def silence(self, silent: bool = True) -> None:
        """Let nothing through either way, unnoticed; or again, with the bytes sent meanwhile."""
        self._cable.silent = silent
        for end in (self, self._peer):
            if not silent:  # each kernel retransmits, whatever its process does
                end._peer._kernel += end.in_flight
                end.acknowledged_bytes += len(end.in_flight)
                end.in_flight.clear()
                end._peer._peer_ended |= end._write_closed
            end._schedule()

    def getHandle(self) -> VirtualSocket:
        """The socket."""
        return self._socket

    @property
    def dataBuffer(self) -> bytes:
        """Bytes that the kernel has not taken; named as in Twisted's transports."""
        return bytes(self._out)

    @dataBuffer.setter
    def dataBuffer(self, data: bytes) -> None:
        self._out[:] = data

    # ITransport

    def write(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise TypeError(f"bytes are needed, not {type(data).__name__}")
        if self._closing or self._closing_write or self._lost:
            return
        self.bytes_written += len(data)
        self._out += data
        if self._streaming and not self._producer_paused and len(self._out) > PRODUCER_BYTES:
            self._producer_paused = True
            self._producer.pauseProducing()
        self._schedule()

    @property
    def disconnecting(self) -> bool:
        """True if it closes once everything is sent; named as in Twisted's transports."""
        return self._closing

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self._closing = True
        self._schedule()

    def loseWriteConnection(self) -> None:
        self._closing_write = True
        self._schedule()

    def abortConnection(self) -> None:
        if not self._lost:
            self._reset = ConnectionAborted()
            self._schedule()

    def getPeer(self) -> IPv4Address:
        return self._peer_address

    def getHost(self) -> IPv4Address:
        return self._host

    # IConsumer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        if self._lost:
            producer.stopProducing()
            return
        self._producer = producer
        self._streaming = streaming
        self._producer_paused = False
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self._producer = None
        self._streaming = False
        self._schedule()

    # IPushProducer

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._schedule()
        self._peer._schedule()

    def stopProducing(self) -> None:
        self.loseConnection()

    # Movement of bytes

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._move)

    def _move(self) -> None:
        self._scheduled = False
        aborted = isinstance(self._reset, ConnectionAborted)
        if self._reset is not None and (aborted or self._closing) and not self._lost:
            self._lose(self._reset)
        if not self._lost:
            self._read()
        if not self._lost:
            self._write_out()

    def _read(self) -> None:
        if self._paused or self._closing:
            return  # as in Twisted, a transport that closes does not read
        if self._kernel:
            data = bytes(self._kernel)
            self._kernel.clear()
            self._peer._schedule()
            self._protocol.dataReceived(data)
        if self._kernel or self._paused or self._lost:
            return
        if self._reset is not None:
            self._lose(self._reset)
        elif self._peer_ended and not self._end_read:
            self._end_read = True
            if IHalfCloseableProtocol.providedBy(self._protocol):
                self._protocol.readConnectionLost()
            else:
                self._lose(ConnectionDone())

    def _write_out(self) -> None:
        peer = self._peer
        cable = self._cable
        if cable.is_cut and cable.unaware is self:
            return
        if peer._lost and not cable.silent:
            if self._out:  # the other kernel responds with a reset
                self._lose(ConnectionLost())
            elif self._closing:
                self._lose(ConnectionDone())
            return
        room = KERNEL_BYTES - len(self.in_flight if cable.silent else peer._kernel)
        if self._out and room > 0:
            count = cable.transmit(min(room, len(self._out)))
            if cable.silent:
                self.in_flight += self._out[:count]
            else:
                peer._kernel += self._out[:count]
                self.acknowledged_bytes += count
            del self._out[:count]
            peer._schedule()
            if cable.is_cut:  # bytes that have arrived can still be read
                for end in (self, peer):
                    if end is not cable.unaware:
                        end._reset = ConnectionLost()
                self._schedule()
                return
            if not self._out and self._producer is not None:
                self._ask_producer()
        if self._out or (self._producer is not None and not self._streaming):
            return
        if (self._closing or self._closing_write) and not self._write_closed:
            self._write_closed = True
            if not cable.silent:
                peer._peer_ended = True
            peer._schedule()
            if not self._closing and IHalfCloseableProtocol.providedBy(self._protocol):
                self._protocol.writeConnectionLost()
        if self._closing:
            self._lose(ConnectionDone())

    def _ask_producer(self) -> None:
        if not self._streaming:
            self._producer.resumeProducing()
        elif self._producer_paused:
            self._producer_paused = False
            self._producer.resumeProducing()

    def _lose(self, reason: Exception) -> None:
        self._lost = True
        peer = self._peer
        if self._producer is not None:
            self._producer.stopProducing()
            self._producer = None
        if not (self._cable.is_cut and self._cable.unaware is peer) and not self._cable.silent:
            if isinstance(reason, ConnectionAborted) or self._kernel:  # unread bytes: a reset
                peer._reset = ConnectionLost()
            peer._peer_ended = True
            peer._schedule()
        # The protocol can still see the unsent bytes, as in Twisted.
        self._protocol.connectionLost(Failure(reason))  # type: ignore[no-untyped-call]
        self._out.clear()


@implementer(IStreamClientEndpoint)
class VirtualServer:
    """
    A listening port without a socket; it is also the endpoint to which clients connect.

    @ivar open: True if connections are accepted.
    @ivar accepted: the server's transport of each connection, oldest first.
    @ivar cuts: for each new connection, the number of bytes, both directions together, after which
        it is cut; once exhausted, connections are not cut.
    @ivar unaware: True if the server does not notice cuts, as when a phone loses its network.
    """

    def __init__(self, reactor: Scheduler, factory: Any, client_host: str = "192.0.2.1") -> None:
        """@param client_host: the address of clients."""
        self.open = True
        self.accepted: list[VirtualTransport] = []
        self.cuts: Iterator[int] = iter(())
        self.unaware = False
        self.client_host = client_host
        self._reactor = reactor
        self._factory = factory
        self._next_port = 40_000

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":
        """Connect at once, or fail with C{ConnectionRefusedError}."""
        if not self.open:
            return fail(ConnectionRefusedError())  # type: ignore[no-untyped-call]
        host = IPv4Address("TCP", "192.0.2.254", 9000)
        peer = IPv4Address("TCP", self.client_host, self._next_port)
        self._next_port += 1
        server = self._factory.buildProtocol(peer)
        if server is None:
            return fail(ConnectionRefusedError())  # type: ignore[no-untyped-call]
        client = protocolFactory.buildProtocol(host)
        if client is None:
            raise DomaekaError("the client's factory made no protocol")
        server_end = VirtualTransport(self._reactor, server, host, peer)
        client_end = VirtualTransport(self._reactor, client, peer, host)
        server_end.join(client_end, next(self.cuts, None), self.unaware)
        self.accepted.append(server_end)
        server.makeConnection(server_end)
        client.makeConnection(client_end)
        return succeed(client)
