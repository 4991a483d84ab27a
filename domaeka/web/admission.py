"""Admission to the HTTP port: the limits of connections, and which idle one gives way."""

from typing import Final, Protocol, TypeVar

from domaeka.policies.networks import address_key
from domaeka.web.routes import is_this_machine

#: Most connections at a time.
MAX_CONNECTIONS: Final = 200
#: Connections that are kept free for this machine: its operator, and what watches the server.
RESERVED: Final = 20
#: Most connections of one address (of IPv6: a /64) that is not this machine's, and of one that is
#: banned, for which no other connection gives way.
MAX_OF_AN_ADDRESS: Final = 20
MAX_OF_A_BANNED_ONE: Final = 2


class OpenConnection(Protocol):
    """A connection that is open."""

    @property
    def host(self) -> str:
        """The address of its peer."""

    @property
    def is_idle(self) -> bool:
        """True if it has been answered and has asked for nothing since."""

    def abort(self) -> None:
        """Close at once; unsent data is lost."""


_Connection = TypeVar("_Connection", bound=OpenConnection)


def admit(host: str, connections: dict[_Connection, None], barred: bool = False) -> bool:
    """
    Admit a connection from C{host}, or not: if there are too many already, the one that has been
    idle longest is closed for it.

    @param connections: those that are open, in the order in which they became idle.
    @param barred: true if C{host} is banned.
    @return: true if it is admitted.
    """
    if is_this_machine(host):
        rivals = list(connections) if len(connections) >= MAX_CONNECTIONS else []
    else:
        place = address_key(host)
        rivals = [each for each in connections if address_key(each.host) == place]
        most = MAX_OF_A_BANNED_ONE if barred else MAX_OF_AN_ADDRESS
        if len(connections) < MAX_CONNECTIONS - RESERVED:
            rivals = rivals if len(rivals) >= most else []
        elif not barred:
            rivals = list(connections)
        elif not rivals:
            return False
    if not rivals:
        return True
    idle = next((each for each in rivals if each.is_idle), None)
    if idle is None:
        return False
    del connections[idle]
    idle.abort()
    return True
