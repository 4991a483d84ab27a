"""The client of the admin API for an operator's commands: server, token, requests and answers."""

import http.client
import ipaddress
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import click
import msgspec
from rich.console import RenderableType
from twisted.python.runtime import seconds

from domaeka.cli import views
from domaeka.cli.leniency import lenient
from domaeka.cli.output import REFUSED, UNREACHABLE, escaped_json, one_line, shows_unicode
from domaeka.config import settings_here
from domaeka.errors import ConfigError
from domaeka.secrets import load_secrets
from domaeka.state import SECRETS_NAME, state_path
from domaeka.validation import fault_of

#: The beginning of all paths of the API.  Source: docs/operations.md, "Commands".
PREFIX: Final = "/api/v1"
#: Longest time to connect, and for an answer, in seconds.  The server gives itself 30 s.
CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 40.0
#: Longest silence of a stream of events, in seconds.  Source: docs/api.md, "Events": a line comes
#: every 15 s.
SILENCE_SECONDS: Final = 45.0
#: Longest line of a stream, in bytes: an event has some 500.
_MAX_LINE_BYTES: Final = 1_048_576
#: Environment variables for a server's address and its token's file, if no option gives them.
URL_VARIABLE: Final = "DOMAEKA_URL"
TOKEN_FILE_VARIABLE: Final = "DOMAEKA_TOKEN_FILE"
#: Largest answer that is read, in bytes: a page has some 200 KB.
MAX_ANSWER_BYTES: Final = 67_108_864
#: Most items of one request; the API gives no more.
PAGE: Final = 200
#: Longest file with a token, in bytes.
_MAX_TOKEN_BYTES: Final = 4096

#: Sends a request: method, target, and a body in JSON or L{None}.  Returns status and body.
Exchange: TypeAlias = Callable[[str, str, bytes | None], tuple[int, bytes]]
#: Requests a target; returns the status and the lines of the answer, as they come.
Listen: TypeAlias = Callable[[str], tuple[int, Iterator[bytes]]]

_C = TypeVar("_C", bound=Callable[..., Any])
_T = TypeVar("_T")


class Unreachable(click.ClickException):
    """No server answers, or another kind of server."""

    exit_code = UNREACHABLE


class Refused(click.ClickException):
    """
    The server refuses a request.

    @ivar status: the HTTP status.
    """

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(one_line(f"{text} ({code})"))
        self.status = status


class NotTrusted(Refused):
    """The server refuses the token."""

    exit_code = REFUSED

    def __init__(self, status: int, code: str, text: str) -> None:
        hint = "is it that of this server? --state-dir or --token-file names another"
        super().__init__(status, code, f"{text}: {hint}")


class ApiClient:
    """
    A client of the admin API, set up by the options of a command.

    @ivar at_terminal: returns true if there is a user to ask.
    """

    def __init__(
        self,
        connect: Callable[[SplitResult, str], Exchange] | None = None,
        pause: Callable[[float], object] | None = None,
        listen: Callable[[SplitResult, str], Listen] | None = None,
    ) -> None:
        """
        @param connect: makes an L{Exchange} with an address and a token.
        @param listen: makes a L{Listen} for an address and a token.
        """
        self.as_json = False
        self.url: str | None = None
        self.token_file: Path | None = None
        self.state_dir: str | None = None
        self.config: Path | None = None
        self.pause: Callable[[float], object] = pause or threading.Event().wait
        self._connect = connect or http_exchange
        self._listen = listen or http_listen
        self.at_terminal: Callable[[], bool] = lambda: bool(sys.stdin and sys.stdin.isatty())
        self._exchange: Exchange | None = None
        self.server_url = ""

    def confirm(self, what: str, option: str) -> None:
        """
        Go on only if the user confirms it.

        @param what: the unusual thing, as a clause.
        @param option: the option that confirms it beforehand.
        @raise click.ClickException: the answer is no, or there is no user to ask.
        """
        if not self.at_terminal():
            raise click.ClickException(f"{what}: give {option} if that is meant")
        if not click.confirm(f"{what}. Go on?", err=True):
            raise click.ClickException("nothing was done")

    def request(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """
        Send a request.

        @param path: behind the prefix, names escaped.
        @param query: parameters; those that are L{None} are left out.
        @return: the answer, decoded.
        @raise Refused: the server refuses it.
        @raise Unreachable: no server answers.
        """
        given = {name: value for name, value in query.items() if value is not None}
        target = PREFIX + path + (f"?{urlencode(given)}" if given else "")
        status, answer = self._send(method, target, body)
        if status >= 300:
            raise self._refusal(status, answer)
        return self._decoded(status, answer) if answer else None

    def find(self, path: str) -> Any:
        """Get the resource at a path; L{None}: there is none."""
        try:
            return self.request("GET", path)
        except Refused as error:
            if error.status == http.HTTPStatus.NOT_FOUND:
                return None
            raise

    def page(self, path: str) -> tuple[int, Any]:
        """
        A page outside the API.

        @return: status, 200 or 503, and the answer, decoded.
        @raise Refused: as of L{request}; L{Unreachable} likewise.
        """
        status, answer = self._send("GET", path, None)
        if status >= 300 and status != http.HTTPStatus.SERVICE_UNAVAILABLE:
            raise self._refusal(status, answer)
        return status, self._decoded(status, answer)

    def items(self, path: str, limit: int, **query: object) -> Any:
        """
        A list, from as many pages as it takes.

        @return: the last page, with the items of all pages.
        """
        name = path.split("/")[1]
        found: list[Any] = []
        after: str | None = None
        while True:
            wanted = min(PAGE, limit - len(found))
            page = self.request("GET", path, None, limit=wanted, after=after, **query)
            try:
                found += page[name]
                after = page["next"]
            except (TypeError, KeyError):
                raise _not_understood("no page") from None
            if after is None or len(found) >= limit:
                return page | {name: found}

    def events(self) -> Iterator[tuple[str, dict[str, Any]] | None]:
        """
        Names and data of events from now on, until the server ends the stream; L{None}: none came
        for a while.

        @raise Refused: as of L{request}.
        @raise Unreachable: no server answers, or not any more.
        """
        status, lines = self._listen(*self._find_server())(PREFIX + "/events")
        if status != http.HTTPStatus.OK:
            raise self._refusal(status, b"".join(islice(lines, PAGE)))
        if not next(lines, b"").startswith(b":"):
            raise self._no_domaeka(status)
        yield None
        name = ""
        for line in lines:
            field, _, value = line.rstrip(b"\r\n").partition(b": ")
            if line.startswith(b":"):
                yield None
            elif field == b"event":
                name = value.decode("utf-8", "replace")
            elif field == b"data":
                yield name, read_as(self._decoded(status, value), dict[str, Any])

    def show(self, answer: object, view: Callable[[], RenderableType]) -> None:
        """Write an answer: with C{--json} as it is, else as C{view} returns it."""
        if self.as_json:
            self.show_json(answer)
        elif isinstance(shown := view(), str):
            click.echo(shown)
        else:
            views.show(shown)

    def show_json(self, value: object) -> None:
        """Write C{value} as JSON, in a line."""
        text = msgspec.json.encode(value).decode()
        click.echo(escaped_json(text, ascii_only=not shows_unicode()))

    def _send(self, method: str, target: str, body: object) -> tuple[int, bytes]:
        if self._exchange is None:
            self._exchange = self._connect(*self._find_server())
        return self._exchange(method, target, None if body is None else msgspec.json.encode(body))

    def _find_server(self) -> tuple[SplitResult, str]:
        """The server's address, and its token: options override the environment."""
        usual = os.environ.get(URL_VARIABLE)
        url = self.url or (None if self.config else usual)
        token_file = self.token_file
        # The environment's address and token belong together: the token is not for other servers.
        if token_file is None and self.state_dir is None and url == (usual or url):
            usual_file = os.environ.get(TOKEN_FILE_VARIABLE)
            token_file = Path(usual_file) if usual_file else None
        named = bool(url)
        settings = None if named and token_file else settings_here(self.config).load()
        if not url:
            assert settings is not None
            url = settings.http.local_url
        server = read_url(url)
        self.server_url = url.rstrip("/")
        if token_file is not None:
            return server, read_token(token_file)
        assert settings is not None
        if named and self.state_dir is None and not is_local(server.hostname or ""):
            raise click.UsageError(
                f"{one_line(self.server_url)} is another machine: give its token by --token-file, "
                f"{TOKEN_FILE_VARIABLE} or --state-dir"
            )
        directory = state_path(self.state_dir, os.environ)
        try:
            return server, load_secrets(directory, settings.auth, seconds()).admin_token
        except ConfigError as error:
            if os.path.exists(directory / SECRETS_NAME):
                raise
            raise ConfigError(
                f"{error}: start the server once, or give --state-dir or --token-file"
            ) from None

    def _refusal(self, status: int, answer: bytes) -> click.ClickException:
        try:
            error = msgspec.json.decode(answer)["error"]
            kind = NotTrusted if status == http.HTTPStatus.UNAUTHORIZED else Refused
            return kind(status, str(error["code"]), str(error["message"]))
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError, RecursionError):
            return self._no_domaeka(status)

    def _decoded(self, status: int, answer: bytes) -> Any:
        try:
            if status < 300 or status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                return msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        raise self._no_domaeka(status)

    def _no_domaeka(self, status: int) -> Unreachable:
        return Unreachable(f"{one_line(self.server_url)}: no domaeka answers there (HTTP {status})")


def http_exchange(server: SplitResult, token: str) -> Exchange:
    """An L{Exchange} with a server, with a connection for each request."""

    def send(method: str, target: str, body: bytes | None) -> tuple[int, bytes]:
        with _answer(server, token, method, target, body, ANSWER_SECONDS) as response:
            answer = response.read(MAX_ANSWER_BYTES + 1)
            if response.length and len(answer) <= MAX_ANSWER_BYTES:
                raise http.client.IncompleteRead(answer, response.length)
        if len(answer) > MAX_ANSWER_BYTES:
            raise Unreachable(f"{_shown(server)}: an answer of more than {MAX_ANSWER_BYTES} bytes")
        return response.status, answer

    return send


def http_listen(server: SplitResult, token: str) -> Listen:
    """A L{Listen} to a server, line by line."""

    def listen(target: str) -> tuple[int, Iterator[bytes]]:
        stack = ExitStack()
        response = stack.enter_context(_answer(server, token, "GET", target, None, SILENCE_SECONDS))

        def lines() -> Iterator[bytes]:
            with stack:
                while line := response.readline(_MAX_LINE_BYTES):
                    yield line

        return response.status, lines()

    return listen


@contextmanager
def _answer(
    server: SplitResult, token: str, method: str, target: str, body: bytes | None, silence: float
) -> Iterator[http.client.HTTPResponse]:
    """
    An answer whose head has come.

    @param silence: longest silence, in seconds.
    @raise Unreachable: for any error, here or while it is read.
    """
    secure = server.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection = kind(server.hostname or "", server.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(silence)
            connection.request(method, server.path.rstrip("/") + target, body, headers)
            yield connection.getresponse()
        finally:
            connection.close()
    except OSError as error:
        why = one_line(error.strerror or str(error) or type(error).__name__)
        hint = ": does the server run?" if isinstance(error, ConnectionRefusedError) else ""
        raise Unreachable(f"cannot reach {_shown(server)}: {why}{hint}") from None
    except (http.client.HTTPException, ValueError):
        # A name that no host can have is a UnicodeError, which is a ValueError.
        raise Unreachable(
            f"cannot reach {_shown(server)}: what answers does not speak HTTP"
        ) from None


def _shown(server: SplitResult) -> str:
    return one_line(f"{server.scheme}://{server.netloc}")


def read_url(text: str) -> SplitResult:
    """
    The address of a server.

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
        f"--url, or {URL_VARIABLE}: {one_line(text)!r:.100} is not like http://127.0.0.1:8080 or "
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


def read_as(value: object, kind: type[_T]) -> _T:
    """
    An answer as the L{lenient} form of a type of the API.

    @raise click.ClickException: it does not fit.
    """
    try:
        found: _T = msgspec.convert(value, lenient(cast(Any, kind)))
        return found
    except msgspec.ValidationError as error:
        raise _not_understood(str(fault_of(error))) from None


def _not_understood(why: str) -> click.ClickException:
    return click.ClickException(
        f"the answer is not understood: {one_line(why)}: is the server of another version?"
    )


def path_of(*names: str) -> str:
    """A path of these names, escaped."""
    return "".join("/" + quote(name, safe="") for name in names)


def name(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """A callback of click for a name, or several: they must be UTF-8 and not empty."""
    texts = value if isinstance(value, tuple) else () if value is None else (value,)
    for text in texts:
        if not text:
            raise click.BadParameter("must not be empty", ctx, param)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise click.BadParameter("not UTF-8", ctx, param) from None
    return value


def _chosen(ctx: click.Context, param: click.Parameter, value: object) -> None:
    api = ctx.ensure_object(ApiClient)
    if value:
        setattr(api, param.name or "", value)


_option: Final = partial(click.option, expose_value=False, callback=_chosen)
#: The options of every operator's command.
_OPTIONS: Final = (
    _option("--json", "as_json", is_flag=True, help="What the API says, a JSON object in a line."),
    _option(
        "--url",
        metavar="URL",
        help="Where the server's HTTP port is; else $DOMAEKA_URL, else as the settings say.",
    ),
    _option(
        "--token-file",
        type=click.Path(path_type=Path),
        help="A file with the admin token alone; else $DOMAEKA_TOKEN_FILE.",
    ),
    _option(
        "--state-dir",
        metavar="DIR",
        help="The server's state directory: its token, where no --token-file is given.",
    ),
    _option(
        "--config",
        type=click.Path(path_type=Path),
        help="The server's settings: its HTTP port; else ./domaeka.toml, if it is there.",
    ),
)


def operators(command: _C) -> _C:
    """Give a command the common options, and the L{ApiClient} as its first argument."""
    result: Any = click.make_pass_decorator(ApiClient, ensure=True)(command)
    for option in reversed(_OPTIONS):
        result = option(result)
    return result  # type: ignore[no-any-return]
