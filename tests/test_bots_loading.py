"""Tests for L{domaeka.bots.loading}."""

import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot
from domaeka.bots.loading import load_bots
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
