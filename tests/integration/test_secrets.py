"""Keys that change while phones are connected to a real server."""

import json
from hashlib import sha256
from pathlib import Path

from twisted.trial.unittest import TestCase

from domaeka.secrets import rotate_secret_key
from tests.integration.support import ServerProcess, reactor, sleep
from tests.integration.test_phones import until

READ_AGAIN = "settings read again"


class SecretsTests(TestCase):
    """Tests for the secrets of a server that runs."""

    timeout = 300

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

    async def test_published_key(self) -> None:
        """While the key of old scripts is accepted, each start warns, and C{/health} shows it."""
        key = "what everybody knows"
        server = ServerProcess(
            self, "--bots=published:bot", "--set", "auth.accept_published_key=true"
        )
        # The real one is not in the code: only its hash.
        (server.directory / "published.py").write_text(
            "import domaeka, domaeka.secrets\n"
            f"domaeka.secrets.PUBLISHED_KEY_SHA256 = {sha256(key.encode()).hexdigest()!r}\n"
            "bot = domaeka.Bot('published')\n"
        )
        server.environment["PYTHONPATH"] += f":{server.directory}"
        server.environment["DOMAEKA_AUTH_SECRET_KEY"] = key
        for start in (1, 2):
            await server.start()
            self.assertEqual(server.output().count("everybody knows it"), start)
            status, body = await server.get("/health")
            self.assertEqual(status, 200)
            self.assertIn("everybody knows it", str(json.loads(body)["checks"]["keys"]))
            await server.stop()
