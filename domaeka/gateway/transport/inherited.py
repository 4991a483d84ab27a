"""
Listening sockets that a service manager has handed over to this process, and that outlive it.

While no process accepts (during a stop, and until the next start), the kernel completes the
connections of phones, and keeps what they send.
"""

import socket
from contextlib import suppress
from typing import Any, Final

from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString

from domaeka.errors import ConfigError

#: Names of all addresses.
_EVERYWHERE: Final = frozenset({"", "::", "0.0.0.0"})
_TCP_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def descriptor_of(endpoint: Any) -> int | None:
    """The socket that an endpoint of Twisted's adopts; L{None} if it makes its own."""
    adopts = isinstance(endpoint, AdoptedStreamServerEndpoint)
    return int(endpoint.fileno) if adopts else None


class InheritedSockets:
    """The sockets that were handed over.  They stay open: each port gets a duplicate."""

    def __init__(self, reactor: Any) -> None:
        self._sockets: dict[int, socket.socket] = {}
        self._claimed: set[int] = set()
        with suppress(LookupError):  # that was the last
            while True:
                text = f"systemd:domain=INET:index={len(self._sockets)}"
                endpoint = serverFromString(reactor, text)  # type: ignore[no-untyped-call]
                descriptor = endpoint.fileno
                listener = socket.socket(fileno=descriptor)
                listener.set_inheritable(False)  # programs that bots call must not get it
                listener.setblocking(False)
                self._sockets[descriptor] = listener

    def claim(self, key: str, descriptor: int) -> None:
        """
        Reserve a socket for an endpoint that names it.

        @param key: the setting, which begins error messages.
        @raise ConfigError: there is no such socket, or another endpoint has it.
        """
        listener = self._sockets.get(descriptor)
        if listener is None or listener.type != socket.SOCK_STREAM:
            raise ConfigError(f"{key}: that is no listening socket")
        if descriptor in self._claimed:
            raise ConfigError(f"{key}: another endpoint has that socket")
        self._claimed.add(descriptor)

    def at(self, interface: str, port: int) -> int | None:
        """The socket that is bound to an address; L{None} if there is none."""
        for descriptor, listener in self._sockets.items():
            if (
                descriptor in self._claimed
                or listener.family not in _TCP_FAMILIES
                or listener.type != socket.SOCK_STREAM
            ):
                continue
            host, number = listener.getsockname()[:2]
            same = host == interface or {host, interface} <= _EVERYWHERE
            if same and number == port:
                return descriptor
        return None

    def open(self, descriptor: int, backlog: int) -> socket.socket:
        """
        Have a socket listen, if L{refuse} has ended that.

        @return: a duplicate of it.
        @raise OSError: it cannot listen.
        """
        listener = self._sockets[descriptor]
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            listener.listen(backlog)
        return listener.dup()

    def refuse(self, descriptor: int) -> None:
        """Refuse connections, those that wait as well, until the socket is opened again."""
        listener = self._sockets[descriptor]
        if listener.family in _TCP_FAMILIES:
            with suppress(OSError):  # it is shut already
                listener.shutdown(socket.SHUT_RD)
