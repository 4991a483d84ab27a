"""
The table and the JSON of a run, and the targets that it misses, in words.
"""

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any, Final

from benchmarks.faults.phones import PERIOD, SERVED_SECONDS, Tally
from benchmarks.faults.rows import Row
from benchmarks.faults.run import LIBRARY, OLD, PRESENT, SCRIPT, Lane
from benchmarks.report import aligned
from domaeka.testing.phone import RECONNECT_SECONDS

#: More than the figure that is wanted, by this factor, is not good enough.
TOLERANCE: Final = 1.5
#: Half of the present system's time is not asked for below this, nor below the target: a
#: phone says something only every two seconds, its kernel's last pause in a cut of 5 s is as long,
#: and an old phone does not come back before its 4 s are over.
#: A script cannot have its kernel repeat sooner, as the library does.
LEAST_SECONDS: Final = {
    LIBRARY: PERIOD + 1.5,
    SCRIPT: PERIOD + 3.0,
    OLD: RECONNECT_SECONDS + PERIOD + 0.5,
}
#: So many fewer lines, of all, may be served than by the present system: which packets are lost,
#: and when a phone speaks, is chance.
SERVED_TOLERANCE: Final = 0.01
#: Longest time without an answer where a fault is not to be noticed, in seconds.
UNNOTICED_SECONDS: Final = 2 * PERIOD + 0.5
_HEAD: Final = (
    "fault",
    "who",
    "back after, s",
    "wanted",
    "longest silence, s",
    "lost",
    "of these after it",
    "told",
    f"served in {SERVED_SECONDS:.0f} s",
    "latest, s",
    "doubled",
    "out of order",
)


def _seconds(value: float) -> str:
    return f"{value:.1f}" if isfinite(value) else "never"


def _back_of(row: Row, tally: Tally) -> float:
    return tally.last_back if row.last else tally.median_back


def _wanted(lane: Lane) -> float | None:
    if lane.name is PRESENT:
        return None
    return lane.row.wanted[0 if lane.name is OLD else 1]


def _words(row: Row, wanted: float | None) -> str:
    return f"{wanted:g}" if wanted is not None else "unnoticed" if row.unnoticed else ""


def _tally(lane: Lane) -> Tally:
    assert lane.tally is not None
    return lane.tally


def _cells(lane: Lane) -> list[str]:
    tally, wanted = _tally(lane), _wanted(lane)
    back = f"{_seconds(_back_of(lane.row, tally))} ({_seconds(tally.last_back)})"
    return [
        lane.row.title,
        lane.name,
        back,
        _words(lane.row, wanted) if lane.name is not PRESENT else "",
        _seconds(max(tally.silence)),
        f"{tally.lost}",
        f"{tally.lost_after}",
        f"{tally.told}",
        f"{tally.served} of {tally.said}",
        _seconds(tally.latest),
        f"{tally.doubled}",
        f"{tally.disordered}",
    ]


def table(lanes: Sequence[Lane]) -> str:
    """The table, in Markdown; columns are aligned, so that it reads well as it is."""
    return aligned([list(_HEAD), *(_cells(lane) for lane in lanes)])


def shortcomings(lane: Lane, present: Lane, slack: float = 0.0) -> list[str]:
    """
    List the targets that a lane of ours misses, in words.

    @param present: that of the present system.
    @param slack: seconds by which all may come later, and lines that fewer may be served.
    """
    row, ours, theirs = lane.row, _tally(lane), _tally(present)
    back, before = _back_of(row, ours), _back_of(row, theirs)
    decided = lane.name is OLD and row.phone_decides
    found = []
    wanted = _wanted(lane)
    if wanted is not None and back > wanted * TOLERANCE + slack:
        found.append(f"back after {_seconds(back)} s: {wanted:g} s are wanted")
    half = max(before / 2, LEAST_SECONDS[lane.name], (wanted or 0.0) * TOLERANCE)
    if not decided and back > half + slack:
        found.append(f"back after {_seconds(back)} s: not half of {_seconds(before)} s")
    if row.unnoticed and max(ours.silence) > UNNOTICED_SECONDS + slack:
        found.append(f"silent for {_seconds(max(ours.silence))} s: it was not to be noticed")
    if not decided and ours.lost_after:
        found.append(f"{ours.lost_after} lines lost of what was said after the fault")
    margin = SERVED_TOLERANCE * ours.said + slack
    if ours.served + margin < theirs.served * ours.said / max(theirs.said, 1):
        found.append(
            f"{ours.served} of {ours.said} lines served, by the present system "
            f"{theirs.served} of {theirs.said}"
        )
    if lane.name is OLD and row.keeps_all and ours.lost:
        found.append(f"{ours.lost} lines lost")
    if lane.name in (LIBRARY, SCRIPT) and ours.lost > ours.told:
        found.append(f"{ours.lost - ours.told} lines lost of which nobody was told")
    if ours.doubled:
        found.append(f"{ours.doubled} answers doubled")
    if ours.disordered and not decided and not (lane.name is OLD and row.late):
        found.append(f"{ours.disordered} answers out of order")
    return found


def all_shortcomings(lanes: Sequence[Lane], slack: float = 0.0) -> list[str]:
    """Those of all lanes, a line each; it begins with the key of the row."""
    present = {lane.row.key: lane for lane in lanes if lane.name is PRESENT}
    return [
        f"{lane.row.key}, {lane.name}: {what}"
        for lane in lanes
        if lane.name is not PRESENT
        for what in shortcomings(lane, present[lane.row.key], slack)
    ]


def as_data(
    lanes: Sequence[Lane], facts: dict[str, str], remarks: Sequence[str], missed: Sequence[str]
) -> dict[str, Any]:
    """
    All of it, for programs; infinite times are C{null}.

    @param missed: the targets that are missed.
    """

    def finite(values: Sequence[float]) -> list[float | None]:
        return [round(value, 2) if isfinite(value) else None for value in values]

    rows: dict[str, dict[str, Any]] = {}
    for lane in lanes:
        tally = _tally(lane)
        row = rows.setdefault(lane.row.key, {"title": lane.row.title, "lanes": {}})
        row["lanes"][lane.name] = asdict(tally) | {
            "back": finite(tally.back),
            "silence": finite(tally.silence),
            "fault_seconds": round(lane.ended_at - lane.began_at, 2),
        }
    return {
        "facts": facts,
        "remarks": list(remarks),
        "rows": rows,
        "shortcomings": list(missed),
    }
