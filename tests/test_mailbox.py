"""Tests for L{domaeka.policies.mailbox}."""

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.messages import Media, Reply
from domaeka.policies.mailbox import ClientIds, MailboxState, dump_mail, load_mail
from domaeka.policies.outbox import Budget, Outbox, Priority


class ClientIdsTests(SynchronousTestCase):
    """Tests for L{ClientIds}."""

    def test_knows_the_last_ones(self) -> None:
        """An id is known again until so many others have come."""
        ids = ClientIds(max_ids=3)
        self.assertEqual([ids.seen(text) for text in "abcab"], [False] * 3 + [True] * 2)
        self.assertFalse(ids.seen("d"))
        self.assertEqual(ids.dump(), ["b", "c", "d"])
        self.assertFalse(ids.seen("a"))


class MailboxTests(SynchronousTestCase):
    """Tests for L{dump_mail} and L{load_mail}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.outbox = self.outbox_of("epoch-1")
        self.client_ids = ClientIds()

    def outbox_of(self, epoch: str) -> Outbox:
        return Outbox(100, 1_000_000, Budget(10_000_000), self.clock.seconds, epoch)

    def restart(self, seconds: float) -> tuple[Outbox, ClientIds]:
        """Stop in order, and start again after so many seconds."""
        state = dump_mail(self.outbox, self.client_ids, self.clock.seconds())
        data = msgspec.msgpack.encode(state)
        self.clock.rightNow += seconds
        outbox, client_ids = self.outbox_of(""), ClientIds()
        read = msgspec.msgpack.decode(data, type=MailboxState)
        load_mail(read, outbox, client_ids, self.clock.seconds())
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
        outbox.expire(self.clock.seconds() + 29.0)
        self.assertEqual(len(outbox), 1)
        self.clock.rightNow += 3600.0
        self.assertEqual(len(self.restart(29.0)[0]), 1)
        self.assertEqual(len(self.restart(1.0)[0]), 0)
