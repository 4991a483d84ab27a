"""Bots from C{MODULE:ATTRIBUTE}: imported, and imported anew where their files have changed."""

import ast
import contextlib
import os
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from hashlib import blake2b
from importlib import import_module, invalidate_caches
from importlib.util import find_spec, resolve_name
from itertools import islice
from pathlib import Path
from sysconfig import get_paths
from types import ModuleType
from typing import Final, NamedTuple

from twisted.logger import Logger

from domaeka.bots.api import Bot
from domaeka.clock import monotonic
from domaeka.errors import ConfigError

#: Most files that are remembered without having been imported: others count as changed at the
#: first reload after their import.  Source: a package has hundreds at most.
MAX_FILES: Final = 10_000
#: Modules and functions that import modules which the text of the code does not name.
_IMPORTERS: Final = frozenset({"importlib", "pkgutil", "runpy", "__import__", "import_module"})
_LIBRARIES: Final = {
    Path(get_paths()[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
}
#: An import that takes longer is logged, in seconds.
SLOW_IMPORT_SECONDS: Final = 3.0
_PACKAGE: Final = Path(__file__).resolve().parent.parent

_log = Logger()


class Reloaded(NamedTuple):
    """The bots, as C{MODULE:ATTRIBUTE}, that were imported anew, and the others."""

    anew: tuple[str, ...]
    left: tuple[str, ...]


# The state of bots' modules in sys.modules: one for the process, like that.
_bot_tops: Final[set[str]] = set()  # packages and modules of all bots so far
_file_digests: Final[dict[Path, bytes]] = {}  # files, as they were imported or would have been


def look_here() -> None:
    """
    Have bots be found in the working directory, as with C{python -m}, unless all may write to it:
    then anybody can have put a module there, under the name of any other.
    """
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path and not _all_may_write(here):
        sys.path.insert(0, here)


def _all_may_write(directory: str) -> bool:
    return bool(os.stat(directory).st_mode & stat.S_IWOTH)


def load_bots(places: Iterable[str]) -> list[Bot]:
    """
    Import bots.  A bot that is named twice is loaded once.

    @param places: each C{MODULE:ATTRIBUTE}.
    @raise ConfigError: one line that says which cannot be loaded, and why.
    """
    wanted = tuple(places)
    _bot_tops.update(_tops(wanted))
    before = _own_modules()
    digests = _digests(before)  # a file that changes during its import has changed
    bots = [_load(place) for place in wanted]
    for module in before.values():
        digests.pop(_file_of(module), None)
    _remember(digests)
    return list(dict.fromkeys(bots))


def reload_bots(places: Iterable[str], use: Callable[[list[Bot]], object]) -> Reloaded:
    """
    Import anew the modules whose content has changed, and those that depend on them, among all that
    lie beside those of the bots or below, but for installed libraries.  A bot that was changed in
    one of its modules is made anew with all of them.

    @param places: each C{MODULE:ATTRIBUTE}.
    @param use: takes the bots, those that were left among them.
    @raise ConfigError: as of L{load_bots}.  After any error, also one of C{use}, the modules that
        were imported before are as they were.
    """
    wanted = tuple(places)
    _bot_tops.update(_tops(wanted))
    own = _own_modules()
    digests = _digests(own)
    old = {place: bot for place in wanted if (bot := _find(place)) is not None}
    stale = _stale(own, digests, old)
    before = set(sys.modules)
    children = [
        (package, child, name)
        for name, module in own.items()
        if (package := sys.modules.get(name.rpartition(".")[0])) is not None
        and vars(package).get(child := name.rpartition(".")[2]) is module
    ]
    registered = {bot: bot.handlers.snapshot() for bot in _bots(own, old)}
    for name in stale:
        del sys.modules[name]
        # To Python a file is unchanged if its time, in seconds, and its length are.
        cached = getattr(own[name].__spec__, "cached", None)
        if cached is not None and digests.get(_file_of(own[name])) != _known_digest(own[name]):
            with contextlib.suppress(OSError):
                Path(cached).unlink()
    for package, child, name in children:
        if name in stale:
            delattr(package, child)  # else it is found there
    invalidate_caches()
    try:
        # A package has its modules as attributes, those that were left too.
        for name in sorted(own.keys() - stale):
            parent, _, child = name.rpartition(".")
            if parent in stale:
                setattr(_import(parent, parent), child, own[name])
        bots = {place: _load(place) for place in wanted}
        use(list(dict.fromkeys(bots.values())))
    except BaseException:
        for name in _own_modules().keys() - before:
            del sys.modules[name]
        sys.modules.update(own)
        for package, child, name in children:
            setattr(package, child, own[name])
        for bot, functions in registered.items():
            bot.handlers.restore(functions)
        raise
    _remember(digests)
    left = tuple(place for place in bots if bots[place] is old.get(place))
    return Reloaded(tuple(place for place in bots if place not in left), left)


class Changes:
    """Notices that files of bots have changed since they were loaded, or since it last looked."""

    def __init__(self) -> None:
        """Look for the first time at the next call of L{noticed}."""
        self._marks: dict[Path, tuple[int, int]] | None = None
        self._digests: dict[Path, bytes] = {}

    def noticed(self) -> bool:
        """
        Look at the files: at their content only where a time or a size is another one.

        @return: True if one has another content, is new, or is gone.
        """
        own = _own_modules()
        marks = {}
        for path in _files(own):
            with contextlib.suppress(OSError):
                found = path.stat()
                marks[path] = found.st_mtime_ns, found.st_size
        if marks == self._marks:
            return False
        # Read behind the times: a file that changes meanwhile is seen the next time.
        digests = _digests(own)
        before = self._digests
        if self._marks is None:
            before = {path: _file_digests.get(path, digests[path]) for path in digests}
        self._marks = marks
        self._digests = digests
        return digests != before


# Changes


def _stale(
    own: dict[str, ModuleType], digests: dict[Path, bytes], bots: dict[str, Bot]
) -> set[str]:
    """The names of all modules that are to be imported anew."""
    changed = {
        name
        for name, module in own.items()
        if digests.get(_file_of(module)) != _known_digest(module)
    }
    appeared = digests.keys() - _file_digests.keys()
    if not changed and not appeared:
        return set()
    # By name: modules may be there now that could not be imported before.
    new = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for root in _roots()
        for path in appeared
        if path.is_relative_to(root)
    }
    needs: dict[str, set[str]] = {}
    named: set[str] = {place.partition(":")[0] for place in bots}
    dynamic: set[str] = set()  # modules that may import what they do not name
    for name, module in own.items():
        try:
            imports = _Imports(module)
        except (OSError, SyntaxError, ValueError):
            continue  # it has changed: its import will raise the error
        needed = {full if full in own else base for base, full in imports.names}
        # A package itself is imported before its modules.
        needed |= changed & {name[:end] for end, char in enumerate(name) if char == "."}
        named |= needed - {name}
        if name in changed:
            continue
        needs[name] = needed
        if imports.dynamic:
            dynamic.add(name)
        if any(full in new and full not in sys.modules for _, full in imports.names):
            changed.add(name)
            named.add(name)
    if changed - named:
        # A module has imported it without naming it, or did so before it was changed itself.
        changed |= dynamic or (own.keys() if changed.isdisjoint(named) else set())
    stale = set(changed)
    while True:
        more = {name for name, needed in needs.items() if needed & stale}
        for bot, holders in _bots(own, bots).items():
            # A module that runs again would register its commands again with a bot that was left.
            if any(each.module in stale for each in bot.handlers.all()):
                more |= holders
        if more <= stale:
            return stale
        stale |= more


class _Imports:
    """
    The modules that a module may import, at once or later, by its text.

    @ivar names: for each name the module that it is looked up in, and the module it may be itself.
    @ivar dynamic: True if it may import modules that it does not name.
    """

    def __init__(self, module: ModuleType) -> None:
        self.names: set[tuple[str, str]] = set()
        self.dynamic = False
        package = module.__name__ if hasattr(module, "__path__") else (module.__package__ or "")
        for node in ast.walk(ast.parse(_file_of(module).read_bytes())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    parts = alias.name.split(".")
                    # C{import a.b} gives the name C{a}.
                    for end in range(len(parts) if alias.asname else 1, len(parts) + 1):
                        self._add(".".join(parts[:end]))
            elif isinstance(node, ast.ImportFrom):
                base = _absolute("." * node.level + (node.module or ""), package)
                self._add(base, *(alias.name for alias in node.names))
            elif isinstance(node, ast.Name):
                self.dynamic |= node.id in _IMPORTERS
            elif isinstance(node, ast.Call) and node.args:
                function, first = node.func, node.args[0]
                called = getattr(function, "attr", getattr(function, "id", None))
                if (
                    called in ("import_module", "__import__")
                    and isinstance(first, ast.Constant)
                    and isinstance(first.value, str)
                ):
                    self._add(_absolute(first.value, package))

    def _add(self, base: str, *names: str) -> None:
        self.names.update((base, f"{base}.{name}") for name in names or ())
        if not names:
            self.names.add((base, base))


def _absolute(name: str, package: str) -> str:
    try:
        return resolve_name(name, package)
    except ImportError:  # beyond its package: it would fail
        return name


def _bots(own: dict[str, ModuleType], bots: dict[str, Bot]) -> dict[Bot, set[str]]:
    """All bots, and the modules that hold each."""
    found: dict[Bot, set[str]] = {}
    for place, bot in bots.items():
        found.setdefault(bot, set()).add(place.partition(":")[0])
    for name, module in own.items():
        for value in list(vars(module).values()):
            if isinstance(value, Bot):
                found.setdefault(value, set()).add(name)
    return {bot: names & own.keys() for bot, names in found.items()}


# Modules and files


def _tops(places: Iterable[str]) -> set[str]:
    return {place.partition(":")[0].partition(".")[0] for place in places} - {"", "domaeka"}


def _homes(top: str) -> list[Path]:
    """The file of a module, or the directories of a package, that need not be imported yet."""
    try:
        spec = getattr(sys.modules[top], "__spec__", None) if top in sys.modules else find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(place).absolute() for place in spec.submodule_search_locations]
    return [Path(spec.origin).absolute()] if spec.has_location and spec.origin else []


def _roots() -> set[Path]:
    """The directories in which bots lie, but for those of libraries."""
    found = {home.parent for top in _bot_tops for home in _homes(top)}
    return {root for root in found if root.resolve() not in _LIBRARIES}


def _own_modules() -> dict[str, ModuleType]:
    """The imported modules of the bots, and from beside them, that are files of Python."""
    roots = _roots()
    tops = {name.partition(".")[0] for name in list(sys.modules)} - {"domaeka", "__main__"}
    own = {
        top
        for top in tops
        if top in _bot_tops or any(home.parent in roots for home in (_homes(top) if roots else ()))
    }
    return {
        name: module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in own
        and isinstance(module, ModuleType)
        and _file_of(module).suffix == ".py"
    }


def _files(own: dict[str, ModuleType]) -> set[Path]:
    """Each file that was imported, or may be later."""
    roots = _roots()

    def files() -> Iterator[Path]:
        for root in roots:
            yield from root.glob("*.py")
        for top in {name.partition(".")[0] for name in own} | _bot_tops:
            for home in _homes(top):
                if home.is_dir():
                    yield from home.rglob("*.py")

    return {*map(_file_of, own.values()), *islice(files(), MAX_FILES)}


def _digests(own: dict[str, ModuleType]) -> dict[Path, bytes]:
    """The content of each of these files."""
    found: dict[Path, bytes] = {}
    for path in _files(own):
        with contextlib.suppress(OSError):
            if path.is_file():  # reading from a pipe would wait
                found[path] = blake2b(path.read_bytes()).digest()
    return found


def _known_digest(module: ModuleType) -> bytes | None:
    return _file_digests.get(_file_of(module), b"")


def _remember(digests: dict[Path, bytes]) -> None:
    """Keep C{digests} as those of the imported files; a file that they lack is read now."""
    _file_digests.update(digests)
    own = _own_modules()
    missing = {name: own[name] for name in own if _file_of(own[name]) not in _file_digests}
    if missing:
        for path, digest in _digests(missing).items():
            _file_digests.setdefault(path, digest)


def _file_of(module: ModuleType) -> Path:
    return Path(getattr(module, "__file__", None) or "").absolute()


# A single bot


def _find(place: str) -> Bot | None:
    """The bot, if it is imported."""
    module_name, _, attribute = place.partition(":")
    try:
        found = reduce(getattr, attribute.split("."), sys.modules[module_name])
    except (KeyError, AttributeError):
        return None
    return found if isinstance(found, Bot) else None


def _load(place: str) -> Bot:
    module_name, _, attribute = place.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"bots.load: {place!r:.100} is not MODULE:ATTRIBUTE")
    module = _import(module_name, place)
    try:
        found = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise ConfigError(f"bots.load: {place}: {module_name} has no {attribute}") from None
    if not isinstance(found, Bot):
        raise ConfigError(
            f"bots.load: {place}: not a domaeka.Bot, but {type(found).__name__}"
        ) from None
    return found


def _import(name: str, place: str) -> ModuleType:
    began = monotonic()
    try:
        module = import_module(name)
        took = monotonic() - began
        if took > SLOW_IMPORT_SECONDS:
            _log.warn(
                "{what} took {held_seconds:.1f} s to import, in which nothing else went on: put "
                "what takes long into on_start ({place})",
                what=place,
                held_seconds=took,
                place=_file_of(module),
            )
        return module
    # Any error during an import, even sys.exit(), becomes one line.
    except (Exception, SystemExit) as error:
        why = _line(error)
        if isinstance(error, ModuleNotFoundError) and _all_may_write(os.getcwd()):
            why += f"; it is not looked for in {os.getcwd()}, where all may write"
        raise ConfigError(f"bots.load: {place}: {why}") from error


def _line(error: BaseException) -> str:
    """An error in one line, with the place in the author's code where it happened."""
    said: object = error
    place = getattr(error, "place", "")
    if isinstance(error, SyntaxError) and error.filename:
        said, place = error.msg, f"{error.filename}:{error.lineno}"
    text = f"{type(error).__name__}: {' '.join(str(said).split())[:500]}"
    if not place:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "importlib" not in frame.filename
            and not Path(frame.filename).resolve().is_relative_to(_PACKAGE)
        ]
        # The author's own rather than a library's.
        own = [frame for frame in frames if not _LIBRARIES & {*Path(frame.filename).parents}]
        if frames:
            frame = (own or frames)[-1]
            place = f"{frame.filename}:{frame.lineno}"
    return f"{text} ({place})" if place else text
