"""What an operator sees, and decides: status, connections, devices, rooms, bans."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from http import HTTPStatus
from typing import Any, Final

import click
from click.shell_completion import CompletionItem
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from domaeka.cli import views
from domaeka.cli.answers import (
    Ban,
    Bans,
    ClosedConnections,
    Connection,
    Connections,
    Device,
    Devices,
    Overview,
    Room,
    Rooms,
)
from domaeka.cli.groups import Listing
from domaeka.cli.reach import (
    PAGE,
    Desk,
    Refused,
    Unreachable,
    name,
    operators,
    path_of,
    read_as,
)
from domaeka.cli.text import one_line
from domaeka.errors import CloseReason

#: Most items that a command lists where nothing is said: more than a server remembers.
MAX_ITEMS: Final = 1_000_000
#: As the API has them: a test compares.  To import it would take longer than most commands do.
GRADES: Final = ("good", "fair", "poor", "failing")
STATES: Final = ("pending", "approved", "denied", "revoked", "blocked")
SORTS: Final = (
    *("bot", "device", "address", "version", "since", "score", "rtt", "loss", "silent"),
    *("messages", "bytes", "queue"),
)
#: What decides on a device or a room, and its state then.
DECISIONS: Final = {
    "approve": "approved",
    "deny": "denied",
    "revoke": "revoked",
    "block": "blocked",
    "hold": "pending",
}
STATUSES: Final = """\b
Exit status:
  0  done                      3  the server cannot be reached
  1  refused, or it failed     4  the server does not take the token
  2  wrong use"""

_limit: Final = click.option(
    "--limit", default=MAX_ITEMS, type=click.IntRange(1, MAX_ITEMS), help="List no more than this."
)


def _hyphenated(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Reasons as shells can complete them: each one word."""
    words = (reason.replace(" ", "-") for reason in CloseReason)
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _reason(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A reason as the API has it."""
    reason = value and value.replace("-", " ")
    if reason and reason not in list(CloseReason):
        raise click.BadParameter(f"none of {', '.join(CloseReason)}", ctx, param)
    return reason


# Status


@click.command(
    epilog=f"""\b
Examples:
  domaeka status
  domaeka status --url https://chat.example --token-file ~/.domaeka-token
  domaeka status --json | jq .grades

{STATUSES}
  1 also where the server is not healthy, or drains.
"""
)
@operators
def status(desk: Desk) -> None:
    """Show how the server is."""
    answered, health = desk.page("/health")
    found: dict[str, Any] = {"health": health, "stats": desk.page("/stats")[1]}
    found["grades"] = {
        grade: read_as(desk.ask("GET", "/connections", grade=grade, limit=1), Connections).total
        for grade in GRADES
    }
    every = read_as(desk.ask("GET", "/connections", limit=1), Connections).total
    found["grades"]["unknown"] = max(0, every - sum(found["grades"].values()))
    found["pending"], found["more_pending"] = {}, []
    for kind in ("devices", "rooms"):
        page = desk.items(f"/{kind}", PAGE, status="pending")
        found["pending"][kind] = len(page[kind])
        if page["next"] is not None:
            found["more_pending"].append(kind)
    found["bans"] = read_as(desk.ask("GET", "/bans", limit=1), Bans).total
    found["drain"] = desk.ask("GET", "/drain")
    found["migration"] = desk.find("/migration")
    found["bots"] = desk.ask("GET", "/bots")
    if desk.as_json:
        desk.show_json(found)
    else:
        views.show(views.overview(desk.place, read_as(found, Overview)))
    if answered != HTTPStatus.OK:
        raise click.exceptions.Exit(1)


# Connections


@click.command(
    epilog=f"""\b
Examples:
  domaeka connections --sort score            the worst lines first
  domaeka connections --watch --grade poor
  domaeka connections 가게봇 a1b2c3d4e5f60718   all that is known of one
  domaeka connections --closed --limit 20     those that ended last, and why

{STATUSES}"""
)
@click.argument("bot", required=False, callback=name)
@click.argument("device", required=False, callback=name)
@click.option("--sort", type=click.Choice(SORTS), help="Sort by this.  [default: bot]")
@click.option("--desc", is_flag=True, help="The other way round.")
@click.option("--address", callback=name, help="Only those from this address.")
@click.option("--grade", type=click.Choice(GRADES), help="Only those that are so good.")
@_limit
@click.option("--closed", is_flag=True, help="Those that have ended, the last one first.")
@click.option(
    "--reason",
    callback=_reason,
    shell_complete=_hyphenated,
    help="With --closed: only those that ended so, for example ping-timeout.",
)
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.2, 3600),
    help="With --watch: seconds in between.",
)
@operators
def connections(
    desk: Desk,
    bot: str | None,
    device: str | None,
    sort: str | None,
    desc: bool,
    address: str | None,
    grade: str | None,
    limit: int,
    closed: bool,
    reason: str | None,
    watch: bool,
    interval: float,
) -> None:
    """
    List the connections with their quality.

    With BOT only those of that bot, with DEVICE all that is known of one.
    """
    only_open = {"--sort": sort, "--desc": desc, "--grade": grade, "--watch": watch}
    for option, given in only_open.items() if closed else {"--reason": reason}.items():
        if given:
            other = "not with --closed" if closed else "only with --closed"
            raise click.UsageError(f"{option}: {other}")
    if closed:
        query = {"bot": bot, "device": device, "address": address, "reason": reason}
        found = desk.items("/connections/closed", limit, **query)
        _show(desk, found, ClosedConnections, lambda said: views.closed_table(said.connections))
        return

    def look(most: int) -> tuple[Any, RenderableType]:
        if bot is not None and device is not None:
            one = desk.ask("GET", "/connections" + path_of(bot, device))
            return one, views.connection_facts(read_as(one, Connection))
        query = {"bot": bot, "address": address, "grade": grade, "sort": sort}
        order = "desc" if desc else None
        seen = desk.items("/connections", min(limit, most), order=order, **query)
        said = read_as(seen, Connections)
        table: RenderableType = views.connections_table(said.connections)
        if len(said.connections) < said.total:
            table = Group(table, Text(f"{said.total - len(said.connections)} more"))
        return seen, table

    if watch:
        _watch(desk, look, interval)
        return
    found, table = look(MAX_ITEMS)
    if desk.as_json:
        desk.show_json(found)
    else:
        views.show(table)


def _watch(desk: Desk, look: Callable[[int], tuple[Any, RenderableType]], interval: float) -> None:
    """
    Show it again and again; once it was seen, a server that is away is waited for.

    @param look: given how many items have room, gives back the answer and how to show it.
    """
    console = views.make_console()
    live = Live(console=console, screen=True, auto_refresh=False)
    on_screen = console.is_terminal and not desk.as_json
    # The heading, and two lines below.

    def seen() -> tuple[Any, RenderableType]:
        return look(max(1, console.height - 3) if on_screen else MAX_ITEMS)

    found, table = seen()
    with suppress(KeyboardInterrupt), live if on_screen else nullcontext():
        while True:
            if on_screen:
                live.update(table, refresh=True)
            elif desk.as_json:
                desk.show_json(found)
            else:
                views.show(table)
            while True:
                desk.pause(interval)
                try:
                    found, table = seen()
                    break
                except (Unreachable, Refused) as error:
                    trouble = f"{error.message}; trying again"
                    if on_screen:
                        live.update(Group(table, Text(trouble, "red")), refresh=True)
                    else:
                        click.echo(f"domaeka: {trouble}", err=True)


# Devices and rooms


def _show(desk: Desk, found: Any, kind: type[Any], table: Callable[[Any], RenderableType]) -> None:
    """Show an answer, as JSON or as a table."""
    if desk.as_json:
        desk.show_json(found)
    else:
        views.show(table(read_as(found, kind)))


@click.group(
    cls=Listing,
    epilog=f"""\b
Examples:
  domaeka devices                             all; the options are those of `devices list`
  domaeka devices --status pending
  domaeka devices approve 가게봇 a1b2c3d4e5f60718
  domaeka devices block 가게봇 a1b2c3d4e5f60718   at once, on the open connection too

{STATUSES}""",
)
def devices() -> None:
    """List devices, and decide which are served."""


@devices.command("list")
@click.option("--bot", callback=name, help="Only those of this bot.")
@click.option("--status", type=click.Choice(STATES), help="Only those in this state.")
@_limit
@operators
def list_devices(desk: Desk, bot: str | None, status: str | None, limit: int) -> None:
    """List the devices that are known."""
    found = desk.items("/devices", limit, bot=bot, status=status)
    _show(desk, found, Devices, lambda said: views.devices_table(said.devices))


@click.group(
    cls=Listing,
    epilog=f"""\b
Examples:
  domaeka rooms                               all; the options are those of `rooms list`
  domaeka rooms --status pending --json
  domaeka rooms approve 가게봇 18398338829933617
  domaeka rooms deny 가게봇 '시험방'            by its name, where no other room has it

{STATUSES}""",
)
def rooms() -> None:
    """List rooms, and decide in which bots answer."""


@rooms.command("list")
@click.option("--bot", callback=name, help="Only those of this bot.")
@click.option("--status", type=click.Choice(STATES), help="Only those in this state.")
@_limit
@operators
def list_rooms(desk: Desk, bot: str | None, status: str | None, limit: int) -> None:
    """List the rooms that are known."""
    found = desk.items("/rooms", limit, bot=bot, status=status)
    _show(desk, found, Rooms, lambda said: views.rooms_table(said.rooms))


def _each(names: Iterable[str], do: Callable[[str], None]) -> None:
    """
    Do it with each.  What cannot be done with one is said, and done with the others.

    @raise click.exceptions.Exit: with 1, at the end, where one could not.
    """
    failed = False
    for one in names:
        try:
            do(one)
        except click.ClickException as error:
            if error.exit_code != 1:  # nobody is there, or trusts us: so it is with all
                raise
            failed = True
            click.echo(f"domaeka: {one_line(one)}: {error.message}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _decide(desk: Desk, kind: str, bot: str, names: tuple[str, ...], state: str) -> None:
    """Decide on each; what was decided is shown."""
    done: list[Any] = []

    def decide(one: str) -> None:
        which = _room_id(desk, bot, one) if kind == "rooms" else one
        done.append(desk.ask("PATCH", f"/{kind}" + path_of(bot, which), {"status": state}))

    try:
        _each(names, decide)
    finally:
        if desk.as_json and done:
            desk.show_json({kind: done})
        elif done and kind == "rooms":
            decided = [read_as(one, Room) for one in done]
            _note_new(one.room for one in decided if one.last_heard is None)
            views.show(views.rooms_table(decided))
        elif done:
            found = [read_as(one, Device) for one in done]
            _note_new(one.device for one in found if one.first_seen is None)
            views.show(views.devices_table(found))


def _note_new(names: Iterable[str]) -> None:
    for one in names:
        click.echo(f"domaeka: {one_line(one)} is new to the server: entered", err=True)


def _room_id(desk: Desk, bot: str, room: str) -> str:
    """What a room is known by, which an operator may call by its name."""
    if desk.find("/rooms" + path_of(bot, room)) is not None:
        return room
    known = read_as(desk.items("/rooms", MAX_ITEMS, bot=bot), Rooms).rooms
    found = [one.room for one in known if one.name == room]
    if len(found) > 1:
        raise click.ClickException(f"{len(found)} rooms have this name: {', '.join(found)}")
    return found[0] if found else room


def _add_decision(group: click.Group, kind: str, one: str, verb: str, state: str) -> None:
    @group.command(verb, help=f"Have {kind} be {state} from now on.")
    @click.argument("bot", callback=name)
    @click.argument("names", metavar=f"{one}...", nargs=-1, required=True, callback=name)
    @operators
    def decide(desk: Desk, bot: str, names: tuple[str, ...]) -> None:
        _decide(desk, kind, bot, names, state)


for _verb, _state in DECISIONS.items():
    _add_decision(devices, "devices", "DEVICE", _verb, _state)
    _add_decision(rooms, "rooms", "ROOM", _verb, _state)


# Bans


@click.group(
    cls=Listing,
    epilog=f"""\b
Examples:
  domaeka bans
  domaeka bans add 203.0.113.7 --reason 'floods' --seconds 86400
  domaeka bans add 2001:db8::/64 --forever
  domaeka bans lift 203.0.113.7

{STATUSES}""",
)
def bans() -> None:
    """List bans, make and lift them."""


@bans.command("list")
@_limit
@operators
def list_bans(desk: Desk, limit: int) -> None:
    """List the bans that are in force."""
    found = desk.items("/bans", limit)
    _show(desk, found, Bans, lambda said: views.bans_table(said.bans))


@bans.command("add")
@click.argument("network", callback=name)
@click.option("--reason", default="", help="For people.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 31_536_000, min_open=True),
    help="How long.  [default: limits.ban_seconds]",
)
@click.option("--forever", is_flag=True, help="Until it is lifted.")
@operators
def add_ban(desk: Desk, network: str, reason: str, seconds: float | None, forever: bool) -> None:
    """Ban NETWORK, an address or a network in CIDR form, and close its connections."""
    if forever and seconds is not None:
        raise click.UsageError("--seconds: not with --forever")
    body: dict[str, object] = {"network": network, "reason": reason}
    if forever or seconds is not None:
        body["seconds"] = seconds
    _show(desk, desk.ask("POST", "/bans", body), Ban, lambda ban: views.bans_table([ban]))


@bans.command("lift")
@click.argument("networks", metavar="NETWORK...", nargs=-1, required=True, callback=name)
@operators
def lift_ban(desk: Desk, networks: tuple[str, ...]) -> None:
    """Lift bans."""

    def lift(network: str) -> None:
        desk.ask("DELETE", "/bans", network=network)
        if desk.as_json:
            desk.show_json({"lifted": network})
        else:
            click.echo(f"{one_line(network)}: lifted")

    _each(networks, lift)
