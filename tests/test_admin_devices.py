"""Tests for L{domaeka.web.api.devices}."""

import json
from datetime import datetime
from typing import Any

from twisted.logger import capturedLogs, formatEvent

from domaeka.gateway.context import SWEEP_SECONDS
from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.web.api.endpoints import PREFIX
from domaeka.web.api.records import DECISION_SECONDS
from domaeka.wire import DeliveryReport, Reply, encode_frame
from tests.api_case import ROOM_ID, TOKEN, ApiCase, Client, path_of, replies
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

    def test_outdated(self) -> None:
        """A phone with a script of before is named; present ones and other clients are not."""
        for version, client_type, outdated in (
            ("3.3.3", "MessengerBotR", True),
            ("3.2.1", "MessengerBotR", True),
            ("domaeka-1.0.0", "MessengerBotR", False),
            ("0.1.0", "domaeka", False),
        ):
            self.ready(version=version, client_type=client_type).drop()
            found = self.get(DEVICE)
            self.assertEqual((found["version"], found["outdated"]), (version, outdated))

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
        self.assertFalse(body["outdated"])  # it has no script yet
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
        self.break_store()
        status, code, _ = self.refusal("PATCH", DEVICE, {"status": "blocked"})
        self.assertEqual((status, code), (503, "STORE"))
        self.assertEqual(self.get(DEVICE)["status"], "approved")

    def begin(self, method: str, path: str, value: object) -> Client:
        """Ask for something, and do not wait for the answer."""
        client = self.connect_client()
        head = {"Authorization": f"Bearer {TOKEN}"}
        client.request(method, PREFIX + path, head, json.dumps(value).encode())
        self.run_for(0.0)
        return client

    def test_store_hangs(self) -> None:
        """An operator is told after 10 s that nobody knows; what was decided is carried out."""
        self.ready()
        self.thread.stuck = True
        client = self.begin("PATCH", DEVICE, {"status": "blocked"})
        self.clock.advance(DECISION_SECONDS - 0.1)
        self.assertEqual(client.transport.value(), b"")
        self.clock.advance(0.1)
        status, _, body = client.answer()
        self.assertEqual(status, 503)
        text = "not known whether it is stored: the store has not answered for 10 s"
        self.assertEqual(json.loads(body)["error"], {"code": "STORE", "message": text})
        self.assertEqual(self.get(DEVICE)["status"], "approved")
        self.thread.go_on()
        self.assertEqual(self.get(DEVICE)["status"], "blocked")

    def test_store_hangs_and_fails(self) -> None:
        """What is not stored after all, when nobody waits any more, is in the log."""
        self.ready()
        self.thread.stuck = True
        self.begin("PATCH", DEVICE, {"status": "blocked"})
        self.clock.advance(DECISION_SECONDS)
        self.break_store()
        with capturedLogs() as events:
            self.thread.go_on()
        said = [formatEvent(event) for event in events]
        self.assertTrue(any("a decision that was late is not stored" in line for line in said))
        self.assertEqual(self.get(DEVICE)["status"], "approved")

    def test_last_seen(self) -> None:
        """It is when the phone was last heard: now, while it is; then when it fell silent."""
        began = self.wall()
        peer = self.ready()
        self.run_for(25.0)
        peer.chat("말")
        heard = self.wall()
        self.run_for(20.0)
        for _ in range(2):  # connected, and then not
            seen = datetime.fromisoformat(self.get(DEVICE)["last_seen"]).timestamp()
            self.assertLess(abs(seen - heard), SWEEP_SECONDS + 0.01)
            peer.drop()
        self.run_for(100.0)
        found = self.get(DEVICE)
        seen = datetime.fromisoformat(found["last_seen"]).timestamp()
        self.assertLess(abs(seen - heard), SWEEP_SECONDS + 0.01)
        first = datetime.fromisoformat(found["first_seen"]).timestamp()
        self.assertLess(first - began, 1.0)

    def test_forgotten(self) -> None:
        """
        What is known of a device goes: its status, its tokens, what waits for it, the room's word
        of it.  It comes back as somebody new; its chat log stays.
        """
        self.heard(KEY).drop()
        self.ask("PATCH", DEVICE, {"status": "blocked"})
        self.ask("PATCH", DEVICE, {"status": "approved"})
        status, _ = self.ask("POST", "/messages", {"bot": KEY.bot_name, "room": "방", "text": "1"})
        self.assertEqual((status, self.device().outbox.messages), (202, 1))
        used = self.context.budget.used
        before = self.device().epoch
        self.assertEqual(self.ask("DELETE", DEVICE), (204, None))
        self.assertEqual(self.refusal("GET", DEVICE)[0], 404)
        self.assertIsNone(self.get(ROOM)["device"])
        self.assertLess(self.context.budget.used, used)
        self.assertEqual(self.forgotten_chat, [])
        peer = self.ready()
        self.assertEqual(replies(peer), [])
        self.assertNotEqual(self.device().epoch, before)
        found = self.get(DEVICE)
        self.assertEqual((found["status"], found["queue"]["messages"]), ("approved", 0))

    def test_forgotten_while_it_is_away(self) -> None:
        """The sweep lets go of it as soon as no bot works for it."""
        self.heard(KEY).drop()
        self.device().pending += 1
        self.ask("DELETE", DEVICE)
        self.run_for(3.0)
        self.device().pending -= 1
        self.run_for(3.0)
        self.assertIsNone(self.registry.device(KEY))

    def test_not_forgotten(self) -> None:
        """One that is connected would be back at once; one that is not known cannot be."""
        self.assertEqual(self.refusal("DELETE", DEVICE)[0], 404)
        peer = self.heard(KEY)
        self.assertEqual(self.refusal("DELETE", DEVICE)[:2], (409, "CONNECTED"))
        peer.chat("one")
        self.assertEqual(len(replies(peer)), 1)
        peer.drop()
        self.assertEqual(self.ask("DELETE", DEVICE, chat_log="true")[0], 204)
        self.assertEqual(self.forgotten_chat, [(*KEY, None)])
        self.assertEqual(self.refusal("DELETE", DEVICE, chat_log="perhaps")[0], 400)

    def test_not_forgotten_by_the_store(self) -> None:
        """Where the store does not do it all is as before: a blocked device stays blocked."""
        self.heard(KEY).drop()
        self.ask("PATCH", DEVICE, {"status": "blocked"})
        self.break_store()
        self.assertEqual(self.refusal("DELETE", DEVICE)[:2], (503, "STORE"))
        self.assertEqual(self.get(DEVICE)["status"], "blocked")
        self.assertEqual(self.get(ROOM)["device"], KEY.device_id)
        self.assertEqual(self.listed(), [KEY.device_id])
        self.assertEqual(self.refusal("DELETE", ROOM)[:2], (503, "STORE"))
        self.assertEqual(self.get(ROOM)["status"], "approved")

    def test_back_while_it_is_forgotten(self) -> None:
        """One that comes back while the store writes is new, and keeps its connection."""
        self.heard(KEY).drop()
        self.ask("PATCH", DEVICE, {"status": "blocked"})
        self.thread.stuck = True
        client = self.connect_client()
        client.request("DELETE", PREFIX + DEVICE, {"Authorization": f"Bearer {TOKEN}"})
        peer = self.ready()
        self.thread.go_on()
        self.run_for(2.0)
        self.assertEqual(client.answer()[0], 204)
        peer.chat("one")
        self.assertEqual(len(replies(peer)), 1)
        self.assertTrue(self.get(DEVICE)["connected"])

    def break_store(self) -> None:
        """Nothing can be written from now on."""
        connection = self.database._writes.raw_connection()
        connection.cursor().execute("PRAGMA query_only=ON")
        connection.close()

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

    def test_answerable(self) -> None:
        """A phone that reports on delivery shows which rooms its app can answer in."""
        self.heard(KEY).drop()
        self.assertIsNone(self.get(ROOM)["answerable"])  # the phone is away
        peer = self.connect()
        self.run_for(10.0)
        peer.handshake(signed=True, capabilities=("ack", "delivery"), uptime=9.0)
        self.assertIsNone(self.get(ROOM)["answerable"])  # its app is younger than the last word
        self.device().send(Reply("방", ROOM_ID, KEY.bot_name, "one"))
        self.run_for(1.0)
        peer.write(encode_frame("delivery", DeliveryReport(1, False, "no notification")))
        self.assertIs(self.get(ROOM)["answerable"], False)
        peer.chat("nothing", channel_id=ROOM_ID)
        self.assertIs(self.get(ROOM)["answerable"], True)

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

    def test_forgotten(self) -> None:
        """What is known of a room goes; said in again, it is new.  What was said stays, unless."""
        peer = self.heard(KEY)
        self.ask("PATCH", ROOM, {"status": "blocked"})
        self.assertEqual(self.ask("DELETE", ROOM), (204, None))
        self.assertEqual(self.refusal("GET", ROOM)[0], 404)
        self.assertEqual(self.refusal("DELETE", ROOM)[0], 404)
        self.assertEqual(self.forgotten_chat, [])
        peer.chat("one")
        self.assertEqual(len(replies(peer)), 1)
        self.assertEqual(self.get(ROOM)["status"], "approved")
        self.assertEqual(self.ask("DELETE", ROOM, chat_log="true"), (204, None))
        self.assertEqual(self.forgotten_chat, [(KEY.bot_name, None, ROOM_ID)])

    def test_names_that_no_room_can_have(self) -> None:
        """They are refused."""
        for names in (("봇", "x" * 1001), ("x" * 129, "방"), ("봇", " "), ("봇", "방\x1b[31m")):
            path = "/rooms" + path_of(*names)
            self.assertEqual(self.refusal("PATCH", path, {"status": "denied"})[0], 400)
