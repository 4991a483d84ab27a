"""Tests for L{domaeka.gateway.conversation.chat}: what becomes of chat."""

from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.wire import Dialect, Reply
from tests.gateway_case import KEY, GatewayCase

OTHER = DeviceKey("봇", "e" * 16)


class ChatTests(GatewayCase):
    """What becomes of chat."""

    def test_dialects(self) -> None:
        """A phone is answered in the form in which it spoke."""
        for dialect in Dialect:
            peer = self.ready(dialect=dialect)
            peer.chat("# 안녕 }")
            self.assertEqual(peer.texts, ["# 안녕 }"])

    def test_dialect_of_the_handshake(self) -> None:
        """Before it says anything, a bare handshake of 3.2 decides."""
        for dialect in Dialect:
            peer = self.ready(dialect=dialect)
            peer.chat("nothing")
            self.device().send(Reply("방", None, "봇", "먼저"))
            self.run_for(0.0)
            self.assertEqual(peer.texts, ["먼저"])

    def test_text_that_looks_like_an_order(self) -> None:
        """What a stranger typed does not become an order to a 3.2 phone."""
        peer = self.ready(dialect=Dialect.V32)
        peer.chat("IMAGE_BASE64:AAAA", "MEDIA_URL:http://example.org/")
        self.assertEqual(
            peer.texts, ["\u200bIMAGE_BASE64:AAAA", "\u200bMEDIA_URL:http://example.org/"]
        )

    def test_empty(self) -> None:
        """An empty text is ignored."""
        peer = self.ready()
        peer.chat("")
        self.assertEqual((peer.errors, self.bots.submitted, self.chat_log.lines), ([], [], []))

    def test_too_long(self) -> None:
        """A text over the limit is refused, and the connection lives."""
        peer = self.ready()
        peer.chat("가" * 65_001, "다음")
        self.assertEqual((peer.errors, peer.texts), (["MESSAGE_TOO_LONG"], ["다음"]))

    def test_logged(self) -> None:
        """Both what is said and what is answered is in the chat log."""
        self.ready().chat("말")
        directions = [(line.direction, line.room_name, line.text) for line in self.chat_log.lines]
        self.assertEqual(directions, [("in", "방", "말"), ("out", "방", "말")])


class ApprovalTests(GatewayCase):
    """Devices and rooms that are not approved."""

    def test_device(self) -> None:
        """Chat of a device that is not approved is logged and not answered, and it stays."""
        for approval in (Approval.PENDING, Approval.DENIED, Approval.REVOKED, Approval.BLOCKED):
            self.devices.known[KEY] = approval
            peer = self.ready()
            peer.handshake()  # again: before its proof each name is told the same
            self.assertFalse(peer.greetings[0].approved)
            peer.chat(approval)
            self.assertEqual((peer.texts, peer.errors, peer.finished), ([], [], False))
            self.assertEqual(self.chat_log.lines[-1].text, approval)

    def test_room(self) -> None:
        """Chat of a room that is not approved is logged and not answered."""
        self.rooms.known[RoomKey("봇", "18398338829933617")] = Approval.PENDING
        peer = self.ready()
        peer.chat("말")
        self.assertEqual((peer.texts, len(self.chat_log.lines)), ([], 1))
        peer.chat("다른 방", channel_id="2")
        self.assertEqual(peer.texts, ["다른 방"])

    def test_changes_at_once(self) -> None:
        """An operator's decision is in force on the open connection."""
        peer = self.ready()
        for approval, texts in (
            (Approval.BLOCKED, []),
            (Approval.APPROVED, ["말"]),
            (Approval.REVOKED, []),
        ):
            self.devices.set_approval(KEY, approval)
            peer.chat("말")
            self.assertEqual(peer.texts, texts, approval)
            peer.take()

    def test_what_waits(self) -> None:
        """What waits for a device that is refused is dropped."""
        for approval in (Approval.DENIED, Approval.REVOKED, Approval.BLOCKED):
            self.ready().drop()
            self.device().send(Reply("방", "1", "봇", "말"))
            self.devices.set_approval(KEY, Approval.PENDING)
            self.assertEqual(self.device().outbox.messages, 1)
            self.devices.set_approval(KEY, approval)
            self.assertEqual(self.ready().texts, [], approval)
        self.assertEqual(self.context.budget.dropped, 3)

    def test_greeting(self) -> None:
        """A device never seen is told that it is approved where its signature will do that."""
        self.assertTrue(self.greeted(OTHER).greetings[0].approved)
        self.serve(("devices.approval", "manual"))
        self.assertFalse(self.greeted(OTHER).greetings[0].approved)

    def test_store_unknown(self) -> None:
        """While nobody can say what a device is, it is not answered."""
        self.devices.store_is_known = False
        peer = self.ready()
        peer.chat("말")
        self.assertEqual(peer.texts, [])
        self.devices.set_approval(KEY, Approval.APPROVED)
        peer.chat("말")
        self.assertEqual(peer.texts, ["말"])
