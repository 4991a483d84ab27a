"""Tests for L{domaeka.settings_docs}."""

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import Settings, load_settings, setting_types
from domaeka.settings_docs import commented_config, settings_page, settings_table

ROOT = Path(__file__).parent.parent
AGAIN = "run: python -m domaeka.settings_docs"


class SettingsDocsTests(SynchronousTestCase):
    """What people read is what the code does."""

    def test_in_step(self) -> None:
        """The page, and the sample file, are those that the settings make."""
        for path, text in (
            ("docs/settings.md", settings_page()),
            ("etc/domaeka.toml", commented_config()),
        ):
            self.assertEqual((ROOT / path).read_text(encoding="utf-8"), text, AGAIN)

    def test_complete(self) -> None:
        """Every key has a row."""
        table = settings_table()
        for key in setting_types():
            self.assertIn(f"| `{key}`", table)

    def load(self, text: str) -> Settings:
        path = Path(self.mktemp())
        path.write_text(text, encoding="utf-8")
        return load_settings(path, environment={})

    def test_sample_changes_nothing(self) -> None:
        """The sample file gives the defaults, as it is and with every key uncommented."""
        sample = commented_config()
        self.assertEqual(self.load(sample), Settings())
        uncommented, count = re.subn(r"(?m)^#(\w+ = )", r"\1", sample)
        self.assertEqual(count, len(setting_types()))
        self.assertEqual(self.load(uncommented), Settings())

    def test_lines_are_short(self) -> None:
        """The sample file is read in a terminal."""
        self.assertLessEqual(max(map(len, commented_config().splitlines())), 100)
