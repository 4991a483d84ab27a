"""Servers, and phones that run the bridge script, for tests of it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import TestCase

from tests.integration.support import HOST, ServerProcess
from tests.phone_host import SCRIPT, PhoneHost, ScriptedPhone, why_not
from tests.phone_host.servers import FalseServer, Relay

#: The secrets of false servers' phones.
KEY: Final = "a secret of enough bytes"
SALT: Final = "a grain of salt"
#: A picture, by its first bytes.
GIF: Final = b"GIF89a" + bytes(20)


class BridgeCase(TestCase):
    """Servers, and phones that run etc/phone/bridge.js as it is."""

    timeout = 600
    skip = why_not()

    async def serve(self, *arguments: str) -> ServerProcess:
        """A server that takes any number of phones from here."""
        server = ServerProcess(self, "--set", 'limits.allow=["127.0.0.0/8"]', *arguments)
        await server.start()
        return server

    def host(self, wrap: str = "app", *options: str) -> PhoneHost:
        """A JVM.  Nothing may go wrong in it that its phones do not deal with."""
        host = PhoneHost(self, wrap, *options)
        self.addCleanup(lambda: self.assertEqual(host.failures, []))
        return host

    async def connected(self, phones: Iterable[ScriptedPhone], times: int = 1) -> None:
        """Wait until the phones have been greeted so often."""
        for phone in phones:
            await phone.until(lambda: phone.logged("connected to") >= times)  # noqa: B023

    def hurried(self, **times: int) -> Path:
        """The script with other times, in milliseconds."""
        text = SCRIPT.read_text("utf-8")
        for name, value in times.items():
            text, count = re.subn(rf"(var {name} = )\d+;", rf"\g<1>{value};", text)
            self.assertEqual(count, 1, name)
        path = Path(self.mktemp()).absolute()
        path.write_text(text, "utf-8")
        return path

    @staticmethod
    async def threads(phone: ScriptedPhone) -> list[str]:
        """The kinds of threads that the script has, in all its phones of this JVM."""
        names = await phone.evaluate(
            "(function () { var names = [], all = java.lang.Thread.getAllStackTraces().keySet()"
            ".toArray(), i; for (i = 0; i < all.length; i++) { if (String(all[i].getName())"
            '.indexOf("domaeka") === 0) { names.push(String(all[i].getName()).split(" ")[1]); } }'
            ' return names.sort().join(" "); }())'
        )
        return names.split()

    async def twin(self, server: ServerProcess) -> ServerProcess:
        """Another server, with the same secrets."""
        other = ServerProcess(self, "--set", 'limits.allow=["127.0.0.0/8"]')
        for name, key in (("SECRET_KEY", "secret_key"), ("SALT", "salt")):
            other.environment[f"DOMAEKA_AUTH_{name}"] = server.secrets()[key]
        await other.start()
        return other

    @staticmethod
    def settings(*servers: FalseServer) -> dict[str, Any]:
        """Settings of a phone with a list of false servers."""
        places = [{"host": HOST, "port": server.port} for server in servers]
        return {
            "BOT_NAME": "가게봇",
            "SECRET_KEY": KEY,
            "BOT_SPECIFIC_SALT": SALT,
            "SERVER_LIST": [{**place, "priority": n} for n, place in enumerate(places)],
        }

    @staticmethod
    def behind(relay: Relay) -> list[dict[str, Any]]:
        """A list of servers with a relay alone."""
        return [{"host": HOST, "port": relay.port, "priority": 1, "name": "relay"}]
