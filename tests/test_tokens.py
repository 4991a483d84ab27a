"""Tests for L{domaeka.policies.tokens}."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.policies.tokens import TokenPair, new_token, token_hash


class TokenTests(SynchronousTestCase):
    """Tests for what tokens look like."""

    def test_tokens_are_long_and_differ(self) -> None:
        """A token has 256 random bits, URL-safe."""
        tokens = {new_token() for _ in range(100)}
        self.assertEqual(len(tokens), 100)
        for token in tokens:
            self.assertRegex(token, r"\A[\w-]{43}\Z")
            self.assertIsNotNone(token_hash(token))

    @given(
        st.one_of(
            st.text(),
            st.binary(),
            st.integers(),
            st.none(),
            st.lists(st.text()),
            st.just("\u0660" * 43),
            st.just("a" * 43 + "\n"),
        )
    )
    def test_nothing_else_is_a_token(self, value: object) -> None:
        """What cannot be a token costs no look into the store, whatever it is."""
        self.assertIsNone(token_hash(value))


class TokenPairTests(SynchronousTestCase):
    """Tests for L{TokenPair}."""

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=12))
    def test_only_two_are_good(self, uses: list[tuple[bool, int]]) -> None:
        """
        Whatever is tried in whatever order, good are the newest and the one that brought it.
        """
        given_out = ["t0"]
        pair = TokenPair("t0", None, 10.0)
        for number, (by_signature, back) in enumerate(uses, 1):
            used = given_out[max(0, len(given_out) - 1 - back)]
            fresh = f"t{number}"
            if by_signature:
                pair = TokenPair(fresh, None, 10.0)
                used = ""
            elif pair.is_good(used, 1.0):
                pair = pair.after(used, fresh, 10.0)
            else:
                self.assertNotIn(used, (pair.newest, pair.older))
                continue
            given_out.append(fresh)
            good = {token for token in given_out if pair.is_good(token, 1.0)}
            self.assertEqual(good, {fresh, used} - {""})
            self.assertEqual(pair.size, len(good))

    def test_both_end_in_time(self) -> None:
        """At its end neither is good."""
        pair = TokenPair("a", None, 9.0).after("a", "b", 10.0)
        self.assertTrue(pair.is_good("a", 9.9) and pair.is_good("b", 9.9))
        self.assertFalse(pair.is_good("a", 10.0) or pair.is_good("b", 10.0))
