"""
Records of durable delivery: what must be in the store before a client hears of it.

A device whose client acknowledges has L{Records}.  They note each message that was taken, each
answer, and each number, until a L{Batch} collects the changes.
"""

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec

from domaeka.policies.outbox import Outgoing
from domaeka.policies.snapshots import SavedMessage, restored_message, saved_message
from domaeka.wire import Chat

#: Numbers that are reserved at a time: after a crash the next ones begin behind them.
RESERVED_NUMBERS: Final = 1000
#: Most messages of a device that are taken and not stored; more are not taken.
MAX_UNSTORED: Final = 2000
#: Messages of a device after which its oldest ids are removed from the store.
PRUNED_IDS: Final = 500


class Ledger(Protocol):
    """
    Collects the changes of all records.  Its clocks are in seconds.

    @ivar seconds: the clock of the outboxes; C{wall}: the wall clock.
    @ivar gathering: the number of the batch that gathers.
    """

    seconds: Callable[[], float]
    wall: Callable[[], float]
    gathering: int

    def touch(self, records: "Records") -> None:
        """Note that C{records} have changed, for the first time since they were collected."""

    def forget(self, records: "Records") -> None:
        """Keep nothing of C{records}."""


class OutboxRow(msgspec.Struct, frozen=True, array_like=True):
    """The numbering of a device; C{next_number}: lower ones may have been given."""

    outbox: int
    key: tuple[str, str]
    epoch: str
    next_number: int


class MessageRow(msgspec.Struct, frozen=True, array_like=True):
    """
    A message that waits, or is not acknowledged.

    @ivar record: its place in the outbox's records.
    @ivar number: 0: it was never handed over.
    @ivar expires_at: in seconds since 1970.
    @ivar data: a L{SavedMessage}, in msgpack.
    """

    outbox: int
    record: int
    number: int
    expires_at: float
    data: bytes


class TakenRow(msgspec.Struct, frozen=True, array_like=True):
    """A message that was taken; C{body}: a L{Chat} in msgpack, or L{None} once it is answered."""

    outbox: int
    record: int
    client_id: str
    body: bytes | None
    answers: int


class Batch(msgspec.Struct, array_like=True):
    """
    Changes that are stored in one transaction, in the order of these fields.

    @ivar numbers: outbox, record and number of messages that are stored already.
    @ivar answers: outbox, record and number of answers of taken messages that are stored already;
        C{answered}: outbox and record of those that are done.
    @ivar gone: outbox and record of messages that are held no longer.
    @ivar pruned: outboxes of which all but the last ids are removed.
    @ivar forgotten: outboxes of which nothing is kept.
    """

    outboxes: list[OutboxRow] = []
    messages: list[MessageRow] = []
    taken: list[TakenRow] = []
    numbers: list[tuple[int, int, int]] = []
    answers: list[tuple[int, int, int]] = []
    answered: list[tuple[int, int]] = []
    gone: list[tuple[int, int]] = []
    pruned: list[int] = []
    forgotten: list[int] = []

    @property
    def rows(self) -> int:
        """The number of rows that are made, changed or removed, of those that are many."""
        some = len(self.messages) + len(self.taken) + len(self.numbers) + len(self.gone)
        return some + len(self.answers) + len(self.answered)


def joined(batches: Iterable[Batch]) -> Batch:
    """One batch that changes as much as C{batches}, one after the other."""
    whole = Batch()
    for batch in batches:
        for name in Batch.__struct_fields__:
            getattr(whole, name).extend(getattr(batch, name))
    # Each row once, as it is at last: a message that came and went is not written at all.
    new = {(row.outbox, row.record) for row in whole.messages}
    gone = set(whole.gone)
    whole.messages = [row for row in whole.messages if (row.outbox, row.record) not in gone]
    whole.gone = list(gone - new)
    whole.numbers = [row for row in whole.numbers if row[:2] not in gone]
    whole.answers = list({row[:2]: row for row in whole.answers}.values())
    return whole


class Taken(msgspec.Struct):
    """
    A message that was taken and is not answered yet.

    @ivar answers: the answers that were recorded so far.
    @ivar collected: whether it stands in a batch.
    """

    record: int
    client_id: str
    chat: Chat | None
    answers: int = 0
    collected: bool = False

    @property
    def done(self) -> bool:
        """True once it is answered."""
        return self.chat is None


class KeptOutbox(msgspec.Struct, frozen=True):
    """
    An outbox as the store has it.

    @ivar messages: in the order of their records.
    @ivar taken: likewise; those without a body are known ids only.
    """

    row: OutboxRow
    messages: list[MessageRow]
    taken: list[TakenRow]

    @property
    def last(self) -> int:
        """The last record."""
        messages = max((row.record for row in self.messages), default=1)
        return max(messages, max((row.record for row in self.taken), default=1))

    def items(self, behind: float) -> list[Outgoing]:
        """
        The messages; those that cannot be read are left out.

        @param behind: difference of the outbox's clock to the wall clock, in seconds.
        """
        items = []
        for row in self.messages:
            try:
                saved = msgspec.msgpack.decode(row.data, type=SavedMessage)
            except msgspec.DecodeError:
                continue
            item = restored_message(saved, row.expires_at + behind)
            item.number = row.number
            item.record = row.record
            items.append(item)
        return items

    def unanswered(self) -> list[Taken]:
        """The messages that are not answered, oldest first; without C{chat}: it is unreadable."""
        found = []
        for row in self.taken:
            if row.body is None:
                continue
            chat: Chat | None
            try:
                chat = msgspec.msgpack.decode(row.body, type=Chat)
            except msgspec.DecodeError:
                chat = None
            found.append(Taken(row.record, row.client_id, chat, row.answers, True))
        return found


class Records:
    """
    The records of a device's outbox: a L{Recorder<domaeka.policies.outbox.Recorder>}.

    @ivar outbox: its number in the store, never used before.
    @ivar ticket: the batch with its last change that somebody may wait for.
    """

    __slots__ = (
        "_answered",
        "_answers",
        "_dirty",
        "_epoch",
        "_gone",
        "_key",
        "_last",
        "_ledger",
        "_new",
        "_numbers",
        "_reserved",
        "_rooms",
        "_row_is_new",
        "_taken",
        "_unpruned",
        "outbox",
        "ticket",
    )

    def __init__(
        self,
        ledger: Ledger,
        outbox: int,
        key: tuple[str, str],
        epoch: str,
        next_number: int,
        last: int = 0,
    ) -> None:
        """
        @param next_number: lower ones may have been given.
        @param last: the last record that is in the store; 0: nothing of the outbox is.
        """
        self._ledger = ledger
        self.outbox = outbox
        self._key = key
        self._epoch = epoch
        self._reserved = next_number
        self._row_is_new = not last
        self._last = max(last, 1)
        self._new: dict[int, Outgoing] = {}
        self._numbers: dict[int, int] = {}
        self._gone: list[int] = []
        self._taken: dict[int, Taken] = {}
        self._rooms: dict[str, int] = {}  # how many of these are of each
        self._answers: dict[int, int] = {}
        self._answered: list[int] = []
        self._unpruned = 0
        self._dirty = False  # the ledger knows of a change
        self.ticket = 0

    def _changed(self) -> None:
        self.ticket = self._ledger.gathering
        if not self._dirty:
            self._touch()

    def _touch(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._ledger.touch(self)

    def _next(self) -> int:
        self._last += 1
        return self._last

    # Recorder

    def put(self, item: Outgoing) -> None:
        """A message waits."""
        item.record = self._next()
        self._new[item.record] = item
        self._changed()

    def numbered(self, item: Outgoing) -> None:
        """A message has got its number."""
        if item.number >= self._reserved:
            self._reserved = item.number + RESERVED_NUMBERS
            self._row_is_new = True
        if item.record not in self._new:
            self._numbers[item.record] = item.number
        self._changed()
        item.ticket = self.ticket

    def gone(self, item: Outgoing) -> None:
        """A message is held no longer."""
        self.remove(item.record)

    def remove(self, record: int) -> None:
        """Keep a message no longer."""
        if self._new.pop(record, None) is None:
            self._numbers.pop(record, None)
            self._gone.append(record)
            self._touch()

    # Messages of the client

    def has_room(self, room_id: str) -> bool:
        """
        True if one more message of a room can be taken, though those before are not stored: a room
        may take half of what is left to all.
        """
        return self._rooms.get(room_id, 0) < MAX_UNSTORED - len(self._taken)

    def took(self, chat: Chat) -> Taken:
        """A message was taken: its id is kept, and its body until L{done}."""
        room_id = chat.room_id
        self._rooms[room_id] = self._rooms.get(room_id, 0) + 1
        return self._took(chat.client_id or "", chat)

    def knew(self, client_id: str) -> None:
        """A message was taken before there were records."""
        self._took(client_id, None)

    def _took(self, client_id: str, chat: Chat | None) -> Taken:
        taken = Taken(self._next(), client_id, chat)
        self._taken[taken.record] = taken
        self._unpruned += 1
        self._changed()
        return taken

    def answered(self, taken: Taken) -> None:
        """An answer to a message was recorded."""
        taken.answers += 1
        if taken.collected:
            self._answers[taken.record] = taken.answers
            self._changed()

    def done(self, taken: Taken) -> None:
        """A message is answered: it need not be given again."""
        taken.chat = None
        if taken.collected:
            self._answers.pop(taken.record, None)
            self._answered.append(taken.record)
            self._touch()

    def forget(self) -> None:
        """Keep nothing any more."""
        self._new, self._taken, self._rooms = {}, {}, {}
        self._ledger.forget(self)

    # From the ledger

    def collect(self, batch: Batch) -> None:
        """Move all changes into C{batch}."""
        outbox = self.outbox
        self._dirty = False
        if self._row_is_new:
            self._row_is_new = False
            batch.outboxes.append(OutboxRow(outbox, self._key, self._epoch, self._reserved))
        if self._new:
            ahead = self._ledger.wall() - self._ledger.seconds()
            for record, item in self._new.items():
                data = msgspec.msgpack.encode(saved_message(item))
                batch.messages.append(
                    MessageRow(outbox, record, item.number, item.expires_at + ahead, data)
                )
            self._new = {}
        if self._taken:
            for record, taken in self._taken.items():
                taken.collected = True
                body = None if taken.chat is None else _encoded(taken.chat)
                batch.taken.append(TakenRow(outbox, record, taken.client_id, body, taken.answers))
            self._taken, self._rooms = {}, {}
        if self._numbers:
            batch.numbers += [(outbox, record, n) for record, n in self._numbers.items()]
            self._numbers = {}
        if self._answers:
            batch.answers += [(outbox, record, n) for record, n in self._answers.items()]
            self._answers = {}
        if self._answered:
            batch.answered += [(outbox, record) for record in self._answered]
            self._answered = []
        if self._gone:
            batch.gone += [(outbox, record) for record in self._gone]
            self._gone = []
        if self._unpruned >= PRUNED_IDS:
            self._unpruned = 0
            batch.pruned.append(outbox)


def _encoded(chat: Chat) -> bytes:
    """A message without its proof, in msgpack."""
    return msgspec.msgpack.encode(msgspec.structs.replace(chat, auth=None))
