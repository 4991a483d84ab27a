"""Sample lines, and what to do with them in tests."""

import json
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import ErrorCode, WireError
from domaeka.wire import Chat, FrameReader, Handshake, Inbound

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parent / "vectors/wire.jsonl").read_text("utf-8").splitlines()
]
INBOUND = {vector["name"]: vector for vector in VECTORS if vector["direction"] == "in"}
LINES = {name: vector["line"].rstrip("\r\n").encode() for name, vector in INBOUND.items()}
MESSAGE = LINES["message, Korean and emoji"]
ANALYZE = LINES["analyze"]
PONG = LINES["answer to a ping, event pong (3.3.3)"]
ENVELOPED = LINES["handshake, enveloped"]
BARE = LINES["handshake, flat"]


def read(line: bytes) -> Inbound:
    """What the server reads in a line, text inflated."""
    reader = FrameReader()
    found = reader.read(line)
    if isinstance(found, Chat):
        reader.inflate(found)
    return found


def parts(line: bytes) -> tuple[dict[str, Any], bytes]:
    """A sample's JSON and its tail."""
    end = line.rindex(b"}") + 1
    return json.loads(line[:end]), line[end:]


def changed(line: bytes, **fields: object) -> bytes:
    """A sample with other values in C{data}; C{...}: without the field."""
    frame, tail = parts(line)
    frame["data"].update(fields)
    frame["data"] = {key: value for key, value in frame["data"].items() if value is not ...}
    return json.dumps(frame).encode() + tail


def message(tail: bytes, encoding: str | None = "base64") -> bytes:
    """A message with nothing in it but a tail."""
    data = {"room": "방", "message_type": "text", "content_encoding": encoding}
    return json.dumps({"event": "message", "data": data}).encode() + tail


class ReadingTestCase(SynchronousTestCase):
    """Looks at what a line is refused with."""

    def refusal(self, line: bytes) -> ErrorCode:
        """The code; the text is one line that quotes nothing."""
        error: WireError = self.assertRaises(WireError, read, line)
        self.assertEqual(len(error.text.splitlines()), 1)
        self.assertLess(len(error.text), 150)
        return error.code

    def assertRefused(self, line: bytes, code: ErrorCode = ErrorCode.BAD_FRAME) -> None:
        self.assertEqual(self.refusal(line), code, line[:200])

    def chat(self, line: bytes) -> Chat:
        found = read(line)
        assert isinstance(found, Chat)
        return found

    def handshake(self, line: bytes) -> Handshake:
        found = read(line)
        assert isinstance(found, Handshake)
        return found
