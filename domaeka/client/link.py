"""Link to a server: a conversation joined to the reactor."""

import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from twisted.application.internet import ClientService
from twisted.internet import defer, error, interfaces, protocol
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from domaeka.client.conversation import Conversation, Event
from domaeka.client.events import ClientEvent, Failed, Waiting
from domaeka.client.route import Route, Server
from domaeka.errors import CloseReason
from domaeka.wire import ErrorFrame, Greeting

#: Time for a connection that we close to send what is written, in seconds.
LINGER_SECONDS: Final = 5.0
#: Longest time between an error of the server and the end of the connection that it explains, in
#: seconds: servers linger that long.  Source: docs/settings.md, C{socket.linger_seconds}.
ERROR_VALID_SECONDS: Final = 5.0
#: Time after which the kernel gives up a connection whose peer does not acknowledge bytes, beyond
#: the timeout for acknowledgements of messages, in seconds.  Source: docs/client.md, "Watchdog".
USER_TIMEOUT_MARGIN_SECONDS: Final = 5
#: Silence after which the kernel asks whether the peer is there, and time for the answer, in
#: seconds: together one and a half ping intervals.  Source: as above.
KEEPALIVE_SECONDS: Final = 30
KEEPALIVE_ANSWER_SECONDS: Final = 15
#: Longest time between retransmissions, in milliseconds.  It doubles each time otherwise, so that
#: an interruption may last twice as long as its cause.  Source: docs/client.md, "Watchdog".
RETRANSMIT_MS: Final = 2_000
#: C{TCP_RTO_MAX_MS}, which Python does not name.  Source: Linux 6.15, include/uapi/linux/tcp.h.
_TCP_RTO_MAX_MS: Final = 44 if sys.platform == "linux" else None
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)


class Owner(Protocol):
    """The client that a link belongs to."""

    reactor: Any
    seconds: Callable[[], float]

    def heard(self) -> None:
        """Bytes were received."""

    def conversation(self) -> Conversation:
        """A new conversation, for a new connection."""

    def endpoint_for(self, server: Server) -> interfaces.IStreamClientEndpoint:
        """The endpoint of a server."""

    def tell(self, event: ClientEvent) -> None:
        """Report an event.  Never raises."""

    def connected(self, link: "Link") -> None:
        """A connection is made."""

    def received(self, link: "Link", event: Event) -> None:
        """The server has sent something."""

    def lost(self, link: "Link", reason: CloseReason, why: str) -> None:
        """A connection has ended.  The link reconnects unless it is stopped here."""


@implementer(interfaces.IStreamClientEndpoint)
class Link:
    """Link to a server: reconnects by its L{ClientService}, to which it is the endpoint."""

    def __init__(self, owner: Owner, route: Route) -> None:
        self._owner = owner
        self.route = route
        self._error: ErrorFrame | None = None
        self._error_at = 0.0
        self._delay = 0.0
        self.was_greeted = False
        self.greeted_at = 0.0
        self.conversation: Conversation | None = None
        self._resuming = False  # more is read in another turn
        self._protocol: LinkProtocol | None = None
        factory = protocol.Factory.forProtocol(partial(LinkProtocol, self))
        factory.noisy = False
        self._service = ClientService(
            self,  # type: ignore[arg-type]
            factory,  # type: ignore[arg-type]
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
    def close_code(self) -> str | None:
        """Code of the server's error that explains the end of the connection, if there is one."""
        if self._error is None or self._owner.seconds() - self._error_at > ERROR_VALID_SECONDS:
            return None
        return self._error.code

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
            # loseConnection never finishes while the peer reads nothing.
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

        # Later: the owner is still starting us, and must not hear of a failure yet.
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
        """Choose the next delay now: in C{retryPolicy}, C{ClientService} is busy."""
        if self._service.running:
            self._delay = self.route.next_delay()
            self._owner.tell(Waiting(self.route.server, self._delay))

    # From the connection

    def connected(self, link_protocol: "LinkProtocol") -> None:
        self._protocol = link_protocol
        self.conversation = conversation = self._owner.conversation()
        link_protocol.watch(int(conversation.ack_timeout) + USER_TIMEOUT_MARGIN_SECONDS)
        self.was_greeted = False
        conversation.begin()
        self._owner.connected(self)
        self.flush()

    def received(self, data: bytes) -> None:
        conversation = self.conversation
        if conversation is None:
            return
        self._owner.heard()
        conversation.feed(data)
        if not self._resuming:
            self._read(conversation)

    def _read(self, conversation: Conversation) -> None:
        """Read as much as one turn of the reactor allows; the rest in the next one."""
        conversation.begin_turn()
        while (event := conversation.next_event()) is not None:
            if isinstance(event, Greeting):
                self.was_greeted = event.success
                self.greeted_at = self._owner.seconds()
            elif isinstance(event, ErrorFrame):
                self._error = event
                self._error_at = self._owner.seconds()
            self._owner.received(self, event)
            if self.conversation is not conversation:
                return
        if conversation.ended is not None:
            self.abort(conversation.ended)
            return
        self.flush()
        if conversation.has_more and self._protocol is not None:
            self._resuming = True
            self._protocol.pause_reading()  # its end, too, is seen behind what is here
            self._owner.reactor.callLater(0, self._read_on, conversation)

    def _read_on(self, conversation: Conversation) -> None:
        self._resuming = False
        if self.conversation is conversation:
            self._read(conversation)
            if not self._resuming and self._protocol is not None:
                self._protocol.resume_reading()

    def lost(self, reason: CloseReason, why: str) -> None:
        self._protocol = None
        self.conversation = None
        self._resuming = False
        self._owner.lost(self, reason, why)
        self._error = None
        self._wait()

    # From the client

    def open(self) -> None:
        """Let the conversation take chat from the queue."""
        if self.conversation is not None:
            self.conversation.sending = True
            self.flush()

    def close_queue(self) -> None:
        """Let the conversation take no more chat from the queue."""
        if self.conversation is not None:
            self.conversation.sending = False

    def flush(self) -> None:
        """Write the conversation's output until the transport pauses us."""
        if self._protocol is not None and self.conversation is not None:
            self._protocol.flush(self.conversation)

    def check(self, on_time: bool) -> None:
        """Give up a server whose time is over.  C{on_time}: we were not held up ourselves."""
        conversation = self.conversation
        if conversation is None:
            return
        if not on_time:
            conversation.restart_timeouts()
        elif (reason := conversation.overdue()) is not None:
            self.abort(reason)

    def abort(self, reason: CloseReason) -> None:
        if self._protocol is not None:
            self._protocol.abort(reason)


@implementer(interfaces.IPushProducer)
class LinkProtocol(protocol.Protocol):
    """Protocol of one connection: it carries bytes."""

    transport: Any

    def __init__(self, link: Link) -> None:
        self._link = link
        self._paused = False
        self._reason: CloseReason | None = None

    # IProtocol

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self._link.connected(self)

    def dataReceived(self, data: bytes) -> None:
        self._link.received(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        clean = reason.check(error.ConnectionDone)  # type: ignore[no-untyped-call]
        if self._reason is None and not clean:
            self._link.lost(CloseReason.CONNECTION_LOST, reason.getErrorMessage())
        else:
            self._link.lost(self._reason or CloseReason.PEER_CLOSED, "")

    # IPushProducer

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._link.flush()

    def stopProducing(self) -> None:
        self._paused = True

    # From the link

    def watch(self, user_timeout: int) -> None:
        """Let the kernel detect that the peer is gone.  C{user_timeout}: in seconds."""
        transport = self.transport
        while isinstance(transport, ProtocolWrapper):
            transport = transport.transport
        handle = getattr(transport, "getHandle", lambda: None)()
        if not isinstance(handle, socket.socket) or handle.family not in _INTERNET:
            return
        for option, value in (
            (getattr(socket, "TCP_KEEPIDLE", None), KEEPALIVE_SECONDS),
            (getattr(socket, "TCP_KEEPINTVL", None), KEEPALIVE_ANSWER_SECONDS),
            (getattr(socket, "TCP_KEEPCNT", None), 1),
            (getattr(socket, "TCP_USER_TIMEOUT", None), user_timeout * 1000),
            (_TCP_RTO_MAX_MS, RETRANSMIT_MS),
        ):
            if option is not None:
                with suppress(OSError):  # the kernel has no such option, or the connection ended
                    handle.setsockopt(socket.IPPROTO_TCP, option, value)
        with suppress(OSError):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def flush(self, conversation: Conversation) -> None:
        while not self._paused and (data := conversation.data_to_send()):
            self.transport.write(data)

    def pause_reading(self) -> None:
        self.transport.pauseProducing()

    def resume_reading(self) -> None:
        self.transport.resumeProducing()

    def closing(self) -> None:
        """The connection is about to close: TLS would wait for a producer."""
        self.transport.unregisterProducer()

    def abort(self, reason: CloseReason) -> None:
        self._reason = reason
        self.transport.abortConnection()
