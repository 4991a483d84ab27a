"""C{domaeka chat}: bots and somebody at a terminal, without a server."""

import contextlib
import hashlib
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final, cast

import click
from msgspec.structs import replace
from twisted.internet import task
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogBeginner
from twisted.python.runtime import seconds

from domaeka.bots.api import Bot
from domaeka.bots.coroutines import BotLoop, Coroutines
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.failures import Report, listening
from domaeka.bots.loading import load_bots, look_here, reload_bots
from domaeka.bots.threads import CommandThreads, Threads
from domaeka.cli import output
from domaeka.cli.console import (
    STDIN,
    STDOUT,
    Pipe,
    Terminal,
    fill_standard_files,
    note_error,
    open_files,
    single_keys,
    standard_files,
)
from domaeka.cli.phone import interrupt
from domaeka.cli.pictures import Pictures
from domaeka.cli.talk import MAX_WAITING_LINES
from domaeka.clock import keep_going
from domaeka.config import Settings, settings_here
from domaeka.errors import ConfigError
from domaeka.interfaces import Destination, DeviceKey, StatusListener
from domaeka.logs import StandardLogging, printed, text_line
from domaeka.policies.outbox import DeliveryStatus
from domaeka.testing.host import MemoryHost, MemoryRooms
from domaeka.texts_ko import CHAT_PEOPLE, CHAT_ROOMS
from domaeka.tracebacks import traceback_text, whole_text
from domaeka.wire import MAX_TEXT_CHARS, Chat, Dialect, Media, Reply, timestamp_text

#: Real time between looks whether functions still run, in seconds.
_LOOK_SECONDS: Final = 0.02
#: The phone's bot name, if no bot has one.
_PHONE: Final = "domaeka"
#: The statuses of each answer.
_FATE: Final = (DeliveryStatus.SENT, DeliveryStatus.ACKNOWLEDGED, DeliveryStatus.DELIVERED)

_HELP: Final = """\
/room 1, /room 2      go to the room
/person 1, /person 2  be the person
/reload               import the bots' files that have changed
/quit                 end, as Ctrl-D does
//text                say /text"""


@click.command(
    epilog="""\b
Examples:
  domaeka chat --bots mybot:bot
  echo '# help' | domaeka chat --bots mybot:bot

\b
Exit status, where standard input is no terminal:
  0  every line was worked on
  1  a function has failed, or still ran after --wait
"""
)
@click.option("--bots", metavar="MODULE:ATTRIBUTE", multiple=True, help="A bot; may be repeated.")
@click.option("--operator", is_flag=True, help="The first person is an operator.")
@click.option(
    "--wait",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="Seconds to wait for the work on a line of a pipe.",
)
def chat(bots: tuple[str, ...], operator: bool, wait: float) -> None:
    """
    Talk with bots: no server, no port.

    Type chat as two people in two rooms; /help shows how. Where standard input is no terminal, each
    line is said once the one before it was worked on, and the answers alone are printed; everything
    else goes to standard error, errors of the bots with their tracebacks.

    Settings and bots.load are those of ./domaeka.toml, if it is there. Nothing is stored.
    """
    source = settings_here(None)
    try:
        settings = source.load()
    except ConfigError as error:
        raise ConfigError(source.locate(str(error))) from None
    places = (*settings.bots.load, *bots)
    if not places:
        raise click.UsageError("--bots must be given: the bots to talk with, as mybot:bot")
    # As the server does: bots beside the place from which it is started.
    look_here()
    with contextlib.redirect_stdout(sys.stderr):
        loaded = load_bots(places)
    fill_standard_files()
    status: int | None = None
    refused: ConfigError | None = None

    async def run(reactor: Any) -> None:
        nonlocal status, refused
        keep_going(reactor)
        await task.deferLater(reactor, 0)  # signals are the reactor's once it runs
        try:
            status = await _run(reactor, loaded, places, settings, operator, wait)
        except ConfigError as error:  # two commands have the same name
            refused = error

    try:
        task.react(lambda reactor: ensureDeferred(run(reactor)))
    except SystemExit as ended:
        if refused is not None:
            raise refused from None
        # Without a status, run() has failed and reported that.
        raise SystemExit(ended.code if status is None else status) from None


async def _run(
    reactor: Any,
    bots: Sequence[Bot],
    places: Sequence[str],
    settings: Settings,
    operator: bool,
    wait: float,
) -> int:
    """@return: the exit status."""
    threads = CommandThreads(reactor)
    loop = BotLoop(reactor, threads)
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(standard_files())
        console: Pipe | Terminal
        talk: LocalTalk
        pipe: Pipe
        given = (reactor, loop, threads, bots, places, settings)
        if os.isatty(STDIN) and os.isatty(STDOUT):
            stack.enter_context(single_keys())
            console = terminal = Terminal(*LocalTalk.FIRST)
            terminal.move(*LocalTalk.FIRST)
            talk = LocalTalk(
                *given,
                operator=operator,
                show=terminal.show,
                note=terminal.note,
                moved=terminal.move,
            )
            terminal.on_line = talk.line_written
            terminal.on_end = partial(talk.finish, output.ALL_ANSWERED)
        else:
            talk = piped = PipedLocalTalk(
                *given,
                operator=operator,
                show=lambda reply: pipe.show(reply),
                note=note_error,
                moved=lambda room, person: None,
                wait=wait,
            )
            console = pipe = Pipe(piped)
            piped.on_accepting = pipe.read_on
            # If nobody reads the answers, none are needed.
            pipe.closed.addCallback(lambda _: piped.finish(output.UNANSWERED))
        stack.enter_context(_logged_to(reactor, talk.log_note))
        stack.enter_context(listening(partial(reactor.callFromThread, talk.failed)))
        open_files(reactor, files, console)
        interrupt(reactor, talk)
        talk.start()
        status = await talk.done
        await console.close()
        return status


@contextlib.contextmanager
def _logged_to(reactor: Any, note: Callable[[str], None]) -> Iterator[None]:
    """Note what is printed and logged, from whatever thread, but for what L{listening} hears."""

    def observe(event: LogEvent) -> None:
        namespace = event.get("log_namespace")
        level = event.get("log_level", LogLevel.info)
        if "log_io" in event and namespace == "stdout":
            reactor.callFromThread(note, str(event["log_io"]))
        elif level >= LogLevel.warn and namespace != "domaeka.bots.failures":
            reactor.callFromThread(note, text_line(event, True).rstrip("\n"))

    globalLogBeginner.beginLoggingTo([cast(ILogObserver, observe)], redirectStandardIO=False)
    StandardLogging().attach(logging.WARNING)
    with printed("stdout"):
        yield


class LocalTalk:
    """
    The talk of people with bots that run here: lines to say, answers to show.

    @cvar FIRST: the room and the person of the beginning.
    @ivar done: fires with an exit status once all is over and closed.
    """

    FIRST: Final = (CHAT_ROOMS[0], CHAT_PEOPLE[0])

    def __init__(
        self,
        reactor: Any,
        loop: Coroutines,
        threads: Threads,
        bots: Sequence[Bot],
        places: Sequence[str],
        settings: Settings,
        *,
        show: Callable[[Reply], None],
        note: Callable[[str], None],
        moved: Callable[[str, str], None],
        operator: bool = False,
        pictures: Pictures | None = None,
    ) -> None:
        """
        @param places: the bots, as C{MODULE:ATTRIBUTE}.
        @param show: shows an answer, whose text is harmless.
        @param note: shows a line for people that is no answer.
        @param moved: called with the room and the person that the next line is for.
        @raise ConfigError: two commands have the same name.
        """
        self._reactor = reactor
        self._loop = loop
        self._places = places
        self._show = show
        self._note = note
        self._moved = moved
        self._pictures = pictures or Pictures()
        self._room, self._person = self.FIRST
        self._ids = _room_ids(bots)
        self._numbers = count(1)
        self._finished = False
        self.faults = 0
        self.done: Deferred[int] = Deferred()
        self.key = DeviceKey(min((n for bot in bots for n in bot.names), default=_PHONE), "chat")
        if operator:
            first = _digest(f"user {CHAT_PEOPLE[0]}")
            operators = (*settings.bots.operators, *(f"{i}/{first}" for i in self._ids.values()))
            settings = replace(settings, bots=replace(settings.bots, operators=operators))
        self._settings = settings
        self._dispatcher = BotDispatcher(
            bots,
            reactor,
            threads,
            settings.bots,
            settings.breaker,
            loop=loop,
            observe=lambda command: lambda took: None,
            failed=self._count_fault,
            busy=lambda: None,
        )
        rooms = MemoryRooms(self._unasked)
        for name, channel_id in self._ids.items():
            rooms.hear(channel_id, name, *self.key)
        timeout = settings.bots.timeout
        MemoryHost(self._dispatcher, reactor, loop, seconds, timeout=timeout, rooms=rooms)

    def start(self) -> None:
        """Start the bots."""
        self._dispatcher.start().addCallback(lambda _: self.ready())

    def ready(self) -> None:
        """The bots have started."""

    def finish(self, status: int) -> None:
        """Stop the bots, and end with C{status}."""
        if not self._finished:
            self._finished = True
            self._dispatcher.close().addBoth(lambda _: self.done.callback(status))

    def line_written(self, line: str) -> None:
        """Say a line, or do what it asks for."""
        self._take(line)

    def log_note(self, text: str) -> None:
        """Note a line of the log, or of what bots print."""
        if text:
            self._note(text)

    def failed(self, report: Report) -> None:
        """A function of a bot has failed."""
        said = traceback_text(report.error, whole_text, report.traceback, report.function)
        self._note(f"{report.what}\n{said}")

    def _count_fault(self, command: str) -> None:
        self.faults += 1

    def _take(self, line: str) -> None:
        if self._finished:
            return
        word, _, rest = line.partition(" ")
        asked: dict[str, Callable[[], object]] = {
            "/room": partial(self._move, CHAT_ROOMS, word, rest),
            "/person": partial(self._move, CHAT_PEOPLE, word, rest),
            "/help": partial(self._note, _HELP),
            "/reload": self._reload,
            "/quit": self._quit,
        }
        if word in asked:
            asked[word]()
        else:
            self._say(line[1:] if line.startswith("//") else line)

    def _move(self, names: tuple[str, ...], word: str, rest: str) -> None:
        number = rest.strip()
        if number not in map(str, range(1, len(names) + 1)):
            self._note(f"{word} 1 or {word} 2")
            self._count_fault(word)
            return
        name = names[int(number) - 1]
        if names is CHAT_ROOMS:
            self._room = name
        else:
            self._person = name
        self._moved(self._room, self._person)

    def _quit(self) -> None:
        self.finish(output.ALL_ANSWERED)

    def _reload(self) -> None:
        bots, breaker = self._settings.bots, self._settings.breaker
        try:
            found = reload_bots(
                self._places, lambda loaded: self._dispatcher.apply(loaded, bots, breaker)
            )
        except ConfigError as error:
            self._count_fault("/reload")
            cause = error.__cause__
            said = "" if cause is None else "\n" + traceback_text(cause, whole_text)
            self._note(f"nothing has changed: {error}{said}")
            return
        anew, left = (", ".join(places) or "none" for places in found)
        self._note(f"imported anew: {anew}; left as they were: {left}")

    def _say(self, text: str) -> None:
        if len(text) > MAX_TEXT_CHARS:
            self._note(f"not said: more than {MAX_TEXT_CHARS} characters")
            self._count_fault("")
            return
        chat = Chat(
            dialect=Dialect.V33,
            room=self._room,
            channel_id=self._ids[self._room],
            sender=self._person,
            text=text,
            is_group=True,
            log_id=str(next(self._numbers)),
            user_hash=_digest(f"user {self._person}"),
            is_mention=False,
            sent_at=timestamp_text(seconds()),
            client_id=None,
            auth=None,
        )
        self._said(chat)
        self._dispatcher.submit(chat, self)

    def _said(self, chat: Chat) -> None:
        """A message is about to be worked on."""

    # Origin

    def send(
        self, reply: Reply, ttl: float | None = None, on_status: StatusListener | None = None
    ) -> None:
        """Show an answer."""
        content = reply.content
        text = content if isinstance(content, str) else self._pictures.told(content)
        self._show(replace(reply, content=self._located(reply.room, output.printable(text))))
        if on_status is not None:
            for status in _FATE:
                on_status(status, "")

    def _unasked(self, to: Destination, content: str | Media) -> None:
        """Show what a bot sends unasked."""
        names = {channel_id: name for name, channel_id in self._ids.items()}
        room = names.get(to.channel_id or "", to.room or "")
        self.send(Reply(room, to.channel_id, to.bot_name, content))

    def _located(self, room: str, text: str) -> str:
        """The text of an answer, as it is shown."""
        return text

    def message_done(self, chat: Chat) -> None:
        """The work on a message is done."""

    def describe(self) -> Mapping[str, str]:
        """There is no phone."""
        return {}


class PipedLocalTalk(LocalTalk):
    """
    Says a line, waits until the work on it is done, says the next; ends after the last.

    @ivar on_accepting: called when more lines may be written.
    """

    def __init__(self, *talk: Any, wait: float, **more: Any) -> None:
        """
        @param talk: the arguments of L{LocalTalk}, as C{more}.
        @param wait: longest time to wait for the work on a line, in seconds.
        """
        super().__init__(*talk, **more)
        self._wait = wait
        self._lines: deque[str] = deque()
        self._is_ready = False
        self._no_more = False
        self._wait_ends: Any = None  # a call: the work on a line is waited for until then
        self._undone: Chat | None = None  # the message of that line, until it is done
        self._late = 0  # the number of messages that were waited for long enough
        self.on_accepting: Callable[[], None] = lambda: None

    @property
    def accepts_lines(self) -> bool:
        """True while more lines may be written."""
        return len(self._lines) < MAX_WAITING_LINES

    def ready(self) -> None:
        """Say the first line."""
        self._is_ready = True
        self._go_on()

    def line_written(self, line: str) -> None:
        """Say a line after those before it; an empty one is dropped."""
        if line:
            self._lines.append(line)
            self._go_on()

    def input_ended(self) -> None:
        """There are no more lines."""
        self._no_more = True
        self._go_on()

    def _quit(self) -> None:
        self._end()

    def _end(self) -> None:
        self.finish(output.UNANSWERED if self.faults else output.ALL_ANSWERED)

    def _located(self, room: str, text: str) -> str:
        return text if room == self._room else f"[{room}] {text}"

    def _go_on(self) -> None:
        """Take the next line, if it is time for it."""
        if not self._is_ready or self._finished or self._wait_ends is not None:
            return
        if not self._lines:
            if self._no_more:
                self._end()
            return
        self._wait_ends = wait_ends = self._reactor.callLater(self._wait, self._give_up)
        self._take(self._lines.popleft())
        self._look(wait_ends)
        self.on_accepting()

    def _said(self, chat: Chat) -> None:
        self._undone = chat

    def message_done(self, chat: Chat) -> None:
        """The work on a message is done, or waits for an answer."""
        if chat is self._undone:
            self._undone = None

    def _look(self, wait_ends: object) -> None:
        # What was given to the loop before is under way, or done, when this comes back from it.
        self._loop.call_soon(self._loop.hand_over, self._came_round, wait_ends)

    def _came_round(self, wait_ends: Any) -> None:
        if wait_ends is not self._wait_ends:
            return  # it was given up
        pending = self._dispatcher.pending()
        self._late = min(self._late, pending)
        # Behind an answer to a question, which is done at once, its function goes on.
        if self._undone is not None or pending > self._late:
            self._reactor.callLater(_LOOK_SECONDS, self._look, wait_ends)
        else:
            wait_ends.cancel()
            self._wait_ends = None
            self._go_on()

    def _give_up(self) -> None:
        self._wait_ends = None
        self._undone = None
        self._late = self._dispatcher.pending()
        self._count_fault("")
        self._note(f"the work on it is not over after {self._wait:g} s")
        self._go_on()

    def finish(self, status: int) -> None:
        """Stop the bots, and end with C{status}."""
        if self._wait_ends is not None:
            self._wait_ends.cancel()
            self._wait_ends = None
        super().finish(status)


def _room_ids(bots: Sequence[Bot]) -> dict[str, str]:
    """The channel ids of the rooms: those that bots serve, else made from the names."""
    served = sorted({room for bot in bots for room in bot.rooms})
    made = [str(int(_digest(f"room {name}"), 16)) for name in CHAT_ROOMS]
    return dict(zip(CHAT_ROOMS, [*served, *made], strict=False))


def _digest(text: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
