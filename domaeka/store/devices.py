"""
The devices that may use the server.

All but an operator's decision is answered from memory.  No device is approved before the store has
been read; afterwards memory knows whom an operator has refused, and the store may be in trouble.
"""

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Column, Connection, Row
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.interfaces import Approval, ApprovalListener, DeviceFacts, DeviceKey
from domaeka.policies.last_seen import LastSeen
from domaeka.store import sessions
from domaeka.store.approvals import REFUSED, ApprovalTable
from domaeka.store.columns import (
    KEY,
    NAME,
    NAME_CHARS,
    TIME,
    TITLE,
    TITLE_CHARS,
    key_hash,
    milliseconds,
    seconds_in,
    storable,
    table,
    text_in,
)
from domaeka.store.database import Database
from domaeka.store.threads import Scheduler
from domaeka.wire import is_name

#: Most devices known; some 1 KB of memory each.
MAX_DEVICES: Final = 100_000
#: Most devices that wait for an operator.  Source: docs/settings.md, C{devices.approval}.
MAX_PENDING: Final = 1000
#: Shortest interval at which C{last_seen} of a connected device is written, in seconds.
HEARD_SECONDS: Final = 600.0
#: The same for a device that connects again and again.
SEEN_SECONDS: Final = 60.0
#: Least change of the lead of a device's clock that is kept, in seconds.
CLOCK_STEP_SECONDS: Final = 0.5
#: Time that a change waits for others before it is written, in seconds.
WRITE_SECONDS: Final = 1.0

DEVICES: Final = table(
    "devices",
    Column("device_key", KEY, primary_key=True),
    Column("bot_name", NAME, nullable=False),
    Column("device_id", NAME, nullable=False),
    Column("approval", NAME, nullable=False),
    Column("first_seen", TIME),
    Column("last_seen", TIME),
    Column("version", NAME, nullable=False),
    Column("client_type", NAME, nullable=False),
    Column("device_ip", NAME, nullable=False),
    Column("device_info", TITLE, nullable=False),
    Column("address", NAME, nullable=False),
    Column("clock_lead", TIME),
)


class DeviceRecord(msgspec.Struct, frozen=True):
    """
    A device that is known.

    @ivar first_seen: seconds since 1970; L{None}: entered by an operator, not seen yet.
    @ivar last_seen: likewise, when it was last heard; while it is connected, at most
        L{HEARD_SECONDS} behind.
    @ivar clock_lead: lead of its clock over ours, in seconds; L{None}: never measured.
    """

    key: DeviceKey
    approval: Approval
    facts: DeviceFacts
    first_seen: float | None
    last_seen: float | None
    clock_lead: float | None = None


class StoredDevices(ApprovalTable[DeviceKey, DeviceRecord]):
    """
    The devices (L{domaeka.interfaces.Devices}).

    @ivar last_seen: where they were, those that an operator has refused apart.
    """

    _log = Logger()

    _table = DEVICES
    _limit = MAX_DEVICES
    _newest = DEVICES.c.last_seen
    _delay = WRITE_SECONDS
    _fixed = frozenset({"bot_name", "device_id"})

    def __init__(
        self,
        database: Database,
        reactor: Scheduler,
        mode: Literal["signed", "manual"] = "signed",
        *,
        node: str = "",
        wall: Callable[[], float],
    ) -> None:
        """See L{ApprovalTable}."""
        self._listeners: list[ApprovalListener] = []
        self.last_seen = LastSeen(wall)
        super().__init__(database, reactor, mode, node=node, wall=wall)

    def add_listener(self, listener: ApprovalListener) -> None:
        """Call C{listener} at decisions of an operator."""
        self._listeners.append(listener)

    # domaeka.interfaces.Devices

    def approval(self, key: DeviceKey) -> Approval | None:
        """The state of a device; L{None}: never seen, or the store has not been read yet."""
        record = self._records.get(key)
        if record is not None:
            return record.approval
        return Approval.PENDING if self._is_damaged(key) else None

    def enter(self, key: DeviceKey, facts: DeviceFacts) -> Approval | None:
        """See L{domaeka.interfaces.Devices}."""
        record = self._records.get(key)
        if record is None:
            return self._enter_new(key, facts)
        now = self._wall()
        approval = record.approval
        promoted = approval is Approval.PENDING and self.mode != "manual"
        if promoted:
            approval = Approval.APPROVED
        elif (
            facts == record.facts
            and record.last_seen is not None
            and abs(now - record.last_seen) < SEEN_SECONDS
        ):
            return approval
        first_seen = now if record.first_seen is None else record.first_seen
        clipped = _clipped(facts)
        self._put(DeviceRecord(key, approval, clipped, first_seen, now, record.clock_lead))
        self._heard_of(key, promoted)
        return approval

    def _enter_new(self, key: DeviceKey, facts: DeviceFacts) -> Approval | None:
        if not self._is_loaded:
            return None
        if self._is_damaged(key):
            return Approval.PENDING  # an operator may have refused it
        facts = _clipped(facts)
        approval = Approval.PENDING if self.mode == "manual" else Approval.APPROVED
        if len(self._records) >= MAX_DEVICES or (
            approval is Approval.PENDING and self._pending >= MAX_PENDING
        ):
            if self._full_is_news():
                self._log.warn(
                    "no room for new devices: {devices} known, {pending} of them pending",
                    devices=len(self._records),
                    pending=self._pending,
                )
            return None
        now = self._wall()
        self._put(DeviceRecord(key, approval, facts, now, now))
        self._heard_of(key)
        return approval

    def _objection(self, key: DeviceKey, approval: Approval) -> str | None:
        known = self._records.get(key)
        waits = known is not None and known.approval is Approval.PENDING
        if not (is_name(key.bot_name) and is_name(key.device_id)):
            return "no device can have this name"
        if known is None and len(self._records) >= MAX_DEVICES:
            return f"{MAX_DEVICES} devices are known: no room for more"
        if approval is Approval.PENDING and not waits and self._pending >= MAX_PENDING:
            return f"{MAX_PENDING} devices are pending: no room for more"
        return None

    def _unheard(self, key: DeviceKey, approval: Approval) -> DeviceRecord:
        return DeviceRecord(key, approval, DeviceFacts(version=""), None, None)

    def _store_besides(
        self, connection: Connection, key: DeviceKey, approval: Approval | None
    ) -> None:
        """Remove the session of a refused or forgotten device in the same transaction."""
        if approval is None or approval in REFUSED:
            sessions.forget(connection, key)

    def heard(self, key: DeviceKey, ended: float | None = None) -> None:
        """See L{domaeka.interfaces.Devices}."""
        record = self._records.get(key)
        if record is None or record.last_seen is None:
            return  # its signature has not held
        now = self._wall() if ended is None else ended
        if abs(now - record.last_seen) >= (HEARD_SECONDS if ended is None else 0.001):
            self._put(msgspec.structs.replace(record, last_seen=now))
            self._heard_of(key)

    def clock_lead(self, key: DeviceKey) -> float | None:
        """See L{domaeka.interfaces.Devices}."""
        record = self._records.get(key)
        return None if record is None else record.clock_lead

    def clock_measured(self, key: DeviceKey, lead: float) -> None:
        """See L{domaeka.interfaces.Devices}.  A change of less than half a second is not kept."""
        record = self._records.get(key)
        if record is None:
            return
        if record.clock_lead is None or abs(record.clock_lead - lead) >= CLOCK_STEP_SECONDS:
            self._put(msgspec.structs.replace(record, clock_lead=lead))
            self._heard_of(key)

    def forget(self, key: DeviceKey) -> "Deferred[None]":
        """Like L{ApprovalTable}, for a device not connected; its session tokens die, too."""
        before = self._records[key].approval

        def failed(failure: Failure) -> Failure:
            if before in REFUSED:  # it may have come back meanwhile, as a new device
                self._notify(key, before)
            return failure

        return super().forget(key).addErrback(failed)

    def _remove(self, key: DeviceKey) -> DeviceRecord:
        self.last_seen.forget(key)
        return super()._remove(key)

    def _loaded(self) -> None:
        for record in sorted(self._records.values(), key=lambda record: record.last_seen or 0.0):
            self._note_address(record)

    def _put(self, record: DeviceRecord) -> None:
        super()._put(record)
        if self._is_loaded:
            self._note_address(record)

    def _note_address(self, record: DeviceRecord) -> None:
        if record.last_seen is None or record.approval in REFUSED:
            self.last_seen.forget(record.key)
        else:
            self.last_seen.seen(record.key, record.facts.address, record.last_seen)

    def _notify(self, key: DeviceKey, approval: Approval) -> None:
        for listener in self._listeners:
            try:
                listener(key, approval)
            except Exception:
                self._log.failure("{listener}: our own mistake", listener=listener)

    def _from_row(self, row: Row[Any]) -> DeviceRecord:
        return DeviceRecord(
            DeviceKey(text_in(row.bot_name), text_in(row.device_id)),
            Approval(row.approval),
            DeviceFacts(
                text_in(row.version),
                text_in(row.client_type),
                text_in(row.device_ip),
                text_in(row.device_info),
                text_in(row.address),
            ),
            seconds_in(row.first_seen),
            seconds_in(row.last_seen),
            seconds_in(row.clock_lead),
        )

    def _to_row(self, record: DeviceRecord) -> dict[str, object]:
        facts = record.facts
        return {
            "device_key": key_hash(*record.key),
            "bot_name": record.key.bot_name,
            "device_id": record.key.device_id,
            "approval": record.approval.value,
            "first_seen": None if record.first_seen is None else milliseconds(record.first_seen),
            "last_seen": None if record.last_seen is None else milliseconds(record.last_seen),
            "version": facts.version,
            "client_type": facts.client_type,
            "device_ip": facts.device_ip,
            "device_info": facts.device_info,
            "address": facts.address,
            "clock_lead": None if record.clock_lead is None else milliseconds(record.clock_lead),
        }


def _clipped(facts: DeviceFacts) -> DeviceFacts:
    """C{facts} as they are stored: a phone may send anything."""
    clipped = DeviceFacts(
        storable(facts.version, NAME_CHARS),
        storable(facts.client_type, NAME_CHARS),
        storable(facts.device_ip, NAME_CHARS),
        storable(facts.device_info, TITLE_CHARS),
        storable(facts.address, NAME_CHARS),
    )
    return facts if clipped == facts else clipped  # most are as they are
