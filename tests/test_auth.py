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
from domaeka.policies import signatures as signatures_module
from domaeka.policies.auth import AuthFault, Signer, sign
from domaeka.policies.signatures import MAX_REMEMBERED, Seen, SignatureTable
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


class SignatureTableTests(SynchronousTestCase):
    """Tests for L{SignatureTable}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(SIGNED_AT)
        self.table = SignatureTable(300.0, self.clock.seconds)

    def judge(self, number: int = 0, connection: int = 1, line: bytes = b"", **more: Any) -> Seen:
        """Judge a line signed at C{number} milliseconds."""
        auth = sample(timestamp=SIGNED_AT * 1000 + number, signature=f"{number:064}", **more)
        return self.table.judge(auth, connection, line or b"line %d" % number)

    def sweep(self) -> int:
        """Forget what is no longer valid.  @return: in how many turns."""
        return 1 + sum(1 for _ in self.table.sweep())

    def test_swept_in_steps(self) -> None:
        """No step forgets more than a few thousand signatures, however many there are."""
        for number in range(6_000):
            self.judge(number, device_id=f"{number % 600}")
        self.clock.advance(400.0)
        self.assertEqual(self.sweep(), 4)
        self.assertEqual((len(self.table), self.table._devices), (0, {}))

    def test_repeat(self) -> None:
        """The very same line again is a repeat, on the same connection or the next."""
        self.assertEqual(self.judge(), Seen.FRESH)
        for connection in (1, 2, 2, 1):
            self.assertEqual(self.judge(connection=connection), Seen.REPEAT)
        self.assertEqual(len(self.table), 1)

    def test_same_millisecond(self) -> None:
        """Other lines under one signature are normal on its connection; each counts once."""
        for line in (b"a", b"b", b"c"):
            self.assertEqual(self.judge(line=line), Seen.FRESH)
        for line in (b"a", b"b", b"c"):
            for connection in (1, 2):
                self.assertEqual(self.judge(connection=connection, line=line), Seen.REPEAT)

    def test_replay(self) -> None:
        """Another line under a signature of another connection is a replay, each time."""
        self.judge()
        for line in (b"other", b"other", b"more"):
            self.assertEqual(self.judge(connection=2, line=line), Seen.REPLAY)
        self.assertEqual(self.judge(line=b"other"), Seen.FRESH)

    def test_other_device(self) -> None:
        """The device id is not signed: the signature is known again under another, or name."""
        self.judge()
        for number in range(100):
            self.assertEqual(
                self.judge(connection=2, line=b"x", device_id=f"{number}"), Seen.REPLAY
            )
        self.assertEqual(self.judge(connection=2, line=b"x", bot_name="b"), Seen.REPLAY)
        self.assertEqual(len(self.table._devices), 1)

    def test_expires(self) -> None:
        """A signature is forgotten when its time is over anyway, and not before."""
        self.judge(0)
        self.judge(0, line=b"same millisecond")
        self.judge(1000)
        self.clock.advance(300.0)
        self.sweep()
        self.assertEqual(self.judge(0), Seen.REPEAT)
        self.clock.advance(0.5)
        self.sweep()
        self.assertEqual(len(self.table), 1)
        self.clock.advance(1.0)
        self.sweep()
        self.assertEqual((len(self.table), self.table._devices), (0, {}))

    def test_bounded(self) -> None:
        """Of one device the last 4,096 are known; what is not newer than one forgotten is stale."""
        at_once = signatures_module._FORGOTTEN_AT_ONCE
        for number in range(MAX_REMEMBERED + 1):
            self.assertLessEqual(len(self.table), MAX_REMEMBERED)
            self.assertEqual(self.judge(number), Seen.FRESH)
        self.assertEqual(len(self.table), MAX_REMEMBERED + 1 - at_once)
        for number in (-5, 0, at_once - 1):
            self.assertEqual(self.judge(number, line=b"x"), Seen.STALE)
        self.assertEqual(self.judge(at_once), Seen.REPEAT)
        self.assertEqual(self.judge(1, device_id="another"), Seen.FRESH)

    def test_out_of_order(self) -> None:
        """Lines that waited on the phone come after younger ones."""
        self.assertEqual(self.judge(5000), Seen.FRESH)
        self.assertEqual(self.judge(0), Seen.FRESH)

    def test_stale_until_it_expires(self) -> None:
        """What was forgotten for want of room is stale until it would have expired."""
        self.patch(signatures_module, "MAX_REMEMBERED", 2)
        for number in (2000, 0, 1000):
            self.judge(number)
        self.clock.advance(301.5)
        self.sweep()
        self.assertEqual(self.judge(1500), Seen.STALE)
        self.clock.advance(1.0)
        self.sweep()
        self.assertEqual(self.table._devices, {})

    def test_further_lines_are_bounded(self) -> None:
        """Lines under one signature are bounded as well, and swept with it."""
        self.patch(signatures_module, "MAX_REMEMBERED", 3)
        for number in range(10):
            self.assertEqual(self.judge(line=b"%d" % number), Seen.FRESH)
        (device,) = self.table._devices.values()
        self.assertEqual(len(device.further or ()), 3)
        self.assertEqual(self.judge(line=b"9"), Seen.REPEAT)
        self.judge(100_000)
        self.clock.advance(301.0)
        self.sweep()
        self.assertIsNone(device.further)

    def test_devices_are_bounded(self) -> None:
        """Past the most devices the oldest is put out: what it has signed is stale."""
        self.patch(signatures_module, "MAX_DEVICES", 2)
        for number in range(3):
            self.assertEqual(self.judge(number, device_id=f"{number}"), Seen.FRESH)
        self.assertEqual(len(self.table), 2)
        self.assertEqual(self.judge(0, device_id="0"), Seen.STALE)
        self.assertEqual(self.judge(9, device_id="0"), Seen.FRESH)

    @given(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), max_size=30)
    )
    def test_against_a_model(self, steps: list[tuple[int, int, int]]) -> None:
        """No line is ever taken twice, and no signature serves two connections."""
        self.table = SignatureTable(300.0, self.clock.seconds)
        owners: dict[int, int] = {}
        lines: set[tuple[int, int]] = set()
        for number, connection, line in steps:
            seen = self.judge(number, connection, b"%d %d" % (number, line))
            owner = owners.setdefault(number, connection)
            if (number, line) in lines:
                self.assertEqual(seen, Seen.REPEAT)
            elif owner != connection:
                self.assertEqual(seen, Seen.REPLAY)
            else:
                self.assertEqual(seen, Seen.FRESH)
                lines.add((number, line))
