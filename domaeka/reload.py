"""
What reading the settings again may change in a server that runs.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from domaeka.config import Settings, setting_types

#: What cannot change while the server runs: whole sections, and single keys.
_FIXED: Final = frozenset({"http", "tls"})
_FIXED_KEYS: Final = frozenset(
    {
        "server.port",
        "server.interface",
        "server.endpoints",
        *(key for key in setting_types() if key.startswith("socket.")),
        "queue.max_messages",
        "queue.max_bytes",
        "queue.total_bytes",
        "storage.url",
        "storage.chat_log",
    }
) - {"socket.linger_seconds"}


class ReloadReport(msgspec.Struct):
    """
    What reading the settings again came to.

    @ivar changed: keys that have other values now; C{secrets}, C{certificates} or C{bots} where
        those are not as they were.
    @ivar restart: keys that will have, once the server is started again.
    """

    changed: list[str]
    restart: list[str]


def compare(old: Settings, wanted: Settings) -> tuple[Settings, ReloadReport]:
    """
    Find what is other than it was.

    @return: C{wanted}, but for what cannot change while the server runs; and what differs.
    """
    changed = {key for key in setting_types() if _setting(wanted, key) != _setting(old, key)}
    fixed = {key for key in changed if key in _FIXED_KEYS or key.partition(".")[0] in _FIXED}
    return _kept(wanted, old, fixed), ReloadReport(sorted(changed - fixed), sorted(fixed))


def _setting(settings: Settings, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


def _kept(wanted: Settings, old: Settings, keys: Iterable[str]) -> Settings:
    """C{wanted}, but with the values that C{keys} have in C{old}."""
    for key in keys:
        section, _, name = key.partition(".")
        part = msgspec.structs.replace(getattr(wanted, section), **{name: _setting(old, key)})
        wanted = msgspec.structs.replace(wanted, **{section: part})
    return wanted
