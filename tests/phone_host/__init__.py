"""
Bridge scripts on the engine of their app, without a phone: Rhino on a JVM, with stand-ins for
Android, the app's interfaces, timers, and real sockets and threads.
"""

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from tests.integration.support import PATIENCE_SECONDS, ServerProcess, reactor, sleep

#: The engine, of Debian's package rhino.
RHINO: Final = Path("/usr/share/java/js.jar")
HOME: Final = Path(__file__).parent
SCRIPT: Final = HOME.parents[1] / "etc" / "phone" / "bridge.js"
#: The id of a room.
CHANNEL: Final = "18398338829933617"


def why_not() -> str | None:
    """In words, why no script can run here; L{None}: they can."""
    if RHINO.exists() and shutil.which("java") and shutil.which("javac"):
        return None
    return "Debian's packages rhino and default-jdk-headless are not installed"


@cache
def classes() -> str:
    """The folder with the compiled host."""
    folder = tempfile.mkdtemp(prefix="phone-host-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run(
        ["javac", "-nowarn", "-cp", str(RHINO), "-d", folder, str(HOME / "PhoneHost.java")],
        check=True,
    )
    return folder


class ScriptedPhone:
    """
    A phone of a host.

    @ivar events: everything that the host has said of it, oldest first.
    @ivar on_event: called with each of them.
    """

    def __init__(self, host: "PhoneHost", name: str) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        self.on_event: Callable[[dict[str, Any]], None] | None = None
        self._host = host
        self._log_ids = 3_412_345_678_901_234_567
        self._evaluated = 0

    def command(self, cmd: str, **fields: Any) -> None:
        """Send a command to the host."""
        self._host.write({"cmd": cmd, "phone": self.name, **fields})

    def say(self, text: str, room: str = "방", channel_id: str | None = CHANNEL) -> None:
        """Somebody writes in a room."""
        self._log_ids += 1
        self.command("message", **self.message(text, room, channel_id))

    def say_all(self, messages: list[dict[str, Any]]) -> None:
        """Several messages, as L{message} makes them."""
        self.command("messages", items=messages)

    def message(
        self, text: str, room: str = "방", channel_id: str | None = CHANNEL
    ) -> dict[str, Any]:
        """The fields of a message."""
        self._log_ids += 1
        return {
            "room": room,
            "text": text,
            "channelId": channel_id,
            "sender": "철수",
            "logId": str(self._log_ids),
            "isGroupChat": True,
        }

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of a kind."""
        return [each for each in self.events if each["ev"] == event]

    def texts(self, room: str | None = None) -> list[str]:
        """The texts that it sent into a room, or into all."""
        return [each["text"] for each in self.of("send") if room in (None, each["room"])]

    @property
    def log(self) -> list[str]:
        """The lines of the app's log."""
        return [each["msg"] for each in self.of("log")]

    def logged(self, words: str) -> int:
        """The number of lines in the log with these words."""
        return sum(words in line for line in self.log)

    async def until(
        self, condition: Callable[[], object], patience: float = PATIENCE_SECONDS
    ) -> None:
        """Wait for a condition."""
        deadline = reactor.seconds() + patience
        while not condition():
            if reactor.seconds() > deadline:
                raise AssertionError(f"{self.name}: {self.events[-20:]}")
            await sleep(0.02)

    async def evaluate(self, code: str) -> str:
        """The value of an expression in the script's scope."""
        self._evaluated += 1
        number = self._evaluated
        self.command("eval", id=number, code=code)
        await self.until(lambda: any(e["id"] == number for e in self.of("evaluated")))
        return str(next(e["result"] for e in self.of("evaluated") if e["id"] == number))


class Owner(Protocol):
    """A test, or another that has phones: it ends them, and has a place for their files."""

    def addCleanup(self, f: Callable[[], object]) -> object:
        """Have something called at the end."""

    def mktemp(self) -> str:
        """A path where nothing is yet."""


class PhoneHost(ProcessProtocol):
    """
    A JVM with phones.  It is ended with the test.

    @ivar is_ready: true when it takes commands at once.
    """

    def __init__(
        self, test: Owner, wrap: str = "app", *options: str, environment: Mapping[str, str] = {}
    ) -> None:
        """
        @param wrap: whether Java's strings reach the script as primitives: C{app}, on the app's
            own threads only; C{none}, on all; C{all}, on none.
        @param options: of the JVM.
        @param environment: more of its variables.
        """
        self.phones: dict[str, ScriptedPhone] = {}
        self.failures: list[dict[str, Any]] = []
        self._pending = b""
        self._process: Any = None
        self._test = test
        self._ended = False
        self._command = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *options),
            *("-cp", f"{RHINO}:{classes()}", "PhoneHost"),
            *("--env", str(HOME / "phone_host.js"), "--wrap", wrap, "--opt", "-1"),
        ]
        self.is_ready = False
        self._process = reactor.spawnProcess(
            self, self._command[0], self._command, env={**os.environ, **environment}
        )
        test.addCleanup(self.stop)

    async def phone(
        self,
        name: str,
        server: ServerProcess,
        *,
        script: Path = SCRIPT,
        servers: list[dict[str, Any]] | None = None,
        config: Mapping[str, object] | None = None,
        **options: Any,
    ) -> ScriptedPhone:
        """
        A phone that runs the script with the secrets of C{server}.

        @param servers: its list of servers; by default C{server} alone.
        @param config: more of its settings.
        @param options: of the host's command C{boot}.
        """
        secrets = server.secrets()
        return await self.boot(
            name,
            {
                "BOT_NAME": "가게봇",
                "SECRET_KEY": secrets["secret_key"],
                "BOT_SPECIFIC_SALT": secrets["salt"],
                "SERVER_LIST": servers or [{"host": "127.0.0.1", "port": server.port}],
                **(config or {}),
            },
            script=script,
            **options,
        )

    async def boot(
        self, name: str, config: dict[str, Any], *, script: Path = SCRIPT, **options: Any
    ) -> ScriptedPhone:
        """A phone that runs the script, or runs it anew."""
        phone = self.begin(name, config, script=script, **options)
        booted = len(phone.of("booted"))
        await phone.until(lambda: len(phone.of("booted")) > booted or phone.of("boot_failed"))
        if phone.of("boot_failed"):
            raise AssertionError(phone.of("boot_failed"))
        return phone

    def begin(
        self, name: str, config: dict[str, Any], *, script: Path = SCRIPT, **options: Any
    ) -> ScriptedPhone:
        """The same without waiting: what is said to the phone reaches it afterwards."""
        phone = self.phones.setdefault(name, ScriptedPhone(self, name))
        folder = Path(self._test.mktemp()).absolute()
        folder.mkdir(parents=True)
        config.setdefault("MEDIA_TEMP_DIR", str(folder / "media"))
        device = {"androidId": f"{int.from_bytes(name.encode()[:7], 'big'):016x}"}
        given = {"device": device, "dataDir": str(folder), "logMax": 2000, **options}
        phone.command("boot", script=str(script), config=config, **given)
        return phone

    def write(self, command: dict[str, Any]) -> None:
        """Send a command."""
        self._process.write(json.dumps(command).encode() + b"\n")

    async def stop(self) -> None:
        """End the JVM, and wait until it has."""
        self.kill()
        while not self._ended:
            await sleep(0.02)

    def kill(self) -> None:
        """End the JVM."""
        if not self._ended:
            with contextlib.suppress(ProcessExitedAlready):
                self._process.signalProcess("KILL")

    @property
    def pid(self) -> int:
        """Its process."""
        pid: int = self._process.pid
        return pid

    # IProcessProtocol

    def outReceived(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["ev"] == "ready":
                self.is_ready = True
            elif event["ev"] in ("uncaught", "error"):
                self.failures.append(event)
            phone = self.phones.get(event["phone"])
            if phone is not None:
                phone.events.append(event)
                if phone.on_event is not None:
                    phone.on_event(event)

    def errReceived(self, data: bytes) -> None:
        self.failures.append({"ev": "stderr", "msg": data.decode(errors="replace")})

    def processEnded(self, reason: Failure) -> None:
        self._ended = True
