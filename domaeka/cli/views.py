"""Tables for operators.  Names from strangers are shown as plain text, without control codes."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from domaeka.cli.output import duration, milliseconds, one_line, printable, size
from domaeka.health import Health, Stats
from domaeka.schema import (
    Ban,
    BotCommand,
    Bots,
    Connection,
    Device,
    DrainState,
    Ended,
    LineQuality,
    LoadedBot,
    MigrationState,
    Role,
    Room,
    ServiceState,
)
from domaeka.schema_chat import ChatLine

#: Longest line in a pipe, in cells: nothing is folded for a program.
_PIPE_WIDTH: Final = 20_000
#: Cells between two columns.
_GAP: Final = 2
#: Most bans that are shown with the state of a server.
BANS_SHOWN: Final = 5
#: A stop whose last phone has left.
DRAINED: Final = "no phone is left: the server ends"
_STYLES: Final = {
    "good": "green",
    "fair": "yellow",
    "poor": "red",
    "failing": "bold red",
    "approved": "green",
    "pending": "yellow",
    "denied": "red",
    "revoked": "red",
    "blocked": "red",
    "healthy": "green",
    "draining": "yellow",
    "unhealthy": "bold red",
    "open": "bold red",
    "half open": "yellow",
}


class Overview(msgspec.Struct):
    """
    The answers that C{domaeka status} shows.

    @ivar grades: the connections of each grade; C{unknown}: no ping was answered or missed yet.
    @ivar pending: how many devices and rooms wait for a decision.
    @ivar more_pending: those of them of which there are more than counted.
    @ivar banned: some of the bans.
    """

    health: Health
    stats: Stats
    grades: dict[str, int]
    pending: dict[str, int]
    more_pending: list[str]
    bans: int
    banned: list[Ban]
    drain: DrainState
    migration: MigrationState | None
    bots: Bots


def make_console() -> Console:
    """Standard output: a terminal, or a pipe, in which no line is folded."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def show(what: RenderableType) -> None:
    """Write a table or a text to standard output."""
    console = make_console()
    with console.capture() as capture:
        console.print(what)
    # A table fills its last column up with spaces.
    text = "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
    console.file.write(text.encode(console.encoding, "replace").decode(console.encoding))
    console.file.flush()


def say(text: str, style: str = "") -> Text:
    """A stranger's text, in one line."""
    line = one_line(text)
    return Text(line, style or _STYLES.get(line, ""), overflow="fold")


def _table(
    names: str,
    rows: Iterable[Sequence[str | Text]],
    right: str = "",
    fold: str = "",
    spare: str = "",
) -> Table:
    """
    A table without lines, of texts as L{say} shows them.

    @param names: the columns, separated by spaces, as in all that follow.
    @param right: columns of numbers.
    @param fold: columns that are folded in a narrow terminal.
    @param spare: columns that are left out before that, the first one first.
    """
    columns = names.split()
    cells = [[say(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    widths = {
        column: max(cell_len(column), *(row[index].cell_len for row in cells), 0)
        for index, column in enumerate(columns)
    }
    console_width = make_console().width
    for column in spare.split():
        if sum(widths.values()) + _GAP * len(widths) <= console_width:
            break
        del widths[column]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in widths:
        table.add_column(
            column.replace("_", " "),
            justify="right" if column in right.split() else "left",
            overflow="fold",
            no_wrap=column not in fold.split(),
        )
    for row in cells:
        table.add_row(*(row[index] for index, column in enumerate(columns) if column in widths))
    return table


def _facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values, a pair in a line."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else say(value))
    return table


def _time(text: str | None, otherwise: str = "") -> str:
    """A time of the API, to the second, in the local time zone."""
    if text is None:
        return otherwise
    try:
        return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    except (ValueError, OverflowError):
        return one_line(text)


def _quality(quality: LineQuality | None) -> Text:
    if quality is None or quality.grade is None:
        return Text("")
    return Text(f"{one_line(quality.grade)} {quality.score}", _STYLES.get(quality.grade, ""))


def _state(connection: Connection) -> Text:
    """The state of a connection, or the reason why its phone gets no answers."""
    approval = connection.approval
    return say(connection.state if approval in (None, "approved") else approval or "")


def connections_table(connections: Iterable[Connection]) -> Table:
    """Open connections."""

    def row(one: Connection) -> Sequence[str | Text]:
        quality = one.quality
        rtt = None if quality is None else quality.rtt
        return (
            *(one.bot, one.device, one.address, one.version, _state(one), _quality(quality)),
            milliseconds(None if rtt is None else rtt.smoothed),
            milliseconds(None if rtt is None else rtt.p95),
            "" if quality is None else f"{quality.loss:.0%}",
            duration(one.silent_seconds),
            *map(str, (one.messages.received, one.messages.sent, one.queue.messages)),
            duration(one.age_seconds),
        )

    return _table(
        "BOT DEVICE ADDRESS VERSION STATE QUALITY RTT P95 LOSS SILENT IN OUT QUEUE AGE",
        map(row, connections),
        right="RTT P95 LOSS SILENT IN OUT QUEUE AGE",
        fold="BOT DEVICE ADDRESS VERSION",
        spare="VERSION P95 OUT IN ADDRESS AGE QUEUE",
    )


def connection_facts(one: Connection) -> Table:
    """All facts about a connection."""
    rows: list[tuple[str, str | Text]] = [
        ("bot", one.bot),
        ("device", one.device),
        ("address", one.address),
        ("script", f"{one.client_type} {one.version}"),
        ("phone", one.device_info),
        ("state", _state(one)),
        ("capabilities", ", ".join(one.capabilities) or "none"),
        ("since", f"{_time(one.since)}, {duration(one.age_seconds)}"),
        ("last heard", f"{duration(one.silent_seconds)} ago"),
        ("messages", f"{one.messages.received} in, {one.messages.sent} out"),
        ("bytes", f"{size(one.bytes.received)} in, {size(one.bytes.sent)} out"),
        ("waiting", f"{one.queue.messages} messages, {size(one.queue.bytes)}"),
        ("unanswered", str(one.queue.unanswered)),
    ]
    quality = one.quality
    if quality is not None:
        known = _quality(quality) if quality.grade is not None else "unknown: no ping answered yet"
        rows.append(("quality", known))
        rows += (("", reason) for reason in quality.reasons)
        rows.append(("loss", f"{quality.loss:.0%} of the last 20 pings"))
        if (rtt := quality.rtt) is not None:
            names = ("least", "median", "p95", "most")
            parts = zip(names, (rtt.min, rtt.median, rtt.p95, rtt.max), strict=True)
            text = ", ".join(f"{name} {milliseconds(value)}" for name, value in parts)
            rows.append(("round trip", f"{milliseconds(rtt.smoothed)} ({text})"))
            rows.append(("jitter", milliseconds(rtt.jitter)))
        every, given_up = quality.ping_interval_seconds, quality.ping_timeout_seconds
        rows.append(("pings", f"every {every:.0f} s, given up after {given_up:.0f} s"))
    if (kernel := one.kernel) is not None:
        trip = f"{milliseconds(kernel.rtt)} ± {milliseconds(kernel.rtt_variation)}"
        rows.append(("kernel", f"{trip}, {kernel.retransmits} segments sent again"))
    if one.clock_skew_seconds is not None:
        rows.append(("clock", f"{one.clock_skew_seconds:+z.1f} s"))
    if (phone := one.monitoring) is not None:
        figures = (
            ("memory MB", phone.memory_usage),
            ("of", phone.total_memory),
            ("queued", phone.message_queue_size),
            ("rooms", phone.active_rooms),
        )
        text = ", ".join(f"{name} {value:g}" for name, value in figures if value is not None)
        rows.append(("phone says", f"{text} ({duration(phone.age_seconds)} ago)"))
    if one.ended_last_hour is not None:
        rows.append(("ended", f"{one.ended_last_hour} within the last hour"))
    return _facts(rows)


def closed_table(connections: Iterable[Ended]) -> Table:
    """Ended connections."""

    def row(one: Ended) -> Sequence[str | Text]:
        grade = "" if one.grade is None else f"{one.grade} {one.score}"
        return (
            *(_time(one.ended), _time(one.since), one.bot, one.device, one.address, one.reason),
            say(grade, _STYLES.get(one.grade or "", "")),
            *map(str, (one.messages.received, one.messages.sent)),
        )

    return _table(
        "ENDED SINCE BOT DEVICE ADDRESS REASON QUALITY IN OUT",
        map(row, connections),
        right="IN OUT",
        fold="BOT DEVICE ADDRESS",
        spare="SINCE OUT IN ADDRESS QUALITY",
    )


def devices_table(devices: Sequence[Device]) -> RenderableType:
    """Devices; if there are old scripts among them, the way to the new one stands below."""

    def row(one: Device) -> Sequence[str | Text]:
        return (
            *(one.bot, one.device, one.status, "yes" if one.connected else "no"),
            say(f"{one.version} (old script)", "yellow") if one.outdated else one.version,
            *(one.address, _time(one.last_seen, "never"), str(one.queue.messages)),
        )

    table = _table(
        "BOT DEVICE STATUS CONNECTED VERSION ADDRESS LAST_SEEN QUEUE",
        map(row, devices),
        right="QUEUE",
        fold="BOT DEVICE VERSION ADDRESS",
        spare="ADDRESS QUEUE VERSION",
    )
    old = sum(one.outdated for one in devices)
    if not old:
        return table
    have = "1 phone has an old script" if old == 1 else f"{old} phones have old scripts"
    return Group(table, Text(f"{have}: domaeka phone-script writes the new one (docs/phones.md)"))


_ANSWERABLE: Final[Mapping[bool | None, str | Text]] = {
    True: "yes",
    False: Text("no", "yellow"),
    None: "?",
}


def rooms_table(rooms: Iterable[Room]) -> Table:
    """Rooms."""

    def row(one: Room) -> Sequence[str | Text]:
        return (
            *(one.bot, one.room, one.name, "group" if one.is_group else "single", one.status),
            *(_time(one.last_heard, "never"), one.device or "", _ANSWERABLE[one.answerable]),
        )

    return _table(
        "BOT ROOM NAME KIND STATUS LAST_HEARD ON_DEVICE ANSWERABLE",
        map(row, rooms),
        fold="BOT ROOM NAME ON_DEVICE",
        spare="ON_DEVICE KIND ANSWERABLE",
    )


def bans_table(bans: Iterable[Ban]) -> Table:
    """Bans."""

    def row(one: Ban) -> Sequence[str | Text]:
        return (
            *(one.network, _time(one.made_at), _time(one.expires, "lifted"), str(one.times)),
            *(one.made_by or "server", one.claimed_bot, one.claimed_device, one.reason),
        )

    return _table(
        "NETWORK SINCE UNTIL TIMES BY CLAIMS_BOT CLAIMS_DEVICE REASON",
        map(row, bans),
        right="TIMES",
        fold="NETWORK BY CLAIMS_BOT CLAIMS_DEVICE REASON",
        spare="TIMES SINCE BY",
    )


def roles_table(roles: Iterable[Role]) -> Table:
    """Roles, and who holds them."""

    def row(one: Role) -> Sequence[str | Text]:
        return (one.role, f"{one.channel_id}/{one.user_hash}", _time(one.granted_at))

    return _table("ROLE PERSON SINCE", map(row, roles), fold="ROLE PERSON", spare="SINCE")


def bots_table(bots: Iterable[LoadedBot]) -> Table:
    """Bots, a line for each command."""

    def rows(bot: LoadedBot) -> Iterator[Sequence[str | Text]]:
        for one in bot.commands:
            yield (
                bot.name,
                one.name,
                ", ".join(one.aliases),
                one.allow or ("operators" if one.operators_only else "all"),
                f"{one.calls}",
                Text(f"{one.failures}", "red" if one.failures else ""),
                _breaker(one),
            )
        if not bot.commands:
            yield bot.name, Text("no commands", "yellow"), "", "", "", "", ""

    return _table(
        "BOT COMMAND ALIASES FOR CALLS FAILURES BREAKER",
        (row for bot in bots for row in rows(bot)),
        right="CALLS FAILURES",
        fold="BOT COMMAND ALIASES",
        spare="ALIASES FOR",
    )


def _breaker(command: BotCommand) -> str:
    """The state of its breaker, and for how many rooms and people alone it is open."""
    if not command.open_for_count:
        return command.breaker
    return f"{command.breaker}, open for {command.open_for_count}"


def services_table(services: Iterable[ServiceState]) -> Table:
    """Outside services that bots use."""
    return _table("SERVICE BREAKER", ((one.name, one.breaker) for one in services))


#: The text of each event, made from its data; the fields are those of docs/api.md, "Events".
_EVENTS: Final[dict[str, Callable[[Any], str]]] = {
    "connected": lambda e: f"{e['bot']} {e['device']} from {e['address']}, script {e['version']}",
    "grade": lambda e: (
        f"{e['bot']} {e['device']}: {e['grade']} {e['score']}"
        + (f" ({'; '.join(e['reasons'])})" if e["reasons"] else "")
    ),
    "closed": lambda e: (
        f"{e['bot']} {e['device']} from {e['address']}: {e['reason']}, after "
        f"{duration(_moment(e['ended']) - _moment(e['since']))}, "
        f"{e['messages']['received']} in, {e['messages']['sent']} out"
    ),
    "approval": lambda e: f"{e['kind']} {e['bot']} {e['name']}: {e['status']}",
    "forgotten": lambda e: f"{e['kind']} {e['bot']} {e['name']}",
    "ban": lambda e: (
        f"{e['network']} until {_time(e['expires'], 'lifted')}"
        + (f": {e['reason']}" if e["reason"] else "")
    ),
    "lifted": lambda e: f"{e['network']}",
    "drain": lambda e: f"{e['state']}",
    "migration": lambda e: f"{e['state']}",
}


def event_line(name: str, data: Mapping[str, Any], now: float) -> str:
    """
    An event in a line: time, name, text.

    @param now: when it came, for events without a time; in seconds since 1970.
    """
    try:
        text = _EVENTS[name](data)
    except (KeyError, TypeError, ValueError, OverflowError):  # of a newer server
        text = ", ".join(f"{key} {value}" for key, value in data.items())
    came = datetime.fromtimestamp(now, UTC).isoformat()
    at = _time(str(data.get("at") or data.get("ended") or came))
    return one_line(f"{at}  {name:<9}  {text}")


def chat_line(line: ChatLine) -> str:
    """A line of chat, with further lines of its text indented: nobody can feign another one."""
    place = line.name if line.name == line.room else f"{line.name} ({line.room})"
    sender = line.sender or ("(bot)" if line.direction == "out" else "")
    head = one_line(f"{_time(line.time)}  {line.bot}  {place}  {sender}")
    first, *more = printable(line.text).split("\n")
    return "\n    ".join((f"{head}: {first}", *more))


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _ban_line(ban: Ban) -> str:
    """A ban in a line: network, reason, end."""
    claims = ""
    if ban.claimed_bot:
        claims = f"claims to be {ban.claimed_bot!r} {ban.claimed_device!r}: "
    until = "until it is lifted" if ban.expires is None else f"until {_time(ban.expires)}"
    return f"{ban.network}: {claims}{ban.reason or 'no reason given'}, {until}"


def drain_line(drain: DrainState) -> str:
    """The progress of a stop."""
    if not drain.draining:
        return "no drain runs"
    return (
        f"draining: {drain.told} phones told, {drain.connections} connections and "
        f"{drain.unanswered} unanswered messages left, cut off in {drain.seconds_left:.0f} s"
    )


def migration_line(move: MigrationState) -> str:
    """The progress of a move, or the result of the last one."""
    host = f"[{move.host}]" if ":" in move.host else move.host
    why = f" ({move.reason})" if move.reason else ""
    return (
        f"{move.phase}{why}, to {host}:{move.port}: {move.told} told, {move.arrived} arrived, "
        f"{move.missing} missing, {move.sent_on} sent on, {move.remaining} still here"
    )


def overview(server: str, seen: Overview) -> Table:
    """The output of C{domaeka status}."""
    health, stats = seen.health, seen.stats
    grades = ", ".join(f"{count} {grade}" for grade, count in seen.grades.items() if count)
    down, up = size(stats.throughput.get("received", 0)), size(stats.throughput.get("sent", 0))
    rows: list[tuple[str, str | Text]] = [
        ("server", f"domaeka {health.version} at {server}"),
        ("status", health.status),
        ("up", duration(health.uptime)),
        ("connections", f"{health.connections:.0f}" + (f" ({grades})" if grades else "")),
        ("messages", f"{stats.messages_received:.0f} in, {stats.messages_sent:.0f} out"),
        ("now", f"{stats.message_rate:.1f} messages/s, {down}/s in, {up}/s out"),
    ]
    for kind, count in seen.pending.items():
        more = " or more" if kind in seen.more_pending else ""
        text = f"{count}{more} waiting for approval" if count else "none waiting for approval"
        rows.append((kind, say(text, "yellow" if count else "")))
    rows.append(("bans", str(seen.bans)))
    rows += (("", _ban_line(ban)) for ban in seen.banned)
    if seen.bans > len(seen.banned):
        rows.append(("", f"and {seen.bans - len(seen.banned)} more: domaeka bans"))
    for name, found in health.checks.items():
        rows.append((name, say(found, "" if found == "ok" else "yellow")))
    breakers: list[BotCommand | ServiceState] = [*seen.bots.services]
    breakers[:0] = (command for bot in seen.bots.bots for command in bot.commands)
    for one in breakers:
        state = _breaker(one) if isinstance(one, BotCommand) else one.breaker
        if state != "closed":
            rows.append(("breaker", say(f"{one.name}: {state}", _STYLES.get(one.breaker, ""))))
    rows += (("errors", f"{kind}: {count:.0f}") for kind, count in stats.errors.items())
    if seen.drain.draining:
        rows.append(("drain", drain_line(seen.drain)))
    if seen.migration is not None:
        rows.append(("migration", migration_line(seen.migration)))
    return _facts(rows)
