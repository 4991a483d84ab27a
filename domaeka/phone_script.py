"""
The bridge script for the phones' app: filled in for its user, and its version.

C{bridge.js} beside this module is a link to C{etc/phone/bridge.js}; installed packages have a copy.
"""

import json
import re
import socket
from collections.abc import Sequence
from functools import cache
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final, NamedTuple

from domaeka.config import Settings
from domaeka.errors import ConfigError
from domaeka.state import located_errors

#: Version of the script, as it says it in its handshake.
SCRIPT_VERSION: Final = "domaeka-1.0.0"
#: Most servers in a script.  Source: C{MAX_SERVERS} of the script.
MAX_SERVERS: Final = 32
#: Media type of a script.
JAVASCRIPT: Final = "text/javascript; charset=utf-8"
#: Client type of the phones' app, whatever script it runs.
_APP: Final = "MessengerBotR"
#: Versions of scripts: those of before, and ours.
_VERSION: Final = re.compile(r"(domaeka-)?([0-9]{1,6}(?:\.[0-9]{1,6}){0,5})")
#: A host that the script takes, with or without a port.  Source: C{readServer} of the script.
_TARGET: Final = re.compile(
    r"(?:\[(?P<ip>[0-9A-Fa-f:.]+)\]|(?P<name>[0-9A-Za-z._-]{1,253}))(?::(?P<port>[0-9]{1,5}))?"
)
#: An unused address, RFC 5737: connecting to it shows which of our addresses the network sees.
_NOBODY: Final = ("192.0.2.1", 9)


class ScriptServer(NamedTuple):
    """
    A server in a phone's list.

    @ivar pin: SHA-256 of its certificate, in hex; empty: the certificate is checked as usual.
    """

    host: str
    port: int
    tls: bool = False
    pin: str = ""


def script_servers(
    hosts: Sequence[str], settings: Settings, *, tls: bool = False, pin: bool = False
) -> list[ScriptServer]:
    """
    The servers for a script, in the order of C{hosts}.

    @param hosts: each HOST or HOST:PORT, IPv6 in brackets; without a port, that of the settings.
        If there are none: the address of this machine.
    @param pin: true to pin the certificate that the settings name.
    @raise ValueError: a host is wrong, or there are too many: one line.
    @raise ConfigError: the settings do not have what is needed: one line.
    """
    if len(hosts) > MAX_SERVERS:
        raise ValueError(f"{len(hosts)} hosts: a script takes {MAX_SERVERS} at most")
    hash_of_certificate = _certificate_hash(settings.tls.certificate) if pin else ""
    return [
        ScriptServer(host, port or _port(settings, tls), tls, hash_of_certificate)
        for host, port in map(_read_target, hosts or [own_address()])
    ]


def fill_script(bot: str, secret_key: str, salt: str, servers: Sequence[ScriptServer]) -> bytes:
    """
    The script with these settings in its head, in UTF-8; all else in it stays as it is.

    @param servers: the preferred one first.
    @raise ConfigError: the script is not there.
    """
    lines = ",\n".join(
        f"        {{ host: {_js(server.host)}, port: {server.port}, priority: {priority}, "
        f"name: {_js(server.host)}, tls: {_js(server.tls)}, pin: {_js(server.pin)} }}"
        for priority, server in enumerate(servers, 1)
    )
    head, end, rest = _script().partition("\n};\n")
    for pattern, value in (
        (r'    BOT_NAME: (".*")', _js(bot)),
        (r'    SECRET_KEY: (".*")', _js(secret_key)),
        (r'    BOT_SPECIFIC_SALT: (".*")', _js(salt)),
        (r"    SERVER_LIST: (\[\n(?: {8}.*\n)* {4}\])", f"[\n{lines}\n    ]"),
    ):
        found = re.search(rf"^{pattern},$", head, re.MULTILINE)
        if found is None:
            raise ConfigError(f"{_path()}: this is not the bridge script: install domaeka anew")
        head = head[: found.start(1)] + value + head[found.end(1) :]
    return (head + end + rest).encode()


def is_outdated(client_type: str, version: str) -> bool:
    """
    True for a phone of the app whose script is older than L{SCRIPT_VERSION}.

    A script of an unknown kind is not called old, nor is another client.
    """
    found = _VERSION.fullmatch(version)
    if client_type != _APP or found is None:
        return False
    return found[1] is None or _numbers(version) < _numbers(SCRIPT_VERSION)


def own_address() -> str:
    """The address of this machine as its network sees it; if there is none, its name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_NOBODY)  # sends nothing
            address: str = probe.getsockname()[0]
        except OSError:
            return socket.gethostname()
    return address


def _numbers(version: str) -> list[int]:
    """The numbers of a version, without zeros at its end."""
    numbers = [int(number) for number in version.rpartition("-")[2].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _read_target(text: str) -> tuple[str, int | None]:
    """
    A host, and its port if it has one.

    @raise ValueError: C{text} is neither HOST nor HOST:PORT.
    """
    found = _TARGET.fullmatch(text)
    if found is None or (found["ip"] and not _is_ipv6(found["ip"])):
        raise ValueError(
            f"{text!r:.100} is not HOST or HOST:PORT (letters, digits, '.', '-', '_'; IPv6 in "
            "brackets)"
        )
    if found["port"] is None:
        return found["ip"] or found["name"], None
    port = int(found["port"])
    if not 1 <= port <= 65535:
        raise ValueError(f"{text!r:.100}: the port must be 1 to 65535")
    return found["ip"] or found["name"], port


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _port(settings: Settings, tls: bool) -> int:
    """The phones' port of the settings."""
    if tls and not settings.tls.certificate:
        raise ConfigError("tls.certificate is not set: give the port too, HOST:PORT")
    port = settings.tls.port if tls else settings.server.port
    if not port:
        name = "tls.port" if tls else "server.port"
        raise ConfigError(f"{name} is 0, any free one: give the port too, HOST:PORT")
    return port


def _certificate_hash(path: str) -> str:
    """The SHA-256 of a certificate in DER, in hex: the first of a PEM file."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509 import load_pem_x509_certificate

    if not path:
        raise ConfigError("tls.certificate is not set: there is nothing to pin")
    with located_errors(f"tls.certificate: {path}"):
        raw = Path(path).read_bytes()
        try:
            return load_pem_x509_certificate(raw).fingerprint(SHA256()).hex()
        except ValueError:
            raise ValueError("no certificate in PEM form") from None


def _js(value: str | bool) -> str:
    """
    A value in JavaScript, as ES5 reads it.

    It is that of JSON, with all characters escaped that an editor may not show, U+2028 and U+2029
    among them: they end a line in ES5.
    """
    text = json.dumps(value, ensure_ascii=False)
    return "".join(piece if piece.isprintable() else _escape(piece) for piece in text)


def _escape(character: str) -> str:
    """The escape of a character, in units of UTF-16."""
    raw = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{raw[at : at + 2].hex()}" for at in range(0, len(raw), 2))


def _path() -> Path:
    return Path(__file__).with_name("bridge.js")


@cache
def _script() -> str:
    path = _path()
    with located_errors(str(path)):
        return path.read_text("utf-8")
