"""Tests for L{domaeka.store.rooms}."""

from domaeka.errors import StoreError
from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.store import rooms as module
from domaeka.store.background import RETRY_SECONDS
from domaeka.store.rooms import HEARD_SECONDS, ROOMS, WRITE_SECONDS, StoredRooms
from tests.storing import StoreTestCase

PHONE = DeviceKey("bot", "a1")
OTHER_PHONE = DeviceKey("bot", "a2")
ROOM = RoomKey("bot", "100")


class StoredRoomsTests(StoreTestCase):
    """Tests for L{StoredRooms}."""

    def setUp(self) -> None:
        super().setUp()
        self.rooms = StoredRooms(self.database, self.clock, wall=self.wall)
        self.start()

    def hear(self, key: RoomKey = ROOM, device: DeviceKey = PHONE, name: str = "방") -> bool:
        """Somebody wrote something."""
        return self.rooms.enter(key, device, name, True)

    def again(self) -> StoredRooms:
        """The rooms as another start finds them: the same store, nothing in memory."""
        rooms = StoredRooms(self.database, self.clock, self.rooms.mode, wall=self.wall)
        rooms._load(self.successResultOf(self.database.run_read(rooms._read)))
        return rooms

    def test_nothing_is_answered_before_the_store_has_spoken(self) -> None:
        """A room that an operator refused must not be answered for want of knowing."""
        rooms = StoredRooms(self.make_database(), self.clock, wall=self.wall)
        self.assertFalse(rooms.enter(ROOM, PHONE, "방", True))

    def test_store_in_trouble(self) -> None:
        """While the store fails new rooms are answered at once, and those refused are not."""
        self.successResultOf(self.rooms.set_approval(ROOM, Approval.DENIED))
        self.break_store()
        self.failureResultOf(self.rooms.set_approval(ROOM, Approval.APPROVED), StoreError)
        new = RoomKey("bot", "new")
        self.assertEqual((self.hear(), self.hear(new)), (False, True))
        self.clock.advance(WRITE_SECONDS)
        self.break_store(False)
        self.clock.advance(RETRY_SECONDS)
        record = self.again().record(new)
        self.assertIsNotNone(record)

    def test_damaged_row(self) -> None:
        """A room whose row cannot be read is not answered until an operator decides on it."""
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        damage = ROOMS.update().values(approval="?")
        self.successResultOf(self.database.run_write(lambda c: c.execute(damage) and None))
        rooms = self.again()
        self.assertFalse(rooms.enter(ROOM, PHONE, "방", True))
        self.assertTrue(rooms.enter(RoomKey("bot", "new"), PHONE, "방", True))
        self.successResultOf(rooms.set_approval(ROOM, Approval.APPROVED))
        self.assertTrue(rooms.enter(ROOM, PHONE, "방", True))

    def test_automatic_rooms_are_answered(self) -> None:
        """A new room is answered at once and remembered."""
        self.assertTrue(self.hear())
        self.clock.advance(WRITE_SECONDS)
        rooms = self.again()
        self.assertEqual(
            [(room.name, room.device) for room in rooms.page(None, 9)], [("방", PHONE)]
        )

    def test_manual_rooms_wait(self) -> None:
        """Where an operator approves, a new room is not answered until then."""
        self.rooms.mode = "manual"
        self.assertFalse(self.hear())
        self.successResultOf(self.rooms.set_approval(ROOM, Approval.APPROVED))
        self.assertTrue(self.hear())
        self.assertTrue(self.again().enter(ROOM, PHONE, "방", True))

    def test_automatic_answers_what_waited(self) -> None:
        """After a change to C{auto} a room that was pending is answered, also after a restart."""
        self.rooms.mode = "manual"
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        self.rooms.mode = "auto"
        self.assertTrue(self.hear())
        self.clock.advance(WRITE_SECONDS)
        self.rooms.mode = "manual"
        self.assertTrue(self.again().enter(ROOM, PHONE, "방", True))

    def test_refused_room_is_silent(self) -> None:
        """What an operator refused is not answered, now or after a restart."""
        self.successResultOf(self.rooms.set_approval(ROOM, Approval.DENIED))
        self.assertFalse(self.hear())
        self.assertFalse(self.again().enter(ROOM, PHONE, "방", True))

    def test_decision_is_stored_before_it_is_in_force(self) -> None:
        """A decision that could not be stored changes nothing."""
        self.hear()
        self.break_store()
        self.failureResultOf(self.rooms.set_approval(ROOM, Approval.BLOCKED), StoreError)
        self.assertTrue(self.hear())

    def test_knows_where_a_room_was_heard_last(self) -> None:
        """The phone that heard a room last is the one by which it is reached."""
        self.hear()
        self.hear(device=OTHER_PHONE)
        room = self.rooms.record(ROOM)
        assert room is not None
        self.assertEqual(room.device, OTHER_PHONE)
        self.assertIsNone(self.rooms.record(RoomKey("bot", "unknown")))

    def test_knows_another_phone(self) -> None:
        """The phone before is remembered, and serves the room where the last one is forgotten."""
        self.hear()
        self.hear(device=OTHER_PHONE)
        self.hear(device=OTHER_PHONE)
        record = self.rooms.record(ROOM)
        assert record is not None
        self.assertEqual((record.device, record.before), (OTHER_PHONE, PHONE))
        self.rooms.forget_device(OTHER_PHONE)
        self.assertEqual((record.device, record.before), (PHONE, None))

    def test_gives_way_while_the_store_fails(self) -> None:
        """What gave way is removed from the store once that works again."""
        self.patch(module, "MAX_BOT_ROOMS", 1)
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        self.break_store()
        self.hear(RoomKey("bot", "2"))
        self.clock.advance(WRITE_SECONDS)
        self.break_store(False)
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual([room.key.room_id for room in self.again().page(None, 9)], ["2"])

    def test_decided_elsewhere_meanwhile(self) -> None:
        """The store keeps what gives way here if another server's operator has decided on it."""
        self.patch(module, "MAX_BOT_ROOMS", 1)
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        self.successResultOf(self.again().set_approval(ROOM, Approval.DENIED))
        self.hear(RoomKey("bot", "2"))
        self.clock.advance(WRITE_SECONDS)
        record = self.again().record(ROOM)
        assert record is not None
        self.assertIs(record.approval, Approval.DENIED)

    def test_answerable(self) -> None:
        """The last word counts: chat, or a report of the same phone, since its app was started."""
        self.hear()
        started = self.wall() - 60.0

        def answerable() -> bool | None:
            (room,) = self.rooms.named("bot", "방")
            return room.is_answerable(started)

        self.assertIs(answerable(), True)
        self.rooms.reported(ROOM, PHONE, False)
        self.assertIs(answerable(), False)
        self.rooms.reported(ROOM, OTHER_PHONE, True)
        self.assertIs(answerable(), False)
        self.hear()
        self.assertIs(answerable(), True)
        started = self.wall() + 1.0
        self.assertIsNone(answerable())

    def test_answerable_after_the_clock_was_set_back(self) -> None:
        """A report counts, though chat before it has a later time."""
        self.wall.step(30.0)
        self.hear()
        self.hear()
        self.wall.step(-30.0)
        self.rooms.reported(ROOM, PHONE, False)
        (room,) = self.rooms.named("bot", "방")
        self.assertIs(room.is_answerable(self.wall() - 60.0), False)

    def test_is_found_by_name(self) -> None:
        """Rooms of one bot that bear a name are found, the one heard last first."""
        for number, bot in ((1, "bot"), (2, "bot"), (3, "bot2"), (4, "bo")):
            self.hear(RoomKey(bot, str(number)))
            self.clock.advance(1)
        self.hear(RoomKey("bot", "5"), name="other")
        found = [room.key.room_id for room in self.rooms.named("bot", "방")]
        self.assertEqual(found, ["2", "1"])

    def test_is_found_by_its_present_name(self) -> None:
        """One that was renamed, decided on or forgotten is found by what it is called now."""
        for number in (1, 2, 3):
            self.hear(RoomKey("bot", str(number)))
        self.hear(RoomKey("bot", "1"), name="new")
        self.successResultOf(self.rooms.set_approval(RoomKey("bot", "2"), Approval.DENIED))
        self.successResultOf(self.rooms.forget(RoomKey("bot", "3")))

        def found(name: str) -> list[tuple[str, Approval]]:
            return [(room.key.room_id, room.approval) for room in self.rooms.named("bot", name)]

        self.assertEqual(found("방"), [("2", Approval.DENIED)])
        self.assertEqual(found("new"), [("1", Approval.APPROVED)])
        self.successResultOf(self.rooms.forget(RoomKey("bot", "2")))
        self.assertEqual((found("방"), list(self.rooms._titled)), ([], ["new"]))

    def test_busy_room_is_written_once_a_minute(self) -> None:
        """Chat in a known room, on whatever phone, costs the store next to nothing."""
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        writes = len(self.write_times)
        for turn in range(100):
            self.hear(device=(PHONE, OTHER_PHONE)[turn % 2])
            self.clock.advance(HEARD_SECONDS / 110)
        self.assertEqual(len(self.write_times), writes)
        self.clock.advance(HEARD_SECONDS)
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        self.assertEqual(len(self.write_times), writes + 1)

    def test_new_name_is_written(self) -> None:
        """A room that is renamed is known by its new name, even if the store fails at first."""
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        self.break_store()
        self.hear(name="새 이름")
        self.clock.advance(WRITE_SECONDS)
        self.break_store(False)
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual([row["name"] for row in self.rows(ROOMS)], ["새 이름"])

    def test_number_is_bounded(self) -> None:
        """The room heard longest ago gives way to a new one, here and in the store."""
        self.patch(module, "MAX_BOT_ROOMS", 2)
        self.hear(RoomKey("bot", "1"))
        self.hear(RoomKey("bot", "2"))
        self.clock.advance(HEARD_SECONDS)
        self.hear(RoomKey("bot", "1"))
        self.assertTrue(self.hear(RoomKey("bot", "3")))
        self.assertTrue(self.hear(RoomKey("other bot", "1")))
        self.clock.advance(WRITE_SECONDS)
        for rooms in (self.rooms, self.again()):
            known = [room.key.room_id for room in rooms.page(None, 9)]
            self.assertEqual(known, ["1", "3", "1"])

    def test_one_that_gave_way_and_is_back(self) -> None:
        """A room that is heard again before the store has removed it stays there."""
        self.patch(module, "MAX_BOT_ROOMS", 1)
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        self.hear(RoomKey("bot", "2"))
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        self.assertEqual([room.key for room in self.again().page(None, 9)], [ROOM])

    def test_decided_rooms_stay(self) -> None:
        """No room that an operator has decided on gives way; new ones are answered, if they may."""
        self.patch(module, "MAX_BOT_ROOMS", 2)
        for number in range(2):
            key = RoomKey("bot", str(number))
            self.successResultOf(self.rooms.set_approval(key, Approval.APPROVED))
        self.rooms = self.again()
        self.assertTrue(self.hear())
        self.failureResultOf(self.rooms.set_approval(ROOM, Approval.DENIED), StoreError)
        self.assertEqual(len(self.rooms.page(None, 9)), 2)
        self.rooms.mode = "manual"
        self.assertFalse(self.hear(RoomKey("bot", "3")))

    def test_long_names_are_told_apart(self) -> None:
        """A room without an id is known by its whole name."""
        keys = [RoomKey("bot", "방" * 999 + end) for end in "abAB"]
        for key in keys:
            self.hear(key)
        self.stopped_after_writing()
        self.assertEqual([room.key for room in self.again().page(None, 9)], sorted(keys))

    def stopped_after_writing(self) -> None:
        """Stop the rooms, but not yet the store."""
        stopping = self.rooms.stop()
        self.clock.advance(0)
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_forgotten(self) -> None:
        """Neither memory nor store has it; it is new when it is heard again."""
        self.hear()
        self.clock.advance(WRITE_SECONDS)
        self.successResultOf(self.rooms.set_approval(ROOM, Approval.BLOCKED))
        self.successResultOf(self.rooms.forget(ROOM))
        self.assertIsNone(self.rooms.record(ROOM))
        self.assertIsNone(self.again().record(ROOM))
        self.assertTrue(self.hear())

    def test_device_is_forgotten(self) -> None:
        """A room is not sent to by way of a phone of which nothing is known."""
        other = RoomKey("bot", "200")
        self.hear()
        self.hear(other, OTHER_PHONE)
        self.hear(RoomKey("zbot", "100"), DeviceKey("zbot", "a1"))
        self.clock.advance(WRITE_SECONDS)
        self.rooms.forget_device(PHONE)
        self.clock.advance(WRITE_SECONDS)
        for rooms in (self.rooms, self.again()):
            found = [room.device and room.device.device_id for room in rooms.page(None, 9)]
            self.assertEqual(found, [None, "a2", "a1"])
