"""What bot authors import: L{Bot}, and the L{Context} that its commands are given."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks, succeed

from domaeka.bots.commands import Command, check_name, runs_on_reactor
from domaeka.bots.media import MediaItem, is_path, listed, prepare
from domaeka.interfaces import Origin
from domaeka.messages import Chat, Media, MediaType, Reply

#: Longest that a reply may wait for a phone, in seconds: as over the API.
MAX_TTL_SECONDS: Final = 31_536_000

_F = TypeVar("_F", bound=Callable[..., object])
_T = TypeVar("_T")


class Runtime(Protocol):
    """What a context needs of the server."""

    def send(
        self,
        origin: Origin,
        reply: Reply,
        ttl: float | None,
        on_fate: Callable[[str], object] | None,
    ) -> None:
        """Answer, from whatever thread."""

    def in_reactor_thread(self) -> bool:
        """Whether the caller may not block."""

    def call_in_thread(self, function: Callable[..., _T], *args: Any) -> "Deferred[_T]":
        """Call what may block."""

    def is_operator(self, chat: Chat) -> bool:
        """Whether the one who wrote it may use operators' commands."""


class Room(msgspec.Struct, frozen=True):
    """
    Where something was written.

    @ivar id: the channel id, or the name where the phone does not know that.
    """

    id: str
    name: str
    is_group: bool


class Sender(msgspec.Struct, frozen=True):
    """
    Who wrote it.

    @ivar name: as shown in the chat.  Anybody may take any name: it proves nothing.
    @ivar hash: the user's hash, where the phone knows it.
    """

    name: str
    hash: str | None


class Device(msgspec.Struct, frozen=True):
    """The phone that it came from."""

    bot_name: str
    id: str


class Message(msgspec.Struct, frozen=True, eq=False):
    """What was written."""

    _chat: Chat
    _start: int

    def __repr__(self) -> str:
        """Without what was written: it may be logged."""
        return f"<Message {self._chat.log_id}>"

    @property
    def text(self) -> str:
        """All of it, the command included."""
        return self._chat.text

    @property
    def args(self) -> str:
        """What follows the command and the one white space behind it, exactly."""
        return self._chat.text[self._start :]

    @property
    def id(self) -> str | None:
        """The id in the phone's log, where the phone knows it."""
        return self._chat.log_id

    @property
    def is_mention(self) -> bool:
        """Whether the bot was mentioned."""
        return self._chat.is_mention

    @property
    def timestamp(self) -> datetime | None:
        """When it was written, by the phone's clock, with its time zone; or L{None}."""
        return self._chat.timestamp


class Context(msgspec.Struct, eq=False):
    """
    One message for one command, and the way back to its room.

    Replies may be sent from any thread, several of them, and after the command has returned.
    """

    _chat: Chat
    _origin: Origin
    _start: int  # of the arguments, in the text
    _runtime: Runtime
    # Fires when the files before have been read and sent; replies wait for it.
    _turn: Any = None

    def __repr__(self) -> str:
        """Without what was written: it may be logged."""
        return f"<Context {self._chat.log_id}>"

    @property
    def message(self) -> Message:
        """What was written."""
        return Message(self._chat, self._start)

    @property
    def room(self) -> Room:
        """Where it was written."""
        chat = self._chat
        return Room(chat.room_id, chat.room, chat.is_group)

    @property
    def sender(self) -> Sender:
        """Who wrote it."""
        return Sender(self._chat.sender, self._chat.user_hash)

    @property
    def device(self) -> Device:
        """The phone that it came from."""
        return Device(*self._origin.key)

    @property
    def is_operator(self) -> bool:
        """Whether the sender is in C{bots.operators}, by channel id and user hash together."""
        return self._runtime.is_operator(self._chat)

    def describe_device(self) -> Mapping[str, str]:
        """What an operator may be told of the phone: names to values, both for people."""
        return self._origin.describe()

    def reply(
        self,
        text: str,
        *,
        ttl: float | None = None,
        on_fate: Callable[[str], object] | None = None,
    ) -> None:
        """
        Send C{text} to the room.  An empty one is not sent.

        @param ttl: how long it may wait for a phone that is away, in seconds, a year at most; by
            default C{queue.message_ttl}.
        @param on_fate: called on the reactor, so it must not block, with what becomes of it:
            C{"sent"}, and then C{"acknowledged"} where the phone says so; or C{"expired"}, or
            C{"dropped"} for want of room.
        @raise TypeError: not a text, or C{ttl} not a number.
        @raise ValueError: C{ttl} is not above 0, or too long.
        """
        if not isinstance(text, str):
            raise TypeError(f"a reply is a text, not {type(text).__name__}")
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
        on_fate: Callable[[str], object] | None = None,
    ) -> "Deferred[None]":
        """
        Send files to the room, in order.

        @param items: for each its bytes, its path, or its address (C{http://}, C{https://}).
        @param wait_ms: how long the phone stays in the chat app to send them, in milliseconds;
            it hears nothing meanwhile.
        @param kind: C{image}, C{audio}, C{video} or C{document}, where the files do not tell.
        @param format: C{jpg}, C{png} and so on, likewise.
        @param ttl: as of L{reply}.
        @param on_fate: likewise; for each frame, where they take several.
        @return: fires once they are on their way.  Only paths take time, for they are read in a
            thread: await it to hear of a file that cannot be read.  A command that is no
            coroutine runs in a thread itself; there all is done upon return.
        @raise TypeError: something that cannot be sent.
        @raise ValueError: too much, or of no format that is known.
        @raise OSError: a file cannot be read.
        """
        _check_ttl(ttl)
        found = listed(items)
        if any(map(is_path, found)) and self._runtime.in_reactor_thread():
            return self._read_and_send(found, wait_ms, kind, format, ttl, on_fate)
        self._send(prepare(found, wait_ms, kind, format), ttl, on_fate)
        return succeed(None)

    def _settled(self, value: object) -> object:
        """C{value}, or a Deferred of it if files are still being read."""
        if self._turn is None or isinstance(value, Deferred):
            return value
        later: Deferred[object] = Deferred()
        self._turn.addCallback(lambda _: later.callback(value))
        return later

    @inlineCallbacks
    def _read_and_send(
        self,
        items: list[MediaItem],
        wait_ms: int | None,
        kind: MediaType | None,
        format: str | None,
        ttl: float | None,
        on_fate: Callable[[str], object] | None,
    ) -> Any:
        before = self._turn
        turn: Deferred[None] = Deferred()
        self._turn = turn
        try:
            if before is not None:
                done: Deferred[None] = Deferred()
                before.addCallback(done.callback)
                yield done
            media = yield self._runtime.call_in_thread(prepare, items, wait_ms, kind, format)
            self._send_now(media, ttl, on_fate)
        finally:
            if self._turn is turn:
                self._turn = None
            turn.callback(None)

    def _send(
        self,
        contents: Sequence[str | Media],
        ttl: float | None = None,
        on_fate: Callable[[str], object] | None = None,
    ) -> None:
        if self._turn is None or not self._runtime.in_reactor_thread():
            self._send_now(contents, ttl, on_fate)
        else:
            self._turn.addCallback(lambda _: self._send_now(contents, ttl, on_fate))

    def _send_now(
        self,
        contents: Iterable[str | Media],
        ttl: float | None = None,
        on_fate: Callable[[str], object] | None = None,
    ) -> None:
        chat = self._chat
        origin = self._origin
        bot_name = origin.key.bot_name
        for content in contents:
            reply = Reply(chat.room, chat.channel_id, bot_name, content)
            self._runtime.send(origin, reply, ttl, on_fate)


def _check_ttl(ttl: object) -> None:
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise TypeError(f"ttl: a number of seconds, not {type(ttl).__name__}")
    if not 0 < ttl <= MAX_TTL_SECONDS:
        raise ValueError(f"ttl: above 0 and at most {MAX_TTL_SECONDS} s")


class Bot:
    """
    Commands that belong together.

    Commands that are C{async def}, or give a Deferred and say so (C{inlineCallbacks}, or the
    annotation), run on the reactor and must not block.  All others run in threads.
    """

    def __init__(self, name: str) -> None:
        """@param name: for people; the phone's bot name has nothing to do with it."""
        check_name(name)
        self.name = name
        self._commands: list[Command] = []

    @property
    def commands(self) -> tuple[Command, ...]:
        """What it answers to, in the order in which it was registered."""
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
        white space.  Of several that fit, the longest name counts.  The function is given a
        L{Context}; a text that it returns is a reply.

        @param aliases: other names of the same command.
        @param help: one line for C{# help}; by default the first line of the docstring.
        @param operators_only: refuse it to all who are not in C{bots.operators}.
        @raise ValueError: a name is not usable, or used already.
        @raise TypeError: not a function, or one that nothing can come from.
        """
        if isinstance(aliases, str):
            raise TypeError("aliases: a tuple of names, not a text")
        others = tuple(aliases)
        taken = {used for command in self._commands for used in (command.name, *command.aliases)}
        for one in (name, *others):
            check_name(one)
            if one in taken:
                raise ValueError(f"the bot {self.name!r} has the command {one!r} twice")
            taken.add(one)

        def register(function: _F) -> _F:
            told = inspect.getdoc(function) if inspect.isroutine(function) else None
            line = help or (told or "").partition("\n")[0]
            self._commands.append(
                Command(
                    name,
                    others,
                    function,
                    self.name,
                    line,
                    operators_only,
                    runs_on_reactor(function),
                )
            )
            return function

        return register
