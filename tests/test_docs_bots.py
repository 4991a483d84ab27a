"""The guide for bot authors: each piece of code runs, and each chat goes as it is printed."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot
from domaeka.testing import Room
from tests.integration import six_tasks

DOCS = Path(__file__).resolve().parent.parent / "docs"
#: The guide in its languages, and the heading of its second part.
GUIDES = {"bots.md": "# Reference", "bots.ko.md": "# 찾아보기"}
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SAID = re.compile(r"^(bot|김하늘|이서준): ?(.*)$")


def pieces(text: str) -> Iterator[tuple[str, str]]:
    """The kind and the content of each piece of code."""
    for found in _FENCE.finditer(text):
        yield found[1], found[2]


def lines(chat: str) -> list[tuple[str, str]]:
    """Who says what; lines without a name belong to the one before."""
    said: list[tuple[str, str]] = []
    for line in chat.splitlines():
        found = _SAID.match(line)
        if found is not None:
            said.append((found[1], found[2]))
        else:
            who, before = said.pop()
            said.append((who, f"{before}\n{line}"))
    return said


def shown(answer: Any) -> str:
    """An answer as the guide prints it."""
    return answer if isinstance(answer, str) else f"[{answer.format}]"


class GuideTests(SynchronousTestCase):
    """Tests for what the guide prints."""

    def module(self) -> ModuleType:
        """An empty module, of which classes and functions may say that they are of it."""
        module = ModuleType("guide_bot")
        sys.modules[module.__name__] = module
        self.addCleanup(sys.modules.pop, module.__name__, None)
        return module

    def play(self, bot: Bot, chat: str) -> None:
        """What people say is answered as is printed."""
        said = lines(chat)
        heard = [text for who, text in said if who == "bot"]
        with Room(bot) as room:
            answers = [room.say(text, sender=who) for who, text in said if who != "bot"]
            self.assertEqual([shown(one) for some in answers for one in some], heard)

    def check(self, name: str) -> None:
        """The first part grows one bot; each piece of the second stands alone."""
        tutorial, _, reference = (DOCS / name).read_text("utf-8").partition(f"\n{GUIDES[name]}\n")
        self.assertTrue(reference)
        module = self.module()
        chats = 0
        for kind, content in pieces(tutorial):
            if kind == "python":
                exec(compile(content, name, "exec"), vars(module))
            elif kind == "chat":
                self.play(module.bot, content)
                chats += 1
        self.assertGreaterEqual(chats, 5)
        for test in [value for key, value in vars(module).items() if key.startswith("test_")]:
            test()
        for kind, content in pieces(reference):
            if kind == "python":
                exec(compile(content, name, "exec"), vars(self.module()))

    def test_english(self) -> None:
        """The guide in English."""
        self.check("bots.md")

    def test_korean(self) -> None:
        """The guide in Korean; its code is the same."""
        self.check("bots.ko.md")
        english, korean = ((DOCS / name).read_text("utf-8") for name in GUIDES)
        self.assertEqual(
            [piece for piece in pieces(english) if piece[0] != "sh"],
            [piece for piece in pieces(korean) if piece[0] != "sh"],
        )


class SixTasksTests(SynchronousTestCase):
    """Six tasks here, and with discord.py."""

    def test_greets_at_eight(self) -> None:
        """The greeting goes to its room each morning."""
        with Room(six_tasks.bot, id=six_tasks.GREETED) as room:
            self.assertEqual(room.wait(2 * 86_400), ["좋은 아침이에요!"] * 2)

    def test_printed(self) -> None:
        """The page prints the bot that the tests run, and it is the shorter one, as it says."""
        page = (DOCS / "bots-from-others.md").read_text("utf-8")
        here, there = (
            re.search(rf"<!-- six tasks: {name} -->\n```python\n(.*?)```", page, re.DOTALL)
            for name in (r"domaeka", r"discord\.py")
        )
        assert here is not None
        assert there is not None
        bot = (DOCS.parent / "tests/integration/six_tasks.py").read_text("utf-8")
        self.assertEqual(here[1], bot)
        counts = [
            sum(bool(line.strip()) for line in code[1].splitlines()) for code in (here, there)
        ]
        self.assertLess(*counts)
        self.assertIn(f"{counts[0]} lines here, {counts[1]} with discord.py", page)
