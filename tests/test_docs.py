"""Tests for the documents: the things that they name exist, and their examples are right."""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

from click import Command
from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.builtin import builtin_bot
from domaeka.cli import COMMANDS
from domaeka.config import BuiltinSettings
from domaeka.errors import CloseReason, ErrorCode
from domaeka.gateway.conversation.states import NEXT
from domaeka.gateway.serving import ServerState
from domaeka.metrics import RECEIVED_EVENTS, SENT_EVENTS, Metrics
from domaeka.policies.auth import sign
from domaeka.wire import Auth, Dialect, FrameReader, Inbound, read_server_frame
from domaeka.wire.frames import FROM_PHONE, FROM_SERVER, ReplyData
from domaeka.wire.phone import ServerFrame
from tests.test_floors import HOUSE

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "README.ko.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
)
SOURCES = (*ROOT.glob("domaeka/**/*.py"), *ROOT.glob("tests/**/*.py"))
#: A file of this repository, in code or between backticks.
NAMED_FILE = re.compile(
    r"(?<![\w/.~-])((?:benchmarks|docs|domaeka|etc|tests|twisted)/[\w./-]*\.(?:md|py|toml|service))"
)
#: A module, with or without its folder.
NAMED_MODULE = re.compile(r"(?<![\w/.~*-])((?:\w+/)*\w+\.py)\b")
#: A module, a class or a test by its whole name; not a file such as domaeka.toml.
DOTTED_NAME = re.compile(
    r"\b(?:domaeka|tests)(?:\.(?!(?:db|rules|service|socket|test|toml)\b)[a-zA-Z]\w*)+"
)
#: Files beside the documents that name modules.
CONFIGURATION = ("Makefile", "setup.cfg", "pyproject.toml", "ruff.toml", "MANIFEST.in")
#: Names of modules in examples, which do not exist here.
EXAMPLES = ("mybot.py", "test_mybot.py", "NAME.py", "test_NAME.py")
#: Classes that the design names, of Python and of Twisted.
OTHERS_CLASSES = ("LoopingCall", "StringTransport")


def headings(document: Path) -> list[str]:
    """The headings of a document, outside of its code."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.M | re.S)
    return re.findall(r"^#+ (.+)$", text, re.M)


def anchor(heading: str) -> str:
    """The end of a link to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def chapter(document: str, heading: str) -> str:
    """The text of a chapter."""
    text = (ROOT / document).read_text("utf-8")
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def fenced(document: Path, language: str) -> Iterator[str]:
    """The blocks of code in a document that are marked as C{language}."""
    pattern = rf"^[ ]*```{language}\n(.*?)^[ ]*```$"
    for match in re.finditer(pattern, document.read_text("utf-8"), re.M | re.S):
        yield match[1]


class ReferencesTests(SynchronousTestCase):
    """References in documents and in code."""

    def test_links(self) -> None:
        """Every relative link leads to a file, and to a heading in it."""
        for document in DOCUMENTS:
            for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
                if link.startswith(("http://", "https://")):
                    continue
                name, _, place = link.partition("#")
                target = (document.parent / name).resolve() if name else document
                self.assertTrue(target.exists(), f"{document.name}: {link}")
                if place:
                    self.assertIn(place, map(anchor, headings(target)), f"{document.name}: {link}")

    def test_named_files(self) -> None:
        """Every file of this repository that a document names is there."""
        for document in DOCUMENTS:
            for name in NAMED_FILE.findall(document.read_text("utf-8")):
                self.assertTrue((ROOT / name).exists(), f"{document.name}: {name}")

    def test_named_modules(self) -> None:
        """Every module that is named from below C{domaeka/} on, or by itself, is there."""
        folders = ("benchmarks", "domaeka", "etc", "tests", "twisted")
        modules = [path.as_posix() for name in folders for path in (ROOT / name).rglob("*.py")]
        for document in (*DOCUMENTS, *(ROOT / name for name in CONFIGURATION)):
            for name in NAMED_MODULE.findall(document.read_text("utf-8")):
                found = name in EXAMPLES or any(path.endswith(f"/{name}") for path in modules)
                self.assertTrue(found, f"{document.name}: {name}")

    def test_dotted_names(self) -> None:
        """Every name below C{domaeka.} or C{tests.} leads to a module, or into one."""
        for document in DOCUMENTS:
            for name in DOTTED_NAME.findall(document.read_text("utf-8")):
                place, *rest = name.split(".")
                while rest and (ROOT / place / rest[0]).is_dir():
                    place = f"{place}/{rest.pop(0)}"
                if rest:
                    module = ROOT / place / f"{rest.pop(0)}.py"
                    self.assertTrue(module.exists(), f"{document.name}: {name}")
                    source = module.read_text("utf-8")
                    for what in rest:
                        self.assertRegex(source, rf"(?:class|def) {what}\b", document.name)

    def test_named_classes(self) -> None:
        """Every class that the design names is there, and so is the attribute behind its name."""
        code = "".join(path.read_text("utf-8") for path in ROOT.glob("domaeka/**/*.py"))
        design = (ROOT / "docs/design.md").read_text("utf-8")
        for name, attribute in re.findall(r"`([A-Z]\w*[a-z]\w*)(?:\.(\w+))?`", design):
            if name not in OTHERS_CLASSES:
                self.assertRegex(code, rf"\bclass {name}\b")
                self.assertIn(f"def {attribute}(" if attribute else "", code)

    def test_sections_named_in_code(self) -> None:
        """Every section of a document that the code names is there."""
        for source in SOURCES:
            text = re.sub(r"\n\s*(#:? )?", " ", source.read_text("utf-8"))
            for name, section in re.findall(r'(docs/[\w/-]+\.md), "([^"{}]+)"', text):
                self.assertIn(section, headings(ROOT / name), f"{source.name}: {name}")


class WordsTests(SynchronousTestCase):
    """Words that leave the process."""

    def test_error_codes(self) -> None:
        """The wire's reference has a row for each error code, and no other."""
        text = (ROOT / "docs/protocol.md").read_text("utf-8")
        self.assertEqual(set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.M)), set(ErrorCode))

    def rows(self, heading: str) -> set[str]:
        """The first cells of the rows in a chapter of the operator's guide."""
        firsts = re.findall(r"^\|(.+?)\|", chapter("docs/operations.md", heading), re.M)
        words = (word for first in firsts for word in re.findall(r"`([^`]+)`", first))
        return {word.partition("{")[0] for word in words}

    def test_close_reasons(self) -> None:
        """The operator's guide has a row for each reason to close, and no other."""
        self.assertEqual(self.rows("Close reasons"), set(CloseReason))

    def test_metrics(self) -> None:
        """The operator's guide has a row for each metric, and no other."""
        endings = {"counter": "_total", "info": "_info"}
        names = {metric.name + endings.get(metric.type, "") for metric in Metrics().collect()}
        self.assertEqual({f"domaeka_{name}" for name in self.rows("Metrics")}, names)

    def test_commands(self) -> None:
        """The operator's guide names each command, and no other; each is in its module."""
        guide = (ROOT / "docs/operations.md").read_text("utf-8")
        for name, (module, attribute) in COMMANDS.items():
            self.assertRegex(guide, rf"domaeka {name}\b")
            command = getattr(import_module(f"domaeka.cli.{module}"), attribute)
            self.assertIsInstance(command, Command)
        rows = re.findall(r"^\|(.+?)\|", chapter("docs/operations.md", "Commands"), re.M)
        listed = set(re.findall(r"`domaeka ([\w-]+)", "".join(rows)))
        self.assertLessEqual(listed, COMMANDS.keys())

    def test_builtin_commands(self) -> None:
        """The authors' guide names each command that is built in, and no other."""
        names = {command.name for command in builtin_bot((), BuiltinSettings()).commands}
        named = re.findall(r"`(# \w+)", chapter("docs/bots.md", "Built in"))
        self.assertEqual(set(named), names)

    def test_events(self) -> None:
        """The wire's reference has a row for each frame, and no other; all are known."""
        rows = re.findall(
            r"^\| (`.+?) \| (up|down|both) \|", chapter("docs/protocol.md", "At a glance"), re.M
        )
        for ways, table in ((("up", "both"), FROM_PHONE), (("down", "both"), FROM_SERVER)):
            named = {
                name
                for names, way in rows
                if way in ways
                for name in re.findall(r"`(\w+)`", names.partition(", or an object")[0])
            }
            self.assertEqual(named, set(table))
        # Chat and pongs are counted under one name each.
        self.assertLessEqual(set(FROM_PHONE) - {"analyze", "ping"}, set(RECEIVED_EVENTS))
        others = {event: data for event, data in FROM_SERVER.items() if data is not ReplyData}
        self.assertLessEqual(others.keys(), set(SENT_EVENTS))
        # Each may come in some state; clients know each.
        self.assertEqual({message for _, message in NEXT} - {Auth}, set(get_args(Inbound)))
        self.assertLessEqual(set(others.values()), set(get_args(ServerFrame)))

    def test_states(self) -> None:
        """The design has a row for each state of the server, and no other."""
        rows = re.findall(r"^\| (\w+) \|", chapter("docs/design.md", "How the server stops"), re.M)
        self.assertEqual(rows, [state.value for state in ServerState])

    def test_targets(self) -> None:
        """C{make help} lists each thing that can be made, and no other."""
        text = (ROOT / "Makefile").read_text("utf-8")
        phony = " ".join(re.findall(r"^\.PHONY: (.+)$", text, re.M)).split()
        self.assertEqual(sorted(phony), sorted(re.findall(r"^([a-z-]+):.* ## \S", text, re.M)))


class PlanTests(SynchronousTestCase):
    """The plan in docs/design.md."""

    def setUp(self) -> None:
        self.plan: dict[str, int] = {}  # to the floor under whose heading each is
        floors = sorted({floor for floor, _ in HOUSE}, reverse=True)
        parts = chapter("docs/design.md", "Plan").split("\n### ")[1:]
        for floor, part in zip(floors, parts, strict=True):
            for name in re.findall(r"^([\w/]+(?:\.py|/)) {2,}\S", part, re.M):
                self.assertNotIn(name, self.plan, "named twice")
                self.plan[name] = floor

    def test_every_module(self) -> None:
        """It names each module and each folder, and nothing else."""
        package = ROOT / "domaeka"
        there = set()
        for path in package.rglob("*.py"):
            name = path.relative_to(package).as_posix()
            if name.startswith("store/migrations/versions/"):
                name = "store/migrations/versions/"
            elif name.endswith("__init__.py"):
                name = name.removesuffix("__init__.py")
            there.add(name)
        self.assertEqual(set(self.plan), there - {""})

    def test_floors(self) -> None:
        """Each stands under the heading of its floor."""
        floors = {name: floor for floor, names in HOUSE for name in names.split()}
        for name, floor in self.plan.items():
            self.assertEqual(floor, floors[name.partition("/")[0].removesuffix(".py")], name)


class ReadmeTests(SynchronousTestCase):
    """The two first pages."""

    def test_languages_agree(self) -> None:
        """Both languages show the same commands and code, and lead to the same pages."""
        english, korean = DOCUMENTS[:2]
        for language in ("sh", "python", "js"):
            self.assertEqual(list(fenced(english, language)), list(fenced(korean, language)))
        # A page may be there in Korean, with its own headings.
        links = r"\]\(((?:docs|etc)/[^)#]+?)(?:\.ko)?(?:\.md)?(?:#[^)]*)?\)"
        self.assertEqual(
            sorted(re.findall(links, english.read_text("utf-8"))),
            sorted(re.findall(links, korean.read_text("utf-8"))),
        )

    def test_python_compiles(self) -> None:
        """The bots that are shown are Python."""
        for document in DOCUMENTS:
            for code in fenced(document, "python"):
                compile(code, document.name, "exec")


class WireExamplesTests(SynchronousTestCase):
    """The lines shown in docs/protocol.md."""

    def setUp(self) -> None:
        self.document = ROOT / "docs/protocol.md"
        (block,) = fenced(self.document, "json")
        self.auth = json.loads(block)

    def lines(self, language: str) -> list[bytes]:
        """Whole lines, without their newlines."""
        auth = json.dumps(self.auth, ensure_ascii=False)
        blocks = fenced(self.document, language)
        return [block.rstrip("\n").replace("{…}", auth).encode() for block in blocks]

    def test_from_phones(self) -> None:
        """The server reads the lines of phones."""
        reader = FrameReader()
        lines = self.lines("up")
        self.assertGreater(len(lines), 5)
        for line in lines:
            reader.read(line)

    def test_from_the_server(self) -> None:
        """Phones read the lines of the server, in the form of each dialect."""
        for language, dialect in (("down", Dialect.V33), ("down32", Dialect.V32)):
            lines = self.lines(language)
            self.assertGreater(len(lines), 2)
            for line in lines:
                read_server_frame(line, dialect)

    def test_signature(self) -> None:
        """The signature shown is the one that the key and the salt shown make."""
        names = ("clientType", "botName", "deviceUUID", "macAddress", "ipAddress", "timestamp")
        fields = [self.auth[name] for name in names]
        self.assertEqual(
            sign("example-secret-key", "example-salt", *fields), self.auth["signature"]
        )
