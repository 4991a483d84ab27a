"""
Phones with the bridge script, as it is, on its engine: a JVM inside the phones' namespace.
"""

import os
import re
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from benchmarks.faults.network import RUN_VARIABLE, ReactorIn, Way, World
from benchmarks.faults.phones import BOT, PORT, Line, Talking
from benchmarks.servers import BenchmarkError
from domaeka.client import Credentials
from tests.phone_host import PhoneHost, ScriptedPhone, classes

#: Longest that a JVM may take to start, in seconds: many start at a time.
_START_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.05
#: Of a JVM: many have to share a machine.
_OPTIONS: Final = ("-Xmx128m",)
#: In the script's log: lines that waited too long.
_EXPIRED: Final = re.compile(r"(\d+) messages waited too long")


class Jvm:
    """
    A JVM for the phones of a lane.

    All of them have the first address of their way: a script cannot choose one.
    """

    def __init__(self, world: World, reactor: Any, way: Way) -> None:
        """Start it; it ends with the world."""
        self._world = world
        self._reactor = reactor
        folder = tempfile.TemporaryDirectory(prefix="domaeka-faults-")
        world.at_end(folder.cleanup)
        self._paths = (str(Path(folder.name, f"{number}")) for number in count())
        classes()  # compiled here, not in there
        with way.phones.entered():
            variables = {RUN_VARIABLE: str(os.getpid())}
            self.host = PhoneHost(self, "app", *_OPTIONS, environment=variables)
        world.at_end(self.host.kill)

    async def ready(self) -> None:
        """
        Wait until it takes commands.

        @raise BenchmarkError: it does not.
        """
        give_up = self._reactor.seconds() + _START_SECONDS
        while not self.host.is_ready:
            if self._reactor.seconds() > give_up:
                raise BenchmarkError(f"a JVM does not start: {self.host.failures}")
            await deferLater(self._reactor, _POLL_SECONDS, lambda: None)

    def phone(
        self, reactor: ReactorIn, host: str, room: int, credentials: Credentials, long_lines: bool
    ) -> "ScriptPhone":
        """A phone in it."""
        return ScriptPhone(self, reactor, host, room, credentials, long_lines)

    # Owner: of a host's phones

    def addCleanup(self, f: Callable[[], object]) -> object:
        # It waits for the reactor, which runs no more at the end of a world.
        return None

    def mktemp(self) -> str:
        return next(self._paths)


class ScriptPhone(Talking):
    """A phone with the bridge script."""

    def __init__(
        self,
        jvm: Jvm,
        reactor: ReactorIn,
        host: str,
        room: int,
        credentials: Credentials,
        long_lines: bool,
    ) -> None:
        super().__init__(reactor, room, long_lines)
        self._host = jvm.host
        self._name = f"p{room}"
        self._phone: ScriptedPhone | None = None
        self._config = {
            "BOT_NAME": BOT,
            "SECRET_KEY": credentials.secret_key,
            "BOT_SPECIFIC_SALT": credentials.salt,
            "SERVER_LIST": [{"host": host, "port": PORT}],
        }

    def connect(self) -> None:
        self._phone = self._host.begin(self._name, self._config)
        self._phone.on_event = self._happened

    def _happened(self, event: dict[str, Any]) -> None:
        if event["ev"] == "send":
            self.answered(event["text"], self.reactor.seconds())
        elif event["ev"] == "boot_failed":
            raise BenchmarkError(event["msg"])
        elif event["ev"] == "log" and (found := _EXPIRED.search(event["msg"])):
            self._expired(int(found[1]))

    def _expired(self, number: int) -> None:
        """So many lines have expired: the oldest without an answer."""
        open_lines = [line for line in self.lines if not line.answered_at and not line.told]
        for line in open_lines[:number]:
            line.told = True

    def say(self, line: Line, text: str) -> None:
        assert self._phone is not None
        self._phone.say(text, self.room, self.channel_id)

    def stop(self) -> "Deferred[None]":
        """End the JVM: with the first of its phones, for all."""
        return ensureDeferred(self._host.stop())
