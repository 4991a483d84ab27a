"""Tests for L{domaeka.cli.talk}, L{domaeka.cli.load} and L{domaeka.cli.texts}."""

import itertools
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.cli import output, texts
from domaeka.cli.load import Load
from domaeka.cli.talk import PipedTalk, Talk
from domaeka.client import (
    Client,
    ClientEvent,
    Credentials,
    ErrorFrame,
    Identity,
    Media,
    Reply,
    Said,
    Server,
)
from domaeka.errors import ErrorCode
from domaeka.interfaces import Approval, DeviceKey
from domaeka.testing import FakeServer, VirtualServer, run_clock
from domaeka.wire import Chat
from tests.clocks import WallClock

KEY, SALT = "k" * 16, "salt"


class TalkCase(SynchronousTestCase):
    """A server, and what is shown."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wall = WallClock(self.clock, 1_790_000_000.0)
        self.server = FakeServer(self.clock, KEY, SALT, wall=self.wall, answer=self.answer)
        self.port = VirtualServer(self.clock, self.server)
        self.shown: list[str] = []
        self.notes: list[str] = []
        self.numbers = itertools.count()

    def answer(self, chat: Chat) -> str | Media | None:
        return chat.text.removeprefix("# echo ") if chat.text.startswith("# echo ") else None

    def client(
        self, on_reply: Callable[[Reply], None], on_event: Callable[[ClientEvent], None]
    ) -> Client:
        return Client(
            self.clock,
            [Server("server")],
            Identity(bot_name="bot", device_id=f"device {next(self.numbers)}"),
            Credentials(KEY, SALT),
            on_reply,
            on_event,
            endpoint=lambda server: self.port,  # type: ignore[arg-type,return-value]
            random=lambda: 0.5,
            wall=self.wall,
        )

    def phrase(self, text: str) -> Said:
        return Said(room="방", sender="나", text=text)

    def show(self, reply: Reply) -> None:
        self.shown.append(texts.reply_text(reply))

    def piped(self, *lines: str, **options: Any) -> PipedTalk:
        talk = PipedTalk(
            self.clock, self.client, self.phrase, self.notes.append, self.show, wait=10.0, **options
        )
        for line in lines:
            talk.line_written(line)
        talk.input_ended()
        talk.start()
        return talk


class PipedTalkTests(TalkCase):
    """Tests for L{PipedTalk}."""

    def test_line_by_line(self) -> None:
        """Each line is said once the one before it is answered; all answered is a success."""
        talk = self.piped("# echo 하나", "", "# echo 둘")
        run_clock(self.clock, 2.0)
        self.assertEqual(self.successResultOf(talk.done), output.ALL_ANSWERED)
        self.assertEqual(self.shown, ["하나", "둘"])
        self.server.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_answer(self) -> None:
        """A line without an answer is waited for, then the next one is said; that is a failure."""
        talk = self.piped("조용", "# echo 둘")
        run_clock(self.clock, 9.0)
        self.assertEqual(self.shown, [])
        run_clock(self.clock, 3.0)
        self.assertEqual(self.shown, ["둘"])
        self.assertEqual(self.successResultOf(talk.done), output.UNANSWERED)
        self.assertIn("no answer within 10 s", self.notes)

    def test_line_that_cannot_be_said(self) -> None:
        """What no server takes is reported at once."""
        talk = self.piped("가" * 65_001, "# echo 둘")
        run_clock(self.clock, 2.0)
        self.assertEqual(self.successResultOf(talk.done), output.UNANSWERED)
        self.assertEqual(self.shown, ["둘"])

    def test_unreachable(self) -> None:
        """Without a server it says so, and ends."""
        self.port.open = False
        talk = self.piped("x")
        run_clock(self.clock, 2.0)
        self.assertEqual(self.successResultOf(talk.done), output.UNREACHABLE)
        self.assertIn("server:9000", self.notes[-1])

    def test_silent_server(self) -> None:
        """Something that is no server of ours is given up."""
        self.server.greets = False
        talk = self.piped("x")
        run_clock(self.clock, 12.0)
        self.assertEqual(self.successResultOf(talk.done), output.UNREACHABLE)

    def test_refused(self) -> None:
        """A server that does not want this phone is not waited for."""
        for code in (ErrorCode.AUTH_FAILED, ErrorCode.BANNED, ErrorCode.SERVER_FULL):
            self.server.refuse(code)
            talk = self.piped("x")
            run_clock(self.clock, 2.0)
            self.assertEqual(self.successResultOf(talk.done), output.REFUSED)
            self.assertIn(code, self.notes[-1])

    def test_not_approved(self) -> None:
        """A phone that waits for an operator gets no answers, and is told."""
        self.server.devices.known[DeviceKey("bot", "device 0")] = Approval.PENDING
        talk = self.piped("# echo x")
        run_clock(self.clock, 2.0)
        self.assertEqual(self.successResultOf(talk.done), output.REFUSED)

    def test_restart_between(self) -> None:
        """A connection that is lost in the middle is made again, and the talk goes on."""
        talk = self.piped(*(f"# echo {number}" for number in range(5)), pause=1.0)
        run_clock(self.clock, 2.5)
        self.port.accepted[-1].abortConnection()
        run_clock(self.clock, 10.0)
        self.assertEqual(self.successResultOf(talk.done), output.ALL_ANSWERED)
        self.assertEqual(self.shown, ["0", "1", "2", "3", "4"])

    def test_reads_no_more_than_it_says(self) -> None:
        """Where very much is piped in, it says when it has room for more."""
        talk = PipedTalk(
            *(self.clock, self.client, self.phrase, self.notes.append, self.show),
            wait=10.0,
            pause=0.1,
        )
        written = itertools.count()

        def fill() -> None:
            while talk.accepts_lines:
                talk.line_written(f"# echo {next(written)}")

        talk.on_accepting = fill
        fill()
        self.assertEqual(next(written), 100)
        talk.start()
        run_clock(self.clock, 1.05)
        self.assertEqual(len(self.shown), 11)
        self.assertEqual(next(written), 100 + 1 + 11)
        talk.finish(output.INTERRUPTED)
        run_clock(self.clock, 10.0)
        self.assertEqual(self.successResultOf(talk.done), output.INTERRUPTED)


class TypedTalkTests(TalkCase):
    """Tests for L{Talk}."""

    def test_as_long_as_the_user_likes(self) -> None:
        """What is typed is said, what comes is shown, with or without a question."""
        talk = Talk(self.clock, self.client, self.phrase, self.notes.append, self.show)
        talk.start()
        talk.line_written("# echo 하나")
        run_clock(self.clock, 1.0)
        self.server.send(Media((b"x" * 12_345, b"y"), "image", "png"))
        run_clock(self.clock, 1.0)
        self.assertEqual(self.shown, ["하나", "[image png 12,345 bytes]\n[image png 1 bytes]"])
        self.server.shut_down(5.0)
        run_clock(self.clock, 1.0)
        talk.line_written("# echo 나중")
        run_clock(self.clock, 6.0)
        self.assertEqual(self.shown[-1], "나중")
        talk.finish(output.ALL_ANSWERED)
        run_clock(self.clock, 10.0)
        self.assertEqual(self.successResultOf(talk.done), output.ALL_ANSWERED)
        self.assertTrue(any("to come back in 5 s" in note for note in self.notes))

    def test_taken_over(self) -> None:
        """A phone whose place was taken again and again ends, and says why."""
        talk = Talk(self.clock, self.client, self.phrase, self.notes.append, self.show)
        talk.start()
        run_clock(self.clock, 1.0)
        for _ in range(3):
            self.assertNoResult(talk.done)
            self.server.end(ErrorCode.TAKEN_OVER)
            run_clock(self.clock, 61.0)
        self.assertEqual(self.successResultOf(talk.done), output.REFUSED)
        self.assertIn("taken over", self.notes[-1])


class LoadTests(TalkCase):
    """Tests for L{Load}."""

    def load(self, count: int, *lines: str) -> Load:
        def make(note: Callable[[str], None], took: Callable[[float], None]) -> PipedTalk:
            return PipedTalk(
                self.clock, self.client, self.phrase, note, self.show, wait=10.0, took=took
            )

        load = Load(self.clock, make, lines, count, self.notes.append)
        load.start()
        return load

    def test_all(self) -> None:
        """Each phone says each line; a few shake hands at a time; the summary counts."""
        load = self.load(12, "# echo {phone} 하나", "# echo {phone} 둘")
        self.assertEqual(len(load._shaking), 5)
        run_clock(self.clock, 20.0)
        self.assertEqual(self.successResultOf(load.done), output.ALL_ANSWERED)
        self.assertEqual(len(set(self.shown)), 24)
        self.assertIn("24 answered, 0 not", load.summary())
        self.assertIn("p99", load.summary())

    def test_failures(self) -> None:
        """Phones that get nowhere, and lines without an answer, are counted."""
        load = self.load(3, "조용")
        run_clock(self.clock, 30.0)
        self.assertEqual(self.successResultOf(load.done), output.UNANSWERED)
        self.assertIn("0 answered, 3 not", load.summary())
        self.port.open = False
        load = self.load(3, "# echo x")
        run_clock(self.clock, 5.0)
        self.assertEqual(self.successResultOf(load.done), output.UNREACHABLE)
        self.assertIn("3, of which 3 failed", load.summary())

    def test_cut_short(self) -> None:
        """A signal ends all of them."""
        load = self.load(3, *(["조용"] * 10))
        run_clock(self.clock, 5.0)
        load.finish(output.INTERRUPTED)
        run_clock(self.clock, 10.0)
        self.assertEqual(self.successResultOf(load.done), output.INTERRUPTED)


class WordsTests(SynchronousTestCase):
    """Tests for L{domaeka.cli.texts}."""

    def test_what_strangers_write(self) -> None:
        """Nothing that a stranger writes is obeyed by a terminal."""
        self.assertEqual(output.printable("가\x1b[2J\n나\r\x9b\u202e"), "가�[2J\n나���")

    def test_addresses(self) -> None:
        """A picture that is an address is shown as one."""
        self.assertEqual(texts.media_text(Media(("http://a/b.png",))), "[image http://a/b.png]")

    def test_error_of_tomorrow(self) -> None:
        """A code that this version does not know is shown as it came."""
        text = texts.event_text(ErrorFrame("NEW_CODE", "new\x1b"))
        self.assertEqual(text, "the server says: NEW_CODE: new�")
