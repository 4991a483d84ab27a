"""
Health, metrics and figures: pages for load balancers, Prometheus and people.

A scrape is rendered a part at a time, so that it never blocks the reactor; requests at the same
moment share one.
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
from domaeka.health import Health
from domaeka.interfaces import HealthCheck
from domaeka.logs import quote
from domaeka.metrics import SAMPLE_SECONDS, Metrics
from domaeka.policies.limits import TokenBucket
from domaeka.web.routes import JSON, Answer, Call, Route, as_json
from domaeka.web.server import Timer

#: Lines rendered in one turn of the reactor, of which none should take 10 ms.  Source:
#: benchmarks/scrape.py: the longest takes 5 ms.
LINES_PER_TURN: Final = 250
#: Most renderings a second, and at once: anybody on this machine may ask.  Of 40 commands each
#: takes 5 ms of the reactor's time (908 lines), all of them 2 %.
RENDERS_PER_SECOND: Final = 4.0
RENDERS_AT_ONCE: Final = 8.0
#: The content type of L{generate_latest}'s output by default.
_TEXT_TYPE: Final = choose_encoder("")[1]
#: Interval of the measurements of the reactor's lag, in seconds: they notice each turn that is
#: longer than this, and half of those of 50 ms.  Waking a sleeping core takes 0.2 % of its time; at
#: half the interval, 0.5 %.
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
    The output of L{generate_latest} for C{registry}, line by line.

    A line costs that function 12 µs, as it checks each name again; here it is 5.
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
    """
    Renders the metrics, over as many turns of the reactor as it takes, and no more often than
    L{RENDERS_PER_SECOND}: who asks in a loop shares one with all who ask meanwhile.
    """

    def __init__(self, registry: Collector, timer: Timer) -> None:
        self._registry = registry
        self._timer = timer
        self._asking: list[Deferred[bytes]] = []
        self._busy = False
        self._share = TokenBucket(RENDERS_PER_SECOND, RENDERS_AT_ONCE, timer.seconds)

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
        wait = self._share.take()
        if wait:
            self._timer.callLater(wait, self._begin)
            return
        asked, self._asking = self._asking, []
        self._go_on(asked, _lines(self._registry), [])

    def _go_on(self, asked: list[Deferred[bytes]], lines: Iterator[str], done: list[str]) -> None:
        """Render as many lines as one turn may."""
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
    The pages that need no token; other machines may read those of C{/health} only.

    C{/health} is C{unhealthy} while phones cannot connect: before the port is open, or after it
    was lost.  A check that fails is shown and leaves it at 200: it is better to serve connected
    phones badly than to move them away.  C{/health/ready} turns 503 for those that are C{needed}:
    then no new phones should come.
    """

    _log = Logger()

    def __init__(
        self,
        metrics: Metrics,
        timer: Timer,
        checks: Mapping[str, HealthCheck],
        listening: Callable[[], bool],
        draining: Callable[[], bool],
        changes: Callable[[], Mapping[str, Any]] = dict,
        needed: Mapping[str, HealthCheck] = {},
        *,
        wall: Callable[[], float],
    ) -> None:
        """
        @param metrics: its C{connections} are shown, too.
        @param timer: the reactor; the server starts now.
        @param listening: returns true while phones can connect.
        @param draining: returns true while the server is stopping or being moved.
        @param changes: the progress of that, by its name: C{drain} or C{migration}.
        @param needed: further checks: while one fails, the server is not ready.
        """
        self._metrics = metrics
        self._timer = timer
        self._checks = checks
        self._listening = listening
        self._draining = draining
        self._changes = changes
        self._needed = needed
        self._wall = wall
        self._started = timer.seconds()
        self._exposition = Exposition(metrics.registry, timer)
        self._page = _PAGE.format(version=__version__).encode()

    def routes(self) -> tuple[Route, ...]:
        """The routes to serve."""
        return (
            Route("GET", "/", self.index),
            Route("GET", "/health", self.health, anywhere=True),
            Route("GET", "/health/live", self.live, anywhere=True),
            Route("GET", "/health/ready", self.ready, anywhere=True),
            Route("GET", "/metrics", self.metrics),
            Route("GET", "/stats", self.stats),
        )

    def index(self, call: Call) -> Answer:
        """A page with links."""
        return Answer(self._page, content_type="text/html; charset=utf-8")

    def health(self, call: Call) -> Answer:
        """The health of the server and of its parts."""
        status = self._status("healthy", "unhealthy")
        return as_json(
            Health(
                status,
                datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds"),
                __version__,
                round(self._timer.seconds() - self._started, 3),
                self._metrics.connections.value,
                {name: self._result(name, check) for name, check in self._checks.items()},
                **self._changes(),
            ),
            HTTPStatus.OK if status == "healthy" else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    def live(self, call: Call) -> Answer:
        """Liveness: the process answers."""
        return as_json({"status": "alive"})

    def ready(self, call: Call) -> Answer:
        """Readiness: does the server take new phones, and does no check fail that is needed?"""
        status = self._status("ready", "not listening")
        results = (self._result(name, check) for name, check in self._needed.items())
        failing = [result for result in results if result != "ok"]
        if failing and status == "ready":
            status = f"not ready: {', '.join(failing)}"
        return as_json(
            {"status": status},
            HTTPStatus.OK if status == "ready" else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    def stats(self, call: Call) -> Answer:
        """Figures: L{Metrics.stats}."""
        return as_json(self._metrics.stats(self._timer.seconds(), self._started))

    def metrics(self, call: Call) -> "Answer | Deferred[Answer]":
        """Every metric in Prometheus' format; C{/stats} for clients that prefer JSON."""
        if prefers_json(call.headers.get("accept", "")):
            return self.stats(call)
        return self._exposition.render().addCallback(Answer, content_type=_TEXT_TYPE)

    def _status(self, well: str, ill: str) -> str:
        if self._draining():
            return "draining"
        return well if self._listening() else ill

    def _result(self, name: str, check: HealthCheck) -> str:
        try:
            wrong = check()
        except Exception:
            self._log.failure("Health check {check} failed", check=name)
            self._metrics.errors.labels("health check").inc()
            return "the check itself failed: see the log"
        return "ok" if wrong is None else quote(wrong)


def prefers_json(accept: str) -> bool:
    """True if an C{Accept} header puts JSON first: by its weights, then by its order."""
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
    """Measures how late the reactor is, and has the metrics take their samples for rates."""

    _log = Logger()

    def __init__(self, metrics: Metrics, reactor: Any) -> None:
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
        """Stop measuring."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    def _tick(self, count: int) -> None:
        """@param count: how many ticks were due; all but one were missed."""
        now = self._reactor.seconds()
        due = self._first + (self._ticks + 1) * LAG_SECONDS
        self._ticks += count
        self._metrics.reactor_lag.observe(max(0.0, now - due))
        if (self._ticks - self._sampled) * LAG_SECONDS >= SAMPLE_SECONDS:
            self._sampled = self._ticks
            self._metrics.sample(now)
