"""Tests for L{domaeka.store.chatlog}."""

from sys import getsizeof
from types import SimpleNamespace

from domaeka.interfaces import ChatLine
from domaeka.store import chatlog as module
from domaeka.store.background import BATCH_ROWS, FLUSH_SECONDS, RETRY_SECONDS
from domaeka.store.chatlog import (
    CHAT_LINES,
    FORGET_LINES,
    FORGET_SECONDS,
    MAX_WAITING_LINES,
    WRITE_SECONDS,
    StoredChatLog,
)
from tests.storing import StoreTestCase

DAY = 86_400.0


class StoredChatLogTests(StoreTestCase):
    """Tests for L{StoredChatLog}."""

    def setUp(self) -> None:
        super().setUp()
        self.clock.advance(100 * DAY)
        self.dropped: list[int] = []
        self.log = StoredChatLog(
            self.database,
            self.clock,
            days=30,
            wall=self.wall,
            observe_dropped=self.dropped.append,
        )
        self.start()

    def line(self, text: str = "안녕", age: float = 0.0) -> ChatLine:
        """Something that somebody said."""
        time = self.wall() - age
        return ChatLine(time, "in", "bot", "a1", "100", "방", "사람", None, "7", text)

    def texts(self) -> list[str]:
        """What is in the store."""
        return [row["text"] for row in self.rows(CHAT_LINES)]

    def test_lines_are_written_soon(self) -> None:
        """Within half a second all that was said is in the store, in one transaction."""
        for number in range(10):
            self.log.append(self.line(str(number)))
        self.clock.advance(WRITE_SECONDS)
        self.assertEqual(self.texts(), [str(number) for number in range(10)])
        self.assertEqual(len(self.write_times), 1)

    def test_whole_batch_does_not_wait(self) -> None:
        """So many lines as fit a batch are written at once."""
        for _ in range(BATCH_ROWS):
            self.log.append(self.line())
        self.assertEqual(self.log.waiting, 0)

    def test_batches_are_bounded_by_text_too(self) -> None:
        """Long texts make a batch of few lines, and the longest one of its own."""
        self.thread.stuck = True
        for size in (module.BATCH_CHARS, 5, module.BATCH_CHARS - 6):
            self.log.append(self.line("글" * size))
        self.assertEqual(len(self.log._take().lines), 1)
        self.thread.go_on()
        self.clock.pump([WRITE_SECONDS] * 3)
        self.assertEqual(sorted(map(len, self.texts())), [5, 999_994, 1_000_000])

    def test_queue_is_bounded(self) -> None:
        """While the store hangs lines wait, so many at most; what is more is counted."""
        self.thread.stuck = True
        for _ in range(MAX_WAITING_LINES + 7):
            self.log.append(self.line())
        self.assertEqual((self.log.waiting, self.log.dropped), (MAX_WAITING_LINES, 7))
        self.assertEqual(sum(self.dropped), 7)
        self.thread.go_on()
        self.clock.pump([0.0] * (MAX_WAITING_LINES // BATCH_ROWS))
        self.assertEqual((self.log.waiting, self.log._bytes), (0, 0))

    def test_queue_is_bounded_in_bytes(self) -> None:
        """However few the lines, their texts never take more memory than allowed."""
        self.patch(module, "MAX_WAITING_BYTES", getsizeof("글" * 1000) * 3)
        self.thread.stuck = True
        for _ in range(5):
            self.log.append(self.line("글" * 1000))
        self.assertEqual((self.log.waiting, self.log.dropped), (3, 2))

    def test_failing_store_loses_nothing(self) -> None:
        """What could not be written waits, shows in the health, and is written in order."""
        self.log.append(self.line("a"))
        self.break_store()
        self.clock.advance(WRITE_SECONDS)
        self.log.append(self.line("b"))
        self.assertEqual(self.log.health(), "chat log: 2 lines wait, 0 dropped")
        self.break_store(False)
        self.clock.pump([RETRY_SECONDS, WRITE_SECONDS])
        self.assertEqual(self.texts(), ["a", "b"])
        self.assertIsNone(self.log.health())

    def test_stored_once(self) -> None:
        """A batch that was stored, and whose COMMIT was not answered, is not stored again."""
        for number in range(3):
            self.log.append(self.line(str(number)))
        self.thread.answers = False
        self.clock.advance(WRITE_SECONDS)
        self.log.append(self.line("3"))
        self.assertEqual(self.log.waiting, 4)
        self.thread.answers = True
        self.clock.pump([RETRY_SECONDS, WRITE_SECONDS])
        self.assertEqual(self.texts(), ["0", "1", "2", "3"])
        self.log.append(self.line("4"))
        self.clock.advance(WRITE_SECONDS)
        self.assertEqual(self.texts()[-1], "4")

    def test_said(self) -> None:
        """The log says when lines begin to be dropped, and how many were once all is well."""
        self.patch(module, "MAX_WAITING_LINES", 4)
        said: list[str] = []
        self.patch(
            StoredChatLog,
            "_log",
            SimpleNamespace(
                warn=lambda text, **fields: said.append(text.format(**fields)),
                info=lambda *a, **k: 0,
            ),
        )
        self.thread.stuck = True
        for _ in range(9):
            self.log.append(self.line())
        self.assertIn("4 lines wait for the store: those that come now are dropped", said[0])
        self.assertEqual(self.log.health(), "chat log: 4 lines wait, 5 dropped")
        self.thread.go_on()
        self.clock.pump([WRITE_SECONDS] * 3)
        self.assertEqual(
            said[1:], ["chat log: 5 lines were dropped while the store did not take them"]
        )
        self.assertIsNone(self.log.health())

    def test_any_text_can_be_stored(self) -> None:
        """What no database takes is replaced, and holds up nobody."""
        for text in ("\0", "\ud800", "\U0001f600", "' \\ \"", "x" * 1_000_001):
            self.log.append(self.line(text))
        self.clock.pump([WRITE_SECONDS] * 2)
        texts = self.texts()
        self.assertEqual(texts[:4], ["\ufffd", "?", "\U0001f600", "' \\ \""])
        self.assertEqual(len(texts[4]), 1_000_000)

    def test_every_character_stays(self) -> None:
        """Whatever the database's driver takes for a mark of its own is stored as it was said."""
        texts = ["", "\t", "a\nb\r\n", "\\N", "\\.", "%s ?", "\\\t\\n", "\x1b\x7f\u2028", "글"]
        said = [
            self.line(text)._replace(sender=text, user_hash=text or None, log_id=log_id)
            for text in texts
            for log_id in (None, "", "7")
        ]
        for line in said:
            self.log.append(line)
        self.clock.advance(WRITE_SECONDS)
        stored = [(row["sender"], row["user_hash"], row["log_id"]) for row in self.rows(CHAT_LINES)]
        self.assertEqual(stored, [(one.sender, one.user_hash, one.log_id) for one in said])
        self.assertEqual(self.texts(), [line.text for line in said])

    def test_long_names_are_cut(self) -> None:
        """One that no column holds is cut, and the others of the batch are as they were."""
        self.log.append(self.line("a"))
        self.log.append(self.line("b")._replace(bot_name="봇" * 129, room_id="방" * 1001))
        self.clock.advance(WRITE_SECONDS)
        sizes = [(len(row["bot_name"]), len(row["room_id"])) for row in self.rows(CHAT_LINES)]
        self.assertEqual(sizes, [(3, 3), (128, 1000)])

    def test_off(self) -> None:
        """Where no chat is to be logged none is, and old lines are removed all the same."""
        self.log.append(self.line("old", age=31 * DAY))
        self.clock.advance(WRITE_SECONDS)
        log = StoredChatLog(self.database, self.clock, enabled=False, wall=self.wall)
        log.start()
        log.append(self.line())
        self.clock.advance(FORGET_SECONDS)
        self.assertEqual(self.texts(), [])
        self.stopped(self.log, log)

    def test_clock_is_set(self) -> None:
        """Lines are written in time; which are too old is for the wall clock to say."""
        for step in (-3600.0, -32_400.0, 86_400.0):
            self.log.append(self.line(f"{step}"))
            self.wall.step(step)
            self.clock.advance(WRITE_SECONDS)
            self.assertIn(f"{step}", self.texts())
        self.log.start()
        self.wall.step(30 * DAY)
        self.clock.advance(60.0)
        self.assertEqual(self.texts(), [])
        self.stopped(self.log)

    def test_old_lines_are_removed(self) -> None:
        """Lines go when they are too old, a few at a time, however many they are."""
        self.log.start()
        for _ in range(FORGET_LINES * 2 + 5):
            self.log.append(self.line("old", age=31 * DAY))
        self.log.append(self.line("new", age=29 * DAY))
        self.clock.pump([WRITE_SECONDS] * 6)
        self.assertEqual(len(self.texts()), FORGET_LINES * 2 + 6)
        self.clock.pump([60.0, 1.0, 1.0])
        self.assertEqual(self.texts(), ["new"])
        self.clock.pump([FORGET_SECONDS] * 24)
        self.assertEqual(self.texts(), [])
        self.stopped(self.log)

    def test_lines_with_times_in_the_future(self) -> None:
        """Old lines go, however many were stored before them by a clock that was ahead."""
        for age in (-400 * DAY, 31 * DAY, -400 * DAY, 31 * DAY):
            for _ in range(FORGET_LINES + 5):
                self.log.append(self.line("old" if age > 0 else "future", age=age))
        self.clock.pump([WRITE_SECONDS] * 20)
        self.log.start()
        self.clock.pump([60.0, 1.0, 1.0, 1.0])
        self.assertEqual(self.texts(), ["future"] * 2 * (FORGET_LINES + 5))
        self.stopped(self.log)

    def test_lines_of_a_device_or_a_room(self) -> None:
        """They go, those that wait among them, and no others."""
        self.patch(module, "_SEARCHED_IDS", 3)  # in more than one transaction
        line = self.line()
        others = (
            line._replace(text="another room", room_id="101"),
            line._replace(text="another device", device_id="a2"),
            line._replace(text="another bot", bot_name="b"),
        )
        for _ in range(3):
            for one in (line, *others):
                self.log.append(one)
            self.clock.advance(WRITE_SECONDS)
        self.thread.stuck = True
        self.log.append(line)
        self.clock.advance(WRITE_SECONDS)  # on its way to the store
        for one in (line, *others):
            self.log.append(one)  # these wait
        forgetting = self.log.forget_lines("bot", "a1", None)
        self.assertNoResult(forgetting)
        self.thread.go_on()
        self.clock.pump([WRITE_SECONDS] * 3)
        self.successResultOf(forgetting)
        self.assertEqual(sorted(self.texts()), ["another bot"] * 4 + ["another device"] * 4)
        self.assertEqual((self.log.waiting, self.log._bytes), (0, 0))
        self.successResultOf(self.log.forget_lines("bot", None, "100"))
        self.assertEqual(self.texts(), ["another bot"] * 4)
        self.successResultOf(self.log.forget_lines("nobody", None, None))
        self.assertEqual(len(self.texts()), 4)

    def test_nothing_to_forget(self) -> None:
        """An empty chat log has no lines of anybody."""
        self.successResultOf(self.log.forget_lines("bot", "a1", None))

    def test_failure_does_not_end_the_removing(self) -> None:
        """A store that fails is tried again at the next hour."""
        self.log.append(self.line("old", age=31 * DAY))
        self.clock.advance(WRITE_SECONDS)
        self.log.start()
        self.break_store()
        self.clock.advance(60.0)
        self.break_store(False)
        self.clock.advance(FORGET_SECONDS)
        self.assertEqual(self.texts(), [])

    def test_stop_writes_all(self) -> None:
        """Nothing that was said is lost by an orderly stop."""
        for _ in range(BATCH_ROWS * 2 - 1):
            self.log.append(self.line())
        stopping = self.log.stop()
        self.clock.pump([0.0] * 2)
        self.successResultOf(stopping)
        self.assertEqual(len(self.texts()), BATCH_ROWS * 2 - 1)
        self.stopped(self.log)

    def test_stop_does_not_wait_for_ever(self) -> None:
        """A store that hangs holds up no stop."""
        self.thread.stuck = True
        self.log.append(self.line())
        stopping = self.log.stop()
        self.clock.advance(FLUSH_SECONDS)
        self.successResultOf(stopping)
