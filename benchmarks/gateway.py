"""
What a message, a handshake and an idle connection cost the server.

Usage: C{python -m benchmarks.gateway}.  Everything is measured against a bare Twisted server
(L{benchmarks.bare_echo}) in the same run; the figures are CPU time of the server's process.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.load import Phone, exchange, make_phone
from domaeka.state import load_or_create_secrets

CONNECTIONS = 100
MESSAGES = 300  # of each connection, in each row
ROUNDS = 3
IDLE_CONNECTIONS = 2000
HANDSHAKES = 2000

_TICK = os.sysconf("SC_CLK_TCK")
_ROOT = Path(__file__).parent.parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """A server process, once it listens on C{port}; ended afterwards.  Gives its pid."""
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextmanager
def bare() -> Iterator[tuple[int, int, str, str]]:
    """The yardstick.  Gives its pid, its port, and a key and a salt that it ignores."""
    port = _free_port()
    with running([sys.executable, "-m", "benchmarks.bare_echo", str(port)], port) as pid:
        yield pid, port, "k" * 16, "salt"


@contextmanager
def gateway(*settings: str) -> Iterator[tuple[int, int, str, str]]:
    """Our server.  Gives its pid, its port, its key and its salt."""
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        secrets = load_or_create_secrets(state)
        port = _free_port()
        command = [sys.executable, "-m", "twisted", "--log-level=warn"]
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile="]
        command += ["domaeka", f"--port={port}", f"--http-port={_free_port()}"]
        command += [f"--state-dir={state}"]
        for setting in (
            "limits.messages_per_second=0",
            'limits.allow=["127.0.0.0/8"]',
            "server.max_connections=10000",
            "logging.level=warn",
            *settings,
        ):
            command += ["--set", setting]
        with running(command, port) as pid:
            yield pid, port, secrets.secret_key, secrets.salt


def message_cost(server: tuple[int, int, str, str], outstanding: int) -> float:
    """CPU time of the server for one message, in seconds: the best of some rounds."""
    pid, port, key, salt = server
    phones = [make_phone(port, number, key, salt) for number in range(CONNECTIONS)]
    exchange(phones, outstanding, 20)  # warm
    costs = []
    for _ in range(ROUNDS):
        before = cpu_seconds(pid)
        exchange(phones, outstanding, MESSAGES)
        costs.append((cpu_seconds(pid) - before) / (CONNECTIONS * MESSAGES))
    for phone in phones:
        phone.sock.close()
    return min(costs)


def handshake_rate(server: tuple[int, int, str, str]) -> float:
    """Connections that are made, greeted and closed, by second of the server's CPU time."""
    pid, port, key, salt = server
    before = cpu_seconds(pid)
    for number in range(HANDSHAKES):
        phone = make_phone(port, number % 100, key, salt)
        while b"\n" not in phone.sock.recv(65536):
            pass
        phone.sock.close()
    return HANDSHAKES / (cpu_seconds(pid) - before)


def idle_memory(server: tuple[int, int, str, str]) -> float:
    """What the server holds for one authenticated connection that is idle, in bytes."""
    pid, port, key, salt = server
    phones: list[Phone] = []

    def connect(count: int) -> None:
        for number in range(len(phones), len(phones) + count):
            phone = make_phone(port, number, key, salt)
            phones.append(phone)
        exchange(phones[-count:], 1, 1)

    connect(200)  # what the process needs anyway
    before = resident_bytes(pid)
    connect(IDLE_CONNECTIONS)
    cost = (resident_bytes(pid) - before) / IDLE_CONNECTIONS
    for phone in phones:
        phone.sock.close()
    return cost


def main() -> None:
    """Print the table."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    rows: list[tuple[str, list[float]]] = []
    for name, make in (
        ("bare Twisted, stdlib json", lambda: bare()),
        ("domaeka, chat log off", lambda: gateway("storage.chat_log=false")),
        ("domaeka, chat log on", lambda: gateway()),
    ):
        with make() as server:
            rows.append((name, [message_cost(server, outstanding) for outstanding in (1, 8)]))
    print(f"CPU per message, {CONNECTIONS} connections (µs)   1 outstanding   8 outstanding")
    yardstick = rows[0][1]
    for name, costs in rows:
        cells = "".join(
            f"{cost * 1e6:9.1f} ({cost / base:4.2f})"
            for cost, base in zip(costs, yardstick, strict=True)
        )
        print(f"  {name:38}{cells}")
    with gateway("storage.chat_log=false") as server:
        print(f"handshakes a second of CPU time: {handshake_rate(server):.0f}")
    with gateway("storage.chat_log=false") as server:
        print(f"memory of an idle authenticated connection: {idle_memory(server):.0f} bytes")


if __name__ == "__main__":
    main()
