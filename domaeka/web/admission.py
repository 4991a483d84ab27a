"""Admission to the HTTP port: the share of each address, and which connection gives way."""

from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Final, Protocol, TypeVar

from domaeka.policies.networks import address_key
from domaeka.web.routes import is_this_machine

#: Most connections at a time, and most of the socket in the state directory beside them.
MAX_CONNECTIONS: Final = 200
MAX_OF_THE_SOCKET: Final = 20
#: Connections that are kept free for this machine: its operator, and what watches the server.
RESERVED: Final = 20
#: Most connections of one address (of IPv6: a /64) that is not this machine's, and of one that is
#: banned, for which no other connection gives way.
MAX_OF_AN_ADDRESS: Final = 20
MAX_OF_A_BANNED_ONE: Final = 2


class Stage(IntEnum):
    """What a connection does; the least gives way first, and the last never."""

    #: It has been answered, and has asked for nothing since.
    IDLE = 0
    #: It has been answered and asks again, or does not read its answer.
    AGAIN = 1
    #: Its first request is not complete.
    UNFINISHED = 2
    #: Its first request is being answered, an answer leaves just now, or it reads events.
    ANSWERING = 3


class OpenConnection(Protocol):
    """A connection that is open."""

    @property
    def host(self) -> str:
        """The address of its peer."""

    @property
    def claimant(self) -> object:
        """Whose it is: C{claimant_of(host)}, kept, for at a flood each one is asked of all."""

    @property
    def stage(self) -> Stage:
        """What it does."""

    def give_way(self) -> None:
        """Close: in order if it is idle, else at once."""


_Connection = TypeVar("_Connection", bound=OpenConnection)


def admit(
    host: str,
    connections: dict[_Connection, None],
    barred: bool = False,
    most: int = MAX_CONNECTIONS,
    gave_way: Callable[[str], object] = lambda host: None,
) -> bool:
    """
    Admit a connection from C{host}, or not: if there are too many already, one of the largest
    holder is closed for it, first one that is idle, then one that has been answered before, then
    one whose request is not complete.

    The first complete request of a connection is answered, whoever else comes.  So whoever holds
    connections open, for nothing or for requests without end, keeps nobody out: a newcomer, of the
    same address too, takes the place of the oldest.

    @param connections: those that are open, in the order in which they came or were last idle.
    @param barred: true if C{host} is banned.
    @param most: most connections.
    @param gave_way: called with the address of the connection that is closed, or not admitted.
    @return: true if it is admitted.
    """
    ours = claimant_of(host)
    if len(connections) < (most if ours is None else min(most - RESERVED, MAX_OF_A_BANNED_ONE)):
        return True  # the usual case
    held = Counter(each.claimant for each in connections)
    held[None] -= RESERVED  # what is kept for this machine counts for nobody
    mine = held[ours]
    only_ours = False
    if ours is None:
        if len(connections) < most:
            return True
    elif mine >= (MAX_OF_A_BANNED_ONE if barred else MAX_OF_AN_ADDRESS):
        only_ours = True
    elif len(connections) < most - RESERVED:
        return True
    else:
        only_ours = barred
    victim = min(
        (
            each
            for each in connections
            if (each.claimant == ours or (not only_ours and held[each.claimant] > max(mine, 0)))
            and each.stage < Stage.ANSWERING
        ),
        key=lambda each: (-held[each.claimant], each.stage),  # of equals, the first
        default=None,
    )
    if victim is None:
        gave_way(host)
        return False
    gave_way(victim.host)
    del connections[victim]
    victim.give_way()
    return True


def claimant_of(host: str) -> object:
    """Whose a connection is: an address, or L{None}: this machine."""
    return None if is_this_machine(host) else address_key(host) or host
