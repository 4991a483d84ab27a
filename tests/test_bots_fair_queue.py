"""Tests for L{domaeka.bots.fair_queue}; those of shares are in L{tests.test_fair_bots}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.fair_queue import (
    MAX_CHARS_PER_PHONE,
    MAX_WAITING_PER_BOT,
    MAX_WAITING_PER_PHONE,
    MAX_WAITING_PER_ROOM,
    Dropped,
    FairQueue,
    Place,
    Slot,
    Who,
)
from domaeka.interfaces import DeviceKey


def place(
    room: str, who: Who = "", phone: str = "d1", bot: str = "bot", command: str = ""
) -> Place:
    """A place; without C{who} the phone knows nobody."""
    return Place(DeviceKey(bot, phone), room, who or (room,), command)


class FairQueueTests(SynchronousTestCase):
    """Tests for L{FairQueue}."""

    def setUp(self) -> None:
        self.queue: FairQueue[str] = FairQueue(bot_limit=12, room_limit=2)
        self.slots: list[Slot] = []

    def arrive(self, where: Place, item: str = "", chars: int = 1) -> str:
        if self.queue.is_free(where, chars):
            self.slots.append(self.queue.enter(where, chars))
            return "runs"
        dropped = self.queue.wait(where, item, chars, deadline=60.0)
        return "refused" if (item, True) in dropped or (item, False) in dropped else "waits"

    def end(self, number: int = 0) -> "list[str]":
        """One ends.  @return: those that start."""
        slot = self.slots.pop(number)
        self.queue.leave(slot)
        return self.start(slot.place.phone.bot_name)

    def start(self, bot: str = "bot") -> list[str]:
        started = []
        while (found := self.queue.next(bot)) is not None:
            started.append(found[0])
            self.slots.append(found[1])
        return started

    def test_limits_a_room(self) -> None:
        """So many run for a room; another room, and another bot, are not concerned."""
        answers = [self.arrive(place("a", f"u{number}")) for number in range(3)]
        self.assertEqual(answers, ["runs", "runs", "waits"])
        self.assertEqual(self.arrive(place("b")), "runs")
        self.assertEqual(self.arrive(place("a", bot="other")), "runs")

    def test_limits_a_command(self) -> None:
        """A command has a part of the places of a phone; others go on."""
        self.queue.limit(30, 3)
        slow = [self.arrive(place(f"r{number}", command="slow")) for number in range(15)]
        self.assertEqual(slow, ["runs"] * 13 + ["waits"] * 2)
        self.assertEqual(self.arrive(place("r99", command="fast")), "runs")

    def test_last_place(self) -> None:
        """Where there is one place, it is used."""
        self.queue.limit(1, 1)
        self.assertEqual([self.arrive(place(room)) for room in "ab"], ["runs", "waits"])
        self.assertEqual(self.end(), [""])

    def test_person_keeps_his_order(self) -> None:
        """What comes later of a person waits behind what waits of him in that room."""
        for item in ("", "", "first", "second"):
            self.arrive(place("a", "u1"), item)
        self.assertEqual(self.end(), ["first"])
        self.assertEqual(self.end(), ["second"])

    def test_all_take_turns(self) -> None:
        """The phones of a bot, the rooms of a phone, and the people of a room."""
        self.queue.limit(2, 1)
        self.arrive(place("x", phone="d0"))
        self.arrive(place("y", phone="d9"))
        for item, room, who, phone in (
            ("1a1", "a", "u1", "d1"),
            ("1a2", "a", "u1", "d1"),
            ("1a3", "a", "u2", "d1"),
            ("1b4", "b", "u3", "d1"),
            ("2c5", "c", "u4", "d2"),
        ):
            self.arrive(place(room, who, phone), item)
        started = [item for _ in range(6) for item in self.end()]
        self.assertEqual(started, ["1a1", "2c5", "1b4", "1a3", "1a2"])

    def test_forgets_what_is_not_in_use(self) -> None:
        """Rooms that came and went leave nothing behind."""
        for number in range(1000):
            self.arrive(place(f"room {number}"))
            self.end()
        self.assertEqual(self.queue.bots, {})

    def test_room_has_so_many_places(self) -> None:
        """What finds no place in its room is refused, and told of once."""
        for _ in range(2 + MAX_WAITING_PER_ROOM):
            self.arrive(place("a"))
        tells = [self.queue.wait(place("a"), "", 1, 60.0)[0].tell for _ in range(2)]
        self.assertEqual(tells, [True, False])
        self.assertEqual(self.queue.waiting, MAX_WAITING_PER_ROOM)

    def test_told_again_after_the_burst(self) -> None:
        """Half of what waited must be gone before it is told once more."""
        told = []
        for ended in (0, 1, MAX_WAITING_PER_ROOM // 2):
            for _ in range(ended):
                self.end()
            while not (dropped := self.arrive_or_drop()):
                pass
            told.append(dropped[0].tell)
        self.assertEqual(told, [True, False, True])

    def arrive_or_drop(self) -> list[Dropped[str]]:
        if self.queue.is_free(place("a"), 1):
            self.arrive(place("a"))
            return []
        return self.queue.wait(place("a"), "", 1, 60.0)

    def test_phone_and_bot_have_so_many_places(self) -> None:
        """Rooms and phones made up by a stranger do not make room for more."""
        for phone in range(2 + MAX_WAITING_PER_BOT // MAX_WAITING_PER_PHONE):
            for room in range(20 + MAX_WAITING_PER_PHONE):
                self.arrive(place(f"r{room}", phone=f"p{phone}"))
            self.assertLessEqual(self.queue.waiting, (phone + 1) * MAX_WAITING_PER_PHONE)
        self.assertEqual(self.queue.waiting, MAX_WAITING_PER_BOT)

    def test_phone_holds_so_much_text(self) -> None:
        """Long texts are refused sooner than short ones, which always find room."""
        self.queue.limit(100, 2)
        long = MAX_CHARS_PER_PHONE // 8
        for number in range(20):
            self.arrive(place(f"r{number}"), chars=long)
        phone = self.queue.bots["bot"].phones["d1"]
        self.assertLessEqual(phone.chars, MAX_CHARS_PER_PHONE)
        self.assertEqual(self.arrive(place("a"), chars=100), "runs")

    def test_longest_text(self) -> None:
        """A text of whatever length that is let in at all runs beside short ones."""
        self.arrive(place("a"))
        self.assertEqual(self.arrive(place("b"), chars=2 * MAX_CHARS_PER_PHONE), "runs")
        self.assertEqual(self.arrive(place("c"), chars=2 * MAX_CHARS_PER_PHONE), "refused")

    def test_waits_so_long(self) -> None:
        """What has waited too long is let go, and told of once for each who waits."""
        for item in ("", "", "one", "two"):
            self.arrive(place("a", "u1"), item)
        self.arrive(place("a", "u2"), "three")
        self.assertEqual(self.queue.expire(59.0), [])
        late = self.queue.expire(60.0)
        self.assertEqual(late, [("one", True), ("two", False), ("three", True)])
        self.assertEqual((self.queue.waiting, self.end()), (0, []))

    def test_gives_back_what_waits(self) -> None:
        """At the end what waits is handed over and nothing is kept."""
        for item in ("", "", "one", "two"):
            self.arrive(place("a"), item)
        self.assertEqual(self.queue.clear(), ["one", "two"])
        self.assertEqual((self.queue.waiting, self.queue.bots), (0, {}))
