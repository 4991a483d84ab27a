"""C{domaeka new}: a bot to begin with, and its test."""

import keyword
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from unicodedata import normalize

import click

from domaeka.cli.output import one_line
from domaeka.errors import ConfigError
from domaeka.state import located_errors

#: Longest name, in characters.
MAX_NAME_CHARS: Final = 50

_BOT: Final = '''\
"""A bot.  Talk with it:  domaeka chat --bots {name}:bot"""

import random

from domaeka import BadArguments, Bot, Context

bot = Bot("{name}")


# The arguments of a command are read by the function's signature: "# 주사위 20" gives sides=20.
@bot.command("# 주사위", aliases=("# roll",))
async def roll(ctx: Context, sides: int = 6) -> str:
    """주사위를 굴립니다."""
    if sides < 2:
        raise BadArguments("면은 둘 이상이어야 합니다.")
    return f"{{ctx.sender.name}}님: {{random.randint(1, sides)}}"


# A dialog: ask() waits for the next message of the same person in the same room.
@bot.command("# 인사")
async def greet(ctx: Context) -> str:
    """이름을 묻고 인사합니다."""
    answer = await ctx.ask("이름이 뭐예요?", timeout=60)
    return f"{{answer.text}}님, 반갑습니다!"
'''

_TEST: Final = '''\
"""Tests of the bot.  Run them:  python -m unittest test_{name}"""

import unittest

from domaeka.testing import Room

from {name} import bot


class BotTests(unittest.TestCase):
    def setUp(self) -> None:
        self.room = Room(bot)
        self.addCleanup(self.room.close)

    def test_roll(self) -> None:
        [answer] = self.room.say("# 주사위 2", sender="김하늘")
        self.assertIn(answer, ("김하늘님: 1", "김하늘님: 2"))
        [usage] = self.room.say("# 주사위 여섯")
        self.assertIn("사용법: # 주사위", usage)

    def test_greet(self) -> None:
        self.assertEqual(self.room.say("# 인사"), ["이름이 뭐예요?"])
        self.assertEqual(self.room.say("아니요", sender="이바다"), [])
        self.assertEqual(self.room.say("하늘"), ["하늘님, 반갑습니다!"])

    def test_no_answer(self) -> None:
        self.room.say("# 인사")
        self.assertEqual(self.room.wait(60), ["대답이 없어 그만두었습니다."])
'''


@click.command(
    epilog="""\b
Example:
  domaeka new mybot
"""
)
@click.argument("name")
def new(name: str) -> None:
    """
    Write a bot to begin with, NAME.py, and its test, test_NAME.py, into this directory.

    NAME is the name of a module of Python. Nothing is overwritten.
    """
    check_module_name(name)
    files = {Path(f"{name}.py"): _BOT, Path(f"test_{name}.py"): _TEST}
    for path in (*files, Path(name)):
        if os.path.lexists(path):
            raise ConfigError(f"{path}: there is one already")
    for path, text in files.items():
        with located_errors(str(path)), path.open("x", encoding="utf-8") as file:
            file.write(text.format(name=name))
        click.echo(f"Written:  {path}")
    click.echo(f"Talk:     {sys.argv[0]} chat --bots {name}:bot")
    click.echo(f"Test:     {sys.executable} -m unittest test_{name}")
    click.echo(f"Serve:    {sys.argv[0]} serve --reload --bots {name}:bot")


def check_module_name(name: str) -> None:
    """
    Check that a module of that name can be written, and hides none.

    @raise UsageError: one line that says what is wrong.
    """
    shown = one_line(name[: MAX_NAME_CHARS + 1])
    if not name.isidentifier() or len(name) > MAX_NAME_CHARS or normalize("NFKC", name) != name:
        raise click.UsageError(
            f"{shown!r} cannot be the name of a module: up to {MAX_NAME_CHARS} letters, digits "
            "and _, no digit first"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise click.UsageError(f"{name!r} is a word of Python's")
    for module in (name, f"test_{name}"):
        if module in sys.stdlib_module_names or _is_installed(module):
            raise click.UsageError(f"{name!r}: there is a module {module} already; take another")


def _is_installed(module: str) -> bool:
    """True if Python finds a module of that name, but for one in this directory."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return module in sys.modules
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    here = Path.cwd()
    return not all(Path(place).absolute().parent == here for place in places)
