"""
How far a conversation has come, and what may follow what.
"""

from enum import Enum
from typing import Final

from domaeka.messages import Ack, Auth, Chat, Handshake, Migrated, Pong


class State(Enum):
    """How far a conversation has come."""

    NEW = "new"
    GREETED = "greeted"  # a handshake, no proof
    KNOWN = "known"  # proof by a message, no handshake
    READY = "ready"  # both
    CLOSING = "closing"

    # The one that Enum has is written in Python, and asked for each line.
    __hash__ = object.__hash__


#: What may come when, and where it leads.  A chat and a pong lead there once their signature
#: held; L{Auth} is the proof in a handshake.
NEXT: Final[dict[tuple[State, type], State]] = {
    (State.NEW, Handshake): State.GREETED,
    (State.NEW, Chat): State.KNOWN,
    (State.GREETED, Handshake): State.GREETED,
    (State.GREETED, Auth): State.READY,
    (State.GREETED, Chat): State.READY,
    (State.GREETED, Pong): State.READY,
    (State.KNOWN, Handshake): State.READY,
    (State.KNOWN, Chat): State.KNOWN,
    (State.READY, Handshake): State.READY,
    (State.READY, Chat): State.READY,
    (State.READY, Pong): State.READY,
    (State.READY, Ack): State.READY,
    (State.READY, Migrated): State.READY,
    (State.CLOSING, Chat): State.CLOSING,  # as long as it is heard at all
}
