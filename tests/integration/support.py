"""A real server process, and phones with real sockets."""

import contextlib
import itertools
import os
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool, readBody

from domaeka.testing import STANDARD_IDENTITY, FakePhone, ScriptVersion

reactor: Any = _reactor

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[2]
#: Longest that a test waits for what must come, in seconds: a bound for what never comes, not a
#: judgement of what is slow.  The machine may have ten others to serve beside us.
PATIENCE_SECONDS = 120.0
#: Longest that a server may take to be ready, and to end, in seconds.  What must not hold up a
#: stop is made to hold it up for longer.
START_SECONDS = PATIENCE_SECONDS
STOP_SECONDS = 60.0
#: How often a server that starts is asked whether it is ready, in seconds.
_POLL_SECONDS = 0.1
#: Below the ports from which the kernel takes those of outgoing connections: a port that is
#: free now is still free after a restart.  Source: ip(7), ip_local_port_range.
_PORTS = range(20_000, 32_000)
#: Trial's workers, whose numbers are neighbours, begin far apart.
_next_port = itertools.count(os.getpid() * 997)


def sleep(seconds: float) -> "Deferred[None]":
    """Fires after some real seconds."""
    return deferLater(reactor, seconds, lambda: None)


def cpu_seconds(pid: int) -> float:
    """
    Processor time that a process has used: what it does costs as much on a machine with much
    else to do, however long it takes there.
    """
    # The clock of another process.  Source: Linux, include/linux/posix-timers_types.h.
    return time.clock_gettime(~pid << 3 | 2)


def free_port() -> int:
    """A TCP port on which nobody listens."""
    for number in itertools.islice(_next_port, len(_PORTS)):
        port = _PORTS[number % len(_PORTS)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise OSError("no port is free")


class _Watcher(ProcessProtocol):
    def __init__(self, ended: Callable[[Failure], None]) -> None:
        self._ended = ended

    # IProcessProtocol

    def processEnded(self, reason: Failure) -> None:
        self._ended(reason)


class ServerProcess:
    """
    C{twistd -n domaeka} in a process of its own, on ports that it keeps over restarts.

    It is ended with the test, whatever happens.

    @ivar log: the file with its output.
    @ivar environment: of its processes.
    @ivar handed_over: sockets that each start is given, as systemd does.
    @ivar ended_by: the signal by which its last run ended, if one did.
    @ivar exit_status: of its last run, if it ended by itself.
    """

    def __init__(self, test: TestCase, *arguments: str) -> None:
        """@param arguments: more options for C{domaeka}."""
        self.port = free_port()
        self.http_port = free_port()
        self.directory = Path(test.mktemp()).absolute()
        self.directory.mkdir(mode=0o700, parents=True)
        self.state = self.directory / "state"
        self.log = self.directory / "server.log"
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.handed_over: tuple[socket.socket, ...] = ()
        self._arguments = arguments
        self._process: Any = None
        self.ended_by: int | None = None
        self.exit_status: int | None = None
        self._test = test
        test.addCleanup(self.stop)

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        command = [
            *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
            *("-n", "--pidfile=", "domaeka", f"--state-dir={self.state}"),
            *(f"--port={self.port}", f"--http-port={self.http_port}"),
            *("--set", f"server.interface={HOST}"),
            *self._arguments,
        ]
        environment = self.environment
        descriptors = {3 + index: each.fileno() for index, each in enumerate(self.handed_over)}
        if descriptors:  # source: sd_listen_fds(3)
            names = ":".join("domaeka.socket" for _ in descriptors)
            given = {"LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": names}
            environment = {**environment, **given}
            command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command]
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            self._process = reactor.spawnProcess(
                _Watcher(self._ended),
                command[0],
                command,
                env=environment,
                path=str(self.directory),
                childFDs={0: nothing.fileno(), 1: log.fileno(), 2: log.fileno(), **descriptors},
            )
        deadline = reactor.seconds() + START_SECONDS
        while not await self.is_ready():
            if self._process is None or reactor.seconds() > deadline:
                raise AssertionError(f"the server does not start:\n{self.output()[-4000:]}")
            await sleep(_POLL_SECONDS)

    async def is_ready(self) -> bool:
        """Whether C{/health/ready} says so."""
        try:
            return (await self.get("/health/ready"))[0] == 200
        except Exception:  # whatever it is that it does not answer with yet
            return False

    async def get(self, path: str) -> tuple[int, bytes]:
        """@return: status and body of an HTTP request."""
        pool = HTTPConnectionPool(reactor, persistent=False)
        agent = Agent(reactor, connectTimeout=5.0, pool=pool)
        response: Any = await agent.request(
            b"GET", f"http://{HOST}:{self.http_port}{path}".encode()
        )
        return response.code, await readBody(response)

    async def stop(self) -> None:
        """Send SIGTERM, and wait for the end; after a while, SIGKILL."""
        self.signal("TERM")
        await self.ended()

    async def ended(self) -> None:
        """Wait for the end; after a while, SIGKILL."""
        killer = reactor.callLater(STOP_SECONDS, self.signal, "KILL")
        while self._process is not None:
            await sleep(0.02)
        if killer.active():
            killer.cancel()
        else:
            raise AssertionError(f"the server did not stop:\n{self.output()[-4000:]}")

    @property
    def pid(self) -> int:
        """Its process."""
        pid: int = self._process.pid
        return pid

    def signal(self, name: str) -> None:
        """Send it a signal, if it still runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self._process.signalProcess(name)

    def output(self) -> str:
        """What it has logged so far, over all its starts."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def secrets(self) -> dict[str, Any]:
        """What is in its C{secrets.toml}."""
        return tomllib.loads((self.state / "secrets.toml").read_text(encoding="utf-8"))

    def phone(
        self,
        device_id: str,
        script: str | ScriptVersion = "3.3.3",
        reconnect_scale: float = 1.0,
        endpoint: Any = None,
        secret_key: str = "",
    ) -> FakePhone:
        """
        A phone with this server's secrets, started now and stopped with the test.

        @param endpoint: where it connects, if not to the plain port.
        @param secret_key: one that is not the server's.
        """
        secrets = self.secrets()
        phone = FakePhone(
            reactor,
            [endpoint or TCP4ClientEndpoint(reactor, HOST, self.port)],
            secret_key or secrets["secret_key"],
            secrets["salt"],
            script=script,
            identity=msgspec.structs.replace(STANDARD_IDENTITY, device_id=device_id),
            reconnect_scale=reconnect_scale,
        )
        self._test.addCleanup(phone.stop)
        phone.start()
        return phone

    def phones(self, scripts: Iterable[str], reconnect_scale: float = 1.0) -> dict[str, FakePhone]:
        """A phone for each script, by the script's name."""
        return {
            script: self.phone(f"{number:016x}", script, reconnect_scale)
            for number, script in enumerate(scripts, 1)
        }

    def _ended(self, reason: Failure) -> None:
        self._process = None
        self.ended_by = getattr(reason.value, "signal", None)
        self.exit_status = getattr(reason.value, "exitCode", None)
