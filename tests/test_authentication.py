"""Tests for authentication: what is believed, in each mode; replays and repeats."""

from domaeka.interfaces import DeviceKey
from domaeka.wire import Identity, PhoneWriter
from tests.gateway_case import KEY, GatewayCase, Peer

OTHER = DeviceKey("봇", "e" * 16)
WRONG = "another secret of enough bytes"


class ModeTests(GatewayCase):
    """C{auth.mode}."""

    def outcome(self, peer: Peer, *, signed: bool = True) -> tuple[list[str], list[str]]:
        """What becomes of a message: texts and errors."""
        peer.take()
        peer.chat("말", signed=signed)
        return peer.texts, peer.errors

    def test_required(self) -> None:
        """Only a right signature is believed."""
        self.assertEqual(self.outcome(self.greeted()), (["말"], []))
        self.assertEqual(self.outcome(self.greeted(), signed=False), ([], ["AUTH_REQUIRED"]))
        self.assertEqual(self.outcome(self.greeted(secret=WRONG)), ([], ["AUTH_FAILED"]))
        self.assertEqual(
            self.counted(self.metrics.auth_failures), {"missing": 1, "wrong signature": 1}
        )

    def test_optional(self) -> None:
        """What is missing is let through, but not ahead of a handshake; what is bad is not."""
        self.serve(("auth.mode", "optional"))
        self.assertEqual(self.outcome(self.greeted(), signed=False), (["말"], []))
        self.assertEqual(self.outcome(self.greeted(secret=WRONG)), ([], ["AUTH_FAILED"]))
        self.assertEqual(self.outcome(self.connect(), signed=False), ([], ["AUTH_REQUIRED"]))

    def test_unsigned_takes_no_place(self) -> None:
        """A phone that has signed keeps its place; who has not is served, and entered nowhere."""
        self.serve(("auth.mode", "optional"))
        unsigned = self.greeted()
        self.assertEqual(self.outcome(unsigned, signed=False), (["말"], []))
        self.assertEqual(self.devices.entered, {})
        unsigned.chat("말")
        self.assertEqual([*self.devices.entered], [KEY])
        stranger = self.greeted()
        stranger.write(stranger.unsigned.pong("?"))
        self.assertEqual(self.outcome(stranger, signed=False)[1], ["AUTH_REQUIRED"])
        self.assertFalse(unsigned.lost)
        self.ready()
        self.assertEqual(unsigned.errors, ["TAKEN_OVER"])

    def test_off(self) -> None:
        """A handshake is proof enough, and nothing is checked; but who it is must be said."""
        self.serve(("auth.mode", "off"))
        self.assertEqual(self.outcome(self.greeted(), signed=False), (["말"], []))
        self.assertEqual(self.outcome(self.greeted(secret=WRONG)), (["말"], []))
        self.assertEqual(self.greeted().pings, 0)
        self.assertEqual(self.outcome(self.connect(), signed=False), ([], ["AUTH_REQUIRED"]))

    def test_pong(self) -> None:
        """A pong is judged like chat."""
        peer = self.greeted(secret=WRONG)
        peer.pong()
        self.assertEqual(peer.errors, ["AUTH_FAILED"])
        peer.write(peer.unsigned.pong("?"))
        self.assertEqual(peer.errors, ["AUTH_FAILED", "AUTH_REQUIRED"])
        self.assertFalse(self.conversation().peer.authenticated)

    def test_another_device(self) -> None:
        """A right signature of another device than that of the handshake is refused."""
        peer, other = self.ready(), self.connect(OTHER)
        peer.write(other.line("말"))
        self.assertEqual((peer.errors, peer.texts), (["AUTH_FAILED"], []))
        self.assertEqual(self.counted(self.metrics.auth_failures), {"wrong device": 1})

    def test_malformed(self) -> None:
        """An C{auth} of the wrong form is refused as such."""
        peer = self.greeted()
        for auth in (b"1", b"{}", b'{"botName":1}'):
            peer.write(b'{"event":"pong","data":{"auth":%b}}\n' % auth)
        self.assertEqual(peer.errors, ["AUTH_FAILED"] * 3)


class RepeatTests(GatewayCase):
    """Lines that come again."""

    def test_same_connection(self) -> None:
        """The very same line again is dropped without a word."""
        peer = self.ready()
        line = peer.line("말")
        peer.write(line, line)
        peer.write(line)
        self.assertEqual((peer.texts, peer.errors), (["말"], []))
        self.assertEqual(self.metrics.repeats_dropped.value, 2)

    def test_next_connection(self) -> None:
        """So it is on the next connection, up to 30 s later, ahead of the handshake too."""
        peer = self.ready()
        line = peer.line("말")
        peer.write(line)
        peer.drop()
        self.run_for(30.0)
        back = self.connect()
        back.write(line, back.line("다음"), back.writer.handshake())
        self.assertEqual((back.texts, back.errors), (["다음"], []))

    def test_repeat_alone_proves_nothing(self) -> None:
        """A line seen before does not authenticate the connection that repeats it."""
        peer = self.ready()
        line = peer.line("말")
        peer.write(line)
        thief = self.connect()
        thief.write(line)
        thief.handshake()
        self.assertFalse(self.conversation().peer.authenticated)
        self.assertEqual((peer.finished, thief.texts), (False, []))

    def test_same_millisecond(self) -> None:
        """Two messages that bear one signature are both answered, on one connection."""
        peer = self.ready()
        first, second = peer.line("하나"), peer.line("둘")
        self.assertEqual(first.split(b'"signature"')[1][:70], second.split(b'"signature"')[1][:70])
        peer.write(first, second)
        self.assertEqual(peer.texts, ["하나", "둘"])

    def test_replay(self) -> None:
        """A signature first seen on another connection serves nothing else."""
        peer = self.ready()
        peer.chat("말")
        frozen = self.wall()
        thief = self.connect()
        identity = Identity(
            bot_name=KEY.bot_name, device_id=KEY.device_id, client_type="MessengerBotR"
        )
        thief.writer = PhoneWriter(identity, peer.writer._sign, lambda: frozen)
        thief.chat("훔친 말")
        self.assertEqual((thief.errors, thief.texts), (["AUTH_FAILED"], []))
        self.assertEqual(self.counted(self.metrics.auth_failures), {"replay": 1})
        self.assertFalse(peer.finished)

    def test_phone_in_the_field(self) -> None:
        """A phone whose write fails sends its line again; it is taken once."""
        for script in ("3.2.1", "3.3.3"):
            phone = self.phone(script=script)
            phone.say("하나")
            self.run_for(1.0)
            phone.fail_writes()
            phone.say("둘")
            self.run_for(20.0)
            phone.say("셋")
            self.run_for(1.0)
            self.assertEqual(len(phone.record.connects), 2, script)
            taken = [chat.text for chat, _ in self.bots.submitted]
            self.assertEqual(taken, ["하나", "둘", "셋"], script)
            self.bots.submitted.clear()
            phone.stop()
            self.run_for(300.0)
