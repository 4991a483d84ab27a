"""Tests for L{domaeka.server.fatal}."""

import atexit
import os
import sys
from io import StringIO
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import SettingsSource
from domaeka.server.fatal import Fatal


class FatalTests(SynchronousTestCase):
    """Tests for L{Fatal}."""

    def setUp(self) -> None:
        self.stops = 0
        self.exits: list[tuple[object, ...]] = []
        self.patch(atexit, "register", lambda *call: self.exits.append(call))
        self.errors = StringIO()
        self.patch(sys, "__stderr__", self.errors)
        source = SettingsSource(None, [("server.port", "80")], {})
        source.load()
        reactor: Any = self
        self.fatal = Fatal(reactor, source)

    def callWhenRunning(self, function: Any) -> None:
        """As a reactor does that runs."""
        function()

    def stop(self) -> None:
        """As a reactor does."""
        if self.stops:
            raise ReactorNotRunning
        self.stops += 1

    def test_one_line(self) -> None:
        """Why is said once, with the place of the setting; the status is not 0."""
        self.fatal.end("server.port: taken")
        self.fatal.end("tls.port: taken")
        self.assertEqual(self.errors.getvalue(), "domaeka: command line: server.port: taken\n")
        self.assertEqual((self.stops, self.exits), (1, [(os._exit, 1)]))

    def test_failure(self) -> None:
        """An error is told in its own words."""
        self.fatal.end(Failure(ValueError("no")))
        self.assertEqual(self.errors.getvalue(), "domaeka: no\n")

    def test_at_the_end(self) -> None:
        """What fails while the server stops does not change how it ends."""
        self.stop()
        self.fatal.end("server.port: taken")
        self.assertEqual((self.errors.getvalue(), self.stops, self.exits), ("", 1, []))
