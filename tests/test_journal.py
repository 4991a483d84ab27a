"""Tests for L{domaeka.gateway.journal}: what is taken is in the store before its client hears."""

from typing import Any

from twisted.internet.defer import Deferred

from domaeka.gateway.journal import COMMIT_SECONDS, Journal
from domaeka.gateway.serving import Step
from domaeka.interfaces import Approval, RoomKey
from domaeka.policies.records import MAX_UNSTORED, Batch, KeptOutbox
from domaeka.store.database import Database
from domaeka.store.durable import MESSAGES, OUTBOXES, TAKEN, DurableStore
from domaeka.testing import FakeDispatcher
from domaeka.wire import Chat, Delivered, Media, Reply
from tests.gateway_case import KEY, PICTURE, GatewayCase, Peer
from tests.storing import FakeThread, fill


class JournalCase(GatewayCase):
    """A gateway on a real store, whose thread stands still at will."""

    def setUp(self) -> None:
        super().setUp()
        self.thread = FakeThread()
        self.database = Database(
            "sqlite://", self.clock, make_worker=lambda name, reactor: self.thread
        )
        fill(self.database)
        self.successResultOf(self.database.start())
        self.batches: list[Batch] = []
        self.restart()
        self.addCleanup(lambda: self.successResultOf(self.journal.flush()))

    def restart(
        self,
        *settings: tuple[str, str],
        enabled: bool = True,
        approval: Approval | None = None,
        **more: Any,
    ) -> None:
        """Another process, after the one before was killed."""
        store = self.store = DurableStore(self.database, "here")

        def stored(batch: Batch) -> Any:
            self.batches.append(batch)
            return store.store(batch)

        self.journal = Journal(
            stored, self.clock.callLater, self.clock.seconds, self.wall, enabled=enabled
        )
        self.serve(*settings, journal=self.journal, **more)
        if approval is not None:
            self.devices.known[KEY] = approval
        kept: list[KeptOutbox] = self.successResultOf(store.load())
        self.directory.restore_records(kept)

    def crash(self, **more: Any) -> None:
        """The process is killed: what is not stored is lost."""
        self.journal._store = lambda batch: Deferred()
        for line in self.server.accepted:
            line.abortConnection()
        self.thread.stuck, self.thread._calls = False, []
        self.database._executors[0].running_since = None
        self.journal._give_up()
        self.restart(**more)

    def rows(self, table: Any) -> int:
        """The number of rows of a table, once the log is in it."""
        self.successResultOf(self.store.load())
        count = self.database.run_read(lambda c: len(c.execute(table.select()).all()))
        return self.successResultOf(count)

    def break_store(self, broken: bool = True) -> None:
        """Have every write fail, or no longer."""
        connection = self.database._writes.raw_connection()
        connection.cursor().execute(f"PRAGMA query_only={'ON' if broken else 'OFF'}")
        connection.close()

    def begin(self, peer: Peer | None = None) -> Peer:
        """A client that has been greeted, and whose outbox is in the store."""
        peer = peer or self.client("ack")
        self.run_for(1.0)
        peer.take()
        return peer


class CommitTests(JournalCase):
    """Commits, and what waits for them."""

    def test_held_before_the_store_is_read(self) -> None:
        """What was held is kept like all else, and is done once it is decided."""
        self.context.held.begin()
        peer = self.client("ack")
        peer.chat("하나", client_id="a")
        peer.chat("둘", client_id="b", room="other", channel_id="1")
        self.rooms.known[RoomKey(KEY.bot_name, "1")] = Approval.DENIED
        self.run_for(1.0)
        self.assertEqual((peer.taken, peer.texts), (["a", "b"], []))
        self.directory.decisions.store_read()
        self.run_for(1.0)
        self.assertEqual(peer.texts, ["하나"])
        self.crash()
        self.assertEqual(self.bots.submitted, [])

    def test_nothing_leaves_before(self) -> None:
        """Neither the acknowledgement nor the numbered answer leaves before both are stored."""
        peer = self.begin()
        self.thread.stuck = True
        peer.chat("하나", client_id="a")
        self.assertEqual((peer.taken, peer.texts), ([], []))
        self.thread.go_on()
        self.run_for(0.0)
        self.assertEqual((peer.taken, peer.texts, peer.numbers), (["a"], ["하나"], [1]))

    def test_one_in_flight(self) -> None:
        """While a commit is under way the next batch gathers, of all connections."""
        peers = [self.begin(), self.begin(self.client("ack", key=KEY._replace(device_id="e")))]
        before = len(self.batches)
        self.thread.stuck = True
        for number in range(5):
            for peer in peers:
                peer.chat(str(number), client_id=str(number))
        self.assertEqual(len(self.batches), before + 1)
        self.thread.go_on()
        self.run_for(0.0)
        self.assertLessEqual(len(self.batches), before + 4)
        for peer in peers:
            self.assertEqual((len(peer.taken), peer.texts), (5, [str(n) for n in range(5)]))

    def test_acknowledged_is_removed(self) -> None:
        """Once a client has its answers, only the ids of its messages are kept."""
        peer = self.begin()
        peer.chat("하나", "둘", "셋", client_id="a")
        self.run_for(1.0)
        self.assertEqual((self.rows(MESSAGES), self.rows(TAKEN)), (1, 1))
        peer.ack(1)
        self.run_for(1.0)
        self.assertEqual((self.rows(MESSAGES), self.rows(TAKEN), self.rows(OUTBOXES)), (0, 1, 1))

    def test_pings_go_on(self) -> None:
        """An answer that waits for the store holds up no ping for longer than it may take."""
        peer = self.begin()
        self.thread.stuck = True
        peer.chat("하나", client_id="a")
        self.run_for(70.0)
        self.assertTrue(peer.texts)
        self.assertGreaterEqual(sum(type(frame).__name__ == "Ping" for frame in peer.frames), 1)
        self.thread.go_on()
        self.run_for(0.0)


class FailingTests(JournalCase):
    """A store that fails, or takes too long."""

    def test_slow(self) -> None:
        """After 2 s answers go out without a number; the acknowledgement waits for the store."""
        peer = self.begin()
        self.thread.stuck = True
        peer.chat("하나", client_id="a")
        self.run_for(COMMIT_SECONDS - 0.1)
        self.assertEqual(peer.texts, [])
        self.run_for(0.2)
        self.assertEqual((peer.taken, peer.texts, peer.numbers), ([], ["하나"], [None]))
        self.assertIsNotNone(self.journal.health())
        peer.chat("둘", client_id="b")  # at once, now that it is known
        self.assertEqual((peer.taken, peer.texts), ([], ["하나", "둘"]))
        self.thread.go_on()
        self.run_for(0.0)
        self.assertEqual((peer.taken, self.journal.health()), (["a", "b"], None))
        peer.chat("셋", client_id="c")
        self.run_for(0.0)
        self.assertEqual(peer.numbers[-1], 3)

    def test_fails(self) -> None:
        """A batch that failed is stored again, unchanged; nothing is acknowledged meanwhile."""
        peer = self.begin()
        self.break_store()
        peer.chat("하나", client_id="a")
        self.run_for(30.0)
        self.assertEqual((peer.taken, peer.texts, peer.numbers), ([], ["하나"], [None]))
        again = self.batches[-5:]
        self.assertEqual(again, [again[0]] * 5)
        self.break_store(False)
        self.run_for(2.0)
        self.assertEqual((peer.taken, peer.texts), (["a"], ["하나"]))
        self.assertEqual(self.rows(MESSAGES), 0)

    def test_files(self) -> None:
        """Files that went out without a number are whole."""
        self.serve_files()
        peer = self.begin()
        self.thread.stuck = True
        peer.chat("그림", client_id="a")
        self.run_for(COMMIT_SECONDS + 1.0)
        files = [frame.reply.content for frame in peer.frames if isinstance(frame, Delivered)]
        self.assertEqual(files, [Media((PICTURE * 9000,))])
        self.thread.go_on()
        self.run_for(0.0)

    def serve_files(self) -> None:
        """Answer with a large file."""
        self.restart(dispatcher=FakeDispatcher(lambda chat: Media((PICTURE * 9000,))))

    def test_bounded(self) -> None:
        """Of messages that cannot be stored only so many are taken; the others come again."""
        self.restart(("limits.messages_per_second", "0"))
        peer = self.begin()
        self.thread.stuck = True
        for number in range(MAX_UNSTORED + 10):
            peer.chat("nothing", client_id=str(number))
        self.run_for(3.0)
        self.thread.go_on()
        self.run_for(1.0)
        self.assertLessEqual(len(peer.taken), MAX_UNSTORED + 1)
        peer.chat("nothing", client_id=str(MAX_UNSTORED + 9))
        self.run_for(1.0)
        self.assertEqual(peer.taken[-1], str(MAX_UNSTORED + 9))


class CrashTests(JournalCase):
    """A process that is killed, and the next one."""

    def test_before_the_commit(self) -> None:
        """What was not acknowledged is said again, and answered once."""
        peer = self.begin()
        self.thread.stuck = True
        peer.chat("하나", client_id="a")
        self.crash()
        back = self.begin()
        back.chat("하나", client_id="a")
        self.run_for(1.0)
        self.assertEqual((back.taken, back.texts), (["a"], ["하나"]))

    def test_behind_the_commit(self) -> None:
        """What was stored is known again; its answer goes once more, under its number."""
        peer = self.begin()
        peer.chat("하나", client_id="a")
        self.run_for(0.0)
        self.crash()
        back = self.client("ack")
        self.assertEqual(back.greetings[0].epoch, self.device().epoch)
        back.chat("하나", client_id="a")
        self.run_for(1.0)
        self.assertEqual((back.taken, back.texts, back.numbers), (["a"], ["하나"], [1]))
        back.chat("둘", client_id="b")
        self.run_for(1.0)
        self.assertGreater(back.numbers[-1] or 0, 1)

    def test_unanswered(self) -> None:
        """What no bot had answered is given to the bots again, once."""
        self.bots.hold = True
        peer = self.begin()
        peer.chat("하나", client_id="a")
        self.run_for(1.0)
        self.assertEqual(peer.taken, ["a"])
        self.crash()
        back = self.client("ack")
        self.run_for(1.0)
        self.assertEqual(back.texts, ["하나"])
        back.ack(back.numbers[-1] or 0)
        self.run_for(1.0)
        self.crash()
        back = self.client("ack")
        self.run_for(1.0)
        self.assertEqual(back.texts, [])

    def test_blocked_meanwhile(self) -> None:
        """What a device had said that is blocked since is not answered, and not kept."""
        self.bots.hold = True
        peer = self.begin()
        peer.chat("하나", client_id="a")
        self.run_for(1.0)
        self.crash(approval=Approval.BLOCKED)
        self.run_for(1.0)
        self.assertEqual(self.bots.submitted, [])
        kept: list[KeptOutbox] = self.successResultOf(DurableStore(self.database, "here").load())
        self.assertEqual([taken.body for taken in kept[0].taken], [None])

    def test_half_answered(self) -> None:
        """Of a handler that had sent a part of its answers, the rest is sent."""
        half = FakeDispatcher(lambda chat: None)

        def answer(chat: Chat, origin: Any, texts: list[str]) -> None:
            for text in texts:
                origin.send(Reply(chat.room, chat.channel_id, KEY.bot_name, text))

        half.submit = lambda chat, origin: answer(chat, origin, ["하나"])  # type: ignore[method-assign]
        self.restart(dispatcher=half)
        peer = self.begin()
        peer.chat("셋 다", client_id="a")
        self.run_for(1.0)
        peer.ack(peer.numbers[0] or 0)
        self.run_for(1.0)
        whole = FakeDispatcher(lambda chat: None)

        def finish(chat: Chat, origin: Any) -> None:
            answer(chat, origin, ["하나", "둘", "셋"])
            origin.message_done(chat)

        whole.submit = finish  # type: ignore[method-assign]
        self.crash(dispatcher=whole)
        back = self.client("ack")
        self.run_for(1.0)
        self.assertEqual(back.texts, ["둘", "셋"])

    def test_other_client(self) -> None:
        """A phone that acknowledges nothing any more leaves nothing in the store."""
        peer = self.begin()
        peer.chat("하나", client_id="a")
        self.run_for(1.0)
        peer.drop()
        self.ready()
        self.run_for(1.0)
        self.assertEqual([self.rows(t) for t in (MESSAGES, TAKEN, OUTBOXES)], [0, 0, 0])

    def test_switched_off(self) -> None:
        """Where it is no longer wished for, the records are served once more, and removed."""
        peer = self.begin()
        peer.chat("하나", client_id="a")
        self.run_for(0.0)
        self.crash(enabled=False)
        back = self.client("ack")
        back.chat("하나", client_id="a")
        self.run_for(1.0)
        self.assertEqual((back.taken, back.texts, back.numbers), (["a"], ["하나"], [1]))
        self.assertEqual([self.rows(t) for t in (MESSAGES, TAKEN, OUTBOXES)], [0, 0, 0])

    def test_stop_in_order(self) -> None:
        """At a stop all changes are stored, and no snapshot is needed."""
        peer = self.begin()
        peer.chat("하나", client_id="a")
        self.context.serving.take(Step.DRAIN)
        self.assertEqual(list(self.directory.snapshot()), [])
        self.successResultOf(self.journal.flush())
        self.crash()
        back = self.client("ack")
        self.run_for(1.0)
        self.assertEqual((back.texts, back.numbers), (["하나"], [1]))
