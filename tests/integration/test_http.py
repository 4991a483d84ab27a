"""HTTP over real sockets."""

import json
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import treq
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.runtime import seconds as wall
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from domaeka.metrics import Metrics
from domaeka.web.admission import MAX_CONNECTIONS
from domaeka.web.health import HealthPages
from domaeka.web.routes import MAX_BODY_BYTES, Answer, Call, Route
from domaeka.web.server import Site

reactor = cast(Any, _reactor)

#: Longest that a client waits for anything, in seconds.
PATIENCE = 60
#: An answer that no kernel's buffers hold, in bytes.
HUGE = 32 * 1024 * 1024


class HttpTests(TestCase):
    """The pages, and those who abuse them."""

    timeout = 300

    def setUp(self) -> None:
        self.metrics = Metrics()
        self.made = 0
        pages = HealthPages(
            self.metrics,
            reactor,
            {"store": lambda: None},
            listening=lambda: True,
            draining=lambda: False,
            wall=wall,
        )
        self.site: Site = Site(
            (*pages.routes(), Route("GET", "/huge", self.huge)), reactor, self.metrics, wall=wall
        )
        port = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.port = port.getHost().port
        self.addCleanup(port.stopListening)
        self.addCleanup(self.close)

    async def close(self) -> None:
        self.site.close()
        while self.site.channels:
            await deferLater(reactor, 0.01)

    def huge(self, call: Call) -> Answer:
        self.made += 1
        return Answer(b"x" * HUGE, content_type="text/plain")

    def connect(self) -> socket.socket:
        """A client's blocking socket."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        self.addCleanup(client.close)
        return client

    def in_thread(self, work: Callable[[], Any]) -> "Deferred[Any]":
        """Do what blocks."""
        return deferToThread(work)

    async def get(self, path: str, **headers: str) -> tuple[int, Any, bytes]:
        """Status, headers and body."""
        response = await treq.get(
            f"http://127.0.0.1:{self.port}{path}",
            headers=cast(Any, headers),
            agent=cast(Any, Agent(reactor)),
        )
        return response.code, response.headers, await response.content()

    async def test_pages(self) -> None:
        """Every page is there."""
        for path in ("/", "/health", "/health/live", "/health/ready", "/metrics", "/stats"):
            status, headers, body = await self.get(path)
            self.assertEqual(status, 200, path)
            self.assertEqual(headers.getRawHeaders("Server"), ["domaeka"])
            self.assertTrue(body)
        self.assertEqual((await self.get("/nowhere"))[0], 404)

    async def test_metrics_as_json(self) -> None:
        """The same path gives Prometheus its text and others their JSON."""
        _, headers, text = await self.get("/metrics")
        self.assertIn("text/plain", headers.getRawHeaders("Content-Type")[0])
        self.assertIn(b"domaeka_build_info", text)
        self.assertIn(b"process_open_fds", text)
        stats = json.loads((await self.get("/metrics", Accept="application/json"))[2])
        self.assertEqual(set(stats), set(json.loads((await self.get("/stats"))[2])))

    async def test_large_body(self) -> None:
        """Who sends too much gets to read why, though it is still sending."""
        client = self.connect()

        def send() -> bytes:
            head = b"POST /stats HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (10 * MAX_BODY_BYTES)
            client.sendall(head + b"x" * 10 * MAX_BODY_BYTES)
            return b"".join(iter(lambda: client.recv(65536), b""))

        answer = await self.in_thread(send)
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer[:80])
        self.assertIn(b'"TOO_LARGE"', answer)

    async def test_pipelined_flood(self) -> None:
        """A read full of requests is answered, all of them and in order, beside others."""
        client = self.connect()
        count = 3000

        def flood() -> int:
            client.sendall(b"GET /health/live HTTP/1.1\r\n\r\n" * count)
            client.sendall(b"GET /stats HTTP/1.1\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: client.recv(65536), b""))
            self.assertIn(b"total_connections", text.rpartition(b"\r\n\r\n")[2])
            return text.count(b'{"status":"alive"}')

        flooding = self.in_thread(flood)
        self.assertEqual((await self.get("/health"))[0], 200)
        self.assertEqual(await flooding, count)

    async def test_client_that_does_not_read(self) -> None:
        """One answer waits for a client that does not read; no second one is made."""
        client = self.connect()
        client.sendall(b"GET /huge HTTP/1.1\r\n\r\n" * 10)
        for _ in range(5):
            self.assertEqual((await self.get("/health"))[0], 200)
        self.assertEqual(self.made, 1)
        # A reset, so that the end of the test does not wait for it.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    async def test_too_many_connections(self) -> None:
        """The connections are bounded; the oldest that asks for nothing ends for one that does."""
        clients = await self.in_thread(lambda: [self.connect() for _ in range(MAX_CONNECTIONS)])
        while len(self.site.channels) < MAX_CONNECTIONS:
            await deferLater(reactor, 0.01)
        for _ in range(10):
            self.assertEqual((await self.get("/health"))[0], 200)
        self.assertLessEqual(len(self.site.channels), MAX_CONNECTIONS)
        with self.assertRaises(ConnectionResetError):
            await self.in_thread(lambda: clients[0].recv(1))
