"""Reload: which settings may change in a server that runs."""

from collections.abc import Iterable
from typing import Final

import msgspec

from domaeka.config import Settings, setting, setting_types
from domaeka.schema import Reloaded

#: Settings that cannot change while the server runs: a whole section, and single keys.
_FIXED: Final = frozenset({"tls"})
_FIXED_KEYS: Final = frozenset(
    {
        "server.port",
        "server.interface",
        "server.endpoints",
        "http.port",
        "http.interface",
        *(key for key in setting_types() if key.startswith("socket.")),
        "queue.max_messages",
        "queue.max_bytes",
        "queue.total_bytes",
        "storage.url",
        "storage.chat_log",
        "storage.durable",
    }
) - {"socket.linger_seconds"}


def compare(old: Settings, wanted: Settings) -> tuple[Settings, Reloaded]:
    """
    Compare the settings in force with new ones.

    @return: C{wanted}, without what cannot change while the server runs; and what differs.
    """
    changed = {key for key in setting_types() if setting(wanted, key) != setting(old, key)}
    fixed = {key for key in changed if key in _FIXED_KEYS or key.partition(".")[0] in _FIXED}
    return _kept(wanted, old, fixed), Reloaded(sorted(changed - fixed), sorted(fixed))


def _kept(wanted: Settings, old: Settings, keys: Iterable[str]) -> Settings:
    """C{wanted}, but with the values that C{keys} have in C{old}."""
    for key in keys:
        section, _, name = key.partition(".")
        part = msgspec.structs.replace(getattr(wanted, section), **{name: setting(old, key)})
        wanted = msgspec.structs.replace(wanted, **{section: part})
    return wanted
