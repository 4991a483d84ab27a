"""
Health, metrics and figures: what load balancers, Prometheus and people ask for.

A scrape is rendered a part at a time, so that it never holds the reactor up, and those who ask at
the same moment share one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import islice
from typing import Any, Final

from prometheus_client import generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka import __version__
from domaeka.interfaces import HealthCheck
from domaeka.logs import quote
from domaeka.metrics import SAMPLE_SECONDS, Metrics
from domaeka.web.routes import JSON, Answer, Call, Route, as_json
from domaeka.web.server import Timer

#: Lines rendered in one turn of the reactor, of which none should take 10 ms.  Source:
#: benchmarks/scrape.py: the longest takes 5 ms.
LINES_PER_TURN: Final = 250
#: The content type of what L{generate_latest} makes when nothing is asked of it.
_TEXT_TYPE: Final = choose_encoder("")[1]
#: How often the reactor's lag is measured, in seconds: each turn that is longer than this is
#: noticed, and half of those that take 50 ms.  A core that sleeps is woken for it, which takes
#: 0.2 % of its time; at twice as often, 0.5 %.
LAG_SECONDS: Final = 0.1

_PAGE: Final = """<!DOCTYPE html>
<title>domaeka</title>
<p>domaeka {version}:
<a href="/health">health</a>
<a href="/stats">stats</a>
<a href="/metrics">metrics</a></p>
"""


class _Introduction(Collector):
    """A metric without its series, for L{generate_latest}."""

    def __init__(self, metric: Metric) -> None:
        self._metric = Metric(metric.name, metric.documentation, metric.type)

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _lines(registry: Collector) -> Iterator[str]:
    """
    What L{generate_latest} makes of C{registry}, line by line.

    A line costs that function 12 µs, for it examines each name again; here it is 5.
    """
    for metric in registry.collect():
        yield from generate_latest(_Introduction(metric)).decode().splitlines(keepends=True)
        for sample in metric.samples:
            value = floatToGoString(sample.value)  # type: ignore[no-untyped-call]
            labels = sample.labels
            if labels:
                pairs = [f'{name}="{_escape(labels[name])}"' for name in sorted(labels)]
                yield f"{sample.name}{{{','.join(pairs)}}} {value}\n"
            else:
                yield f"{sample.name} {value}\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Exposition:
    """Renders the metrics, over as many turns of the reactor as it takes."""

    def __init__(self, registry: Collector, timer: Timer) -> None:
        """
        @param registry: what is rendered.
        @param timer: the reactor.
        """
        self._registry = registry
        self._timer = timer
        self._asking: list[Deferred[bytes]] = []
        self._busy = False

    def render(self) -> "Deferred[bytes]":
        """@return: fires with the text; no value in it is older than this call."""
        asked: Deferred[bytes] = Deferred()
        self._asking.append(asked)
        self._begin_soon()
        return asked

    def _begin_soon(self) -> None:
        if self._asking and not self._busy:
            self._busy = True
            self._timer.callLater(0, self._begin)

    def _begin(self) -> None:
        asked, self._asking = self._asking, []
        self._go_on(asked, _lines(self._registry), [])

    def _go_on(self, asked: list[Deferred[bytes]], lines: Iterator[str], done: list[str]) -> None:
        """Render what one turn may."""
        try:
            turn = list(islice(lines, LINES_PER_TURN))
        except Exception:
            failure = Failure()  # type: ignore[no-untyped-call]
            self._end(lambda deferred: deferred.errback(failure), asked)
            return
        done += turn
        if len(turn) == LINES_PER_TURN:
            self._timer.callLater(0, lambda: self._go_on(asked, lines, done))
            return
        text = "".join(done).encode()
        self._end(lambda deferred: deferred.callback(text), asked)

    def _end(self, fire: Callable[[Deferred[bytes]], None], asked: list[Deferred[bytes]]) -> None:
        self._busy = False
        self._begin_soon()
        for deferred in asked:
            fire(deferred)


class HealthPages:
    """
    The pages that need no token: from other machines, those of C{/health}.

    C{/health} is C{unhealthy} while phones cannot connect: before the port is open, or after it
    was lost.  What a check finds is shown and changes nothing, for the phones that are connected
    are better served badly than moved away.
    """

    _log = Logger()

    def __init__(
        self,
        metrics: Metrics,
        timer: Timer,
        checks: Mapping[str, HealthCheck],
        listening: Callable[[], bool],
        draining: Callable[[], bool],
        changes: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        """
        @param metrics: whose C{connections} is shown, too.
        @param timer: the reactor; the server starts now.
        @param checks: by name.
        @param listening: whether phones can connect.
        @param draining: whether the server is stopping or being moved.
        @param changes: how far that has come, by what it is.
        """
        self._metrics = metrics
        self._timer = timer
        self._checks = checks
        self._listening = listening
        self._draining = draining
        self._changes = changes
        self._started = timer.seconds()
        self._exposition = Exposition(metrics.registry, timer)
        self._page = _PAGE.format(version=__version__).encode()

    def routes(self) -> tuple[Route, ...]:
        """What is to be served."""
        return (
            Route("GET", "/", self.index),
            Route("GET", "/health", self.health, anywhere=True),
            Route("GET", "/health/live", self.live, anywhere=True),
            Route("GET", "/health/ready", self.ready, anywhere=True),
            Route("GET", "/metrics", self.metrics),
            Route("GET", "/stats", self.stats),
        )

    def index(self, call: Call) -> Answer:
        """A line with links."""
        return Answer(self._page, content_type="text/html; charset=utf-8")

    def health(self, call: Call) -> Answer:
        """How the server is, and its parts."""
        now = self._timer.seconds()
        status = self._status("healthy", "unhealthy")
        return as_json(
            {
                "status": status,
                "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
                "version": __version__,
                "uptime": round(max(0.0, now - self._started), 3),
                "connections": self._metrics.connections.value,
                "checks": {name: self._check(name) for name in self._checks},
                **self._changes(),
            },
            HTTPStatus.OK if status == "healthy" else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    def live(self, call: Call) -> Answer:
        """The process answers."""
        return as_json({"status": "alive"})

    def ready(self, call: Call) -> Answer:
        """Whether it takes new phones."""
        status = self._status("ready", "not listening")
        return as_json(
            {"status": status},
            HTTPStatus.OK if status == "ready" else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    def stats(self, call: Call) -> Answer:
        """Figures: L{Metrics.stats}."""
        return as_json(self._metrics.stats(self._timer.seconds(), self._started))

    def metrics(self, call: Call) -> "Answer | Deferred[Answer]":
        """Every metric as Prometheus reads it; C{/stats} for those who rather have JSON."""
        if prefers_json(call.headers.get("accept", "")):
            return self.stats(call)
        return self._exposition.render().addCallback(Answer, content_type=_TEXT_TYPE)

    def _status(self, well: str, ill: str) -> str:
        if self._draining():
            return "draining"
        return well if self._listening() else ill

    def _check(self, name: str) -> str:
        try:
            wrong = self._checks[name]()
        except Exception:
            self._log.failure("Health check {check} failed", check=name)
            self._metrics.errors.labels("health check").inc()
            return "the check itself failed: see the log"
        return "ok" if wrong is None else quote(wrong)


def prefers_json(accept: str) -> bool:
    """Whether an C{Accept} header puts JSON first: by its weights, then by its order."""
    best = ("", 0.0)
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if weight > best[1]:
            best = (kind, weight)
    return best[0] == JSON


class LagProbe:
    """
    Measures how late the reactor is, and has the metrics take the samples that rates are made of.
    """

    _log = Logger()

    def __init__(self, metrics: Metrics, reactor: Any) -> None:
        """
        @param metrics: where the lag goes.
        @param reactor: what is measured.
        """
        self._metrics = metrics
        self._reactor = reactor
        self._loop: LoopingCall | None = None
        self._first = 0.0  # when the loop began
        self._ticks = 0  # since then
        self._sampled = 0  # ticks at the last sample

    def start(self) -> None:
        """Begin to measure."""
        self._first = self._reactor.seconds()
        self._ticks = self._sampled = 0
        self._loop = LoopingCall.withCount(self._tick)
        self._loop.clock = self._reactor
        self._loop.start(LAG_SECONDS, now=False).addErrback(
            lambda failure: self._log.failure("The reactor's lag is no longer measured", failure)
        )

    def stop(self) -> None:
        """Measure no more."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    def _tick(self, count: int) -> None:
        """@param count: how many ticks were due; all but one were missed."""
        now = self._reactor.seconds()
        due = self._first + (self._ticks + 1) * LAG_SECONDS
        self._ticks += count
        # Wall time may step back.
        self._metrics.reactor_lag.observe(max(0.0, now - due))
        if (self._ticks - self._sampled) * LAG_SECONDS >= SAMPLE_SECONDS:
            self._sampled = self._ticks
            self._metrics.sample(now)
