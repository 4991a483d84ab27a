"""
What attackers do, each in a process of its own: C{python -m tests.integration.attackers NAME}, with
the L{Target} as JSON in C{$TARGET}.

Each ends by itself; what the server has to say against it is checked here, what others notice of
it in L{tests.integration.test_attacks}.
"""

import binascii
import contextlib
import itertools
import os
import random
import select
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from domaeka.phonewire import Identity, PhoneWriter, Said
from domaeka.policies.auth import Signer
from domaeka.policies.compression import Deflater

#: Longest that an attacker waits for the server, in seconds.
PATIENCE: Final = 15.0
#: Short attacks are repeated for so long, in seconds.
LEAST_SECONDS: Final = 1.0
GIB: Final = 2**30
_CHUNK: Final = 2**20


class Target(msgspec.Struct):
    """A server, as attackers see it, and the innocent phone on it."""

    host: str
    port: int
    http_port: int
    key: str
    salt: str
    phone: Identity


class Attacker:
    """Somebody who knows of a server."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._numbers = itertools.count(random.getrandbits(32))
        self._open: list[socket.socket] = []

    def connect(self, source: str = "127.0.0.2", buffer_bytes: int = 0) -> socket.socket:
        """A connection from an address of this machine; it is closed with the attack."""
        return self._connect(self.target.port, source, buffer_bytes)

    def connect_http(self) -> socket.socket:
        """The same to the HTTP port."""
        return self._connect(self.target.http_port, "127.0.0.2", 0)

    def identity(self) -> Identity:
        """A phone that nobody knows yet."""
        return Identity(bot_name="침입봇", device_id=f"{next(self._numbers):016x}")

    def writer(self, identity: Identity | None = None, key: str | None = None) -> PhoneWriter:
        """What a phone says: with the right key, or another."""
        signer = Signer([key or self.target.key], self.target.salt, 0.0, time.time)
        # No two lines bear the same time.
        times = itertools.count(int(time.time() * 1000))
        return PhoneWriter(identity or self.identity(), signer.sign, lambda: next(times) / 1000)

    def client(
        self, *capabilities: str, buffer_bytes: int = 0
    ) -> tuple[socket.socket, PhoneWriter]:
        """Somebody with the right key, who has authenticated and been greeted."""
        line = self.connect(buffer_bytes=buffer_bytes)
        writer = self.writer()
        line.sendall(writer.handshake(signed=True, capabilities=capabilities))
        assert b"handshakeComplete" in read_line(line)
        return line, writer

    def close(self) -> None:
        """Break all connections, without a word."""
        for line in self._open:
            # A reset: what the server still has to say does not matter.
            with contextlib.suppress(OSError):
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.close()
        self._open.clear()

    def _connect(self, port: int, source: str, buffer_bytes: int) -> socket.socket:
        line = socket.socket()
        self._open.append(line)
        line.settimeout(PATIENCE)
        if buffer_bytes:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        line.bind((source, 0))
        line.connect((self.target.host, port))
        return line


def said(text: str, room: str = "방") -> Said:
    """Somebody writes."""
    return Said(room=room, sender="누구", text=text, channel_id="18398338829933617")


def read_line(line: socket.socket) -> bytes:
    """One line that came; less where the connection has ended."""
    data = b""
    while not data.endswith(b"\n"):
        try:
            byte = line.recv(1)
        except ConnectionResetError:
            break
        if not byte:
            break
        data += byte
    return data


def read_all(line: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := line.recv(65_536):
            data += piece
    return bytes(data)


def send(line: socket.socket, pieces: Iterator[bytes] | Sequence[bytes]) -> bytes:
    """Send until the server has enough of it.  @return: what it said."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            line.sendall(piece)
        with contextlib.suppress(OSError):  # it is gone already
            line.shutdown(socket.SHUT_WR)
    return read_all(line)


def keep_sending(lines: Sequence[tuple[socket.socket, bytes]], seconds: float) -> None:
    """Send on each connection, over and over, what goes with it, as fast as it is taken."""
    repeated = {line: data * (1 + _CHUNK // len(data)) for line, data in lines}
    rest = {line: memoryview(data) for line, data in repeated.items()}
    for line in rest:
        line.setblocking(False)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for line in select.select([], list(rest), [], 0.1)[1]:
            with contextlib.suppress(OSError):
                rest[line] = rest[line][line.send(rest[line]) :] or memoryview(repeated[line])


# Before the handshake


def slow_handshakes(attacker: Attacker) -> None:
    """Forty that send a handshake a byte at a time: closed, however slowly it comes."""
    handshake = attacker.writer().handshake()
    lines = [attacker.connect() for _ in range(40)]
    for byte in itertools.cycle(handshake[:-1]):
        for line in lines[:]:
            try:
                line.sendall(bytes([byte]))
            except OSError:
                lines.remove(line)
        if not lines:
            return
        time.sleep(0.05)


def silent_connections(attacker: Attacker) -> None:
    """Five hundred connections that say nothing, of fifty addresses, held for a while."""
    for number in range(500):
        attacker.connect(f"127.1.0.{1 + number % 50}")
    time.sleep(1.0)


def many_addresses(attacker: Attacker) -> None:
    """Three thousand connections of two hundred addresses."""
    for number in range(3000):
        attacker.connect(f"127.2.0.{1 + number % 200}")
        if number % 500 == 499:
            attacker.close()


def garbage(attacker: Attacker) -> None:
    """Bytes at random, with and without newlines, in connections one after the other."""
    chance = random.Random(1)
    for number in range(50):
        data = chance.randbytes(100_000)
        answer = send(attacker.connect(), [data if number % 2 else data.replace(b"\n", b"")])
        assert answer.count(b'"error"') <= 10


def empty_lines(attacker: Attacker) -> None:
    """Newlines, as fast as they go."""
    send(attacker.connect(), itertools.repeat(b"\n" * _CHUNK, 30))
    send(attacker.connect(), itertools.repeat(b"\r\n" * (_CHUNK // 2), 30))


def oversize(attacker: Attacker) -> None:
    """Frames without an end."""
    for start in (b'{"event":"message","data":{"room":"', b"{}", b"\0"):
        answer = send(
            attacker.connect(), itertools.chain([start], itertools.repeat(b"x" * _CHUNK, 10))
        )
        assert b"FRAME_TOO_LARGE" in answer or not answer, answer[:200]


def nested(attacker: Attacker) -> None:
    """JSON a hundred thousand deep."""
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        deep = opening * 100_000 + b"1" + closing * 100_000
        for form in (
            b"%b\n",
            b'{"event":"message","data":{"room":"r","x":%b}}\n',
            b'{"botName":"b","version":"1","deviceID":"d","session_token":%b}\n',
            b'{"event":%b}\n',
        ):
            send(attacker.connect(), [form % deep] * 20)


def repeated_handshakes(attacker: Attacker) -> None:
    """Ninety strangers that shake hands again and again, and read no answer."""
    handshake = attacker.writer().handshake()
    keep_sending([(attacker.connect(), handshake) for _ in range(90)], 2.0)


def resets(attacker: Attacker) -> None:
    """Connections that break in the middle of a handshake, or before."""
    handshake = attacker.writer().handshake()
    for number in range(300):
        line = attacker.connect()
        if number % 3:
            line.sendall(handshake[: number % len(handshake)])
        attacker.close()


def half_closed(attacker: Attacker) -> None:
    """Phones that finish sending at once: what they have asked is answered, then they are left."""
    for number in range(40):
        line = attacker.connect()
        writer = attacker.writer()
        asks = number % 2 == 1
        if asks:
            line.sendall(writer.handshake() + writer.chat(said("# echo 끝")))
        line.shutdown(socket.SHUT_WR)
        assert (b"messageResponse" in read_all(line)) is asks


# Who one is


def forgeries(attacker: Attacker) -> None:
    """Signatures made with another key; the tenth ends the connection."""
    writer = attacker.writer(key="a key that is not the server's")
    for _ in range(20):
        lines = [writer.chat(said("# echo 위조")) for _ in range(20)]
        answer = send(attacker.connect(), lines)
        assert answer.count(b"AUTH_FAILED") == 10 and "위조".encode() not in answer


def replays(attacker: Attacker) -> None:
    """A line that was heard is said again, with another text and without."""
    line, writer = attacker.client()
    heard = writer.chat(said("# echo heard"))
    line.sendall(heard)
    while b"messageResponse" not in read_line(line):
        pass
    other = heard[: heard.rindex(b"}") + 1] + b"IyBlY2hvIG90aGVy\n"  # "# echo other"
    for _ in range(20):
        answer = send(attacker.connect(), [heard, other] * 10)
        assert b"messageResponse" not in answer
        assert b"AUTH_FAILED" in answer


def takeovers(attacker: Attacker) -> None:
    """Strangers that say they are the innocent phone, with and without a signature."""
    forger = attacker.writer(attacker.target.phone, "a key that is not the server's")
    for number in range(50):
        line = attacker.connect()
        line.sendall(forger.handshake(bare=number % 2 == 0, signed=number % 3 == 0))
        line.sendall(forger.chat(said("# echo 나다")))
        line.sendall(forger.pong("?"))


# With the right key


def gzip_bombs(attacker: Attacker) -> None:
    """A gibibyte in a frame whose signature holds."""
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(bytes(_CHUNK)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(_CHUNK)) + packer.flush(zlib.Z_FULL_FLUSH)
    tail = binascii.b2a_base64(packed + again * (GIB // _CHUNK), newline=False)
    for _ in range(10):
        line, writer = attacker.client("gzip")
        answer = send(line, [writer.chat(said("x"), pack=lambda raw, plain: tail)])
        assert b"FRAME_TOO_LARGE" in answer, answer[:200]


def deflate_bombs(attacker: Attacker) -> None:
    """Streams of a gibibyte: one line, empty lines, and frames that are good and bad."""
    for content in (b"x" * _CHUNK, b"\n" * _CHUNK, b"{}\n" * (_CHUNK // 3)):
        line, _ = attacker.client("deflate")
        deflater = Deflater(memory_level=9)
        pieces = [deflater.pack(content)]
        pieces += [deflater.pack(content)]
        send(line, itertools.chain(pieces, itertools.repeat(pieces[1], GIB // _CHUNK)))
    line, _ = attacker.client("deflate")
    send(line, [random.Random(2).randbytes(_CHUNK)])


def non_readers(attacker: Attacker) -> None:
    """Phones that ask for 60 MB each, and read none of it."""
    lines = []
    for _ in range(4):
        line, writer = attacker.client(buffer_bytes=4096)
        asked = (writer.chat(said(f"# echo {'가' * 10_000}")) for _ in range(2000))
        lines.append((line, b"".join(asked)))
    keep_sending(lines, 3.0)


def greedy(attacker: Attacker) -> None:
    """One phone that asks fifty thousand times at once: it is answered each time, in order."""
    line, writer = attacker.client()
    texts = [f"{number}" for number in range(50_000)]
    asked = memoryview(b"".join(writer.chat(said(f"# echo {text}")) for text in texts))
    line.setblocking(False)
    answers = bytearray()
    lines_read = 0
    # Pings are among them.
    while lines_read < len(texts) or answers.count(b'"messageResponse"') < len(texts):
        may_read, may_write, _ = select.select([line], [line] if asked else [], [], PATIENCE)
        assert may_read or may_write, "held up"
        if may_read:
            piece = line.recv(262_144)
            answers += piece
            lines_read += piece.count(b"\n")
        if may_write:
            with contextlib.suppress(BlockingIOError):
                asked = asked[line.send(asked) :]
    lines = [answer for answer in answers.splitlines() if b"messageResponse" in answer]
    tails = [answer[answer.rindex(b"}") + 1 :] for answer in lines]
    assert [binascii.a2b_base64(tail).decode() for tail in tails] == texts


# Over HTTP


def dripped_headers(attacker: Attacker) -> None:
    """A hundred and fifty requests whose headers come a byte at a time: refused after 10 s."""
    lines = [attacker.connect_http() for _ in range(150)]
    start = time.monotonic()
    for line in lines:
        line.sendall(b"GET /health HTTP/1.1\r\nX: ")
    while lines:
        assert time.monotonic() - start < 12.0
        for line in lines:
            line.sendall(b"x")
        for line in select.select(lines, [], [], 0.1)[0]:
            assert b" 408 " in line.recv(65_536)
            lines.remove(line)


def large_requests(attacker: Attacker) -> None:
    """Bodies and headers beyond all bounds, and requests that are none."""
    for request in (
        b"POST /api/v1/messages HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        b"GET / HTTP/1.1\r\nX: ",
        b"GET /",
        b"",
    ):
        for _ in range(5):
            send(
                attacker.connect_http(),
                itertools.chain([request], itertools.repeat(b"x" * 65_536, 50)),
            )


Attack = Callable[[Attacker], None]
#: From addresses that are limited; those in one row at the same time.
FLOODS: Final[tuple[tuple[Attack, ...], ...]] = ((silent_connections,), (many_addresses,))
#: From an address that is not, so that all of it is heard.
INTRUSIONS: Final[tuple[tuple[Attack, ...], ...]] = (
    (slow_handshakes, dripped_headers),
    (garbage,),
    (empty_lines,),
    (oversize,),
    (nested,),
    (repeated_handshakes,),
    (resets,),
    (half_closed,),
    (forgeries,),
    (replays,),
    (takeovers,),
    (gzip_bombs,),
    (deflate_bombs,),
    (non_readers,),
    (large_requests,),
)


def main() -> None:
    """Attack, for L{LEAST_SECONDS} at least."""
    attack: Attack = globals()[sys.argv[1]]
    attacker = Attacker(msgspec.json.decode(os.environ["TARGET"], type=Target))
    end = time.monotonic() + LEAST_SECONDS
    while time.monotonic() < end:
        attack(attacker)
        attacker.close()


if __name__ == "__main__":
    main()
