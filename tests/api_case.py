"""What the tests of the admin API share: a server in virtual time, and a client of its API."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from domaeka.bots.api import Bot
from domaeka.bots.dispatch import BotDispatcher
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.errors import ConfigError
from domaeka.gateway.lifecycle.drain import DrainReport
from domaeka.gateway.lifecycle.migration import (
    MigrationPlan,
    MigrationRefused,
    MigrationReport,
)
from domaeka.interfaces import DeviceKey, Directory
from domaeka.schema import Phase, Reloaded
from domaeka.secrets import Secrets
from domaeka.store.bans import StoredBans
from domaeka.store.chat_search import ChatSearch
from domaeka.store.chatlog import StoredChatLog
from domaeka.store.database import Database
from domaeka.store.devices import StoredDevices
from domaeka.store.roles import StoredRoles
from domaeka.store.rooms import StoredRooms
from domaeka.testing.loop import VirtualBotLoop
from domaeka.web.admin import AdminApi
from domaeka.web.api.chat import ChatPages
from domaeka.web.api.endpoints import PREFIX
from domaeka.web.server import Channel, Site
from domaeka.wire import Delivered, Reply
from tests.bots_fakes import FakeReactor, FakeThreads
from tests.gateway_case import GatewayCase, Peer
from tests.storing import FakeThread, fill

TOKEN = "correct horse"
ROOM_ID = "18398338829933617"
SECRETS = Secrets(secret_key="k" * 32, salt="소금")


class Client:
    """A connection to the API."""

    def __init__(self, channel: Channel) -> None:
        self.transport = StringTransport()
        self.channel = channel
        channel.makeConnection(self.transport)

    def request(
        self, method: str, target: str, headers: Mapping[str, str] = {}, body: bytes = b""
    ) -> None:
        """Send a request."""
        lines = [f"{method} {target} HTTP/1.1", f"Content-Length: {len(body)}"]
        lines += (f"{name}: {value}" for name, value in headers.items())
        self.channel.dataReceived("\r\n".join((*lines, "", "")).encode() + body)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the one answer that has come."""
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.transport.clear()
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


class FakeOperations:
    """
    A server that does what it is told.

    @ivar plans: where it was told to move.
    @ivar refusal: why it does not move, or read its settings.
    """

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.plans: list[MigrationPlan] = []
        self.refusal: str | None = None
        self.drain_report = DrainReport()
        self.migration_report: MigrationReport | None = None

    def reload(self) -> Reloaded:
        """Read the settings again."""
        if self.refusal is not None:
            raise ConfigError(self.refusal)
        return Reloaded(["ping.interval"], ["http.port"])

    def drain(self, reason: str) -> None:
        """Empty the server."""
        self.reasons.append(reason)
        self.drain_report = DrainReport(True, 3, 4, 5, 29.9)

    def call_off_drain(self) -> bool:
        """Serve on."""
        if self.refusal is not None:
            raise ConfigError(self.refusal)
        ran, self.drain_report = self.drain_report.running, DrainReport()
        return ran

    def migrate(self, plan: MigrationPlan) -> "Deferred[MigrationReport]":
        """Move every phone."""
        if self.refusal is not None:
            return fail(MigrationRefused(self.refusal))
        self.plans.append(plan)
        self.migration_report = MigrationReport(Phase.MOVING, plan.host, plan.port)
        return succeed(self.migration_report)

    def call_off_migration(self) -> bool:
        """Move nobody else."""
        ran = self.migration_report is not None and self.migration_report.phase is Phase.MOVING
        if ran and self.migration_report is not None:
            self.migration_report.phase = Phase.CALLED_OFF
        return ran


class ApiCase(GatewayCase):
    """
    A gateway with a real store, and its API.

    Every answer is checked against the description of the API.
    """

    #: The same for all tests, and what was made of it.
    document: Any = None
    validators: ClassVar[dict[tuple[str, str], Draft202012Validator]] = {}

    def setUp(self) -> None:
        super().setUp()
        self.serve_api()

    def serve_api(self, *settings: tuple[str, str]) -> None:
        """
        Start a gateway with its API, in the place of the one before.

        @param settings: keys and values that are not the defaults.
        """
        self.serve(*settings)
        self.thread = FakeThread()
        self.database = Database(
            "sqlite://", self.clock, make_worker=lambda name, reactor: self.thread
        )
        parts = self.context
        self.stored_devices = parts.devices = StoredDevices(
            self.database, self.clock, parts.settings.devices.approval, wall=self.wall
        )
        self.stored_rooms = parts.rooms = StoredRooms(
            self.database, self.clock, parts.settings.rooms.approval, wall=self.wall
        )
        self.stored_devices.add_listener(self.directory.decisions.approval_changed)
        self.forgotten_chat: list[tuple[str, str | None, str | None]] = []
        self.stored_bans = StoredBans(self.database)
        self.stored_roles = StoredRoles(self.database, wall=self.wall)
        self.stored_chat = StoredChatLog(self.database, self.clock, wall=self.wall)
        fill(self.database)
        self.successResultOf(self.database.start())
        self.dispatcher = self.make_dispatcher()
        self.operations = FakeOperations()
        self.api = AdminApi(
            self.make_directory(),
            self.stored_devices,
            self.stored_rooms,
            self.stored_bans,
            self.stored_roles,
            self.dispatcher,
            self.operations,
            limits=parts.limits,
            metrics=self.metrics,
            settings=lambda: parts.settings,
            secrets=lambda: SECRETS,
            forget_chat=self.forget_chat,
            chat=ChatPages(ChatSearch(self.database, self.clock), self.stored_chat),
            watchers=parts.events.watchers,
            timer=self.clock,
            wall=self.wall,
        )
        self.site = Site(self.api.routes(), self.clock, self.metrics, lambda: TOKEN, wall=self.wall)
        self.stored_devices.add_listener(self.api.events.device_decided)
        if ApiCase.document is None:
            ApiCase.document = self.decoded(self.ask_raw("GET", "/openapi.json")[2])
        self.addCleanup(self.close_clients)

    def make_directory(self) -> Directory:
        """What the API asks who is connected."""
        return self.directory.for_api(self.stored_rooms)

    def forget_chat(
        self, bot_name: str, device_id: str | None, room_id: str | None
    ) -> "Deferred[None]":
        """What was said there is to go from the chat log."""
        self.forgotten_chat.append((bot_name, device_id, room_id))
        return succeed(None)

    def close_clients(self) -> None:
        """End what is open."""
        for channel in list(self.site.channels):
            channel.connectionLost(Failure(ConnectionError()))

    def make_dispatcher(self) -> BotDispatcher:
        """Bots with one command."""
        bot = Bot("가게")

        @bot.command("# 가격", aliases=("# price",), help="값을 알려 줍니다")
        async def price(ctx: object) -> str:
            return "100"

        reactor, threads = FakeReactor(), FakeThreads()
        return BotDispatcher(
            [bot],
            reactor,
            threads,
            BotsSettings(),
            BreakerSettings(),
            loop=VirtualBotLoop(reactor, threads),
            observe=lambda command: self.metrics.handler.register(command).observe,
            failed=lambda command: self.metrics.handler_failures.register(command).inc(),
            busy=lambda: None,
        )

    # The client

    def connect_client(self, host: str = "127.0.0.1") -> Client:
        """Somebody connects to the API, on this machine unless another is named."""
        channel = self.site.buildProtocol(IPv4Address("TCP", host, 40_000))
        assert channel is not None
        return Client(channel)

    def ask_raw(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        query: Mapping[str, object] = {},
        **headers: str,
    ) -> tuple[int, dict[str, str], bytes]:
        """
        @param path: behind the prefix, with every name escaped.
        @param headers: with C{_} for C{-}; C{Authorization} is the right one where not given.
        @return: status, headers and body.
        """
        client = self.connect_client()
        target = PREFIX + path + ("?" + urlencode(query) if query else "")
        given = {"Authorization": f"Bearer {TOKEN}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        client.request(method, target, given, body)
        self.run_for(0.0)
        answer = client.answer()
        client.channel.connectionLost(Failure(ConnectionError()))
        return answer

    def ask(self, method: str, path: str, value: object = None, **query: object) -> tuple[int, Any]:
        """
        @param value: what the body says in JSON.
        @return: status and body; checked.
        """
        body = b"" if value is None else json.dumps(value).encode()
        status, _, answer = self.ask_raw(method, path, body, query)
        self.check(method, path, status, answer)
        return status, self.decoded(answer)

    def get(self, path: str, **query: object) -> Any:
        """The body of a page that is there."""
        status, body = self.ask("GET", path, **query)
        self.assertEqual(status, HTTPStatus.OK, body)
        return body

    def refusal(
        self, method: str, path: str, value: object = None, **query: object
    ) -> tuple[int, str, str]:
        """Status, code and text of an error."""
        status, body = self.ask(method, path, value, **query)
        self.assertGreaterEqual(status, 400, body)
        return status, body["error"]["code"], body["error"]["message"]

    def decoded(self, body: bytes) -> Any:
        """What a body says: in JSON, or else a text."""
        if not body:
            return None
        try:
            return json.loads(body)
        except ValueError:
            return body.decode()

    # The description

    def check(self, method: str, path: str, status: int, body: bytes) -> None:
        """An answer is what the description promises."""
        operation = self.operation(method, path)
        if operation is None:
            return
        response = operation["responses"].get(str(status))
        assert response is not None, f"{method} {path}: {status} is not described"
        content = response.get("content")
        if content is None:
            self.assertEqual(body, b"")
            return
        (described,) = content.values()
        known = (operation["operationId"], str(status))
        if known not in self.validators:
            schema = {**described["schema"], "components": self.document["components"]}
            self.validators[known] = Draft202012Validator(schema)
        self.validators[known].validate(self.decoded(body))

    def operation(self, method: str, path: str) -> Any:
        """What is said of a method and a path; L{None} where nothing is."""
        place = self.site.table.find((PREFIX + path).encode())
        route = None if place is None else place.routes.get(method)
        return None if route is None else self.document["paths"][route.path][method.lower()]

    # Phones

    def heard(self, key: DeviceKey, room: str = "방", channel_id: str | None = ROOM_ID) -> Peer:
        """A phone that has authenticated, and on which a room was heard."""
        peer = self.ready(key)
        peer.chat("nothing", room=room, channel_id=channel_id)
        peer.take()
        return peer


def path_of(*names: str) -> str:
    """A path of these names, escaped."""
    return "".join("/" + quote(name, safe="") for name in names)


def replies(peer: Peer) -> list[Reply]:
    """What a phone was given to show."""
    return [frame.reply for frame in peer.take() if isinstance(frame, Delivered)]
