"""
Pages: where the next one begins is a text that clients give back as it is.
"""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from heapq import nlargest, nsmallest
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import msgspec

from domaeka.web.api.endpoints import bad_request

_T = TypeVar("_T")


class Place(NamedTuple):
    """
    Where an item stands in an order: whether it has no value comes first, then the value, then
    what no other item has.
    """

    lacks: bool
    value: Any
    tie: Any


def cursor(place: object) -> str:
    """A text for a place, to be read by L{read_cursor}."""
    return urlsafe_b64encode(msgspec.json.encode(place)).rstrip(b"=").decode()


def read_cursor(after: str | None, kind: Any) -> Any:
    """
    The place that C{after} stands for; L{None} for none.

    @param kind: its type.
    @raise Refusal: it was not made by L{cursor} for a place of this type.
    """
    if after is None:
        return None
    try:
        raw = urlsafe_b64decode(after.encode("ascii") + b"=" * (-len(after) % 4))
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError):
        raise bad_request("after: is not a `next` of this order") from None


def page_of(
    items: Iterable[_T],
    place: Callable[[_T], Place],
    after: Place | None,
    limit: int,
    descending: bool = False,
) -> tuple[list[_T], Place | None, int]:
    """
    A page of items in the order of their places.

    @param place: where an item stands, no two at the same.
    @param after: the place of the last item of the page before.
    @return: the items, the place of the last one if others follow, and how many there are in all.
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
