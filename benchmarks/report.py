"""Table and JSON of a run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from benchmarks.suite import HANDSHAKE, IDLE, ROWS, Results, Row, Scale, Window

#: Part of its time that a server waits for its core, above which the report mentions it.
_OTHERS_MATTER = 0.05
_NOTHING = "–"
#: Longest line of the head, in characters.
_WIDTH = 100
#: Markers of a run in a document.
_BEGIN, _END = "<!-- baseline: begin -->", "<!-- baseline: end -->"

#: A column at the right: its title, and the contestants whose costs are divided.
Ratio = tuple[str, str, str]


def _number(value: float) -> str:
    """A number with three significant digits, or a few more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _pair(values: Sequence[float], best: Callable[[Sequence[float]], float] = min) -> str:
    return f"{_number(best(values))} ({_number(median(values))})"


def _lines(results: Results, names: Sequence[str], ratios: Sequence[Ratio]) -> Iterator[list[str]]:
    """Cells of the table, row by row."""

    def line(row: Row, unit: str, cell: Callable[[list[Window]], str]) -> list[str]:
        windows = results[row.key]
        return [
            row.title,
            unit,
            *(cell(windows[name]) if name in windows else _NOTHING for name in names),
        ]

    def costs(windows: list[Window]) -> str:
        return _pair([window.server_us * scale for window in windows])

    def rates(windows: list[Window]) -> str:
        return _pair([window.rate for window in windows], max)

    def latencies(windows: list[Window]) -> str:
        return _pair([window.p99_us for window in windows])

    def memory(windows: list[Window]) -> str:
        return _number(windows[0].kib_a_phone)

    for row in (*ROWS, IDLE):
        scale = row.scale
        lowest = _lowest(results, row)
        if row.needs_tokens:
            # Only ours know tokens; the others' plain handshake is the bare work of that, too.
            lowest = {**_lowest(results, HANDSHAKE), **lowest}
        yield line(row, row.unit, costs) + [
            f"{lowest[top] / lowest[bottom]:.2f}" for _, top, bottom in ratios
        ]
    blank = [""] * len(ratios)
    for row in ROWS:
        if row.shows == "rate":
            yield line(row, "a second", rates) + blank
        elif row.shows == "latency":
            yield line(row, "99 % within, µs", latencies) + blank
    yield line(IDLE, "KiB each", memory) + blank


def _lowest(results: Results, row: Row) -> dict[str, float]:
    """Lowest cost of each contestant."""
    return {
        name: min(window.server_us for window in windows)
        for name, windows in results[row.key].items()
    }


def table(results: Results, names: Sequence[str], ratios: Sequence[Ratio]) -> str:
    """The table in Markdown, with aligned columns."""
    lines = [["load", "unit", *names, *(title for title, _, _ in ratios)]]
    return aligned([*lines, *_lines(results, names, ratios)])


def aligned(lines: list[list[str]]) -> str:
    """A table in Markdown with aligned columns; the first of C{lines} is its head."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in (lines[0], rule, *lines[1:])
    )


def _share(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0%}", f"{max(values):.0%}"
    return low if low == high else f"{low[:-1]} to {high}"


def notes(results: Results) -> list[str]:
    """Remarks on how busy both sides were, and what that means for the figures."""
    found = []
    limits = []
    for row in (*ROWS, IDLE):
        medians = {
            name: (
                median(window.server_busy for window in windows),
                median(window.own_busy for window in windows),
            )
            for name, windows in results[row.key].items()
        }
        servers, generators = zip(*medians.values(), strict=True)
        found.append(f"{row.title}: servers {_share(servers)}, generator {_share(generators)}")
        for name, windows in results[row.key].items():
            count = sum(window.generator_was_limit for window in windows)
            if count:
                limits.append(f"{row.title}, {name} ({count} of {len(windows)} windows)")
    text = ["busy (medians): " + "; ".join(found)]
    missed = [
        f"{row.title}, {name}: {median(one.rate for one in windows):,.0f}"
        for row in ROWS
        for name, windows in results[row.key].items()
        if row.rate and median(one.rate for one in windows) < 0.97 * row.rate
    ]
    if missed:
        text.append(f"FEWER CAME BACK than were sent in {'; '.join(missed)} a second")
    if limits:
        text.append(
            f"THE GENERATOR WAS THE LIMIT in {'; '.join(limits)}: what these servers did a second "
            "is what they were asked for, not what they can; their cost each holds"
        )
    else:
        text.append("the generator was never the limit")
    everything = [one for row in results.values() for windows in row.values() for one in windows]
    waited = [one.server_waited / (one.server_busy + one.server_waited) for one in everything]
    if median(waited) > _OTHERS_MATTER:
        text.append(
            f"THE MACHINE WAS NOT QUIET: servers waited for their core for {median(waited):.0%} of "
            "the time that they had work (median): rates and latencies are those of a loaded "
            "machine, and a cost each is somewhat higher, for caches are cold"
        )
    else:
        text.append("the machine was quiet: servers hardly waited for their core")
    return text


def head(facts: dict[str, str], scale: Scale, remarks: Sequence[str]) -> str:
    """Text above the table."""
    lines = [f"{name}: {value}" for name, value in facts.items()]
    lines.append(
        f"windows: {scale.windows} of {scale.seconds} s, interleaved; idle: {scale.idle_windows} "
        f"of {scale.idle_seconds} s, {scale.idle_phones:,} phones, pinged every "
        f"{scale.ping_interval:.0f} s"
    )
    lines += remarks
    lines.append("costs are CPU time of the server by the kernel's accounting: minimum (median)")
    return "\n".join(fill(line, _WIDTH, subsequent_indent="  ") for line in lines)


def write_baseline(document: Path, head: str, table: str) -> None:
    """
    Replace the run in a document.

    @raise ValueError: the document has no markers.
    """
    before, begin, rest = document.read_text("utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"{document}: there is no {_BEGIN} with an {_END}")
    text = f"{before}{begin}\n```text\n{head}\n```\n\n{table}\n{end}{after}"
    document.write_text(text, "utf-8")


def as_data(
    results: Results, facts: dict[str, str], scale: Scale, remarks: Sequence[str]
) -> dict[str, Any]:
    """All results, with every window, for programs."""
    return {
        "facts": facts,
        "scale": scale,
        "remarks": remarks,
        "rows": [
            {
                "key": row.key,
                "title": row.title,
                "unit": row.unit,
                "servers": {
                    name: {
                        "minimum": row.scale * min(one.server_us for one in windows),
                        "median": row.scale * median(one.server_us for one in windows),
                        "windows": windows,
                    }
                    for name, windows in results[row.key].items()
                },
            }
            for row in (*ROWS, IDLE)
        ],
    }
