"""The admin API: views of a server, and operations on it, for operators."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from domaeka.bots.dispatch import BotDispatcher
from domaeka.config import Settings
from domaeka.gateway.views import Watcher
from domaeka.interfaces import Directory, Records
from domaeka.metrics import Metrics
from domaeka.policies.limits import AddressLimits
from domaeka.schema import EVENT_TYPES
from domaeka.secrets import Secrets
from domaeka.store.bans import StoredBans
from domaeka.store.roles import StoredRoles
from domaeka.web.api.bans import BanPages
from domaeka.web.api.bots import BotPages
from domaeka.web.api.changes import ChangePages, Operations
from domaeka.web.api.chat import ChatPages
from domaeka.web.api.connections import ConnectionPages
from domaeka.web.api.endpoints import Endpoint
from domaeka.web.api.events import Events
from domaeka.web.api.messages import MessagePages
from domaeka.web.api.openapi import describe
from domaeka.web.api.records import DevicePages, ForgetChat, RoomPages, StoreWait
from domaeka.web.api.roles import RolePages
from domaeka.web.api.script import ScriptPages
from domaeka.web.routes import Answer, Route
from domaeka.web.server import Timer


class AdminApi:
    """
    Everything below C{/api/v1}.

    @ivar events: sends events to the streams.
    @ivar endpoints: all endpoints.
    """

    def __init__(
        self,
        directory: Directory,
        devices: Records,
        rooms: Records,
        bans: StoredBans,
        roles: StoredRoles,
        dispatcher: BotDispatcher,
        operations: Operations,
        *,
        limits: AddressLimits,
        metrics: Metrics,
        settings: Callable[[], Settings],
        secrets: Callable[[], Secrets],
        forget_chat: ForgetChat,
        chat: ChatPages,
        watchers: list[Watcher],
        timer: Timer,
        wall: Callable[[], float],
    ) -> None:
        """
        @param secrets: those in force.
        @param watchers: those of the gateway's events.
        """
        events = self.events = Events(watchers, wall, metrics.pools.gave_way)
        store = StoreWait(timer)
        self.endpoints: tuple[Endpoint, ...] = (
            *ConnectionPages(directory).endpoints(),
            *DevicePages(directory, devices, events.forgotten, forget_chat, store).endpoints(),
            *RoomPages(
                directory, rooms, events.forgotten, forget_chat, store, events.room_decided
            ).endpoints(),
            *chat.endpoints(),
            *ScriptPages(secrets, settings).endpoints(),
            *MessagePages(directory, settings).endpoints(),
            *BanPages(directory, limits, bans, settings, events.lifted, store).endpoints(),
            *RolePages(roles, store).endpoints(),
            *BotPages(dispatcher, metrics).endpoints(),
            *events.endpoints(),
            *ChangePages(operations, settings).endpoints(),
            Endpoint(
                method="GET",
                path="/openapi.json",
                serve=lambda request: Answer(self._document),
                subject="description",
                summary="This description",
                answer=dict[str, Any],
            ),
        )

    @cached_property
    def _document(self) -> bytes:
        # Some 20 ms, and few ask for it.
        return describe(self.endpoints, EVENT_TYPES)

    def routes(self) -> tuple[Route, ...]:
        """The routes to serve."""
        return tuple(endpoint.route() for endpoint in self.endpoints)
