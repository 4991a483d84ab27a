"""Tests for L{domaeka.gateway.transport.proxy}."""

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from domaeka.gateway.transport.connection import GatewayFactory
from domaeka.gateway.transport.proxy import PendingHeaders, ProxyProtocolFactory
from domaeka.interfaces import DeviceKey
from domaeka.testing import VirtualServer
from tests.gateway_case import GatewayCase, _PeerFactory

HEADER = b"PROXY TCP4 198.51.100.9 192.0.2.1 40000 9000\r\n"


class BalancerTests(GatewayCase):
    """Behind a balancer that says who the peer is."""

    def serve(self, *settings: tuple[str, str], **more: Any) -> None:
        """Serve what comes through a balancer, too."""
        super().serve(*settings, **more)
        self.pending = PendingHeaders(self.context, self.directory.admission, self.clock)
        self.proxied = ProxyProtocolFactory(self.pending, GatewayFactory(self.shared, wrapped=True))

    def arrive(self, data: bytes = b"") -> tuple[Any, StringTransport]:
        """A connection through the balancer.  @return: its protocol and its transport."""
        balancer: Any = IPv4Address("TCP", "203.0.113.1", 1)
        transport = StringTransport(peerAddress=balancer)
        protocol = self.proxied.buildProtocol(balancer)
        protocol.makeConnection(transport)
        if data:
            protocol.dataReceived(data)
        return protocol, transport

    @property
    def refusals(self) -> dict[str, float]:
        """Why nobody was let in, and how many."""
        return self.counted(self.metrics.refusals)

    def test_let_in(self) -> None:
        """The peer is who the balancer says; it is heard from behind the header on."""
        protocol, transport = self.arrive(HEADER[:9])
        self.assertEqual(list(self.registry), [])
        protocol.dataReceived(HEADER[9:] + b'{"botName":"b","deviceID":"d","version":"3.2.1"}\n')
        self.assertEqual(self.conversation().peer.address, "198.51.100.9")
        self.assertIn(b"handshakeComplete", transport.value())
        self.assertEqual(self.counted(self.metrics.attempts), {"accepted": 1})

    def test_closes_in_order(self) -> None:
        """What the phone says before it sees the end is read, as without a balancer."""
        client = self.connect()
        arrived = VirtualServer(self.clock, self.proxied)
        arrived.connect(_PeerFactory(client))
        client.write(HEADER, client.line("첫 말"))
        self.assertEqual(client.texts, ["첫 말"])
        client.polite = False
        self.run_for(2.0)
        self.assertTrue(client.finished)
        client.chat("늦은 말")
        back = self.greeted()
        back.pong()
        self.assertEqual(back.texts, ["늦은 말"])
        client.finish()
        self.assertEqual(sum(self.reasons.values()), 1)

    def test_banned(self) -> None:
        """Who is banned is let go as soon as the balancer has said who it is, told nothing."""
        self.context.limits.ban("198.51.100.9", "trouble")
        _, transport = self.arrive(HEADER)
        self.assertEqual((transport.value(), transport.disconnected), (b"", True))
        self.assertEqual(self.refusals, {"banned": 1})
        self.assertEqual(list(self.registry), [])

    def test_limits(self) -> None:
        """The limits are those of the peer, not of the balancer."""
        gone = [self.arrive(HEADER)[1].disconnected for _ in range(12)]
        self.assertEqual(gone, [False] * 10 + [True] * 2)

    def test_takes_no_place(self) -> None:
        """Who has not been announced pushes nobody out, and is counted nowhere."""
        self.serve(("server.max_connections", "2"))
        strangers = [self.greeted(DeviceKey("봇", name)) for name in "ab"]
        waiting = [self.arrive()[1] for _ in range(3)]
        self.assertEqual([stranger.lost for stranger in strangers], [False, False])
        self.assertEqual(self.directory.admission.taken, 2)
        self.assertEqual(self.counted(self.metrics.attempts), {"accepted": 2})
        self.assertEqual([transport.disconnected for transport in waiting], [False] * 3)

    def test_silent(self) -> None:
        """A header must be complete in the time for a handshake, however it drips."""
        protocol, transport = self.arrive()
        for byte in HEADER[:9]:
            self.run_for(1.0)
            protocol.dataReceived(bytes((byte,)))
        self.assertFalse(transport.disconnected)
        self.run_for(1.0)
        self.assertTrue(transport.disconnected)
        self.assertEqual(self.refusals, {"handshake timeout": 1})
        protocol.dataReceived(HEADER)  # too late
        self.assertEqual(list(self.registry), [])

    def test_no_header(self) -> None:
        """What is no header is cut off without a word, and counted."""
        for data in (b"PROXY TCP4 a b c d\r\n", b"\xff" * 300, b'{"event":"ping"}\n'):
            _, transport = self.arrive(data)
            self.assertEqual((transport.value(), transport.disconnected), (b"", True))
        self.assertEqual(self.refusals, {"bad proxy header": 3})
        self.assertEqual(list(self.registry), [])

    def test_balancer_itself(self) -> None:
        """A balancer that looks whether we are there is no attempt to connect."""
        _, transport = self.arrive(b"PROXY UNKNOWN\r\n")
        self.assertTrue(transport.disconnecting)
        protocol, _ = self.arrive()
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.counted(self.metrics.attempts), {})
        self.run_for(10.0)  # over TLS it may never say goodbye
        self.assertTrue(transport.disconnected)

    def test_crowd(self) -> None:
        """Where too many wait, the oldest goes."""
        self.serve(("server.max_connections", "20"))
        transports = [self.arrive()[1] for _ in range(11)]
        self.assertEqual([each.disconnected for each in transports], [True] + [False] * 10)
        self.assertEqual(self.refusals, {"gave way": 1})

    def test_close(self) -> None:
        """Once the ports are shut nobody waits; no timer is left."""
        self.directory.sweep.stop()
        transports = [self.arrive()[1] for _ in range(3)]
        self.pending.close()
        self.assertEqual([each.disconnected for each in transports], [True] * 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])
