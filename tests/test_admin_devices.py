"""Tests for L{domaeka.web.api.devices}."""

from typing import Any

from domaeka.interfaces import Approval, DeviceKey, RoomKey
from tests.api_case import ROOM_ID, ApiCase, path_of, replies
from tests.gateway_case import KEY

DEVICE = "/devices" + path_of(*KEY)
ROOM = "/rooms" + path_of(KEY.bot_name, ROOM_ID)


class DevicesTests(ApiCase):
    """What is known of devices, and decided."""

    def listed(self, **query: object) -> list[str]:
        """The ids of a page of devices."""
        return [found["device"] for found in self.get("/devices", **query)["devices"]]

    def test_device(self) -> None:
        """A phone that has proven who it is is known, connected or not."""
        peer = self.ready()
        found = self.get(DEVICE)
        self.assertEqual((found["bot"], found["device"]), KEY)
        self.assertEqual((found["status"], found["connected"]), ("approved", True))
        self.assertEqual(found["version"], "3.3.3")
        self.assertEqual(found["first_seen"], found["last_seen"])
        peer.drop()
        self.assertFalse(self.get(DEVICE)["connected"])

    def test_blocked_at_once(self) -> None:
        """An operator's decision holds on the open connection, without another handshake."""
        peer = self.heard(KEY)
        status, body = self.ask("PATCH", DEVICE, {"status": "blocked"})
        self.assertEqual((status, body["status"]), (200, "blocked"))
        peer.chat("one")
        self.assertEqual(replies(peer), [])
        self.ask("PATCH", DEVICE, {"status": "approved"})
        peer.chat("two")
        self.assertEqual([reply.content for reply in replies(peer)], ["two"])

    def test_entered_before_it_is_seen(self) -> None:
        """A device that has not been seen yet is entered."""
        self.assertEqual(self.refusal("GET", DEVICE)[0], 404)
        status, body = self.ask("PATCH", DEVICE, {"status": "denied"})
        self.assertEqual((status, body["status"], body["first_seen"]), (200, "denied", None))
        peer = self.ready()
        peer.chat("one")
        self.assertEqual(replies(peer), [])

    def test_wrong_decisions(self) -> None:
        """A state that is none, or a name that no device can have, changes nothing."""
        for body in ({"status": "maybe"}, {"status": None}, {}, {"status": "denied", "x": 1}):
            self.assertEqual(self.refusal("PATCH", DEVICE, body)[0], 400)
        for names in (("봇", "d" * 200), ("봇", "\n"), (" ", "d")):
            path = "/devices" + path_of(*names)
            self.assertEqual(self.refusal("PATCH", path, {"status": "denied"})[0], 400)
        self.assertEqual(self.get("/devices")["devices"], [])

    def test_store_is_down(self) -> None:
        """What could not be stored is not in force, and the operator is told."""
        self.ready()
        connection = self.database._writes.raw_connection()
        connection.cursor().execute("PRAGMA query_only=ON")
        connection.close()
        status, code, _ = self.refusal("PATCH", DEVICE, {"status": "blocked"})
        self.assertEqual((status, code), (503, "STORE"))
        self.assertEqual(self.get(DEVICE)["status"], "approved")

    def test_pages_and_filters(self) -> None:
        """Page by page, in the order of their names; by bot and by state."""
        for number in range(5):
            self.ready(DeviceKey(f"봇{number % 2}", f"d{number}"))
        self.ask("PATCH", "/devices" + path_of("봇0", "d2"), {"status": "blocked"})
        self.assertEqual(self.listed(), ["d0", "d2", "d4", "d1", "d3"])
        self.assertEqual(self.listed(bot="봇0", status="approved"), ["d0", "d4"])
        self.assertEqual(self.listed(bot="봇1"), ["d1", "d3"])
        self.assertEqual(self.listed(status="blocked"), ["d2"])
        self.assertEqual(self.listed(bot="없음"), [])
        page = self.get("/devices", bot="봇0", limit=2)
        self.assertEqual(self.listed(bot="봇0", limit=2, after=page["next"]), ["d4"])
        self.assertIsNone(self.get("/devices", bot="봇0", limit=3)["next"])

    def test_foreign_cursor(self) -> None:
        """What was not given is refused."""
        for after in ("", "!", "WyJhIl0", "bnVsbA"):
            self.assertEqual(self.refusal("GET", "/devices", after=after)[0], 400)


class RoomsTests(ApiCase):
    """What is known of rooms, and decided."""

    def test_room(self) -> None:
        """A room is known with the phone on which it was last heard."""
        self.heard(KEY, "우리방")
        found: dict[str, Any] = self.get(ROOM)
        self.assertEqual((found["room"], found["name"]), (ROOM_ID, "우리방"))
        self.assertEqual((found["device"], found["status"]), (KEY.device_id, "approved"))
        self.assertEqual(self.get("/rooms")["rooms"], [found])
        self.assertEqual(self.get("/rooms", status="denied")["rooms"], [])

    def test_silenced_at_once(self) -> None:
        """In a room that is not approved nothing is answered."""
        peer = self.heard(KEY)
        self.ask("PATCH", ROOM, {"status": "denied"})
        peer.chat("one")
        self.assertEqual(replies(peer), [])

    def test_entered_before_it_is_heard(self) -> None:
        """A room that has not been heard yet is entered, by its id or by its name."""
        for name in ("1234", "방/이름 %"):
            path = "/rooms" + path_of("봇", name)
            self.assertEqual(self.refusal("GET", path)[0], 404)
            self.assertEqual(self.ask("PATCH", path, {"status": "blocked"})[1]["room"], name)
            record = self.stored_rooms.record(RoomKey("봇", name))
            assert record is not None
            self.assertIs(record.approval, Approval.BLOCKED)

    def test_names_that_no_room_can_have(self) -> None:
        """They are refused."""
        for names in (("봇", "x" * 1001), ("x" * 129, "방"), ("봇", " "), ("봇", "방\x1b[31m")):
            path = "/rooms" + path_of(*names)
            self.assertEqual(self.refusal("PATCH", path, {"status": "denied"})[0], 400)
