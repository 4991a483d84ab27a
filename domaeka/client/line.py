"""One way to a server: where the conversation meets the reactor."""

from typing import Any, Final, Protocol

from twisted.application.internet import ClientService
from twisted.internet import defer, error, interfaces, protocol
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from domaeka.client.conversation import Conversation, Event
from domaeka.client.events import ClientEvent, Failed, Waiting
from domaeka.client.route import Route, Server
from domaeka.errors import CloseReason
from domaeka.phonewire import Complaint, Greeting

#: How long a connection that we close may take to hand over what is written, in seconds.
LINGER_SECONDS: Final = 5.0
#: How long before the end of a connection the error came that explains it, at most, in seconds:
#: servers linger that long.  Source: docs/settings.md, C{socket.linger_seconds}.
LAST_WORDS_SECONDS: Final = 5.0


class Owner(Protocol):
    """What a line asks of the client that it belongs to."""

    reactor: Any

    def conversation(self) -> Conversation:
        """A new one, for a new connection."""

    def endpoint_for(self, server: Server) -> interfaces.IStreamClientEndpoint:
        """How to reach a server."""

    def tell(self, event: ClientEvent) -> None:
        """Something worth telling.  Never raises."""

    def connected(self, line: "Line") -> None:
        """A connection is made."""

    def said(self, line: "Line", event: Event) -> None:
        """The server said something."""

    def lost(self, line: "Line", reason: CloseReason, why: str) -> None:
        """A connection ended.  The line will come back, unless it is stopped here."""


@implementer(interfaces.IStreamClientEndpoint)
class Line:
    """One way to a server, kept up by a L{ClientService}; the endpoint that this one connects."""

    def __init__(self, owner: Owner, route: Route) -> None:
        self._owner = owner
        self.route = route
        self._complaint: Complaint | None = None
        self._complained_at = 0.0
        self._delay = 0.0
        self.was_greeted = False
        self.conversation: Conversation | None = None
        self._protocol: LineProtocol | None = None
        self._service = ClientService(
            self,  # type: ignore[arg-type]
            _LineFactory(self),  # type: ignore[arg-type]
            retryPolicy=lambda attempt: self._delay,
            clock=owner.reactor,
        )

    @property
    def is_connected(self) -> bool:
        return self.conversation is not None

    @property
    def greeted(self) -> bool:
        return self.conversation is not None and self.conversation.greeted

    @property
    def last_words(self) -> str | None:
        """The code that a server gave for ending the connection, if it gave one."""
        now: float = self._owner.reactor.seconds()
        if self._complaint is None or now - self._complained_at > LAST_WORDS_SECONDS:
            return None
        return self._complaint.code

    def start(self) -> None:
        self._service.startService()

    def stop(self) -> "Deferred[None]":
        """@return: fires when the connection, if there is one, has ended."""
        if not self._service.running:
            return defer.succeed(None)
        self.close_queue()
        if self._protocol is not None:
            self._protocol.closing()
        stopped: Deferred[None] = self._service.stopService()
        if self._protocol is not None:
            # To a peer that reads nothing, losing the connection has no end.
            deadline = self._owner.reactor.callLater(
                LINGER_SECONDS, self.abort, CloseReason.PEER_CLOSED
            )

            def cancel(result: None) -> None:
                if deadline.active():
                    deadline.cancel()

            stopped.addCallback(cancel)
        return stopped

    # IStreamClientEndpoint

    def connect(self, factory: interfaces.IProtocolFactory) -> "Deferred[interfaces.IProtocol]":
        def connect() -> Any:
            endpoint: Any = self._owner.endpoint_for(self.route.server)  # zope's are not typed
            return endpoint.connect(factory)

        # Never at once: what fails at once would be told to an owner who is still starting us.
        connecting: Deferred[interfaces.IProtocol] = deferLater(self._owner.reactor, 0, connect)
        return connecting.addErrback(self._failed)

    def _failed(self, failure: Failure) -> Failure:
        if not failure.check(defer.CancelledError):  # type: ignore[no-untyped-call]
            server = self.route.server
            self.route.failed()
            self._owner.tell(Failed(server, failure.getErrorMessage()))
            self._wait()
        return failure

    def _wait(self) -> None:
        """Decide how long, and say so; not when asked by C{ClientService}, which is busy then."""
        if self._service.running:
            self._delay = self.route.next_delay()
            self._owner.tell(Waiting(self.route.server, self._delay))

    # From the connection

    def connected(self, line_protocol: "LineProtocol") -> None:
        self._protocol = line_protocol
        self.conversation = self._owner.conversation()
        self.was_greeted = False
        self.conversation.begin()
        self._owner.connected(self)
        self.flush()

    def received(self, data: bytes) -> None:
        conversation = self.conversation
        if conversation is None:
            return
        conversation.feed(data)
        while (event := conversation.next_event()) is not None:
            if isinstance(event, Greeting):
                self.was_greeted = event.success
            elif isinstance(event, Complaint):
                self._complaint = event
                self._complained_at = self._owner.reactor.seconds()
            self._owner.said(self, event)
            if self.conversation is not conversation:
                return
        if conversation.ended is not None:
            self.abort(conversation.ended)
            return
        self.flush()

    def lost(self, reason: CloseReason, why: str) -> None:
        self._protocol = None
        self.conversation = None
        self._owner.lost(self, reason, why)
        self._complaint = None
        self._wait()

    # From the client

    def open(self) -> None:
        """What waits may go over this line."""
        if self.conversation is not None:
            self.conversation.sending = True
            self.flush()

    def close_queue(self) -> None:
        """Nothing more of what waits may go over this line."""
        if self.conversation is not None:
            self.conversation.sending = False

    def flush(self) -> None:
        """Write what there is, while the transport takes it."""
        if self._protocol is not None and self.conversation is not None:
            self._protocol.flush(self.conversation)

    def check(self, on_time: bool) -> None:
        """Give up a server that has been silent for too long."""
        conversation = self.conversation
        if conversation is None:
            return
        if not on_time:
            conversation.bear_with()
        elif conversation.is_overdue():
            self.abort(
                CloseReason.PING_TIMEOUT if conversation.greeted else CloseReason.HANDSHAKE_TIMEOUT
            )

    def abort(self, reason: CloseReason) -> None:
        if self._protocol is not None:
            self._protocol.abort(reason)


@implementer(interfaces.IPushProducer)
class LineProtocol(protocol.Protocol):
    """One connection: carries bytes."""

    transport: Any

    def __init__(self, line: Line) -> None:
        self._line = line
        self._paused = False
        self._reason: CloseReason | None = None

    # IProtocol

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self._line.connected(self)

    def dataReceived(self, data: bytes) -> None:
        self._line.received(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        clean = reason.check(error.ConnectionDone)  # type: ignore[no-untyped-call]
        if self._reason is None and not clean:
            self._line.lost(CloseReason.CONNECTION_LOST, reason.getErrorMessage())
        else:
            self._line.lost(self._reason or CloseReason.PEER_CLOSED, "")

    # IPushProducer

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._line.flush()

    def stopProducing(self) -> None:
        self._paused = True

    # From the line

    def flush(self, conversation: Conversation) -> None:
        while not self._paused and (data := conversation.data_to_send()):
            self.transport.write(data)

    def closing(self) -> None:
        """The connection is about to be lost: a producer would keep TLS from it."""
        self.transport.unregisterProducer()

    def abort(self, reason: CloseReason) -> None:
        self._reason = reason
        self.transport.abortConnection()


class _LineFactory(protocol.Factory):
    """Makes the protocol of a line; says nothing in the log of its own comings and goings."""

    noisy = False

    def __init__(self, line: Line) -> None:
        self._line = line

    # IProtocolFactory

    def buildProtocol(self, addr: interfaces.IAddress | None) -> LineProtocol:
        return LineProtocol(self._line)
