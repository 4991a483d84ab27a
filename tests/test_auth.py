"""Tests for L{domaeka.policies.auth}."""

import hmac
import json
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies import auth as auth_module
from domaeka.policies.auth import AuthFault, Signer, sign
from domaeka.wire import Auth

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parent / "vectors/auth.jsonl").read_text("utf-8").splitlines()
]
#: When the samples were signed, in seconds.
SIGNED_AT = 1_790_000_000
KEY = VECTORS[0]["secret_key"]
SALT = VECTORS[0]["salt"]


def sample(number: int = 0, /, **changes: Any) -> Auth:
    """A sample's C{auth}, other values in it."""
    return msgspec.structs.replace(msgspec.convert(VECTORS[number]["auth"], Auth), **changes)


def signed(**changes: Any) -> Auth:
    """A sample's C{auth}, other values in it, signed anew."""
    auth = sample(**changes)
    auth.signature = sign(
        KEY,
        SALT,
        auth.client_type or "",
        auth.bot_name,
        auth.device_uuid or "",
        auth.mac_address or "",
        auth.ip_address or "",
        auth.timestamp,  # type: ignore[arg-type]
    )
    return auth


class SignTests(SynchronousTestCase):
    """Tests for L{sign}."""

    def test_samples(self) -> None:
        """We sign as the samples do."""
        for number, vector in enumerate(VECTORS):
            self.assertEqual(
                signed(
                    timestamp=sample(number).timestamp,
                    **{
                        name: getattr(sample(number), name)
                        for name in (
                            "client_type",
                            "bot_name",
                            "device_uuid",
                            "mac_address",
                            "ip_address",
                        )
                    },
                ).signature,
                vector["auth"]["signature"],
            )

    @given(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=100), st.text("ab|", max_size=99)
    )
    def test_same_as_the_library(self, key: str, text: str) -> None:
        """Kept pads come to what the standard library's HMAC comes to, for keys of any length."""
        expected = hmac.digest(key.encode(), f"{text}|salt".encode(), "sha256").hex()
        self.assertEqual(Signer([key], "salt", 1.0, lambda: 0.0).sign(text), expected)


class SignerTests(SynchronousTestCase):
    """Tests for L{Signer.fault}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(SIGNED_AT)
        self.signer = self.make([KEY])

    def make(self, keys: list[str]) -> Signer:
        return Signer(keys, SALT, 300.0, self.clock.seconds)

    def test_samples(self) -> None:
        """Samples hold; the one of long ago is only late."""
        for number, fault in enumerate((None, None, AuthFault.WRONG_TIME, None)):
            self.assertEqual(self.signer.fault(sample(number)), fault)

    def test_window(self) -> None:
        """A signature is good for 300 s either way, to the millisecond."""
        for off, fault in (
            (-300_001, AuthFault.WRONG_TIME),
            (-300_000, None),
            (300_000, None),
            (300_001, AuthFault.WRONG_TIME),
        ):
            auth = signed(timestamp=SIGNED_AT * 1000 + off)
            self.assertEqual(self.signer.fault(auth), fault, off)

    def test_key_ids(self) -> None:
        """Each key with each salt has an id of its own, which shows nothing of them."""
        ids = [
            Signer([secret], salt, 300.0, lambda: 0.0).key_ids()[0]
            for secret in ("a" * 16, "b" * 16)
            for salt in ("x", "y")
        ]
        self.assertEqual(len(set(ids)), 4)
        self.assertTrue(all(len(key_id) == 16 and "aaaa" not in key_id for key_id in ids))

    def test_key_of_a_device(self) -> None:
        """While two keys are accepted it is known by which a device signed last."""
        other = "b" * 16
        for keys, place in (((KEY, other), 0), ((other, KEY), 1)):
            signer = Signer(keys, SALT, 300.0, lambda: SIGNED_AT)
            self.assertIsNone(signer.fault(auth := signed()))
            self.assertEqual(
                signer.key_id((auth.bot_name, auth.device_id)), signer.key_ids()[place]
            )

    def test_previous_key_ends(self) -> None:
        """A key that was replaced is accepted until its time; that in its place goes on."""
        ends = self.clock.seconds() + 10.0
        keys = ["another key, 16 bytes or more", KEY]
        self.signer = Signer(keys, SALT, 300.0, self.clock.seconds, ends)
        newer = Signer(keys[::-1], SALT, 300.0, self.clock.seconds, ends)
        for pause, fault in ((9.9, None), (0.2, AuthFault.WRONG_SIGNATURE)):
            self.clock.advance(pause)
            self.assertEqual(self.signer.fault(sample()), fault)
            self.assertIsNone(newer.fault(sample()))

    def test_notices_in_the_key_of_the_device(self) -> None:
        """While a key is being replaced each device is told in the one that it has itself."""
        keys = ["another key, 16 bytes or more", KEY]
        device = (sample().bot_name, sample().device_id)
        old, new = (self.make([key]).sign("text") for key in (KEY, keys[0]))
        signer = Signer(keys, SALT, 300.0, self.clock.seconds, self.clock.seconds() + 10.0)
        self.assertEqual((signer.sign("text"), signer.sign("text", device)), (new, old))
        newer = Signer(keys[::-1], SALT, 300.0, self.clock.seconds)
        for each, expected in ((signer, old), (newer, old)):
            self.assertIsNone(each.fault(sample()))
            self.assertEqual(each.sign("text", device), expected)
        self.clock.advance(10.0)
        self.assertEqual(signer.sign("text", device), new)

    def test_every_field(self) -> None:
        """Whatever signed field is changed, the signature does not hold; twice asked, too."""
        self.assertIsNone(self.signer.fault(sample()))
        for name, value in (
            ("client_type", "messengerbotr"),
            ("bot_name", "가게봇2"),
            ("device_uuid", "a1b2c3d4e5f60719"),
            ("mac_address", ""),
            ("ip_address", None),
            ("timestamp", SIGNED_AT * 1000 + 1),
            ("signature", "0" * 64),
            ("signature", sample(1).signature),
        ):
            for _ in range(2):
                auth = sample(**{name: value})
                self.assertEqual(self.signer.fault(auth), AuthFault.WRONG_SIGNATURE, name)

    def test_null_is_empty(self) -> None:
        """A null in a signed field stands as empty text."""
        nothing = dict.fromkeys(("client_type", "device_uuid", "mac_address", "ip_address"))
        self.assertIsNone(self.signer.fault(signed(**nothing)))
        self.assertIsNone(self.signer.fault(signed(**dict.fromkeys(nothing, ""))))

    def test_bars(self) -> None:
        """A bar may stand in the bot's name only: elsewhere one text could mean two things."""
        self.assertIsNone(self.signer.fault(signed(bot_name="LOA.i | pipe")))
        for name in ("client_type", "device_uuid", "mac_address", "ip_address"):
            auth = signed(**{name: "a|b"})
            self.assertEqual(self.signer.fault(auth), AuthFault.MALFORMED)
        shifted = signed(bot_name="b|u", device_uuid="m", mac_address="i", ip_address="")
        shifted.bot_name, shifted.device_uuid = "b", "u|m"
        self.assertEqual(self.signer.fault(shifted), AuthFault.MALFORMED)

    def test_malformed(self) -> None:
        """What cannot be right is not even reckoned with."""
        for name, value in (
            ("signature", ""),
            ("signature", sample().signature + "0"),
            ("signature", "é" * 64),
            ("timestamp", 0),
            ("timestamp", -1),
            ("timestamp", 10**400),
            ("timestamp", 1.5),
            ("timestamp", 1e300),
            ("bot_name", " "),
            ("bot_name", "a\n"),
            ("bot_name", "x" * 129),
            ("bot_name", "\ud800"),
            ("device_id", ""),
            ("ip_address", "x" * 129),
            ("ip_address", "\ud800"),
        ):
            auth = sample(**{name: value})
            self.assertEqual(self.signer.fault(auth), AuthFault.MALFORMED, (name, value))

    def test_upper_case(self) -> None:
        """A signature is lower-case."""
        auth = sample(signature=sample().signature.upper())
        self.assertEqual(self.signer.fault(auth), AuthFault.WRONG_SIGNATURE)

    def test_whole_number_as_float(self) -> None:
        """A whole number with a decimal point is that number, from then on."""
        auth = sample(timestamp=float(SIGNED_AT * 1000))
        self.assertIsNone(self.signer.fault(auth))
        self.assertIs(type(auth.timestamp), int)

    def test_two_keys(self) -> None:
        """While keys are changed both are accepted; notices are signed with the new one."""
        signer = self.make(["the key that is new", KEY])
        self.assertIsNone(signer.fault(sample()))
        self.assertEqual(self.make(["another"]).fault(sample()), AuthFault.WRONG_SIGNATURE)
        self.assertEqual(signer.sign("x"), self.make(["the key that is new"]).sign("x"))

    def test_device(self) -> None:
        """Both ids are the Android id: where both are known they agree."""
        uuid = "a1b2c3d4e5f60718"
        for device_uuid, device_id, fault in (
            (uuid, uuid, None),
            (uuid, "unknown", None),
            ("unknown", uuid, None),
            (None, uuid, None),
            (uuid, "another", AuthFault.WRONG_DEVICE),
        ):
            for _ in range(2):
                auth = signed(device_uuid=device_uuid, device_id=device_id)
                self.assertEqual(self.signer.fault(auth), fault)

    def test_constant_time(self) -> None:
        """How much of a signature is right does not show in the time that it takes."""
        compared: list[tuple[str, str]] = []

        def compare(ours: str, theirs: str) -> bool:
            compared.append((ours, theirs))
            return hmac.compare_digest(ours, theirs)

        self.patch(auth_module, "compare_digest", compare)
        wrong = sample(signature="0" * 64)
        self.signer.fault(sample())
        self.signer.fault(wrong)
        right = sample().signature
        self.assertEqual(compared, [(right, right), (right, "0" * 64)])

    def test_memory_is_bounded(self) -> None:
        """However many devices there are, what is kept of them is bounded."""
        self.patch(auth_module, "_MAX_FORMS", 3)
        for number in range(10):
            auth = signed(ip_address=str(number))
            for _ in range(2):
                self.assertIsNone(self.signer.fault(auth))
            self.assertLessEqual(len(self.signer._forms), 3)
