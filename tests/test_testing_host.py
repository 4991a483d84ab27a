"""Tests for L{domaeka.testing.host}."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from domaeka.store import bot_values
from domaeka.store.bot_values import MAX_INT, MAX_KEY_CHARS, MAX_VALUE_BYTES, BotValues
from domaeka.testing import host
from domaeka.testing.host import MemoryValues
from tests.storing import StoreTestCase

_BOTS = st.sampled_from(["봇", "봇2"])
_SCOPES = st.sampled_from(["", "room:1"])
_KEYS = st.sampled_from(
    ["a", "A", "가", "ab", "\U0001f600", "\ud800", "", 5, "x" * MAX_KEY_CHARS, "x" * 201]
)
_VALUES = st.sampled_from(
    [b"1", b"2.5", b'"text"', b"%d" % MAX_INT, b'"%s"' % (b"x" * 40), b"1" * (MAX_VALUE_BYTES + 1)]
)
_BY = st.sampled_from([1, -1, 0.5, MAX_INT, 10**400, 1e308, True, "1", float("nan")])
_CALLS = st.one_of(
    st.tuples(st.just("get"), _BOTS, _SCOPES, _KEYS),
    st.tuples(st.just("set"), _BOTS, _SCOPES, _KEYS, _VALUES),
    st.tuples(st.just("delete"), _BOTS, _SCOPES, _KEYS),
    st.tuples(st.just("incr"), _BOTS, _SCOPES, _KEYS, _BY),
    st.tuples(
        st.just("keys"),
        _BOTS,
        _SCOPES,
        st.sampled_from(["", "a", "x", "\ud800"]),
        st.sampled_from([None, "a"]),
        st.sampled_from([0, 2, 1000, 1001]),
    ),
)


class MemoryValuesTests(StoreTestCase):
    """Tests for L{MemoryValues}."""

    def test_as_the_store(self) -> None:
        """It answers as the store does, with the same errors, and the same bounds."""
        self.start()

        @given(st.lists(_CALLS, max_size=30))
        def same(calls: list[tuple[Any, ...]]) -> None:
            with self.database._writes.begin() as connection:
                for table in (bot_values.BOT_VALUES, bot_values.BOT_SUMS):
                    connection.execute(table.delete())
            stored, kept = BotValues(self.database, self.clock), MemoryValues()
            for name, *args in calls:
                found = [self.outcome(getattr(each, name)(*args)) for each in (stored, kept)]
                self.assertEqual(found[0], found[1], (name, args))

        # Bounds that a few calls reach.
        for name, bound in (("MAX_VALUES", 3), ("MAX_BYTES", 300)):
            for module in (bot_values, host):
                self.patch(module, name, bound)
        same()

    def outcome(self, asked: "Deferred[Any]") -> Any:
        found: list[Any] = []
        asked.addCallbacks(
            found.append, lambda failure: found.append((failure.type, str(failure.value)))
        )
        self.assertEqual(len(found), 1)
        return found[0]
