"""Events of a client, beside the frames of the server."""

import msgspec

from domaeka.client.conversation import Event
from domaeka.client.route import Server
from domaeka.errors import CloseReason, ErrorCode


class Waiting(msgspec.Struct):
    """The next attempt is made in C{delay} seconds."""

    server: Server
    delay: float


class Failed(msgspec.Struct):
    """A connection attempt has failed."""

    server: Server
    why: str


class Connected(msgspec.Struct):
    """A connection is made; no frame has been exchanged yet."""

    server: Server


class Lost(msgspec.Struct):
    """A connection has ended.  C{why}: the error of the network or of TLS."""

    server: Server
    reason: CloseReason
    why: str = ""


class Moved(msgspec.Struct):
    """Another server has replaced the one before."""

    server: Server


class Stopped(msgspec.Struct):
    """The client has stopped by itself: another one with the same name has taken over."""

    code: ErrorCode


#: Any event of a client.
ClientEvent = Event | Waiting | Failed | Connected | Lost | Moved | Stopped
