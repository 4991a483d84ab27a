"""Tests for L{domaeka.store.decisions}: two servers on one store, in virtual time."""

from typing import Any, NamedTuple

from sqlalchemy import Connection

from domaeka.interfaces import Approval, DeviceFacts, DeviceKey, RoomKey
from domaeka.policies.limits import Ban
from domaeka.store import decisions as module
from domaeka.store.bans import StoredBans
from domaeka.store.decisions import DECISIONS, POLL_SECONDS, DecisionFeed
from domaeka.store.devices import WRITE_SECONDS, StoredDevices
from domaeka.store.rooms import StoredRooms
from domaeka.store.threads import expected
from tests.storing import StoreTestCase

PHONE = DeviceKey("봇", "a1")
ROOM = RoomKey("봇", "100")
FACTS = DeviceFacts(version="3.3.3", address="192.0.2.1")
BAN = Ban("203.0.113.7/32", "도배", 10.0, None, made_by="operator")


class Node(NamedTuple):
    """What one of the servers knows."""

    feed: DecisionFeed
    devices: StoredDevices
    rooms: StoredRooms
    bans: StoredBans
    heard: list[object]


class DecisionFeedTests(StoreTestCase):
    """Tests for L{DecisionFeed}."""

    def setUp(self) -> None:
        super().setUp()
        self.here, self.there = self.node("a"), self.node("b")
        self.start()

    def node(self, name: str) -> Node:
        """One more server on the store."""
        feed = DecisionFeed(self.database, self.clock, name)
        devices = StoredDevices(self.database, self.clock, node=name, wall=self.wall)
        rooms = StoredRooms(self.database, self.clock, node=name, wall=self.wall)
        bans = StoredBans(self.database, name)
        heard: list[object] = []
        devices.watch(feed)
        rooms.watch(feed)
        bans.watch(feed, heard.append, heard.append)
        devices.add_listener(lambda *decision: heard.append(decision))
        return Node(feed, devices, rooms, bans, heard)

    def decide(self, key: DeviceKey | RoomKey, approval: Approval) -> None:
        """An operator decides at the one server, and the other has asked since."""
        records: Any = self.here.devices if isinstance(key, DeviceKey) else self.here.rooms
        self.successResultOf(records.set_approval(key, approval))
        self.clock.advance(POLL_SECONDS)

    def test_device_is_blocked(self) -> None:
        """A phone that one server blocks is blocked at the other; so is one that is new there."""
        self.there.devices.enter(PHONE, FACTS)
        self.clock.advance(WRITE_SECONDS)
        self.decide(PHONE, Approval.BLOCKED)
        self.decide(DeviceKey("봇", "new"), Approval.BLOCKED)
        for name in ("a1", "new"):
            key = DeviceKey("봇", name)
            self.assertIs(self.there.devices.enter(key, FACTS), Approval.BLOCKED)
            self.assertIn((key, Approval.BLOCKED), self.there.heard)

    def test_room_is_denied_and_approved(self) -> None:
        """A room of which one server hears is answered at the other as its operator says."""
        answers = []
        for approval in (Approval.DENIED, Approval.APPROVED):
            self.there.rooms.enter(ROOM, PHONE, "방", True)
            self.decide(ROOM, approval)
            answers.append(self.there.rooms.enter(ROOM, PHONE, "방", True))
        self.assertEqual(answers, [False, True])

    def test_forgotten(self) -> None:
        """A device that one server forgets is new at the other, too."""
        self.decide(PHONE, Approval.BLOCKED)
        self.successResultOf(self.here.devices.forget(PHONE))
        self.clock.advance(POLL_SECONDS)
        self.assertIsNone(self.there.devices.approval(PHONE))
        self.assertIs(self.there.devices.enter(PHONE, FACTS), Approval.APPROVED)

    def test_bans(self) -> None:
        """A ban is heard of as it is made, and its network once it is lifted."""
        self.successResultOf(self.here.bans.put([BAN]))
        self.clock.advance(POLL_SECONDS)
        self.successResultOf(self.here.bans.remove(BAN.network))
        self.clock.advance(POLL_SECONDS)
        self.assertEqual(self.there.heard, [BAN, BAN.network])
        self.assertEqual(self.here.heard, [])

    def test_own_decisions_are_not_heard_of(self) -> None:
        """A server hears nothing of what it has decided itself, but by its listeners."""
        self.decide(PHONE, Approval.BLOCKED)
        self.assertEqual(self.here.heard, [(PHONE, Approval.BLOCKED)])

    def test_many_at_once(self) -> None:
        """More than are read at a time are read one after the other."""
        self.patch(module, "MAX_READ", 2)
        bans = [Ban(f"10.0.0.{n}/32", "도배", 10.0, None) for n in range(5)]
        self.successResultOf(self.here.bans.put(bans))
        self.clock.advance(POLL_SECONDS)
        for _ in range(2):
            self.clock.advance(0)
        self.assertCountEqual(self.there.heard, bans)

    def test_too_many_were_missed(self) -> None:
        """A server that could not ask for long reads everything; the numbers stay few."""
        self.patch(module, "KEPT_DECISIONS", 3)
        for number in range(6):
            key = DeviceKey("봇", str(number))
            self.successResultOf(self.here.devices.set_approval(key, Approval.BLOCKED))
        self.assertEqual(len(self.rows(DECISIONS)), 3)
        self.clock.advance(POLL_SECONDS)
        known = self.there.devices.page(None, 9, Approval.BLOCKED)
        self.assertEqual([record.key.device_id for record in known], list("012345"))

    def test_store_that_is_away(self) -> None:
        """A server asks again until the store answers, and misses nothing."""
        self.successResultOf(self.here.devices.set_approval(PHONE, Approval.BLOCKED))

        def fail(connection: Connection, known: int) -> None:
            connection.exec_driver_sql("SELECT nothing FROM nowhere")

        self.patch(self.there.feed, "_read", fail)
        self.clock.advance(POLL_SECONDS)
        self.assertIsNone(self.there.devices.approval(PHONE))
        del self.there.feed._read
        self.clock.pump([POLL_SECONDS] * 2)
        self.assertIs(self.there.devices.approval(PHONE), Approval.BLOCKED)

    def test_stop(self) -> None:
        """A server that stops asks no more."""
        for node in (self.here, self.there):
            node.feed.stop()
        self.database.run_read(lambda c: None).addErrback(expected)
        self.stopped(self.here.devices, self.there.devices, self.here.rooms, self.there.rooms)
