"""The stream of server-sent events: what happens, as it happens."""

from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Literal

import msgspec

from domaeka.gateway.views import ClosedConnection, ConnectionName, Watcher
from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.policies import limits
from domaeka.pools import Pool
from domaeka.schema import Changed, Connected, Decided, Forgotten, Graded, LineQuality
from domaeka.web.api.bans import describe_ban
from domaeka.web.api.endpoints import EndpointGroup, Request, endpoint
from domaeka.web.routes import EVENTS, EventStream, Refusal, server_sent
from domaeka.wire import timestamp_text

#: Most clients that read the stream at a time.
MAX_STREAMS: Final = 20


class Events(EndpointGroup):
    """Sends events to all streams.  It listens to the gateway only while there are any."""

    def __init__(
        self,
        watchers: list[Watcher],
        wall: Callable[[], float],
        gave_way: Callable[[Pool, object], object],
    ) -> None:
        """
        @param watchers: those of the gateway's events.
        @param gave_way: called with an address whose stream is ended, or not begun.
        """
        self._watchers = watchers
        self._wall = wall
        self._gave_way = gave_way
        #: Those that are open, in the order in which they began, each with its client's address.
        self._streams: dict[EventStream, str] = {}

    @endpoint(
        "GET",
        "/events",
        "What happens from now on, as server-sent events",
        answer=str,
        content_type=EVENTS,
        refusals={HTTPStatus.SERVICE_UNAVAILABLE: f"{MAX_STREAMS} clients listen already"},
    )
    def open(self, request: Request[Any, None]) -> EventStream:
        """
        A stream of all events from now on.

        If there are too many, the oldest of the address with the most is ended for it, unless that
        is the client's own: then it is refused.
        """
        if len(self._streams) >= MAX_STREAMS and not self._make_room(request.peer):
            self._gave_way(Pool.EVENT_STREAMS, request.peer)
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, "TOO_MANY", f"{MAX_STREAMS} clients listen already"
            )
        stream = EventStream(self._left)
        if not self._streams:
            self._watchers.append(self)
        self._streams[stream] = request.peer
        return stream

    def _make_room(self, peer: str) -> bool:
        """End a stream of the address with the most, if it has more than C{peer} will have."""
        held = Counter(self._streams.values())
        largest, count = held.most_common(1)[0]
        if count <= held[peer] + 1:
            return False
        self._gave_way(Pool.EVENT_STREAMS, largest)
        next(stream for stream, host in self._streams.items() if host == largest).close()
        return True

    def _left(self, stream: EventStream) -> None:
        del self._streams[stream]
        if not self._streams:
            self._watchers.remove(self)

    # Watcher

    def connected(self, name: ConnectionName) -> None:
        """A connection has authenticated."""
        self._say(
            "connected",
            Connected(self._now, str(name.number), *name.key, name.address, name.version),
        )

    def graded(self, name: ConnectionName, quality: LineQuality) -> None:
        """The grade of a connection that has authenticated has changed."""
        grade, score = quality.grade, quality.score
        if grade is not None and score is not None:
            about = self._now, str(name.number), *name.key
            self._say("grade", Graded(*about, grade, score, quality.reasons))

    def closed(self, closed: ClosedConnection) -> None:
        """A connection that had authenticated has ended."""
        self._say("closed", closed.as_answer())

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

    def forgotten(self, kind: Literal["device", "room"], key: DeviceKey | RoomKey) -> None:
        """An operator has removed the record of a device, or of a room."""
        self._say("forgotten", Forgotten(self._now, kind, *key))

    @property
    def _now(self) -> str:
        return timestamp_text(self._wall())

    def _say(self, name: str, data: msgspec.Struct) -> None:
        if self._streams:
            event = server_sent(name, data)
            for stream in list(self._streams):
                stream.say(event)
