"""Server processes to measure: ours, and bare ones."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
#: Directory of the programs in C, which make builds.
BUILD: Final = ROOT / "build" / "bench"
#: Timeout until a server listens, in seconds.
START_SECONDS: Final = 30.0
#: Secrets of the bare servers, which listen on the loopback and end with the benchmark.
_KEY, _SALT = "k" * 32, "salt"
#: Settings that let a load through.
_SETTINGS: Final = (
    "server.interface=127.0.0.1",
    "server.max_connections=10000",
    "server.max_text_chars=2000000",
    "limits.messages_per_second=0",
    'limits.allow=["127.0.0.0/8"]',
)


class BenchmarkError(Exception):
    """A failed measurement; the text gives the reason."""


class Server(NamedTuple):
    """A server process, with the key and the salt of its phones."""

    pid: int
    port: int
    key: str
    salt: str


class Checkout(NamedTuple):
    """A version of this project, and a Python with its requirements."""

    root: Path = ROOT
    python: str = sys.executable


class Contestant(NamedTuple):
    """
    A server in a measurement.

    @ivar start: starts it; the argument is the seconds between two pings.
    @ivar has_tokens: True if it supports session tokens.
    """

    name: str
    start: Callable[[float], AbstractContextManager[Server]]
    has_tokens: bool = False


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, in seconds, as the kernel's scheduler counts it."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def allow_many_files() -> None:
    """Raise the limit of open files, for this process and those that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))


def end_by_exception() -> None:
    """Let SIGTERM raise an exception, as control-C does, so that child processes end, too."""

    def terminated(number: int, frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, terminated)


@contextmanager
def running(
    command: Sequence[str], port: int, root: Path = ROOT
) -> "Iterator[subprocess.Popen[bytes]]":
    """A server process that listens on C{port}; ended afterwards."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with tempfile.TemporaryFile("w+b") as output:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,  # the bare servers end with it
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            give_up = time.monotonic() + START_SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    pass
                if process.poll() is not None or time.monotonic() > give_up:
                    output.seek(0)
                    said = output.read().decode(errors="replace")
                    raise BenchmarkError(f"{command[0]} does not start:\n{said[-2000:]}")
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def read_secrets(state: Path) -> tuple[str, str]:
    """The key and the salt in a state directory."""
    secrets = tomllib.loads((state / "secrets.toml").read_text("utf-8"))
    return secrets["secret_key"], secrets["salt"]


@contextmanager
def gateway(
    *settings: str, http_port: int | None = None, checkout: Checkout | None = None
) -> Iterator[Server]:
    """Our server, with these settings beside L{_SETTINGS}."""
    checkout = checkout or Checkout()
    with tempfile.TemporaryDirectory(prefix="domaeka-bench-") as directory:
        port = free_port()
        command = [checkout.python, "-c", "from twisted.scripts.twistd import run; run()"]
        command += ["-n", "--pidfile=", "domaeka", f"--state-dir={directory}"]
        command.append("--config=/dev/null")  # ignore a domaeka.toml in the checkout
        command += [f"--port={port}", f"--http-port={http_port or free_port()}"]
        for setting in (*_SETTINGS, *settings):
            command += ["--set", setting]
        with running(command, port, checkout.root) as process:
            yield Server(process.pid, port, *read_secrets(Path(directory)))


@contextmanager
def _bare(*command: str, interval: float) -> Iterator[Server]:
    port = free_port()
    with running([*command, str(port), _KEY, _SALT, str(interval)], port) as process:
        yield Server(process.pid, port, _KEY, _SALT)


#: Settings by which commands run on the bots' loop.
_ON_LOOP: Final = ("bots.builtin.echo=", 'bots.load=["benchmarks.loop_bot:bot"]')


def _ours(
    name: str, chat_log: bool, checkout: Checkout | None = None, more: tuple[str, ...] = ()
) -> Contestant:
    def start(interval: float) -> AbstractContextManager[Server]:
        return gateway(
            *more,
            f"storage.chat_log={str(chat_log).lower()}",
            # Each phone is pinged once in every interval, the first one included.
            "ping.initial_delay_min=1",
            f"ping.initial_delay_max={interval + 1}",
            f"ping.interval={interval}",
            checkout=checkout,
        )

    return Contestant(name, start, has_tokens=True)


def _yardstick(name: str, *command: str) -> Contestant:
    return Contestant(name, lambda interval: _bare(*command, interval=interval))


def all_contestants() -> tuple[list[Contestant], list[str]]:
    """@return: the contestants; and texts that name those left out, with the reason."""
    python = (sys.executable, "-m", "benchmarks.bare_server")
    contestants = [
        _yardstick("bare", *python, "bare"),
        _yardstick("tuned", *python, "tuned"),
        _ours("ours", chat_log=False),
        _ours("ours, chat log", chat_log=True),
        _ours("ours, async def", chat_log=False, more=_ON_LOOP),
    ]
    absent = []
    if (BUILD / "bare_server").exists():
        contestants.append(_yardstick("C", str(BUILD / "bare_server")))
    else:
        absent.append(f"C does not take part: {BUILD / 'bare_server'} is missing; make builds it")
    if node := shutil.which("node"):
        contestants.append(_yardstick("Node", node, str(ROOT / "benchmarks" / "bare_server.js")))
    else:
        absent.append("Node does not take part: there is no node on the PATH")
    return contestants, absent


def two_checkouts(name: str, other: Checkout) -> list[Contestant]:
    """This checkout and another one, each without and with the chat log."""
    return [
        _ours(name, False, other),
        _ours("here", False),
        _ours(f"{name}, chat log", True, other),
        _ours("here, chat log", True),
    ]
