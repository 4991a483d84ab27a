"""
C{twistd domaeka}: options, and all the wiring.
"""

import os
import sys
from pathlib import Path
from typing import Any

from twisted.python import usage

from domaeka import __version__
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.loading import load_bots
from domaeka.bots.threads import CommandThreads
from domaeka.config import SettingsSource, is_secret
from domaeka.errors import DomaekaError
from domaeka.logs import observer_for
from domaeka.metrics import Metrics
from domaeka.server import EXIT_CANNOT_START, GatewayService
from domaeka.startup import check
from domaeka.state import load_or_create_secrets, state_directory


class Options(usage.Options):
    """Options of C{twistd domaeka}."""

    synopsis = "[options]"
    longdesc = (
        "A gateway for chat-bot phones. Every setting of docs/settings.md can be given in the "
        "file named by --config, as DOMAEKA_SECTION_KEY in the environment, or by --set."
    )
    optParameters = (
        ("port", None, None, "The phones' TCP port [default: 9000]"),
        ("http-port", None, None, "The HTTP port: health, metrics, API [default: 8080]"),
        ("config", None, None, "A TOML file of settings"),
        ("state-dir", None, None, "Where the database and the secrets are kept"),
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["bots"] = []
        self["set"] = []

    def opt_bots(self, value: str) -> None:
        """A bot to load, as MODULE:ATTRIBUTE; may be given more than once."""
        self["bots"].append(value)

    def opt_set(self, value: str) -> None:
        """A setting, as SECTION.KEY=VALUE; may be given more than once."""
        key, equals, text = value.partition("=")
        if not equals:
            # A UsageError would have the whole usage printed around it.
            raise SystemExit(f"domaeka: --set {value:.100}: must be SECTION.KEY=VALUE")
        self["set"].append((key.strip(), text))

    def opt_version(self) -> None:
        """Show the version, and end."""
        print(f"domaeka {__version__}")
        raise SystemExit(0)

    def source(self) -> SettingsSource:
        """What these options, the environment and the file make together."""
        overrides = list(self["set"])
        for option, key in (("port", "server.port"), ("http-port", "http.port")):
            if self[option] is not None:
                overrides.append((key, self[option]))
        path = Path(self["config"]) if self["config"] is not None else None
        return SettingsSource(path, overrides)


def makeService(options: Options) -> "GatewayService":
    """
    Wire a server.  What cannot work ends the process, with one line.

    @param options: parsed by twistd.
    """
    from twisted.internet import reactor

    source = options.source()
    try:
        return _make_service(options, source, reactor)
    except DomaekaError as error:
        print(f"domaeka: {source.locate(str(error))}", file=sys.stderr)
        raise SystemExit(EXIT_CANNOT_START) from None


def _make_service(options: Options, source: SettingsSource, reactor: Any) -> "GatewayService":
    settings = source.load()
    check(settings)
    observer = observer_for(settings.logging, options.parent or {}, reactor)
    directory = state_directory(options["state-dir"], os.environ)
    secrets = load_or_create_secrets(directory, settings.auth, reactor.seconds())
    # Bots beside the place from which the server is started, as with python -m.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    bots = load_bots((*settings.bots.load, *options["bots"]))
    metrics = Metrics()
    dispatcher = BotDispatcher(
        bots,
        reactor,
        CommandThreads(reactor),
        settings.bots,
        settings.breaker,
        observe=lambda command: metrics.handler.register(command).observe,
        failed=lambda command: metrics.handler_failures.labels(command).inc(),
        busy=metrics.refused_messages.inc,
    )
    service = GatewayService(
        reactor,
        settings,
        secrets,
        directory,
        metrics,
        dispatcher,
        observer,
        source,
        options["bots"],
    )
    for key, value in options["set"]:
        if is_secret(key, value):
            service.warnings.append(f"--set {key}: others can read it in the list of processes")
    return service
