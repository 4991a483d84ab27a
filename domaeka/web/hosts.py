"""
The names by which clients may call the HTTP port.

A page of a foreign name that is made to resolve to this machine (DNS rebinding) is the same origin
as the port, for a browser: it would read what needs no token.  The browser says the foreign name in
C{Host}, so only known names are answered.
"""

import re
from collections.abc import Collection, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

from domaeka.web.routes import Refusal

#: A host with or without a port.  Source: RFC 3986, 3.2.2 and 3.2.3; user information is not
#: allowed in HTTP (RFC 9110, 4.2.4).
_AUTHORITY: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{0,5})?")
_SCHEMES: Final = (b"http://", b"https://")


def wrong_host(target: bytes, given: Sequence[bytes], names: Collection[str]) -> Refusal | None:
    """
    The refusal of a request for a host that this server is not; L{None}: there is none.

    A request without any host, of HTTP/1.0, passes: no browser sends it.

    @param target: as it is in the request line.
    @param given: the values of C{Host} headers.
    @param names: those of C{http.hosts}.
    """
    hosts = list(given)
    if len(hosts) > 1:
        return Refusal(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", "more than one Host")
    if target.lower().startswith(_SCHEMES):  # where it says another one, that counts as well
        hosts.append(re.split(rb"[/?#]", target.split(b"//", 1)[1], maxsplit=1)[0])
    for host in hosts:
        match = _AUTHORITY.fullmatch(host.strip(b" \t"))
        if match is None or not _is_known(match[1].decode("ascii"), names):
            shown = host.decode("latin-1")
            return Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                "MISDIRECTED",
                f"{shown!r:.100} is no name of this server: call it by an address or localhost, or "
                "list its name in the setting http.hosts",
            )
    return None


def _is_known(host: str, names: Collection[str]) -> bool:
    try:
        ip_address(host[1:-1] if host.startswith("[") else host)
    except ValueError:
        name = host.lower().removesuffix(".")
        return name == "localhost" or name in (each.lower().removesuffix(".") for each in names)
    return True
