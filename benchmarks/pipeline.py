"""
Where the time of a message goes, without a network: C{python -m benchmarks.pipeline [BATCH…]}.

One authenticated phone says echo commands, C{BATCH} at a time, to a gateway whose transport
throws away what it is given.  A bare Twisted server does the same by turns with it, so that
what else the machine does hits both.
"""

import gc
import sys
import time
from collections.abc import Iterator
from math import inf
from random import Random
from typing import Any

from twisted.internet.task import Clock

from benchmarks.bare_echo import BareEcho
from benchmarks.load import chat_lines, make_writer
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.threads import CommandThreads
from domaeka.config import BreakerSettings, load_settings
from domaeka.gateway.parts import Parts
from domaeka.gateway.protocol import GatewayFactory
from domaeka.gateway.registry import Registry
from domaeka.metrics import Metrics
from domaeka.phonewire import Identity, PhoneWriter
from domaeka.policies.auth import Signer
from domaeka.policies.limits import AddressLimits
from domaeka.server import GC_THRESHOLDS
from domaeka.startup import give_back_memory
from domaeka.testing import FakeDevices, FakeRooms
from domaeka.wire import MAX_LINE_BYTES, LineDecoder

KEY, SALT = "k" * 32, "salt"
ROUNDS = 15
MESSAGES = 1600  # in a round


class Sink:
    """A transport whose kernel takes everything at once."""

    def __init__(self) -> None:
        self.producer: Any = None
        self.written = 0

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.written += data.count(b"\n")

    def writeSomeData(self, data: bytes) -> int:
        self.written += data.count(b"\n")
        return len(data)

    def getPeer(self) -> Any:
        return None

    def pauseProducing(self) -> None:
        """The phone is not to be read from."""

    def resumeProducing(self) -> None:
        """The phone is to be read from."""


def make_gateway(signer: Signer, clock: Any) -> Any:
    """The protocol of one connection to a gateway without a store."""
    metrics = Metrics()
    settings = load_settings(None, [("limits.messages_per_second", "0")], {})
    dispatcher = BotDispatcher(
        (),
        clock,
        CommandThreads(clock),
        settings.bots,
        BreakerSettings(),
        observe=lambda command: metrics.handler.register(command).observe,
        failed=lambda command: None,
        busy=lambda: None,
    )
    parts = Parts(
        settings=settings,
        signer=signer,
        limits=AddressLimits(settings.limits, time.time),
        sessions=None,
        devices=FakeDevices(),
        rooms=FakeRooms(),
        chat_log=None,
        metrics=metrics,
        seconds=time.time,
        random=Random(1),
        server_version="0",
        node="here",
    )
    parts.dispatcher = dispatcher
    return GatewayFactory(Registry(parts, clock)).buildProtocol(None)


def reads(writer: PhoneWriter, batch: int) -> Iterator[bytes]:
    """What comes in a round, C{batch} lines at a time."""
    lines = chat_lines(writer, MESSAGES)
    for at in range(0, len(lines), batch):
        yield b"".join(lines[at : at + batch])


def seconds_a_message(protocol: Any, sink: Sink, data: list[bytes]) -> float:
    """CPU time of one round, by message."""
    before = sink.written
    began = time.process_time()
    for piece in data:
        protocol.dataReceived(piece)
    took = time.process_time() - began
    assert sink.written - before >= MESSAGES, (sink.written, before)
    return took / MESSAGES


def compare(batch: int) -> tuple[float, float]:
    """CPU time of a message, in seconds, at its best: the gateway's and bare Twisted's."""
    signer = Signer([KEY], SALT, 300.0, time.time)
    writer = make_writer(Identity(bot_name="봇", device_id="d" * 16), KEY, SALT)
    clock = Clock()
    clock.advance(time.time())
    ours, theirs = make_gateway(signer, clock), BareEcho()
    sinks = Sink(), Sink()
    for protocol, sink in zip((ours, theirs), sinks, strict=True):
        protocol.makeConnection(sink)
    ours.dataReceived(writer.handshake() + chat_lines(writer, 1)[0])
    clock.advance(0)  # who says more than is read of a stranger waits for a turn
    best = [1.0, 1.0]
    for _ in range(ROUNDS):
        data = list(reads(writer, batch))
        for number, protocol in enumerate((ours, theirs)):
            best[number] = min(best[number], seconds_a_message(protocol, sinks[number], data))
    return best[0], best[1]


def seconds_a_line(piece_bytes: int) -> float:
    """What it takes to cut a line of 1 MB out of pieces of so many bytes, at its best."""
    line = b"x" * (MAX_LINE_BYTES - 2) + b"\n"
    pieces = [line[at : at + piece_bytes] for at in range(0, len(line), piece_bytes)]
    best = inf
    for _ in range(ROUNDS):
        decoder = LineDecoder()
        began = time.process_time()
        for piece in pieces:
            decoder.feed(piece)
            found = decoder.next_line()
        best = min(best, time.process_time() - began)
        assert found == line[:-1]
    return best


def main() -> None:
    """Print the cost of a message, and of a line that comes in pieces."""
    gc.set_threshold(*GC_THRESHOLDS)
    give_back_memory()
    for piece_bytes in (1460, 100, 10):
        print(f"1 MB in pieces of {piece_bytes} bytes: {seconds_a_line(piece_bytes) * 1e3:.1f} ms")
    for batch in [int(word) for word in sys.argv[1:]] or [1, 8]:
        ours, bare = compare(batch)
        print(
            f"without a network, {batch} at a time: {ours * 1e6:.1f} µs a message; "
            f"bare {bare * 1e6:.1f} µs; ratio {ours / bare:.2f}"
        )


if __name__ == "__main__":
    main()
