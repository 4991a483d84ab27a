"""What is said to sessions, acknowledgements and compressed lines that may not be said."""

import gc
import tracemalloc
import weakref
import zlib
from typing import Any

from sqlalchemy import event

from domaeka.interfaces import Approval, DeviceKey
from domaeka.policies.tokens import new_token
from domaeka.store.database import Database
from domaeka.store.devices import StoredDevices
from domaeka.store.sessions import StoredSessions
from domaeka.wire import Deflater
from tests.gateway_case import KEY, GatewayCase, Peer
from tests.storing import FakeThread, fill

OTHER = DeviceKey("봇", "e" * 16)


class StoredCase(GatewayCase):
    """A gateway whose tokens and devices are in a store; threads apart."""

    def setUp(self) -> None:
        super().setUp()
        self.database = Database(
            "sqlite://",
            self.clock,
            observe_write=lambda took: None,
            make_worker=lambda name, reactor: FakeThread(),
        )
        sessions: Any = StoredSessions(
            self.database,
            self.clock,
            3600.0,
            lambda: self.context.authentication.accepted_keys(),
            wall=self.wall,
        )
        self.stored = StoredDevices(self.database, self.clock, wall=self.wall)
        self.serve(sessions=sessions)
        self.context.devices = self.stored
        self.stored.add_listener(self.directory.decisions.approval_changed)
        fill(self.database)
        self.successResultOf(self.database.start())
        self.statements: list[str] = []
        event.listen(self.database._writes, "before_cursor_execute", self.noted)

    def noted(self, connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        """A statement is carried out."""
        self.statements.append(statement)

    def show(self, token: object, key: DeviceKey = KEY) -> Peer:
        """Somebody connects and shows a token, and proves nothing else."""
        peer = self.connect(key)
        peer.handshake(capabilities=("session",), session_token=token)
        return peer

    def issue(self, key: DeviceKey = KEY) -> str:
        """A device proves itself, is given a token, and is gone."""
        peer = self.client("session", key=key)
        peer.drop()
        token = peer.greetings[0].session_token
        assert token is not None
        return token

    def refused(self, token: object, key: DeviceKey = KEY) -> None:
        """A token is worth nothing: the handshake goes on as if there were none."""
        before = self.bad_tokens
        peer = self.show(token, key)
        (greeting,) = peer.greetings
        self.assertEqual((greeting.session_token, greeting.resumed), (None, False))
        self.assertEqual((self.bad_tokens, peer.pings, peer.errors), (before + 1, 1, []))
        peer.pong()
        self.assertTrue(self.conversation().peer.authenticated)
        peer.drop()

    @property
    def bad_tokens(self) -> float:
        """How many were counted."""
        return self.metrics.auth_failures.labels("bad token").value


class TokenTests(StoredCase):
    """Session tokens."""

    def test_resumes(self) -> None:
        """A good one is proof enough, and costs one transaction, without the table of devices."""
        token = self.issue()
        self.run_for(5.0)
        self.statements.clear()
        peer = self.show(token)
        (greeting,) = peer.greetings
        self.assertTrue(greeting.resumed and self.conversation().peer.authenticated)
        self.assertNotIn(greeting.session_token, (token, None))
        self.run_for(5.0)
        self.assertEqual([text for text in self.statements if "devices" in text], [])
        self.assertEqual(len([text for text in self.statements if "BEGIN" in text]), 1)

    def test_of_any_type(self) -> None:
        """What is no text, or no token, is refused like any other, and costs the store nothing."""
        shown = [7, 1.5, True, [], {}, ["x"] * 1000, "", "x" * 42, "é" * 43, "x" * 100_000]
        self.issue()
        self.statements.clear()
        for token in shown:
            self.refused(token)
        self.assertEqual([text for text in self.statements if "sessions" in text], [])

    def test_of_another_device(self) -> None:
        """Another's is refused, and stays good for its own."""
        token = self.issue()
        self.refused(token, OTHER)
        self.assertTrue(self.show(token).greetings[0].resumed)

    def test_expired(self) -> None:
        """An hour after the end of its connection it is worth nothing."""
        token = self.issue()
        self.run_for(3601.0)
        self.refused(token)

    def test_spent(self) -> None:
        """Once used twice over, what came before the one used last is dead."""
        first = self.issue()
        peer = self.show(first)
        second = peer.greetings[0].session_token
        peer.drop()
        self.show(second).drop()
        self.refused(first)

    def test_revoked(self) -> None:
        """It dies with its device's approval, at once."""
        for approval in (Approval.DENIED, Approval.REVOKED, Approval.BLOCKED):
            token = self.issue()
            self.successResultOf(self.stored.set_approval(KEY, approval))
            self.refused(token)
            self.successResultOf(self.stored.set_approval(KEY, Approval.APPROVED))

    def test_guesses(self) -> None:
        """However many are guessed, nothing is kept of them, and nobody is harmed."""
        token = self.issue()
        guessers = []
        for _ in range(50):
            self.show(new_token()).drop()
            guessers.append(weakref.ref(self.server.accepted.pop()))
        # Of connections that have ended the last ten thousand are remembered.
        self.directory.history._closed.clear()
        gc.collect()
        self.assertEqual([guesser for guesser in guessers if guesser() is not None], [])
        self.assertEqual((self.bad_tokens, self.registry.connections), (50, 0))
        self.assertEqual(len(self.registry.devices()), 1)
        self.assertTrue(self.show(token).greetings[0].resumed)


class DeflateTests(GatewayCase):
    """Compressed lines."""

    def deflated(self, key: DeviceKey = KEY) -> Peer:
        """A client on a compressed line, which it does not listen to."""
        peer = self.client("deflate", "ack", key=key)
        peer.dataReceived = lambda data: None  # type: ignore[method-assign]
        return peer

    def test_gigabyte(self) -> None:
        """A line of a gigabyte, that comes as a megabyte, is refused and never held."""
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        # Behind a full flush the same bytes mean the same again.
        piece = deflater.compress(b"x" * 2**20) + deflater.flush(zlib.Z_FULL_FLUSH)
        peer = self.deflated()
        other = self.ready(OTHER)
        bomb = piece * 1024
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        peer.transport.write(bomb)
        other.chat("말")
        self.assertEqual((peer.lost, other.texts), (True, ["말"]))
        self.assertEqual(self.reasons, {"frame too large": 1})
        self.assertLess(tracemalloc.get_traced_memory()[1], len(bomb) + 3 * 2**20)

    def test_garbage(self) -> None:
        """What is no stream, or has an end, ends the connection, and is counted."""
        ended = zlib.compressobj(wbits=-15)
        for number, data in enumerate((b"\xff" * 100, ended.compress(b"\n") + ended.flush())):
            peer = self.deflated()
            peer.write(data)
            self.assertTrue(peer.lost)
            self.assertEqual(self.reasons, {"bad stream": number + 1})

    def test_ends_in_the_middle(self) -> None:
        """What a stream said before it broke off is answered; its rest is forgotten."""
        peer = self.deflated()
        packed = Deflater().pack(peer.line("하나", client_id="a") + peer.line("둘", client_id="b"))
        peer.write(packed[:-20])
        peer.drop()
        self.assertEqual([chat.text for chat, _ in self.bots.submitted], ["하나"])
        self.assertEqual(self.registry.connections, 0)
