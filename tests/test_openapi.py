"""Tests for L{domaeka.web.api.openapi}: the description, and the API as it is."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
from openapi_spec_validator import OpenAPIV31SpecValidator

from domaeka.schema import EVENT_TYPES
from domaeka.web.api.endpoints import PREFIX
from tests.api_case import ROOM_ID, TOKEN, ApiCase
from tests.gateway_case import KEY

#: What is said where the path has a name.
NAMES = {"bot": "%EB%B4%87", "device": KEY.device_id, "room": ROOM_ID, "id": "unknown"}
#: Who holds a role.
ROLE = {"role": "총무", "channel_id": ROOM_ID, "user_hash": "1a2b"}
#: A body that is right, for each path that takes one.
BODIES = {
    "/devices/{bot}/{device}": {"status": "approved"},
    "/rooms/{bot}/{room}": {"status": "approved"},
    "/messages": {"bot": KEY.bot_name, "room": "방", "text": "one"},
    "/bans": {"network": "192.0.2.1"},
    "/roles": ROLE,
    "/migration": {"host": "new.example.org", "port": 9000},
}
#: Parameters that must be given.
QUERIES = {("DELETE", "/bans"): {"network": "192.0.2.1"}, ("DELETE", "/roles"): ROLE}


class OpenApiTests(ApiCase):
    """The description is valid, whole and true."""

    def operations_of(self) -> list[tuple[str, str, Any]]:
        """Each method and path that is described, and what is said of it."""
        return [
            (method.upper(), path.removeprefix(PREFIX), operation)
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
        ]

    def test_valid(self) -> None:
        """It is OpenAPI 3.1."""
        OpenAPIV31SpecValidator(self.document).validate()

    def test_whole(self) -> None:
        """Every route is described, and nothing else is."""
        described = {(method, PREFIX + path) for method, path, _ in self.operations_of()}
        served = {(route.method, route.path) for route in self.api.routes()}
        self.assertEqual(described, served)
        self.assertTrue(all(route.token for route in self.api.routes()))
        self.assertEqual(len({one["operationId"] for *_, one in self.operations_of()}), len(served))

    def test_everything_is_used(self) -> None:
        """No type is described that nothing speaks of."""
        text = json.dumps(self.document)
        events = {kind.__name__ for kind in EVENT_TYPES.values()}
        for name in self.document["components"]["schemas"]:
            used = f'"#/components/schemas/{name}"' in text
            self.assertTrue(used or name in events, name)

    def test_true(self) -> None:
        """Each operation, asked for as is described, answers as is described."""
        self.heard(KEY)
        self.ask("POST", "/migration", BODIES["/migration"])
        # What others ask for must not be gone by then.
        for method, template, operation in sorted(
            self.operations_of(), key=lambda one: one[0] == "DELETE"
        ):
            if template == "/events":
                continue
            path = re.sub(r"{(\w+)}", lambda found: NAMES[found[1]], template)
            body = BODIES[template] if "requestBody" in operation else None
            query = QUERIES.get((method, template), {})
            needed = {one["name"] for one in operation["parameters"] if one["required"]}
            self.assertEqual(needed - NAMES.keys(), query.keys())
            status, _ = self.ask(method, path, body, **query)
            unknown = template == "/messages/{id}"
            self.assertEqual(unknown, status >= 400, f"{method} {template}: {status}")

    def test_parameters(self) -> None:
        """Every parameter that is described is taken."""
        for method, template, operation in self.operations_of():
            for one in operation["parameters"]:
                if one["in"] != "query" or one["name"] == "after":
                    continue
                schema = one["schema"]
                if "$ref" in schema:
                    name = schema["$ref"].rpartition("/")[2]
                    schema = self.document["components"]["schemas"][name]
                value = schema.get("enum", [schema.get("default") or "x"])[0]
                status, answer = self.ask(method, template, **{one["name"]: value})
                known = status < 400 or "is not known" not in answer["error"]["message"]
                self.assertTrue(known, one)

    def test_secret(self) -> None:
        """The token is not in it."""
        self.assertNotIn(TOKEN, json.dumps(self.document))


class DocumentTests(ApiCase):
    """docs/api.md names what there is, and nothing else."""

    def setUp(self) -> None:
        super().setUp()
        self.text = (Path(__file__).parents[1] / "docs/api.md").read_text("utf-8")

    def test_operations(self) -> None:
        """Its table has a row for each operation."""
        rows = set(re.findall(r"^\| ([A-Z]+) \| `(/[^`]+)` \|", self.text, re.M))
        self.assertEqual(rows, {(one.method, one.path) for one in self.api.endpoints})

    def test_events(self) -> None:
        """Its table has each event, with the type of its data."""
        rows = re.findall(r"^\| (`[^|]+) \| `([A-Z]\w+)` \|", self.text, re.M)
        named = {(name, kind) for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
        self.assertEqual(named, {(name, kind.__name__) for name, kind in EVENT_TYPES.items()})

    def test_bodies(self) -> None:
        """The bodies of its examples are right."""
        types = {
            "$API" + one.path: one.body
            for one in self.api.endpoints
            if one.body is not None and "{" not in one.path
        }
        found = re.findall(r"(\$API\S+) --json '([^']+)'", self.text)
        self.assertGreater(len(found), 4)
        for target, body in found:
            if target in types:
                msgspec.json.decode(body, type=types[target])
