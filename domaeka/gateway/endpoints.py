"""
More places to listen: the texts of C{server.endpoints}.

They are written as Twisted's endpoints.  What is on TCP, in plain or with TLS, is opened and served
here as the phones' own ports are; Twisted makes the rest.
"""

import re
from typing import Any, Final

import msgspec
from twisted.internet.endpoints import serverFromString

from domaeka.errors import ConfigError
from domaeka.gateway.certificates import TlsFiles

#: What Twisted's own take by position, in this order; each can be given by its name, too.
_ARGUMENTS: Final = {
    "tcp": ("port", "interface", "backlog"),
    "ssl": (
        *("port", "privateKey", "certKey", "sslmethod", "interface", "backlog"),
        *("extraCertChain", "dhParameters"),
    ),
}
#: What an C{ssl:} text cannot choose, and what holds instead.
_FIXED: Final = {
    "sslmethod": "TLS 1.2 and up is what is spoken",
    "dhParameters": "no cipher that is spoken uses them",
}
#: Connections that the kernel holds until they are accepted.  Source: a fleet of some hundred
#: phones returns within one second after a restart.
BACKLOG: Final = 1024
#: All addresses, of IPv4 only: what Twisted's C{tcp:} and C{ssl:} mean by no interface.
_EVERYWHERE: Final = "0.0.0.0"
_MAX_PORT: Final = 65_535


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    One of C{server.endpoints}.

    @ivar proxied: whether a balancer says who the peer is.
    @ivar port: of TCP; L{None}: it is for Twisted to make.
    @ivar backlog: how many connections the kernel holds until they are accepted.
    @ivar files: what TLS is spoken with; L{None}: it is not, as far as is known here.
    @ivar inner: the text without what is known here of its own.
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
        """What an error about it begins with."""
        return f"server.endpoints: {self.text}"

    def made_by_twisted(self, reactor: Any) -> Any:
        """
        What listens there.

        @raise ConfigError: Twisted cannot make anything of it.
        """
        try:
            return serverFromString(reactor, self.inner)  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever a plugin of it says
            if self.inner.startswith("systemd:") and isinstance(error, LookupError):
                raise ConfigError(f"{self.key}: systemd has handed over no such socket") from None
            why = str(error).replace("\n", " ") or type(error).__name__
            raise ConfigError(f"{self.key}: {why}") from None


def parse_endpoint(text: str) -> Endpoint:
    """
    Read one of C{server.endpoints}.

    @raise ConfigError: it is none: one line that says why.
    """
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
    """The parts between colons, those with a backslash before them apart."""
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
    # Twisted's default.
    key = given.get("privateKey", "server.pem")
    return TlsFiles(
        certificate=given.get("certKey", key),
        key=key,
        chain=given.get("extraCertChain", ""),
        names=(f"{where} certKey", f"{where} privateKey", f"{where} extraCertChain"),
    )
