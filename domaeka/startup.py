"""
What a server needs of its machine, looked at before it starts.
"""

import ctypes
import resource
import socket
from typing import Final

from twisted.internet.task import Clock

from domaeka.config import Settings
from domaeka.errors import ConfigError, StoreError
from domaeka.gateway.certificates import Certificates, files_of
from domaeka.gateway.endpoints import parse_endpoint
from domaeka.gateway.registry import CLOSING_SHARE
from domaeka.state import check_key, given_secrets
from domaeka.store.database import Database
from domaeka.web.room import MAX_CONNECTIONS

#: Open files beside those of connections: the store, the log, ports, and what bots open.
OTHER_FILES: Final = 100
#: Buffers from this size on are memory of their own, in bytes.  Source: glibc's first value.
MMAP_THRESHOLD: Final = 131_072
#: Source: malloc.h.
_M_MMAP_THRESHOLD: Final = -3


def check(settings: Settings) -> None:
    """
    Look at what nobody can tell from settings alone: secrets, files, addresses, what the machine
    lets us have.  Ports that are taken are not looked for: maybe by the server that runs.

    @raise ConfigError: which setting is wrong, and why.
    """
    for name, value in given_secrets(settings.auth).items():
        if name != "salt":
            check_key(f"auth.{name}", value, settings.auth.accept_published_key)
    allow_open_files(settings)
    for key, host in (
        ("server.interface", settings.server.interface),
        ("http.interface", settings.http.interface),
    ):
        try:
            socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"{key}: {host}: {why}") from None
    if settings.tls.certificate:
        Certificates(files_of(settings.tls))
    for endpoint in map(parse_endpoint, settings.server.endpoints):
        if endpoint.files is not None:
            Certificates(endpoint.files)
        # systemd hands its sockets over to the server only.
        if endpoint.port is None and not endpoint.inner.startswith("systemd:"):
            endpoint.made_by_twisted(Clock())
    if settings.storage.url:
        try:
            Database(settings.storage.url, Clock())
        except StoreError as error:
            raise ConfigError(str(error)) from None


def allow_open_files(settings: Settings) -> None:
    """
    Raise the limit of open files to what C{settings} need, as far as the machine lets us.

    @raise ConfigError: it does not: one line that says what is missing.
    """
    connections = settings.server.max_connections
    # Beside those that close there may be some of which a balancer has yet to say whose they are.
    proxied = any(text.startswith("haproxy:") for text in settings.server.endpoints)
    share = 1 + CLOSING_SHARE * (2 if proxied else 1)
    needed = int(connections * share) + MAX_CONNECTIONS + OTHER_FILES
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
