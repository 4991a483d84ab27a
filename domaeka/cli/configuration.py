"""C{domaeka init} and C{domaeka check-config}."""

import json
import os
import stat
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import click
import msgspec
from twisted.python.runtime import seconds

from domaeka.cli.output import escaped_json, one_line, shows_unicode
from domaeka.config import CONFIG_NAME, Settings, load_settings, settings_here
from domaeka.errors import ConfigError, StoreError
from domaeka.phone_script import fill_script, own_address, script_servers
from domaeka.secrets import Secrets, load_or_create_secrets
from domaeka.settings_docs import commented_config
from domaeka.state import located_errors, make_state_directory, state_path, trusting_owner
from domaeka.wire import MAX_NAME_CHARS, is_name


def _bot_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check a bot's name as the server does."""
    if not is_name(value):
        raise click.BadParameter(
            f"1 to {MAX_NAME_CHARS} characters, none of them a control character", ctx, param
        )
    return value


#: An option of each command that shows the lines for a script.
BOT_OPTION = click.option(
    "--bot", default="domaeka", show_default=True, callback=_bot_name, help="The bot's name."
)
#: Options of each command that shows secrets: where they are.
STATE_DIR_OPTION = click.option("--state-dir", metavar="DIR", help="The server's state directory.")
CONFIG_OPTION = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The server's settings, for its port, and to see whether they give the key; else "
    "./domaeka.toml, if it is there.",
)


@click.command(
    epilog="""\b
Examples:
  domaeka init
  domaeka init --script bridge.js
  domaeka init /etc/domaeka.toml --state-dir /var/lib/domaeka --host chat.example
"""
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default="domaeka.toml")
@click.option("--state-dir", metavar="DIR", help="Where the secrets are kept.")
@click.option("--host", help="The server's address as phones reach it; guessed by default.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Its port; goes into FILE, too.  [default: 9000]"
)
@BOT_OPTION
@click.option(
    "--script",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the script for the phones, too, as `domaeka phone-script` does.",
)
@click.option("--force", is_flag=True, help="Overwrite files. Secrets are never overwritten.")
def init(
    file: Path,
    state_dir: str | None,
    host: str | None,
    port: int | None,
    bot: str,
    script: Path | None,
    force: bool,
) -> None:
    """
    Write a commented config and the secrets.

    FILE is domaeka.toml by default; every setting stands in it with its default, commented out.
    What is shown at the end goes into the phone's bridge script; `domaeka secrets show` shows it
    again, and `domaeka phone-script` writes the whole script.
    """
    settings = load_settings()
    servers = []
    if script is not None:
        target = (host or own_address()) + (f":{port}" if port else "")
        try:
            servers = script_servers([target], settings)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--host") from None
        if script.absolute() == file.absolute():
            raise click.UsageError("--script: the config is to be another file")
        if not script.absolute().parent.is_dir():
            raise ConfigError(f"{script}: there is no such folder")
        if os.path.lexists(script) and not force:
            raise _exists(script)
    directory = make_state_directory(state_dir, os.environ)
    try:
        # Whatever the umask: the server ignores a file that a group may write to, if not named.
        with open(file, "w" if force else "x", encoding="utf-8", opener=_for_one_writer) as opened:
            opened.write(commented_config({} if port is None else {"server.port": port}))
    except FileExistsError:
        raise _exists(file) from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    secrets = load_or_create_secrets(directory, settings.auth, seconds())
    click.echo(f"Settings: {file}")
    click.echo(f"Secrets:  {directory}/secrets.toml")
    if script is not None:
        write_script(script, fill_script(bot, secrets.secret_key, secrets.salt, servers), force)
        click.echo(f"Script:   {script}")
    found = file == Path(CONFIG_NAME)  # by whoever starts the server here
    start = f"{sys.argv[0]} serve" + ("" if found else f" --config {file}")
    click.echo(f"Start:    {start}" + (f" --state-dir {directory}" if state_dir else ""))
    shown = servers[0][:2] if servers else (host, port or settings.server.port)
    show_script_lines(bot, *shown, secrets)


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--store", "with_store", is_flag=True, help="Open the store, too; it is not changed.")
@click.option("--state-dir", metavar="DIR", help="Where the store is, if it is SQLite's.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object in a line.")
def check_config(file: Path | None, with_store: bool, state_dir: str | None, as_json: bool) -> None:
    """
    Say whether the server would start with FILE.

    FILE is ./domaeka.toml by default, as it is for the server. Ends with 0 if it would, else with 1
    and one line that says which setting is wrong, and why. Settings from the environment count as
    they would for the server. What bots print while they are imported goes to standard error.
    """
    source = settings_here(file)
    file = file or source.path
    if file is None:
        raise click.UsageError(f"FILE must be given: there is no {CONFIG_NAME} here")
    more = {}
    try:
        with ExitStack() as trusted:
            if state_dir is not None:
                trusted.enter_context(trusting_owner(state_path(state_dir, os.environ)))
            settings = source.load()
            check_all(settings)
        if with_store:
            more["store"] = _look_at_store(settings, state_dir)
    except ConfigError as error:
        text = source.locate(str(error))
        if not as_json:
            raise ConfigError(text) from None
        _show_json({"file": str(file), "good": False, "error": text})
        raise click.exceptions.Exit(1) from None
    if as_json:
        _show_json({"file": str(file), "good": True, **more})
        return
    click.echo(f"{file}: good")
    for name, found in more.items():
        click.echo(f"{name}: {found}")


def _show_json(value: object) -> None:
    click.echo(escaped_json(msgspec.json.encode(value).decode()))


def _look_at_store(settings: Settings, state_dir: str | None) -> str:
    """@return: the state of the store, in one line.  @raise ConfigError: it cannot be used."""
    from domaeka.server import database_address
    from domaeka.store.drivers import sqlite_file
    from domaeka.store.maintenance import report

    address = database_address(settings, state_path(state_dir, os.environ))
    file = sqlite_file(address)
    if file is not None and not file.exists():
        return f"{file} is not there yet: the first start makes it"
    try:
        found = report(address)
    except StoreError as error:
        where = "storage.url: " if settings.storage.url else ""
        raise ConfigError(f"{where}{error}") from None
    return one_line(f"{found.kind}, {found.encoding}, revision {found.revision}")


def _for_one_writer(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)


def _for_one_reader(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_script(path: Path, script: bytes, force: bool) -> None:
    """
    Write a phone's script, which holds secrets, to a new file of mode 0600.

    @param force: true to replace a file that is there.
    @raise ConfigError: there is one, or it cannot be written: one line.
    """
    with located_errors(str(path)):
        if force and os.path.lexists(path):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ConfigError(f"{path}: not a file")
            path.unlink()  # whoever has it open must not see the new one
        try:
            with open(path, "xb", opener=_for_one_reader) as file:
                file.write(script)
        except FileExistsError:
            raise _exists(path) from None


def _exists(path: Path) -> ConfigError:
    return ConfigError(f"{path}: there is one already; --force overwrites it")


def show_script_lines(bot: str, host: str | None, port: int, secrets: Secrets) -> None:
    """
    Print the lines for a phone's script.

    @param host: the server's address as phones reach it; L{None}: it is guessed.
    """
    click.echo(
        "\nFor BOT_CONFIG in the phone's bridge script, in the place of the lines of the same"
    )
    click.echo("names; whoever reads them can speak for the phone. The whole script, with them in")
    click.echo("it, is written by: domaeka phone-script\n")
    click.echo(script_lines(bot, host or own_address(), port, secrets))


def script_lines(bot: str, host: str, port: int, secrets: Secrets) -> str:
    """The settings of a phone's script: a statement in JavaScript, in Rhino's ES5."""
    return f"""\
var BOT_CONFIG = {{
    BOT_NAME: {_js(bot)},
    SECRET_KEY: {_js(secrets.secret_key)},
    BOT_SPECIFIC_SALT: {_js(secrets.salt)},
    SERVER_LIST: [
        {{ host: {_js(host)}, port: {port}, priority: 1, name: "domaeka" }}
    ]
}};"""


def _js(text: str) -> str:
    """
    A string of JavaScript: that of JSON, with the line ends of ES5 (U+2028, U+2029) and characters
    that a terminal does not show escaped.
    """
    return escaped_json(json.dumps(text, ensure_ascii=False), ascii_only=not shows_unicode())


def check_all(settings: Settings) -> None:
    """
    Do the server's own checks, and import its bots.

    @raise ConfigError: which setting is wrong, and why.
    """
    from domaeka.bots.builtin import builtin_bot
    from domaeka.bots.loading import load_bots, look_here
    from domaeka.bots.routing import Router
    from domaeka.server import check

    check(settings)
    # As the server does: bots beside the place from which it is started.
    look_here()
    with redirect_stdout(sys.stderr):  # standard output is for scripts
        bots = tuple(load_bots(settings.bots.load))
    Router((builtin_bot(bots, settings.bots.builtin), *bots))
