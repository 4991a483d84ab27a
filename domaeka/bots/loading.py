"""Bots from C{MODULE:ATTRIBUTE}."""

import traceback
from collections.abc import Iterable
from functools import reduce
from importlib import import_module

from domaeka.bots.api import Bot
from domaeka.errors import ConfigError


def load_bots(places: Iterable[str]) -> list[Bot]:
    """
    Import bots.  One that is named twice is loaded once.

    @param places: each C{MODULE:ATTRIBUTE}.
    @raise ConfigError: one line that says which cannot be loaded, and why.
    """
    return list(dict.fromkeys(_load(place) for place in places))


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
