"""
The yardstick: a bare Twisted server that does the same parsing and the same answer with the
standard library's json, and nothing else.  Usage: C{python -m benchmarks.bare_echo PORT}.
"""

import base64
import json
import sys
from typing import Any

from twisted.internet.protocol import Factory, Protocol


class BareEcho(Protocol):
    """Answer each C{# echo} line."""

    transport: Any
    _rest = b""

    def dataReceived(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            end = line.rfind(b"}") + 1
            frame = json.loads(line[:end])
            told = frame["data"]
            if frame["event"] != "message":
                continue
            text = base64.b64decode(line[end:]).decode()
            tail = base64.b64encode(text.removeprefix("# echo ").encode())
            answer = {
                "event": "messageResponse",
                "data": {
                    "room": told["room"],
                    "channel_id": told["channel_id"],
                    "bot_name": told["bot_name"],
                    "message_type": "text",
                    "content_encoding": "base64",
                    "message_positions": [0, len(tail)],
                    "timestamp": told["timestamp"],
                    "timezone": "Asia/Seoul",
                },
            }
            header = json.dumps(answer, ensure_ascii=False).encode()
            self.transport.write(header + tail + b"\n")


def main(port: int) -> None:
    """Serve on C{port}, for ever."""
    from twisted.internet import reactor

    twisted_reactor: Any = reactor  # a module, to mypy
    twisted_reactor.listenTCP(port, Factory.forProtocol(BareEcho), 1024, "127.0.0.1")
    twisted_reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
