"""C{domaeka serve} and C{domaeka version}."""

import platform
import sys
from typing import Final

import click
from twisted.copyright import version as twisted_version

from domaeka import __version__

#: The arguments for C{twistd} before the server's own options, as in C{make run}.
_IN_FOREGROUND: Final = ("--nodaemon", "--pidfile=", "domaeka")
#: Not checked for reading: the server's own error says what helps.
_PATH: Final = click.Path(readable=False)


@click.command(
    epilog="""\b
Examples:
  domaeka serve
  domaeka serve --bots mybot:bot
  domaeka serve --reload --bots mybot:bot
  domaeka serve --config /etc/domaeka/domaeka.toml --set logging.level=debug

\b
Ctrl-C, or SIGTERM, stops it in order; a second one at once.
It is what `twistd -n --pidfile= domaeka` starts, with the same options.
"""
)
@click.option("--port", metavar="PORT", help="The phones' TCP port.  [default: 9000]")
@click.option("--http-port", metavar="PORT", help="Health, metrics, API.  [default: 8080]")
@click.option(
    "--config",
    type=_PATH,
    help="A TOML file of settings.  [default: ./domaeka.toml, if it is there]",
)
@click.option("--state-dir", type=_PATH, help="Where database and secrets are kept.")
@click.option("--bots", metavar="MODULE:ATTRIBUTE", multiple=True, help="A bot; may be repeated.")
@click.option(
    "--set",
    metavar="SECTION.KEY=VALUE",
    multiple=True,
    help="A setting of docs/settings.md; may be repeated.",
)
@click.option(
    "--reload",
    is_flag=True,
    help="Import bots anew when their files change: for developing, not for use.",
)
def serve(**given: str | tuple[str, ...] | bool | None) -> None:
    """Start the server, in the foreground."""
    from twisted.scripts import twistd

    sys.argv[1:] = _IN_FOREGROUND
    for name, values in given.items():
        option = "--" + name.replace("_", "-")
        if isinstance(values, bool):
            sys.argv += [option] if values else []
            continue
        for value in (values,) if isinstance(values, str) else values or ():
            sys.argv.append(f"{option}={value}")
    twistd.run()  # type: ignore[no-untyped-call]


@click.command()
def version() -> None:
    """Show the version, and those of Python and Twisted."""
    python = platform.python_version()
    click.echo(f"domaeka {__version__} (Python {python}, Twisted {twisted_version})")
