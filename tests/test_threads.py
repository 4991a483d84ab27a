"""Tests for L{domaeka.store.threads}."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import StoreError
from domaeka.store.threads import MAX_WAITING_CALLS, DatabaseFailed, Executor, StoreClosed
from tests.storing import FakeThread


def fails() -> None:
    """What a call is like of which the database says no."""
    raise DatabaseFailed("disk full")


class ExecutorTests(SynchronousTestCase):
    """Tests for L{Executor}."""

    def setUp(self) -> None:
        self.thread = FakeThread()
        self.executor = Executor(self.thread, Clock().seconds)

    def test_one_after_the_other(self) -> None:
        """A call is begun once the one before is over, its answer given."""
        seen: list[str] = []
        self.thread.stuck = True
        first = self.executor.submit(lambda: seen.append("first"))
        first.addCallback(lambda _: seen.append("answered"))
        self.executor.submit(lambda: seen.append("second"))
        self.assertEqual((len(self.executor), seen), (2, []))
        self.thread.go_on()
        self.assertEqual((len(self.executor), seen), (0, ["first", "answered", "second"]))

    def test_remembers_the_last_failure(self) -> None:
        """What the database said stands until a call works; other mistakes are none of its."""
        self.failureResultOf(self.executor.submit(fails), DatabaseFailed)
        self.failureResultOf(self.executor.submit(lambda: 1 // 0), ZeroDivisionError)
        self.assertEqual(self.executor.failure, "disk full")
        self.successResultOf(self.executor.submit(lambda: None))
        self.assertIsNone(self.executor.failure)

    def test_giving_up_refuses_what_waits(self) -> None:
        """A thread that is stuck is left alone; what waited for it is told."""
        self.thread.stuck = True
        self.executor.submit(lambda: None)
        waiting = self.executor.submit(lambda: None)
        self.executor.give_up()
        self.failureResultOf(waiting, StoreClosed)
        self.assertFalse(self.thread.closed)

    def test_last_call_finds_room(self) -> None:
        """A full queue refuses calls, but for the one that ends it."""
        self.thread.stuck = True
        for _ in range(MAX_WAITING_CALLS + 1):
            self.executor.submit(lambda: None)
        self.failureResultOf(self.executor.submit(lambda: None), StoreError)
        last = self.executor.finish(lambda: "closed")
        self.thread.go_on()
        self.assertEqual(self.successResultOf(last), "closed")
