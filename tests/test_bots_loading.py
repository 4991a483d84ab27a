"""Tests for L{domaeka.bots.loading}."""

import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot
from domaeka.bots.loading import bot_files, load_bots, reload_bots
from domaeka.errors import ConfigError

SOURCE = """\
from domaeka import Bot
bot = Bot("shop")
class inner:
    bot = bot
number = 5
"""


class LoadBotsTests(SynchronousTestCase):
    """Tests for L{load_bots}."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        sys.path.insert(0, str(directory))
        self.addCleanup(sys.path.remove, str(directory))
        for name, text in (
            ("loading_good", SOURCE),
            ("loading_bad", "import sys\nint('five\\nfive')\n"),
            ("loading_exits", "raise SystemExit(3)\n"),
            ("loading_unreadable", "def (:\n"),
        ):
            (directory / f"{name}.py").write_text(text)
            self.addCleanup(sys.modules.pop, name, None)

    def test_loads(self) -> None:
        """A bot is found by module and attribute, and loaded once."""
        bots = load_bots(["loading_good:bot", "loading_good:inner.bot"])
        self.assertEqual([bot.name for bot in bots], ["shop"])
        self.assertIsInstance(bots[0], Bot)

    def test_says_in_one_line_what_is_wrong(self) -> None:
        """Each mistake is one line that names the bot and the reason."""
        for place, reason in (
            ("loading_good", "not MODULE:ATTRIBUTE"),
            ("loading_good:nothing", "loading_good has no nothing"),
            ("loading_good:number", "not a domaeka.Bot, but int"),
            ("loading_none:bot", "ModuleNotFoundError: No module named 'loading_none'"),
            ("loading_bad:bot", "loading_bad.py:2"),
            ("loading_exits:bot", "SystemExit: 3"),
            ("loading_unreadable:bot", "SyntaxError"),
            (".relative:bot", "TypeError"),
        ):
            text = str(self.assertRaises(ConfigError, load_bots, [place]))
            self.assertIn(reason, text)
            self.assertIn(place, text)
            self.assertNotIn("\n", text)


class ReloadBotsTests(SynchronousTestCase):
    """Tests for L{reload_bots}: a bot in a single file, with a helper beside it."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        sys.path.insert(0, str(self.directory))
        self.addCleanup(sys.path.remove, str(self.directory))
        self.places = ["reload_shop:bot"]
        self.write("reload_helper", "NAME = 'one'\n")
        self.write("reload_shop", "from domaeka import Bot\nfrom reload_helper import *\n")
        self.write("reload_shop", "bot = Bot(NAME)\n")
        (self.bot,) = load_bots(self.places)

    def write(self, name: str, text: str) -> None:
        """Add to a module."""
        self.addCleanup(sys.modules.pop, name, None)
        with (self.directory / f"{name}.py").open("a") as file:
            file.write(text)

    def test_helper(self) -> None:
        """What lies beside it is imported anew, too, and known to have changed."""
        before = bot_files(self.places)
        self.write("reload_helper", "NAME = 'another one'\n")
        bots: list[Bot] = []
        reload_bots(self.places, bots.extend)
        self.assertEqual([bot.name for bot in bots], ["another one"])
        changed = dict(bot_files(self.places).items() - before.items())
        self.assertEqual([Path(path).name for path in changed], ["reload_helper.py"])

    def test_all_or_nothing(self) -> None:
        """Whatever goes wrong, in the bot or with it, what was imported before is as it was."""

        def refuse(bots: list[Bot]) -> None:
            raise ConfigError("twice")

        self.assertRaises(ConfigError, reload_bots, self.places, refuse)
        self.write("reload_helper", "raise KeyboardInterrupt\n")
        self.assertRaises(KeyboardInterrupt, reload_bots, self.places, refuse)
        self.assertIs(sys.modules["reload_shop"].bot, self.bot)
        self.assertEqual(sys.modules["reload_helper"].NAME, "one")
