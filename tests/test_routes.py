"""Tests for L{domaeka.web.routes}."""

from typing import NoReturn
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.web.routes import (
    Answer,
    Call,
    Refusal,
    Route,
    RouteTable,
    as_answer,
    bearer_holds,
    is_this_machine,
)


def nothing(call: Call) -> NoReturn:
    """A route that is only looked for."""
    raise NotImplementedError


class RouteTableTests(SynchronousTestCase):
    """Tests for L{RouteTable}."""

    def setUp(self) -> None:
        self.table = RouteTable(
            (
                Route("GET", "/", nothing),
                Route("GET", "/bans", nothing),
                Route("DELETE", "/bans", nothing),
                Route("GET", "/devices/{bot}/{device}", nothing),
                Route("GET", "/devices/{bot}/all", nothing),
                Route("GET", "/devices/me/all", nothing),
            )
        )

    def find(self, target: bytes) -> tuple[str, dict[str, str]]:
        """Path of the GET route, and the names."""
        place = self.table.find(target)
        assert place is not None
        route = place.route("GET")
        assert route is not None
        return route.path, dict(place.names)

    def test_paths(self) -> None:
        """A path is found with its query or without, with its host or without."""
        for target in (b"/bans", b"/bans?a=/b", b"http://h:8080/bans", b"HTTPS://h/bans?x"):
            self.assertEqual(self.find(target), ("/bans", {}))
        for target in (b"/", b"/?a", b"http://h", b"http://h/"):
            self.assertEqual(self.find(target), ("/", {}))

    def test_unknown_paths(self) -> None:
        """What is not there leads nowhere."""
        for target in (b"/bans/", b"//bans", b"/devices//x", b"/devices/x", b"*", b"", b"/%ff"):
            self.assertIsNone(self.table.find(target), target)

    def test_plain_paths_go_first(self) -> None:
        """A name takes what no plain path takes; of two with names the first one."""
        self.assertEqual(self.find(b"/devices/me/all")[0], "/devices/me/all")
        self.assertEqual(self.find(b"/devices/you/all")[0], "/devices/{bot}/{device}")

    @given(st.text(st.characters(codec="utf-8"), min_size=1))
    def test_any_name(self, name: str) -> None:
        """A bot may be called anything, slashes and braces included."""
        target = f"/devices/{quote(name, safe='')}/d".encode()
        self.assertEqual(self.find(target)[1], {"bot": name, "device": "d"})

    def test_methods(self) -> None:
        """HEAD goes where GET does; what may be done is listed."""
        place = self.table.find(b"/bans")
        assert place is not None
        self.assertIs(place.route("HEAD"), place.route("GET"))
        self.assertIsNone(place.route("POST"))
        self.assertEqual(place.allowed, "DELETE, GET, HEAD, OPTIONS")

    def test_same_route_twice(self) -> None:
        """Two functions for one method and path are a mistake."""
        with self.assertRaises(ValueError):
            RouteTable([Route("GET", "/a", nothing), Route("GET", "/a", nothing)])


class AnswerTests(SynchronousTestCase):
    """Tests for what routes give back."""

    def test_values(self) -> None:
        """Nothing is 204, a value is JSON."""
        nothing, value = as_answer(None), as_answer({"방": 1})
        assert isinstance(nothing, Answer) and isinstance(value, Answer)
        self.assertEqual((nothing.status, value.body), (204, '{"방":1}'.encode()))

    def test_refusal(self) -> None:
        """Errors have the form that the API promises."""
        answer = Refusal(409, "NO_PHONE", "no phone").answer()
        self.assertEqual(answer.status, 409)
        self.assertEqual(answer.body, b'{"error":{"code":"NO_PHONE","message":"no phone"}}')


class BearerTests(SynchronousTestCase):
    """Tests for L{bearer_holds}."""

    def test_right_token(self) -> None:
        """The scheme's case does not matter."""
        self.assertTrue(bearer_holds(b"Bearer secret", b"secret"))
        self.assertTrue(bearer_holds(b"bearer  secret ", b"secret"))

    def test_anything_else(self) -> None:
        """Other tokens, schemes and bytes do not hold; without a token nothing does."""
        for header in (
            None,
            b"",
            b"secret",
            b"Basic secret",
            b"Bearer",
            b"Bearer x",
            b"Bearer \xff",
        ):
            self.assertFalse(bearer_holds(header, b"secret"), header)
        self.assertFalse(bearer_holds(b"Bearer ", b""))
        self.assertFalse(bearer_holds(None, b""))


class MachineTests(SynchronousTestCase):
    """Tests for L{is_this_machine}."""

    def test_addresses(self) -> None:
        """However a loopback address is written, it is one; nothing else is."""
        for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::1%lo"):
            self.assertTrue(is_this_machine(host), host)
        for host in ("", "-", "192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "::", "0.0.0.0"):
            self.assertFalse(is_this_machine(host), host)
