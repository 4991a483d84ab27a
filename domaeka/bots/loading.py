"""Bots from C{MODULE:ATTRIBUTE}."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import reduce
from importlib import import_module, invalidate_caches
from pathlib import Path
from sysconfig import get_paths
from types import ModuleType

from domaeka.bots.api import Bot
from domaeka.errors import ConfigError


def load_bots(places: Iterable[str]) -> list[Bot]:
    """
    Import bots.  One that is named twice is loaded once.

    @param places: each C{MODULE:ATTRIBUTE}.
    @raise ConfigError: one line that says which cannot be loaded, and why.
    """
    return list(dict.fromkeys(_load(place) for place in places))


def reload_bots(places: Iterable[str], use: Callable[[list[Bot]], object]) -> None:
    """
    Import bots anew, with the modules of their packages; for a bot in a single file: with the
    single files beside it.

    @param places: each C{MODULE:ATTRIBUTE}.
    @param use: takes the bots.
    @raise ConfigError: as of L{load_bots}.  Whatever is raised, C{use} being no exception, what
        was imported before is as it was.
    """
    wanted = tuple(places)
    before = {name: sys.modules[name] for name in _own_modules(wanted)}
    for name in before:
        del sys.modules[name]
    others = set(sys.modules)
    invalidate_caches()
    try:
        use(load_bots(wanted))
    except BaseException:
        for name in set(_own_modules(wanted)) - others:
            del sys.modules[name]
        sys.modules.update(before)
        raise


def bot_files(places: Iterable[str]) -> dict[str, tuple[int, int]]:
    """What tells the files that L{reload_bots} reads from others, by path: time and length."""
    files = {}
    for name in _own_modules(tuple(places)):
        path = _file_of(sys.modules[name])
        with contextlib.suppress(OSError):
            status = path.stat()
            files[str(path)] = (status.st_mtime_ns, status.st_size)
    return files


def _own_modules(places: Iterable[str]) -> list[str]:
    """The names of what is imported of the bots."""
    tops = {place.partition(":")[0].partition(".")[0] for place in places} - {"domaeka"}
    libraries = {Path(path) for path in get_paths().values()}
    beside = {
        _file_of(module).parent
        for name in tops
        if (module := sys.modules.get(name)) is not None and _is_single_file(module)
    } - libraries
    return [
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in tops
        or (
            beside
            and name != "__main__"
            and "." not in name
            and _is_single_file(module)
            and _file_of(module).parent in beside
        )
    ]


def _is_single_file(module: ModuleType) -> bool:
    return not hasattr(module, "__path__") and bool(getattr(module, "__file__", None))


def _file_of(module: ModuleType) -> Path:
    return Path(getattr(module, "__file__", None) or "").absolute()


def _load(place: str) -> Bot:
    module_name, _, attribute = place.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"bots.load: {place!r:.100} is not MODULE:ATTRIBUTE")
    try:
        module = import_module(module_name)
    # Whatever a module does while it is imported, even sys.exit(), is said in a line.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"bots.load: {place}: {_line(error)}") from error
    try:
        found = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise ConfigError(f"bots.load: {place}: {module_name} has no {attribute}") from None
    if not isinstance(found, Bot):
        raise ConfigError(
            f"bots.load: {place}: not a domaeka.Bot, but {type(found).__name__}"
        ) from None
    return found


def _line(error: BaseException) -> str:
    """An error in one line, with the place in the bot's code where it happened."""
    text = " ".join(str(error).split())[:300]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {text}"  # it says where by itself
    return f"{type(error).__name__}: {text}{where}"
