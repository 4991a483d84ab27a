"""
Connections that come through a balancer: nobody is there until it has said who.
"""

from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from domaeka.errors import CloseReason
from domaeka.gateway.proxyheader import BadHeader, HeaderReader
from domaeka.gateway.registry import CLOSING_SHARE, Registry

#: First byte of a TLS connection.  Source: RFC 8446, 5.1: a handshake.
_TLS_HANDSHAKE: Final = b"\x16"


class Lobby:
    """Where connections wait for their header, for as long as for a handshake."""

    def __init__(self, registry: Registry, reactor: Any) -> None:
        """@param reactor: what the deadlines are scheduled with."""
        self._registry = registry
        self._reactor = reactor
        #: With their deadlines, the oldest first.
        self._waiting: dict[_Reception, Any] = {}

    def enter(self, reception: "_Reception") -> None:
        """One more waits; where there are too many, the oldest has waited long enough."""
        server = self._registry.parts.settings.server
        if len(self._waiting) >= max(8, server.max_connections * CLOSING_SHARE):
            self._turn_away(next(iter(self._waiting)), CloseReason.GAVE_WAY)
        self._waiting[reception] = self._reactor.callLater(
            server.handshake_timeout,
            self._turn_away,
            reception,
            CloseReason.HANDSHAKE_TIMEOUT,
        )

    def leave(self, reception: "_Reception") -> None:
        """It waits no longer."""
        deadline = self._waiting.pop(reception, None)
        if deadline is not None and deadline.active():
            deadline.cancel()

    def refuse(self, reception: "_Reception") -> None:
        """What came is no header."""
        self._turn_away(reception, CloseReason.BAD_PROXY_HEADER)

    def close(self) -> None:
        """Let nobody wait any more."""
        for reception in list(self._waiting):
            reception.cut_off()

    def _turn_away(self, reception: "_Reception", reason: CloseReason) -> None:
        self._registry.refused(reason)
        reception.cut_off()


class _Reception(Protocol):
    """What is inside an L{AnnouncedProtocol} until it is known who is there."""

    transport: Any  # the AnnouncedProtocol around it

    def __init__(self, factory: "AnnouncedFactory") -> None:
        self._factory = factory
        self._reader = HeaderReader()
        self._said_something = False

    def cut_off(self) -> None:
        """End the connection at once, and hear nothing more of it."""
        self._factory.lobby.leave(self)
        self.transport.let_in(Protocol())
        self.transport.abortConnection()

    # IProtocol

    def connectionMade(self) -> None:
        self._factory.lobby.enter(self)

    def dataReceived(self, data: bytes) -> None:
        factory = self._factory
        if not self._said_something and factory.tls_first is not None:
            if data.startswith(_TLS_HANDSHAKE):
                self._hand_over(factory.tls_first.buildProtocol(self.transport.getPeer()), data)
                return
            self._said_something = True
        try:
            complete = self._reader.feed(data)
        except BadHeader:
            factory.lobby.refuse(self)
            return
        if not complete:
            return
        address = self._reader.address
        if address is None:  # the balancer only wants to know whether we are there
            self.transport.loseConnection()  # it waits on: TLS may never come to its end
            return
        kind: Any = IPv6Address if ":" in address else IPv4Address
        self.transport.peer = peer = kind("TCP", address, 0)
        inner = factory.wrappedFactory.buildProtocol(peer)
        if inner is None:
            self.cut_off()
        else:
            self._hand_over(inner, self._reader.rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._factory.lobby.leave(self)

    def _hand_over(self, inner: Any, rest: bytes) -> None:
        self._factory.lobby.leave(self)
        self.transport.let_in(inner)
        if rest:
            inner.dataReceived(rest)


class AnnouncedProtocol(ProtocolWrapper):
    """A connection whose peer is who the balancer says."""

    peer: IAddress | None = None

    def let_in(self, inner: Any) -> None:
        """Have C{inner} take over."""
        self.wrappedProtocol = inner
        inner.makeConnection(self)

    # ITransport

    def getPeer(self) -> Any:
        return self.peer or super().getPeer()  # type: ignore[no-untyped-call]


class AnnouncedFactory(WrappingFactory[AnnouncedProtocol]):
    """
    Wait for the header, then let in, or turn away, whoever that is: what is inside has not heard
    of it before.

    @ivar tls_first: what makes the inside where TLS begins ahead of the header; L{None}: it never
        does.
    """

    noisy = False

    def __init__(self, lobby: Lobby, inner: Any, tls_first: Any = None) -> None:
        """@param inner: makes what is inside."""
        super().__init__(inner)  # type: ignore[no-untyped-call]
        self.lobby = lobby
        self.tls_first = tls_first

    # IProtocolFactory

    def buildProtocol(self, addr: IAddress | None) -> AnnouncedProtocol:
        inside: Any = _Reception(self)
        return AnnouncedProtocol(self, inside)
