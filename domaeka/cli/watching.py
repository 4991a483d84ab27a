"""C{domaeka bots}, C{domaeka events} and C{domaeka chat-log}."""

import os
import re
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from rich.console import Group
from twisted.python.runtime import seconds

from domaeka.cli import views
from domaeka.cli.api_client import (
    ApiClient,
    NotTrusted,
    Refused,
    name,
    operators,
    read_as,
)
from domaeka.cli.operator import STATUSES, room_id
from domaeka.cli.places import Unreachable
from domaeka.schema import MAX_PAGE, Bots
from domaeka.schema_chat import ChatLine, ChatLines

#: Shortest and longest pause before another try to read events, in seconds.
RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 30.0
#: Most lines of chat that are shown of what was said so far, and most of their text, in characters.
MAX_LINES: Final = 10_000
MAX_LINES_CHARS: Final = 50_000_000
#: The pause before new lines are asked for, in seconds.
FOLLOW_SECONDS: Final = 1.0
#: The pause between two notes on how far back a search has come, in seconds.
NOTE_SECONDS: Final = 5.0
#: Units of times ago, in seconds.
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.command(
    epilog=f"""\b
Examples:
  domaeka bots
  domaeka bots --json | jq '.bots[].commands[] | select(.failures > 0) | .name'

{STATUSES}"""
)
@operators
def bots(api: ApiClient) -> None:
    """
    List the bots with their commands.

    Calls and failures are counted from the start of the server. A command of which the breaker is
    open is not called for a while.
    """
    found = api.request("GET", "/bots")

    def view() -> Group:
        answer = read_as(found, Bots)
        services = [views.services_table(answer.services)] if answer.services else []
        return Group(views.bots_table(answer.bots), *services)

    api.show(found, view)


@click.command(
    epilog=f"""\b
Examples:
  domaeka events
  domaeka events --json | jq -r 'select(.event == "closed") | .reason'

{STATUSES}"""
)
@operators
def events(api: ApiClient) -> None:
    """
    Show what happens, as it happens, until Ctrl-C.

    Phones that come and go, lines that get worse, decisions, bans, a stop or a move. A server that
    is away is waited for; what happens meanwhile is not shown.
    """
    with _output():
        _follow(api)


@contextmanager
def _output() -> Iterator[None]:
    """Output until Ctrl-C, or until nobody reads it any more."""
    try:
        with suppress(KeyboardInterrupt):
            yield
    except BrokenPipeError:
        # The reader has ended; the buffer could not be written at the exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _follow(api: ApiClient) -> None:
    """
    Show events for ever.

    @raise BrokenPipeError: nobody reads them any more.
    @raise click.ClickException: the first request failed, or the token is not valid any more.
    """
    heard = False
    pause = RETRY_SECONDS
    while True:
        away = heard
        try:
            for event in api.events():
                if away:
                    click.echo("domaeka: connected again", err=True)
                away, heard, pause = False, True, RETRY_SECONDS
                if event is None:
                    _check_reader()
                elif api.as_json:
                    name, data = event
                    api.show_json({"event": name, **data})
                else:
                    click.echo(views.event_line(*event, seconds()))
            trouble = "the server has ended the stream"
        except NotTrusted:
            raise
        except (Unreachable, Refused) as error:
            if not heard:
                raise
            trouble = error.message
        click.echo(f"domaeka: {trouble}; trying again", err=True)
        api.pause(pause)
        pause = min(pause * 2, MAX_RETRY_SECONDS)


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A time as the API takes it."""
    if value is None:
        return None
    try:
        if match := re.fullmatch(r"([0-9]{1,9})([smhd])", value):
            ago = timedelta(seconds=int(match[1]) * _UNITS[match[2]])
            return (datetime.fromtimestamp(seconds(), UTC) - ago).isoformat()
        return datetime.fromisoformat(value).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r:.40} is not like 2026-11-22, '2026-11-22 12:00' or 90m (ago; s, m, h, d)",
            ctx,
            param,
        ) from None


@click.command(
    "chat-log",
    epilog=f"""\b
Examples:
  domaeka chat-log                            the last 50 lines
  domaeka chat-log --bot 가게봇 --room 시험방 --follow
  domaeka chat-log --text 주문 --since 7d --limit 1000
  domaeka chat-log --since 2026-11-22 --until 2026-11-23 --json | jq -r .text

{STATUSES}""",
)
@click.option("--bot", callback=name, help="Only lines of this bot.")
@click.option("--room", callback=name, help="Only lines of this room: its id, or its name.")
@click.option("--sender", callback=name, help="Only what this person said.")
@click.option("--text", callback=name, help="Only lines with this text in them, as it is.")
@click.option(
    "--since",
    metavar="TIME",
    callback=_moment,
    help="Only from then on: a time of this machine's zone, or 90m, 12h, 7d ago.",
)
@click.option("--until", metavar="TIME", callback=_moment, help="Only before then, likewise.")
@click.option(
    "--limit",
    default=50,
    show_default=True,
    type=click.IntRange(1, MAX_LINES),
    help="Show the last lines, and no more than this.",
)
@click.option("--follow", "-f", is_flag=True, help="Then show new lines, until Ctrl-C.")
@operators
def chat_log(
    api: ApiClient,
    bot: str | None,
    room: str | None,
    sender: str | None,
    text: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    follow: bool,
) -> None:
    """
    Show what was said and answered, the latest line last.

    A line is there half a second after it was said. With --json each is a JSON object in a line. A
    search for what is rare takes a while; Ctrl-C shows what was found so far.
    """
    if follow and until is not None:
        raise click.UsageError("--until: not with --follow")
    with _output():
        which = None if room is None else room_id(api, bot, room)
        query = {"bot": bot, "room": which, "sender": sender, "text": text, "since": since}
        newest = _show_last(api, limit, {**query, "until": until})
        if follow:
            _follow_chat(api, newest, query)


def _show_last(api: ApiClient, limit: int, query: dict[str, Any]) -> int:
    """Show the last lines.  @return: what was stored last."""
    found: list[Any] = []
    chars = 0
    newest = -1
    after: str | None = None
    noted = seconds()
    try:
        while True:
            most = min(MAX_PAGE, limit - len(found))
            answer = api.request("GET", "/chat", None, limit=most, after=after, **query)
            page = read_as(answer, ChatLines)
            if newest < 0:
                newest = page.newest
                if not page.enabled:
                    _note("the chat log is off (storage.chat_log): nothing new is stored")
            for line, raw in zip(page.chat, answer["chat"], strict=True):
                if line.id <= newest:  # else it comes when it is followed
                    found.append(raw)
                    chars += len(line.text)
            after = page.next
            if after is None or len(found) >= limit:
                break
            if chars > MAX_LINES_CHARS:
                _note(f"no more than {len(found)} lines: they are long")
                break
            if seconds() - noted > NOTE_SECONDS:
                noted = seconds()
                _note(f"{len(found)} lines found back to {page.searched_to}; searching on")
    except KeyboardInterrupt:
        _show_lines(api, reversed(found))
        raise
    _show_lines(api, reversed(found))
    if not found:
        _note("no such line is stored")
    return newest


def _follow_chat(api: ApiClient, newest: int, query: dict[str, Any]) -> None:
    """
    Show new lines for ever; wait for a server that is away.

    @raise BrokenPipeError: nobody reads them any more.
    """
    after: str | None = None
    shown = newest
    pause = FOLLOW_SECONDS
    away = False
    while True:
        if after is None:
            api.pause(pause)
            _check_reader()
        try:
            answer = api.request(
                "GET", "/chat", None, limit=MAX_PAGE, after=after, newer_than=newest, **query
            )
            page = read_as(answer, ChatLines)
        except NotTrusted:
            raise
        except (Unreachable, Refused) as error:
            if not away:
                _note(f"{error.message}; trying again")
            away, after, newest = True, None, shown
            pause = min(pause * 2, MAX_RETRY_SECONDS)
            continue
        if away:
            _note("connected again")
        away, pause = False, FOLLOW_SECONDS
        _show_lines(api, answer["chat"])
        after = page.next
        if page.chat:
            shown = page.chat[-1].id
        if after is None:
            newest = shown = max(shown, page.newest)


def _show_lines(api: ApiClient, lines: Iterable[Any]) -> None:
    for line in lines:
        if api.as_json:
            api.show_json(line)
        else:
            click.echo(views.chat_line(read_as(line, ChatLine)))


def _note(text: str) -> None:
    click.echo(f"domaeka: {text}", err=True)


def _check_reader() -> None:
    """
    Check that standard output is still read, without writing.

    @raise BrokenPipeError: it is not.
    """
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # no file
        return
    poll = select.poll()
    poll.register(number, 0)
    if any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0)):
        raise BrokenPipeError
