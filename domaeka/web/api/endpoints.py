"""Endpoints, declared once with their types: routes and descriptions are made from them."""

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, get_args, get_type_hints

import msgspec
from twisted.internet.defer import Deferred

from domaeka.interfaces import Eventual
from domaeka.policies.cursors import BadCursor
from domaeka.schema import Input
from domaeka.validation import fault_of
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
from domaeka.wire import timestamp_text

#: The beginning of all paths of the API.
PREFIX: Final = "/api/v1"

_T = TypeVar("_T")
_Q = TypeVar("_Q")
_B = TypeVar("_B")
_F = TypeVar("_F", bound=Callable[..., Any])


class Nothing(Input, frozen=True):
    """No parameters."""


class Request(NamedTuple, Generic[_Q, _B]):
    """
    A request to an endpoint.

    @ivar names: the path's value for each C{{name}}.
    @ivar peer: the client's address.
    """

    names: Mapping[str, str]
    query: _Q
    body: _B
    peer: str


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """
    A method and a path of the API.

    @ivar path: behind the L{PREFIX}.
    @ivar serve: returns the answer, at once or as an awaitable.
    @ivar summary: one line for people.
    @ivar subject: the tag under which it is described.
    @ivar answer: the type of the answer; L{None}: it is empty.
    @ivar status: of the answer, as is C{content_type}.
    @ivar query: the type of the parameters.
    @ivar body: the type of the body; L{None}: there is none.
    @ivar refusals: its own refusals: a status, and when it is given.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    serve: Callable[[Request[Any, Any]], object]
    summary: str
    subject: str
    answer: Any = None
    status: int = HTTPStatus.OK
    query: type[Input] = Nothing
    body: type[Input] | None = None
    refusals: Mapping[int, str] = {}
    content_type: str = JSON
    max_body_bytes: int = MAX_BODY_BYTES

    @property
    def refused(self) -> dict[int, str]:
        """All its refusals: a status, and when it is given."""
        found: dict[int, str] = {
            HTTPStatus.BAD_REQUEST: "a field is wrong, missing or not known: the message names it",
            HTTPStatus.UNAUTHORIZED: "the bearer token is missing or wrong",
            HTTPStatus.FORBIDDEN: "the address is banned",
        }
        if self.body is not None:
            found[HTTPStatus.REQUEST_ENTITY_TOO_LARGE] = "the body is too large"
            found[HTTPStatus.UNSUPPORTED_MEDIA_TYPE] = f"the body is not {JSON}"
        return {**found, **self.refusals}

    def route(self) -> Route:
        """The route that serves it."""
        return Route(self.method, PREFIX + self.path, self._serve, True, self.max_body_bytes)

    @cached_property
    def _decode(self) -> Callable[[bytes], Any]:
        assert self.body is not None
        return msgspec.json.Decoder(self.body).decode

    async def _serve(self, call: Call) -> Answer | EventStream:
        try:
            result = self.serve(
                Request(call.names, self._query_of(call), self._body_of(call), call.peer)
            )
            if isinstance(result, Awaitable):
                result = await result
        except BadCursor as error:
            raise bad_request(str(error)) from None
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
            raise _unfit(error) from None

    def _body_of(self, call: Call) -> Any:
        if self.body is None:
            # A body with a condition that is not known must not do the thing without it.
            if call.body.strip() not in (b"", b"{}"):
                raise bad_request("the body: must be empty")
            return None
        given = call.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        is_json = given == JSON or given.endswith("+json")
        # Many tools send this type with any body.
        if not is_json and given != "application/x-www-form-urlencoded":
            raise _no_json(given)
        try:
            return self._decode(call.body)
        except msgspec.ValidationError as error:
            raise _unfit(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if not is_json:
                raise _no_json(given) from None
            raise bad_request("the body is not JSON: not readable") from None


class EndpointGroup:
    """Endpoints of one subject: the methods that are declared with L{endpoint}, in their order."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints."""
        return tuple(
            Endpoint(serve=getattr(self, name), **member.declaration)
            for name, member in vars(type(self)).items()
            if hasattr(member, "declaration")
        )


def endpoint(method: str, path: str, summary: str, **more: Any) -> Callable[[_F], _F]:
    """
    Declare that a method of an L{EndpointGroup} serves an endpoint.

    The types of query, body and answer are those of the method's annotations; the subject is the
    first part of the path.

    @param more: other fields of L{Endpoint}.
    """

    def declare(function: _F) -> _F:
        types = get_type_hints(function)
        query, body = get_args(types["request"])
        answer = types["return"]
        function.__dict__["declaration"] = {
            "method": method,
            "path": path,
            "summary": summary,
            "subject": path.split("/")[1],
            "query": Nothing if query is Any else query,
            "body": None if body is type(None) else body,
            "answer": None if answer is type(None) else answer,
            **more,
        }
        return function

    return declare


async def settled(answer: Eventual[_T]) -> _T:
    """The answer of a L{Directory<domaeka.interfaces.Directory>}, given at once or later."""
    return await answer if isinstance(answer, Deferred) else answer


def bad_request(text: str) -> Refusal:
    """
    The refusal of a request with a mistake.

    @param text: begins with the field.
    """
    return Refusal(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", text)


def not_found(text: str) -> Refusal:
    """The refusal of a path that names something unknown."""
    return Refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", text)


def _no_json(given: str) -> Refusal:
    return Refusal(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "UNSUPPORTED_MEDIA_TYPE",
        f"the body must be {JSON}, not {given:.100}",
    )


def _unfit(error: msgspec.ValidationError) -> Refusal:
    """The refusal of a query or a body, with the field first."""
    place, text = fault_of(error)
    return bad_request(f"{place or 'the body':.200}: {text[:1].lower()}{text[1:200]}")


def time_text(seconds: float | None) -> str | None:
    """C{seconds} since 1970 as the API writes times; L{None} stays."""
    return None if seconds is None else timestamp_text(seconds)
