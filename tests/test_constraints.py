"""Tests for constraints.txt: the versions that C{make run} and C{make test} install."""

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent


def requirements() -> Iterator[Requirement]:
    """All that setup.cfg asks for, the extras too."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = setup["options.extras_require"]
    for text in (setup["options"]["install_requires"], *extras.values()):
        yield from (Requirement(line) for line in text.split("\n") if line)


class ConstraintsTests(SynchronousTestCase):
    """The two commands install the same today and in a year."""

    def setUp(self) -> None:
        comment, *lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        self.assertIn("make constraints", comment)
        self.lines = lines

    def test_exact(self) -> None:
        """Each line is one exact version, of no place where it is from."""
        for line in self.lines:
            self.assertRegex(line, r"\A[a-z0-9.-]+==[0-9][a-z0-9.+]*\Z")
        self.assertEqual(self.lines, sorted(set(self.lines)))

    def test_within_bounds(self) -> None:
        """All that setup.cfg asks for is among them, within its bounds."""
        pinned = dict(line.split("==") for line in self.lines)
        for needed in requirements():
            version = pinned.get(needed.name, "none")
            self.assertTrue(version != "none" and needed.specifier.contains(version), needed)

    def test_bounds(self) -> None:
        """Each has a floor, which C{make oldest} can read, and a ceiling."""
        for needed in requirements():
            signs = sorted(one.operator for one in needed.specifier)
            self.assertEqual(signs, ["<", ">="], needed)
        text = (ROOT / "setup.cfg").read_text("utf-8")
        floors = re.findall(r"^ +[a-z-]+(?:\[[a-z]+\])? >= [0-9.]+, < [0-9.]+$", text, re.MULTILINE)
        self.assertEqual(len(floors), len({one.name for one in requirements()}))
