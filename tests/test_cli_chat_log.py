"""Tests for C{domaeka chat-log}, against the API itself."""

import json

from domaeka.cli import watching
from domaeka.interfaces import ChatLine, DeviceKey, RoomKey
from domaeka.store import chat_search
from domaeka.store.chatlog import WRITE_SECONDS
from tests.api_case import ROOM_ID
from tests.test_cli_operator import OperatorCase

BASE = 1_790_000_000.0
PHONE = DeviceKey("봇", "a1b2")


class ChatLogTests(OperatorCase):
    """What was said, as an operator sees it."""

    def setUp(self) -> None:
        super().setUp()
        self.said = 0

    def say(self, *texts: str, room: str = ROOM_ID, direction: str = "in") -> None:
        """Something is said, a second after the last, and stored."""
        for text in texts:
            sender = "홍길동" if direction == "in" else ""
            place = direction, *PHONE, room, "시험방", sender
            self.stored_chat.append(ChatLine(BASE + self.said, *place, None, None, text))
            self.said += 1
        self.run_for(WRITE_SECONDS)

    def follow(self, *arguments: str) -> list[str]:
        """What it shows until nothing more happens."""
        return self.output("chat-log", "--follow", *arguments).splitlines()

    def test_lines(self) -> None:
        """The latest line is the last; what was answered has no name of a person."""
        self.say("안녕", "# 가격")
        self.say("100", direction="out")
        shown = self.output("chat-log").splitlines()
        self.assertRegex(shown[0], rf"^2026-09-2\d .*  봇  시험방 \({ROOM_ID}\)  홍길동: 안녕$")
        self.assertTrue(shown[2].endswith("(bot): 100"), shown)
        self.assertEqual(self.output("chat-log", "--limit", "1").splitlines(), shown[2:])
        lines = self.output("chat-log", "--json").splitlines()
        self.assertEqual([json.loads(line)["text"] for line in lines], ["안녕", "# 가격", "100"])

    def test_many(self) -> None:
        """They come from as many pages as it takes."""
        self.say(*(f"{number}." for number in range(450)))
        shown = self.output("chat-log", "--limit", "449").splitlines()
        self.assertEqual(len(shown), 449)
        self.assertTrue(shown[0].endswith(" 1."))
        self.assertTrue(shown[-1].endswith(" 449."))

    def test_strangers(self) -> None:
        """Nobody feigns another line, or commands the terminal."""
        self.say("one\n2026-09-21 00:00:00 UTC  봇  시험방  운영자: two\x1b[2J\rthree")
        shown = self.output("chat-log").split("\n")
        self.assertTrue(shown[1].startswith("    2026"), shown)
        self.assertTrue(shown[1].endswith("two\ufffd[2J\ufffdthree"), shown)

    def test_filters(self) -> None:
        """A room may be called by its name; times may be those of this machine, or ago."""
        self.context.rooms.enter(RoomKey("봇", ROOM_ID), PHONE, "시험방", True)
        self.say("a", "b%")
        self.say("c", room="9")
        for arguments, wanted in (
            (("--room", "시험방"), "ab"),
            (("--room", "시험방", "--bot", "봇"), "ab"),
            (("--room", "9"), "c"),
            (("--room", "없는방"), ""),
            (("--text", "%"), "b"),
            (("--sender", "홍길동", "--since", "2026-09-21T14:13:22Z"), "c"),
            (("--until", "2026-09-21T23:13:21+09:00"), "a"),
            (("--since", "999999999d"), None),
            (("--since", "yesterday"), None),
        ):
            result = self.run_command("chat-log", "--json", *arguments)
            if wanted is None:
                self.assertEqual(result.exit_code, 2)
                continue
            texts = [json.loads(line)["text"][0] for line in result.stdout.splitlines()]
            self.assertEqual("".join(texts), wanted, arguments)
            self.assertEqual(not wanted, "no such line is stored" in result.stderr)

    def test_names_that_two_rooms_have(self) -> None:
        """Then the id is asked for."""
        for room in ("1", "2"):
            self.context.rooms.enter(RoomKey("봇", room), PHONE, "같은방", True)
        result = self.run_command("chat-log", "--room", "같은방")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("2 rooms have this name: 1, 2", result.stderr)

    def test_follow(self) -> None:
        """New lines come once, those of other rooms do not, and a server that is away is waited
        for."""
        self.patch(watching, "MAX_PAGE", 2)
        self.say("old")

        def back() -> None:
            self.say("d")
            self.say("x", room="9")
            self.away = False

        self.meanwhile = [
            lambda: self.say("a", "b", "c"),
            lambda: setattr(self, "away", True),
            back,
            lambda: self.say("e"),
        ]
        result = self.run_command("chat-log", "--follow", "--room", ROOM_ID, "--json")
        texts = [json.loads(line)["text"] for line in result.stdout.splitlines()]
        self.assertEqual(texts, ["old", "a", "b", "c", "d", "e"])
        self.assertIn("cannot reach it; trying again", result.stderr)
        self.assertIn("connected again", result.stderr)

    def test_follow_from_nothing(self) -> None:
        """An empty chat log can be followed, too."""
        self.meanwhile = [lambda: self.say("a")]
        self.assertEqual(len(self.follow()), 1)
        self.assertEqual(self.run_command("chat-log", "--follow", "--until", "1m").exit_code, 2)

    def test_long_search(self) -> None:
        """It says how far it has come, and Ctrl-C shows what was found."""
        self.patch(watching, "NOTE_SECONDS", -1.0)
        self.patch(chat_search, "SEARCH_LINES", 1)
        self.patch(chat_search, "FIRST_SLICE", 1)
        self.say("needle", "hay", "needle")
        result = self.run_command("chat-log", "--text", "needle", "--limit", "2")
        self.assertEqual(len(result.stdout.splitlines()), 2)
        self.assertIn("1 lines found back to 2026-09-21T14:13:22.000Z; searching", result.stderr)

        def note(text: str) -> None:
            raise KeyboardInterrupt

        self.patch(watching, "_note", note)
        self.assertEqual(len(self.output("chat-log", "--text", "needle").splitlines()), 1)

    def test_off(self) -> None:
        """A chat log that is off is named."""
        self.stored_chat.enabled = False
        self.assertIn("the chat log is off", self.run_command("chat-log").stderr)
