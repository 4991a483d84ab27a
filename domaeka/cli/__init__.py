"""
The C{domaeka} command.

A module here holds a command or a few of a kind; L{main} knows which, and imports one only when
it is used.
"""

import errno
from importlib import import_module
from typing import Any, Final

import click

from domaeka import __version__
from domaeka.cli.groups import Suggesting
from domaeka.cli.output import printable
from domaeka.errors import DomaekaError

#: Each command, the module of this package that has it, and what it is called there.
COMMANDS: Final = {
    "bans": ("operator", "bans"),
    "bots": ("watching", "bots"),
    "chat": ("chat", "chat"),
    "chat-log": ("watching", "chat_log"),
    "check-config": ("configuration", "check_config"),
    "connections": ("operator", "connections"),
    "db": ("database", "db"),
    "devices": ("operator", "devices"),
    "drain": ("changes", "drain"),
    "events": ("watching", "events"),
    "import": ("importing", "import_command"),
    "init": ("configuration", "init"),
    "migrate": ("changes", "migrate"),
    "new": ("new", "new"),
    "phone": ("phone", "phone"),
    "phone-script": ("script", "phone_script"),
    "reload": ("changes", "reload"),
    "roles": ("operator", "roles"),
    "rooms": ("operator", "rooms"),
    "secrets": ("keys", "secrets"),
    "send": ("changes", "send"),
    "serve": ("serve", "serve"),
    "status": ("operator", "status"),
    "version": ("serve", "version"),
}


class _Commands(Suggesting):
    """Commands that are imported when they are used, and whose errors are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, for the help."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name]
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Say what is wrong in one line, and end with 1."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            vars(error)["message"] = printable(error.message)  # it may quote what others chose
            raise
        except DomaekaError as error:
            raise click.ClickException(printable(str(error))) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise click.ClickException("output: no space left on the device") from None


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  domaeka init                     write a config and secrets, show the script's lines
  domaeka new mybot                write a bot to begin with, and its test
  domaeka chat --bots mybot:bot    talk with it, without a server
  domaeka check-config             would the server start here?
  domaeka serve                    start it, in the foreground
  domaeka phone                    be a phone: type chat, see what the bots answer
  echo '# help' | domaeka phone    the same for scripts
  domaeka phone-script             the script for a real phone, filled in
  domaeka status                   how the server is
  domaeka connections --watch      who is connected, and how well
  domaeka chat-log --follow        what is said, and answered
  domaeka devices approve BOT ID   have a phone be answered
  domaeka drain --wait             stop the server in order
  domaeka secrets rotate           make a new key for the phones

\b
Completion (bash; also zsh, fish):  eval "$(_DOMAEKA_COMPLETE=bash_source domaeka)"
""",
)
@click.version_option(__version__, prog_name="domaeka", message="%(prog)s %(version)s")
def main() -> None:
    """Domaeka, a gateway for chat-bot phones."""
