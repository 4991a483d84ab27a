"""Tests for C{etc/example_bot.py}."""

import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.commands import Runs
from domaeka.bots.loading import load_bots
from domaeka.config import BotsSettings
from domaeka.wire import Media
from tests.bots_fakes import Served

ETC = str(Path(__file__).parent.parent / "etc")


class ExampleBotTests(SynchronousTestCase):
    """The example works as its comments say."""

    def setUp(self) -> None:
        sys.path.insert(0, ETC)
        self.addCleanup(sys.path.remove, ETC)
        self.addCleanup(sys.modules.pop, "example_bot", None)
        self.bots = load_bots(["example_bot:bot"])
        self.served = Served(self.bots, BotsSettings(operators=("1001/u1",)))
        self.addCleanup(self.served.dispatcher.close)

    def test_runs_each_command_where_it_should(self) -> None:
        """What gives way runs on the loop, Deferreds on the reactor, what blocks in threads."""
        places = {command.name: command.runs for command in self.bots[0].commands}
        self.assertEqual(
            places,
            {
                "# hello": Runs.ON_LOOP,
                "# timer": Runs.ON_REACTOR,
                "# disk": Runs.IN_THREAD,
                "# picture": Runs.ON_LOOP,
                "# site": Runs.IN_THREAD,
            },
        )

    def test_answers(self) -> None:
        """Its answers arrive, those from a thread too."""
        for text in ("# 안녕", "# timer soon", "# disk"):
            self.served.say(text)
        self.served.threads.work()
        first, second, third = map(str, self.served.origin.texts)
        self.assertEqual(first, "누구님, 안녕하세요!")
        self.assertIn("수를 적어 주세요", second)
        self.assertIn("GiB", third)

    def test_sends_pictures(self) -> None:
        """Its pictures go out together."""
        self.served.say("# picture")
        (media,) = self.served.origin.texts
        assert isinstance(media, Media)
        self.assertEqual((len(media.pieces), media.format, media.wait_ms), (3, "png", 5000))

    def test_all_have_help(self) -> None:
        """Every command shows a line in the help."""
        self.assertTrue(all(command.help for command in self.bots[0].commands))
