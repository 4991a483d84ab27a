"""
Additional ports, as the texts of C{server.endpoints} describe them in the syntax of Twisted's
endpoints.

TCP ports, plain or with TLS, are opened and served as the phones' own ports are; Twisted makes
all other endpoints.
"""

import re
from typing import Any, Final

import msgspec
from twisted.internet.endpoints import serverFromString

from domaeka.errors import ConfigError
from domaeka.gateway.transport.certificates import TlsFiles

#: Arguments of Twisted's endpoints by position; each can be given by its name, too.
_ARGUMENTS: Final = {
    "tcp": ("port", "interface", "backlog"),
    "ssl": (
        *("port", "privateKey", "certKey", "sslmethod", "interface", "backlog"),
        *("extraCertChain", "dhParameters"),
    ),
}
#: Arguments of C{ssl:} that cannot be chosen, and the reason.
_FIXED: Final = {
    "sslmethod": "TLS 1.2 and up is what is spoken",
    "dhParameters": "no cipher that is spoken uses them",
}
#: Connections that the kernel holds until they are accepted.  Source: some hundred phones return
#: within one second after a restart.
BACKLOG: Final = 1024
#: All IPv4 addresses: Twisted's default interface for C{tcp:} and C{ssl:}.
_EVERYWHERE: Final = "0.0.0.0"
_MAX_PORT: Final = 65_535


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    One of C{server.endpoints}.

    @ivar proxied: True if a balancer sends the peer's address (PROXY protocol).
    @ivar port: the TCP port; L{None}: Twisted makes the endpoint.
    @ivar backlog: how many connections the kernel holds until they are accepted.
    @ivar files: the files for TLS; L{None}: none are known here.
    @ivar inner: the text for Twisted, without C{haproxy:}.
    """

    text: str
    inner: str
    proxied: bool = False
    port: int | None = None
    interface: str = _EVERYWHERE
    backlog: int = BACKLOG
    files: TlsFiles | None = None

    @property
    def key(self) -> str:
        """Beginning of error messages about it."""
        return f"server.endpoints: {self.text}"

    def made_by_twisted(self, reactor: Any) -> Any:
        """Twisted's endpoint.  @raise ConfigError: Twisted cannot make an endpoint of the text."""
        try:
            return serverFromString(reactor, self.inner)  # type: ignore[no-untyped-call]
        except Exception as error:  # plugins raise anything
            if self.inner.startswith("systemd:") and isinstance(error, LookupError):
                raise ConfigError(f"{self.key}: systemd has handed over no such socket") from None
            why = str(error).replace("\n", " ") or type(error).__name__
            raise ConfigError(f"{self.key}: {why}") from None


def parse_endpoint(text: str) -> Endpoint:
    """Read one of C{server.endpoints}.  @raise ConfigError: the text is no endpoint."""
    kind, *rest = _split(text)
    proxied = kind == "haproxy"
    if proxied:
        kind, *rest = rest or [""]
        if kind == "haproxy":
            raise ConfigError(f"server.endpoints: {text}: haproxy: cannot be there twice")
    if kind not in _ARGUMENTS:
        return Endpoint(text=text, inner=":".join((kind, *rest)), proxied=proxied)
    try:
        given = _arguments(kind, rest)
        return Endpoint(
            text=text,
            inner="",
            proxied=proxied,
            port=_number(given, "port", _MAX_PORT),
            interface=given.get("interface") or _EVERYWHERE,
            backlog=_number(given, "backlog", _MAX_PORT) if "backlog" in given else BACKLOG,
            files=_files(text, given) if kind == "ssl" else None,
        )
    except ValueError as error:
        raise ConfigError(f"server.endpoints: {text}: {error}") from None


def _split(text: str) -> list[str]:
    """The parts between colons; a backslash escapes a colon."""
    return [match[1] for match in re.finditer(r"(?:^|:)((?:\\.|[^:\\])*)", text)]


def _arguments(kind: str, parts: list[str]) -> dict[str, str]:
    known = _ARGUMENTS[kind]
    positions = iter(known)
    given: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            name, value = next(positions, ""), part
            if not name:
                raise ValueError(f"{part!r:.100} is one argument too many")
        if name not in known:
            raise ValueError(f"{kind}: has no {name!r:.100}, but {', '.join(known)}")
        if name in given:
            raise ValueError(f"{name} is there twice")
        if name in _FIXED:
            raise ValueError(f"{name} cannot be chosen: {_FIXED[name]}")
        given[name] = re.sub(r"\\(.)", r"\1", value)
    return given


def _number(given: dict[str, str], name: str, most: int) -> int:
    text = given.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise ValueError(f"{name} must be 0 to {most}")
    return int(text)


def _files(text: str, given: dict[str, str]) -> TlsFiles:
    where = f"server.endpoints: {text}:"
    # Twisted's default name.
    key = given.get("privateKey", "server.pem")
    return TlsFiles(
        certificate=given.get("certKey", key),
        key=key,
        chain=given.get("extraCertChain", ""),
        names=(f"{where} certKey", f"{where} privateKey", f"{where} extraCertChain"),
    )
