"""
Settings: every key, its default, its range and its meaning.

docs/settings.md and the file that C{domaeka init} writes are made from here.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, reduce
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from domaeka.errors import ConfigError
from domaeka.toml import check_private, check_trusted, lines_of, read_toml
from domaeka.validation import UNKNOWN, fault_of

#: SHA-256 of the key that old bridge scripts were published with.
PUBLISHED_KEY_SHA256: Final = "e194188066f96ae20abfb60c0e788cb74586dd70a96798f82aa321187d07d6fd"
#: Name of the file of settings that is read from the working directory, if none is named.
CONFIG_NAME: Final = "domaeka.toml"
#: Shortest secret key, in bytes.
MIN_SECRET_KEY_BYTES: Final = 16
#: Smallest C{socket.max_segment}, in bytes.  Source: RFC 9293, 3.7.1: what all must take on IPv4.
MIN_SEGMENT_BYTES: Final = 536
#: Slowest pace, in messages a second: one in 1,000 s.
LEAST_PACE: Final = 0.001

Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=31_536_000)]
#: A host's name.  Source: RFC 952, RFC 1123, and the underscore that container platforms allow.
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_SecondsOrZero: TypeAlias = Annotated[float, Meta(ge=0, le=31_536_000)]
_Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
_Count: TypeAlias = Annotated[int, Meta(ge=1, le=100_000_000)]
_CountOrZero: TypeAlias = Annotated[int, Meta(ge=0, le=100_000_000)]
_Bytes: TypeAlias = Annotated[int, Meta(ge=1024, le=2**40)]


def _doc(text: str, ge: int | None = None, le: int | None = None) -> Meta:
    """The description of a setting, with its bounds if its type has none."""
    return Meta(description=text, ge=ge, le=le)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of all sections: no unknown keys, no changes."""


class ServerSettings(_Section, frozen=True):
    """The phones' port, and the limits of one connection."""

    port: Annotated[_Port, _doc("the phones' TCP port; 0: any free one")] = 9000
    interface: Annotated[str, _doc("address to listen on; empty: all")] = ""
    endpoints: Annotated[
        tuple[str, ...],
        _doc(
            "more places to listen, as Twisted endpoint strings (`ssl:…`, `haproxy:tcp:…`, "
            "`systemd:…`)"
        ),
    ] = ()
    max_connections: Annotated[
        _Count,
        _doc(
            "when full, the oldest connection gives way that has not authenticated or whose "
            "device is not approved; when all are of approved phones, a new one gets `SERVER_FULL`"
        ),
    ] = 100
    max_frame_bytes: Annotated[
        int,
        _doc(
            "longest frame from a phone, newline included; longer: `FRAME_TOO_LARGE`, closed",
            ge=4096,
            le=67_108_864,
        ),
    ] = 1_048_576
    max_text_chars: Annotated[
        int, _doc("longest chat text, in characters", ge=1, le=10_000_000)
    ] = 65_000
    handshake_timeout: Annotated[
        Seconds, _doc("from accept to a whole handshake, however slowly it comes")
    ] = 10.0
    authentication_timeout: Annotated[
        Seconds, _doc("from the handshake to the first valid `auth`")
    ] = 30.0


class SocketSettings(_Section, frozen=True):
    """Options of the phones' sockets."""

    nodelay: Annotated[bool, _doc("TCP_NODELAY")] = True
    keepalive_idle: Annotated[
        int, _doc("seconds of silence before the first TCP keep-alive", ge=1, le=32767)
    ] = 30
    keepalive_interval: Annotated[int, _doc("seconds between keep-alives", ge=1, le=32767)] = 10
    keepalive_count: Annotated[int, _doc("keep-alives unanswered before the end", ge=1, le=127)] = 9
    buffer_bytes: Annotated[
        int, _doc("SO_RCVBUF and SO_SNDBUF; 0 leaves them to the kernel", ge=0, le=16_777_216)
    ] = 65_536
    user_timeout_ms: Annotated[
        int,
        _doc(
            "TCP_USER_TIMEOUT of clients with capabilities, where the platform has it; a phone "
            "that acknowledges nothing for so long is shown as away; 0: off",
            ge=0,
            le=86_400_000,
        ),
    ] = 60_000
    max_segment: Annotated[
        int,
        Meta(
            ge=0,
            le=32_767,
            description="TCP_MAXSEG, 536 or more, in bytes: packets of 1,280 bytes pass every "
            "network, larger ones vanish in some; 0: as large as the network says",
        ),
    ] = 1220
    linger_seconds: Annotated[
        Seconds, _doc("how long a closing connection may take to hand over what is written")
    ] = 5.0
    reuse_address: Annotated[bool, _doc("SO_REUSEADDR")] = True
    reuse_port: Annotated[bool, _doc("SO_REUSEPORT")] = False


class PingSettings(_Section, frozen=True):
    """Pings to phones."""

    interval: Annotated[Seconds, _doc("seconds between two pings of a connection")] = 30.0
    initial_delay_min: Annotated[_SecondsOrZero, _doc("earliest first ping, in seconds")] = 1.0
    initial_delay_max: Annotated[_SecondsOrZero, _doc("latest first ping, in seconds")] = 59.0
    timeout: Annotated[
        Seconds,
        _doc("a ping that has been out this long with nothing heard since ends the connection"),
    ] = 90.0
    adaptive: Annotated[
        bool, _doc("ping lines that get worse more often, give up quick phones sooner")
    ] = True
    interval_min: Annotated[Seconds, _doc("shortest interval that `adaptive` may choose")] = 10.0


class QueueSettings(_Section, frozen=True):
    """The queues of messages for phones, connected or not."""

    message_ttl: Annotated[Seconds, _doc("how long a message waits, where none is said")] = 30.0
    max_messages: Annotated[_Count, _doc("most messages that wait for one device")] = 1000
    max_bytes: Annotated[_Bytes, _doc("most bytes that wait for one device")] = 16_777_216
    total_bytes: Annotated[_Bytes, _doc("most bytes that wait for all together")] = 268_435_456


class CompressionSettings(_Section, frozen=True):
    """Compression, for clients that ask for it."""

    enabled: Annotated[bool, _doc("offer `gzip` and `deflate`")] = True
    threshold_bytes: Annotated[_CountOrZero, _doc("`gzip`: smallest tail that is tried")] = 10_240
    min_saving: Annotated[
        float, Meta(ge=0, lt=1), _doc("`gzip`: least part of the line that must be saved")
    ] = 0.10


class BreakerSettings(_Section, frozen=True):
    """The circuit breaker of each command and each outside service."""

    failure_threshold: Annotated[
        _Count, _doc("failures that open it: so many more than successes, of several rooms for all")
    ] = 5
    recovery_timeout: Annotated[Seconds, _doc("how long it stays open")] = 60.0


#: The default of C{limits.bytes_per_second}.
BYTES_PER_SECOND: Final = 262_144.0


class LimitsSettings(_Section, frozen=True):
    """Rate limits, and bans for those who ignore them."""

    connections_per_minute: Annotated[
        _Count,
        _doc(
            "attempts of one address (IPv6: one /64), to which one is added for each approved "
            "device last seen there within 30 days; one that authenticates is given back"
        ),
    ] = 10
    ban_after: Annotated[
        _Count, _doc("attempts over the rate and wrong signatures in a minute")
    ] = 5
    ban_seconds: Annotated[
        Seconds,
        _doc(
            "the first ban; it doubles for repeaters, as does that for wrong signatures alone, "
            "which begins with 60 s"
        ),
    ] = 3600.0
    allow: Annotated[
        tuple[str, ...],
        _doc(
            "networks (CIDR) that are never limited nor banned, as that of a balancer without the "
            "PROXY protocol"
        ),
    ] = ()
    deny: Annotated[tuple[str, ...], _doc("networks (CIDR) that are never let in")] = ()
    max_tracked_addresses: Annotated[
        _Count, _doc("the tables of limits and bans never grow past it")
    ] = 65_536
    messages_per_second: Annotated[
        float,
        _doc(
            "chat messages of one connection; over it reading pauses; 0: no limit",
            ge=0,
            le=1_000_000,
        ),
    ] = 200.0
    messages_burst: Annotated[_Count, _doc("messages that may come at once")] = 1000
    bytes_per_second: Annotated[
        float,
        _doc(
            "bytes of one phone's lines, inflated, of which as many as of 16 s may come at "
            "once; over it reading pauses: 200 messages a second of 1,300 bytes each, some 500 "
            "characters of Hangul; a room of people says fewer than one; 0: no limit, as is the "
            "default where `limits.messages_per_second` is 0",
            ge=0,
            le=1_000_000_000,
        ),
    ] = BYTES_PER_SECOND


class AuthSettings(_Section, frozen=True):
    """Signatures."""

    mode: Annotated[
        Literal["required", "optional", "off"],
        _doc(
            "`required`; `optional`: bad is refused, missing is let through; `off`: nobody is "
            "checked"
        ),
    ] = "required"
    secret_key: Annotated[
        str, _doc("the shared secret, 16 bytes or more; empty: that of `secrets.toml`")
    ] = ""
    secret_key_file: Annotated[
        str, _doc("a file that holds `auth.secret_key`, and that not all may read")
    ] = ""
    salt: Annotated[str, _doc("the salt; empty: that of `secrets.toml`")] = ""
    salt_file: Annotated[str, _doc("likewise for `auth.salt`")] = ""
    clock_skew: Annotated[Seconds, _doc("how far a phone's clock may be off, either way")] = 300.0
    previous_secret_key: Annotated[str, _doc("accepted too, while keys are being changed")] = ""
    previous_secret_key_file: Annotated[str, _doc("likewise for `auth.previous_secret_key`")] = ""
    accept_published_key: Annotated[
        bool, _doc("accept the key that old scripts were published with")
    ] = False

    def __repr__(self) -> str:
        """Without the secrets: it may be in a traceback."""
        return f"AuthSettings(mode={self.mode!r}, …)"


class SessionSettings(_Section, frozen=True):
    """Session tokens."""

    lifetime: Annotated[Seconds, _doc("from the end of the connection that holds the token")] = (
        3600.0
    )


class DevicesSettings(_Section, frozen=True):
    """Approval of devices."""

    approval: Annotated[
        Literal["signed", "manual"],
        _doc("`signed`: a valid signature approves; `manual`: an operator does"),
    ] = "signed"


class RoomsSettings(_Section, frozen=True):
    """Approval of rooms."""

    approval: Annotated[
        Literal["auto", "manual"],
        _doc("`auto`: every room; `manual`: those that an operator approved"),
    ] = "auto"


class BuiltinSettings(_Section, frozen=True):
    """The commands that every server has."""

    help: Annotated[
        str, _doc("the name of the command that lists those a person may use; empty: there is none")
    ] = "# help"
    echo: Annotated[str, _doc("likewise of the one that answers with what follows it")] = "# echo"
    client_info: Annotated[
        str, _doc("likewise of the one that shows operators the phone of a room")
    ] = "# client_info"


class BotsSettings(_Section, frozen=True):
    """The bots that answer."""

    load: Annotated[tuple[str, ...], _doc("bots to load, each `MODULE:ATTRIBUTE`")] = ()
    bot_concurrency: Annotated[_Count, _doc("messages of one bot that are worked on at once")] = 30
    room_concurrency: Annotated[_Count, _doc("the same for one room")] = 3
    timeout: Annotated[Seconds, _doc("longest time a command may take")] = 300.0
    operators: Annotated[
        tuple[str, ...], _doc("people who may use operators' commands, as `CHANNEL_ID/USER_HASH`")
    ] = ()
    builtin: BuiltinSettings = BuiltinSettings()


class PacingSettings(_Section, frozen=True):
    """How fast chat leaves for phones: an account that writes faster than people do stands out."""

    phone_per_second: Annotated[
        float,
        _doc(
            "most messages to one phone in a second, with a random pause on top; 0: no limit",
            ge=0,
            le=1000,
        ),
    ] = 0.0
    room_per_second: Annotated[float, _doc("likewise to one room of a phone", ge=0, le=1000)] = 0.0


class ShutdownSettings(_Section, frozen=True):
    """A stop."""

    drain_timeout: Annotated[Seconds, _doc("longest time to answer what was accepted")] = 30.0
    reconnect_after: Annotated[
        Seconds,
        _doc(
            "when clients are told to come back, at least (twice it at most); 5 suits a quick "
            "restart"
        ),
    ] = 60.0


class MigrationSettings(_Section, frozen=True):
    """A move to another server."""

    migrate_after: Annotated[
        Seconds, _doc("when clients are told to move, at least (twice it at most)")
    ] = 30.0
    spread: Annotated[Seconds, _doc("over how long the notices go out")] = 30.0


class TlsSettings(_Section, frozen=True):
    """TLS for phones, beside the plain port; files are read again when they change."""

    certificate: Annotated[
        str, _doc("PEM file, with its chain; empty: no TLS (but see `server.endpoints`)")
    ] = ""
    key: Annotated[str, _doc("PEM file; empty: the key is in the other file")] = ""
    port: Annotated[_Port, _doc("the phones' TLS port; 0: any free one")] = 9443
    client_authority: Annotated[
        str, _doc("PEM file: clients may show a certificate signed by one of these")
    ] = ""
    require_client: Annotated[
        bool, _doc("clients must show a certificate of `client_authority`")
    ] = False


class HttpSettings(_Section, frozen=True):
    """Health, metrics and the admin API."""

    port: Annotated[_Port, _doc("the HTTP port; 0: any free one")] = 8080
    interface: Annotated[
        str, _doc("address to listen on; other machines need the admin token for all but `/health`")
    ] = "127.0.0.1"
    hosts: Annotated[
        tuple[str, ...],
        _doc(
            "names by which clients may call the HTTP port, without a port, beside `localhost` and "
            "addresses; a request for any other name gets 421"
        ),
    ] = ()

    @property
    def local_url(self) -> str:
        """Its address on this machine."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(
            self.interface, self.interface
        )
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


class StorageSettings(_Section, frozen=True):
    """The store."""

    url: Annotated[str, _doc("SQLAlchemy address; empty: SQLite in the state directory")] = ""
    chat_log: Annotated[bool, _doc("write chat to the store")] = True
    chat_log_days: Annotated[_Count, _doc("older lines are removed")] = 30
    chat_log_max_bytes: Annotated[
        int,
        _doc(
            "about the most that the chat log takes in the store: beyond it, the oldest lines of "
            "the phone that has written the most are removed; 40,000,000 short lines; 0: no bound",
            0,
            2**60,
        ),
    ] = 10_737_418_240
    durable: Annotated[
        Literal["off", "ack"],
        _doc(
            "`ack`: what is acknowledged to a client, and its numbered answers, survive `kill -9`; "
            "`off`: an orderly stop only; on SQLite `ack` costs a third of a message's CPU with 8 "
            "clients at a time, two thirds with one"
        ),
    ] = "off"


class LoggingSettings(_Section, frozen=True):
    """The log."""

    format: Annotated[Literal["text", "json"], _doc("`json`: one object a line")] = "text"
    level: Annotated[
        Literal["debug", "info", "warn", "error", "critical"], _doc("the least that is logged")
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
    pacing: PacingSettings = PacingSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    migration: MigrationSettings = MigrationSettings()
    tls: TlsSettings = TlsSettings()
    http: HttpSettings = HttpSettings()
    storage: StorageSettings = StorageSettings()
    logging: LoggingSettings = LoggingSettings()


#: Keys whose value is a secret: warned of on a command line, never shown.
SECRET_KEYS: Final = frozenset({"auth.secret_key", "auth.salt", "auth.previous_secret_key"})


@cache
def sections() -> Mapping[str, type[msgspec.Struct]]:
    """Each section with its type, in order; C{section.name} is a section within another."""
    found: dict[str, type[msgspec.Struct]] = {}

    def add(prefix: str, section: type[msgspec.Struct]) -> None:
        for field in msgspec.structs.fields(section):
            if is_section(field.type):
                found[prefix + field.name] = field.type
                add(f"{prefix}{field.name}.", field.type)

    add("", Settings)
    return found


def is_section(kind: Any) -> bool:
    """True if what has this type is a section, and not a setting."""
    return isinstance(kind, type) and issubclass(kind, _Section)


@cache
def setting_types() -> Mapping[str, Any]:
    """Each C{section.key} with its msgspec type, in order."""
    return {
        f"{name}.{field.name}": field.type
        for name, section in sections().items()
        for field in msgspec.structs.fields(section)
        if not is_section(field.type)
    }


def setting(settings: Settings, key: str) -> Any:
    """The value of C{section.key}."""
    return reduce(getattr, key.split("."), settings)


class SettingsSource:
    """
    The sources of settings: defaults, then a file, then the environment, then C{overrides}.

    @ivar path: the file; L{None}: there is none.
    @ivar found: true if nobody named it.
    """

    def __init__(
        self,
        path: Path | None = None,
        overrides: Sequence[tuple[str, str]] = (),
        environment: Mapping[str, str] | None = None,
        *,
        found: bool = False,
    ) -> None:
        """
        @param overrides: pairs of C{section.key} and a value as text: as it stands for text keys,
            else JSON.
        @param environment: C{DOMAEKA_SECTION_KEY} to text; by default that of the process.
        @param found: true if nobody named the file: then nobody else may have written it.
        """
        self.path = path
        self.found = found
        self._overrides = overrides
        self._environment = os.environ if environment is None else environment
        self._sources: dict[str, str] = {}  # where each key was set
        self._settings = Settings()

    def load(self) -> Settings:
        """
        Read them.

        @raise ConfigError: one line that says which key is wrong, and why.
        """
        path = self.path
        tree: dict[str, Any] = {}
        sources: dict[str, str] = {}
        self._sources = sources
        if path is not None:
            tree = self._read(path)
            sources.update((key, f"{path}:{line}") for key, line in lines_of(path).items())
            _convert(tree, str(path), sources)
            for key in _secrets_in(tree):
                check_private(path.stat(), path, f"{sources.get(key, path)}: {key}")
        types = setting_types()
        names = {"DOMAEKA_" + key.replace(".", "_").upper(): key for key in types}
        sections = tuple({f"DOMAEKA_{key.partition('.')[0].upper()}_" for key in types})
        for name, text in self._environment.items():
            if name in names:
                _put(tree, types, names[name], text, name)
                sources[names[name]] = name
            elif name.startswith(sections):
                raise ConfigError(f"{name}: there is no such setting")
        for key, text in self._overrides:
            _put(tree, types, key, text, "command line")
            sources[key] = "command line"
        self._settings = settings = _convert(tree, "settings", sources)
        for key, why in _objections(settings):
            raise ConfigError(f"{sources.get(key, path or 'settings')}: {key}: {why}")
        return settings

    def _read(self, path: Path) -> dict[str, Any]:
        if not self.found:
            return read_toml(path)
        # The link first: it may lead to a pipe, which must not even be opened.
        with suppress(OSError):
            check_trusted(path.lstat(), path)
            check_trusted(path.stat(), path)
        return read_toml(path, lambda status: check_trusted(status, path))

    def locate(self, error: str) -> str:
        """An error that begins with a key, with the place where that key was set."""
        key = error.partition(":")[0]
        if key not in self._sources or key not in setting_types():
            return error
        value = setting(self._settings, key)
        if isinstance(value, tuple) and not any(f": {each}: " in error for each in value):
            return error  # about something else
        return f"{self._sources[key]}: {error}"


def settings_here(
    path: Path | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> SettingsSource:
    """
    The settings of a server that is started here: from C{path}, or if that is L{None} from
    L{CONFIG_NAME} in the working directory, if there is one.
    """
    if path is not None or not os.path.lexists(CONFIG_NAME):
        return SettingsSource(path, overrides)
    # Absolute: it is read again at each reload, in whatever directory the process is by then.
    return SettingsSource(Path(CONFIG_NAME).absolute(), overrides, found=True)


def load_settings(
    path: Path | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read settings, once: see L{SettingsSource}."""
    return SettingsSource(path, overrides, environment).load()


def is_secret(key: str, value: object) -> bool:
    """True if the value of a setting must not be shown; a store's address may have a password."""
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
    *path, name = key.split(".")
    value: Any = text
    try:
        raw = text.encode()
        if not _is_text(types[key]):
            value = msgspec.json.decode(raw)
        msgspec.convert(value, types[key])
    except UnicodeEncodeError:  # the command line and the environment hold bytes
        raise ConfigError(f"{source}: {key}: not UTF-8") from None
    except msgspec.ValidationError as error:
        reason = _reason(fault_of(error).text, types[key])
        raise ConfigError(f"{source}: {key}: {reason}") from None
    except (msgspec.DecodeError, RecursionError):
        numeric = isinstance(_info(types[key]), msgspec.inspect.IntType | msgspec.inspect.FloatType)
        what = "a number" if numeric else "JSON"
        raise ConfigError(f"{source}: {key}: {text!r:.100} is not {what}") from None
    for section in path:
        tree = tree.setdefault(section, {})
    tree[name] = value


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
        place, text = fault_of(error)
        if text == UNKNOWN:
            text = "there is no such setting"
        else:
            place = place.partition("[")[0]  # of a list, the key
            text = _reason(text, setting_types().get(place))
        where = sources.get(place, source)
        # A key in quotes may hold anything.
        name = place if place.isprintable() else repr(place)
        raise ConfigError(
            f"{where}: {name:.100}: {text}" if place else f"{where}: {text}"
        ) from None


def _reason(text: str, kind: Any) -> str:
    """The error for a value of type C{kind}."""
    info = _info(kind)
    if isinstance(info, msgspec.inspect.LiteralType):
        return f"must be one of {', '.join(map(str, info.values))}"
    return text


def _objections(settings: Settings) -> Iterator[tuple[str, str]]:
    """Keys with reasons: settings that contradict each other, or cannot work."""
    if settings.ping.initial_delay_min > settings.ping.initial_delay_max:
        yield "ping.initial_delay_min", "must not be above ping.initial_delay_max"
    tls = settings.tls
    if tls.require_client and not tls.client_authority:
        yield "tls.require_client", "needs tls.client_authority"
    if (tls.key or tls.client_authority) and not tls.certificate:
        yield "tls.certificate", "must be given with the rest of the section"
    if 0 < settings.socket.max_segment < MIN_SEGMENT_BYTES:
        yield "socket.max_segment", f"must be 0, or {MIN_SEGMENT_BYTES} or more"
    if settings.queue.max_bytes > settings.queue.total_bytes:
        yield "queue.max_bytes", "must not be above queue.total_bytes"
    for key in ("pacing.phone_per_second", "pacing.room_per_second"):
        if 0 < setting(settings, key) < LEAST_PACE:
            yield key, f"must be 0, or {LEAST_PACE} or more"
    for key, networks in (
        ("limits.allow", settings.limits.allow),
        ("limits.deny", settings.limits.deny),
    ):
        for network in networks:
            try:
                ip_network(network)
            except ValueError:
                yield key, f"{network!r:.100} is no network in CIDR form, such as 192.0.2.0/24"
    for name in settings.http.hosts:
        if not _HOST_NAME.fullmatch(name):
            yield "http.hosts", f"{name!r:.100} is no name of a host, such as chat.example.org"
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
