"""C{domaeka import}: what the previous system has stored."""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine
from twisted.python.runtime import seconds

from domaeka.cli.output import INTERRUPTED, escaped_json, one_line, printable
from domaeka.cli.places import Unreachable
from domaeka.config import Settings, settings_here
from domaeka.errors import ConfigError
from domaeka.server import database_address, make_database_files
from domaeka.state import (
    LOCK_NAME,
    DirectoryInUse,
    lock_directory,
    make_state_directory,
    state_path,
    trusting_owner,
)
from domaeka.store.drivers import make_engine, sqlite_file
from domaeka.store.imports.importer import Importer, Report
from domaeka.store.imports.mapping import Part
from domaeka.store.imports.source import Source, SourceUnreachable

#: The zone of the previous system's times, which it stored without one.
DEFAULT_ZONE: Final = "Asia/Seoul"
#: The heads of the columns after the first.
_HEADS: Final = ("read", "taken", "known", "doubled", "not taken")


def _zone(ctx: click.Context, param: click.Parameter, value: str) -> tzinfo:
    if offset := re.fullmatch(r"([+-])(\d\d):([0-5]\d)", value, re.ASCII):
        sign, hours, minutes = offset.groups()
        if int(hours) < 24:
            shift = timedelta(hours=int(hours), minutes=int(minutes))
            return timezone(-shift if sign == "-" else shift)
    try:
        return ZoneInfo(value)
    except (LookupError, OSError, ValueError):
        raise click.BadParameter(
            f"{one_line(value)!r:.60}: no time zone that this machine knows; an offset such as "
            "+09:00 is always known",
            ctx,
            param,
        ) from None


@click.command(
    "import",
    epilog="""\b
Examples:
  domaeka import mysql+pymysql://reader@db.example/kakao --dry-run
  domaeka import 'mysql+pymysql://db.example/kakao?read_default_file=/etc/domaeka/import.cnf'
  sudo domaeka import … --state-dir /var/lib/domaeka --config /etc/domaeka/domaeka.toml

\b
docs/import.md has the way over from the previous system, step by step.
""",
)
@click.argument("url")
@click.option("--dry-run", is_flag=True, help="Only say what would be taken; write nothing.")
@click.option(
    "--timezone",
    "zone",
    metavar="ZONE",
    default=DEFAULT_ZONE,
    show_default=True,
    callback=_zone,
    help="The zone of the times there: a name, or an offset such as +09:00.",
)
@click.option("--skip-old", is_flag=True, help="Leave out lines older than storage.chat_log_days.")
@click.option("--state-dir", metavar="DIR", help="The server's state directory.")
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The server's settings, for its store; else ./domaeka.toml, if it is there.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object in a line.")
def import_command(
    url: str,
    dry_run: bool,
    zone: tzinfo,
    skip_old: bool,
    state_dir: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """
    Take over devices, rooms and chat of the previous system.

    URL is its database, which is only read: mysql+pymysql://USER:PASSWORD@HOST/DATABASE. Devices
    and rooms that the store has already stay as they are. The server must not run meanwhile, but
    for --dry-run. An import that was cut short goes on where it was; a second one takes what is
    new.
    """
    with ExitStack() as stack:
        stack.enter_context(trusting_owner(state_path(state_dir, os.environ)))
        settings = settings_here(config).load()
        target = stack.enter_context(_target(settings, state_dir, dry_run))
        try:
            source = Source(url, zone)
        except SourceUnreachable as error:
            raise Unreachable(one_line(str(error))) from None
        stack.callback(source.close)
        progress = stack.enter_context(_bar())
        importer = Importer(
            source,
            target,
            days=settings.storage.chat_log_days,
            now=seconds(),
            dry_run=dry_run,
            skip_old=skip_old,
            progress=progress,
        )
        try:
            report = importer.run()
        except KeyboardInterrupt:
            stack.close()
            click.echo("stopped; the same command goes on from here", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
    click.echo(
        escaped_json(msgspec.json.encode(report).decode())
        if as_json
        else printable(_shown(report, settings))
    )


@contextmanager
def _target(settings: Settings, option: str | None, dry_run: bool) -> Iterator[Engine | None]:
    """The store; L{None} for a dry run where there is none yet."""
    if dry_run:
        directory = state_path(option, os.environ)
        address = database_address(settings, directory)
        file = sqlite_file(address)
        if file is not None and not file.exists():
            yield None
            return
        lock = None
    else:
        directory = make_state_directory(option, os.environ)
        try:
            lock = lock_directory(directory)
        except DirectoryInUse:
            raise ConfigError(
                f"state directory {directory}: a server uses it, and would not see what is "
                "imported: stop it first; --dry-run can run beside it"
            ) from None
        address = make_database_files(settings, directory)
        _give_to_owner(directory / LOCK_NAME)
        if (file := sqlite_file(address)) is not None:
            _give_to_owner(file)
    try:
        engine = make_engine(address, writes=not dry_run)
        try:
            yield engine
        finally:
            engine.dispose()
    finally:
        if lock is not None:
            lock.close()


def _give_to_owner(path: Path) -> None:
    """Give a file that root has made to the owner of its directory: to the server's user."""
    owner = path.parent.stat()
    if os.geteuid() == 0 and path.stat().st_uid == 0 != owner.st_uid:
        os.chown(path, owner.st_uid, owner.st_gid)


@contextmanager
def _bar() -> Iterator[Any]:
    """A progress bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("chat"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("chat")
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _shown(report: Report, settings: Settings) -> str:
    """The report, for people."""
    days = settings.storage.chat_log_days
    lines = [f"From {report.source}{', nothing is written (--dry-run)' if report.dry_run else ''}"]
    parts = {"devices": report.devices, "rooms": report.rooms, "chat lines": report.lines}
    rows = [("", *_HEADS), *((name, *_numbers(part)) for name, part in parts.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join((first.ljust(widths[0]), *cells)))
    if report.after_id:
        lines.append(f"Chat lines up to id {report.after_id} were read by an import before.")
    for name, part in parts.items():
        for reason, refused in part.refused.items():
            more = ", …" if refused.count > len(refused.examples) else ""
            shown = ", ".join(map(one_line, refused.examples))
            lines.append(f"Not taken: {name}, {reason}: {refused.count} ({shown}{more})")
    lines += [f"Note: {one_line(note)}" for note in report.notes]
    if report.cut_lines:
        lines.append(
            f"Note: {report.cut_lines} of the lines taken were cut at 64 KiB by the previous system"
        )
    if report.old_lines:
        lines.append(
            f"Attention: {report.old_lines} of the lines taken are older than "
            f"storage.chat_log_days = {days}: the server removes them soon after its start. To "
            f"keep them, set storage.chat_log_days = {report.days_needed} or more before you start "
            "it; --skip-old leaves them out."
        )
    if report.is_empty:
        lines.append("Nothing is new: the store stays as it was.")
    elif report.dry_run:
        lines.append("The same command without --dry-run takes it over.")
    return "\n".join(lines)


def _numbers(part: Part) -> list[str]:
    refused = sum(one.count for one in part.refused.values())
    return [str(n) for n in (part.read, part.taken, part.known, part.merged, refused)]
