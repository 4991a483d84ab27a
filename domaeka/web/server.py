"""
HTTP on the network: Twisted's parser, held within limits.

Nobody holds the server up or fills its memory:

  - a request must be there within L{REQUEST_SECONDS}, however slowly it drips;
  - a body may have L{MAX_BODY_BYTES} and is refused while it comes, not once it is there; a route
    may allow more to those who have the token;
  - one request of a connection is answered at a time, each in a turn of its own, the next one only
    once the answer before it has left for the kernel; meanwhile no more is kept of what is
    pipelined than one read brings;
  - an answer must be made within L{ANSWER_SECONDS} and taken within L{WRITE_SECONDS};
  - a stream of events whose client falls behind is cut off, and so is one whose client is gone,
    which what is sent every L{KEEPALIVE_SECONDS} shows;
  - there are only so many connections (L{make_room}): for one more the one that has been idle
    longest is closed, or it is, where none is idle; who is banned is closed at once.

Twisted itself refuses more than 16 KiB of headers; L{MAX_HEADERS} bounds their number.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Any, Final, Protocol, cast

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from domaeka.metrics import Metrics
from domaeka.web.room import make_room
from domaeka.web.routes import (
    EVENTS,
    MAX_BODY_BYTES,
    Answer,
    Call,
    EventStream,
    Place,
    Refusal,
    Returned,
    Route,
    RouteTable,
    as_answer,
    bearer_holds,
    is_this_machine,
)

#: From the first byte of a request (the first one: from the connection) to its last, in seconds.
REQUEST_SECONDS: Final = 10.0
#: From the last byte of a request until its answer must be made, in seconds.
ANSWER_SECONDS: Final = 30.0
#: How long more than 64 KiB (Twisted's C{bufferSize}) of answers may wait for the client to read.
WRITE_SECONDS: Final = 30.0
#: How long a connection may be idle between two requests, in seconds.  Source: Prometheus scrapes
#: every 60 s by default.
IDLE_SECONDS: Final = 75.0
#: How long a connection that is being closed may take to hand over what is written, in seconds.
CLOSE_SECONDS: Final = 5.0
#: How often something is sent in a stream of events, in seconds.  Source: proxies that close what
#: is silent do so after 30 s and more.
KEEPALIVE_SECONDS: Final = 15.0
#: How much is read and thrown away behind a refusal, so that the client gets to read it, in bytes.
MAX_DISCARDED_BYTES: Final = 1_048_576
#: Most header lines of a request.
MAX_HEADERS: Final = 100
#: Bytes of pipelined requests beyond which reading stops while one is being answered.
_READ_AHEAD_BYTES: Final = 4096

#: What stands in every answer.  A page may do nothing but what its own answer allows.
_HEADERS: Final = {
    "Server": "domaeka",
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Timer(Protocol):
    """What a reactor does for this module."""

    def seconds(self) -> float:
        """The time."""

    def callLater(  # IReactorTime
        self, delay: float, callable: Callable[[], object], /
    ) -> Any:
        """Call something later."""


class Request(http.Request):
    """One request: found a route, given to it, and its result sent."""

    _log = Logger()

    def __init__(self, channel: "Channel", queued: object = False) -> None:
        super().__init__(channel, queued, parsePOSTFormSubmission=False)
        self._channel = channel
        self._site = channel.site
        self._place: Place | None = None
        self._body = BytesIO()
        self._body_bytes = 0
        self._body_limit = MAX_BODY_BYTES
        self._answering: Deferred[Any] | None = None
        self._late = False
        self._stream: EventStream | None = None
        self._keepalive: Any = None

    # http.Request

    def parseCookies(self) -> None:
        """There are none."""

    def gotLength(self, length: int | None) -> None:
        # All headers are there and no byte of the body: now it is known how much it may have.
        self.content = self._body
        method, target = self._channel.request_line
        self._place = self._site.table.find(target)
        route = None if self._place is None else self._place.route(method)
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
        self._channel.in_turn(self._serve)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        if self._answering is not None:
            self._answering.cancel()
        self._leave_stream()

    # Ours

    def give_up(self) -> None:
        """The answer has taken too long to make."""
        self._late = True
        if self._answering is not None:
            self._answering.cancel()

    def _serve(self) -> None:
        if self._disconnected:
            return
        self._answering = maybeDeferred(self._ask)
        self._answering.addCallback(as_answer)
        self._answering.addErrback(self._fault)
        self._answering.addCallback(self._say)
        self._answering.addErrback(
            lambda failure: self._log.failure("An HTTP answer could not be given", failure)
        )

    def _ask(self) -> Returned:
        """Ask the route."""
        place = self._place
        method = self.method.decode("ascii")
        if method == "OPTIONS" and (place is not None or self.uri == b"*"):
            allowed = "GET, HEAD, OPTIONS" if place is None else place.allowed
            return Answer(status=HTTPStatus.NO_CONTENT, headers={"Allow": allowed})
        if place is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", "there is nothing here")
        route = place.route(method)
        if route is None:
            raise Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                f"this takes {place.allowed}",
                {"Allow": place.allowed},
            )
        needs_token = route.token or not (route.anywhere or is_this_machine(self.peer))
        if needs_token and not self._has_token():
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "UNAUTHORIZED",
                "the bearer token is missing or wrong",
                {"WWW-Authenticate": "Bearer"},
            )
        return route.serve(self._call(method, place))

    def _call(self, method: str, place: Place) -> Call:
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
            place.names,
            query,
            {
                name.decode("latin-1").lower(): values[-1].decode("latin-1")
                for name, values in self.requestHeaders.getAllRawHeaders()
            },
            self._body.getvalue(),
            self.peer,
        )

    @property
    def peer(self) -> str:
        """The client's address."""
        return str(getattr(self.client, "host", "-"))

    def _has_token(self) -> bool:
        return bearer_holds(self.getHeader(b"authorization"), self._site.token)

    def _fault(self, failure: Failure) -> Answer:
        """Turn whatever was raised into an answer."""
        error = failure.value
        if isinstance(error, Refusal):
            return error.answer()
        if isinstance(error, CancelledError) and (self._late or self._disconnected):
            return Refusal(
                HTTPStatus.GATEWAY_TIMEOUT, "TIMEOUT", "the answer takes too long"
            ).answer()
        name = secrets.token_hex(4)
        self._site.metrics.errors.labels("http").inc()
        self._log.failure(
            "HTTP request {id} failed: {method} {path}",
            failure,
            id=name,
            method=self.method.decode("ascii"),
            path=self.path.decode("latin-1"),
        )
        return Refusal(
            HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL", f"internal error {name}: see the log"
        ).answer()

    def _say(self, answer: Answer | EventStream) -> None:
        if isinstance(answer, EventStream):
            self._begin_stream(answer)
            return
        if self._disconnected:
            return
        self._say_headers(self._site.headers_of(answer), answer.status)
        self.write(answer.body)  # type: ignore[no-untyped-call]
        self.finish()  # type: ignore[no-untyped-call]

    def _say_headers(self, headers: Mapping[str, str], status: int = HTTPStatus.OK) -> None:
        self.setResponseCode(status)
        for name, value in headers.items():
            self.responseHeaders.setRawHeaders(name, [value])

    # Streams of events

    def go_on(self) -> None:
        """Send what waits in the stream, if there is one and its client takes it."""
        stream = self._stream
        if stream is None:
            return
        if stream.fallen_behind:
            self._channel.cut_off()
        elif not self._channel.is_held_up:
            self.write(stream.take())  # type: ignore[no-untyped-call]

    def end_stream(self) -> None:
        """End the stream in order, if there is one."""
        if self._stream is not None:
            self._leave_stream()
            self.finish()  # type: ignore[no-untyped-call]

    def _begin_stream(self, stream: EventStream) -> None:
        self._stream = stream
        if self._disconnected:
            self._leave_stream()
            return
        headers = self._site.headers_of(Answer(content_type=EVENTS))
        del headers["Content-Length"]
        self._say_headers(headers)
        self.write(b": domaeka\n\n")  # type: ignore[no-untyped-call]
        if self.method == b"HEAD":
            self.end_stream()
            return
        self._channel.waits_for_nothing()
        stream.wake = self.go_on
        self._keep_alive(False)
        self.go_on()

    def _keep_alive(self, say: bool = True) -> None:
        """What is sent to a client that is gone is noticed; so is silence, by what is between."""
        if say and not self._channel.is_held_up:
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
            Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "TOO_LARGE",
                f"the body may have {self._body_limit} bytes",
            )
        )


class Channel(http.HTTPChannel):
    """
    One HTTP connection.

    Twisted's own time-out is not used: it begins anew at each byte.
    """

    maxHeaders = MAX_HEADERS
    _optimisticEagerReadSize = _READ_AHEAD_BYTES

    def __init__(self, site: "Site", host: str) -> None:
        """@param host: the address of the peer."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.site = site
        self.host = host
        self.requestFactory = Request  # type: ignore[assignment]
        self._timer = site.timer
        self._deadline: Any = None  # whatever the connection may be waiting for
        self._turn: Any = None
        self._unread: Any = None  # set while the client does not take its answers
        self._waiting: Callable[[], None] | None = None
        self._idle = False
        self._ended = False
        self._discarded_bytes = 0

    # IProtocol

    def connectionMade(self) -> None:
        super().connectionMade()  # type: ignore[no-untyped-call]
        self.site.channels[self] = None
        self._arm(REQUEST_SECONDS, self._request_late)

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.cut_off()
            return
        if self._idle:
            self._idle = False
            self._arm(REQUEST_SECONDS, self._request_late)
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.channels.pop(self, None)
        self._ended = True
        self._waiting = None
        for call in (self._deadline, self._turn, self._unread):
            if call is not None and call.active():
                call.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    # http.HTTPChannel

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))  # type: ignore[no-untyped-call]
        except ValueError:
            # A Content-Length of more digits than int() takes.
            self._respondToBadRequestAndDisconnect()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(
            Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "TOO_LARGE", "a header is too long")
        )

    def allContentReceived(self) -> None:
        if self._ended:
            return
        self._arm(ANSWER_SECONDS, self._answer_late)
        super().allContentReceived()  # type: ignore[no-untyped-call]

    def requestDone(self, request: http.Request) -> None:
        # First this: the next request may be here already, and is parsed below.
        self._idle = True
        if self in self.site.channels:
            self.site.channels[self] = self.site.channels.pop(self)
        self._arm(IDLE_SECONDS, self.loseConnection)
        super().requestDone(request)  # type: ignore[no-untyped-call]

    def loseConnection(self) -> None:
        self._ended = True
        self._arm(CLOSE_SECONDS, self.cut_off)
        super().loseConnection()  # type: ignore[no-untyped-call]

    def _send100Continue(self) -> None:
        if not self._ended:
            super()._send100Continue()  # type: ignore[no-untyped-call]

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(
            Refusal(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", "not HTTP/1.1, or too many headers")
        )

    # IPushProducer: the transport says whether the client takes what is written

    def pauseProducing(self) -> None:
        super().pauseProducing()  # type: ignore[no-untyped-call]
        if self._unread is None:
            self._unread = self._timer.callLater(WRITE_SECONDS, self.cut_off)

    def resumeProducing(self) -> None:
        super().resumeProducing()  # type: ignore[no-untyped-call]
        if self._unread is not None:
            if self._unread.active():
                self._unread.cancel()
            self._unread = None
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self.in_turn(waiting)
        if self.requests:
            self.requests[0].go_on()

    # Ours

    @property
    def request_line(self) -> tuple[str, bytes]:
        """Method and target of the request that is being received."""
        # Requests are told only once their bodies are complete: too late to bound them.
        method, target = cast(tuple[bytes, bytes], (self._command, self._path))
        return method.decode("ascii"), target

    @property
    def is_idle(self) -> bool:
        """Whether it has been answered and has asked for nothing since."""
        return self._idle

    @property
    def is_held_up(self) -> bool:
        """Whether the client does not take what was written."""
        return self._unread is not None

    def in_turn(self, serve: Callable[[], None]) -> None:
        """
        Call C{serve} in a turn of its own, so that a read full of requests does not hold up the
        reactor, and only once the answers before it have left.
        """
        if self._unread is None:
            self._turn = self._timer.callLater(0, serve)
        else:
            self._waiting = serve

    def refuse(self, refusal: Refusal) -> None:
        """Refuse a request that is not complete, and close."""
        if self._ended:
            return
        self._ended = True
        self.clearLineBuffer()  # type: ignore[no-untyped-call]
        answer = refusal.answer()
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
        headers = {**self.site.headers_of(answer), "Connection": "close"}
        lines += (f"{name}: {value}" for name, value in headers.items())
        transport = cast(Any, self.transport)
        transport.write("\r\n".join((*lines, "", "")).encode("latin-1") + answer.body)
        if ITCPTransport.providedBy(transport):
            # To close with bytes unread would reset the connection and lose the answer.
            self._arm(CLOSE_SECONDS, self.cut_off)
            self._networkProducer.unregisterProducer()
            transport.loseWriteConnection()
        else:
            self.loseConnection()

    def end(self) -> None:
        """Close: at once, or as soon as the request that is in work is answered."""
        if self._handlingRequest:
            self.persistent = 0
            self.requests[0].end_stream()
        elif not self._ended:
            self.loseConnection()

    def waits_for_nothing(self) -> None:
        """No deadline holds until the next one is set."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def cut_off(self) -> None:
        """Close at once, whatever is lost."""
        cast(Any, self.transport).abortConnection()

    def _request_late(self) -> None:
        if self.requests:
            self.refuse(
                Refusal(HTTPStatus.REQUEST_TIMEOUT, "TIMEOUT", "the request takes too long")
            )
        else:
            self.loseConnection()

    def _answer_late(self) -> None:
        self._arm(CLOSE_SECONDS, self.cut_off)
        self.requests[0].give_up()

    def _arm(self, seconds: float, act: Callable[[], None]) -> None:
        """Act in C{seconds}, and no longer as was said before."""
        self.waits_for_nothing()
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
        table: RouteTable,
        timer: Timer,
        metrics: Metrics,
        token: bytes,
        bars: Callable[[str], bool],
    ) -> None:
        """See L{make_site}."""
        self.table = table
        self.timer = timer
        self.metrics = metrics
        self.token = token
        self.bars = bars
        self.channels: dict[Channel, None] = {}

    # IProtocolFactory

    def buildProtocol(self, addr: object) -> Channel | None:
        host = str(getattr(addr, "host", ""))
        if not make_room(host, self.channels, self.bars):
            self.metrics.http_refused.inc()
            return None
        channel = Channel(self, host)
        channel.factory = self
        return channel

    # What http.Request asks of its factory

    def log(self, request: Request) -> None:
        """Log an answer that was given."""
        self._log.debug(
            "{method} {path} {status} to {peer}",
            method=request.method.decode("ascii"),
            path=request.path.decode("latin-1"),
            status=request.code,
            peer=request.peer,
        )

    # Ours

    def headers_of(self, answer: Answer) -> dict[str, str]:
        """All headers of an answer."""
        date = http.datetimeToString(self.timer.seconds())  # type: ignore[no-untyped-call]
        headers = {**_HEADERS, "Date": date.decode("ascii")}
        if answer.status not in http.NO_BODY_CODES:
            headers["Content-Type"] = answer.content_type
            headers["Content-Length"] = str(len(answer.body))
        headers.update(answer.headers)
        return headers

    def close(self) -> None:
        """Close all connections; those with a request in work once it is answered."""
        for channel in list(self.channels):
            channel.end()


def make_site(
    routes: Iterable[Route],
    timer: Timer,
    metrics: Metrics,
    token: str = "",
    bars: Callable[[str], bool] = lambda address: False,
) -> Site:
    """
    Serve C{routes}.

    @param timer: the reactor.
    @param metrics: where failures are counted.
    @param token: what must be shown for the routes with C{token}; empty: nobody can.
    @param bars: says whether nobody at an address is let in; this machine always is.
    @raise ValueError: two routes have the same method and path.
    """
    return Site(RouteTable(routes), timer, metrics, token.encode(), bars)
