"""What commands show of the API's answers: the fields that they need, and no more."""

import msgspec


class RoundTrips(msgspec.Struct):
    """Of the last pings, in seconds."""

    min: float
    avg: float
    median: float
    p95: float
    max: float
    smoothed: float
    jitter: float


class Quality(msgspec.Struct):
    """How good a line is."""

    score: int | None
    grade: str | None
    reasons: list[str]
    loss: float
    rtt: RoundTrips | None
    ping_interval_seconds: float
    ping_timeout_seconds: float


class Traffic(msgspec.Struct):
    """Either way."""

    received: int
    sent: int


class Queue(msgspec.Struct):
    """What waits for a device."""

    messages: int
    bytes: int
    unanswered: int


class PhoneFigures(msgspec.Struct):
    """What a phone says of itself; memory in MB."""

    age_seconds: float
    total_memory: float | None
    memory_usage: float | None
    message_queue_size: float | None
    active_rooms: float | None


class Kernel(msgspec.Struct):
    """What the server's kernel knows of a line."""

    rtt: float
    rtt_variation: float
    retransmits: int


class Connection(msgspec.Struct):
    """One that is open."""

    id: str
    bot: str
    device: str
    address: str
    version: str
    client_type: str
    device_info: str
    state: str
    approval: str | None
    capabilities: list[str]
    since: str
    age_seconds: float
    silent_seconds: float
    quality: Quality | None
    bytes: Traffic
    messages: Traffic
    queue: Queue
    monitoring: PhoneFigures | None = None
    kernel: Kernel | None = None
    clock_skew_seconds: float | None = None
    ended_last_hour: int | None = None


class Connections(msgspec.Struct):
    """Those that are open."""

    connections: list[Connection]
    total: int


class Ended(msgspec.Struct):
    """One that has ended."""

    bot: str
    device: str
    address: str
    reason: str
    since: str
    ended: str
    messages: Traffic
    grade: str | None
    score: int | None


class ClosedConnections(msgspec.Struct):
    """Those that have ended."""

    connections: list[Ended]
    next: str | None


class Device(msgspec.Struct):
    """One that is known."""

    bot: str
    device: str
    status: str
    connected: bool
    version: str
    address: str
    first_seen: str | None
    last_seen: str | None
    queue: Queue


class Devices(msgspec.Struct):
    """Those that are known."""

    devices: list[Device]
    next: str | None = None


class Room(msgspec.Struct):
    """One that is known."""

    bot: str
    room: str
    name: str
    is_group: bool
    status: str
    device: str | None
    last_heard: str | None


class Rooms(msgspec.Struct):
    """Those that are known."""

    rooms: list[Room]
    next: str | None = None


class Ban(msgspec.Struct):
    """A network that is not let in."""

    network: str
    reason: str
    made_at: str
    expires: str | None
    times: int
    made_by: str


class Bans(msgspec.Struct):
    """Those that are in force."""

    bans: list[Ban]
    total: int = 0


class Accepted(msgspec.Struct):
    """A message was taken."""

    id: str


class Message(msgspec.Struct):
    """What has become of a message."""

    id: str
    state: str
    bot: str
    device: str
    room: str


class Drain(msgspec.Struct):
    """How a stop goes."""

    draining: bool
    told: int
    connections: int
    unanswered: int
    seconds_left: float


class Migration(msgspec.Struct):
    """How a move goes, or how the last one went."""

    phase: str
    host: str
    port: int
    told: int
    arrived: int
    missing: int
    sent_on: int
    remaining: int
    reason: str = ""


class Reloaded(msgspec.Struct):
    """What reading the settings again has come to: their keys."""

    changed: list[str]
    needs_restart: list[str]


class Health(msgspec.Struct):
    """C{/health}."""

    status: str
    connections: float
    checks: dict[str, str]
    version: str = ""
    uptime: float = 0.0


class Stats(msgspec.Struct):
    """C{/stats}."""

    messages_sent: float
    messages_received: float
    message_rate: float
    throughput: dict[str, float]
    errors: dict[str, float]


class Breaker(msgspec.Struct):
    """A command, or an outside service."""

    name: str
    breaker: str


class Bot(msgspec.Struct):
    """One that is loaded."""

    name: str
    commands: list[Breaker]


class Bots(msgspec.Struct):
    """All that are loaded."""

    bots: list[Bot]
    services: list[Breaker]


class Overview(msgspec.Struct):
    """
    What C{domaeka status} asks for.

    @ivar grades: how many connections have each; C{unknown}: no ping was answered or missed yet.
    @ivar pending: how many devices and rooms wait for a decision.
    @ivar more_pending: which of these are more than that.
    """

    health: Health
    stats: Stats
    grades: dict[str, int]
    pending: dict[str, int]
    more_pending: list[str]
    bans: int
    drain: Drain
    migration: Migration | None
    bots: Bots
