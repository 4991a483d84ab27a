"""Tests for L{domaeka.policies.outbox}."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.outbox import (
    AckVerdict,
    Budget,
    DeliveryStatus,
    Outbox,
    Outgoing,
    Priority,
)
from domaeka.policies.reports import MAX_UNREPORTED, REPORT_SECONDS
from domaeka.wire import Reply

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def reply(text: str) -> Reply:
    """A reply of 400 bytes and 4 for each character."""
    return Reply("room", "1", "bot", text)


def text_of(item: Outgoing | None) -> str | None:
    return None if item is None else str(item.reply.content)


class OutboxTests(SynchronousTestCase):
    """Tests for L{Outbox}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.budget = Budget(1_000_000)
        self.outbox = Outbox(10, 100_000, self.budget, self.clock.seconds)
        self.statuses: dict[str, list[DeliveryStatus]] = {}
        self.reasons: list[str] = []

    def put(self, text: str, priority: Priority = NORMAL, ttl: float = 30.0) -> Outgoing | None:
        statuses = self.statuses.setdefault(text, [])

        def told(status: DeliveryStatus, reason: str) -> None:
            statuses.append(status)
            self.reasons.append(reason)

        return self.outbox.put(reply(text), priority, ttl, told)

    def take_all(self) -> list[str]:
        return [str(item.reply.content) for item in iter(self.outbox.take, None)]

    def test_critical_first(self) -> None:
        """The urgent overtake all, and nobody overtakes within a class."""
        for number, priority in enumerate((LOW, NORMAL, HIGH, Priority.CRITICAL) * 2):
            self.put(f"{priority.name}{number}", priority)
        taken = self.take_all()
        self.assertEqual(taken[:2], ["CRITICAL3", "CRITICAL7"])
        for name in ("HIGH", "NORMAL", "LOW"):
            mine = [text for text in taken if text.startswith(name)]
            self.assertEqual(mine, sorted(mine))

    def test_shares_by_weight(self) -> None:
        """While all wait, bytes go out 8 to 4 to 1: bulk is slow, but not starved."""
        outbox = Outbox(10_000, 10_000_000, Budget(100_000_000), self.clock.seconds)
        for _ in range(2000):
            for priority in (LOW, NORMAL, HIGH):
                outbox.put(reply(""), priority, 30.0)
        taken = [outbox.take() for _ in range(1300)]
        counts = [sum(item is not None and item.priority == p for item in taken) for p in (1, 2, 3)]
        for count, expected in zip(counts, (800, 400, 100), strict=True):
            self.assertTrue(expected - 2 <= count <= expected + 2)

    def test_an_idle_class_saves_no_turns(self) -> None:
        """Who had nothing to send does not send all at once later."""
        for number in range(4):
            self.put(f"n{number}")
            self.put(f"l{number}", LOW)
        for _ in range(5):
            self.outbox.take()
        self.put("h1", HIGH)
        self.put("h2", HIGH)
        self.assertEqual(set(self.take_all()[:2]), {"h1", "h2"})

    def test_holds_low_back(self) -> None:
        """On a poor line bulk has a smaller share, but is not starved."""
        outbox = Outbox(1000, 1_000_000, Budget(100_000_000), self.clock.seconds)
        outbox.hold_low = True
        for _ in range(400):
            for priority in (LOW, NORMAL):
                outbox.put(reply(""), priority, 30.0)
        taken = [item.priority for item in (outbox.take() for _ in range(330)) if item]
        self.assertEqual(taken.count(LOW), 10)

    def test_low_gives_way_first(self) -> None:
        """A full outbox drops the oldest low one, then normal, then high, and says so."""
        for text, priority in (("l1", LOW), ("n1", NORMAL), ("l2", LOW), ("h1", HIGH)):
            self.put(text, priority)
        for number in range(6):
            self.put(f"h{number + 2}", HIGH)
        for number in range(4):
            self.put(f"h{number + 8}", HIGH)
        dropped = [
            text for text, statuses in self.statuses.items() if statuses == [DeliveryStatus.DROPPED]
        ]
        self.assertEqual(sorted(dropped), ["h1", "l1", "l2", "n1"])
        self.assertEqual((len(self.outbox), self.budget.dropped), (10, 4))

    def test_none_gives_way_to_a_lower_one(self) -> None:
        """Where all that waits is more urgent, the new one is dropped."""
        for number in range(10):
            self.put(f"h{number}", HIGH)
        self.assertIsNone(self.put("n"))
        self.assertEqual(self.statuses["n"], [DeliveryStatus.DROPPED])
        self.assertIsNotNone(self.put("c", Priority.CRITICAL))
        self.assertEqual(self.statuses["h0"], [DeliveryStatus.DROPPED])

    def test_critical_is_never_dropped(self) -> None:
        """Not for another critical one either: that is refused."""
        for number in range(10):
            self.put(f"c{number}", Priority.CRITICAL)
        self.assertIsNone(self.put("more", Priority.CRITICAL))
        self.assertEqual(len(self.take_all()), 10)

    def test_too_large_costs_nobody(self) -> None:
        """What could never fit is dropped, and only that."""
        self.put("l", LOW)
        self.assertIsNone(self.put("x" * 25_000, HIGH))
        self.assertEqual(self.take_all(), ["l"])

    def test_shared_budget(self) -> None:
        """
        Bulk takes half of the room of all outboxes at most, of which each that holds something has
        its share; answers find room still.
        """
        budget = Budget(10_000)
        bulk, other = (Outbox(100, 10_000, budget, self.clock.seconds) for _ in range(2))
        for _ in range(50):
            bulk.put(reply(""), LOW, 30.0)
        self.assertLessEqual(budget.used, 5_000)
        for _ in range(50):
            other.put(reply(""), LOW, 30.0)
        self.assertEqual(other.messages, 6)
        self.assertIsNotNone(other.put(reply("x" * 500), HIGH, 30.0))
        self.assertLessEqual(budget.used, 10_000)

    def test_expires(self) -> None:
        """What has waited its time is not sent; the sweep finds it, or the next take."""
        self.put("short", ttl=5.0)
        self.put("low", LOW, ttl=5.0)
        self.put("long", ttl=20.0)
        self.clock.advance(5.0)
        self.assertEqual(self.take_all(), ["long"])
        self.put("late", ttl=5.0)
        self.clock.advance(5.0)
        self.assertEqual(self.outbox.expire(self.clock.seconds()), 1)
        self.assertEqual(
            self.statuses["short"] + self.statuses["late"], [DeliveryStatus.EXPIRED] * 2
        )
        self.assertEqual(self.budget.expired, 3)

    def test_no_time_at_all(self) -> None:
        """A time of nothing, less than that, or no number is over at once."""
        for ttl in (0.0, -1.0, float("nan")):
            self.assertIsNone(self.put(str(ttl), ttl=ttl))
            self.assertEqual(self.statuses[str(ttl)], [DeliveryStatus.EXPIRED])
        self.assertEqual((self.outbox.messages, self.budget.used), (0, 0))

    def test_stays_for_who_was_sent_away(self) -> None:
        """A phone told to come back later finds what waits, its whole time from then on."""
        self.put("before")
        self.outbox.stay_away(100.0)
        self.put("after", ttl=10.0)
        self.clock.advance(109.0)
        self.outbox.expire(self.clock.seconds())
        self.outbox.connected(False)
        self.assertEqual(self.take_all(), ["before", "after"])

    def test_without_ack(self) -> None:
        """What had not left for the socket goes again, first and in order; the rest does not."""
        self.outbox.connected(False)
        for number in range(4):
            self.put(str(number))
        items = [self.outbox.take() for _ in range(3)]
        self.put("h", HIGH)
        self.assertEqual([item and item.message_id for item in items], [None] * 3)
        self.outbox.connection_lost([item for item in items[1:] if item])
        self.assertEqual(self.statuses["0"], [DeliveryStatus.SENT])
        self.outbox.connected(False)
        self.assertEqual(self.take_all(), ["1", "2", "h", "3"])

    def test_with_ack(self) -> None:
        """What was not acknowledged goes again before anything new, under the same numbers."""
        self.outbox.connected(True)
        for text, priority in (("l", LOW), ("n", NORMAL), ("h", HIGH)):
            self.put(text, priority)
        items = list(iter(self.outbox.take, None))
        self.outbox.sent(items[1])
        self.assertIs(self.outbox.ack(1), AckVerdict.TAKEN)
        self.outbox.connection_lost(items[2:])
        self.put("c", Priority.CRITICAL)
        self.outbox.connected(True)
        again = [(item.message_id, text_of(item)) for item in iter(self.outbox.take, None)]
        self.assertEqual(again, [(2, "n"), (3, "l"), (4, "c")])
        self.assertEqual(self.statuses["h"], [DeliveryStatus.SENT, DeliveryStatus.ACKNOWLEDGED])

    def test_reports(self) -> None:
        """
        A report on a message acknowledges all up to it; the first one counts, on this connection
        or a later one, for as long as a thousand newer ones are not awaited.
        """
        self.outbox.connected(True, True)
        for text in ("a", "b", "c"):
            self.put(text)
        self.outbox.sent(list(iter(self.outbox.take, None))[-1])
        self.assertIsNotNone(self.outbox.report(2, False, "why"))
        self.assertIsNone(self.outbox.report(2, True, ""))
        self.assertIsNone(self.outbox.report(4, True, ""))
        self.assertEqual(self.reasons[-2:], ["", "why"])
        self.outbox.connection_lost([])
        self.outbox.connected(True, True)
        self.assertIsNotNone(self.outbox.report(1, True, "not asked"))
        self.assertEqual(
            [(self.statuses[text][-1], self.reasons[-1]) for text in ("a", "b", "c")],
            [("delivered", ""), ("refused_by_app", ""), ("sent", "")],
        )
        self.take_all()
        self.outbox.ack(3)
        for _ in range(MAX_UNREPORTED):
            self.put("more")
            self.outbox.take()
            self.outbox.ack(self.outbox.next_number - 1)
        self.assertIsNone(self.outbox.report(3, True, ""))
        self.assertIsNotNone(self.outbox.report(self.outbox.next_number - 1, True, ""))
        self.clock.advance(REPORT_SECONDS)
        self.put("later")
        self.outbox.take()
        self.outbox.ack(self.outbox.next_number - 1)
        self.assertIsNone(self.outbox.report(self.outbox.next_number - 3, True, ""))
        self.assertIsNotNone(self.outbox.report(self.outbox.next_number - 1, True, ""))
        self.outbox.connected(True)  # another script
        self.assertIsNone(self.outbox.report(self.outbox.next_number - 2, True, ""))

    def test_successor_takes_over(self) -> None:
        """A connection that takes the place of another is given what that one had in hand."""
        self.outbox.connected(True)
        self.put("a")
        self.outbox.take()
        self.outbox.connected(False)
        item = self.outbox.take()
        assert item is not None
        self.assertEqual((text_of(item), item.message_id), ("a", None))

    def test_strange_acks(self) -> None:
        """What was never sent cannot be acknowledged; what has been can be said again."""
        self.outbox.connected(True)
        self.put("a")
        for message_id in (-1, 0, 1, 10**30):
            self.assertIs(self.outbox.ack(message_id), AckVerdict.NEVER_SENT)
        item = self.outbox.take()
        assert item is not None
        self.outbox.sent(item)
        self.outbox.connection_lost(())
        self.assertIs(self.outbox.ack(1), AckVerdict.TAKEN)  # ahead of being sent again
        self.assertIs(self.outbox.ack(1), AckVerdict.REPEATED)
        self.assertEqual((self.budget.bad_acks, self.budget.used), (4, 0))

    def test_unacknowledged_are_bounded(self) -> None:
        """A client that never acknowledges costs no more than the bound, and no new message."""
        self.outbox.connected(True)
        for number in range(50):
            self.put(f"{number:<2400}", HIGH)  # 10,000 bytes
            item = self.outbox.take()
            assert item is not None
            self.outbox.sent(item)
        self.assertEqual((self.outbox.messages, self.budget.forgotten), (10, 40))
        self.assertEqual(self.statuses[f"{49:<2400}"], [DeliveryStatus.SENT])
        self.clock.advance(30.0)
        self.outbox.expire(self.clock.seconds())
        self.assertEqual((self.outbox.messages, self.budget.expired), (0, 10))

    def test_late_acks(self) -> None:
        """However many are sent and not acknowledged yet, all go again, after a restart too."""
        self.outbox.connected(True)
        for number in range(50):
            self.put(str(number))
            item = self.outbox.take()
            assert item is not None
            self.outbox.sent(item)
        successor = Outbox(10, 100_000, Budget(1_000_000), self.clock.seconds)
        successor.restore(self.outbox.held(), self.outbox.next_number)
        self.outbox.connection_lost(())
        for outbox in (self.outbox, successor):
            outbox.put(reply("50"), NORMAL, 30.0)
            taken = [(item.number, text_of(item)) for item in iter(outbox.take, None)]
            self.assertEqual(taken, [(number + 1, str(number)) for number in range(51)])

    def test_counts_answers(self) -> None:
        """The bytes of the answers that wait are known, for back-pressure."""
        self.put("h", HIGH)
        self.put("n")
        self.assertEqual(self.outbox.answer_bytes, 404)
        self.outbox.take()
        self.assertEqual(self.outbox.answer_bytes, 0)

    def test_clear(self) -> None:
        """What waits for a device that is blocked is dropped, and its senders are told."""
        self.put("a")
        self.outbox.take()
        self.put("c", Priority.CRITICAL)
        self.outbox.clear()
        self.assertEqual(
            self.statuses, {"a": [DeliveryStatus.DROPPED], "c": [DeliveryStatus.DROPPED]}
        )
        self.assertEqual((self.outbox.messages, self.outbox.bytes, self.budget.used), (0, 0, 0))


class OutboxMachine(RuleBasedStateMachine):
    """
    A phone that acknowledges, on a line that breaks, against a full outbox.

    The phone sees ascending numbers only, each message once, in order within a class; the
    accounts always agree with what is held; every message comes to one end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.budget = Budget(20_000)
        self.outbox = Outbox(12, 8_000, self.budget, self.clock.seconds)
        self.outbox.connected(True)
        self.flight: list[Outgoing] = []  # what has not reached the phone
        self.last_seen = 0
        self.seen: list[Outgoing] = []
        self.put_in = 0
        self.ends: dict[int, DeliveryStatus] = {}

    @rule(priority=st.sampled_from(Priority), length=st.integers(0, 600), ttl=st.integers(-1, 40))
    def put(self, priority: Priority, length: int, ttl: int) -> None:
        number = self.put_in
        self.put_in += 1

        def told(status: DeliveryStatus, reason: str) -> None:
            assert self.ends.get(number, DeliveryStatus.SENT) is DeliveryStatus.SENT
            self.ends[number] = status

        self.outbox.put(reply(f"{number:03}" + "x" * length), priority, ttl, told)

    @rule(count=st.integers(1, 6))
    def take(self, count: int) -> None:
        for _ in range(count):
            item = self.outbox.take()
            if item is not None:
                self.flight.append(item)

    @precondition(lambda self: self.flight)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """Some reach the phone, which drops what it has."""
        count = data.draw(st.integers(1, len(self.flight)))
        for item in self.flight[:count]:
            assert item.message_id is not None
            if item.message_id > self.last_seen:
                self.last_seen = item.message_id
                self.seen.append(item)
        self.outbox.sent(self.flight[count - 1])
        del self.flight[:count]

    @precondition(lambda self: self.last_seen)
    @rule()
    def acknowledge(self) -> None:
        assert self.outbox.ack(self.last_seen) is not AckVerdict.NEVER_SENT

    @rule(data=st.data())
    def break_line(self, data: st.DataObject) -> None:
        """Any part of what is on its way has left, and is lost."""
        left = data.draw(st.integers(0, len(self.flight)))
        self.outbox.connection_lost(self.flight[left:])
        self.flight = []
        self.outbox.connected(True)

    @rule(seconds=st.integers(0, 20), swept=st.booleans())
    def wait(self, seconds: int, swept: bool) -> None:
        self.clock.advance(seconds)
        if swept:
            self.outbox.expire(self.clock.seconds())

    @invariant()
    def accounts_agree(self) -> None:
        held = self.outbox.held()
        assert self.outbox.messages == len(held)
        assert len([item for item in held if not item.number]) <= 12
        assert self.outbox.bytes == self.budget.used == sum(item.size for item in held) <= 8_000
        waiting = [item for item in held if item.priority is HIGH and item not in self.flight]
        assert self.outbox.answer_bytes <= sum(item.size for item in waiting)

    @invariant()
    def order_is_kept(self) -> None:
        for priority in Priority:
            mine = [str(item.reply.content)[:3] for item in self.seen if item.priority is priority]
            assert mine == sorted(set(mine))

    def teardown(self) -> None:
        """What was neither seen nor given up comes in the end."""
        self.outbox.connection_lost(())
        self.outbox.connected(True)
        self.flight = list(iter(self.outbox.take, None))
        if self.flight:
            for item in self.flight:
                if (item.message_id or 0) > self.last_seen:
                    self.seen.append(item)
            self.outbox.sent(self.flight[-1])
        self.order_is_kept()
        seen = {int(str(item.reply.content)[:3]) for item in self.seen}
        given_up = {
            n
            for n, status in self.ends.items()
            if status in (DeliveryStatus.EXPIRED, DeliveryStatus.DROPPED)
        }
        assert seen | given_up == set(range(self.put_in))


class OutboxMachineTests(SynchronousTestCase):
    """Runs L{OutboxMachine}."""

    def test_machine(self) -> None:
        """Nothing is lost, doubled or out of order, whatever happens."""
        run_state_machine_as_test(
            OutboxMachine,
            settings=settings(max_examples=30, stateful_step_count=40, deadline=None),
        )
