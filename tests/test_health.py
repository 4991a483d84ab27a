"""Tests for L{domaeka.web.health}."""

import json
from typing import Any, cast

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka import __version__
from domaeka.interfaces import HealthCheck
from domaeka.metrics import SAMPLE_SECONDS, Metrics
from domaeka.web.health import (
    LAG_SECONDS,
    LINES_PER_TURN,
    RENDERS_AT_ONCE,
    RENDERS_PER_SECOND,
    Exposition,
    HealthPages,
    LagProbe,
    prefers_json,
)
from domaeka.web.routes import Answer, Call
from tests.clocks import WallClock

CALL = Call("GET", "/")


class HealthTests(SynchronousTestCase):
    """Tests for the pages of L{HealthPages}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wall = WallClock(self.clock, 1_790_000_000.0)
        self.metrics = Metrics()
        self.checks: dict[str, HealthCheck] = {"store": lambda: None}
        self.listening = True
        self.draining = False
        self.pages = HealthPages(
            self.metrics,
            self.clock,
            self.checks,
            listening=lambda: self.listening,
            draining=lambda: self.draining,
            wall=self.wall,
        )
        self.clock.advance(90.5)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /health."""
        answer = self.pages.health(CALL)
        return answer.status, json.loads(answer.body)

    def test_healthy(self) -> None:
        """All is well."""
        self.metrics.connections.set(7)
        self.assertEqual(
            self.health(),
            (
                200,
                {
                    "status": "healthy",
                    "timestamp": "2026-09-21T14:14:50.500+00:00",
                    "version": __version__,
                    "uptime": 90.5,
                    "connections": 7,
                    "checks": {"store": "ok"},
                },
            ),
        )

    def test_clock_is_set(self) -> None:
        """No step of the wall clock is in the uptime; the timestamp is by it."""
        for step in (-3600.0, 86_400.0):
            self.wall.step(step)
            self.assertEqual(self.health()[1]["uptime"], 90.5)
        self.assertEqual(self.health()[1]["timestamp"], "2026-09-22T13:14:50.500+00:00")

    def test_store_is_down(self) -> None:
        """A store that is down is shown, and phones are served on."""
        self.checks["store"] = lambda: "no answer for 5 s\n"
        status, body = self.health()
        self.assertEqual((status, body["status"]), (200, "healthy"))
        self.assertEqual(body["checks"], {"store": "no answer for 5 s\\n"})

    def test_failing_check(self) -> None:
        """It shows, and changes neither status; one that is needed keeps new phones away."""
        self.checks["clock"] = lambda: "an hour behind"
        self.assertEqual((self.health()[0], self.pages.ready(CALL).status), (200, 200))
        needed = [None, "no store", "no store"]
        pages = HealthPages(
            self.metrics,
            self.clock,
            self.checks,
            listening=lambda: self.listening,
            draining=lambda: self.draining,
            needed={"first": lambda: None, "second": needed.pop},
            wall=self.wall,
        )
        self.assertEqual((pages.health(CALL).status, pages.live(CALL).status), (200, 200))
        answer = pages.ready(CALL)
        self.assertEqual((answer.status, answer.body), (503, b'{"status":"not ready: no store"}'))
        self.draining = True
        self.assertEqual(pages.ready(CALL).body, b'{"status":"draining"}')
        self.draining = False
        self.assertEqual(pages.ready(CALL).status, 200)

    def test_check_that_breaks(self) -> None:
        """A check that fails itself is logged, counted and shown."""
        self.checks["odd"] = lambda: str(1 // 0)
        self.assertIn("failed", self.health()[1]["checks"]["odd"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.metrics.errors.labels("health check").value, 1)

    def test_not_healthy(self) -> None:
        """A server that stops, or that phones cannot reach, says so with 503."""
        self.listening = False
        self.assertEqual((self.health()[0], self.health()[1]["status"]), (503, "unhealthy"))
        self.draining = True
        self.assertEqual((self.health()[0], self.health()[1]["status"]), (503, "draining"))

    def test_ready(self) -> None:
        """New phones should come only while they can."""
        self.assertEqual(self.pages.ready(CALL).status, 200)
        self.draining = True
        self.assertEqual(self.pages.ready(CALL).status, 503)
        self.draining, self.listening = False, False
        self.assertEqual(self.pages.ready(CALL).status, 503)
        self.assertEqual(self.pages.live(CALL).status, 200)

    def test_stats(self) -> None:
        """The figures, also where metrics are asked for as JSON."""
        self.metrics.messages_received.inc(3)
        answer = self.pages.stats(CALL)
        self.assertEqual(json.loads(answer.body)["messages_received"], 3)
        json_call = CALL._replace(headers={"accept": "application/json"})
        self.assertEqual(self.pages.metrics(json_call), answer)

    def test_metrics(self) -> None:
        """Prometheus gets its text format."""
        asked = self.pages.metrics(CALL)
        assert isinstance(asked, Deferred)
        self.clock.pump([0] * 10)
        answer: Answer = self.successResultOf(asked)
        self.assertEqual(answer.content_type, "text/plain; version=0.0.4; charset=utf-8")
        self.assertIn(b"\ndomaeka_connections 0.0\n", answer.body)

    def test_index(self) -> None:
        """The first page leads to the others."""
        answer = self.pages.index(CALL)
        self.assertEqual(answer.content_type, "text/html; charset=utf-8")
        self.assertIn(b'href="/metrics"', answer.body)

    def test_routes(self) -> None:
        """Every page has its path, and needs no token."""
        routes = self.pages.routes()
        self.assertEqual(
            {route.path for route in routes},
            {"/", "/health", "/health/live", "/health/ready", "/metrics", "/stats"},
        )
        self.assertFalse(any(route.token for route in routes))


class ExpositionTests(SynchronousTestCase):
    """Tests for L{Exposition}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        for number in range(2 * LINES_PER_TURN // 13):
            self.metrics.handler.register(f"# command {number}").observe(number)
        self.exposition = Exposition(self.metrics, self.clock)

    def test_is_what_the_library_renders(self) -> None:
        """In parts or at once, the text is the same, whatever is in it, and it can be read."""
        self.metrics.handler_failures.register('# "방"\n\\n{a="b"}').inc(1.5)
        self.metrics.bans.set(float("nan"))
        self.metrics.bytes_sent.inc(2**60)
        asked = self.exposition.render()
        self.clock.advance(0)
        text = self.successResultOf(asked)
        self.assertEqual(text, generate_latest(self.metrics))
        self.assertTrue(list(text_string_to_metric_families(text.decode())))

    def test_takes_turns(self) -> None:
        """No turn of the reactor renders more than its share."""
        asked = self.exposition.render()
        turns = 0
        while not asked.called:
            (call,) = cast(list[Any], self.clock.getDelayedCalls())
            step = call.func
            call.cancel()
            step()
            turns += 1
        lines = self.successResultOf(asked).count(b"\n")
        self.assertLess(lines / turns, LINES_PER_TURN)
        self.assertGreater(turns, 2)

    def test_shared(self) -> None:
        """Those who ask at once share one; who asks later gets a fresh one."""
        first, second = self.exposition.render(), self.exposition.render()
        self.clock.advance(0)
        self.assertIs(self.successResultOf(first), self.successResultOf(second))
        self.metrics.bytes_sent.inc()
        third = self.exposition.render()
        self.clock.advance(0)
        self.assertIn(b"domaeka_bytes_sent_total 1.0", self.successResultOf(third))

    def test_asked_in_a_loop(self) -> None:
        """Who asks without end has so many a second, and a monitor beside it waits no longer."""
        answered = 0

        def again(text: bytes) -> None:
            nonlocal answered
            answered += 1
            self.exposition.render().addCallback(again)

        self.exposition.render().addCallback(again)
        for _ in range(2000):
            self.clock.advance(0.005)
        self.assertLessEqual(answered, RENDERS_AT_ONCE + 10 * RENDERS_PER_SECOND)
        self.assertGreaterEqual(answered, 10 * RENDERS_PER_SECOND)
        monitor = self.exposition.render()
        for _ in range(60):
            self.clock.advance(0.005)
        self.successResultOf(monitor)

    def test_failure(self) -> None:
        """A gauge that cannot be read fails this scrape, not the next."""
        self.metrics.bans.watch(lambda: 1 // 0)
        asked = self.exposition.render()
        self.clock.advance(0)
        self.failureResultOf(asked, ZeroDivisionError)
        self.metrics.bans.watch(lambda: 2)
        again = self.exposition.render()
        self.clock.advance(0)
        self.assertIn(b"domaeka_bans 2.0", self.successResultOf(again))


class PrefersJsonTests(SynchronousTestCase):
    """Tests for L{prefers_json}."""

    def test_accept_headers(self) -> None:
        """JSON only for those who want it first."""
        prometheus = "application/openmetrics-text;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
        for accept in ("", "*/*", prometheus, "text/html,application/json;q=0.9", ";;q=x,,"):
            self.assertFalse(prefers_json(accept), accept)
        for accept in ("application/json", "Application/JSON; q=0.9, */*;q=0.1"):
            self.assertTrue(prefers_json(accept), accept)


class LagProbeTests(SynchronousTestCase):
    """Tests for L{LagProbe}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.probe = LagProbe(self.metrics, self.clock)
        self.probe.start()

    def test_on_time(self) -> None:
        """A reactor that is on time has no lag."""
        self.clock.pump([LAG_SECONDS] * 5)
        self.assertEqual(self.metrics.reactor_lag.count, 5)
        self.assertAlmostEqual(self.metrics.reactor_lag.sum, 0.0)

    def test_late(self) -> None:
        """A turn that takes long is seen in full, and only once."""
        self.clock.pump([LAG_SECONDS, LAG_SECONDS + 0.8, LAG_SECONDS, LAG_SECONDS])
        self.assertAlmostEqual(self.metrics.reactor_lag.sum, 0.8, places=6)

    def test_takes_samples(self) -> None:
        """The rates of /stats are those of the last minute, not since the start."""
        self.metrics.messages_sent.inc(100)
        self.clock.pump([LAG_SECONDS] * round(SAMPLE_SECONDS / LAG_SECONDS + 1))
        stats = self.metrics.stats(self.clock.seconds() + 10, started=0.0)
        self.assertEqual(stats.message_rate, 0.0)

    def test_stop(self) -> None:
        """Nothing is left behind."""
        self.probe.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
