"""What the parts ask of each other."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias

import msgspec
from twisted.internet.defer import Deferred

from domaeka.messages import Chat, Reply
from domaeka.policies.outbox import FateListener as FateListener
from domaeka.policies.outbox import Priority as Priority


class DeviceKey(NamedTuple):
    """What a phone is known by."""

    bot_name: str
    device_id: str

    def __str__(self) -> str:
        """As the log has it."""
        return f"{self.bot_name!r} {self.device_id!r}"


class RoomKey(NamedTuple):
    """What a room is known by: the bot in it and the channel id, or else the room's name."""

    bot_name: str
    room_id: str


class Approval(StrEnum):
    """Whether a device or a room is served: only if C{APPROVED}."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    REVOKED = "revoked"
    BLOCKED = "blocked"


class DeviceFacts(msgspec.Struct, frozen=True):
    """What a handshake, or a first signed message, said of a phone."""

    version: str
    client_type: str = "MessengerBotR"
    device_ip: str = ""
    device_info: str = ""
    address: str = ""


class Devices(Protocol):
    """Which devices may use the server.  Everything but changes is answered from memory."""

    def approval(self, key: DeviceKey) -> Approval | None:
        """L{None}: never seen, or the store has not said yet."""

    def enter(self, key: DeviceKey, facts: DeviceFacts) -> Approval | None:
        """
        A device's signature held.  A new one is entered, a known one's facts are renewed; the
        store is written later.

        @return: what it is now; L{None} where nobody can say (the store is not known yet: fail
            closed) or there is no room for one more that is pending.
        """

    def set_approval(self, key: DeviceKey, approval: Approval) -> "Deferred[None]":
        """An operator's decision.  Fires once it is in the store and in force."""


class Rooms(Protocol):
    """In which rooms bots answer.  Everything but changes is answered from memory."""

    def enter(self, key: RoomKey, device: DeviceKey, name: str, is_group: bool) -> bool:
        """
        Chat was heard in a room.

        @param device: the phone that heard it.
        @return: whether it is to be answered.
        """

    def set_approval(self, key: RoomKey, approval: Approval) -> "Deferred[None]":
        """An operator's decision.  Fires once it is in the store and in force."""


class Resumption(Protocol):
    """What a session token was worth."""

    @property
    def token(self) -> str | None:
        """The fresh one; L{None}: the one shown is not valid."""

    @property
    def key_id(self) -> str:
        """The id of the key by which it was gained."""


class Sessions(Protocol):
    """Session tokens.  What they give fails with L{StoreError}, within seconds."""

    def issue(self, key: DeviceKey, key_id: str) -> "Deferred[str]":
        """
        A device proved itself by a signature.

        @param key_id: of the key that it was made with: the token dies with that key.
        @return: its token, once it is stored.
        """

    def resume(
        self, token: object, key: DeviceKey, key_id: str | None = None
    ) -> "Deferred[Resumption]":
        """
        A device showed a token, of whatever type.

        @param key_id: of the key of a signature beside it; L{None}: there was none.
        """

    def connection_ended(self, key: DeviceKey, token: str) -> None:
        """The connection to which a token was given has ended: its lifetime begins."""


class ChatLine(NamedTuple):
    """One line of the chat log."""

    time: float  # seconds since 1970, by the server's clock
    direction: str  # "in" or "out"
    bot_name: str
    device_id: str
    room_id: str
    room_name: str
    sender: str
    user_hash: str | None
    log_id: str | None
    text: str


class ChatLog(Protocol):
    """Where chat is written."""

    def append(self, line: ChatLine) -> None:
        """Never blocks and never raises: what finds no room is counted and dropped."""


class Origin(Protocol):
    """The phone that a message came from, seen by the bots."""

    @property
    def key(self) -> DeviceKey:
        """Who it is."""

    def send(
        self, reply: Reply, ttl: float | None = None, on_fate: FateListener | None = None
    ) -> None:
        """
        Send something, in its own dialect, now or when it is back.

        @param ttl: how long it may wait, in seconds; L{None}: C{queue.message_ttl}.
        @param on_fate: told what becomes of it, perhaps before this returns.
        """

    def message_done(self, chat: Chat) -> None:
        """A message that was submitted owes no answer any more."""

    def describe(self) -> Mapping[str, str]:
        """What an operator may be told of it: names to values, both for people."""


class Dispatcher(Protocol):
    """What brings messages to bots."""

    def submit(self, chat: Chat, origin: Origin) -> None:
        """
        Take a message that is to be answered.  Never raises.  C{origin.message_done} is called
        exactly once for it, perhaps before this returns.
        """


#: Called with a device and its new state, after an operator's decision.
ApprovalListener: TypeAlias = Callable[[DeviceKey, Approval], None]
#: A check of C{/health}: L{None} when well, else what is wrong.
HealthCheck: TypeAlias = Callable[[], str | None]
