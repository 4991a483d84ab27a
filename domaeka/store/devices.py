"""
The devices that may use the server.

All but an operator's decision is answered from memory.  No device is approved before the store has
been read; afterwards memory knows whom an operator has refused, and the store may be in trouble.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Boolean, Column, Connection, Row
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.interfaces import REFUSED, Approval, ApprovalListener, DeviceFacts, DeviceKey
from domaeka.policies.holdings import Holdings
from domaeka.policies.last_seen import LastSeen
from domaeka.policies.networks import address_key
from domaeka.pools import Pool
from domaeka.rates import MinuteRates
from domaeka.store import sessions
from domaeka.store.approvals import ApprovalTable
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
#: Most new devices of an address in a minute.  Source: docs/security.md, "Shares".
NEW_A_MINUTE: Final = 20
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
    Column("decided", Boolean, nullable=False),
)


class DeviceRecord(msgspec.Struct, frozen=True):
    """
    A device that is known.

    @ivar first_seen: seconds since 1970; L{None}: entered by an operator, not seen yet.
    @ivar last_seen: likewise, when it was last heard; while it is connected, at most
        L{HEARD_SECONDS} behind.
    @ivar decided: true if an operator has decided on it.
    @ivar clock_lead: lead of its clock over ours, in seconds; L{None}: never measured.
    """

    key: DeviceKey
    approval: Approval
    facts: DeviceFacts
    first_seen: float | None
    last_seen: float | None
    decided: bool = False
    clock_lead: float | None = None


class StoredDevices(ApprovalTable[DeviceKey, DeviceRecord]):
    """
    The devices (L{domaeka.interfaces.Devices}).

    @ivar last_seen: where those were that are approved.
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
        gave_way: Callable[[Pool, object], object] = lambda pool, claimant: None,
        is_limited: Callable[[str], bool] = lambda address: True,
    ) -> None:
        """
        See L{ApprovalTable}.

        @param is_limited: says if an address may bring so many new devices a minute only.
        """
        self._listeners: list[ApprovalListener] = []
        self.last_seen = LastSeen(wall)
        self._is_limited = is_limited
        self._new = MinuteRates[int | str](NEW_A_MINUTE)
        #: Those that wait for their turn, connected, and how many of an address: nobody new goes
        #: before them.
        self._waiting: dict[DeviceKey, int | str] = {}
        self._queues: Counter[int | str] = Counter()
        self._here: set[DeviceKey] = set()  # connected
        #: By address those that may give way: all of them, and those that are pending.
        self._away = Holdings[int | str, DeviceKey]()
        self._away_pending = Holdings[int | str, DeviceKey]()
        super().__init__(database, reactor, mode, node=node, wall=wall, gave_way=gave_way)

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
        self._here.add(key)
        self._away.remove(key)
        self._away_pending.remove(key)
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
        self._put(
            msgspec.structs.replace(
                record, approval=approval, facts=clipped, first_seen=first_seen, last_seen=now
            )
        )
        self._heard_of(key, promoted)
        return approval

    def _enter_new(self, key: DeviceKey, facts: DeviceFacts) -> Approval | None:
        if not self._is_loaded:
            return None
        if self._is_damaged(key):
            return Approval.PENDING  # an operator may have refused it
        facts = _clipped(facts)
        approval = Approval.PENDING if self.mode == "manual" else Approval.APPROVED
        if self._is_limited(facts.address) and not self._has_turn(key, _holder(facts)):
            self._gave_way(Pool.NEW_DEVICES, facts.address)
            return None
        if not self._make_room(key, approval):
            if self._full_is_news():
                self._log.warn(
                    "no room for new devices: {devices} known, {pending} of them pending",
                    devices=len(self._records),
                    pending=self._pending,
                )
            return None
        now = self._wall()
        self._here.add(key)
        self._put(DeviceRecord(key, approval, facts, now, now))
        self._heard_of(key)
        return approval

    def _has_turn(self, key: DeviceKey, holder: int | str) -> bool:
        """True if an address may bring a new device now; else that waits while it is connected."""
        now = self._reactor.seconds()
        if (key in self._waiting or not self._queues[holder]) and self._new.take(holder, now):
            self._wait_no_more(key)
            return True
        if key not in self._waiting:
            self._waiting[key] = holder
            self._queues[holder] += 1
        return False

    def _wait_no_more(self, key: DeviceKey) -> None:
        holder = self._waiting.pop(key, None)
        if holder is not None:
            self._queues[holder] -= 1
            if not self._queues[holder]:
                del self._queues[holder]

    def _make_room(self, key: DeviceKey, approval: Approval) -> bool:
        """Likewise; of the address that has the most, the one that was seen longest ago goes."""
        while approval is Approval.PENDING and self._pending >= MAX_PENDING:
            if not self._one_gives_way(self._away_pending, Pool.PENDING_DEVICES):
                return False
        while len(self._records) >= MAX_DEVICES:
            if not self._one_gives_way(self._away, Pool.DEVICES):
                return False
        return True

    def _one_gives_way(self, away: Holdings[int | str, DeviceKey], pool: Pool) -> bool:
        key = away.first()
        if key is None:
            return False
        self._gave_way(pool, self._records[key].facts.address)
        self._let_go(key)
        return True

    def _objection(self, key: DeviceKey, approval: Approval) -> str | None:
        known = self._records.get(key)
        waits = known is not None and known.approval is Approval.PENDING
        if not (is_name(key.bot_name) and is_name(key.device_id)):
            return "no device can have this name"
        if known is None and len(self._records) >= MAX_DEVICES and not self._away:
            return f"{MAX_DEVICES} devices are known: no room for more"
        full = self._pending >= MAX_PENDING and not (known is None and self._away_pending)
        if approval is Approval.PENDING and not waits and full:
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
        if ended is not None:
            self._here.discard(key)
            self._wait_no_more(key)
            if record is not None:
                self._note_away(record)
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
        self._away.remove(key)
        self._away_pending.remove(key)
        return super()._remove(key)

    def _loaded(self) -> None:
        for record in sorted(self._records.values(), key=lambda record: record.last_seen or 0.0):
            self._note(record)

    def _put(self, record: DeviceRecord) -> None:
        super()._put(record)
        if self._waiting:  # an operator may have decided on it
            self._wait_no_more(record.key)
        if self._is_loaded:
            self._note(record)

    def _note(self, record: DeviceRecord) -> None:
        if record.last_seen is None or record.approval is not Approval.APPROVED:
            self.last_seen.forget(record.key)
        else:
            self.last_seen.seen(record.key, record.facts.address, record.last_seen)
        self._note_away(record)

    def _note_away(self, record: DeviceRecord) -> None:
        """Note if a device may give way to others."""
        key, may = record.key, record.key not in self._here and not self._is_settled(record)
        for away, those in (
            (self._away, may),
            (self._away_pending, may and record.approval is Approval.PENDING),
        ):
            if those:
                away.put(_holder(record.facts), key)
            else:
                away.remove(key)

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
            bool(row.decided),
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
            "decided": record.decided,
            "clock_lead": None if record.clock_lead is None else milliseconds(record.clock_lead),
        }


def _holder(facts: DeviceFacts) -> int | str:
    """The claimant of a device's place: its address, of IPv6 a /64."""
    key = address_key(facts.address)
    return facts.address if key is None else key


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
