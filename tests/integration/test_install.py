"""Installs the project as users do, and looks at what they get."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "etc/phone/bridge.js"
#: What a checkout has beside the project itself.
RUBBISH = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "_trial_temp*", "dropin.cache"
)
#: Longest time for one step of an installation, in seconds.
PATIENCE = 300

#: Says whether everything that is not a module is there, and that it is not the checkout's.
LOOK = """
import pathlib, sys
import domaeka, domaeka.cli, domaeka.store, domaeka.tap
home = pathlib.Path(domaeka.__file__).parent
for name in ("py.typed", "bridge.js", "store/migrations/env.py", "store/migrations/versions"):
    assert (home / name).exists(), name
from domaeka.phone_script import ScriptServer, fill_script
assert b'BOT_NAME: "shop"' in fill_script("shop", "key", "salt", [ScriptServer("a", 1)])
assert any((home / "store/migrations/versions").glob("*.py"))
print(home)
"""


class Installation:
    """A fresh virtual environment that borrows our dependencies, but not our domaeka."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.source = base / "source"
        shutil.copytree(ROOT, self.source, ignore=RUBBISH)
        venv.create(base / "venv", with_pip=False, symlinks=True)
        self.python = base / "venv/bin/python"
        # A directory that a .pth names is searched last, and its own .pth files are not read.
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.library / "borrowed.pth").write_text("\n".join(sorted(paths)))

    @property
    def library(self) -> Path:
        """Where packages go."""
        (found,) = (self.base / "venv/lib").glob("python*/site-packages")
        return found

    def run(self, *command: str | Path) -> str:
        """Run the environment's Python, outside of the source, and give its output."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTHON", "PIP_", "DOMAEKA_"))
        }
        run = subprocess.run(
            [self.python, *command],
            cwd=self.base,
            env={**environment, "HOME": str(self.base)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if run.returncode:
            raise AssertionError(f"{command}: {run.returncode}\n{run.stdout}{run.stderr}")
        return run.stdout

    def install(self, *what: str | Path) -> None:
        """Install without looking anything up."""
        self.run(
            "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
            "--no-deps", "--no-build-isolation", "--ignore-installed", *what,
        )  # fmt: skip

    def build(self, kind: str, source: Path) -> Path:
        """Have a distribution built."""
        into = self.base / kind
        into.mkdir()
        code = (
            "import os, sys, setuptools.build_meta as backend; os.chdir(sys.argv[1]); "
            f"backend.build_{kind}(sys.argv[2])"
        )
        self.run("-c", code, source, into)
        (found,) = into.iterdir()
        return found


def plain(installation: Installation) -> Installation:
    """C{pip install .}"""
    installation.install(installation.source)
    return installation


def editable(installation: Installation) -> Installation:
    """C{pip install --editable .}"""
    installation.install("--editable", installation.source)
    return installation


def wheel(installation: Installation) -> Installation:
    """A wheel, made from nothing but what the source distribution holds."""
    archive = installation.build("sdist", installation.source)
    unpacked = installation.base / "unpacked"
    shutil.unpack_archive(archive, unpacked)
    shutil.rmtree(installation.source)
    (source,) = unpacked.iterdir()
    installation.install(installation.build("wheel", source))
    return installation


Way: TypeAlias = Callable[[Installation], Installation]


@cache
def installed(way: Way) -> Installation:
    """One of each kind, in each of trial's workers."""
    base = Path(tempfile.mkdtemp(prefix="install-", dir=Path.cwd()))
    return way(Installation(base / way.__name__))


class InstallTests(SynchronousTestCase):
    """All ways to install it lead to the same."""

    def look(self, way: Way, home: str) -> None:
        """It is where it should be, whole, and both commands know it."""
        made = installed(way)
        self.assertEqual(made.run("-c", LOOK).strip(), str((made.base / home).resolve()))
        version = made.run(made.base / "venv/bin/domaeka", "--version")
        self.assertRegex(version, r"^domaeka \d+\.\d+")
        made.run(made.base / "venv/bin/domaeka", "init", "--force")
        script = made.run(made.base / "venv/bin/domaeka", "phone-script", "--bot", "가게봇")
        self.assertIn('BOT_NAME: "가게봇"', script)
        self.assertEqual(script.splitlines()[-1], SCRIPT.read_text("utf-8").splitlines()[-1])
        twistd = "from twisted.scripts.twistd import run; run()"
        self.assertRegex(made.run("-c", twistd, "--help"), r"(?m)^\s+domaeka\s+A gateway for")
        self.assertIn("--http-port", made.run("-c", twistd, "domaeka", "--help"))

    def library(self) -> str:
        """Where packages go in an environment."""
        return f"venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/domaeka"

    def test_plain(self) -> None:
        """C{pip install .}"""
        self.look(plain, self.library())

    def test_editable(self) -> None:
        """C{pip install --editable .}: what is edited is what runs."""
        self.look(editable, "source/domaeka")

    def test_wheel(self) -> None:
        """A wheel, built from the source distribution."""
        self.look(wheel, self.library())

    def test_contents_of_the_wheel(self) -> None:
        """It holds every file of the package, the plugin, and nothing else."""
        (path,) = (installed(wheel).base / "wheel").iterdir()
        names = {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}
        wanted = {
            str(file.relative_to(ROOT))
            for file in (ROOT / "domaeka").rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        self.assertEqual(names, wanted | {"twisted/plugins/domaeka_plugin.py"})

    def test_contents_of_the_source(self) -> None:
        """It holds what is needed to test it, the documents and the license."""
        (path,) = (installed(wheel).base / "sdist").iterdir()
        with tarfile.open(path) as tar:
            names = {name.partition("/")[2] for name in tar.getnames()}
        for name in (
            "LICENSE", "Makefile", "README.md", "README.ko.md", "CHANGELOG.md", "pyproject.toml",
            "setup.cfg", "docs/protocol.md", "etc/domaeka.service", "domaeka/py.typed",
            "tests/vectors/wire.jsonl", "tests/integration/test_install.py",
            "twisted/plugins/domaeka_plugin.py", "benchmarks/native/loadgen.c",
            "etc/phone/bridge.js", "domaeka/bridge.js",
        ):  # fmt: skip
            self.assertIn(name, names)
        odd = {name for name in names if name.endswith((".pyc", ".cache", ".db", ".pid"))}
        self.assertEqual(odd, set())
