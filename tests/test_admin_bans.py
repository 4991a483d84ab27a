"""Tests for L{domaeka.web.api.bans}."""

from tests.api_case import ApiCase


class BansTests(ApiCase):
    """Who is not let in."""

    def networks(self, **query: object) -> list[str]:
        """The networks of a page."""
        return [ban["network"] for ban in self.get("/bans", **query)["bans"]]

    def test_ban(self) -> None:
        """A ban holds at once, is listed, and outlives a restart."""
        status, ban = self.ask("POST", "/bans", {"network": "192.0.2.7", "reason": "소란"})
        self.assertEqual((status, ban["network"]), (201, "192.0.2.7/32"))
        self.assertEqual((ban["reason"], ban["made_by"]), ("소란", "operator"))
        self.assertEqual(ban["expires"], "2026-09-21T15:13:20.000Z")  # limits.ban_seconds
        self.assertEqual(len(self.context.limits.bans()), 1)
        self.assertEqual(self.get("/bans"), {"bans": [ban], "next": None, "total": 1})
        (stored,) = self.successResultOf(self.stored_bans.load())
        self.assertEqual(stored.network, "192.0.2.7/32")

    def test_for_whom(self) -> None:
        """A ban for wrong signatures says who they claimed to be of, also in the store."""
        for _ in range(5):
            self.context.limits.failed_signature("198.51.100.7", ("가게봇", "a1b2"))
        self.run_for(15.0)
        [ban] = self.get("/bans")["bans"]
        self.assertEqual((ban["claimed_bot"], ban["claimed_device"]), ("가게봇", "a1b2"))
        self.assertEqual((ban["made_by"], "wrong signatures" in ban["reason"]), ("", True))

    def test_how_long(self) -> None:
        """For so many seconds, or until it is lifted."""
        for seconds, expires in ((60, "2026-09-21T14:14:20.000Z"), (None, None)):
            _, ban = self.ask("POST", "/bans", {"network": "2001:db8::/64", "seconds": seconds})
            self.assertEqual(ban["expires"], expires)

    def test_closes_connections(self) -> None:
        """Those that are connected from there are told, and closed."""
        peer = self.ready()
        self.ask("POST", "/bans", {"network": self.conversation().peer.address})
        self.run_for(0.0)
        self.assertEqual(peer.errors, ["BANNED"])
        self.assertEqual(self.reasons, {"banned": 1})

    def test_lift(self) -> None:
        """A ban that is lifted is gone, also from the store."""
        self.ask("POST", "/bans", {"network": "192.0.2.0/24"})
        self.assertEqual(self.ask("DELETE", "/bans", network="192.0.2.0/24"), (204, None))
        self.assertEqual(self.context.limits.bans(), [])
        self.assertEqual(self.successResultOf(self.stored_bans.load()), [])
        self.assertEqual(self.refusal("DELETE", "/bans", network="192.0.2.0/24")[0], 404)

    def test_pages(self) -> None:
        """Page by page."""
        for number in range(5):
            self.ask("POST", "/bans", {"network": f"192.0.2.{number}"})
        page = self.get("/bans", limit=3)
        self.assertEqual(page["total"], 5)
        found = [ban["network"] for ban in page["bans"]]
        found += self.networks(limit=3, after=page["next"])
        self.assertEqual(found, [f"192.0.2.{number}/32" for number in range(5)])

    def test_wrong_fields(self) -> None:
        """What is no network, and a time that is none, is refused."""
        for field, body in (
            ("network", {"network": "here"}),
            ("network", {"network": "10.0.0.0/33"}),
            ("network", {"network": ""}),
            ("network", {"network": "1" * 65}),
            ("seconds", {"network": "10.0.0.1", "seconds": 0}),
            ("seconds", {"network": "10.0.0.1", "seconds": "1"}),
            ("reason", {"network": "10.0.0.1", "reason": "x" * 1001}),
        ):
            status, _, text = self.refusal("POST", "/bans", body)
            self.assertEqual((status, text.split(":")[0]), (400, field), text)
        self.assertEqual(self.refusal("DELETE", "/bans", network="here")[0], 400)
        self.assertEqual(self.refusal("DELETE", "/bans")[0], 400)

    def test_no_room(self) -> None:
        """Bans without end leave no room for more."""
        self.serve_api(("limits.max_tracked_addresses", "1"))
        self.ask("POST", "/bans", {"network": "192.0.2.1", "seconds": None})
        refused = self.refusal("POST", "/bans", {"network": "192.0.2.2"})
        self.assertEqual(refused[:2], (409, "FULL"))

    def test_makes_room(self) -> None:
        """In a full table the ban that ends first is lifted for a new one: in the store, too."""
        self.serve_api(("limits.max_tracked_addresses", "1"))
        for network in ("192.0.2.1/32", "192.0.2.2/32"):
            self.ask("POST", "/bans", {"network": network})
        self.assertEqual(self.networks(), ["192.0.2.2/32"])
        stored = self.successResultOf(self.stored_bans.load())
        self.assertEqual([ban.network for ban in stored], ["192.0.2.2/32"])

    def test_store_is_down(self) -> None:
        """A ban that could not be stored holds until the restart, and the operator is told."""
        connection = self.database._writes.raw_connection()
        connection.cursor().execute("PRAGMA query_only=ON")
        connection.close()
        status, code, text = self.refusal("POST", "/bans", {"network": "192.0.2.7"})
        self.assertEqual((status, code), (503, "STORE"))
        self.assertIn("it holds", text)
        self.assertEqual(len(self.context.limits.bans()), 1)
