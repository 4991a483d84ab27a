"""Tests for L{domaeka.web.api.events}."""

import json
from typing import Any

from domaeka.interfaces import DeviceKey
from domaeka.schema import EVENT_TYPES
from domaeka.web.api.endpoints import PREFIX
from domaeka.web.api.events import MAX_STREAMS
from domaeka.wire import timestamp_text
from tests.api_case import ROOM_ID, TOKEN, ApiCase, Client, path_of
from tests.gateway_case import KEY


class EventsTests(ApiCase):
    """What happens is told as it happens."""

    def listen(self) -> Client:
        """Somebody asks for events."""
        client = self.connect_client()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        client.request("GET", PREFIX + "/events", headers)
        self.run_for(0.0)
        return client

    def hear(self, client: Client) -> list[tuple[str, Any]]:
        """The events since the last call; each is one that is described."""
        self.run_for(0.0)
        text = client.transport.value().decode()
        client.transport.clear()
        heard = []
        for event in text.split("\n\n"):
            _, found, rest = event.partition("event: ")
            if found:
                name, _, data = rest.partition("\ndata: ")
                self.assertIn(name, EVENT_TYPES)
                heard.append((name, json.loads(data)))
        return heard

    def test_headers(self) -> None:
        """The answer begins at once, and goes on; a proxy in between keeps nothing back."""
        status, headers, body = self.listen().answer()
        self.assertEqual(status, 200)
        self.assertEqual(headers["Content-Type"], "text/event-stream")
        self.assertEqual(headers["Transfer-Encoding"], "chunked")
        self.assertNotIn("Content-Length", headers)
        self.assertEqual(headers["X-Accel-Buffering"], "no")
        self.assertNotEqual(body, b"")
        self.assertNotIn("X-Accel-Buffering", self.ask_raw("GET", "/connections")[1])

    def test_connections(self) -> None:
        """A phone comes and goes; strangers are not told of until they end."""
        client = self.listen()
        self.greeted(DeviceKey("봇", "stranger"))
        self.ready().drop()
        (first, connected), (second, closed) = self.hear(client)
        self.assertEqual((first, second), ("connected", "closed"))
        self.assertEqual(connected["at"][:16], timestamp_text(self.wall())[:16])
        self.assertEqual((connected["bot"], connected["device"]), KEY)
        self.assertEqual((closed["id"], closed["reason"]), (connected["id"], "connection lost"))

    def test_grades(self) -> None:
        """A line that gets worse, without a word of its phone, and one that is better."""
        peer = self.ready()
        client = self.listen()
        for _ in range(12):
            self.run_for(10.0)
            peer.chat("말")  # heard, so that it is not given up
        told = [(name, data["grade"]) for name, data in self.hear(client)]
        self.assertEqual(told[:2], [("grade", "fair"), ("grade", "poor")])
        self.assertTrue(self.device().outbox.hold_low)
        self.ready()
        self.assertFalse(self.device().outbox.hold_low)
        self.assertEqual([name for name, _ in self.hear(client)], ["connected", "closed"])

    def test_decisions(self) -> None:
        """Decisions on devices, rooms and bans."""
        client = self.listen()
        self.ask("PATCH", "/devices" + path_of(*KEY), {"status": "blocked"})
        self.ask("PATCH", "/rooms" + path_of("봇", "방/방"), {"status": "denied"})
        self.ask("POST", "/bans", {"network": "192.0.2.7"})
        self.ask("DELETE", "/bans", network="192.0.2.7")
        device, room, ban, lifted = self.hear(client)
        self.assertEqual((device[1]["kind"], device[1]["status"]), ("device", "blocked"))
        self.assertEqual((room[1]["kind"], room[1]["name"]), ("room", "방/방"))
        self.assertEqual((ban[0], lifted[0]), ("ban", "lifted"))
        self.assertEqual(ban[1], lifted[1])

    def test_forgotten(self) -> None:
        """A device, and a room, of which nothing is known any more."""
        self.heard(KEY).drop()
        client = self.listen()
        self.ask("DELETE", "/devices" + path_of(*KEY))
        self.ask("DELETE", "/rooms" + path_of(KEY.bot_name, ROOM_ID))
        heard = [(name, data["kind"], data["name"]) for name, data in self.hear(client)]
        self.assertEqual(
            heard, [("forgotten", "device", KEY.device_id), ("forgotten", "room", ROOM_ID)]
        )

    def test_drain(self) -> None:
        """A stop, from its beginning to its end."""
        client = self.listen()
        self.drain.begin("operator")
        self.run_for(1.0)
        self.assertEqual([data["state"] for _, data in self.hear(client)], ["begun", "done"])

    def test_nobody_listens(self) -> None:
        """A client that is gone is forgotten."""
        client = self.listen()
        client.channel.connectionLost()
        self.ready()
        self.assertEqual(len(self.listen().answer()[2]), len(b"b\r\n: domaeka\n\n\r\n"))

    def test_too_many(self) -> None:
        """So many may listen; when one ends there is room again."""
        clients = [self.listen() for _ in range(MAX_STREAMS)]
        refused = self.listen()
        self.assertEqual(refused.answer()[0], 503)
        clients[0].channel.connectionLost()
        self.assertEqual(self.listen().answer()[0], 200)
