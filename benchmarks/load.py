"""
Lean phones in one thread, over real sockets, for measurements other than a server's speed.  For
that one there is benchmarks/native/loadgen.c.
"""

import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from domaeka.policies.auth import Signer
from domaeka.wire import Identity, PhoneWriter, Ping, Said, read_server_frame

#: Typical texts: 20 to 60 characters, mostly Hangul.
TEXTS = (
    "# echo 오늘 공동구매 상품 언제 마감되나요? 두 개 주문하고 싶어요",
    "# echo 네 알겠습니다 감사합니다 ㅎㅎ 내일 뵙겠습니다!",
    "# echo 회의는 3시에 2층 회의실에서 시작합니다. 자료 꼭 챙겨 오세요",
    "# echo 👋 안녕하세요",
)


@dataclass
class Phone:
    """A connection, and the lines that it will send."""

    sock: socket.socket
    writer: PhoneWriter
    lines: Iterator[bytes]
    answers: int = 0
    rest: bytes = b""


def make_phone(port: int, number: int, key: str, salt: str) -> Phone:
    """Connect a phone, and send its handshake."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    identity = Identity(bot_name=f"봇{number}", device_id=f"{number:016x}")
    writer = make_writer(identity, key, salt)
    sock.sendall(writer.handshake())
    return Phone(sock, writer, iter(()))


def hang_up(phones: list[Phone]) -> None:
    """Close all connections."""
    for phone in phones:
        phone.sock.close()


def make_writer(identity: Identity, key: str, salt: str) -> PhoneWriter:
    """Writer of a phone.  Each line has a time of its own, as real ones have."""
    signer = Signer([key], salt, 300.0, time.time)
    milliseconds = count(int(time.time() * 1000))
    return PhoneWriter(identity, signer.sign, lambda: next(milliseconds) / 1000)


def chat_lines(writer: PhoneWriter, number: int) -> list[bytes]:
    """Signed lines of chat, C{number} of them, all different."""
    return [
        writer.chat(
            Said(
                room=f"공동구매방 {index % 3}",
                sender="김하늘",
                text=f"{TEXTS[index % len(TEXTS)]} {index}",
                channel_id=f"1839833882993361{index % 3}",
                is_group=True,
                log_id=str(3412345678901234567 + index),
                user_hash="5017384920174",
            )
        )
        for index in range(number)
    ]


def answer_pings(phones: list[Phone], until: float) -> int:
    """
    Let phones only answer pings.

    @param until: by L{time.monotonic}.
    @return: the number of pings.
    """
    pings = 0
    with selectors.DefaultSelector() as selector:
        for phone in phones:
            selector.register(phone.sock, selectors.EVENT_READ, phone)
        while (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                phone = key.data
                data = phone.sock.recv(262_144)
                if not data:
                    raise ConnectionError("the server closed a connection")
                *lines, phone.rest = (phone.rest + data).split(b"\n")
                for line in lines:
                    frame = read_server_frame(line)
                    if isinstance(frame, Ping):
                        pings += 1
                        phone.sock.sendall(phone.writer.pong(frame.server_timestamp))
    return pings


def exchange(phones: list[Phone], outstanding: int, messages: int, limit: float = 120.0) -> float:
    """
    Let each phone send C{messages} lines, C{outstanding} at a time, and wait for every answer.

    @return: the duration, in seconds.
    @raise TimeoutError: after C{limit} seconds.
    """
    selector = selectors.DefaultSelector()
    for phone in phones:
        phone.lines = iter(chat_lines(phone.writer, messages))
        phone.answers = 0
        selector.register(phone.sock, selectors.EVENT_READ, phone)
    started = time.perf_counter()
    for phone in phones:
        phone.sock.sendall(b"".join(next(phone.lines) for _ in range(min(outstanding, messages))))
    waiting = len(phones)
    while waiting:
        events = selector.select(5.0)
        if time.perf_counter() - started > limit or not events:
            raise TimeoutError(f"{waiting} phones still wait for answers")
        for key, _ in events:
            phone = key.data
            data = phone.sock.recv(262_144)
            if not data:
                raise ConnectionError("the server closed a connection")
            answers = data.count(b"\n")
            if b'"event":"messageResponse"' not in data and b'"messageResponse"' not in data:
                # Only greetings and pings; the first ping must be answered.
                answers = 0
            elif b'"event":"ping"' in data or b'"event":"handshakeComplete"' in data:
                answers = data.count(b'"messageResponse"')
            phone.answers += answers
            if phone.answers >= messages:
                waiting -= 1
                selector.unregister(phone.sock)
                continue
            more = b"".join(line for _, line in zip(range(answers), phone.lines, strict=False))
            if more:
                phone.sock.sendall(more)
    took = time.perf_counter() - started
    selector.close()
    return took
