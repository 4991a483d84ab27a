"""Tests for L{domaeka.gateway.held}."""

from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway import held
from domaeka.gateway.flow.throttle import PENDING_MESSAGES
from domaeka.gateway.held import RELEASED_A_TURN, HeldChat
from domaeka.interfaces import Approval, DeviceKey, RoomKey
from tests.gateway_case import KEY, GatewayCase

HOG, OTHER = DeviceKey("bot", "hog"), DeviceKey("bot", "other")


class HeldChatTests(SynchronousTestCase):
    """Tests for L{HeldChat}."""

    def setUp(self) -> None:
        self.dropped: list[int] = []
        self.decided: list[tuple[int, bool]] = []
        self.turns: list[object] = []
        self.held = HeldChat(self.dropped.append)
        self.held.begin()

    def put(self, *numbers: int, key: DeviceKey = OTHER, chars: int = 1) -> list[bool]:
        """Messages of a device.  @return: of each whether there was room."""

        def decide(number: int, answered: bool) -> None:
            self.decided.append((number, answered))

        return [
            self.held.put(key, f"room {number}", chars, partial(decide, number))
            for number in numbers
        ]

    def test_answered_in_order(self) -> None:
        """What was held is answered in its order, whosever it is, and nothing is held then."""
        self.put(1, 3)
        self.put(2, key=HOG)
        self.held.release(self.turns.append)
        self.assertEqual(self.decided, [(1, True), (3, True), (2, True)])
        self.assertFalse(self.held.holding)

    def test_a_few_a_turn(self) -> None:
        """Many are answered over several turns; what comes meanwhile waits behind them."""
        self.put(*range(RELEASED_A_TURN + 1))
        self.held.release(self.turns.append)
        self.assertEqual((len(self.decided), self.held.holding), (RELEASED_A_TURN, True))
        self.put(-1)
        (turn,) = self.turns
        turn()  # type: ignore[operator]
        self.assertEqual([number for number, _ in self.decided[-2:]], [RELEASED_A_TURN, -1])
        self.assertFalse(self.held.holding)

    def test_nobody_takes_all(self) -> None:
        """A device that floods has half of the room, and who comes behind it finds some."""
        self.patch(held, "MAX_HELD", 100)
        self.assertEqual(self.put(*range(100), key=HOG).count(True), 50)
        self.assertEqual(self.put(*range(100)).count(True), 25)
        self.assertEqual((len(self.held), sum(self.dropped)), (75, 125))

    def test_characters(self) -> None:
        """Their characters are bounded likewise."""
        self.patch(held, "MAX_HELD_CHARS", 100)
        self.assertEqual(self.put(1, 2, key=HOG, chars=40), [True, False])
        self.assertEqual(self.put(1, chars=30), [True])

    def test_room_is_given_back(self) -> None:
        """What has been answered takes no room."""
        self.patch(held, "MAX_HELD", 2)
        self.assertEqual(self.put(1, 2), [True, False])
        self.held.release(self.turns.append)
        self.assertEqual(self.put(1, 2), [True, False])

    def test_own_mistake_costs_one(self) -> None:
        """Where one cannot be answered for a mistake of ours, the others are."""
        self.put(1)
        self.held.put(OTHER, "room", 1, lambda answered: 1 / 0)
        self.put(2)
        self.held.release(self.turns.append)
        self.assertEqual([number for number, _ in self.decided], [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_given_up(self) -> None:
        """At a stop each is told that it is not answered, and all are counted."""
        self.put(1, 2)
        self.held.give_up()
        self.assertEqual((self.decided, self.dropped), ([(1, False), (2, False)], [2]))
        self.held.give_up()
        self.assertEqual((len(self.held), self.dropped), (0, [2]))


class GatewayTests(GatewayCase):
    """Chat that is held, as phones and clients see it."""

    def setUp(self) -> None:
        super().setUp()
        self.context.held.begin()
        self.devices.store_is_known = False

    def store_read(self) -> None:
        """The store says what it knows."""
        self.devices.store_is_known = True
        self.directory.decisions.store_read()
        self.run_for(0.0)

    def test_approvals_are_looked_up(self) -> None:
        """Whoever came before the store was read is judged then, wherever it is by then."""
        here, refused, gone = (KEY._replace(device_id=letter * 16) for letter in "abc")
        peers = [self.ready(key) for key in (here, refused, gone)]
        for peer in peers:
            peer.chat("하나")
        peers[2].drop()
        self.devices.known[refused] = Approval.BLOCKED
        self.store_read()
        self.assertEqual([chat.text for chat, _ in self.bots.submitted], ["하나"] * 2)
        self.assertEqual([origin.key for _, origin in self.bots.submitted], [here, gone])
        self.assertEqual([peer.texts for peer in peers], [["하나"], [], []])
        self.assertEqual([self.device(key).pending for key in (here, refused, gone)], [0, 0, 0])
        self.assertIn(here, self.devices.entered)
        self.assertEqual(len(self.chat_log.lines), 5)

    def test_room_that_is_refused(self) -> None:
        """The rooms are asked then, too."""
        peer = self.ready()
        self.rooms.known[RoomKey(KEY.bot_name, "18398338829933617")] = Approval.DENIED
        peer.chat("하나")
        self.assertEqual(self.rooms.heard, {})
        self.store_read()
        self.assertEqual((self.bots.submitted, self.device().pending), ([], 0))

    def test_phone_that_floods(self) -> None:
        """It is not read from any more while too much of it waits, so nothing of it is lost."""
        peer = self.ready()
        for number in range(PENDING_MESSAGES + 100):
            peer.chat(str(number))
        self.assertLessEqual(len(self.context.held), PENDING_MESSAGES)
        self.store_read()
        self.run_for(1.0)
        self.assertEqual(len(self.bots.submitted), PENDING_MESSAGES + 100)
        self.assertEqual(self.metrics.held_messages_dropped.value, 0)

    def test_client_without_room(self) -> None:
        """What finds no room is not acknowledged, so that its client says it again."""
        self.patch(held, "MAX_HELD", 2)
        peer = self.client("ack")
        for number in "ab":
            peer.chat(number, client_id=number)
        self.assertEqual((peer.taken, len(self.context.held)), (["a"], 1))
        self.store_read()
        peer.chat("b", client_id="b")
        self.assertEqual((peer.taken, peer.texts), (["a", "b"], ["a", "b"]))
        self.assertEqual(self.metrics.held_messages_dropped.value, 0)

    def test_phone_without_room(self) -> None:
        """What a phone says and nobody can hold is counted."""
        self.patch(held, "MAX_HELD", 2)
        peer = self.ready()
        peer.chat("하나", "둘")
        self.store_read()
        self.assertEqual(peer.texts, ["하나"])
        self.assertEqual(self.metrics.held_messages_dropped.value, 1)
        self.assertEqual(self.device().pending, 0)

    def test_drain(self) -> None:
        """A drain does not wait for the store."""
        peer = self.ready()
        peer.chat("하나")
        self.drain.begin("shutdown")
        self.run_for(1.0)
        self.assertTrue(peer.lost)
        self.assertEqual((peer.texts, self.metrics.held_messages_dropped.value), ([], 1))
