"""
Dialogs: a function asks a person in a room, and goes on with the answer.

While a question waits, its function holds no place in the room's queue, and no time limit but the
question's own runs.  A message that names a command is that command, and the question waits on.
"""

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from domaeka.bots.api import Check, Message
from domaeka.bots.commands import Runs
from domaeka.bots.coroutines import is_on_loop
from domaeka.bots.fair_queue import Who
from domaeka.bots.runs import Run
from domaeka.errors import AskTimeout, BotTypeError, BotValueError
from domaeka.interfaces import DeviceKey, Origin
from domaeka.policies.holdings import Counts
from domaeka.pools import Pool
from domaeka.wire import Chat

#: Most questions that wait, most of them in one room, and most of one person in all rooms of a
#: phone.  A question counts as one for each L{UNIT_CHARS} of the message that its function has been
#: given.  Source: docs/bots.md, "Limits".
MAX_QUESTIONS: Final = 20_000
MAX_ROOM_QUESTIONS: Final = 2000
MAX_PERSON_QUESTIONS: Final = 100
#: Characters of a message that are kept in memory with a question that counts as one.
UNIT_CHARS: Final = 1000
#: Longest time that a question waits, in seconds.  Source: as above.
MAX_ASK_SECONDS: Final = 86_400.0

#: A bot name and a room.
_Place = tuple[str, str]
#: A phone, and a room of it, by the id in a tuple; or a person of it.
_Claimant = tuple[DeviceKey, Who]


class _Answer(asyncio.Future[Message]):
    """An answer, awaited on the bots' loop."""

    __slots__ = ("_dialogs", "_run")  # thousands may wait

    def __init__(self, dialogs: "Dialogs", run: Run) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._dialogs = dialogs
        self._run = run

    def cancel(self, msg: Any = None) -> bool:
        """Wait no longer."""
        is_cancelled = super().cancel(msg)
        if is_cancelled:
            self._run.loop.hand_over(self._dialogs.given_up, self._run)
        return is_cancelled


class _Question:
    """
    A question that waits.

    @ivar phone: on which it was asked, where it counts.
    @ivar person: who may answer; L{None}: anyone.
    @ivar future: asyncio's, or a Deferred, which gets the answer.
    """

    __slots__ = (
        "asked_at",
        "check",
        "claimants",
        "ends_at",
        "future",
        "person",
        "phone",
        "place",
        "run",
        "units",
    )

    def __init__(
        self,
        run: Run,
        place: _Place,
        person: str | None,
        future: Any,
        check: Check,
        now: float,
        timeout: float,
    ) -> None:
        self.run = run
        self.place = place
        self.person = person
        self.future = future
        self.check = check
        self.asked_at = now
        self.ends_at = now + timeout
        self.phone, room_id, who, _ = run.in_queue
        self.claimants: set[_Claimant] = {(self.phone, (room_id,)), (self.phone, who)}
        self.units = 1 + len(run._chat.text) // UNIT_CHARS

    def __lt__(self, other: "_Question") -> bool:
        """By their ends."""
        return self.ends_at < other.ends_at


class Lanes(Protocol):
    """The places of runs in the queue of their room."""

    def suspend(self, run: Run) -> None:
        """A run waits for a person: its place is free, and its message is done."""

    def resume(self, run: Run, waited: float, then: Callable[[], object]) -> None:
        """A run goes on by C{then}, in its turn, after it has waited for so many seconds."""

    def resumed(self, run: Run, waited: float) -> None:
        """A run has gone on of its own accord."""


class Dialogs:
    """The questions that wait, one of a person in a room.  All but L{ask} is the reactor's."""

    def __init__(
        self,
        lanes: Lanes,
        seconds: Callable[[], float],
        gave_way: Callable[[Pool, object, int], object] = lambda pool, claimant, count: None,
    ) -> None:
        """
        @param seconds: the time now, in seconds.
        @param gave_way: called when a question ends for want of room.
        """
        self._gave_way = gave_way
        self._phones: Counts[DeviceKey] = Counts()
        self._holders: dict[DeviceKey, Counts[_Claimant]] = {}
        self._questions: dict[_Claimant, dict[_Question, None]] = {}  # oldest first
        self._lanes = lanes
        self._seconds = seconds
        self._rooms: dict[_Place, dict[str | None, _Question]] = {}
        self._due: list[_Question] = []  # a heap
        #: The number of questions that wait.
        self.waiting = 0

    def ask(
        self, run: Run, text: str, timeout: float, check: Check, anyone: bool
    ) -> "asyncio.Future[Message] | Deferred[Message]":
        """
        Ask.  To be called on the bots' loop, or on the reactor.

        @raise TypeError: called in a thread, or with something of a wrong type.
        @raise ValueError: C{timeout} is out of range.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise BotTypeError(f"timeout: a number of seconds, not {type(timeout).__name__}")
        if not 0 < timeout <= MAX_ASK_SECONDS:
            raise BotValueError(f"timeout: above 0 and at most {MAX_ASK_SECONDS:.0f} s")
        if not isinstance(text, str):
            raise BotTypeError(f"a question is a text, not {type(text).__name__}")
        if check is not None and (not callable(check) or inspect.iscoroutinefunction(check)):
            raise BotTypeError("check: a plain function, which is given the message")
        dispatcher = run._runtime
        if is_on_loop():
            future = _Answer(self, run)
            dispatcher.hand_over(self._open, run, text, timeout, check, anyone, future)
            return future
        if run.served.command.runs is Runs.IN_THREAD or not dispatcher.in_reactor_thread():
            raise BotTypeError("ask() is for async def: a thread cannot wait for a person")
        deferred: Deferred[Message] = Deferred(lambda _: self.given_up(run))
        self._open(run, text, timeout, check, anyone, deferred)
        return deferred

    def _open(
        self, run: Run, text: str, timeout: float, check: Check, anyone: bool, future: Any
    ) -> None:
        if run.over:
            self._fail(run, future, BotValueError("the function has ended: it asks no more"))
            return
        if isinstance(future, asyncio.Future) and future.done():
            return
        place = run._origin.key.bot_name, run._chat.room_id
        if run.question is not None:
            self._fail(run, future, BotValueError("a question of this message waits already"))
            return
        person = None if anyone else _person(run._chat)
        now = self._seconds()
        question = _Question(run, place, person, future, check, now, timeout)
        self._make_room(question)
        while (before := self._rooms.get(place, {}).get(person)) is not None:
            self._end(before, AskTimeout(is_replaced=True))
        self._rooms.setdefault(place, {})[person] = question
        self._count(question)
        heappush(self._due, question)
        run.question = question
        if text:
            run.reply(text)
        self._lanes.suspend(run)

    def _make_room(self, new: _Question) -> None:
        """End questions of whoever has most, the oldest first, until there is room for another."""
        phone = new.phone
        while True:
            victim = next(filter(None, (self._over(one, new) for one in new.claimants)), None)
            if victim is None:
                if self._phones.total + new.units <= MAX_QUESTIONS:
                    return
                largest = self._phones.largest()
                if (
                    self._phones[largest] <= self._phones[phone] + new.units
                    and phone in self._holders
                ):
                    largest = phone
                victim = self._oldest(self._holders[largest].largest())
            self._gave_way(Pool.BOT_QUESTIONS, victim.run.in_queue, 1)
            self._end(victim, AskTimeout())

    def _over(self, claimant: _Claimant, new: _Question) -> _Question | None:
        """The oldest question of a claimant that would have too many."""
        held = self._holders[claimant[0]][claimant] if claimant[0] in self._holders else 0
        is_person = isinstance(claimant[1], str)
        most = MAX_PERSON_QUESTIONS if is_person else MAX_ROOM_QUESTIONS
        return self._oldest(claimant) if held and held + new.units > most else None

    def _oldest(self, claimant: _Claimant) -> _Question:
        return next(iter(self._questions[claimant]))

    def _count(self, question: _Question) -> None:
        self.waiting += 1
        self._phones.add(question.phone, question.units)
        holders = self._holders.setdefault(question.phone, Counts())
        for claimant in question.claimants:
            holders.add(claimant, question.units)
            self._questions.setdefault(claimant, {})[question] = None

    def _discount(self, question: _Question) -> None:
        self.waiting -= 1
        self._phones.remove(question.phone, question.units)
        holders = self._holders[question.phone]
        for claimant in question.claimants:
            holders.remove(claimant, question.units)
            questions = self._questions[claimant]
            del questions[question]
            if not questions:
                del self._questions[claimant]
        if not holders:
            del self._holders[question.phone]

    def take(self, chat: Chat, origin: Origin) -> bool:
        """Give a message to the question that waits for it.  @return: False: none does."""
        room = self._rooms.get((origin.key.bot_name, chat.room_id))
        if room is None:
            return False
        question = room.get(_person(chat)) or room.get(None)
        if question is None:
            return False
        answer = Message(chat, 0, question.run._store)
        if question.check is None:
            self._end(question, answer, origin)
        elif isinstance(question.future, Deferred):
            self._check(question, answer, origin, lambda function, *args: function(*args))
        else:
            run = question.run
            run.loop.call_soon(self._check, question, answer, origin, run._runtime.hand_over)
        return True

    def _check(
        self, question: _Question, answer: Message, origin: Origin, hand_over: Callable[..., object]
    ) -> None:
        """Where the function runs."""
        try:
            fits = question.check is None or question.check(answer)
        except BaseException as error:  # even sys.exit()
            hand_over(self._end, question, _raisable(error))
        else:
            if fits:
                hand_over(self._end, question, answer, origin)

    def sweep(self) -> None:
        """End the questions whose time is over."""
        now = self._seconds()
        while self._due and self._due[0].ends_at <= now:
            self._end(heappop(self._due), AskTimeout())

    def forget(self, run: Run) -> None:
        """A run is over: nobody waits for its question."""
        question = run.question
        if question is not None:
            self._remove(question)

    def runs(self) -> list[Run]:
        """The runs that wait for an answer."""
        return [question.run for room in self._rooms.values() for question in room.values()]

    def given_up(self, run: Run) -> None:
        """A run waits no longer for an answer."""
        question = run.question
        if question is not None:
            self._remove(question)
            self._lanes.resumed(run, self._seconds() - question.asked_at)

    def _end(
        self, question: _Question, outcome: Message | Exception, origin: Origin | None = None
    ) -> None:
        run = question.run
        if run.question is not question:
            return  # it has ended meanwhile
        if origin is not None:
            run._origin = origin  # the phone on which the person is heard now
        self._remove(question)
        settle: Any = self._settle if isinstance(outcome, Message) else self._fail
        then = partial(settle, run, question.future, outcome)
        self._lanes.resume(run, self._seconds() - question.asked_at, then)

    def _remove(self, question: _Question) -> None:
        question.run.question = None
        room = self._rooms[question.place]
        del room[question.person]
        if not room:
            del self._rooms[question.place]
        self._discount(question)
        if len(self._due) > 2 * self.waiting + 100:  # of those that were answered
            self._due = sorted(each for each in self._due if each.run.question is each)

    def _settle(self, run: Run, future: Any, answer: Message) -> None:
        if isinstance(future, Deferred):
            future.callback(answer)
        else:
            run.loop.call_soon(_set_result, future, answer)

    def _fail(self, run: Run, future: Any, error: Exception) -> None:
        if isinstance(future, Deferred):
            future.errback(error)
        else:
            run.loop.call_soon(_set_exception, future, error)


def _raisable(error: BaseException) -> Exception:
    """C{error}, or one that can be raised where an answer is awaited."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    raised = RuntimeError(f"check has raised {type(error).__name__}")
    raised.__cause__ = error
    return raised


def _person(chat: Chat) -> str:
    """The person in a room: by the user's hash, or by the name where a phone does not know that."""
    return chat.user_hash or f" {chat.sender}"


def _set_result(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
