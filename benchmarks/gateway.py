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
from math import inf
from pathlib import Path
from typing import TypeAlias

from benchmarks.load import Phone, answer_pings, exchange, make_phone
from domaeka.state import load_or_create_secrets

CONNECTIONS = 100
MESSAGES = 100  # of each connection, in each round
ROUNDS = 4
#: What the process needs anyway, its caches with it, it has after so many.
FIRST_CONNECTIONS = 1000
IDLE_CONNECTIONS = 2000
HANDSHAKES = 1000

#: A server's pid and port, and the key and the salt of its phones.
Server: TypeAlias = tuple[int, int, str, str]

_TICK = os.sysconf("SC_CLK_TCK")
_ROOT = Path(__file__).parent.parent


def free_port() -> int:
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
def bare() -> Iterator[Server]:
    """The yardstick.  Gives its pid, its port, and a key and a salt that it ignores."""
    port = free_port()
    with running([sys.executable, "-m", "benchmarks.bare_echo", str(port)], port) as pid:
        yield pid, port, "k" * 16, "salt"


@contextmanager
def gateway(*settings: str, http_port: int | None = None) -> Iterator[Server]:
    """Our server.  Gives its pid, its port, its key and its salt."""
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        secrets = load_or_create_secrets(state)
        port = free_port()
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile="]
        command += ["domaeka", f"--port={port}", f"--http-port={http_port or free_port()}"]
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


def message_costs(servers: list[Server], outstanding: int) -> list[float]:
    """
    CPU time of each server for one message, in seconds: the best of some rounds.

    They take turns, so that what else the machine does hits all.
    """
    fleets = [
        [make_phone(port, number, key, salt) for number in range(CONNECTIONS)]
        for _, port, key, salt in servers
    ]
    for phones in fleets:
        exchange(phones, outstanding, 20)  # warm
    best = [inf] * len(servers)
    for _ in range(ROUNDS):
        for place, (phones, (pid, *_)) in enumerate(zip(fleets, servers, strict=True)):
            before = cpu_seconds(pid)
            exchange(phones, outstanding, MESSAGES)
            cost = (cpu_seconds(pid) - before) / (CONNECTIONS * MESSAGES)
            best[place] = min(best[place], cost)
    for phones in fleets:
        hang_up(phones)
    return best


def handshake_rate(server: Server) -> float:
    """Connections that are made, greeted and closed, by second of the server's CPU time."""
    pid, port, key, salt = server
    before = cpu_seconds(pid)
    for number in range(HANDSHAKES):
        phone = make_phone(port, number % 100, key, salt)
        while b"\n" not in phone.sock.recv(65536):
            pass
        phone.sock.close()
    return HANDSHAKES / (cpu_seconds(pid) - before)


def idle_memory(server: Server, pings: bool) -> float:
    """
    What the server holds for one more connection that is idle, in bytes.

    @param pings: whether it sends one: its answer authenticates the connection.
    """
    pid, port, key, salt = server
    phones: list[Phone] = []

    def connect(number: int) -> None:
        new = [make_phone(port, len(phones) + one, key, salt) for one in range(number)]
        phones.extend(new)
        # The sweep, once a second, lets go of what is no longer needed.
        answered = answer_pings(new, time.monotonic() + 3.0)
        if pings and answered < number:
            raise RuntimeError(f"only {answered} of {number} phones were pinged")

    connect(FIRST_CONNECTIONS)
    before = resident_bytes(pid)
    connect(IDLE_CONNECTIONS)
    cost = (resident_bytes(pid) - before) / IDLE_CONNECTIONS
    hang_up(phones)
    return cost


def hang_up(phones: list[Phone]) -> None:
    """Close all."""
    for phone in phones:
        phone.sock.close()


def allow_many_files() -> None:
    """Let this process, and those that it starts, hold many connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))


def main() -> None:
    """Print the table."""
    allow_many_files()
    names = ("bare Twisted, stdlib json", "domaeka, chat log off", "domaeka, chat log on")
    with bare() as first, gateway("storage.chat_log=false") as second, gateway() as third:
        table = [message_costs([first, second, third], outstanding) for outstanding in (1, 8)]
    print(f"CPU per message, {CONNECTIONS} connections (µs)     1 outstanding     8 outstanding")
    for place, name in enumerate(names):
        cells = "".join(
            f"{costs[place] * 1e6:11.1f} ({costs[place] / costs[0]:4.2f})" for costs in table
        )
        print(f"  {name:38}{cells}")
    with bare() as server:
        memory = [idle_memory(server, pings=False)]
    with gateway("storage.chat_log=false") as server:
        memory.append(idle_memory(server, pings=True))
    with gateway("storage.chat_log=false") as server:
        print(f"handshakes a second of CPU time: {handshake_rate(server):.0f}")
    print(
        f"memory of an idle authenticated connection: {memory[1]:.0f} bytes "
        f"(of a bare one: {memory[0]:.0f})"
    )


if __name__ == "__main__":
    main()
