"""
Yardsticks in Python: Twisted servers that do only the bare work of a message.

They split lines, read the JSON, check age and signature, decode the text, and answer C{# echo};
they greet a handshake and ping right after it, as domaeka does.  C{bare} is a first version, with
the standard library.  C{tuned} is the fastest version: msgspec, copied HMAC states, replies from
templates, one write past Twisted's buffer for all answers of a read, and substitutes for the
counting of a gateway.

Usage: C{python -m benchmarks.bare_server bare|tuned PORT SECRET SALT PING_INTERVAL}.  It listens on
127.0.0.1 only, and ends when its standard input does.
"""

import base64
import binascii
import gc
import hashlib
import hmac
import json
import random
import sys
import time
from bisect import bisect
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from twisted.internet.protocol import Factory, Protocol

#: Longest age of a signature, and farthest into the future, in milliseconds.  Source:
#: docs/protocol.md.
MAX_AGE_MS: Final = 300_000
#: Longest line, in bytes: a frame of 1 MB fits well.
MAX_LINE_BYTES: Final = 8 << 20
COMMAND: Final = "# echo"
#: Most rooms whose reply is kept as a template.
MAX_TEMPLATES: Final = 20_000
#: Number of groups in which connections are pinged, one after the other.
PING_GROUPS: Final = 300


def text_now() -> str:
    """The time now, in the wire's format."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def encode(event: str, data: dict[str, Any]) -> bytes:
    """A frame without its tail."""
    return json.dumps({"event": event, "data": data}, ensure_ascii=False).encode()


def greeting(bot_name: str) -> bytes:
    """Answer to a handshake, with the first ping."""
    complete = {
        "success": True,
        "approved": True,
        "message": "ok",
        "server_version": "1",
        "timestamp": text_now(),
        "timezone": "Asia/Seoul",
        "message_positions": [0, 0],
    }
    return encode("handshakeComplete", complete) + b"\n" + ping(bot_name)


def ping(bot_name: str) -> bytes:
    """A ping."""
    data = {"bot_name": bot_name, "server_timestamp": text_now(), "message_positions": [0, 0]}
    return encode("ping", data) + b"\n"


class Bare(Protocol):
    """A first version, with the standard library."""

    transport: Any

    def __init__(self, secret: str, salt: str, interval: float, reactor: Any = None) -> None:
        """
        @param interval: seconds between two pings.
        @param reactor: L{None}: no pings but the first.
        """
        self._key = secret.encode()
        self._salt = salt
        self._interval = interval
        self._reactor = reactor
        self._rest = b""
        self._timer: Any = None

    # IProtocol

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            answer = self.answer(line)
            if answer is not None:
                self.transport.write(answer)

    def connectionLost(self, reason: Any = None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def answer(self, line: bytes) -> bytes | None:
        """Answer to a line, if there is one."""
        end = line.rfind(b"}") + 1
        frame = json.loads(line[:end])
        event, data = frame["event"], frame["data"]
        if event == "handshake":
            bot_name = data["botName"]
            self._ping_in(self._interval * random.random(), bot_name)
            return greeting(bot_name)
        if not self._is_believed(data.get("auth")) or event != "message":
            return None
        text = base64.b64decode(line[end:]).decode()
        if not text.startswith(COMMAND):
            return None
        tail = base64.b64encode(text[len(COMMAND) :].strip().encode())
        reply = {
            "room": data["room"],
            "channel_id": data["channel_id"],
            "bot_name": data["bot_name"],
            "message_type": "text",
            "content_encoding": "base64",
            "message_positions": [0, len(tail)],
            "timestamp": text_now(),
            "timezone": "Asia/Seoul",
        }
        return encode("messageResponse", reply) + tail + b"\n"

    def _is_believed(self, auth: Any) -> bool:
        if not auth or abs(time.time() * 1000 - auth["timestamp"]) > MAX_AGE_MS:
            return False
        names = ("clientType", "botName", "deviceUUID", "macAddress", "ipAddress")
        signed = "|".join((*(auth[name] for name in names), str(auth["timestamp"]), self._salt))
        want = hmac.new(self._key, signed.encode(), hashlib.sha256).hexdigest()
        return hmac.compare_digest(want, auth["signature"])

    def _ping_in(self, seconds: float, bot_name: str) -> None:
        def due() -> None:
            self.transport.write(ping(bot_name))
            self._timer = self._reactor.callLater(self._interval, due)

        if self._reactor is not None and self._timer is None:
            self._timer = self._reactor.callLater(seconds, due)


class Auth(msgspec.Struct, gc=False):
    """The signature in a frame."""

    clientType: str = ""
    botName: str = ""
    deviceUUID: str = ""
    macAddress: str = ""
    ipAddress: str = ""
    timestamp: int = 0
    signature: str = ""


class Data(msgspec.Struct, gc=False):
    """The fields of a frame that are used here."""

    room: str = ""
    channel_id: str = ""
    bot_name: str = ""
    botName: str = ""
    auth: Auth | None = None


class Frame(msgspec.Struct, gc=False):
    """A frame of any kind."""

    event: str
    data: Data


class Shared:
    """State that all tuned connections share."""

    #: Bounds of the latency histogram's buckets, in seconds.
    EDGES: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

    def __init__(self, secret: str, salt: str) -> None:
        key = secret.encode()
        key = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        self.inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key))
        self.outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key))
        self.salt = salt
        self.decode: Callable[[bytes], Frame] = msgspec.json.Decoder(Frame).decode
        self.templates: dict[tuple[str, str, str], bytes] = {}
        self.counts = [0] * (len(self.EDGES) + 1)
        self.sent = self.sent_bytes = 0
        self.groups: list[set[Tuned]] = [set() for _ in range(PING_GROUPS)]
        self._group = 0
        self._second = -1
        self._second_text = ""
        self._milliseconds = [f".{number:03d}Z" for number in range(1000)]

    def text_now(self, now: float) -> str:
        """The time C{now}; its whole seconds are formatted once a second."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return self._second_text + self._milliseconds[int((now - second) * 1000)]

    def template(self, room: str, channel_id: str, bot_name: str) -> bytes:
        """A reply with places for the tail's length, the time, and the tail."""
        key = (room, channel_id, bot_name)
        template = self.templates.get(key)
        if template is None:
            if len(self.templates) >= MAX_TEMPLATES:
                self.templates.clear()
            names = tuple(map(msgspec.json.encode, key))
            head = (
                b'{"event":"messageResponse","data":{"room":%b,"channel_id":%b,"bot_name":%b,'
                b'"message_type":"text","content_encoding":"base64","timezone":"Asia/Seoul",'
                b'"message_positions":[0,' % names
            )
            template = head.replace(b"%", b"%%") + b'%d],"timestamp":"%b"}}%b\n'
            self.templates[key] = template
        return template

    def ping_groups(self, count: int) -> None:
        """Ping the next groups."""
        for _ in range(min(count, PING_GROUPS)):
            group = self.groups[self._group]
            self._group = (self._group + 1) % PING_GROUPS
            if group:
                line = ping("LOA.i")
                for protocol in group:
                    protocol.put(line)


class Tuned(Protocol):
    """The fastest version."""

    transport: Any

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._pending = bytearray()
        self._searched = 0
        self._spilled = False
        self._received = self._sent = 0
        self._tokens = 1e9
        self._seen = self._filled_at = time.monotonic()
        self.group: set[Tuned] | None = None

    # IProtocol

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._socket = self.transport.getHandle()

    def dataReceived(self, data: bytes) -> None:
        pending = self._pending
        pending += data
        answers = []
        start = 0
        end = pending.find(b"\n", self._searched)
        while end >= 0:
            answer = self._counted(bytes(memoryview(pending)[start:end]))
            if answer is not None:
                answers.append(answer)
            start = end + 1
            end = pending.find(b"\n", start)
        if start:
            del pending[:start]
        self._searched = len(pending)
        if len(pending) > MAX_LINE_BYTES:
            self.transport.abortConnection()
        if answers:
            self.put(answers[0] if len(answers) == 1 else b"".join(answers))

    def connectionLost(self, reason: Any = None) -> None:
        if self.group is not None:
            self.group.discard(self)

    # IPullProducer

    def resumeProducing(self) -> None:
        if self._spilled:
            self._spilled = False
            self.transport.unregisterProducer()

    def stopProducing(self) -> None:
        pass

    def put(self, data: bytes) -> None:
        """Write to the kernel at once; Twisted writes the rest, if there is one."""
        if self._spilled:
            self.transport.write(data)
            return
        try:
            sent = self._socket.send(data)
        except OSError:
            sent = 0
        if sent != len(data):
            self._spilled = True
            self.transport.write(data[sent:])
            self.transport.registerProducer(self, False)

    def _counted(self, line: bytes) -> bytes | None:
        """Answer a line, and count as a gateway does."""
        began = time.monotonic()
        shared = self._shared
        self._seen = began
        self._received += 1
        self._tokens = min(1e9, self._tokens + (began - self._filled_at) * 1e6)
        self._filled_at = began
        if self._tokens < 1:
            return None
        self._tokens -= 1
        answer = self._answer(line)
        if answer is not None:
            self._sent += 1
            shared.sent += 1
            shared.sent_bytes += len(answer)
        shared.counts[bisect(shared.EDGES, time.monotonic() - began)] += 1
        return answer

    def _answer(self, line: bytes) -> bytes | None:
        shared = self._shared
        end = line.rfind(b"}") + 1
        frame = shared.decode(line[:end])
        data = frame.data
        if frame.event == "handshake":
            if self.group is None:
                self.group = random.choice(shared.groups)
                self.group.add(self)
            return greeting(data.botName)
        now = time.time()
        auth = data.auth
        if auth is None or abs(now * 1000 - auth.timestamp) > MAX_AGE_MS:
            return None
        inner, outer = shared.inner.copy(), shared.outer.copy()
        inner.update(
            f"{auth.clientType}|{auth.botName}|{auth.deviceUUID}|{auth.macAddress}|"
            f"{auth.ipAddress}|{auth.timestamp}|{shared.salt}".encode()
        )
        outer.update(inner.digest())
        if not hmac.compare_digest(outer.hexdigest(), auth.signature):
            return None
        if frame.event != "message":
            return None
        text = binascii.a2b_base64(line[end:]).decode()
        if not text.startswith(COMMAND):
            return None
        tail = binascii.b2a_base64(text[len(COMMAND) :].strip().encode(), newline=False)
        template = shared.template(data.room, data.channel_id, data.bot_name)
        return template % (len(tail), shared.text_now(now).encode(), tail)


class _Leash(Protocol):
    """Standard input: the server ends when it does."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    # IProtocol

    def connectionLost(self, reason: Any = None) -> None:
        self._stop()


def main(kind: str, port: int, secret: str, salt: str, interval: float) -> None:
    """
    Serve until standard input ends.

    @param interval: seconds between two pings of a connection.
    """
    from twisted.internet import reactor as _reactor
    from twisted.internet.stdio import StandardIO
    from twisted.internet.task import LoopingCall

    reactor: Any = _reactor  # a module, to mypy
    factory = Factory()
    factory.noisy = False
    if kind == "tuned":
        shared = Shared(secret, salt)
        factory.buildProtocol = lambda addr: Tuned(shared)  # type: ignore[method-assign]
        groups = LoopingCall.withCount(shared.ping_groups)
        groups.start(interval / PING_GROUPS, now=False).addErrback(lambda why: reactor.crash())
    else:
        factory.buildProtocol = lambda addr: Bare(  # type: ignore[method-assign]
            secret, salt, interval, reactor
        )

    def started() -> None:
        if kind == "tuned":
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)

    reactor.listenTCP(port, factory, 4096, "127.0.0.1")
    reactor.callWhenRunning(started)
    leash: Any = StandardIO  # not typed
    leash(_Leash(lambda: reactor.running and reactor.stop()))
    reactor.run()


if __name__ == "__main__":
    kind, port, secret, salt, interval = sys.argv[1:]
    main(kind, int(port), secret, salt, float(interval))
