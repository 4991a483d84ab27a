"""Tests for migrations: they are tried, written down, and gone on with."""

import re
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from domaeka.errors import ConfigError
from domaeka.gateway.directory import server_key
from domaeka.gateway.lifecycle.migration import (
    MigrationPlan,
    MigrationRefused,
    MigrationReport,
)
from domaeka.gateway.lifecycle.migrations import RETRY_SECONDS, Migrations
from domaeka.gateway.serving import ServerState, Step
from domaeka.interfaces import DeviceKey
from domaeka.schema import Phase
from domaeka.wire import encode_handshake_complete
from tests.gateway_case import GatewayCase

PLAN = MigrationPlan("192.0.2.7", 9000, False, 30.0, 30.0)


class MovesTests(GatewayCase):
    """Tests for L{Migrations}."""

    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.shut = self.opened = 0
        self.trouble: ConfigError | None = None
        self.reactor: Any = MemoryReactorClock()
        self.migrations = self.new_migrations()

    def new_migrations(self) -> Migrations:
        """Those of a server that has just started."""
        return Migrations(self.directory, self.reactor, self.path, self.shut_ports, self.listen)

    def shut_ports(self) -> None:
        """The ports are shut."""
        self.shut += 1

    def listen(self) -> None:
        """They are open again."""
        if self.trouble is not None:
            raise self.trouble
        self.opened += 1

    def begin(self, answered: bool = True) -> "Deferred[MigrationReport]":
        """Begin to move."""
        begun = self.migrations.begin(PLAN)
        self.reactor.advance(0)
        if answered:
            self.answer()
        return begun

    def answer(self) -> None:
        """The other server answers."""
        protocol = self.reactor.tcpClients[-1][2].buildProtocol(None)
        protocol.makeConnection(transport := StringTransport())
        signed = re.search(rb'"timestamp":(\d+)', transport.value())
        assert signed is not None
        self.assertApproximates(int(signed[1]) / 1000, self.wall(), 60.0)
        protocol.dataReceived(
            encode_handshake_complete(
                approved=True, message="", server_version="1", timestamp="2026-11-22T12:00:00Z"
            )
        )

    def refusal(self, begun: "Deferred[MigrationReport]") -> str:
        """Why it could not begin."""
        return str(self.failureResultOf(begun, MigrationRefused).value)

    def test_written_down(self) -> None:
        """It is on the disk from its beginning to its end, for nobody else to read."""
        client = self.client("ack")
        report = self.successResultOf(self.begin())
        self.assertEqual(report.phase, Phase.MOVING)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])
        self.assertIs(self.context.serving.state, ServerState.MOVING)
        client.drop()
        self.reactor.pump([0.25] * 2)
        self.answer()  # once more, before the port is shut
        self.reactor.pump([0.25] * 2)
        self.assertEqual((report.phase, self.shut, self.opened), (Phase.DONE, 1, 0))
        self.assertIs(self.context.serving.state, ServerState.AWAY)
        self.assertFalse(self.path.exists())

    def test_one_at_a_time(self) -> None:
        """While one is tried, or runs, there is no other."""
        self.client("ack")
        begun = self.begin(answered=False)
        self.assertIn("runs already", self.refusal(self.begin(answered=False)))
        self.answer()
        self.successResultOf(begun)
        self.assertIn("runs already", self.refusal(self.begin(answered=False)))

    def test_itself(self) -> None:
        """Nobody is sent to where he is."""
        begun = self.begin(answered=False)
        self.ready(server_key(self.context.node))
        self.answer()
        self.assertIn("this server itself", self.refusal(begun))

    def test_somebody_of_its_name(self) -> None:
        """A stranger who says that he is this server does not keep it from moving."""
        begun = self.begin(answered=False)
        self.greeted(server_key(self.context.node))
        self.answer()
        self.successResultOf(begun)

    def test_stops_meanwhile(self) -> None:
        """A server that stops does not begin to move."""
        begun = self.begin(answered=False)
        self.context.serving.take(Step.DRAIN)
        self.migrations.interrupt()
        self.refusal(begun)
        self.assertIn("runs already", self.refusal(self.begin(answered=False)))
        self.assertFalse(self.path.exists())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_cannot_be_written_down(self) -> None:
        """What a restart would forget does not begin."""
        self.path.mkdir()
        self.assertIn("it cannot be written down", self.refusal(self.begin()))
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])

    def test_goes_on(self) -> None:
        """One that a stop interrupted goes on, with time for clients to come back."""
        self.client("ack")
        self.begin()
        self.migrations.interrupt()
        self.assertTrue(self.path.exists())
        self.serve()
        self.migrations = self.new_migrations()
        self.migrations.go_on()
        self.reactor.advance(0)
        self.answer()
        self.reactor.advance(100.0)
        report = self.migrations.report
        assert report is not None
        self.assertEqual((report.phase, report.host), (Phase.MOVING, PLAN.host))
        self.assertTrue(self.client("ack", key=DeviceKey("봇", "back")).finished)

    def test_goes_on_once_it_answers(self) -> None:
        """After a restart nobody is sent to where nobody answers; it is tried again and again."""
        self.client("ack")
        self.begin()
        self.migrations.interrupt()
        self.serve()
        self.migrations = self.new_migrations()
        self.migrations.go_on()
        self.reactor.advance(0)
        self.reactor.tcpClients[-1][2].clientConnectionFailed(None, Failure(ConnectError()))
        self.reactor.advance(1.0)
        client = self.client("ack")
        report = self.migrations.report
        assert report is not None
        self.assertEqual((report.phase, client.finished), (Phase.INTERRUPTED, False))
        self.assertIn("192.0.2.7:9000", report.reason)
        self.assertIn("runs already", self.refusal(self.begin(answered=False)))
        self.reactor.advance(RETRY_SECONDS)
        self.answer()
        self.assertEqual(
            self.migrations.report.phase if self.migrations.report else None, Phase.MOVING
        )

    def test_called_off_while_it_waits(self) -> None:
        """One that waits for the other server is forgotten when it is called off."""
        self.client("ack")
        self.begin()
        self.migrations.interrupt()
        self.context.serving.take(Step.DRAIN)
        self.context.serving.take(Step.CALL_OFF)
        self.migrations = self.new_migrations()
        self.migrations.go_on()
        self.assertTrue(self.migrations.call_off())
        self.assertEqual((self.path.exists(), self.migrations.call_off()), (False, False))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_crossed(self) -> None:
        """A server that moves its phones, or wants to, refuses those of another."""
        begun = self.begin(answered=False)
        other = self.connect(server_key("there"))
        other.handshake(signed=True)
        self.assertEqual((other.errors, other.finished), (["SHUTTING_DOWN"], True))
        self.migrations.interrupt()
        self.refusal(begun)
        other = self.connect(server_key("there"))
        other.handshake(signed=True)
        self.assertEqual(len(other.greetings), 1)

    def test_port_is_taken(self) -> None:
        """A port that somebody else has taken meanwhile is tried again until it is free."""
        self.client("ack")
        self.begin()
        self.trouble = ConfigError("server.port: taken")
        self.migrations.call_off()
        self.assertEqual(self.opened, 0)
        self.trouble = None
        self.reactor.advance(RETRY_SECONDS)
        self.assertEqual(self.opened, 1)

    def test_nothing_to_go_on_with(self) -> None:
        """Where nothing is written down, or nonsense, there is nothing to go on with."""
        for text in (None, "{", '{"host": 1}'):
            if text is not None:
                self.path.write_text(text)
            self.migrations.go_on()
            self.assertIsNone(self.migrations.report)

    def test_called_off(self) -> None:
        """Called off, it is forgotten, and the ports are open."""
        self.assertFalse(self.migrations.call_off())
        self.client("ack")
        self.begin()
        self.assertTrue(self.migrations.call_off())
        self.assertEqual((self.opened, self.path.exists()), (1, False))
        assert self.migrations.report is not None
        self.assertEqual(self.migrations.report.phase, Phase.CALLED_OFF)
