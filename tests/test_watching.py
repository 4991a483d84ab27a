"""Tests for L{domaeka.server.watching}, and for the L{Changes<domaeka.bots.loading.Changes>}."""

import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from domaeka.bots.loading import Changes, load_bots, reload_bots
from domaeka.errors import ConfigError
from domaeka.server.watching import LOOK_SECONDS, Watching
from tests.server_case import Server, ServerCase
from tests.test_operations import BOT_TEXT


class WatchingTests(SynchronousTestCase):
    """Tests for L{Watching}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.answers: list[Any] = []
        self.reloads = 0
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.watching = Watching(self.clock, self.noticed, self.reload)

    def noticed(self) -> bool:
        answer = self.answers.pop(0) if self.answers else False
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    def reload(self) -> None:
        self.reloads += 1

    def test_each_second(self) -> None:
        """Files are looked at each second, until the server stops."""
        self.answers = [False, True, False, True]
        self.watching.start()
        self.clock.pump([LOOK_SECONDS] * 5)
        self.assertEqual((self.reloads, self.answers), (2, []))
        self.watching.stop()
        self.watching.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_says_so(self) -> None:
        """The log says that this is for developing."""
        self.watching.start()
        warned = [event for event in self.events if event["log_level"] is LogLevel.warn]
        self.assertEqual(len(warned), 1)

    def test_error(self) -> None:
        """An error ends one look."""
        self.answers = [OSError("no such disk"), True]
        self.watching.start()
        self.clock.pump([LOOK_SECONDS] * 2)
        self.assertEqual(self.reloads, 1)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)


class ChangesTests(SynchronousTestCase):
    """Tests for L{Changes}."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        sys.path.insert(0, str(self.directory))
        self.addCleanup(sys.path.remove, str(self.directory))
        self.addCleanup(sys.modules.pop, "watched_bot", None)
        self.bot = self.directory / "watched_bot.py"
        self.bot.write_text(BOT_TEXT.format("# a", "처음"))
        self.places = ["watched_bot:bot"]
        load_bots(self.places)
        self.changes = Changes()

    def test_contents_count(self) -> None:
        """Another content is noticed, once; another time with the same content is not."""
        self.assertFalse(self.changes.noticed())
        os.utime(self.bot, (1, 1))
        self.assertFalse(self.changes.noticed())
        text = self.bot.read_text()
        self.bot.write_text(text.replace("처음", "다음"))  # of the same size
        self.assertEqual([self.changes.noticed() for _ in range(2)], [True, False])

    def test_before_the_first_look(self) -> None:
        """A change between the import and the first look is noticed."""
        self.bot.write_text(BOT_TEXT.format("# a", "다음"))
        self.assertTrue(self.changes.noticed())

    def test_files_come_and_go(self) -> None:
        """A module that is new beside the bots, or gone, is a change."""
        self.changes.noticed()
        other = self.directory / "watched_other.py"
        other.write_text("x = 1\n")
        self.assertTrue(self.changes.noticed())
        other.unlink()
        self.assertTrue(self.changes.noticed())

    def test_a_mistake_and_back(self) -> None:
        """What could not be imported is tried again at the next change, not before."""
        self.changes.noticed()
        text = self.bot.read_text()
        self.bot.write_text("x = (\n")
        self.assertTrue(self.changes.noticed())
        self.assertRaises(ConfigError, reload_bots, self.places, len)
        self.assertFalse(self.changes.noticed())
        self.bot.write_text(text)
        self.assertTrue(self.changes.noticed())
        self.assertEqual(reload_bots(self.places, len).anew, ())


class ServerWatchingTests(ServerCase):
    """A server with C{--reload}."""

    def setUp(self) -> None:
        super().setUp()
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        sys.path.insert(0, str(directory))
        self.addCleanup(sys.path.remove, str(directory))
        self.addCleanup(sys.modules.pop, "watched_by_server", None)
        self.bot = directory / "watched_by_server.py"
        self.bot.write_text(BOT_TEXT.format("# bot", "처음"))
        config = directory / "domaeka.toml"
        config.write_text('[bots]\nload = ["watched_by_server:bot"]\n')
        self.server = Server(self, 9000, config=config)

    def answer(self, phone: Any) -> str:
        """The answer to C{# bot}."""
        phone.say("# bot")
        self.run_for(1.0)
        return str(phone.texts()[-1])

    def test_watches(self) -> None:
        """Another file is another answer; a mistake is logged with its line, the old bot stays."""
        self.server.changes = Changes()
        self.server.start()
        phone = self.server.phone()
        self.assertEqual(self.answer(phone), "처음")
        for text, wanted in (("다음", "다음"), (None, "다음"), ("다시", "다시")):
            self.bot.write_text("x = (\n" if text is None else BOT_TEXT.format("# bot", text))
            self.run_for(1.0)
            self.assertEqual(self.answer(phone), wanted)
        self.assertEqual(self.logged("watched_by_server.py:1"), 1)
        self.assertEqual(len(phone.record.connects), 1)

    def test_watches_only_then(self) -> None:
        """Without it a file may change as it likes."""
        self.server.start()
        phone = self.server.phone()
        self.bot.write_text(BOT_TEXT.format("# bot", "다음"))
        self.run_for(3.0)
        self.assertEqual(self.answer(phone), "처음")
