"""What waits for phones is shared: no room, and no phone, takes the others' answers."""

from random import Random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.interfaces import DeviceKey, Priority
from domaeka.policies.outbox import Budget, Outbox, Outgoing
from domaeka.policies.reports import MAX_UNREPORTED
from domaeka.policies.turns import LINE_MESSAGES
from domaeka.pools import Pool
from domaeka.wire import Delivered, DeliveryReport, Media, Reply, encode_frame
from tests.fairness import FairCase
from tests.gateway_case import KEY, GatewayCase, Peer

OTHER = DeviceKey("봇", "e" * 16)
SMALL = ("queue.total_bytes", "1000000"), ("queue.max_bytes", "1000000")
HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def shown(peer: Peer) -> list[str]:
    """What a phone was told, in order: texts, and the rooms of pictures."""
    replies = [frame.reply for frame in peer.frames if isinstance(frame, Delivered)]
    return [r.content if isinstance(r.content, str) else f"picture {r.room}" for r in replies]


def back(case: GatewayCase, key: DeviceKey = KEY) -> Peer:
    """A phone that comes back, with all that it was told."""
    peer = case.greeted(key)
    peer.pong()
    case.run_for(1.0)
    return peer


class TurnsTests(SynchronousTestCase):
    """Rooms take turns within a class."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.outbox = Outbox(10**5, 10**9, Budget(10**9), self.clock.seconds)

    def put(self, room: str, content: str | Media = "", priority: Priority = HIGH) -> None:
        self.outbox.put(Reply(room, None, "봇", content), priority, 30.0)

    def take(self, count: int = 10**6) -> list[Outgoing]:
        items: list[Outgoing] = []
        while len(items) < count and (item := self.outbox.take()) is not None:
            items.append(item)
        return items

    def rooms(self, count: int = 10**6) -> list[str]:
        return [item.reply.room for item in self.take(count)]

    def test_pictures(self) -> None:
        """Behind a hundred pictures of one room another's answers wait for one of them."""
        for _ in range(100):
            self.put("greedy", Media((bytes(100_000),)))
        self.take(1)
        for _ in range(10):
            self.put("innocent")
        self.assertEqual(self.rooms(11).count("innocent"), 10)
        self.assertEqual(self.rooms().count("greedy"), 98)

    def test_texts(self) -> None:
        """Behind a thousand texts of one room another's answer waits for a batch of them."""
        for priority in (HIGH, NORMAL, LOW):
            for _ in range(1000):
                self.put("greedy", "", priority)
            self.put("innocent", "", priority)
            self.assertIn("innocent", self.rooms(LINE_MESSAGES + 2))
            self.take()

    def test_no_new_turn(self) -> None:
        """A room that has each picture made when the one before has left gains nothing by that."""
        self.put("greedy", Media((bytes(100_000),)))
        for number in range(40):
            self.put(f"innocent {number % 2}", "x" * 1000)
        rooms = []
        for _ in range(41):
            (room,) = self.rooms(1)
            rooms.append(room)
            if room == "greedy":
                self.put("greedy", Media((bytes(100_000),)))
        self.assertEqual(rooms.count("greedy"), 2)  # one when nobody else waited yet

    def test_order(self) -> None:
        """Whatever comes and goes, each room sees its messages of a class in order, and all."""
        random = Random(16)
        put: dict[tuple[str, Priority], list[str]] = {}
        seen: dict[tuple[str, Priority], list[str]] = {}
        for number in range(3000):
            if random.random() < 0.55:
                place = random.choice("abcde"), random.choice((HIGH, NORMAL, LOW))
                long = random.choice((0, 0, 0, 5000))
                self.put(place[0], f"{number:04}" + "x" * long, place[1])
                put.setdefault(place, []).append(f"{number:04}")
            else:
                for item in self.take(random.choice((1, 1, 2, 30))):
                    text = str(item.reply.content)[:4]
                    seen.setdefault((item.reply.room, item.priority), []).append(text)
        for item in self.take():
            text = str(item.reply.content)[:4]
            seen.setdefault((item.reply.room, item.priority), []).append(text)
        self.assertEqual(seen, put)

    def test_sent_again_in_order(self) -> None:
        """What goes again does so before all else, under its numbers, and then rooms take turns."""
        self.outbox.connected(True)
        for number in range(40):
            self.put("greedy", str(number))
        self.put("innocent", "말")
        first = self.take(30)
        self.outbox.connection_lost(())
        self.outbox.connected(True)
        again = self.take(30)
        self.assertEqual([item.number for item in again], [item.number for item in first])
        self.assertEqual(len(self.take()), 11)


class FilesTests(GatewayCase):
    """A phone reads nothing while it sends files."""

    def ask(self, peer: Peer, pictures: int) -> None:
        """A room asks for pictures, and then another one for a word."""
        for number in range(pictures):
            peer.chat(f"picture {number + 5000}", room="greedy", channel_id="1")
        peer.chat("말", room="innocent", channel_id="2")

    def test_between_files(self) -> None:
        """The word goes out behind the first picture: the phone reads it when that is done."""
        peer = self.ready()
        self.ask(peer, 5)
        self.assertEqual(shown(peer), ["picture greedy", "말"])
        for done in range(2, 6):
            self.run_for(1.0)
            peer.pong()
            self.assertEqual(shown(peer).count("picture greedy"), done)

    def test_phone_that_does_not_say(self) -> None:
        """A phone that does not answer has the next file when it must be done with the last."""
        peer = self.ready()
        self.ask(peer, 2)
        self.run_for(5.0)
        self.assertEqual(shown(peer).count("picture greedy"), 1)
        self.run_for(3.0)
        self.assertEqual(shown(peer).count("picture greedy"), 2)

    def test_real_phone(self) -> None:
        """On a script in the field the word shows within one picture's time, and none is lost."""
        phone = self.phone()
        self.run_for(5.0)
        for _ in range(8):
            phone.say("picture 5000", room="greedy", channel_id="1")
        phone.say("말", room="innocent", channel_id="2")
        asked_at = self.clock.seconds()
        self.run_for(90.0)
        (word,) = (reply for reply in phone.replies if reply.text == "말")
        self.assertTrue(asked_at <= word.time < asked_at + 7.0, word.time - asked_at)
        pictures = [reply.time for reply in phone.replies if reply.media]
        self.assertEqual(len(pictures), 8)
        self.assertLess(pictures[-1] - pictures[0], 7 * 6.2 + 2.0)  # one directly behind another

    def test_over_a_new_connection(self) -> None:
        """A phone that is back is done with its files, whatever it was to do before."""
        peer = self.ready()
        self.ask(peer, 3)
        peer.drop()
        self.assertEqual(shown(back(self)), ["picture greedy"])


class RoomsTests(GatewayCase, FairCase):
    """A device's outbox that is full."""

    pools = (Pool.OUTBOX,)

    def test_the_largest_room_gives_way(self) -> None:
        """One room's flood costs that room its own messages, whatever class the others' are."""
        self.serve(("queue.max_messages", "100"))
        phone = self.ready()
        phone.drop()
        device = self.device()
        for text, priority in (("a", HIGH), ("b", NORMAL), ("c", LOW)):
            device.send(Reply("innocent", "2", "봇", text), priority=priority)
        for number in range(1000):
            device.send(Reply("greedy", "1", "봇", str(number)))
        texts = [text for text in shown(back(self)) if not text.isdigit()]
        self.assertEqual(sorted(texts), ["a", "b", "c"])
        self.assert_gave_way(self.metrics, Pool.OUTBOX, 900)

    def test_bulk_gives_way_to_answers(self) -> None:
        """A broadcast to many rooms, one message each, makes room for one room's answers."""
        outbox = Outbox(100, 10**7, Budget(10**8), self.clock.seconds)
        for number in range(100):
            outbox.put(Reply(str(number), None, "봇", "bulk"), LOW, 30.0)
        for number in range(5):
            outbox.put(Reply("asks", None, "봇", str(number)), HIGH, 30.0)
        held = [item.reply.content for item in outbox.held() if item.priority is HIGH]
        self.assertEqual(held, list("01234"))

    def test_by_bytes(self) -> None:
        """A room of long texts gives way, though others have more of short ones."""
        outbox = Outbox(1000, 100_000, Budget(10**8), self.clock.seconds)
        for number in range(50):
            outbox.put(Reply("innocent", None, "봇", str(number)), HIGH, 30.0)
        for _ in range(50):
            outbox.put(Reply("greedy", None, "봇", "x" * 4000), HIGH, 30.0)
        rooms = [item.reply.room for item in outbox.held()]
        self.assertEqual((rooms.count("innocent"), rooms.count("greedy")), (50, 4))

    def test_not_acknowledged(self) -> None:
        """What was sent to a room and is not acknowledged counts as that room's."""
        outbox = Outbox(1000, 100_000, Budget(10**8), self.clock.seconds)
        outbox.connected(True)
        outbox.put(Reply("innocent", None, "봇", "말"), HIGH, 30.0)
        for _ in range(50):
            outbox.put(Reply("greedy", None, "봇", "x" * 4000), HIGH, 30.0)
            for item in iter(outbox.take, None):
                outbox.sent(item)
        self.assertEqual(outbox.held()[0].reply.content, "말")
        self.assertLessEqual(outbox.bytes, 100_000)


class DevicesTests(GatewayCase, FairCase):
    """The memory of all outboxes, full of what peers do not confirm."""

    pools = (Pool.OUTBOXES,)

    def hoard(self, count: int) -> None:
        """Clients that ask for long answers, and never acknowledge them."""
        for number in range(count):
            client = self.client("ack", key=DeviceKey("봇", f"hoarder {number}"))
            for _ in range(5):
                client.chat("x" * 40_000)

    def test_the_largest_device_gives_way(self) -> None:
        """An innocent phone is answered as ever; what hoarders had been sent is given up."""
        self.serve(*SMALL)
        self.hoard(10)
        self.assertGreater(self.context.budget.used, 700_000)
        phone = self.ready(OTHER)
        phone.stop_reading()
        texts = [f"{number}" + "y" * 500 for number in range(20)]
        phone.chat(*texts)
        phone.read_on()
        self.run_for(1.0)
        self.assertEqual(phone.texts, texts)
        self.assertLessEqual(self.context.budget.used, 1_000_000)
        self.assert_gave_way(self.metrics, Pool.OUTBOXES)

    def test_messages_that_are_no_answers(self) -> None:
        """An operator's message finds room, too, though hoarders hold more than its class may."""
        self.serve(*SMALL)
        self.hoard(10)
        self.ready(OTHER).drop()
        statuses: list[str] = []
        self.device(OTHER).send(
            Reply("innocent", "2", "봇", "말"),
            on_status=lambda status, reason: statuses.append(status),
            priority=NORMAL,
        )
        self.assertEqual(statuses, [])
        self.assertEqual(shown(back(self, OTHER)), ["말"])

    def test_its_own_greed(self) -> None:
        """A phone that holds most makes room for its own messages, and costs nobody else any."""
        budget = Budget(100_000)
        small, large = (Outbox(1000, 10**6, budget, self.clock.seconds) for _ in range(2))
        small.put(Reply("innocent", None, "봇", "말"), LOW, 30.0)
        for number in range(100):
            large.put(Reply("greedy", None, "봇", f"{number}" + "x" * 2000), HIGH, 30.0)
        self.assertEqual(small.messages, 1)
        self.assertTrue(80_000 < budget.used <= 100_000)


class OnTheirWayTests(SynchronousTestCase):
    """What is on its way to phones does not give way."""

    def test_nothing_can_give_way(self) -> None:
        """Where all memory is on its way to many phones, the next message is dropped."""
        clock = Clock()
        size = Reply("room", None, "봇", "x" * 1000).size
        total = Budget(20 * size)
        boxes = [Outbox(100, 10**9, total, clock.seconds) for _ in range(21)]
        for box in boxes[:20]:
            box.connected(False)
            self.assertIsNotNone(box.put(Reply("room", None, "봇", "x" * 1000), HIGH, 30.0))
            box.take()
        self.assertIsNone(boxes[20].put(Reply("room", None, "봇", ""), HIGH, 30.0))
        self.assertEqual([box.messages for box in boxes], [1] * 20 + [0])


class ReportsTests(GatewayCase, FairCase):
    """Messages whose delivery reports are awaited."""

    pools = (Pool.REPORTS,)

    def test_the_largest_room_gives_way(self) -> None:
        """A client that reports nothing on one room is still heard on the other."""
        self.serve(("limits.messages_per_second", "0"))
        client = self.client("ack", "delivery")
        client.chat("말", room="innocent", channel_id="2")
        for number in range(MAX_UNREPORTED):
            client.chat(str(number), room="greedy", channel_id="1")
            client.ack(number + 2)
        client.write(encode_frame("delivery", DeliveryReport(1, True)))
        self.assertEqual(self.counted(self.metrics.delivery_reports), {"delivered": 1})
        self.assert_gave_way(self.metrics, Pool.REPORTS)
