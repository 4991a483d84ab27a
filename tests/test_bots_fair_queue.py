"""Tests for L{domaeka.bots.fair_queue}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.fair_queue import (
    MAX_WAITING_CHARS_PER_BOT,
    MAX_WAITING_PER_BOT,
    MAX_WAITING_PER_ROOM,
    FairQueue,
)


class FairQueueTests(SynchronousTestCase):
    """Tests for L{FairQueue}."""

    def setUp(self) -> None:
        self.queue: FairQueue[str] = FairQueue(bot_limit=3, room_limit=2)

    def arrive(self, room_id: str, item: str = "", chars: int = 1) -> str:
        if self.queue.is_free("bot", room_id):
            self.queue.enter("bot", room_id)
            return "runs"
        return "waits" if self.queue.wait("bot", room_id, item, chars) else "refused"

    def test_limits_room_and_bot(self) -> None:
        """So many run for a room, so many for a bot; another bot is not concerned."""
        self.assertEqual([self.arrive("a") for _ in range(3)], ["runs", "runs", "waits"])
        self.assertEqual([self.arrive("b") for _ in range(2)], ["runs", "waits"])
        self.assertTrue(self.queue.is_free("other", "a"))

    def test_room_keeps_its_order(self) -> None:
        """What comes later to a room waits behind what waits there."""
        self.arrive("a"), self.arrive("a")
        self.arrive("a", "first"), self.arrive("a", "second")
        self.queue.leave("bot", "a")
        self.assertEqual(self.queue.next("bot"), "first")
        self.assertIsNone(self.queue.next("bot"))
        self.queue.leave("bot", "a")
        self.assertEqual(self.queue.next("bot"), "second")

    def test_rooms_take_turns(self) -> None:
        """A room that waits with much does not hold up one that waits with little."""
        for room_id in ("x", "y", "z"):
            self.arrive(room_id)
        for item in ("a1", "a2", "a3"):
            self.arrive("a", item)
        self.arrive("b", "b1")
        started = []
        for room_id in ("x", "y", "z", "a"):
            self.queue.leave("bot", room_id)
            started.append(self.queue.next("bot"))
        self.assertEqual(started, ["a1", "b1", "a2", "a3"])

    def test_forgets_what_is_not_in_use(self) -> None:
        """Rooms that came and went leave nothing behind."""
        for number in range(1000):
            self.arrive(f"room {number}", "item")
            self.queue.leave("bot", f"room {number}")
        self.assertEqual(self.queue.bots, {})

    def test_room_has_so_many_places(self) -> None:
        """What finds no place in its room is refused, and the room told once."""
        self.arrive("a"), self.arrive("a")
        answers = [self.arrive("a") for _ in range(MAX_WAITING_PER_ROOM + 1)]
        self.assertEqual((answers.count("waits"), answers[-1]), (MAX_WAITING_PER_ROOM, "refused"))
        self.assertEqual([self.queue.should_warn("bot", "a") for _ in range(2)], [True, False])

    def test_room_is_told_again_after_the_burst(self) -> None:
        """Half of the places must be free before a room is told once more."""
        self.arrive("a"), self.arrive("a")
        warned = []
        for ended in (0, 1, MAX_WAITING_PER_ROOM // 2):
            for _ in range(ended):
                self.queue.leave("bot", "a")
                self.queue.next("bot")
            while self.arrive("a") != "refused":
                pass
            warned.append(self.queue.should_warn("bot", "a"))
        self.assertEqual(warned, [True, False, True])

    def test_bot_has_so_many_places(self) -> None:
        """Rooms made up by a stranger do not make room for more."""
        for room_id in ("x", "y", "z"):
            self.arrive(room_id)
        answers = [self.arrive(f"room {number}") for number in range(MAX_WAITING_PER_BOT + 1)]
        self.assertEqual((answers.count("waits"), answers[-1]), (MAX_WAITING_PER_BOT, "refused"))
        self.assertEqual([self.queue.should_warn("bot", "n") for _ in range(2)], [True, False])
        self.assertEqual(self.queue.waiting, MAX_WAITING_PER_BOT)

    def test_bot_holds_so_much_text(self) -> None:
        """Long messages are refused sooner than short ones."""
        for room_id in ("x", "y", "z"):
            self.arrive(room_id)
        self.assertEqual(self.arrive("a", chars=MAX_WAITING_CHARS_PER_BOT), "waits")
        self.assertEqual(self.arrive("b", chars=1), "refused")
        self.queue.leave("bot", "x")
        self.queue.next("bot")
        self.assertEqual(self.arrive("b", chars=1), "waits")

    def test_gives_back_what_waits(self) -> None:
        """At the end what waits is handed over and nothing is kept."""
        for item in ("", "", "one", "two"):
            self.arrive("a", item)
        self.assertEqual(self.queue.clear(), ["one", "two"])
        self.assertEqual((self.queue.waiting, self.queue.bots), (0, {}))
