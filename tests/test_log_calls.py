"""Every log line of the package names what it tells of in fields that docs/operations.md lists."""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from domaeka.interfaces import DeviceKey
from domaeka.logs import json_line
from tests.bots_fakes import FakeOrigin, make_chat
from tests.test_floors import MODULES, ROOT

_LEVELS = {level.name for level in LogLevel.iterconstants()} | {"failure"}
_PLACEHOLDER = re.compile(r"\{(\w+)")
#: What gives its C{log_fields} instead of itself.
EXPANDED = {"key", "peer"}


def documented() -> set[str]:
    """The names in the table of docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    _, _, section = text.partition("### Fields of the JSON log\n")
    rows = re.findall(r"^\| (`.*?) \|", section.partition("\n## ")[0], re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(rows)))


def is_log(function: ast.expr) -> bool:
    """Whether a call of it writes to the log."""
    if isinstance(function, ast.Attribute):
        return function.attr in _LEVELS and ast.unparse(function.value).endswith("log")
    return isinstance(function, ast.Name) and function.id == "log"


def text_of(form: ast.expr) -> str:
    """The fixed parts of a message's form."""
    parts = form.values if isinstance(form, ast.JoinedStr) else [form]
    return "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))


def log_calls() -> Iterator[tuple[str, str, set[str], bool]]:
    """Each: where it is, the form of its message, its keywords, whether there are more of them."""
    for name, nodes in MODULES.items():
        for node in nodes:
            if isinstance(node, ast.Call) and is_log(node.func):
                keywords = {keyword.arg for keyword in node.keywords}
                place = f"{name}, line {node.lineno}"
                form = text_of(node.args[0])
                yield place, form, {each for each in keywords if each}, None in keywords


class LogCallTests(SynchronousTestCase):
    """What the calls name."""

    def test_there_are_some(self) -> None:
        """The search finds calls of every kind, and every one has words of its own."""
        calls = list(log_calls())
        self.assertGreater(len(calls), 60)
        for place, form, _, _ in calls:
            self.assertRegex(form, r"\w", place)

    def test_names_are_known(self) -> None:
        """A field has a name that is listed, so that one thing has one name."""
        known = documented() | EXPANDED
        for place, form, keywords, _ in log_calls():
            names = {name for name in keywords if name == "log_id" or not name.startswith("log_")}
            self.assertEqual((names | set(_PLACEHOLDER.findall(form))) - known, set(), place)

    def test_nothing_is_missing(self) -> None:
        """What a message names, it is given."""
        for place, form, keywords, more in log_calls():
            if not more:
                self.assertEqual(set(_PLACEHOLDER.findall(form)) - keywords, set(), place)

    def test_things_have_fields(self) -> None:
        """A message that speaks of a command, a phone, a ban or a clock has fields for it."""
        needed = (
            (r"^\{command\}|a bot failed|\ba command\b", {"command"}),
            (r"\bthe phone's clock\b", {"peer"}),
            (r"\bthe phone's clock\b", {"skew_seconds"}),
            (r"^banned\b", {"network", "until", "reason"}),
            (r"\{bot", {"bot"}),
            (r"\bthis name\b|messages that waited|what waited cannot", {"key"}),
        )
        for place, form, keywords, more in log_calls():
            for words, names in needed:
                if re.search(words, form) and not more:
                    self.assertLessEqual(names, keywords, place)

    def test_whatever_is_named_is_a_field(self) -> None:
        """Of whatever type a value is, the JSON line has it."""
        for place, form, _, _ in log_calls():
            named = set(_PLACEHOLDER.findall(form))
            event: dict[str, Any] = dict.fromkeys(named, ("any", object()))
            event |= {"log_format": form, "log_time": 0.0, "log_level": LogLevel.info}
            self.assertLessEqual(named, set(json.loads(json_line(event))), place)

    def test_what_phones_give(self) -> None:
        """A phone's key, a connection and a command's run use the names that are listed."""
        from domaeka.bots.runs import ids
        from domaeka.gateway.peer import Peer

        peer = Peer(7, "192.0.2.1", 0.0)
        peer.key = key = DeviceKey("bot", "device")
        names = {*ids(make_chat("x"), FakeOrigin()), *peer.log_fields}
        self.assertEqual(names, {"connection", "address", "bot", "device", "room", "log_id"})
        self.assertLessEqual(names, documented())
        event = {"log_format": "{peer} and {key}", "peer": peer, "key": key}
        line = json.loads(json_line(event))
        self.assertEqual((line["connection"], line["bot"], line["device"]), (7, "bot", "device"))
        self.assertNotIn("peer", line)


class _Expanded:
    """What gives its fields."""

    def __init__(self) -> None:
        self.log_fields = {"connection": 7}
