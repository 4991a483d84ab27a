"""Tests for L{domaeka.metrics}."""

import msgspec
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import CloseReason, ErrorCode
from domaeka.metrics import (
    MAX_REGISTERED_VALUES,
    RATE_WINDOW_SECONDS,
    SAMPLE_SECONDS,
    Counter,
    Family,
    Gauge,
    Histogram,
    Metrics,
)

#: Each metric of the contract, with its label.
NAMES = {
    "build_info": None,
    "connections": None,
    "connections_total": "result",
    "frames_received_total": "event",
    "frames_sent_total": "event",
    "bytes_received_total": None,
    "bytes_sent_total": None,
    "rtt_seconds": None,
    "ping_timeouts_total": None,
    "closes_total": "reason",
    "outbox_messages": None,
    "outbox_bytes": None,
    "expired_messages_total": None,
    "handler_seconds": "command",
    "handler_failures_total": "command",
    "breaker_state": "name",
    "compression_bytes_total": "stage",
    "auth_failures_total": "reason",
    "bans": None,
    "refusals_total": "reason",
    "sessions": None,
    "store_write_seconds": None,
    "store_queue": None,
    "reactor_lag_seconds": None,
    "draining": None,
    "errors_total": "kind",
}


class InstrumentTests(SynchronousTestCase):
    """Tests for L{Histogram} and L{Family}."""

    def test_histogram_counts_into_the_right_bucket(self) -> None:
        """A value equal to a bound is in its bucket; one above all bounds is counted too."""
        histogram = Histogram((1.0, 2.0))
        for value in (0.5, 1.0, 1.5, 99.0):
            histogram.observe(value)
        self.assertEqual(histogram.buckets(), [("1.0", 2), ("2.0", 3), ("+Inf", 4)])
        self.assertEqual((histogram.count, histogram.sum), (4, 102.0))

    def test_unknown_values_are_counted_together(self) -> None:
        """A value outside the set makes no series of its own."""
        family = Family(Counter, ("a",))
        for value in ("a", "b", "c"):
            family.labels(value).inc()
        self.assertEqual({key: child.value for key, child in family.items()}, {"a": 1, "other": 2})

    def test_registered_values_are_bounded(self) -> None:
        """However many commands there are, there are no more than so many series."""
        family = Family(Counter, ("declared",))
        for number in range(MAX_REGISTERED_VALUES + 50):
            family.register(f"command {number}").inc()
        self.assertEqual(len(family.items()), 1 + MAX_REGISTERED_VALUES + 1)
        self.assertEqual(family.labels("other").value, 50)

    def test_registering_again_keeps_the_count(self) -> None:
        """A command that is loaded again goes on counting."""
        family = Family(Counter)
        family.register("# echo").inc()
        self.assertEqual(family.register("# echo").value, 1)

    def test_refreshed(self) -> None:
        """What is to be registered may come at any time: it is there at the next scrape."""
        family, services = Family(Gauge), ["first"]
        family.refresh = lambda: [family.register(name) for name in services]
        self.assertEqual([name for name, _ in family.items()], ["first"])
        services.append("second")
        self.assertEqual([name for name, _ in family.items()], ["first", "second"])

    def test_forgets(self) -> None:
        """A command that is loaded no more has no series any more; the declared ones stay."""
        family = Family(Counter, ("declared",))
        for command in ("# echo", "# gone"):
            family.register(command)
        family.labels("unknown").inc()
        family.keep({"# echo"})
        self.assertEqual([value for value, _ in family.items()], ["declared", "# echo", "other"])


class MetricsTests(SynchronousTestCase):
    """Tests for L{Metrics}."""

    def setUp(self) -> None:
        self.metrics = Metrics()

    def scrape(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Name of each series without its prefix, with its labels and value."""
        series: dict[str, list[tuple[dict[str, str], float]]] = {}
        text = generate_latest(self.metrics.registry).decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("domaeka_")
                series.setdefault(name, []).append((sample.labels, sample.value))
        return series

    def test_has_every_metric_of_the_contract(self) -> None:
        """Each name is there, with its label and no other."""
        for family in (self.metrics.handler, self.metrics.handler_failures):
            family.register("# echo")
        self.metrics.breaker_state.register("# echo")
        series = self.scrape()
        for name, label in NAMES.items():
            found = series.get(name) or series.get(f"{name}_count")
            assert found is not None, name
            if name != "build_info":
                self.assertEqual(set(found[0][0]), {label} if label else set(), name)

    def test_closed_sets_start_at_nought(self) -> None:
        """Every reason and code has its series before it first happens, so that rates are right."""
        series = self.scrape()
        reasons = {labels["reason"] for labels, _ in series["closes_total"]}
        self.assertEqual(reasons, set(CloseReason))
        self.assertLessEqual(
            set(ErrorCode), {labels["kind"] for labels, _ in series["errors_total"]}
        )

    def test_counts_show_in_the_scrape(self) -> None:
        """What is counted is exposed, whichever way it was counted."""
        self.metrics.bytes_received.value += 5
        self.metrics.closes.labels(CloseReason.PING_TIMEOUT).inc()
        self.metrics.connections.watch(lambda: 7)
        series = self.scrape()
        self.assertEqual(series["bytes_received_total"], [({}, 5.0)])
        self.assertIn(({"reason": "ping timeout"}, 1.0), series["closes_total"])
        self.assertEqual(series["connections"], [({}, 7.0)])

    def test_label_values_are_escaped(self) -> None:
        """A command's name with a quote or a newline breaks no line."""
        self.metrics.handler_failures.register('# "a"\n\\b').inc()
        self.assertEqual(
            self.scrape()["handler_failures_total"], [({"command": '# "a"\n\\b'}, 1.0)]
        )

    def test_stats(self) -> None:
        """The figures for people have the agreed names."""
        self.metrics.attempts.labels("accepted").inc(3)
        self.metrics.errors.labels(ErrorCode.BAD_FRAME).inc()
        self.metrics.messages_sent.inc(20)
        self.metrics.bytes_sent.inc(500)
        self.assertEqual(
            msgspec.structs.asdict(self.metrics.stats(now=110.0, started=100.0)),
            {
                "uptime": 10.0,
                "total_connections": 3,
                "active_connections": 0,
                "messages_sent": 20,
                "messages_received": 0,
                "message_rate": 2.0,
                "throughput": {"sent": 50.0, "received": 0.0},
                "errors": {"BAD_FRAME": 1},
            },
        )

    def test_rates_are_those_of_the_last_minute(self) -> None:
        """What happened earlier no longer counts."""
        self.metrics.messages_received.inc(1_000_000)
        now = 0.0
        while now < 2 * RATE_WINDOW_SECONDS:
            now += SAMPLE_SECONDS
            self.metrics.sample(now)
        self.metrics.messages_received.inc(6 * RATE_WINDOW_SECONDS)
        self.assertEqual(self.metrics.stats(now, started=0.0).message_rate, 6.0)
