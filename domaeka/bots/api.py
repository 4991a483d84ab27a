"""The API for bot authors: L{Bot}, and the L{Context} that its commands are given."""

import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, overload

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks, succeed

from domaeka.bots.access import Allow, Cooldown, check_allow, check_cooldown
from domaeka.bots.arguments import Arguments
from domaeka.bots.commands import (
    BadHandler,
    Command,
    Event,
    Filter,
    check_call,
    check_name,
    normal,
    runs_where,
)
from domaeka.bots.coroutines import Pending, is_on_loop
from domaeka.bots.cron import MAX_SCHEDULES, Schedule
from domaeka.bots.media import MediaItem, blocks, listed, prepare
from domaeka.bots.sending import Speaker, check_ttl
from domaeka.bots.storage import BotStore
from domaeka.errors import BotTypeError, BotValueError, NoServer
from domaeka.interfaces import Origin
from domaeka.wire import Chat, Media, MediaType, Reply

#: Called with each delivery status of a reply.
OnFate: TypeAlias = Callable[[str], object] | None

_F = TypeVar("_F", bound=Callable[..., object])
_T = TypeVar("_T")


class Runtime(Protocol):
    """
    The part of the server that a context needs.

    @ivar loop: the bots' loop.
    """

    loop: Any

    def send(self, origin: Origin, reply: Reply, ttl: float | None, on_fate: OnFate) -> None:
        """Send a reply.  To be called in the reactor's thread."""

    def hand_over(self, function: Callable[..., object], *args: Any) -> None:
        """Call C{function} in the reactor's thread, from whatever thread."""

    def in_reactor_thread(self) -> bool:
        """True if the caller is in the reactor's thread, and may not block."""

    def call_in_thread(self, function: Callable[..., _T], *args: Any) -> "Deferred[_T]":
        """Call a function that may block."""

    def is_operator(self, chat: Chat) -> bool:
        """True if the sender of C{chat} may use operators' commands."""

    def has_role(self, chat: Chat, role: str) -> bool:
        """True if the sender of C{chat} holds a role."""

    def allows(self, allow: Allow | None, chat: Chat) -> bool:
        """True if the sender of C{chat} is among those who may."""

    def ask(
        self, context: Any, text: str, timeout: float, check: "Check", anyone: bool
    ) -> "Awaitable[Message]":
        """See L{Context.ask}."""


class Room(msgspec.Struct, frozen=True):
    """
    The room of a message.

    @ivar id: the channel id, or the name where the phone does not know the id.
    """

    id: str
    name: str
    is_group: bool
    _place: str = ""
    _store: BotStore | None = None

    @property
    def store(self) -> BotStore:
        """What the bot keeps for this room."""
        return _there(self._store).scoped(f"room:{self._place}")


class Sender(msgspec.Struct, frozen=True):
    """
    The sender of a message.

    @ivar name: as shown in the chat.  Anybody may take any name: it proves nothing.
    @ivar hash: the user's hash, where the phone knows it.
    """

    name: str
    hash: str | None
    _channel_id: str | None = None
    _store: BotStore | None = None

    @property
    def store(self) -> BotStore:
        """
        What the bot keeps for this person, who is known by channel id and user hash together.

        @raise ValueError: the phone does not know them: who this is, nobody can say.
        """
        if not self.hash or not self._channel_id:
            raise BotValueError("the phone does not know who this is: no user hash or channel id")
        return _there(self._store).scoped(f"person:{self._channel_id}/{self.hash}")


class Device(msgspec.Struct, frozen=True):
    """The phone that a message came from."""

    bot_name: str
    id: str


class Message(msgspec.Struct, frozen=True, eq=False):
    """The text that was written, and facts about it."""

    _chat: Chat
    _start: int
    _store: BotStore | None = None

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
    def sender(self) -> Sender:
        """The person who wrote it."""
        chat = self._chat
        return Sender(chat.sender, chat.user_hash, chat.channel_id, self._store)

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


#: Says of a message if it answers a question.
Check: TypeAlias = Callable[[Message], bool] | None


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
        return Message(self._chat, self._start, self._store)

    @property
    def _store(self) -> BotStore | None:
        """What the bot keeps."""
        return None

    @property
    def room(self) -> Room:
        """The room of the message."""
        chat = self._chat
        # Where no phone knows the id, rooms of one title are one for each bot name.
        place = chat.channel_id or f":{self._origin.key.bot_name}/{chat.room}"
        return Room(chat.room_id, chat.room, chat.is_group, place, self._store)

    @property
    def sender(self) -> Sender:
        """The sender of the message."""
        chat = self._chat
        return Sender(chat.sender, chat.user_hash, chat.channel_id, self._store)

    @property
    def device(self) -> Device:
        """The phone that the message came from."""
        return Device(*self._origin.key)

    @property
    def is_operator(self) -> bool:
        """True if the sender is in C{bots.operators}, by channel id and user hash together."""
        return self._runtime.is_operator(self._chat)

    def has_role(self, role: str) -> bool:
        """True if the sender holds C{role}, by channel id and user hash together."""
        return self._runtime.has_role(self._chat, role)

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
        check_ttl(ttl)
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
    ) -> Awaitable[None]:
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
        @return: await it for the errors of reading, and before a file is closed: only paths, open
            files and Pillow pictures take time, for a thread reads them.  A command that is no
            coroutine runs in a thread itself: there all is done upon return.
        @raise TypeError: an item cannot be sent.
        @raise ValueError: too much, or of no format that is known.
        @raise OSError: a file cannot be read.
        """
        check_ttl(ttl)
        found = listed(items)
        if any(map(blocks, found)):
            if is_on_loop():
                sent: Pending[None] = Pending()
                self._runtime.hand_over(
                    lambda: sent.follow(
                        self._read_and_send(ttl, on_fate, found, wait_ms, kind, format)
                    )
                )
                return sent
            if self._runtime.in_reactor_thread():
                return self._read_and_send(ttl, on_fate, found, wait_ms, kind, format)
        self._send(prepare(found, wait_ms, kind, format), ttl, on_fate)
        return succeed(None)

    def ask(
        self,
        text: str,
        *,
        timeout: float = 60.0,
        check: Check = None,
        anyone: bool = False,
    ) -> Awaitable[Message]:
        """
        Ask the sender of the message in its room, and await the answer.

        The next message of that person in that room which is no command is the answer.  Others may
        talk meanwhile, and the person may use commands.  A person has one question in a room: a
        newer one takes its place.  A restart of the server ends it.

        @param text: the question; empty: nothing is sent.
        @param timeout: how long to wait, in seconds, a day at most.
        @param check: given a message, says if it is the answer; else the question waits on.
        @param anyone: whoever in the room may answer.
        @return: await it: the answer's L{Message}.
        @raise AskTimeout: nobody has answered in time.
        @raise TypeError: called in a plain function, or something of a wrong type.
        @raise ValueError: C{timeout} is out of range; or a question of this message waits.
        """
        return self._runtime.ask(self, text, timeout, check, anyone)

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
        if self._runtime.in_reactor_thread():
            self._send_in_order(tuple(contents), ttl, on_fate)
        else:
            self._runtime.hand_over(self._send_in_order, tuple(contents), ttl, on_fate)

    def _send_in_order(
        self, contents: Iterable[str | Media], ttl: float | None, on_fate: OnFate
    ) -> None:
        """In the reactor's thread."""
        if self._files_sent is None:
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


def _there(store: BotStore | None) -> BotStore:
    if store is None:
        raise NoServer("no server serves the bot")
    return store


class Handlers:
    """The functions of a bot, and of the bots that it includes."""

    def __init__(self, bot: "Bot") -> None:
        self._bot = bot
        self._own: list[Command] = []
        self._included: list[Bot] = []

    @property
    def included(self) -> "tuple[Bot, ...]":
        """The bots that it includes."""
        return tuple(self._included)

    def bots(self) -> "list[Bot]":
        """The bot, and all that are included, also by others."""
        return [self._bot, *(each for one in self._included for each in one.handlers.bots())]

    def own(self, event: Event | None = None) -> tuple[Command, ...]:
        """The bot's own functions, all or those for an event, in the order of registration."""
        return tuple(each for each in self._own if event in (None, each.event))

    def all(self, event: Event | None = None) -> tuple[Command, ...]:
        """Likewise, and behind them those of included bots."""
        return tuple(each for bot in self.bots() for each in bot.handlers.own(event))

    def add(self, command: Command) -> None:
        """Register a function."""
        self._own.append(command)

    def include(self, bot: "Bot") -> None:
        """Include a bot, unless it is included."""
        if bot not in self._included:
            self._included.append(bot)

    def snapshot(self) -> object:
        """All this, for L{restore}."""
        return tuple(self._own), tuple(self._included)

    def restore(self, snapshot: Any) -> None:
        """Have what was there at a L{snapshot} again."""
        self._own[:], self._included[:] = snapshot


class Bot(Speaker):
    """
    Functions that answer to chat.  Those that are C{async def} run on the bots' asyncio loop,
    beside the gateway; those registered with C{reactor=True}, wrapped by C{inlineCallbacks} or
    annotated to return a Deferred on the reactor, where they must not block; all others in threads.

    @ivar rooms: the channel ids of the rooms that it serves; empty: all.
    @ivar handlers: its functions, for the server.
    """

    def __init__(
        self,
        name: str,
        *,
        names: Iterable[str] = (),
        rooms: Iterable[str] = (),
        prefix: str = "",
    ) -> None:
        """
        @param name: for people; the phone's bot name has nothing to do with it.
        @param names: the bot names of the phones that it serves; by default all.
        @param rooms: the channel ids of the rooms that it serves; by default all.
        @param prefix: stands before the name of each command.
        """
        check_name(name, "a bot")
        _check_text(prefix, "prefix")
        super().__init__(name, frozenset(_texts(names, "names")))
        self.rooms = frozenset(_texts(rooms, "rooms"))
        self._prefix = prefix
        self.handlers = Handlers(self)

    @property
    def commands(self) -> tuple[Command, ...]:
        """Its commands, and those of included bots, in the order in which they were registered."""
        return self.handlers.all(Event.COMMAND)

    def include(self, other: "Bot") -> None:
        """
        Serve what C{other} registers, too: a bot may stand in several files.

        @raise ValueError: C{other} is this bot, holds it, or names phones or rooms of its own.
        """
        if self in other.handlers.bots():
            raise ValueError(f"the bot {other.name!r} holds the bot {self.name!r}")
        if other.names or other.rooms:
            raise ValueError(f"the bot {other.name!r} is included: it has no names or rooms")
        for command in other.commands:
            self._check_names((command.name, *command.aliases), other)
        self.handlers.include(other)

    def command(
        self,
        name: str,
        aliases: Iterable[str] = (),
        *,
        help: str = "",
        allow: Allow | None = None,
        cooldown: Cooldown | None = None,
        operators_only: bool = False,
        reactor: bool = False,
    ) -> Callable[[_F], _F]:
        """
        Register the decorated function for messages that are C{name}, or begin with it and a
        white space.  If several fit, the longest name counts.  The function is given a
        L{Context}, and the arguments that its signature names, read from the text behind the name;
        a text that it returns is a reply.

        @param aliases: other names of the same command.
        @param help: one line for C{# help}; by default the first line of the docstring.
        @param allow: who may use it: C{operators}, C{room(…)}, C{people(…)}, C{role(…)}, or several
            of them joined by C{|}.  By default everybody may.
        @param cooldown: how often: C{cooldown(rate, per)}.
        @param operators_only: short for C{allow=operators}.
        @param reactor: an C{async def} runs on the reactor: it awaits Deferreds, and must not
            block.
        @raise ValueError: a name is not usable, or used already.
        @raise TypeError: not a function, or a generator, or its arguments cannot be read from a
            text; or C{allow} or C{cooldown} is something else.
        """
        check_name(name)
        names = [self._prefix + one for one in (name, *_texts(aliases, "aliases"))]
        for one in names:
            check_name(one)
        self._check_names(names)
        _check_text(help, "help")
        gate = check_allow(allow, operators_only), check_cooldown(cooldown)
        return self._registering(Event.COMMAND, names, help, reactor, *gate)

    @overload
    def on_message(self, function: _F, /) -> _F: ...

    @overload
    def on_message(
        self,
        /,
        *,
        contains: str | Iterable[str] = (),
        pattern: str | re.Pattern[str] | None = None,
        prefix: str = "",
        mention: bool | None = None,
        allow: Allow | None = None,
        cooldown: Cooldown | None = None,
        operators_only: bool = False,
        reactor: bool = False,
    ) -> Callable[[_F], _F]: ...

    def on_message(
        self,
        function: Any = None,
        /,
        *,
        contains: str | Iterable[str] = (),
        pattern: str | re.Pattern[str] | None = None,
        prefix: str = "",
        mention: bool | None = None,
        allow: Allow | None = None,
        cooldown: Cooldown | None = None,
        operators_only: bool = False,
        reactor: bool = False,
    ) -> Any:
        """
        Register the decorated function for messages that are no command.  The first function that
        takes a message gets it, in the order of registration; all that is given must hold.

        @param contains: a text that is in the message, or several of which one is.
        @param pattern: a regular expression that is found in the first 2,000 characters of the
            message.
        @param prefix: the beginning of the message.
        @param mention: True: the bot is mentioned; False: it is not.
        @param allow: as of L{command}; messages of others go on to the next function.
        @param cooldown: as of L{command}; what is too much is not answered.
        @raise TypeError: something of a wrong type.
        @raise ValueError: C{pattern} is no regular expression.
        """
        takes = Filter(
            ((contains,) if contains else ())
            if isinstance(contains, str)
            else _texts(contains, "contains"),
            _pattern(pattern),
            _check_text(prefix, "prefix"),
            mention,
        )
        if mention is not None and not isinstance(mention, bool):
            raise TypeError(f"mention: True or False, not {type(mention).__name__}")
        gate = check_allow(allow, operators_only), check_cooldown(cooldown)
        register = self._registering(Event.MESSAGE, (), "", reactor, *gate, takes=takes)
        return register if function is None else register(function)

    def schedule(
        self,
        expression: str,
        *,
        timezone: str,
        rooms: Iterable[str] = (),
        missed: Literal["skip", "once"] = "skip",
        reactor: bool = False,
    ) -> Callable[[_F], _F]:
        """
        Register the decorated function to be called at the times of a cron expression: minute,
        hour, day of month, month, day of week.  It is given a L{ScheduleContext
        <domaeka.bots.schedules.ScheduleContext>}; a text that it returns is sent to C{rooms}.  Of
        all servers on a store one calls it.

        @param timezone: the zone whose clock counts, as C{"Asia/Seoul"}.
        @param rooms: channel ids, or titles as of L{send}.
        @param missed: of the times at which no server ran: C{"skip"}, nothing is done; C{"once"}:
            one run makes up for them, soon after the start.
        @raise ValueError: the expression or the zone is wrong, or the bot has the same schedule.
        @raise TypeError: not a function, or one that does not take a context alone.
        """
        schedule = Schedule.of(expression, timezone, _texts(rooms, "rooms"), missed)
        if len(self.handlers.own(Event.SCHEDULE)) >= MAX_SCHEDULES:
            raise ValueError(f"the bot {self.name!r} has {MAX_SCHEDULES} schedules already")
        return self._registering(Event.SCHEDULE, (), "", reactor, schedule=schedule)

    def on_start(self, function: _F) -> _F:
        """Register a function without arguments for the start, and the reload that brings it."""
        return self._hook(Event.START, function)

    def on_stop(self, function: _F) -> _F:
        """Register a function without arguments for the stop, and the reload that takes it away."""
        return self._hook(Event.STOP, function)

    def on_error(self, function: _F) -> _F:
        """
        Register a function for errors of this bot's functions: it is given the context and the
        error.  A text that it returns is the answer, in the place of the usual one.
        """
        return self._hook(Event.ERROR, function)

    def before(self, function: _F) -> _F:
        """
        Register a function that is given the context before each function of this bot is called.
        If it returns a text, that is the answer; if it returns False there is none: in both cases
        the function is not called.
        """
        return self._hook(Event.BEFORE, function)

    def after(self, function: _F) -> _F:
        """
        Register a function that is called when a function of this bot has ended: with the context,
        and the error, or L{None}.
        """
        return self._hook(Event.AFTER, function)

    def _hook(self, event: Event, function: _F) -> _F:
        return self._registering(event, (), "", False)(function)

    def _check_names(self, names: Iterable[str], included: "Bot | None" = None) -> None:
        """@raise ValueError: a name is there twice, or is taken."""
        taken: dict[str, str] = {
            normal(used): command.place
            for one in self.handlers.bots()
            if one is not included
            for command in one.handlers.own(Event.COMMAND)
            for used in (command.name, *command.aliases)
        }
        for name in names:
            key = normal(name)
            if key in taken:
                first = f", first at {taken[key]}" if taken[key] else ""
                raise ValueError(f"the bot {self.name!r} has the command {name!r} twice{first}")
            taken[key] = ""

    def _registering(
        self,
        event: Event,
        names: Sequence[str],
        help: str,
        reactor: bool,
        allow: Allow | None = None,
        cooldown: Cooldown | None = None,
        takes: Filter | None = None,
        schedule: Schedule | None = None,
    ) -> Callable[[_F], _F]:
        module = sys._getframe(2).f_globals.get("__name__", "")

        def register(function: _F) -> _F:
            runs = runs_where(function, reactor)
            arguments = None
            if event is Event.COMMAND:
                try:
                    arguments = Arguments.of(function)
                except TypeError as error:
                    raise BadHandler(function, str(error)) from None
            if arguments is None:
                check_call(function, _GIVEN[event])
            doc = inspect.getdoc(function) if inspect.isroutine(function) else None
            line = help or (doc or "").partition("\n")[0]
            called = getattr(function, "__name__", event.value)
            name = names[0] if names else f"{self.name}.{called}"
            for other in self.handlers.own(Event.SCHEDULE):
                if other.name == name and schedule is not None and schedule.equals(other.schedule):
                    raise BadHandler(function, f"has this schedule twice, first at {other.place}")
            self.handlers.add(
                Command(
                    name,
                    tuple(names[1:]),
                    function,
                    self.name,
                    line,
                    allow,
                    runs,
                    module,
                    event,
                    takes,
                    arguments,
                    cooldown,
                    schedule,
                )
            )
            return function

        return register


#: The number of arguments that a function is given, by what it is called for.
_GIVEN: Final = {
    Event.COMMAND: 1,
    Event.MESSAGE: 1,
    Event.BEFORE: 1,
    Event.AFTER: 2,
    Event.ERROR: 2,
    Event.START: 0,
    Event.STOP: 0,
    Event.SCHEDULE: 1,
}


def _texts(given: Iterable[str], what: str) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        kind = "a text" if isinstance(given, str) else type(given).__name__
        raise TypeError(f"{what}: a tuple of texts, not {kind}")
    found = tuple(given)
    for one in found:
        if not isinstance(one, str):
            raise TypeError(f"{what}: a tuple of texts; {one!r:.100} is {type(one).__name__}")
    return found


def _check_text(given: str, what: str) -> str:
    if not isinstance(given, str):
        raise TypeError(f"{what}: a text, not {type(given).__name__}")
    return given


def _pattern(given: object) -> re.Pattern[str] | None:
    if given is None:
        return None
    pattern = given if isinstance(given, re.Pattern) else None
    if isinstance(given, str):
        try:
            pattern = re.compile(given)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"pattern: {given!r:.100} is wrong: {error}") from None
    if pattern is None or not isinstance(pattern.pattern, str):
        raise TypeError("pattern: a text, or what re.compile() makes of one")
    return pattern
