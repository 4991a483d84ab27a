"""Tests for conversations: deadlines, proofs, and how one ends."""

import json
from typing import cast

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from domaeka.gateway.peer import State
from domaeka.interfaces import DeviceKey
from domaeka.logs import json_line
from tests.gateway_case import KEY, GatewayCase

OTHER = DeviceKey("봇", "e" * 16)
JUNK = b'{"event":"nonsense"}\n'


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
        self.assertIs(self.conversation().peer.state, State.READY)

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
            self.assertIs(self.conversation().peer.state, State.READY)
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

    def test_then_a_handshake_with_more(self) -> None:
        """Behind messages it is too late for capabilities: none is taken; a proof is judged."""
        peer = self.connect()
        peer.write(peer.line("말"), peer.writer.handshake(signed=True, capabilities=("ack",)))
        self.assertEqual(peer.greetings[0].capabilities, [])
        other = self.connect()
        forged = other.writer.handshake(signed=True).replace(b'"signature":"', b'"signature":"0')
        other.write(other.line("말"), forged)
        self.assertEqual((other.greetings, other.errors, other.lost), ([], ["AUTH_FAILED"], True))

    def test_no_handshake(self) -> None:
        """A phone known by its messages is answered, and closed 1 s after it came."""
        for part in (0.0, 0.3, 0.6, 0.9):
            self.run_for(part)
            peer = self.connect()
            peer.chat("하나", "둘")
            self.assertEqual(peer.texts, ["하나", "둘"])
            self.run_for(0.98)
            self.assertFalse(peer.finished, part)
            self.run_for(0.04)
            self.assertTrue(peer.lost)
        self.assertEqual(self.reasons, {"no handshake": 4})

    def test_handshake_just_behind(self) -> None:
        """A handshake within the second keeps the connection, and so does half of one."""
        peer, slow = self.connect(), self.connect(OTHER)
        peer.chat("하나")
        slow.chat("둘")
        handshake = slow.writer.handshake()
        self.run_for(0.9)
        peer.handshake()
        slow.write(handshake[:100])
        self.run_for(3.0)
        self.assertFalse(peer.finished or slow.finished)
        slow.write(handshake[100:])
        self.run_for(60.0)
        self.assertFalse(peer.finished or slow.finished)
        self.assertEqual((len(peer.greetings), len(slow.greetings)), (1, 1))

    def test_floods_without_handshake(self) -> None:
        """Who sends more than bots can answer is closed in time, and fills no memory meanwhile."""
        self.bots.hold = True
        peer = self.connect()
        peer.polite = False
        many = [peer.line(str(number)) for number in range(1500)]
        peer.write(*many)
        self.run_for(12.0)
        self.assertTrue(peer.finished)
        for _ in range(20):
            peer.transport.write(b"x" * 400 + b"\n" + b"".join(many))
            self.run_for(1.0)
        self.assertLess(self.server.accepted[-1]._protocol._decoder.held_bytes, 200_000)
        self.bots.release()
        self.run_for(1.0)

    def test_half_a_line_for_ever(self) -> None:
        """Half a line holds the connection until the handshake's deadline, and no longer."""
        peer = self.connect()
        peer.write(peer.line("하나"), peer.line("둘")[:50])
        self.run_for(9.9)
        self.assertFalse(peer.finished)
        self.run_for(1.2)
        self.assertTrue(peer.lost)
        self.assertEqual((peer.texts, self.reasons), (["하나"], {"no handshake": 1}))

    def test_handshake_ahead_of_answers(self) -> None:
        """A handshake that comes while answers are awaited keeps the connection, too."""
        self.bots.hold = True
        peer = self.connect()
        peer.chat("하나")
        self.run_for(3.0)
        peer.handshake()
        self.bots.release()
        self.run_for(60.0)
        self.assertEqual((peer.texts, peer.finished), (["하나"], False))

    def test_gone_while_answers_are_awaited(self) -> None:
        """A phone that closes first is said to have closed."""
        self.bots.hold = True
        peer = self.connect()
        peer.chat("하나")
        self.run_for(3.0)
        peer.finish()
        self.run_for(2.0)
        self.assertEqual(self.reasons, {"peer closed": 1})

    def test_rounds(self) -> None:
        """A phone that has been offline is through its queue in rounds of 5 s."""
        phone = self.phone()
        self.run_for(1.0)
        phone.drop()
        phone.record.forget()
        for number in range(25):
            self.run_for(0.01)
            phone.say(str(number))
        self.run_for(4.1 + 2 * 5.1)
        shown = [reply.text for reply in phone.record.replies]
        self.assertEqual(shown, [str(number) for number in range(25)])
        self.assertEqual(self.reasons["no handshake"], 2)
        self.run_for(60.0)
        self.assertEqual(len(phone.record.connects), 3)

    def test_chat_behind_our_end(self) -> None:
        """What a phone writes until it sees our end is answered on its next connection."""
        peer = self.connect()
        peer.polite = False
        peer.chat("하나")
        self.run_for(1.1)
        self.assertTrue(peer.finished)
        peer.chat("둘", "셋")
        self.assertEqual(peer.texts, ["하나"])
        peer.transport.loseConnection()
        self.run_for(1.0)
        back = self.connect()
        back.chat("넷")
        self.assertEqual((back.texts, peer.errors), (["둘", "셋", "넷"], []))

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
        self.run_for(0.0)
        self.assertEqual(slow.texts, ["하나"])
        self.assertEqual((slow.lost, slower.finished), (True, False))
        self.run_for(4.1)
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
        self.assertIs(self.conversation().peer.state, State.NEW)

    def test_facts(self) -> None:
        """Bot, device and version are those of the signature."""
        self.connect(version="3.3.2").chat("말")
        self.assertEqual(self.devices.entered[KEY].version, "3.3.2")
        self.assertEqual(self.device().describe()["스크립트"], "MessengerBotR 3.3.2")


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

    def test_at_any_time_of_a_sweep(self) -> None:
        """It has its whole second, wherever between two sweeps the phone finishes."""
        for part in (0.0, 0.3, 0.6, 0.9):
            self.run_for(part)
            peer = self.ready()
            peer.chat("말")
            peer.finish()
            self.run_for(0.98)
            self.assertFalse(peer.finished, part)
            self.bots.release()
            self.run_for(0.0)
            self.assertEqual(peer.texts[-1:], ["말"])

    def test_nothing_owed(self) -> None:
        """Where nothing is owed the connection ends at once."""
        self.bots.release()
        self.peer.finish()
        self.assertTrue(self.peer.lost)


class CountTests(GatewayCase):
    """What the metrics say of conversations."""

    def test_frames(self) -> None:
        """Frames are counted by their events, both ways."""
        self.greeted(OTHER).pong()
        peer = self.client("ack")
        peer.chat("하나", client_id="a")
        peer.ack(1)
        peer.write(JUNK)
        self.drain.begin("shutdown")
        self.run_for(1.0)
        received = {"handshake": 2, "pong": 1, "message": 1, "ack": 1, "bad": 1}
        self.assertEqual(self.counted(self.metrics.frames_received), received)
        sent = {"handshakeComplete": 2, "ping": 1, "message": 1, "ack": 1, "error": 1}
        self.assertEqual(self.counted(self.metrics.frames_sent), sent | {"serverShutdown": 2})

    def test_life(self) -> None:
        """The log's line at the end says whose connection it was, in fields of their own."""
        events: list[LogEvent] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        peer = self.greeted()
        self.run_for(0.5)
        peer.pong()
        peer.drop()
        (line,) = (json.loads(json_line(event)) for event in events if "age_seconds" in event)
        whose = [line[name] for name in ("bot", "device", "authenticated", "reason", "age_seconds")]
        self.assertEqual(whose, [*KEY, True, "connection lost", 0])
        self.assertEqual((line["grade"], line["score"], line["rtt_seconds"]), ("good", 98, 0.5))

    def test_bytes(self) -> None:
        """Bytes are counted, of each connection and of all."""
        peer = self.ready()
        peer.chat("말")
        session, transport = self.conversation(), self.server.accepted[-1]
        self.assertEqual(session._writer.bytes_sent, transport.bytes_written)
        self.assertEqual(self.metrics.bytes_sent.value, transport.bytes_written)
        self.assertEqual(self.metrics.bytes_received.value, peer.transport.bytes_written)
        self.assertEqual((session.peer.messages_received, session._writer.messages_sent), (1, 1))
