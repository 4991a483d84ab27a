"""The machine of a measurement: its cores, and facts that explain the figures."""

import os
import platform
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

_ROOT: Final = Path(__file__).parent.parent
#: Libraries on the path of a message, beside Python.
_LIBRARIES: Final = ("twisted", "msgspec", "sqlalchemy")


class Cores(NamedTuple):
    """The cores of the servers and of the generator."""

    server: int
    generator: int


def _siblings(core: int) -> set[int]:
    """Hardware threads of the same core, C{core} included."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    found = {core}
    with suppress(OSError, ValueError):
        for piece in path.read_text().strip().split(","):
            first, _, last = piece.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def choose_cores() -> Cores | None:
    """@return: two separate cores, if possible with one thread each; L{None}: there are none."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    server, *others = sorted(os.sched_getaffinity(0))
    apart = [core for core in others if core not in _siblings(server)]
    return Cores(server, (apart or others)[0]) if others else None


@contextmanager
def kept_on(core: int | None) -> Iterator[None]:
    """Keep processes that are started meanwhile on a core; L{None}: on any core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def is_optimized() -> bool:
    """True if this Python was compiled with profile-guided optimization (PGO)."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = sysconfig.get_config_var("PY_CORE_CFLAGS") or ""
    return "--enable-optimizations" in arguments or "-fprofile-use" in flags


def _first_line(*command: str) -> str:
    """First line of a command's output; empty: it cannot be run."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=_ROOT)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.partition("\n")[0].strip()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def load() -> str:
    """The load averages of the last 1, 5 and 15 minutes."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def facts(cores: Cores | None) -> dict[str, str]:
    """Facts for the head of the table, by name."""
    lto = "--with-lto" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    commit = _first_line("git", "describe", "--always", "--dirty") or "not a git checkout"
    if cores is None:
        pinned = "nothing is pinned: there is but one core"
    else:
        pinned = f"servers on core {cores.server}, generator on core {cores.generator}"
        if cores.generator in _siblings(cores.server):
            pinned += " (two threads of one core: each slows the other down)"
    return {
        "commit": commit,
        "python": f"{platform.python_version()}, {platform.python_compiler()}, "
        f"{'with' if is_optimized() else 'WITHOUT'} PGO, {'with' if lto else 'without'} LTO",
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
        "C compiler": _first_line("gcc", "--version"),
        "Node": _first_line("node", "--version") or "none",
        "kernel": f"{platform.system()} {platform.release()}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "cores": pinned,
    }
