"""
Servers on hosts of their own, that can be killed, stopped and lost with their host.
"""

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from twisted.internet.task import deferLater

from benchmarks.faults.network import Namespace, Relay, Way, World, check_running, end, listens
from benchmarks.faults.phones import PORT
from benchmarks.servers import ROOT, BenchmarkError, read_secrets
from domaeka.client import Credentials

#: Longest that a server may take until it listens, in seconds: the machine may have others at work.
START_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.05
_HTTP_PORT: Final = 8080
#: Connections that wait for a server that is away.  Source: systemd.socket(5), Backlog.
_BACKLOG: Final = 4096
#: Hands a socket to a program as systemd does.  Source: sd_listen_fds(3).
_HAND_OVER: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="phones")
os.execv(sys.argv[2], sys.argv[2:])
"""
#: Most connections of the present system.
PRESENT_PLACES: Final = 100


class Host:
    """
    A host with a server.

    @ivar credentials: of its phones.
    """

    def __init__(
        self,
        world: World,
        reactor: Any,
        ours: bool,
        places: int,
        held: bool = False,
        settings: Sequence[str] = (),
    ) -> None:
        """
        @param ours: true for our server, false for the model of the present system.
        @param places: most connections at a time.
        @param held: true if this process holds the port open while our server is away.
        @param settings: of our server, as SECTION.KEY=VALUE.
        """
        self._world = world
        self._reactor = reactor
        self._namespace = world.namespace("s")
        self._ways: list[Way] = []
        self._directory = tempfile.TemporaryDirectory(prefix="domaeka-faults-")
        world.at_end(self._directory.cleanup)
        self._output = Path(self._directory.name, "output")
        self._state = Path(self._directory.name, "state")
        self._process: subprocess.Popen[bytes] | None = None
        self.ours = ours
        self._starts = 0
        self._port: socket.socket | None = None
        if ours:
            # As it ships, but for who may come: phones of many rows share a host.
            self._command = [
                *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
                *("-n", "--pidfile=", "domaeka", f"--state-dir={self._state}"),
                *("--config=/dev/null", f"--http-port={_HTTP_PORT}"),
                *("--set", f"server.max_connections={places}"),
                f"--port={0 if held else PORT}",
                *(f"--set={setting}" for setting in settings),
            ]
            if held:
                self._hold()
        else:
            model = "benchmarks.faults.present"
            self._command = [sys.executable, "-m", model, str(PORT), str(places)]
        self.credentials = Credentials("k" * 32, "salt")

    def _hold(self) -> None:
        """Open the port in the place of systemd with a socket unit."""
        with self._namespace.entered():
            self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("0.0.0.0", PORT))
        self._port.listen(_BACKLOG)
        self._world.at_end(self._port.close)
        self._command += ["--set", 'server.endpoints=["systemd:domain=INET:index=0"]']
        hand_over = [sys.executable, "-c", _HAND_OVER, str(self._port.fileno())]
        self._command = hand_over + self._command

    @property
    def namespace(self) -> Namespace:
        """Where the host is."""
        return self._namespace

    def add(self, way: Way, relay: Relay | None = None) -> None:
        """Have a way lead here."""
        if relay is not None:
            way.lead_through(relay, self._namespace)
        else:
            way.lead_to(self._namespace)
            self._ways.append(way)

    def start(self) -> None:
        """Start the server."""
        self._starts += 1
        files = [self._port.fileno()] if self._port is not None else []
        with self._output.open("ab") as output:
            self._process = self._world.start(
                self._namespace, self._command, ROOT, output.fileno(), files
            )

    def _serves(self) -> bool:
        """Return True if the server takes connections."""
        assert self._process is not None
        if self._port is None:
            return listens(self._process, PORT)
        # The port is open in any case.
        check_running(self._process)
        return self._output.read_bytes().count(b" serves: ") >= self._starts

    async def listening(self) -> None:
        """
        Wait until the server takes connections.

        @raise BenchmarkError: it does not.
        """
        give_up = self._reactor.seconds() + START_SECONDS
        try:
            while not self._serves():
                if self._reactor.seconds() > give_up:
                    raise BenchmarkError(f"a server does not listen within {START_SECONDS} s")
                await self._sleep(_POLL_SECONDS)
        except BenchmarkError as error:
            said = self._output.read_text("utf-8", "replace")[-2000:]
            raise BenchmarkError(f"{error}:\n{said}") from None
        if self.ours:
            self.credentials = Credentials(*read_secrets(self._state))

    def kill(self) -> None:
        """Kill the server; its kernel ends its connections."""
        if self._process is not None:
            end(self._process)

    async def end(self) -> None:
        """
        End the server in order.

        @raise BenchmarkError: it does not end.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        give_up = self._reactor.seconds() + START_SECONDS
        while self._process.poll() is None:
            if self._reactor.seconds() > give_up:
                raise BenchmarkError(f"a server does not end within {START_SECONDS} s")
            await self._sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop the server where it stands."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def vanish(self) -> None:
        """The host is gone, with all that its kernel knew; it tells nobody."""
        for way in self._ways:
            way.tear()
        self.kill()
        self._world.discard(self._namespace)

    def boot(self) -> None:
        """The host is back, with the same addresses, and no server yet."""
        self._namespace = self._world.namespace("s")
        for way in self._ways:
            way.lead_to(self._namespace)

    def _sleep(self, seconds: float) -> Any:
        nothing: Callable[[], None] = lambda: None  # noqa: E731
        return deferLater(self._reactor, seconds, nothing)
