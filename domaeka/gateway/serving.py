"""The server's state, and the table of its transitions."""

from enum import StrEnum
from typing import Final


class ServerState(StrEnum):
    """State of the server."""

    STARTING = "starting"  # phones are not let in yet
    SERVING = "serving"
    MOVING = "moving"  # phones are served here, and sent to another server
    AWAY = "away"  # all phones are to be elsewhere: the port is shut
    DRAINING = "draining"  # the server takes no more work, and closes its phones
    STOPPING = "stopping"  # the process ends
    STOPPED = "stopped"


class Step(StrEnum):
    """Step from one state of the server to another."""

    OPEN = "the start is over: phones are let in"
    MOVE = "phones are to go to another server"
    EMPTY = "the port is shut: the phones are elsewhere"
    STAY = "the move has ended: phones are served here"
    DRAIN = "the server is to be emptied"
    CALL_OFF = "the drain is called off"
    STOP = "the process is to end"
    END = "all is written down"


_S: Final = ServerState
#: The steps that each state allows, and where they lead.
NEXT: Final[dict[tuple[ServerState, Step], ServerState]] = {
    (_S.STARTING, Step.OPEN): _S.SERVING,
    (_S.STARTING, Step.DRAIN): _S.DRAINING,
    (_S.SERVING, Step.MOVE): _S.MOVING,
    (_S.SERVING, Step.DRAIN): _S.DRAINING,
    (_S.MOVING, Step.EMPTY): _S.AWAY,
    (_S.MOVING, Step.STAY): _S.SERVING,
    (_S.MOVING, Step.DRAIN): _S.DRAINING,
    (_S.AWAY, Step.MOVE): _S.MOVING,
    (_S.AWAY, Step.STAY): _S.SERVING,
    (_S.AWAY, Step.DRAIN): _S.DRAINING,
    (_S.DRAINING, Step.CALL_OFF): _S.SERVING,
    (_S.STARTING, Step.STOP): _S.STOPPING,
    (_S.SERVING, Step.STOP): _S.STOPPING,
    (_S.MOVING, Step.STOP): _S.STOPPING,
    (_S.AWAY, Step.STOP): _S.STOPPING,
    (_S.DRAINING, Step.STOP): _S.STOPPING,
    (_S.STOPPING, Step.END): _S.STOPPED,
}


class NotNow(Exception):
    """The step is not possible in this state of the server."""


class Serving:
    """
    The state of the server.

    @ivar state: changed by L{take} alone.
    @ivar takes_work: whether messages of phones and operators are taken.
    """

    def __init__(self) -> None:
        self.state = ServerState.STARTING
        self.takes_work = True

    def may(self, step: Step) -> bool:
        """True if C{step} is possible now."""
        return (self.state, step) in NEXT

    def take(self, step: Step) -> None:
        """
        Take a step.

        @raise NotNow: the table has no such step; nothing has changed.
        """
        target = NEXT.get((self.state, step))
        if target is None:
            raise NotNow(f"{step}: not while the server is {self.state}")
        self.state = target
        self.takes_work = target not in _LEAVING

    @property
    def lets_in(self) -> bool:
        """True while the ports are to be open."""
        return self.state in (_S.SERVING, _S.MOVING)

    @property
    def is_leaving(self) -> bool:
        """True while phones are to go: to another server, or until the next start."""
        return self.state is _S.AWAY or self.state in _LEAVING


_LEAVING: Final = frozenset((_S.DRAINING, _S.STOPPING, _S.STOPPED))
