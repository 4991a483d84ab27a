"""Tests for L{domaeka.store.outboxes}."""

import os

from twisted.internet.defer import CancelledError

from domaeka.errors import StoreError
from domaeka.interfaces import DeviceKey
from domaeka.store.outboxes import (
    KEEP_SECONDS,
    OUTBOXES,
    PART_BYTES,
    RETRY_SECONDS,
    StoredOutboxes,
)
from tests.storing import READ_ONLY, StoreTestCase

A, B = DeviceKey("bot", "a"), DeviceKey("봇", "b")


class StoredOutboxesTests(StoreTestCase):
    """Tests for L{StoredOutboxes}."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.outboxes = StoredOutboxes(self.database, "node-1")

    def load(self) -> dict[DeviceKey, bytes]:
        """What is taken out."""
        states: list[tuple[DeviceKey, bytes]] = self.successResultOf(self.outboxes.load())
        return dict(states)

    def test_is_taken_out_once(self) -> None:
        """States of any size come back byte for byte, once."""
        states = {A: os.urandom(2 * PART_BYTES + 1), B: b"", DeviceKey("c", "c"): b"\0" * 9}
        self.successResultOf(self.outboxes.save(states.items()))
        self.assertEqual(self.load(), states)
        self.assertEqual((self.load(), self.rows(OUTBOXES)), ({}, []))

    def test_newer_state_takes_the_place_of_the_older(self) -> None:
        """A device has one state, of which no piece of an older one is left."""
        self.successResultOf(self.outboxes.save([(A, b"x" * (PART_BYTES + 1)), (B, b"b")]))
        self.successResultOf(self.outboxes.save([(A, b"y")]))
        self.assertEqual(self.load(), {A: b"y", B: b"b"})

    def test_servers_keep_apart(self) -> None:
        """What one server put away is not taken by another on the same store."""
        self.successResultOf(self.outboxes.save([(A, b"mine")]))
        other = StoredOutboxes(self.database, "node-2")
        self.assertEqual(self.successResultOf(other.load()), [])
        self.assertEqual(self.load(), {A: b"mine"})

    def test_much_is_saved_in_pieces(self) -> None:
        """No transaction gets larger than it must: what comes first is safe first."""
        big = b"x" * 9_000_000
        self.successResultOf(self.outboxes.save([(A, big), (B, big)]))
        self.assertEqual(len(self.write_times), 2)
        self.assertEqual(self.load(), {A: big, B: big})

    def test_failure_is_told(self) -> None:
        """Where nothing could be saved, or taken, the asker knows, and nothing is lost."""
        self.successResultOf(self.outboxes.save([(A, b"kept")]))
        self.break_store()
        self.failureResultOf(self.outboxes.save([(B, b"b")]), StoreError)
        self.failureResultOf(self.outboxes.load(), StoreError)
        self.break_store(False)
        self.assertEqual(self.load(), {A: b"kept"})

    def test_kept_at_the_end(self) -> None:
        """What cannot be saved at once, at the end, is tried again while there is time."""
        self.break_store()
        kept = self.outboxes.keep([(A, b"a")], self.clock)
        self.clock.pump([RETRY_SECONDS] * 5)
        self.break_store(False)
        self.clock.pump([RETRY_SECONDS] * 2)
        self.successResultOf(kept)
        self.assertEqual(self.load(), {A: b"a"})

    def test_could_not_be_kept(self) -> None:
        """A store that fails, or hangs, holds the end up for so long, and it is said why."""
        self.break_store()
        kept = self.outboxes.keep([(A, b"a")], self.clock)
        self.clock.pump([RETRY_SECONDS] * int(KEEP_SECONDS))
        self.assertRegex(str(self.failureResultOf(kept, StoreError).value), READ_ONLY)
        self.thread.stuck = True
        kept = self.outboxes.keep([(A, b"a")], self.clock)
        self.clock.advance(KEEP_SECONDS)
        self.assertIn("not answered", str(self.failureResultOf(kept, StoreError).value))
        kept = self.outboxes.keep([(A, b"a")], self.clock)
        kept.cancel()
        self.failureResultOf(kept, CancelledError)
