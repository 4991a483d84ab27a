"""C{domaeka secrets}: the secrets that the server and its phones share."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec
from twisted.python.runtime import seconds

from domaeka.cli.configuration import (
    BOT_OPTION,
    CONFIG_OPTION,
    STATE_DIR_OPTION,
    show_script_lines,
)
from domaeka.cli.groups import Group
from domaeka.cli.output import escaped_json
from domaeka.config import AuthSettings, settings_here
from domaeka.errors import ConfigError
from domaeka.secrets import Secrets, load_secrets, rotate_secret_key, secrets_in_settings
from domaeka.state import SECRETS_NAME, state_path, trusting_owner

_DAY: Final = 86_400.0


_HOST: Final = click.option(
    "--host", help="The server's address as phones reach it; guessed by default."
)
_PORT: Final = click.option(
    "--port", type=click.IntRange(1, 65535), help="Its port; by default the settings'."
)
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="A JSON object in a line.")


@click.group(cls=Group, no_args_is_help=True)
def secrets() -> None:
    """Show and change what the server and its phones share."""


@secrets.command(
    epilog="""\b
Examples:
  domaeka secrets show
  domaeka secrets show --host chat.example --bot 가게봇
  sudo domaeka secrets show --state-dir /var/lib/domaeka --config /etc/domaeka.toml
"""
)
@STATE_DIR_OPTION
@CONFIG_OPTION
@_HOST
@_PORT
@BOT_OPTION
@_JSON
def show(
    state_dir: str | None,
    config: Path | None,
    host: str | None,
    port: int | None,
    bot: str,
    as_json: bool,
) -> None:
    """
    Show the lines for the phones' scripts again.

    Only who may read secrets.toml can. A key or salt that the settings give is shown in its place,
    as it is the one in force.
    """
    directory = state_path(state_dir, os.environ)
    with trusting_owner(directory):
        settings = settings_here(config).load()
        held = load_secrets(directory, settings.auth, seconds())
        given = secrets_in_settings(settings.auth)
    if as_json:
        _show_json(held)
        return
    names = [f"auth.{name}" for name in ("secret_key", "salt") if name in given]
    more = f", but {' and '.join(names)} of the settings" if names else ""
    click.echo(f"Secrets:  {directory / SECRETS_NAME}{more}")
    if len(held.accepted_keys(seconds())) > 1:
        click.echo(f"Old key:  accepted until {_when(held)}")
    show_script_lines(bot, host, port or settings.server.port, held)


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
@STATE_DIR_OPTION
@CONFIG_OPTION
@_HOST
@_PORT
@BOT_OPTION
@click.option("--force", is_flag=True, help="Give up an old key that is still accepted.")
@_JSON
def rotate(
    keep: float,
    state_dir: str | None,
    config: Path | None,
    host: str | None,
    port: int | None,
    bot: str,
    force: bool,
    as_json: bool,
) -> None:
    """
    Make a new secret key.

    The server takes it when it reads its secrets again: domaeka reload, SIGHUP or a restart. Until
    the old one ends phones may sign with either; only one old key is accepted at a time. What is
    shown goes into the phones' scripts.
    """
    if keep != keep:
        raise click.BadParameter("not a number", param_hint="--keep")
    directory = state_path(state_dir, os.environ)
    with trusting_owner(directory):
        settings = settings_here(config).load()
        given = secrets_in_settings(settings.auth)
    for name in ("secret_key", "previous_secret_key"):
        if name in given:
            raise ConfigError(f"auth.{name}: the settings give it: change it where they do")
    old = load_secrets(directory, AuthSettings(accept_published_key=True), seconds())
    if old.previous_secret_key and old.previous_valid_until > seconds() and not force and keep:
        raise ConfigError(
            f"{directory / SECRETS_NAME}: an old key is accepted until {_when(old)}, and phones "
            "that still have it would be locked out: wait, or give --force"
        )
    new = rotate_secret_key(directory, keep * _DAY, seconds())
    if as_json:
        _show_json(new)
        return
    click.echo(f"Secrets:  {directory / SECRETS_NAME}")
    if new.previous_secret_key:
        click.echo(f"Old key:  accepted until {_when(new)}")
    else:
        click.echo("Old key:  not accepted any more, once the server has read the new one")
    click.echo("Then:     domaeka reload")
    show_script_lines(bot, host, port or settings.server.port, new)


def _show_json(held: Secrets) -> None:
    """Show the secrets as JSON, for scripts."""
    shown = {
        "secret_key": held.secret_key,
        "salt": held.salt,
        "previous_valid_until": held.previous_valid_until or None,
    }
    click.echo(escaped_json(msgspec.json.encode(shown).decode()))


def _when(held: Secrets) -> str:
    """The end of the old key, by the local clock."""
    if not held.previous_valid_until:
        return "it is removed"
    ends = datetime.fromtimestamp(held.previous_valid_until, UTC).astimezone()
    return f"{ends:%Y-%m-%d %H:%M %Z}"
