"""Tests for L{domaeka.policies.pacing} and L{domaeka.gateway.pacing}: a pace that people keep."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import load_settings
from domaeka.interfaces import DeviceKey, Priority
from domaeka.policies.outbox import Budget, Outbox
from domaeka.policies.pacing import JITTER, MAX_ROOMS, Pace
from domaeka.testing import FakeSessions
from domaeka.wire import Media, Reply
from tests.gateway_case import KEY, GatewayCase, Peer
from tests.test_delivery import DeliveryCase
from tests.test_journal import JournalCase

#: A step of time, in seconds.
STEP = 0.05


def reply(text: str, room: str = "1") -> Reply:
    """A message to a room."""
    return Reply("방", room, "봇", text)


class PaceCase(GatewayCase):
    """A gateway that keeps a pace."""

    def paced(
        self, phone: float = 0.0, room: float = 0.0, *more: tuple[str, str], **parts: Any
    ) -> None:
        self.serve(*self.pacing(phone, room), *more, **parts)

    def pacing(self, phone: float, room: float) -> tuple[tuple[str, str], ...]:
        return ("pacing.phone_per_second", f"{phone}"), ("pacing.room_per_second", f"{room}")

    def change(self, phone: float, room: float) -> None:
        """A reload with other settings."""
        settings = load_settings(None, self.pacing(phone, room), {})
        self.context.apply(settings, self.context.signer)
        self.directory.decisions.apply_settings()
        self.run_for(0.0)

    def arrivals(self, peer: Peer, seconds: float) -> list[tuple[float, str]]:
        """When which texts arrive, from now on."""
        found: list[tuple[float, str]] = []
        for _ in range(round(seconds / STEP) + 1):
            found += ((self.clock.seconds(), text) for text in peer.texts)
            peer.take()
            self.run_for(STEP)
        return found

    def assert_pace(self, times: Sequence[float], pause: float) -> None:
        """Each pause is the least one at least, with a random part on top."""
        pauses = [later - earlier for earlier, later in pairwise(times)]
        for one in pauses:
            self.assertGreaterEqual(one, pause - STEP)
            self.assertLessEqual(one, pause * (1 + JITTER) + STEP + 1e-6)
        self.assertGreater(max(pauses) - min(pauses), STEP / 2)


class PacingTests(PaceCase):
    """What a phone sees."""

    def test_phone(self) -> None:
        """Answers to a phone leave one by one, in order, with pauses of their own length."""
        self.paced(phone=0.5)
        peer = self.ready()
        texts = [f"{number}" for number in range(6)]
        peer.chat(*texts)
        found = self.arrivals(peer, 20)
        self.assertEqual([text for _, text in found], texts)
        self.assert_pace([time for time, _ in found], 2.0)

    def test_room(self) -> None:
        """Each room has a pace of its own, and waits for no other."""
        self.paced(room=1)
        peer = self.ready()
        for number in range(5):
            peer.chat(f"{number}", channel_id="1")
        peer.chat("a", channel_id="2")
        found = self.arrivals(peer, 10)
        self.assertEqual([text for _, text in found[:2]], ["0", "a"])
        self.assertEqual(found[0][0], found[1][0])
        self.assert_pace([time for time, text in found if text != "a"], 1.0)

    def test_both(self) -> None:
        """Where both are set, both hold."""
        self.paced(phone=2, room=0.5)
        peer = self.ready()
        for number in range(6):
            peer.chat(f"{number}", channel_id=f"{number % 2}")
        times = self.arrivals(peer, 20)
        self.assertEqual(len(times), 6)
        for room in (0, 1):
            self.assert_pace([time for time, text in times if int(text) % 2 == room], 2.0)
        for (earlier, _), (later, _) in pairwise(times):
            self.assertGreaterEqual(later - earlier, 0.5 - 1e-6)

    def test_sooner_than_others(self) -> None:
        """A room that may be written to does not wait until another one may."""
        self.paced(phone=1, room=0.05)
        peer = self.ready()
        peer.chat("0", "1", channel_id="1")
        peer.chat("a", channel_id="2")
        self.assertEqual([text for _, text in self.arrivals(peer, 1.6)], ["0", "a"])

    def test_fair(self) -> None:
        """A room with much to say keeps no other one waiting."""
        self.paced(phone=1)
        peer = self.ready()
        peer.chat(*(f"much {number}" for number in range(20)))
        peer.chat("one", "two", channel_id="2")
        texts = [text for _, text in self.arrivals(peer, 8)]
        self.assertEqual(texts[:4], ["much 0", "one", "much 1", "two"])

    def test_bulk_has_its_share(self) -> None:
        """Bulk waits for answers, but not for ever."""
        self.paced(phone=10)
        peer = self.ready()
        device = self.device()
        for number in range(40):
            device.send(reply(f"low {number}"), None, None, Priority.LOW)
            device.send(reply(f"high {number}"), None, None, Priority.HIGH)
        device.send(reply("critical"), None, None, Priority.CRITICAL)
        texts = [text.partition(" ")[0] for _, text in self.arrivals(peer, 5)]
        self.assertEqual(texts.index("critical"), 1)  # one had left before
        self.assertGreater(texts.count("high"), 3 * texts.count("low"))
        self.assertGreater(texts.count("low"), 1)

    def test_off(self) -> None:
        """Where it is off nothing keeps a pace."""
        peer = self.ready()
        peer.chat(*"가나다라")
        self.assertEqual(peer.texts, list("가나다라"))
        self.assertIsNone(self.device().outbox.pace)
        self.assertEqual(self.metrics.pacing_wait.count, 0)

    def test_files(self) -> None:
        """A message with files is one message; texts behind it wait."""
        self.paced(phone=1)
        peer = self.ready()
        peer.chat("picture", "뒤에")
        self.assertEqual(len(peer.frames), 1)
        self.assertIsInstance(peer.frames[0].reply.content, Media)  # type: ignore[union-attr]
        self.assertEqual([text for _, text in self.arrivals(peer, 2)], ["뒤에"])

    def test_time_to_live(self) -> None:
        """What waits for its pace has its whole time yet when the phone goes."""
        self.paced(1.0, 0.0, ("queue.message_ttl", "3"))
        peer = self.ready()
        peer.chat(*(f"{number}" for number in range(20)))
        self.assertEqual(len(self.arrivals(peer, 8)), 20 - self.device().outbox.messages)
        self.run_for(0.9 - self.clock.seconds() % 1 + 1)  # just before a sweep
        waiting = self.device().outbox.messages
        self.assertGreater(waiting, 10)
        peer.drop()
        self.run_for(2.9)
        self.assertEqual(self.device().outbox.messages, waiting)
        self.run_for(1.5)
        self.assertEqual((self.device().outbox.messages, self.context.budget.expired), (0, waiting))

    def test_short_time_to_live(self) -> None:
        """Not even a time that is shorter than the pause is used up."""
        self.paced(0.5, 0.0, ("queue.message_ttl", "0.5"))
        peer = self.ready()
        peer.chat("하나", "둘", "셋")
        self.assertEqual([text for _, text in self.arrivals(peer, 8)], ["하나", "둘", "셋"])

    def test_what_is_not_paced(self) -> None:
        """Acknowledgements and pings leave at once."""
        self.paced(phone=0.1)
        peer = self.client("ack")
        for text in "가나다":
            peer.chat(text, client_id=text)
        self.assertEqual((peer.taken, peer.texts), (["가", "나", "다"], ["가"]))
        self.run_for(60)
        self.assertGreaterEqual(peer.pings, 1)

    def test_reload(self) -> None:
        """A reload changes it at once, both ways."""
        peer = self.ready()
        self.change(0.1, 0.0)
        peer.chat(*"가나다라")
        self.assertEqual(peer.texts, ["가"])
        self.change(0.0, 0.0)
        self.assertEqual(peer.texts, list("가나다라"))
        self.change(0.0, 1.0)
        peer.chat(*"마바")
        self.assertEqual(peer.texts[4:], ["마"])
        self.change(0.0, 100.0)
        self.run_for(0.1)
        self.assertEqual(peer.texts[4:], ["마", "바"])

    def test_metrics(self) -> None:
        """They show what waits, and how long it has waited."""
        self.paced(phone=1)
        peer = self.ready()
        peer.chat(*"가나다")
        self.assertEqual(self.device().outbox.held_by_pace, 2)
        self.arrivals(peer, 5)
        self.assertEqual(self.device().outbox.held_by_pace, 0)
        wait = self.metrics.pacing_wait
        self.assertEqual(wait.count, 3)
        self.assertTrue(3.0 <= wait.sum <= 4.6, wait.sum)
        peer.drop()
        self.device().send(reply("라"))
        self.run_for(20.0)  # the phone is away: no matter of its pace
        self.ready()
        self.assertEqual((wait.count, self.device().outbox.messages), (4, 0))
        self.assertLess(wait.sum, 4.7)


class ConnectionTests(PaceCase):
    """Connections that end, and come again."""

    def test_back_again(self) -> None:
        """A phone that comes back at once is not written to any faster."""
        self.paced(phone=0.5)
        peer = self.ready()
        peer.chat(*"가나다")
        self.run_for(1.0)
        peer.drop()
        peer = self.ready()
        self.assertEqual(peer.texts, [])
        found = self.arrivals(peer, 8)
        self.assertEqual([text for _, text in found], ["나", "다"])
        self.assertGreaterEqual(found[1][0] - found[0][0], 2.0)

    def test_acknowledged(self) -> None:
        """What a client has not acknowledged goes again, in order, under its numbers."""
        self.paced(phone=2, room=1)
        peer = self.client("ack")
        for number, text in enumerate(("가", "나", "다", "라", "마", "바")):
            peer.chat(text, client_id=text, channel_id=f"{number % 2}")
        self.run_for(2.2)
        seen = list(zip(peer.numbers, peer.texts, strict=True))
        self.assertTrue(1 < len(seen) < 6, seen)
        peer.ack(1)
        peer.drop()
        peer = self.client("ack")
        again: list[tuple[int | None, str]] = []
        for _ in range(300):
            again += zip(peer.numbers, peer.texts, strict=True)
            peer.take()
            self.run_for(STEP)
        self.assertEqual(again[: len(seen) - 1], seen[1:])
        self.assertEqual([number for number, _ in again], [2, 3, 4, 5, 6])
        self.assertEqual({text for _, text in again}, set("나다라마바"))
        peer.ack(6)
        self.assertEqual(self.device().outbox.messages, 0)

    def test_drain(self) -> None:
        """A drain waits in bounded time; what is left then is kept as usual."""
        self.paced(1.0, 0.0, ("shutdown.drain_timeout", "5"), ("socket.linger_seconds", "1"))
        peer, other = self.ready(), self.ready(DeviceKey("봇", "e" * 16))
        peer.chat(*(f"{number}" for number in range(20)))
        other.chat("하나", "둘")
        ended: list[bool] = []
        self.drain.begin("shutdown").addCallback(ended.append)
        self.run_for(2.0)
        self.assertEqual((other.texts, other.lost, peer.lost), (["하나", "둘"], True, False))
        self.run_for(3.5)
        self.assertEqual((ended, peer.lost), ([True], True))
        device = self.device()
        kept = device.snapshot()
        assert kept is not None
        self.assertEqual(
            [one.text for one in kept.messages], [f"{n}" for n in range(len(peer.texts), 20)]
        )
        self.assertTrue(all(one.remaining > 25 for one in kept.messages))
        self.directory.sweep.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_timer_is_left(self) -> None:
        """A phone that has gone leaves no timer behind."""
        self.paced(phone=0.1)
        peer = self.ready()
        peer.chat(*"가나다")
        peer.drop()
        self.directory.sweep.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_slow_line(self) -> None:
        """Nothing stalls where the line takes a batch later than the pause ends."""
        self.paced(phone=5)
        peer = self.ready()
        peer.stop_reading()
        peer.chat(*(f"{number}{'x' * 60_000}" for number in range(8)))
        self.run_for(5)
        peer.read_on()
        self.arrivals(peer, 5)
        self.assertEqual(self.device(KEY).outbox.messages, 0)


class CutTests(DeliveryCase):
    """Lines that break."""

    def test_nothing_lost_or_doubled(self) -> None:
        """However often its line is cut, a client gets each message once, in order."""
        self.serve(
            ("pacing.phone_per_second", "20"),
            ("limits.messages_per_second", "0"),
            sessions=FakeSessions(),  # type: ignore[arg-type]
        )
        said = [f"{number} 말" for number in range(100)]
        pushed = [f"{number} 밀어 보냄" for number in range(100)]
        cuts = Random(3).choices(range(1500, 4000), k=60)
        lines = self.exchange(said, pushed, cuts, at_once=20)
        self.assertGreater(lines, 10)
        self.assertGreaterEqual(self.metrics.pacing_wait.sum, 100 / 20)


class DurableTests(JournalCase):
    """Durable delivery."""

    def test_waits_in_the_store(self) -> None:
        """What waits for its pace is in the store: a server that is killed sends it later."""
        pace = ("pacing.phone_per_second", "0.1")
        self.restart(pace)
        peer = self.begin()
        for text in "가나다":
            peer.chat(text, client_id=text)
        self.run_for(1.0)
        self.assertEqual((peer.taken, peer.texts, peer.numbers), (["가", "나", "다"], ["가"], [1]))
        peer.ack(1)
        self.run_for(1.0)
        self.crash()
        peer = self.client("ack")
        self.run_for(1.0)
        self.assertEqual((peer.texts, peer.numbers), (["나", "다"], [1001, 1002]))
        peer.ack(1002)
        self.run_for(1.0)


class PaceTests(SynchronousTestCase):
    """Tests for L{Pace} and an L{Outbox} with one."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[float] = []
        self.pace = Pace(Random(1), self.asked.append, lambda waited: None)
        self.pace.set(0.0, 1.0)
        self.outbox = Outbox(10**4, 10**7, Budget(10**7), self.clock.seconds)
        self.outbox.pace = self.pace

    def put(self, *rooms: str) -> None:
        for room in rooms:
            self.outbox.put(reply(f"to {room}", room), Priority.HIGH, 30.0)

    def take(self) -> list[str]:
        return [str(item.reply.channel_id) for item in iter(self.outbox.take, None)]

    def test_says_when(self) -> None:
        """Whenever nothing may leave, it says when something may, and then that does."""
        self.put("1", "1", "1")
        self.assertEqual(self.take(), ["1"])
        for _ in range(2):
            self.clock.advance(self.asked[-1])
            self.assertEqual(self.take(), ["1"])
        self.assertEqual(self.outbox.take(), None)

    def test_early_timer(self) -> None:
        """One who comes too early is told how long to wait yet: clocks differ a little."""
        self.put("1", "1")
        self.take()
        due = self.asked[-1]
        self.clock.advance(due - 0.001)
        del self.asked[:]
        self.assertEqual(self.take(), [])
        self.assertAlmostEqual(self.asked[-1], 0.001)

    def test_many_rooms(self) -> None:
        """However many rooms there are, it remembers no more than it may."""
        self.put(*(str(number) for number in range(MAX_ROOMS + 5)))
        self.assertEqual(len(self.take()), MAX_ROOMS + 5)
        self.assertEqual(len(self.pace._room_due), MAX_ROOMS)

    def test_burst_into_one_room(self) -> None:
        """A burst into one room does not look through all that waits for each message."""
        self.outbox.pace = pace = CountingPace(Random(1), self.asked.append, lambda waited: None)
        pace.set(0.0, 1.0)
        for _ in range(1000):
            self.put("1")
            self.outbox.take()
        self.assertLessEqual(pace.looked, 2)


class CountingPace(Pace):
    """One that counts how often it looks through messages."""

    looked = 0

    def next_of(self, waiting: Any) -> tuple[int, float]:
        self.looked += 1
        return super().next_of(waiting)
