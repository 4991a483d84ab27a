"""A load test: many phones at once, and their results."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred

from domaeka.cli import output
from domaeka.cli.talk import PipedTalk

#: Phones that shake hands at the same time: more from one address look like an attack.
_AT_ONCE: Final = 5


#: Makes the talk of one phone.  It is given a function that shows a line for people, and one that
#: takes the latency of each answer, in seconds.
TalkMaker: TypeAlias = Callable[[Callable[[str], None], Callable[[float], None]], PipedTalk]


class Load:
    """
    Phones that all send the same lines.

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
        """@param lines: the lines of each phone; C{{phone}} in them stands for its number."""
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
        """Connect the first phones."""
        self._started_at = self._reactor.seconds()
        self._start_more()

    def finish(self, status: int) -> None:
        """End all talks that still go on, with C{status}."""
        self._waiting.clear()
        for talk in [*self._talks.values()]:
            talk.finish(status)
        self._start_more()

    def summary(self) -> str:
        """The results, in a few lines."""
        seconds = max(self._ended_at - self._started_at, 1e-6)
        failed = sum(status in (output.UNREACHABLE, output.REFUSED) for status in self._statuses)
        latencies = sorted(self._latencies)
        sent = len(self._statuses) * len(self._lines)
        lines = [
            f"phones    {len(self._statuses)}, of which {failed} failed",
            f"messages  {self._answered} answered, {sent - self._answered} not, in {seconds:.2f} s "
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
            talk = self._make_talk(partial(self._note_of, number), self._latencies.append)
            talk.notes_greetings = False
            talk.on_ready = partial(self._greeted, number)
            self._talks[number] = talk
            talk.on_accepting = partial(self._fill, talk, number, iter(self._lines))
            talk.on_accepting()
            talk.done.addCallback(self._ended, number)
            talk.start()
        if not self._talks and not self.done.called:
            self._ended_at = self._reactor.seconds()
            self.done.callback(max(self._statuses, default=output.ALL_ANSWERED))

    def _fill(self, talk: PipedTalk, number: int, lines: Iterator[str]) -> None:
        """Give a phone more of its lines."""
        while talk.accepts_lines:
            line = next(lines, None)
            if line is None:
                talk.input_ended()
                return
            talk.line_written(line.replace("{phone}", str(number)))

    def _greeted(self, number: int) -> None:
        """A phone has shaken hands: another one may begin."""
        self._shaking.discard(number)
        self._start_more()

    def _note_of(self, number: int, text: str) -> None:
        self._note(f"phone {number}: {text}")

    def _ended(self, status: int, number: int) -> None:
        talk = self._talks.pop(number)
        self._shaking.discard(number)
        self._statuses.append(status)
        self._answered += talk.answered
        self._start_more()
