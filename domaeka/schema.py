"""
The admin API's answers, bodies and events: the same types for the server and for the commands.

Their names, fields and descriptions are those of the OpenAPI document.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domaeka.errors import CloseReason
from domaeka.phone_script import MAX_SERVERS
from domaeka.policies.outbox import DeliveryStatus as DeliveryStatus
from domaeka.policies.quality import Grade as Grade
from domaeka.wire import MAX_NAME_CHARS, MAX_TITLE_CHARS, MediaType

#: Most items of a page, and the default.  Source: the longest page of 5,000 connections takes some
#: 20 ms, and no turn of the reactor may take 50 ms.
MAX_PAGE: Final = 200
PAGE: Final = 100
#: Most files in one message, and most bytes of them together.  Source: docs/bots.md, "Limits";
#: base64 makes a third more of them, which must fit into C{queue.max_bytes}.
MAX_MEDIA_ITEMS: Final = 30
MAX_MEDIA_BYTES: Final = 10_485_760
#: Longest address of a file, in characters.  Source: as above.
MAX_ADDRESS_CHARS: Final = 8192
#: Longest wait, in milliseconds: the phone is blocked for all of it.  Source: as above.
MAX_WAIT_MS: Final = 300_000
#: Key of C{Meta.extra}: value of a field that the answer of an older server lacks.
OTHERWISE: Final = "otherwise"


class Approval(StrEnum):
    """Approval of a device or a room: only the approved are served."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    REVOKED = "revoked"
    BLOCKED = "blocked"


class Phase(StrEnum):
    """Phase of a migration."""

    MOVING = "moving"  # clients are told, and arrive
    EMPTYING = "emptying"  # the port is shut; old phones are closed
    DONE = "done"
    HALTED = "halted"  # they do not arrive: nobody else is told
    CALLED_OFF = "called off"
    # By a stop: it goes on at the next start, once the other server answers.
    INTERRUPTED = "interrupted"


# Common
#: A time, as L{timestamp_text<domaeka.wire.timestamp_text>} gives it.
Time: TypeAlias = Annotated[
    str,
    Meta(
        description="ISO 8601, UTC, milliseconds",
        extra_json_schema={"format": "date-time"},
        examples=["2026-11-22T12:00:31.408Z"],
    ),
]
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="most items of the page")]
After: TypeAlias = Annotated[
    str,
    Meta(max_length=8192, description="`next` of the page before, with the same other parameters"),
]
Next: TypeAlias = Annotated[
    str | None, Meta(description="for `after` of the next page; null: this is the last one")
]
Order: TypeAlias = Literal["asc", "desc"]


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of queries and bodies: unknown fields are refused."""


class PageQuery(Input, frozen=True):
    """A page of a list."""

    limit: Limit = PAGE
    after: After | None = None


class ErrorText(msgspec.Struct):
    """An error: `code` for programs, `message` for people."""

    code: str
    message: str


class Problem(msgspec.Struct):
    """Body of every answer of 400 and above."""

    error: ErrorText


# Connections


class RoundTripTimes(msgspec.Struct):
    """Round trips of the last 100 pings, in seconds."""

    samples: int
    min: float
    avg: float
    median: float
    p95: float
    max: float
    smoothed: float
    jitter: Annotated[float, Meta(description="how much they vary (RFC 6298)")]


class LineQuality(msgspec.Struct):
    """Quality of a connection, from its answers to pings."""

    score: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | None,
        Meta(description="null, with `grade`: no ping was answered or missed yet"),
    ]
    grade: Grade | None
    reasons: Annotated[list[str], Meta(description="why the score is not 100")]
    loss: Annotated[float, Meta(description="part of the last 20 pings that went unanswered")]
    rtt: RoundTripTimes | None
    ping_interval_seconds: float
    ping_timeout_seconds: float


class Traffic(msgspec.Struct):
    """Amounts in both directions."""

    received: int
    sent: int


class Queue(msgspec.Struct):
    """Messages for a device that wait or are not acknowledged; its own that are not answered."""

    messages: int
    bytes: int
    unanswered: int


class PhoneFigures(msgspec.Struct):
    """Figures that a phone reports of itself; memory in MB."""

    age_seconds: float
    total_memory: float | None
    memory_usage: float | None
    memory_percent: float | None
    message_queue_size: float | None
    active_rooms: float | None


class KernelView(msgspec.Struct):
    """Figures of the server's kernel for a connection."""

    rtt: Annotated[float, Meta(description="smoothed round trip, in seconds")]
    rtt_variation: Annotated[float, Meta(description="seconds")]
    retransmits: Annotated[int, Meta(description="segments sent again since it was made")]


class Connection(msgspec.Struct):
    """A connection that is open and has shaken hands."""

    id: str
    bot: str
    device: str
    address: str
    version: Annotated[str, Meta(description="of the phone's script")]
    client_type: str
    device_info: str
    state: Annotated[
        Literal["greeted", "known", "ready"],
        Meta(description="`greeted`: no valid signature yet; `known`: no handshake yet"),
    ]
    approval: Approval | None
    capabilities: list[str]
    since: Time
    age_seconds: float
    silent_seconds: Annotated[float, Meta(description="since anything was heard of it")]
    quality: Annotated[LineQuality | None, Meta(description="null: it is not pinged yet")]
    bytes: Traffic
    messages: Traffic
    queue: Queue
    monitoring: PhoneFigures | None
    kernel: Annotated[KernelView | None, Meta(description="null: it does not say")]
    clock_skew_seconds: Annotated[
        float | None, Meta(description="how far the phone's clock is ahead")
    ]
    ended_last_hour: Annotated[
        int,
        Meta(
            description="connections of this device that ended within the last hour",
            extra={OTHERWISE: None},
        ),
    ]


class Connections(msgspec.Struct):
    """A page of connections."""

    connections: list[Connection]
    next: Next
    total: Annotated[int, Meta(description="how many fit the filter, on all pages")]


ConnectionOrder: TypeAlias = Literal[
    "bot",
    "device",
    "address",
    "version",
    "since",
    "score",
    "rtt",
    "loss",
    "silent",
    "messages",
    "bytes",
    "queue",
]


class ConnectionsQuery(Input, frozen=True):
    """Filter and order of connections."""

    sort: Annotated[ConnectionOrder, Meta(description="what has no value comes last")] = "bot"
    order: Order = "asc"
    bot: str | None = None
    address: str | None = None
    grade: Grade | None = None
    limit: Limit = PAGE
    after: After | None = None


class Ended(msgspec.Struct):
    """An authenticated connection that has ended."""

    id: str
    bot: str
    device: str
    address: str
    version: str
    reason: CloseReason
    since: Time
    ended: Time
    bytes: Traffic
    messages: Traffic
    score: int | None
    grade: Grade | None
    rtt: Annotated[float | None, Meta(description="smoothed round trip, in seconds")]


class ClosedConnections(msgspec.Struct):
    """A page of connections that have ended, the last one first."""

    connections: list[Ended]
    next: Next


class ClosedQuery(Input, frozen=True):
    """Filter of connections that have ended."""

    bot: str | None = None
    device: str | None = None
    address: str | None = None
    reason: CloseReason | None = None
    limit: Limit = PAGE
    after: After | None = None


# Devices and rooms


class Device(msgspec.Struct):
    """A device that is known."""

    bot: str
    device: str
    status: Approval
    connected: bool
    version: str
    client_type: str
    device_ip: Annotated[str, Meta(description="what the phone says of itself")]
    device_info: str
    address: Annotated[str, Meta(description="from where it last connected")]
    first_seen: Annotated[Time | None, Meta(description="null: entered by an operator, not seen")]
    last_seen: Annotated[Time | None, Meta(description="when it was last heard")]
    queue: Queue
    outdated: Annotated[
        bool,
        Meta(
            description="a phone of the app whose script is older than that of `GET /phone-script`",
            extra={OTHERWISE: False},
        ),
    ]


class Devices(msgspec.Struct):
    """A page of devices, in the order of their bots and names."""

    devices: list[Device]
    next: Next


class Room(msgspec.Struct):
    """A room that is known."""

    bot: str
    room: Annotated[str, Meta(description="its channel id, or its name where that is not known")]
    name: str
    is_group: bool
    status: Approval
    device: Annotated[str | None, Meta(description="the phone on which it was last heard")]
    last_heard: Annotated[Time | None, Meta(description="null: entered by an operator, not heard")]
    answerable: Annotated[
        bool | None,
        Meta(
            description="whether the app of the phone can answer in it: true: it was heard, or "
            "answered, since the app was started; false: the phone said last that it raised no "
            "notification; null: not known, or the phone is away, or does not say (`delivery`)"
        ),
    ]


class Rooms(msgspec.Struct):
    """A page of rooms, in the order of their bots and ids."""

    rooms: list[Room]
    next: Next


class RecordsQuery(Input, frozen=True):
    """Filter of devices, or of rooms."""

    bot: str | None = None
    status: Approval | None = None
    limit: Limit = PAGE
    after: After | None = None


class Decision(Input, frozen=True):
    """A decision on a device or a room: only the approved are served."""

    status: Approval


class ScriptQuery(Input, frozen=True):
    """Settings of a script for phones."""

    bot: Annotated[str, Meta(description="the bot's name")] = "domaeka"
    host: Annotated[
        str | None,
        Meta(
            description="the servers as phones reach them, HOST or HOST:PORT, IPv6 in brackets; "
            f"up to {MAX_SERVERS}, separated by commas, the preferred one first; left out: the "
            "address of this machine",
            examples=["chat.example,spare.example:9100"],
        ),
    ] = None
    tls: Annotated[bool, Meta(description="phones speak TLS")] = False
    pin: Annotated[
        bool, Meta(description="with `tls`: phones take the certificate of the settings alone")
    ] = False


class ForgetQuery(Input, frozen=True):
    """Extent of forgetting."""

    chat_log: Annotated[bool, Meta(description="what was said there, too")] = False


# Messages
_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
_Address: TypeAlias = Annotated[
    str,
    Meta(
        max_length=MAX_ADDRESS_CHARS,
        description="begins with `http://` or `https://`; the phone fetches it",
    ),
]
_Room: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_TITLE_CHARS,
        description="its name; of several of one name, without `channel_id`, the one heard last",
    ),
]


# Python's C{$} also stands before a newline at the end.
_ChannelId: TypeAlias = Annotated[
    str, Meta(pattern=rf"^[0-9]{{1,{MAX_NAME_CHARS}}}(?!\n)$", description="digits")
]
_Format: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]{1,16}(?!\n)$",
        description="of `media`: `jpg`, `png` and so on; left out: told by the file",
    ),
]
_WaitTime: TypeAlias = Annotated[
    int,
    Meta(
        ge=1,
        le=MAX_WAIT_MS,
        description="how long the phone stays in the chat app to send `media`, in milliseconds; "
        "it hears nothing meanwhile",
    ),
]
_Priority: TypeAlias = Annotated[
    Literal["high", "normal", "low"],
    Meta(description="`high`: like answers to commands; `low`: bulk, the first to give way"),
]
_TimeToLive: TypeAlias = Annotated[
    float,
    Meta(
        gt=0,
        le=31_536_000,
        description="how long it may wait for the phone, in seconds; left out: `queue.message_ttl`",
    ),
]


class MediaItem(Input, frozen=True):
    """A file: its bytes, or where it is; one of the two."""

    base64: Annotated[bytes | None, Meta(description="the standard alphabet, padded")] = None
    url: _Address | None = None


_Text: TypeAlias = Annotated[
    str, Meta(min_length=1, description="at most `server.max_text_chars` characters")
]
_Media: TypeAlias = Annotated[
    list[MediaItem],
    Meta(
        min_length=1,
        max_length=MAX_MEDIA_ITEMS,
        description=f"at most {MAX_MEDIA_BYTES} bytes in all",
    ),
]


class NewMessage(Input, frozen=True):
    """
    A message to send: to `room`, `channel_id` or both; with `text` or `media`.

    Without `device`, the phone on which the room was last heard sends it.
    """

    bot: _Name
    device: _Name | None = None
    room: _Room | None = None
    channel_id: _ChannelId | None = None
    text: _Text | None = None
    media: _Media | None = None
    message_type: Annotated[
        MediaType | None,
        Meta(
            description="of `media`; left out: told by the file, or by the end of the address, and "
            "`image` where that says nothing; what is no picture is not sent as one"
        ),
    ] = None
    message_format: _Format | None = None
    media_wait_time: _WaitTime | None = None
    priority: _Priority = "normal"
    ttl: _TimeToLive | None = None


class Accepted(msgspec.Struct):
    """A message that was taken."""

    id: str


class Message(msgspec.Struct):
    """
    A message and its state: `queued`, `sent` (handed to the phone's socket), `acknowledged` (by a
    client that does so), `expired` (its time ran out first) or `dropped` (it gave way to others).
    Where the phone reports it: `delivered` (the chat app took it) or `refused_by_app`.
    """

    id: str
    state: DeliveryStatus
    bot: str
    device: str
    room: str
    channel_id: str | None
    accepted: Time
    reason: Annotated[str | None, Meta(description="why the app refused it, as the phone says")]


# Bans
_Network: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        description="an address, or a network in CIDR form",
        examples=["203.0.113.7", "2001:db8::/64"],
    ),
]
_Seconds: TypeAlias = Annotated[
    float,
    Meta(
        gt=0,
        le=31_536_000,
        description="how long; null: until it is lifted; left out: `limits.ban_seconds`",
    ),
]


class Ban(msgspec.Struct):
    """A network that is not let in."""

    network: Annotated[str, Meta(description="in CIDR form")]
    reason: str
    made_at: Time
    expires: Annotated[Time | None, Meta(description="null: not until it is lifted")]
    times: Annotated[int, Meta(description="how often of late, this time included")]
    made_by: Annotated[str, Meta(description="empty: the server itself")]
    claimed_bot: Annotated[
        str,
        Meta(
            description="the bot that the last one with a wrong signature said it was, cut to 64 "
            "characters: nobody has verified it; empty: there was none",
            extra={OTHERWISE: ""},
        ),
    ]
    claimed_device: Annotated[str, Meta(description="likewise, the device", extra={OTHERWISE: ""})]


class Bans(msgspec.Struct):
    """A page of bans, in the order of their networks as texts."""

    bans: list[Ban]
    next: Next
    total: Annotated[int, Meta(extra={OTHERWISE: 0})]


class NewBan(Input, frozen=True):
    """A network to ban."""

    network: _Network
    reason: Annotated[str, Meta(max_length=1000, description="for people")] = ""
    seconds: _Seconds | UnsetType | None = UNSET


class BanQuery(Input, frozen=True):
    """The ban to lift."""

    network: _Network


# Roles


class Role(msgspec.Struct):
    """A role, and the person who holds it."""

    role: str
    channel_id: str
    user_hash: str
    granted_at: Time


class Roles(msgspec.Struct):
    """A page of roles, in the order of their names, channel ids and user hashes as texts."""

    roles: list[Role]
    next: Next
    total: int


class RoleHolder(Input, frozen=True):
    """A role, and a person: known by both ids together, never by a name."""

    role: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS, examples=["총무"])]
    channel_id: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=MAX_NAME_CHARS,
            description="of the room, a number",
            examples=["18398338829933617"],
        ),
    ]
    user_hash: Annotated[
        str, Meta(min_length=1, max_length=MAX_NAME_CHARS, description="as the phone sends it")
    ]


# Bots
_State: TypeAlias = Annotated[
    Literal["closed", "half open", "open"],
    Meta(description="`open`: it is not called; `half open`: one call is let in, to see"),
]


class BotCommand(msgspec.Struct):
    """A command of a bot; the counts are since the start."""

    name: str
    aliases: list[str]
    help: str
    operators_only: bool
    calls: int
    failures: Annotated[int, Meta(description="calls that failed or took too long")]
    breaker: Annotated[_State, Meta(description="for all but those in `open_for`")]
    allow: Annotated[
        str, Meta(description="who may use it, as its `allow=` says; empty: everybody")
    ] = ""
    open_for: Annotated[
        list[str],
        Meta(description="phones with the rooms and people for whom alone it is open, 20 at most"),
    ] = []
    open_for_count: Annotated[int, Meta(description="how many they are")] = 0


class LoadedBot(msgspec.Struct):
    """A bot that is loaded."""

    name: str
    commands: list[BotCommand]


class ServiceState(msgspec.Struct):
    """An outside service that a bot uses."""

    name: str
    breaker: _State


class Bots(msgspec.Struct):
    """All bots, and the outside services that they use."""

    bots: list[LoadedBot]
    services: list[ServiceState]


# Changes of the server


class Reloaded(msgspec.Struct):
    """Keys of the settings that a reload found changed."""

    changed: Annotated[
        list[str],
        Meta(
            description="in force; `secrets`, `certificates` and `bots` where they are not what "
            "they were"
        ),
    ]
    needs_restart: Annotated[list[str], Meta(description="changed, and not in force")]


class DrainState(msgspec.Struct):
    """State of a drain."""

    draining: bool
    told: Annotated[int, Meta(description="phones that were told to come back later")]
    connections: int
    unanswered: Annotated[int, Meta(description="messages without an answer yet")]
    seconds_left: Annotated[float, Meta(description="until all connections are cut off")]


_MoveAfter: TypeAlias = Annotated[
    float,
    Meta(
        ge=0,
        le=3600,
        description="when a client is to move, at least, in seconds (twice it at most); left out: "
        "`migration.migrate_after`",
    ),
]
_Spread: TypeAlias = Annotated[
    float,
    Meta(
        gt=0,
        le=86_400,
        description="over how many seconds the notices go out; left out: `migration.spread`",
    ),
]


class NewMigration(Input, frozen=True):
    """Target of a migration."""

    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    tls: bool = False
    migrate_after: _MoveAfter | None = None
    spread: _Spread | None = None


class MigrationState(msgspec.Struct):
    """State of a migration, or of the last one."""

    phase: Annotated[
        Phase,
        Meta(
            description="`moving`: clients are told, and arrive; `emptying`: the port is shut, old "
            "phones are closed; `halted`: too many clients did not arrive, or the other server "
            "answers no more; `interrupted`: by a restart, phones are served here until the other "
            "server answers"
        ),
    ]
    host: str
    port: int
    told: Annotated[int, Meta(description="clients that were told to move")]
    arrived: Annotated[int, Meta(description="those that have said that they are there")]
    missing: Annotated[int, Meta(description="those that have not, in time")]
    sent_on: Annotated[int, Meta(description="clients that came here, and were sent on at once")]
    remaining: Annotated[int, Meta(description="connections that are still here")]
    reason: Annotated[
        str, Meta(description="why it has halted, or cannot go on yet; else empty")
    ] = ""


# Events


class Connected(msgspec.Struct):
    """A connection has authenticated."""

    at: Time
    id: str
    bot: str
    device: str
    address: str
    version: str


class Graded(msgspec.Struct):
    """The grade of a connection has changed."""

    at: Time
    id: str
    bot: str
    device: str
    grade: Grade
    score: int
    reasons: list[str]


class _RecordEvent(msgspec.Struct):
    at: Time
    kind: Literal["device", "room"]
    bot: str
    name: Annotated[str, Meta(description="the device's, or the room's id")]


class Decided(_RecordEvent):
    """A decision on a device or a room."""

    status: Approval


class Forgotten(_RecordEvent):
    """A device or a room was forgotten."""


class Changed(msgspec.Struct):
    """A drain or a migration has come to a new state."""

    at: Time
    state: str


#: The type of each event's data.
EVENT_TYPES: Final[dict[str, type[msgspec.Struct]]] = {
    "connected": Connected,
    "grade": Graded,
    "closed": Ended,
    "approval": Decided,
    "forgotten": Forgotten,
    "ban": Ban,
    "lifted": Ban,
    "drain": Changed,
    "migration": Changed,
}
