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
                "# timer": Runs.ON_LOOP,
                "# tea": Runs.ON_LOOP,
                "# memo": Runs.ON_LOOP,
                "# notice": Runs.ON_LOOP,
                "# tick": Runs.ON_REACTOR,
                "# disk": Runs.IN_THREAD,
                "# picture": Runs.ON_LOOP,
                "# site": Runs.IN_THREAD,
            },
        )

    def test_answers(self) -> None:
        """Its answers arrive, those from a thread too."""
        self.assertEqual(self.room.say("# 안녕"), ["김하늘님, 안녕하세요!"])
        for text, part in (("# timer soon", "사용법"), ("# timer 99", "60까지"), ("# disk", "GiB")):
            (answer,) = self.room.say(text)
            self.assertIn(part, str(answer))

    def test_goes_on(self) -> None:
        """Its answers come in their time, its questions wait, its values stay."""
        self.assertEqual(self.room.say("# timer 3 차가 식어요"), ["3초를 잽니다."])
        self.assertEqual(self.room.wait(3), ["차가 식어요"])
        self.assertEqual(self.room.say("# tea 홍차"), ["몇 잔 드릴까요?"])
        self.assertEqual(self.room.say("많이"), [])
        self.assertEqual(self.room.say("2"), ["홍차 2잔, 모두 2잔째예요."])
        self.room.say("# memo 우유")
        self.assertEqual(self.room.say("# memo", sender="이서준"), ["우유"])
        self.assertEqual(self.room.say("정말 고마워", mention=True), ["천만에요!"])

    def test_unasked(self) -> None:
        """It sends to other rooms, and greets each morning."""
        other = self.room.beside("다른 방", id="18338494926958305")
        self.assertEqual(self.room.say("# notice 18338494926958305 회의합니다"), ["보냈어요."])
        self.room.wait(86_400)
        self.assertEqual(other.say("안녕"), ["회의합니다", "좋은 아침이에요! 01월 02일입니다."])

    def test_sends_pictures(self) -> None:
        """Its pictures go out together."""
        pictures = self.room.say("# picture")
        self.assertEqual([type(picture) for picture in pictures], [File] * 3)
        self.assertTrue(all(isinstance(one, File) and one.format == "png" for one in pictures))

    def test_all_have_help(self) -> None:
        """Every command shows a line in the help."""
        self.assertTrue(all(command.help for command in self.bots[0].commands))
