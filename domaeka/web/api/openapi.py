"""The description of the API, OpenAPI 3.1, made from its endpoints and their types."""

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from domaeka import __version__
from domaeka.schema import Problem
from domaeka.web.api.endpoints import PREFIX, Endpoint
from domaeka.web.routes import EVENTS, JSON

_REF: Final = "#/components/schemas/{name}"
#: The description of each name in a path.
_NAMES: Final = {
    "bot": "the bot's name on the phone",
    "device": "the device's id",
    "room": "the room's channel id, or its name where that is not known",
    "id": "as it was given when it was accepted",
}

_INTRODUCTION: Final = """\
Names in a path are percent-encoded UTF-8, slashes included. Ids are texts. Times are ISO 8601 in \
UTC, durations are numbers of seconds. What is not known in a query or a body is refused. Errors \
are `{"error":{"code":…,"message":…}}`.

`/health`, `/health/live` and `/health/ready` stand outside of this description and need no \
token. `/health` is 503 where phones cannot connect; a check that fails shows in its `checks` and \
leaves it at 200. `/health/ready` is 503 likewise, and for checks of which the operator's guide \
says so.
"""


def describe(endpoints: Iterable[Endpoint], events: dict[str, type[msgspec.Struct]]) -> bytes:
    """
    The document, in JSON.

    @param events: the type of each event's data.
    """
    listed = list(endpoints)
    types = _types(listed, events)
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in listed:
        operations = paths.setdefault(PREFIX + endpoint.path, {})
        operations[endpoint.method.lower()] = _operation(endpoint, schema_of, components, events)
    for endpoint in listed:
        components.pop(endpoint.query.__name__, None)  # its fields stand as parameters
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "domaeka",
                "version": __version__,
                "summary": "What an operator sees of a gateway for chat-bot phones, and does",
                "description": _INTRODUCTION,
            },
            "servers": [{"url": "/"}],
            "security": [{"token": []}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "`admin_token` of `secrets.toml` in the state directory",
                    }
                },
            },
        }
    )


def _types(endpoints: Iterable[Endpoint], events: dict[str, type[msgspec.Struct]]) -> list[Any]:
    """Every type of the document, once."""
    found: dict[Any, None] = {Problem: None}
    for endpoint in endpoints:
        found[endpoint.query] = None
        for kind in (endpoint.body, endpoint.answer):
            if kind is not None:
                found[kind] = None
    found.update(dict.fromkeys(events.values()))
    return list(found)


def _operation(
    endpoint: Endpoint,
    schema_of: dict[Any, dict[str, Any]],
    components: dict[str, Any],
    events: dict[str, type[msgspec.Struct]],
) -> dict[str, Any]:
    problem = {JSON: {"schema": schema_of[Problem]}}
    answer: dict[str, Any] = {"description": endpoint.summary}
    if endpoint.answer is not None:
        answer["content"] = {endpoint.content_type: {"schema": schema_of[endpoint.answer]}}
    if endpoint.content_type == EVENTS:
        answer["description"] += ". Each has a name and JSON data: " + ", ".join(
            f"`{name}` ({kind.__name__})" for name, kind in events.items()
        )
    responses: dict[str, Any] = {str(int(endpoint.status)): answer}
    for status, when in sorted(endpoint.refused.items()):
        responses[str(int(status))] = {"description": when, "content": problem}
    responses["default"] = {"description": "another error", "content": problem}
    operation: dict[str, Any] = {
        "operationId": _operation_id(endpoint),
        "summary": endpoint.summary,
        "tags": [endpoint.subject],
        "parameters": [
            *(
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": _NAMES[name],
                    "schema": {"type": "string", "minLength": 1},
                }
                for name in re.findall(r"{(\w+)}", endpoint.path)
            ),
            *_query_parameters(components[endpoint.query.__name__]),
        ],
        "responses": responses,
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": schema_of[endpoint.body]}},
        }
    return operation


def _query_parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema["required"],
            "schema": _without_null(field),
        }
        for name, field in schema["properties"].items()
    ]


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field in a query, which has no null."""
    kinds: list[dict[str, Any]] = [
        kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}
    ]
    return kinds[0] if len(kinds) == 1 else field


def _operation_id(endpoint: Endpoint) -> str:
    words = re.findall(r"\w+", endpoint.path.replace("/{bot}/", "/one/").replace("{id}", "one"))
    return "_".join((endpoint.method.lower(), *words))
