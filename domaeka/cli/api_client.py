"""The client of the admin API for an operator's commands: server, token, requests and answers."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote, urlencode

import click
import msgspec
from rich.console import RenderableType
from twisted.python.runtime import seconds

from domaeka.cli import views
from domaeka.cli.leniency import lenient
from domaeka.cli.output import REFUSED, escaped_json, one_line, shows_unicode
from domaeka.cli.places import (
    Exchange,
    Listen,
    Place,
    Unreachable,
    http_exchange,
    http_listen,
    is_local,
    read_token,
    read_url,
)
from domaeka.config import AuthSettings, settings_here
from domaeka.errors import ConfigError
from domaeka.local_socket import SOCKET_NAME
from domaeka.secrets import load_secrets
from domaeka.state import SECRETS_NAME, state_path, trusting_owner
from domaeka.validation import fault_of

#: The beginning of all paths of the API.  Source: docs/operations.md, "Commands".
PREFIX: Final = "/api/v1"
#: Environment variables for a server's address and its token's file, if no option gives them.
URL_VARIABLE: Final = "DOMAEKA_URL"
TOKEN_FILE_VARIABLE: Final = "DOMAEKA_TOKEN_FILE"
#: Most items of one request; the API gives no more.
PAGE: Final = 200
_C = TypeVar("_C", bound=Callable[..., Any])
_T = TypeVar("_T")


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
        connect: Callable[[Place], Exchange] | None = None,
        pause: Callable[[float], object] | None = None,
        listen: Callable[[Place], Listen] | None = None,
    ) -> None:
        """
        @param connect: makes an L{Exchange} with a place.
        @param listen: makes a L{Listen} for a place.
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
        self._place: Place | None = None

    @property
    def server(self) -> str:
        """Where the server is, for people; once a request was sent."""
        return str(self._place)

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
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def page(self, path: str) -> tuple[int, Any]:
        """
        A page outside the API.

        @return: status, 200 or 503, and the answer, decoded.
        @raise Refused: as of L{request}; L{Unreachable} likewise.
        """
        status, answer = self._send("GET", path, None)
        if status >= 300 and status != HTTPStatus.SERVICE_UNAVAILABLE:
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
        status, lines = self._listen(self._find_server())(PREFIX + "/events")
        if status != HTTPStatus.OK:
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
            self._exchange = self._connect(self._find_server())
        return self._exchange(method, target, None if body is None else msgspec.json.encode(body))

    def _find_server(self) -> Place:
        """Where the server is, and its token: options override the environment."""
        self._place = self._find_place()
        return self._place

    def _find_place(self) -> Place:
        usual = os.environ.get(URL_VARIABLE)
        url = self.url or (None if self.config else usual)
        token_file = self.token_file
        # The environment's address and token belong together: the token is not for other servers.
        if token_file is None and self.state_dir is None and url == (usual or url):
            usual_file = os.environ.get(TOKEN_FILE_VARIABLE)
            token_file = Path(usual_file) if usual_file else None
        source = f"--url, or {URL_VARIABLE}"
        if token_file is not None:
            server = url or settings_here(self.config).load().http.local_url
            return Place(read_url(server, source), read_token(token_file))
        if url:
            self._check_own(url, source)
        directory = state_path(self.state_dir, os.environ)
        with trusting_owner(directory):
            settings = settings_here(self.config).load()
            token = self._own_token(directory, settings.auth)
        if url:
            return Place(read_url(url, source), token, own=True)
        if (directory / SOCKET_NAME).is_socket():
            return Place.socket(directory, token)
        return Place(read_url(settings.http.local_url, "http.interface"), token, own=True)

    def _check_own(self, url: str, source: str) -> None:
        """Refuse an address to which the token of a state directory must not be shown."""
        server = read_url(url, source)
        if is_local(server.hostname or ""):
            return
        shown = one_line(url)
        if self.state_dir is None:
            raise click.UsageError(
                f"{shown} is another machine: give its token by --token-file, "
                f"{TOKEN_FILE_VARIABLE} or --state-dir"
            )
        if server.scheme != "https":
            raise click.UsageError(
                f"{shown} is another machine, and plain HTTP shows the state directory's token to "
                "whoever is on the way: give an https address, or a token by --token-file"
            )

    def _own_token(self, directory: Path, auth: AuthSettings) -> str:
        try:
            return load_secrets(directory, auth, seconds()).admin_token
        except ConfigError as error:
            if os.path.exists(directory / SECRETS_NAME):
                raise
            raise ConfigError(
                f"{error}: start the server once, or give --state-dir or --token-file"
            ) from None

    def _refusal(self, status: int, answer: bytes) -> click.ClickException:
        try:
            error = msgspec.json.decode(answer)["error"]
            kind = NotTrusted if status == HTTPStatus.UNAUTHORIZED else Refused
            return kind(status, str(error["code"]), str(error["message"]))
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError, RecursionError):
            return self._no_domaeka(status)

    def _decoded(self, status: int, answer: bytes) -> Any:
        try:
            if status < 300 or status == HTTPStatus.SERVICE_UNAVAILABLE:
                return msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        raise self._no_domaeka(status)

    def _no_domaeka(self, status: int) -> Unreachable:
        return Unreachable(f"{self._place}: no domaeka answers there (HTTP {status})")


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
