"""Tests for L{domaeka.web.api.chat}."""

from domaeka.interfaces import ChatLine
from domaeka.policies.cursors import cursor
from domaeka.store import chat_search
from domaeka.store.chatlog import WRITE_SECONDS
from tests.api_case import ROOM_ID, ApiCase

BASE = 1_790_000_000.0


class ChatTests(ApiCase):
    """C{GET /chat}."""

    def say(self, *texts: str, room: str = ROOM_ID, sender: str = "홍길동") -> None:
        """Something is said, a second after the last, and stored."""
        for number, text in enumerate(texts):
            line = ChatLine(
                BASE + number, "in", "가게봇", "a1b2", room, "방", sender, None, "7", text
            )
            self.stored_chat.append(line)
        self.run_for(WRITE_SECONDS)

    def texts(self, **query: object) -> list[str]:
        """The texts of a page."""
        return [line["text"] for line in self.get("/chat", **query)["chat"]]

    def test_line(self) -> None:
        """All that is stored of a line is there."""
        self.say("안녕")
        page = self.get("/chat")
        number = page["newest"]
        self.assertEqual(
            page,
            {
                "chat": [
                    {
                        "id": number,
                        "time": "2026-09-21T14:13:20.000Z",
                        "direction": "in",
                        "bot": "가게봇",
                        "device": "a1b2",
                        "room": ROOM_ID,
                        "name": "방",
                        "sender": "홍길동",
                        "user_hash": None,
                        "log_id": "7",
                        "text": "안녕",
                    }
                ],
                "next": None,
                "searched_to": None,
                "newest": number,
                "waiting": 0,
                "enabled": True,
            },
        )

    def test_pages(self) -> None:
        """The latest come first, a page after the other."""
        self.say(*"abcde")
        found: list[str] = []
        after: dict[str, object] = {}
        while True:
            page = self.get("/chat", limit=2, **after)
            found += [line["text"] for line in page["chat"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        self.assertEqual(found, list("edcba"))

    def test_filters(self) -> None:
        """They are those of the search."""
        self.say("one", "two 100%", "three")
        self.say("other", room="9", sender="임꺽정")
        for query, texts in (
            ({"room": ROOM_ID, "bot": "가게봇"}, ["three", "two 100%", "one"]),
            ({"bot": "?"}, []),
            ({"sender": "임꺽정"}, ["other"]),
            ({"text": "0%"}, ["two 100%"]),
            ({"since": "2026-09-21T23:13:21+09:00", "until": "2026-09-21T14:13:22Z"}, ["two 100%"]),
        ):
            self.assertEqual(self.texts(**query), texts, query)

    def test_follow(self) -> None:
        """What was stored since the answer before comes in its order."""
        self.say("old")
        newest = self.get("/chat", room="nowhere")["newest"]
        self.say("a", "b")
        self.assertEqual(self.texts(newer_than=newest), ["a", "b"])

    def test_search_goes_on(self) -> None:
        """A page without lines says how far back the search has come."""
        self.patch(chat_search, "SEARCH_LINES", 1)
        self.patch(chat_search, "FIRST_SLICE", 1)
        self.say("needle", "hay")
        page = self.get("/chat", text="needle")
        self.assertEqual((page["chat"], page["searched_to"]), ([], "2026-09-21T14:13:21.000Z"))
        texts: list[str] = []
        while page["next"] is not None:
            page = self.get("/chat", text="needle", after=page["next"])
            texts += [line["text"] for line in page["chat"]]
        self.assertEqual(texts, ["needle"])

    def test_not_stored(self) -> None:
        """Lines that wait for the store are counted, and a chat log that is off says so."""
        self.stored_chat.append(ChatLine(BASE, "in", "b", "", "", "", "", None, None, "a"))
        self.stored_chat.enabled = False
        page = self.get("/chat")
        self.assertEqual((page["chat"], page["waiting"], page["enabled"]), ([], 1, False))

    def test_wrong_queries(self) -> None:
        """What cannot be meant is refused by the name of its field."""
        for query, field in (
            ({"since": "2026-09-21T14:13:22"}, "since"),
            ({"until": "yesterday"}, "until"),
            ({"text": ""}, "text"),
            ({"text": "x" * 1001}, "text"),
            ({"newer_than": -1}, "newer_than"),
            ({"newer_than": 2**63}, "newer_than"),
            ({"limit": 201}, "limit"),
            ({"after": cursor([10**18, None])}, "after"),
            ({"after": cursor([0, 2**63])}, "after"),
            ({"after": cursor([0, None]), "newer_than": 0}, "after"),
            ({"device": "a1"}, "device"),
        ):
            status, code, told = self.refusal("GET", "/chat", **query)
            self.assertEqual((status, code), (400, "BAD_REQUEST"))
            self.assertIn(field, told)

    def test_any_cursor(self) -> None:
        """A cursor of any place is a place."""
        self.say("a")
        last = 253_402_300_799_999
        for time, number, count in ((last, 1, 1), (last, None, 1), (-1, 0, 0)):
            self.assertEqual(len(self.texts(after=cursor([time, number]))), count)

    def test_store_that_fails(self) -> None:
        """The answer says that the store failed, not that nothing was said."""
        self.database.stop()
        self.run_for(0.0)
        self.assertEqual(self.refusal("GET", "/chat")[:2], (503, "STORE"))
