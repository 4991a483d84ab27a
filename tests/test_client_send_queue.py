"""Tests for L{domaeka.client.send_queue}."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.client import send_queue
from domaeka.client.send_queue import WRITTEN_SECONDS, Fate, QueueFull, SendQueue
from domaeka.wire import Said


def said(text: str, room: str = "방") -> Said:
    return Said(room=room, sender="나", text=text)


class SendQueueTests(SynchronousTestCase):
    """Tests for L{SendQueue}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = SendQueue(self.clock.seconds, "p")
        self.fates: list[tuple[str, Fate]] = []

    def put(self, text: str, ttl: float = 30.0) -> None:
        self.queue.put(said(text), ttl, lambda fate: self.fates.append((text, fate)))

    def take(self, acknowledged: bool = True) -> str | None:
        entry = self.queue.take()
        if entry is None:
            return None
        self.queue.written(entry, acknowledged)
        return entry.said.text

    def test_in_order(self) -> None:
        """What was put first goes first, each under an id of its own."""
        for text in "가나다":
            self.put(text)
        ids = set()
        for text in "가나다":
            entry = self.queue.take()
            assert entry is not None
            self.queue.written(entry, acknowledged=True)
            self.assertEqual(entry.said.text, text)
            ids.add(entry.client_id)
        self.assertEqual(len(ids), 3)

    def test_fates(self) -> None:
        """A message is taken when the server says so, or written where it says nothing."""
        self.put("가")
        self.put("나")
        self.take()
        self.take(acknowledged=False)
        self.queue.taken("p-1")
        self.queue.taken("p-1")
        self.queue.taken("p-9")
        self.assertEqual(self.fates, [("나", Fate.WRITTEN), ("가", Fate.TAKEN)])
        self.assertEqual(len(self.queue), 0)

    def test_lost_connection(self) -> None:
        """What was not acknowledged goes again, in order, ahead of what is new."""
        for text in "가나다라":
            self.put(text)
        for _ in range(3):
            self.take()
        self.queue.taken("p-2")
        self.queue.connection_lost()
        self.put("마")
        self.assertEqual([self.take() for _ in range(5)], ["가", "다", "라", "마", None])

    def test_expires(self) -> None:
        """What has waited too long is not sent any more; what was written has 15 s more."""
        for text in "가나다":
            self.put(text, ttl=10.0)
        self.take()
        self.clock.advance(10.0)
        self.put("라")
        self.assertEqual(self.take(), "라")
        self.queue.expire()
        self.assertEqual(sorted(self.fates), [(text, Fate.EXPIRED) for text in "나다"])
        self.clock.advance(WRITTEN_SECONDS)
        self.queue.expire()
        self.assertEqual(sorted(self.fates), [(text, Fate.EXPIRED) for text in "가나다"])
        self.assertEqual(len(self.queue), 1)

    def test_stay_away(self) -> None:
        """While a server is not to be disturbed, nothing's time runs."""
        self.put("가")
        self.queue.suspend_expiry(100.0)
        self.put("나")
        self.clock.advance(129.0)
        self.queue.expire()
        self.queue.resume_expiry()
        self.put("다", ttl=0.5)
        self.assertEqual([self.take() for _ in range(3)], ["가", "나", "다"])
        self.clock.advance(1.0 + WRITTEN_SECONDS)
        self.queue.expire()
        self.assertEqual(len(self.queue), 0)

    def test_bounded(self) -> None:
        """So many messages wait, and so much text, and no more."""
        for number in range(send_queue.MAX_MESSAGES):
            self.put(str(number))
        self.assertRaises(QueueFull, self.put, "x")
        self.take(acknowledged=False)
        self.put("x")
        self.queue.clear()
        self.assertEqual(self.fates[-1], ("x", Fate.STOPPED))
        for _ in range(send_queue.MAX_CHARS // 65_000):
            self.put("가" * 65_000)
        self.assertRaises(QueueFull, self.put, "가" * 65_000)

    def test_refuses_what_no_server_takes(self) -> None:
        """What could only be refused is refused here."""
        for wrong in (said(""), said("가" * 65_001), said("가", room=" ")):
            self.assertRaises(ValueError, self.queue.put, wrong, 30.0)
        for ttl in (0.0, -1.0, float("inf"), float("nan"), "soon", None):
            self.assertRaises(ValueError, self.queue.put, said("가"), ttl)
