"""The directory of connections and devices: L{Directory} is the face of this folder."""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from domaeka.gateway.context import Context
from domaeka.gateway.directory.decisions import Decisions
from domaeka.gateway.directory.history import History
from domaeka.gateway.directory.local import LocalDirectory
from domaeka.gateway.directory.manager import ConnectionManager
from domaeka.gateway.directory.manager import server_key as server_key
from domaeka.gateway.directory.registry import Registry as Registry
from domaeka.gateway.directory.sweep import Sweep
from domaeka.interfaces import DeviceKey, RoomIndex
from domaeka.policies.records import KeptOutbox
from domaeka.policies.snapshots import OutboxSnapshot

_log: Final = Logger()


class Directory:
    """
    The directory of connections and devices, put together.

    @ivar manager: the L{Membership<domaeka.gateway.joints.Membership>} for conversations.
    @ivar admission: the L{AccessRules<domaeka.gateway.joints.AccessRules>} for ports.
    """

    def __init__(self, context: Context, reactor: IReactorTime) -> None:
        self.context = context
        self.registry = Registry(context)
        self.history = History(context.metrics.pools)
        self.manager = ConnectionManager(context, self.registry, self.history)
        self.admission = self.manager.admission
        self.decisions = Decisions(context, self.registry, self.manager)
        self.sweep = Sweep(context, self.registry, self.admission, self.decisions, reactor)

    def for_api(self, rooms: RoomIndex) -> LocalDirectory:
        """The directory for the admin API."""
        return LocalDirectory(self.context, self.registry, self.decisions, self.history, rooms)

    def snapshot(self) -> Iterator[tuple[DeviceKey, bytes]]:
        """Snapshots of the devices, to keep over a stop."""
        for device in self.registry.devices():
            if (kept := device.snapshot()) is not None:
                yield device.key, msgspec.msgpack.encode(kept)

    def restore_records(self, kept: Iterable[KeptOutbox]) -> None:
        """Go on from what a server before, which may have been killed, had taken and not sent."""
        journal = self.context.journal
        assert journal is not None
        for outbox in kept:
            device = self.registry.get_or_create(DeviceKey(*outbox.row.key))
            device.restore_records(outbox, journal)

    def restore(self, kept: Iterable[tuple[DeviceKey, bytes]]) -> None:
        """Restore the snapshots of before a stop; where the store was late, behind new messages."""
        for key, data in kept:
            try:
                state = msgspec.msgpack.decode(data, type=OutboxSnapshot)
            except msgspec.DecodeError as error:
                _log.error("{key}: what waited cannot be read: {error}", key=key, error=error)
                continue
            if self.registry.get_or_create(key).restore(state):
                _log.warn(
                    "{key}: {count} messages that waited over the stop come late: those that had "
                    "been sent and were not acknowledged may arrive twice",
                    key=key,
                    count=len(state.messages),
                )
