"""
The client as a Twisted service: it keeps a line to a server, whatever happens.

L{domaeka.client.conversation} says what is said on a line, L{domaeka.client.route} where the next
one goes; here they are joined to the reactor.
"""

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

from domaeka.client.conversation import CAPABILITIES, Conversation, Event, Memory, Unreadable
from domaeka.client.events import ClientEvent, Connected, Lost, Moved, Stopped
from domaeka.client.line import Line
from domaeka.client.outgoing import MESSAGE_TTL_SECONDS, Fate, SendQueue
from domaeka.client.route import Route, Server
from domaeka.errors import CloseReason, ErrorCode
from domaeka.messages import Dialect, Reply
from domaeka.phonewire import (
    Closing,
    Delivered,
    Greeting,
    Identity,
    Moving,
    Said,
    Unknown,
)
from domaeka.policies.auth import Signer

#: How long making a connection may take, in seconds.
CONNECT_SECONDS: Final = 10.0
#: How long chat waits, when the server has changed, for the one before to answer what it was told,
#: and how long that one has for it in all, in seconds.  Source: docs/client.md, "Several servers";
#: a server gives itself less (docs/settings.md, C{shutdown.drain_timeout}).
SETTLE_SECONDS: Final = 5.0
LEAVE_SECONDS: Final = 40.0
#: How often a preferred server is looked for, in seconds; half of it is at random.  And how long
#: it may take to greet us.  Source: docs/client.md, "Several servers".
RETURN_SECONDS: Final = 300.0
_RETURN_TRIAL_SECONDS: Final = 20.0
#: Longest that a move is tried, in seconds, whatever the notice allows.
MOVE_SECONDS: Final = 600.0
#: Longest that a notice may let us wait before a move, in seconds.
_MAX_MOVE_DELAY_SECONDS: Final = 3600.0
#: How often limits and deadlines are looked at, in seconds.
_TICK_SECONDS: Final = 1.0
#: Answers after which trying again soon is of no use.
_UNWANTED: Final = frozenset({ErrorCode.BANNED, ErrorCode.NOT_APPROVED, ErrorCode.AUTH_FAILED})


class Credentials(msgspec.Struct, frozen=True):
    """What a phone signs with."""

    secret_key: str
    salt: str

    def __repr__(self) -> str:
        """Nothing of what is secret."""
        return "<Credentials>"


class Client(Service):
    """
    A phone of a gateway: says what is written in its rooms, and is told what to answer.

    It connects when it is started, comes back by itself, and sends what was given to it once
    there is a server; docs/client.md says how.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        servers: Sequence[Server],
        identity: Identity,
        credentials: Credentials | None,
        on_reply: Callable[[Reply], None],
        on_event: Callable[[ClientEvent], None] | None = None,
        *,
        dialect: Dialect = Dialect.V33,
        capabilities: Sequence[str] = CAPABILITIES,
        trusted_hosts: Sequence[str] = (),
        endpoint: Callable[[Server], interfaces.IStreamClientEndpoint] | None = None,
        random: Callable[[], float] = _random,
    ) -> None:
        """
        @param servers: one at least, the preferred one first.
        @param credentials: L{None}: nothing is signed.
        @param on_reply: told of everything that is for a room.
        @param on_event: told of everything else.  Both may stop the client.
        @param dialect: 3.2 has no capabilities.
        @param capabilities: what is offered to servers; none: the protocol of old.
        @param trusted_hosts: hosts that a notice need not be signed for.
        @param endpoint: how to reach a server, where the usual way, with the certificate checked
            for a server with TLS, will not do.
        @param random: a number from 0 up to, but not including, 1.
        """
        self.reactor = reactor
        self.identity = identity
        self._signer = (
            Signer([credentials.secret_key], credentials.salt, 0.0, reactor.seconds)
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
        self.queue = SendQueue(reactor.seconds, os.urandom(8).hex())
        self._memory = Memory(reactor.seconds)
        self._line = Line(self, Route(servers, reactor.seconds, random))
        self._next: Line | None = None  # tried beside, to take the place of _line
        self._next_until = 0.0
        self._retiring: Line | None = None  # replaced, but owes us something
        self._settle_at = 0.0
        self._retire_at = 0.0
        self._holding = False  # chat, for what is yet to come on the retiring line
        self._ending: list[Deferred[None]] = []
        self._move: _Move | None = None
        self._move_call: Any = None
        self._hold_until: float | None = None  # told that the server closes
        self._return_at = 0.0
        self._tick_at = 0.0
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = reactor

    # Public

    @property
    def server(self) -> Server:
        """The one that we are with, or try next."""
        return self._line.route.server

    @property
    def greeted(self) -> bool:
        """Whether a server has greeted us, and what is said goes out at once."""
        return self._line.greeted

    @property
    def granted(self) -> frozenset[str]:
        """The capabilities that the server took."""
        conversation = self._line.conversation
        return conversation.granted if conversation is not None else frozenset()

    def say(self, said: Said, ttl: float = MESSAGE_TTL_SECONDS) -> "Deferred[Fate]":
        """
        Tell the server what somebody wrote in a room, now or when there is a server.

        @param ttl: how long it may wait, in seconds.
        @return: fires, and never fails, when its fate is known.
        @raise ValueError: no server would take it.
        @raise QueueFull: too many wait.
        """
        result: Deferred[Fate] = Deferred()
        self.queue.put(said, ttl, result.callback)
        self._line.flush()
        return result

    # IService

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._tick_at = self.reactor.seconds()
        self._return_at = self._next_return()
        self._ticking.start(_TICK_SECONDS, now=False).addErrback(
            lambda failure: self.log.failure("the client's clock stopped", failure)
        )
        self._line.start()

    def stopService(self) -> "Deferred[None]":
        """
        End the connection, in order.

        @return: fires when all is closed.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        if self._ticking.running:
            self._ticking.stop()
        self.queue.clear()
        for line in (self._line, self._next, self._retiring):
            if line is not None:
                self._end(line)
        self._next = self._retiring = self._hold_until = None
        self._holding = False
        self._plan(None)
        return defer.gatherResults([*self._ending]).addCallback(lambda _: None)

    # From the lines

    def conversation(self) -> Conversation:
        """A new one, for a new connection."""
        return Conversation(
            self.identity,
            self._signer.sign if self._signer is not None else None,
            self.queue,
            self._memory,
            self.reactor.seconds,
            self.dialect,
            self._capabilities,
        )

    def tell(self, event: ClientEvent) -> None:
        """Tell the owner, whose mistakes are not ours."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            self.log.failure("on_event failed")

    def connected(self, line: Line) -> None:
        """A connection is made."""
        self.tell(Connected(line.route.server))
        # The phones of old wait for no greeting.
        if not self._capabilities and line is self._line:
            self._open()

    def said(self, line: Line, event: Event) -> None:
        """The server said something."""
        if isinstance(event, Delivered):
            try:
                self._on_reply(event.reply)
            except Exception:
                self.log.failure("on_reply failed")
            return
        if isinstance(event, Greeting):
            self._greeted(line, event)
        elif isinstance(event, Unreadable | Unknown):
            self.log.debug("dropped: {event}", event=event)
        elif line is self._line:
            if isinstance(event, Closing):
                called_off = self._hold_until is not None and event.reconnect_after <= 0
                line.close_queue()
                self._hold_until = line.route.stay_away(event.reconnect_after)
                self.queue.stay_away(self._hold_until)
                if called_off:
                    self._resume()
            elif isinstance(event, Moving):
                self._moving(event)
        self.tell(event)

    def _greeted(self, line: Line, greeting: Greeting) -> None:
        if not greeting.success:
            line.route.unwanted(line.route.server)
            line.abort(CloseReason.BAD_HANDSHAKE)
            return
        line.route.greeted()
        self.queue.back()
        self._hold_until = None
        if line is self._next:
            self._replace(line)
        elif line is self._line:
            self._open()

    def _open(self) -> None:
        """What waits may go out, unless it must wait for more."""
        if not self._holding:
            self._line.open()

    def _resume(self) -> None:
        """The server that was to close serves on: what it refused meanwhile goes again."""
        self._hold_until = None
        self.queue.back()
        if self._line.greeted and not self._holding:
            self.queue.connection_lost()
            self._line.open()

    def lost(self, line: Line, reason: CloseReason, why: str) -> None:
        """A connection ended.  Its L{ClientService} will come back, unless it is stopped here."""
        route = line.route
        server = route.server
        if line.was_greeted:
            route.lost()
        else:
            route.failed()
        if line is self._retiring:
            self._retired()
        elif line is self._line:
            self._memory.connection_lost()
            if not self._holding:
                self.queue.connection_lost()
            if self.running:
                self.tell(Lost(server, reason, why))
                self._judge(line, server)

    def _judge(self, line: Line, server: Server) -> None:
        """The line in use, to C{server}, was lost: decide what comes of it."""
        code = line.last_words
        if self._next is not None:
            self._give_place(self._next)
        elif self._move is not None:
            line.route.moved(self._move.server, self._move.at)
            self._plan(None)
        elif code == ErrorCode.TAKEN_OVER:
            self._end(line)
            self.tell(Stopped(ErrorCode.TAKEN_OVER))
        elif code in _UNWANTED:
            line.route.unwanted(server)

    # Moves

    def _moving(self, notice: Moving) -> None:
        """Follow a notice that may be followed."""
        now = self.reactor.seconds()
        server = Server(notice.new_host, notice.new_port, notice.tls)
        if not server.plausible:
            self.log.warn("a notice to move names no place")
            return
        signed = self._signer is not None and (
            notice.signature.isascii()
            and hmac.compare_digest(self._signer.sign(notice.signed_text), notice.signature)
            and notice.expires > now * 1000
        )
        if not signed:
            if notice.new_host not in self._trusted_hosts:
                self.log.warn("a notice to move is not signed, or has expired: not followed")
                return
            if self.server.tls:  # nobody talks us out of it without a signature
                server = msgspec.structs.replace(server, tls=True)
        delay = min(max(notice.migrate_after, 0.0), _MAX_MOVE_DELAY_SECONDS)
        earliest = (
            self._move.earliest if self._move is not None else now + self._line.route.move_delay()
        )
        at = max(now + delay, earliest)
        until = at + MOVE_SECONDS
        if signed:
            until = min(until, notice.expires / 1000)
        self._plan(_Move(server, at, until, earliest))

    def _plan(self, move: "_Move | None") -> None:
        """Have a move in view, or none."""
        if self._move_call is not None and self._move_call.active():
            self._move_call.cancel()
        self._move = move
        self._move_call = None
        if move is not None:
            # Not at a tick: servers spread their clients more finely.
            delay = max(0.0, move.at - self.reactor.seconds())
            self._move_call = self.reactor.callLater(delay, self._guarded, self._check_moves)

    def _replace(self, line: Line) -> None:
        """C{line} has been greeted: it takes the place of the one in use."""
        if self._retiring is not None:
            self._retired()
        old = self._line
        self._give_place(line)
        server = line.route.server
        old.close_queue()
        if old.conversation is not None:
            old.conversation.migrated(server.host, server.port)
            old.flush()
        now = self.reactor.seconds()
        self._retiring = old
        self._holding = True
        self._settle_at = now + SETTLE_SECONDS
        self._retire_at = now + LEAVE_SECONDS
        self.tell(Moved(server))

    def _give_place(self, line: Line) -> None:
        """C{line} is the one in use from now on."""
        old = self._line
        self._line = line
        self._next = None
        self._plan(None)
        line.route.add(old.route)
        self._return_at = self._next_return()
        if not old.is_connected:
            self._end(old)

    def _retired(self) -> None:
        """The replaced line has ended: the server has closed it, or it has had its time."""
        old = self._retiring
        assert old is not None
        self._retiring = None
        self._end(old)
        # What it has not acknowledged; what the server in use has had already, that one drops.
        self.queue.connection_lost()
        self._hold_no_more()

    def _hold_no_more(self) -> None:
        self._holding = False
        if self._line.greeted:
            self._line.open()

    def _try_beside(self, server: Server, until: float) -> None:
        """Try C{server} without leaving the one that we are with."""
        self._next = Line(self, self._line.route.beside(server))
        self._next_until = until
        self._next.start()

    def _end(self, line: Line) -> None:
        ended = line.stop()
        if ended.called:
            return
        self._ending.append(ended)
        ended.addCallback(lambda _: self._ending.remove(ended))

    # Time

    def _tick(self) -> None:
        self._guarded(self._look)

    def _guarded(self, function: Callable[[], None]) -> None:
        """A mistake of ours must not stop the clock."""
        try:
            function()
        except Exception:
            self.log.failure("a look at the client's deadlines failed")

    def _look(self) -> None:
        now = self.reactor.seconds()
        # A process that was held up, or a clock that was set, judges nobody.
        on_time = 0 <= now - self._tick_at < 2 * _TICK_SECONDS + 1
        self._tick_at = now
        self.queue.expire()
        for line in (self._line, self._next, self._retiring):
            if line is not None:
                line.check(on_time)
        if self._holding and now >= self._settle_at:
            self._hold_no_more()
        if self._retiring is not None and now >= self._retire_at:
            self._retired()
        if self._hold_until is not None and now >= self._hold_until and self._line.greeted:
            self._resume()
        self._check_moves()

    def _check_moves(self) -> None:
        now = self.reactor.seconds()
        if self._next is not None:
            if now >= self._next_until:
                self._end(self._next)
                self._next = None
            return
        if self._move is not None:
            move = self._move
            if now >= move.until:
                self._plan(None)
            elif now >= move.at and self._line.is_connected:
                self._try_beside(move.server, move.until)
                self._plan(None)
        elif now >= self._return_at:
            self._return_at = self._next_return()
            if self._line.greeted and self._line.route.may_return and not self._retiring:
                preferred = self._line.route.servers[0]
                self._try_beside(preferred, now + _RETURN_TRIAL_SECONDS)

    def _next_return(self) -> float:
        return float(self.reactor.seconds()) + RETURN_SECONDS * (0.5 + self._random() / 2)

    def _usual_endpoint(self, server: Server) -> interfaces.IStreamClientEndpoint:
        plain: Any = HostnameEndpoint(
            self.reactor, server.host, server.port, timeout=CONNECT_SECONDS
        )
        if not server.tls:
            return plain  # type: ignore[no-any-return]
        options = ssl.optionsForClientTLS(server.host)
        return wrapClientTLS(options, plain)


class _Move(msgspec.Struct):
    """
    Where to go, from when on, and until when it may be tried.

    @ivar earliest: before this time no notice makes us go.
    """

    server: Server
    at: float
    until: float
    earliest: float
