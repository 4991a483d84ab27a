"""The connection manager: gives each device its newest connection."""

from typing import Final, Protocol

from twisted.logger import Logger

from domaeka.errors import CloseReason, ErrorCode, WireError
from domaeka.gateway.context import Context
from domaeka.gateway.device import Device
from domaeka.gateway.directory.admission import Admission
from domaeka.gateway.directory.history import History
from domaeka.gateway.directory.registry import Registry
from domaeka.gateway.joints import Member
from domaeka.gateway.peer import Peer
from domaeka.gateway.serving import ServerState
from domaeka.gateway.views import ClosedConnection, ConnectionName
from domaeka.interfaces import Approval, DeviceFacts, DeviceKey

#: Takeovers within a minute by which a device is probably two phones.
TAKEOVERS_SUSPECT: Final = 5
#: The bot name under which servers shake hands with each other.
SERVER_NAME: Final = "domaeka"


class Mover(Protocol):
    """A migration, as the connection manager sees it."""

    def client_came(self, member: Member) -> None:
        """Note that a peer has shaken hands."""

    def client_arrived(self, peer: Peer) -> None:
        """Note that a client has arrived at the new server."""


def server_key(node: str) -> DeviceKey:
    """The device key of the server C{node}, for handshakes with other servers."""
    return DeviceKey(SERVER_NAME, node[:128])


class ConnectionManager:
    """The L{Membership<domaeka.gateway.joints.Membership>} of conversations."""

    log = Logger()

    def __init__(self, context: Context, registry: Registry, history: History) -> None:
        self._context = context
        self._registry = registry
        self._history = history
        self.admission = Admission(context, registry)
        self._mover: Mover | None = None
        self._last_number = 0

    # Membership

    def next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def admit(self, member: Member) -> None:
        self.admission.admit(member)

    def named(self, member: Member, key: DeviceKey) -> None:
        self.admission.named(member, key)

    def doubted(self, member: Member) -> None:
        self.admission.doubted(member)

    def may_prove(self, member: Member, key: DeviceKey, signed: bool) -> None:
        device = self._registry.device(key)
        older = None if device is None else device.connection
        if not signed and older is not None and older.peer.signed and not older.peer.closing:
            raise WireError(ErrorCode.AUTH_REQUIRED, "a signature is required")
        self.admission.may_prove(member, key, signed)

    def attach(self, member: Member, key: DeviceKey, facts: DeviceFacts) -> Device:
        device = self._registry.get_or_create(key)
        peer = member.peer
        if "ack" in peer.capabilities and not device.outbox.epoch:
            device.outbox.epoch = self._context.epoch_of(peer.number)  # already sent
        self.ask_approval(device, facts, peer.signed)
        older: Member | None = device.connection  # type: ignore[assignment]  # L{attach} put it there
        if older is not None and older is not member:
            if not older.peer.closing:
                self._note_takeover(device)
            older.close(CloseReason.TAKEN_OVER, ErrorCode.TAKEN_OVER, "a newer connection came")
        device.attached(member)
        self.admission.proven(member, device)
        events = self._context.events
        if events.watchers:
            events.connected(ConnectionName(peer.number, key, peer.address, peer.version))
        return device

    def ask_approval(self, device: Device, facts: DeviceFacts, signed: bool) -> None:
        devices = self._context.devices
        if signed:
            device.approved = devices.enter(device.key, facts) is Approval.APPROVED
        else:  # unproven: served only where every device is, and not entered
            approval = devices.approval(device.key)
            anybody = approval is None and self._context.settings.devices.approval == "signed"
            device.approved = anybody or approval is Approval.APPROVED
        self.admission.judged(device)

    def epoch(self, peer: Peer) -> str:
        # Before its proof no peer learns whether there is a device of its name.
        known = peer.authenticated and peer.key is not None
        device = self._registry.device(peer.key) if known and peer.key is not None else None
        return self._context.epoch_of(peer.number) if device is None else device.epoch

    def greeted(self, member: Member) -> None:
        if self._mover is not None:
            self._mover.client_came(member)

    def moved(self, peer: Peer) -> None:
        if self._mover is not None:
            self._mover.client_arrived(peer)

    def replayed(self, number: int, peer: Peer) -> None:
        owner = self._registry.member(number)
        if owner is not None and owner is not self._registry.member(peer.number):
            owner.signature_replayed(peer)

    def refuses_server(self, key: DeviceKey) -> bool:
        # While our phones move, those of another server would be sent back and forth.
        return (
            key.bot_name == SERVER_NAME
            and key != server_key(self._context.node)
            and self._context.serving.state in (ServerState.MOVING, ServerState.AWAY)
        )

    def closing(self, member: Member) -> bool:
        return self.admission.closing(member)

    def remove(self, member: Member, closed: ClosedConnection) -> None:
        peer = member.peer
        self.admission.remove(member)
        if peer.authenticated and peer.key is not None:
            device = self._registry.device(peer.key)
            if device is not None and device.connection is member:
                device.disconnected()
                if peer.signed:
                    silent = max(0.0, self._context.steady.now - peer.last_heard)
                    self._context.devices.heard(device.key, self._context.wall() - silent)
        self._history.ended(peer, closed)
        if peer.authenticated:
            self._context.events.closed(closed)

    def follow(self, mover: Mover | None) -> None:
        """Notify a migration of connections that come and go; L{None}: no longer."""
        self._mover = mover

    # Inside

    def _note_takeover(self, device: Device) -> None:
        """Warn of two phones under one name, which replace each other for ever."""
        now = self._context.steady.now
        device.takeovers = (*(time for time in device.takeovers if now - time < 60), now)
        if len(device.takeovers) == TAKEOVERS_SUSPECT:
            device.takeovers = ()
            self._context.metrics.errors.labels("duplicate device").inc()
            self.log.warn(
                "{key}: {count} connections took each other's place within a minute: are there "
                "two phones of this name?",
                key=device.key,
                count=TAKEOVERS_SUSPECT,
            )
