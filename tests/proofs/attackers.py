"""
What attackers do, each in a process of its own: C{python -m tests.proofs.attackers NAME}, with
the L{Target} as JSON in C{$TARGET}.

Each ends by itself; what the server has to say against it is checked here, what others notice of
it in L{tests.proofs.test_attacks}.
"""

import binascii
import contextlib
import itertools
import os
import random
import select
import socket
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable
from typing import Any, Final

import msgspec
from OpenSSL import SSL

from domaeka.wire import Deflater
from tests.proofs import LONG
from tests.proofs.attacker import (
    PATIENCE,
    Attacker,
    Target,
    client_hello,
    keep_sending,
    read_all,
    read_line,
    said,
    send,
)

#: Short attacks are repeated for so long, in seconds.
LEAST_SECONDS: Final = 20.0 if LONG else 1.0
GIB: Final = 2**30
_CHUNK: Final = 2**20


# Before the handshake


def slow_beginnings(attacker: Attacker) -> None:
    """
    Ninety that begin a byte at a time, or not at all, with a handshake, with TLS, or as a
    balancer: closed, however slowly it comes.
    """
    target = attacker.target
    header = b"PROXY TCP4 203.0.113.1 203.0.113.1 40000 9000" + b" " * 62
    slow = {
        attacker.connect_to(port): itertools.cycle(begins)
        for port, begins in (
            (target.port, attacker.writer().handshake()[:-1]),
            (target.tls_port, client_hello()),
            (target.balanced_port, header),
        )
        for _ in range(20)
    }
    silent = [
        attacker.connect_to(port)
        for port in (target.port, target.tls_port, target.balanced_port)
        for _ in range(10)
    ]
    while slow:
        for line, rest in list(slow.items()):
            try:
                line.sendall(bytes([next(rest)]))
            except OSError:
                del slow[line]
        time.sleep(0.05)
    for line in silent:
        assert read_all(line) == b""


def silent_connections(attacker: Attacker) -> None:
    """Five hundred connections that say nothing, of fifty addresses, held for a while."""
    for number in range(500):
        attacker.connect(f"127.1.0.{1 + number % 50}")
    time.sleep(1.0)


def many_bans(attacker: Attacker) -> None:
    """Six hundred addresses whose signatures are wrong: all are banned."""
    writer = attacker.writer(key="a key that is not the server's")
    for number in range(600):
        lines = [writer.chat(said("# echo 위조")) for _ in range(5)]
        send(attacker.connect(f"127.3.{number // 200}.{1 + number % 200}"), lines)
    url = f"http://{attacker.target.host}:{attacker.target.http_port}/metrics"
    for _ in range(int(PATIENCE)):
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            if b"\ndomaeka_bans 600.0\n" in answer.read():
                return
        time.sleep(1.0)
    raise AssertionError("not all are banned")


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


def costly_handshakes(attacker: Attacker) -> None:
    """Ninety strangers whose handshakes have a hundred thousand fields, or capabilities, more."""
    handshake = attacker.writer().handshake(bare=True)
    costly = [
        b"%b,%b}\n" % (handshake[: handshake.rindex(b"}")], more)
        for more in (
            b",".join(b'"%x":1' % number for number in range(100_000)),
            b'"capabilities":["x"%b]' % (b',"x"' * 200_000),
        )
    ]
    keep_sending([(attacker.connect(), costly[number % 2]) for number in range(90)], 2.0)


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


def false_balancers(attacker: Attacker) -> None:
    """Headers of a balancer that are none, or too long: closed; no frames on other ports."""
    target = attacker.target
    binary = b"\r\n\r\n\0\r\nQUIT\n"
    for header in (
        b"PROXY TCP4 203.0.113.1 203.0.113.1 40000 9000" + b" " * _CHUNK,
        b"PROXY TCP4 1 2 3 4\r\n",
        b"PROXY TCP6 203.0.113.1 :: 99999 -1\r\n",
        b"PROXY TCP4 \xff\xff " + b"9" * 60 + b"\r\n",
        b"PROXY \r\nPROXY \r\n",
        b"\r\n" * 100_000,
        binary + b"\x21\x11\0\0",
        binary + b"\x21\x11\0\x0b" + bytes(11),
        binary + b"\x21\xff\xff\xff" + bytes(65_535),
        binary + b"\x31\x11\0\x0c" + bytes(12),
        binary * 10_000,
        attacker.writer().handshake(),
    ):
        for _ in range(5):
            assert send(attacker.connect_to(target.balanced_port), [header]) == b"", header[:80]
    honest = b"PROXY TCP4 127.0.0.1 127.0.0.1 40000 9000\r\n"
    for _ in range(20):
        assert b"BAD_FRAME" in send(attacker.connect_to(target.port), [honest])


def broken_tls(attacker: Attacker) -> None:
    """What is no TLS, or was until then; and handshakes that are to be done over and over."""
    chance = random.Random(3)
    hello = client_hello()
    for begins in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        attacker.writer().handshake(),
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\0\0" * 1000,
        b"\x15\x03\x03\0\x02\x01\0" * 1000,
        hello,
        hello * 100,
        hello[:5] + chance.randbytes(len(hello) - 5),
    ):
        for _ in range(5):
            line = attacker.connect_to(attacker.target.tls_port)
            send(line, itertools.chain([begins], itertools.repeat(chance.randbytes(65_536), 20)))
    for _ in range(5):
        line, _ = attacker.client()
        with socket.socket(fileno=os.dup(line.fileno())) as under_it:
            under_it.settimeout(PATIENCE)
            send(under_it, [b"\x17\x03\x03\x40\0" + chance.randbytes(_CHUNK)])
    for _ in range(20):
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        over = SSL.Connection(context, attacker.connect_to(attacker.target.tls_port))
        over.set_connect_state()
        _finish(over.do_handshake)
        over.renegotiate()
        try:
            _finish(over.do_handshake)
        except SSL.Error:
            continue
        raise AssertionError("renegotiated")


def _finish(step: Callable[[], Any]) -> None:
    """pyOpenSSL knows nothing of a socket's patience."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            step()
            return
        except SSL.WantReadError:
            time.sleep(0.001)
    raise AssertionError("held up")


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


def unread_pictures(attacker: Attacker) -> None:
    """Phones that have 9 MiB of pictures sent to them, twice, and read none of it."""
    for _ in range(4):
        line, writer = attacker.client(buffer_bytes=4096)
        line.sendall(b"".join(writer.chat(said("# pictures 16 1")) for _ in range(2)))
    time.sleep(2.0)


def many_busy(attacker: Attacker) -> None:
    """Sixty phones that chat, and shake hands again, as fast as it is taken."""
    lines = []
    for number in range(60):
        line, writer = attacker.client()
        chat = b"".join(writer.chat(said("말")) for _ in range(200))
        lines.append((line, chat if number % 2 else writer.handshake()))
    keep_sending(lines, 2.0)


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


def dripped_requests(attacker: Attacker) -> None:
    """A hundred and fifty whose headers, or bodies, come a byte at a time: all are refused."""
    post = b"POST /api/v1/messages HTTP/1.1\r\n"
    drips: dict[socket.socket, bytes] = {}
    start = time.monotonic()
    for begins, goes_on in (
        (b"GET /health HTTP/1.1\r\nX: ", b"x"),
        (post + b"Content-Length: 60000\r\n\r\n", b"x"),
        (post + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ):
        for _ in range(50):
            line = attacker.connect_to(attacker.target.http_port)
            line.sendall(begins)
            drips[line] = goes_on
    while drips:
        assert time.monotonic() - start < PATIENCE, "not refused"
        for line, goes_on in drips.items():
            line.sendall(goes_on)
        for line in select.select(list(drips), [], [], 0.1)[0]:
            assert b" 408 " in line.recv(65_536)
            del drips[line]


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
                attacker.connect_to(attacker.target.http_port),
                itertools.chain([request], itertools.repeat(b"x" * 65_536, 50)),
            )


Attack = Callable[[Attacker], None]
#: Attacks at the same time.
Row = tuple[Attack, ...]
#: From addresses that are limited.
FLOODS: Final[tuple[Row, ...]] = ((silent_connections,), (many_addresses,))
#: From an address that is not, so that all of it is heard.
INTRUSIONS: Final[tuple[Row, ...]] = (
    (slow_beginnings, dripped_requests, many_bans),
    (garbage,),
    (empty_lines,),
    (oversize,),
    (nested,),
    (repeated_handshakes,),
    (costly_handshakes,),
    (resets,),
    (half_closed,),
    (forgeries, replays),
    (takeovers,),
    (false_balancers,),
    (gzip_bombs,),
    (deflate_bombs,),
    (many_busy,),
    (non_readers,),
    (unread_pictures,),
    (large_requests,),
)
#: The same, to the port for TLS.
BY_TLS: Final[tuple[Row, ...]] = (
    (broken_tls,),
    (resets,),
    (oversize, deflate_bombs),
    (non_readers, unread_pictures),
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
