"""
What a phone's own part costs: bytes on the wire and processor time, of the bridge script with and
without compression of connections, and of C{domaeka phone --legacy}: see docs/benchmarks.md.

Usage: C{python -m benchmarks.phones [--exchanges N] [--idle SECONDS] [--json FILE]}.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import msgspec
from twisted.internet import task
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from benchmarks import machine
from benchmarks.report import aligned
from benchmarks.servers import BUILD, BenchmarkError
from tests.integration.support import HOST, ROOT, ServerProcess, cpu_seconds, reactor, sleep
from tests.phone_host import PhoneHost, why_not
from tests.phone_host.servers import Relay

#: What a chat room talks like.
CHAT_MIX: Final = (
    *("ㅋㅋㅋㅋ", "오늘 저녁 뭐 먹지?", "사진 봤어요, 예쁘네요!", "네", "내일 3시에 만나요"),
)
#: Longest that anything may take, in seconds.
PATIENCE_SECONDS: Final = 60.0
#: After its greeting, a phone may have something to do for so long, in seconds.
SETTLE_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.005
DEFLATE, PLAIN, LEGACY = "bridge.js, deflate", "bridge.js, no compression", "phone --legacy"


@dataclass
class Figures:
    """
    Those of one phone.

    @ivar up: bytes that it sent for the exchanges; C{down}: that it got.
    @ivar greeting: bytes of both directions until it was greeted and had settled.
    @ivar start: processor time until then, in seconds.
    @ivar first: processor time of an exchange, in milliseconds; C{next}: of one of as many more.
    @ivar idle: processor time of an idle minute, in milliseconds.
    """

    up: int = 0
    down: int = 0
    greeting: int = 0
    start: float = 0.0
    first: float = 0.0
    next: float = 0.0
    idle: float = 0.0


class _Run:
    """Owns all that is made for a run, as a test does."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._numbers = count()
        self._cleanups: list[Callable[[], Any]] = []

    def addCleanup(self, f: Callable[[], Any]) -> None:
        self._cleanups.append(f)

    def mktemp(self) -> str:
        return str(Path(self._folder, f"{next(self._numbers)}"))

    async def clean(self) -> None:
        """Call all cleanups, the last first."""
        while self._cleanups:
            result = self._cleanups.pop()()
            if isinstance(result, Awaitable):
                await result


async def _until(condition: Callable[[], object], what: str) -> None:
    deadline = reactor.seconds() + PATIENCE_SECONDS
    while not condition():
        if reactor.seconds() > deadline:
            raise BenchmarkError(f"{what}: nothing for {PATIENCE_SECONDS:.0f} s")
        await sleep(_POLL_SECONDS)


class _Script:
    """A phone with the bridge script, on a JVM of its own."""

    def __init__(self, run: Any, server: ServerProcess, port: int) -> None:
        self._host = PhoneHost(run)
        self._server = server
        self._port = port
        self._phone: Any = None

    async def connect(self) -> None:
        servers = [{"host": HOST, "port": self._port}]
        self._phone = await self._host.phone("p1", self._server, servers=servers)
        await _until(lambda: self._phone.logged("connected to"), "bridge.js")

    def say(self, text: str) -> None:
        self._phone.say(text)

    @property
    def answers(self) -> int:
        return len(self._phone.texts())

    @property
    def pid(self) -> int:
        return self._host.pid


class _Legacy(ProcessProtocol):
    """C{domaeka phone --legacy}, which reads lines and prints answers."""

    def __init__(self, run: Any, server: ServerProcess, port: int) -> None:
        self.answers = 0
        self._process: Any = None
        self._arguments = [
            *(sys.executable, "-c", "from domaeka.cli import main; main()", "phone", "--legacy"),
            *("--host", HOST, "--port", str(port), "--state-dir", str(server.state)),
        ]
        run.addCleanup(self._stop)

    async def connect(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = self._arguments
        self._process = reactor.spawnProcess(self, command[0], command, env=environment)
        # It says nothing of its greeting while its output is no terminal: an answer shows it.
        self.say("# echo 0")
        await _until(lambda: self.answers, LEGACY)

    def say(self, text: str) -> None:
        self._process.write(text.encode() + b"\n")

    @property
    def pid(self) -> int:
        pid: int = self._process.pid
        return pid

    def _stop(self) -> None:
        try:
            self._process.signalProcess("KILL")
        except ProcessExitedAlready:
            return

    # IProcessProtocol

    def outReceived(self, data: bytes) -> None:
        self.answers += data.count(b"\n")

    def errReceived(self, data: bytes) -> None:
        pass

    def processEnded(self, reason: Failure) -> None:
        pass


async def _exchange(phone: Any, exchanges: int) -> float:
    """Say a line, wait for its answer, and so on: processor time of each, in milliseconds."""
    before = cpu_seconds(phone.pid)
    for number in range(exchanges):
        answers = phone.answers
        phone.say(f"# echo {CHAT_MIX[number % len(CHAT_MIX)]} {number}")
        await _until(lambda: phone.answers > answers, "an exchange")  # noqa: B023
    return (cpu_seconds(phone.pid) - before) * 1000 / exchanges


async def _measure(
    run: Any, kind: Callable[..., Any], compression: bool, exchanges: int, idle: float
) -> Figures:
    """Measure one phone with a server of its own."""
    setting = f"compression.enabled={str(compression).lower()}"
    server = ServerProcess(run, "--set", setting)
    await server.start()
    relay = Relay(run, server.port)
    phone = kind(run, server, relay.port)
    await phone.connect()
    await sleep(SETTLE_SECONDS)
    figures = Figures(
        greeting=relay.bytes_up + relay.bytes_down, start=round(cpu_seconds(phone.pid), 2)
    )
    up, down = relay.bytes_up, relay.bytes_down
    figures.first = round(await _exchange(phone, exchanges), 2)
    figures.up, figures.down = relay.bytes_up - up, relay.bytes_down - down
    figures.next = round(await _exchange(phone, exchanges), 2)
    await sleep(SETTLE_SECONDS)
    before = cpu_seconds(phone.pid)
    await sleep(idle)
    figures.idle = round((cpu_seconds(phone.pid) - before) * 1000 * 60 / idle)
    return figures


async def measure(exchanges: int, idle: float) -> dict[str, Figures]:
    """@return: the figures of each phone, by its name."""
    with tempfile.TemporaryDirectory(prefix="domaeka-phones-") as folder:
        run = _Run(folder)
        try:
            parts: dict[str, tuple[Callable[..., Any], bool]] = {
                DEFLATE: (_Script, True),
                PLAIN: (_Script, False),
                LEGACY: (_Legacy, True),
            }
            found = await gatherResults(
                [ensureDeferred(_measure(run, *part, exchanges, idle)) for part in parts.values()],
                consumeErrors=True,
            )
        finally:
            await run.clean()
    return dict(zip(parts, found, strict=True))


def table(found: dict[str, Figures], exchanges: int) -> str:
    """The table, in Markdown."""
    head = [
        *("phone", f"bytes up, {exchanges} exchanges", "down", "both", "greeting"),
        *("CPU: start, s", "an exchange, ms", "a later one, ms", "an idle minute, ms"),
    ]
    lines = [
        [
            *(name, f"{one.up}", f"{one.down}", f"{one.up + one.down}", f"{one.greeting}"),
            *(f"{one.start:.2f}", f"{one.first:.1f}", f"{one.next:.1f}", f"{one.idle:.0f}"),
        ]
        for name, one in found.items()
    ]
    return aligned([head, *lines])


def main() -> int:
    """@return: the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.phones", description="bytes and processor time of a phone"
    )
    parser.add_argument("--exchanges", type=int, default=200, help="a line and its answer")
    parser.add_argument("--idle", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, default=BUILD / "phones.json")
    options = parser.parse_args()
    if (why := why_not()) is not None:
        print(f"benchmarks.phones is skipped: {why}")
        return 0
    facts = machine.facts(None)
    for name in ("cores", "C compiler", "Node"):
        del facts[name]
    outcome: list[Any] = []

    def start(_: Any) -> Any:
        measuring = ensureDeferred(measure(options.exchanges, options.idle))
        return measuring.addCallbacks(outcome.append, outcome.append)

    try:
        task.react(start, _reactor=reactor)
    except SystemExit as end:
        if not outcome:
            print(f"benchmarks.phones: ended before its time ({end.code})", file=sys.stderr)
            return 1
    (found,) = outcome
    if isinstance(found, Failure):
        print(f"benchmarks.phones: {found.getTraceback()}", file=sys.stderr)
        return 1
    print("\n".join(fill(f"{name}: {value}", 100) for name, value in facts.items()))
    print(f"\n{table(found, options.exchanges)}\n")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    data = {"facts": facts, "phones": {name: asdict(one) for name, one in found.items()}}
    options.json.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n")
    print(f"all figures: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
