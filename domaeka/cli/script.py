"""C{domaeka phone-script}: the bridge script for the phones' app, filled in."""

import os
from pathlib import Path

import click
from twisted.python.runtime import seconds

from domaeka.cli.configuration import BOT_OPTION, CONFIG_OPTION, STATE_DIR_OPTION, write_script
from domaeka.config import settings_here
from domaeka.errors import ConfigError
from domaeka.phone_script import fill_script, script_servers
from domaeka.secrets import load_secrets
from domaeka.state import SECRETS_NAME, state_path, trusting_owner


@click.command(
    "phone-script",
    epilog="""\b
Examples:
  domaeka phone-script > bridge.js
  domaeka phone-script --bot 가게봇 --host 192.168.0.10 -o bridge.js
  domaeka phone-script --host chat.example --host spare.example:9100 > bridge.js
  domaeka phone-script --host chat.example --tls --pin > bridge.js
""",
)
@BOT_OPTION
@click.option(
    "--host",
    "hosts",
    metavar="HOST[:PORT]",
    multiple=True,
    help="The server as phones reach it, IPv6 in brackets; again for the next one in order. "
    "Guessed by default; the port by default is the settings'.",
)
@click.option("--tls", is_flag=True, help="Phones speak TLS; the port by default is tls.port.")
@click.option(
    "--pin",
    is_flag=True,
    help="With --tls: phones take the certificate of tls.certificate and no other, as they must "
    "where it is self-signed.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write to FILE, for you alone to read; by default, or with -, to standard output.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@STATE_DIR_OPTION
@CONFIG_OPTION
def phone_script(
    bot: str,
    hosts: tuple[str, ...],
    tls: bool,
    pin: bool,
    output: Path | None,
    force: bool,
    state_dir: str | None,
    config: Path | None,
) -> None:
    """
    Write the script for the phones' app, filled in.

    It has the bot's name, key and salt, and the list of servers in it: paste it into the app as it
    is. Whoever reads it can speak for the phones. The key and the salt are those that `domaeka
    secrets show` shows.
    """
    if pin and not tls:
        raise click.UsageError("--pin: only with --tls")
    path = state_path(state_dir, os.environ) / SECRETS_NAME
    now = seconds()
    with trusting_owner(path.parent):
        settings = settings_here(config).load()
        if not os.path.lexists(path):
            raise ConfigError(f"{path}: no secrets. Start the server once, or give --state-dir")
        held = load_secrets(path.parent, settings.auth, now)
    try:
        servers = script_servers(hosts, settings, tls=tls, pin=pin)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--host") from None
    script = fill_script(bot, held.secret_key, held.salt, servers)
    if output is None or str(output) == "-":
        click.echo(script, nl=False)
    else:
        write_script(output, script, force)
        click.echo(f"Script:   {output}")
    if len(held.accepted_keys(now)) > 1:
        click.echo(
            "domaeka: the script has the new key: if the server has not read that yet, domaeka "
            "reload",
            err=True,
        )
