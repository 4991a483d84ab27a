"""Tests for L{domaeka.gateway.held}."""

from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway import held
from domaeka.gateway.held import RELEASED_A_TURN, HeldChat
from domaeka.interfaces import DeviceKey

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

        return [self.held.put(key, chars, partial(decide, number)) for number in numbers]

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
        self.held.put(OTHER, 1, lambda answered: 1 / 0)
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
