"""C{domaeka send}, C{drain}, C{migrate} and C{reload}: an operator changes a server."""

import sys
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

import click

from domaeka.cli import views
from domaeka.cli.api_client import ApiClient, name, operators, path_of, read_as
from domaeka.cli.operator import STATUSES
from domaeka.cli.output import one_line
from domaeka.cli.places import Unreachable
from domaeka.health import Health
from domaeka.schema import (
    MAX_MEDIA_BYTES,
    MAX_MEDIA_ITEMS,
    MAX_WAIT_MS,
    Accepted,
    DrainState,
    Message,
    MigrationState,
    Reloaded,
)
from domaeka.wire import MediaType

#: Longest text that is read from standard input, in bytes.  Source: C{server.max_text_chars} is at
#: most 10,000,000, and a character has at most 4.
MAX_TEXT_BYTES: Final = 40_000_000
#: Seconds between two requests for the state of a message, and of a stop or a move.
MESSAGE_SECONDS: Final = 0.25
CHANGE_SECONDS: Final = 1.0


@click.command(
    epilog=f"""\b
Examples:
  domaeka send --bot 가게봇 --room 단골방 '오늘은 쉽니다'
  date | domaeka send --bot 가게봇 --room 단골방 --wait
  domaeka send --bot 가게봇 --room 단골방 --media menu.png --media price.png --wait-time 8000
  domaeka send --bot 가게봇 --channel-id 18398338829933617 --media https://shop.example/a.jpg

{STATUSES}
  With --wait, 1 also where it expired or was dropped."""
)
@click.argument("text", required=False)
@click.option("--bot", required=True, callback=name, help="The bot's name.")
@click.option("--room", callback=name, help="The room's name.")
@click.option("--channel-id", metavar="DIGITS", callback=name, help="The room's id.")
@click.option("--device", callback=name, help="The phone; else where the room was last heard.")
@click.option(
    "--media",
    metavar="FILE|URL",
    multiple=True,
    callback=name,
    help="A picture or other file, instead of TEXT; may be repeated.",
)
@click.option("--type", "kind", type=click.Choice(get_args(MediaType)), help="Of --media.")
@click.option("--format", "form", metavar="png|jpg|…", help="Of --media; else told by the file.")
@click.option(
    "--wait-time",
    metavar="MS",
    type=click.IntRange(1, MAX_WAIT_MS),
    help="How long the phone stays in the chat app to send --media.",
)
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="[default: normal]")
@click.option(
    "--ttl",
    metavar="SECONDS",
    type=click.FloatRange(0, 31_536_000, min_open=True),
    help="How long it may wait for the phone.  [default: queue.message_ttl]",
)
@click.option("--wait", is_flag=True, help="Until it was sent, or its time is over.")
@operators
def send(
    api: ApiClient,
    text: str | None,
    bot: str,
    room: str | None,
    channel_id: str | None,
    device: str | None,
    media: tuple[str, ...],
    kind: str | None,
    form: str | None,
    wait_time: int | None,
    priority: str | None,
    ttl: float | None,
    wait: bool,
) -> None:
    """
    Send TEXT, or files, to a room.

    Without TEXT and --media, standard input is sent.
    """
    if room is None and channel_id is None:
        raise click.UsageError("--room, or --channel-id, must be given")
    if media and text is not None:
        raise click.UsageError("TEXT: not with --media")
    if not media and (kind or form or wait_time):
        raise click.UsageError("--type, --format and --wait-time: only with --media")
    optional = {
        "room": room,
        "channel_id": channel_id,
        "device": device,
        "message_type": kind,
        "message_format": form,
        "media_wait_time": wait_time,
        "priority": priority,
        "ttl": ttl,
    }
    body: dict[str, Any] = {key: value for key, value in optional.items() if value is not None}
    body["bot"] = bot
    if media:
        body["media"] = _media(media)
    else:
        body["text"] = _input() if text is None else _checked(text)
    found = api.request("POST", "/messages", body)
    path = "/messages" + path_of(read_as(found, Accepted).id)
    if wait:
        found = api.request("GET", path)
        while read_as(found, Message).state == "queued":
            api.pause(MESSAGE_SECONDS)
            found = api.request("GET", path)
    if api.as_json:
        api.show_json(found)
    elif wait:
        message = read_as(found, Message)
        why = f": {message.reason}" if message.reason else ""
        click.echo(one_line(f"{message.id}: {message.state}, by {message.device}{why}"))
    else:
        click.echo(one_line(f"{read_as(found, Accepted).id}: taken"))
    if wait and read_as(found, Message).state not in ("sent", "acknowledged", "delivered"):
        raise click.exceptions.Exit(1)


def _media(names: tuple[str, ...]) -> list[dict[str, str]]:
    """
    Files by their bytes, addresses as they are.

    @raise click.ClickException: one cannot be read, or there are too many, or too large ones.
    """
    if len(names) > MAX_MEDIA_ITEMS:
        raise click.ClickException(f"--media: at most {MAX_MEDIA_ITEMS}")
    items: list[dict[str, str]] = []
    room = MAX_MEDIA_BYTES
    for one in names:
        if one.lower().startswith(("http://", "https://")):
            items.append({"url": one})
            continue
        try:
            with Path(one).open("rb") as file:
                data = file.read(room + 1)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise click.ClickException(one_line(f"{one}: {why}")) from None
        room -= len(data)
        if room < 0:
            raise click.ClickException(f"--media: more than {MAX_MEDIA_BYTES} bytes in all")
        if not data:
            raise click.ClickException(one_line(f"{one}: is empty"))
        items.append({"base64": b64encode(data).decode()})
    return items


def _input() -> str:
    """The text from standard input, without the newline at its end."""
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("TEXT, or --media, must be given")
    raw = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise click.ClickException("standard input: too long")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise click.ClickException("standard input: not UTF-8") from None
    return _checked(text.removesuffix("\n").removesuffix("\r"))


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise click.UsageError("TEXT: not UTF-8") from None
    if not text:
        raise click.ClickException("there is nothing to send")
    return text


# Stop


@click.command(
    epilog=f"""\b
Examples:
  domaeka drain --wait && echo 'the server has ended'
  domaeka drain --status
  domaeka drain --off

{STATUSES}
  With --wait, 1 also where it was called off."""
)
@click.option("--status", "ask", is_flag=True, help="Only say how it goes.")
@click.option("--off", is_flag=True, help="Call it off, as long as phones are connected.")
@click.option("--wait", is_flag=True, help="Until the server has ended.")
@operators
def drain(api: ApiClient, ask: bool, off: bool, wait: bool) -> None:
    """
    Stop the server in order.

    The port is shut, every phone is told when to come back, what was accepted is answered; then the
    process ends.
    """
    if ask + off + wait > 1:
        raise click.UsageError("--status, --off, --wait: only one of them")
    found = api.request("GET" if ask else "DELETE" if off else "POST", "/drain")
    if not wait:
        state = read_as(found, DrainState)
        emptied = not (ask or off or state.draining)
        api.show(found, lambda: views.DRAINED if emptied else views.drain_line(state))
        return
    with suppress(Unreachable):
        _drained(api, found)
    api.show({"ended": True}, lambda: "the server has ended")


def _drained(api: ApiClient, found: Any) -> NoReturn:
    """
    Show the progress of a stop, to the end.

    @raise Unreachable: the server has ended.
    @raise click.ClickException: it was called off.
    """
    last = ""
    while True:
        state = read_as(found, DrainState)
        # Once no phone is left the server only writes to the store.
        if not state.draining and read_as(api.page("/health")[1], Health).status != "draining":
            raise click.ClickException("the drain was called off")
        line = views.drain_line(state) if state.draining else views.DRAINED
        if not api.as_json and line != last:
            click.echo(one_line(line))
        last = line
        api.pause(CHANGE_SECONDS)
        found = api.request("GET", "/drain")


# Move


@click.command(
    epilog=f"""\b
Examples:
  domaeka migrate new.example:9000 --wait
  domaeka migrate --status
  domaeka migrate --off

{STATUSES}
  With --wait, 1 also where it halted or was called off."""
)
@click.argument("target", metavar="[HOST:PORT]", required=False, callback=name)
@click.option("--tls", is_flag=True, help="The other server's port speaks TLS.")
@click.option(
    "--migrate-after",
    metavar="SECONDS",
    type=click.FloatRange(0, 3600),
    help="When a phone is to move, at least.  [default: migration.migrate_after]",
)
@click.option(
    "--spread",
    metavar="SECONDS",
    type=click.FloatRange(0, 86_400, min_open=True),
    help="Over how long the notices go out.  [default: migration.spread]",
)
@click.option("--status", "ask", is_flag=True, help="Only say how it goes, or the last one went.")
@click.option("--off", is_flag=True, help="Call it off: those that have moved stay there.")
@click.option("--wait", is_flag=True, help="Until it is over.")
@operators
def migrate(
    api: ApiClient,
    target: str | None,
    tls: bool,
    migrate_after: float | None,
    spread: float | None,
    ask: bool,
    off: bool,
    wait: bool,
) -> None:
    """
    Move every phone to another server.

    HOST:PORT is tried first. Clients that can connect there before they leave here; old phones are
    closed last.
    """
    if (target is not None) + ask + off != 1:
        raise click.UsageError("HOST:PORT, --status or --off must be given, one of them")
    if target is None and (tls or migrate_after is not None or spread is not None):
        raise click.UsageError("--tls, --migrate-after, --spread: only with HOST:PORT")
    if target is None:
        found = api.request("GET" if ask else "DELETE", "/migration")
    else:
        host, port = read_target(target)
        body: dict[str, object] = {"host": host, "port": port, "tls": tls}
        if migrate_after is not None:
            body["migrate_after"] = migrate_after
        if spread is not None:
            body["spread"] = spread
        found = api.request("POST", "/migration", body)
    last = ""
    while True:
        state = read_as(found, MigrationState)
        line = views.migration_line(state)
        over = not wait or state.phase not in ("moving", "emptying")
        if api.as_json and over:
            api.show_json(found)
        elif not api.as_json and line != last:
            click.echo(one_line(line))
        if over:
            break
        last = line
        api.pause(CHANGE_SECONDS)
        found = api.request("GET", "/migration")
    if wait and state.phase != "done":
        raise click.exceptions.Exit(1)


def read_target(text: str) -> tuple[str, int]:
    """
    A host and a port.

    @raise click.UsageError: C{text} does not have them.
    """
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    right = bool(bare) and (":" not in bare or bare != host) and port.isascii() and port.isdigit()
    if not right or len(port) > 5 or not 1 <= int(port) <= 65535:
        raise click.UsageError(f"{one_line(text)!r:.100} is not HOST:PORT")
    return bare, int(port)


# Settings


@click.command(
    epilog=f"""\b
Examples:
  domaeka check-config /etc/domaeka.toml && domaeka reload

{STATUSES}
  1 where something is wrong: then nothing has changed."""
)
@operators
def reload(api: ApiClient) -> None:
    """
    Have settings and bots read again.

    Secrets and certificates too. What is changed and only holds at a restart is named.
    """
    found = api.request("POST", "/reload")
    if api.as_json:
        api.show_json(found)
        return
    state = read_as(found, Reloaded)
    click.echo(one_line(f"changed: {', '.join(state.changed) or 'nothing'}"))
    if state.needs_restart:
        click.echo(one_line(f"only at a restart: {', '.join(state.needs_restart)}"))
