"""Many phones at once, and how they fared."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from domaeka.cli import words
from domaeka.cli.talk import PipedTalk

#: Phones that shake hands at the same time: more from one address look like an attack.
_AT_ONCE: Final = 5


class TalkMaker(Protocol):
    """Makes the talk of one phone."""

    def __call__(
        self, number: int, note: Callable[[str], None], took: Callable[[float], None]
    ) -> PipedTalk:
        """
        @param number: of the phone, from 1.
        @param note: shows a line for people.
        @param took: told how long each answer was under way, in seconds.
        """


class Load:
    """
    Some phones that each say the same lines.

    @ivar done: fires with an exit status once all are through.
    """

    def __init__(
        self,
        reactor: Any,
        make_talk: TalkMaker,
        lines: Sequence[str],
        count: int,
        note: Callable[[str], None],
    ) -> None:
        """
        @param make_talk: makes a phone's talk.
        @param lines: what each phone says; C{{phone}} in it stands for the phone's number.
        @param count: how many phones.
        @param note: shows a line for people.
        """
        self._reactor = reactor
        self._make_talk = make_talk
        self._lines = lines
        self._note = note
        self._waiting = list(range(count, 0, -1))
        self._shaking: set[int] = set()
        self._talks: dict[int, PipedTalk] = {}
        self._latencies = array("d")
        self._started_at = 0.0
        self._ended_at = 0.0
        self._statuses: list[int] = []
        self._answered = 0
        self.done: Deferred[int] = Deferred()

    def start(self) -> None:
        """Begin."""
        self._started_at = self._reactor.seconds()
        self._start_more()

    def finish(self, status: int) -> None:
        """End what still goes on, with C{status}."""
        self._waiting.clear()
        for talk in [*self._talks.values()]:
            talk.finish(status)
        self._start_more()

    def summary(self) -> str:
        """How it went, in a few lines."""
        seconds = max(self._ended_at - self._started_at, 1e-6)
        failed = sum(status in (words.UNREACHABLE, words.REFUSED) for status in self._statuses)
        latencies = sorted(self._latencies)
        said = len(self._statuses) * len(self._lines)
        lines = [
            f"phones    {len(self._statuses)}, of which {failed} failed",
            f"messages  {self._answered} answered, {said - self._answered} not, in {seconds:.2f} s "
            f"({self._answered / seconds:.0f}/s)",
        ]
        if latencies:
            figures = [
                f"{name} {latencies[int((len(latencies) - 1) * part)] * 1000:.1f} ms"
                for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
            ]
            lines.append("latency   " + ", ".join(figures))
        return "\n".join(lines)

    def _start_more(self) -> None:
        while self._waiting and len(self._shaking) < _AT_ONCE:
            number = self._waiting.pop()
            self._shaking.add(number)
            talk = self._make_talk(number, partial(self._note_of, number), self._took)
            talk.tells_greetings = False
            talk.on_ready = partial(self._greeted, number)
            self._talks[number] = talk
            talk.on_room = partial(self._fill, talk, number, iter(self._lines))
            talk.on_room()
            talk.done.addCallback(self._ended, number)
            talk.start()
        if not self._talks and not self.done.called:
            self._ended_at = self._reactor.seconds()
            self.done.callback(max(self._statuses, default=words.ALL_ANSWERED))

    def _fill(self, talk: PipedTalk, number: int, lines: Iterator[str]) -> None:
        """Give a phone more of its lines."""
        while talk.has_room:
            line = next(lines, None)
            if line is None:
                talk.input_ended()
                return
            talk.line_written(line.replace("{phone}", str(number)))

    def _greeted(self, number: int) -> None:
        """A phone has shaken hands: another one may begin."""
        self._shaking.discard(number)
        self._start_more()

    def _took(self, seconds: float) -> None:
        self._latencies.append(seconds)

    def _note_of(self, number: int, text: str) -> None:
        self._note(f"phone {number}: {text}")

    def _ended(self, status: int, number: int) -> None:
        talk = self._talks.pop(number)
        self._shaking.discard(number)
        self._statuses.append(status)
        self._answered += talk.answered
        self._start_more()
