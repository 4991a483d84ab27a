"""
How an operator's command reaches a server: which one, with which token, and what is asked.
"""

import http.client
import ipaddress
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import click
import msgspec
from twisted.python.runtime import seconds

from domaeka.cli.text import REFUSED, UNREACHABLE, escaped_json, one_line
from domaeka.config import load_settings
from domaeka.errors import ConfigError
from domaeka.state import SECRETS_NAME, load_secrets, state_path

#: What all paths of the API begin with.  Source: docs/operations.md, "Commands".
PREFIX: Final = "/api/v1"
#: Longest time to connect, and for an answer, in seconds.  The server gives itself 30 s.
CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 40.0
#: Largest answer that is read, in bytes: a page has some 200 KB.
MAX_ANSWER_BYTES: Final = 67_108_864
#: Most items that are asked for at a time; the API gives no more.
PAGE: Final = 200
#: Longest file with a token, in bytes.
_MAX_TOKEN_BYTES: Final = 4096

#: Sends a request: method, target, and a body in JSON or L{None}.  Gives back status and body.
Exchange: TypeAlias = Callable[[str, str, bytes | None], tuple[int, bytes]]

_C = TypeVar("_C", bound=Callable[..., Any])
_T = TypeVar("_T")


class Unreachable(click.ClickException):
    """Nobody answers, or not as a server of this kind does."""

    exit_code = UNREACHABLE


class Refused(click.ClickException):
    """
    The server says no.

    @ivar status: the HTTP status.
    """

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(one_line(f"{text} ({code})"))
        self.status = status


class NotTrusted(Refused):
    """The server does not take the token."""

    exit_code = REFUSED

    def __init__(self, status: int, code: str, text: str) -> None:
        hint = "is it that of this server? --state-dir or --token-file names another"
        super().__init__(status, code, f"{text}: {hint}")


class Desk:
    """
    Where an operator sits: what the options of a command say, and what it asks through.

    @ivar connect: gives back what reaches a place, with a token.
    @ivar pause: waits so many seconds.
    """

    def __init__(
        self,
        connect: "Callable[[SplitResult, str], Exchange] | None" = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.as_json = False
        self.url: str | None = None
        self.token_file: Path | None = None
        self.state_dir: str | None = None
        self.config: Path | None = None
        self.connect = connect or http_exchange
        self.pause: Callable[[float], object] = pause or threading.Event().wait
        self._exchange: Exchange | None = None
        self.place = ""

    def ask(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """
        Have something done.

        @param path: behind the prefix, names escaped.
        @param query: what is L{None} is left out.
        @return: what the answer says.
        @raise Refused: the server says no.
        @raise Unreachable: nobody does.
        """
        given = {name: value for name, value in query.items() if value is not None}
        target = PREFIX + path + (f"?{urlencode(given)}" if given else "")
        status, answer = self._send(method, target, body)
        if status >= 300:
            raise self._refusal(status, answer)
        return self._said(status, answer) if answer else None

    def find(self, path: str) -> Any:
        """What is at a path; L{None} where nothing is."""
        try:
            return self.ask("GET", path)
        except Refused as error:
            if error.status == http.HTTPStatus.NOT_FOUND:
                return None
            raise

    def page(self, path: str) -> tuple[int, Any]:
        """
        A page outside the API.

        @param path: the whole of it.
        @return: status, 200 or 503, and what it says.
        @raise Refused: the server says no.
        @raise Unreachable: nobody does.
        """
        status, answer = self._send("GET", path, None)
        if status >= 300 and status != http.HTTPStatus.SERVICE_UNAVAILABLE:
            raise self._refusal(status, answer)
        return status, self._said(status, answer)

    def items(self, path: str, limit: int, **query: object) -> Any:
        """
        A list, from as many pages as it takes.

        @param limit: most items.
        @return: what the last page says, with the items of all.
        """
        name = path.split("/")[1]
        found: list[Any] = []
        after: str | None = None
        while True:
            wanted = min(PAGE, limit - len(found))
            page = self.ask("GET", path, None, limit=wanted, after=after, **query)
            try:
                found += page[name]
                after = page["next"]
            except (TypeError, KeyError):
                raise _not_understood("no page") from None
            if after is None or len(found) >= limit:
                return page | {name: found}

    def show_json(self, value: object) -> None:
        """Write C{value}, in a line."""
        unicode = sys.stdout.encoding.lower().startswith("utf")
        click.echo(escaped_json(msgspec.json.encode(value).decode(), ascii_only=not unicode))

    def _send(self, method: str, target: str, body: object) -> tuple[int, bytes]:
        if self._exchange is None:
            self._exchange = self._reach()
        return self._exchange(method, target, None if body is None else msgspec.json.encode(body))

    def _reach(self) -> Exchange:
        settings = load_settings(self.config)
        url = self.url
        if url is None:
            host = settings.http.interface
            host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
            host = f"[{host}]" if ":" in host else host
            url = f"http://{host}:{settings.http.port}"
        place = read_url(url)
        self.place = url.rstrip("/")
        if self.token_file is not None:
            return self.connect(place, read_token(self.token_file))
        if self.url is not None and self.state_dir is None and not is_local(place.hostname or ""):
            raise click.UsageError(
                "--url names another machine: give its token by --token-file (or --state-dir)"
            )
        directory = state_path(self.state_dir, os.environ)
        try:
            token = load_secrets(directory, settings.auth, seconds()).admin_token
        except ConfigError as error:
            if os.path.exists(directory / SECRETS_NAME):
                raise
            raise ConfigError(
                f"{error}: start the server once, or give --state-dir or --token-file"
            ) from None
        return self.connect(place, token)

    def _refusal(self, status: int, answer: bytes) -> click.ClickException:
        try:
            error = msgspec.json.decode(answer)["error"]
            kind = NotTrusted if status == http.HTTPStatus.UNAUTHORIZED else Refused
            return kind(status, str(error["code"]), str(error["message"]))
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError, RecursionError):
            return self._stranger(status)

    def _said(self, status: int, answer: bytes) -> Any:
        try:
            if status < 300 or status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                return msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        raise self._stranger(status)

    def _stranger(self, status: int) -> Unreachable:
        return Unreachable(f"{one_line(self.place)}: no domaeka answers there (HTTP {status})")


def http_exchange(place: SplitResult, token: str) -> Exchange:
    """What reaches a server, with a connection for each request."""
    secure = place.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    where = one_line(f"{place.scheme}://{place.netloc}")

    def send(method: str, target: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection = kind(place.hostname or "", place.port, timeout=CONNECT_SECONDS)
            try:
                connection.connect()
                connection.sock.settimeout(ANSWER_SECONDS)
                connection.request(method, place.path.rstrip("/") + target, body, headers)
                response = connection.getresponse()
                answer = response.read(MAX_ANSWER_BYTES + 1)
                if response.length and len(answer) <= MAX_ANSWER_BYTES:
                    raise http.client.IncompleteRead(answer, response.length)
            finally:
                connection.close()
        except OSError as error:
            why = one_line(error.strerror or str(error) or type(error).__name__)
            hint = ": does the server run?" if isinstance(error, ConnectionRefusedError) else ""
            raise Unreachable(f"cannot reach {where}: {why}{hint}") from None
        except (http.client.HTTPException, ValueError):
            # A name that no host can have is a UnicodeError, which is a ValueError.
            raise Unreachable(f"cannot reach {where}: what answers does not speak HTTP") from None
        if len(answer) > MAX_ANSWER_BYTES:
            raise Unreachable(f"{where}: an answer of more than {MAX_ANSWER_BYTES} bytes")
        return response.status, answer

    return send


def read_url(text: str) -> SplitResult:
    """
    Where a server is.

    @raise click.UsageError: C{text} does not say.
    """
    try:
        place = urlsplit(text)
        good = place.scheme in ("http", "https") and place.hostname and place.port != 0
        plain = text.isascii() and text.isprintable() and " " not in text
        if good and plain and not (place.query or place.fragment or place.username):
            return place
    except ValueError:  # what stands for the port, or in brackets
        pass
    raise click.UsageError(
        f"--url: {one_line(text)!r:.100} is not like http://127.0.0.1:8080 or https://example.org"
    )


def is_local(host: str) -> bool:
    """Whether this machine is meant."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """
    The token that stands in a file, alone.

    @raise ConfigError: it cannot be read, or something else stands there.
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
    What an answer says, as a type.

    @raise click.ClickException: it says something else.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _not_understood(str(error)) from None


def _not_understood(why: str) -> click.ClickException:
    return click.ClickException(
        f"the answer is not understood: {one_line(why)}: is the server of another version?"
    )


def path_of(*names: str) -> str:
    """A path of these names, escaped."""
    return "".join("/" + quote(name, safe="") for name in names)


def name(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """What click is to call with a name, or several: what is not UTF-8 is a wrong use."""
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
    desk = ctx.ensure_object(Desk)
    if value:
        setattr(desk, param.name or "", value)


#: What every command of an operator takes.
_OPTIONS: Final = (
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=False,
        callback=_chosen,
        help="What the API says, a JSON object in a line.",
    ),
    click.option(
        "--url",
        metavar="URL",
        expose_value=False,
        callback=_chosen,
        help="Where the server's HTTP port is; by default on this machine, as the settings say.",
    ),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_chosen,
        help="A file with the admin token alone.",
    ),
    click.option(
        "--state-dir",
        metavar="DIR",
        expose_value=False,
        callback=_chosen,
        help="The server's state directory: its token, where no --token-file is given.",
    ),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_chosen,
        help="The server's settings: its HTTP port.",
    ),
)


def operators(command: _C) -> _C:
    """Give a command the options that all have, and the L{Desk} as its first argument."""
    result: Any = click.make_pass_decorator(Desk, ensure=True)(command)
    for option in reversed(_OPTIONS):
        result = option(result)
    return result  # type: ignore[no-any-return]
