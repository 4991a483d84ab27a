"""Bots from C{MODULE:ATTRIBUTE}."""

import sys
import traceback
from collections.abc import Iterable
from functools import reduce
from importlib import import_module, invalidate_caches

from domaeka.bots.api import Bot
from domaeka.errors import ConfigError


def load_bots(places: Iterable[str]) -> list[Bot]:
    """
    Import bots.  One that is named twice is loaded once.

    @param places: each C{MODULE:ATTRIBUTE}.
    @raise ConfigError: one line that says which cannot be loaded, and why.
    """
    return list(dict.fromkeys(_load(place) for place in places))


def reload_bots(places: Iterable[str]) -> list[Bot]:
    """
    Import bots anew, with the modules beside them in their packages.

    @param places: each C{MODULE:ATTRIBUTE}.
    @raise ConfigError: as of L{load_bots}; what was imported before is as it was.
    """
    wanted = tuple(places)
    packages = {place.partition(":")[0].partition(".")[0] for place in wanted} - {"domaeka"}
    before = {
        name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages
    }
    for name in before:
        del sys.modules[name]
    invalidate_caches()
    try:
        return load_bots(wanted)
    except ConfigError:
        for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
            del sys.modules[name]
        sys.modules.update(before)
        raise


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
