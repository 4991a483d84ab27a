"""Tests for L{domaeka.bots.api}."""

import io
from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, Context
from domaeka.bots.commands import Runs
from domaeka.wire import Media
from tests.bots_fakes import Served, make_chat

PNG = b"\x89PNG\r\n\x1a\n and so on"


class BotTests(SynchronousTestCase):
    """Tests for L{Bot}."""

    def setUp(self) -> None:
        self.bot = Bot("shop")

    def test_registers(self) -> None:
        """The function stays what it is; its docstring is the help."""

        @self.bot.command("# price", aliases=("# 값",))
        async def price(ctx: Context) -> None:
            """
            값을 알려 줍니다.

            More for authors.
            """

        (command,) = self.bot.commands
        self.assertIs(command.function, price)
        self.assertEqual(
            (command.name, command.aliases, command.help, command.runs),
            ("# price", ("# 값",), "값을 알려 줍니다.", Runs.ON_LOOP),
        )

    def test_refuses_names_that_no_message_can_be(self) -> None:
        """Names are short, printable, and have no space around them."""
        for name in ("", " ", " # a", "# a ", "# a\nb", "x" * 101, None, 5):
            self.assertRaises(ValueError, self.bot.command, name)
        self.assertRaises(TypeError, self.bot.command, "# a", "# b")

    def test_refuses_a_name_twice(self) -> None:
        """A command that would hide another is a mistake, among aliases too."""
        self.bot.command("# a", aliases=("# b",))(print)
        for name, aliases in (("# a", ()), ("# c", ("# b",)), ("# d", ("# d",))):
            self.assertRaises(ValueError, self.bot.command, name, aliases)


class ContextTests(SynchronousTestCase):
    """Tests for L{Context}."""

    def setUp(self) -> None:
        self.served = Served()
        self.origin = self.served.origin

    def context(self, **more: Any) -> Context:
        return Context(make_chat("# a  b\n", **more), self.origin, 4, self.served.dispatcher)

    def settled(self, sending: Awaitable[None]) -> None:
        """Files are on their way."""
        assert isinstance(sending, Deferred)
        self.successResultOf(sending)

    def test_says_what_came(self) -> None:
        """Everything of a message can be read; ids are text."""
        ctx = self.context(sent_at="2026-01-02 03:04:05")
        message = ctx.message
        self.assertEqual((message.text, message.args, message.id), ("# a  b\n", " b\n", "77"))
        self.assertFalse(message.is_mention)
        assert message.timestamp is not None
        self.assertEqual(message.timestamp.utcoffset(), timedelta(hours=9))
        self.assertEqual((ctx.room.id, ctx.room.name, ctx.room.is_group), ("1001", "방", True))
        self.assertEqual((ctx.sender.name, ctx.sender.hash), ("누구", "u1"))
        self.assertEqual((ctx.device.bot_name, ctx.device.id), ("봇", "d1"))

    def test_room_without_an_id_has_its_name(self) -> None:
        """Where the phone does not know the channel, the room's name stands for it."""
        self.assertEqual(self.context(channel_id=None).room.id, "방")

    def test_keeps_chat_out_of_the_log(self) -> None:
        """What was written does not show where a context is logged."""
        ctx = self.context()
        self.assertNotIn("b", repr(ctx).replace("object", ""))
        self.assertEqual(repr(ctx.message), "<Message 77>")

    def test_replies_to_the_room(self) -> None:
        """A reply goes back to the room and the phone that the message came from."""
        self.context().reply("안녕")
        (reply,) = self.origin.replies
        self.assertEqual(
            (reply.room, reply.channel_id, reply.bot_name, reply.content, reply.event),
            ("방", "1001", "봇", "안녕", "messageResponse"),
        )

    def test_empty_reply_is_not_sent(self) -> None:
        """A phone would drop it; what is no text is a mistake."""
        self.context().reply("")
        self.assertEqual(self.origin.replies, [])
        self.assertRaises(TypeError, self.context().reply, 5)

    def test_media_at_once(self) -> None:
        """Bytes and addresses need not be waited for."""
        self.settled(self.context().reply_media([PNG, "http://a.example/"], 4000))
        self.assertEqual(
            self.origin.texts,
            [
                Media((PNG,), "image", "png", 4000),
                Media(("http://a.example/",), "image", "jpg", 4000),
            ],
        )

    def test_files_are_read_in_a_thread(self) -> None:
        """The reactor reads no files; what is sent after them stays behind them."""
        path = Path(self.mktemp())
        path.write_bytes(PNG)
        ctx = self.context()
        sent = [ctx.reply_media([path]), ctx.reply_media([path, PNG])]
        ctx.reply("둘")
        self.assertEqual(self.origin.texts, [])
        self.served.threads.work()
        self.assertEqual(len(self.origin.texts), 1)
        self.served.threads.work()
        self.assertEqual(
            self.origin.texts,
            [Media((PNG,), "image", "png"), Media((PNG, PNG), "image", "png"), "둘"],
        )
        for one in sent:
            self.settled(one)

    def test_open_files(self) -> None:
        """A file that may block is read in a thread, what is in memory at once."""
        path = Path(self.mktemp())
        path.write_bytes(PNG)
        ctx = self.context()
        self.settled(ctx.reply_media(io.BytesIO(PNG)))
        self.assertEqual(self.origin.texts, [Media((PNG,), "image", "png")])
        with path.open("rb") as file:
            sent = ctx.reply_media([file, PNG])
            self.assertEqual(len(self.origin.texts), 1)
            self.served.threads.work()
            self.assertFalse(file.closed)
        self.settled(sent)
        self.assertEqual(self.origin.texts[1:], [Media((PNG, PNG), "image", "png")])
        with path.open() as text:
            self.assertRaises(TypeError, ctx.reply_media, text)

    def test_file_that_cannot_be_read(self) -> None:
        """The author hears of it, and what was to follow is sent."""
        ctx = self.context()
        sent = ctx.reply_media("/nowhere.png")
        ctx.reply("뒤")
        self.served.threads.work()
        self.failureResultOf(sent, FileNotFoundError)
        self.assertEqual(self.origin.texts, ["뒤"])

    def test_command_ends_when_its_files_are_sent(self) -> None:
        """A message is not done while files for it are being read, awaited or not."""
        path = Path(self.mktemp())
        path.write_bytes(PNG)
        bot = Bot("b")

        @bot.command("# a")
        async def send(ctx: Context) -> str:
            ctx.reply_media(path)
            return "뒤"

        served = Served([bot])
        chat = served.say("# a")
        self.assertEqual((served.origin.texts, served.origin.done), ([], []))
        served.threads.work()
        self.assertEqual(served.origin.texts, [Media((PNG,), "image", "png"), "뒤"])
        self.assertEqual(served.origin.done, [chat])

    def test_replies_later(self) -> None:
        """The way back stays open after the command has returned."""
        later: Deferred[str] = Deferred()
        bot = Bot("b")

        @bot.command("# later")
        async def reply_later(ctx: Context) -> None:
            later.addCallback(ctx.reply)

        served = Served([bot])
        served.say("# later")
        later.callback("나중")
        self.assertEqual(served.origin.texts, ["나중"])
