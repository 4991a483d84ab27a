"""Tests for C{etc/example_bot.py}."""

import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.commands import Runs
from domaeka.bots.loading import load_bots
from domaeka.testing import File, Room

ETC = str(Path(__file__).parent.parent / "etc")


class ExampleBotTests(SynchronousTestCase):
    """The example works as its comments say."""

    def setUp(self) -> None:
        sys.path.insert(0, ETC)
        self.addCleanup(sys.path.remove, ETC)
        self.addCleanup(sys.modules.pop, "example_bot", None)
        self.bots = load_bots(["example_bot:bot"])
        self.room = Room(*self.bots, operators=True)
        self.addCleanup(self.room.close)

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
        self.assertEqual(self.room.say("# 안녕"), ["김하늘님, 안녕하세요!"])
        for text, part in (("# timer soon", "수를 적어 주세요"), ("# disk", "GiB")):
            (answer,) = self.room.say(text)
            self.assertIn(part, str(answer))

    def test_sends_pictures(self) -> None:
        """Its pictures go out together."""
        pictures = self.room.say("# picture")
        self.assertEqual([type(picture) for picture in pictures], [File] * 3)
        self.assertTrue(all(isinstance(one, File) and one.format == "png" for one in pictures))

    def test_all_have_help(self) -> None:
        """Every command shows a line in the help."""
        self.assertTrue(all(command.help for command in self.bots[0].commands))
