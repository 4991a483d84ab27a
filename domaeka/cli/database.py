"""C{domaeka db}: the store, without a server."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
from sqlalchemy import URL

from domaeka.cli.groups import Group
from domaeka.cli.output import one_line
from domaeka.config import settings_here
from domaeka.errors import ConfigError
from domaeka.server import database_address
from domaeka.state import LOCK_NAME, lock_directory, state_path, trusting_owner
from domaeka.store import maintenance

_STATE_DIR: Final = click.option("--state-dir", metavar="DIR", help="The server's state directory.")
_CONFIG: Final = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The server's settings, for storage.url; else ./domaeka.toml, if it is there.",
)


def _found(config: Path | None, state_dir: str | None) -> tuple[URL, Path]:
    """The address of the server's store, and its state directory, which need not be there."""
    source = settings_here(config)
    directory = state_path(state_dir, os.environ)
    try:
        with trusting_owner(directory):
            return database_address(source.load(), directory), directory
    except ConfigError as error:
        raise ConfigError(source.locate(str(error))) from None


@click.group(cls=Group, no_args_is_help=True)
def db() -> None:
    """Check, migrate and copy the store."""


def _command(epilog: str) -> Callable[[Callable[..., Any]], click.Command]:
    def decorate(function: Callable[..., Any]) -> click.Command:
        command: click.Command = db.command(epilog=epilog)(_STATE_DIR(_CONFIG(function)))
        return command

    return decorate


@_command("""\b
Examples:
  domaeka db check
  sudo domaeka db check --state-dir /var/lib/domaeka --config /etc/domaeka/domaeka.toml
""")
def check(config: Path | None, state_dir: str | None) -> None:
    """
    Say whether the store is sound.

    Shows the database, the revision of the tables and their numbers of rows; of SQLite's file each
    page is looked at. Changes nothing. The server may run.
    """
    address, _ = _found(config, state_dir)
    found = maintenance.report(address, thorough=True)
    for name, value in (
        ("store", found.name),
        ("database", f"{found.kind}, {found.encoding}"),
        ("revision", found.revision),
        *((name, f"{rows} rows") for name, rows in found.rows.items()),
    ):
        click.echo(f"{name:20} {one_line(value)}")
    if found.faults:
        raise click.ClickException("; ".join(map(one_line, found.faults)))
    click.echo(f"{'found':20} good")


@_command("""\b
Examples:
  domaeka db upgrade
  domaeka db upgrade --config /etc/domaeka/domaeka.toml --state-dir /var/lib/domaeka
""")
def upgrade(config: Path | None, state_dir: str | None) -> None:
    """
    Bring the store's tables up to date.

    A start does the same. Make a backup before: there is no way back. The server must not run.
    """
    address, directory = _found(config, state_dir)
    with ExitStack() as locked:
        if (directory / LOCK_NAME).exists():  # else no server was ever started there
            lock = lock_directory(directory)
            if lock is not None:
                locked.enter_context(lock)
        before, now = maintenance.upgrade(address)
    if before == now:
        click.echo(f"revision {now}: nothing to do")
    elif before is None:
        click.echo(f"revision {now}: the tables are made")
    else:
        click.echo(f"from revision {before} to {now}")


@_command("""\b
Examples:
  domaeka db backup /backup/domaeka-$(date +%F).db
""")
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path, config: Path | None, state_dir: str | None) -> None:
    """
    Copy SQLite's database to FILE.

    The server may run, and goes on. FILE must not be there; it gets mode 0600. For a database on a
    server, the command that copies it is shown, and nothing is done.
    """
    address, _ = _found(config, state_dir)
    size = maintenance.back_up(address, file)
    click.echo(f"{file}: {size} bytes")
