"""Tests for L{domaeka.store.chat_search}."""

from typing import Any

from sqlalchemy import Connection, select, text

from domaeka.errors import StoreError
from domaeka.interfaces import ChatLine
from domaeka.store import chat_search as module
from domaeka.store.chat_search import (
    ANSWER_SECONDS,
    PAGE_CHARS,
    ChatFilter,
    ChatPage,
    ChatSearch,
    Place,
)
from domaeka.store.chatlog import insert_lines
from tests.storing import StoreTestCase


def line(
    text: str = "안녕", at: float = 1000.0, room: str = "100", bot: str = "봇", sender: str = "사람"
) -> ChatLine:
    """Something that somebody said."""
    return ChatLine(at, "in", bot, "a1", room, "방", sender, None, "7", text)


class ChatSearchTests(StoreTestCase):
    """Tests for L{ChatSearch}."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.search = ChatSearch(self.database, self.clock)
        self.patch(module, "FIRST_SLICE", 2)  # each search takes several transactions
        self.patch(module, "MAX_SLICE", 4)

    def say(self, *lines: ChatLine) -> None:
        """Store lines, in this order."""
        self.successResultOf(self.database.run_write(insert_lines, lines))

    def page(self, limit: int = 100, after: Place | None = None, **wanted: Any) -> ChatPage:
        """A page of a search."""
        page: ChatPage = self.successResultOf(self.search.find(ChatFilter(**wanted), limit, after))
        return page

    def texts(self, limit: int = 100, **wanted: Any) -> list[str]:
        """The texts of all pages."""
        page = self.page(limit, **wanted)
        found = list(page.lines)
        while page.next is not None:
            page = self.page(limit, page.next, **wanted)
            self.assertLessEqual(len(page.lines), limit)
            found += page.lines
        self.assertEqual(len({number for number, _ in found}), len(found))
        return [line.text for _, line in found]

    def test_nothing_stored(self) -> None:
        """An empty chat log has an empty page, and no more."""
        self.assertEqual(self.page(), ChatPage([], None, 0))

    def test_newest_first(self) -> None:
        """By their times, whenever they were stored; of one time, in the order of storing."""
        self.say(*(line(f"{n}", at) for n, at in enumerate((5, 9, 9, 9, 9, 9, 1, 7, 7, 2000))))
        for limit in (1, 2, 3, 100):
            self.assertEqual(self.texts(limit), list("9543218706"))

    def test_lines_are_whole(self) -> None:
        """A line comes back as it was stored, with its id."""
        said = line()._replace(time=1_790_000_000.123, user_hash="h", log_id=None)
        self.say(said)
        page = self.page()
        self.assertEqual(page.lines, [(page.newest, said)])

    def test_filters(self) -> None:
        """Each filter leaves those that fit exactly, and all of them are obeyed."""
        self.say(
            line("A 100%"),
            line("a 100_", 2000.0, sender="사람 "),
            line("b", 3000.0, room="Room"),
            line("c", 4000.0, room="room"),
            line("d", 5000.0, bot="Bot"),
            line("e", 6000.0, room="r" * 80),
            line("f", 7000.0, room="r" * 81),
        )
        for wanted, texts in (
            ({"bot_name": "봇"}, ["f", "e", "c", "b", "a 100_", "A 100%"]),
            ({"bot_name": "bot"}, []),
            ({"room_id": "room"}, ["c"]),
            ({"room_id": "r" * 80}, ["e"]),
            ({"room_id": "r" * 64}, []),
            ({"sender": "사람 "}, ["a 100_"]),
            ({"text": "%"}, ["A 100%"]),
            ({"text": "_"}, ["a 100_"]),
            ({"text": "a"}, ["a 100_"]),
            ({"text": "\\"}, []),
            ({"since": 2000.0, "until": 4000.0}, ["b", "a 100_"]),
            ({"room_id": "100", "since": 2000.0, "text": "100", "bot_name": "봇"}, ["a 100_"]),
            ({"room_id": "\0\ud800" * 600}, []),
        ):
            for limit in (1, 100):
                self.assertEqual(self.texts(limit, **wanted), texts, wanted)

    def test_follow(self) -> None:
        """What was stored since comes in that order, whatever its time, and nothing twice."""
        self.say(line("old"))
        newest = self.page().newest
        self.say(*(line(f"{n}", 500.0 - n) for n in range(9)), line("x", room="other"))
        wanted: dict[str, Any] = {"newer_than": newest, "room_id": "100", "until": 501.0}
        self.assertEqual(self.texts(3, **wanted), list("012345678"))
        self.assertEqual(self.texts(3, **wanted, since=495.0), list("012345"))
        self.assertEqual(self.texts(newer_than=self.page().newest), [])

    def test_search_is_bounded(self) -> None:
        """One that finds little says where it stopped, and goes on there."""
        self.patch(module, "SEARCH_LINES", 6)
        self.say(line("needle"), *(line("hay", 2000.0 + n) for n in range(40)))
        page = self.page(text="needle")
        self.assertEqual(page.lines, [])
        assert page.next is not None
        self.assertTrue(2030 < page.next.time / 1000 < 2040, page.next)
        self.assertEqual(self.texts(text="needle"), ["needle"])

    def test_slices_are_as_long_as_the_store_is_fast(self) -> None:
        """Where a slice took long the next one is shorter, and after a second there is none."""
        self.patch(module, "MAX_SLICE", 1000)
        self.say(*(line(at=1000.0 + n) for n in range(100)))
        sizes: list[int] = []
        took = iter((0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1, 1.0, 0.0))

        def look(connection: Connection, *args: Any) -> Any:
            sizes.append(args[3])
            self.clock.advance(next(took))
            return original(connection, *args)

        original = module._look
        self.patch(module, "_look", look)
        page = self.page(text="x")
        self.assertEqual(sizes, [2, 4, 8, 16, 8, 4, 2, 2])
        assert page.next is not None

    def test_pages_are_bounded_in_text(self) -> None:
        """However long lines are, a page has no more text than allowed, or a single line."""
        self.patch(module, "PAGE_CHARS", 30)
        for chars in (7, 10, 29, 31):
            self.say(*(line("x" * chars) for _ in range(5)))
        after: Place | None = None
        sizes = []
        while True:
            page = self.page(after=after)
            sizes.append([len(line.text) for _, line in page.lines])
            after = page.next
            if after is None:
                break
        self.assertEqual([len(sizes), sum(map(len, sizes))], [13, 20])
        self.assertTrue(all(len(page) == 1 or sum(page) <= 30 for page in sizes), sizes)
        self.assertLess(30, PAGE_CHARS)

    def test_store_that_hangs(self) -> None:
        """Nobody waits for it for ever."""
        self.thread.stuck = True
        finding = self.search.find(ChatFilter(), 1)
        self.clock.advance(ANSWER_SECONDS)
        error = self.failureResultOf(finding, StoreError)
        self.assertEqual(error.getErrorMessage(), "the store has not answered for 10 s")
        self.thread.go_on()

    def test_indexes(self) -> None:
        """A room is found by its index, and all lines by that of their times."""

        def plan(connection: Connection) -> str:
            found: list[Any] = []
            for room in (None, "100"):
                wanted = ChatFilter(room_id=room)
                order, conditions = module._range(wanted, Place(2000, None), "sqlite")
                query = select(module._LINES.id).where(*conditions).order_by(*order)
                words = query.compile(connection, compile_kwargs={"literal_binds": True})
                found += connection.execute(text(f"EXPLAIN QUERY PLAN {words}")).all()
            return "\n".join(row.detail for row in found)

        if self.database._writes.dialect.name == "sqlite":
            found = self.successResultOf(self.database.run_read(plan))
            self.assertNotIn("TEMP B-TREE", found)
            self.assertIn("INDEX domaeka_chat_lines_time (time<?)", found)
            self.assertIn("INDEX domaeka_chat_lines_room (<expr>=? AND time<?)", found)
