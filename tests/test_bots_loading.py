"""Tests for L{domaeka.bots.loading}."""

import os
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot
from domaeka.bots.loading import Reloaded, load_bots, look_here, reload_bots
from domaeka.errors import ConfigError

SOURCE = """\
from domaeka import Bot
bot = Bot("shop")
class inner:
    bot = bot
number = 5
"""


#: What mistakes are made with, eight lines.
HANDLERS = """\
import functools
from domaeka import Bot
bot = Bot("shop")
class Object:
    def __call__(self): ...
    def method(self, *, ctx): ...
def good(ctx): ...

"""
#: Names of modules, what is wrong there from their ninth line on, and what is said of it.
MISTAKES = (
    ("nothing", "@bot.command('a')\ndef forgot(): ...\n", ".py:9, in forgot)"),
    ("keyword", "@bot.command('a')\nasync def greedy(ctx, *, a: list): ...\n", ".py:9, in greedy)"),
    ("lambda", "bot.command('a')(lambda: 1)\n", ".py:9, in <lambda>)"),
    ("method", "bot.command('a')(Object().method)\n", ".py:6, in Object.method)"),
    ("object", "bot.command('a')(Object())\n", ".py:5, in Object.__call__)"),
    ("partial", "bot.command('a')(functools.partial(good, 1))\n", ".py:7, in good)"),
    ("class", "bot.command('a')(Object)\n", ".py:9)"),
    ("name", "\n@bot.command(' a')\ndef bad(ctx): ...\n", ".py:10)"),
    ("noname", "@bot.command\ndef bad(ctx): ...\n", ".py:9)"),
    ("twice", "bot.command('a')(good)\nbot.command('b', ('a',))(good)\n", ".py:10)"),
    ("first", "bot.command('a')(good)\nbot.command('a')(good)\n", "first at "),
)


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
            *((f"loading_{name}", HANDLERS + text) for name, text, _ in MISTAKES),
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
            ("loading_unreadable:bot", "loading_unreadable.py:1)"),
            *((f"loading_{name}:bot", reason) for name, _, reason in MISTAKES),
            (".relative:bot", "TypeError"),
        ):
            text = str(self.assertRaises(ConfigError, load_bots, [place]))
            self.assertIn(reason, text)
            self.assertIn(place, text)
            self.assertNotIn("\n", text)


class LookHereTests(SynchronousTestCase):
    """Tests for L{look_here}."""

    def setUp(self) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        os.chdir(self.directory)
        (self.directory / "planted_bot.py").write_text("raise SystemExit('planted')\n")
        # What started the tests may look here in any case.
        self.patch(sys, "path", [place for place in sys.path if place])

    def test_beside(self) -> None:
        """Bots beside the place from which the server is started are found."""
        self.directory.chmod(0o755)
        look_here()
        self.assertEqual(sys.path[0], str(self.directory))

    def test_where_all_may_write(self) -> None:
        """In a directory such as /tmp nothing is imported; who named a bot there is told why."""
        self.directory.chmod(0o1777)
        look_here()
        error = self.assertRaises(ConfigError, load_bots, ["planted_bot:bot"])
        self.assertNotIn("SystemExit", str(error))
        self.assertIn(f"not looked for in {self.directory}, where all may write", str(error))


class ReloadBotsTests(SynchronousTestCase):
    """Tests for L{reload_bots}.  Each module counts in C{sys} how often it ran."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        sys.path.insert(0, str(self.directory))
        self.addCleanup(sys.path.remove, str(self.directory))
        self.addCleanup(self.forget, set(sys.modules))
        self.ran: list[str] = []
        sys.reload_ran = self.ran  # type: ignore[attr-defined]

    def forget(self, before: set[str]) -> None:
        for name in set(sys.modules) - before:
            del sys.modules[name]

    def write(self, name: str, text: str) -> None:
        """Write a module: a path below the directory, without its suffix."""
        path = self.directory / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"import sys; sys.reload_ran.append(__name__)\n{text}\n")

    def write_bot(self, name: str, text: str = "", command: str = "") -> None:
        """Write a bot, in a module of its own."""
        self.write(
            name,
            f"from domaeka import Bot\nbot = Bot({name!r})\n{text}\n"
            f"@bot.command({command or name!r})\ndef answer(ctx): return ''",
        )

    def reload(self, *places: str) -> Reloaded:
        """Reload.  What ran before is forgotten."""
        self.ran.clear()
        self.bots: list[Bot] = []
        return reload_bots(places, self.bots.extend)

    def test_nothing_changed(self) -> None:
        """What did not change is left, with its memory, though its file is written again."""
        self.write("r1_help", "")
        self.write_bot("r1_one", "import r1_help\nmemory = []\ndef later(): import r1_lazy")
        self.write("r1_lazy", "")
        (bot,) = load_bots(["r1_one:bot"])
        sys.modules["r1_one"].later()
        sys.modules["r1_one"].memory.append(1)
        os.mkfifo(self.directory / "r1_pipe.py")
        for path in self.directory.glob("r1_[!p]*.py"):
            path.write_bytes(path.read_bytes())
            os.utime(path, (1, 1))
        self.assertEqual(self.reload("r1_one:bot"), Reloaded((), ("r1_one:bot",)))
        self.assertEqual((self.ran, self.bots), ([], [bot]))
        self.assertEqual(sys.modules["r1_one"].memory, [1])

    def test_one_of_two(self) -> None:
        """The bot that changed is imported anew, the other is left."""
        for name in ("r2_one", "r2_two"):
            self.write_bot(name)
        _, two = load_bots(["r2_one:bot", "r2_two:bot"])
        self.write_bot("r2_one", "number = 1")
        report = self.reload("r2_one:bot", "r2_two:bot")
        self.assertEqual(report, Reloaded(("r2_one:bot",), ("r2_two:bot",)))
        self.assertEqual(self.ran, ["r2_one"])
        self.assertIs(self.bots[1], two)

    def test_same_time_and_length(self) -> None:
        """A change is one by its content, whatever the file's time and length are."""
        self.write_bot("r3_one", "number = 1")
        load_bots(["r3_one:bot"])
        path = self.directory / "r3_one.py"
        status = path.stat()
        self.write_bot("r3_one", "number = 2")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.assertEqual(self.reload("r3_one:bot").anew, ("r3_one:bot",))
        self.assertEqual(sys.modules["r3_one"].number, 2)

    def test_shared_helper(self) -> None:
        """Who imports what has changed is imported anew: at once, later, or through another."""
        self.write("r4_help", "NAME = 1")
        self.write("r4_between", "from r4_help import *")
        self.write_bot("r4_one", "import r4_between")
        self.write_bot("r4_two", "def later():\n    from r4_help import NAME\n    return NAME")
        self.write_bot("r4_three", "import importlib\nhelp = importlib.import_module('r4_help')")
        self.write_bot("r4_four")
        places = [f"r4_{name}:bot" for name in ("one", "two", "three", "four")]
        load_bots(places)
        self.assertEqual(sys.modules["r4_two"].later(), 1)
        self.write("r4_help", "NAME = 2")
        self.assertEqual(self.reload(*places), Reloaded(tuple(places[:3]), ("r4_four:bot",)))
        self.assertEqual(sys.modules["r4_two"].later(), 2)

    def test_package(self) -> None:
        """In a package, a module is imported anew alone if nothing depends on it."""
        self.write("r5_shop/__init__", "")
        self.write("r5_shop/prices", "PRICE = 1")
        self.write_bot("r5_shop/one", "from . import prices")
        self.write_bot("r5_shop/two", "from .goods.list import GOODS")
        self.write("r5_shop/goods/list", "GOODS = ['a']")
        places = ["r5_shop.one:bot", "r5_shop.two:bot"]
        load_bots(places)
        self.write("r5_shop/prices", "PRICE = 2")
        self.assertEqual(self.reload(*places), Reloaded((places[0],), (places[1],)))
        self.assertEqual(sys.modules["r5_shop.one"].prices.PRICE, 2)
        self.write("r5_shop/goods/list", "GOODS = ['b']")
        self.assertEqual(self.reload(*places), Reloaded((places[1],), (places[0],)))
        self.write("r5_shop/__init__", "NAME = 1")
        self.assertEqual(self.reload(*places).anew, tuple(places))

    def test_package_that_imports_its_modules(self) -> None:
        """The package that was imported anew has those of its modules that were left, too."""
        self.write("r6_shop/__init__", "from . import one, two")
        for name in ("r6_shop/one", "r6_shop/two"):
            self.write_bot(name)
        places = ["r6_shop.one:bot", "r6_shop.two:bot"]
        load_bots(places)
        self.write_bot("r6_shop/one", "number = 1")
        self.assertEqual(self.reload(*places), Reloaded((places[0],), (places[1],)))
        package = sys.modules["r6_shop"]
        self.assertIs(package.two, sys.modules["r6_shop.two"])
        self.assertEqual(package.one.number, 1)

    def test_bot_of_several_files(self) -> None:
        """A bot whose commands stand in several files is made anew with all of them."""
        self.write("r7_common", "from domaeka import Bot\nbot = Bot('shop')")
        command = "from r7_common import bot\n@bot.command({!r})\ndef answer(ctx): return ''"
        self.write("r7_buy", command.format("buy"))
        self.write("r7_sell", command.format("sell"))
        self.write("r7_main", "import r7_buy, r7_sell\nfrom r7_common import bot")
        load_bots(["r7_main:bot"])
        self.write("r7_sell", command.format("offer"))
        self.assertEqual(self.reload("r7_main:bot").anew, ("r7_main:bot",))
        self.assertEqual([command.name for command in self.bots[0].commands], ["buy", "offer"])

    def test_plugins(self) -> None:
        """What was imported without being named is known to belong to who may have done so."""
        self.write("r8_plug/__init__", "")
        self.write("r8_plug/one", "NUMBER = 1")
        self.write_bot(
            "r8_bot",
            "import pkgutil, importlib, r8_plug\n"
            "plugs = [importlib.import_module('r8_plug.' + info.name)"
            " for info in pkgutil.iter_modules(r8_plug.__path__)]",
        )
        self.write_bot("r8_other")
        places = ["r8_bot:bot", "r8_other:bot"]
        load_bots(places)
        self.write("r8_plug/one", "NUMBER = 2")
        self.assertEqual(self.reload(*places), Reloaded((places[0],), (places[1],)))
        self.assertEqual(sys.modules["r8_bot"].plugs[0].NUMBER, 2)

    def test_importer_that_changed_too(self) -> None:
        """With a helper that changed beside its only importer, nobody else is suspected."""
        self.write("r15_help", "NUMBER = 1")
        self.write_bot("r15_one", "import r15_help")
        self.write_bot("r15_two", "import importlib\nimportlib.invalidate_caches()")
        places = ["r15_one:bot", "r15_two:bot"]
        load_bots(places)
        self.write("r15_help", "NUMBER = 2")
        self.write_bot("r15_one", "from r15_help import NUMBER")
        self.assertEqual(self.reload(*places), Reloaded((places[0],), (places[1],)))
        self.assertEqual(sys.modules["r15_one"].NUMBER, 2)

    def test_file_that_appears(self) -> None:
        """A module that could not be imported before is imported once it is there."""
        text = "try: import r9_local as local\nexcept ImportError: local = None"
        self.write_bot("r9_one", text)
        load_bots(["r9_one:bot"])
        self.write("r9_unrelated", "")
        self.assertEqual(self.reload("r9_one:bot").anew, ())
        self.write("r9_local", "")
        self.assertEqual(self.reload("r9_one:bot").anew, ("r9_one:bot",))
        self.assertIsNotNone(sys.modules["r9_one"].local)

    def test_added_and_removed(self) -> None:
        """Other settings import what is new, and leave what was there."""
        for name in ("r10_one", "r10_two"):
            self.write_bot(name)
        load_bots(["r10_one:bot"])
        report = self.reload("r10_one:bot", "r10_two:bot")
        self.assertEqual(report, Reloaded(("r10_two:bot",), ("r10_one:bot",)))
        self.assertEqual(self.reload("r10_two:bot"), Reloaded((), ("r10_two:bot",)))
        self.assertEqual([bot.name for bot in self.bots], ["r10_two"])

    def test_file_that_is_gone(self) -> None:
        """While somebody needs it nothing changes; once nobody does, it is forgotten."""
        self.write("r11_help", "")
        self.write_bot("r11_one", "import r11_help")
        load_bots(["r11_one:bot"])
        old = {name: sys.modules[name] for name in ("r11_help", "r11_one")}
        (self.directory / "r11_help.py").unlink()
        self.assertRaises(ConfigError, self.reload, "r11_one:bot")
        self.assertEqual({name: sys.modules[name] for name in old}, old)
        self.write_bot("r11_one")
        self.assertEqual(self.reload("r11_one:bot").anew, ("r11_one:bot",))
        self.assertNotIn("r11_help", sys.modules)

    def test_all_or_nothing(self) -> None:
        """Whatever goes wrong, in a bot or with them all, everything is as it was."""
        self.write("r12_shop/__init__", "")
        self.write("r12_shop/help", "")
        self.write_bot("r12_shop/one", "from . import help")
        self.write_bot("r12_two")
        places = ["r12_shop.one:bot", "r12_two:bot"]
        load_bots(places)
        old = {name: sys.modules[name] for name in sys.modules if name.startswith("r12")}

        def refuse(bots: list[Bot]) -> None:
            raise ConfigError("twice")

        self.write("r12_shop/help", "NEW = 1")
        self.assertRaises(ConfigError, reload_bots, places, refuse)
        self.write("r12_new", "")
        self.write_bot("r12_two", "import r12_new\nraise KeyboardInterrupt")
        self.assertRaises(KeyboardInterrupt, self.reload, *places)
        now = {name: sys.modules[name] for name in sys.modules if name.startswith("r12")}
        self.assertEqual(now, old)
        self.assertIs(old["r12_shop"].help, old["r12_shop.help"])
        self.assertFalse(hasattr(old["r12_shop.help"], "NEW"))

    def test_failed_last_time(self) -> None:
        """What failed is tried again, and what else had changed is imported then."""
        self.write_bot("r13_one")
        self.write_bot("r13_two")
        places = ["r13_one:bot", "r13_two:bot"]
        load_bots(places)
        self.write_bot("r13_one", "number = 1")
        self.write_bot("r13_two", "1 / 0")
        self.assertRaises(ConfigError, self.reload, *places)
        self.assertRaises(ConfigError, self.reload, *places)
        self.write_bot("r13_two")
        self.assertEqual(self.reload(*places), Reloaded((places[0],), (places[1],)))
        self.assertEqual(sys.modules["r13_one"].number, 1)

    def test_command_for_a_bot_that_was_left(self) -> None:
        """A reload that fails leaves no commands behind."""
        self.write_bot("r14_one")
        self.write_bot("r14_two")
        places = ["r14_one:bot", "r14_two:bot"]
        one, _ = load_bots(places)
        text = "import r14_one\n@r14_one.bot.command('more')\ndef more(ctx): ..."
        self.write_bot("r14_two", f"{text}\n1 / 0")
        self.assertRaises(ConfigError, self.reload, *places)
        self.assertEqual(len(one.commands), 1)
        self.write_bot("r14_two", text)
        self.reload(*places)
        self.write_bot("r14_two", f"{text}\n2")
        self.assertEqual(self.reload(*places).anew, tuple(places))
        self.assertEqual(len(self.bots[0].commands), 2)
