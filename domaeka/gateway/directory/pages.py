"""Orders of connections, and pages of them."""

from collections.abc import Callable, Iterable
from heapq import nlargest, nsmallest
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple, TypeVar

from domaeka.gateway.views import ConnectionFigures
from domaeka.policies.cursors import BadCursor, cursor, read_cursor
from domaeka.schema import ConnectionOrder

_T = TypeVar("_T")

#: The orders by texts; all others are by numbers.
_TEXTS: Final[frozenset[ConnectionOrder]] = frozenset({"bot", "device", "address", "version"})
#: Contents of both kinds of cursor: the order, and a L{Place}.
_TEXT_CURSOR: Final[Any] = tuple[str, bool, str, int]
_NUMBER_CURSOR: Final[Any] = tuple[str, bool, float, int]


def _once_answered(name: str) -> Callable[[ConnectionFigures], Any]:
    """A figure of the quality; L{None} before the first answer to a ping."""
    read = attrgetter(name)
    return lambda figures: None if figures.rtt is None else read(figures)


#: Sort keys of connections; L{None} comes last.
_VALUES: Final[dict[ConnectionOrder, Callable[[ConnectionFigures], Any]]] = {
    "bot": lambda figures: figures.key.bot_name,
    "device": lambda figures: figures.key.device_id,
    "address": attrgetter("address"),
    "version": attrgetter("version"),
    "since": attrgetter("made_at"),
    "score": _once_answered("score"),
    "rtt": attrgetter("rtt"),
    "loss": _once_answered("loss"),
    "silent": lambda figures: -figures.last_heard,
    "messages": attrgetter("messages"),
    "bytes": attrgetter("bytes"),
    "queue": attrgetter("queued"),
}


class Place(NamedTuple):
    """Position of an item in an order; C{tie} is unique, C{value} empty where it C{lacks} one."""

    lacks: bool
    value: Any
    tie: Any


def place_in(order: ConnectionOrder) -> Callable[[ConnectionFigures], Place]:
    """The function that gives a connection's position in an order."""
    read = _VALUES[order]
    nothing = "" if order in _TEXTS else 0.0

    def place(figures: ConnectionFigures) -> Place:
        value = read(figures)
        return Place(value is None, nothing if value is None else value, figures.number)

    return place


def place_cursor(order: ConnectionOrder, place: Place) -> str:
    """The cursor of a place in an order."""
    return cursor((order, *place))


def read_place(order: ConnectionOrder, after: str | None) -> Place | None:
    """
    The place of a cursor; L{None} for none.

    @raise BadCursor: it was not made for this order.
    """
    found = read_cursor(after, _TEXT_CURSOR if order in _TEXTS else _NUMBER_CURSOR)
    if found is None:
        return None
    if found[0] != order:
        raise BadCursor("after: is of another order")
    return Place(*found[1:])


def page_of(
    items: Iterable[_T],
    place: Callable[[_T], Place],
    after: Place | None,
    limit: int,
    descending: bool = False,
) -> tuple[list[_T], Place | None, int]:
    """
    A page of items in the order of their places.

    @param place: gives an item's place, no two the same.
    @param after: the place of the last item of the page before.
    @return: the items, the place of the last one if others follow, and the total.
    """
    total = 0
    rest: list[tuple[Place, _T]] = []
    for item in items:
        total += 1
        at = place(item)
        if after is None or (at < after if descending else at > after):
            rest.append((at, item))
    pick = nlargest if descending else nsmallest
    found = pick(limit + 1, rest, key=itemgetter(0))
    shown = found[:limit]
    return [item for _, item in shown], shown[-1][0] if len(found) > limit else None, total
