"""Where a server is, and requests to it that show the admin token to nobody else."""

import hmac
import http.client
import ipaddress
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import SplitResult, urlsplit

import click
import msgspec

from domaeka.cli.output import REFUSED, UNREACHABLE, one_line
from domaeka.errors import ConfigError
from domaeka.local_socket import SOCKET_NAME, connect_local
from domaeka.secrets import proof_of

#: Longest time to connect, and for an answer, in seconds.  The server gives itself 30 s.
CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 40.0
#: Longest silence of a stream of events, in seconds.  Source: docs/api.md, "Events": a line comes
#: every 15 s.
SILENCE_SECONDS: Final = 45.0
#: Largest answer that is read, in bytes: a page has some 200 KB; and largest proof.
MAX_ANSWER_BYTES: Final = 67_108_864
_MAX_PROOF_BYTES: Final = 4096
#: Longest line of a stream, in bytes: an event has some 500.
_MAX_LINE_BYTES: Final = 1_048_576
#: The path at which a server proves that it has the token.
_PROOF_PATH: Final = "/proof"
#: The URL of requests over the socket.
_HERE: Final = urlsplit("http://localhost")
#: Longest file with a token, in bytes.
_MAX_TOKEN_BYTES: Final = 4096

#: Sends a request: method, target, and a body in JSON or L{None}.  Returns status and body.
Exchange: TypeAlias = Callable[[str, str, bytes | None], tuple[int, bytes]]
#: Requests a target; returns the status and the lines of the answer, as they come.
Listen: TypeAlias = Callable[[str], tuple[int, Iterator[bytes]]]


class Unreachable(click.ClickException):
    """No server answers, or another kind of server."""

    exit_code = UNREACHABLE


class NotProven(click.ClickException):
    """What answers has not proven that it is the server: it is not shown the token."""

    exit_code = REFUSED


class Place(NamedTuple):
    """
    Where a server is, and its token.

    @ivar directory: the state directory whose socket is used; L{None}: C{url} says where.
    @ivar own: the token is that of this machine's state directory, and not one that was named for
        this C{url}: a proof counts only from the very port.
    """

    url: SplitResult
    token: str
    directory: Path | None = None
    own: bool = False

    @classmethod
    def socket(cls, directory: Path, token: str) -> "Place":
        """The socket of a state directory."""
        return cls(_HERE, token, directory)

    def __str__(self) -> str:
        if self.directory is not None:
            return one_line(str(self.directory / SOCKET_NAME))
        return one_line(f"{self.url.scheme}://{self.url.netloc}{self.url.path}").rstrip("/")

    @property
    def must_prove(self) -> bool:
        """True if the token is shown only after a proof: anybody here may listen on a port."""
        return (
            self.directory is None
            and self.url.scheme == "http"
            and (self.own or is_local(self.url.hostname or ""))
        )


class _SocketConnection(http.client.HTTPConnection):
    """A connection by the socket of a state directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(_HERE.hostname or "")
        self._directory = directory

    def connect(self) -> None:
        self.sock = connect_local(self._directory, CONNECT_SECONDS)


def http_exchange(place: Place) -> Exchange:
    """An L{Exchange} with a server, with a connection for each request."""

    def send(method: str, target: str, body: bytes | None) -> tuple[int, bytes]:
        with _answer(place, method, target, body, ANSWER_SECONDS) as response:
            answer = response.read(MAX_ANSWER_BYTES + 1)
            if response.length and len(answer) <= MAX_ANSWER_BYTES:
                raise http.client.IncompleteRead(answer, response.length)
        if len(answer) > MAX_ANSWER_BYTES:
            raise Unreachable(f"{place}: an answer of more than {MAX_ANSWER_BYTES} bytes")
        return response.status, answer

    return send


def http_listen(place: Place) -> Listen:
    """A L{Listen} to a server, line by line."""

    def listen(target: str) -> tuple[int, Iterator[bytes]]:
        stack = ExitStack()
        response = stack.enter_context(_answer(place, "GET", target, None, SILENCE_SECONDS))

        def lines() -> Iterator[bytes]:
            with stack:
                while line := response.readline(_MAX_LINE_BYTES):
                    yield line

        return response.status, lines()

    return listen


@contextmanager
def _answer(
    place: Place, method: str, target: str, body: bytes | None, silence: float
) -> Iterator[http.client.HTTPResponse]:
    """
    An answer whose head has come.

    @param silence: longest silence, in seconds.
    @raise Unreachable: for any error, here or while it is read.
    @raise NotProven: the token was not shown.
    """
    headers = {"Authorization": f"Bearer {place.token}", "Connection": "close"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    under = place.url.path.rstrip("/")
    try:
        connection = _connection(place)
        try:
            connection.connect()
            # What was proven holds for this connection: another one may lead to somebody else.
            connection.auto_open = 0
            connection.sock.settimeout(silence)
            if place.must_prove:
                _prove(connection, place)
            connection.request(method, under + target, body, headers)
            yield connection.getresponse()
        finally:
            connection.close()
    except OSError as error:
        why = one_line(error.strerror or str(error) or type(error).__name__)
        away = isinstance(error, ConnectionRefusedError | FileNotFoundError)
        hint = ": does the server run?" if away else ""
        raise Unreachable(f"cannot reach {place}: {why}{hint}") from None
    except (http.client.HTTPException, ValueError):
        # A name that no host can have is a UnicodeError, which is a ValueError.
        raise Unreachable(f"cannot reach {place}: what answers does not speak HTTP") from None


def _connection(place: Place) -> http.client.HTTPConnection:
    if place.directory is not None:
        return _SocketConnection(place.directory)
    url = place.url
    secure = url.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=CONNECT_SECONDS)


def _prove(connection: http.client.HTTPConnection, place: Place) -> None:
    """
    Have the server prove that it has the token, before it is shown.

    @raise NotProven: it has not.
    """
    nonce = secrets.token_hex(32)
    connection.request("GET", f"{place.url.path.rstrip('/')}{_PROOF_PATH}?nonce={nonce}")
    response = connection.getresponse()
    answer = response.read(_MAX_PROOF_BYTES)
    if response.length or not response.headers.get("Server", "").startswith("domaeka"):
        raise Unreachable(f"{place}: no domaeka answers there (HTTP {response.status})")
    try:
        proof = msgspec.json.decode(answer)
        given, port = str(proof["proof"]), int(proof["port"])
    except (msgspec.DecodeError, TypeError, KeyError, ValueError, RecursionError):
        raise NotProven(
            f"{place}: what answers there does not prove that it is the server (HTTP "
            f"{response.status}): the token was not shown; an older version, or a proxy: give "
            "--state-dir, or an https address"
        ) from None
    right = hmac.compare_digest(given.encode(), proof_of(place.token, nonce, port).encode())
    if not right:
        raise NotProven(
            f"{place}: what answers there does not have this token, so it was not shown: is it "
            "that of this server? --state-dir or --token-file names another"
        )
    if place.own and port != (place.url.port or http.client.HTTP_PORT):
        raise NotProven(
            f"{place}: what answers there passes requests on to port {port}: the token was not "
            "shown; leave --url out, or name a token by --token-file"
        )
    if connection.sock is None:
        raise Unreachable(f"cannot reach {place}: it has hung up")


def read_url(text: str, source: str) -> SplitResult:
    """
    The address of a server.

    @param source: where it was given, for the error.
    @raise click.UsageError: C{text} is none.
    """
    try:
        server = urlsplit(text)
        good = server.scheme in ("http", "https") and server.hostname and server.port != 0
        plain = text.isascii() and text.isprintable() and " " not in text
        if good and plain and not (server.query or server.fragment or server.username):
            return server
    except ValueError:  # a bad port, or bad brackets
        pass
    raise click.UsageError(
        f"{source}: {one_line(text)!r:.100} is not like http://127.0.0.1:8080 or "
        "https://example.org"
    )


def is_local(host: str) -> bool:
    """True for names and addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """
    The token in a file that has nothing else.

    @raise ConfigError: it cannot be read, or has something else in it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_TOKEN_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    token = raw.decode("ascii", "replace").strip()
    good = token.isascii() and token.isprintable() and " " not in token
    if not token or len(raw) > _MAX_TOKEN_BYTES or not good:
        raise ConfigError(
            f"{path}: must hold the token and nothing else; for the directory of a secrets.toml "
            "give --state-dir"
        )
    return token
