"""Tests for L{domaeka.gateway.session}: what may follow what, and what is answered."""

from domaeka.errors import ErrorCode
from domaeka.gateway.faults import ERRORS_ALLOWED
from domaeka.gateway.states import NEXT, State
from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.messages import Ack, Auth, Chat, Dialect, Handshake, Migrated, Pong, Reply
from domaeka.phonewire import encode_migrated
from domaeka.testing import FakeDispatcher
from tests.gateway_case import KEY, GatewayCase, Peer

OTHER = DeviceKey("봇", "e" * 16)
JUNK = b'{"event":"nonsense"}\n'


class _Broken:
    """A dispatcher that breaks its promise."""

    def submit(self, chat: object, origin: object) -> None:
        raise ZeroDivisionError


class TransitionTests(GatewayCase):
    """Tests for L{NEXT}."""

    def in_state(self, state: State) -> Peer:
        """A peer whose conversation has come so far."""
        if state is State.GREETED:
            return self.greeted()
        if state is State.READY:
            return self.ready()
        peer = self.connect()
        if state is State.KNOWN:
            peer.chat("nothing")
        return peer

    def say(self, peer: Peer, message: type) -> None:
        """Have C{peer} say a message of a type, all in order with it."""
        if message is Handshake:
            peer.handshake()
        elif message is Chat:
            peer.chat("nothing")
        elif message is Pong:
            peer.pong()
        elif message is Ack:
            peer.ack(0)
        else:
            peer.write(encode_migrated("sibling", 9000))

    def test_every_pair(self) -> None:
        """Each message leads where the table says; what is not in it changes nothing."""
        messages = (Handshake, Chat, Pong, Ack, Migrated)
        for number, state in enumerate([*State][:-1]):
            for message in messages:
                self.serve()
                peer = self.in_state(state)
                session = self.session()
                self.assertIs(session.state, state)
                peer.take()
                self.say(peer, message)
                expected = NEXT.get((state, message))
                if session.closing:
                    self.assertEqual((state, message), (State.READY, Migrated))
                    continue  # it has said goodbye
                self.assertIs(session.state, expected or state, (state, message))
                codes = [] if expected else [ErrorCode.AUTH_REQUIRED]
                self.assertEqual(peer.errors, codes, (number, state, message))

    def test_proof_in_a_handshake(self) -> None:
        """C{auth} in the handshake leads from greeted to ready."""
        self.assertIs(NEXT[State.GREETED, Auth], State.READY)
        self.client()
        self.assertIs(self.session().state, State.READY)

    def test_nothing_leads_out_of_closing(self) -> None:
        """What arrives while the connection closes is not looked at."""
        peer = self.ready()
        peer.polite = False
        peer.handshake(bare=False)
        session = self.session()
        session.close("operator")  # type: ignore[arg-type]
        self.run_for(0.0)
        peer.take()
        peer.write(JUNK, peer.line("말"))
        self.assertIs(session.state, State.CLOSING)
        self.assertEqual((peer.frames, self.bots.submitted), ([], []))


class HandshakeTests(GatewayCase):
    """When a handshake must have come, and which."""

    def test_both_forms(self) -> None:
        """A bare handshake and an enveloped one are answered alike."""
        for bare in (True, False):
            peer = self.connect()
            peer.handshake(bare=bare)
            (greeting,) = peer.greetings
            self.assertEqual((greeting.success, greeting.approved), (True, True))

    def test_repeated(self) -> None:
        """The same handshake is answered as often as it comes."""
        peer = self.ready()
        peer.write(peer.writer.handshake() * 2)
        self.assertEqual(len(peer.greetings), 2)
        self.assertEqual(peer.errors, [])
        self.assertIs(self.session().state, State.READY)

    def test_of_another_device(self) -> None:
        """A second handshake that names another device ends the connection."""
        for peer in (self.greeted(), self.ready()):
            peer.write(self.connect(OTHER).writer.handshake())
            self.assertEqual(peer.errors, ["BAD_HANDSHAKE"])
            self.assertTrue(peer.finished)
        self.assertEqual(self.reasons["other device"], 2)

    def test_wrong(self) -> None:
        """A handshake that says too little is answered, and the connection ends."""
        peer = self.connect()
        peer.write(b'{"botName":" ","version":"3.2.1","deviceID":"d"}\n')
        self.assertEqual(peer.errors, ["BAD_HANDSHAKE"])
        self.assertTrue(peer.lost)
        self.assertEqual(self.reasons, {"bad handshake": 1})

    def test_missing(self) -> None:
        """Without a handshake the connection ends after 10 s, not before."""
        peer = self.connect()
        self.run_for(9.9)
        self.assertFalse(peer.finished)
        self.run_for(1.2)
        self.assertTrue(peer.lost)
        self.assertEqual(self.reasons, {"handshake timeout": 1})

    def test_drop_by_drop(self) -> None:
        """However steadily its bytes come, the handshake has 10 s."""
        peer = self.connect()
        for byte in peer.writer.handshake()[:110]:
            peer.write(bytes([byte]))
            self.run_for(0.1)
        self.run_for(0.1)
        self.assertTrue(peer.lost)
        self.assertEqual(self.reasons, {"handshake timeout": 1})

    def test_deadlines_at_any_time_of_a_sweep(self) -> None:
        """A deadline is never early, wherever between two sweeps a phone connects."""
        for part in (0.0, 0.3, 0.6, 0.9):
            self.run_for(part)
            peer = self.connect()
            self.run_for(9.98)
            self.assertFalse(peer.finished, part)
            peer.handshake()
            self.run_for(29.98)
            self.assertFalse(peer.finished, part)
            peer.pong()
            self.assertIs(self.session().state, State.READY)
            peer.drop()

    def test_no_proof(self) -> None:
        """A phone that never signs anything is told, and closed after 30 s."""
        peer = self.greeted()
        self.run_for(29.9)
        self.assertFalse(peer.finished)
        self.run_for(1.2)
        self.assertEqual(peer.errors, ["AUTH_REQUIRED"])
        self.assertTrue(peer.lost)
        self.assertEqual(self.reasons, {"authentication timeout": 1})


class MessagesFirstTests(GatewayCase):
    """Messages ahead of the handshake, or without one."""

    def test_then_a_handshake(self) -> None:
        """Five messages ahead of the handshake are answered, and the phone stays."""
        peer = self.connect()
        lines = [peer.line(str(number)) for number in range(5)]
        peer.write(*lines, peer.writer.handshake())
        self.assertEqual(peer.texts, ["0", "1", "2", "3", "4"])
        self.assertEqual(len(peer.greetings), 1)
        self.run_for(60.0)
        self.assertFalse(peer.finished)

    def test_no_handshake(self) -> None:
        """A phone known by its messages is answered, and closed 5 s after it came."""
        for part in (0.0, 0.3, 0.6, 0.9):
            self.run_for(part)
            peer = self.connect()
            peer.chat("하나", "둘")
            self.assertEqual(peer.texts, ["하나", "둘"])
            self.run_for(4.98)
            self.assertFalse(peer.finished, part)
            self.run_for(1.1)
            self.assertTrue(peer.lost)
        self.assertEqual(self.reasons, {"no handshake": 4})

    def test_answers_that_take_long(self) -> None:
        """It is closed later while it is owed answers, at the handshake's deadline at last."""
        self.bots.hold = True
        slow, slower = self.connect(), self.connect(OTHER)
        slow.chat("하나")
        slower.chat("둘")
        self.run_for(7.0)
        self.assertFalse(slow.finished or slower.finished)
        held, self.bots.held = self.bots.held, self.bots.held[:1]
        self.bots.release()
        self.run_for(1.1)
        self.assertEqual(slow.texts, ["하나"])
        self.assertEqual((slow.lost, slower.finished), (True, False))
        self.run_for(3.0)
        self.assertTrue(slower.lost)
        self.bots.held = held[1:]
        self.bots.release()
        back = self.ready(OTHER)
        back.chat("nothing")
        self.run_for(0.1)
        self.assertEqual(self.reasons, {"no handshake": 2})

    def test_unsigned(self) -> None:
        """An unsigned message ahead of the handshake is refused, and reaches nobody."""
        peer = self.connect()
        peer.chat("말", signed=False)
        self.assertEqual(peer.errors, ["AUTH_REQUIRED"])
        self.assertEqual((self.bots.submitted, self.chat_log.lines), ([], []))
        self.assertIs(self.session().state, State.NEW)

    def test_facts(self) -> None:
        """Bot, device and version are those of the signature."""
        self.connect(version="3.3.2").chat("말")
        self.assertEqual(self.devices.entered[KEY].version, "3.3.2")
        self.assertEqual(self.device().describe()["스크립트"], "MessengerBotR 3.3.2")


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
            self.device().answer(Reply("방", None, "봇", "먼저"))
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
            peer = self.greeted()
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


class ErrorTests(GatewayCase):
    """Bad frames, and mistakes of our own."""

    def test_the_tenth_in_a_minute(self) -> None:
        """Nine bad frames are answered; the tenth ends the connection."""
        peer = self.ready()
        peer.write(JUNK * (ERRORS_ALLOWED - 1))
        self.assertEqual((peer.errors, peer.finished), (["BAD_FRAME"] * 9, False))
        peer.write(JUNK + peer.line("말"))
        self.assertEqual((len(peer.errors), peer.texts, peer.lost), (10, [], True))
        self.assertEqual(self.reasons, {"too many errors": 1})

    def test_not_in_a_minute(self) -> None:
        """Bad frames that come slowly do no harm."""
        peer = self.ready()
        for _ in range(30):
            peer.write(JUNK)
            self.run_for(7.0)
            peer.pong()
        self.assertEqual((len(peer.errors), peer.finished), (30, False))

    def test_counted(self) -> None:
        """Errors are counted by their codes, and bad frames as frames."""
        peer = self.ready()
        peer.write(JUNK, b"\xff\n", b"{}\n")
        self.assertEqual(self.counted(self.metrics.errors), {"BAD_FRAME": 3})
        self.assertEqual(self.metrics.frames_received.labels("bad").value, 3)

    def test_too_large(self) -> None:
        """A line over the limit is refused at once, without waiting for its end."""
        peer = self.ready()
        peer.write(b"{" + b"x" * 1_048_575)
        self.run_for(0.1)
        self.assertEqual((peer.errors, peer.lost), (["FRAME_TOO_LARGE"], True))
        self.assertEqual(self.reasons, {"frame too large": 1})

    def test_mistake_of_our_own(self) -> None:
        """An exception of ours costs one connection, and is logged and counted."""
        other = self.ready(OTHER)
        self.parts.dispatcher = _Broken()
        peer = self.ready()
        peer.chat("말")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((peer.errors, peer.lost, other.finished), (["INTERNAL"], True, False))
        self.assertEqual(self.reasons, {"internal error": 1})
        self.assertEqual(self.counted(self.metrics.errors), {"INTERNAL": 1})

    def test_clock_fault(self) -> None:
        """
        A right signature with a wrong time is told once, counted as no error, and not answered.
        """
        peer = self.greeted()
        peer.clock_offset = 400.0
        peer.chat(*"0123456789ab")
        self.assertEqual((peer.errors, peer.texts, peer.finished), (["AUTH_FAILED"], [], False))
        self.assertEqual(self.counted(self.metrics.auth_failures), {"wrong time": 12})
        peer.clock_offset = 0.0
        peer.chat("말")
        self.assertEqual(peer.texts, ["말"])


class HalfCloseTests(GatewayCase):
    """A phone that has finished sending may still read."""

    def setUp(self) -> None:
        super().setUp()
        self.bots.hold = True
        self.peer = self.ready()
        self.peer.chat("말")

    def test_answer_in_time(self) -> None:
        """An answer that is ready within a second still goes out, then the connection ends."""
        self.peer.finish()
        self.run_for(0.9)
        self.assertFalse(self.peer.finished)
        self.bots.release()
        self.run_for(0.0)
        self.assertEqual((self.peer.texts, self.peer.lost), (["말"], True))
        self.assertEqual(self.reasons, {"peer closed": 1})

    def test_answer_too_late(self) -> None:
        """It does not wait longer; the answer waits for the next connection."""
        self.peer.finish()
        self.run_for(2.1)
        self.assertTrue(self.peer.lost)
        self.bots.release()
        back = self.greeted()
        back.pong()
        self.assertEqual((self.peer.texts, back.texts), ([], ["말"]))

    def test_nothing_owed(self) -> None:
        """Where nothing is owed the connection ends at once."""
        self.bots.release()
        self.peer.finish()
        self.assertTrue(self.peer.lost)


class HeldAnswersTests(GatewayCase):
    """Answers that come when their connection has gone."""

    def test_next_connection(self) -> None:
        """They go to the next connection of the device, once it has authenticated."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("하나", "둘")
        peer.drop()
        self.bots.release()
        back = self.greeted()
        self.assertEqual(back.texts, [])
        back.pong()
        self.assertEqual(back.texts, ["하나", "둘"])

    def test_time_to_live(self) -> None:
        """They wait no longer than their time."""
        bots = FakeDispatcher(lambda chat: chat.text)
        self.serve(("queue.message_ttl", "5"), dispatcher=bots)
        bots.hold = True
        peer = self.ready()
        peer.chat("하나")
        peer.drop()
        bots.release()
        self.run_for(6.0)
        self.assertEqual(self.ready().texts, [])
        self.assertEqual(self.metrics.expired_messages.value, 1)
