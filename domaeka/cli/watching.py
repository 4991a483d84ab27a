"""C{domaeka bots} and C{domaeka events}."""

import os
import select
import sys
from contextlib import suppress
from typing import Final

import click
from rich.console import Group
from twisted.python.runtime import seconds

from domaeka.cli import views
from domaeka.cli.api_client import ApiClient, NotTrusted, Refused, Unreachable, operators, read_as
from domaeka.cli.operator import STATUSES
from domaeka.schema import Bots

#: Shortest and longest pause before another try to read events, in seconds.
RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 30.0


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
    try:
        with suppress(KeyboardInterrupt):
            _follow(api)
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
