"""C{domaeka secrets}: what the server and its phones share."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec
from twisted.python.runtime import seconds

from domaeka.cli.configuration import own_address, script_lines
from domaeka.cli.groups import Group
from domaeka.config import AuthSettings, load_settings
from domaeka.errors import ConfigError
from domaeka.state import (
    SECRETS_NAME,
    Secrets,
    given_secrets,
    load_secrets,
    rotate_secret_key,
    state_path,
)

_DAY: Final = 86_400.0


@click.group(cls=Group, no_args_is_help=True)
def secrets() -> None:
    """Change what the server and its phones share."""


@secrets.command(
    epilog="""\b
Examples:
  domaeka secrets rotate
  domaeka secrets rotate --keep 2 && domaeka reload
  domaeka secrets rotate --keep 0      when the old key is known to somebody
"""
)
@click.option(
    "--keep",
    metavar="DAYS",
    type=click.FloatRange(0, 365),
    default=7.0,
    show_default=True,
    help="How long the old key is accepted too; 0: not at all.",
)
@click.option("--state-dir", metavar="DIR", help="The server's state directory.")
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The server's settings, for its port, and to see whether they give the key.",
)
@click.option("--host", help="The server's address as phones reach it; guessed by default.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its port; by default the settings'.")
@click.option("--force", is_flag=True, help="Give up an old key that is still accepted.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object in a line.")
def rotate(
    keep: float,
    state_dir: str | None,
    config: Path | None,
    host: str | None,
    port: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """
    Make a new secret key.

    The server takes it when it reads its secrets again: domaeka reload, SIGHUP or a restart. Until
    the old one ends phones may sign with either; only one old key is accepted at a time. What is
    shown goes into the phones' scripts.
    """
    settings = load_settings(config)
    if keep != keep:
        raise click.BadParameter("not a number", param_hint="--keep")
    for name in ("secret_key", "previous_secret_key"):
        if name in given_secrets(settings.auth):
            raise ConfigError(f"auth.{name}: the settings give it: change it where they do")
    directory = state_path(state_dir, os.environ)
    old = load_secrets(directory, AuthSettings(accept_published_key=True), seconds())
    if old.previous_secret_key and old.previous_valid_until > seconds() and not force and keep:
        raise ConfigError(
            f"{directory / SECRETS_NAME}: an old key is accepted until {_when(old)}, and phones "
            "that still have it would be locked out: wait, or give --force"
        )
    new = rotate_secret_key(directory, keep * _DAY, seconds())
    if as_json:
        shown = {
            "secret_key": new.secret_key,
            "salt": new.salt,
            "previous_valid_until": new.previous_valid_until or None,
        }
        click.echo(msgspec.json.encode(shown))
        return
    click.echo(f"Secrets:  {directory / SECRETS_NAME}")
    if new.previous_secret_key:
        click.echo(f"Old key:  accepted until {_when(new)}")
    else:
        click.echo("Old key:  not accepted any more, once the server has read the new one")
    click.echo("Then:     domaeka reload")
    click.echo("\nFor the phone's bridge script; whoever reads it can speak for the phone:\n")
    click.echo(script_lines(host or own_address(), port or settings.server.port, new))


def _when(held: Secrets) -> str:
    """When the old key ends, by the local clock."""
    ends = datetime.fromtimestamp(held.previous_valid_until, UTC).astimezone()
    return f"{ends:%Y-%m-%d %H:%M %Z}"
