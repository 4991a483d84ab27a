"""
Validation errors of data from outside, read from msgspec's texts: which field, and what is wrong.

Versions of msgspec word them differently.  They are read here and nowhere else; a text that cannot
be read is passed on as it is.
"""

import re
from typing import Final, NamedTuple

import msgspec

#: The texts for a field that is missing, and for one that should not be there.
MISSING: Final = "is missing"
UNKNOWN: Final = "is not known"
_PLACE: Final = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_FIELD: Final = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)


class Fault(NamedTuple):
    """
    The first thing that is wrong.

    @ivar place: the path of the field, such as C{data.room}; empty: all of it.
    @ivar text: L{MISSING}, L{UNKNOWN}, or what msgspec says.
    """

    place: str
    text: str

    def __str__(self) -> str:
        """The field, then the text."""
        return f"{self.place}: {self.text}" if self.place else self.text


def fault_of(error: msgspec.ValidationError) -> Fault:
    """Read the text of C{error}."""
    text, place = str(error), ""
    if found := _PLACE.fullmatch(text):
        text, place = found.groups()
    if found := _FIELD.fullmatch(text):
        kind, field = found.groups()
        place = f"{place}.{field}" if place else field
        return Fault(place, MISSING if kind == "missing required" else UNKNOWN)
    return Fault(place, text)
