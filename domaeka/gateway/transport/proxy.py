"""Connections through a balancer: each begins with a header of the PROXY protocol."""

from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from domaeka.errors import CloseReason
from domaeka.gateway.context import Context
from domaeka.gateway.joints import CLOSING_SHARE, AccessRules
from domaeka.gateway.transport.connection import peer_address
from domaeka.gateway.transport.proxy_header import BadHeader, HeaderReader
from domaeka.policies.holdings import Holdings
from domaeka.pools import Pool

#: First byte of a TLS connection.  Source: RFC 8446, 5.1: a handshake.
_TLS_HANDSHAKE: Final = b"\x16"


class PendingHeaders:
    """
    Connections whose PROXY header is incomplete.

    Each has a deadline, as for a handshake, and their number is bounded: the oldest gives way, of
    the balancer that has the most.
    """

    def __init__(self, context: Context, rules: AccessRules, reactor: Any) -> None:
        """@param reactor: schedules the deadlines."""
        self._context = context
        self._rules = rules
        self._reactor = reactor
        #: The deadlines, oldest first.
        self._waiting: dict[_HeaderProtocol, Any] = {}
        #: The same connections, by balancer.
        self._of_balancers: Holdings[str, _HeaderProtocol] = Holdings()

    def add(self, pending: "_HeaderProtocol") -> None:
        """A connection has begun."""
        server = self._context.settings.server
        shares, balancer = self._of_balancers, peer_address(pending.transport.getPeer())
        most = max(8, server.max_connections * CLOSING_SHARE)
        if len(shares) >= most and (first := shares.first()) is not None:
            self._context.metrics.pools.gave_way(Pool.HEADERS, balancer)
            self.refuse(first, CloseReason.GAVE_WAY)
        shares.put(balancer, pending)
        self._waiting[pending] = self._reactor.callLater(
            server.handshake_timeout, self.refuse, pending, CloseReason.HANDSHAKE_TIMEOUT
        )

    def remove(self, pending: "_HeaderProtocol") -> None:
        """Cancel the deadline of a connection: its header is complete, or it has ended."""
        self._of_balancers.remove(pending)
        deadline = self._waiting.pop(pending, None)
        if deadline is not None and deadline.active():
            deadline.cancel()

    def refuse(self, pending: "_HeaderProtocol", reason: CloseReason) -> None:
        """Count a refusal, and end the connection."""
        self._rules.refused(reason)
        pending.abort()

    def close(self) -> None:
        """End all of them."""
        for pending in list(self._waiting):
            pending.abort()


class _HeaderProtocol(Protocol):
    """Read the PROXY header, then hand the connection over to the protocol inside."""

    transport: Any  # the ProxyProtocolWrapper around it

    def __init__(self, factory: "ProxyProtocolFactory") -> None:
        self._factory = factory
        self._reader = HeaderReader()
        self._begun = False

    def abort(self) -> None:
        """End the connection at once, and ignore all that follows."""
        self._factory.pending.remove(self)
        self.transport.replace_inner(Protocol())
        self.transport.abortConnection()

    # IProtocol

    def connectionMade(self) -> None:
        self._factory.pending.add(self)

    def dataReceived(self, data: bytes) -> None:
        factory = self._factory
        if not self._begun and factory.tls_first is not None:
            if data.startswith(_TLS_HANDSHAKE):
                self._hand_over(factory.tls_first.buildProtocol(self.transport.getPeer()), data)
                return
            self._begun = True
        try:
            complete = self._reader.feed(data)
        except BadHeader:
            factory.pending.refuse(self, CloseReason.BAD_PROXY_HEADER)
            return
        if not complete:
            return
        address = self._reader.address
        if address is None:  # a health check of the balancer
            self.transport.loseConnection()  # keeps its deadline: TLS may never finish closing
            return
        kind: Any = IPv6Address if ":" in address else IPv4Address
        self.transport.peer = peer = kind("TCP", address, 0)
        inner = factory.wrappedFactory.buildProtocol(peer)
        if inner is None:
            self.abort()
        else:
            self._hand_over(inner, self._reader.rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._factory.pending.remove(self)

    def _hand_over(self, inner: Any, rest: bytes) -> None:
        self._factory.pending.remove(self)
        self.transport.replace_inner(inner)
        if rest:
            inner.dataReceived(rest)


class ProxyProtocolWrapper(ProtocolWrapper):
    """A connection whose peer is the source address of its PROXY header."""

    peer: IAddress | None = None

    def replace_inner(self, inner: Any) -> None:
        """Let C{inner} receive everything from now on."""
        self.wrappedProtocol = inner
        inner.makeConnection(self)

    # ITransport

    def getPeer(self) -> Any:
        return self.peer or super().getPeer()  # type: ignore[no-untyped-call]


class ProxyProtocolFactory(WrappingFactory[ProxyProtocolWrapper]):
    """
    Make the protocol inside only once the PROXY header is complete.

    @ivar tls_first: the factory for connections where TLS begins ahead of the header; L{None}: the
        header always comes first.
    """

    noisy = False

    def __init__(self, pending: PendingHeaders, inner: Any, tls_first: Any = None) -> None:
        """@param inner: the factory of the protocol inside."""
        super().__init__(inner)  # type: ignore[no-untyped-call]
        self.pending = pending
        self.tls_first = tls_first

    # IProtocolFactory

    def buildProtocol(self, addr: IAddress | None) -> ProxyProtocolWrapper:
        inside: Any = _HeaderProtocol(self)
        return ProxyProtocolWrapper(self, inside)
