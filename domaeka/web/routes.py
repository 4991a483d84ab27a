"""
HTTP routes, without the network: which function answers a request, and with what.

A route is a method, a path and a function that takes a L{Call} and returns an L{Answer}, an
L{EventStream}, L{None} (204) or something that JSON can encode; at once, by a Deferred or as a
coroutine.  It refuses a request by raising L{Refusal}.
"""

import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec
from twisted.internet.defer import Deferred

from domaeka.errors import DomaekaError

#: Largest body of a client without a token, in bytes.
MAX_BODY_BYTES: Final = 65_536

#: Most events that wait for a client of a stream; one that falls behind by more is cut off.  An
#: event has some 500 bytes.
MAX_WAITING_EVENTS: Final = 1000

JSON: Final = "application/json"
#: The content type of an L{EventStream}.
EVENTS: Final = "text/event-stream"
#: Tells a proxy to pass on each event as it comes.  Source: nginx, proxy_buffering.
EVENT_HEADERS: Final = {"X-Accel-Buffering": "no"}


#: Stands for the address of a client of the socket in the state directory.
SOCKET: Final = "state directory"


class Call(NamedTuple):
    """
    A request, as a route's function sees it.

    @ivar path: as it came, without the query.
    @ivar names: the path's value for each C{{name}} of the route.
    @ivar query: the values of each parameter.
    @ivar headers: the last value of each header; names in lower case.
    @ivar peer: the client's address.
    @ivar port: the server's port that it came to; 0: none.
    """

    method: str
    path: str
    names: Mapping[str, str] = {}
    query: Mapping[str, tuple[str, ...]] = {}
    headers: Mapping[str, str] = {}
    body: bytes = b""
    peer: str = ""
    port: int = 0


class Answer(NamedTuple):
    """
    The answer to a request.

    @ivar headers: more headers, or others than the usual ones.
    """

    body: bytes = b""
    status: int = HTTPStatus.OK
    content_type: str = JSON
    headers: Mapping[str, str] = {}


class EventStream:
    """
    An answer that goes on until one side ends it: server-sent events.

    @ivar wake: called when there is something to L{take}, or the client has fallen behind; set
        by the sender.
    @ivar close: ends the answer in order; set by the sender.
    @ivar fallen_behind: true if more events came than may wait.
    """

    def __init__(self, ended: Callable[["EventStream"], None]) -> None:
        """@param ended: called once, when nobody reads the stream any more."""
        self.wake: Callable[[], None] = lambda: None
        self.close: Callable[[], None] = self.end
        self.fallen_behind = False
        self._ended: Callable[[EventStream], None] | None = ended
        self._waiting: list[bytes] = []

    def say(self, event: bytes) -> None:
        """@param event: as it goes out, from L{server_sent}."""
        if self.fallen_behind:
            return
        if len(self._waiting) < MAX_WAITING_EVENTS:
            self._waiting.append(event)
        else:
            self.fallen_behind = True
            self._waiting.clear()
        self.wake()

    @property
    def is_over(self) -> bool:
        """True once it has ended."""
        return self._ended is None

    def take(self) -> bytes:
        """Take all that waits to be sent."""
        waiting = b"".join(self._waiting)
        self._waiting.clear()
        return waiting

    def end(self) -> None:
        """Nobody reads the stream any more."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)


def server_sent(name: str, value: object) -> bytes:
    """An event of an L{EventStream}."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(value))


class Refusal(DomaekaError):
    """A request is not granted; the client is told why."""

    def __init__(
        self,
        status: int,
        code: str,
        text: str,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        """
        @param status: the HTTP status, 400 or above.
        @param code: a word for programs, in capitals.
        @param details: more of the error, for programs.
        """
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.headers = headers or {}
        self.details = details or {}

    def answer(self) -> Answer:
        """The answer that tells the client."""
        error = {"error": {"code": self.code, "message": self.text, **self.details}}
        return Answer(msgspec.json.encode(error), self.status, headers=self.headers)


def as_json(value: object, status: int = HTTPStatus.OK) -> Answer:
    """C{value} in JSON."""
    return Answer(msgspec.json.encode(value), status)


def as_answer(value: object) -> Answer | EventStream:
    """The answer for a route's result."""
    if isinstance(value, Answer | EventStream):
        return value
    return Answer(status=HTTPStatus.NO_CONTENT) if value is None else as_json(value)


def bearer_holds(header: bytes | None, token: bytes) -> bool:
    """
    Check an C{Authorization} header for the token, in constant time.

    @param token: the right one; an empty one never holds.
    """
    scheme, _, given = (header or b"").partition(b" ")
    same = hmac.compare_digest(given.strip(), token)
    return same and scheme.lower() == b"bearer" and token != b""


def is_this_machine(host: str) -> bool:
    """True for an address by which a machine reaches itself."""
    if host == SOCKET:
        return True
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


#: The result of a route's function.
Returned: TypeAlias = object | Deferred[Any] | Awaitable[Any]


class Route(NamedTuple):
    """
    The function for a method and a path.

    @ivar path: begins with a slash; a C{{name}} between two slashes stands for any text there.
    @ivar token: true if the bearer token is needed.
    @ivar anywhere: true if other machines do not need it either.
    @ivar max_body_bytes: largest body of a client with the token.
    """

    method: str
    path: str
    serve: Callable[[Call], Returned]
    token: bool = False
    max_body_bytes: int = MAX_BODY_BYTES
    anywhere: bool = False


class Resource(NamedTuple):
    """
    A resource: the routes of a path.

    @ivar names: the path's value for each C{{name}}.
    """

    routes: Mapping[str, Route]
    names: Mapping[str, str]

    def route(self, method: str) -> Route | None:
        """The route of a method: HEAD has that of GET."""
        return self.routes.get("GET" if method == "HEAD" else method)

    @property
    def allowed(self) -> str:
        """The C{Allow} header."""
        methods = {"OPTIONS", *self.routes}
        if "GET" in methods:
            methods.add("HEAD")
        return ", ".join(sorted(methods))


_Parts: TypeAlias = tuple[str, ...]


class RouteTable:
    """Finds the routes of a path.  A path without names goes before one with names."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """
        @param routes: in the order in which paths with names are tried.
        @raise ValueError: two have the same method and path.
        """
        self._plain: dict[_Parts, dict[str, Route]] = {}
        self._named: dict[_Parts, dict[str, Route]] = {}
        for route in routes:
            paths = self._named if "/{" in route.path else self._plain
            methods = paths.setdefault(tuple(route.path[1:].split("/")), {})
            if route.method in methods:
                raise ValueError(f"two routes for {route.method} {route.path}")
            methods[route.method] = route

    def find(self, target: bytes) -> Resource | None:
        """
        @param target: as it is in the request line, with or without host and query.
        @return: L{None} for a path without routes.
        """
        path = target.partition(b"?")[0]
        if path.lower().startswith((b"http://", b"https://")):
            path = b"/" + b"".join(path.split(b"/", 3)[3:])
        if not path.startswith(b"/"):
            return None
        try:
            # Split first: a name may contain an escaped slash.
            parts = tuple(unquote_to_bytes(part).decode() for part in path[1:].split(b"/"))
        except UnicodeDecodeError:
            return None
        routes = self._plain.get(parts)
        if routes is not None:
            return Resource(routes, {})
        for pattern, routes in self._named.items():
            names = _match(pattern, parts)
            if names is not None:
                return Resource(routes, names)
        return None


def _match(pattern: _Parts, parts: _Parts) -> dict[str, str] | None:
    if len(pattern) != len(parts):
        return None
    names = {}
    for expected, part in zip(pattern, parts, strict=True):
        if expected.startswith("{") and part:
            names[expected[1:-1]] = part
        elif expected != part:
            return None
    return names
