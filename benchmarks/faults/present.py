"""
A model of the system that domaeka takes the place of: C{python -m benchmarks.faults.present PORT
PLACES}.

It treats connections as that system does: TCP_NODELAY, keep-alive after 30 s, nine times every
10 s, buffers of 64 KB, 100 connections, lines of 1 MB at most, a ping every 30 s from 1 to 59 s
after the handshake on, and no time limit for its answer.  A connection ends where the phone or the
kernel ends it, after 600 s without a line, or when its device shakes hands again.  An answer goes
to the connection that the line came by.  Nothing is kept for a phone that is away, nothing is
recognised that comes twice.

Where its behaviour is not known the model is generous: it takes chat ahead of the handshake, gives
up strangers after 10 s, and has connections beyond the 100 wait for a place.  It checks no
signature.
"""

import asyncio
import base64
import contextlib
import json
import random
import socket
import sys
from datetime import UTC, datetime
from typing import Any, Final

COMMAND: Final = "# echo"
MAX_LINE_BYTES: Final = 1_048_576
BUFFER_BYTES: Final = 65_536
#: All times in seconds.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 30, 10, 9
FIRST_PING: Final = (1.0, 59.0)
PING_INTERVAL: Final = 30.0
HANDSHAKE_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 600.0

_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES),
)


def _frame(event: str, data: dict[str, Any]) -> bytes:
    return json.dumps({"event": event, "data": data}, ensure_ascii=False).encode()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def read(line: bytes) -> tuple[str, dict[str, Any], bytes]:
    """
    @return: event, data and tail of a line.
    @raise ValueError: it is none.
    """
    end = line.rfind(b"}") + 1
    frame = json.loads(line[:end])
    if "event" not in frame:
        return "handshake", frame, b""
    return frame["event"], frame["data"], line[end:]


def answer(data: dict[str, Any], tail: bytes) -> bytes | None:
    """@return: the answer to a chat message, if there is one."""
    text = base64.b64decode(tail).decode()
    if not text.startswith(COMMAND):
        return None
    reply = base64.b64encode(text.removeprefix(COMMAND).strip().encode())
    header = {
        "room": data["room"],
        "channel_id": data["channel_id"],
        "bot_name": data["bot_name"],
        "message_type": "text",
        "content_encoding": "base64",
        "message_positions": [0, len(reply)],
        "timestamp": _now(),
        "timezone": "Asia/Seoul",
    }
    return _frame("messageResponse", header) + reply + b"\n"


class Present:
    """The server."""

    def __init__(self, places: int) -> None:
        """@param places: most connections that are served at a time."""
        self._places = asyncio.Semaphore(places)
        self._devices: dict[tuple[str, str], asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection from its accept to its end."""
        for option in _OPTIONS:
            writer.get_extra_info("socket").setsockopt(*option)
        async with self._places:
            pings: list[asyncio.Task[None]] = []
            with contextlib.suppress(OSError, ValueError, KeyError, TimeoutError):
                await self._converse(reader, writer, pings)
            for task in pings:
                task.cancel()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pings: list[asyncio.Task[None]],
    ) -> None:
        patience = HANDSHAKE_TIMEOUT
        while True:
            async with asyncio.timeout(patience):
                line = await reader.readline()
            if not line:
                return
            event, data, tail = read(line)
            if event == "handshake":
                self._register(data, writer, pings)
                writer.write(self._greeting())
            elif event == "message":
                reply = answer(data, tail)
                if reply is not None and not writer.is_closing():
                    writer.write(reply)
            await writer.drain()
            patience = READ_TIMEOUT

    def _register(
        self,
        data: dict[str, Any],
        writer: asyncio.StreamWriter,
        pings: list[asyncio.Task[None]],
    ) -> None:
        device = (data["botName"], data["deviceID"])
        before = self._devices.get(device)
        if before is not None and before is not writer:
            before.close()
        self._devices[device] = writer
        if not pings:
            pings.append(asyncio.create_task(self._ping(device[0], writer)))

    def _greeting(self) -> bytes:
        data = {
            "success": True,
            "approved": True,
            "message": "OK",
            "server_version": "1.0.0",
            "timestamp": _now(),
            "timezone": "Asia/Seoul",
            "message_positions": [0, 0],
        }
        return _frame("handshakeComplete", data) + b"\n"

    async def _ping(self, bot_name: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(random.uniform(*FIRST_PING))
        with contextlib.suppress(OSError):
            while not writer.is_closing():
                data = {"bot_name": bot_name, "server_timestamp": _now()}
                writer.write(_frame("ping", data) + b"\n")
                await writer.drain()
                await asyncio.sleep(PING_INTERVAL)


async def main(port: int, places: int) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(
        Present(places).serve, "0.0.0.0", port, limit=MAX_LINE_BYTES
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
