"""Pictures, for as long as they take on unmodified phones."""

from twisted.trial.unittest import TestCase

from domaeka.testing import SCRIPTS
from tests.integration.picture_bot import picture
from tests.integration.support import ServerProcess
from tests.integration.test_phones import until


class PictureTests(TestCase):
    """What a phone of each version gets."""

    timeout = 300

    async def test_pictures(self) -> None:
        """
        Pictures arrive byte for byte, one and several, and the connection outlives the time in
        which the phone is blocked for them: 13.2 s, and 16.2 s on 3.2.0.
        """
        server = ServerProcess(
            self,
            *("--set", 'limits.allow=["127.0.0.0/8"]'),
            *("--bots", "tests.integration.picture_bot:bot", "--set", "ping.interval=0.5"),
            *("--set", "ping.initial_delay_max=1", "--set", "ping.timeout=8"),
            *("--set", "ping.adaptive=false"),
        )
        await server.start()
        phones = server.phones(SCRIPTS)
        for phone in phones.values():
            phone.say("# pictures 1 12000")
            phone.say("# pictures 3 100")
        await until(phones.values(), lambda phone: len(phone.replies) == 2)
        for script, phone in phones.items():
            one, several = phone.replies
            self.assertEqual(one.contents, [picture(0)], script)
            self.assertEqual(several.contents, [picture(0), picture(1), picture(2)], script)
            self.assertGreater(several.time - one.time, 13.1, script)
            self.assertEqual(one.blocked_seconds, 16.2 if script == "3.2.0" else 13.2)
            self.assertEqual((len(phone.record.connects), phone.record.errors), (1, []), script)
