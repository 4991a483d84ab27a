"""
The link of a bot to the server that serves it: by it a bot asks for something without a message to
answer, from the bots' loop, the reactor, or any thread.
"""

import sys
from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from domaeka.bots.coroutines import Pending, is_on_loop
from domaeka.bots.failures import report
from domaeka.errors import BotError, BotTypeError, NoServer, SendRefused, StoreError
from domaeka.interfaces import KeptValues
from domaeka.pools import Pool
from domaeka.wire import Media

#: Most calls of a bot that wait for the server.  Source: docs/bots.md, "Sending, schedules and
#: storage".
MAX_WAITING: Final = 1000

_T = TypeVar("_T")


class Host(Protocol):
    """The part of the server that is asked.  All but the first three are the reactor's."""

    def hand_over(self, function: Callable[..., object], *args: Any) -> None:
        """Call C{function} in the reactor's thread, from whatever thread."""

    def in_reactor_thread(self) -> bool:
        """True if the caller is in the reactor's thread."""

    def call_in_thread(self, function: Callable[..., _T], *args: Any) -> "Deferred[_T]":
        """Call a function that may block."""

    def when_ready(self) -> "Deferred[None]":
        """Fires when the store has been read, or took too long; never fails."""

    def send(
        self,
        bot_names: frozenset[str],
        room: str,
        contents: tuple[str | Media, ...],
        device: str | None,
        ttl: float | None,
    ) -> "Deferred[str]":
        """Send a message to a room.  @return: its id."""

    def status(self, message_id: str) -> "Deferred[str | None]":
        """@return: the delivery status of a message; L{None}: not known."""

    def gave_way(self, pool: Pool, claimant: object, count: int) -> object:
        """Something that is shared has given way."""

    @property
    def values(self) -> KeptValues:
        """The values of bots."""


class Answer(Pending[_T]):
    """
    What a bot has asked for: C{await} it on the bots' loop or on the reactor; in a thread call
    C{result()}.  An error that nobody waits for is logged.
    """

    def __init__(self, what: str, in_reactor_thread: Callable[[], bool]) -> None:
        super().__init__()
        self._what = what
        self._in_reactor_thread = in_reactor_thread

    def result(self, timeout: float | None = None) -> _T:
        """Wait in a thread.  @raise TypeError: called where it would hold up all else."""
        if not self.done() and (is_on_loop() or self._in_reactor_thread()):
            raise BotTypeError("result() is for threads: await it")
        return super().result(timeout)

    def __del__(self) -> None:
        """Log an error that nobody has seen."""
        if self.awaited or not self.done() or self.cancelled() or sys.is_finalizing():
            return
        error = self.exception()
        if error is not None:
            report(f"{self._what} has failed, and nobody awaited it", error, {})


class Link:
    """The link of one bot."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._host: Host | None = None
        self._was_served = False
        self._waiting: dict[Answer[Any], str] = {}
        self._claims: Counter[str] = Counter()

    def attach(self, host: Host) -> None:
        """A server serves the bot from now on."""
        with self._lock:
            self._host = host
            self._was_served = True

    def detach(self, host: Host) -> None:
        """A server serves it no more; what waits fails.  To be called in the reactor's thread."""
        with self._lock:
            if self._host is not host:
                return
            self._host = None
            waiting = list(self._waiting)
        for answer in waiting:
            answer.fail(self._no_server())

    def ask(self, what: str, begin: Callable[[Host], Any], claimant: str = "") -> "Answer[Any]":
        """
        Have C{begin} called in the reactor's thread, once the store has been read.

        @param what: what the author calls.
        @param claimant: the room or person on whose behalf; empty: the bot's own.
        @raise NoServer: no server serves the bot.
        @raise SendRefused: L{MAX_WAITING} calls of the bot wait; or as many for this room or
            person as there is room for yet.
        """
        what = f"{what} at {_place()}"
        with self._lock:
            host = self._host
            if host is None:
                raise self._no_server()
            free = MAX_WAITING - len(self._waiting)
            is_full = free <= 0 or (claimant and self._claims[claimant] >= free)
            answer: Answer[Any] = Answer(what, host.in_reactor_thread)
            if not is_full:
                self._waiting[answer] = claimant
                self._claims[claimant] += 1
        if is_full:
            host.hand_over(host.gave_way, Pool.BOT_CALLS, claimant, 1)
            raise SendRefused("QUEUE_FULL", f"{MAX_WAITING - free} calls of this bot wait already")
        # It must not hold itself: an error that nobody has seen is logged when it is gone.
        answer.add_done_callback(self._over)
        if host.in_reactor_thread():
            self._begin(host, begin, answer)
        else:
            host.hand_over(self._begin, host, begin, answer)
        return answer

    def _over(self, answer: Any) -> None:
        with self._lock:
            claimant = self._waiting.pop(answer)
            self._claims[claimant] -= 1
            if not self._claims[claimant]:
                del self._claims[claimant]

    def _begin(self, host: Host, begin: Callable[[Host], Any], answer: "Answer[Any]") -> None:
        if answer.done():  # cancelled, or the server has ended
            return
        ready = host.when_ready()
        ready.addCallback(lambda _: None if answer.done() else maybeDeferred(begin, host))
        answer.follow(ready.addErrback(_without_frames))

    def _no_server(self) -> NoServer:
        if self._was_served:
            return NoServer("no server serves the bot any more: it has stopped, or loaded it anew")
        return NoServer("no server serves the bot yet: call it in a function, not at the import")


def _without_frames(failure: Failure) -> Failure:
    """
    A failure that holds no frames, if it is the bot's own: they lead back to the L{Answer}, whose
    error would be logged only when Python collects garbage.
    """
    if isinstance(failure.value, BotError | StoreError):
        failure.cleanFailure()  # type: ignore[no-untyped-call]
    return failure


def _place() -> str:
    """The file and line of the author's code that runs."""
    frame = sys._getframe(2)
    while frame.f_back is not None and (
        frame.f_globals.get("__name__", "").partition(".")[0] == "domaeka"
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
