"""Tests for L{domaeka.wire.proofs}."""

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.wire import Auth, Identity, PhoneWriter, Said, find_proofs
from tests.test_auth import VECTORS

_names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=40)


def found(data: bytes) -> list[str]:
    """The signatures in some bytes, whole or cut."""
    return [shown for _, shown in find_proofs(data, 100)]


class FindTests(SynchronousTestCase):
    """Tests for L{find_proofs}."""

    def test_every_writer(self) -> None:
        """C{auth} is found as each script, and any JSON writer, writes it, and among others."""
        auth = VECTORS[0]["auth"]
        expected = msgspec.convert(auth | {"version": None}, Auth)  # which is not signed
        for more in ({}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": 1}):
            text: Any = json.dumps({"event": "x", "data": {"text": "}", "auth": auth}}, **more)
            data = b"\xff{" + text.encode() * 3 + b"tail}"
            self.assertEqual([each for each, _ in find_proofs(data, 100)], [expected] * 3)

    def test_own_writer(self) -> None:
        """A cut line of our own client's has all that is signed ahead of the signature."""
        identity = Identity(bot_name="봇", device_id="a1")
        writer = PhoneWriter(identity, lambda text: "e" * 64, lambda: 1_790_000_000.0)
        line = writer.chat(Said(room="방", sender="나", text="말"))
        end = line.index(b"e" * 64) + 64
        for cut in range(len(line)):
            shown = max(0, 64 - max(0, end - cut))
            expected = ["e" * shown] if shown >= 16 else []
            self.assertEqual(found(line[:cut]), expected, cut)

    @given(_names, _names)
    def test_any_name(self, bot_name: str, device_id: str) -> None:
        """Whatever a name holds, quotes and braces among it, the signature is found."""
        auth = {"botName": bot_name, "deviceID": device_id, "timestamp": 1, "signature": "a" * 64}
        line = json.dumps({"data": {"auth": auth}}).encode()
        self.assertEqual(found(line), ["a" * 64])

    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        """No bytes lead to an error."""
        for text in (data, b'"auth":{' + data, b'"auth":{"signature":"' + data):
            found(text)

    def test_bounded(self) -> None:
        """So many objects are looked at, and no more, however many there are."""
        one = b'"auth":{"botName":"a","deviceID":"b","timestamp":1,"signature":"%b"}' % (b"a" * 64)
        self.assertEqual(len(list(find_proofs(one * 500, 64))), 64)
