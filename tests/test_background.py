"""Tests for L{domaeka.store.background}."""

from sqlalchemy import Connection
from twisted.logger import LogLevel, capturedLogs

from domaeka.store.background import BATCH_ROWS, FLUSH_SECONDS, RETRY_SECONDS, BackgroundWriter
from domaeka.store.revisions import touch
from tests.storing import READ_ONLY, StoreTestCase


class BackgroundWriterTests(StoreTestCase):
    """Tests for L{BackgroundWriter}."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.queue: list[int] = []
        self.stored: list[int] = []
        self.batches: list[int] = []
        self.writer: BackgroundWriter[list[int], int] = BackgroundWriter(
            self.database,
            self.clock,
            "numbers",
            delay=1.0,
            take=lambda: self.queue[:BATCH_ROWS],
            write=self.write,
            written=self.written,
            failed=lambda batch: None,
        )

    def write(self, connection: Connection, batch: list[int]) -> int:
        """Pretend to store a batch, by a statement that changes nothing."""
        touch(connection)
        self.batches.append(len(batch))
        return len(batch)

    def written(self, batch: list[int], count: int) -> None:
        """A batch is stored."""
        self.stored += batch
        del self.queue[:count]

    def test_gathers_a_batch(self) -> None:
        """What comes within the delay is written together."""
        for number in range(3):
            self.queue.append(number)
            self.writer.wake()
        self.clock.advance(0.9)
        self.assertEqual(self.stored, [])
        self.clock.advance(0.1)
        self.assertEqual(self.stored, [0, 1, 2])
        self.assertEqual(self.batches, [3])

    def test_goes_on_while_batches_are_full(self) -> None:
        """A backlog is written without a pause, in bounded batches."""
        self.queue = list(range(BATCH_ROWS * 2 + 1))
        self.writer.hurry()
        self.clock.pump([0, 0])
        self.assertEqual(self.batches, [BATCH_ROWS, BATCH_ROWS, 1])

    def test_one_batch_at_a_time(self) -> None:
        """Nothing is taken twice while the store is slow."""
        self.thread.stuck = True
        self.queue = [1]
        self.writer.hurry()
        self.writer.hurry()
        self.writer.wake()
        self.clock.advance(60)
        self.thread.go_on()
        self.assertEqual(self.stored, [1])

    def test_tries_again_and_says_so_once(self) -> None:
        """While the store is gone its owner keeps what waits; the log has one line, not many."""
        self.break_store()
        self.queue = [1]
        self.writer.wake()
        with capturedLogs() as events:
            self.clock.pump([1.0, RETRY_SECONDS, RETRY_SECONDS])
        warnings = [event for event in events if event["log_level"] is LogLevel.warn]
        self.assertEqual((self.stored, len(warnings)), ([], 1))
        self.assertRegex(self.writer.trouble or "", READ_ONLY)
        self.break_store(False)
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual(self.stored, [1])
        self.assertIsNone(self.writer.trouble)

    def test_own_mistake_does_not_end_it(self) -> None:
        """A batch that cannot be made now is tried again like any other."""
        self.queue = [1]
        self.writer._write = lambda connection, batch: 1 // 0
        self.writer.hurry()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.writer._write = self.write
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual(self.stored, [1])

    def test_stop_writes_all(self) -> None:
        """A stop waits for no delay, and leaves nothing unwritten."""
        self.queue = list(range(BATCH_ROWS + 1))
        self.writer.wake()
        stopping = self.writer.stop()
        self.clock.pump([0, 0])
        self.successResultOf(stopping)
        self.assertEqual(len(self.stored), BATCH_ROWS + 1)
        self.writer.wake()
        self.stopped()

    def test_stop_does_not_wait_for_ever(self) -> None:
        """A store that hangs or fails holds up no stop."""
        self.queue = [1]
        self.thread.stuck = True
        self.writer.hurry()
        stopping = self.writer.stop()
        self.clock.advance(FLUSH_SECONDS)
        self.successResultOf(stopping)
        self.thread.go_on()
        self.stopped()
