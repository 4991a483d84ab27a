"""
A phone's talk with a server: lines to send, answers to show.

L{PipedTalk} is for scripts and for load: a line, its answer, the next line.  L{Talk} itself is for
people.  Neither uses terminals and files.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred

from domaeka.cli import output, texts
from domaeka.client import (
    Client,
    ClientEvent,
    ErrorFrame,
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

#: Most lines that wait to be sent; at this number no more are read.
MAX_WAITING_LINES: Final = 100
#: Longest time that closing may take, in seconds: as a client lingers, and some.
_CLOSE_SECONDS: Final = 7.0


#: Makes a client, given its callbacks for replies and for events.
ClientMaker: TypeAlias = Callable[[Callable[[Reply], None], Callable[[ClientEvent], None]], Client]


class Talk:
    """
    Sends lines and shows replies until it is finished, or the server cannot be reached.

    @ivar done: fires with an exit status once all is over and closed.
    @ivar notes_greetings: true if connecting is worth a line.
    """

    def __init__(
        self,
        reactor: Any,
        make_client: ClientMaker,
        phrase: Callable[[str], Said],
        note: Callable[[str], None],
        show: Callable[[Reply], None],
    ) -> None:
        """
        @param phrase: makes a message of a line.
        @param note: shows a line for people that is no reply.
        """
        self._reactor = reactor
        self._phrase = phrase
        self._note = note
        self._show = show
        self._refused: str | None = None
        self._finished = False
        self.greeted = False
        self.notes_greetings = True
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

    def line_written(self, line: str) -> None:
        """Send a line."""
        self._say(line)

    def replied(self, reply: Reply) -> None:
        """A reply for a room came."""
        self._show(reply)

    def ready(self) -> None:
        """The server has greeted us for the first time."""

    def _say(self, line: str) -> bool:
        """@return: true if the client took it."""
        try:
            self._client.say(self._phrase(line)).addCallback(self._delivered)
        except (ValueError, QueueFull) as error:
            self._note(f"not said: {error}")
            return False
        return True

    def _delivered(self, status: Fate) -> None:
        if status in texts.DELIVERIES:
            self._note(texts.DELIVERIES[status])

    def _reply_came(self, reply: Reply) -> None:
        if not self._finished:
            self.replied(reply)

    def _event_came(self, event: ClientEvent) -> None:
        if self._finished:
            return
        if isinstance(event, ErrorFrame) and event.code in texts.REFUSALS:
            self._refused = texts.refusal(event.code, event.message)
        if isinstance(event, Greeting) and event.success:
            self._greeting_came(event)
        elif not self.greeted and isinstance(event, Failed):
            why = f"cannot connect to {event.server}: {event.why.rstrip('.')}"
            self._give_up(output.UNREACHABLE, f"{why}. Is the server running?")
        elif isinstance(event, Stopped):
            self._give_up(output.REFUSED, texts.refusal(event.code, ""))
        elif not self.greeted and isinstance(event, Lost):
            if self._refused is not None:
                self._give_up(output.REFUSED, self._refused)
            else:
                server = event.server
                why = f"{server} does not answer as a domaeka server does: {texts.loss(event)}"
                self._give_up(output.UNREACHABLE, why)
        elif not self.handled(event):
            self._note_event(event)

    def handled(self, event: ClientEvent) -> bool:
        """Handle an event.  @return: true if it is not to be shown."""
        return False

    def _greeting_came(self, greeting: Greeting) -> None:
        if self.notes_greetings:
            self._note_event(greeting)
        if not self.greeted:
            self.greeted = True
            self.ready()

    def _note_event(self, event: ClientEvent) -> None:
        if (text := texts.event_text(event)) is not None:
            self._note(text)

    def _give_up(self, status: int, why: str) -> None:
        self._note(why)
        self.finish(status)


class PipedTalk(Talk):
    """
    Sends a line, waits for its answer, sends the next; ends after the last.

    @ivar answered: the number of lines that were answered.
    @ivar on_ready: called when the server has greeted us.
    @ivar on_accepting: called when more lines may be written.
    """

    def __init__(
        self,
        *talk: Any,
        wait: float,
        pause: float = 0.0,
        took: Callable[[float], None] | None = None,
    ) -> None:
        """
        @param talk: the arguments of L{Talk}.
        @param wait: longest time to wait for an answer, in seconds.
        @param pause: from an answer to the next line, in seconds.
        @param took: called with the latency of each answer, in seconds.
        """
        super().__init__(*talk)
        self._wait = wait
        self._pause = pause
        self._took = took
        self._lines: deque[str] = deque()
        self._no_more = False
        self._said_at: float | None = None
        self._call: Any = None  # the next line, or the end of the wait
        self.answered = 0
        self._missed = 0
        self.on_ready: Callable[[], None] = lambda: None
        self.on_accepting: Callable[[], None] = lambda: None

    @property
    def accepts_lines(self) -> bool:
        """True while more lines may be written."""
        return len(self._lines) < MAX_WAITING_LINES

    def line_written(self, line: str) -> None:
        """Send a line after those before it; an empty one is dropped."""
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
        """Send the first line."""
        self.on_ready()
        self._go_on()

    def handled(self, event: ClientEvent) -> bool:
        """End at once after a refusal."""
        if isinstance(event, ErrorFrame) and self._refused is not None:
            self._give_up(output.REFUSED, self._refused)
            return True
        return False

    def replied(self, reply: Reply) -> None:
        """An answer came: to the line that waits, if there is one."""
        self._show(reply)
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
            self._give_up(output.REFUSED, texts.REFUSALS[ErrorCode.NOT_APPROVED])

    def _go_on(self) -> None:
        """Send the next line, if it is time for it."""
        if not self.greeted or self._finished or self._call is not None:
            return
        if not self._lines:
            if self._no_more:
                self.finish(output.UNANSWERED if self._missed else output.ALL_ANSWERED)
            return
        line = self._lines.popleft()
        self._said_at = self._reactor.seconds()
        self._call = self._reactor.callLater(self._wait, self._answer_missed)
        if not self._say(line):
            self._missed += 1
            self._done_with_line()
        self.on_accepting()  # only now: it may bring the next line

    def _answer_missed(self) -> None:
        self._call = None
        self._missed += 1
        self._note(f"no answer within {self._wait:g} s")
        self._done_with_line()

    def _done_with_line(self) -> None:
        self._said_at = None
        if self._call is not None:
            self._call.cancel()
        # Later, so that replies that came together with the answer are shown with it.
        self._call = self._reactor.callLater(self._pause, self._next)

    def _next(self) -> None:
        self._call = None
        self._go_on()
