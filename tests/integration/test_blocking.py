"""A bot that blocks the bots' loop, and what others notice of it: nothing."""

import json

from twisted.trial.unittest import TestCase

from tests.integration.support import ServerProcess, sleep

#: For how long the bot blocks, in seconds.
BLOCK_SECONDS = 5
#: How many commands are answered meanwhile.
ECHOES = 20


class BlockingTests(TestCase):
    """A server with such a bot."""

    timeout = 300

    async def test_others_go_on(self) -> None:
        """Commands of other phones are answered while a handler blocks, and it is named."""
        server = ServerProcess(self, "--bots", "tests.integration.blocking_bot:bot")
        await server.start()
        blocked, other = server.phone("0" * 16), server.phone("1" * 16)
        other.say("# echo 0")
        await other.when_replies(1)
        blocked.say(f"# block {BLOCK_SECONDS}")
        await sleep(0.5)
        for number in range(1, ECHOES):
            other.say(f"# echo {number}")
            await other.when_replies(number + 1)
        self.assertEqual(blocked.texts(), [])
        said = ""
        while "# block" not in said:
            checks = json.loads((await server.get("/health"))[1])["checks"]
            said = checks["bots"]
            await sleep(0.1)
        await blocked.when_replies(1)
        self.assertEqual(blocked.texts(), ["blocked"])
        while checks["bots"] != "ok":
            checks = json.loads((await server.get("/health"))[1])["checks"]
            await sleep(0.1)
        self.assertIn("blocking_bot.py:", server.output())
