"""Tests for handshakes: capabilities, signed handshakes, session tokens."""

import msgspec

from domaeka.errors import CloseReason, StoreError
from domaeka.gateway.peer import State
from domaeka.interfaces import DeviceKey
from tests.gateway_case import KEY, FakeSessions, GatewayCase, Peer

OTHER = DeviceKey("봇", "e" * 16)


class CapabilityTests(GatewayCase):
    """What a client may ask for."""

    def test_none_offered(self) -> None:
        """A phone that offers nothing is told nothing of it."""
        peer = self.connect()
        peer.write(peer.writer.handshake())
        (greeting,) = peer.greetings
        self.assertEqual((greeting.capabilities, greeting.epoch), ([], None))
        self.assertIsNone(greeting.session_token)

    def test_those_taken(self) -> None:
        """A client is told which of its capabilities are taken, again with each answer."""
        peer = self.client("ack", "time travel")
        peer.handshake(capabilities=("gzip",))
        self.assertEqual([greeting.capabilities for greeting in peer.greetings], [["ack"]] * 2)
        self.assertEqual(self.conversation().peer.capabilities, {"ack"})

    def test_deflate_needs_proof(self) -> None:
        """The whole connection is compressed only where the handshake authenticated."""
        peer = self.connect()
        peer.handshake(capabilities=("deflate", "ack"))
        self.assertEqual(peer.greetings[0].capabilities, ["ack"])

    def test_epoch(self) -> None:
        """Who acknowledges learns the epoch of its device, once it has proven its name."""
        epochs: list[str | None] = []
        for signed, key in ((False, KEY), (True, KEY), (False, KEY), (False, OTHER)):
            peer = self.connect(key)
            peer.handshake(signed=signed, capabilities=("ack",))
            if not signed:
                peer.pong()
                peer.handshake(capabilities=("ack",))
            epochs.append(peer.greetings[-1].epoch)
        self.assertEqual(len({*epochs[:3]}), 1)
        self.assertNotEqual(epochs[3], epochs[0])


class SignedHandshakeTests(GatewayCase):
    """Handshakes with C{auth}."""

    def test_good(self) -> None:
        """A valid one authenticates at once: no ping, and what waits follows."""
        self.assertEqual(self.client().pings, 0)
        self.assertTrue(self.conversation().peer.authenticated)

    def test_bad(self) -> None:
        """One that does not hold is answered C{AUTH_FAILED}, and the connection ends."""
        peer = self.connect(secret="another secret of enough bytes")
        peer.handshake(signed=True)
        self.assertEqual((peer.errors, peer.greetings, peer.lost), (["AUTH_FAILED"], [], True))
        self.assertEqual(self.reasons, {"authentication failed": 1})
        self.assertEqual(self.counted(self.metrics.auth_failures), {"wrong signature": 1})

    def test_malformed(self) -> None:
        """One of the wrong form is answered likewise: the connection ends."""
        peer = self.connect()
        line = peer.writer.handshake(signed=True)
        peer.write(line.replace(b'"timestamp":17', b'"timestamp":"x",":":17'))
        self.assertEqual((peer.errors, peer.lost), (["AUTH_FAILED"], True))
        self.assertEqual(self.counted(self.metrics.auth_failures), {"malformed": 1})

    def test_replayed(self) -> None:
        """The very same handshake on another connection proves nothing."""
        first = self.connect()
        line = first.writer.handshake(signed=True)
        first.write(line)
        second = self.connect()
        second.write(line)
        self.assertEqual((second.errors, second.lost), (["AUTH_FAILED"], True))
        self.assertFalse(first.finished)


class SessionTokenTests(GatewayCase):
    """Tokens by which a client is known again."""

    def setUp(self) -> None:
        super().setUp()
        self.sessions = FakeSessions()
        self.serve(sessions=self.sessions)

    def resuming(self, token: str = "old", key: DeviceKey = KEY, signed: bool = False) -> Peer:
        """A client that shows a token, and goes on talking."""
        peer = self.connect(key)
        handshake = peer.writer.handshake(
            signed=signed, capabilities=("session",), session_token=token
        )
        peer.write(handshake, peer.line("말"))
        return peer

    def test_first(self) -> None:
        """A client that signed its handshake gets a token, once it is stored."""
        peer = self.client("session")
        self.run_for(3.0)
        self.assertEqual(peer.frames, [])
        self.assertEqual(self.sessions.asked[0][:2], (KEY, None))
        self.sessions.answer("new")
        self.run_for(0.0)
        (greeting,) = peer.greetings
        self.assertEqual((greeting.session_token, greeting.resumed), ("new", False))
        self.assertEqual((greeting.session_expires_in, greeting.node), (3600.0, "here"))
        self.assertEqual((greeting.max_frame_bytes, greeting.ping_interval), (1_048_576, 30.0))

    def test_nothing_read_meanwhile(self) -> None:
        """What follows the handshake waits until it is answered."""
        peer = self.resuming()
        self.assertEqual(self.bots.submitted, [])
        peer.chat("하나 더")
        self.assertEqual((self.bots.submitted, peer.frames), ([], []))
        self.sessions.answer("new")
        self.run_for(0.0)
        self.assertEqual(peer.texts, ["말", "하나 더"])
        self.assertIs(type(peer.frames[0]).__name__, "Greeting")

    def test_resumed(self) -> None:
        """A good token authenticates, and brings a fresh one."""
        peer = self.resuming()
        self.assertEqual(self.sessions.asked[0][:2], (KEY, "old"))
        self.assertFalse(self.conversation().peer.authenticated)
        self.sessions.answer("new")
        self.run_for(0.0)
        greeting = peer.greetings[0]
        self.assertEqual((greeting.session_token, greeting.resumed), ("new", True))
        self.assertIs(self.conversation().peer.state, State.READY)

    def test_not_good(self) -> None:
        """With a token that is not good the handshake goes on as if there were none."""
        peer = self.resuming()
        self.sessions.answer(None)
        self.run_for(0.0)
        (greeting,) = peer.greetings
        self.assertEqual((greeting.session_token, greeting.resumed), (None, False))
        self.assertEqual((peer.pings, peer.texts), (1, ["말"]))
        self.assertEqual(self.counted(self.metrics.auth_failures), {"bad token": 1})

    def test_not_good_beside_a_signature(self) -> None:
        """A signature beside a token that is not good still counts."""
        peer = self.resuming(signed=True)
        self.sessions.answer(None)
        self.sessions.answer("new")
        self.run_for(0.0)
        greeting = peer.greetings[0]
        self.assertEqual((greeting.session_token, greeting.resumed), ("new", False))

    def test_not_text(self) -> None:
        """A token that is no text is judged like any other, and does no harm."""
        peer = self.connect()
        line = peer.writer.handshake(capabilities=("session",), session_token="x")
        peer.write(line.replace(b'"x"', b'[{"a":1}]'))
        self.sessions.answer(None)
        self.run_for(0.0)
        self.assertEqual((len(peer.greetings), peer.errors), (1, []))

    def test_no_capability(self) -> None:
        """Without the capability a token is not looked at."""
        peer = self.connect()
        peer.handshake(session_token="old")
        self.assertEqual((self.sessions.asked, len(peer.greetings)), ([], 1))

    def test_unsigned_without_token(self) -> None:
        """Who proves nothing in its handshake gets no token, later neither."""
        peer = self.connect()
        peer.handshake(capabilities=("session",))
        self.assertIsNone(peer.greetings[0].session_token)
        peer.pong()
        self.assertEqual(self.sessions.asked, [])

    def test_store_failing(self) -> None:
        """A store that fails stops nobody: the greeting has no token."""
        for peer in (self.resuming(key=OTHER), self.client("session")):
            self.sessions.answer(StoreError("gone"))
            self.run_for(0.0)
            self.assertIsNone(peer.greetings[0].session_token)
            self.assertFalse(peer.finished)
        self.assertTrue(self.conversation().peer.authenticated)

    def test_mistake_of_our_own(self) -> None:
        """Any other failure is ours, and costs the connection."""
        peer = self.client("session")
        self.sessions.answer(ZeroDivisionError())
        self.run_for(0.0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((peer.errors, peer.lost), (["INTERNAL"], True))

    def test_gone_meanwhile(self) -> None:
        """Where the connection has gone meanwhile the token's lifetime begins at once."""
        for its_own in (True, False):
            peer = self.client("session")
            if its_own:
                peer.drop()
            else:
                self.conversation().close(CloseReason.SHUTDOWN, cut=True)
            self.run_for(0.1)
            self.assertEqual(self.sessions.ended, [])
            self.sessions.answer("new")
            self.run_for(0.0)
            self.assertEqual(self.sessions.ended, [(KEY, "new")])
            self.sessions.ended.clear()

    def test_lifetime(self) -> None:
        """The lifetime of a token begins when its connection ends."""
        peer = self.client("session")
        self.sessions.answer("new")
        self.run_for(100.0)
        self.assertEqual(self.sessions.ended, [])
        peer.drop()
        self.run_for(0.0)
        self.assertEqual(self.sessions.ended, [(KEY, "new")])

    def test_repeated(self) -> None:
        """A repeated handshake brings no token, and none while the first one waits."""
        peer = self.client("session")
        peer.handshake(signed=True, capabilities=("session",))
        self.sessions.answer("new")
        self.run_for(0.0)
        tokens = [greeting.session_token for greeting in peer.greetings]
        self.assertEqual(tokens, ["new", None])
        self.assertEqual(self.sessions.asked, [])

    def test_what_waits(self) -> None:
        """What waits for the device follows the greeting, not before."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("하나")
        peer.drop()
        self.bots.release()
        back = self.client("session", "ack")
        self.assertEqual(back.frames, [])
        self.sessions.answer("new")
        self.run_for(0.0)
        names = [type(frame).__name__ for frame in back.frames]
        self.assertEqual(names, ["Greeting", "Delivered"])

    def test_slow_store(self) -> None:
        """While the store is asked no deadline runs."""
        peer = self.resuming()
        self.run_for(40.0)
        self.assertFalse(peer.finished)
        self.sessions.answer(None)
        self.run_for(0.0)
        self.assertEqual(peer.texts, ["말"])


class AnswerTests(GatewayCase):
    """What the answer to a handshake looks like."""

    def test_fields(self) -> None:
        """It has what every phone of the field reads."""
        peer = self.connect()
        lines: list[bytes] = []
        peer.dataReceived = lines.append  # type: ignore[assignment,method-assign]
        peer.write(peer.writer.handshake())
        frame = msgspec.json.decode(b"".join(lines).split(b"\n")[0])
        self.assertEqual(frame["event"], "handshakeComplete")
        data = frame["data"]
        self.assertEqual(
            {key: data[key] for key in ("success", "approved", "server_version", "timezone")},
            {"success": True, "approved": True, "server_version": "0", "timezone": "Asia/Seoul"},
        )
        self.assertEqual(data["message_positions"], [0, 0])
        self.assertNotIn("capabilities", data)
