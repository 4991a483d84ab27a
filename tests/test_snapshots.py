"""Tests for L{domaeka.policies.snapshots}."""

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.outbox import Budget, Outbox, Priority
from domaeka.policies.snapshots import ClientIds, OutboxSnapshot, load_snapshot, take_snapshot
from domaeka.wire import Media, Reply
from tests.clocks import WallClock


class ClientIdsTests(SynchronousTestCase):
    """Tests for L{ClientIds}."""

    def test_knows_the_last_ones(self) -> None:
        """An id is known again until so many others have come."""
        ids = ClientIds(max_ids=3)
        self.assertEqual([ids.seen(text) for text in "abcab"], [False] * 3 + [True] * 2)
        self.assertFalse(ids.seen("d"))
        self.assertEqual(ids.dump(), ["b", "c", "d"])
        self.assertFalse(ids.seen("a"))


class SnapshotTests(SynchronousTestCase):
    """Tests for L{take_snapshot} and L{load_snapshot}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wall = WallClock(self.clock, 1_790_000_000.0)
        self.outbox = self.outbox_of("epoch-1")
        self.client_ids = ClientIds()

    def outbox_of(self, epoch: str) -> Outbox:
        return Outbox(100, 1_000_000, Budget(10_000_000), self.clock.seconds, epoch)

    def restart(self, seconds: float) -> tuple[Outbox, ClientIds]:
        """Stop in order, and start again after so many seconds."""
        state = take_snapshot(self.outbox, self.client_ids, self.clock.seconds(), self.wall())
        data = msgspec.msgpack.encode(state)
        self.clock.rightNow = 7.0  # another process, on a machine that was started again
        self.wall.ahead += state.saved_at + seconds - self.wall()
        outbox, client_ids = self.outbox_of(""), ClientIds()
        read = msgspec.msgpack.decode(data, type=OutboxSnapshot)
        load_snapshot(read, outbox, client_ids, self.clock.seconds(), self.wall())
        return outbox, client_ids

    def test_survives_a_restart(self) -> None:
        """What waits, its numbers and what the client has sent are there again."""
        contents: list[str | Media] = [
            "안녕 \ud800",
            Media((b"\x00\xff",)),
            Media(("http://a/",), "video", "mp4", 9),
        ]
        self.outbox.connected(True)
        for content in contents:
            reply = Reply("방", None, "bot", content, "broadcastMessage")
            self.outbox.put(reply, Priority.NORMAL, 30.0)
        self.client_ids.seen("a")
        self.outbox.take()
        outbox, client_ids = self.restart(5.0)
        outbox.connected(True)
        items = list(iter(outbox.take, None))
        self.assertEqual([item.message_id for item in items], [1, 2, 3])
        replies = [Reply("방", None, "bot", c, "broadcastMessage") for c in contents]
        replies[0].content = "안녕 ?"  # what no encoding can say
        self.assertEqual([item.reply for item in items], replies)
        self.assertEqual((outbox.epoch, client_ids.seen("a")), ("epoch-1", True))

    def test_stays_away(self) -> None:
        """Who was told to stay away over the stop is waited for after it."""
        self.outbox.stay_away(self.clock.seconds() + 90.0)
        outbox, _ = self.restart(20.0)
        item = outbox.put(Reply("room", "1", "bot", "text"), Priority.NORMAL, 30.0)
        assert item is not None
        self.assertEqual(item.expires_at, self.clock.seconds() + 70.0 + 30.0)

    def test_time_goes_on(self) -> None:
        """The stop counts against a message's time; a clock that steps back does not."""
        self.outbox.put(Reply("room", "1", "bot", "text"), Priority.NORMAL, 30.0)
        outbox, _ = self.restart(-3600.0)
        self.clock.advance(29.0)
        outbox.expire(self.clock.seconds())
        self.assertEqual(len(outbox), 1)
        self.outbox = outbox
        self.outbox, _ = self.restart(0.9)
        self.assertEqual(len(self.outbox), 1)
        self.assertEqual(len(self.restart(0.2)[0]), 0)

    def test_clock_is_set_before_the_stop(self) -> None:
        """What the clock was set by while the server ran takes no time from what waits."""
        for step in (-3600.0, -32_400.0, 86_400.0):
            self.outbox = self.outbox_of("")
            self.outbox.put(Reply("room", "1", "bot", "text"), Priority.NORMAL, 30.0)
            self.outbox.stay_away(self.clock.seconds() + 50.0)
            self.wall.step(step)
            outbox, _ = self.restart(20.0)
            self.assertEqual([item.expires_at for item in outbox.held()], [7.0 + 60.0])
            self.assertEqual(outbox.away_until, 7.0 + 30.0)
