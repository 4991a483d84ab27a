"""C{domaeka init} and C{domaeka check-config}."""

import json
import os
import socket
import sys
from pathlib import Path

import click
import msgspec
from twisted.python.runtime import seconds

from domaeka.config import Settings, SettingsSource, load_settings
from domaeka.errors import ConfigError
from domaeka.settings_docs import commented_config
from domaeka.state import (
    Secrets,
    load_or_create_secrets,
    state_directory,
)

#: An address of nobody, RFC 5737: to learn by which of ours the network is reached.
_NOBODY = ("192.0.2.1", 9)


@click.command(
    epilog="""\b
Examples:
  domaeka init
  domaeka init /etc/domaeka.toml --state-dir /var/lib/domaeka --host chat.example
"""
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default="domaeka.toml")
@click.option("--state-dir", metavar="DIR", help="Where the secrets are kept.")
@click.option("--host", help="The server's address as phones reach it; guessed by default.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its port  [default: 9000]")
@click.option("--force", is_flag=True, help="Overwrite FILE. Secrets are never overwritten.")
def init(
    file: Path, state_dir: str | None, host: str | None, port: int | None, force: bool
) -> None:
    """
    Write a commented config and the secrets.

    FILE is domaeka.toml by default; every setting stands in it with its default, commented out.
    What is shown at the end goes into the phone's bridge script.
    """
    settings = load_settings()
    directory = state_directory(state_dir, os.environ)
    try:
        with file.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(commented_config())
    except FileExistsError:
        raise ConfigError(f"{file}: there is one already; --force overwrites it") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    secrets = load_or_create_secrets(directory, settings.auth, seconds())
    click.echo(f"Settings: {file}")
    click.echo(f"Secrets:  {directory}/secrets.toml")
    # Beside this command, wherever that was installed.
    twistd = Path(sys.argv[0]).with_name("twistd")
    start = f"{twistd if twistd.exists() else 'twistd'} -n --pidfile= domaeka --config {file}"
    click.echo(f"Start:    {start}" + (f" --state-dir {directory}" if state_dir else ""))
    click.echo("\nFor the phone's bridge script; whoever reads it can speak for the phone:\n")
    click.echo(script_lines(host or own_address(), port or settings.server.port, secrets))


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="A JSON object in a line.")
def check_config(file: Path, as_json: bool) -> None:
    """
    Say whether the server would start with FILE.

    Ends with 0 if it would, else with 1 and one line that says which setting is wrong, and why.
    Settings from the environment count as they would for the server.
    """
    source = SettingsSource(file)
    try:
        check_all(source.load())
    except ConfigError as error:
        text = source.locate(str(error))
        if not as_json:
            raise ConfigError(text) from None
        click.echo(msgspec.json.encode({"file": str(file), "good": False, "error": text}))
        raise click.exceptions.Exit(1) from None
    shown = msgspec.json.encode({"file": str(file), "good": True}) if as_json else f"{file}: good"
    click.echo(shown)


def script_lines(host: str, port: int, secrets: Secrets) -> str:
    """What a phone's script must know, as JavaScript."""
    values = (
        ("SERVER_HOST", host),
        ("SERVER_PORT", port),
        ("SECRET_KEY", secrets.secret_key),
        ("SALT", secrets.salt),
    )
    return "\n".join(
        f"const {name} = {json.dumps(value, ensure_ascii=False)};" for name, value in values
    )


def own_address() -> str:
    """The address of this machine as its network sees it; its name where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_NOBODY)  # sends nothing
            address: str = probe.getsockname()[0]
        except OSError:
            return socket.gethostname()
    return address


def check_all(settings: Settings) -> None:
    """
    Look at what the server would, and at its bots.

    @raise ConfigError: which setting is wrong, and why.
    """
    from domaeka.bots.builtin import builtin_bot
    from domaeka.bots.commands import CommandTable
    from domaeka.bots.loading import load_bots
    from domaeka.startup import check

    check(settings)
    # As the server does: bots beside the place from which it is started.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    bots = tuple(load_bots(settings.bots.load))
    CommandTable(command for bot in (builtin_bot(bots), *bots) for command in bot.commands)
