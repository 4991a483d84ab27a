"""Tests for L{domaeka.web.api.connections}."""

from typing import Any, get_args

from domaeka.interfaces import DeviceKey
from domaeka.policies.cursors import cursor
from domaeka.schema import ConnectionOrder
from tests.api_case import ApiCase, path_of
from tests.gateway_case import KEY


class OpenConnectionsTests(ApiCase):
    """Who is connected."""

    def connect_some(self, count: int) -> None:
        """Phones of two bots."""
        for number in range(count):
            self.ready(DeviceKey(f"봇{number % 2}", f"d{number}"))

    def page(self, **query: object) -> Any:
        """The devices of a page of connections."""
        return [found["device"] for found in self.get("/connections", **query)["connections"]]

    def test_one(self) -> None:
        """A connection is described: who, since when, how good, how much."""
        self.ready()
        self.run_for(0.5)
        found = self.get("/connections" + path_of(*KEY))
        self.assertEqual((found["bot"], found["device"]), KEY)
        self.assertEqual((found["state"], found["approval"]), ("ready", "approved"))
        self.assertEqual(found["since"], "2026-09-21T14:13:20.010Z")
        self.assertEqual(found["age_seconds"], 0.5)
        quality = found["quality"]
        self.assertEqual((quality["score"], quality["grade"]), (100, "good"))
        self.assertEqual(quality["rtt"]["samples"], 1)
        self.assertGreater(found["bytes"]["received"], 100)
        self.assertEqual(found["queue"], {"messages": 0, "bytes": 0, "unanswered": 0})

    def test_monitoring(self) -> None:
        """What a phone says of itself is shown with its age."""
        self.ready()
        self.run_for(0.75)
        shown = self.get("/connections" + path_of(*KEY))["monitoring"]
        self.assertEqual(shown["age_seconds"], 0.75)
        self.assertIsInstance(shown["total_memory"], float)

    def test_silence(self) -> None:
        """Nobody has been silent for longer than connected, whenever between two sweeps it came."""
        self.run_for(0.7)  # since the last sweep
        self.ready()
        self.run_for(0.1)
        found = self.get("/connections" + path_of(*KEY))
        self.assertGreater(found["age_seconds"], 0.0)
        self.assertLessEqual(found["silent_seconds"], found["age_seconds"])
        self.run_for(5.0)
        found = self.get("/connections" + path_of(*KEY))
        self.assertGreater(found["silent_seconds"], 4.0)

    def test_strangers(self) -> None:
        """Who has said no name is not shown; who has proven none is shown as such."""
        self.connect()
        self.greeted(DeviceKey("봇", "other"))
        (found,) = self.get("/connections")["connections"]
        self.assertEqual((found["device"], found["state"]), ("other", "greeted"))
        self.assertIsNone(found["approval"])

    def test_the_proven_one_counts(self) -> None:
        """A stranger who says a device's name does not hide it."""
        self.ready()
        number = str(self.conversation().peer.number)
        self.greeted()
        self.assertEqual(self.get("/connections" + path_of(*KEY))["id"], number)

    def test_not_connected(self) -> None:
        """A device that is not there is 404, whatever its name."""
        for names in (KEY, ("a/b", "c%d"), ("봇", "\0"), ("x" * 5000, "y")):
            path = "/connections" + path_of(*names)
            self.assertEqual(self.refusal("GET", path)[:2], (404, "NOT_FOUND"))

    def test_slash_in_a_name(self) -> None:
        """A bot may be called anything."""
        key = DeviceKey("방/카페 100%", "d?#&")
        self.ready(key)
        self.assertEqual(self.get("/connections" + path_of(*key))["bot"], key.bot_name)

    def test_pages(self) -> None:
        """Pages follow each other, in every order, without gaps or repeats."""
        self.connect_some(7)
        for sort in get_args(ConnectionOrder):
            for order in ("asc", "desc"):
                whole = self.page(sort=sort, order=order)
                self.assertEqual(sorted(whole), [f"d{number}" for number in range(7)])
                found: list[str] = []
                after: dict[str, str] = {}
                while True:
                    query = {"sort": sort, "order": order, "limit": 3, **after}
                    page = self.get("/connections", **query)
                    self.assertEqual(page["total"], 7)
                    found += (shown["device"] for shown in page["connections"])
                    if page["next"] is None:
                        break
                    after = {"after": page["next"]}
                self.assertEqual(found, whole, (sort, order))

    def test_order(self) -> None:
        """The order is the one that was asked for."""
        self.connect_some(3)
        self.assertEqual(self.page(sort="since"), ["d0", "d1", "d2"])
        self.assertEqual(self.page(sort="since", order="desc"), ["d2", "d1", "d0"])
        self.assertEqual(self.page(), ["d0", "d2", "d1"])

    def test_filters(self) -> None:
        """By bot, address and grade."""
        self.connect_some(3)
        self.assertEqual(self.page(bot="봇1"), ["d1"])
        self.assertEqual(len(self.page(address=self.conversation().peer.address)), 3)
        self.assertEqual(self.page(address="192.0.2.99"), [])
        self.assertEqual(len(self.page(grade="good")), 3)
        self.assertEqual(self.page(grade="failing"), [])

    def test_foreign_cursor(self) -> None:
        """What was not given by this order is refused."""
        self.connect_some(3)
        after = self.get("/connections", limit=1)["next"]
        self.assertEqual(self.refusal("GET", "/connections", after=after, sort="device")[0], 400)
        wrong: tuple[object, ...] = (["bot", False, 1, 1], ["score", False, "x", 1], [], None)
        for made in wrong:
            self.assertEqual(self.refusal("GET", "/connections", after=cursor(made))[0], 400)


class ClosedConnectionsTests(ApiCase):
    """How the last connections went."""

    def end_some(self, count: int) -> None:
        for number in range(count):
            self.ready(DeviceKey(f"봇{number % 2}", f"d{number}")).drop()

    def test_ended(self) -> None:
        """A connection that has ended is remembered, with its reason and figures."""
        peer = self.ready()
        self.run_for(60.0)
        peer.drop()
        (found,) = self.get("/connections/closed")["connections"]
        self.assertEqual((found["bot"], found["device"]), KEY)
        self.assertEqual(found["reason"], "connection lost")
        self.assertEqual(found["since"], "2026-09-21T14:13:20.010Z")
        self.assertEqual(found["ended"], "2026-09-21T14:14:20.010Z")
        self.assertGreater(found["bytes"]["received"], 100)

    def test_strangers(self) -> None:
        """Who proved nothing is only counted, and counts for no phone whose name it said."""
        self.ready()
        for _ in range(3):
            self.connect().drop()
            self.greeted().drop()
        self.assertEqual(self.get("/connections/closed")["connections"], [])
        (found,) = self.get("/connections")["connections"]
        self.assertEqual(found["ended_last_hour"], 0)
        self.assertEqual(self.reasons, {"connection lost": 6})

    def test_unknown(self) -> None:
        """Of a phone that has answered no ping yet it is not said that its line is good."""
        self.client("ack")
        (found,) = self.get("/connections")["connections"]
        quality = found["quality"]
        self.assertEqual((quality["score"], quality["grade"]), (None, None))
        self.assertEqual(self.get("/connections?grade=good")["total"], 0)

    def test_pages_and_filters(self) -> None:
        """The last one first, page by page; what ends meanwhile moves nothing."""
        self.end_some(5)
        page = self.get("/connections/closed", limit=3)
        self.end_some(1)
        rest = self.get("/connections/closed", limit=3, after=page["next"])
        devices = [found["device"] for found in page["connections"] + rest["connections"]]
        self.assertEqual(devices, ["d4", "d3", "d2", "d1", "d0"])
        self.assertIsNone(rest["next"])
        for query, count in (
            ({"bot": "봇1"}, 2),
            ({"device": "d0"}, 2),
            ({"reason": "connection lost"}, 6),
            ({"reason": "banned"}, 0),
            ({"address": "192.0.2.99"}, 0),
        ):
            found = self.get("/connections/closed", **query)["connections"]
            self.assertEqual(len(found), count, query)

    def test_reconnects(self) -> None:
        """An open connection says how many of its device have ended within the hour."""
        for _ in range(3):
            self.ready().drop()
        self.ready()
        (found,) = self.get("/connections")["connections"]
        self.assertEqual(found["ended_last_hour"], 3)
        self.assertEqual(self.get(path_of("connections", *KEY))["ended_last_hour"], 3)
