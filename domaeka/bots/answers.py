"""Answers of the dispatcher to the rooms, and its warnings to authors."""

from collections.abc import Callable, Container
from functools import partial

from twisted.logger import Logger

from domaeka.bots.api import OnFate
from domaeka.bots.arguments import BadArguments
from domaeka.bots.commands import Command
from domaeka.bots.failures import report
from domaeka.bots.runs import ids
from domaeka.bots.threads import Reactor
from domaeka.interfaces import Origin
from domaeka.texts_ko import USAGE_TEXT
from domaeka.wire import Chat, Reply

_log = Logger()


def say(chat: Chat, origin: Origin, text: str) -> None:
    """Send a text to the room of a message.  An error costs this answer."""
    try:
        origin.send(Reply(chat.room, chat.channel_id, origin.key.bot_name, text))
    except Exception as error:
        report("an answer was lost", error, ids(chat, origin))


def say_usage(command: Command, error: BadArguments, chat: Chat, origin: Origin) -> None:
    """Tell a room that the arguments of a command do not fit, and how it is used."""
    usage = USAGE_TEXT.format(usage=command.usage)
    say(chat, origin, "\n".join(filter(None, (str(error), usage))))


def send(
    reactor: Reactor, origin: Origin, reply: Reply, ttl: float | None, on_fate: OnFate
) -> None:
    """Send a reply of a bot.  To be called in the reactor's thread."""
    listener: Callable[[str, str], None] | None = None
    if on_fate is not None:
        # Later: a bot may well answer again, but not while the outbox is at work.
        later = partial(reactor.callFromThread, on_fate)

        def listener(status: str, reason: str) -> None:
            later(status)

    try:
        origin.send(reply, ttl, listener)
    except Exception as error:
        room = reply.channel_id or reply.room
        report("an answer was lost", error, {**origin.key.log_fields, "room": room})


def done(chat: Chat, origin: Origin) -> None:
    """Say that the work on a message is done."""
    try:
        origin.message_done(chat)
    except Exception as error:
        report("a message was not closed", error, ids(chat, origin))


class Mistakes:
    """Mistakes of authors, which are logged once for each command."""

    def __init__(self) -> None:
        self._warned: set[Command] = set()

    def keep(self, commands: Container[Command]) -> None:
        """Forget all other commands."""
        self._warned = {command for command in self._warned if command in commands}

    def warn_once(self, command: Command, text: str) -> None:
        """Log a mistake in a command, unless one of it was logged before."""
        if command not in self._warned:
            self._warned.add(command)
            _log.warn(
                "{command} {mistake} ({place})",
                command=command.name,
                mistake=text,
                place=command.place,
            )
