"""The admin API's types for the chat log; those of all else are in L{domaeka.schema}."""

from datetime import datetime
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from domaeka.schema import PAGE, After, Input, Limit, Time

#: Longest text that is searched for, in characters.
MAX_SEARCHED_CHARS: Final = 1000


class ChatLine(msgspec.Struct):
    """A line of the chat log."""

    id: Annotated[int, Meta(description="in the order in which they were stored")]
    time: Time
    direction: Annotated[Literal["in", "out"], Meta(description="`out`: an answer, or sent")]
    bot: str
    device: Annotated[str, Meta(description="empty: imported, and not known")]
    room: Annotated[str, Meta(description="its channel id, or its name where that is not known")]
    name: Annotated[str, Meta(description="the room's, at that time")]
    sender: str
    user_hash: str | None
    log_id: str | None
    text: str


class ChatLines(msgspec.Struct):
    """
    A page of the chat log, the latest line first; of one time, the one that was stored last.

    A line is stored within half a second; lines are not here while they wait (`waiting`).
    """

    chat: list[ChatLine]
    next: Annotated[
        str | None,
        Meta(
            description="for `after` of the next page; null: all was searched. A page may be "
            "short, or empty, and still have it: the search took long, and goes on there"
        ),
    ]
    searched_to: Annotated[
        Time | None, Meta(description="with `next`: how far back the search has come")
    ]
    newest: Annotated[
        int, Meta(description="for `newer_than`: the line that was stored last, of any room")
    ]
    waiting: Annotated[int, Meta(description="how many lines this server has yet to store")]
    enabled: Annotated[
        bool, Meta(description="`storage.chat_log`; false: nothing that is said now is stored")
    ]


_RoomId: TypeAlias = Annotated[str, Meta(description="its id, as `GET /rooms` has it")]
_Sender: TypeAlias = Annotated[str, Meta(description="the whole name")]
_Part: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_SEARCHED_CHARS,
        description="a part of it, as it is; upper and lower case differ",
    ),
]
_Since: TypeAlias = Annotated[
    datetime, Meta(tz=True, description="from this time on: ISO 8601, with its zone")
]
_Until: TypeAlias = Annotated[datetime, Meta(tz=True, description="before this time, likewise")]
_NewerThan: TypeAlias = Annotated[
    int,
    Meta(
        ge=0,
        le=2**63 - 1,
        description="to follow the chat: only what was stored after the line with this id, in that "
        "order; `newest` of an answer before",
    ),
]


class ChatQuery(Input, frozen=True):
    """Filter of the chat log."""

    bot: str | None = None
    room: _RoomId | None = None
    sender: _Sender | None = None
    text: _Part | None = None
    since: _Since | None = None
    until: _Until | None = None
    newer_than: _NewerThan | None = None
    limit: Limit = PAGE
    after: After | None = None
