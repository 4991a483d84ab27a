"""From a message to the function that takes it: by the phone's bot name, the room, and the text."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from typing import NamedTuple

from domaeka.bots.access import Allow
from domaeka.bots.api import Bot
from domaeka.bots.commands import Command, CommandTable, Event
from domaeka.bots.fair_queue import Place
from domaeka.bots.patterns import Searches
from domaeka.interfaces import DeviceKey
from domaeka.wire import Chat


class _Table(NamedTuple):
    """The handlers for one kind of phones and rooms."""

    commands: CommandTable
    listeners: tuple[Command, ...]


def serves(bot: Bot, bot_name: str | None, channel_id: str | None) -> bool:
    """True if a bot serves phones of this bot name, in the room of this channel id."""
    return (not bot.names or bot_name in bot.names) and (not bot.rooms or channel_id in bot.rooms)


def _overlap(one: Bot, other: Bot) -> bool:
    """True if there may be a message for both."""
    return not (
        (one.names and other.names and not one.names & other.names)
        or (one.rooms and other.rooms and not one.rooms & other.rooms)
    )


class Router:
    """
    The handlers of all bots.  A message goes to one of them: to the command that it names, or else
    to the first listener, in the order of registration, that takes it and that its sender may use.
    """

    def __init__(
        self,
        bots: Sequence[Bot],
        allows: Callable[[Allow | None, Chat], bool] = lambda allow, chat: allow is None,
        searches: Searches | None = None,
    ) -> None:
        """
        @param allows: says if the sender of a message is among those who may.
        @param searches: searches for listeners' patterns.
        @raise ConfigError: two commands for one phone and room have the same name.
        """
        self._bots = bots
        self._allows = allows
        self._searches = searches or Searches(lambda: 0.0)
        for one in bots:
            CommandTable(one.commands)
        for one, other in combinations(bots, 2):
            if _overlap(one, other):
                CommandTable(chain(one.commands, other.commands))
        self._names = frozenset(chain.from_iterable(bot.names for bot in bots))
        self._rooms = frozenset(chain.from_iterable(bot.rooms for bot in bots))
        self._tables: dict[tuple[str | None, str | None], _Table] = {}
        # Where no bot names phones or rooms.
        self._only = None if self._names or self._rooms else self._make_table(None, None)
        #: Finds the command for a text, where no bot listens or names phones or rooms: as L{find},
        #: a microsecond sooner.
        self.look_up = (
            None if self._only is None or self._only.listeners else self._only.commands.find
        )

    def find(self, chat: Chat, phone: DeviceKey) -> tuple[Command, int] | None:
        """
        The handler of a message.

        @return: it, and where its arguments begin in the text.
        """
        table = self._only or self._table(chat, phone.bot_name)
        found = table.commands.find(chat.text)
        if found is None and table.listeners:
            for listener in table.listeners:
                if self._takes(listener, chat, phone) and self._allows(listener.allow, chat):
                    return listener, 0
        return found

    def _takes(self, listener: Command, chat: Chat, phone: DeviceKey) -> bool:
        takes = listener.takes
        if takes is None or not takes(chat.text, chat.is_mention):
            return False
        if takes.pattern is None:
            return True
        place = Place.of(chat, phone, listener)
        return self._searches.finds(takes.pattern, chat.text, place)

    def commands(self) -> Iterator[Command]:
        """Each command once, in the order in which they were registered."""
        return chain.from_iterable(bot.commands for bot in self._bots)

    def handlers(self) -> Iterator[Command]:
        """Each command and each listener once."""
        return chain.from_iterable(
            (*bot.commands, *bot.handlers.all(Event.MESSAGE)) for bot in self._bots
        )

    def _table(self, chat: Chat, bot_name: str) -> _Table:
        name = bot_name if bot_name in self._names else None
        room = chat.channel_id if chat.channel_id in self._rooms else None
        table = self._tables.get((name, room))
        if table is None:
            # No more of them than there are names and rooms in bots.
            table = self._tables[name, room] = self._make_table(name, room)
        return table

    def _make_table(self, name: str | None, room: str | None) -> _Table:
        serving = [bot for bot in self._bots if serves(bot, name, room)]
        return _Table(
            CommandTable(chain.from_iterable(bot.commands for bot in serving)),
            tuple(chain.from_iterable(bot.handlers.all(Event.MESSAGE) for bot in serving)),
        )
