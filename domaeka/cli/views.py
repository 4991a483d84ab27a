"""Tables for operators.  What strangers named is shown as it is, and obeyed nowhere."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from domaeka.cli.answers import (
    Ban,
    Connection,
    Device,
    Drain,
    Ended,
    Migration,
    Overview,
    Quality,
    Room,
)
from domaeka.cli.text import duration, milliseconds, one_line, size

#: How wide a line may become where nobody looks at it, in cells: nothing is folded for a program.
_PIPE_WIDTH: Final = 20_000
#: Cells between two columns.
_GAP: Final = 2
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


def make_console() -> Console:
    """Standard output: a terminal, or a pipe, in which no line is folded."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def show(what: RenderableType) -> None:
    """Write it on standard output."""
    console = make_console()
    with console.capture() as capture:
        console.print(what)
    # A table fills its last column up with spaces.
    text = "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
    console.file.write(text.encode(console.encoding, "replace").decode(console.encoding))
    console.file.flush()


def say(text: str, style: str = "") -> Text:
    """A text of strangers, in one line."""
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
    A table without lines.

    @param names: of the columns, with spaces in between, as all that follow.
    @param right: those of numbers.
    @param fold: those that give way where the terminal is narrow.
    @param spare: those that are left out before that, the first one first.
    """
    columns = names.split()
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    widths = {
        column: max(cell_len(column), *(row[place].cell_len for row in cells), 0)
        for place, column in enumerate(columns)
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
        table.add_row(*(row[place] for place, column in enumerate(columns) if column in widths))
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
    """A time of the API, to the second, as clocks here show it."""
    if text is None:
        return otherwise
    try:
        return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    except (ValueError, OverflowError):
        return one_line(text)


def _quality(quality: Quality | None) -> Text:
    if quality is None or quality.grade is None:
        return Text("")
    return Text(f"{one_line(quality.grade)} {quality.score}", _STYLES.get(quality.grade, ""))


def _state(connection: Connection) -> Text:
    """What stands between a phone and its answers, if anything does."""
    approval = connection.approval
    return say(connection.state if approval in (None, "approved") else approval or "")


def connections_table(connections: Iterable[Connection]) -> Table:
    """Those that are open."""

    def row(one: Connection) -> Sequence[str | Text]:
        quality = one.quality
        rtt = None if quality is None else quality.rtt
        return (
            say(one.bot),
            say(one.device),
            say(one.address),
            say(one.version),
            _state(one),
            _quality(quality),
            milliseconds(None if rtt is None else rtt.smoothed),
            milliseconds(None if rtt is None else rtt.p95),
            "" if quality is None else f"{quality.loss:.0%}",
            duration(one.silent_seconds),
            f"{one.messages.received}",
            f"{one.messages.sent}",
            f"{one.queue.messages}",
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
    """All that is known of a connection."""
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
            parts = (
                ("least", rtt.min),
                ("median", rtt.median),
                ("p95", rtt.p95),
                ("most", rtt.max),
            )
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
    """Those that have ended."""

    def row(one: Ended) -> Sequence[str | Text]:
        grade = "" if one.grade is None else f"{one.grade} {one.score}"
        return (
            _time(one.ended),
            _time(one.since),
            say(one.bot),
            say(one.device),
            say(one.address),
            say(one.reason),
            say(grade, _STYLES.get(one.grade or "", "")),
            str(one.messages.received),
            str(one.messages.sent),
        )

    return _table(
        "ENDED SINCE BOT DEVICE ADDRESS REASON QUALITY IN OUT",
        map(row, connections),
        right="IN OUT",
        fold="BOT DEVICE ADDRESS",
        spare="SINCE OUT IN ADDRESS QUALITY",
    )


def devices_table(devices: Iterable[Device]) -> Table:
    """Devices."""

    def row(one: Device) -> Sequence[str | Text]:
        return (
            say(one.bot),
            say(one.device),
            say(one.status),
            "yes" if one.connected else "no",
            say(one.version),
            say(one.address),
            _time(one.last_seen, "never"),
            str(one.queue.messages),
        )

    return _table(
        "BOT DEVICE STATUS CONNECTED VERSION ADDRESS LAST_SEEN QUEUE",
        map(row, devices),
        right="QUEUE",
        fold="BOT DEVICE VERSION ADDRESS",
        spare="VERSION ADDRESS QUEUE",
    )


def rooms_table(rooms: Iterable[Room]) -> Table:
    """Rooms."""

    def row(one: Room) -> Sequence[str | Text]:
        return (
            say(one.bot),
            say(one.room),
            say(one.name),
            "group" if one.is_group else "single",
            say(one.status),
            _time(one.last_heard, "never"),
            say(one.device or ""),
        )

    return _table(
        "BOT ROOM NAME KIND STATUS LAST_HEARD ON_DEVICE",
        map(row, rooms),
        fold="BOT ROOM NAME ON_DEVICE",
        spare="ON_DEVICE KIND",
    )


def bans_table(bans: Iterable[Ban]) -> Table:
    """Bans."""

    def row(one: Ban) -> Sequence[str | Text]:
        return (
            say(one.network),
            _time(one.made_at),
            _time(one.expires, "lifted"),
            str(one.times),
            say(one.made_by or "server"),
            say(one.reason),
        )

    return _table(
        "NETWORK SINCE UNTIL TIMES BY REASON",
        map(row, bans),
        right="TIMES",
        fold="NETWORK BY REASON",
        spare="TIMES",
    )


def drain_line(drain: Drain) -> str:
    """How a stop goes."""
    if not drain.draining:
        return "no drain runs"
    return (
        f"draining: {drain.told} phones told, {drain.connections} connections and "
        f"{drain.unanswered} unanswered messages left, cut off in {drain.seconds_left:.0f} s"
    )


def migration_line(move: Migration) -> str:
    """How a move goes, or how the last one went."""
    host = f"[{move.host}]" if ":" in move.host else move.host
    why = f" ({move.reason})" if move.reason else ""
    return (
        f"{move.phase}{why}, to {host}:{move.port}: {move.told} told, {move.arrived} arrived, "
        f"{move.missing} missing, {move.sent_on} sent on, {move.remaining} still here"
    )


def overview(place: str, seen: Overview) -> Table:
    """What C{domaeka status} shows."""
    health, stats = seen.health, seen.stats
    grades = ", ".join(f"{count} {grade}" for grade, count in seen.grades.items() if count)
    down, up = size(stats.throughput.get("received", 0)), size(stats.throughput.get("sent", 0))
    rows: list[tuple[str, str | Text]] = [
        ("server", f"domaeka {health.version} at {place}"),
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
    rows += ((name, found) for name, found in health.checks.items())
    breakers = [command for bot in seen.bots.bots for command in bot.commands]
    for one in (*breakers, *seen.bots.services):
        if one.breaker != "closed":
            rows.append(
                ("breaker", say(f"{one.name}: {one.breaker}", _STYLES.get(one.breaker, "")))
            )
    rows += (("errors", f"{kind}: {count:.0f}") for kind, count in stats.errors.items())
    if seen.drain.draining:
        rows.append(("drain", drain_line(seen.drain)))
    if seen.migration is not None:
        rows.append(("migration", migration_line(seen.migration)))
    return _facts(rows)
