"""
Compression: bytes saved on the wire, and its cost at the server.

Usage: C{python -m benchmarks.compression}.  Phones of each kind chat with one server in turn.  The
bytes are those of their sockets, the CPU time is that of the server's process.
"""

import selectors
import socket
import time
from itertools import islice
from math import inf
from random import Random
from typing import Final

from benchmarks.chat import Chat
from benchmarks.load import make_writer
from benchmarks.servers import (
    Server,
    allow_many_files,
    cpu_seconds,
    gateway,
    resident_bytes,
)
from domaeka.wire import (
    Deflater,
    Dialect,
    Identity,
    Inflater,
    LineDecoder,
    Media,
    Reply,
    encode_reply,
    pack_text,
    timestamp_text,
)

#: Kinds of phones, with the capabilities that they ask for.
KINDS: Final = {"plain": (), "gzip": ("gzip",), "deflate": ("deflate",)}
CONNECTIONS: Final = 50
MESSAGES: Final = 100  # of each connection, in each round
ROUNDS: Final = 3
#: Connections added to measure memory, and messages on each of them.
MORE_CONNECTIONS: Final = 150
MORE_MESSAGES: Final = 80


class Talker:
    """
    A phone on a blocking socket.

    @ivar sent: bytes on the wire after the handshake; C{received}: after the greeting.
    """

    def __init__(self, server: Server, kind: str, number: int) -> None:
        """Connect, send the handshake, and wait for the greeting."""
        _, port, key, salt = server
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        identity = Identity(
            bot_name="가게봇",
            device_id=f"{kind}-{number:010x}",
            mac_address="02:00:00:00:00:00",
            ip_address=f"192.168.0.{number % 250}",
        )
        self._writer = make_writer(identity, key, salt)
        self._lines = Chat(number).lines()
        self.sock.sendall(self._writer.handshake(signed=True, capabilities=KINDS[kind]))
        decoder = LineDecoder()
        while decoder.next_line() is None:
            decoder.feed(self.sock.recv(65536))
        self._deflater = Deflater() if kind == "deflate" else None
        self._inflater = Inflater()
        self._text = b""
        self.sent = self.received = self.said = self.said_bytes = self.heard_bytes = 0
        self.answers = 0

    def say(self, number: int) -> None:
        """Send C{number} messages at once."""
        chat = [self._writer.chat(said) for said in islice(self._lines, number)]
        self.said += number
        data = b"".join(chat)
        self.said_bytes += len(data)
        if self._deflater is not None:
            data = self._deflater.pack(data)
        self.sent += len(data)
        self.sock.sendall(data)

    def hear(self) -> int:
        """@return: the number of answers received."""
        data = self.sock.recv(262_144)
        if not data:
            raise ConnectionError("the server closed a connection")
        self.received += len(data)
        if self._deflater is not None:
            self._inflater.feed(data)
            data = b"".join(iter(self._inflater.next_piece, b""))
        self.heard_bytes += len(data)
        whole, newline, self._text = (self._text + data).rpartition(b"\n")
        return (whole + newline).count(b'"messageResponse"')


def talk(talkers: list[Talker], outstanding: int, messages: int) -> None:
    """Let each phone send C{messages}, C{outstanding} at a time, and wait for every answer."""
    selector = selectors.DefaultSelector()
    for talker in talkers:
        talker.answers = 0
        selector.register(talker.sock, selectors.EVENT_READ, talker)
        talker.say(outstanding)
    waiting = len(talkers)
    while waiting:
        events = selector.select(10.0)
        if not events:
            raise TimeoutError(f"{waiting} phones still wait for answers")
        for key, _ in events:
            talker = key.data
            before = talker.answers
            talker.answers += talker.hear()
            if talker.answers >= messages:
                waiting -= 1
                selector.unregister(talker.sock)
            elif talker.answers // outstanding > before // outstanding:
                talker.say(outstanding)
    selector.close()


def measure(server: Server, outstanding: int) -> tuple[dict[str, float], dict[str, list[Talker]]]:
    """@return: least CPU time of a message, in seconds, for each kind; and the phones."""
    fleets = {kind: [Talker(server, kind, n) for n in range(CONNECTIONS)] for kind in KINDS}
    for talkers in fleets.values():
        talk(talkers, outstanding, 5 * outstanding)  # warm
    best = dict.fromkeys(KINDS, inf)
    for _ in range(ROUNDS):
        for kind, talkers in fleets.items():
            before = cpu_seconds(server[0])
            talk(talkers, outstanding, MESSAGES)
            cost = (cpu_seconds(server[0]) - before) / (CONNECTIONS * MESSAGES)
            best[kind] = min(best[kind], cost)
    return best, fleets


def memory(kind: str) -> float:
    """Memory of the server for one more connection that has chatted, in bytes."""
    with gateway("storage.chat_log=false") as server:
        talkers = [Talker(server, kind, number) for number in range(50)]
        talk(talkers, 1, MORE_MESSAGES)
        before = resident_bytes(server[0])
        more = [Talker(server, kind, 50 + number) for number in range(MORE_CONNECTIONS)]
        talk(more, 1, MORE_MESSAGES)
        time.sleep(2.0)  # the sweep frees unused memory once a second
        return (resident_bytes(server[0]) - before) / MORE_CONNECTIONS


def line_of(content: str | Media, kind: str) -> int:
    """Length of a reply on the wire, in bytes."""
    pack = pack_text if kind == "gzip" else None
    reply = Reply("공동구매방", "18398338829933617", "가게봇", content)
    line = encode_reply(reply, Dialect.V33, timestamp_text(time.time()), None, pack)
    return len(Deflater().pack(line)) if kind == "deflate" else len(line)


def main() -> None:
    """Print the tables."""
    allow_many_files()
    with gateway("storage.chat_log=false") as server:
        costs = [measure(server, outstanding) for outstanding in (1, 8)]
    fleets = costs[0][1]
    said = sum(talker.said for talker in fleets["plain"])
    sizes = {
        kind: (
            sum(talker.sent for talker in talkers) / said,
            sum(talker.received for talker in talkers) / said,
        )
        for kind, talkers in fleets.items()
    }
    plain = sizes["plain"]
    print(
        f"{f'chat, signed, {CONNECTIONS} phones':34}{'bytes a message on the wire':28}"
        f"CPU per message (µs){'':8}memory of a"
    )
    print(f"{'':34}{'up':14}{'down':14}{'1 outstanding':14}{'8 outstanding':14}connection")
    for kind, (up, down) in sizes.items():
        cells = [
            f"{up:.0f} ({up / plain[0]:.1%})",
            f"{down:.0f} ({down / plain[1]:.1%})",
            *(f"{cost[kind] * 1e6:.1f} ({cost[kind] / cost['plain']:.2f})" for cost, _ in costs),
            f"{memory(kind) / 1024:.0f} KiB",
        ]
        print(f"  {kind:32}" + "".join(f"{cell:14}" for cell in cells).rstrip())
    print(
        f"  a plain message has {plain[0]:.0f} bytes; target for deflate: 25 % of that at most, "
        "both ways, at 1.8 times the CPU"
    )
    long_text = " ".join(islice((said.text for said in Chat(1).lines()), 700))
    print(
        f"{'one answer, bytes on the wire':34}" + "".join(f"{kind:20}" for kind in KINDS).rstrip()
    )
    for name, content in (
        (f"a text of {len(long_text):,} characters", long_text),
        ("a picture of 300,000 bytes", Media((Random(1).randbytes(300_000),))),
        ("the address of a picture", Media(("https://example.com/picture.jpg",))),
    ):
        lines = {kind: line_of(content, kind) for kind in KINDS}
        cells = [f"{size:,} ({size / lines['plain']:.1%})" for size in lines.values()]
        print(f"  {name:32}" + "".join(f"{cell:20}" for cell in cells).rstrip())


if __name__ == "__main__":
    main()
