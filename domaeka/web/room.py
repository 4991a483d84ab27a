"""
Who may have one of the HTTP connections.
"""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from domaeka.policies.limits import counts_as
from domaeka.web.routes import is_this_machine

#: Most connections at a time.
MAX_CONNECTIONS: Final = 200
#: How many of them others leave to this machine: its operator, and what watches the server.
RESERVED: Final = 20
#: Most connections of one address (of IPv6: a /64) that is not this machine's.
MAX_OF_AN_ADDRESS: Final = 20


class Guest(Protocol):
    """A connection that is there."""

    @property
    def host(self) -> str:
        """The address of its peer."""

    @property
    def is_idle(self) -> bool:
        """Whether it has been answered and has asked for nothing since."""

    def cut_off(self) -> None:
        """Close at once, whatever is lost."""


_Guest = TypeVar("_Guest", bound=Guest)


def make_room(host: str, guests: dict[_Guest, None], bars: Callable[[str], bool]) -> bool:
    """
    Find room for a connection from C{host}: where there are too many already, the one that has
    been idle longest makes it.

    @param guests: those that are there, those that were last idle behind the others.
    @param bars: says whether nobody at an address is let in; this machine always is.
    @return: whether there is room.
    """
    if is_this_machine(host):
        crowd = list(guests) if len(guests) >= MAX_CONNECTIONS else []
    elif bars(host):
        return False
    else:
        place = counts_as(host)
        crowd = [guest for guest in guests if counts_as(guest.host) == place]
        if len(guests) >= MAX_CONNECTIONS - RESERVED:
            crowd = list(guests)
        elif len(crowd) < MAX_OF_AN_ADDRESS:
            crowd = []
    if not crowd:
        return True
    idle = next((guest for guest in crowd if guest.is_idle), None)
    if idle is None:
        return False
    del guests[idle]
    idle.cut_off()
    return True
