"""Tests for L{domaeka.web.admin} and L{domaeka.web.api.endpoints}: who may ask, and how."""

import json

from domaeka.schema import MAX_PAGE
from domaeka.web.routes import MAX_BODY_BYTES
from tests.api_case import ApiCase


class AskingTests(ApiCase):
    """What is asked in the wrong way gets the right status, and is told why."""

    def test_every_route_needs_the_token(self) -> None:
        """Without the right token nobody sees anything, not even the description."""
        for endpoint in self.api.endpoints:
            for token in ("", "Bearer", "Bearer wrong", "Basic correct horse"):
                path = endpoint.path.replace("{", "").replace("}", "")
                status, headers, body = self.ask_raw(endpoint.method, path, Authorization=token)
                self.assertEqual((status, headers["WWW-Authenticate"]), (401, "Bearer"))
                self.assertEqual(json.loads(body)["error"]["code"], "UNAUTHORIZED")

    def test_unknown_path(self) -> None:
        """What is not there is 404."""
        for path in ("", "/", "/nothing", "/connections/", "/connections/a/b/c", "/Bans"):
            self.assertEqual(self.refusal("GET", path)[:2], (404, "NOT_FOUND"))

    def test_wrong_method(self) -> None:
        """What cannot be done with something says what can."""
        status, headers, body = self.ask_raw("PUT", "/bans")
        self.assertEqual(status, 405)
        self.assertEqual(headers["Allow"], "DELETE, GET, HEAD, OPTIONS, POST")
        self.assertEqual(json.loads(body)["error"]["code"], "METHOD_NOT_ALLOWED")

    def test_wrong_query(self) -> None:
        """What is wrong in a query is named, and so is what is not known."""
        for query, told in (
            ({"limit": 0}, "limit: expected `int` >= 1"),
            ({"limit": MAX_PAGE + 1}, f"limit: expected `int` <= {MAX_PAGE}"),
            ({"limit": "many"}, "limit: expected `int`, got `str`"),
            ({"colour": "red"}, "colour: is not known"),
            ({"after": "x"}, "after: is not a `next` of this order"),
            ({"after": "방"}, "after: is not a `next` of this order"),
        ):
            self.assertEqual(
                self.refusal("GET", "/connections", **query), (400, "BAD_REQUEST", told)
            )

    def test_wrong_parameter_value(self) -> None:
        """It is named, and quoted."""
        status, code, told = self.refusal("GET", "/connections", sort="moon")
        self.assertEqual((status, code), (400, "BAD_REQUEST"))
        self.assertRegex(told, r"\Asort: .*\bmoon\b")

    def test_repeated_parameter(self) -> None:
        """What is asked for twice is refused: neither of the two is what was meant."""
        status, _, body = self.ask_raw("GET", "/connections?grade=poor&grade=good")
        self.assertEqual(status, 400)
        self.assertEqual(json.loads(body)["error"]["message"], "grade: may be given once")

    def test_query_that_is_no_utf8(self) -> None:
        """Bytes that are no text are refused."""
        self.assertEqual(self.ask_raw("GET", "/bans?limit=%ff")[0], 400)

    def test_wrong_body(self) -> None:
        """What is wrong in a body is named."""
        for body, told in (
            (b"", "the body is not JSON: "),
            (b"\xff", "the body is not JSON: "),
            (b"{", "the body is not JSON: "),
            (b"[" * 60_000, "the body: "),
            (b'{"a":' + b"[" * 60_000, "a: is not known"),
            (b"[]", "the body: "),
            (b"{}", "network: is missing"),
            (b'{"network":1}', "network: "),
            (b'{"network":"\xff"}', "the body is not JSON: not readable"),
            (b'{"network":"10.0.0.1","why":1}', "why: is not known"),
        ):
            status, _, answer = self.ask_raw("POST", "/bans", body)
            error = json.loads(answer)["error"]
            self.assertEqual((status, error["code"]), (400, "BAD_REQUEST"))
            self.assertTrue(error["message"].startswith(told), error["message"])

    def test_body_that_is_not_looked_at(self) -> None:
        """Where nothing can be said, nothing is done if something is."""
        error = self.refusal("POST", "/drain", {"when_idle": True})
        self.assertEqual(error, (400, "BAD_REQUEST", "the body: must be empty"))
        self.assertEqual(self.operations.reasons, [])
        self.assertEqual(self.ask("POST", "/drain", {})[0], 202)

    def test_content_types(self) -> None:
        """A body must be JSON; what tools say of whatever they send is believed if it is."""
        body = b'{"network":"10.0.0.1"}'
        for given in ("application/json; charset=utf-8", "application/problem+json"):
            self.assertEqual(self.ask_raw("POST", "/bans", body, Content_Type=given)[0], 201)
        form = "application/x-www-form-urlencoded"
        self.assertEqual(self.ask_raw("POST", "/bans", body, Content_Type=form)[0], 201)
        for given, sent in (("text/plain", body), ("multipart/form-data", body), (form, b"a=b")):
            self.assertEqual(self.ask_raw("POST", "/bans", sent, Content_Type=given)[0], 415)

    def test_body_too_large(self) -> None:
        """More than the bound is refused before it is there; messages may be larger."""
        large = b'{"network":"' + b"1" * MAX_BODY_BYTES + b'"}'
        self.assertEqual(self.ask_raw("POST", "/bans", large)[0], 413)
        self.assertEqual(self.ask_raw("POST", "/messages", large)[0], 400)
        self.assertEqual(self.ask_raw("POST", "/messages", large, Authorization="")[0], 413)

    def test_head(self) -> None:
        """Whoever asks for the headers of a page only gets those."""
        status, headers, body = self.ask_raw("HEAD", "/connections")
        self.assertEqual((status, body), (200, b""))
        self.assertEqual(headers["Content-Type"], "application/json")
