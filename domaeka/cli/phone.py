"""C{domaeka phone}: a stand-in phone."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Protocol

import click
import msgspec
from twisted.internet import task
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.runtime import seconds

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
from domaeka.cli.load import Load
from domaeka.cli.talk import PipedTalk, Talk
from domaeka.client import (
    CAPABILITIES,
    Client,
    ClientEvent,
    Credentials,
    Dialect,
    Identity,
    Reply,
    Said,
    Server,
)
from domaeka.clock import keep_going
from domaeka.config import settings_here
from domaeka.errors import ConfigError
from domaeka.secrets import read_secrets, secrets_in_settings
from domaeka.state import SECRETS_NAME, state_path, trusting_owner

#: Most phones at once: their connections are files of this process.
MAX_PHONES: Final = 10_000
#: Most lines that are read for many phones.
MAX_LINES: Final = 100_000
#: The line of each of many phones if standard input has none, and how often it is sent.
_ECHO: Final = "# echo {phone}: "
_ECHOES: Final = 10
#: Name of a file in the state directory with a locked byte for each stand-in phone that runs.
_LOCK_NAME: Final = "phones.lock"


class Options(msgspec.Struct, kw_only=True, frozen=True):
    """The options of the command line; the help of L{phone} explains them."""

    host: str
    port: int
    tls: bool
    bot: str
    room: str
    channel_id: str | None
    sender: str
    user_hash: str | None
    device_id: str | None
    script_version: str
    legacy: bool
    count: int
    messages: int | None
    interval: float
    wait: float
    state_dir: str | None
    secrets_file: Path | None
    config: Path | None

    @property
    def only_figures(self) -> bool:
        """True if the user wants figures, not answers."""
        return self.count > 1 or self.messages is not None


@click.command(
    epilog="""\b
Examples:
  domaeka phone
  domaeka phone --script-version 3.2.1 --room 시험방
  echo '# echo 안녕하세요' | domaeka phone
  domaeka phone --count 50 --messages 100
  seq 1000 | sed 's/^/# echo /' | domaeka phone --count 10

\b
Exit status, where standard input is no terminal, or with --count or --messages:
  0  every line was answered        3  the server cannot be reached
  1  some were not                  4  the server does not want this phone
"""
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the server is.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Its port.  [default: server.port, 9000]"
)
@click.option("--tls", is_flag=True, help="Connect with TLS; the certificate must be good.")
@click.option("--bot", default="domaeka", show_default=True, help="The bot's name.")
@click.option("--room", default="테스트방", show_default=True, help="The room's name.")
@click.option("--channel-id", metavar="DIGITS", help="The room's id; made from its name.")
@click.option("--sender", default="나", show_default=True, help="Who writes.")
@click.option("--user-hash", metavar="TEXT", help="The writer's id; made from the name.")
@click.option("--device-id", metavar="TEXT", help="The phone's id; one that is free by default.")
@click.option(
    "--script-version",
    default="3.3.3",
    show_default=True,
    type=click.Choice(["3.3.3", "3.2.1"]),
    help="The bridge script to stand in for; 3.2.1 speaks as old scripts do.",
)
@click.option("--legacy", is_flag=True, help="Ask for nothing that old scripts do not know.")
@click.option("--count", default=1, type=click.IntRange(1, MAX_PHONES), help="Many at once.")
@click.option(
    "--messages",
    type=click.IntRange(1, MAX_LINES),
    help="How many echoes each asks for, instead of what is typed or piped in.",
)
@click.option(
    "--interval",
    default=0.0,
    type=click.FloatRange(0, 3600),
    help="Seconds from an answer to the next line.",
)
@click.option(
    "--wait",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="Seconds to wait for an answer.",
)
@click.option("--state-dir", metavar="DIR", help="The server's state directory: its secrets.")
@click.option(
    "--secrets-file",
    type=click.Path(path_type=Path),
    help="A file with secret_key and salt, as secrets.toml, instead.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The server's settings; else ./domaeka.toml, if it is there.",
)
def phone(**given: Any) -> None:
    """
    Be a phone: type chat, see what the bots answer.

    Where standard input is no terminal, each line is said, up to 10 s are waited for its answer,
    and the answers alone are printed; everything else goes to standard error. Ctrl-D ends it.

    The secrets are those of the local state directory. DOMAEKA_AUTH_SECRET_KEY and
    DOMAEKA_AUTH_SALT in the environment go before them.
    """
    if given["port"] is None:
        given["port"] = settings_here(given["config"]).load().server.port
        if not given["port"]:
            raise click.UsageError("--port must be given: server.port is 0, any free one")
    options = Options(**given)
    credentials = find_credentials(options)
    fill_standard_files()
    status: int | None = None

    async def run(reactor: Any) -> None:
        nonlocal status
        keep_going(reactor)
        await task.deferLater(reactor, 0)  # signals are the reactor's once it runs
        with free_device_ids(options) as device_id:
            status = await _run(reactor, options, partial(_client, options, credentials, device_id))

    try:
        task.react(lambda reactor: ensureDeferred(run(reactor)))
    except SystemExit as ended:
        # Without a status, run() has failed and reported that.
        raise SystemExit(ended.code if status is None else status) from None


def find_credentials(options: Options) -> Credentials:
    """
    The key and the salt to sign with.

    @raise ConfigError: there are none, or they are unusable.
    """
    path = options.secrets_file or state_path(options.state_dir, os.environ) / SECRETS_NAME
    now = seconds()
    with trusting_owner(path.parent):
        auth = settings_here(options.config).load().auth
        if auth.secret_key and auth.salt and options.secrets_file is None:
            return Credentials(auth.previous_secret_key or auth.secret_key, auth.salt)
        if not path.exists():
            raise ConfigError(
                f"{path}: no secrets. Start the server once, or give --state-dir or --secrets-file"
            )
        secrets = read_secrets(path, auth, now)
        given = secrets_in_settings(auth)
    # The older key, if two are accepted: a server takes it whether it has read the new one yet or
    # not.  Not one from elsewhere, for it may be another server's.
    together = ("secret_key" in given) is ("previous_secret_key" in given)
    key = secrets.accepted_keys(now)[-1] if together else secrets.secret_key
    return Credentials(key, secrets.salt)


@contextlib.contextmanager
def free_device_ids(options: Options) -> Iterator[Callable[[], str]]:
    """
    A function that gives each phone an id.

    Phones with the same id take over each other's connection, so those that run at the same time
    get different ones; these stay the same, so that an operator need approve them only once.
    """
    numbers = iter(range(1, MAX_PHONES * 2))
    if options.device_id is not None:
        given = options.device_id
        yield lambda: given if options.count == 1 else f"{given}-{next(numbers)}"
        return
    try:
        directory = state_path(options.state_dir, os.environ)
        lock = (directory / _LOCK_NAME).open("a+b")
    except (OSError, ConfigError):
        yield lambda: os.urandom(8).hex()
        return
    with lock:
        yield lambda: _free_id(lock, numbers)


def _free_id(lock: IO[bytes], numbers: Iterator[int]) -> str:
    """The first id that no other process uses."""
    for number in numbers:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            continue
        return _digest(f"stand-in phone {number}")
    return os.urandom(8).hex()


def _digest(text: str) -> str:
    """16 hexadecimal digits, as an Android id has."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _client(
    options: Options,
    credentials: Credentials,
    device_id: Callable[[], str],
    reactor: Any,
    on_reply: Callable[[Reply], None],
    on_event: Callable[[ClientEvent], None],
) -> Client:
    old = options.script_version.startswith("3.2")
    identity = Identity(
        bot_name=options.bot,
        device_id=device_id(),
        version=options.script_version,
        device_info="domaeka phone",
    )
    if old or options.legacy:
        identity = msgspec.structs.replace(identity, client_type="MessengerBotR")
    return Client(
        reactor,
        [Server(options.host, options.port, options.tls)],
        identity,
        credentials,
        on_reply,
        on_event,
        dialect=Dialect.V32 if old else Dialect.V33,
        capabilities=() if options.legacy or old else CAPABILITIES,
        wall=seconds,
    )


def _phrase(options: Options, text: str) -> Said:
    channel_id = options.channel_id
    if channel_id is None:
        channel_id = str(int(_digest(f"room {options.room}"), 16))
    return Said(
        room=options.room,
        sender=options.sender,
        text=text,
        channel_id=channel_id,
        is_group=True,
        user_hash=options.user_hash or _digest(f"user {options.sender}"),
    )


async def _run(reactor: Any, options: Options, make_client: Callable[..., Client]) -> int:
    """@return: the exit status."""
    phrase = partial(_phrase, options)
    client = partial(make_client, reactor)
    if options.only_figures:
        return await _run_load(reactor, options, client, phrase)
    console: Pipe | Terminal
    pipe: Pipe
    talk: Talk
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(standard_files())
        if os.isatty(STDIN) and os.isatty(STDOUT):
            stack.enter_context(single_keys())
            console = terminal = Terminal(options.room, options.sender)
            talk = Talk(reactor, client, phrase, terminal.note, terminal.show)
            terminal.on_line = talk.line_written
            terminal.on_end = partial(talk.finish, output.ALL_ANSWERED)
        else:
            talk = piped = PipedTalk(
                *(reactor, client, phrase, note_error, lambda reply: pipe.show(reply)),
                wait=options.wait,
                pause=options.interval,
            )
            console = pipe = Pipe(piped)
            piped.on_accepting = pipe.read_on
            # If nobody reads the answers, none are needed.
            pipe.closed.addCallback(lambda _: piped.finish(output.UNANSWERED))
        open_files(reactor, files, console)
        interrupt(reactor, talk)
        talk.start()
        status = await talk.done
        await console.close()
        return status


class Ending(Protocol):
    """Something that can be ended.  @ivar done: fires with an exit status once it is over."""

    done: "Deferred[int]"

    def finish(self, status: int) -> None:
        """End with C{status}."""


def interrupt(reactor: Any, talk: Ending) -> None:
    """Make a signal end C{talk} in order."""
    over: Deferred[None] = Deferred()

    def ended(status: int) -> int:
        over.callback(None)
        return status

    def interrupted() -> "Deferred[None] | None":
        talk.finish(output.INTERRUPTED)
        return None if over.called else over

    talk.done.addCallback(ended)
    reactor.addSystemEventTrigger("before", "shutdown", interrupted)


async def _run_load(
    reactor: Any, options: Options, client: Callable[..., Client], phrase: Callable[[str], Said]
) -> int:
    lines: list[str] = []
    if options.messages is None and not os.isatty(STDIN):
        with open(STDIN, encoding="utf-8", errors="replace", closefd=False) as file:
            lines = [line for line in map(str.strip, islice(file, MAX_LINES)) if line]
    if not lines:
        lines = [f"{_ECHO}{number + 1}" for number in range(options.messages or _ECHOES)]

    def make_talk(note: Callable[[str], None], took: Callable[[float], None]) -> PipedTalk:
        return PipedTalk(
            *(reactor, client, phrase, note, lambda reply: None),
            wait=options.wait,
            pause=options.interval,
            took=took,
        )

    load = Load(reactor, make_talk, lines, options.count, note_error)
    interrupt(reactor, load)
    load.start()
    status: int = await load.done
    click.echo(load.summary())
    return status
