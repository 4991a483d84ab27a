"""
The plan of the house: who may import whom.

This table is the only place where it stands; docs/design.md explains it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "domaeka"

#: Floors, and the steps of each, lowest first.  What stands on a step (a module, or a folder of
#: them) may import what stands on a lower one, and what lies in its own folder.  Neighbours on a
#: step never import each other.
HOUSE: tuple[tuple[int, str], ...] = (
    (0, "errors"),
    (0, "toml"),
    (0, "config"),
    (1, "wire"),
    (1, "messages"),
    (1, "phonewire policies reload settings_docs state"),
    (1, "metrics"),
    (2, "interfaces logs"),
    (3, "gateway bots store"),
    (4, "client web testing"),
    (5, "startup"),
    (5, "server"),
    (5, "tap cli"),
)
STEPS = {name: step for step, (_, names) in enumerate(HOUSE) for name in names.split()}

#: The modules that may ask for the global reactor, or have one run.
REACTOR_USERS = {"tap", "cli.phone"}
#: Longest module, in lines.
MAX_LINES = 600


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name below it; folders by their own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


#: All that stands in each module.
MODULES = {name: list(ast.walk(tree)) for name, tree in modules().items()}


def imports(nodes: list[ast.AST]) -> Iterator[str]:
    """Every name that a module imports, wherever in it, with its whole path."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import says where from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: str) -> str:
    """The module or folder just below the package that C{path} leads to."""
    return path.split(".")[0]


class FloorsTests(SynchronousTestCase):
    """Imports go down."""

    def test_everything_has_its_place(self) -> None:
        """Each module stands on a step of the table."""
        self.assertEqual({room(name) for name in MODULES if name} - STEPS.keys(), set())

    def test_imports_go_down(self) -> None:
        """Nobody imports from above, nor from a neighbour."""
        for name, nodes in MODULES.items():
            if not name:
                continue  # the package itself names what bot authors import, on demand
            for path in imports(nodes):
                package, _, rest = path.partition(".")
                if package != "domaeka" or room(rest) not in STEPS:
                    continue  # from outside, or the version
                here, there = room(name), room(rest)
                allowed = here == there or STEPS[there] < STEPS[here]
                self.assertTrue(allowed, f"{name} imports {rest}")

    def test_shipped_code_stands_alone(self) -> None:
        """What is installed imports neither tests nor benchmarks."""
        for name, nodes in MODULES.items():
            outside = {path.split(".")[0] for path in imports(nodes)} & {"tests", "benchmarks"}
            self.assertEqual(outside, set(), name)

    def test_rules_know_no_twisted(self) -> None:
        """Floors 0 and 1 decide without I/O."""
        low = {name for floor, names in HOUSE if floor < 2 for name in names.split()}
        for name, nodes in MODULES.items():
            if room(name) in low:
                foreign = {path.split(".")[0] for path in imports(nodes)} & {"twisted", "zope"}
                self.assertEqual(foreign, set(), name)


class TimeTests(SynchronousTestCase):
    """Time, and the reactor, are handed in."""

    def test_reactor(self) -> None:
        """Only the doors ask for the global reactor."""
        for name, nodes in MODULES.items():
            asked = {"twisted.internet.reactor", "twisted.internet.task.react"} & set(
                imports(nodes)
            )
            runs = any(isinstance(node, ast.Attribute) and node.attr == "react" for node in nodes)
            if asked or runs:
                self.assertIn(name, REACTOR_USERS)

    def test_importing_installs_no_reactor(self) -> None:
        """To import any module leaves the choice of a reactor open."""
        names = [f"domaeka.{name}" for name in MODULES if name and "migrations" not in name]
        lines = [*(f"import {name}" for name in names), "import sys"]
        lines.append("sys.exit('twisted.internet.reactor' in sys.modules)")
        run = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((run.returncode, run.stderr), (0, ""))

    def test_nobody_looks_at_the_clock(self) -> None:
        """Nobody reads the time but by what was handed in."""
        for name, nodes in MODULES.items():
            self.assertNotIn("time", {path.split(".")[0] for path in imports(nodes)}, name)
            for node in nodes:
                if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today"):
                    asked = isinstance(node.value, ast.Name) and node.value.id in (
                        "datetime",
                        "date",
                    )
                    self.assertFalse(asked, f"{name}, line {node.lineno}")


class SizeTests(SynchronousTestCase):
    """Modules can be read at one sitting."""

    def test_length(self) -> None:
        """No module is longer than 600 lines."""
        for folder in ("domaeka", "twisted", "tests", "benchmarks"):
            for path in (ROOT / folder).rglob("*.py"):
                lines = len(path.read_text("utf-8").splitlines())
                self.assertLessEqual(lines, MAX_LINES, path.relative_to(ROOT))
