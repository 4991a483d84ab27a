"""Tests for L{domaeka.web.api.messages}."""

import base64
from typing import Any

from domaeka.gateway.serving import Step
from domaeka.interfaces import DeviceKey
from domaeka.wire import DeliveryReport, Dialect, Media, encode_frame, timestamp_text
from tests.api_case import ROOM_ID, ApiCase, path_of, replies
from tests.gateway_case import KEY, PICTURE, Peer

OTHER = DeviceKey(KEY.bot_name, "other")
BASE64 = base64.b64encode(PICTURE).decode()


def to_room(**more: object) -> dict[str, object]:
    """A message to a room of which only the name is said."""
    return {"bot": KEY.bot_name, "room": "방"} | more


class SendingTests(ApiCase):
    """What reaches phones, and what becomes of it."""

    def send(self, **more: object) -> str:
        """Send a message.  @return: its id."""
        status, body = self.ask("POST", "/messages", to_room(**more))
        self.assertEqual(status, 202, body)
        self.run_for(0.0)
        return str(body["id"])

    def done(self, peer: Peer) -> None:
        """The phone is done with the files that it has got."""
        self.run_for(1.0)
        peer.pong()

    def state(self, message_id: str) -> str:
        """What has become of a message."""
        return str(self.get("/messages/" + message_id)["state"])

    def test_text(self) -> None:
        """A text shows in the room, by its channel id, and counts as sent."""
        peer = self.heard(KEY)
        message = self.get("/messages/" + self.send(text="안녕 {}\n"))
        self.assertEqual((message["state"], message["device"]), ("sent", KEY.device_id))
        self.assertEqual(message["accepted"][:16], timestamp_text(self.wall())[:16])
        (reply,) = replies(peer)
        self.assertEqual((reply.content, reply.room), ("안녕 {}\n", "방"))
        self.assertEqual(reply.channel_id, ROOM_ID)

    def test_old_dialect(self) -> None:
        """A 3.2 phone gets its own form."""
        peer = self.ready(dialect=Dialect.V32)
        peer.chat("nothing")
        peer.take()
        self.send(text="IMAGE_BASE64:no order")
        self.assertEqual(replies(peer)[0].content, "\u200bIMAGE_BASE64:no order")

    def test_picture(self) -> None:
        """Files come as bytes, with what was said of them."""
        peer = self.heard(KEY)
        self.send(media=[{"base64": BASE64}] * 2, media_wait_time=5000, message_format="jpg")
        (reply,) = replies(peer)
        self.assertEqual(reply.content, Media((PICTURE, PICTURE), "image", "jpg", 5000))

    def test_mixed_media(self) -> None:
        """Bytes and addresses go in frames of their own, in order, under one id."""
        peer = self.heard(KEY)
        url = "https://example.org/방.mp4"
        message = self.send(media=[{"base64": BASE64}, {"url": url}], message_type="video")
        self.done(peer)
        kinds = [type(reply.content.pieces[0]) for reply in replies(peer)]  # type: ignore[union-attr]
        self.assertEqual(kinds, [bytes, str])
        self.assertEqual(self.state(message), "sent")

    def test_what_is_no_picture(self) -> None:
        """It does not go out as one, whether the type is left out or is wrong."""
        peer = self.heard(KEY)
        pdf = {"base64": base64.b64encode(b"%PDF-1.7\n\0").decode()}
        self.send(media=[pdf, {"url": "https://a.example/film.mp4"}])
        self.done(peer)
        kinds = [reply.content.kind for reply in replies(peer)]  # type: ignore[union-attr]
        self.assertEqual(kinds, ["document", "video"])
        status, body = self.ask("POST", "/messages", to_room(media=[pdf], message_type="image"))
        self.assertEqual(status, 400)
        self.assertIn("pdf is no picture", body["error"]["message"])

    def test_phone_on_which_the_room_was_heard_last(self) -> None:
        """Without a device the last phone that heard the room sends; with one, that one does."""
        first, second = self.heard(KEY), self.heard(OTHER)
        self.send(text="one")
        self.send(text="two", device=KEY.device_id)
        self.assertEqual([reply.content for reply in replies(second)], ["one"])
        self.assertEqual([reply.content for reply in replies(first)], ["two"])

    def test_channel_id(self) -> None:
        """A channel id goes before a name, and does without it."""
        peer = self.heard(KEY, "방", "1")
        self.run_for(1.0)
        peer.chat("nothing", room="방", channel_id="2")
        peer.take()
        self.send(room=None, channel_id="1", text="one")
        self.send(channel_id="1", text="two", room="새 이름")
        found = [(reply.content, reply.channel_id, reply.room) for reply in replies(peer)]
        expected = [("one", "1", "방"), ("two", "1", "새 이름")]
        self.assertEqual(found, expected)

    def test_title_of_several_rooms(self) -> None:
        """A title that a stranger has given his room, too, draws nothing; the rooms are named."""
        peer = self.heard(KEY, "방", "1")
        peer.chat("nothing", room="방", channel_id="2")
        peer.take()
        status, body = self.ask("POST", "/messages", to_room(text="one"))
        self.assertEqual((status, body["error"]["code"]), (409, "AMBIGUOUS"))
        found = body["error"]["candidates"]
        self.assertEqual(
            {one["room"]: one["status"] for one in found}, dict.fromkeys("12", "approved")
        )
        self.assertEqual(replies(peer), [])

    def test_room_without_channel_id(self) -> None:
        """A room of which the phone knows no id is known by its name."""
        peer = self.heard(KEY, channel_id=None)
        self.send(text="one")
        self.assertIsNone(replies(peer)[0].channel_id)

    def test_room_never_heard(self) -> None:
        """A phone that is named sends to whatever room."""
        peer = self.ready()
        self.send(room="새방", device=KEY.device_id, text="one")
        self.assertEqual(replies(peer)[0].room, "새방")

    def test_waits_for_the_phone(self) -> None:
        """What is sent to a phone that is away waits until it is back."""
        self.heard(KEY).drop()
        self.run_for(5.0)
        message = self.send(text="one", ttl=60)
        self.assertEqual(self.state(message), "queued")
        self.run_for(30.0)
        peer = self.greeted()
        peer.pong()
        self.assertEqual(replies(peer)[0].content, "one")
        self.assertEqual(self.state(message), "sent")

    def test_expires(self) -> None:
        """What has waited long enough is given up: by itself, or by the setting."""
        self.heard(KEY).drop()
        short, usual = self.send(text="one", ttl=0.5), self.send(text="two")
        self.run_for(2.0)
        self.assertEqual((self.state(short), self.state(usual)), ("expired", "queued"))
        self.run_for(30.0)
        self.assertEqual(self.state(usual), "expired")

    def test_acknowledged(self) -> None:
        """A client that acknowledges says what has arrived."""
        peer = self.client("ack")
        peer.chat("nothing", room="방")
        peer.take()
        message = self.send(text="one")
        self.assertEqual(self.state(message), "sent")
        peer.ack(peer.numbers[0] or 0)
        self.assertEqual(self.state(message), "acknowledged")

    def test_reported(self) -> None:
        """A client that reports on delivery says what the chat app did, and why not."""
        peer = self.client("ack", "delivery")
        peer.chat("nothing", room="방")
        peer.take()
        taken, refused, unsaid = (self.send(text=text) for text in ("one", "two", "three"))
        for number, ok, reason in ((1, True, ""), (2, False, "no notification")):
            peer.write(encode_frame("delivery", DeliveryReport(number, ok, reason)))
        peer.write(encode_frame("delivery", DeliveryReport(2, True)))  # the first word counts
        peer.ack(3)
        self.assertEqual(
            [self.state(message) for message in (taken, refused, unsaid)],
            ["delivered", "refused_by_app", "acknowledged"],
        )
        self.assertEqual(self.get("/messages/" + refused)["reason"], "no notification")
        self.assertIsNone(self.get("/messages/" + taken)["reason"])
        reports = self.metrics.delivery_reports
        self.assertEqual(
            [reports.labels(result).value for result in ("delivered", "refused_by_app")], [1, 1]
        )

    def test_dropped(self) -> None:
        """What gives way to others is said to be dropped; what finds no room is refused."""
        self.serve_api(("queue.max_messages", "2"))
        self.heard(KEY).drop()
        message = self.send(text="one", priority="low")
        self.send(text="two", priority="high")
        self.send(text="three", priority="high")
        self.assertEqual(self.state(message), "dropped")
        refused = self.refusal("POST", "/messages", to_room(text="four", priority="low"))
        self.assertEqual(refused[:2], (503, "QUEUE_FULL"))

    def test_written_to_the_chat_log(self) -> None:
        """What is sent from outside is chat like any other."""
        self.heard(KEY)
        self.send(text="one")
        line = self.chat_log.lines[-1]
        self.assertEqual((line.direction, line.text), ("out", "one"))

    def test_unknown_message(self) -> None:
        """An id that was never given is 404."""
        for name in ("1", "a/b", "x" * 3000):
            self.assertEqual(self.refusal("GET", "/messages" + path_of(name))[0], 404)


class RefusalTests(ApiCase):
    """What is not sent, and why."""

    def refused(self, body: Any) -> tuple[int, str]:
        """Status and code."""
        return self.refusal("POST", "/messages", body)[:2]

    def test_no_phone(self) -> None:
        """Nobody knows the room, or the device."""
        self.ready()
        for more in (
            {"text": "one"},
            {"room": None, "channel_id": "1", "text": "one"},
            {"device": "unknown", "text": "one"},
            {"bot": "없음", "text": "one"},
        ):
            self.assertEqual(self.refused(to_room(**more)), (409, "NO_PHONE"), more)

    def test_room_without_a_name(self) -> None:
        """Phones find a room by its name, too: it must be known."""
        self.ready()
        body = {"bot": KEY.bot_name, "device": KEY.device_id, "channel_id": "1", "text": "one"}
        self.assertEqual(self.refused(body), (409, "NO_ROOM"))

    def test_not_approved(self) -> None:
        """What is not approved is not sent to."""
        self.heard(KEY)
        room = "/rooms" + path_of(KEY.bot_name, ROOM_ID)
        for path in (room, "/devices" + path_of(*KEY)):
            self.ask("PATCH", path, {"status": "blocked"})
            self.assertEqual(self.refused(to_room(text="one")), (409, "NOT_APPROVED"))
            self.ask("PATCH", path, {"status": "approved"})

    def test_while_draining(self) -> None:
        """A server that stops takes no new work."""
        self.heard(KEY)
        self.context.serving.take(Step.DRAIN)
        self.assertEqual(self.refused(to_room(text="one")), (503, "SHUTTING_DOWN"))

    def test_wrong_fields(self) -> None:
        """The field that is wrong is named."""
        self.heard(KEY)
        picture = [{"base64": BASE64}]
        for field, more in (
            ("text", {}),
            ("text", {"text": ""}),
            ("text", {"text": None}),
            ("text", {"text": "one", "media": picture}),
            ("text", {"text": "x" * 65_001}),
            ("room", {"room": None, "text": "one"}),
            ("room", {"room": "", "text": "one"}),
            ("bot", {"bot": 1, "text": "one"}),
            ("channel_id", {"channel_id": 1, "text": "one"}),
            ("channel_id", {"channel_id": "None", "text": "one"}),
            ("channel_id", {"channel_id": "1\n", "text": "one"}),
            ("ttl", {"ttl": 0, "text": "one"}),
            ("ttl", {"ttl": -1, "text": "one"}),
            ("ttl", {"ttl": "soon", "text": "one"}),
            ("ttl", {"ttl": "30", "text": "one"}),
            ("ttl", {"ttl": 1e300, "text": "one"}),
            ("ttl", {"ttl": True, "text": "one"}),
            ("priority", {"priority": "critical", "text": "one"}),
            ("media", {"media": []}),
            ("media", {"media": picture * 31}),
            ("media", {"media": [{"base64": ""}]}),
            ("media[0]", {"media": [{}]}),
            ("media[0]", {"media": [{"base64": BASE64, "url": "http://a"}]}),
            ("media[0].base64", {"media": [{"base64": "§"}]}),
            ("media[0].url", {"media": [{"url": "/etc/passwd"}]}),
            ("media[0].url", {"media": [{"url": " http://a"}]}),
            ("media[0].url", {"media": [{"url": "file:///etc/passwd"}]}),
            ("media[0].url", {"media": [{"url": "http://a\n"}]}),
            ("media[0].path", {"media": [{"path": "/etc/passwd"}]}),
            ("message_type", {"media": picture, "message_type": "text"}),
            ("message_format", {"media": picture, "message_format": "../x"}),
            ("message_format", {"text": "one", "message_format": "png"}),
            ("media_wait_time", {"media": picture, "media_wait_time": 0}),
            ("media_wait_time", {"media": picture, "media_wait_time": "1"}),
            ("media_wait_time", {"text": "one", "media_wait_time": 1}),
        ):
            status, code, text = self.refusal("POST", "/messages", to_room(**more))
            self.assertEqual((status, code, text.split(":")[0]), (400, "BAD_REQUEST", field))

    def test_too_much_media(self) -> None:
        """Files have a bound in all, whatever the body may have."""
        half = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 6_000_000).decode()
        self.heard(KEY)
        body = to_room(media=[{"base64": half}] * 2)
        self.assertEqual(self.refused(body), (400, "BAD_REQUEST"))
