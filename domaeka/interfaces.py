"""Interfaces between the packages, and the data that they exchange."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec
from twisted.internet.defer import Deferred

from domaeka.errors import DomaekaError
from domaeka.policies.limits import Ban as Ban
from domaeka.policies.outbox import Priority as Priority
from domaeka.policies.outbox import StatusListener as StatusListener
from domaeka.schema import Approval as Approval
from domaeka.schema import (
    ClosedConnections,
    ClosedQuery,
    Connection,
    Connections,
    ConnectionsQuery,
    Message,
    Queue,
)
from domaeka.wire import Chat, Media, Reply, is_channel_id

#: An operator said no: it holds whatever is heard.
REFUSED: Final = frozenset({Approval.DENIED, Approval.REVOKED, Approval.BLOCKED})

_T = TypeVar("_T")


class DeviceKey(NamedTuple):
    """Key of a phone: its bot and its device id."""

    bot_name: str
    device_id: str

    def __str__(self) -> str:
        """As the log has it."""
        return f"{self.bot_name!r} {self.device_id!r}"

    @property
    def log_fields(self) -> dict[str, str]:
        """As the fields of a log line have it."""
        return {"bot": self.bot_name, "device": self.device_id}


class RoomKey(NamedTuple):
    """Key of a room: the bot in it, and its channel id or else its name."""

    bot_name: str
    room_id: str


class DeviceFacts(msgspec.Struct, frozen=True):
    """Facts of a phone, from its handshake or its first signed message."""

    version: str
    client_type: str = "MessengerBotR"
    device_ip: str = ""
    device_info: str = ""
    address: str = ""


class Devices(Protocol):
    """Devices that may use the server.  Everything but changes is answered from memory."""

    def approval(self, key: DeviceKey) -> Approval | None:
        """L{None}: never seen, or the store has not said yet."""

    def enter(self, key: DeviceKey, facts: DeviceFacts) -> Approval | None:
        """
        Enter a device whose signature held, or renew its facts; the store is written later.

        @return: its approval; L{None} where the store is not loaded yet (fail closed), or has no
            room for one more that is pending.
        """

    def heard(self, key: DeviceKey, ended: float | None = None) -> None:
        """
        Note that a device was heard.

        @param ended: where its connection has ended: when it was last heard, in seconds since 1970.
        """

    def clock_lead(self, key: DeviceKey) -> float | None:
        """Lead of a device's clock over ours, in seconds; L{None}: it was never measured."""

    def clock_measured(self, key: DeviceKey, lead: float) -> None:
        """Note the lead of a device's clock over ours, in seconds, by its answer to a ping."""

    def set_approval(self, key: DeviceKey, approval: Approval) -> "Deferred[None]":
        """Take an operator's decision.  Fires once it is in the store and in force."""


class Rooms(Protocol):
    """Rooms in which bots answer.  Everything but changes is answered from memory."""

    def enter(self, key: RoomKey, device: DeviceKey, name: str, is_group: bool) -> bool:
        """
        Note that C{device} heard chat in a room.

        @return: whether it is to be answered.
        """

    def reported(self, key: RoomKey, device: DeviceKey, ok: bool) -> None:
        """Note that the chat app of C{device} took a message for a room, or cannot answer there."""

    def set_approval(self, key: RoomKey, approval: Approval) -> "Deferred[None]":
        """Take an operator's decision.  Fires once it is in the store and in force."""


class Resumption(Protocol):
    """Result of resuming a session."""

    @property
    def token(self) -> str | None:
        """A fresh token; L{None}: the one shown is not valid."""

    @property
    def key_id(self) -> str:
        """The id of the key behind the token that was shown."""


class Sessions(Protocol):
    """Session tokens.  Deferreds fail with L{StoreError}, within seconds."""

    def issue(self, key: DeviceKey, address: str, key_id: str) -> "Deferred[str]":
        """
        Issue a token to a device that proved itself by a signature.

        @param address: of its connection: alone, the token is good for that one only.
        @param key_id: of the key that signed: the token dies with that key.
        @return: its token, once it is stored.
        """

    def resume(
        self, token: object, key: DeviceKey, address: str, key_id: str | None = None
    ) -> "Deferred[Resumption]":
        """
        Judge a token, of whatever type, that a device showed.

        @param address: of its connection: where the token was issued to another one (of IPv6: to
            another /64), it counts only beside a signature.
        @param key_id: of the key of a signature beside it; L{None}: there was none.
        """

    def connection_ended(self, key: DeviceKey, token: str) -> None:
        """The connection to which a token was given has ended: its lifetime begins."""


class ChatLine(NamedTuple):
    """A line of the chat log."""

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
    """The chat log."""

    def append(self, line: ChatLine) -> None:
        """Write a line.  Never blocks, never raises: a line without room is counted and dropped."""


class Origin(Protocol):
    """The phone that a message came from, as bots see it."""

    @property
    def key(self) -> DeviceKey:
        """Key of the phone."""

    def send(
        self, reply: Reply, ttl: float | None = None, on_status: StatusListener | None = None
    ) -> None:
        """
        Send something, in its own dialect, now or when it is back.

        @param ttl: how long it may wait, in seconds; L{None}: C{queue.message_ttl}.
        @param on_status: called at each change of its status, perhaps before this returns.
        """

    def message_done(self, chat: Chat) -> None:
        """Note that the work on a submitted message is done."""

    def describe(self) -> Mapping[str, str]:
        """Facts that an operator may see: names to values, both for people."""


class Dispatcher(Protocol):
    """The way of messages to bots."""

    def submit(self, chat: Chat, origin: Origin) -> None:
        """
        Take a message that is to be answered.  Never raises.  C{origin.message_done} is called
        exactly once for it, perhaps before this returns.
        """


#: Called with a device and its new state, after an operator's decision.
ApprovalListener: TypeAlias = Callable[[DeviceKey, Approval], None]
#: A check of C{/health}: L{None} when well, else what is wrong.
HealthCheck: TypeAlias = Callable[[], str | None]


# Asked by the admin API


class Records(Protocol):
    """Records of devices or of rooms, for operators: to see, to decide, to forget."""

    def record(self, key: Any) -> Any:
        """The record of C{key}; L{None}: nothing is known of it."""

    def page(self, after: Any, limit: int, approval: Approval | None) -> Sequence[Any]:
        """At most C{limit} records behind C{after}, in the order of keys, all or in one state."""

    def set_approval(self, key: Any, approval: Approval) -> "Deferred[None]":
        """Take an operator's decision.  Fires once it is in force; fails with L{StoreError}."""

    def forget(self, key: Any) -> "Deferred[None]":
        """Delete the record of C{key}; fails with L{StoreError}."""


class KnownRoom(Protocol):
    """The record of a room."""

    @property
    def key(self) -> RoomKey:
        """Key of the room."""

    @property
    def name(self) -> str:
        """Its name; empty: not known."""

    @property
    def approval(self) -> Approval:
        """The operators' decision: only approved rooms are answered."""

    @property
    def device(self) -> DeviceKey | None:
        """The phone on which it was last heard."""

    @property
    def before(self) -> DeviceKey | None:
        """Another phone on which it was heard before that, as far as it is known."""

    @property
    def last_heard(self) -> float | None:
        """When it was last heard, in seconds since 1970."""

    @property
    def decided(self) -> bool:
        """True if an operator has decided on it."""


def room_without_id(titled: Sequence[KnownRoom], device_id: str | None) -> KnownRoom | None:
    """
    The room without an id that is meant by its title and a phone: the one of C{titled} that the
    phone has heard.  L{None}: it has heard none or several of them, or that one has an id.
    """
    heard = [
        room
        for room in titled
        if any(phone and phone.device_id == device_id for phone in (room.device, room.before))
    ]
    return heard[0] if len(heard) == 1 and not is_channel_id(heard[0].key.room_id) else None


class RoomIndex(Protocol):
    """Index of rooms, and of the phones on which they were heard."""

    def record(self, key: RoomKey) -> KnownRoom | None:
        """The record of C{key}; L{None}: nothing is known of it."""

    def named(self, bot_name: str, name: str) -> Sequence[KnownRoom]:
        """The rooms of a bot that bear C{name}, the one heard last first."""

    def forget_device(self, device: DeviceKey) -> None:
        """Forget that C{device} heard any room."""


class RoomBook(Protocol):
    """The rooms that bots can send to."""

    def bot_names(self) -> Sequence[str]:
        """The bot names of all phones that have heard rooms."""

    def record(self, key: RoomKey) -> KnownRoom | None:
        """The record of C{key}; L{None}: nothing is known of it."""

    def named(self, bot_name: str, name: str) -> Sequence[KnownRoom]:
        """The rooms of a bot that bear C{name}, the one heard last first."""


#: Longest value of a bot, in bytes of its JSON.  Source: docs/design.md, "Bounds".
MAX_VALUE_BYTES: Final = 65_536


class KeptValues(Protocol):
    """
    Values of bots, in JSON.  A scope is a text that keeps values of a bot apart.

    All fail with L{StoreError}, a key or a value that is too much with L{StorageFull}, a wrong key
    with L{BotTypeError<domaeka.errors.BotTypeError>} or C{BotValueError}.
    """

    def get(self, bot: str, scope: str, key: str) -> "Deferred[bytes | None]":
        """The value of a key; L{None}: it has none."""

    def set(self, bot: str, scope: str, key: str, value: bytes) -> "Deferred[None]":
        """Store a value."""

    def delete(self, bot: str, scope: str, key: str) -> "Deferred[bool]":
        """Remove a key.  @return: True if it had a value."""

    def incr(self, bot: str, scope: str, key: str, by: int | float = 1) -> "Deferred[int | float]":
        """Add to a number.  @return: the new one."""

    def keys(
        self, bot: str, scope: str, prefix: str = "", after: str | None = None, limit: int = 100
    ) -> "Deferred[list[str]]":
        """The keys of a scope behind C{after}, in the order of their code points."""


class Claims(Protocol):
    """
    Claims on the runs of schedules: of all that claim a run, on the same store, one has it.  All
    fail with L{StoreError}; then they may be asked again.
    """

    def claim(self, schedule: str, due: float) -> "Deferred[bool]":
        """Claim the run of a schedule that is due then, in seconds since 1970."""

    def last(self, schedule: str, until: float) -> "Deferred[float | None]":
        """The time of the last run that was claimed, up to C{until}; L{None}: none is known."""


class Presence(NamedTuple):
    """
    Presence of a device.

    @ivar heard_at: when it was last heard, in seconds since 1970; L{None}: it is not connected, or
        its connection has not signed.
    @ivar app_started_at: since when its app has run, in seconds since 1970; L{None}: it is not
        connected, or does not report on the delivery of messages.
    """

    is_connected: bool
    heard_at: float | None
    queue: Queue
    app_started_at: float | None = None


class Destination(NamedTuple):
    """
    Destination of a message, as its sender says it: C{room}, C{channel_id} or both.

    @ivar device_id: L{None}: the phone on which the room was last heard.
    """

    bot_name: str
    device_id: str | None
    room: str | None
    channel_id: str | None


class NotSent(StrEnum):
    """Reason for which a message is not taken: the codes of the API."""

    NO_PHONE = "NO_PHONE"  # none is known for the room
    NO_ROOM = "NO_ROOM"  # its name is not known
    AMBIGUOUS = "AMBIGUOUS"  # several rooms have this title
    NOT_APPROVED = "NOT_APPROVED"  # the phone, or the room, is known and not approved
    QUEUE_FULL = "QUEUE_FULL"  # there is no room for it to wait
    SHUTTING_DOWN = "SHUTTING_DOWN"  # the server takes no new work


class MessageRefused(DomaekaError):
    """
    A message is not taken; the text is for people.

    @ivar why: the same for programs.
    @ivar candidates: the first rooms that may be meant, of several of one title.
    """

    def __init__(self, why: NotSent, text: str, candidates: Sequence[KnownRoom] = ()) -> None:
        super().__init__(text)
        self.why = why
        self.candidates = candidates


#: An answer that may have to come from another server.
Eventual: TypeAlias = _T | Deferred[_T]


class Directory(Protocol):
    """Connections and messages: answers are awaited, for another server may have them."""

    def connections(self, query: ConnectionsQuery) -> Eventual[Connections]:
        """
        A page of open connections that have named their device.

        @raise BadCursor: C{after} is none of this order.
        """

    def connection(self, key: DeviceKey) -> Eventual[Connection | None]:
        """The connection of a device; one that has proven its name comes first."""

    def closed(self, query: ClosedQuery) -> Eventual[ClosedConnections]:
        """
        A page of connections that had authenticated and have ended.

        @raise BadCursor: C{after} is none of these pages.
        """

    def presence(self, keys: Sequence[DeviceKey]) -> Eventual[list[Presence]]:
        """Presence of each of these devices."""

    def send(
        self,
        destination: Destination,
        contents: Sequence[str | Media],
        ttl: float | None,
        priority: Priority,
    ) -> Eventual[str]:
        """
        Have a message wait for its phone, a frame for each of C{contents}.

        @param ttl: how long it may wait, in seconds; L{None}: C{queue.message_ttl}.
        @return: its id.
        @raise MessageRefused: it is not taken.
        """

    def message(self, message_id: str) -> Eventual[Message | None]:
        """A message and its delivery status; L{None}: not known, or not any more."""

    def forget(self, key: DeviceKey) -> Eventual[None]:
        """Drop what waits for a device, unless it is connected, and the rooms heard on it."""

    def ban_made(self, ban: Ban) -> Eventual[None]:
        """End the connections of a network that an operator has banned."""
