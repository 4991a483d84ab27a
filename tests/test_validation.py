"""Tests for L{domaeka.validation}, with the msgspec that is installed."""

from typing import Literal

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from domaeka.validation import MISSING, UNKNOWN, Fault, fault_of


class _Inner(msgspec.Struct, forbid_unknown_fields=True):
    number: int
    kind: Literal["a", "b"] = "a"


class _Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: _Inner
    several: list[_Inner] = []


class FaultTests(SynchronousTestCase):
    """What is wrong, and where, is understood as this msgspec words it."""

    def fault(self, text: str) -> Fault:
        """What is wrong with C{text}."""
        return fault_of(
            self.assertRaises(msgspec.ValidationError, msgspec.json.decode, text, type=_Outer)
        )

    def test_missing(self) -> None:
        """A field that is not there is named with its whole path."""
        self.assertEqual(self.fault("{}"), ("inner", MISSING))
        self.assertEqual(self.fault('{"inner":{}}'), ("inner.number", MISSING))

    def test_unknown(self) -> None:
        """So is one that should not be there, whatever its name."""
        self.assertEqual(self.fault('{"x":1}'), ("x", UNKNOWN))
        self.assertEqual(self.fault('{"inner":{"x`\\ny":1}}'), ("inner.x`\ny", UNKNOWN))

    def test_wrong(self) -> None:
        """Of a wrong value the path is read, and msgspec's own words are passed on."""
        for text, place, kind in (
            ("[]", "", "array"),
            ('{"inner":{"number":"1"}}', "inner.number", "int"),
            ('{"inner":{"number":1,"kind":"c"}}', "inner.kind", "'c'"),
            ('{"inner":{"number":1},"several":[{"number":""}]}', "several[0].number", "int"),
        ):
            fault = self.fault(text)
            self.assertEqual(fault.place, place)
            self.assertIn(kind, fault.text)
            self.assertNotIn("$", str(fault))
            self.assertTrue(str(fault).startswith(place))

    def test_other_words(self) -> None:
        """What a msgspec to come says in other words is passed on as it is."""
        fault = fault_of(msgspec.ValidationError("`inner` is absent"))
        self.assertEqual(fault, ("", "`inner` is absent"))
