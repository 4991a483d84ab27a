"""Tests for the documents: what they name exists, and what they show is so."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import CloseReason, ErrorCode
from domaeka.messages import Dialect, FrameReader
from domaeka.metrics import Metrics
from domaeka.phonewire import read_server_frame
from domaeka.policies.auth import sign

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "README.ko.md", *sorted(ROOT.glob("docs/**/*.md")))
SOURCES = (*ROOT.glob("domaeka/**/*.py"), *ROOT.glob("tests/**/*.py"))
#: What looks like a file of this repository, in code or between backticks.
NAMED_FILE = re.compile(
    r"(?<![\w/.~-])((?:benchmarks|docs|domaeka|etc|tests|twisted)/[\w./-]*\.(?:md|py|toml|service))"
)


def headings(document: Path) -> list[str]:
    """The headings of a document, outside of its code."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.M | re.S)
    return re.findall(r"^#+ (.+)$", text, re.M)


def anchor(heading: str) -> str:
    """What a link to a heading ends in."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def fenced(document: Path, language: str) -> Iterator[str]:
    """The blocks of code in a document that are marked as C{language}."""
    pattern = rf"^[ ]*```{language}\n(.*?)^[ ]*```$"
    for match in re.finditer(pattern, document.read_text("utf-8"), re.M | re.S):
        yield match[1]


class ReferencesTests(SynchronousTestCase):
    """What a document, or the code, refers to."""

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
        """What the operator's guide has rows for, in its chapter."""
        text = (ROOT / "docs/operations.md").read_text("utf-8")
        chapter = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        firsts = re.findall(r"^\|(.+?)\|", chapter, re.M)
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


class ReadmeTests(SynchronousTestCase):
    """The two first pages."""

    def test_languages_agree(self) -> None:
        """Both languages show the same commands and the same code, and the same links."""
        english, korean = DOCUMENTS[:2]
        for language in ("sh", "python", "js"):
            self.assertEqual(list(fenced(english, language)), list(fenced(korean, language)))
        links = r"\]\(((?:docs|etc)/[^)]+)\)"
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
        """What phones send is what the server reads."""
        reader = FrameReader()
        lines = self.lines("up")
        self.assertGreater(len(lines), 5)
        for line in lines:
            reader.read(line)

    def test_from_the_server(self) -> None:
        """What the server sends is what phones take, in the form of each dialect."""
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
