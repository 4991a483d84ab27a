"""
Settings: every key, its default, its range and its meaning.

docs/settings.md and the file that C{domaeka init} writes are made from here.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from domaeka.errors import ConfigError
from domaeka.toml import check_private, lines_of, read_toml

#: SHA-256 of the key that old bridge scripts were published with.
PUBLISHED_KEY_SHA256: Final = "e194188066f96ae20abfb60c0e788cb74586dd70a96798f82aa321187d07d6fd"
#: Shortest secret key, in bytes.
MIN_SECRET_KEY_BYTES: Final = 16

Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=31_536_000)]
_SecondsOrZero: TypeAlias = Annotated[float, Meta(ge=0, le=31_536_000)]
_Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
_Count: TypeAlias = Annotated[int, Meta(ge=1, le=100_000_000)]
_CountOrZero: TypeAlias = Annotated[int, Meta(ge=0, le=100_000_000)]
_Bytes: TypeAlias = Annotated[int, Meta(ge=1024, le=2**40)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all sections share: no unknown keys, no changes."""


class ServerSettings(_Section, frozen=True):
    """Where phones connect, and what one connection may do."""

    port: Annotated[_Port, Meta(description="the phones' TCP port; 0: any free one")] = 9000
    interface: Annotated[str, Meta(description="address to listen on; empty: all")] = ""
    endpoints: Annotated[
        tuple[str, ...],
        Meta(
            description="more places to listen, as Twisted endpoint strings "
            "(`ssl:…`, `haproxy:tcp:…`, `systemd:…`)"
        ),
    ] = ()
    max_connections: Annotated[
        _Count,
        Meta(
            description="when full, the oldest connection that has not authenticated gives way; "
            "when all have, a new one gets `SERVER_FULL`"
        ),
    ] = 100
    max_frame_bytes: Annotated[
        int,
        Meta(
            ge=4096,
            le=67_108_864,
            description="longest frame from a phone, newline included; longer: `FRAME_TOO_LARGE`, "
            "closed",
        ),
    ] = 1_048_576
    max_text_chars: Annotated[
        int, Meta(ge=1, le=10_000_000, description="longest chat text, in characters")
    ] = 65_000
    handshake_timeout: Annotated[
        Seconds, Meta(description="from accept to a whole handshake, however slowly it comes")
    ] = 10.0
    authentication_timeout: Annotated[
        Seconds, Meta(description="from the handshake to the first valid `auth`")
    ] = 30.0


class SocketSettings(_Section, frozen=True):
    """Options of the phones' sockets."""

    nodelay: Annotated[bool, Meta(description="TCP_NODELAY")] = True
    keepalive_idle: Annotated[
        int, Meta(ge=1, le=32767, description="seconds of silence before the first TCP keep-alive")
    ] = 30
    keepalive_interval: Annotated[
        int, Meta(ge=1, le=32767, description="seconds between keep-alives")
    ] = 10
    keepalive_count: Annotated[
        int, Meta(ge=1, le=127, description="keep-alives unanswered before the end")
    ] = 9
    buffer_bytes: Annotated[
        int,
        Meta(
            ge=0, le=16_777_216, description="SO_RCVBUF and SO_SNDBUF; 0 leaves them to the kernel"
        ),
    ] = 65_536
    user_timeout_ms: Annotated[
        int,
        Meta(
            ge=0, le=86_400_000, description="TCP_USER_TIMEOUT, where the platform has it; 0: off"
        ),
    ] = 60_000
    linger_seconds: Annotated[
        Seconds,
        Meta(description="how long a closing connection may take to hand over what is written"),
    ] = 5.0
    reuse_address: Annotated[bool, Meta(description="SO_REUSEADDR")] = True
    reuse_port: Annotated[bool, Meta(description="SO_REUSEPORT")] = False


class PingSettings(_Section, frozen=True):
    """When phones are asked for a sign of life."""

    interval: Annotated[Seconds, Meta(description="seconds between two pings of a connection")] = (
        30.0
    )
    initial_delay_min: Annotated[
        _SecondsOrZero, Meta(description="earliest first ping, in seconds")
    ] = 1.0
    initial_delay_max: Annotated[
        _SecondsOrZero, Meta(description="latest first ping, in seconds")
    ] = 59.0
    timeout: Annotated[
        Seconds,
        Meta(
            description="a ping that has been out this long with nothing heard since ends the "
            "connection"
        ),
    ] = 90.0
    adaptive: Annotated[
        bool, Meta(description="ping lines that get worse more often, give up quick phones sooner")
    ] = True
    interval_min: Annotated[
        Seconds, Meta(description="shortest interval that `adaptive` may choose")
    ] = 10.0


class QueueSettings(_Section, frozen=True):
    """What waits for phones, connected or not."""

    message_ttl: Annotated[
        Seconds, Meta(description="how long a message waits, where none is said")
    ] = 30.0
    max_messages: Annotated[_Count, Meta(description="most messages that wait for one device")] = (
        1000
    )
    max_bytes: Annotated[_Bytes, Meta(description="most bytes that wait for one device")] = (
        16_777_216
    )
    total_bytes: Annotated[_Bytes, Meta(description="most bytes that wait for all together")] = (
        268_435_456
    )


class CompressionSettings(_Section, frozen=True):
    """Compression, for clients that ask for it."""

    enabled: Annotated[bool, Meta(description="offer `gzip` and `deflate`")] = True
    threshold_bytes: Annotated[
        _CountOrZero, Meta(description="`gzip`: smallest tail that is tried")
    ] = 10_240
    min_saving: Annotated[
        float, Meta(ge=0, lt=1, description="`gzip`: least part of the line that must be saved")
    ] = 0.10


class BreakerSettings(_Section, frozen=True):
    """The circuit breaker of each command and each outside service."""

    failure_threshold: Annotated[_Count, Meta(description="failures in a row that open it")] = 5
    recovery_timeout: Annotated[Seconds, Meta(description="how long it stays open")] = 60.0


class LimitsSettings(_Section, frozen=True):
    """Rates, and the bans of those who ignore them."""

    connections_per_minute: Annotated[
        _Count,
        Meta(
            description="attempts of one address (IPv6: one /64); one that authenticates is given "
            "back"
        ),
    ] = 10
    ban_after: Annotated[
        _Count, Meta(description="attempts over the rate and wrong signatures in a minute")
    ] = 5
    ban_seconds: Annotated[Seconds, Meta(description="the first ban; it doubles for repeaters")] = (
        3600.0
    )
    allow: Annotated[
        tuple[str, ...], Meta(description="networks (CIDR) that are never limited")
    ] = ()
    deny: Annotated[tuple[str, ...], Meta(description="networks (CIDR) that are never let in")] = ()
    max_tracked_addresses: Annotated[
        _Count, Meta(description="the tables of limits and bans never grow past it")
    ] = 65_536
    messages_per_second: Annotated[
        float,
        Meta(
            ge=0,
            le=1_000_000,
            description="chat messages of one connection; over it reading pauses; 0: no limit",
        ),
    ] = 200.0
    messages_burst: Annotated[_Count, Meta(description="messages that may come at once")] = 1000


class AuthSettings(_Section, frozen=True):
    """Signatures."""

    mode: Annotated[
        Literal["required", "optional", "off"],
        Meta(
            description="`required`; `optional`: bad is refused, missing is let through; `off`: "
            "nobody is checked"
        ),
    ] = "required"
    secret_key: Annotated[
        str,
        Meta(description="the shared secret, 16 bytes or more; empty: that of `secrets.toml`"),
    ] = ""
    secret_key_file: Annotated[
        str, Meta(description="a file that holds `auth.secret_key`, and that not all may read")
    ] = ""
    salt: Annotated[str, Meta(description="the salt; empty: that of `secrets.toml`")] = ""
    salt_file: Annotated[str, Meta(description="likewise for `auth.salt`")] = ""
    clock_skew: Annotated[
        Seconds, Meta(description="how far a phone's clock may be off, either way")
    ] = 300.0
    previous_secret_key: Annotated[
        str, Meta(description="accepted too, while keys are being changed")
    ] = ""
    previous_secret_key_file: Annotated[
        str, Meta(description="likewise for `auth.previous_secret_key`")
    ] = ""
    accept_published_key: Annotated[
        bool, Meta(description="accept the key that old scripts were published with")
    ] = False

    def __repr__(self) -> str:
        """Without the secrets: it may stand in a traceback."""
        return f"AuthSettings(mode={self.mode!r}, …)"


class SessionSettings(_Section, frozen=True):
    """Session tokens."""

    lifetime: Annotated[
        Seconds, Meta(description="from the end of the connection that holds the token")
    ] = 3600.0


class DevicesSettings(_Section, frozen=True):
    """Who may use the server."""

    approval: Annotated[
        Literal["signed", "manual"],
        Meta(description="`signed`: a valid signature approves; `manual`: an operator does"),
    ] = "signed"


class RoomsSettings(_Section, frozen=True):
    """Where bots answer."""

    approval: Annotated[
        Literal["auto", "manual"],
        Meta(description="`auto`: every room; `manual`: those that an operator approved"),
    ] = "auto"


class BotsSettings(_Section, frozen=True):
    """The bots that answer."""

    load: Annotated[tuple[str, ...], Meta(description="bots to load, each `MODULE:ATTRIBUTE`")] = ()
    bot_concurrency: Annotated[
        _Count, Meta(description="messages of one bot that are worked on at once")
    ] = 30
    room_concurrency: Annotated[_Count, Meta(description="the same for one room")] = 3
    timeout: Annotated[Seconds, Meta(description="longest time a command may take")] = 300.0
    operators: Annotated[
        tuple[str, ...],
        Meta(description="people who may use operators' commands, as `CHANNEL_ID/USER_HASH`"),
    ] = ()


class ShutdownSettings(_Section, frozen=True):
    """A stop."""

    drain_timeout: Annotated[
        Seconds, Meta(description="longest time to answer what was accepted")
    ] = 30.0
    reconnect_after: Annotated[
        Seconds,
        Meta(
            description="when clients are told to come back, at least (twice it at most); 5 suits "
            "a quick restart"
        ),
    ] = 60.0


class MigrationSettings(_Section, frozen=True):
    """A move to another server."""

    migrate_after: Annotated[
        Seconds, Meta(description="when clients are told to move, at least (twice it at most)")
    ] = 30.0
    spread: Annotated[Seconds, Meta(description="over how long the notices go out")] = 30.0


class TlsSettings(_Section, frozen=True):
    """TLS for phones, beside the plain port; files are read again when they change."""

    certificate: Annotated[
        str,
        Meta(description="PEM file, with its chain; empty: no TLS (but see `server.endpoints`)"),
    ] = ""
    key: Annotated[str, Meta(description="PEM file; empty: the key is in the other file")] = ""
    port: Annotated[_Port, Meta(description="the phones' TLS port; 0: any free one")] = 9443
    client_authority: Annotated[
        str, Meta(description="PEM file: clients may show a certificate signed by one of these")
    ] = ""
    require_client: Annotated[
        bool, Meta(description="clients must show a certificate of `client_authority`")
    ] = False


class HttpSettings(_Section, frozen=True):
    """Health, metrics and the admin API."""

    port: Annotated[_Port, Meta(description="the HTTP port; 0: any free one")] = 8080
    interface: Annotated[
        str,
        Meta(
            description="address to listen on; other machines need the admin token for all but "
            "`/health`"
        ),
    ] = "127.0.0.1"


class StorageSettings(_Section, frozen=True):
    """The store."""

    url: Annotated[
        str,
        Meta(description="SQLAlchemy address; empty: SQLite in the state directory"),
    ] = ""
    chat_log: Annotated[bool, Meta(description="write chat to the store")] = True
    chat_log_days: Annotated[_Count, Meta(description="older lines are removed")] = 30


class LoggingSettings(_Section, frozen=True):
    """The log."""

    format: Annotated[Literal["text", "json"], Meta(description="`json`: one object a line")] = (
        "text"
    )
    level: Annotated[
        Literal["debug", "info", "warn", "error", "critical"],
        Meta(description="the least that is logged"),
    ] = "info"


class Settings(_Section, frozen=True):
    """All settings of a server."""

    server: ServerSettings = ServerSettings()
    socket: SocketSettings = SocketSettings()
    ping: PingSettings = PingSettings()
    queue: QueueSettings = QueueSettings()
    compression: CompressionSettings = CompressionSettings()
    breaker: BreakerSettings = BreakerSettings()
    limits: LimitsSettings = LimitsSettings()
    auth: AuthSettings = AuthSettings()
    session: SessionSettings = SessionSettings()
    devices: DevicesSettings = DevicesSettings()
    rooms: RoomsSettings = RoomsSettings()
    bots: BotsSettings = BotsSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    migration: MigrationSettings = MigrationSettings()
    tls: TlsSettings = TlsSettings()
    http: HttpSettings = HttpSettings()
    storage: StorageSettings = StorageSettings()
    logging: LoggingSettings = LoggingSettings()


#: Keys whose value is a secret: warned of on a command line, never shown.
SECRET_KEYS: Final = frozenset({"auth.secret_key", "auth.salt", "auth.previous_secret_key"})


@cache
def setting_types() -> Mapping[str, Any]:
    """Each C{section.key} with its msgspec type, in order."""
    return {
        f"{section.name}.{field.name}": field.type
        for section in msgspec.structs.fields(Settings)
        for field in msgspec.structs.fields(section.type)
    }


class SettingsSource:
    """
    Where settings come from: defaults, then a file, then the environment, then C{overrides}.
    """

    def __init__(
        self,
        path: Path | None = None,
        overrides: Sequence[tuple[str, str]] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        @param path: a TOML file, or L{None}.
        @param overrides: pairs of C{section.key} and a value as text: as it stands for text keys,
            else JSON.
        @param environment: C{DOMAEKA_SECTION_KEY} to text; by default that of the process.
        """
        self._path = path
        self._overrides = overrides
        self._environment = os.environ if environment is None else environment
        self._places: dict[str, str] = {}  # where each key was set
        self._settings = Settings()

    def load(self) -> Settings:
        """
        Read them.

        @raise ConfigError: one line that says which key is wrong, and why.
        """
        path = self._path
        tree: dict[str, Any] = {}
        places: dict[str, str] = {}
        self._places = places
        if path is not None:
            tree = read_toml(path)
            places.update((key, f"{path}:{line}") for key, line in lines_of(path).items())
            _convert(tree, str(path), places)
            for key in _secrets_in(tree):
                check_private(path.stat(), path, f"{places.get(key, path)}: {key}")
        types = setting_types()
        names = {"DOMAEKA_" + key.replace(".", "_").upper(): key for key in types}
        sections = tuple({f"DOMAEKA_{key.partition('.')[0].upper()}_" for key in types})
        for name, text in self._environment.items():
            if name in names:
                _put(tree, types, names[name], text, name)
                places[names[name]] = name
            elif name.startswith(sections):
                raise ConfigError(f"{name}: there is no such setting")
        for key, text in self._overrides:
            _put(tree, types, key, text, "command line")
            places[key] = "command line"
        self._settings = settings = _convert(tree, "settings", places)
        for key, why in _objections(settings):
            raise ConfigError(f"{places.get(key, path or 'settings')}: {key}: {why}")
        return settings

    def locate(self, error: str) -> str:
        """An error that begins with a key, found once they were read: with the place of that."""
        key = error.partition(":")[0]
        if key not in self._places or key not in setting_types():
            return error
        section, _, name = key.partition(".")
        value = getattr(getattr(self._settings, section), name)
        if isinstance(value, tuple) and not any(f": {each}: " in error for each in value):
            return error  # it is about what was given elsewhere
        return f"{self._places[key]}: {error}"


def load_settings(
    path: Path | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read settings, once: see L{SettingsSource}."""
    return SettingsSource(path, overrides, environment).load()


def is_secret(key: str, value: object) -> bool:
    """Whether nobody may see the value of a setting; the address of a store may have a password."""
    url = str(value) if key == "storage.url" else ""
    return key in SECRET_KEYS or re.search("//[^/]*:[^/]*@", url) is not None


def _secrets_in(tree: Mapping[str, Any]) -> list[str]:
    """The keys of C{tree} whose values are secrets."""
    return [
        f"{section}.{name}"
        for section, values in tree.items()
        for name, value in values.items()
        if value and is_secret(f"{section}.{name}", value)
    ]


def _put(tree: dict[str, Any], types: Mapping[str, Any], key: str, text: str, source: str) -> None:
    """Put the value that C{text} stands for into C{tree}."""
    if key not in types:
        raise ConfigError(f"{source}: there is no setting {key!r:.100}")
    section, name = key.split(".")
    value: Any = text
    try:
        raw = text.encode()
        if not _is_text(types[key]):
            value = msgspec.json.decode(raw)
        msgspec.convert(value, types[key])
    except UnicodeEncodeError:  # what the command line and the environment hold is bytes
        raise ConfigError(f"{source}: {key}: not UTF-8") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {key}: {_reason(str(error), types[key])}") from None
    except (msgspec.DecodeError, RecursionError):
        numeric = isinstance(_info(types[key]), msgspec.inspect.IntType | msgspec.inspect.FloatType)
        what = "a number" if numeric else "JSON"
        raise ConfigError(f"{source}: {key}: {text!r:.100} is not {what}") from None
    tree.setdefault(section, {})[name] = value


def _is_text(kind: Any) -> bool:
    info = _info(kind)
    return isinstance(info, msgspec.inspect.StrType) or (
        isinstance(info, msgspec.inspect.LiteralType)
        and all(isinstance(value, str) for value in info.values)
    )


def _info(kind: Any) -> msgspec.inspect.Type:
    info = msgspec.inspect.type_info(kind)
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    return info


def _convert(tree: dict[str, Any], source: str, sources: Mapping[str, str]) -> Settings:
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        text = str(error)
        place = ""
        if match := re.search(r" - at `\$\.([\w.]+)", text):
            place = match[1]
        if match := re.search(r"unknown field `(.*?)`(?: - at|$)", text, re.DOTALL):
            place = f"{place}.{match[1]}" if place else match[1]
            text = "there is no such setting"
        text = _reason(text, setting_types().get(place))
        where = sources.get(place, source)
        # A key in quotes may hold anything.
        name = place if place.isprintable() else repr(place)
        raise ConfigError(
            f"{where}: {name:.100}: {text}" if place else f"{where}: {text}"
        ) from None


def _reason(text: str, kind: Any) -> str:
    """What msgspec says of a value of type C{kind}, without the place."""
    info = _info(kind)
    if text.startswith("Invalid enum value") and isinstance(info, msgspec.inspect.LiteralType):
        return f"must be one of {', '.join(map(str, info.values))}"
    return text.split(" - at ")[0]


def _not_a_network(text: str) -> str:
    return f"{text!r:.100} is no network in CIDR form, such as 192.0.2.0/24"


def _objections(settings: Settings) -> Iterator[tuple[str, str]]:
    """Keys, and why: what is contradictory, or could not work."""
    if settings.ping.initial_delay_min > settings.ping.initial_delay_max:
        yield "ping.initial_delay_min", "must not be above ping.initial_delay_max"
    tls = settings.tls
    if tls.require_client and not tls.client_authority:
        yield "tls.require_client", "needs tls.client_authority"
    if (tls.key or tls.client_authority) and not tls.certificate:
        yield "tls.certificate", "must be given with the rest of the section"
    if settings.queue.max_bytes > settings.queue.total_bytes:
        yield "queue.max_bytes", "must not be above queue.total_bytes"
    for key, networks in (
        ("limits.allow", settings.limits.allow),
        ("limits.deny", settings.limits.deny),
    ):
        for network in networks:
            try:
                ip_network(network)
            except ValueError:
                yield key, _not_a_network(network)
    for operator in settings.bots.operators:
        channel, _, user = operator.partition("/")
        if not channel or not user:
            yield "bots.operators", f"{operator!r:.100} is not CHANNEL_ID/USER_HASH"
    for bot in settings.bots.load:
        module, _, attribute = bot.partition(":")
        if not module or not attribute:
            yield "bots.load", f"{bot!r:.100} is not MODULE:ATTRIBUTE"
    for key, value in (
        ("auth.secret_key", settings.auth.secret_key),
        ("auth.previous_secret_key", settings.auth.previous_secret_key),
    ):
        if value and len(value.encode()) < MIN_SECRET_KEY_BYTES:
            yield key, f"must have {MIN_SECRET_KEY_BYTES} bytes or more"
    for key in sorted(SECRET_KEYS):
        _, _, name = key.partition(".")
        if getattr(settings.auth, name) and getattr(settings.auth, f"{name}_file"):
            yield f"{key}_file", f"not beside {key}"
