"""
Stand-ins for tests, of this project and of bots: a phone, a server, a network, and the server's
parts.

A phone against a server, in virtual time::

    clock = Clock()
    server = VirtualServer(clock, factory)
    phone = FakePhone(clock, [server], secret_key, salt, script="3.2.1")
    phone.start()
    phone.say("# echo 안녕", room="테스트방")
    run_clock(clock, 1.0)
    assert phone.texts() == ["안녕"]

The same phone talks to a real server when it is given the real reactor and a
C{TCP4ClientEndpoint}.  L{FakeServer} is what a client (L{domaeka.client}) talks to.
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
from domaeka.testing.phone import STANDARD_IDENTITY, Comeback, FakePhone
from domaeka.testing.script import (
    SCRIPTS,
    BridgeScript,
    Dropped,
    JavaLines,
    PhoneRecord,
    Picture,
    ScriptVersion,
    Shown,
)
from domaeka.testing.server import FakeConversation, FakeDevice, FakeServer, FakeStore

__all__ = [
    "SCRIPTS",
    "STANDARD_IDENTITY",
    "BridgeScript",
    "Comeback",
    "Dropped",
    "FakeChatLog",
    "FakeConversation",
    "FakeDevice",
    "FakeDevices",
    "FakeDispatcher",
    "FakeOrigin",
    "FakePhone",
    "FakeResumption",
    "FakeRooms",
    "FakeServer",
    "FakeSessions",
    "FakeStore",
    "JavaLines",
    "PhoneRecord",
    "Picture",
    "ScriptVersion",
    "Shown",
    "VirtualServer",
    "VirtualTransport",
    "run_clock",
]
