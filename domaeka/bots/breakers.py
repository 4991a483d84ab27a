"""
Circuit breakers of commands: one for each command of each bot.

Failures are counted by room and person.  Those of a person in a room open the breaker for that
person there, those of several people of a room for the room, those of several rooms for all.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final, TypeAlias

from domaeka.bots.commands import Command
from domaeka.config import BreakerSettings
from domaeka.errors import BotValueError
from domaeka.interfaces import DeviceKey, Origin
from domaeka.policies.retry import Breaker, BreakerOpen, BreakerState
from domaeka.pools import Pool
from domaeka.wire import Chat

#: A command that takes this part of its time-out counts as failed for its breaker.  Source:
#: docs/bots.md, "Breakers".
SLOW_PART: Final = 0.5
#: Most people and rooms whose failures a command's breaker remembers.  Source: docs/design.md,
#: "Bounds".
MAX_GUARDS: Final = 2000
#: Most rooms that are remembered as told of an open breaker; the one told first is forgotten first.
MAX_TOLD: Final = 1000

#: Says that a shared pool gave way: which, at whose cost, and how many items.
GaveWay: TypeAlias = Callable[[Pool, object, int], object]
#: A phone, a room there, and the hash of a person in it; L{None}: the room itself.
_Claimant: TypeAlias = tuple[DeviceKey, str, str | None]
#: A command: its bot, its name, and which of those of the same name.
_Place: TypeAlias = tuple[str, str, int]


def is_about_input(error: BaseException | None) -> bool:
    """
    True if an error says that somebody has typed what does not fit, as C{int("x")} does: it counts
    for whoever typed it, and for nobody else.  Errors of kinds that are made of C{ValueError}, as
    those of a JSON that a service has sent, are others.
    """
    return type(error) is ValueError or isinstance(error, BotValueError)


class Told:
    """The rooms that know that a breaker is open."""

    __slots__ = ("_opening", "_rooms")

    def __init__(self) -> None:
        self._opening = 0
        self._rooms: dict[tuple[str, str], None] = {}

    def is_first(self, opening: int, room: tuple[str, str]) -> bool:
        """True if a room is to be told: once for each opening."""
        if opening != self._opening:
            self._opening = opening
            self._rooms.clear()
        if room in self._rooms:
            return False
        if len(self._rooms) >= MAX_TOLD:
            del self._rooms[next(iter(self._rooms))]
        self._rooms[room] = None
        return True


class _Guard:
    """A breaker, and who was told that it is open."""

    __slots__ = ("breaker", "told")

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.told = Told()


class CommandBreaker:
    """
    The breaker of a command: for all, and apart from that for people and rooms whose calls fail.

    A person is known by phone, room and user hash; where a phone knows no hash, the room stands for
    its people.  Of failures that have the room or the person in common one counts for all.  While
    nothing fails, a call costs two comparisons.
    """

    def __init__(
        self,
        name: str,
        seconds: Callable[[], float],
        settings: BreakerSettings,
        slow: float,
        gave_way: GaveWay,
    ) -> None:
        """
        @param name: of the command.
        @param seconds: the time now, in seconds.
        @param slow: a call that takes this long has failed, in seconds.
        @param gave_way: called when somebody's failures are forgotten for want of room.
        """
        self._name = name
        self._seconds = seconds
        self._settings = settings
        self._slow = slow
        self._gave_way = gave_way
        self._generation = 0
        self._all = self._new()
        self._guards: dict[_Claimant, _Guard] = {}  # the one that failed last is the last
        self._forgotten = 0  # the generation when one was forgotten that had been open
        self._quiet = True  # nothing counts as failed

    def _new(self) -> _Guard:
        settings = self._settings
        return _Guard(
            Breaker(
                self._name,
                self._seconds,
                settings.failure_threshold,
                settings.recovery_timeout,
                self._slow,
                self._next,
            )
        )

    def _next(self) -> int:
        self._generation += 1
        return self._generation

    @property
    def state(self) -> BreakerState:
        """Its state for those for whom it is not open alone."""
        return self._all.breaker.state

    def open_for(self) -> list[str]:
        """The people and rooms for whom alone it is open, as operators are shown them."""
        return [
            f"{phone} room {room_id!r}" + ("" if person is None else f" person {person!r}")
            for (phone, room_id, person), guard in self._guards.items()
            if guard.breaker.state is not BreakerState.CLOSED
        ]

    def begin(self, chat: Chat, origin: Origin) -> int:
        """
        Begin a call.

        @return: its permit, for exactly one of L{succeeded}, L{failed} and L{dropped}.
        @raise BreakerOpen: the call is not to be made.
        """
        if self._quiet:
            return self._generation
        self._tidy()
        guards = self._concerned(chat, origin)
        for guard in guards:
            if not guard.breaker.admits:
                raise BreakerOpen(self._name, guard.breaker.opening)
        for guard in guards:
            guard.breaker.begin()
        return self._generation

    def is_news(self, chat: Chat, origin: Origin) -> bool:
        """True if a room is to be told that the breaker is open: once for each opening."""
        room = origin.key.bot_name, chat.room_id
        for guard in self._concerned(chat, origin):
            if not guard.breaker.admits:
                return guard.told.is_first(guard.breaker.opening, room)
        return False

    def succeeded(self, permit: int, took: float, chat: Chat, origin: Origin) -> None:
        """Note a call that succeeded, and C{took} so many seconds."""
        if took >= self._slow:
            self.failed(permit, chat, origin)
        elif not self._quiet:
            for guard in self._concerned(chat, origin):
                guard.breaker.succeeded(permit, took)

    def failed(
        self, permit: int, chat: Chat, origin: Origin, error: BaseException | None = None
    ) -> None:
        """
        Note a call that failed, or took too long.

        @param error: what it raised.
        """
        self._quiet = False
        phone, room, person = origin.key, chat.room_id, chat.user_hash or None
        self._guard((phone, room, person)).breaker.failed(permit)
        in_room = self._guards.get((phone, room, None)) if person else None
        if is_about_input(error):
            for guard in (self._all,) if in_room is None else (self._all, in_room):
                guard.breaker.dropped(permit)
        elif person:
            self._guard((phone, room, None)).breaker.failed(permit, person)
            self._all.breaker.failed(permit, (room,), person)
        else:
            self._all.breaker.failed(permit, (room,))

    def dropped(self, permit: int, chat: Chat, origin: Origin) -> None:
        """Note a call that was broken off: it does not count."""
        if not self._quiet:
            for guard in self._concerned(chat, origin):
                guard.breaker.dropped(permit)

    def _concerned(self, chat: Chat, origin: Origin) -> list[_Guard]:
        """Those of a person, of his room, and of all."""
        phone, room = origin.key, chat.room_id
        claimants = ((phone, room, None), (phone, room, chat.user_hash))
        guards = map(self._guards.get, claimants if chat.user_hash else claimants[:1])
        return [*filter(None, guards), self._all]

    def _guard(self, claimant: _Claimant) -> _Guard:
        """The guard of a person or a room whose call has failed."""
        guard = self._guards.pop(claimant, None)
        if guard is None:
            if len(self._guards) >= MAX_GUARDS:
                oldest = next(iter(self._guards))
                self._forget(oldest)
                self._gave_way(Pool.BOT_BREAKERS, oldest[0], 1)
            guard = self._new()
            guard.breaker.ignore_before(self._forgotten)
        self._guards[claimant] = guard
        return guard

    def _tidy(self) -> None:
        """Forget some of those whose failures are over."""
        for claimant in list(islice(self._guards, 2)):
            if self._guards[claimant].breaker.is_settled:
                self._forget(claimant)
        everyone = self._all.breaker
        self._quiet = (
            not self._guards and everyone.state is BreakerState.CLOSED and everyone.is_settled
        )

    def _forget(self, claimant: _Claimant) -> None:
        if self._guards.pop(claimant).breaker.opening:
            self._forgotten = self._generation


class Breakers:
    """The breakers of all commands and listeners that are served."""

    def __init__(self, seconds: Callable[[], float], gave_way: GaveWay) -> None:
        """@param seconds: the time now, in seconds."""
        self._seconds = seconds
        self._gave_way = gave_way
        self._terms: tuple[BreakerSettings, float] | None = None
        self._by_place: dict[_Place, CommandBreaker] = {}
        self._breakers: dict[Command, CommandBreaker] = {}

    def apply(self, commands: Iterable[Command], settings: BreakerSettings, timeout: float) -> bool:
        """
        Guard C{commands} from now on.  Where bot and name of one are as before, its breaker stays
        as it is, unless the settings have changed.

        @param timeout: longest time of a command, in seconds.
        @return: True if all begin anew.
        """
        terms = settings, timeout
        is_new = terms != self._terms
        self._terms = terms
        before = {} if is_new else self._by_place
        self._by_place, self._breakers = {}, {}
        numbers: Counter[tuple[str, str]] = Counter()
        for command in commands:
            name = command.bot_name, command.name
            place = *name, numbers[name]
            numbers[name] += 1
            breaker = before.get(place) or CommandBreaker(
                command.name, self._seconds, settings, timeout * SLOW_PART, self._gave_way
            )
            self._by_place[place] = self._breakers[command] = breaker
        return is_new

    def of(self, command: Command) -> CommandBreaker:
        """The breaker of a command that is served."""
        return self._breakers[command]

    def by_name(self) -> Mapping[str, CommandBreaker]:
        """Each by the command's name; of several with one name, one that is open."""
        found: dict[str, CommandBreaker] = {}
        for command, breaker in self._breakers.items():
            other = found.get(command.name)
            if other is None or other.state < breaker.state:
                found[command.name] = breaker
        return found
