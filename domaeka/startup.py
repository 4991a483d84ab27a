"""
What a server needs of its machine, looked at before it starts.
"""

import ctypes
import resource
from typing import Final

from domaeka.config import Settings
from domaeka.errors import ConfigError
from domaeka.gateway.registry import CLOSING_SHARE
from domaeka.web.server import MAX_CONNECTIONS

#: Open files beside those of connections: the store, the log, ports, and what bots open.
OTHER_FILES: Final = 100
#: Buffers from this size on are memory of their own, in bytes.  Source: glibc's first value.
MMAP_THRESHOLD: Final = 131_072
#: Source: malloc.h.
_M_MMAP_THRESHOLD: Final = -3


def allow_open_files(settings: Settings) -> None:
    """
    Raise the limit of open files to what C{settings} need, as far as the machine lets us.

    @raise ConfigError: it does not: one line that says what is missing.
    """
    connections = settings.server.max_connections
    needed = int(connections * (1 + CLOSING_SHARE)) + MAX_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError):
        raise ConfigError(
            f"server.max_connections: {connections} need {needed} open files, and there may be "
            f"{hard}: raise LimitNOFILE in systemd's unit, or ulimit -Hn"
        ) from None


def give_back_memory() -> None:
    """
    Have the C library keep no large buffers that were freed.  Its own way is to keep more and more
    of them: 100 lines of 1 MB that never end cost 75 MB for ever.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
