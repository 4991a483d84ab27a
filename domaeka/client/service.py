"""The client as a Twisted service: it keeps a link to a server."""

import hmac
import os
from collections.abc import Callable, Sequence
from random import random as _random
from typing import Any, Final

import msgspec
from twisted.application.service import Service
from twisted.internet import defer, interfaces, ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.client.conversation import CAPABILITIES, Conversation, Event, SessionState, Unreadable
from domaeka.client.events import ClientEvent, Connected, Lost, Moved, Stopped
from domaeka.client.link import Link
from domaeka.client.route import Route, Server
from domaeka.client.send_queue import MESSAGE_TTL_SECONDS, Fate, SendQueue
from domaeka.clock import MonotonicClock
from domaeka.errors import CloseReason, ErrorCode
from domaeka.policies.auth import Signer
from domaeka.wire import (
    APP_FAILED,
    APP_REFUSED,
    Delivered,
    DeliveryReport,
    Dialect,
    Greeting,
    Identity,
    MigrationNotice,
    ReplayNotice,
    Reply,
    Said,
    ShutdownNotice,
    Unknown,
)

#: Timeout for making a connection, in seconds.  Linux sends a SYN 7 s after the first one, and the
#: next one 4 to 8 s later: to wait for that would only delay the next attempt.
CONNECT_SECONDS: Final = 8.0
#: After a move, the longest time that chat waits for answers of the server before, and that this
#: server has for them in all, in seconds.  Source: docs/client.md, "Several servers"; a server
#: gives itself less (docs/settings.md, C{shutdown.drain_timeout}).
SETTLE_SECONDS: Final = 5.0
LEAVE_SECONDS: Final = 40.0
#: Longest interval between attempts to return to the preferred server, of which half is random,
#: and the timeout of such an attempt, in seconds.  Source: docs/client.md, "Several servers".
RETURN_SECONDS: Final = 300.0
_RETURN_TRIAL_SECONDS: Final = 20.0
#: Longest time that a move is tried, in seconds, even if the notice allows more.
MOVE_SECONDS: Final = 600.0
#: Longest delay before a move that a notice may ask for, in seconds.
_MAX_MOVE_DELAY_SECONDS: Final = 3600.0
#: Take-overs in a row after which the client comes back, and the time connected that ends the
#: row, in seconds.  Source: docs/client.md, "Coming back".
MAX_TAKEOVERS: Final = 2
TAKEN_OVER_MEMORY_SECONDS: Final = 600.0
#: Interval of the check of deadlines, in seconds.
_TICK_SECONDS: Final = 1.0
#: Errors after which a new attempt soon is useless.
_BARS: Final = frozenset({ErrorCode.BANNED, ErrorCode.NOT_APPROVED, ErrorCode.AUTH_FAILED})


class Credentials(msgspec.Struct, frozen=True):
    """Secrets with which a phone signs."""

    secret_key: str
    salt: str

    def __repr__(self) -> str:
        """Hide the secrets."""
        return "<Credentials>"


class Client(Service):
    """
    A phone of a gateway: it sends what people write in its rooms, and receives the answers.

    It connects when it is started, reconnects by itself, and keeps messages until there is a
    server; docs/client.md describes it.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        servers: Sequence[Server],
        identity: Identity,
        credentials: Credentials | None,
        on_reply: Callable[[Reply], object],
        on_event: Callable[[ClientEvent], None] | None = None,
        *,
        dialect: Dialect = Dialect.V33,
        capabilities: Sequence[str] = CAPABILITIES,
        trusted_hosts: Sequence[str] = (),
        endpoint: Callable[[Server], interfaces.IStreamClientEndpoint] | None = None,
        random: Callable[[], float] = _random,
        wall: Callable[[], float] | None = None,
    ) -> None:
        """
        @param servers: at least one, the preferred one first.
        @param credentials: L{None}: nothing is signed.
        @param on_reply: called with every message for a room.  C{False}, or a Deferred that fires
            with it, says that it could not be shown there; an exception says so, too.
        @param on_event: called with every other event.  Both may stop the client.
        @param dialect: 3.2 has no capabilities.
        @param capabilities: those to offer; none: the protocol of old phones.
        @param trusted_hosts: hosts to which an unsigned notice may move the client.
        @param endpoint: the endpoint of a server; by default TCP, or TLS with the certificate
            checked.
        @param random: a number from 0 up to, but not including, 1.
        @param wall: the wall clock for signatures, in seconds since 1970; by default
            C{reactor.seconds}, which is one unless it was replaced.
        """
        self.reactor = reactor
        #: The monotonic clock.
        self.seconds: Callable[[], float] = MonotonicClock(reactor.seconds)
        self._wall: Callable[[], float] = wall or reactor.seconds
        self.identity = identity
        self._signer = (
            Signer([credentials.secret_key], credentials.salt, 0.0, self._wall)
            if credentials is not None
            else None
        )
        self._on_reply = on_reply
        self._on_event = on_event
        self.dialect = dialect
        self._capabilities = () if dialect is Dialect.V32 else tuple(capabilities)
        self._trusted_hosts = frozenset(trusted_hosts)
        self.endpoint_for = endpoint or self._usual_endpoint
        self._random = random
        self.queue = SendQueue(self.seconds, os.urandom(8).hex())
        self._session = SessionState(self.seconds, self._wall)
        self._link = Link(self, Route(servers, self.seconds, random))
        self._next: Link | None = None  # tried in parallel, to replace _link
        self._next_until = 0.0
        self._retiring: Link | None = None  # replaced; may still send answers
        self._settle_at = 0.0
        self._retire_at = 0.0
        self._holding = False  # chat waits for answers of the retiring link
        self._ending: list[Deferred[None]] = []
        self._move: _Move | None = None
        self._move_call: Any = None
        self._takeovers = 0  # in a row
        self._hold_until: float | None = None  # the server closes; it may be back then
        self._return_at = 0.0
        self._tick_at = 0.0
        self._ticking = LoopingCall(self._log_failures, self._check_deadlines)
        self._ticking.clock = reactor

    # Public

    @property
    def server(self) -> Server:
        """The server that we are connected to, or try next."""
        return self._link.route.server

    @property
    def greeted(self) -> bool:
        """True if a server has greeted us, so that messages are sent at once."""
        return self._link.greeted

    @property
    def granted(self) -> frozenset[str]:
        """The capabilities that the server accepted."""
        conversation = self._link.conversation
        return conversation.granted if conversation is not None else frozenset()

    def say(self, said: Said, ttl: float = MESSAGE_TTL_SECONDS) -> "Deferred[Fate]":
        """
        Send a message, at once or when there is a server.

        @param ttl: time that it may wait, in seconds.
        @return: fires with the outcome; never fails.
        @raise ValueError: no server would accept it.
        @raise QueueFull: too many messages wait.
        """
        result: Deferred[Fate] = Deferred()
        self.queue.put(said, ttl, result.callback)
        self._link.flush()
        return result

    # IService

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._takeovers = 0
        self._tick_at = self.reactor.seconds()
        self._return_at = self._next_return()
        self._ticking.start(_TICK_SECONDS, now=False).addErrback(
            lambda failure: self.log.failure("the client's clock stopped", failure)
        )
        self._link.start()

    def stopService(self) -> "Deferred[None]":
        """Close the connections in order.  @return: fires when all are closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._ticking.running:
            self._ticking.stop()
        self.queue.clear()
        for link in (self._link, self._next, self._retiring):
            if link is not None:
                self._end(link)
        self._next = self._retiring = self._hold_until = None
        self._holding = False
        self._plan(None)
        return defer.gatherResults([*self._ending]).addCallback(lambda _: None)

    # From the links

    def conversation(self) -> Conversation:
        """A new conversation, for a new connection."""
        return Conversation(
            self.identity,
            self._signer.sign if self._signer is not None else None,
            self.queue,
            self._session,
            self.seconds,
            self.dialect,
            self._capabilities,
        )

    def heard(self) -> None:
        """Bytes were received.  Restart our timers if the clock behind them was set back."""
        if self._ticking.running and self.reactor.seconds() < self._tick_at:
            self._tick_at = self.reactor.seconds()
            self._ticking.reset()
            self._plan(self._move)

    def tell(self, event: ClientEvent) -> None:
        """Report an event; exceptions of the callback are logged."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            self.log.failure("on_event failed")

    def connected(self, link: Link) -> None:
        """A connection is made."""
        self.tell(Connected(link.route.server))
        # Old phones do not wait for a greeting.
        if not self._capabilities and link is self._link:
            self._open()

    def received(self, link: Link, event: Event) -> None:
        """The server has sent something."""
        if isinstance(event, Delivered):
            self._show(link, event)
            return
        if isinstance(event, Greeting):
            self._greeted(link, event)
        elif isinstance(event, Unreadable | Unknown):
            self.log.debug("dropped: {event}", event=event)
        elif isinstance(event, ReplayNotice):
            self.log.warn("a signature of ours came on another connection: the line is listened to")
        elif link is self._link:
            if isinstance(event, ShutdownNotice):
                called_off = self._hold_until is not None and event.reconnect_after <= 0
                link.close_queue()
                self._hold_until = link.route.stay_away(event.reconnect_after)
                self.queue.suspend_expiry(self._hold_until)
                if called_off:
                    self._resume()
            elif isinstance(event, MigrationNotice):
                self._migrate(event)
        self.tell(event)

    def _show(self, link: Link, event: Delivered) -> None:
        """Hand a message over, and report to its server what became of it."""
        number = event.message_id
        conversation = link.conversation
        awaited = conversation is not None and "delivery" in conversation.granted
        epoch = conversation.epoch if conversation is not None else None

        def failed(failure: Failure) -> str:
            self.log.failure("on_reply failed", failure)
            return APP_FAILED

        def report(shown: object) -> None:
            if awaited and number is not None:
                reason = shown if shown is APP_FAILED else APP_REFUSED if shown is False else ""
                self._session.report(epoch, DeliveryReport(number, not reason, reason))
                link.flush()
                self._link.flush()

        showing = defer.maybeDeferred(self._on_reply, event.reply)
        showing.addErrback(failed).addCallback(report)

    def _greeted(self, link: Link, greeting: Greeting) -> None:
        if not greeting.success:
            link.route.barred(link.route.server)
            link.abort(CloseReason.BAD_HANDSHAKE)
            return
        link.route.greeted()
        self.queue.resume_expiry()
        self._hold_until = None
        if link is self._next:
            self._replace(link)
        elif link is self._link:
            self._open()

    def _open(self) -> None:
        """Send what waits, unless chat is held."""
        if not self._holding:
            self._link.open()

    def _resume(self) -> None:
        """The server has called off its close: send again what it did not acknowledge."""
        self._hold_until = None
        self.queue.resume_expiry()
        if self._link.greeted and not self._holding:
            self.queue.connection_lost()
            self._link.open()

    def lost(self, link: Link, reason: CloseReason, why: str) -> None:
        """A connection has ended.  The link reconnects unless it is stopped here."""
        route = link.route
        server = route.server
        if link.was_greeted:
            route.lost()
        else:
            route.failed()
        if link.close_code is not None or (
            not link.was_greeted and reason is not CloseReason.HANDSHAKE_TIMEOUT
        ):
            route.refused(server)
        if link is self._retiring:
            self._retired()
        elif link is self._link:
            self._session.connection_lost()
            if not self._holding:
                self.queue.connection_lost()
            if self.running:
                self.tell(Lost(server, reason, why))
                self._current_lost(link, server)

    def _current_lost(self, link: Link, server: Server) -> None:
        """Decide what follows the loss of the current link, which led to C{server}."""
        code = link.close_code
        if self._next is not None:
            self._make_current(self._next)
        elif self._move is not None:
            link.route.moved(self._move.server, self._move.at)
            self._plan(None)
        elif code == ErrorCode.TAKEN_OVER:
            self._taken_over(link)
        elif code in _BARS:
            link.route.barred(server)

    def _taken_over(self, link: Link) -> None:
        """
        Come back in a while: whoever took our place may have had our session token alone, and we
        can sign.  A second phone with our name, which comes back as well, has us stop.
        """
        now = self.seconds()
        if now - link.greeted_at >= TAKEN_OVER_MEMORY_SECONDS:
            self._takeovers = 0
        self._takeovers += 1
        if self._takeovers > MAX_TAKEOVERS:
            self._end(link)
            self.tell(Stopped(ErrorCode.TAKEN_OVER))
        else:
            link.route.taken_over()

    # Moves

    def _migrate(self, notice: MigrationNotice) -> None:
        """Plan the move of a notice that is signed, or names a trusted host."""
        now = self.seconds()
        lasts = notice.expires / 1000 - self._wall()
        server = Server(notice.new_host, notice.new_port, notice.tls)
        if not server.plausible:
            self.log.warn("a notice to move names no place")
            return
        signed = self._signer is not None and (
            notice.signature.isascii()
            and hmac.compare_digest(self._signer.sign(notice.signed_text), notice.signature)
            and lasts > 0
        )
        if not signed:
            if notice.new_host not in self._trusted_hosts:
                self.log.warn("a notice to move is not signed, or has expired: not followed")
                return
            if self.server.tls:  # only a signed notice leads away from TLS
                server = msgspec.structs.replace(server, tls=True)
        delay = min(max(notice.migrate_after, 0.0), _MAX_MOVE_DELAY_SECONDS)
        earliest = (
            self._move.earliest if self._move is not None else now + self._link.route.move_delay()
        )
        at = max(now + delay, earliest)
        until = at + MOVE_SECONDS
        if signed:
            until = min(until, now + lasts)
        self._plan(_Move(server, at, until, earliest))

    def _plan(self, move: "_Move | None") -> None:
        """Schedule a move, or cancel the one scheduled."""
        if self._move_call is not None and self._move_call.active():
            self._move_call.cancel()
        self._move = move
        self._move_call = None
        if move is not None:
            # At its own time, not at a tick: servers spread their clients more finely.
            delay = max(0.0, move.at - self.seconds())
            self._move_call = self.reactor.callLater(delay, self._log_failures, self._check_moves)

    def _replace(self, link: Link) -> None:
        """Replace the current link with C{link}, which has been greeted."""
        if self._retiring is not None:
            self._retired()
        old = self._link
        self._make_current(link)
        server = link.route.server
        old.close_queue()
        if old.conversation is not None:
            old.conversation.migrated(server.host, server.port)
            old.flush()
        now = self.seconds()
        self._retiring = old
        self._holding = True
        self._settle_at = now + SETTLE_SECONDS
        self._retire_at = now + LEAVE_SECONDS
        self.tell(Moved(server))

    def _make_current(self, link: Link) -> None:
        """Make C{link} the current link."""
        old = self._link
        self._link = link
        self._next = None
        self._plan(None)
        link.route.add(old.route)
        self._return_at = self._next_return()
        if not old.is_connected:
            self._end(old)

    def _retired(self) -> None:
        """End the replaced link: the server has closed it, or its time is over."""
        old = self._retiring
        assert old is not None
        self._retiring = None
        self._end(old)
        # Send again what it has not acknowledged; the current server drops what it knows.
        self.queue.connection_lost()
        self._release_held()

    def _release_held(self) -> None:
        self._holding = False
        if self._link.greeted:
            self._link.open()

    def _try_in_parallel(self, server: Server, until: float) -> None:
        """Try C{server} while the current link stays in use."""
        self._next = Link(self, self._link.route.parallel(server))
        self._next_until = until
        self._next.start()

    def _end(self, link: Link) -> None:
        ended = link.stop()
        if ended.called:
            return
        self._ending.append(ended)
        ended.addCallback(lambda _: self._ending.remove(ended))

    # Time

    def _log_failures(self, function: Callable[[], None]) -> None:
        """Log exceptions, so that the timers go on."""
        try:
            function()
        except Exception:
            self.log.failure("a look at the client's deadlines failed")

    def _check_deadlines(self) -> None:
        # After a delay of our own, or a clock that was set, silence is nobody's fault.
        on_time = 0 <= self.reactor.seconds() - self._tick_at < 2 * _TICK_SECONDS + 1
        self._tick_at = self.reactor.seconds()
        now = self.seconds()
        self.queue.expire()
        for link in (self._link, self._next, self._retiring):
            if link is not None:
                link.check(on_time)
        if self._holding and now >= self._settle_at:
            self._release_held()
        if self._retiring is not None and now >= self._retire_at:
            self._retired()
        if self._hold_until is not None and now >= self._hold_until and self._link.greeted:
            self._resume()
        self._check_moves()

    def _check_moves(self) -> None:
        now = self.seconds()
        if self._next is not None:
            if now >= self._next_until:
                self._end(self._next)
                self._next = None
            return
        if self._move is not None:
            move = self._move
            if now >= move.until:
                self._plan(None)
            elif now >= move.at and self._link.is_connected:
                self._try_in_parallel(move.server, move.until)
                self._plan(None)
        elif now >= self._return_at:
            self._return_at = self._next_return()
            if self._link.greeted and self._link.route.may_return and not self._retiring:
                preferred = self._link.route.servers[0]
                self._try_in_parallel(preferred, now + _RETURN_TRIAL_SECONDS)

    def _next_return(self) -> float:
        return self.seconds() + RETURN_SECONDS * (0.5 + self._random() / 2)

    def _usual_endpoint(self, server: Server) -> interfaces.IStreamClientEndpoint:
        plain: Any = HostnameEndpoint(
            self.reactor, server.host, server.port, timeout=CONNECT_SECONDS
        )
        if not server.tls:
            return plain  # type: ignore[no-any-return]
        options = ssl.optionsForClientTLS(server.host)
        return wrapClientTLS(options, plain)


class _Move(msgspec.Struct):
    """A planned move.  C{earliest}: least time to begin, for this and any later notice."""

    server: Server
    at: float
    until: float
    earliest: float
