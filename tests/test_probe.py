"""Tests for L{domaeka.gateway.lifecycle.probe}: whether another server answers, and how."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import ErrorCode
from domaeka.gateway.directory import server_key
from domaeka.gateway.lifecycle.probe import PROBE_SECONDS, ProbeFailed, probe
from domaeka.policies.auth import Signer
from domaeka.wire import FrameReader, Handshake, encode_error, encode_handshake_complete
from tests.clocks import WallClock
from tests.gateway_case import NOW, SALT, SECRET


class ProbeTests(SynchronousTestCase):
    """Tests for L{probe}."""

    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        wall = WallClock(self.reactor, NOW)
        self.signer = Signer([SECRET], SALT, 300.0, wall)
        self.answer: Deferred[None] = probe(
            self.reactor, wall, "192.0.2.7", 9000, False, "here", self.signer
        )
        self.reactor.advance(0)
        self.factory: Any = self.reactor.tcpClients[0][2]

    def connect(self) -> None:
        """The connection is made."""
        self.transport = StringTransport()
        self.protocol: Any = self.factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def trouble(self) -> str:
        """Why it has failed."""
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        return str(self.failureResultOf(self.answer, ProbeFailed).value)

    def test_answered(self) -> None:
        """A handshake, signed as a phone's, is answered: that is all."""
        self.connect()
        handshake = FrameReader().read(self.transport.value().rstrip(b"\n"))
        assert isinstance(handshake, Handshake) and handshake.auth is not None
        key = server_key("here")
        self.assertIsNone(self.signer.fault(handshake.auth, key))
        self.assertEqual((handshake.bot_name, handshake.device_id), key)
        self.protocol.dataReceived(
            encode_handshake_complete(
                approved=True, message="", server_version="1", timestamp="2026-11-22T12:00:00Z"
            )
        )
        self.successResultOf(self.answer)
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_refused(self) -> None:
        """An error is no answer; its code is told."""
        self.connect()
        self.protocol.dataReceived(encode_error(ErrorCode.AUTH_FAILED, "no"))
        self.assertIn("AUTH_FAILED", self.trouble())
        self.assertTrue(self.transport.disconnected)

    def test_something_else(self) -> None:
        """Whatever is not one of our servers is not."""
        self.connect()
        self.protocol.dataReceived(b"220 mail.example ESMTP\r\n")
        self.assertIn("192.0.2.7:9000: it says what no server of ours says", self.trouble())

    def test_silent(self) -> None:
        """One that says nothing is given up."""
        self.connect()
        self.reactor.advance(PROBE_SECONDS)
        self.assertIn("no answer within 10 s", self.trouble())
        self.assertTrue(self.transport.disconnected)

    def test_closes(self) -> None:
        """One that closes is not waited for."""
        self.connect()
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertIn("it closes the connection", self.trouble())

    def test_nobody_there(self) -> None:
        """Where nobody listens that is said."""
        self.factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.reactor.advance(0.5)  # it might have had another address
        self.assertIn("refused", self.trouble())

    def test_cancelled(self) -> None:
        """It can be broken off at any time."""
        self.connect()
        self.answer.cancel()
        self.trouble()
        self.assertTrue(self.transport.disconnected)
