"""The endpoint of the chat log."""

from typing import Annotated, TypeAlias

from msgspec import Meta

from domaeka.errors import StoreError
from domaeka.policies.cursors import cursor, read_cursor
from domaeka.schema_chat import ChatLine, ChatLines, ChatQuery
from domaeka.store.chat_search import ChatFilter, ChatSearch, Place
from domaeka.store.chatlog import StoredChatLog
from domaeka.web.api.endpoints import EndpointGroup, Request, endpoint
from domaeka.web.api.records import STORE_REFUSALS, store_refusal
from domaeka.wire import timestamp_text

#: The times that ISO 8601 has, in milliseconds, and the ids of lines.
_Time: TypeAlias = Annotated[int, Meta(ge=-62_135_596_800_000, le=253_402_300_799_999)]
_Number: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class ChatPages(EndpointGroup):
    """The endpoint of the chat log."""

    def __init__(self, search: ChatSearch, chat_log: StoredChatLog) -> None:
        self._search = search
        self._chat_log = chat_log

    @endpoint(
        "GET",
        "/chat",
        "The chat log, the latest line first",
        refusals=STORE_REFUSALS,
    )
    async def lines(self, request: Request[ChatQuery, None]) -> ChatLines:
        """A page of lines."""
        query = request.query
        wanted = ChatFilter(
            query.bot,
            query.room,
            query.sender,
            query.text,
            None if query.since is None else query.since.timestamp(),
            None if query.until is None else query.until.timestamp(),
            query.newer_than,
        )
        any_place = tuple[_Time, _Number | None]
        a_line = tuple[_Time, _Number]
        after = read_cursor(query.after, any_place if query.newer_than is None else a_line)
        try:
            page = await self._search.find(wanted, query.limit, after and Place(*after))
        except StoreError as error:
            raise store_refusal(str(error)) from None
        lines = [
            ChatLine(
                number,
                timestamp_text(line.time),
                "out" if line.direction == "out" else "in",
                *line[2:],
            )
            for number, line in page.lines
        ]
        return ChatLines(
            lines,
            page.next and cursor(page.next),
            None if page.next is None else timestamp_text(page.next.time / 1000),
            page.newest,
            self._chat_log.waiting,
            self._chat_log.enabled,
        )
