"""The peer at the other end of a connection, and the state of its conversation."""

import re
from enum import Enum
from typing import Final

from domaeka.errors import CloseReason
from domaeka.interfaces import DeviceFacts, DeviceKey
from domaeka.policies.auth import NO_KEY
from domaeka.wire import Monitoring

#: The capabilities of clients that have none: shared, for each set takes 216 bytes.
NO_CAPABILITIES: Final[frozenset[str]] = frozenset()
#: First bytes of health checks in other protocols: HTTP, TLS, or PROXY where it is not expected; or
#: an empty line (C{echo | nc}).  No phone sends these.
_CHECK: Final = re.compile(
    rb"(?:GET|HEAD|OPTIONS|PRI) [/*]|\x16\x03|PROXY |\r\n\r\n\0\r\nQUIT\n|\r?\n\Z"
)


def is_health_check(data: bytes) -> bool:
    """True if the first bytes of a connection are those of a health check."""
    return _CHECK.match(data) is not None


class State(Enum):
    """State of a conversation."""

    NEW = "new"
    GREETED = "greeted"  # a handshake, no proof
    KNOWN = "known"  # proof by a message, no handshake
    READY = "ready"  # both
    CLOSING = "closing"

    # That of Enum is written in Python, and called for each line.
    __hash__ = object.__hash__


class Peer:
    """
    Facts of a peer, written by its conversation alone.

    @ivar number: unique among connections.
    @ivar over_rate: it came over the rate of its address, or in spite of a ban, for a moment.
    @ivar port_outlives: the port by which it came outlives the process.
    @ivar made_at: when it connected, by the steady time, in seconds.
    @ivar closing: the conversation is over, but for what is on its way.
    @ivar reads: what arrives is read.
    @ivar corked: its lines are being read: the answers wait, to go out together.
    @ivar key: the device that it claims to be; proven only if it is C{authenticated}.
    @ivar authenticated: it has proven its name, or C{auth.mode} let it through.
    @ivar greeted: its first handshake has been answered.
    @ivar signed: the proof was a signature or a token.
    @ivar key_id: of the secret key behind the proof.
    @ivar capabilities: those agreed on.
    @ivar reason: the close reason, once the connection ends.
    @ivar like_check: it has sent nothing yet, or only what health checks send.
    @ivar monitoring: figures that the phone reported of itself, at C{monitored_at}.
    @ivar app_started_at: since when its app has run, in seconds since 1970; L{None}: not said.
    @ivar last_heard: when bytes last came, by the steady time, in seconds.
    """

    __slots__ = (
        "address",
        "app_started_at",
        "authenticated",
        "bytes_received",
        "capabilities",
        "closing",
        "corked",
        "facts",
        "greeted",
        "key",
        "key_id",
        "last_heard",
        "like_check",
        "made_at",
        "messages_received",
        "monitored_at",
        "monitoring",
        "number",
        "over_rate",
        "port_outlives",
        "reads",
        "reason",
        "signed",
        "state",
    )

    def __init__(self, number: int, address: str, now: float, port_outlives: bool = False) -> None:
        """@param now: the steady time, in seconds."""
        self.number = number
        self.over_rate = False
        self.port_outlives = port_outlives
        self.address = address
        self.made_at = now
        self.last_heard = now
        self.state = State.NEW
        self.closing = False
        self.reads = True
        self.corked = False
        self.key: DeviceKey | None = None
        self.facts: DeviceFacts | None = None
        self.authenticated = False
        self.greeted = False
        self.signed = False
        self.key_id = NO_KEY
        self.capabilities = NO_CAPABILITIES
        self.reason: CloseReason | None = None
        self.like_check = True
        self.app_started_at: float | None = None
        self.bytes_received = 0
        self.messages_received = 0
        self.monitoring: Monitoring | None = None
        self.monitored_at = 0.0

    def __str__(self) -> str:
        name = f" {self.key.bot_name!r} {self.key.device_id!r}" if self.key else ""
        return f"#{self.number} {self.address}{name}"

    @property
    def log_fields(self) -> dict[str, str | int | None]:
        """Fields for the JSON log."""
        bot, device = self.key or (None, None)
        return {"connection": self.number, "address": self.address, "bot": bot, "device": device}

    @property
    def version(self) -> str:
        """Version of its script; empty where it is not known."""
        return self.facts.version if self.facts is not None else ""

    @property
    def is_client(self) -> bool:
        """True for an authenticated client that understands notices, and is not closing."""
        return bool(self.capabilities) and self.authenticated and not self.closing
