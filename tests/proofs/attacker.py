"""Somebody who attacks a server: connections of all kinds, and whatever is said on them."""

import contextlib
import itertools
import random
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from domaeka.policies.auth import Signer
from domaeka.wire import Identity, PhoneWriter, Said

#: Longest that an attacker waits for the server, in seconds.
PATIENCE: Final = 60.0
_CHUNK: Final = 2**20
#: How a connection ends under one who still writes or reads.
_ENDED: Final = (BrokenPipeError, ConnectionResetError, ssl.SSLError)


class Target(msgspec.Struct):
    """
    A server, as attackers see it, and the innocent phone on it.

    @ivar balanced_port: where a balancer is believed; 0: nowhere.
    @ivar by_tls: whether attackers of the phones' port speak TLS.
    """

    host: str
    port: int
    http_port: int
    tls_port: int
    balanced_port: int
    key: str
    salt: str
    phone: Identity
    by_tls: bool


class Attacker:
    """Somebody who knows of a server."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._numbers = itertools.count(random.getrandbits(32))
        self._open: list[socket.socket] = []

    def connect(self, source: str = "127.0.0.2", buffer_bytes: int = 0) -> socket.socket:
        """A phone's connection from an address of this machine; it is closed with the attack."""
        target = self.target
        if not target.by_tls:
            return self.connect_to(target.port, source, buffer_bytes)
        line = _trusting().wrap_socket(self.connect_to(target.tls_port, source, buffer_bytes))
        self._open.append(line)
        return line

    def connect_to(
        self, port: int, source: str = "127.0.0.2", buffer_bytes: int = 0
    ) -> socket.socket:
        """A plain connection to any of the server's ports."""
        line = socket.socket()
        self._open.append(line)
        line.settimeout(PATIENCE)
        if buffer_bytes:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        line.bind((source, 0))
        line.connect((self.target.host, port))
        return line

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


def _trusting() -> ssl.SSLContext:
    """For one who does not care to whom he talks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_hello() -> bytes:
    """What a TLS connection begins with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        _trusting().wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def said(text: str, room: str = "방") -> Said:
    """Somebody writes."""
    return Said(room=room, sender="누구", text=text, channel_id="18398338829933617")


def read_line(line: socket.socket) -> bytes:
    """One line that came; less where the connection has ended."""
    data = b""
    while not data.endswith(b"\n"):
        try:
            byte = line.recv(1)
        except _ENDED:
            break
        if not byte:
            break
        data += byte
    return data


def read_all(line: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    data = bytearray()
    with contextlib.suppress(*_ENDED):
        while piece := line.recv(65_536):
            data += piece
    return bytes(data)


def send(line: socket.socket, pieces: Iterable[bytes]) -> bytes:
    """Send until the server has enough of it.  @return: what it said."""
    with contextlib.suppress(*_ENDED):
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
