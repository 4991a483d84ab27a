"""Tests for L{domaeka.store.columns}."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import StoreError
from domaeka.store.bans import BANS
from domaeka.store.columns import (
    Read,
    key_hash,
    read_rows,
    seconds_in,
    storable,
    text_in,
    upsert,
    write_each,
)
from tests.storing import READ_ONLY, StoreTestCase

#: Any text that Python can hold, lone surrogates included.
texts = st.text(st.characters(codec=None, categories=None) | st.sampled_from("\0\ud800|:1"))


class TextTests(SynchronousTestCase):
    """Tests for L{key_hash} and L{storable}."""

    @given(st.tuples(texts, texts), st.tuples(texts, texts))
    def test_keys_are_equal_for_equal_names_only(self, a: Any, b: Any) -> None:
        """Names that look alike, or run into each other, have different keys."""
        self.assertEqual(key_hash(*a) == key_hash(*b), a == b)
        self.assertNotEqual(key_hash(a[0] + a[1], ""), key_hash(a[0], a[1] + "x"))

    @given(texts, st.integers(1, 9))
    def test_any_text_becomes_storable(self, text: str, limit: int) -> None:
        """What comes out can be encoded, has no NUL, and is no longer than allowed."""
        stored = storable(text, limit)
        stored.encode()
        self.assertNotIn("\0", stored)
        self.assertEqual(len(stored), min(len(text), limit))
        self.assertEqual(storable(stored, limit), stored)


class UpsertTests(StoreTestCase):
    """Tests for L{upsert}."""

    def row(self, network: str, reason: str, times: int) -> dict[str, object]:
        """A row of a table."""
        return {"network": network, "reason": reason, "made_at": 0, "times": times, "made_by": ""}

    def test_changes_and_inserts(self) -> None:
        """Rows that are there are changed, but for what is fixed, and the others inserted."""
        self.start()
        for rows in (
            [self.row("a", "first", 1)],
            [self.row("b", "second", 2), self.row("a", "second", 2)],
        ):
            self.successResultOf(self.database.run_write(upsert, BANS, rows, {"times"}))
        found = {row["network"]: (row["reason"], row["times"]) for row in self.rows(BANS)}
        self.assertEqual(found, {"a": ("second", 1), "b": ("second", 2)})


class ReadRowsTests(StoreTestCase):
    """Tests for L{read_rows}."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def read(self, count: int, from_row: Any, damaged: Sequence[str] = ()) -> Read[Any]:
        """
        Read so many bans, each with its number as the reason.

        @param damaged: networks whose rows the driver cannot give.
        """
        rows = [
            {"network": f"{n:05}", "reason": str(n), "made_at": n, "times": 1, "made_by": ""}
            for n in range(count)
        ]
        self.successResultOf(self.database.run_write(upsert, BANS, rows))

        def read(connection: Connection) -> Read[Any]:
            for network in damaged:
                connection.exec_driver_sql(
                    f"UPDATE domaeka_bans SET reason = CAST(x'ff' AS TEXT) "
                    f"WHERE network = '{network}'"
                )
            return read_rows(connection, BANS, [BANS.c.made_at.desc()], 9000, from_row)

        return self.successResultOf(self.database.run_write(read))

    def test_in_order(self) -> None:
        """Rows come in the order that was asked for."""
        self.assertEqual(self.read(3, lambda row: row.reason), Read(["2", "1", "0"], [], ""))

    def test_what_cannot_be_understood(self) -> None:
        """A row of which nothing can be made is left out, and named with the reason."""
        found = self.read(5, lambda row: int("?" if row.made_at == 2 else row.reason))
        self.assertEqual((len(found.rows), found.damaged), (4, ["00002"]))
        self.assertIn("invalid literal", found.reason)

    def test_what_cannot_be_read(self) -> None:
        """Rows that the driver cannot give are left out likewise, however many are around them."""
        self.database = self.make_database("sqlite://")  # a server stores no such text
        self.start()
        damaged = ["00000", "00700", "01233"]
        found = self.read(1234, lambda row: row.made_at, damaged)
        self.assertEqual(found.rows, [n for n in range(1233, -1, -1) if f"{n:05}" not in damaged])
        self.assertEqual(sorted(found.damaged), damaged)
        self.assertIn("Could not decode to UTF-8", found.described)

    def test_described(self) -> None:
        """A few are named, and the others counted."""
        found: Read[int] = Read([], list("abcde"), "why")
        self.assertEqual(found.described, "'a', 'b', 'c' and 2 more (why)")
        self.assertEqual(Read([], ["a"], "why").described, "'a' (why)")

    def test_types(self) -> None:
        """A text is one, and a time a whole number of milliseconds."""
        self.assertEqual((text_in("a"), seconds_in(1500), seconds_in(None)), ("a", 1.5, None))
        for no_text in (b"a", None, 1):
            self.assertRaises(TypeError, text_in, no_text)
        for no_time in ("1", 1.5, b""):
            self.assertRaises(TypeError, seconds_in, no_time)


class WriteEachTests(StoreTestCase):
    """Tests for L{write_each}."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def write(self, connection: Connection, rows: list[dict[str, Any]]) -> list[str]:
        """Store bans.  @return: the networks of those that the database refused."""
        refused = write_each(
            connection, rows, lambda some: connection.execute(BANS.insert(), list(some))
        )
        return [row["network"] for row in refused]

    def row(self, network: str, times: int = 1, reason: str | None = "") -> dict[str, Any]:
        """A row of a table."""
        row = {"network": network, "reason": reason, "made_at": 0, "times": times, "made_by": ""}
        return row | {"claimed_bot": "", "claimed_device": ""}

    def networks(self) -> list[str]:
        """What is stored."""
        return sorted(row["network"] for row in self.rows(BANS))

    def test_bad_row_stops_no_other(self) -> None:
        """A value that is too large, or none at all, costs its own row only."""
        rows = [self.row("a"), self.row("b", 2**70), self.row("c", reason=None), self.row("d")]
        refused = self.successResultOf(self.database.run_write(self.write, rows))
        self.assertEqual((refused, self.networks()), (["b", "c"], ["a", "d"]))

    def test_bad_row_alone(self) -> None:
        """It is refused where it comes alone, or with others like it."""
        for rows in ([self.row("b", 2**70)], [self.row("b", 2**70), self.row("c", reason=None)]):
            refused = self.successResultOf(self.database.run_write(self.write, rows))
            self.assertEqual(len(refused), len(rows))

    def test_trouble_is_no_rows_fault(self) -> None:
        """While the store fails no row is refused, for all can be written later."""
        self.break_store()
        rows = [self.row("a"), self.row("b")]
        failure = self.failureResultOf(self.database.run_write(self.write, rows), StoreError)
        self.assertRegex(failure.getErrorMessage(), READ_ONLY)
        self.break_store(False)
        self.assertEqual(self.successResultOf(self.database.run_write(self.write, rows)), [])
