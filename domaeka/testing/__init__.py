"""
Test doubles, for this project and for bots: a phone, a server, a network, and the server's parts.

A bot, in virtual time (L{Room})::

    with Room(bot) as room:
        assert room.say("# echo 안녕") == ["안녕"]

A phone against a server, in virtual time::

    clock = Clock()
    server = VirtualServer(clock, factory)
    phone = FakePhone(clock, [server], secret_key, salt, script="3.2.1")
    phone.start()
    phone.say("# echo 안녕", room="테스트방")
    run_clock(clock, 1.0)
    assert phone.texts() == ["안녕"]

The same phone talks to a real server, given the real reactor and a C{TCP4ClientEndpoint}.
L{FakeServer} is a server for tests of clients (L{domaeka.client}): the gateway itself, which also
does what the test tells it to.
"""

from domaeka.testing.fakes import (
    FakeChatLog,
    FakeDevices,
    FakeDispatcher,
    FakeOrigin,
    FakeResumption,
    FakeRooms,
    FakeSessions,
)
from domaeka.testing.network import VirtualServer, VirtualTransport, run_clock
from domaeka.testing.phone import STANDARD_IDENTITY, FakePhone, Reconnection
from domaeka.testing.room import File, Room
from domaeka.testing.script import (
    SCRIPTS,
    BridgeScript,
    Dropped,
    JavaLineReader,
    PhoneRecord,
    ScriptVersion,
    SentFile,
    SentMessage,
)
from domaeka.testing.server import FakeServer, make_context, transport_context

__all__ = [
    "SCRIPTS",
    "STANDARD_IDENTITY",
    "BridgeScript",
    "Dropped",
    "FakeChatLog",
    "FakeDevices",
    "FakeDispatcher",
    "FakeOrigin",
    "FakePhone",
    "FakeResumption",
    "FakeRooms",
    "FakeServer",
    "FakeSessions",
    "File",
    "JavaLineReader",
    "PhoneRecord",
    "Reconnection",
    "Room",
    "ScriptVersion",
    "SentFile",
    "SentMessage",
    "VirtualServer",
    "VirtualTransport",
    "make_context",
    "run_clock",
    "transport_context",
]
