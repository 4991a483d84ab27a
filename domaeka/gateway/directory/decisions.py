"""Decisions of operators, applied to open connections."""

import contextlib
from ipaddress import ip_address, ip_network

from twisted.logger import Logger

from domaeka.errors import CloseReason, ErrorCode
from domaeka.gateway.context import Context
from domaeka.gateway.directory.manager import ConnectionManager
from domaeka.gateway.directory.registry import Registry
from domaeka.gateway.joints import Member
from domaeka.interfaces import Approval, Ban, DeviceFacts, DeviceKey


class Decisions:
    """Settings, keys, approvals and bans, as they change while phones are connected."""

    log = Logger()

    def __init__(self, context: Context, registry: Registry, manager: ConnectionManager) -> None:
        self._context = context
        self._registry = registry
        self._manager = manager

    def apply_settings(self) -> None:
        """Apply changed settings to the open connections."""
        self.end_old_keys()
        for device in self._registry.devices():
            device.apply_pacing()
        for member in self._registry:
            with self._registry.guard(member):
                self._apply_settings(member)

    def end_old_keys(self) -> None:
        """Close connections whose key has ended, so that they prove themselves again."""
        accepted = self._context.authentication.accepted_keys()
        count = 0
        for member in self._registry:
            peer = member.peer
            if peer.authenticated and not peer.closing and peer.key_id not in accepted:
                count += 1
                text = "the key is accepted no more: prove yourself again"
                with self._registry.guard(member):
                    member.close(CloseReason.AUTHENTICATION_FAILED, ErrorCode.AUTH_FAILED, text)
        if count:
            self.log.info("a key has ended: {count} connections with it are closed", count=count)

    def store_read(self) -> None:
        """
        The store has said whom an operator has refused: decide on the devices that came before, and
        have what they said be answered.
        """
        for member in self._registry:
            peer = member.peer
            if peer.authenticated and peer.key is not None and peer.facts is not None:
                with self._registry.guard(member):
                    device = self._registry.get_or_create(peer.key)
                    self._manager.ask_approval(device, peer.facts, peer.signed)
        for device in self._registry.devices():
            if device.connection is None and device.pending:  # it is entered when it is back
                self._manager.ask_approval(device, DeviceFacts(version=""), False)
        self._context.held.release(self._context.call_soon)
        for device in self._registry.devices():
            self._manager.admission.judged(device)

    def enter_waiting(self) -> None:
        """Have devices be entered that were too many of their address when they signed."""
        for member in self._registry:
            peer = member.peer
            if not peer.signed or peer.closing or peer.key is None or peer.facts is None:
                continue
            device = self._registry.device(peer.key)
            if device is None or device.approved or device.connection is not member:
                continue
            if self._context.devices.approval(peer.key) is None:
                self._manager.ask_approval(device, peer.facts, True)

    def approval_changed(self, key: DeviceKey, approval: Approval) -> None:
        """Apply an approval to the open connection, and to what waits, at once."""
        device = self._registry.device(key)
        if device is not None:
            device.approved = approval is Approval.APPROVED
            self._manager.admission.judged(device)
            if approval not in (Approval.APPROVED, Approval.PENDING):
                device.outbox.clear()

    def forget(self, key: DeviceKey) -> None:
        """Drop what waits for a device, unless it is connected."""
        device = self._registry.device(key)
        if device is not None and not device.is_connected:
            device.reset()

    def ban_made(self, ban: Ban) -> None:
        """End the connections of a network that an operator has banned."""
        self._context.events.banned(ban)
        network = ip_network(ban.network)
        for member in self._registry:
            with contextlib.suppress(ValueError):  # a local socket has no such address
                if ip_address(member.peer.address) in network:
                    self.shut_out(member)

    def ban_heard(self, ban: Ban) -> None:
        """Put in force a ban that another server on the store has made."""
        self._context.limits.load([ban])
        if not ban.in_force(self._context.wall()):
            return
        if ban.made_by:
            self.ban_made(ban)
        else:  # as here, it ends no connection that has proven itself
            self._context.events.banned(ban)

    def shut_out(self, member: Member, why: str = "this address is banned") -> None:
        """End the connection of a banned or denied peer."""
        with self._registry.guard(member):
            member.close(CloseReason.BANNED, ErrorCode.BANNED, why)

    def _apply_settings(self, member: Member) -> None:
        peer = member.peer
        if self._context.limits.denies(peer.address):
            self.shut_out(member, "this address is denied")
            return
        member.apply_settings()
        if peer.authenticated and peer.key is not None and peer.facts is not None:
            device = self._registry.get_or_create(peer.key)
            if not device.approved:
                self._manager.ask_approval(device, peer.facts, peer.signed)
        member.wake()  # what waited for its pace may leave now
