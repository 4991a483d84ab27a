"""C{twistd domaeka}: its options, and the server that they ask for."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.python import usage
from twisted.python.runtime import seconds as wall

from domaeka import __version__
from domaeka.bots.coroutines import BotLoop
from domaeka.bots.loading import Changes, load_bots, look_here
from domaeka.bots.threads import CommandThreads
from domaeka.clock import keep_going, monotonic
from domaeka.config import SettingsSource, is_secret, settings_here
from domaeka.errors import DomaekaError
from domaeka.gateway.transport.ports import Sockets
from domaeka.logs import MAX_MESSAGE_CHARS, observer_for, quote
from domaeka.server import (
    EXIT_CANNOT_START,
    GatewayService,
    Platform,
    acting_as,
    assemble,
    check,
    check_pidfile,
    open_state,
)
from domaeka.store.threads import ThreadWorker
from domaeka.toml import trusting


class Options(usage.Options):
    """Options of C{twistd domaeka}."""

    synopsis = "[options]"
    longdesc = (
        "A gateway for chat-bot phones. Every setting of docs/settings.md can be given in the "
        "file named by --config (else domaeka.toml in the working directory), as "
        "DOMAEKA_SECTION_KEY in the environment, or by --set."
    )
    optParameters = (
        ("port", None, None, "The phones' TCP port [default: 9000]"),
        ("http-port", None, None, "The HTTP port: health, metrics, API [default: 8080]"),
        ("config", None, None, "A TOML file of settings [default: ./domaeka.toml, if it is there]"),
        ("state-dir", None, None, "Where the database and the secrets are kept"),
    )
    optFlags = (
        ("reload", None, "Import bots anew when their files change: for developing, not for use"),
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
            raise SystemExit(f"domaeka: --set {quote(value, 100)}: must be SECTION.KEY=VALUE")
        self["set"].append((key.strip(), text))

    def opt_version(self) -> None:
        """Show the version, and end."""
        print(f"domaeka {__version__}")
        raise SystemExit(0)

    def source(self) -> SettingsSource:
        """The settings: these options, then the environment, then the file."""
        overrides = list(self["set"])
        for option, key in (("port", "server.port"), ("http-port", "http.port")):
            if self[option] is not None:
                overrides.append((key, self[option]))
        path = Path(self["config"]) if self["config"] is not None else None
        return settings_here(path, overrides)


def makeService(options: Options) -> GatewayService:
    """Make a server.  An error of the configuration ends the process, with one line."""
    from twisted.internet import reactor

    # Before anything of ours is scheduled, or reads a time.
    keep_going(reactor)
    source = options.source()
    try:
        twistd: Mapping[str, Any] = options.parent or {}
        with trusting(twistd.get("uid")):  # the user that root becomes later
            return _make_service(options, source, reactor)
    except DomaekaError as error:
        print(f"domaeka: {quote(source.locate(str(error)), MAX_MESSAGE_CHARS)}", file=sys.stderr)
        raise SystemExit(EXIT_CANNOT_START) from None


def _make_service(options: Options, source: SettingsSource, reactor: Any) -> GatewayService:
    settings = source.load()
    check(settings)
    twistd: Mapping[str, Any] = options.parent or {}
    check_pidfile(twistd)
    observer = observer_for(settings.logging, twistd, reactor)
    observer.lead_standard_logging()
    # Bots beside the place from which the server is started, as with python -m.
    look_here()
    with acting_as(twistd.get("uid"), twistd.get("gid")):
        state = open_state(options["state-dir"], os.environ, settings, wall())
        with observer.while_importing():
            bots = load_bots((*settings.bots.load, *options["bots"]))
    threads = CommandThreads(reactor)
    loop = BotLoop(reactor, threads)
    platform = Platform(reactor, monotonic, wall, Sockets(reactor), threads, loop, ThreadWorker)
    parts = assemble(platform, settings, source, state, bots, observer, options["bots"])
    warnings = [
        f"--set {key}: others can read it in the list of processes"
        for key, value in options["set"]
        if is_secret(key, value)
    ]
    if state.lock is None:
        warnings.insert(
            0, f"{state.directory}: its file system has no locks: see that no other server uses it"
        )
    changes = Changes() if options["reload"] else None
    return GatewayService(parts, state.lock, warnings, changes)
