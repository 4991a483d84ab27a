"""The directory of the admin API, for a server that stands alone."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from domaeka.gateway.context import Context
from domaeka.gateway.directory.addressing import find_target
from domaeka.gateway.directory.decisions import Decisions
from domaeka.gateway.directory.delivery import Deliveries
from domaeka.gateway.directory.history import History
from domaeka.gateway.directory.pages import page_of, place_cursor, place_in, read_place
from domaeka.gateway.directory.registry import Registry
from domaeka.gateway.joints import Member
from domaeka.gateway.views import ClosedConnection, ConnectionFigures
from domaeka.interfaces import (
    Ban,
    Destination,
    DeviceKey,
    MessageRefused,
    NotSent,
    Presence,
    Priority,
    RoomIndex,
)
from domaeka.policies.cursors import cursor, read_cursor
from domaeka.pools import Pool
from domaeka.schema import (
    ClosedConnections,
    ClosedQuery,
    Connection,
    Connections,
    ConnectionsQuery,
    DeliveryStatus,
    Message,
    Queue,
)
from domaeka.wire import Media, Reply, timestamp_text

_NOTHING_WAITS: Final = Queue(0, 0, 0)


class LocalDirectory:
    """A L{Directory<domaeka.interfaces.Directory>} that answers at once, from memory."""

    def __init__(
        self,
        context: Context,
        registry: Registry,
        decisions: Decisions,
        history: History,
        rooms: RoomIndex,
    ) -> None:
        self._context = context
        self._registry = registry
        self._decisions = decisions
        self._history = history
        self._rooms = rooms
        gave_way = partial(context.metrics.pools.gave_way, Pool.DELIVERIES)
        self._sent = Deliveries(f"{context.random.getrandbits(64):016x}", gave_way=gave_way)

    # Connections

    def connections(self, query: ConnectionsQuery) -> Connections:
        """A page of connections; the full views are made for those on the page alone."""
        order = query.sort
        place = place_in(order)
        shown, last, total = page_of(
            self._wanted(query),
            lambda found: place(found[0]),
            read_place(order, query.after),
            query.limit,
            query.order == "desc",
        )
        return Connections(
            self._described([member for _, member in shown]),
            None if last is None else place_cursor(order, last),
            total,
        )

    def connection(self, key: DeviceKey) -> Connection | None:
        member = self._registry.find(key)
        return None if member is None else self._described([member])[0]

    def closed(self, query: ClosedQuery) -> ClosedConnections:
        def wanted(closed: ClosedConnection) -> bool:
            return (
                query.bot in (None, closed.key.bot_name)
                and query.device in (None, closed.key.device_id)
                and query.address in (None, closed.address)
                and query.reason in (None, closed.reason)
            )

        before = read_cursor(query.after, int)
        found = self._history.page(before, query.limit + 1, wanted)
        shown = found[: query.limit]
        return ClosedConnections(
            [closed.as_answer() for _, closed in shown],
            cursor(shown[-1][0]) if len(found) > query.limit else None,
        )

    def _wanted(self, query: ConnectionsQuery) -> Iterator[tuple[ConnectionFigures, Member]]:
        for member in self._registry:
            peer = member.peer
            if (
                peer.key is not None
                and not peer.closing
                and query.bot in (None, peer.key.bot_name)
                and query.address in (None, peer.address)
            ):
                figures = member.brief()
                if query.grade in (None, figures.grade):
                    yield figures, member

    def _described(self, members: Sequence[Member]) -> list[Connection]:
        """The views of these connections."""
        ended = self._history.recent(self._context.seconds())
        found = []
        for member in members:
            view = member.view()
            view.ended_last_hour = ended[DeviceKey(view.bot, view.device)]
            found.append(view)
        return found

    # Devices

    def presence(self, keys: Sequence[DeviceKey]) -> list[Presence]:
        return [self._presence(key) for key in keys]

    def _presence(self, key: DeviceKey) -> Presence:
        device = self._registry.device(key)
        if device is None:
            return Presence(False, None, _NOTHING_WAITS)
        if not device.is_connected:
            return Presence(False, None, device.queue)
        assert device.connection is not None
        context, peer = self._context, device.connection.peer
        silent = max(0.0, context.steady.exact() - max(peer.made_at, peer.last_heard))
        return Presence(
            True,
            context.wall() - silent if peer.signed else None,
            device.queue,
            peer.app_started_at if "delivery" in peer.capabilities else None,
        )

    def forget(self, key: DeviceKey) -> None:
        self._decisions.forget(key)
        self._rooms.forget_device(key)

    def ban_made(self, ban: Ban) -> None:
        self._decisions.ban_made(ban)

    # Messages

    def send(
        self,
        destination: Destination,
        contents: Sequence[str | Media],
        ttl: float | None,
        priority: Priority,
    ) -> str:
        context = self._context
        if not context.serving.takes_work:
            raise MessageRefused(NotSent.SHUTTING_DOWN, "the server takes no new work")
        key, room, channel_id = find_target(destination, context.devices, self._rooms)
        device = self._registry.get_or_create(key)
        message = self._sent.enter(key, room, channel_id, len(contents), context.wall())
        for number, content in enumerate(contents):
            reply = Reply(room, channel_id, key.bot_name, content)
            device.send(reply, ttl, message.listener(number), priority)
        if all(status is DeliveryStatus.DROPPED for status in message.statuses):
            raise MessageRefused(NotSent.QUEUE_FULL, "there is no room for it to wait")
        return message.id

    def message(self, message_id: str) -> Message | None:
        sent = self._sent.find(message_id)
        if sent is None:
            return None
        return Message(
            sent.id,
            sent.state,
            *sent.key,
            sent.room,
            sent.channel_id,
            timestamp_text(sent.made_at),
            sent.reason or None,
        )
