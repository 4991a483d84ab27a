"""
The admin API: what an operator sees of a server, and does to it.
"""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from domaeka.bots.dispatch import BotDispatcher
from domaeka.gateway.registry import Registry
from domaeka.store.bans import StoredBans
from domaeka.store.devices import StoredDevices
from domaeka.store.rooms import StoredRooms
from domaeka.web.api.bans import BanPages
from domaeka.web.api.bots import BotPages
from domaeka.web.api.changes import ChangePages, Operations, Reloaded
from domaeka.web.api.connections import ConnectionPages
from domaeka.web.api.devices import DevicePages
from domaeka.web.api.endpoints import Endpoint
from domaeka.web.api.events import EVENT_TYPES, Events
from domaeka.web.api.messages import MessagePages
from domaeka.web.api.openapi import describe
from domaeka.web.routes import Answer, Route


class AdminApi:
    """
    Everything below C{/api/v1}.

    @ivar events: tells the streams what happens.
    """

    def __init__(
        self,
        registry: Registry,
        devices: StoredDevices,
        rooms: StoredRooms,
        bans: StoredBans,
        dispatcher: BotDispatcher,
        operations: Operations | None = None,
        reload: "Callable[[], Deferred[Reloaded] | Reloaded] | None" = None,
    ) -> None:
        """
        @param operations: stops and moves the server; without it these are not served.
        @param reload: see L{ChangePages}.
        """
        parts = registry.parts
        self.events = Events(parts.seconds)
        registry.watchers.append(self.events)
        devices.add_listener(self.events.device_decided)
        self._endpoints: list[Endpoint] = [
            *ConnectionPages(registry).endpoints(),
            *DevicePages(registry, devices, rooms, self.events.room_decided).endpoints(),
            *MessagePages(registry, rooms).endpoints(),
            *BanPages(registry, bans, self.events.lifted).endpoints(),
            *BotPages(dispatcher, parts.metrics).endpoints(),
            *self.events.endpoints(),
        ]
        if operations is not None:
            changes = ChangePages(operations, lambda: parts.settings, reload)
            self._endpoints += changes.endpoints()
        self._endpoints.append(
            Endpoint(
                method="GET",
                path="/openapi.json",
                serve=lambda ask: Answer(self._document),
                subject="description",
                summary="This description",
                answer=dict[str, Any],
            )
        )
        self._document = describe(self._endpoints, EVENT_TYPES)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All that can be done."""
        return tuple(self._endpoints)

    def routes(self) -> tuple[Route, ...]:
        """What is to be served."""
        return tuple(endpoint.route() for endpoint in self._endpoints)
