"""
Which devices may use the server.

Everything but an operator's decision is answered from memory.  Nobody is approved before the
store has said what it knows, nor is anybody new while the store is in trouble.
"""

from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Column, Row, Table
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from domaeka.errors import StoreError
from domaeka.interfaces import Approval, ApprovalListener, DeviceFacts, DeviceKey
from domaeka.messages import is_name
from domaeka.store import sessions
from domaeka.store.approvals import REFUSED, ApprovalTable
from domaeka.store.columns import (
    KEY,
    METADATA,
    NAME,
    NAME_CHARS,
    TABLE_OPTIONS,
    TIME,
    TITLE,
    TITLE_CHARS,
    key_hash,
    milliseconds,
    storable,
)
from domaeka.store.database import Database
from domaeka.store.threads import DelayedCall, Scheduler

#: Most devices known; some 1 KB of memory each.
MAX_DEVICES: Final = 100_000
#: Most devices that wait for an operator.  Source: docs/settings.md, C{devices.approval}.
MAX_PENDING: Final = 1000
#: Most devices that wait for the store; what is more is heard again with its next connection.
MAX_UNDECIDED: Final = 1000
#: How often it is tried whether they can be decided, in seconds.
DECIDE_SECONDS: Final = 1.0
#: How often it is written that a device was seen, at most, in seconds.
SEEN_SECONDS: Final = 60.0
#: How long a change waits for others before it is written, in seconds.
WRITE_SECONDS: Final = 1.0

DEVICES: Final = Table(
    "devices",
    METADATA,
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
    **TABLE_OPTIONS,
)


class DeviceRecord(msgspec.Struct, frozen=True):
    """
    What is known of a device.

    @ivar first_seen: seconds since 1970; L{None}: entered by an operator, not seen yet.
    @ivar last_seen: likewise; that of its last connection, or at most a minute behind.
    """

    key: DeviceKey
    approval: Approval
    facts: DeviceFacts
    first_seen: float | None
    last_seen: float | None


class StoredDevices:
    """The devices (L{domaeka.interfaces.Devices})."""

    _log = Logger()

    def __init__(
        self,
        database: Database,
        reactor: Scheduler,
        mode: Literal["signed", "manual"] = "signed",
    ) -> None:
        """
        @param database: not started yet.
        @param mode: C{devices.approval}.
        """
        #: C{devices.approval}; may be changed at any time.
        self.mode = mode
        self._database = database
        self._reactor = reactor
        self._undecided: dict[DeviceKey, DeviceFacts] = {}
        self._timer: DelayedCall | None = None
        self._listeners: list[ApprovalListener] = []
        self._said_full = False
        self._table = ApprovalTable[DeviceKey, DeviceRecord](
            database,
            reactor,
            DEVICES,
            limit=MAX_DEVICES,
            newest=DEVICES.c.last_seen,
            delay=WRITE_SECONDS,
            from_row=_from_row,
            to_row=_to_row,
            fixed=frozenset({"bot_name", "device_id"}),
            loaded=self._decide,
            overruled=self._tell,
        )

    def add_listener(self, listener: ApprovalListener) -> None:
        """
        Have C{listener} told of operators' decisions, and of what becomes of devices for which
        L{enter} had no answer.
        """
        self._listeners.append(listener)

    # domaeka.interfaces.Devices

    def approval(self, key: DeviceKey) -> Approval | None:
        """L{None}: never seen, or the store has not said yet."""
        record = self._table.records.get(key)
        return None if record is None else record.approval

    def enter(self, key: DeviceKey, facts: DeviceFacts) -> Approval | None:
        """
        A device's signature held.

        @return: what it is now; L{None} where there is no room for it, or the store cannot be
            asked: then listeners hear of it later.
        """
        record = self._table.records.get(key)
        if record is None:
            return self._enter_new(key, facts)
        now = self._reactor.seconds()
        approval = record.approval
        promoted = approval is Approval.PENDING and self.mode == "signed"
        if promoted:
            approval = Approval.APPROVED
        elif (
            facts == record.facts
            and record.last_seen is not None
            and abs(now - record.last_seen) < SEEN_SECONDS
        ):
            return approval
        first_seen = now if record.first_seen is None else record.first_seen
        self._table.put(DeviceRecord(key, approval, _clipped(facts), first_seen, now))
        self._table.changed(key, promoted)
        return approval

    def _enter_new(self, key: DeviceKey, facts: DeviceFacts) -> Approval | None:
        facts = _clipped(facts)
        table = self._table
        if not table.is_loaded or not self._database.answers:
            if key in self._undecided or len(self._undecided) < MAX_UNDECIDED:
                self._undecided[key] = facts
            if table.is_loaded and self._timer is None:
                self._timer = self._reactor.callLater(DECIDE_SECONDS, self._decide)
            return None
        approval = Approval.APPROVED if self.mode == "signed" else Approval.PENDING
        if len(table.records) >= MAX_DEVICES or (
            approval is Approval.PENDING and table.pending >= MAX_PENDING
        ):
            if not self._said_full:
                self._said_full = True
                self._log.warn(
                    "no room for new devices: {devices} known, {pending} of them pending",
                    devices=len(table.records),
                    pending=table.pending,
                )
            return None
        now = self._reactor.seconds()
        table.put(DeviceRecord(key, approval, facts, now, now))
        table.changed(key)
        return approval

    def set_approval(self, key: DeviceKey, approval: Approval) -> "Deferred[None]":
        """
        An operator's decision; a device that has not been seen yet is entered.  One that is
        refused loses its session in the same transaction.

        @return: fires once it is stored and in force; L{StoreError} if it is not.
        """
        table = self._table
        known = table.records.get(key)
        waits = known is not None and known.approval is Approval.PENDING
        if not table.is_loaded:
            return fail(StoreError("the store has not said yet which devices there are"))
        if not (is_name(key.bot_name) and is_name(key.device_id)):
            return fail(StoreError("no device can have this name"))
        if known is None and len(table.records) >= MAX_DEVICES:
            return fail(StoreError(f"{MAX_DEVICES} devices are known: no room for more"))
        if approval is Approval.PENDING and not waits and table.pending >= MAX_PENDING:
            return fail(StoreError(f"{MAX_PENDING} devices are pending: no room for more"))
        deciding = table.decide(
            DeviceRecord(key, approval, DeviceFacts(version=""), None, None),
            approval,
            (lambda connection: sessions.forget(connection, key)) if approval in REFUSED else None,
        )
        return deciding.addCallback(lambda _: self._tell(key, approval))

    # For operators

    def record(self, key: DeviceKey) -> DeviceRecord | None:
        """What is known of a device."""
        return self._table.records.get(key)

    def page(
        self, after: DeviceKey | None, limit: int, approval: Approval | None = None
    ) -> list[DeviceRecord]:
        """
        Devices in the order of their keys.

        @param after: the last one of the page before.
        @param limit: most devices returned.
        @param approval: only those in this state.
        """
        return self._table.page(after, limit, approval)

    def stop(self) -> "Deferred[None]":
        """Write what is not written yet.  @return: fires in any case, in bounded time."""
        self._undecided.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._table.stop()

    def _decide(self) -> None:
        """Enter those that came while the store could not be asked, if it now can."""
        self._timer = None
        if self._undecided and not self._database.answers:
            self._timer = self._reactor.callLater(DECIDE_SECONDS, self._decide)
            return
        undecided, self._undecided = self._undecided, {}
        for key, facts in undecided.items():
            approval = self.enter(key, facts)
            if approval is not None:
                self._tell(key, approval)

    def _tell(self, key: DeviceKey, approval: Approval) -> None:
        for listener in self._listeners:
            try:
                listener(key, approval)
            except Exception:
                self._log.failure("{listener}: our own mistake", listener=listener)


def _clipped(facts: DeviceFacts) -> DeviceFacts:
    """C{facts} as they are stored: a phone says what it likes."""
    clipped = DeviceFacts(
        storable(facts.version, NAME_CHARS),
        storable(facts.client_type, NAME_CHARS),
        storable(facts.device_ip, NAME_CHARS),
        storable(facts.device_info, TITLE_CHARS),
        storable(facts.address, NAME_CHARS),
    )
    return facts if clipped == facts else clipped  # most are as they are


def _from_row(row: Row[Any]) -> DeviceRecord:
    return DeviceRecord(
        DeviceKey(row.bot_name, row.device_id),
        Approval(row.approval),
        DeviceFacts(row.version, row.client_type, row.device_ip, row.device_info, row.address),
        None if row.first_seen is None else row.first_seen / 1000,
        None if row.last_seen is None else row.last_seen / 1000,
    )


def _to_row(record: DeviceRecord) -> dict[str, object]:
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
    }
