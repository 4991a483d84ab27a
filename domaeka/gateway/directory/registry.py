"""The registry: an index of connections and of the devices behind them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from twisted.logger import Logger

from domaeka.errors import CloseReason, ErrorCode
from domaeka.gateway.context import Context
from domaeka.gateway.device import Device
from domaeka.gateway.joints import Member
from domaeka.interfaces import Approval, DeviceKey
from domaeka.policies.holdings import Holdings
from domaeka.pools import Pool

#: Most devices that are kept without a connection: this many times the limit of connections, and
#: the least such bound.
AWAY_SHARE: Final = 4
LEAST_AWAY: Final = 1000


class _Guard:
    __slots__ = ("_failed", "_member")

    def __init__(self, failed: Callable[[Member], object], member: Member) -> None:
        self._failed = failed
        self._member = member

    def __enter__(self) -> None:
        """Nothing has failed yet."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        failed = isinstance(error, Exception)
        if failed:
            self._failed(self._member)
        return failed


class Registry:
    """An index of connections, closing ones included, and of devices, connected or not."""

    log = Logger()

    def __init__(self, context: Context) -> None:
        self._context = context
        self._members: dict[int, Member] = {}
        self._devices: dict[DeviceKey, Device] = {}

    # Connections

    def __iter__(self) -> Iterator[Member]:
        """A copy of the connections, closing ones included."""
        return iter(list(self._members.values()))

    @property
    def connections(self) -> int:
        """Number of connections, closing ones included."""
        return len(self._members)

    def add(self, member: Member) -> None:
        """Enter a connection."""
        self._members[member.peer.number] = member

    def discard(self, member: Member) -> bool:
        """Remove a connection.  @return: whether it was here."""
        return self._members.pop(member.peer.number, None) is not None

    def member(self, number: int) -> Member | None:
        """The connection with this number, closing or not."""
        return self._members.get(number)

    def find(self, key: DeviceKey) -> Member | None:
        """The newest connection of a device; an authenticated one comes before claims."""
        claimed = [
            member
            for member in self._members.values()
            if member.peer.key == key and not member.peer.closing
        ]
        proven = [member for member in claimed if member.peer.authenticated]
        return next(reversed(proven or claimed), None)

    def guard(self, member: Member) -> "_Guard":
        """
        Have what is done with a connection cost it alone: where that raises, it is closed, and
        what follows goes on.  Use it with C{with}.
        """
        return _Guard(self._failed, member)

    def _failed(self, member: Member) -> None:
        self.log.failure("{peer}: our own mistake", peer=member.peer)
        try:
            self._context.metrics.errors.labels(ErrorCode.INTERNAL).inc()
            member.close(CloseReason.INTERNAL, ErrorCode.INTERNAL, "an error of the server")
        except Exception:
            self.log.failure("{peer}: cannot be closed either", peer=member.peer)

    # Devices

    def device(self, key: DeviceKey) -> Device | None:
        """The device; L{None}: not connected, and nothing is kept of it."""
        return self._devices.get(key)

    def devices(self) -> list[Device]:
        """All devices, connected or not."""
        return list(self._devices.values())

    def get_or_create(self, key: DeviceKey) -> Device:
        """The device, entered if it is new, so that messages can wait for it."""
        device = self._devices.get(key)
        if device is None:
            device = self._devices[key] = Device(key, self._context)
        return device

    def forget_away(self, away: Iterable[Device], now: float) -> None:
        """
        Forget devices past their time.  If there are too many, those go that are not approved, then
        others; in each case of the address with the most of them, gone the longest first.

        @param away: idle devices that are not connected.
        @param now: the steady time, in seconds.
        """
        gone: list[Device] = []
        for device in away:
            if now >= device.kept_until:
                self._forget(device)
            else:
                gone.append(device)
        most = max(LEAST_AWAY, self._context.settings.server.max_connections * AWAY_SHARE)
        if len(gone) <= most:
            return
        # A holder of the key may invent names.
        unapproved: Holdings[object, Device] = Holdings()
        approved: Holdings[object, Device] = Holdings()
        gone.sort(key=lambda device: device.kept_until)
        for device in gone:
            is_approved = self._context.devices.approval(device.key) is Approval.APPROVED
            claimant = self._context.limits.claimant(device.address)
            shares = approved if is_approved else unapproved
            shares.put(device if claimant is None else claimant, device)
        for _ in range(len(gone) - most):
            shares = unapproved or approved
            first = shares.first()
            assert first is not None
            shares.remove(first)
            self._context.metrics.pools.gave_way(Pool.AWAY, first.address or first.key)
            self._forget(first)

    def _forget(self, device: Device) -> None:
        device.forget_records()
        del self._devices[device.key]
