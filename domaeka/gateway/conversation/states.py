"""The table of a conversation's states and of the frames that each allows; how it leaves."""

from typing import Final

from domaeka.errors import CloseReason
from domaeka.gateway.peer import State
from domaeka.wire import Ack, Auth, Chat, DeliveryReport, Handshake, Migrated, Pong, Probe

#: Earliest end, after accept, of a connection known only by its messages, in seconds.  Source:
#: docs/protocol.md, "Handshake".
KNOWN_SECONDS: Final = 1.0
#: Time for answers to a phone that has finished sending, in seconds.
HALF_CLOSED_SECONDS: Final = 1.0
#: The next state, by state and frame.  A chat and a pong lead there once their signature is found
#: valid; L{Auth} is the proof in a handshake.
NEXT: Final[dict[tuple[State, type], State]] = {
    (State.NEW, Handshake): State.GREETED,
    (State.NEW, Chat): State.KNOWN,
    (State.NEW, Pong): State.KNOWN,  # asked for, where a chat was in doubt
    (State.GREETED, Handshake): State.GREETED,
    (State.GREETED, Auth): State.READY,
    (State.GREETED, Chat): State.READY,
    (State.GREETED, Pong): State.READY,
    (State.KNOWN, Handshake): State.READY,
    (State.KNOWN, Chat): State.KNOWN,
    (State.KNOWN, Pong): State.KNOWN,
    (State.READY, Handshake): State.READY,
    (State.READY, Chat): State.READY,
    (State.READY, Pong): State.READY,
    (State.READY, Ack): State.READY,
    (State.READY, DeliveryReport): State.READY,
    (State.READY, Probe): State.READY,
    (State.READY, Migrated): State.READY,
    (State.CLOSING, Chat): State.CLOSING,  # as long as it is heard at all
    (State.CLOSING, Pong): State.CLOSING,
    (State.CLOSING, Probe): State.CLOSING,
}


def sooner(
    leaving: tuple[CloseReason, float] | None, reason: CloseReason, until: float
) -> tuple[CloseReason, float]:
    """
    The reason and the deadline of a conversation that is C{leaving} already and is to leave again:
    the earlier deadline, and the first reason that is more than a missing handshake.
    """
    if leaving is None:
        return reason, until
    first, end = leaving
    return reason if first is CloseReason.NO_HANDSHAKE else first, min(until, end)
