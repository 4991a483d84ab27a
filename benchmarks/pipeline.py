"""
Cost of a message without a network: C{python -m benchmarks.pipeline [BATCH…]}.

One authenticated phone sends echo commands, C{BATCH} at a time, to a gateway whose transport
discards its output.  A bare Twisted server does the same in turn with it, so that other load on
the machine affects both.
"""

import gc
import sys
import time
from collections.abc import Iterator
from math import inf
from typing import Any

from twisted.internet.task import Clock

from benchmarks.bare_server import Bare
from benchmarks.load import chat_lines, make_writer
from domaeka.bots.coroutines import BotLoop
from domaeka.bots.dispatch import BotDispatcher
from domaeka.bots.threads import CommandThreads
from domaeka.config import BreakerSettings, load_settings
from domaeka.gateway.directory import Directory
from domaeka.gateway.serving import Step
from domaeka.gateway.transport.connection import GatewayFactory
from domaeka.metrics import Metrics
from domaeka.server import GC_THRESHOLDS, give_back_memory
from domaeka.testing import make_context, transport_context
from domaeka.wire import MAX_LINE_BYTES, Identity, LineDecoder, PhoneWriter

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

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Do nothing: there is no delay."""

    def pauseProducing(self) -> None:
        """Do nothing: reading never pauses."""

    def resumeProducing(self) -> None:
        """Do nothing: reading never pauses."""


class _Reactor(Clock):
    """A clock to which threads could hand calls: none of these commands runs in one."""

    def callFromThread(self, callable: Any, *args: Any) -> None:
        """Call it now."""
        callable(*args)


def make_gateway(clock: Any) -> Any:
    """Protocol of a connection to a gateway without a store."""
    metrics = Metrics()
    threads = CommandThreads(clock)
    dispatcher = BotDispatcher(
        (),
        clock,
        threads,
        load_settings(None, [], {}).bots,
        BreakerSettings(),
        loop=BotLoop(clock, threads),
        observe=lambda command: metrics.handler.register(command).observe,
        failed=lambda command: None,
        busy=lambda: None,
    )
    unlimited = [("limits.messages_per_second", "0")]
    context = make_context(clock, time.time, KEY, SALT, unlimited, dispatcher=dispatcher)
    directory = Directory(context, clock)
    context.serving.take(Step.OPEN)
    return GatewayFactory(transport_context(directory)).buildProtocol(None)


def reads(writer: PhoneWriter, batch: int) -> Iterator[bytes]:
    """Input of a round, C{batch} lines at a time."""
    lines = chat_lines(writer, MESSAGES)
    for at in range(0, len(lines), batch):
        yield b"".join(lines[at : at + batch])


def seconds_a_message(protocol: Any, sink: Sink, data: list[bytes]) -> float:
    """CPU time of a round, per message."""
    before = sink.written
    began = time.process_time()
    for piece in data:
        protocol.dataReceived(piece)
    took = time.process_time() - began
    assert sink.written - before >= MESSAGES, (sink.written, before)
    return took / MESSAGES


def compare(batch: int) -> tuple[float, float]:
    """Least CPU time of a message, in seconds: the gateway's and bare Twisted's."""
    writer = make_writer(Identity(bot_name="봇", device_id="d" * 16), KEY, SALT)
    clock = _Reactor()
    clock.advance(time.time())
    ours, theirs = make_gateway(clock), Bare(KEY, SALT, 30.0)
    sinks = Sink(), Sink()
    for protocol, sink in zip((ours, theirs), sinks, strict=True):
        protocol.makeConnection(sink)
    clock.advance(1.0)  # signatures of before the server began are doubted
    ours.dataReceived(writer.handshake() + chat_lines(writer, 1)[0])
    clock.advance(0)  # lines beyond the bound before authentication wait for the next turn
    best = [1.0, 1.0]
    for _ in range(ROUNDS):
        data = list(reads(writer, batch))
        for number, protocol in enumerate((ours, theirs)):
            best[number] = min(best[number], seconds_a_message(protocol, sinks[number], data))
    return best[0], best[1]


def seconds_a_line(piece_bytes: int) -> float:
    """Least time to cut a line of 1 MB out of pieces of C{piece_bytes}, in seconds."""
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
    """Print the cost of a message, and of a line in pieces."""
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
