"""A run: a context, and the state of the function that works on it."""

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from functools import partial
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from domaeka.bots.api import Context, OnFate
from domaeka.bots.breakers import CommandBreaker
from domaeka.bots.commands import Command, Runs
from domaeka.bots.coroutines import Coroutines, Pending
from domaeka.bots.failures import report
from domaeka.bots.fair_queue import Place, Slot
from domaeka.bots.storage import BotStore
from domaeka.interfaces import Origin
from domaeka.wire import Chat, Media


class Served(msgspec.Struct, frozen=True, eq=False):
    """
    A function that takes messages, its breaker and its metric.

    @ivar observe: takes its times, in seconds.
    @ivar is_gated: True if not everybody may use it, or not at all times.
    @ivar store: what its bot keeps.
    @ivar before: called before it; C{after}: behind it; C{on_error}: where it has failed.
    @ivar is_wrapped: True if there are any.
    """

    command: Command
    breaker: CommandBreaker
    observe: Callable[[float], None]
    before: tuple[Command, ...] = ()
    after: tuple[Command, ...] = ()
    on_error: tuple[Command, ...] = ()
    is_wrapped: bool = False
    is_gated: bool = False
    store: BotStore | None = None


class Sent(Deferred[None]):
    """
    The result of L{Context.reply_media} on the reactor.

    @ivar awaited: True once it is awaited: only this tells if an earlier failure has been seen.
    """

    awaited = False

    def __await__(self) -> Generator[Any, None, None]:
        self.awaited = True
        return super().__await__()


class Run(Context, eq=False, kw_only=True):
    """
    A context, and the state of its run.

    @ivar arguments: what the function is given behind the context; C{named}: by name.
    @ivar deadline: when it times out, by the dispatcher's clock.
    @ivar waits_for: the Deferred of the function's result, or its call on the loop, if it waits.
    @ivar slot: its place among those that are worked on, if it holds one.
    @ivar turn: the place in the queue where it waits to go on, if it does.
    @ivar question: the question that waits for a person, if one does.
    @ivar is_done: True once the phone was told that its message is done.
    @ivar unsent: results of L{reply_media} that failed while it ran.
    @ivar error_text: the answer that a function of C{on_error} has given.
    """

    served: Served
    arguments: tuple[object, ...] = ()
    named: Mapping[str, object] | None = None
    permit: int
    began: float
    deadline: float = 0.0
    over: bool = False
    waits_for: Any = None
    slot: Slot | None = None
    turn: Any = None
    question: Any = None
    is_done: bool = False
    unsent: "tuple[Sent | Pending[None], ...]" = ()
    error_text: str | None = None

    @property
    def loop(self) -> Coroutines:
        """The bots' loop."""
        return cast(Coroutines, self._runtime.loop)

    def __str__(self) -> str:
        """The function's name and its bot, for the log."""
        return str(self.served.command)

    @property
    def bot_name(self) -> str:
        """The name of the bot, of which the function is."""
        return self.served.command.bot_name

    @property
    def place(self) -> str:
        """The place of the function in the author's code."""
        return self.served.command.place

    @property
    def in_queue(self) -> Place:
        """Whose it is, and what it calls, for the queue."""
        return Place.of(self._chat, self._origin.key, self.served.command)

    @property
    def _store(self) -> BotStore | None:
        return self.served.store

    @property
    def log_fields(self) -> dict[str, str | None]:
        """Fields for the log: never the text."""
        return {"command": self.served.command.name, **ids(self._chat, self._origin)}

    def report(self, what: str, failed: BaseException | Failure) -> None:
        """Log an error of the function."""
        report(what, failed, self.log_fields, self.served.command.function)

    def reply_media(self, *args: Any, **named: Any) -> Awaitable[None]:
        """See L{Context}.  A failure that nobody waits for is logged."""
        reading = super().reply_media(*args, **named)
        if isinstance(reading, Pending):
            # Called in the reactor's thread, which completes it.
            reading.add_done_callback(lambda _: self._look_at_unsent(reading))
            return reading
        deferred = cast("Deferred[None]", reading)
        if deferred.called:
            return deferred
        sent = Sent(lambda _: deferred.cancel())
        deferred.chainDeferred(sent)
        # A caller that waits for it sees the failure first.
        sent.addErrback(self._not_sent, sent)
        return sent

    def _not_sent(self, failure: Failure, sent: Sent) -> Failure:
        self.loop.hand_over(self._look_at_unsent, sent)
        return failure

    def _look_at_unsent(self, sent: "Sent | Pending[None]") -> None:
        if self.over:
            self._report_unsent(sent)
        else:  # it may be waited for yet
            self.unsent = (*self.unsent, sent)

    def ended(self) -> None:
        """The function has ended."""
        self.over = True
        for sent in self.unsent:
            self._report_unsent(sent)

    def _report_unsent(self, sent: "Sent | Pending[None]") -> None:
        what = "files were not sent"
        if sent.awaited:
            return
        if isinstance(sent, Pending):
            error = sent.exception()
            if error is not None:
                self.report(what, error)
        elif isinstance(getattr(sent, "result", None), Failure):
            sent.addErrback(partial(self.report, what))

    def _send_now(
        self, contents: Iterable[str | Media], ttl: float | None, on_fate: OnFate
    ) -> None:
        listener = None
        if on_fate is not None:
            listener = partial(_report_status, on_fate, self.log_fields)
            if self.served.command.runs is not Runs.ON_REACTOR:
                listener = partial(self.loop.call_soon, listener)
        super()._send_now(contents, ttl, listener)


def ids(chat: Chat, origin: Origin) -> dict[str, str | None]:
    """Fields for the log: never the text of the message."""
    return {**origin.key.log_fields, "room": chat.room_id, "log_id": chat.log_id}


def _report_status(
    on_fate: Callable[[str], object], fields: Mapping[str, str | None], status: str
) -> None:
    try:
        on_fate(status)
    except Exception as error:
        report("a bot failed at what became of a reply", error, fields, on_fate)
