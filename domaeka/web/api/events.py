"""
What happens, as it happens: a stream of server-sent events.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from domaeka.gateway.history import ClosedConnection
from domaeka.gateway.session import Session
from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.messages import timestamp_text
from domaeka.policies import limits
from domaeka.policies.liveness import Liveness
from domaeka.policies.quality import Grade
from domaeka.web.api.bans import Ban, describe_ban
from domaeka.web.api.connections import Ended, describe_closed
from domaeka.web.api.endpoints import Ask, Endpoint, Time
from domaeka.web.routes import EVENTS, EventStream, Refusal, server_sent

#: Most clients that are told at a time.
MAX_STREAMS: Final = 20


class Connected(msgspec.Struct):
    """A connection has authenticated."""

    at: Time
    id: str
    bot: str
    device: str
    address: str
    version: str


class Graded(msgspec.Struct):
    """The grade of a connection is another one."""

    at: Time
    id: str
    bot: str
    device: str
    grade: Grade
    score: int
    reasons: list[str]


class Decided(msgspec.Struct):
    """A decision on a device or a room."""

    at: Time
    kind: Literal["device", "room"]
    bot: str
    name: Annotated[str, Meta(description="the device's, or the room's id")]
    status: Approval


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
    "ban": Ban,
    "lifted": Ban,
    "drain": Changed,
    "migration": Changed,
}


class Events:
    """
    Tells all streams of what happens.  It costs next to nothing while there are none.

    A L{Watcher<domaeka.gateway.registry.Watcher>} of connections and bans.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """@param seconds: the time now, in seconds since 1970."""
        self._seconds = seconds
        self._streams: list[EventStream] = []

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What is to be served."""
        return (
            Endpoint(
                method="GET",
                path="/events",
                serve=self.open,
                subject="events",
                summary="What happens from now on, as server-sent events",
                answer=str,
                content_type=EVENTS,
                refusals={HTTPStatus.SERVICE_UNAVAILABLE: f"{MAX_STREAMS} clients listen already"},
            ),
        )

    def open(self, ask: Ask[Any, None]) -> EventStream:
        """A stream of all that happens from now on."""
        if len(self._streams) >= MAX_STREAMS:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "TOO_MANY",
                f"{MAX_STREAMS} clients listen already",
            )
        stream = EventStream(self._streams.remove)
        self._streams.append(stream)
        return stream

    # Watcher

    def connected(self, session: Session) -> None:
        """A connection has authenticated."""
        if self._streams and session.key is not None:
            self._say(
                "connected",
                Connected(
                    self._now,
                    str(session.number),
                    *session.key,
                    session.address,
                    session.facts.version if session.facts is not None else "",
                ),
            )

    def graded(self, session: Session, liveness: Liveness) -> None:
        """The grade of a connection that has authenticated is another one."""
        if self._streams and session.key is not None:
            quality = liveness.quality
            self._say(
                "grade",
                Graded(
                    self._now,
                    str(session.number),
                    *session.key,
                    quality.grade,
                    quality.score,
                    quality.reasons(),
                ),
            )

    def closed(self, closed: ClosedConnection) -> None:
        """A connection that had authenticated has ended."""
        if self._streams:
            self._say("closed", describe_closed(closed))

    def banned(self, ban: limits.Ban) -> None:
        """A ban is in force."""
        self._say("ban", describe_ban(ban))

    def changed(self, what: str, state: str) -> None:
        """A drain, or a migration, has come to a new state."""
        self._say(what, Changed(self._now, state))

    # Decisions

    def lifted(self, ban: limits.Ban) -> None:
        """A ban was lifted."""
        self._say("lifted", describe_ban(ban))

    def device_decided(self, key: DeviceKey, approval: Approval) -> None:
        """A decision on a device: an L{ApprovalListener<domaeka.interfaces.ApprovalListener>}."""
        self._say("approval", Decided(self._now, "device", *key, approval))

    def room_decided(self, key: RoomKey, approval: Approval) -> None:
        """A decision on a room."""
        self._say("approval", Decided(self._now, "room", *key, approval))

    @property
    def _now(self) -> str:
        return timestamp_text(self._seconds())

    def _say(self, name: str, data: msgspec.Struct) -> None:
        if self._streams:
            event = server_sent(name, data)
            for stream in list(self._streams):
                stream.say(event)
