"""Tests for L{domaeka.gateway.flow.read_scheduler}."""

from collections.abc import Callable
from functools import partial

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway.flow.read_scheduler import STRANGERS_BYTES, TURN_SECONDS, ReadScheduler


class TurnsTests(SynchronousTestCase):
    """Tests for L{ReadScheduler}."""

    def setUp(self) -> None:
        self.later: list[Callable[[], object]] = []
        self.clock = Clock()
        self.turns = ReadScheduler(self.later.append, self.clock.seconds)
        self.read: list[str] = []

    def reading(self, name: str, lines: int) -> Callable[[], None]:
        """Somebody of whose lines three find room in a turn."""

        def read() -> None:
            nonlocal lines
            if not self.turns.used_up:
                self.turns.use(1, STRANGERS_BYTES // 3)
                self.read.append(name)
                lines -= 1
            if lines:
                self.turns.wait(read)

        return read

    def test_in_turn(self) -> None:
        """Who has been read goes behind those who wait; in the end nothing is left to be done."""
        for name, lines in (("a", 3), ("b", 1), ("c", 1), ("d", 1)):
            self.reading(name, lines)()
        self.assertEqual(self.read, list("abc"))
        self.later.pop()()
        self.assertEqual(self.read, list("abcad"))
        self.later.pop()()
        self.assertEqual((self.read, self.later), (list("abcada"), []))

    def test_time(self) -> None:
        """A turn has its time: who has waited longest is read, at least one."""
        for name in "abc":
            self.turns.wait(partial(self.read.append, name))
        self.turns.wait(partial(self.clock.advance, TURN_SECONDS))
        self.turns.wait(partial(self.read.append, "d"))
        self.later.pop()()
        self.assertEqual(self.read, list("abc"))
        self.later.pop()()
        self.assertEqual((self.read, self.later), (list("abcd"), []))

    def test_mistake(self) -> None:
        """One that fails keeps nobody waiting."""

        def fail() -> None:
            raise ValueError

        self.turns.wait(fail)
        self.turns.wait(partial(self.read.append, "b"))
        self.assertRaises(ValueError, self.later.pop())
        self.later.pop()()
        self.assertEqual(self.read, ["b"])
