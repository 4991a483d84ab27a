"""
Where the time of a message goes, without a network: C{python -m benchmarks.pipeline [BATCH]}.

One authenticated phone says echo commands, C{BATCH} at a time, to a gateway whose transport
throws away what it is given.
"""

import sys
import time
from random import Random
from typing import Any

from twisted.internet.task import Clock

from benchmarks.load import chat_lines
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
from domaeka.testing import FakeDevices, FakeRooms

KEY, SALT = "k" * 32, "salt"


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
        """Take what the kernel had no room for: never."""

    def writeSomeData(self, data: bytes) -> int:
        self.written += data.count(b"\n")
        return len(data)

    def getPeer(self) -> Any:
        return None

    def pauseProducing(self) -> None:
        """The phone is not to be read from."""

    def resumeProducing(self) -> None:
        """The phone is to be read from."""


def main() -> None:
    """Print the cost of a message."""
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    clock = Clock()
    clock.advance(time.time())
    metrics = Metrics()
    settings = load_settings(None, [("limits.messages_per_second", "0")], {})
    dispatcher = BotDispatcher(
        (),
        clock,  # type: ignore[arg-type]
        CommandThreads(clock),  # type: ignore[arg-type]
        settings.bots,
        BreakerSettings(),
        observe=lambda command, took: metrics.handler.labels(command).observe(took),
        failed=lambda command: None,
        busy=lambda: None,
    )
    signer = Signer([KEY], SALT, 300.0, time.time)
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
    protocol = GatewayFactory(Registry(parts, clock)).buildProtocol(None)
    assert protocol is not None
    sink = Sink()
    protocol.makeConnection(sink)  # type: ignore[arg-type]
    writer = PhoneWriter(Identity(bot_name="봇", device_id="d" * 16), signer.sign, time.time)
    protocol.dataReceived(writer.handshake())
    best = 1e9

    class _Phone:
        pass

    phone: Any = _Phone()
    phone.writer = writer
    for _ in range(5):
        lines = chat_lines(phone, 4000)
        reads = [b"".join(lines[at : at + batch]) for at in range(0, len(lines), batch)]
        before = sink.written
        began = time.perf_counter()
        for data in reads:
            protocol.dataReceived(data)
        best = min(best, (time.perf_counter() - began) / len(lines))
        assert sink.written - before >= len(lines), (sink.written, before)
    print(f"{best * 1e6:.1f} µs a message, {batch} at a time")


if __name__ == "__main__":
    main()
