"""Tests for L{domaeka.gateway.directory.addressing}."""

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway.directory.addressing import find_target
from domaeka.interfaces import (
    Approval,
    Destination,
    DeviceKey,
    KnownRoom,
    MessageRefused,
    NotSent,
    RoomKey,
)
from domaeka.testing import FakeDevices
from domaeka.wire import title_id

ROOM_ID = "18398338829933617"
PHONE = DeviceKey("봇", "phone")
OTHER = DeviceKey("봇", "other")


class Room(msgspec.Struct):
    """A room that is known."""

    key: RoomKey
    name: str
    device: DeviceKey | None
    approval: Approval = Approval.APPROVED
    before: DeviceKey | None = None
    last_heard: float | None = 0.0
    decided: bool = False


class FakeRoomIndex:
    """
    Rooms in a list.

    @ivar rooms: the one heard last first.
    """

    def __init__(self) -> None:
        self.rooms: list[Room] = []

    def record(self, key: RoomKey) -> KnownRoom | None:
        """What is known of one."""
        return next((room for room in self.rooms if room.key == key), None)

    def named(self, bot_name: str, name: str) -> list[Room]:
        """Those of a bot that bear a name."""
        return [room for room in self.rooms if (room.key.bot_name, room.name) == (bot_name, name)]

    def forget_device(self, device: DeviceKey) -> None:
        """No room is known as heard on C{device}."""
        raise NotImplementedError


class AddressingTests(SynchronousTestCase):
    """Which phone serves a room, or why none does."""

    def setUp(self) -> None:
        self.devices = FakeDevices()
        self.devices.known = dict.fromkeys((PHONE, OTHER), Approval.APPROVED)
        self.rooms = FakeRoomIndex()

    def know(self, room_id: str = ROOM_ID, name: str = "방", on: DeviceKey | None = PHONE) -> Room:
        """A room is known, heard earlier than those known before."""
        room = Room(RoomKey("봇", room_id), name, on)
        self.rooms.rooms.append(room)
        return room

    def find(
        self, device: str | None = None, room: str | None = "방", channel_id: str | None = None
    ) -> tuple[str, str, str | None]:
        """The phone, the room's name and its id."""
        found = find_target(Destination("봇", device, room, channel_id), self.devices, self.rooms)
        return found.key.device_id, found.room, found.channel_id

    def refusal(self, **where: str | None) -> NotSent:
        """Why there is no target."""
        why: NotSent = self.assertRaises(MessageRefused, self.find, **where).why
        return why

    def test_by_name(self) -> None:
        """A title leads to the phone that heard the room last, and to its id."""
        self.know()
        self.assertEqual(self.find(), ("phone", "방", ROOM_ID))

    def test_several_of_one_name(self) -> None:
        """Strangers choose titles: of several rooms none is meant, whichever phone is named."""
        self.know("2", on=OTHER)
        self.know()
        self.assertIs(self.refusal(device="other"), NotSent.AMBIGUOUS)
        error = self.assertRaises(MessageRefused, self.find)
        self.assertEqual([one.key.room_id for one in error.candidates], ["2", ROOM_ID])
        self.assertEqual(self.find(channel_id=ROOM_ID), ("phone", "방", ROOM_ID))

    def test_refused_room_of_the_same_name(self) -> None:
        """A room that an operator has refused draws nothing, and is in nobody's way."""
        self.know("2", on=OTHER).approval = Approval.DENIED
        self.know()
        self.assertEqual(self.find(), ("phone", "방", ROOM_ID))

    def test_title_that_looks_like_an_id(self) -> None:
        """A title of digits is no channel id, and a channel id no title."""
        self.know(title_id(ROOM_ID), name=ROOM_ID, on=OTHER)
        self.assertEqual(self.find(room=ROOM_ID), ("other", ROOM_ID, None))
        self.know()
        self.assertEqual(self.find(room=None, channel_id=ROOM_ID), ("phone", "방", ROOM_ID))

    def test_title_that_is_the_id_of_another_room(self) -> None:
        """Whoever names a room by it may mean either."""
        self.know("2", name=ROOM_ID, on=OTHER)
        self.know()
        error = self.assertRaises(MessageRefused, self.find, room=ROOM_ID)
        self.assertIs(error.why, NotSent.AMBIGUOUS)
        self.assertEqual([one.key.room_id for one in error.candidates], ["2", ROOM_ID])
        self.assertEqual(self.find(channel_id="2"), ("other", "방", "2"))

    def test_room_without_id_beside_others_of_its_title(self) -> None:
        """Nothing but its phone can tell it apart, where that has heard no other one."""
        self.know("2", on=OTHER)
        self.know("방")
        self.assertIs(self.refusal(), NotSent.AMBIGUOUS)
        self.assertIs(self.refusal(device="other"), NotSent.AMBIGUOUS)
        self.assertEqual(self.find("phone"), ("phone", "방", None))
        self.know("3")
        self.assertIs(self.refusal(device="phone"), NotSent.AMBIGUOUS)

    def test_one_title_on_two_phones(self) -> None:
        """Where no phone knows the id, one title on two phones may be two rooms."""
        room = self.know("방")
        room.before = OTHER
        self.assertIs(self.refusal(), NotSent.AMBIGUOUS)
        self.assertEqual(self.find("phone"), ("phone", "방", None))
        self.devices.known[OTHER] = Approval.BLOCKED
        self.assertEqual(self.find(), ("phone", "방", None))

    def test_refused_phone(self) -> None:
        """Once the phone is refused, another one that has heard the room serves it."""
        self.know().before = OTHER
        self.devices.known[PHONE] = Approval.BLOCKED
        self.assertEqual(self.find(), ("other", "방", ROOM_ID))

    def test_by_channel_id(self) -> None:
        """An id alone is enough where the room's name is known."""
        self.know()
        self.assertEqual(self.find(room=None, channel_id=ROOM_ID), ("phone", "방", ROOM_ID))

    def test_room_without_id(self) -> None:
        """A room that is known by its name alone has no id."""
        self.know("방")
        self.assertEqual(self.find(), ("phone", "방", None))

    def test_unheard_room(self) -> None:
        """A phone that is named is sent to, whether it has heard the room or not."""
        self.assertEqual(self.find("other"), ("other", "방", None))
        self.assertEqual(self.find("other", channel_id="5"), ("other", "방", "5"))

    def test_no_phone(self) -> None:
        """Nobody has heard the room, or nobody knows the device."""
        self.assertIs(self.refusal(), NotSent.NO_PHONE)
        self.assertIs(self.refusal(device="stranger"), NotSent.NO_PHONE)
        self.know(on=None)
        self.assertIs(self.refusal(), NotSent.NO_PHONE)

    def test_not_approved(self) -> None:
        """Neither a phone nor a room that is not approved is sent to."""
        room = self.know()
        room.approval = Approval.BLOCKED
        self.assertIs(self.refusal(), NotSent.NOT_APPROVED)
        room.approval = Approval.APPROVED
        self.devices.known[PHONE] = Approval.PENDING
        self.assertIs(self.refusal(), NotSent.NOT_APPROVED)

    def test_no_room(self) -> None:
        """A name must be known: phones find rooms by it."""
        self.assertIs(self.refusal(device="other", room=None, channel_id="5"), NotSent.NO_ROOM)
        self.know(name="")
        self.assertIs(self.refusal(room=None, channel_id=ROOM_ID), NotSent.NO_ROOM)
