"""Texts for people about what happens to a phone."""

from typing import Final

from domaeka.cli.output import printable
from domaeka.client import (
    ClientEvent,
    ErrorFrame,
    Failed,
    Fate,
    Greeting,
    Lost,
    Media,
    MigrationNotice,
    Moved,
    ReplayNotice,
    Reply,
    ShutdownNotice,
    Stopped,
    Unreadable,
    Waiting,
)
from domaeka.errors import ErrorCode

#: Refusals that a phone can do nothing about, with what a person can do.
REFUSALS: Final = {
    ErrorCode.AUTH_FAILED: "the server does not accept this phone's signature: "
    "is it the same secret key and salt, is the clock right?",
    ErrorCode.AUTH_REQUIRED: "the server asks for a signature",
    ErrorCode.NOT_APPROVED: "an operator must approve this phone first",
    ErrorCode.BANNED: "the server has banned this address",
    ErrorCode.BAD_HANDSHAKE: "the server does not understand this phone's handshake",
    ErrorCode.SERVER_FULL: "the server is full",
    ErrorCode.RATE_LIMITED: "too many connections from this address: try again in a minute",
    ErrorCode.TAKEN_OVER: "another phone with the same bot and device name has taken over",
}

#: Delivery statuses that are worth a line.
DELIVERIES: Final = {
    Fate.EXPIRED: "not taken by the server in time",
    Fate.TOO_LARGE: "longer than this server takes",
}


def reply_text(reply: Reply) -> str:
    """A reply as a phone would show it."""
    content = reply.content
    return content if isinstance(content, str) else media_text(content)


def media_text(media: Media) -> str:
    """A line for each file."""
    return "\n".join(
        f"[{media.kind} {media.format} {len(piece):,} bytes]"
        if isinstance(piece, bytes)
        else f"[{media.kind} {piece}]"
        for piece in media.pieces
    )


def refusal(code: str, message: str) -> str:
    """The reason why the server refuses this phone, for people."""
    try:
        text = REFUSALS[ErrorCode(code)]
    except (ValueError, KeyError):
        return f"{printable(code)}: {printable(message)}"
    return f"{text} ({code}: {printable(message)})" if message else f"{text} ({code})"


def loss(event: Lost) -> str:
    """The reason why a connection has ended."""
    return f"{event.reason} ({event.why})" if event.why else str(event.reason)


def event_text(event: ClientEvent) -> str | None:
    """The text for an event; L{None}: not worth a line."""
    match event:
        case Greeting(approved=False):
            return "connected, but an operator must approve this phone before it is answered"
        case Greeting(server_version=version, capabilities=granted, resumed=resumed):
            more = f", with {', '.join(map(printable, granted))}" if granted else ""
            again = ", session resumed" if resumed else ""
            return f"connected: server {printable(version)}{more}{again}"
        case ErrorFrame(code=code, message=message):
            return f"the server says: {refusal(code, message)}"
        case ShutdownNotice(reason=reason, reconnect_after=after):
            return f"the server closes ({printable(reason)}), to come back in {after:.0f} s"
        case MigrationNotice(new_host=host, new_port=port, migrate_after=after):
            return f"the server moves to {printable(host)}:{port} in {after:.0f} s"
        case ReplayNotice():
            return "somebody listens to this line: a signature came on another connection, too"
        case Failed(server=server, why=why):
            return f"cannot connect to {server}: {why}"
        case Lost(server=server):
            return f"connection to {server} has ended: {loss(event)}"
        case Waiting(server=server, delay=delay):
            return f"next try at {server} in {delay:.1f} s"
        case Moved(server=server):
            return f"moved to {server}"
        case Stopped(code=code):
            return f"given up: {refusal(code, '')}"
        case Unreadable(why=why):
            return f"a frame that no phone would show was dropped: {printable(why)}"
    return None
