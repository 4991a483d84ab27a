"""Tests for L{domaeka.gateway.directory.history}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import CloseReason
from domaeka.gateway.directory.history import History
from domaeka.gateway.views import ClosedConnection
from domaeka.interfaces import DeviceKey
from domaeka.metrics import Metrics


def closed(number: int, gone_at: float = 0.0, device: str = "d") -> ClosedConnection:
    """A connection that has ended."""
    return ClosedConnection(
        number,
        DeviceKey("봇", device),
        "192.0.2.1",
        "3.3.3",
        CloseReason.PEER_CLOSED,
        0.0,
        0.0,
        gone_at,
        *(0, 0, 0, 0),
    )


class HistoryTests(SynchronousTestCase):
    """Tests for L{History}."""

    def setUp(self) -> None:
        self.history = History(Metrics().pools, max_closed=5)

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self.history.add(closed(number))

    def numbers(self, before: int | None = None, limit: int = 10) -> list[int]:
        return [one.number for _, one in self.history.page(before, limit)]

    def test_bounded(self) -> None:
        """The oldest goes first."""
        self.add(*range(8))
        self.assertEqual(len(self.history), 5)
        self.assertEqual(self.numbers(), [7, 6, 5, 4, 3])

    def test_pages(self) -> None:
        """A page goes on where the one before ended, whatever has come or gone since."""
        self.add(*range(5))
        page = self.history.page(None, 2)
        self.assertEqual([one.number for _, one in page], [4, 3])
        self.add(5)
        self.assertEqual(self.numbers(before=page[-1][0]), [2, 1])
        self.add(*range(6, 20))
        self.assertEqual(self.numbers(before=page[-1][0]), [])

    def test_any_place(self) -> None:
        """Places that were never given do no harm."""
        self.assertEqual(self.numbers(before=3), [])
        self.add(0, 1)
        self.assertEqual(self.numbers(before=-(10**30)), [])
        self.assertEqual(self.numbers(before=10**30), [1, 0])

    def test_wanted(self) -> None:
        """Only those that are wanted count for the page."""
        self.add(*range(5))
        found = self.history.page(None, 2, lambda one: one.number % 2 == 0)
        self.assertEqual([one.number for _, one in found], [4, 2])

    def test_recent(self) -> None:
        """How often a device has left within the last hour."""
        for ended_at, device in ((0.0, "a"), (4000.0, "a"), (5000.0, "b"), (6000.0, "a")):
            self.history.add(closed(1, ended_at, device))
        recent = self.history.recent(7000.0)
        self.assertEqual(recent[DeviceKey("봇", "a")], 2)
        self.assertEqual(recent[DeviceKey("봇", "c")], 0)
