"""Views and decisions for operators: status, connections, devices, rooms, bans, roles."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Any, Final, get_args

import click
from click.shell_completion import CompletionItem
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from domaeka.cli import views
from domaeka.cli.api_client import (
    PAGE,
    ApiClient,
    Refused,
    name,
    operators,
    path_of,
    read_as,
)
from domaeka.cli.groups import Listing
from domaeka.cli.output import one_line
from domaeka.cli.places import Unreachable
from domaeka.errors import CloseReason
from domaeka.schema import (
    Approval,
    Ban,
    Bans,
    ClosedConnections,
    Connection,
    ConnectionOrder,
    Connections,
    Device,
    Devices,
    Grade,
    Role,
    Roles,
    Room,
    Rooms,
)
from domaeka.wire import is_channel_id

#: Most items that a command lists by default: more than a server remembers.
MAX_ITEMS: Final = 1_000_000
#: The words of the API, to choose from.
GRADES: Final = tuple(grade.value for grade in Grade)
STATES: Final = tuple(approval.value for approval in Approval)
SORTS: Final[tuple[str, ...]] = get_args(ConnectionOrder)
#: Largest network that is banned without a question, in bits of its prefix, by version of IP.
LARGEST_BAN: Final = {4: 16, 6: 32}
#: Bits before an address of IPv4 that is mapped into IPv6.  Source: RFC 4291, 2.5.5.2.
_MAPPED_BITS: Final = 96
#: Most phones that are named in a question.
_NAMED: Final = 5
#: The verbs that decide on a device or a room, and its state afterwards.
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
    """Complete reasons, which are one word each for shells."""
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
def status(api: ApiClient) -> None:
    """Show how the server is."""
    answered, health = api.page("/health")
    found: dict[str, Any] = {"health": health, "stats": api.page("/stats")[1]}
    found["grades"] = {
        grade: read_as(api.request("GET", "/connections", grade=grade, limit=1), Connections).total
        for grade in GRADES
    }
    every = read_as(api.request("GET", "/connections", limit=1), Connections).total
    found["grades"]["unknown"] = max(0, every - sum(found["grades"].values()))
    found["pending"], found["more_pending"] = {}, []
    for kind in ("devices", "rooms"):
        page = api.items(f"/{kind}", PAGE, status="pending")
        found["pending"][kind] = len(page[kind])
        if page["next"] is not None:
            found["more_pending"].append(kind)
    banned = api.request("GET", "/bans", limit=views.BANS_SHOWN)
    found["bans"], found["banned"] = read_as(banned, Bans).total, banned["bans"]
    found["drain"] = api.request("GET", "/drain")
    found["migration"] = api.find("/migration")
    found["bots"] = api.request("GET", "/bots")
    api.show(found, lambda: views.overview(api.server, read_as(found, views.Overview)))
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
    api: ApiClient,
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
        ended = api.items("/connections/closed", limit, **query)
        api.show(ended, lambda: views.closed_table(read_as(ended, ClosedConnections).connections))
        return

    def look(most: int) -> tuple[Any, RenderableType]:
        if bot is not None and device is not None:
            one = api.request("GET", "/connections" + path_of(bot, device))
            return one, views.connection_facts(read_as(one, Connection))
        query = {"bot": bot, "address": address, "grade": grade, "sort": sort}
        order = "desc" if desc else None
        seen = api.items("/connections", min(limit, most), order=order, **query)
        answer = read_as(seen, Connections)
        table: RenderableType = views.connections_table(answer.connections)
        if (more := answer.total - len(answer.connections)) > 0:
            table = Group(table, Text(f"{more} more"))
        return seen, table

    if watch:
        _watch(api, look, interval)
        return
    found, table = look(MAX_ITEMS)
    api.show(found, lambda: table)


def _watch(
    api: ApiClient, look: Callable[[int], tuple[Any, RenderableType]], interval: float
) -> None:
    """
    Show a view again and again; after the first time, wait for a server that is away.

    @param look: given the number of items that fit, returns the answer and its table.
    """
    console = views.make_console()
    live = Live(console=console, screen=True, auto_refresh=False)
    on_screen = console.is_terminal and not api.as_json
    # The heading, and two lines below.

    def seen() -> tuple[Any, RenderableType]:
        return look(max(1, console.height - 3) if on_screen else MAX_ITEMS)

    found, table = seen()
    with suppress(KeyboardInterrupt), live if on_screen else nullcontext():
        while True:
            if on_screen:
                live.update(table, refresh=True)
            elif api.as_json:
                api.show_json(found)
            else:
                views.show(table)
            while True:
                api.pause(interval)
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


@click.group(
    cls=Listing,
    epilog=f"""\b
Examples:
  domaeka devices                             all; the options are those of `devices list`
  domaeka devices --status pending
  domaeka devices --outdated                  whose script is older than this server's
  domaeka devices approve 가게봇 a1b2c3d4e5f60718
  domaeka devices block 가게봇 a1b2c3d4e5f60718   at once, on the open connection too
  domaeka devices forget 가게봇 a1b2c3d4e5f60718  one that is gone for good

{STATUSES}""",
)
def devices() -> None:
    """List devices, and decide which are served."""


@devices.command("list")
@click.option("--bot", callback=name, help="Only those of this bot.")
@click.option("--status", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--outdated", is_flag=True, help="Only phones with old scripts.")
@_limit
@operators
def list_devices(
    api: ApiClient, bot: str | None, status: str | None, outdated: bool, limit: int
) -> None:
    """List the devices that are known."""
    found = api.items("/devices", MAX_ITEMS if outdated else limit, bot=bot, status=status)
    if outdated:
        old = (one for one in found["devices"] if read_as(one, Device).outdated)
        found["devices"] = list(islice(old, limit))
    api.show(found, lambda: views.devices_table(read_as(found, Devices).devices))


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
def list_rooms(api: ApiClient, bot: str | None, status: str | None, limit: int) -> None:
    """List the rooms that are known."""
    found = api.items("/rooms", limit, bot=bot, status=status)
    api.show(found, lambda: views.rooms_table(read_as(found, Rooms).rooms))


def _each(names: Iterable[str], do: Callable[[str], None]) -> None:
    """
    Call C{do} with each.  An error with one is shown, and the others go on.

    @raise click.exceptions.Exit: with 1, at the end, if there was an error.
    """
    failed = False
    for one in names:
        try:
            do(one)
        except click.ClickException as error:
            if error.exit_code != 1:  # unreachable, or not trusted: true for all
                raise
            failed = True
            click.echo(f"domaeka: {one_line(one)}: {error.message}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _decide(
    api: ApiClient, kind: str, bot: str, names: tuple[str, ...], state: str, new: bool
) -> None:
    """
    Decide on each, and show the decisions.

    @param new: true if one that was never seen may be approved: its name may be a mistake.
    """
    done: list[Any] = []

    def decide(one: str) -> None:
        which = room_id(api, bot, one) if kind == "rooms" else one
        path = f"/{kind}" + path_of(bot, which)
        if state == "approved" and not new and not _was_seen(api.find(path), kind):
            name = one_line(f"{bot} {one}")
            listed = f"`domaeka {kind}` lists those that were"
            api.confirm(f"{name} was never seen ({listed})", "--new")
        done.append(api.request("PATCH", path, {"status": state}))

    try:
        _each(names, decide)
    finally:
        if api.as_json and done:
            api.show_json({kind: done})
        elif done and kind == "rooms":
            decided = [read_as(one, Room) for one in done]
            _note_new(one.room for one in decided if one.last_heard is None)
            views.show(views.rooms_table(decided))
        elif done:
            found = [read_as(one, Device) for one in done]
            _note_new(one.device for one in found if one.first_seen is None)
            views.show(views.devices_table(found))


def _was_seen(found: Any, kind: str) -> bool:
    """True if a device or a room was heard, not only entered by an operator."""
    if found is None:
        return False
    if kind == "rooms":
        return read_as(found, Room).last_heard is not None
    return read_as(found, Device).first_seen is not None


def _note_new(names: Iterable[str]) -> None:
    for one in names:
        click.echo(f"domaeka: {one_line(one)} is new to the server: entered", err=True)


def room_id(api: ApiClient, bot: str | None, room: str) -> str:
    """
    The id of a room that an operator may call by its name, if one room alone has it.  Strangers
    choose names: one that looks like a channel id is none.

    @param bot: L{None}: of any bot.
    @return: C{room}, if no room is known by it.
    """
    if is_channel_id(room):
        return room
    if bot is not None and api.find("/rooms" + path_of(bot, room)) is not None:
        return room
    known = read_as(api.items("/rooms", MAX_ITEMS, bot=bot), Rooms).rooms
    if any(one.room == room for one in known):
        return room
    found = sorted({one.room for one in known if one.name == room})
    if len(found) > 1:
        raise click.ClickException(f"{len(found)} rooms have this name: {', '.join(found)}")
    return found[0] if found else room


def _add_decision(group: click.Group, kind: str, one: str, verb: str, state: str) -> None:
    @click.argument("bot", callback=name)
    @click.argument("names", metavar=f"{one}...", nargs=-1, required=True, callback=name)
    @operators
    def decide(api: ApiClient, bot: str, names: tuple[str, ...], new: bool = False) -> None:
        _decide(api, kind, bot, names, state, new)

    if state == "approved":
        option = click.option("--new", is_flag=True, help="Though one was never seen: do not ask.")
        decide = option(decide)
    group.command(verb, help=f"Have {kind} be {state} from now on.")(decide)


def _add_forget(group: click.Group, kind: str, one: str, help: str) -> None:
    @group.command("forget", help=help)
    @click.argument("bot", callback=name)
    @click.argument("names", metavar=f"{one}...", nargs=-1, required=True, callback=name)
    @click.option("--chat-log", is_flag=True, help="What was said there goes, too.")
    @operators
    def forget(api: ApiClient, bot: str, names: tuple[str, ...], chat_log: bool) -> None:
        def forget_one(one: str) -> None:
            which = room_id(api, bot, one) if kind == "rooms" else one
            path = f"/{kind}" + path_of(bot, which)
            api.request("DELETE", path, chat_log="true" if chat_log else None)
            api.show({"forgotten": one}, lambda: f"{one_line(one)}: forgotten")

        _each(names, forget_one)


for _verb, _state in DECISIONS.items():
    _add_decision(devices, "devices", "DEVICE", _verb, _state)
    _add_decision(rooms, "rooms", "ROOM", _verb, _state)
_add_forget(
    devices,
    "devices",
    "DEVICE",
    "Forget devices: their status, their session tokens, what waits for them. One that is "
    "connected is refused. One that comes back is new, even if it was blocked.",
)
_add_forget(
    rooms,
    "rooms",
    "ROOM",
    "Forget rooms: their status, and where they were last heard. One in which something is said "
    "again is new, even if it was blocked.",
)


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
def list_bans(api: ApiClient, limit: int) -> None:
    """List the bans that are in force."""
    found = api.items("/bans", limit)
    api.show(found, lambda: views.bans_table(read_as(found, Bans).bans))


@bans.command("add")
@click.argument("network", callback=name)
@click.option("--reason", default="", help="For people.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 31_536_000, min_open=True),
    help="How long.  [default: limits.ban_seconds]",
)
@click.option("--forever", is_flag=True, help="Until it is lifted.")
@click.option("--yes", is_flag=True, help="Do not ask, whoever is in it.")
@operators
def add_ban(
    api: ApiClient, network: str, reason: str, seconds: float | None, forever: bool, yes: bool
) -> None:
    """
    Ban NETWORK, an address or a network in CIDR form, and close its connections.

    Asks where phones are connected from there, or it is larger than /16 (of IPv6: /32).
    """
    if forever and seconds is not None:
        raise click.UsageError("--seconds: not with --forever")
    body: dict[str, object] = {"network": network, "reason": reason}
    if forever or seconds is not None:
        body["seconds"] = seconds
    if not yes and (why := _too_many(api, network)):
        api.confirm(f"{one_line(network)} {why}", "--yes")
    made = api.request("POST", "/bans", body)
    api.show(made, lambda: views.bans_table([read_as(made, Ban)]))


def _too_many(api: ApiClient, text: str) -> str:
    """The reason against a ban of a network; empty: none."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return ""  # the server says so
    start = network.network_address
    mapped = getattr(start, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        network = ip_network(f"{mapped}/{network.prefixlen - _MAPPED_BITS}", strict=False)
    reasons = []
    if network.prefixlen < LARGEST_BAN[network.version]:
        reasons.append(f"is larger than /{LARGEST_BAN[network.version]}")
    open_now = read_as(api.items("/connections", MAX_ITEMS), Connections).connections
    # A connection that has only named a device may be the one to be banned.
    phones = [one for one in open_now if one.state != "greeted" and _is_in(one.address, network)]
    if phones:
        names = ", ".join(one_line(f"{one.bot} {one.device}") for one in phones[:_NAMED])
        more = ", …" if len(phones) > _NAMED else ""
        count = f"{len(phones)} connected phone{'s' * (len(phones) != 1)}"
        reasons.append(f"holds {count} ({names}{more})")
    return " and ".join(reasons)


def _is_in(text: str, network: IPv4Network | IPv6Network) -> bool:
    try:
        address = ip_address(text)
    except ValueError:  # of a local socket
        return False
    return (getattr(address, "ipv4_mapped", None) or address) in network


@bans.command("lift")
@click.argument("networks", metavar="NETWORK...", nargs=-1, required=True, callback=name)
@operators
def lift_ban(api: ApiClient, networks: tuple[str, ...]) -> None:
    """Lift bans."""

    def lift(network: str) -> None:
        api.request("DELETE", "/bans", network=network)
        api.show({"lifted": network}, lambda: f"{one_line(network)}: lifted")

    _each(networks, lift)


# Roles


def _person(
    ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    """A callback of click for C{CHANNEL/HASH}, or several."""
    name(ctx, param, value)
    for one in (value,) if isinstance(value, str) else value:
        channel_id, _, user_hash = one.partition("/")
        if not channel_id or not user_hash:
            raise click.BadParameter(f"{one_line(one)!r:.100} is not CHANNEL/HASH", ctx, param)
    return value


def _holder(role: str, person: str) -> dict[str, str]:
    """The API's words for a role and a person."""
    channel_id, _, user_hash = person.partition("/")
    return {"role": role, "channel_id": channel_id, "user_hash": user_hash}


@click.group(
    cls=Listing,
    epilog=f"""\b
Examples:
  domaeka roles
  domaeka roles add 총무 18398338829933617/1a2b3c4d
  domaeka roles remove 총무 18398338829933617/1a2b3c4d

{STATUSES}""",
)
def roles() -> None:
    """List roles, give them to people and take them."""


@roles.command("list")
@_limit
@operators
def list_roles(api: ApiClient, limit: int) -> None:
    """List the roles that people hold."""
    found = api.items("/roles", limit)
    api.show(found, lambda: views.roles_table(read_as(found, Roles).roles))


@roles.command("add")
@click.argument("role", callback=name)
@click.argument("persons", metavar="CHANNEL/HASH...", nargs=-1, required=True, callback=_person)
@operators
def add_role(api: ApiClient, role: str, persons: tuple[str, ...]) -> None:
    """
    Have people hold ROLE: each is a room's channel id and a user's hash in it, for anybody may
    take any name.
    """

    def add(person: str) -> None:
        made = api.request("POST", "/roles", _holder(role, person))
        api.show(made, lambda: views.roles_table([read_as(made, Role)]))

    _each(persons, add)


@roles.command("remove")
@click.argument("role", callback=name)
@click.argument("persons", metavar="CHANNEL/HASH...", nargs=-1, required=True, callback=_person)
@operators
def remove_role(api: ApiClient, role: str, persons: tuple[str, ...]) -> None:
    """Take ROLE from people."""

    def remove(person: str) -> None:
        holder = _holder(role, person)
        api.request("DELETE", "/roles", **holder)
        api.show({"removed": holder}, lambda: f"{one_line(person)}: holds {one_line(role)} no more")

    _each(persons, remove)
