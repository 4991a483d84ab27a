"""Assembly: makes all parts of a server, each from those before it.  None is started."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any, Final, NamedTuple

from twisted.logger import Logger

from domaeka import __version__, interfaces
from domaeka.bots.api import Bot
from domaeka.bots.coroutines import Coroutines
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.schedules import Schedules
from domaeka.bots.threads import Threads
from domaeka.bots.unasked import BotHost
from domaeka.config import Settings, SettingsSource
from domaeka.gateway.authentication import Authentication
from domaeka.gateway.context import Context
from domaeka.gateway.conversation import Conversation
from domaeka.gateway.directory import Directory
from domaeka.gateway.journal import Journal
from domaeka.gateway.lifecycle.drain import Drain
from domaeka.gateway.lifecycle.migrations import Migrations
from domaeka.gateway.transport.connection import TransportContext
from domaeka.gateway.transport.ports import Listener, Ports, Sockets
from domaeka.logs import LogObserver
from domaeka.metrics import Metrics
from domaeka.policies.auth import Signer
from domaeka.policies.limits import AddressLimits, Ban
from domaeka.secrets import Secrets
from domaeka.server.disk import DiskSpace
from domaeka.server.fatal import Fatal
from domaeka.server.preflight import State, operator_command
from domaeka.store.bans import StoredBans
from domaeka.store.bot_values import BotValues
from domaeka.store.chat_bound import ChatBound
from domaeka.store.chat_search import ChatSearch
from domaeka.store.chatlog import StoredChatLog
from domaeka.store.database import Database
from domaeka.store.decisions import DecisionFeed
from domaeka.store.devices import StoredDevices
from domaeka.store.drivers import sqlite_file
from domaeka.store.durable import DurableStore
from domaeka.store.outboxes import StoredOutboxes
from domaeka.store.roles import StoredRoles
from domaeka.store.rooms import StoredRooms
from domaeka.store.schedules import StoredClaims
from domaeka.store.sessions import StoredSessions
from domaeka.store.threads import Worker

#: Name of the file in the state directory that says where phones are being moved.
PLAN_NAME: Final = "migration.json"

_log = Logger()


class Platform(NamedTuple):
    """
    The platform of a server: reactor, clocks, sockets, threads.

    @ivar reactor: its time is monotonic.
    @ivar seconds: a monotonic clock for durations, cheaper to read than the reactor's.
    @ivar wall: the wall clock, in seconds since 1970.
    @ivar threads: where plain commands of bots are called.
    @ivar loop: where those are called that are C{async def}.
    @ivar make_worker: given a name and C{reactor}, makes a thread for the store.
    """

    reactor: Any
    seconds: Callable[[], float]
    wall: Callable[[], float]
    sockets: Sockets
    threads: Threads
    loop: Coroutines
    make_worker: Callable[[str, Any], Worker]


class Keys:
    """
    The secrets that are accepted.

    @ivar secrets: replaced by a reload.
    """

    def __init__(self, secrets: Secrets, wall: Callable[[], float]) -> None:
        self.secrets = secrets
        self._wall = wall

    def signer(self, clock_skew: float) -> Signer:
        """Checks signatures by them.  @param clock_skew: in seconds."""
        secrets = self.secrets
        keys = secrets.accepted_keys(self._wall())
        return Signer(keys, secrets.salt, clock_skew, self._wall, secrets.previous_ends)

    def admin_token(self) -> str:
        """The token that opens the HTTP API."""
        return self.secrets.admin_token

    def health(self) -> str | None:
        """A L{HealthCheck<domaeka.interfaces.HealthCheck>} of the keys."""
        if self.secrets.has_published_key(self._wall()):
            return "the key that old scripts were published with is accepted: everybody knows it"
        return None


class Stores(NamedTuple):
    """The database, and the stores of its tables."""

    database: Database
    decisions: DecisionFeed
    devices: StoredDevices
    rooms: StoredRooms
    sessions: StoredSessions
    chat_log: StoredChatLog
    chat_bound: ChatBound
    chat_search: ChatSearch
    bans: StoredBans
    roles: StoredRoles
    outboxes: StoredOutboxes
    durable: DurableStore
    bot_values: BotValues
    claims: StoredClaims


class Parts(NamedTuple):
    """
    All parts of a server.

    @ivar state_directory: where secrets, database and plan are kept.
    @ivar source: the source of the settings, for a reload.
    @ivar more_bots: bots to load beside those in the settings.
    @ivar directory: the same connections, for the admin API and for bots.
    @ivar http: the bound socket of the HTTP port.
    """

    reactor: Any
    state_directory: Path
    source: SettingsSource
    more_bots: tuple[str, ...]
    observer: LogObserver
    keys: Keys
    dispatcher: BotDispatcher
    stores: Stores
    http: Listener
    context: Context
    connections: Directory
    directory: interfaces.Directory
    fatal: Fatal
    ports: Ports
    drain: Drain
    migrations: Migrations
    disk: DiskSpace


def assemble(
    platform: Platform,
    settings: Settings,
    source: SettingsSource,
    state: State,
    bots: Sequence[Bot],
    observer: LogObserver,
    more_bots: Sequence[str] = (),
) -> Parts:
    """
    Make all parts, and bind the ports' sockets.

    @param bots: the loaded bots: of the settings, and C{more_bots}.
    @raise DomaekaError: a part cannot be made.
    """
    reactor, wall = platform.reactor, platform.wall
    metrics = Metrics()
    keys = Keys(state.secrets, wall)
    signer = keys.signer(settings.auth.clock_skew)
    authentication = Authentication(settings.auth, signer, platform.seconds, wall, metrics)

    def expected(key: int) -> int:
        """Number of devices that may come back to an address: no more than there are places."""
        most = context.settings.server.max_connections
        return min(stores.devices.last_seen.count(key), most)

    limits = AddressLimits(
        settings.limits, platform.seconds, wall, expected, metrics.pools.gave_way
    )
    stores = _make_stores(
        platform,
        settings,
        state,
        authentication,
        metrics,
        is_limited=lambda address: not limits.allows(address),
    )
    dispatcher = BotDispatcher(
        bots,
        reactor,
        platform.threads,
        settings.bots,
        settings.breaker,
        loop=platform.loop,
        observe=lambda command: metrics.handler.register(command).observe,
        failed=lambda command: metrics.handler_failures.labels(command).inc(),
        busy=metrics.refused_messages.inc,
        seconds=platform.seconds,
        holds=stores.roles.holds,
        gave_way=metrics.pools.gave_way,
    )
    http = Listener(platform.sockets, "http.port", settings.http.interface, settings.http.port)
    http.open(settings.socket)
    lift = operator_command("bans lift \0", state.directory)

    context = Context(
        reactor=reactor,
        seconds=platform.seconds,
        wall=wall,
        settings=settings,
        signer=signer,
        authentication=authentication,
        limits=limits,
        sessions=stores.sessions,
        devices=stores.devices,
        rooms=stores.rooms,
        chat_log=stores.chat_log if settings.storage.chat_log else None,
        dispatcher=dispatcher,
        metrics=metrics,
        random=SystemRandom(),
        server_version=__version__,
        node=state.node,
        journal=_make_journal(platform, settings, stores.durable, metrics),
        store_bans=lambda bans: _store_bans(stores.bans, bans),
        lift_command=lambda network: lift.replace("\0", network),
    )
    connections = Directory(context, reactor)
    directory = connections.for_api(stores.rooms)
    schedules = Schedules(
        platform.loop, reactor, stores.claims, wall, lambda: context.settings.bots.timeout
    )
    dispatcher.attach(
        BotHost(
            dispatcher,
            reactor,
            directory,
            stores.rooms,
            stores.bot_values,
            schedules,
            gave_way=metrics.pools.gave_way,
        )
    )
    stores.devices.add_listener(connections.decisions.approval_changed)
    converse = partial(Conversation, context, connections.manager)
    shared = TransportContext(context, connections.admission, converse)
    fatal = Fatal(reactor, source)
    ports = Ports(shared, platform.sockets, reactor, settings, fatal.end)
    migrations = Migrations(
        connections, reactor, state.directory / PLAN_NAME, ports.refuse, ports.listen
    )
    parts = Parts(
        reactor=reactor,
        state_directory=state.directory,
        source=source,
        more_bots=tuple(more_bots),
        observer=observer,
        keys=keys,
        dispatcher=dispatcher,
        stores=stores,
        http=http,
        context=context,
        connections=connections,
        directory=directory,
        fatal=fatal,
        ports=ports,
        drain=Drain(connections, reactor),
        migrations=migrations,
        disk=DiskSpace(_folders(state), reactor),
    )
    _watch(metrics, parts)
    count_commands(metrics, dispatcher)
    return parts


def _make_stores(
    platform: Platform,
    settings: Settings,
    state: State,
    authentication: Authentication,
    metrics: Metrics,
    is_limited: Callable[[str], bool],
) -> Stores:
    reactor, wall = platform.reactor, platform.wall
    database = Database(
        state.database,
        reactor,
        observe_write=lambda took: reactor.callFromThread(metrics.store_write.observe, took),
        observe_failure=metrics.errors.labels("store").inc,
        make_worker=platform.make_worker,
    )
    storage, node = settings.storage, state.node
    decisions = DecisionFeed(database, reactor, node)
    gave_way = metrics.pools.gave_way
    devices = StoredDevices(
        database,
        reactor,
        settings.devices.approval,
        node=node,
        wall=wall,
        gave_way=gave_way,
        is_limited=is_limited,
    )
    rooms = StoredRooms(
        database, reactor, settings.rooms.approval, node=node, wall=wall, gave_way=gave_way
    )
    devices.watch(decisions)
    rooms.watch(decisions)
    roles = StoredRoles(database, node, wall=wall)
    roles.watch(decisions)
    return Stores(
        database=database,
        decisions=decisions,
        devices=devices,
        rooms=rooms,
        sessions=StoredSessions(
            database, reactor, settings.session.lifetime, authentication.accepted_keys, wall=wall
        ),
        chat_log=StoredChatLog(
            database,
            reactor,
            storage.chat_log_days,
            storage.chat_log,
            node=node,
            wall=wall,
            observe_dropped=metrics.chat_lines_dropped.inc,
            gave_way=gave_way,
        ),
        chat_bound=ChatBound(database, reactor, storage.chat_log_max_bytes, gave_way),
        bans=StoredBans(database, node),
        roles=roles,
        outboxes=StoredOutboxes(database, node),
        durable=DurableStore(database, node),
        bot_values=BotValues(database, reactor, gave_way),
        claims=StoredClaims(database, node, wall=wall),
        chat_search=ChatSearch(database, reactor),
    )


def _make_journal(
    platform: Platform, settings: Settings, store: DurableStore, metrics: Metrics
) -> Journal:
    def observe(seconds: float, messages: int) -> None:
        metrics.durable_commit.observe(seconds)
        metrics.durable_commit_messages.observe(messages)

    journal = Journal(
        store.store,
        platform.reactor.callLater,
        platform.seconds,
        platform.wall,
        observe,
        settings.storage.durable == "ack",
    )
    metrics.durable_held.watch(lambda: journal.held)
    return journal


def _folders(state: State) -> list[Path]:
    """Those that fill up: the state directory, and that of SQLite's file."""
    file = sqlite_file(state.database)
    return [state.directory, *([] if file is None else [file.parent])]


def _store_bans(stored: StoredBans, bans: Sequence[Ban]) -> None:
    stored.put(bans).addErrback(
        lambda failure: _log.error(
            "bans are in force, but not stored: {error}", error=failure.getErrorMessage()
        )
    )


def _watch(metrics: Metrics, parts: Parts) -> None:
    """Connect the gauges to the parts that they read."""
    context, admission, stores = parts.context, parts.connections.admission, parts.stores
    budget, registry = context.budget, parts.connections.registry
    metrics.connections.watch(lambda: admission.taken)
    metrics.phones.watch(lambda: admission.phones)
    metrics.bots_loop_held.watch(parts.dispatcher.loop_held)
    metrics.clock_offset.watch(context.authentication.clock_check.offset)
    metrics.draining.watch(lambda: float(context.serving.is_leaving))
    metrics.bans.watch(lambda: context.limits.banned)
    metrics.sessions.watch(stores.sessions.live)
    metrics.breaker_state.refresh = lambda: _watch_breakers(metrics, parts.dispatcher)
    metrics.disk_free.watch(parts.disk.free)
    metrics.certificate_expires.watch(lambda: parts.ports.certificate_ends)
    metrics.outbox_bytes.watch(lambda: budget.used)
    metrics.outbox_messages.watch(
        lambda: sum(device.outbox.messages for device in registry.devices())
    )
    metrics.pacing_held.watch(
        lambda: sum(device.outbox.held_by_pace for device in registry.devices())
    )
    metrics.store_queue.watch(lambda: stores.database.waiting + stores.chat_log.waiting)


def _watch_breakers(metrics: Metrics, dispatcher: BotDispatcher) -> None:
    """Register the breaker of every command, and of every service named so far."""
    breakers = dispatcher.breakers()
    metrics.breaker_state.keep(breakers)
    for name, breaker in breakers.items():
        metrics.breaker_state.register(name).set(float(breaker.state))


def count_commands(metrics: Metrics, dispatcher: BotDispatcher) -> None:
    """Register every command with the metrics."""
    names = {command.name for command in dispatcher.handlers()}
    metrics.handler.keep(names)
    metrics.handler_failures.keep(names)
    for name in names:
        metrics.handler_failures.register(name)
