"""
Twisted's side of a phone's connection: bytes in, bytes out, nothing decided.
"""

import fcntl
import socket
import struct
import sys
import termios
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from domaeka.errors import CloseReason, WireError
from domaeka.gateway.registry import Registry
from domaeka.gateway.sender import KernelFigures
from domaeka.gateway.session import Session
from domaeka.policies.compression import Inflater
from domaeka.wire import LineDecoder

#: What one connection may inflate in one turn of the reactor, in bytes.
INFLATED_A_TURN = 1_048_576
#: Lines of one connection that are read in one turn of the reactor, 2 ms of work; where others
#: wait; and of one that has not authenticated, so that each of these comes soon.
LINES_A_TURN = 32
CROWDED_LINES_A_TURN = 8
STRANGERS_LINES_A_TURN = 4
#: What a peer whose connection is closing may still send before it is cut off, in bytes.  It is
#: read, for what is left unread would break the connection before our last words have arrived.
MAX_DISCARDED_BYTES = 2_097_152
#: Where C{struct tcp_info} has what we want of it.  Source: linux/tcp.h: microseconds.
_TCP_INFO_BYTES = 104
_TCP_INFO_RTT = struct.Struct("=II")
_TCP_INFO_RTT_AT = 68
_TCP_INFO_COUNT = struct.Struct("=I")
_TCP_INFO_RETRANSMITS_AT = 100


@implementer(IHalfCloseableProtocol, IPullProducer)
class GatewayProtocol(Protocol):
    """
    Carry one phone's connection.

    It is registered with its transport as a pull producer, for only that says when the kernel
    has taken all that was written.
    """

    log = Logger()

    def __init__(self, registry: Registry) -> None:
        """@param registry: what all connections share."""
        self._registry = registry
        self._decoder = LineDecoder(registry.parts.settings.server.max_frame_bytes)
        self._reading = True
        self._goes_on = False  # lines that are here wait for their turn
        self._ends = False
        self._discarded_bytes = 0
        self._inflater: Inflater | None = None
        self._session: Session

    # IProtocol

    transport: Any  # ITransport and more: typed in part only

    def connectionMade(self) -> None:
        transport = self.transport
        while isinstance(transport, ProtocolWrapper):
            transport = transport.transport
        self._lowest = transport
        # Only where nothing stands between us and the socket.
        self._direct = transport is self.transport and hasattr(transport, "writeSomeData")
        self._session = Session(self._registry, self, peer_address(self.transport.getPeer()))
        transport.registerProducer(self, False)
        self._session.connection_made()

    def dataReceived(self, data: bytes) -> None:
        session = self._session
        session.bytes_arrived(len(data))
        if not session.hears:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.abort()
            return
        if self._inflater is not None:
            self._inflater.feed(data)
            self._registry.parts.metrics.compression_bytes.labels("wire").value += len(data)
        else:
            self._decoder.feed(data)
        self._read(session)

    def _read(self, session: Session) -> None:
        """Read what may be read in this turn."""
        if session.device is not None:
            crowded = self._registry.turns.crowded
            self._read_lines(session, CROWDED_LINES_A_TURN if crowded else LINES_A_TURN)
            return
        turns = self._registry.strangers_turns
        if turns.used_up:
            self._go_on_later()
            return
        held_bytes = self._decoder.held_bytes
        lines = self._read_lines(session, STRANGERS_LINES_A_TURN)
        turns.use(lines, held_bytes - self._decoder.held_bytes)

    def _read_lines(self, session: Session, most: int) -> int:
        """@return: how many lines there were, C{most} at most."""
        next_line = self._decoder.next_line
        line_received = session.line_received
        session.corked = True
        inflated = 0
        lines_left = most
        # One line may end the session, or stop its reading: what follows it waits.
        while self._reading and session.hears:
            if not lines_left:
                self._go_on_later()
                break
            try:
                line = next_line()
                if line is not None:
                    lines_left -= 1
                    line_received(line)
                    continue
                if self._inflater is None:
                    break
                piece = self._inflater.next_piece()
                if not piece:
                    break
                self._decoder.feed(piece)
                inflated += len(piece)
                stages = self._registry.parts.metrics.compression_bytes
                stages.labels("plain").value += len(piece)
                if inflated >= INFLATED_A_TURN and self._inflater.held_bytes:
                    self._go_on_later()
                    break
            except WireError as error:
                session.refuse(error)
            except Exception:
                self.log.failure("{session}: our own mistake", session=session)
                session.fail()
        session.uncork()
        return most - lines_left

    def _go_on_later(self) -> None:
        """Much came, or a little that inflates to much: others have their turn first."""
        self.transport.pauseProducing()
        if not self._goes_on:
            self._goes_on = True
            registry = self._registry
            stranger = self._session.device is None
            (registry.strangers_turns if stranger else registry.turns).wait(self._go_on)

    def _go_on(self) -> None:
        self._goes_on = False
        if self._reading:
            self.transport.resumeProducing()
            if self._session.hears:
                self._read(self._session)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # All this is garbage in cycles, which may wait long for its collection: not with a frame.
        self._decoder.take_rest()
        self._inflater = None
        clean = reason.type is ConnectionDone
        self._session.connection_lost(
            CloseReason.PEER_CLOSED if clean else CloseReason.CONNECTION_LOST, self.unsent_bytes
        )
        lowest = self._lowest  # what it could not send is in one of the cycles, too
        lowest.dataBuffer = b""
        lowest.offset = lowest._tempDataLen = 0
        lowest._tempDataBuffer = []

    # IHalfCloseableProtocol

    def readConnectionLost(self) -> None:
        self._session.peer_finished()

    def writeConnectionLost(self) -> None:
        """Our FIN has left; the peer's is still to come."""

    # IPullProducer

    def resumeProducing(self) -> None:
        if getattr(self._lowest, "disconnecting", False):
            # TLS closes by itself once the peer has said goodbye.
            self._unregister()
        else:
            self._session.drained()

    def stopProducing(self) -> None:
        """The connection is lost: L{connectionLost} says so, too."""

    # What the session asks for

    def write(self, data: bytes) -> bool:
        """
        Send, in order.  Only to be called once all before has been taken.

        What the kernel takes at once needs no turn of the reactor, and no two changes of what it
        watches: a third of what an answer costs.

        @return: whether the kernel has it all; if not, L{Session.drained} follows.
        """
        if self._direct:
            taken = self.transport.writeSomeData(data)
            if taken == len(data):
                return True
            # An error shows again where the rest is written.
            if isinstance(taken, int) and taken > 0:
                data = data[taken:]
        self.transport.write(data)
        return False

    def write_more(self, data: bytes) -> None:
        """Send behind what has not been taken yet."""
        self.transport.write(data)

    @property
    def unsent_bytes(self) -> int:
        """How much of what was written the kernel has not taken, in bytes."""
        lowest = self._lowest
        return (
            len(getattr(lowest, "dataBuffer", b""))
            - getattr(lowest, "offset", 0)
            + int(getattr(lowest, "_tempDataLen", 0))
        )

    @property
    def backlog_bytes(self) -> int:
        """How much of what was written the peer's kernel has not taken, in bytes."""
        try:
            queued = fcntl.ioctl(self._lowest.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            in_kernel = int.from_bytes(queued, sys.byteorder)
        except (OSError, AttributeError, ValueError):
            in_kernel = 0  # not a socket, or gone already
        return self.unsent_bytes + in_kernel

    def kernel_figures(self) -> KernelFigures | None:
        """What the kernel knows of the line; L{None} where it does not say."""
        try:
            info = self._lowest.getHandle().getsockopt(
                socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES
            )
            rtt, variation = _TCP_INFO_RTT.unpack_from(info, _TCP_INFO_RTT_AT)
            (retransmits,) = _TCP_INFO_COUNT.unpack_from(info, _TCP_INFO_RETRANSMITS_AT)
        except (OSError, AttributeError, struct.error):
            return None
        return KernelFigures(rtt / 1e6, variation / 1e6, retransmits)

    def pause_reading(self) -> None:
        """Take no more lines, and no more bytes from the kernel, until L{resume_reading}."""
        self._reading = False
        self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """Take lines again: those that wait first, perhaps before this returns."""
        self._reading = True
        self.transport.resumeProducing()
        session = self._session
        if not session.corked and session.hears and (self._decoder.held_bytes or self._inflater):
            self._go_on_later()  # many may be read again at the same time

    def limit_lines(self, max_bytes: int) -> None:
        """Take no longer lines from now on."""
        self._decoder.max_bytes = max_bytes

    def start_inflating(self) -> None:
        """What comes behind the line that was read last is a deflate stream."""
        self._inflater = Inflater()
        rest = self._decoder.take_rest()
        self._inflater.feed(rest)
        self._registry.parts.metrics.compression_bytes.labels("wire").value += len(rest)

    def finish(self) -> None:
        """
        Close in order: send what is written, then a FIN, and read on until the peer's.

        Whoever asks for it sees to a deadline, for a peer that reads nothing never ends.
        """
        self._unregister()
        if not self._reading:
            self._reading = True
            self.transport.resumeProducing()
        if self.transport is self._lowest and hasattr(self.transport, "loseWriteConnection"):
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def disconnect(self) -> None:
        """Both sides have said all: close once what is written has left."""
        self._unregister()
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once, whatever is lost."""
        self._unregister()
        self.transport.abortConnection()

    def _unregister(self) -> None:
        # A transport with a pull producer never comes to its own end.
        if not self._ends:
            self._ends = True
            self._lowest.unregisterProducer()


def peer_address(peer: Any) -> str:
    """The peer's address in text; one of IPv4 that came over IPv6 as IPv4."""
    host = getattr(peer, "host", None)
    if host is None:
        return "local"
    return str(host).removeprefix("::ffff:") if "." in str(host) else str(host)


class _NotLetIn(Protocol):
    """A connection that is closed at once, where there must be one."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


class GatewayFactory(Factory):
    """Make a L{GatewayProtocol} for each phone that is let in."""

    noisy = False

    def __init__(self, registry: Registry, wrapped: bool = False) -> None:
        """
        @param registry: what all connections share.
        @param wrapped: whether another factory may stand around it, which wants a protocol for
            each connection.
        """
        self._registry = registry
        self._wrapped = wrapped

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        if self._registry.refusal(peer_address(addr)) is not None:
            return _NotLetIn() if self._wrapped else None
        protocol = GatewayProtocol(self._registry)
        protocol.factory = self
        return protocol
