"""
Damaged input, a lot of it: to the codec, and to whole connections, without sockets.

The same inputs each time in the short form, others each time in the long one; as many as
C{$FUZZ_INPUTS}, and those of C{$FUZZ_SEED}, where they are given.
"""

import os
from collections.abc import Iterator
from random import Random, SystemRandom
from typing import Any, Final, cast

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import WireError
from domaeka.gateway.directory import Directory
from domaeka.gateway.transport.connection import GatewayFactory, GatewayProtocol
from domaeka.interfaces import DeviceKey
from domaeka.policies.auth import Signer
from domaeka.testing import (
    FakeDevices,
    FakeDispatcher,
    FakeSessions,
    make_context,
    transport_context,
)
from domaeka.wire import (
    MAX_TEXT_CHARS,
    Ack,
    Chat,
    Deflater,
    Delivered,
    Dialect,
    FrameReader,
    Identity,
    Inflater,
    PhoneWriter,
    Reply,
    Said,
    encode_frame,
    pack_text,
    read_server_frame,
)
from tests.clocks import WallClock
from tests.gateway_case import NOW, SALT, SECRET, content_of
from tests.proofs import LONG
from tests.samples import LINES

INPUTS: Final = int(os.environ.get("FUZZ_INPUTS", 1_000_000 if LONG else 100_000))
SEED: Final = os.environ.get("FUZZ_SEED", str(SystemRandom().randrange(2**32)) if LONG else "1")
#: Most lines of one connection.
_LINES: Final = 24
#: What is put into lines: all that a parser may stumble over.
_ODD: Final = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"\r\n", b"\0", b"|"),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e999", b"-0", b"9" * 400, b"0.1", b'""', b"{}"),
    *(b"\\ud800", b"\\udc00\\ud83d", b"\\u0000", b"\xed\xa0\x80", b"\xff", b"\xef\xbb\xbf"),
    *("\u2028".encode(), "한".encode(), b"A" * 200, b"[" * 2000, b'{"a":' * 600, b"=="),
    *(b'"auth":', b'"event":"message"', b'"event":"ping"', b'"data":', b'"botName":"x"'),
)
_KEYS: Final = tuple(DeviceKey("봇", f"{number:016x}") for number in range(4))


class Damage:
    """Makes input that is nearly right."""

    def __init__(self, seed: str, seconds: Any) -> None:
        self.chance = Random(seed)
        self._seconds = seconds
        self._samples: list[bytes] = list(LINES.values())
        self._said = 0

    def damaged(self, line: bytes) -> bytes:
        """C{line} with some of it changed."""
        chance = self.chance
        new: bytes
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            start = chance.randrange(len(line) + 1)
            end = min(len(line), start + chance.choice((0, 0, 1, 1, 2, 8, 64)))
            kind = chance.randrange(5)
            if kind == 0:
                new = chance.choice(_ODD)
            elif kind == 1:
                new = chance.randbytes(chance.randrange(5))
            elif kind == 2:  # a piece of it again
                at = chance.randrange(len(line) + 1)
                new = line[at : at + chance.randrange(40)]
            elif kind == 3:  # a piece of another
                other = chance.choice(self._samples)
                at = chance.randrange(len(other))
                new = other[at : at + chance.randrange(200)]
            else:
                new = bytes(byte ^ 1 << chance.randrange(8) for byte in line[start:end])
            line = b"".join((line[:start], new, line[end:]))
        return line

    def sample(self) -> bytes:
        """A damaged sample line."""
        return self.damaged(self.chance.choice(self._samples))

    def lines(self, *capabilities: str) -> list[bytes]:
        """What a phone, or somebody else, says on one connection; some of it is damaged."""
        chance = self.chance
        key = chance.choice(_KEYS)
        identity = Identity(bot_name=key.bot_name, device_id=key.device_id)
        secret = SECRET if chance.random() < 0.9 else "another secret of enough bytes"
        signer = Signer([secret], SALT, 0.0, self._seconds)
        writer = PhoneWriter(identity, signer.sign, self._seconds)
        lines = []
        if capabilities or chance.random() < 0.7:
            lines.append(
                writer.handshake(
                    bare=chance.random() < 0.2,
                    signed=bool(capabilities) or chance.random() < 0.3,
                    capabilities=capabilities,
                )
            )
        while len(lines) < chance.randrange(1, _LINES):
            line = self._line(writer)
            lines.append(self.damaged(line) if chance.random() < 0.3 else line)
        return lines

    def _line(self, writer: PhoneWriter) -> bytes:
        chance = self.chance
        kind = chance.randrange(10)
        if kind == 0:
            return writer.pong("2026-11-22T12:00:00.000Z")
        if kind == 1:
            return encode_frame("ack", Ack(chance.randrange(-3, 10**9)))
        if kind == 2:
            return chance.choice(self._samples) + b"\n"
        if kind == 3:
            return writer.handshake(capabilities=("ack", "gzip"), signed=chance.random() < 0.5)
        self._said += 1
        said = Said(
            room="방",
            sender="누구",
            text=f"말 {self._said} " * (1 if chance.random() < 0.95 else 2000),
            channel_id="18398338829933617",
            log_id=str(self._said),
        )
        return writer.chat(
            said,
            chance.choice(list(Dialect)),
            client_id=f"c{self._said}" if chance.random() < 0.2 else None,
            pack=pack_text if chance.random() < 0.2 else None,
        )

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """C{data}, cut anywhere."""
        start = 0
        longest = self.chance.choice((1, 7, 100, 1000, 100_000)) + len(data) // 50
        while start < len(data):
            end = start + self.chance.randrange(1, longest + 1)
            yield data[start:end]
            start = end


class Wire:
    """A transport whose kernel takes everything, and which delivers nothing while it is paused."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.paused = False
        self.ended = False

    def getPeer(self) -> IPv4Address:
        """Where nobody is limited."""
        return IPv4Address("TCP", "192.0.2.1", 1)

    def writeSomeData(self, data: bytes) -> int:
        """Take all."""
        self.sent += data
        return len(data)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Nobody need be told when there is room."""

    def unregisterProducer(self) -> None:
        """Likewise."""

    def pauseProducing(self) -> None:
        """Deliver nothing."""
        self.paused = True

    def resumeProducing(self) -> None:
        """Deliver again."""
        self.paused = False

    def loseConnection(self) -> None:
        """All has been said."""
        self.ended = True

    loseWriteConnection = abortConnection = loseConnection


class Gateway:
    """One of two that must come to the same."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.devices = FakeDevices()
        self.context = make_context(
            clock,
            WallClock(clock, NOW),
            SECRET,
            SALT,
            dispatcher=FakeDispatcher(content_of),
            devices=self.devices,
            sessions=FakeSessions(),
        )
        self.directory = Directory(self.context, cast(Any, clock))
        self.registry = self.directory.registry
        self._factory = GatewayFactory(transport_context(self.directory))

    def listen_to(self, pieces: Iterator[bytes]) -> tuple[Any, ...]:
        """One connection, from its beginning to its end.  @return: all that can be seen of it."""
        wire = Wire()
        protocol = self._factory.buildProtocol(None)
        assert isinstance(protocol, GatewayProtocol)
        protocol.makeConnection(cast(Any, wire))
        for piece in pieces:
            assert not wire.paused, "never read from again"
            protocol.dataReceived(piece)
            while wire.paused and self.clock.getDelayedCalls():
                self.clock.advance(0)
        session: Any = protocol._conversation
        state, reason, key = session.peer.state, session.peer.reason, session.peer.key
        bytes_received = session.peer.messages_received
        protocol.connectionLost(Failure(ConnectionDone()))
        assert self.registry.connections == self.directory.admission.taken == 0
        assert self.context.metrics.errors.labels("INTERNAL").value == 0
        return state, reason, key, bytes_received, *_told(bytes(wire.sent))


def _told(sent: bytes) -> tuple[list[Reply], list[bytes]]:
    """The replies, and all else: each in its order, for what is read together goes out sorted."""
    greeting, newline, rest = sent.partition(b"\n")
    if b'"deflate"' in greeting and not rest.startswith(b"{"):
        inflater = Inflater()
        inflater.feed(rest)
        sent = greeting + newline + b"".join(iter(inflater.next_piece, b""))
    replies: list[Reply] = []
    others: list[bytes] = []
    for line in sent.splitlines():
        # What was said last, of what was read together, decides on the form.
        dialect = Dialect.V33 if b'"message_type"' in line else Dialect.V32
        frame = read_server_frame(line, dialect)
        if isinstance(frame, Delivered):
            replies.append(frame.reply)
        else:
            others.append(line)
    return replies, others


class FuzzTests(SynchronousTestCase):
    """Whatever comes, it is a message or a refusal; and however it is cut, the same."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.damage = Damage(SEED, WallClock(self.clock, NOW))

    def test_codec(self) -> None:
        """A line comes out as a message within its bounds, or as one error in one line."""
        reader = FrameReader()
        for _ in range(INPUTS * 4 // 5):
            line = self.damage.sample()
            try:
                found = reader.read(line)
                if isinstance(found, Chat):
                    reader.inflate(found)
                    found.text.encode()
                    assert len(found.text) <= MAX_TEXT_CHARS and found.room.strip(), line
            except WireError as error:
                assert len(error.text) < 150 and "\n" not in error.text, line

    def test_connections(self) -> None:
        """A stream is answered the same, whole and in pieces; only who has the key is known."""
        whole, cut, broken = (Gateway(self.clock) for _ in range(3))
        inputs = 0
        while inputs < INPUTS // 5:
            packed = self.damage.chance.random() < 0.2
            lines = self.damage.lines(*(("deflate", "session", "ack") if packed else ()))
            data = b"".join(lines)
            if packed:
                data = lines[0] + Deflater().pack(data[len(lines[0]) :])
            seen = whole.listen_to(iter([data])), cut.listen_to(self.damage.pieces(data))
            if seen[0] != seen[1]:  # to look for where costs minutes
                self.fail(f"seed {SEED}: {data!r}\n{seen[0]!r}\n{seen[1]!r}")
            if packed:  # a broken stream may lose more or less of what is before the break
                broken.listen_to(iter([lines[0] + self.damage.damaged(data[len(lines[0]) :])]))
            inputs += len(lines)
            self.clock.advance(0.005)
            if inputs % 1000 < _LINES:
                for gateway in (whole, cut, broken):
                    for _ in gateway.context.authentication.forget():
                        pass
        for gateway in (whole, cut, broken):
            self.assertLessEqual(gateway.devices.known.keys(), set(_KEYS))
