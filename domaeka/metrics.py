"""
Every metric of the server, declared once.

The instruments are our own.  A message costs some 35 µs, the network apart; prometheus_client's
C{Counter.inc} costs 1.0 µs of it and its C{Histogram.observe} 2.3 µs, for they take locks, and
ours 0.1 and 0.4 µs.  Hence no locks: B{only the reactor's thread touches an instrument.}  Names,
escaping, formats and content types are left to prometheus_client: L{Metrics.collect} is a
collector in the sense of that library, registered with L{Metrics.registry}.

The format is Prometheus text: in OpenMetrics the names C{domaeka_connections} (a gauge) and
C{domaeka_connections_total} (a counter) would be one metric of two types.

No label has values that a stranger can choose: they come from a closed set, or are registered by
the operator's own code (commands, breakers), and no more than L{MAX_REGISTERED_VALUES} of them.
"""

import platform
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from domaeka import __version__
from domaeka.errors import CloseReason, ErrorCode
from domaeka.health import Stats
from domaeka.policies.auth import AuthFault
from domaeka.pools import Pool, Pools

#: Most values that one label may have by L{Family.register}.  Source: a series costs 12 µs of
#: every scrape.
MAX_REGISTERED_VALUES: Final = 256
#: The label of values outside the label's set.
OTHER: Final = "other"

#: The span over which L{Metrics.stats} averages rates, and how often it needs a L{Metrics.sample},
#: in seconds.
RATE_WINDOW_SECONDS: Final = 60
SAMPLE_SECONDS: Final = 5

#: Kinds of frames from phones; C{message} is chat in either dialect, C{bad} cannot be read.
RECEIVED_EVENTS: Final = (
    "handshake",
    "message",
    "pong",
    "ack",
    "delivery",
    "probe",
    "migrated",
    "bad",
)
#: Results in delivery reports of clients.
DELIVERY_RESULTS: Final = ("delivered", "refused_by_app")
#: Kinds of frames to phones; C{message} is all that shows in a room.
SENT_EVENTS: Final = (
    "handshakeComplete",
    "message",
    "ping",
    "probe",
    "ack",
    "error",
    "serverShutdown",
    "serverMigration",
    "replay",
)
#: Results of attempts to connect: accepted, or refused for a reason of C{refusals_total}.
CONNECTION_RESULTS: Final = ("accepted", "refused")
#: Reasons for refusals.
REFUSAL_REASONS: Final = (
    CloseReason.SERVER_FULL,
    CloseReason.RATE_LIMITED,
    CloseReason.BANNED,
    CloseReason.BAD_PROXY_HEADER,
    CloseReason.HANDSHAKE_TIMEOUT,
    CloseReason.GAVE_WAY,
)
#: Errors beyond those that are sent to phones.
INTERNAL_ERRORS: Final = ("bot", "duplicate device", "health check", "http", "store")

# Upper bounds of the histograms' buckets, in seconds.
_RTT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 90.0)
_HANDLER_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_WRITE_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_BATCH_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
_PACING_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Counter:
    """A number that only grows.  On a hot path C{counter.value += n} saves the call."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, n: float = 1) -> None:
        """Count C{n} more, 0 or above."""
        self.value += n

    def exposed(self) -> tuple[float]:
        """The arguments of C{add_metric}."""
        return (self.value,)


class Gauge:
    """A number that goes up and down: set, or else read at the scrape."""

    __slots__ = ("_read", "_value")

    def __init__(self) -> None:
        self._value: float = 0
        self._read: Callable[[], float] | None = None

    @property
    def value(self) -> float:
        """The value now."""
        return self._value if self._read is None else self._read()

    def set(self, value: float) -> None:
        """Set the value."""
        self._value = value

    def watch(self, read: Callable[[], float]) -> None:
        """Read the value by C{read} at each scrape.  It must be cheap and must not raise."""
        self._read = read

    def exposed(self) -> tuple[float]:
        """The arguments of C{add_metric}."""
        return (self.value,)


class Histogram:
    """A distribution of values: counts in buckets, and their sum."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """@param bounds: the buckets' upper bounds, ascending; one above them all is added."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count C{value}."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """The number of values observed."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, int]]:
        """Each bound, as text, with the number of values not above it."""
        total = 0
        pairs = []
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            pairs.append((str(bound), total))
        return pairs

    def exposed(self) -> tuple[list[tuple[str, int]], float]:
        """The arguments of C{add_metric}."""
        return self.buckets(), self.sum


_Instrument = TypeVar("_Instrument", bound=Counter | Gauge | Histogram)


class Family(Generic[_Instrument]):
    """The instruments of one metric, one for each value of its label."""

    def __init__(self, make: Callable[[], _Instrument], values: Iterable[str] = ()) -> None:
        """@param values: the label's values that are known from the start."""
        self._make = make
        self._children = {str(value): make() for value in values}
        self._closed = len(self._children)
        #: Called before each scrape, for values that may be registered at any time.
        self.refresh: Callable[[], object] = lambda: None

    def labels(self, value: str) -> _Instrument:
        """A value's instrument; L{OTHER}'s if it is not known.  Bind it once on a hot path."""
        child = self._children.get(value)
        return self._other() if child is None else child

    def register(self, value: str) -> _Instrument:
        """
        Make C{value} known.

        @return: its instrument; that of L{OTHER} once there are L{MAX_REGISTERED_VALUES}.
        """
        child = self._children.get(value)
        if child is not None:
            return child
        if len(self._children) - self._closed >= MAX_REGISTERED_VALUES:
            return self._other()
        child = self._children[value] = self._make()
        return child

    def keep(self, values: Container[str]) -> None:
        """Forget registered values that are not in C{values}: their series end."""
        for value in list(self._children)[self._closed :]:
            if value != OTHER and value not in values:
                del self._children[value]

    def _other(self) -> _Instrument:
        child = self._children.get(OTHER)
        if child is None:
            child = self._children[OTHER] = self._make()
        return child

    def items(self) -> list[tuple[str, _Instrument]]:
        """Each value with its instrument, as they are now."""
        self.refresh()
        return list(self._children.items())


class _Sample(NamedTuple):
    """The figures that rates are made of, at one time."""

    time: float
    messages: float
    bytes_sent: float
    bytes_received: float


class Metrics(Collector):
    """
    The metrics of one server, each an attribute named as the metric without C{domaeka_},
    C{_total} and the unit; but the attempts to connect, C{connections_total}, are C{attempts}.

    @ivar registry: for prometheus_client; it holds these and those of the process.
    @ivar pools: what shared pools have given way; it counts C{gave_way}.
    """

    def __init__(self) -> None:
        self._declared: list[Callable[[], Metric]] = []
        self._samples: deque[_Sample] = deque(maxlen=RATE_WINDOW_SECONDS // SAMPLE_SECONDS + 1)
        self._declared.append(_build_info)

        # Connections.
        self.connections = self._gauge(
            "connections", "Connections that are open, those of strangers with them"
        )
        self.phones = self._gauge("phones", "Phones connected that have proven who they are")
        self.attempts = self._counters(
            "connections", "Attempts to connect", "result", CONNECTION_RESULTS
        )
        self.refusals = self._counters(
            "refusals", "Attempts to connect that were turned away", "reason", REFUSAL_REASONS
        )
        self.closes = self._counters("closes", "Connections that ended", "reason", CloseReason)
        self.auth_failures = self._counters(
            "auth_failures", "Signatures that were missing or not accepted", "reason", AuthFault
        )
        self.clock_offset = self._gauge(
            "clock_offset_seconds",
            "Offset of the server's clock from that of most phones, above 0: ahead; 0: it is right",
        )
        self.errors = self._counters(
            "errors", "What went wrong", "kind", (*ErrorCode, *INTERNAL_ERRORS)
        )
        self.bans = self._gauge("bans", "Addresses that are banned")
        self.sessions = self._gauge("sessions", "Session tokens that are valid")
        self.disk_free = self._gauge(
            "disk_free_bytes", "Free space on the fullest of the disks that the server writes to"
        )
        self.certificate_expires = self._gauge(
            "tls_certificate_expires_seconds", "When the TLS certificate ends, since 1970; 0: none"
        )
        self.draining = self._gauge("draining", "1 while the server is stopping, else 0")
        self.migration_clients = self._gauges(
            "migration_clients", "clients of the last move to another server, by state", "state"
        )

        # Traffic.
        self.frames_received = self._counters(
            "frames_received", "Frames from phones", "event", RECEIVED_EVENTS
        )
        self.frames_sent = self._counters("frames_sent", "Frames to phones", "event", SENT_EVENTS)
        self.bytes_received = self._counter("bytes_received", "Bytes from phones")
        self.bytes_sent = self._counter("bytes_sent", "Bytes to phones")
        #: The chat of C{frames_received} and C{frames_sent}.
        self.messages_received = self.frames_received.labels("message")
        self.messages_sent = self.frames_sent.labels("message")
        self.repeats_dropped = self._counter(
            "repeats_dropped", "Lines that came twice, byte for byte, and were dropped"
        )
        self.compression_bytes = self._counters(
            "compression_bytes",
            "Bytes of what was compressed, both ways: before (plain) and after (wire)",
            "stage",
            ("plain", "wire"),
        )
        self.rtt = self._histogram("rtt_seconds", "From a ping to its pong", _RTT_BOUNDS)
        self.ping_timeouts = self._counter("ping_timeouts", "Pings that went unanswered too long")

        # What waits for phones.
        self.outbox_messages = self._gauge("outbox_messages", "Messages that wait for phones")
        self.outbox_bytes = self._gauge("outbox_bytes", "Bytes that wait for phones")
        self.pacing_held = self._gauge(
            "pacing_held_messages", "Messages that wait because `pacing` holds them back"
        )
        self.pacing_wait = self._histogram(
            "pacing_wait_seconds",
            "How long messages waited, on a connection, where `pacing` is on",
            _PACING_BOUNDS,
        )
        self.expired_messages = self._counter(
            "expired_messages", "Messages that waited longer than their time to live"
        )
        self.dropped_messages = self._counter(
            "dropped_messages", "Messages that found no room to wait in"
        )
        self.forgotten_messages = self._counter(
            "forgotten_messages",
            "Messages that were sent, and given up for want of room, before their acknowledgement",
        )
        self.unconfirmed_messages = self._counter(
            "unconfirmed_messages",
            "Messages to phones that acknowledge nothing that had left for the socket, behind the "
            "last ping that was answered, when the connection ended: at most these were lost",
        )
        self.delivery_reports = self._counters(
            "delivery_reports",
            "Messages of which a phone reported what its chat app did",
            "result",
            DELIVERY_RESULTS,
        )
        self.bad_acks = self._counter("bad_acks", "Acknowledgements of what was never sent")

        # Bots.
        self.handler = self._histograms(
            "handler_seconds", "How long commands took", "command", _HANDLER_BOUNDS
        )
        self.handler_failures = self._counters(
            "handler_failures", "Commands that failed or took too long", "command"
        )
        self.refused_messages = self._counter(
            "refused_messages", "Commands for which there was no room to wait"
        )
        self.breaker_state = self._gauges(
            "breaker_state", "Circuit breakers: 0 closed, 1 half open, 2 open", "name"
        )

        # The server itself.
        self.store_write = self._histogram(
            "store_write_seconds", "How long writes to the store took", _WRITE_BOUNDS
        )
        self.durable_commit = self._histogram(
            "durable_commit_seconds", "How long commits of durable delivery took", _WRITE_BOUNDS
        )
        self.durable_commit_messages = self._histogram(
            "durable_commit_messages", "Messages and answers in a commit", _BATCH_BOUNDS
        )
        self.bots_loop_held = self._gauge(
            "bots_loop_held_seconds", "Time for which a function has held up the bots' loop"
        )
        self.durable_held = self._gauge(
            "durable_held", "Connections that wait for durable delivery's store"
        )
        self.store_queue = self._gauge("store_queue", "What waits to be written to the store")
        self.chat_lines_dropped = self._counter(
            "chat_lines_dropped", "Lines of the chat log that found no room, or were refused"
        )
        self.held_messages_dropped = self._counter(
            "held_messages_dropped",
            "Messages that came before the store was read, and found no room to wait",
        )
        self.reactor_lag = self._histogram(
            "reactor_lag_seconds", "How late the reactor's timers are", _LAG_BOUNDS
        )

        # What is shared.
        self.gave_way = self._counters(
            "gave_way",
            "Times that something shared was at its bound, and somebody had to give way",
            "pool",
            Pool,
        )
        self.pools = Pools(lambda pool, count: self.gave_way.labels(pool).inc(count))

        self.http_refused = self._counter(
            "http_refused", "HTTP connections that were closed at once: too many, denied or banned"
        )

        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    # prometheus_client's Collector

    def describe(self) -> Iterable[Metric]:
        """Nothing: this is called to find names that clash, and ours all begin alike."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Each metric with its value now."""
        for declared in self._declared:
            yield declared()

    # Figures for people

    def sample(self, now: float) -> None:
        """
        Remember the figures that rates are made of.

        @param now: the time; L{SAMPLE_SECONDS} after the last sample.
        """
        self._samples.append(self._figures(now))

    def stats(self, now: float, started: float) -> Stats:
        """C{/stats}: rates are over L{RATE_WINDOW_SECONDS}, or since the start if that is less."""
        latest = self._figures(now)
        first = self._samples[0] if self._samples else _Sample(started, 0, 0, 0)
        elapsed = now - first.time

        def rate(field: int) -> float:
            return round((latest[field] - first[field]) / elapsed, 3) if elapsed > 0 else 0.0

        return Stats(
            round(now - started, 3),
            self.attempts.labels("accepted").value,
            self.connections.value,
            self.messages_sent.value,
            self.messages_received.value,
            rate(1),
            {"sent": rate(2), "received": rate(3)},
            {kind: child.value for kind, child in self.errors.items() if child.value},
        )

    def _figures(self, now: float) -> _Sample:
        return _Sample(
            now,
            self.messages_received.value + self.messages_sent.value,
            self.bytes_sent.value,
            self.bytes_received.value,
        )

    # Declarations

    def _counter(self, name: str, text: str) -> Counter:
        return self._single(CounterMetricFamily, name, text, Counter())

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._single(GaugeMetricFamily, name, text, Gauge())

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return self._single(HistogramMetricFamily, name, text, Histogram(bounds))

    def _counters(
        self, name: str, text: str, label: str, values: Iterable[str] = ()
    ) -> Family[Counter]:
        return self._labelled(CounterMetricFamily, name, text, label, Family(Counter, values))

    def _gauges(self, name: str, text: str, label: str) -> Family[Gauge]:
        return self._labelled(GaugeMetricFamily, name, text, label, Family(Gauge))

    def _histograms(
        self, name: str, text: str, label: str, bounds: tuple[float, ...]
    ) -> Family[Histogram]:
        family = Family(lambda: Histogram(bounds))
        return self._labelled(HistogramMetricFamily, name, text, label, family)

    def _single(
        self, kind: Callable[..., Any], name: str, text: str, instrument: _Instrument
    ) -> _Instrument:
        def collect() -> Metric:
            metric = kind(f"domaeka_{name}", text, labels=())
            metric.add_metric((), *instrument.exposed())
            return cast(Metric, metric)

        self._declared.append(collect)
        return instrument

    def _labelled(
        self,
        kind: Callable[..., Any],
        name: str,
        text: str,
        label: str,
        family: Family[_Instrument],
    ) -> Family[_Instrument]:
        def collect() -> Metric:
            metric = kind(f"domaeka_{name}", text, labels=(label,))
            for value, instrument in family.items():
                metric.add_metric((value,), *instrument.exposed())
            return cast(Metric, metric)

        self._declared.append(collect)
        return family


def _build_info() -> Metric:
    return InfoMetricFamily(
        "domaeka_build",
        "What is running",
        value={"version": __version__, "python": platform.python_version()},
    )
