"""
How soon phones are answered again after a fault: see docs/benchmarks.md, "Faults".

Usage: C{python -m benchmarks.faults [--short] [--rows KEY,KEY…] [--slack SECONDS] [--json FILE]},
as root.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any

import msgspec
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, FirstError, TimeoutError, ensureDeferred

from benchmarks import machine
from benchmarks.faults import report
from benchmarks.faults.network import World, why_not
from benchmarks.faults.rows import ROWS
from benchmarks.faults.run import FULL, QUICK, Lane, Run, Scale
from benchmarks.servers import BUILD, BenchmarkError, allow_many_files, end_by_exception

_WIDTH = 100


def measure(scale: Scale) -> tuple[list[Lane], list[str]]:
    """
    @return: every lane with its tally, and remarks for the reader.
    @raise BenchmarkError: it could not be measured.
    """
    outcome: list[Any] = []

    def start(clock: Any) -> "Deferred[Any]":
        run = Run(world, clock, scale)
        give_up_at = clock.seconds() + scale.bound
        measuring = ensureDeferred(run.measure())
        measuring.addTimeout(max(0.0, give_up_at - clock.seconds()), clock)
        measuring.addCallbacks(lambda lanes: outcome.append((lanes, run.remarks)), outcome.append)
        return measuring

    with World() as world:
        try:
            task.react(start, _reactor=reactor)
        except SystemExit as end:
            if not outcome:
                raise BenchmarkError(f"ended before its time ({end.code})") from None
    (found,) = outcome
    if isinstance(found, tuple):
        return found
    error = found.value
    while isinstance(error, FirstError):
        error = error.subFailure.value
    if isinstance(error, BenchmarkError):
        raise error
    if isinstance(error, TimeoutError):
        raise BenchmarkError(f"no end within {scale.bound:.0f} s")
    raise BenchmarkError(found.getTraceback())


def _print(
    lanes: Sequence[Lane], facts: dict[str, str], remarks: Sequence[str], missed: Sequence[str]
) -> None:
    lines = [*(f"{name}: {value}" for name, value in facts.items()), *remarks]
    print("\n".join(fill(line, _WIDTH, subsequent_indent="  ") for line in lines))
    print(f"\n{report.table(lanes)}\n")
    print("targets that are missed:" if missed else "all targets are met")
    for line in missed:
        print(f"- {line}")


def main() -> int:
    """@return: the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__.split("\n")[1]
    )
    parser.add_argument("--short", action="store_true", help="four rows, in 2 minutes")
    parser.add_argument(
        "--rows", help="only these, by their keys: " + ",".join(r.key for r in ROWS)
    )
    parser.add_argument(
        "--json", type=Path, default=BUILD / "faults.json", help="where to write it"
    )
    parser.add_argument(
        "--slack",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="judge as for a machine that is busy with something else",
    )
    options = parser.parse_args()
    scale = QUICK if options.short else FULL
    if options.rows:
        keys = options.rows.split(",")
        scale = replace(scale, rows=tuple(row for row in ROWS if row.key in keys))
    if (why := why_not()) is not None:
        print(f"benchmarks.faults is skipped: {why}")
        return 0
    allow_many_files()
    end_by_exception()
    facts = machine.facts(None)
    for name in ("cores", "C compiler", "Node"):
        del facts[name]  # nothing is pinned, and nobody else takes part
    before = machine.load()
    try:
        lanes, remarks = measure(scale)
    except BenchmarkError as error:
        print(f"benchmarks.faults: {error}", file=sys.stderr)
        return 1
    facts["load"] = f"{before} before, {machine.load()} after"
    missed = report.all_shortcomings(lanes, options.slack)
    _print(lanes, facts, remarks, missed)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    data = report.as_data(lanes, facts, remarks, missed)
    options.json.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n")
    print(f"\nall figures: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
