"""
HTTP on the network: Twisted's parser, with limits.

No client blocks the server or fills its memory:

  - a request must be complete within L{REQUEST_SECONDS}, however slowly it comes;
  - a body may have L{MAX_BODY_BYTES}; a longer one is refused while it comes.  A route may allow
    more to clients with the token;
  - a connection's requests are answered one at a time, and only once the answer before it has
    left for the kernel; meanwhile no more pipelined data is kept than one read brings.  The
    requests of all connections have a part of each turn of the reactor (L{Turns});
  - an answer must be made within L{ANSWER_SECONDS} and read within L{WRITE_SECONDS};
  - a stream of events is closed if its client falls behind, or is gone: something is sent every
    L{KEEPALIVE_SECONDS} to notice that;
  - the number of connections is limited, each address has its share (L{admit}), and who asks for
    nothing gives way; one from a denied address is closed at once;
  - a request for a host of another name is refused (L{wrong_host});
  - a banned address gets answers from routes for C{anywhere} only (health checks), a few at a time.

Twisted itself refuses more than 16 KiB of headers; L{MAX_HEADERS} bounds their number.
"""

import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Any, Final, cast

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from domaeka.metrics import Metrics
from domaeka.pools import Pool
from domaeka.twisted_internals import HTTPChannel, unsent_bytes
from domaeka.web.admission import MAX_CONNECTIONS, Stage, admit, claimant_of
from domaeka.web.hosts import wrong_host
from domaeka.web.routes import (
    EVENT_HEADERS,
    EVENTS,
    MAX_BODY_BYTES,
    SOCKET,
    Answer,
    Call,
    EventStream,
    Refusal,
    Resource,
    Returned,
    Route,
    RouteTable,
    as_answer,
    bearer_holds,
    is_this_machine,
)
from domaeka.web.turns import Timer as Timer
from domaeka.web.turns import Turns

#: From the first byte of a request (of the first one: from the connection) to its last, in seconds.
REQUEST_SECONDS: Final = 10.0
#: From the last byte of a request until its answer must be made, in seconds.
ANSWER_SECONDS: Final = 30.0
#: Longest time that more than 64 KiB (Twisted's C{bufferSize}) of answers wait for the client to
#: read, in seconds.
WRITE_SECONDS: Final = 30.0
#: Longest idle time between two requests, in seconds.  Source: Prometheus scrapes every 60 s by
#: default.
IDLE_SECONDS: Final = 75.0
#: Time for which an answer may take its way into the kernel before its connection gives way to
#: others, in seconds: usually it is there in the next turn of the reactor.
LEAVE_SECONDS: Final = 1.0
#: Longest time for a connection that is being closed to send what is written, in seconds.
CLOSE_SECONDS: Final = 5.0
#: Longest silence in a stream of events, in seconds.  Source: proxies close a silent connection
#: after 30 s or more.
KEEPALIVE_SECONDS: Final = 15.0
#: Most bytes that are read and thrown away after a refusal, so that the client gets to read it.
MAX_DISCARDED_BYTES: Final = 1_048_576
#: Most header lines of a request.
MAX_HEADERS: Final = 100
#: Bytes of pipelined requests beyond which reading stops while one is being answered.
_READ_AHEAD_BYTES: Final = 4096

#: Headers of every answer.  A page may do nothing unless its own answer allows it.
_HEADERS: Final = {
    "Server": "domaeka",
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Request(http.Request):
    """A request: finds its route, calls it, and sends the result."""

    _log = Logger()

    def __init__(self, channel: "Channel", queued: object = False) -> None:
        super().__init__(channel, queued, parsePOSTFormSubmission=False)
        self._channel = channel
        self._site = channel.site
        self._resource: Resource | None = None
        self._body = BytesIO()
        self._body_bytes = 0
        self._body_limit = MAX_BODY_BYTES
        self._answering: Deferred[Any] | None = None
        self._late = False
        self._gone = False  # the client has closed
        self._stream: EventStream | None = None
        self._keepalive: Any = None

    # http.Request

    def parseCookies(self) -> None:
        """There are none."""

    def gotLength(self, length: int | None) -> None:
        # All headers are there and no byte of the body yet: its limit can be set.
        self.content = self._body
        method, target = self._channel.request_line
        self._resource = self._site.table.find(target)
        route = None if self._resource is None else self._resource.route(method)
        if self._site.is_barred(self._channel.host) and not (route and route.anywhere):
            self._site.metrics.http_refused.inc()
            self._channel.refuse(HTTPStatus.FORBIDDEN, "BANNED", "this address is banned")
            return
        hosts = self.requestHeaders.getRawHeaders(b"host", [])
        wrong = wrong_host(target, hosts, self._site.hosts())
        if wrong is not None:
            self._channel.refuse(HTTPStatus(wrong.status), wrong.code, wrong.text)
            return
        if route is not None and route.token and self._has_token():
            self._body_limit = route.max_body_bytes
        if length is not None and length > self._body_limit:
            self._refuse_body()

    def handleContentChunk(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self._body_limit:
            self._refuse_body()
        else:
            self._body.write(data)

    def process(self) -> None:
        self._channel.call_soon(self._serve)

    def connectionLost(self, reason: Failure) -> None:
        self._gone = True
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        if self._answering is not None:
            self._answering.cancel()
        self._leave_stream()

    # Ours

    @property
    def is_stream(self) -> bool:
        """True while its answer is a stream of events."""
        return self._stream is not None

    def time_out(self) -> None:
        """Cancel the answer: it has taken too long to make."""
        self._late = True
        if self._answering is not None:
            self._answering.cancel()

    def _serve(self) -> None:
        if self._gone:
            return
        self._answering = maybeDeferred(self._call_route)
        self._answering.addCallback(as_answer)
        self._answering.addErrback(self._error_answer)
        self._answering.addCallback(self._send)
        self._answering.addErrback(
            lambda failure: self._log.failure("An HTTP answer could not be given", failure)
        )

    def _call_route(self) -> Returned:
        resource = self._resource
        method = self.method.decode("ascii")
        if method == "OPTIONS" and (resource is not None or self.uri == b"*"):
            allowed = "GET, HEAD, OPTIONS" if resource is None else resource.allowed
            return Answer(status=HTTPStatus.NO_CONTENT, headers={"Allow": allowed})
        if resource is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", "there is nothing here")
        route = resource.route(method)
        if route is None:
            raise Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                f"this takes {resource.allowed}",
                {"Allow": resource.allowed},
            )
        needs_token = route.token or not (route.anywhere or is_this_machine(self.peer))
        if needs_token and not self._has_token():
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "UNAUTHORIZED",
                "the bearer token is missing or wrong",
                {"WWW-Authenticate": "Bearer"},
            )
        return route.serve(self._call(method, resource))

    def _call(self, method: str, resource: Resource) -> Call:
        try:
            query = {
                name.decode(): tuple(value.decode() for value in values)
                for name, values in (self.args or {}).items()
            }
        except UnicodeDecodeError:
            raise Refusal(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", "not UTF-8") from None
        return Call(
            method,
            self.path.decode("latin-1"),
            resource.names,
            query,
            {
                name.decode("latin-1").lower(): values[-1].decode("latin-1")
                for name, values in self.requestHeaders.getAllRawHeaders()
            },
            self._body.getvalue(),
            self.peer,
            self._channel.port,
        )

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._channel.host

    def _has_token(self) -> bool:
        return bearer_holds(self.getHeader(b"authorization"), self._site.token().encode())

    def _error_answer(self, failure: Failure) -> Answer:
        """The answer for an error."""
        error = failure.value
        if isinstance(error, Refusal):
            return error.answer()
        if isinstance(error, CancelledError) and (self._late or self._gone):
            return Refusal(
                HTTPStatus.GATEWAY_TIMEOUT, "TIMEOUT", "the answer takes too long"
            ).answer()
        name = secrets.token_hex(4)
        self._site.metrics.errors.labels("http").inc()
        self._log.failure(
            "HTTP request {request} failed: {method} {path}",
            failure,
            request=name,
            method=self.method.decode("ascii"),
            path=self.path.decode("latin-1"),
        )
        return Refusal(
            HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL", f"internal error {name}: see the log"
        ).answer()

    def _send(self, answer: Answer | EventStream) -> None:
        if isinstance(answer, EventStream):
            self._begin_stream(answer)
            return
        if self._gone:
            return
        self._set_headers(self._site.headers_of(answer), answer.status)
        self.write(answer.body)  # type: ignore[no-untyped-call]
        self.finish()  # type: ignore[no-untyped-call]

    def _set_headers(self, headers: Mapping[str, str], status: int = HTTPStatus.OK) -> None:
        self.setResponseCode(status)
        for name, value in headers.items():
            self.responseHeaders.setRawHeaders(name, [value])

    # Streams of events

    def send_events(self) -> None:
        """Send the waiting events of the stream, if there is one and its client reads."""
        stream = self._stream
        if stream is None:
            return
        if stream.fallen_behind:
            self._site.metrics.pools.gave_way(Pool.EVENT_STREAMS, self.peer)
            self._channel.abort()
        elif not self._channel.is_paused:
            self.write(stream.take())  # type: ignore[no-untyped-call]

    def end_stream(self) -> None:
        """End the stream in order, if there is one."""
        if self._stream is not None:
            self._leave_stream()
            self.finish()  # type: ignore[no-untyped-call]

    def _begin_stream(self, stream: EventStream) -> None:
        self._stream = stream
        if self._gone:
            self._leave_stream()
            return
        headers = self._site.headers_of(Answer(content_type=EVENTS, headers=EVENT_HEADERS))
        del headers["Content-Length"]
        self._set_headers(headers)
        self.write(b": domaeka\n\n")  # type: ignore[no-untyped-call]
        if self.method == b"HEAD" or stream.is_over:
            self.end_stream()
            return
        self._channel.cancel_deadline()
        stream.wake = self.send_events
        stream.close = self.end_stream
        self._keep_alive(False)
        self.send_events()

    def _keep_alive(self, send: bool = True) -> None:
        """Send a comment: it shows if the client is gone, and keeps proxies from closing."""
        if send and not self._channel.is_paused:
            self.write(b":\n\n")  # type: ignore[no-untyped-call]
        self._keepalive = self._site.timer.callLater(KEEPALIVE_SECONDS, self._keep_alive)

    def _leave_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.wake = lambda: None
            stream.end()
        if self._keepalive is not None and self._keepalive.active():
            self._keepalive.cancel()

    def _refuse_body(self) -> None:
        self._channel.refuse(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "TOO_LARGE",
            f"the body may have {self._body_limit} bytes",
        )


class Channel(HTTPChannel):
    """
    An HTTP connection.

    Twisted's own time-out is not used: each byte starts it again.
    """

    maxHeaders = MAX_HEADERS

    def __init__(self, site: "Site", host: str) -> None:
        """@param host: the address of the peer."""
        super().__init__(_READ_AHEAD_BYTES)
        self.site = site
        self.host = host
        self.claimant = claimant_of(host)
        self.requestFactory = Request  # type: ignore[assignment]
        self._timer = site.timer
        self._deadline: Any = None  # of the current wait: for a request, an answer or the end
        self._unread: Any = None  # set while the client does not read its answers
        self._waiting: Callable[[], None] | None = None
        self._idle = False
        self._answered = False  # a request was answered
        self._answered_at = 0.0
        self._in_progress = False  # a request is complete, its answer is not
        self._ended = False
        self._discarded_bytes = 0

    # IProtocol

    def connectionMade(self) -> None:
        super().connectionMade()  # type: ignore[no-untyped-call]
        self.site.channels[self] = None
        self._set_deadline(REQUEST_SECONDS, self._request_late)

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.abort()
            return
        if self._idle:
            self._idle = False
            self._set_deadline(REQUEST_SECONDS, self._request_late)
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.channels.pop(self, None)
        self._ended = True
        self._waiting = None
        self.site.turns.remove(self)
        for call in (self._deadline, self._unread):
            if call is not None and call.active():
                call.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    # http.HTTPChannel

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))  # type: ignore[no-untyped-call]
        except ValueError:
            # A Content-Length of more digits than int() takes.
            self.malformed()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "TOO_LARGE", "a header is too long")

    def allContentReceived(self) -> None:
        if self._ended:
            return
        self._in_progress = True
        self._set_deadline(ANSWER_SECONDS, self._answer_late)
        super().allContentReceived()  # type: ignore[no-untyped-call]

    def requestDone(self, request: http.Request) -> None:
        # First, because the next request may be here already, and is parsed below.
        self._idle = self._answered = True
        self._answered_at = self._timer.seconds()
        self._in_progress = False
        if self in self.site.channels:
            self.site.channels[self] = self.site.channels.pop(self)
        self._set_deadline(IDLE_SECONDS, self.loseConnection)
        super().requestDone(request)  # type: ignore[no-untyped-call]

    def loseConnection(self) -> None:
        self._ended = True
        self._set_deadline(CLOSE_SECONDS, self.abort)
        super().loseConnection()  # type: ignore[no-untyped-call]

    # HTTPChannel

    def may_continue(self) -> bool:
        return not self._ended

    def malformed(self) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", "not HTTP/1.1, or too many headers")

    # IPushProducer: the transport says whether the client takes what is written

    def pauseProducing(self) -> None:
        super().pauseProducing()  # type: ignore[no-untyped-call]
        if self._unread is None:
            self._unread = self._timer.callLater(WRITE_SECONDS, self.abort)

    def resumeProducing(self) -> None:
        super().resumeProducing()  # type: ignore[no-untyped-call]
        if self._unread is not None:
            if self._unread.active():
                self._unread.cancel()
            self._unread = None
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self.call_soon(waiting)
        if self.requests:
            self.requests[0].send_events()

    # Ours

    @property
    def stage(self) -> Stage:
        """What it does; an L{OpenConnection<domaeka.web.admission.OpenConnection>}."""
        if self._in_progress and self.requests and self.requests[0].is_stream:
            return Stage.ANSWERING
        if self.is_paused:
            return Stage.AGAIN
        if self._answered:
            if self._timer.seconds() - self._answered_at < LEAVE_SECONDS and unsent_bytes(
                self.transport
            ):
                return Stage.ANSWERING
            # A request that was sent ahead is in progress though nothing came since the last.
            return Stage.IDLE if self._idle and not self._in_progress else Stage.AGAIN
        return Stage.ANSWERING if self._in_progress else Stage.UNFINISHED

    @property
    def port(self) -> int:
        """Our port that it came to; 0: a socket without one."""
        return int(getattr(cast(Any, self.transport).getHost(), "port", 0))

    @property
    def is_paused(self) -> bool:
        """True while the client does not read what was written."""
        return self._unread is not None

    def call_soon(self, serve: Callable[[], None]) -> None:
        """
        Call C{serve} in another turn of the reactor, so that a read full of requests does not block
        it, and only once the answers before it have left.
        """
        if self._unread is None:
            self.site.turns.add(self, serve, first=not self._answered)
        else:
            self._waiting = serve

    def refuse(self, status: HTTPStatus, code: str, text: str) -> None:
        """Refuse a request that is not complete, and close."""
        if self._ended:
            return
        self._ended = True
        self.clearLineBuffer()  # type: ignore[no-untyped-call]
        answer = Refusal(status, code, text).answer()
        lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
        headers = {**self.site.headers_of(answer), "Connection": "close"}
        lines += (f"{name}: {value}" for name, value in headers.items())
        transport = cast(Any, self.transport)
        transport.write("\r\n".join((*lines, "", "")).encode("latin-1") + answer.body)
        if ITCPTransport.providedBy(transport):
            # Closing with bytes unread would reset the connection and lose the answer.
            self._set_deadline(CLOSE_SECONDS, self.abort)
            transport.unregisterProducer()
            transport.loseWriteConnection()
        else:
            self.loseConnection()

    def end(self) -> None:
        """Close: at once, or as soon as the request in progress is answered."""
        if self._in_progress:
            self.persistent = 0
            self.requests[0].end_stream()
        elif not self._ended:
            self.loseConnection()

    def give_way(self) -> None:
        """Close: in order if it is idle, else at once."""
        if self.stage is Stage.IDLE and not self._ended:
            self.loseConnection()
        else:
            self.abort()

    def cancel_deadline(self) -> None:
        """Wait without a deadline until the next one is set."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def abort(self) -> None:
        """Close at once; unsent data is lost."""
        self.site.turns.remove(self)
        cast(Any, self.transport).abortConnection()

    def _request_late(self) -> None:
        if self.requests:
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, "TIMEOUT", "the request takes too long")
        else:
            self.loseConnection()

    def _answer_late(self) -> None:
        self._set_deadline(CLOSE_SECONDS, self.abort)
        self.requests[0].time_out()

    def _set_deadline(self, seconds: float, act: Callable[[], None]) -> None:
        """Call C{act} in C{seconds}, and not what was set before."""
        self.cancel_deadline()
        self._deadline = self._timer.callLater(seconds, act)


class Site(ServerFactory):
    """
    All HTTP connections.

    @ivar channels: those that are open, in the order in which they came or were last idle.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        routes: Iterable[Route],
        timer: Timer,
        metrics: Metrics,
        token: Callable[[], str] = str,
        bars: Callable[[str], bool] = lambda address: False,
        denies: Callable[[str], bool] = lambda address: False,
        *,
        hosts: Callable[[], Collection[str]] = tuple,
        most: int = MAX_CONNECTIONS,
        wall: Callable[[], float],
    ) -> None:
        """
        @param token: returns the bearer token; empty: no client has it.
        @param bars: returns true for a banned address; this machine is never banned.
        @param denies: returns true for an address that may not connect; this machine always may.
        @param hosts: returns the names by which it may be called, beside addresses.
        @param most: most connections.
        @raise ValueError: two routes have the same method and path.
        """
        self.table = RouteTable(routes)
        self.timer = timer
        self.metrics = metrics
        self.token = token
        self.bars = bars
        self.denies = denies
        self.hosts = hosts
        self.turns = Turns(timer)
        self._most = most
        self._wall = wall
        self.channels: dict[Channel, None] = {}

    # IProtocolFactory

    def buildProtocol(self, addr: object) -> Channel | None:
        host = SOCKET if isinstance(addr, UNIXAddress) else str(getattr(addr, "host", ""))
        denied = self.denies(host) and not is_this_machine(host)
        if denied or not admit(
            host, self.channels, self.is_barred(host), self._most, self._gave_way
        ):
            self.metrics.http_refused.inc()
            return None
        channel = Channel(self, host)
        channel.factory = self
        return channel

    # Called by http.Request

    def log(self, request: Request) -> None:
        """Log an answer."""
        self._log.debug(
            "{method} {path} {status} to {address}",
            method=request.method.decode("ascii"),
            path=request.path.decode("latin-1"),
            status=request.code,
            address=request.peer,
        )

    # Ours

    def _gave_way(self, host: str) -> None:
        self.metrics.pools.gave_way(Pool.HTTP_CONNECTIONS, host)

    def is_barred(self, host: str) -> bool:
        """True if clients at C{host} are answered only to health checks."""
        return self.bars(host) and not is_this_machine(host)

    def headers_of(self, answer: Answer) -> dict[str, str]:
        """All headers of an answer."""
        date = http.datetimeToString(self._wall())  # type: ignore[no-untyped-call]
        headers = {**_HEADERS, "Date": date.decode("ascii")}
        if answer.status not in http.NO_BODY_CODES:
            headers["Content-Type"] = answer.content_type
            headers["Content-Length"] = str(len(answer.body))
        headers.update(answer.headers)
        return headers

    def close(self) -> None:
        """Close all connections; those with a request in progress once it is answered."""
        for channel in list(self.channels):
            channel.end()
