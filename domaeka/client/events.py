"""What a client tells its owner, beside what the server said."""

import msgspec

from domaeka.client.conversation import Event
from domaeka.client.route import Server
from domaeka.errors import CloseReason, ErrorCode


class Waiting(msgspec.Struct):
    """The next try is made in C{delay} seconds."""

    server: Server
    delay: float


class Failed(msgspec.Struct):
    """A server could not be reached."""

    server: Server
    why: str


class Connected(msgspec.Struct):
    """A connection is made; nothing has been said yet."""

    server: Server


class Lost(msgspec.Struct):
    """
    A connection has ended.

    @ivar why: what the network, or TLS, says of it.
    """

    server: Server
    reason: CloseReason
    why: str = ""


class Moved(msgspec.Struct):
    """Another server has taken the place of the one before."""

    server: Server


class Stopped(msgspec.Struct):
    """The client has given up by itself: its place was taken by another one of the same name."""

    code: ErrorCode


#: Whatever is worth telling.
ClientEvent = Event | Waiting | Failed | Connected | Lost | Moved | Stopped
