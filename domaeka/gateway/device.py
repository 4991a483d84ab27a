"""Devices: phones that have proven their names; they outlive their connections."""

from collections.abc import Collection, Mapping
from math import inf
from typing import Final, Protocol

from twisted.logger import Logger

from domaeka import texts_ko
from domaeka.gateway.context import Context
from domaeka.gateway.journal import Journal
from domaeka.gateway.pacing import Pacer
from domaeka.gateway.peer import Peer
from domaeka.interfaces import (
    Approval,
    ChatLine,
    ChatLog,
    DeviceKey,
    Origin,
    Priority,
    RoomKey,
    StatusListener,
)
from domaeka.policies.allowance import Allowance
from domaeka.policies.liveness import Responsiveness
from domaeka.policies.networks import address_key
from domaeka.policies.outbox import Outbox
from domaeka.policies.records import KeptOutbox, Records, Taken
from domaeka.policies.snapshots import ClientIds, OutboxSnapshot, load_snapshot, take_snapshot
from domaeka.pools import Pool
from domaeka.schema import Connection, Grade, Queue
from domaeka.wire import NO_NOTIFICATION, Chat, DeliveryReport, Reply, title_id

#: Least time between two log lines on expired messages of a device, and between two on messages
#: that its chat app refused, in seconds.
EXPIRED_SAID_SECONDS: Final = 600.0
REFUSED_SAID_SECONDS: Final = 600.0
_HIGH: Final = Priority.HIGH  # to look it up in its Enum takes 0.2 µs


class Connected(Protocol):
    """A connection, as its device sees it."""

    @property
    def peer(self) -> Peer:
        """The peer at its other end."""

    def wake(self) -> None:
        """Look for messages in the outbox, and for a change of what is pending."""

    def view(self) -> Connection:
        """All figures of it, as they are now."""


class Device:
    """
    A phone that has proven its name, connected or not.

    Bots see it as the L{Origin} of a message.

    @ivar connection: its connection, closing or not; L{None}: none.
    @ivar address: that of its last connection; empty: it has had none yet.
    @ivar approved: whether its messages are answered.
    @ivar pending: submitted messages that bots still work on; C{pending_chars}: their characters.
    @ivar takeovers: times at which its connections replaced each other, within the last minute.
    @ivar allowance: how much it may say, set by its first connection.
    @ivar kept_until: earliest time at which it is forgotten, by the steady time.
    """

    log = Logger()

    __slots__ = (
        "_acknowledges",
        "_client_ids",
        "_context",
        "_grade",
        "_pacer",
        "_said_expired",
        "_said_refused",
        "address",
        "allowance",
        "approved",
        "connection",
        "kept_until",
        "key",
        "outbox",
        "pending",
        "pending_chars",
        "records",
        "responsiveness",
        "takeovers",
    )

    def __init__(self, key: DeviceKey, context: Context) -> None:
        self.key = key
        self.connection: Connected | None = None
        self.address = ""
        self.approved = False
        self.pending = 0
        self.pending_chars = 0
        self.takeovers: tuple[float, ...] = ()
        self.allowance: Allowance | None = None
        self._context = context
        self.outbox = self._new_outbox()
        self._client_ids: ClientIds | None = None
        self._acknowledges = False
        self.records: Records | None = None
        self._pacer: Pacer | None = None
        self._said_expired = self._said_refused = -inf
        self._grade = Grade.GOOD  # of its connection, at the last event
        self.responsiveness = Responsiveness()
        self.kept_until = 0.0

    def _new_outbox(self) -> Outbox:
        context = self._context
        queue = context.settings.queue
        limits = queue.max_messages, queue.max_bytes
        return Outbox(*limits, context.budget, context.seconds, owner=self.key)

    def reset(self) -> None:
        """
        Drop its messages, numbers and responsiveness.  It is not connected; once no bot works for
        it any more, the next sweep forgets it.
        """
        self.outbox.clear()
        self.forget_records()
        self.outbox = self._new_outbox()
        self._client_ids = None
        self._acknowledges = False
        self.approved = False
        self.takeovers = ()
        self.responsiveness = Responsiveness()
        self.kept_until = self._context.steady.now

    def restore(self, kept: OutboxSnapshot) -> bool:
        """
        Restore a snapshot of before a stop.

        @return: whether that is late: its client already has numbers of another epoch.
        """
        context = self._context
        late = load_snapshot(kept, self.outbox, self.client_ids, context.seconds(), context.wall())
        if self.connection is None:
            self._acknowledges = True
            self.kept_until = context.steady.now + context.settings.session.lifetime
        else:
            self.connection.wake()
        return late

    @property
    def epoch(self) -> str:
        """Epoch of its outbox, made at first use."""
        if not self.outbox.epoch:
            self.outbox.epoch = self._context.new_epoch()
        return self.outbox.epoch

    @property
    def client_ids(self) -> ClientIds:
        """Ids of the last messages that its client sent."""
        if self._client_ids is None:
            self._client_ids = ClientIds()
        return self._client_ids

    # Origin

    def send(
        self,
        reply: Reply,
        ttl: float | None = None,
        on_status: StatusListener | None = None,
        priority: Priority = _HIGH,
    ) -> None:
        """
        See L{Origin<domaeka.interfaces.Origin>}.

        @param priority: by default that of an answer.
        """
        context = self._context
        if ttl is None:
            ttl = context.settings.queue.message_ttl
        self.outbox.put(reply, priority, ttl, on_status)
        if context.chat_log is not None and type(reply.content) is str:
            key, room_id = self.key, reply.channel_id or title_id(reply.room)
            place = key.bot_name, key.device_id, room_id, reply.room
            contents = "", None, None, reply.content
            context.chat_log.append(ChatLine(context.wall(), "out", *place, *contents))
        connection = self.connection
        if connection is not None and not connection.peer.corked:
            connection.wake()

    def message_done(self, chat: Chat) -> None:
        """Note that the work on a submitted message is done."""
        self.pending -= 1
        self.pending_chars -= len(chat.text)
        connection = self.connection
        if connection is not None and not connection.peer.corked:
            connection.wake()

    def describe(self) -> Mapping[str, str]:
        """Facts that an operator may see: names to values, both for people."""
        if self.connection is None:
            return {}
        now = self.connection.view()
        rtt = None if now.quality is None else now.quality.rtt
        return {
            texts_ko.DEVICE_BOT: self.key.bot_name,
            texts_ko.DEVICE_ID: self.key.device_id,
            texts_ko.DEVICE_SCRIPT: f"{now.client_type} {now.version}",
            texts_ko.DEVICE_MODEL: now.device_info or "-",
            texts_ko.DEVICE_ADDRESS: now.address,
            texts_ko.DEVICE_AGE: texts_ko.DEVICE_AGE_SECONDS.format(now.age_seconds),
            texts_ko.DEVICE_ROUND_TRIP: "-" if rtt is None else f"{rtt.smoothed * 1000:.0f}ms",
            texts_ko.DEVICE_RECEIVED: str(now.messages.received),
            texts_ko.DEVICE_SENT: str(now.messages.sent),
        }

    def chat_received(self, chat: Chat) -> None:
        """Record an authenticated message, and have it answered."""
        if self._context.held.holding and chat.text:
            self._hold(chat)
            return
        records = self.records
        if records is None or chat.client_id is None or not self.approved:
            if chat.text and self._enter(chat):
                self._serve(chat, self)
            return
        taken = records.took(chat)
        if chat.text and self._enter(chat):
            self._serve(chat, Answering(self, records, taken))
        else:
            records.done(taken)

    def has_room(self, chat: Chat) -> bool:
        """True if a message can be taken: else its client says it again."""
        context = self._context
        held, room, pools = context.held, chat.room_id, context.metrics.pools
        if held.holding and not held.has_room(self.key, room, len(chat.text)):
            pools.gave_way(Pool.HELD_CHAT, f"{self.key}, room {room!r}")
            return False
        if self.records is not None and not self.records.has_room(room):
            pools.gave_way(Pool.UNSTORED, f"{self.key}, room {room!r}")
            return False
        return True

    def _hold(self, chat: Chat) -> None:
        """Keep a message until the store has said whether it may be answered."""
        origin: Origin = self
        if self.records is not None and chat.client_id is not None:
            origin = Answering(self, self.records, self.records.took(chat))
        self.pending += 1
        self.pending_chars += len(chat.text)
        heard_at = self._context.wall()

        def decide(may_be: bool) -> None:
            if may_be and self._enter(chat, heard_at):
                self._context.dispatcher.submit(chat, origin)
                return
            if not may_be:
                self._log_unapproved(chat, heard_at)
            origin.message_done(chat)

        if not self._context.held.put(self.key, chat.room_id, len(chat.text), decide):
            decide(False)

    def _enter(self, chat: Chat, heard_at: float | None = None) -> bool:
        """
        Note a message in its room, and in the chat log.

        @param heard_at: in seconds since 1970; L{None}: now.
        @return: whether it is answered.
        """
        context, key = self._context, self.key
        if not self.approved:  # it decides nothing
            self._log_unapproved(chat, heard_at)
            return False
        room_id = chat.room_id
        heard = context.rooms.enter(RoomKey(key.bot_name, room_id), key, chat.room, chat.is_group)
        if context.chat_log is not None:
            self._log_heard(chat, room_id, context.chat_log, heard_at)
        return heard

    def _log_unapproved(self, chat: Chat, heard_at: float | None) -> None:
        """Note a message of a device that is not approved, as long as it has a share of the log."""
        context = self._context
        if context.chat_log is None:
            return
        address = "" if self.connection is None else self.connection.peer.address
        claimant = address_key(address)
        if context.unapproved_lines.take(
            address if claimant is None else claimant, context.seconds()
        ):
            self._log_heard(chat, chat.room_id, context.chat_log, heard_at)
        else:
            context.metrics.pools.gave_way(Pool.UNAPPROVED_LINES, self.key)

    def _log_heard(
        self, chat: Chat, room_id: str, chat_log: ChatLog, heard_at: float | None
    ) -> None:
        """Note a message in the chat log."""
        key = self.key
        contents = chat.sender, chat.user_hash, chat.log_id, chat.text
        place = key.bot_name, key.device_id, room_id, chat.room
        time = self._context.wall() if heard_at is None else heard_at
        chat_log.append(ChatLine(time, "in", *place, *contents))

    def _serve(self, chat: Chat, origin: Origin) -> None:
        self.pending += 1
        self.pending_chars += len(chat.text)
        self._context.dispatcher.submit(chat, origin)

    @property
    def queue(self) -> Queue:
        """Amount of what waits for it."""
        return Queue(self.outbox.messages, self.outbox.bytes, self.pending)

    def snapshot(self) -> OutboxSnapshot | None:
        """Snapshot to keep over a stop; L{None}: there is nothing to keep."""
        if self.records is not None or not (self.outbox.messages or self._acknowledges):
            return None  # the store has it, or there is nothing
        context = self._context
        return take_snapshot(self.outbox, self.client_ids, context.seconds(), context.wall())

    def attached(self, connection: Connected) -> None:
        """Note a new connection, whose quality is not known yet."""
        self.connection = connection
        self.address = connection.peer.address
        self._grade = Grade.GOOD

    def graded(self, grade: Grade) -> bool:
        """
        Note the grade of the connection: on a poor one bulk has a smaller share.

        @return: whether the grade has changed.
        """
        self.outbox.hold_low = grade in (Grade.POOR, Grade.FAILING)
        changed = grade is not self._grade
        self._grade = grade
        return changed

    def open_outbox(self, capabilities: Collection[str]) -> Outbox:
        """Begin to send.  @return: the outbox, for its connection."""
        self._acknowledges = "ack" in capabilities
        self.outbox.connected(self._acknowledges, "delivery" in capabilities)
        self.apply_pacing()
        if self._pacer is not None:
            self._pacer.connected()
        journal = self._context.journal
        if not self._acknowledges:
            self.forget_records()
        elif self.records is None and journal is not None and journal.enabled:
            self._begin_records(journal)
        return self.outbox

    def apply_pacing(self) -> None:
        """Have messages leave as fast as the settings say, from now on."""
        pacing = self._context.settings.pacing
        if pacing.phone_per_second or pacing.room_per_second:
            if self._pacer is None:
                self._pacer = Pacer(self._context, self._wake)
            self._pacer.apply(self.outbox)
        elif self._pacer is not None:
            self._pacer.stop()
            self._pacer = self.outbox.pace = None

    def _wake(self) -> None:
        """Have its connection write what may be written."""
        if self.connection is not None:
            self.connection.wake()

    # Records, from which a server goes on after a crash

    def _begin_records(self, journal: Journal) -> None:
        outbox, number = self.outbox, self._context.random.getrandbits(63)
        records = Records(journal, number, self.key, self.epoch, outbox.next_number)
        for client_id in self.client_ids.dump():
            records.knew(client_id)
        for item in outbox.held():
            records.put(item)
        outbox.recorder = self.records = records

    def forget_records(self) -> None:
        """Keep nothing in the store: it is forgotten, or its client acknowledges nothing."""
        if self.records is not None:
            self.records.forget()
            self.outbox.recorder = self.records = None

    def restore_records(self, kept: KeptOutbox, journal: Journal) -> None:
        """
        Go on from the records of a server before: what waited waits, what was not answered is
        answered.  Where its client was here first, its numbers begin anew, and what had been sent
        and not acknowledged may arrive twice.  Where the journal is not enabled any more, the
        records are removed.
        """
        context, outbox, row = self._context, self.outbox, kept.row
        now, wall = context.seconds(), context.wall()
        records = Records(journal, row.outbox, self.key, row.epoch, row.next_number, kept.last)
        items = kept.items(now - wall)
        self.client_ids.prepend([taken.client_id for taken in kept.taken])
        late = bool(outbox.epoch or outbox.next_number > 1)
        if late:
            for item in items:
                outbox.put(item.reply, item.priority, item.expires_at - now)
            records.forget()
        else:
            outbox.epoch = row.epoch
            outbox.restore(items, row.next_number)
            waiting = {item.record for item in outbox.held()}
            for message in kept.messages:
                if message.record not in waiting:
                    records.remove(message.record)
            outbox.recorder = self.records = records
            if not journal.enabled:
                self.forget_records()
            self._acknowledges = True
            self.kept_until = context.steady.now + context.settings.session.lifetime
        unanswered = kept.unanswered()
        unreadable = len(kept.messages) - len(items) + sum(taken.done for taken in unanswered)
        if unreadable:
            self.log.error(
                "{key}: {count} messages in the store cannot be read, and are dropped",
                key=self.key,
                count=unreadable,
            )
        for taken in unanswered:
            if late and taken.chat is not None:
                self.chat_received(taken.chat)
            elif taken.chat is not None and self._may_answer(taken.chat):
                self._serve(taken.chat, Answering(self, records, taken, taken.answers))
            else:
                records.done(taken)
        if self.connection is not None:
            self.connection.wake()

    def _may_answer(self, chat: Chat) -> bool:
        """True for a message that was written to the chat log before a crash, if approved still."""
        context, key = self._context, self.key
        room = RoomKey(key.bot_name, chat.room_id)
        # A device that the store has not got yet was approved when it said this.
        approved = context.devices.approval(key) in (None, Approval.APPROVED)
        return approved and context.rooms.enter(room, key, chat.room, chat.is_group)

    def delivery_reported(self, report: DeliveryReport) -> None:
        """Take a delivery report of its client, with a log line once in a while on a refusal."""
        message = self.outbox.report(report.message_id, report.ok, report.reason)
        if message is None:
            return
        context, key = self._context, self.key
        context.metrics.delivery_reports.labels(
            "delivered" if report.ok else "refused_by_app"
        ).inc()
        room = RoomKey(key.bot_name, message.channel_id or title_id(message.room))
        if self.approved and (report.ok or report.reason == NO_NOTIFICATION):
            context.rooms.reported(room, key, report.ok)
        if not report.ok and context.steady.now - self._said_refused >= REFUSED_SAID_SECONDS:
            self._said_refused = context.steady.now
            self.log.warn(
                "{key}: the chat app refused a message for the room {room!r}: {reason}",
                key=key,
                room=room.room_id,
                reason=report.reason or "no reason given",
            )

    @property
    def is_connected(self) -> bool:
        """True if it has a connection that is not closing."""
        return self.connection is not None and not self.connection.peer.closing

    def disconnected(self) -> None:
        """Note that its connection is gone."""
        self.connection = None
        if self._pacer is not None:
            self._pacer.stop()
        context = self._context
        self.kept_until = context.steady.now + context.settings.session.lifetime

    def expire(self, exact: float, now: float) -> None:
        """
        Drop messages that have waited too long, with a log line once in a while.

        @param exact: the time now, by the outbox's clock.
        @param now: the steady time.
        """
        count = self.outbox.expire(exact)
        if count and now - self._said_expired >= EXPIRED_SAID_SECONDS:
            self._said_expired = now
            self.log.warn(
                "{key}: {count} messages waited too long and will not be sent",
                key=self.key,
                count=count,
            )

    @property
    def is_idle(self) -> bool:
        """True when every message is answered and the outbox is empty."""
        return not self.pending and not self.outbox.messages


class Answering:
    """The origin of one taken message: its answers are recorded with it."""

    __slots__ = ("_device", "_records", "_skip", "_taken")

    def __init__(self, device: Device, records: Records, taken: Taken, skip: int = 0) -> None:
        """@param skip: how many answers were recorded before a crash: they are not sent again."""
        self._device = device
        self._records = records
        self._taken = taken
        self._skip = skip

    # Origin

    @property
    def key(self) -> DeviceKey:
        """Key of the phone."""
        return self._device.key

    def send(
        self, reply: Reply, ttl: float | None = None, on_status: StatusListener | None = None
    ) -> None:
        """See L{Origin<domaeka.interfaces.Origin>}."""
        if self._skip:
            self._skip -= 1
            return
        if not self._taken.done:
            self._records.answered(self._taken)
        self._device.send(reply, ttl, on_status, Priority.HIGH)

    def message_done(self, chat: Chat) -> None:
        """Note that the work on a submitted message is done."""
        self._records.done(self._taken)
        self._device.message_done(chat)

    def describe(self) -> Mapping[str, str]:
        """Facts that an operator may see: names to values, both for people."""
        return self._device.describe()
