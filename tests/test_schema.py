"""Tests for L{domaeka.schema}, as commands read it: L{domaeka.cli.leniency}."""

from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from domaeka.cli.leniency import lenient
from domaeka.health import Health
from domaeka.schema import (
    Accepted,
    Ban,
    Bans,
    Connection,
    Connections,
    Device,
    Ended,
    MigrationState,
)

CONNECTION: dict[str, Any] = {
    "id": "7",
    "bot": "봇",
    "device": "d",
    "address": "192.0.2.1",
    "version": "3.3",
    "client_type": "MessengerBotR",
    "device_info": "",
    "state": "ready",
    "approval": "approved",
    "capabilities": [],
    "since": "2026-11-22T12:00:31.408Z",
    "age_seconds": 1,
    "silent_seconds": 0.5,
    "quality": None,
    "bytes": {"received": 1, "sent": 2},
    "messages": {"received": 3, "sent": 4},
    "queue": {"messages": 0, "bytes": 0, "unanswered": 0},
}
BAN: dict[str, Any] = {
    "network": "192.0.2.1/32",
    "reason": "",
    "made_at": "2026-11-22T12:00:31.408Z",
    "expires": None,
    "times": 1,
    "made_by": "",
}


class LenientTests(SynchronousTestCase):
    """A command reads what servers of other versions say."""

    def read(self, value: object, kind: Any) -> Any:
        """What a command makes of an answer."""
        return msgspec.convert(value, lenient(kind))

    def test_older_server(self) -> None:
        """Fields that came later have a value: none, or one that says nothing."""
        found = self.read(CONNECTION, Connection)
        later = (found.monitoring, found.kernel, found.clock_skew_seconds, found.ended_last_hour)
        self.assertEqual(later, (None,) * 4)
        ban = self.read(BAN, Ban)
        self.assertEqual((ban.claimed_bot, ban.claimed_device), ("", ""))
        self.assertEqual(self.read({"bans": [BAN]}, Bans).total, 0)
        health = self.read({"status": "healthy", "connections": 1, "checks": {}}, Health)
        self.assertEqual((health.version, health.uptime), ("", 0.0))

    def test_newer_server(self) -> None:
        """Words and fields that are not known yet do no harm, nor do figures out of bounds."""
        quality = {
            "score": 250,
            "grade": "splendid",
            "reasons": [],
            "loss": 0,
            "rtt": None,
            "ping_interval_seconds": 30,
            "ping_timeout_seconds": 90,
            "colour": "blue",
        }
        new = {"state": "asleep", "approval": "adored", "quality": quality, "mood": [1]}
        page = {"connections": [CONNECTION | new], "total": 1, "weather": {}}
        (found,) = self.read(page, Connections).connections
        self.assertEqual((found.state, found.approval), ("asleep", "adored"))
        self.assertEqual((found.quality.score, found.quality.grade), (250, "splendid"))
        moved = dict.fromkeys(("told", "arrived", "missing", "sent_on", "remaining", "port"), 1)
        moved_on = self.read({"phase": "landed", "host": "h"} | moved, MigrationState)
        self.assertEqual((moved_on.phase, moved_on.reason), ("landed", ""))

    def test_no_such_answer(self) -> None:
        """What was always there must be there, and of its type."""
        for value, kind in (
            ({}, Accepted),
            ({"id": 5}, Accepted),
            ([], Connections),
            ({"total": 1}, Connections),
            ({"connections": [{}], "total": 1}, Connections),
            (CONNECTION | {"silent_seconds": "long"}, Connection),
            (CONNECTION | {"queue": {}}, Connection),
            ({"bot": "봇"}, Device),
            (BAN | {"reason": None}, Ban),
            (BAN, Ended),
        ):
            self.assertRaises(msgspec.ValidationError, self.read, value, kind)
