"""
The plan of the house: who may import whom.

This table is the only place where it stands; docs/design.md explains it.
"""

import ast
import shutil
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
    (0, "errors texts_ko"),
    (0, "toml validation"),
    (0, "config"),
    (1, "rates"),
    (1, "pools wire"),
    (1, "local_socket logfile policies settings_docs state tracebacks"),
    (1, "phone_script secrets"),
    (1, "schema"),
    (1, "health"),
    (1, "schema_chat"),
    (1, "metrics reload"),
    (2, "twisted_internals"),
    (2, "clock interfaces logs"),
    (3, "gateway bots store"),
    (4, "client web testing"),
    (5, "server"),
    (5, "tap cli"),
)
STEPS = {name: step for step, (_, names) in enumerate(HOUSE) for name in names.split()}

#: The same inside the gateway.
GATEWAY: tuple[str, ...] = (
    "peer serving",
    "views authentication",
    "doubts events held journal",
    "context",
    "pacing",
    "device",
    "joints",
    "flow",
    "conversation directory",
    "transport lifecycle",
)
GATEWAY_STEPS = {name: step for step, names in enumerate(GATEWAY) for name in names.split()}
#: What others may import of a folder beside its own name.
FACES: dict[str, set[str]] = {
    "gateway.conversation": set(),
    "gateway.directory": {"delivery"},
    "gateway.flow": {"read_scheduler", "throttle", "writer"},
    "gateway.lifecycle": {"drain", "migration", "migrations"},
    "gateway.transport": {"certificates", "connection", "endpoints", "ports"},
}

#: The modules that may ask for the global reactor, or have one run.
REACTOR_USERS = {"tap", "cli.chat", "cli.phone"}
#: Longest module, in lines.
MAX_LINES = 800


def modules(package: Path = PACKAGE) -> dict[str, ast.Module]:
    """Every module of the package by its name below it; folders by their own."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
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


def place_in_gateway(path: str) -> str:
    """The module or folder just below the gateway that C{path} leads to."""
    return path.split(".")[1]


def circles(package: Path) -> list[set[str]]:
    """The modules that lead back to themselves by their imports, those for types included."""
    trees = {name: list(ast.walk(tree)) for name, tree in modules(package).items() if name}
    graph: dict[str, set[str]] = {}
    for name, nodes in trees.items():
        graph[name] = set()
        for path in imports(nodes):
            place = path.removeprefix("domaeka.")
            while place and place not in trees:
                place = place.rpartition(".")[0]
            if place and path.startswith("domaeka.") and place != name:
                graph[name].add(place)
    # Who imports none of those that are left is in no circle, nor is whom none of them imports.
    while True:
        imported = set().union(*graph.values())
        out = {name for name, others in graph.items() if not others or name not in imported}
        if not out:
            return [set(graph)] if graph else []
        graph = {name: others - out for name, others in graph.items() if name not in out}


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

    def test_gateway_is_asked_by_its_faces(self) -> None:
        """The web and the commands know no live object of the gateway: its faces, and data."""
        faces = ("views", "directory", "lifecycle")
        for name, nodes in MODULES.items():
            if room(name) in ("web", "cli"):
                for path in imports(nodes):
                    package, _, rest = path.partition("domaeka.gateway.")
                    face, _, what = rest.partition(".")
                    asked = not package and bool(rest)
                    self.assertTrue(not asked or (face in faces and "." not in what), path)

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


class CircleTests(SynchronousTestCase):
    """No module leads back to itself, however long the way is."""

    def test_no_circle(self) -> None:
        """Imports for types count, and so do those inside functions, and inside folders."""
        self.assertEqual(circles(PACKAGE), [])

    def test_one_would_be_seen(self) -> None:
        """A type-only import is enough of a circle, inside a folder as well."""
        copy = Path(self.mktemp()) / "domaeka"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        low = copy / "gateway" / "device.py"
        planted = "from domaeka.gateway.directory.registry import Registry"
        low.write_text(f"{low.read_text('utf-8')}\nif TYPE_CHECKING:\n    {planted}\n", "utf-8")
        (found,) = circles(copy)
        self.assertLessEqual({"gateway.device", "gateway.directory.registry"}, found)


class GatewayTests(SynchronousTestCase):
    """The gateway has floors of its own."""

    def test_everything_has_its_place(self) -> None:
        """Each module and folder of it stands on a step."""
        inside = {place_in_gateway(name) for name in MODULES if name.startswith("gateway.")}
        self.assertEqual(inside, GATEWAY_STEPS.keys())

    def test_imports_go_down(self) -> None:
        """A part knows those below it, and no other."""
        for name, nodes in MODULES.items():
            if not name.startswith("gateway."):
                continue
            here = place_in_gateway(name)
            for path in imports(nodes):
                if path.startswith("domaeka.gateway."):
                    there = place_in_gateway(path.removeprefix("domaeka."))
                    allowed = here == there or GATEWAY_STEPS[there] < GATEWAY_STEPS[here]
                    self.assertTrue(allowed, f"{name} imports {path}")

    def test_folders_have_faces(self) -> None:
        """What is private to a folder is imported by nobody else."""
        for name, nodes in MODULES.items():
            for path in imports(nodes):
                place = path.removeprefix("domaeka.")
                folder = ".".join(place.split(".")[:2])
                faces = FACES.get(folder)
                if faces is None or name == folder or name.startswith(f"{folder}."):
                    continue
                module = place.removeprefix(folder).lstrip(".").split(".")[0]
                is_module = f"{folder}.{module}" in MODULES
                self.assertTrue(not is_module or module in faces, f"{name} imports {place}")


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
        """Nobody reads the time but by what was handed in; one knows a clock that never steps."""
        for name, nodes in MODULES.items():
            known = {path for path in imports(nodes) if path.split(".")[0] == "time"}
            self.assertEqual(known, {"time.monotonic"} if name == "clock" else set(), name)
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
        """No module is longer than 800 lines."""
        for folder in ("domaeka", "twisted", "tests", "benchmarks"):
            for path in (ROOT / folder).rglob("*.py"):
                lines = len(path.read_text("utf-8").splitlines())
                self.assertLessEqual(lines, MAX_LINES, path.relative_to(ROOT))
