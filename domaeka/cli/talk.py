"""
A phone's talk with a server: lines to say, answers to show.

L{PipedTalk} is for scripts and for load: a line, its answer, the next line.  L{TypedTalk} is for
people.  Neither knows of terminals and files.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred

from domaeka.cli import words
from domaeka.client import (
    Client,
    ClientEvent,
    Complaint,
    Failed,
    Fate,
    Greeting,
    Lost,
    QueueFull,
    Reply,
    Said,
    Stopped,
)
from domaeka.errors import ErrorCode

#: Lines that wait to be said, before no more are read.
MAX_WAITING_LINES: Final = 100
#: Longest time that closing may take, in seconds: as a client lingers, and some.
_CLOSE_SECONDS: Final = 7.0


class Talk:
    """
    What both kinds share: one client, and when to give up.

    @ivar done: fires with an exit status once all is over and closed.
    @ivar tells_greetings: whether connecting is worth a line.
    """

    def __init__(
        self,
        reactor: Any,
        make_client: Callable[[Callable[[Reply], None], Callable[[ClientEvent], None]], Client],
        phrase: Callable[[str], Said],
        note: Callable[[str], None],
    ) -> None:
        """
        @param make_client: given what is told of replies and of events.
        @param phrase: what is said where a line was written.
        @param note: shows a line for people that is no answer.
        """
        self._reactor = reactor
        self._phrase = phrase
        self._note = note
        self._refused: str | None = None
        self._finished = False
        self.greeted = False
        self.tells_greetings = True
        self.done: Deferred[int] = Deferred()
        self._client = make_client(self._reply_came, self._event_came)

    def start(self) -> None:
        """Connect."""
        self._client.startService()

    def finish(self, status: int) -> None:
        """Close, and end with C{status}."""
        if self._finished:
            return
        self._finished = True
        closed = self._client.stopService()
        closed.addTimeout(_CLOSE_SECONDS, self._reactor)
        closed.addBoth(lambda _: self.done.callback(status))

    def replied(self, reply: Reply) -> None:
        """Something came for a room."""
        raise NotImplementedError

    def ready(self) -> None:
        """The server has greeted us for the first time."""

    def _say(self, line: str) -> bool:
        """@return: whether the client took it."""
        try:
            self._client.say(self._phrase(line)).addCallback(self._fate_came)
        except (ValueError, QueueFull) as error:
            self._note(f"not said: {error}")
            return False
        return True

    def _fate_came(self, fate: Fate) -> None:
        text = words.fate_text(fate)
        if text is not None:
            self._note(text)

    def _reply_came(self, reply: Reply) -> None:
        if not self._finished:
            self.replied(reply)

    def _event_came(self, event: ClientEvent) -> None:
        if self._finished:
            return
        if isinstance(event, Complaint) and event.code in words.REFUSALS:
            self._refused = words.refusal(event.code, event.message)
        if isinstance(event, Greeting) and event.success:
            self._greeting_came(event)
        elif not self.greeted and isinstance(event, Failed):
            why = f"cannot connect to {event.server}: {event.why.rstrip('.')}"
            self._give_up(words.UNREACHABLE, f"{why}. Is the server running?")
        elif isinstance(event, Stopped):
            self._give_up(words.REFUSED, words.refusal(event.code, ""))
        elif not self.greeted and isinstance(event, Lost):
            if self._refused is not None:
                self._give_up(words.REFUSED, self._refused)
            else:
                server = event.server
                why = f"{server} does not answer as a domaeka server does: {words.loss(event)}"
                self._give_up(words.UNREACHABLE, why)
        elif not self.judged(event):
            self._tell(event)

    def judged(self, event: ClientEvent) -> bool:
        """Look at an event.  @return: whether that was all that is to be done about it."""
        return False

    def _greeting_came(self, greeting: Greeting) -> None:
        if self.tells_greetings:
            self._tell(greeting)
        if not self.greeted:
            self.greeted = True
            self.ready()

    def _tell(self, event: ClientEvent) -> None:
        text = words.event_text(event)
        if text is not None:
            self._note(text)

    def _give_up(self, status: int, why: str) -> None:
        self._note(why)
        self.finish(status)


class PipedTalk(Talk):
    """
    Say a line, wait for its answer, say the next; end after the last.

    @ivar answered: how many lines were answered.
    """

    def __init__(
        self,
        reactor: Any,
        make_client: Callable[[Callable[[Reply], None], Callable[[ClientEvent], None]], Client],
        phrase: Callable[[str], Said],
        note: Callable[[str], None],
        answer: Callable[[Reply], None],
        wait: float,
        pause: float = 0.0,
        took: Callable[[float], None] | None = None,
    ) -> None:
        """
        @param answer: shows an answer.
        @param wait: longest time to wait for one, in seconds.
        @param pause: how long to wait before the next line, in seconds.
        @param took: told how long each answer was under way, in seconds.
        """
        super().__init__(reactor, make_client, phrase, note)
        self._answer = answer
        self._wait = wait
        self._pause = pause
        self._took = took
        self._lines: deque[str] = deque()
        self._no_more = False
        self._said_at: float | None = None
        self._call: Any = None  # the next line, or the end of the wait
        self.answered = 0
        self._missed = 0
        self.on_ready: Callable[[], None] = lambda: None  # the server has greeted us
        self.on_room: Callable[[], None] = lambda: None  # more lines may be written

    @property
    def has_room(self) -> bool:
        """Whether more lines may be written."""
        return len(self._lines) < MAX_WAITING_LINES

    def line_written(self, line: str) -> None:
        """A line is to be said, when its turn comes; an empty one is not."""
        if line and not self._finished:
            self._lines.append(line)
            self._go_on()

    def input_ended(self) -> None:
        """There are no more lines."""
        self._no_more = True
        self._go_on()

    def finish(self, status: int) -> None:
        """Close, and end with C{status}."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        super().finish(status)

    def ready(self) -> None:
        """The first line may be said."""
        self.on_ready()
        self._go_on()

    def judged(self, event: ClientEvent) -> bool:
        """A refusal is not waited out."""
        if isinstance(event, Complaint) and self._refused is not None:
            self._give_up(words.REFUSED, self._refused)
            return True
        return False

    def replied(self, reply: Reply) -> None:
        """An answer came: to the line that waits, if there is one."""
        self._answer(reply)
        if self._said_at is None:
            return
        if self._took is not None:
            self._took(max(0.0, self._reactor.seconds() - self._said_at))
        self.answered += 1
        self._done_with_line()

    def _greeting_came(self, greeting: Greeting) -> None:
        if greeting.approved:
            super()._greeting_came(greeting)
        else:
            self._give_up(words.REFUSED, words.REFUSALS[ErrorCode.NOT_APPROVED])

    def _go_on(self) -> None:
        """Say the next line, if it is time for it."""
        if not self.greeted or self._finished or self._call is not None:
            return
        if not self._lines:
            if self._no_more:
                self.finish(words.UNANSWERED if self._missed else words.ALL_ANSWERED)
            return
        line = self._lines.popleft()
        self._said_at = self._reactor.seconds()
        self._call = self._reactor.callLater(self._wait, self._answer_missed)
        if not self._say(line):
            self._missed += 1
            self._done_with_line()
        self.on_room()  # only now: it may bring the next line

    def _answer_missed(self) -> None:
        self._call = None
        self._missed += 1
        self._note(f"no answer within {self._wait:g} s")
        self._done_with_line()

    def _done_with_line(self) -> None:
        self._said_at = None
        if self._call is not None:
            self._call.cancel()
        # Later, so that what came along with the answer is shown with it.
        self._call = self._reactor.callLater(self._pause, self._next)

    def _next(self) -> None:
        self._call = None
        self._go_on()


class TypedTalk(Talk):
    """Say what is typed, show what comes, for as long as the user likes."""

    def __init__(
        self,
        reactor: Any,
        make_client: Callable[[Callable[[Reply], None], Callable[[ClientEvent], None]], Client],
        phrase: Callable[[str], Said],
        note: Callable[[str], None],
        show: Callable[[Reply], None],
    ) -> None:
        """@param show: shows what came for a room."""
        super().__init__(reactor, make_client, phrase, note)
        self._show = show

    def line_written(self, line: str) -> None:
        """Something was typed."""
        self._say(line)

    def replied(self, reply: Reply) -> None:
        """Something came for a room."""
        self._show(reply)
