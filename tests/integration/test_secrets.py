"""Keys that change while phones are connected to a real server."""

from pathlib import Path

from twisted.trial.unittest import TestCase

from domaeka.state import rotate_secret_key
from tests.integration.support import ServerProcess, reactor, sleep
from tests.integration.test_phones import until

READ_AGAIN = "settings read again"


class SecretsTests(TestCase):
    """Tests for the secrets of a server that runs."""

    timeout = 60

    async def rotate(self, server: ServerProcess, keep: float) -> None:
        """Make a new key, and have the server read it."""
        rotate_secret_key(server.state, keep, reactor.seconds())
        times = server.output().count(READ_AGAIN)
        server.signal("HUP")
        while server.output().count(READ_AGAIN) == times:
            await sleep(0.05)

    async def test_rotated(self) -> None:
        """
        Phones with the old key go on until it ends, phones with the new one are served at once;
        no secret is in the log or in the list of processes.
        """
        server = ServerProcess(self, "--set", "logging.level=debug")
        await server.start()
        shown = [server.secrets()]
        old = server.phone("1" * 16)
        old.say("# echo 1")
        await old.expect("1")
        await self.rotate(server, 60.0)
        shown.append(server.secrets())
        new = server.phone("2" * 16)
        for phone in (old, new):
            phone.say("# echo 2")
        await new.expect("2")
        await old.expect("1", "2")
        await self.rotate(server, 0.0)
        shown.append(server.secrets())
        self.assertIn(b"domaeka_phones 0.0", (await server.get("/metrics"))[1])
        for phone in (old, new):
            phone.say("# echo 3")
        await until((old, new), lambda phone: bool(phone.record.errors))
        self.assertEqual({code for code, _ in old.record.errors}, {"AUTH_FAILED"})
        arguments = Path(f"/proc/{server.pid}/cmdline").read_text()
        for secrets in shown:
            for name in ("secret_key", "salt", "admin_token"):
                self.assertNotIn(secrets[name], server.output() + arguments)
