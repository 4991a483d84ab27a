"""
Endpoints: each is declared once, with its types.  Its route and its description are made from that.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from domaeka.messages import timestamp_text
from domaeka.web.routes import (
    JSON,
    MAX_BODY_BYTES,
    Answer,
    Call,
    EventStream,
    Refusal,
    Route,
    as_json,
)

#: What all paths of the API begin with.
PREFIX: Final = "/api/v1"
#: Most items of a page, and how many there are where nothing is said.  Source: a connection takes
#: some 150 µs, and no turn of the reactor may take 50 ms.
MAX_PAGE: Final = 200
PAGE: Final = 100

_Q = TypeVar("_Q")
_B = TypeVar("_B")

#: A time, as L{timestamp_text} gives it.
Time: TypeAlias = Annotated[
    str,
    Meta(
        description="ISO 8601, UTC, milliseconds",
        extra_json_schema={"format": "date-time"},
        examples=["2026-11-22T12:00:31.408Z"],
    ),
]
#: How many items a page may have.
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="most items of the page")]
#: Where a page begins.
After: TypeAlias = Annotated[
    str,
    Meta(max_length=8192, description="`next` of the page before, with the same other parameters"),
]
#: Where the next page begins.
Next: TypeAlias = Annotated[
    str | None, Meta(description="for `after` of the next page; null: this is the last one")
]
Order: TypeAlias = Literal["asc", "desc"]


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all that is asked has in common: what is not known is refused."""


class Nothing(Input, frozen=True):
    """No parameters."""


class ErrorText(msgspec.Struct):
    """What went wrong: `code` for programs, `message` for people."""

    code: str
    message: str


class Problem(msgspec.Struct):
    """What every answer of 400 and above has."""

    error: ErrorText


class Ask(NamedTuple, Generic[_Q, _B]):
    """
    What is asked of an endpoint.

    @ivar names: what the path has for each C{{name}}.
    @ivar query: of the endpoint's type.
    @ivar body: likewise.
    """

    names: Mapping[str, str]
    query: _Q
    body: _B


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """
    One thing that can be done.

    @ivar path: behind the L{PREFIX}.
    @ivar serve: given an L{Ask}, gives back the answer, at once or as an awaitable.
    @ivar subject: under which title it is described.
    @ivar summary: one line for people.
    @ivar answer: the type of the answer; L{None}: there is nothing to say.
    @ivar status: of the answer.
    @ivar query: the type of the parameters.
    @ivar body: the type of the body; L{None}: there is none.
    @ivar refusals: what it refuses of its own, by status: when.
    @ivar content_type: of the answer.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    serve: Callable[[Ask[Any, Any]], object]
    subject: str
    summary: str
    answer: Any = None
    status: int = HTTPStatus.OK
    query: type[Input] = Nothing
    body: type[Input] | None = None
    refusals: Mapping[int, str] = {}
    content_type: str = JSON
    max_body_bytes: int = MAX_BODY_BYTES

    @property
    def refused(self) -> dict[int, str]:
        """What it refuses, by status: when."""
        found: dict[int, str] = {
            HTTPStatus.BAD_REQUEST: "a field is wrong, missing or not known: the message names it",
            HTTPStatus.UNAUTHORIZED: "the bearer token is missing or wrong",
        }
        if self.body is not None:
            found[HTTPStatus.REQUEST_ENTITY_TOO_LARGE] = "the body is too large"
            found[HTTPStatus.UNSUPPORTED_MEDIA_TYPE] = f"the body is not {JSON}"
        return {**found, **self.refusals}

    def route(self) -> Route:
        """What serves it."""
        return Route(self.method, PREFIX + self.path, self._serve, True, self.max_body_bytes)

    @cached_property
    def _decode(self) -> Callable[[bytes], Any]:
        assert self.body is not None
        return msgspec.json.Decoder(self.body).decode

    async def _serve(self, call: Call) -> Answer | EventStream:
        result = self.serve(Ask(call.names, self._query_of(call), self._body_of(call)))
        if isinstance(result, Awaitable):
            result = await result
        if isinstance(result, Answer | EventStream):
            return result
        if self.answer is None:
            return Answer(status=self.status)
        return as_json(result, self.status)

    def _query_of(self, call: Call) -> Any:
        for name, values in call.query.items():
            if len(values) > 1:
                raise bad_request(f"{name:.100}: may be given once")
        given = {name: value for name, (value,) in call.query.items()}
        try:
            return msgspec.convert(given, self.query, strict=False)
        except msgspec.ValidationError as error:
            raise bad_request(_fault(error)) from None

    def _body_of(self, call: Call) -> Any:
        if self.body is None:
            # A condition that is not known must not become a stop without one.
            if call.body.strip() not in (b"", b"{}"):
                raise bad_request("the body: must be empty")
            return None
        given = call.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        is_json = given == JSON or given.endswith("+json")
        # What many tools say of whatever they send.
        if not is_json and given != "application/x-www-form-urlencoded":
            raise _no_json(given)
        try:
            return self._decode(call.body)
        except msgspec.ValidationError as error:
            raise bad_request(_fault(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if not is_json:
                raise _no_json(given) from None
            text = str(error) if isinstance(error, msgspec.DecodeError) else "not readable"
            raise bad_request(f"the body is not JSON: {text}") from None


def bad_request(text: str) -> Refusal:
    """
    Something in a request is not as it must be.

    @param text: begins with what it is about.
    """
    return Refusal(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", text)


def not_found(text: str) -> Refusal:
    """What the path names is not there."""
    return Refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", text)


def _no_json(given: str) -> Refusal:
    return Refusal(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "UNSUPPORTED_MEDIA_TYPE",
        f"the body must be {JSON}, not {given:.100}",
    )


_PLACE: Final = re.compile(r"^(.*) - at `\$\.?(.*)`$", re.DOTALL)
_FIELD: Final = re.compile(r"^Object (missing required|contains unknown) field `(.*)`$", re.DOTALL)


def _fault(error: msgspec.ValidationError) -> str:
    """What is wrong, the field first."""
    text, place = str(error), ""
    if found := _PLACE.match(text):
        text, place = found.groups()
    if found := _FIELD.match(text):
        kind, field = found.groups()
        place = f"{place}.{field:.100}" if place else f"{field:.100}"
        text = "is missing" if kind == "missing required" else "is not known"
    return f"{place or 'the body'}: {text[:1].lower()}{text[1:200]}"


def time_text(seconds: float | None) -> str | None:
    """C{seconds} since 1970 as the API writes times; L{None} stays."""
    return None if seconds is None else timestamp_text(seconds)
