"""
The admin API: what an operator sees of a server, and does to it.
"""

from functools import cached_property
from typing import Any

from domaeka.bots.dispatch import BotDispatcher
from domaeka.gateway.registry import Registry
from domaeka.store.bans import StoredBans
from domaeka.store.devices import StoredDevices
from domaeka.store.rooms import StoredRooms
from domaeka.web.api.bans import BanPages
from domaeka.web.api.bots import BotPages
from domaeka.web.api.changes import ChangePages, Operations
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
        operations: Operations,
    ) -> None:
        """@param operations: the server itself."""
        parts = registry.parts
        self.events = Events(parts.seconds)
        registry.watchers.append(self.events)
        devices.add_listener(self.events.device_decided)
        self._endpoints: tuple[Endpoint, ...] = (
            *ConnectionPages(registry).endpoints(),
            *DevicePages(registry, devices, rooms, self.events.room_decided).endpoints(),
            *MessagePages(registry, rooms).endpoints(),
            *BanPages(registry, bans, self.events.lifted).endpoints(),
            *BotPages(dispatcher, parts.metrics).endpoints(),
            *self.events.endpoints(),
            *ChangePages(operations, lambda: parts.settings).endpoints(),
            Endpoint(
                method="GET",
                path="/openapi.json",
                serve=lambda ask: Answer(self._document),
                subject="description",
                summary="This description",
                answer=dict[str, Any],
            ),
        )

    @cached_property
    def _document(self) -> bytes:
        # Some 20 ms, and few ask for it.
        return describe(self._endpoints, EVENT_TYPES)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All that can be done."""
        return self._endpoints

    def routes(self) -> tuple[Route, ...]:
        """What is to be served."""
        return tuple(endpoint.route() for endpoint in self._endpoints)
