"""The API for bot authors: L{Bot}, and the L{Context} that its commands are given."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks, succeed

from domaeka.bots.commands import Command, check_name, runs_on_reactor
from domaeka.bots.media import MediaItem, blocks, listed, prepare
from domaeka.errors import BotTypeError, BotValueError
from domaeka.interfaces import Origin
from domaeka.wire import Chat, Media, MediaType, Reply

#: Longest time that a reply may wait for a phone, in seconds: as over the API.
MAX_TTL_SECONDS: Final = 31_536_000

#: Called with each delivery status of a reply.
OnFate: TypeAlias = Callable[[str], object] | None

_F = TypeVar("_F", bound=Callable[..., object])
_T = TypeVar("_T")


class Runtime(Protocol):
    """The part of the server that a context needs."""

    def send(self, origin: Origin, reply: Reply, ttl: float | None, on_fate: OnFate) -> None:
        """Send a reply, from whatever thread."""

    def in_reactor_thread(self) -> bool:
        """True if the caller is in the reactor's thread, and may not block."""

    def call_in_thread(self, function: Callable[..., _T], *args: Any) -> "Deferred[_T]":
        """Call a function that may block."""

    def is_operator(self, chat: Chat) -> bool:
        """True if the sender of C{chat} may use operators' commands."""


class Room(msgspec.Struct, frozen=True):
    """
    The room of a message.

    @ivar id: the channel id, or the name where the phone does not know the id.
    """

    id: str
    name: str
    is_group: bool


class Sender(msgspec.Struct, frozen=True):
    """
    The sender of a message.

    @ivar name: as shown in the chat.  Anybody may take any name: it proves nothing.
    @ivar hash: the user's hash, where the phone knows it.
    """

    name: str
    hash: str | None


class Device(msgspec.Struct, frozen=True):
    """The phone that a message came from."""

    bot_name: str
    id: str


class Message(msgspec.Struct, frozen=True, eq=False):
    """The text that was written, and facts about it."""

    _chat: Chat
    _start: int

    def __repr__(self) -> str:
        """Without the text: it may be logged."""
        return f"<Message {self._chat.log_id}>"

    @property
    def text(self) -> str:
        """The whole text, the command included."""
        return self._chat.text

    @property
    def args(self) -> str:
        """The text behind the command and the one white space after it, exactly."""
        return self._chat.text[self._start :]

    @property
    def id(self) -> str | None:
        """The id in the phone's log, where the phone knows it."""
        return self._chat.log_id

    @property
    def is_mention(self) -> bool:
        """True if the bot was mentioned."""
        return self._chat.is_mention

    @property
    def timestamp(self) -> datetime | None:
        """The time of writing, by the phone's clock, with its time zone; or L{None}."""
        return self._chat.timestamp


class Context(msgspec.Struct, eq=False):
    """
    A message for a command, and the way back to its room.

    Replies may be sent from any thread, several of them, and after the command has returned.
    """

    _chat: Chat
    _origin: Origin
    _start: int  # of the arguments, in the text
    _runtime: Runtime
    # Fires when the files before have been read and sent; replies wait for it.
    _files_sent: Any = None

    def __repr__(self) -> str:
        """Without the text: it may be logged."""
        return f"<Context {self._chat.log_id}>"

    @property
    def message(self) -> Message:
        """The message."""
        return Message(self._chat, self._start)

    @property
    def room(self) -> Room:
        """The room of the message."""
        chat = self._chat
        return Room(chat.room_id, chat.room, chat.is_group)

    @property
    def sender(self) -> Sender:
        """The sender of the message."""
        return Sender(self._chat.sender, self._chat.user_hash)

    @property
    def device(self) -> Device:
        """The phone that the message came from."""
        return Device(*self._origin.key)

    @property
    def is_operator(self) -> bool:
        """True if the sender is in C{bots.operators}, by channel id and user hash together."""
        return self._runtime.is_operator(self._chat)

    def describe_device(self) -> Mapping[str, str]:
        """Facts about the phone that an operator may see: names to values, both for people."""
        return self._origin.describe()

    def reply(self, text: str, *, ttl: float | None = None, on_fate: OnFate = None) -> None:
        """
        Send C{text} to the room.  An empty text is not sent.

        @param ttl: how long the reply may wait for a phone that is away, in seconds, a year at
            most; by default C{queue.message_ttl}.
        @param on_fate: called on the reactor, so it must not block, with the reply's delivery
            status: C{"sent"}, then C{"acknowledged"} where the phone acknowledges, and then
            C{"delivered"} or C{"refused_by_app"} where it reports what the chat app did; or
            C{"expired"}, or C{"dropped"} where the queue is full.
        @raise TypeError: not a text, or C{ttl} not a number.
        @raise ValueError: C{ttl} is not above 0, or too long.
        """
        if not isinstance(text, str):
            raise BotTypeError(f"a reply is a text, not {type(text).__name__}")
        _check_ttl(ttl)
        if text:
            self._send((text,), ttl, on_fate)

    def reply_media(
        self,
        items: MediaItem | Iterable[MediaItem],
        wait_ms: int | None = None,
        *,
        kind: MediaType | None = None,
        format: str | None = None,
        ttl: float | None = None,
        on_fate: OnFate = None,
    ) -> "Deferred[None]":
        """
        Send files to the room, in order.

        @param items: each its bytes, its path, its address (C{http://}, C{https://}), an open file,
            which is read from its beginning and left open, or a Pillow picture.
        @param wait_ms: how long the phone stays in the chat app to send the files, in
            milliseconds; it receives nothing meanwhile.
        @param kind: C{image}, C{audio}, C{video} or C{document}, for files that do not tell; a file
            that is no picture is not sent as one.
        @param format: C{jpg}, C{png} and so on, likewise.
        @param ttl: as of L{reply}.
        @param on_fate: as of L{reply}, for each frame if the files take several.
        @return: fires once the files are on their way.  Only paths, open files and Pillow pictures
            take time, for a thread reads them: await the Deferred for the errors of that, and
            before a file is closed.  A command that is no coroutine runs in a thread itself: there
            all is done upon return.
        @raise TypeError: an item cannot be sent.
        @raise ValueError: too much, or of no format that is known.
        @raise OSError: a file cannot be read.
        """
        _check_ttl(ttl)
        found = listed(items)
        if any(map(blocks, found)) and self._runtime.in_reactor_thread():
            return self._read_and_send(ttl, on_fate, found, wait_ms, kind, format)
        self._send(prepare(found, wait_ms, kind, format), ttl, on_fate)
        return succeed(None)

    def _settled(self, value: object) -> object:
        """C{value}, or a Deferred of it if files are still being read."""
        if self._files_sent is None or isinstance(value, Deferred):
            return value
        later: Deferred[object] = Deferred()
        self._files_sent.addCallback(lambda _: later.callback(value))
        return later

    @inlineCallbacks
    def _read_and_send(self, ttl: float | None, on_fate: OnFate, *files: Any) -> Any:
        before = self._files_sent
        sent: Deferred[None] = Deferred()
        self._files_sent = sent
        try:
            if before is not None:
                done: Deferred[None] = Deferred()
                before.addCallback(done.callback)
                yield done
            media = yield self._runtime.call_in_thread(prepare, *files)
            self._send_now(media, ttl, on_fate)
        finally:
            if self._files_sent is sent:
                self._files_sent = None
            sent.callback(None)

    def _send(self, contents: Iterable[str | Media], ttl: float | None, on_fate: OnFate) -> None:
        if self._files_sent is None or not self._runtime.in_reactor_thread():
            self._send_now(contents, ttl, on_fate)
        else:
            self._files_sent.addCallback(lambda _: self._send_now(contents, ttl, on_fate))

    def _send_now(
        self, contents: Iterable[str | Media], ttl: float | None, on_fate: OnFate
    ) -> None:
        chat = self._chat
        origin = self._origin
        for content in contents:
            reply = Reply(chat.room, chat.channel_id, origin.key.bot_name, content)
            self._runtime.send(origin, reply, ttl, on_fate)


def _check_ttl(ttl: object) -> None:
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise BotTypeError(f"ttl: a number of seconds, not {type(ttl).__name__}")
    if not 0 < ttl <= MAX_TTL_SECONDS:
        raise BotValueError(f"ttl: above 0 and at most {MAX_TTL_SECONDS} s")


class Bot:
    """
    A group of commands.  Those that are C{async def}, or give a Deferred and say so
    (C{inlineCallbacks}, or the annotation), run on the reactor and must not block.  All others run
    in threads.
    """

    def __init__(self, name: str) -> None:
        """@param name: for people; the phone's bot name has nothing to do with it."""
        check_name(name, "a bot")
        self.name = name
        self._commands: list[Command] = []

    @property
    def commands(self) -> tuple[Command, ...]:
        """Its commands, in the order in which they were registered."""
        return tuple(self._commands)

    def command(
        self,
        name: str,
        aliases: Iterable[str] = (),
        *,
        help: str = "",
        operators_only: bool = False,
    ) -> Callable[[_F], _F]:
        """
        Register the decorated function for messages that are C{name}, or begin with it and a
        white space.  If several fit, the longest name counts.  The function is given a
        L{Context}; a text that it returns is a reply.

        @param aliases: other names of the same command.
        @param help: one line for C{# help}; by default the first line of the docstring.
        @param operators_only: refuse it to all who are not in C{bots.operators}.
        @raise ValueError: a name is not usable, or used already.
        @raise TypeError: not a function, or a generator, or it does not take a context alone.
        """
        if isinstance(aliases, str):
            raise TypeError("aliases: a tuple of names, not a text")
        others = tuple(aliases)
        taken = {
            used: command.place
            for command in self._commands
            for used in (command.name, *command.aliases)
        }
        for one in (name, *others):
            check_name(one)
            if one in taken:
                first = f", first at {taken[one]}" if taken[one] else ""
                raise ValueError(f"the bot {self.name!r} has the command {one!r} twice{first}")
            taken[one] = ""

        def register(function: _F) -> _F:
            doc = inspect.getdoc(function) if inspect.isroutine(function) else None
            line = help or (doc or "").partition("\n")[0]
            self._commands.append(
                Command(
                    name,
                    others,
                    function,
                    self.name,
                    line,
                    operators_only,
                    runs_on_reactor(function),
                    sys._getframe(1).f_globals.get("__name__", ""),
                )
            )
            return function

        return register
