"""
Cost of a message, a handshake and a phone at the server: see docs/benchmarks.md.

Usage: C{python -m benchmarks [--quick] [--against REVISION] [--json FILE] [--baseline]}.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks import machine, report
from benchmarks.checkouts import checked_out
from benchmarks.servers import (
    BUILD,
    ROOT,
    BenchmarkError,
    all_contestants,
    allow_many_files,
    end_by_exception,
    two_checkouts,
)
from benchmarks.suite import FULL, QUICK, measure_all

#: Document that holds the baseline.
_DOCUMENT = ROOT / "docs" / "benchmarks.md"


def _run(quick: bool, against: str | None, json: Path, baseline: bool) -> None:
    """Measure, print the table, and write the files."""
    scale = QUICK if quick else FULL
    cores = machine.choose_cores()
    facts = machine.facts(cores)
    before = machine.load()
    with ExitStack() as stack:
        absent: list[str] = []
        if against is None:
            contestants, absent = all_contestants()
            names = [one.name for one in contestants]
            ratios: list[report.Ratio] = [
                (f"{short} : {bottom}", ours, bottom)
                for bottom in ("tuned", "C")
                if bottom in names
                for short, ours in (("ours", "ours"), ("log", "ours, chat log"))
            ]
        else:
            name, checkout = stack.enter_context(checked_out(against))
            facts["against"] = name
            contestants = two_checkouts(name, checkout)
            ratios = [
                (f"here : {name}", "here", name),
                ("log : log", "here, chat log", f"{name}, chat log"),
            ]
        results = measure_all(contestants, scale, cores)
    facts["load"] = f"{before} before, {machine.load()} after"
    remarks = [*report.notes(results), *absent]
    head = report.head(facts, scale, remarks)
    table = report.table(results, [one.name for one in contestants], ratios)
    print(f"{head}\n\n{table}")
    if baseline:
        report.write_baseline(_DOCUMENT, head, table)
    json.parent.mkdir(parents=True, exist_ok=True)
    data = report.as_data(results, facts, scale, remarks)
    json.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n")
    print(f"\nevery window: {json}")


def main() -> int:
    """@return: the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[1]
    )
    parser.add_argument("--quick", action="store_true", help="less than 2 minutes, rougher figures")
    parser.add_argument(
        "--against", metavar="REVISION", help="interleave another revision with this"
    )
    parser.add_argument(
        "--json", type=Path, default=BUILD / "result.json", help="where to write it"
    )
    parser.add_argument("--baseline", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args()
    if options.baseline and (options.quick or options.against):
        parser.error("--baseline takes the whole table of this checkout alone")
    allow_many_files()
    end_by_exception()
    try:
        _run(options.quick, options.against, options.json, options.baseline)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
