"""Tests for L{domaeka.gateway.conversation.violations}: what a peer is told that does wrong."""

import json
from typing import cast

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from domaeka.gateway.conversation.violations import ERRORS_ALLOWED
from domaeka.interfaces import DeviceKey
from domaeka.logs import json_line
from tests.gateway_case import GatewayCase

OTHER = DeviceKey("봇", "e" * 16)
JUNK = b'{"event":"nonsense"}\n'


class _Broken:
    """A dispatcher that breaks its promise."""

    def submit(self, chat: object, origin: object) -> None:
        raise ZeroDivisionError


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
        self.context.dispatcher = _Broken()
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
        for _ in range(5):
            self.context.limits.failed_signature(self.conversation().peer.address)
        self.run_for(5.0)
        self.assertEqual(self.context.limits.judge(), [])
        peer.clock_offset = 0.0
        peer.chat("말")
        self.assertEqual(peer.texts, ["말"])

    def test_clock_fault_is_logged(self) -> None:
        """The log says whose clock is off, and by how much, in a message or a handshake."""
        events: list[LogEvent] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for number, skew in enumerate((400.0, -3600.0)):
            peer = self.connect() if number else self.greeted()
            peer.clock_offset = skew
            if number:
                peer.handshake(signed=True, capabilities=("ack",))
            else:
                peer.chat("말")
            (event,) = (each for each in events if "clock" in str(each.get("log_format")))
            line = json.loads(json_line(event))
            self.assertEqual(
                tuple(line[name] for name in ("bot", "device", "address")),
                (*(self.conversation().peer.key or ()), self.server.client_host),
            )
            self.assertAlmostEqual(line["skew_seconds"], skew, delta=1.0)
            self.assertIn(f"{line['skew_seconds']} s ahead of ours", line["message"])
            events.clear()

    def test_clock_faults_are_given_back(self) -> None:
        """Phones whose clocks are off use up no attempts of their address: one a connection."""
        self.server.client_host = "198.51.100.7"
        for number in range(10):
            peer = self.connect() if number % 2 else self.greeted()
            peer.clock_offset = 400.0
            if number % 2:
                peer.handshake(signed=True, capabilities=("ack",))
            else:
                peer.chat("하나", "둘")
            self.assertEqual(peer.errors, ["AUTH_FAILED"])
            peer.drop()
        self.assertEqual([self.connect().refused for _ in range(11)], [False] * 10 + [True])
