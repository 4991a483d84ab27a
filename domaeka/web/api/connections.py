"""
Connections: those that are open, and how the last ones ended.
"""

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from domaeka.errors import CloseReason
from domaeka.gateway.history import ClosedConnection
from domaeka.gateway.registry import Registry
from domaeka.gateway.session import Session
from domaeka.interfaces import Approval, DeviceKey
from domaeka.messages import timestamp_text
from domaeka.policies.liveness import Liveness
from domaeka.policies.quality import Grade
from domaeka.web.api.endpoints import (
    PAGE,
    After,
    Ask,
    Endpoint,
    Input,
    Limit,
    Next,
    Order,
    Time,
    bad_request,
    not_found,
)
from domaeka.web.api.paging import Place, cursor, page_of, read_cursor

_SUBJECT: Final = "connections"


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
    """How good a connection is, told from its answers to pings."""

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
    """How much of something went either way."""

    received: int
    sent: int


class Queue(msgspec.Struct):
    """What waits for a device, or is not acknowledged; and its messages without an answer yet."""

    messages: int
    bytes: int
    unanswered: int


class PhoneFigures(msgspec.Struct):
    """What a phone says of itself; memory in MB."""

    age_seconds: float
    total_memory: float | None
    memory_usage: float | None
    memory_percent: float | None
    message_queue_size: float | None
    active_rooms: float | None


class KernelView(msgspec.Struct):
    """What the server's kernel knows of the line."""

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
        int, Meta(description="connections of this device that ended within the last hour")
    ]


class Connections(msgspec.Struct):
    """A page of connections."""

    connections: list[Connection]
    next: Next
    total: Annotated[int, Meta(description="how many fit the filter, on all pages")]


_Sort: TypeAlias = Literal[
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
    """Which connections."""

    sort: Annotated[_Sort, Meta(description="what has no value comes last")] = "bot"
    order: Order = "asc"
    bot: str | None = None
    address: str | None = None
    grade: Grade | None = None
    limit: Limit = PAGE
    after: After | None = None


class Ended(msgspec.Struct):
    """How a connection went that had authenticated."""

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
    """Which of those that have ended."""

    bot: str | None = None
    device: str | None = None
    address: str | None = None
    reason: CloseReason | None = None
    limit: Limit = PAGE
    after: After | None = None


def _quality(read: Callable[[Liveness], float]) -> Callable[[Session], float | None]:
    def value(session: Session) -> float | None:
        liveness = session.liveness
        return None if liveness is None or not liveness.quality.samples else read(liveness)

    return value


#: What a cursor of open connections holds: the order, and a L{Place}.
_TEXT_CURSOR: Final[Any] = tuple[str, bool, str, int]
_NUMBER_CURSOR: Final[Any] = tuple[str, bool, float, int]

#: What connections are sorted by, and its type.
_ORDERS: Final[dict[str, tuple[Callable[[Session], Any], type[str] | type[float]]]] = {
    "bot": (lambda session: session.key and session.key.bot_name, str),
    "device": (lambda session: session.key and session.key.device_id, str),
    "address": (lambda session: session.address, str),
    "version": (lambda session: session.facts and session.facts.version, str),
    "since": (lambda session: session.made_at, float),
    "score": (_quality(lambda liveness: liveness.quality.score), float),
    "rtt": (_quality(lambda liveness: liveness.quality.srtt or 0.0), float),
    "loss": (_quality(lambda liveness: liveness.quality.loss), float),
    "silent": (lambda session: session.liveness and -session.liveness.last_heard, float),
    "messages": (lambda session: session.messages_received + session.sender.messages_sent, float),
    "bytes": (lambda session: session.bytes_received + session.sender.bytes_sent, float),
    "queue": (lambda session: session.device and session.device.outbox.messages, float),
}


class ConnectionPages:
    """What is asked of connections."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What is to be served."""
        return (
            Endpoint(
                method="GET",
                path="/connections",
                serve=self.open,
                subject=_SUBJECT,
                summary="Connections that are open, with their quality",
                query=ConnectionsQuery,
                answer=Connections,
            ),
            Endpoint(
                method="GET",
                path="/connections/closed",
                serve=self.closed,
                subject=_SUBJECT,
                summary="The last 10,000 connections that ended, the last one first",
                query=ClosedQuery,
                answer=ClosedConnections,
            ),
            Endpoint(
                method="GET",
                path="/connections/{bot}/{device}",
                serve=self.one,
                subject=_SUBJECT,
                summary="The connection of a device",
                answer=Connection,
                refusals={HTTPStatus.NOT_FOUND: "the device is not connected"},
            ),
        )

    def open(self, ask: Ask[ConnectionsQuery, None]) -> Connections:
        """A page of those that are open."""
        query = ask.query
        value, kind = _ORDERS[query.sort]

        def place(session: Session) -> Place:
            by = value(session)
            return Place(by is None, kind() if by is None else kind(by), session.number)

        after = read_cursor(query.after, _TEXT_CURSOR if kind is str else _NUMBER_CURSOR)
        if after is not None and after[0] != query.sort:
            raise bad_request("after: is of another order")
        shown, last, total = page_of(
            self._wanted(query),
            place,
            None if after is None else Place(*after[1:]),
            query.limit,
            query.order == "desc",
        )
        ended = self._registry.history.recent(self._registry.parts.seconds())
        return Connections(
            [self._describe(session, ended[session.key]) for session in shown if session.key],
            None if last is None else cursor((query.sort, *last)),
            total,
        )

    def one(self, ask: Ask[Any, None]) -> Connection:
        """The connection of a device: before all the one that has proven to be its."""
        registry = self._registry
        key = DeviceKey(ask.names["bot"], ask.names["device"])
        device = registry.device(key)
        session = None if device is None else device.session
        if session is None or session.closing:
            said = [one for one in registry if one.key == key and not one.closing]
            if not said:
                raise not_found("the device is not connected")
            session = said[-1]
        return self._describe(session, registry.history.recent(registry.parts.seconds())[key])

    def closed(self, ask: Ask[ClosedQuery, None]) -> ClosedConnections:
        """A page of those that have ended."""
        query = ask.query

        def wanted(closed: ClosedConnection) -> bool:
            return (
                query.bot in (None, closed.key.bot_name)
                and query.device in (None, closed.key.device_id)
                and query.address in (None, closed.address)
                and query.reason in (None, closed.reason)
            )

        before = read_cursor(query.after, int)
        found = self._registry.history.page(before, query.limit + 1, wanted)
        shown = found[: query.limit]
        return ClosedConnections(
            [describe_closed(closed) for _, closed in shown],
            cursor(shown[-1][0]) if len(found) > query.limit else None,
        )

    def _wanted(self, query: ConnectionsQuery) -> Iterator[Session]:
        for session in self._registry:
            if (
                session.key is not None
                and not session.closing
                and query.bot in (None, session.key.bot_name)
                and query.address in (None, session.address)
                and (
                    query.grade is None
                    or (
                        (liveness := session.liveness) is not None
                        and liveness.quality.known
                        and liveness.quality.grade is query.grade
                    )
                )
            ):
                yield session

    def _describe(self, session: Session, ended: int) -> Connection:
        registry = self._registry
        key, facts, device = session.key, session.facts, session.device
        assert key is not None and facts is not None
        now, age = registry.exact_now, session.age
        liveness = session.liveness
        heard = session.made_at if liveness is None else liveness.last_heard
        told, kernel, skew = session.monitoring, session.kernel_figures(), session.clock_skew
        return Connection(
            id=str(session.number),
            bot=key.bot_name,
            device=key.device_id,
            address=session.address,
            version=facts.version,
            client_type=facts.client_type,
            device_info=facts.device_info,
            state=session.state.value,  # type: ignore[arg-type]  # neither new nor closing
            approval=registry.parts.devices.approval(key),
            capabilities=sorted(session.capabilities),
            since=timestamp_text(registry.parts.seconds() - age),
            age_seconds=round(age, 3),
            silent_seconds=round(max(0.0, now - heard), 3),
            quality=None if liveness is None else describe_quality(liveness),
            bytes=Traffic(session.bytes_received, session.sender.bytes_sent),
            messages=Traffic(session.messages_received, session.sender.messages_sent),
            queue=Queue(0, 0, 0)
            if device is None
            else Queue(device.outbox.messages, device.outbox.bytes, device.pending),
            monitoring=None
            if told is None
            else PhoneFigures(
                round(max(0.0, now - session.monitored_at), 3),
                told.total_memory,
                told.memory_usage,
                told.memory_percent,
                told.message_queue_size,
                told.active_rooms,
            ),
            kernel=None if kernel is None else KernelView(*kernel),
            clock_skew_seconds=None if skew is None else round(skew, 3),
            ended_last_hour=ended,
        )


def describe_quality(liveness: Liveness) -> LineQuality:
    """What the pings of a connection have shown."""
    quality = liveness.quality
    trips = quality.round_trips()
    rtt = None
    if trips is not None:
        rtt = RoundTripTimes(
            trips.samples,
            *(
                round(seconds, 6)
                for seconds in (
                    trips.least,
                    trips.mean,
                    trips.median,
                    trips.p95,
                    trips.most,
                    quality.srtt or 0.0,
                    quality.jitter,
                )
            ),
        )
    return LineQuality(
        quality.score if quality.known else None,
        quality.grade if quality.known else None,
        quality.reasons(),
        round(quality.loss, 3),
        rtt,
        liveness.interval,
        liveness.timeout,
    )


def describe_closed(closed: ClosedConnection) -> Ended:
    """How a connection went."""
    return Ended(
        str(closed.number),
        closed.key.bot_name,
        closed.key.device_id,
        closed.address,
        closed.version,
        closed.reason,
        timestamp_text(closed.made_at),
        timestamp_text(closed.ended_at),
        Traffic(closed.bytes_received, closed.bytes_sent),
        Traffic(closed.messages_received, closed.messages_sent),
        closed.score,
        closed.grade,
        None if closed.rtt is None else round(closed.rtt, 6),
    )
