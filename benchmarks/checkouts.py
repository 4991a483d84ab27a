"""Checkout of another revision of this project, for the time of a measurement."""

import configparser
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.servers import ROOT, BenchmarkError, Checkout


def _run(*command: str, cwd: Path = ROOT, **more: str) -> str:
    """@return: the output of a command.  @raise BenchmarkError: it failed; with its output."""
    try:
        run = subprocess.run(
            command, cwd=cwd, env={**os.environ, **more}, capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    except OSError as error:
        raise BenchmarkError(f"{command[0]}: {error.strerror}") from None
    return run.stdout.strip()


def _requirements(root: Path) -> set[str]:
    """Requirements of a checkout at run time."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(root / "setup.cfg", encoding="utf-8")
    text = parser.get("options", "install_requires", fallback="")
    return {line.strip() for line in text.splitlines() if line.strip()}


@contextmanager
def checked_out(revision: str) -> Iterator[tuple[str, Checkout]]:
    """
    A git worktree of a revision, removed afterwards.

    It runs from its own files with our Python, or with a venv of its own where its requirements
    differ from ours.

    @return: the commit's short name, and the checkout.
    @raise BenchmarkError: there is no such revision, or it cannot be used.
    """
    try:
        commit = _run("git", "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    except BenchmarkError as error:
        raise BenchmarkError(f"there is no revision {revision}: {error}") from None
    name = _run("git", "rev-parse", "--short", commit)
    with tempfile.TemporaryDirectory(prefix="domaeka-against-") as directory:
        root = Path(directory) / "tree"
        _run("git", "worktree", "add", "--quiet", "--detach", str(root), commit)
        try:
            python = sys.executable
            if _requirements(root) != _requirements(ROOT):
                print(f"{name} needs other packages: it gets a venv", file=sys.stderr)
                _run(sys.executable, "-m", "venv", f"{directory}/venv")
                python = f"{directory}/venv/bin/python"
                _run(python, "-m", "pip", "install", "--quiet", "--editable", str(root))
            question = "import domaeka, twisted.plugins; print(domaeka.__file__)"
            found = _run(python, "-c", question, cwd=root, PYTHONPATH=str(root))
            if not Path(found).resolve().is_relative_to(root.resolve()):
                raise BenchmarkError(f"{name} would run from {found}, not from its own files")
            yield name, Checkout(root, python)
        finally:
            _run("git", "worktree", "remove", "--force", str(root))
