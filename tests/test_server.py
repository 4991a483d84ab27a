"""Tests for L{domaeka.web.server}."""

import json
from collections.abc import Awaitable
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from domaeka.metrics import Metrics
from domaeka.web.admission import MAX_CONNECTIONS, MAX_OF_A_BANNED_ONE, MAX_OF_AN_ADDRESS, RESERVED
from domaeka.web.routes import (
    MAX_BODY_BYTES,
    MAX_WAITING_EVENTS,
    Answer,
    Call,
    EventStream,
    Refusal,
    Route,
    server_sent,
)
from domaeka.web.server import (
    ANSWER_SECONDS,
    CLOSE_SECONDS,
    IDLE_SECONDS,
    KEEPALIVE_SECONDS,
    MAX_DISCARDED_BYTES,
    MAX_HEADERS,
    REQUEST_SECONDS,
    WRITE_SECONDS,
    Channel,
    Site,
)
from tests.clocks import WallClock

TOKEN = "correct horse"
BEARER = b"Authorization: Bearer correct horse\r\n"
#: What the route of large bodies takes, in bytes.
LARGE = 4 * MAX_BODY_BYTES


class Line:
    """A client's connection."""

    def __init__(self, channel: Channel, host: str = "127.0.0.1") -> None:
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", host, 54321))
        self.channel = channel
        channel.makeConnection(self.transport)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the one answer that has come."""
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.transport.clear()
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, body

    @property
    def closed(self) -> bool:
        """Whether the connection was cut, or closed in order."""
        return self.aborted or bool(self.transport.disconnecting)

    @property
    def aborted(self) -> bool:
        """Whether the connection was cut."""
        return bool(self.transport.disconnected)


class ServerTests(SynchronousTestCase):
    """What all tests of the server need."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.metrics = Metrics()
        self.calls: list[Call] = []
        self.cancelled: list[object] = []
        self.pending: Deferred[Any] = Deferred(self.cancelled.append)
        self.ended: list[EventStream] = []
        self.stream = EventStream(self.ended.append)
        self.site = Site(
            (
                Route("GET", "/hello", self.hello),
                Route("POST", "/hello", self.hello),
                Route("GET", "/hello/{name}", self.hello),
                Route("GET", "/pending", lambda call: self.pending),
                Route("GET", "/coroutine", self.coroutine),
                Route("GET", "/broken", lambda call: 1 // 0),
                Route("GET", "/refused", self.refuse),
                Route("GET", "/large", lambda call: Answer(b"x" * 10_000)),
                Route("GET", "/stream", lambda call: self.stream),
                Route("GET", "/anywhere", self.hello, anywhere=True),
                Route("POST", "/private", self.hello, token=True, max_body_bytes=LARGE),
            ),
            self.clock,
            self.metrics,
            lambda: TOKEN,
            wall=WallClock(self.clock, 1_790_000_000.0),
        )
        self.lines: list[Line] = []
        self.line = self.connect()
        self.addCleanup(self.check_nothing_is_left)

    def check_nothing_is_left(self) -> None:
        """Once connections are gone, no timer is."""
        for line in self.lines:
            line.channel.connectionLost(Failure(ConnectionError()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def connect(self, host: str = "127.0.0.1") -> Line:
        """A client connects."""
        channel = self.site.buildProtocol(IPv4Address("TCP", host, 54321))
        assert channel is not None
        line = Line(channel, host)
        self.lines.append(line)
        return line

    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes and read the answer."""
        self.line.channel.dataReceived(data)
        self.clock.advance(0)
        return self.line.answer()

    def error(self, data: bytes) -> tuple[int, str]:
        """Send bytes and read the error: its status and code."""
        status, headers, body = self.ask(data)
        self.assertEqual(headers["Content-Type"], "application/json")
        return status, json.loads(body)["error"]["code"]

    def turn(self) -> None:
        """One turn of the reactor: C{Clock.advance} would also run what is scheduled in it."""
        calls = cast(list[Any], self.clock.getDelayedCalls())
        for call in [call for call in calls if call.getTime() <= self.clock.seconds()]:
            serve = call.func
            call.cancel()
            serve()

    def hello(self, call: Call) -> dict[str, str]:
        self.calls.append(call)
        return {"hello": "world"}

    def refuse(self, call: Call) -> None:
        raise Refusal(409, "NO_PHONE", "no phone")

    async def coroutine(self, call: Call) -> Answer:
        result: Awaitable[Any] = self.pending
        return Answer(await result, content_type="text/plain")


class AnswerTests(ServerTests):
    """What requests are answered."""

    def test_value(self) -> None:
        """A value comes back as JSON, with the headers that keep browsers from mischief."""
        status, headers, body = self.ask(b"GET /hello HTTP/1.1\r\n\r\n")
        self.assertEqual((status, body), (200, b'{"hello":"world"}'))
        self.assertEqual(headers.pop("Content-Security-Policy").split(";")[0], "default-src 'none'")
        self.assertEqual(
            headers,
            {
                "Server": "domaeka",
                "Date": "Mon, 21 Sep 2026 14:13:20 GMT",
                "Cache-Control": "no-store",
                "Content-Type": "application/json",
                "Content-Length": "17",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )

    def test_call(self) -> None:
        """The function gets what the request says."""
        self.ask(
            b"POST /hello?a=1&a=%EB%B0%A9 HTTP/1.1\r\nX-Y: 1\r\nContent-Length: 4\r\n\r\n\x00abc"
        )
        call = self.calls[0]
        self.assertEqual(
            (call.method, call.path, call.query), ("POST", "/hello", {"a": ("1", "방")})
        )
        self.assertEqual((call.headers["x-y"], call.body), ("1", b"\x00abc"))
        self.assertEqual(call.peer, "127.0.0.1")
        self.ask(b"GET /hello/a%2Fb HTTP/1.1\r\n\r\n")
        self.assertEqual(self.calls[1].names, {"name": "a/b"})

    def test_head(self) -> None:
        """HEAD has the headers of GET, and no body."""
        status, headers, body = self.ask(b"HEAD /hello HTTP/1.1\r\n\r\n")
        self.assertEqual((status, headers["Content-Length"], body), (200, "17", b""))

    def test_options(self) -> None:
        """OPTIONS lists the methods, and lets no other site in."""
        for target, allowed in (
            (b"/hello", "GET, HEAD, OPTIONS, POST"),
            (b"*", "GET, HEAD, OPTIONS"),
        ):
            status, headers, _ = self.ask(
                b"OPTIONS %b HTTP/1.1\r\nOrigin: http://x\r\n\r\n" % target
            )
            self.assertEqual((status, headers["Allow"]), (204, allowed))
            self.assertFalse([name for name in headers if name.startswith("Access-Control")])

    def test_nothing_there(self) -> None:
        """An unknown path is 404, an unknown method 405 with those that are known."""
        self.assertEqual(self.error(b"GET /nowhere HTTP/1.1\r\n\r\n"), (404, "NOT_FOUND"))
        for method in (b"PUT", b"TRACE", b"get"):
            status, headers, _ = self.ask(b"%b /hello HTTP/1.1\r\n\r\n" % method)
            self.assertEqual((status, headers["Allow"]), (405, "GET, HEAD, OPTIONS, POST"))

    def test_later(self) -> None:
        """A Deferred is waited for."""
        self.line.channel.dataReceived(b"GET /pending HTTP/1.1\r\n\r\n")
        self.clock.advance(1)
        self.assertEqual(self.line.transport.value(), b"")
        self.pending.callback(None)
        self.assertEqual(self.line.answer()[0], 204)

    def test_coroutine(self) -> None:
        """A coroutine is run."""
        self.pending.callback(b"text")
        status, headers, body = self.ask(b"GET /coroutine HTTP/1.1\r\n\r\n")
        self.assertEqual((status, headers["Content-Type"], body), (200, "text/plain", b"text"))

    def test_refusal(self) -> None:
        """What a function refuses is said in its words."""
        self.assertEqual(self.error(b"GET /refused HTTP/1.1\r\n\r\n"), (409, "NO_PHONE"))

    def test_own_fault(self) -> None:
        """An exception is logged, and the client is told a name to look for and nothing more."""
        status, _, body = self.ask(b"GET /broken HTTP/1.1\r\n\r\n")
        error = json.loads(body)["error"]
        self.assertEqual((status, error["code"]), (500, "INTERNAL"))
        self.assertNotIn(b"ZeroDivision", body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.metrics.errors.labels("http").value, 1)

    def test_bad_query(self) -> None:
        """A query that is no text is the client's fault."""
        self.assertEqual(self.error(b"GET /hello?a=%ff HTTP/1.1\r\n\r\n"), (400, "BAD_REQUEST"))

    def test_client_leaves(self) -> None:
        """What nobody waits for any more is cancelled."""
        self.line.channel.dataReceived(b"GET /pending HTTP/1.1\r\n\r\n")
        self.clock.advance(0)
        self.line.channel.connectionLost(Failure(ConnectionError()))
        self.assertEqual(len(self.cancelled), 1)


class TokenTests(ServerTests):
    """Routes that need the token."""

    def test_with_and_without(self) -> None:
        """Only who has the token gets in."""
        self.assertEqual(self.ask(b"POST /private HTTP/1.1\r\n%b\r\n" % BEARER)[0], 200)
        status, headers, _ = self.ask(b"POST /private HTTP/1.1\r\nAuthorization: Bearer x\r\n\r\n")
        self.assertEqual((status, headers["WWW-Authenticate"]), (401, "Bearer"))
        self.assertEqual(len(self.calls), 1)

    def test_other_machines(self) -> None:
        """From other machines all needs the token, but for what is said to be for everybody."""
        self.line = self.connect("192.0.2.1")
        self.assertEqual(self.error(b"GET /hello HTTP/1.1\r\n\r\n"), (401, "UNAUTHORIZED"))
        self.assertEqual(self.ask(b"GET /hello HTTP/1.1\r\n%b\r\n" % BEARER)[0], 200)
        self.assertEqual(self.ask(b"GET /anywhere HTTP/1.1\r\n\r\n")[0], 200)
        self.assertEqual(len(self.calls), 2)

    def test_large_bodies(self) -> None:
        """Who has the token may send more; who has not is refused before the body comes."""
        head = b"POST /private HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n"
        self.assertEqual(self.ask(head % (BEARER, LARGE) + b"x" * LARGE)[0], 200)
        self.assertEqual(self.error(head % (b"", LARGE)), (413, "TOO_LARGE"))

    def test_more_than_large(self) -> None:
        """There is an end to it with the token, too."""
        head = b"POST /private HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n"
        self.assertEqual(self.error(head % (BEARER, LARGE + 1)), (413, "TOO_LARGE"))


class LimitTests(ServerTests):
    """What one client may cost."""

    def test_dripping_request(self) -> None:
        """A request that comes byte by byte is given up in time, however busy its sender is."""
        self.line.channel.dataReceived(b"GET /hello HTTP/1.1\r\nX: ")
        for _ in range(int(REQUEST_SECONDS)):
            self.assertFalse(self.line.transport.value())
            self.clock.advance(1)
            self.line.channel.dataReceived(b"x")
        self.assertEqual(self.line.answer()[0], 408)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(self.line.aborted)

    def test_dripping_body(self) -> None:
        """The same time holds for headers and body together."""
        self.line.channel.dataReceived(b"POST /hello HTTP/1.1\r\nContent-Length: 99\r\n\r\n")
        self.clock.advance(REQUEST_SECONDS - 1)
        self.line.channel.dataReceived(b"x" * 50)
        self.clock.advance(1)
        self.assertEqual(self.line.answer()[0], 408)
        self.assertEqual(self.calls, [])

    def test_silent_client(self) -> None:
        """Who connects and says nothing is closed."""
        self.clock.advance(REQUEST_SECONDS)
        self.assertTrue(self.line.transport.disconnecting)
        self.assertEqual(self.line.transport.value(), b"")

    def test_idle_client(self) -> None:
        """Between requests a connection may rest for a while; each request has its full time."""
        self.ask(b"GET /hello HTTP/1.1\r\n\r\n")
        self.clock.advance(IDLE_SECONDS - 1)
        self.line.channel.dataReceived(b"GET /hello ")
        self.clock.advance(REQUEST_SECONDS - 1)
        self.assertEqual(self.ask(b"HTTP/1.1\r\n\r\n")[0], 200)
        self.clock.advance(IDLE_SECONDS)
        self.assertTrue(self.line.transport.disconnecting)

    def test_body_too_large(self) -> None:
        """A body that is announced too large is refused at once, and what follows thrown away."""
        head = b"POST /hello HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        self.assertEqual(self.error(head % (MAX_BODY_BYTES + 1)), (413, "TOO_LARGE"))
        self.line.channel.dataReceived(b"GET /hello HTTP/1.1\r\n\r\n")
        self.clock.advance(0)
        self.assertEqual((self.calls, self.line.transport.value()), ([], b""))

    def test_chunked_body_too_large(self) -> None:
        """One that is not announced is refused as soon as it is too large."""
        self.line.channel.dataReceived(
            b"POST /hello HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        self.line.channel.dataReceived(chunk * 2)
        self.assertEqual(self.line.transport.value(), b"")
        self.assertEqual(self.error(chunk + b"0\r\n\r\n"), (413, "TOO_LARGE"))
        self.assertEqual(self.calls, [])

    def test_sender_who_does_not_stop(self) -> None:
        """Who goes on sending behind a refusal is cut off."""
        self.ask(b"POST /hello HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
        self.line.channel.dataReceived(b"x" * MAX_DISCARDED_BYTES)
        self.assertFalse(self.line.aborted)
        self.line.channel.dataReceived(b"x")
        self.assertTrue(self.line.aborted)

    def test_headers(self) -> None:
        """Too many headers, too long ones and nonsense are refused."""
        for data, status in (
            (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 20_000, 431),
            (b"GET / HTTP/1.1\r\n" + (b"a: " + b"b" * 8000 + b"\r\n") * 3, 400),
            (b"GET / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (b"GET /\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\r\n", 400),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ):
            self.line = self.connect()
            self.assertEqual(self.error(data)[0], status, data[:60])
            self.assertTrue(self.line.transport.disconnecting)

    def test_slow_function(self) -> None:
        """An answer that does not come is given up, and the client is told."""
        self.line.channel.dataReceived(b"GET /pending HTTP/1.1\r\n\r\n")
        self.clock.advance(0)
        self.clock.advance(ANSWER_SECONDS)
        self.assertEqual(self.line.answer()[0], 504)
        self.assertEqual(len(self.cancelled), 1)

    def test_pipelining(self) -> None:
        """However many requests one read brings, one is answered in a turn, and in order."""
        self.line.channel.dataReceived(b"GET /hello HTTP/1.1\r\n\r\n" * 3)
        for done in (0, 1, 2, 3, 3):
            self.assertEqual(len(self.calls), done)
            self.turn()

    def test_reading_stops_while_one_is_answered(self) -> None:
        """What is pipelined behind a slow one is not piled up."""
        self.line.channel.dataReceived(b"GET /pending HTTP/1.1\r\n\r\n")
        self.line.channel.dataReceived(b"GET /hello HTTP/1.1\r\n\r\n" * 300)
        self.assertEqual(self.line.transport.producerState, "paused")

    def test_client_that_does_not_read(self) -> None:
        """While answers pile up no more are made; who never reads them is cut off."""
        self.line.channel.pauseProducing()
        self.line.channel.dataReceived(b"GET /large HTTP/1.1\r\n\r\n" * 2)
        self.clock.advance(WRITE_SECONDS - 1)
        self.assertEqual(self.line.transport.value(), b"")
        self.line.channel.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(self.line.answer()[0], 200)
        self.line.channel.pauseProducing()
        self.clock.advance(WRITE_SECONDS)
        self.assertTrue(self.line.aborted)

    def test_connections(self) -> None:
        """
        There are no more than so many connections, fewer for other machines; who is being answered
        keeps its place.
        """
        here, there = IPv4Address("TCP", "127.0.0.1", 1), IPv4Address("TCP", "192.0.2.255", 1)
        request = b"GET /pending HTTP/1.1\r\n" + BEARER + b"\r\n"
        for number in range(MAX_CONNECTIONS - RESERVED - 1):
            self.connect(f"192.0.2.{number}").channel.dataReceived(request)
        self.line.channel.dataReceived(request)
        self.assertIsNone(self.site.buildProtocol(there))
        for _ in range(RESERVED):
            self.connect().channel.dataReceived(request)
        self.assertIsNone(self.site.buildProtocol(here))
        self.assertEqual(self.metrics.http_refused.value, 2)
        self.line.channel.connectionLost(Failure(ConnectionError()))
        self.connect()

    def test_one_address(self) -> None:
        """
        One other machine has 20 connections at most; its idle ones make room for its own, then
        its oldest that has not asked yet.
        """
        lines = [self.connect("2001:db8::1") for _ in range(MAX_OF_AN_ADDRESS)]
        self.connect("2001:db8:0:1::1")
        lines[3].channel.dataReceived(b"GET /anywhere HTTP/1.1\r\n\r\n")
        self.clock.advance(0)
        self.connect("2001:db8::2")
        self.assertEqual([line.closed for line in lines[2:5]], [False, True, False])
        self.connect("2001:db8::2")
        self.assertEqual([line.aborted for line in lines[:3]], [True, False, False])

    def test_banned(self) -> None:
        """Who is banned gets no answer but to a health check; this machine gets them all."""
        self.site.bars = lambda address: True
        for data, status, host in (
            (b"GET /anywhere HTTP/1.1\r\n\r\n", 200, "192.0.2.1"),
            (b"HEAD /anywhere HTTP/1.0\r\n\r\n", 200, "192.0.2.1"),
            (b"GET /hello HTTP/1.1\r\n" + BEARER + b"\r\n", 403, "192.0.2.1"),
            (b"POST /private HTTP/1.1\r\n" + BEARER + b"Content-Length: 9\r\n\r\n", 403, "::2"),
            (b"GET /nothing HTTP/1.1\r\n\r\n", 403, "192.0.2.1"),
            (b"GET /hello HTTP/1.1\r\n\r\n", 200, "127.0.0.1"),
        ):
            self.line = self.connect(host)
            self.assertEqual(self.ask(data)[0], status, data)
            self.line.channel.connectionLost(Failure(ConnectionError()))
        self.assertEqual(self.calls[-1].peer, "127.0.0.1")
        self.assertEqual((len(self.calls), self.metrics.http_refused.value), (3, 3))

    def test_banned_while_it_is_connected(self) -> None:
        """A connection that was there before the ban gets no further answer either."""
        self.line = self.connect("192.0.2.1")
        self.assertEqual(self.ask(b"GET /anywhere HTTP/1.1\r\n\r\n")[0], 200)
        self.site.bars = lambda address: True
        self.assertEqual(self.error(b"GET /hello HTTP/1.1\r\n\r\n"), (403, "BANNED"))

    def test_banned_ones_take_nobodys_place(self) -> None:
        """Two connections of one address that is banned, and no new ones where it gets full."""
        self.site.bars = lambda address: True
        lines = [self.connect("192.0.2.1") for _ in range(MAX_OF_A_BANNED_ONE)]
        lines[1].channel.dataReceived(b"GET /anywhere HTTP/1.1\r\n\r\n")
        self.clock.advance(0)
        self.connect("192.0.2.1")
        self.assertEqual([line.closed for line in lines], [False, True])
        while len(self.site.channels) < MAX_CONNECTIONS - RESERVED:
            self.connect()
        self.assertIsNone(self.site.buildProtocol(IPv4Address("TCP", "192.0.2.2", 1)))

    def test_denied(self) -> None:
        """Who is denied is closed at once, and counted; this machine never is."""
        self.site.denies = lambda address: True
        self.assertIsNone(self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1)))
        self.assertEqual(self.metrics.http_refused.value, 1)
        self.connect()

    def test_idle_connections(self) -> None:
        """When there are too many, the one that has been idle longest makes room."""
        lines = [self.connect() for _ in range(MAX_CONNECTIONS - 1)]
        for line in (lines[5], lines[3]):
            line.channel.dataReceived(b"GET /ok HTTP/1.1\r\n\r\n")
            self.clock.advance(0)
        self.connect()
        self.assertEqual((lines[5].closed, lines[3].closed), (True, False))
        self.connect()
        self.assertTrue(lines[3].closed)

    def test_close(self) -> None:
        """At the end idle connections close at once, others when they have been answered."""
        idle = self.connect()
        self.line.channel.dataReceived(b"GET /pending HTTP/1.1\r\n\r\n")
        self.clock.advance(0)
        self.site.close()
        self.assertTrue(idle.transport.disconnecting)
        self.assertFalse(self.line.transport.disconnecting)
        self.pending.callback(None)
        self.assertEqual(self.line.answer()[0], 204)
        self.assertTrue(self.line.transport.disconnecting)


class StreamTests(ServerTests):
    """Answers that go on."""

    def listen(self, request: bytes = b"GET /stream HTTP/1.1\r\n\r\n") -> str:
        """Ask for the stream.  @return: the first line and the headers."""
        self.line.channel.dataReceived(request)
        self.clock.advance(0)
        head, _, _ = self.line.transport.value().partition(b"\r\n\r\n")
        self.line.transport.clear()
        return bytes(head).decode()

    def heard(self) -> bytes:
        """What has come since the last call."""
        value = bytes(self.line.transport.value())
        self.line.transport.clear()
        return value

    def test_events(self) -> None:
        """Each event goes out at once, those that came before the answer too."""
        self.stream.say(server_sent("early", 1))
        self.line.channel.dataReceived(b"GET /stream HTTP/1.1\r\n\r\n")
        self.clock.advance(0)
        self.assertIn(b"event: early\ndata: 1\n\n", self.heard())
        self.stream.say(server_sent("말", {"방": "a\nb"}))
        self.assertIn('event: 말\ndata: {"방":"a\\nb"}\n\n'.encode(), self.heard())

    def test_no_deadline(self) -> None:
        """Unlike other answers it may take for ever; something is said now and then."""
        self.listen()
        for _ in range(10):
            self.clock.advance(KEEPALIVE_SECONDS)
            self.assertEqual(self.heard(), b"3\r\n:\n\n\r\n")
        self.assertFalse(self.line.aborted)

    def test_client_leaves(self) -> None:
        """The stream ends with its connection, once."""
        self.listen()
        self.line.channel.connectionLost(Failure(ConnectionError()))
        self.assertEqual(self.ended, [self.stream])
        self.stream.say(b"x")
        self.stream.end()
        self.assertEqual(self.ended, [self.stream])

    def test_client_left_before_the_answer(self) -> None:
        """It ends even if it never began."""
        self.line.channel.dataReceived(b"GET /stream HTTP/1.1\r\n\r\n")
        request = self.line.channel.requests[0]
        self.line.channel.connectionLost(Failure(ConnectionError()))
        cast(Any, request)._send(self.stream)
        self.assertEqual(self.ended, [self.stream])

    def test_slow_client(self) -> None:
        """What it does not take waits, and nothing is added to what is written; then it goes on."""
        self.listen()
        self.line.channel.pauseProducing()
        self.clock.advance(KEEPALIVE_SECONDS)
        for number in range(MAX_WAITING_EVENTS):
            self.stream.say(b"%d," % number)
        self.assertEqual(self.heard(), b"")
        self.line.channel.resumeProducing()
        self.assertEqual(self.heard().count(b","), MAX_WAITING_EVENTS)

    def test_client_that_falls_behind(self) -> None:
        """One that falls too far behind is cut off, and so is one that takes nothing for long."""
        self.listen()
        self.line.channel.pauseProducing()
        for _ in range(MAX_WAITING_EVENTS + 2):
            self.stream.say(b"x")
        self.assertTrue(self.line.aborted)
        self.assertEqual(self.stream.take(), b"")

    def test_client_that_takes_nothing(self) -> None:
        """Nobody is waited for for ever."""
        self.listen()
        self.line.channel.pauseProducing()
        self.clock.advance(WRITE_SECONDS)
        self.assertTrue(self.line.aborted)

    def test_close(self) -> None:
        """At the end of the server streams end in order."""
        self.listen()
        self.site.close()
        self.assertEqual(self.heard(), b"0\r\n\r\n")
        self.assertTrue(self.line.transport.disconnecting)
        self.assertEqual(self.ended, [self.stream])

    def test_head(self) -> None:
        """Who asks for the headers only gets those, and no stream."""
        head = self.listen(b"HEAD /stream HTTP/1.1\r\n\r\n")
        self.assertIn("text/event-stream", head)
        self.assertEqual(self.ended, [self.stream])
        self.assertEqual(self.ask(b"GET /hello HTTP/1.1\r\n\r\n")[0], 200)

    def test_old_client(self) -> None:
        """HTTP 1.0 knows no chunks: the stream is as long as the connection."""
        self.listen(b"GET /stream HTTP/1.0\r\n\r\n")
        self.stream.say(b"x")
        self.assertEqual(self.heard(), b"x")

    def test_flood_behind_it(self) -> None:
        """What a client sends behind its request is not piled up."""
        self.listen()
        self.line.channel.dataReceived(b"GET /hello HTTP/1.1\r\n\r\n" * 300)
        self.assertEqual(self.line.transport.producerState, "paused")
