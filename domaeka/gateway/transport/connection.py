"""Twisted's side of a phone's connection: it carries bytes and decides nothing."""

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from domaeka.errors import CloseReason
from domaeka.gateway.context import Context
from domaeka.gateway.flow.read_scheduler import ReadScheduler
from domaeka.gateway.joints import AccessRules, Converse, Entry, LineReceiver
from domaeka.gateway.transport.kernel import PeerKernel
from domaeka.gateway.transport.unread import Unread
from domaeka.twisted_internals import (
    immediate_writer,
    peek,
    receive_rest,
    take_unsent,
    unsent_bytes,
)
from domaeka.wire import Inflater, LineDecoder

#: Most bytes that one connection inflates in one turn of the reactor.
INFLATED_A_TURN = 1_048_576
#: Most lines that are read from one connection in one turn of the reactor (2 ms of work):
#: normally; while other connections wait; and before authentication.
LINES_A_TURN = 32
CROWDED_LINES_A_TURN = 8
STRANGERS_LINES_A_TURN = 4
#: Most bytes that a peer may still send once its connection is closing.  They are read, because
#: unread bytes would reset the connection before our last frames have arrived.
MAX_DISCARDED_BYTES = 2_097_152
#: Most bytes in the kernel that are looked at ahead of their reading.
MAX_PEEKED_BYTES = 262_144
#: Longest time in which lines are read after their connection is lost, in seconds.  Source: 64 KiB,
#: the most that is taken from the kernel at once, hold some 200 lines, or 1,300 if deflated: 7 s at
#: the rate of C{limits.messages_per_second}.
REST_SECONDS = 10.0
#: OpenSSL's words for bytes that are neither TLS nor HTTP.
_NO_TLS = "wrong version number"


@implementer(IHalfCloseableProtocol, IPullProducer)
class GatewayProtocol(Protocol):
    """
    Carry one phone's connection.

    It is registered with its transport as a pull producer: this is the only notice that the kernel
    has taken everything written.
    """

    def __init__(
        self, shared: "TransportContext", port_outlives: bool = False, over_rate: bool = False
    ) -> None:
        """
        @param shared: what all connections share.
        @param port_outlives: as of L{Transport<domaeka.gateway.joints.Transport>}, like
            C{over_rate}.
        """
        self.port_outlives = port_outlives
        self.over_rate = over_rate
        self._shared = shared
        self._context = shared.context
        self._decoder = LineDecoder(shared.context.settings.server.max_frame_bytes)
        self._reading = True
        self._continuing = False  # lines are held until the next turn
        self._busy = False  # lines are being read
        self._resumed = False  # resumed while lines were read: more of them may be held
        self._ends = False
        self._aborted = False
        self._encrypted = False
        self._lost: tuple[CloseReason, bool] | None = None  # why, and whether it was no TLS
        self._lost_bytes = 0  # written, and never taken by the kernel
        self._rest_deadline: Any = None  # for reading what came before the connection was lost
        self._discarded_bytes = 0
        self._inflater: Inflater | None = None
        self._inflated = 0  # in this turn, in bytes
        self._unread: Unread | None = None
        self._write_now: Callable[[bytes], object] | None = None
        self.kernel: PeerKernel
        self._conversation: LineReceiver

    # IProtocol

    transport: Any  # ITransport and more: typed in part only

    def connectionMade(self) -> None:
        transport = self.transport
        while isinstance(transport, ProtocolWrapper):
            self._encrypted |= isinstance(transport, TLSMemoryBIOProtocol)
            transport = transport.transport
        self._lowest = transport
        self.kernel = PeerKernel(transport, self._context)
        if transport is self.transport:  # plain TCP: no wrapper before the socket
            self._write_now = immediate_writer(transport)
        address = peer_address(self.transport.getPeer())
        self._conversation = self._shared.converse(self, address)
        transport.registerProducer(self, False)
        self._conversation.connected()

    def dataReceived(self, data: bytes) -> None:
        if not self._conversation.received(data):
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.abort()
            else:
                self._leave_unread(data)
            return
        if self._inflater is not None:
            self._inflater.feed(data)
            self._context.metrics.compression_bytes.labels("wire").value += len(data)
        else:
            self._decoder.feed(data)
        if not self._continuing:  # TLS brings bytes though it is paused
            self._read()

    def _leave_unread(self, data: bytes = b"") -> None:
        """Take bytes, and those that are held, of which none is read any more."""
        if self._unread is None:
            not_read = self._conversation.not_read
            self._unread = Unread(self._decoder, self._inflater, not_read)
        self._unread.take(data)

    def _read(self) -> None:
        """Read as many lines as this turn allows."""
        if self._conversation.peer.authenticated:
            crowded = self._shared.phones.crowded
            self._read_lines(CROWDED_LINES_A_TURN if crowded else LINES_A_TURN)
            return
        strangers = self._shared.strangers
        if strangers.used_up:
            self._continue_later()
            return
        held_bytes = self._decoder.held_bytes
        lines = self._read_lines(STRANGERS_LINES_A_TURN)
        strangers.use(lines, held_bytes - self._decoder.held_bytes)

    def _read_lines(self, most: int) -> int:
        """@return: the number of lines read, C{most} at most."""
        inflater = self._inflater
        self._inflated = 0
        next_line = self._decoder.next_line if inflater is None else self._next_inflated_line
        self._busy, self._resumed = True, False
        lines = self._conversation.read(next_line, most)
        self._busy = False
        if not self._conversation.peer.reads:
            self._leave_unread()
        more = lines == most or self._resumed or self._inflater is not inflater
        if more and self._reading:
            self._continue_later()
        return lines

    def _next_inflated_line(self) -> bytes | None:
        """The next line of a deflate stream, within the bound of this turn."""
        line = self._decoder.next_line()
        while line is None and self._inflater is not None:
            if self._inflated >= INFLATED_A_TURN and self._inflater.held_bytes:
                self._continue_later()
                return None
            piece = self._inflater.next_piece()
            if not piece:
                return None
            self._decoder.feed(piece)
            self._inflated += len(piece)
            self._context.metrics.compression_bytes.labels("plain").value += len(piece)
            line = self._decoder.next_line()
        return line

    def _continue_later(self) -> None:
        """Pause reading, and go on once other connections have been read."""
        self.transport.pauseProducing()
        if not self._continuing:
            self._continuing = True
            known = self._conversation.peer.authenticated
            (self._shared.phones if known else self._shared.strangers).wait(self._continue)

    def _continue(self) -> None:
        self._continuing = False
        if not self._reading:
            return
        if self._lost is None:
            self.transport.resumeProducing()
        self._read()
        if self._lost is not None and not self._waits_to_be_read:
            self._end()

    @property
    def _waits_to_be_read(self) -> bool:
        """True if lines are here whose turn comes, or that are read once the phone may say more."""
        return self._conversation.peer.reads and (self._continuing or not self._reading)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        The connection is gone; its conversation ends once all lines that came are read.  The phone
        takes them for sent: it closes behind them, and TLS and a reset tell of the end at once.
        """
        clean = reason.type is ConnectionDone
        self._lost = (
            CloseReason.PEER_CLOSED if clean else CloseReason.CONNECTION_LOST,
            isinstance(reason.value, SSL.Error) and _NO_TLS in str(reason.value),
        )
        self._write_now = None
        self._lost_bytes = take_unsent(self._lowest)
        if self._waits_to_be_read:
            self._rest_deadline = self._context.call_later(REST_SECONDS, self._end)
        else:
            self._end()

    def _end(self) -> None:
        """End the conversation."""
        deadline, self._rest_deadline = self._rest_deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()
        assert self._lost is not None
        reason, not_tls = self._lost
        self._leave_unread()
        assert self._unread is not None
        self._unread.end()
        self._unread = None
        self._conversation.connection_lost(reason, self._lost_bytes, not_tls=not_tls)
        # Break all reference cycles: the garbage collector would free them late.
        del self._conversation
        self._reading = False
        self._inflater = None

    # IHalfCloseableProtocol

    def readConnectionLost(self) -> None:
        self._conversation.peer_finished()

    def writeConnectionLost(self) -> None:
        """Our FIN has left; the peer's is still to come."""

    # IPullProducer

    def resumeProducing(self) -> None:
        if getattr(self._lowest, "disconnecting", False):
            # TLS closes once the peer has sent its close_notify.
            self._unregister()
        else:
            self._conversation.drained()

    def stopProducing(self) -> None:
        """Do nothing: L{connectionLost} follows."""

    # Transport: for the conversation

    def write(self, data: bytes) -> bool:
        """
        Send bytes.  Only to be called once the kernel has taken everything before.

        Writing at once saves a turn of the reactor and two changes of its poll set: a third
        of the cost of an answer.

        @return: True if the kernel has taken all; if not, L{LineReceiver.drained} follows.
        """
        if self._write_now is not None:
            taken = self._write_now(data)
            if taken == len(data):
                return True
            # An error is raised again where the rest is written.
            if isinstance(taken, int) and taken > 0:
                data = data[taken:]
        self.write_more(data)
        return False

    def write_more(self, data: bytes) -> None:
        """Send bytes after those that the kernel has not taken yet."""
        if self._lost is None:
            self.transport.write(data)
        else:
            self._lost_bytes += len(data)

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that our kernel has not taken."""
        return unsent_bytes(self._lowest) if self._lost is None else self._lost_bytes

    def take_back(self) -> int:
        """
        Drop what is written and our kernel has not taken, unless TLS has encrypted it.

        @return: the number of these bytes.
        """
        if self._lost is not None:
            return self._lost_bytes
        if self._encrypted:
            return 0
        return take_unsent(self._lowest)

    @property
    def unread_bytes(self) -> int:
        """Bytes that came and were not read as lines yet."""
        return self._decoder.held_bytes

    def pause_reading(self) -> None:
        """Read no more lines or bytes until L{resume_reading}."""
        self._reading = False
        self.transport.pauseProducing()

    def look_ahead(self) -> None:
        """Show the conversation the lines that are here, and are not to be read yet."""
        if self._encrypted or self._inflater is not None or self._lost is not None:
            return  # nobody listens; or it would have to be inflated twice
        data = self._decoder.held() + peek(self._lowest, MAX_PEEKED_BYTES)
        for line in data.split(b"\n"):
            if line:
                self._conversation.expected(line.removesuffix(b"\r"))

    def resume_reading(self) -> None:
        """Read again; lines that are held come first, perhaps before this returns."""
        self._reading = True
        self.transport.resumeProducing()
        if self._busy:
            self._resumed = True
        elif self._decoder.held_bytes or self._inflater or self._lost is not None:
            self._continue_later()  # many connections may resume at the same time

    def limit_lines(self, max_bytes: int) -> None:
        """Set the longest line accepted from now on, in bytes."""
        self._decoder.max_bytes = max_bytes

    def start_inflating(self) -> None:
        """Read everything after the last line as a deflate stream."""
        self._inflater = Inflater()
        rest = self._decoder.take_rest()
        self._inflater.feed(rest)
        self._context.metrics.compression_bytes.labels("wire").value += len(rest)

    def finish(self) -> None:
        """
        Close in order: send what is written, then a FIN, and read until the peer's FIN.  The caller
        sets a deadline: a peer that reads nothing never finishes.
        """
        if self._is_lost():
            return
        self._unregister()
        if not (self._busy or self._conversation.peer.reads):
            self._leave_unread()
        if not (self._reading or self._conversation.peer.reads):  # else it waits for its throttle
            self._reading = True
            self.transport.resumeProducing()
        self._close_write()

    def _close_write(self) -> None:
        if not self._encrypted and hasattr(self._lowest, "loseWriteConnection"):
            self._lowest.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def stop_writing(self) -> None:
        """Send what is written, then a FIN; go on reading as before."""
        if self._lost is None:
            self._unregister()
            self._close_write()

    def disconnect(self) -> None:
        """Close once everything written has left: both sides have finished."""
        if not self._is_lost():
            self._unregister()
            # The kernel has the rest of it, and nobody sees whether the peer acknowledges that.
            self.kernel.set_user_timeout()
            self.transport.loseConnection()

    def hang_up(self) -> None:
        """
        Close as soon as our kernel has what is written, without waiting for the peer.  The caller
        sets a deadline, as for L{finish}.
        """
        if not self._is_lost(at_once=True):
            self._unregister()
            self._lowest.loseConnection()  # TLS itself would wait for the peer

    def abort(self) -> None:
        """Close at once; what has not been sent is lost."""
        if not self._is_lost(at_once=True):
            self._unregister()
            if not self._aborted:  # what is left in the kernel is not read either
                self._aborted = True
                self._conversation.peer.reads = False
                receive_rest(self._lowest)
            self.transport.abortConnection()

    def _is_lost(self, at_once: bool = False) -> bool:
        """
        @param at_once: True if lines that wait are not to be read any more.
        @return: whether the connection is lost already; then the conversation ends with the last
            line that is to be read.
        """
        if self._rest_deadline is not None and (at_once or not self._waits_to_be_read):
            self._rest_deadline.reset(0.0)
        return self._lost is not None

    def _unregister(self) -> None:
        # A transport with a pull producer never finishes closing.
        if not self._ends:
            self._ends = True
            self._lowest.unregisterProducer()


def peer_address(peer: Any) -> str:
    """The peer's address in text; an IPv4-mapped IPv6 address as IPv4."""
    host = getattr(peer, "host", None)
    if host is None:
        return "local"
    return str(host).removeprefix("::ffff:") if "." in str(host) else str(host)


class TransportContext:
    """
    State that all connections share.

    @ivar phones: schedules reading from authenticated connections.
    @ivar strangers: schedules reading from all others.
    """

    def __init__(self, context: Context, rules: AccessRules, converse: Converse) -> None:
        """@param rules: the rules for who may connect.  C{converse} makes conversations."""
        self.context = context
        self.rules = rules
        self.converse = converse
        self.phones = ReadScheduler(context.call_soon, context.seconds)
        self.strangers = ReadScheduler(context.call_soon, context.seconds)


class _Refused(Protocol):
    """A refused connection: it is closed at once."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


class GatewayFactory(Factory):
    """Make a L{GatewayProtocol} for each connection that is not refused."""

    noisy = False

    def __init__(
        self, shared: TransportContext, wrapped: bool = False, outlives: bool = False
    ) -> None:
        """
        @param wrapped: True if a factory around this one needs a protocol in any case.
        @param outlives: True if the port outlives the process.
        """
        self._shared = shared
        self._wrapped = wrapped
        self._outlives = outlives

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        entry = self._shared.rules.entry(peer_address(addr))
        if entry is Entry.REFUSED:
            return _Refused() if self._wrapped else None
        protocol = GatewayProtocol(self._shared, self._outlives, entry is Entry.BRIEF)
        protocol.factory = self
        return protocol
