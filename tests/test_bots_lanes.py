"""Tests for L{domaeka.bots.lanes}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.lanes import (
    MAX_WAITING_CHARS_PER_BOT,
    MAX_WAITING_PER_BOT,
    MAX_WAITING_PER_ROOM,
    Lanes,
)


class LanesTests(SynchronousTestCase):
    """Tests for L{Lanes}."""

    def setUp(self) -> None:
        self.lanes: Lanes[str] = Lanes(bot_limit=3, room_limit=2)

    def arrive(self, room_id: str, item: str = "", chars: int = 1) -> str:
        if self.lanes.is_free("bot", room_id):
            self.lanes.enter("bot", room_id)
            return "runs"
        return "waits" if self.lanes.wait("bot", room_id, item, chars) else "refused"

    def test_limits_room_and_bot(self) -> None:
        """So many run for a room, so many for a bot; another bot is not concerned."""
        self.assertEqual([self.arrive("a") for _ in range(3)], ["runs", "runs", "waits"])
        self.assertEqual([self.arrive("b") for _ in range(2)], ["runs", "waits"])
        self.assertTrue(self.lanes.is_free("other", "a"))

    def test_room_keeps_its_order(self) -> None:
        """What comes later to a room waits behind what waits there."""
        self.arrive("a"), self.arrive("a")
        self.arrive("a", "first"), self.arrive("a", "second")
        self.lanes.leave("bot", "a")
        self.assertEqual(self.lanes.next("bot"), "first")
        self.assertIsNone(self.lanes.next("bot"))
        self.lanes.leave("bot", "a")
        self.assertEqual(self.lanes.next("bot"), "second")

    def test_rooms_take_turns(self) -> None:
        """A room that waits with much does not hold up one that waits with little."""
        for room_id in ("x", "y", "z"):
            self.arrive(room_id)
        for item in ("a1", "a2", "a3"):
            self.arrive("a", item)
        self.arrive("b", "b1")
        started = []
        for room_id in ("x", "y", "z", "a"):
            self.lanes.leave("bot", room_id)
            started.append(self.lanes.next("bot"))
        self.assertEqual(started, ["a1", "b1", "a2", "a3"])

    def test_forgets_what_is_not_in_use(self) -> None:
        """Rooms that came and went leave nothing behind."""
        for number in range(1000):
            self.arrive(f"room {number}", "item")
            self.lanes.leave("bot", f"room {number}")
        self.assertEqual(self.lanes.bots, {})

    def test_room_has_so_many_places(self) -> None:
        """What finds no place in its room is refused, and the room told once."""
        self.arrive("a"), self.arrive("a")
        answers = [self.arrive("a") for _ in range(MAX_WAITING_PER_ROOM + 1)]
        self.assertEqual((answers.count("waits"), answers[-1]), (MAX_WAITING_PER_ROOM, "refused"))
        self.assertEqual([self.lanes.should_tell("bot", "a") for _ in range(2)], [True, False])

    def test_room_is_told_again_after_the_burst(self) -> None:
        """Half of the places must be free before a room is told once more."""
        self.arrive("a"), self.arrive("a")
        told = []
        for ended in (0, 1, MAX_WAITING_PER_ROOM // 2):
            for _ in range(ended):
                self.lanes.leave("bot", "a")
                self.lanes.next("bot")
            while self.arrive("a") != "refused":
                pass
            told.append(self.lanes.should_tell("bot", "a"))
        self.assertEqual(told, [True, False, True])

    def test_bot_has_so_many_places(self) -> None:
        """Rooms made up by a stranger do not make room for more."""
        for room_id in ("x", "y", "z"):
            self.arrive(room_id)
        answers = [self.arrive(f"room {number}") for number in range(MAX_WAITING_PER_BOT + 1)]
        self.assertEqual((answers.count("waits"), answers[-1]), (MAX_WAITING_PER_BOT, "refused"))
        self.assertEqual([self.lanes.should_tell("bot", "n") for _ in range(2)], [True, False])
        self.assertEqual(self.lanes.waiting, MAX_WAITING_PER_BOT)

    def test_bot_holds_so_much_text(self) -> None:
        """Long messages are refused sooner than short ones."""
        for room_id in ("x", "y", "z"):
            self.arrive(room_id)
        self.assertEqual(self.arrive("a", chars=MAX_WAITING_CHARS_PER_BOT), "waits")
        self.assertEqual(self.arrive("b", chars=1), "refused")
        self.lanes.leave("bot", "x")
        self.lanes.next("bot")
        self.assertEqual(self.arrive("b", chars=1), "waits")

    def test_gives_back_what_waits(self) -> None:
        """At the end what waits is handed over and nothing is kept."""
        for item in ("", "", "one", "two"):
            self.arrive("a", item)
        self.assertEqual(self.lanes.clear(), ["one", "two"])
        self.assertEqual((self.lanes.waiting, self.lanes.bots), (0, {}))
