"""Tests for L{domaeka.gateway.directory.pages}."""

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway.directory.pages import Place, page_of, place_cursor, place_in, read_place
from domaeka.gateway.views import ConnectionFigures
from domaeka.interfaces import DeviceKey
from domaeka.policies.cursors import BadCursor, cursor, read_cursor
from domaeka.policies.quality import Grade
from domaeka.schema import ConnectionOrder


class PagingTests(SynchronousTestCase):
    """Tests for L{page_of} and cursors."""

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 3))), st.integers(1, 4), st.booleans())
    def test_pages(self, values: list[tuple[bool, int]], limit: int, descending: bool) -> None:
        """Pages put together are all items in order, each once."""
        items = [Place(*value, number) for number, value in enumerate(values)]
        found: list[Place] = []
        after = None
        while True:
            page, after, total = page_of(items, lambda item: item, after, limit, descending)
            self.assertEqual(total, len(items))
            found += page
            if after is None:
                break
            after = Place(*read_cursor(cursor(after), tuple[bool, int, int]))
        self.assertEqual(found, sorted(items, reverse=descending))


class OrderTests(SynchronousTestCase):
    """Tests for L{place_in}."""

    def figures(self, rtt: float | None) -> ConnectionFigures:
        """Those of a connection, with one ping missed, perhaps, and none answered."""
        key = DeviceKey("봇", "d")
        return ConnectionFigures(
            7, key, "192.0.2.1", "3.3", 1.0, 2.0, Grade.FAIR, 60, 0.5, rtt, 3, 4, 5
        )

    def test_cursors(self) -> None:
        """A place in every order of the API can be told, and is of no other order."""
        for order in get_args(ConnectionOrder):
            for rtt in (0.5, None):
                place = place_in(order)(self.figures(rtt))
                lacks = rtt is None and order in ("score", "rtt", "loss")
                self.assertEqual((place.lacks, place.tie), (lacks, 7))
                text = place_cursor(order, place)
                self.assertEqual(read_place(order, text), place)
                other = "device" if order == "bot" else "bot"
                self.assertRaises(BadCursor, read_place, other, text)
