"""The measurements: rows of the table, each in windows that the contestants take in turn."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import msgspec

from benchmarks.machine import Cores, kept_on
from benchmarks.servers import BUILD, BenchmarkError, Contestant, Server

#: Timeout of the generator, which ends by itself, in seconds.
_GENERATOR_SECONDS: Final = 960.0


class Window(msgspec.Struct, frozen=True):
    """
    Figures of the generator for one window.

    @ivar done: operations: answers, pings answered, or handshakes.
    @ivar server_us: CPU time of the server per operation.
    @ivar server_busy: part of the window that the server ran; C{server_waited}: that it waited for
        its core.
    @ivar own_busy: the same of the generator, and C{own_waited}.
    @ivar errors: kinds and numbers of errors.
    """

    seconds: float
    done: int
    p50_us: float
    p99_us: float
    kib_a_phone: float
    server_us: float
    server_busy: float
    server_waited: float
    own_busy: float
    own_waited: float
    errors: dict[str, int]

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.done / self.seconds

    @property
    def generator_was_limit(self) -> bool:
        """True if the generator had no time left, and the server had."""
        own, server = self.own_busy + self.own_waited, self.server_busy + self.server_waited
        return own > 0.95 and server < 0.95


@dataclass(frozen=True)
class Scale:
    """Duration of the measurements; times in seconds."""

    windows: int
    seconds: float
    warmup: float
    idle_windows: int
    idle_seconds: float
    idle_phones: int = 3000
    #: The process grows with the first ones for other reasons.
    first_phones: int = 500
    #: Memory of handshakes is freed once a second.
    idle_warmup: float = 3.0
    ping_interval: float = 30.0


FULL: Final = Scale(windows=10, seconds=1.0, warmup=0.5, idle_windows=3, idle_seconds=10.0)
QUICK: Final = Scale(windows=2, seconds=0.3, warmup=0.2, idle_windows=1, idle_seconds=8.0)


@dataclass(frozen=True)
class Row:
    """
    A kind of load.

    @ivar options: of the generator.
    @ivar scale: factor from microseconds to C{unit}.
    @ivar shows: further figure in the table: C{rate}, or C{latency}.
    @ivar needs_tokens: True if only servers with session tokens take part.
    @ivar rate: operations per second, if fixed.
    """

    key: str
    title: str
    unit: str
    options: tuple[str, ...]
    scale: float = 1.0
    shows: str = ""
    needs_tokens: bool = False
    rate: float = 0.0


_PHONES: Final = ("--conns", "100", "--sources", "100")
_HANDSHAKES: Final = ("--mode", "handshakes", "--conns", "32", "--sources", "32")
HANDSHAKE: Final = Row("handshake", "handshake", "µs each", _HANDSHAKES, shows="rate")
ROWS: Final = (
    *(
        Row(
            f"chat-{outstanding}",
            f"chat ×{outstanding}",
            "µs a message",
            (*_PHONES, "--outstanding", f"{outstanding}"),
            shows="rate",
        )
        for outstanding in (1, 8, 64)
    ),
    *(
        Row(
            f"open-{rate}",
            f"{rate:,} a second",
            "µs a message",
            (*_PHONES, "--rate", f"{rate}"),
            shows="latency",
            rate=rate,
        )
        for rate in (500, 2000)
    ),
    HANDSHAKE,
    Row(
        "token",
        "with a token",
        "µs each",
        (*_HANDSHAKES, "--tokens"),
        shows="rate",
        needs_tokens=True,
    ),
    Row("large", "1 MB frame", "ms a message", ("--conns", "4", "--payload", "700000"), 1e-3),
)
IDLE: Final = Row("idle", "idle phone", "µs a ping", ("--mode", "idle", "--sources", "50"))

#: Windows by row and contestant.
Results = dict[str, dict[str, list[Window]]]


def generator(
    server: Server, options: Sequence[str], cores: Cores | None
) -> "subprocess.Popen[str]":
    """The load generator, running on a server; it ends by itself."""
    program = BUILD / "loadgen"
    if not program.exists():
        raise BenchmarkError(f"{program} is missing: make builds it, with gcc and libssl-dev")
    command = [str(program), f"--port={server.port}", f"--secret={server.key}"]
    command += [f"--salt={server.salt}", f"--server-pid={server.pid}", *options]
    with kept_on(cores and cores.generator):
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


def windows_of(running: "subprocess.Popen[str]", row: Row, name: str) -> list[Window]:
    """
    Results of the generator, without windows in which nothing was done: the server had no core.

    @raise BenchmarkError: it could not measure, or met an error in what it measured.
    """
    try:
        text, _ = running.communicate(timeout=_GENERATOR_SECONDS)
    finally:
        running.kill()
        running.wait()
    if running.returncode != 0:
        raise BenchmarkError(f"{row.title}, {name}: {text.strip() or running.returncode}")
    windows = [msgspec.json.decode(line, type=Window) for line in text.splitlines()]
    for window in windows:
        wrong = {what: count for what, count in window.errors.items() if count}
        if wrong:
            raise BenchmarkError(f"{row.title}, {name}: {window.done} done; errors: {wrong}")
    return [window for window in windows if window.done]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _start_all(
    stack: ExitStack, contestants: Sequence[Contestant], scale: Scale, cores: Cores | None
) -> dict[str, Server]:
    servers = {}
    for contestant in contestants:
        with kept_on(cores and cores.server):
            servers[contestant.name] = stack.enter_context(contestant.start(scale.ping_interval))
    return servers


def measure_idle(
    contestants: Sequence[Contestant], scale: Scale, cores: Cores | None
) -> dict[str, list[Window]]:
    """Measure all servers at the same time, since pings are rare, while they are fresh."""
    _say(f"idle phones: {scale.idle_phones:,} of each, {scale.ping_interval:.0f} s between pings")
    options = [*IDLE.options, f"--conns={scale.idle_phones}", f"--first={scale.first_phones}"]
    options += [f"--warmup={scale.idle_warmup}", f"--duration={scale.idle_seconds}"]
    options += [f"--windows={scale.idle_windows}"]
    with ExitStack() as stack:
        servers = _start_all(stack, contestants, scale, cores)
        generators = {name: generator(server, options, cores) for name, server in servers.items()}
        try:
            return {name: windows_of(one, IDLE, name) for name, one in generators.items()}
        finally:
            for one in generators.values():
                one.kill()
                one.wait()


def measure_rows(contestants: Sequence[Contestant], scale: Scale, cores: Cores | None) -> Results:
    """Measure row by row, in rounds; in a round each contestant has one window."""
    times = [f"--duration={scale.seconds}", f"--warmup={scale.warmup}"]
    results: Results = {}
    with ExitStack() as stack:
        servers = _start_all(stack, contestants, scale, cores)
        for row in ROWS:
            names = [one.name for one in contestants if one.has_tokens or not row.needs_tokens]
            _say(f"{row.title}: {scale.windows} windows of {scale.seconds} s, {len(names)} servers")
            found = results[row.key] = {name: [] for name in names}
            for number in range(scale.windows):
                first = number % len(names)  # the order rotates
                for name in names[first:] + names[:first]:
                    running = generator(servers[name], [*row.options, *times], cores)
                    found[name] += windows_of(running, row, name)
    return results


def measure_all(contestants: Sequence[Contestant], scale: Scale, cores: Cores | None) -> Results:
    """Measure idle phones, then the rows."""
    idle = measure_idle(contestants, scale, cores)
    results = {**measure_rows(contestants, scale, cores), IDLE.key: idle}
    for key, found in results.items():
        if idlers := [name for name, windows in found.items() if not windows]:
            raise BenchmarkError(f"{key}: nothing was done by {', '.join(idlers)}")
    return results
