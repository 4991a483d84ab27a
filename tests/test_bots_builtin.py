"""Tests for L{domaeka.bots.builtin}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot
from domaeka.config import BotsSettings, BuiltinSettings
from domaeka.errors import ConfigError
from domaeka.texts_ko import ECHO_USAGE, OPERATORS_TEXT
from tests.bots_fakes import Served


class BuiltinTests(SynchronousTestCase):
    """Tests for L{builtin_bot}, as it is served."""

    def setUp(self) -> None:
        shop = Bot("shop")
        shop.command("# price", help="값을 알려 줍니다.")(print)
        shop.command("# secret", operators_only=True)(print)
        self.served = Served([shop], BotsSettings(operators=("1001/a/b",)))

    def answers(self, text: str, **more: str | None) -> list[object]:
        del self.served.origin.replies[:]
        self.served.say(text, **more)
        return self.served.origin.texts

    def test_echo_is_exact(self) -> None:
        """What follows the command comes back as it is; nothing gets the usage."""
        self.assertEqual(self.answers("# echo  안녕 😀\n}{ \n"), [" 안녕 😀\n}{ \n"])
        self.assertEqual(self.answers("# echo\n줄"), ["줄"])
        for text in ("# echo", "# echo "):
            self.assertEqual(self.answers(text), [ECHO_USAGE.format(name="# echo")])

    def test_help_lists_all_bots(self) -> None:
        """Everybody sees what everybody may use, operators see all."""
        (text,) = self.answers("# help")
        self.assertIn("# price - 값을 알려 줍니다.", str(text))
        self.assertNotIn("# secret", str(text))
        self.assertNotIn("# client_info", str(text))
        (text,) = self.answers("# help", user_hash="a/b")
        self.assertIn("# secret", str(text))
        self.assertIn("# client_info", str(text))

    def test_client_info_is_for_operators(self) -> None:
        """Channel and user must both be right; what is not known is never right."""
        (text,) = self.answers("# client_info", channel_id="1001", user_hash="a/b")
        self.assertIn("주소: 192.0.2.1", str(text))
        for channel_id, user_hash in (
            ("1001", "a"),
            ("1002", "a/b"),
            ("1001", None),
            (None, "a/b"),
            (None, None),
        ):
            answers = self.answers("# client_info", channel_id=channel_id, user_hash=user_hash)
            self.assertEqual(answers, [OPERATORS_TEXT])

    def test_a_name_proves_nothing(self) -> None:
        """A room that is called like an operator's channel is not that channel."""
        answers = self.answers("# client_info", channel_id=None, user_hash="a/b", room="1001")
        self.assertEqual(answers, [OPERATORS_TEXT])

    def test_help_lists_what_is_served(self) -> None:
        """Commands of bots for other phones or rooms are not listed."""
        shown = []
        for name, more in (("one", {"names": ["다른봇"]}), ("two", {"rooms": ["1001"]})):
            bot = Bot(name, **more)  # type: ignore[arg-type]
            bot.command(f"# {name}")(lambda ctx: None)
            shown.append(bot)
        served = Served(shown)
        self.addCleanup(served.dispatcher.close)
        for channel_id in ("1001", "7"):
            served.say("# help", channel_id=channel_id)
        first, second = map(str, served.origin.texts)
        self.assertEqual(("# one" in first, "# two" in first), (False, True))
        self.assertNotIn("# two", second)

    def test_other_names(self) -> None:
        """They may be renamed, and switched off, at a reload as well."""
        served = self.served
        settings = BotsSettings(
            builtin=BuiltinSettings(help="# 도움말", echo="", client_info="!폰")
        )
        served.dispatcher.apply([], settings, served.breaker)
        self.assertEqual(self.answers("# echo hi") + self.answers("# help"), [])
        (text,) = self.answers("# 도움말")
        self.assertIn("# 도움말 - ", str(text))
        self.assertNotIn("# echo", str(text))
        self.assertEqual(self.answers("!폰"), [OPERATORS_TEXT])
        settings = BotsSettings(builtin=BuiltinSettings(echo="# 말"))
        served.dispatcher.apply([], settings, served.breaker)
        self.assertEqual(self.answers("# 말"), ["사용법: # 말 <보낼 말>"])

    def test_names_that_cannot_be(self) -> None:
        """The error says which setting, whose the name is already, and what to do."""
        shop = Bot("shop")
        shop.command("# 가격", aliases=("＃ echo",))(lambda ctx: None)
        for builtin, said in (
            (
                BuiltinSettings(help=" x", echo=""),
                "bots.builtin.help: ' x' cannot be the name of a command",
            ),
            (BuiltinSettings(echo="# help"), "'# help' is bots.builtin.help, too"),
            (BuiltinSettings(echo="# 가격"), "'# 가격' is that of the bot 'shop' ("),
            (
                BuiltinSettings(),
                "bots.builtin.echo: the command '# echo' is that of the bot 'shop'",
            ),
        ):
            settings = BotsSettings(builtin=builtin)
            error = self.assertRaises(ConfigError, Served, [shop], settings)
            self.assertIn(said, str(error))
        self.assertIn(f"({__file__}:", str(error))
        self.assertTrue(str(error).endswith('another name here, or "" to switch it off'))
        self.assertEqual(
            Served([shop], BotsSettings(builtin=BuiltinSettings(echo=""))).failures, []
        )
