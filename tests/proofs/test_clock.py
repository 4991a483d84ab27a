"""A real server whose wall clock is set while it runs: Debian's faketime shows it another one."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.python.runtime import seconds as wall
from twisted.trial.unittest import SkipTest, TestCase

from domaeka.texts_ko import TIMEOUT_TEXT
from tests.integration.support import HOST, ServerProcess, reactor, sleep
from tests.integration.test_api import BOT, DEVICE_ID, ROOM, SLOW_BOT, Api

#: By how much the clock is off, one after the other, in seconds: it is set back by an hour, then
#: by nine, then forward by a day.
OFFSETS = (-3600, -32_400, 86_400)
#: For a phone that is not there.
MESSAGE = {"bot": BOT, "device": "away", "room": ROOM, "text": "x", "ttl": 5}


def library() -> Path:
    """Where faketime has its library for processes with threads."""
    command = shutil.which("faketime")
    if command is None:  # .ci/run installs it
        raise SkipTest("faketime is not installed; Debian's package is faketime")
    asked = [command, "-f", "+0", "printenv", "LD_PRELOAD"]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return Path(shown.strip()).with_name("libfaketimeMT.so.1")


async def is_closed(line: socket.socket) -> bool:
    """Whether the server has ended a connection on which nothing was said."""
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False


async def until(holds: Callable[..., Awaitable[bool]], *args: Any) -> None:
    """Wait until something holds."""
    while not await holds(*args):
        await sleep(0.1)


class ClockTests(TestCase):
    """What comes in its time."""

    timeout = 240

    async def serve(self) -> ServerProcess:
        """A server in a hurry; what is in C{offset} sets its clock."""
        settings = {
            "ping.interval": 2,
            "ping.initial_delay_min": 1,
            "ping.initial_delay_max": 2,
            "server.handshake_timeout": 3,
            "bots.timeout": 6,
            "limits.allow": '["127.0.0.0/8"]',
        }
        arguments = [part for key in settings for part in ("--set", f"{key}={settings[key]}")]
        server = ServerProcess(self, "--bots", "slowbot:bot", *arguments)
        self.offset = server.directory / "offset"
        self.set_offset(0)
        (server.directory / "slowbot.py").write_text(SLOW_BOT, encoding="utf-8")
        server.environment |= {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self.offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # no machine sets that clock
            "DONT_FAKE_MONOTONIC": "1",  # its name in older versions
        }
        await server.start()
        return server

    def set_offset(self, offset: int) -> None:
        """The library reads the file at any moment, so that it must never be half written."""
        new = self.offset.with_name("new")
        new.write_text(f"{offset:+d}")
        new.replace(self.offset)

    async def test_is_set(self) -> None:
        """All goes on in its time, and what is a date is by the new clock."""
        server = await self.serve()

        def say_where(reason: Any, seconds: float) -> None:
            raise AssertionError(f"{reason.getTraceback()}\n{server.output()[-8000:]}")

        await ensureDeferred(self.rounds(server)).addTimeout(200, reactor, say_where)

    async def rounds(self, server: ServerProcess) -> None:
        """What the test does while the clock is set."""
        api = Api(server)
        phone = server.phone(DEVICE_ID)
        phone.say("# echo 0", ROOM)
        await phone.when(lambda: phone.texts() == ["0"])
        await api.ask("PATCH", f"/devices/{BOT}/away", {"status": "approved"})
        for number, offset in enumerate(OFFSETS, 1):
            phone.record.replies.clear()
            phone.say("# slow", ROOM)
            await until(self.pending, api)
            stranger = socket.create_connection((HOST, server.port))
            stranger.setblocking(False)
            self.addCleanup(stranger.close)
            _, waits = await api.ask("POST", "/messages", MESSAGE)

            phone.set_clock(offset)  # it has been right all the time
            self.set_offset(offset)
            phone.record.pings.clear()

            await phone.when(lambda: len(phone.record.pings) >= 3)
            await phone.when(lambda: phone.texts() == [TIMEOUT_TEXT])
            await until(is_closed, stranger)
            await until(self.has_expired, api, waits["id"])
            phone.say(f"# echo {number}", ROOM)
            await phone.when(lambda: len(phone.texts()) == 2)
            await self.check_dates(server, offset)
        self.assertEqual(len(phone.record.connects), 1)

    async def pending(self, api: Api) -> bool:
        """Whether a message is not answered yet."""
        found = await api.get(f"/connections/{BOT}/{DEVICE_ID}")
        return bool(found["queue"]["unanswered"])

    async def has_expired(self, api: Api, message_id: str) -> bool:
        """Whether a message has waited too long."""
        return bool((await api.get(f"/messages/{message_id}"))["state"] == "expired")

    async def check_dates(self, server: ServerProcess, offset: int) -> None:
        """The date is by the wall clock, the uptime and the lag by what has passed."""
        health = json.loads((await server.get("/health"))[1])
        ahead = datetime.fromisoformat(health["timestamp"]).timestamp() - wall()
        self.assertLess(abs(ahead - offset), 60.0)
        self.assertLess(health["uptime"], 600.0)
        metrics = (await server.get("/metrics"))[1].decode()
        lag = re.search(r"^domaeka_reactor_lag_seconds_sum (.*)$", metrics, re.MULTILINE)
        assert lag is not None
        self.assertLess(float(lag[1]), 600.0)
