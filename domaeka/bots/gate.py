"""
The gate before a command: who may use it, and how often.

Somebody who may not is answered, but no more than once a minute; one who comes too soon is answered
once, until the time is over.  People whose hash a phone does not know count as one person.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from math import ceil
from typing import Final, TypeAlias

from domaeka import texts_ko
from domaeka.bots.access import Allow, Cooldown, Holds, operators
from domaeka.bots.commands import Command, Event
from domaeka.interfaces import Origin
from domaeka.pools import Pool
from domaeka.wire import Chat

#: Least time between two answers to a person who may not use what he asks for, in seconds.
#: Source: docs/bots.md, "Who may, and how often".
REFUSAL_SECONDS: Final = 60.0
#: Most people that are remembered as refused; the one who was refused first gives way.
MAX_REFUSED: Final = 10_000
#: Most people, or rooms, whose calls of a command are counted; the one whose time ends first gives
#: way.  Source: as above.
MAX_WINDOWS: Final = 10_000
#: Most rooms that are remembered as told of one and the same cooldown; the one told first is
#: forgotten first.
_MAX_TOLD: Final = 1000

#: A bot name, a room, and perhaps a user hash.
_Key: TypeAlias = tuple[str, ...]
#: A command: its bot, its name, and which of those of the same name.
_Place: TypeAlias = tuple[str, str, int]


class _Window:
    """The calls within the time of a cooldown, and the rooms that were told of its end."""

    __slots__ = ("ends", "told", "used")

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.used = 0
        self.told: dict[tuple[str, str], None] = {}


class Windows:
    """The calls of a command that its cooldown counts."""

    def __init__(
        self,
        cooldown: Cooldown,
        seconds: Callable[[], float],
        gave_way: Callable[[Pool, object, int], object] = lambda pool, claimant, count: None,
    ) -> None:
        """
        @param seconds: the time now, in seconds.
        @param gave_way: called when somebody's calls are forgotten for want of room.
        """
        self.cooldown = cooldown
        self._gave_way = gave_way
        self._seconds = seconds
        self._open: dict[_Key, _Window] = {}  # that which ends first is the first

    def take(self, bot_name: str, chat: Chat) -> float | None:
        """
        Count a call.

        @return: L{None} if it may go on, else the seconds until the next one may; 0.0 if the room
            knows.
        """
        now = self._seconds()
        room = bot_name, chat.room_id
        by = self.cooldown.by
        key: _Key = ()
        if by != "all":
            key = room if by == "room" else (*room, chat.user_hash or "")
        window = self._open.get(key)
        if window is None or window.ends <= now:
            self._open.pop(key, None)
            self._make_room(now)
            window = self._open[key] = _Window(now + self.cooldown.per)
        if window.used < self.cooldown.rate:
            window.used += 1
            return None
        if room in window.told:
            return 0.0
        if len(window.told) >= _MAX_TOLD:
            del window.told[next(iter(window.told))]
        window.told[room] = None
        return window.ends - now

    def _make_room(self, now: float) -> None:
        while self._open:
            first = next(iter(self._open))
            if self._open[first].ends > now:
                if len(self._open) < MAX_WINDOWS:
                    break
                self._gave_way(Pool.BOT_COOLDOWNS, " ".join(map(repr, first)), 1)
            del self._open[first]


class Gate:
    """Says of a message if the command that it calls may run, and answers where it may not."""

    def __init__(
        self,
        say: Callable[[Chat, Origin, str], object],
        seconds: Callable[[], float],
        holds: Holds | None = None,
        gave_way: Callable[[Pool, object, int], object] = lambda pool, claimant, count: None,
    ) -> None:
        """
        @param say: sends a text to the room of a message.
        @param seconds: the time now, in seconds.
        @param holds: says if somebody holds a role; by default nobody does.
        @param gave_way: as of L{Windows}.
        """
        self._gave_way = gave_way
        self._say = say
        self._seconds = seconds
        self._holds = holds
        self._operators: frozenset[tuple[str | None, str | None]] = frozenset()
        self._refused: dict[tuple[str, str, str], float] = {}  # when, the oldest first
        self._windows: dict[Command, Windows] = {}
        self._by_place: dict[_Place, Windows] = {}

    def apply(self, operators: Iterable[str], commands: Iterable[Command]) -> None:
        """
        Guard C{commands} from now on.  Where bot, name and cooldown of one are as before, its calls
        so far count.

        @param operators: each C{CHANNEL_ID/USER_HASH}.
        """
        self._operators = frozenset(
            (channel, user) for channel, _, user in (text.partition("/") for text in operators)
        )
        before, self._by_place, self._windows = self._by_place, {}, {}
        numbers: Counter[tuple[str, str]] = Counter()
        for command in commands:
            if command.cooldown is None:
                continue
            name = command.bot_name, command.name
            place = *name, numbers[name]
            numbers[name] += 1
            windows = before.get(place)
            if windows is None or windows.cooldown != command.cooldown:
                windows = Windows(command.cooldown, self._seconds, self._gave_way)
            self._by_place[place] = self._windows[command] = windows

    def is_operator(self, chat: Chat) -> bool:
        """True if channel id and user hash, together, are those of an operator."""
        return (chat.channel_id, chat.user_hash) in self._operators

    def has_role(self, chat: Chat, role: str) -> bool:
        """True if the sender of a message holds a role."""
        return self._holds is not None and self._holds(role, chat.channel_id, chat.user_hash)

    def allows(self, allow: Allow | None, chat: Chat) -> bool:
        """True if the sender of a message is among those who may."""
        return allow is None or allow.includes(chat, self.is_operator, self._holds)

    def admits(self, command: Command, chat: Chat, origin: Origin) -> bool:
        """True if a command may run for a message; else its sender has been answered, if due."""
        if not self.allows(command.allow, chat):
            self._refuse(command, chat, origin)
            return False
        windows = self._windows.get(command)
        if windows is None:
            return True
        left = windows.take(origin.key.bot_name, chat)
        if left and command.event is Event.COMMAND:  # no command: the bot was not asked
            self._say(chat, origin, texts_ko.COOLDOWN_TEXT.format(left=_left(left)))
        return left is None

    def _refuse(self, command: Command, chat: Chat, origin: Origin) -> None:
        """Answer somebody who may not use a command, unless he has been answered just now."""
        now = self._seconds()
        person = origin.key.bot_name, chat.room_id, chat.user_hash or ""
        refused = self._refused
        if now - refused.get(person, now - REFUSAL_SECONDS) < REFUSAL_SECONDS:
            return
        refused.pop(person, None)
        if len(refused) >= MAX_REFUSED:
            del refused[next(iter(refused))]
        refused[person] = now
        only_operators = command.allow == operators
        text = texts_ko.OPERATORS_TEXT if only_operators else texts_ko.NOT_ALLOWED_TEXT
        self._say(chat, origin, text)


def _left(seconds: float) -> str:
    """A time for people, rounded up."""
    for unit, text in ((3600, texts_ko.LEFT_HOURS), (60, texts_ko.LEFT_MINUTES)):
        if seconds > 2 * unit:
            return text.format(ceil(seconds / unit))
    return texts_ko.LEFT_SECONDS.format(ceil(seconds))
