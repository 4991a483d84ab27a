"""Tests for L{domaeka.store.columns}."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, event
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import StoreError
from domaeka.store.bans import BANS
from domaeka.store.columns import key_hash, storable, upsert, write_each
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

    def test_another_server_may_be_faster(self) -> None:
        """A row that appears between the look and the insert is changed like any other."""
        self.start()
        rows = [self.row("a", "mine", 1), self.row("b", "mine", 1)]

        def write(connection: Connection) -> None:
            @event.listens_for(connection, "savepoint", once=True)
            def appear(*args: object) -> None:
                connection.execute(BANS.insert(), [self.row("b", "theirs", 1)])

            upsert(connection, BANS, rows)

        self.successResultOf(self.database.run_write(write))
        found = {row["network"]: row["reason"] for row in self.rows(BANS)}
        self.assertEqual(found, {"a": "mine", "b": "mine"})


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
