"""Devices, rooms and the chat log are shared: nobody fills them up for the others."""

import msgspec

from domaeka.gateway import held as held_module
from domaeka.gateway.conversation.handshake import NOT_ENTERED_SECONDS
from domaeka.gateway.directory.sweep import LIMITS_SECONDS
from domaeka.interfaces import Approval, ChatLine, DeviceFacts, DeviceKey, RoomKey
from domaeka.metrics import Metrics
from domaeka.pools import Pool
from domaeka.rates import MINUTE
from domaeka.store import chatlog as chatlog_module
from domaeka.store import devices as devices_module
from domaeka.store import rooms as rooms_module
from domaeka.store.chat_bound import CHECK_SECONDS, LINE_BYTES, PAUSE_SECONDS, ChatBound
from domaeka.store.chatlog import CHAT_LINES, StoredChatLog
from domaeka.store.devices import NEW_A_MINUTE, WRITE_SECONDS, StoredDevices
from domaeka.store.rooms import StoredRooms
from domaeka.testing import FakePhone
from domaeka.wire import Greeting
from tests.fairness import FairCase
from tests.gateway_case import KEY, FakeSessions, GatewayCase, Peer
from tests.server_case import ServerCase
from tests.storing import StoreTestCase

PHONE = DeviceKey("봇", "phone")
GREEDY = DeviceKey("봇", "greedy")
HERE = DeviceFacts("3.3.3", address="192.0.2.1")
THERE = DeviceFacts("3.3.3", address="198.51.100.7")


class DevicesCase(StoreTestCase, FairCase):
    """Somebody with the key makes devices up, beside an innocent phone of another address."""

    def setUp(self) -> None:
        super().setUp()
        self.metrics = Metrics()
        self.devices = StoredDevices(
            self.database, self.clock, wall=self.wall, gave_way=self.metrics.pools.gave_way
        )
        self.start()

    def make_up(self, count: int, facts: DeviceFacts = THERE, keep: bool = False) -> int:
        """
        Many new devices sign, and go.

        @param keep: they stay.
        @return: how many were entered.
        """
        entered = 0
        for number in range(count):
            key = DeviceKey("봇", f"{facts.address} {number} {self.clock.seconds()}")
            entered += self.devices.enter(key, facts) is not None
            if not keep:
                self.devices.heard(key, self.wall())
        return entered


class NewDevicesTests(DevicesCase):
    """Devices that were never seen, of one address."""

    pools = (Pool.NEW_DEVICES,)

    def test_the_phone_is_approved(self) -> None:
        """An address brings so many a minute; that costs no other address anything."""
        self.assertEqual(self.make_up(1000), NEW_A_MINUTE)
        self.assertIs(self.devices.enter(PHONE, HERE), Approval.APPROVED)
        self.assert_gave_way(self.metrics, Pool.NEW_DEVICES, 1000 - NEW_A_MINUTE)
        self.clock.advance(MINUTE)
        self.assertEqual(self.make_up(1000), NEW_A_MINUTE)

    def test_first_come(self) -> None:
        """A phone that waits, connected, goes before whoever comes from its address later."""
        self.make_up(NEW_A_MINUTE)
        self.assertIsNone(self.devices.enter(PHONE, THERE))
        self.clock.advance(MINUTE)
        self.assertEqual(self.make_up(1000), 0)
        self.assertIs(self.devices.enter(PHONE, THERE), Approval.APPROVED)
        self.assertEqual(self.make_up(1000), NEW_A_MINUTE - 1)

    def test_one_that_waited_and_went(self) -> None:
        """A phone that goes while it waits keeps nobody else waiting."""
        self.make_up(NEW_A_MINUTE)
        self.devices.enter(PHONE, THERE)
        self.devices.heard(PHONE, self.wall())
        self.clock.advance(MINUTE)
        self.assertEqual(self.make_up(1), 1)

    def test_one_that_waited_and_was_approved(self) -> None:
        """Nor does one on which an operator decides."""
        self.make_up(NEW_A_MINUTE)
        self.devices.enter(PHONE, THERE)
        self.successResultOf(self.devices.set_approval(PHONE, Approval.APPROVED))
        self.clock.advance(MINUTE)
        self.assertEqual(self.make_up(1), 1)

    def test_a_network_is_one_address(self) -> None:
        """A /64 of IPv6 is one claimant."""
        facts = (DeviceFacts("3.3.3", address=f"2001:db8::{number:x}") for number in range(100))
        self.assertEqual(sum(self.make_up(1, each) for each in facts), NEW_A_MINUTE)

    def test_known_phone(self) -> None:
        """A phone that is known is not new, whatever its neighbours do."""
        self.devices.enter(PHONE, THERE)
        self.devices.heard(PHONE, self.wall())
        self.make_up(1000)
        self.assertIs(self.devices.enter(PHONE, THERE), Approval.APPROVED)


class PendingTests(DevicesCase):
    """The list of those on which an operator is to decide."""

    pools = (Pool.PENDING_DEVICES,)

    def test_the_phone_is_seen(self) -> None:
        """The phone is on the list, and stays there, though it has gone."""
        self.patch(devices_module, "MAX_PENDING", 60)
        self.devices.mode = "manual"
        for minute in range(8):
            self.make_up(1000)
            if minute == 4:
                self.assertIs(self.devices.enter(PHONE, HERE), Approval.PENDING)
                self.devices.heard(PHONE, self.wall())
            self.clock.advance(MINUTE)
        pending = self.devices.page(None, 1000, Approval.PENDING)
        self.assertEqual(len(pending), 60)
        self.assertIn(PHONE, [record.key for record in pending])
        self.assert_gave_way(self.metrics, Pool.PENDING_DEVICES, 100)

    def test_decided_and_connected_ones_stay(self) -> None:
        """Nobody gives way on whom an operator has decided, nor who is connected."""
        self.patch(devices_module, "MAX_PENDING", 40)
        self.devices.mode = "manual"
        self.devices.enter(PHONE, THERE)
        decided = DeviceKey("봇", "decided")
        self.successResultOf(self.devices.set_approval(decided, Approval.PENDING))
        for _ in range(5):
            self.make_up(1000)
            self.clock.advance(MINUTE)
        for key in (PHONE, decided):
            self.assertIs(self.devices.approval(key), Approval.PENDING)


class TableTests(DevicesCase):
    """All devices that are known."""

    pools = (Pool.DEVICES,)

    def setUp(self) -> None:
        super().setUp()
        self.patch(devices_module, "MAX_DEVICES", 50)

    def test_the_phone_is_known(self) -> None:
        """The largest address gives way, its oldest device first, here and in the store."""
        self.devices.enter(PHONE, HERE)
        self.devices.heard(PHONE, self.wall())
        for _ in range(5):
            self.make_up(1000)
            self.clock.advance(MINUTE)
        newcomer = DeviceKey("봇", "newcomer")
        self.assertIs(self.devices.enter(newcomer, HERE), Approval.APPROVED)
        self.assert_gave_way(self.metrics, Pool.DEVICES, 50)
        self.clock.advance(10 * WRITE_SECONDS)
        again = StoredDevices(self.database, self.clock, wall=self.wall)
        again._load(self.successResultOf(self.database.run_read(again._read)))
        known = {record.key for record in again.page(None, 1000)}
        self.assertEqual(known, {record.key for record in self.devices.page(None, 1000)})
        self.assertEqual(len(known), 50)
        self.assertLessEqual({PHONE, newcomer}, known)

    def test_decided_ones_stay(self) -> None:
        """A device that an operator has refused is not forgotten by making others up."""
        self.devices.enter(GREEDY, THERE)
        self.successResultOf(self.devices.set_approval(GREEDY, Approval.BLOCKED))
        for number in range(8):
            facts = msgspec.structs.replace(THERE, address=f"203.0.113.{number}")
            self.make_up(1000, facts)
        self.assertIs(self.devices.enter(GREEDY, THERE), Approval.BLOCKED)


class RoomsTests(StoreTestCase, FairCase):
    """A phone hears rooms without end, beside another one of its bot."""

    pools = (Pool.ROOMS,)

    def setUp(self) -> None:
        super().setUp()
        self.metrics = Metrics()
        self.rooms = StoredRooms(
            self.database, self.clock, wall=self.wall, gave_way=self.metrics.pools.gave_way
        )
        self.start()

    def flood(self, bot_name: str = "봇") -> None:
        """Strangers add the bot to very many rooms."""
        for number in range(200):
            key = RoomKey(bot_name, str(10_000 + number))
            self.rooms.enter(key, DeviceKey(bot_name, "greedy"), "낚시", True)

    def known(self) -> set[RoomKey]:
        """The rooms that are known."""
        return {room.key for room in self.rooms.page(None, 1000)}

    def test_of_a_bot(self) -> None:
        """The other phone's rooms stay, and new ones of it are entered."""
        self.patch(rooms_module, "MAX_BOT_ROOMS", 50)
        mine = {RoomKey("봇", str(number)) for number in range(10)}
        for key in sorted(mine)[:5]:
            self.rooms.enter(key, PHONE, "방", True)
        self.flood()
        for key in sorted(mine)[5:]:
            self.assertTrue(self.rooms.enter(key, PHONE, "방", True))
        self.flood()
        self.assertLessEqual(mine, self.known())
        self.assertEqual(len(self.known()), 50)
        self.assert_gave_way(self.metrics, Pool.ROOMS, 150)

    def test_of_all_bots(self) -> None:
        """Another bot's rooms stay, too."""
        self.patch(rooms_module, "MAX_ROOMS", 50)
        mine = RoomKey("가게봇", "1")
        self.rooms.enter(mine, DeviceKey("가게봇", "phone"), "방", True)
        self.flood()
        self.assertIn(mine, self.known())
        self.assertEqual(len(self.known()), 50)

    def test_taken_over(self) -> None:
        """Who hears the rooms of another phone does not make it the largest holder."""
        self.patch(rooms_module, "MAX_BOT_ROOMS", 50)
        mine = {RoomKey("봇", str(number)) for number in range(20)}
        for key in mine:
            self.rooms.enter(key, PHONE, "방", True)
            self.rooms.enter(key, GREEDY, "방", True)
        self.flood()
        self.assertLessEqual(mine, self.known())


class UnapprovedTests(GatewayCase, FairCase):
    """A device that is not approved, in the rooms of one that is."""

    pools = (Pool.UNAPPROVED_LINES,)

    def setUp(self) -> None:
        super().setUp()
        self.serve()
        self.innocent = self.ready()
        self.innocent.chat("말", room="방", channel_id="55")
        self.heard = dict(self.rooms.heard)

    def stranger(self, number: int = 1, approval: Approval = Approval.BLOCKED) -> Peer:
        """A device on which an operator has decided so."""
        key = DeviceKey(KEY.bot_name, f"stranger {number}")
        self.devices.known[key] = approval
        return self.ready(key)

    def lines(self, *devices: str) -> int:
        """The number of their lines in the chat log."""
        return sum(line.device_id in devices for line in self.chat_log.lines)

    def test_decides_nothing(self) -> None:
        """Its lines enter no room, rename none, and move none away from the phone."""
        for approval in (Approval.BLOCKED, Approval.PENDING):
            peer = self.stranger(1, approval)
            peer.chat("나", room="새 이름", channel_id="55")
            peer.chat("나", room="다른 방", channel_id="56")
            self.assertEqual(self.rooms.heard, self.heard)
            self.assertEqual(peer.texts, [])

    def test_a_minute(self) -> None:
        """It writes 20 lines a minute into the chat log; the phone all that it hears."""
        peer = self.stranger()
        for number in range(100):
            peer.chat(f"나 {number}", room="방", channel_id="55")
            self.innocent.chat(f"말 {number}", room="방", channel_id="55")
        self.assertEqual(self.lines("stranger 1"), 20)
        self.assertEqual(self.lines(KEY.device_id), 2 * 101)
        self.assertEqual(len(self.innocent.texts), 101)
        self.assert_gave_way(self.metrics, Pool.UNAPPROVED_LINES, 80)
        self.run_for(MINUTE)
        peer.chat("나", room="방", channel_id="55")
        self.assertEqual(self.lines("stranger 1"), 21)

    def test_many_devices(self) -> None:
        """All those of an address share that."""
        for number in range(3):
            peer = self.stranger(number)
            for text in range(20):
                peer.chat(f"나 {text}", room="방", channel_id="55")
        self.assertEqual(self.lines(*(f"stranger {number}" for number in range(3))), 20)


class WaitingTests(GatewayCase):
    """A device that has signed, and of whose address there are too many new ones."""

    def setUp(self) -> None:
        super().setUp()
        self.serve(sessions=FakeSessions())
        self.devices.store_is_known = False

    def test_waits_for_its_turn(self) -> None:
        """It stays connected, unanswered, and is served as soon as it is entered."""
        phone = self.ready()
        phone.chat("말")
        self.assertEqual(phone.texts, [])
        self.devices.store_is_known = True
        self.run_for(LIMITS_SECONDS + 1.0)
        phone.chat("또")
        self.assertEqual(phone.texts, ["또"])

    def test_made_up(self) -> None:
        """Its signed handshake is answered after a second: not approved, and without a token."""
        client = self.client("session")
        self.assertEqual(client.frames, [])
        self.run_for(NOT_ENTERED_SECONDS)
        (answer,) = client.take()
        assert isinstance(answer, Greeting)
        self.assertFalse(answer.approved)
        self.assertIsNone(answer.session_token)


class HeldTests(GatewayCase, FairCase):
    """A phone that floods before the store has been read."""

    pools = (Pool.HELD_CHAT,)

    def test_the_phone_is_answered(self) -> None:
        """What the other phone hears then is answered as soon as the store has been read."""
        self.patch(held_module, "MAX_HELD", 50)
        self.serve()
        self.context.held.begin()
        self.devices.store_is_known = False
        greedy = self.ready(DeviceKey(KEY.bot_name, "greedy"))
        for number in range(200):
            greedy.chat(str(number))
        innocent = self.ready()
        for number in range(10):
            innocent.chat(str(number))
        self.devices.store_is_known = True
        self.directory.decisions.store_read()
        self.run_for(1.0)
        self.assertEqual(innocent.texts, [str(number) for number in range(10)])
        self.assert_gave_way(self.metrics, Pool.HELD_CHAT, 175)


class SiteTests(ServerCase, FairCase):
    """A site of many phones behind one address is installed, beside a phone elsewhere."""

    pools = (Pool.NEW_DEVICES,)

    def test_all_are_let_in(self) -> None:
        """20 phones are served at once, the others within two minutes: they need do nothing."""
        self.server.settings += [("limits.allow", "[]")]
        self.server.start()
        phones = [self.server.phone(number) for number in range(50)]
        self.say_all(phones, "처음")
        self.assertEqual(sum(phone.texts() == ["처음"] for phone in phones), NEW_A_MINUTE)
        self.run_for(2 * MINUTE + 2 * LIMITS_SECONDS)
        self.say_all(phones, "다음")
        for phone in phones:
            self.assertEqual(phone.texts()[-1:], ["다음"])
        self.assert_gave_way(self.server.parts.context.metrics, Pool.NEW_DEVICES)

    def say_all(self, phones: list[FakePhone], text: str) -> None:
        """Somebody writes on each phone, in a room of its own."""
        for number, phone in enumerate(phones):
            phone.say(f"# echo {text}", room=f"방 {number}", channel_id=str(number))
        self.run_for(2.0)


class ChatLogTests(StoreTestCase, FairCase):
    """A phone, or a room, that fills the chat log."""

    pools = (Pool.CHAT_LOG, Pool.WAITING_CHAT_LINES)

    def setUp(self) -> None:
        super().setUp()
        self.metrics = Metrics()
        gave_way = self.metrics.pools.gave_way
        self.log = StoredChatLog(self.database, self.clock, wall=self.wall, gave_way=gave_way)
        self.bound = ChatBound(self.database, self.clock, 100_000, gave_way)
        self.start()

    def say(self, device: DeviceKey, room: str, lines: int, chars: int = 0) -> None:
        """Lines come."""
        for _ in range(lines):
            line = ChatLine(self.wall(), "in", *device, room, "방", "나", None, None, "a" * chars)
            self.log.append(line)
            self.clock.advance(0.01)
        self.clock.advance(5.0)

    def look(self) -> None:
        """The bound is looked at, and kept."""
        self.bound.start()
        self.clock.pump([CHECK_SECONDS, *[PAUSE_SECONDS] * 100])
        self.bound.stop()

    def left(self, device: DeviceKey, room: str) -> int:
        """How many lines are left."""
        rows = self.rows(CHAT_LINES)
        return sum((row["device_id"], row["room_id"]) == (device.device_id, room) for row in rows)

    def test_the_phone_keeps_its_lines(self) -> None:
        """The oldest lines of the flooding phone go, down to the bound."""
        self.say(PHONE, "1", 50)
        for room in range(10):
            self.say(GREEDY, str(100 + room), 20, 1000)
        self.say(PHONE, "1", 10)
        self.look()
        self.assertEqual(self.left(PHONE, "1"), 60)
        self.assertEqual(self.left(GREEDY, "100"), 0)
        self.assertEqual(self.left(GREEDY, "109"), 20)
        size = sum(LINE_BYTES + len(row["text"]) for row in self.rows(CHAT_LINES))
        self.assertLess(size, 100_000)
        self.assertGreater(size, 80_000)
        self.assert_gave_way(self.metrics, Pool.CHAT_LOG, 100)

    def test_a_room_of_the_same_phone(self) -> None:
        """The phone's other rooms keep their lines, where one room has most of them."""
        self.say(PHONE, "1", 50)
        self.say(PHONE, "2", 200, 1000)
        self.look()
        self.assertEqual(self.left(PHONE, "1"), 50)
        self.assertLess(self.left(PHONE, "2"), 100)

    def test_while_they_wait(self) -> None:
        """Where the store is slow, the flooding phone's lines are dropped, and not the other's."""
        self.patch(chatlog_module, "MAX_WAITING_LINES", 100)
        self.thread.stuck = True
        self.say(GREEDY, "2", 500)
        self.say(PHONE, "1", 20)
        self.say(GREEDY, "2", 500)
        self.thread.go_on()
        self.say(PHONE, "1", 1)
        self.assertEqual((self.left(PHONE, "1"), self.left(GREEDY, "2")), (21, 80))
        self.assert_gave_way(self.metrics, Pool.WAITING_CHAT_LINES, 920)
        self.assertEqual(self.log.dropped, 920)

    def test_while_large_ones_wait(self) -> None:
        """So it is where their bytes fill it."""
        self.patch(chatlog_module, "MAX_WAITING_BYTES", 100_000)
        self.thread.stuck = True
        self.say(GREEDY, "2", 200, 10_000)
        self.say(PHONE, "1", 20, 100)
        self.thread.go_on()
        self.clock.advance(1.0)
        self.assertEqual(self.left(PHONE, "1"), 20)
        self.assertGreater(self.left(GREEDY, "2"), 5)

    def test_within_the_bound(self) -> None:
        """A log that is small enough, or without a bound, is left alone."""
        self.say(PHONE, "1", 50)
        self.say(GREEDY, "2", 100, 1000)
        self.bound.max_bytes = 0
        self.look()
        self.assertEqual(self.left(GREEDY, "2"), 100)

    def test_many_lines(self) -> None:
        """The sample of a long log tells its size within some percent."""
        self.say(PHONE, "1", 3000)
        self.bound.max_bytes = 3000 * LINE_BYTES * 11 // 10
        self.look()
        self.assertEqual(self.left(PHONE, "1"), 3000)
        self.bound.max_bytes = 3000 * LINE_BYTES * 8 // 10
        self.look()
        left = self.left(PHONE, "1")
        self.assertTrue(2000 < left < 2500, left)
