"""Tests for L{domaeka.store.durable}: changes of outboxes, stored in batches."""

import os
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.logger import capturedLogs

from domaeka.errors import StoreError
from domaeka.interfaces import DeviceKey
from domaeka.policies.records import Batch, KeptOutbox, MessageRow, OutboxRow, TakenRow
from domaeka.policies.snapshots import MAX_CLIENT_IDS
from domaeka.store.durable import (
    LOG,
    LOG_ROWS,
    MESSAGES,
    OUTBOXES,
    PART_BYTES,
    TAKEN,
    DurableStore,
)
from tests.storing import StoreTestCase

A, B = DeviceKey("봇", "a1"), DeviceKey("봇", "b2")
#: Larger than any column of numbers takes, and than SQLite's driver does.
TOO_LARGE = 2**70
#: The largest number of an outbox.
FAR = 2**63 - 1


def outbox(number: int = 1, key: DeviceKey = A, next_number: int = 1001) -> OutboxRow:
    """An outbox."""
    return OutboxRow(number, key, "epoch-1", next_number)


def message(record: int, data: bytes = b"\0\xff", outbox: int = 1, number: int = 0) -> MessageRow:
    """A message."""
    return MessageRow(outbox, record, number, 1_790_000_000.125, data)


def taken(record: int, body: bytes | None = b"body", outbox: int = 1, answers: int = 0) -> TakenRow:
    """A message that was taken."""
    return TakenRow(outbox, record, f"가-{record}", body, answers)


class DurableCase(StoreTestCase):
    """A store that is open."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.store = DurableStore(self.database, "node-1")

    def put(self, **changes: Any) -> None:
        """Store a batch."""
        self.successResultOf(maybeDeferred(self.store.store, Batch(**changes)))

    def kept(self) -> dict[int, KeptOutbox]:
        """All outboxes, by their numbers."""
        found: list[KeptOutbox] = self.successResultOf(self.store.load())
        return {one.row.outbox: one for one in found}

    def counts(self) -> tuple[int, ...]:
        """The numbers of outboxes, messages and taken ones, and of nothing in the log."""
        self.kept()
        self.assertEqual(self.rows(LOG), [])
        return tuple(len(self.rows(table)) for table in (OUTBOXES, MESSAGES, TAKEN))


class BatchTests(DurableCase):
    """Batches."""

    def test_round_trip(self) -> None:
        """Every kind of change is read again as it was stored."""
        self.put(
            outboxes=[outbox(), outbox(FAR, B, FAR)],
            messages=[message(2), message(3, number=7), message(2, b"x", FAR), message(4)],
            taken=[taken(5), taken(6, None), taken(7, answers=2), taken(3, outbox=FAR)],
        )
        self.assertEqual(
            self.kept(),
            {
                1: KeptOutbox(
                    outbox(),
                    [message(2), message(3, number=7), message(4)],
                    [taken(5), taken(6, None), taken(7, answers=2)],
                ),
                FAR: KeptOutbox(
                    outbox(FAR, B, FAR), [message(2, b"x", FAR)], [taken(3, outbox=FAR)]
                ),
            },
        )
        self.put(
            outboxes=[outbox(next_number=2001)],
            numbers=[(1, 2, 8), (1, 4, FAR)],
            answers=[(1, 5, 1), (1, 7, 3)],
            answered=[(1, 7), (FAR, 3)],
            gone=[(1, 3), (FAR, 2)],
        )
        self.assertEqual(
            self.kept(),
            {
                1: KeptOutbox(
                    outbox(next_number=2001),
                    [message(2, number=8), message(4, number=FAR)],
                    [taken(5, answers=1), taken(6, None), taken(7, None, answers=3)],
                ),
                FAR: KeptOutbox(outbox(FAR, B, FAR), [], [taken(3, None, FAR)]),
            },
        )

    def test_empty(self) -> None:
        """A batch without changes is stored."""
        self.put()
        self.assertEqual(self.counts(), (0, 0, 0))

    def test_stored_twice(self) -> None:
        """A batch that is stored again, for its answer was lost, changes nothing more."""
        self.put(outboxes=[outbox()], messages=[message(2), message(3)], taken=[taken(4)])
        changes = {
            "outboxes": [outbox(next_number=2001), outbox(2, B)],
            "messages": [message(5), message(6, b"x" * (PART_BYTES + 1))],
            "taken": [taken(7), taken(8, None)],
            "numbers": [(1, 2, 9)],
            "answers": [(1, 4, 1)],
            "answered": [(1, 4)],
            "gone": [(1, 3)],
            "pruned": [1],
            "forgotten": [2],
        }
        self.put(**changes)
        once = self.kept()
        self.put(**changes)
        self.assertEqual(self.kept(), once)
        self.assertEqual(self.counts(), (1, 4, 3))

    def test_first_one_wins(self) -> None:
        """A row that is there stays as it is; of an outbox only the number goes on."""
        self.put(outboxes=[outbox()], messages=[message(2)], taken=[taken(3)])
        other = OutboxRow(1, B, "epoch-2", 5)
        self.put(outboxes=[other], messages=[message(2, b"other")], taken=[taken(3, None)])
        wanted = KeptOutbox(outbox(next_number=5), [message(2)], [taken(3)])
        self.assertEqual(self.kept(), {1: wanted})

    def test_parts(self) -> None:
        """A large message is stored in parts, and comes back byte for byte."""
        data = os.urandom(2 * PART_BYTES + 1)
        self.put(outboxes=[outbox()], messages=[message(2), message(3, data), message(4)])
        self.assertEqual(self.counts()[1], 5)
        self.assertEqual(self.kept()[1].messages, [message(2), message(3, data), message(4)])
        self.put(numbers=[(1, 3, 7)])
        self.assertEqual(self.kept()[1].messages[1], message(3, data, number=7))
        self.put(gone=[(1, 3)])
        self.assertEqual(self.counts()[1], 2)

    def test_pruning(self) -> None:
        """The last 2,000 ids of an outbox are kept, and older ones that are not answered."""
        last = MAX_CLIENT_IDS + 10
        rows = [taken(n, b"body" if n == 3 else None) for n in range(1, last + 1)]
        other = [taken(n, None, 2) for n in (1, 2, 3)]
        self.put(outboxes=[outbox(), outbox(2, B)], taken=[*rows, *other], pruned=[1, 2])
        kept = self.kept()
        self.assertEqual(
            [row.record for row in kept[1].taken],
            [3, *range(last - MAX_CLIENT_IDS + 1, last + 1)],
        )
        self.assertEqual(kept[2].taken, other)

    def test_forgetting(self) -> None:
        """Nothing is left of an outbox that is forgotten, and all of the others."""
        rows = [outbox(), outbox(2, B)]
        self.put(
            outboxes=rows, messages=[message(2), message(2, outbox=2)], taken=[taken(3, outbox=1)]
        )
        self.put(forgotten=[1, 99])
        self.assertEqual(self.kept(), {2: KeptOutbox(rows[1], [message(2, outbox=2)], [])})
        self.assertEqual(self.counts(), (1, 1, 0))

    def test_servers_keep_apart(self) -> None:
        """Each of two servers on one store reads its own outboxes, also of the same phone."""
        self.put(outboxes=[outbox()], messages=[message(2)], taken=[taken(3)])
        other = DurableStore(self.database, "node-2")
        rows = Batch([outbox(2)], [message(2, b"x", 2)], [taken(3, None, 2)])
        self.successResultOf(maybeDeferred(other.store, rows))
        self.assertEqual(self.kept(), {1: KeptOutbox(outbox(), [message(2)], [taken(3)])})
        self.assertEqual(
            self.successResultOf(other.load()),
            [KeptOutbox(outbox(2), [message(2, b"x", 2)], [taken(3, None, 2)])],
        )


class LogTests(DurableCase):
    """The log in front of the tables."""

    def test_one_row(self) -> None:
        """A batch is one row, and is read by the next process as if it were in the tables."""
        self.put(outboxes=[outbox()], messages=[message(2)], taken=[taken(3)])
        self.put(numbers=[(1, 2, 7)], answered=[(1, 3)])
        self.assertEqual([len(self.rows(table)) for table in (LOG, OUTBOXES)], [2, 0])
        wanted = KeptOutbox(outbox(), [message(2, number=7)], [taken(3, None)])
        for _ in range(2):
            other = DurableStore(self.database, "node-1")
            self.assertEqual(self.successResultOf(other.load()), [wanted])

    def test_brought_in(self) -> None:
        """A full log goes into the tables: what came and went meanwhile is not written there."""
        self.put(outboxes=[outbox()])
        half = LOG_ROWS // 2
        self.put(messages=[message(n) for n in range(half)])
        self.put(gone=[(1, n) for n in range(half - 2)])
        self.assertEqual(len(self.rows(MESSAGES)), 0)
        self.put(taken=[taken(half + n) for n in range(3)])
        found = [len(self.rows(table)) for table in (LOG, OUTBOXES, MESSAGES, TAKEN)]
        self.assertEqual(found, [0, 1, 2, 3])

    def test_forgotten_at_once(self) -> None:
        """What is to be forgotten does not stay in the log."""
        self.put(outboxes=[outbox()], messages=[message(2)])
        self.put(forgotten=[1])
        self.assertEqual([len(self.rows(table)) for table in (LOG, OUTBOXES, MESSAGES)], [0, 0, 0])

    def test_damaged_row(self) -> None:
        """A row that cannot be read is reported and left out; the others are taken."""
        self.put(outboxes=[outbox()], messages=[message(2)])
        self.put(messages=[message(3)])
        self.successResultOf(
            self.database.run_write(
                lambda c: c.execute(
                    LOG.update().where(LOG.c.number == self.store._next - 1).values(data=b"\xc1")
                )
            )
        )
        other = DurableStore(self.database, "node-1")
        wanted = [KeptOutbox(outbox(), [message(2)], [])]
        with capturedLogs() as events:
            self.assertEqual(self.successResultOf(other.load()), wanted)
        self.assertEqual([event.get("count") for event in events], [1])


class RefusedTests(DurableCase):
    """Rows that a database refuses."""

    def test_stop_no_others(self) -> None:
        """A row that is refused stops none of the others, and the next batch is stored at once."""
        self.put(
            outboxes=[outbox()],
            messages=[message(2), message(3, number=TOO_LARGE), message(4, b"y" * PART_BYTES * 2)],
            taken=[taken(5), taken(6, answers=TOO_LARGE), taken(7)],
            numbers=[(1, 2, TOO_LARGE), (1, 4, 9)],
            answers=[(1, 5, TOO_LARGE), (1, 7, 1)],
        )
        messages = [message(2), message(4, b"y" * PART_BYTES * 2, number=9)]
        self.assertEqual(
            self.kept(), {1: KeptOutbox(outbox(), messages, [taken(5), taken(7, answers=1)])}
        )
        self.assertIsNone(self.database.health())
        self.put(gone=[(1, 2), (1, 4)])
        self.assertEqual(self.counts(), (1, 0, 2))

    def test_refused_outbox(self) -> None:
        """Of an outbox that is refused nothing is left: neither now nor of later batches."""
        self.put(
            outboxes=[outbox(next_number=TOO_LARGE), outbox(2, B)],
            messages=[message(2), message(2, outbox=2)],
            taken=[taken(3)],
        )
        self.put(messages=[message(4), message(3, outbox=2)], taken=[taken(5)])
        self.assertEqual(self.counts(), (1, 2, 0))
        self.put(forgotten=[1])
        self.assertEqual(self.counts(), (1, 2, 0))
        self.assertEqual(self.store._refused, set())

    def test_hostile_id(self) -> None:
        """An id with a character that not every database takes is stored with another one."""
        row = TakenRow(1, 2, "a\0b", b"body", 0)
        self.put(outboxes=[outbox()], taken=[row])
        self.assertEqual([one.client_id for one in self.kept()[1].taken], ["a\ufffdb"])

    def test_too_long(self) -> None:
        """What is too long is never cut without a word: it is refused, or stored as it is."""
        long = OutboxRow(2, DeviceKey("b" * 200, "b"), "epoch", 1)
        self.put(outboxes=[outbox(), long])
        kept = self.kept()
        self.assertEqual(kept.pop(1).row, outbox())
        self.assertIn([one.row for one in kept.values()], ([], [long]))


class TroubleTests(DurableCase):
    """A store that fails."""

    def test_nothing_in_part(self) -> None:
        """A batch that fails leaves nothing behind, and can be stored again."""
        batch = Batch([outbox()], [message(2)])

        def fail(*args: object) -> None:
            self.store._write(batch, *args)  # type: ignore[arg-type]
            raise StoreError("no more")

        self.failureResultOf(self.database.run_direct(fail), StoreError)
        self.assertEqual(self.counts(), (0, 0, 0))
        self.successResultOf(maybeDeferred(self.store.store, batch))
        self.assertEqual(self.kept(), {1: KeptOutbox(outbox(), [message(2)], [])})

    def test_before_the_start(self) -> None:
        """While the store is not open, and after its end, a batch fails."""
        closed = DurableStore(self.make_database(), "node-1")
        self.failureResultOf(closed.store(Batch()), StoreError)
        self.stopped()
        self.failureResultOf(self.store.store(Batch()), StoreError)
