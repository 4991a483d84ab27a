"""Cursors: the place where the next page begins, as a text that clients give back."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from heapq import nsmallest
from typing import Any, TypeVar

import msgspec

from domaeka.errors import DomaekaError

_T = TypeVar("_T", bound=str | tuple[str, ...])


class BadCursor(DomaekaError):
    """A text is not the cursor of such a page."""

    def __init__(self, text: str = "after: is not a `next` of this order") -> None:
        super().__init__(text)


def cursor(place: object) -> str:
    """The cursor of a place, to be read by L{read_cursor}."""
    return urlsafe_b64encode(msgspec.json.encode(place)).rstrip(b"=").decode()


def page(items: Iterable[_T], after: Any, limit: int) -> tuple[list[_T], str | None]:
    """
    The least C{limit} items above C{after}, in order, and the cursor of the next page.

    @param items: each is its own place, and no two are alike.
    """
    found = nsmallest(limit + 1, (one for one in items if one > after))
    shown = found[:limit]
    return shown, cursor(shown[-1]) if len(found) > limit else None


def read_cursor(after: str | None, kind: Any) -> Any:
    """
    The place that C{after} stands for; L{None} for none.

    @param kind: its type.
    @raise BadCursor: it was not made by L{cursor} for a place of this type.
    """
    if after is None:
        return None
    try:
        raw = urlsafe_b64decode(after.encode("ascii") + b"=" * (-len(after) % 4))
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError):
        raise BadCursor from None
