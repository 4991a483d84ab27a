"""Tests for L{domaeka.cli}: the command, C{init} and C{check-config}."""

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result
from twisted.python.runtime import seconds
from twisted.scripts import twistd
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, __version__
from domaeka.cli import COMMANDS, main
from domaeka.cli.configuration import script_lines
from domaeka.cli.phone import Options, find_credentials, free_device_ids, phone
from domaeka.cli.serve import serve
from domaeka.config import ServerSettings, Settings, load_settings
from domaeka.errors import ConfigError
from domaeka.secrets import Secrets, load_or_create_secrets, rotate_secret_key
from domaeka.tap import Options as ServerOptions

#: Its command has the name of one that is built in.
TAKEN = Bot("taken")
TAKEN.command("# echo")(lambda ctx: None)
#: Two bots with the same command, for different phones.
HOME, SHOP = Bot("home", names=("집",)), Bot("shop", names=("가게",))
for _bot in (HOME, SHOP):
    _bot.command("# 같은")(lambda ctx: None)


class CommandCase(SynchronousTestCase):
    """The command in a directory of its own."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.state = self.directory / "state"
        self.state.mkdir(mode=0o700)
        before = os.getcwd()
        os.chdir(self.directory)
        self.addCleanup(os.chdir, before)

    def run_command(self, *arguments: str) -> Result:
        environment = {"XDG_STATE_HOME": str(self.directory), "STATE_DIRECTORY": None}
        return CliRunner().invoke(main, arguments, env=environment)


class MainTests(CommandCase):
    """The command itself."""

    def test_version(self) -> None:
        """It says which version it is."""
        self.assertEqual(self.run_command("--version").output, f"domaeka {__version__}\n")

    def test_help(self) -> None:
        """Its help names every command and shows examples; each command has help of its own."""
        output = self.run_command("--help").output
        for name in (*COMMANDS, "Examples:", "Completion"):
            self.assertIn(name, output)
        for name in COMMANDS:
            result = self.run_command(name, "-h")
            self.assertEqual(result.exit_code, 0)
            self.assertIn("Usage:", result.output)

    def test_unknown(self) -> None:
        """What it does not know is a wrong use."""
        self.assertEqual(self.run_command("dance").exit_code, 2)
        self.assertEqual(self.run_command("phone", "--port", "0").exit_code, 2)

    def test_did_you_mean(self) -> None:
        """A slip of the pen is answered with what was meant, once; nonsense is not."""
        for typed, meant in (
            (("stauts",), "status"),
            (("conections",), "connections"),
            (("devices", "aprove", "bot", "id"), "approve"),
            (("secrets", "--keep", "1", "rotat"), "rotate"),
        ):
            result = self.run_command(*typed)
            self.assertEqual(result.exit_code, 2)
            self.assertEqual(result.output.count("Did you mean"), 1, result.output)
            self.assertIn(f"Did you mean {meant}", result.output)
        for nonsense in ("xyzzy", "\x1b[2J"):
            output = self.run_command(nonsense).output
            self.assertNotIn("Did you mean", output)
            self.assertNotIn("\x1b", output)

    def test_version_command(self) -> None:
        """What a report of a fault needs, in a line."""
        output = self.run_command("version").output
        self.assertRegex(
            output, rf"^domaeka {re.escape(__version__)} \(Python 3\..+, Twisted .+\)\n$"
        )


class ServeTests(CommandCase):
    """C{domaeka serve}: the process itself is in tests/integration/."""

    def test_options(self) -> None:
        """Its options are those of C{twistd domaeka}."""
        ours = {one.name for one in serve.params if isinstance(one, click.Option)}
        theirs = {name.rstrip("=").replace("-", "_") for name in ServerOptions().longOpt}
        self.assertEqual(ours, theirs - {"help", "version"})

    def test_arguments(self) -> None:
        """It is C{twistd -n --pidfile= domaeka}, with each option as it was given."""
        self.patch(sys, "argv", ["domaeka"])
        ran: list[list[str]] = []
        self.patch(twistd, "run", lambda: ran.append(list(sys.argv)))
        result = self.run_command(
            *("serve", "--port", "9001", "--bots", "a:b", "--bots=c:d", "--set", "x.y=-1")
        )
        self.assertEqual(result.exit_code, 0, result.output)
        (argv,) = ran
        self.assertEqual(argv[:4], ["domaeka", "--nodaemon", "--pidfile=", "domaeka"])
        options = ServerOptions()
        options.parseOptions(argv[4:])
        self.assertEqual((options["port"], options["bots"]), ("9001", ["a:b", "c:d"]))
        self.assertEqual(options["set"], [("x.y", "-1")])

    def test_paths_are_the_servers_to_judge(self) -> None:
        """What cannot be read is said by the server, with what helps, as with C{twistd}."""
        for option in serve.params:
            if isinstance(option.type, click.Path):
                self.assertFalse(option.type.readable, option.name)

    def test_wrong_option(self) -> None:
        """An option that it does not have starts nothing."""
        self.patch(twistd, "run", lambda: self.fail("it was started"))
        self.assertEqual(self.run_command("serve", "--prot", "9001").exit_code, 2)


class CheckConfigTests(CommandCase):
    """C{domaeka check-config}."""

    def check(self, text: str) -> tuple[int, str]:
        file = self.directory / "settings.toml"
        file.write_text(text, encoding="utf-8")
        result = self.run_command("check-config", str(file))
        self.assertEqual(len(result.output.splitlines()), 1, result.output)
        return result.exit_code, result.output

    def test_good(self) -> None:
        """A file that the server would start with is good."""
        self.assertEqual(self.check("[server]\nport = 9001\n")[0], 0)
        self.assertEqual(self.check("")[0], 0)
        self.assertEqual(
            self.check("[bots]\nload = ['tests.test_cli:HOME', 'tests.test_cli:SHOP']\n")[0], 0
        )
        taken = "[bots]\nload = ['tests.test_cli:TAKEN']\nbuiltin.echo = ''\n"
        self.assertEqual(self.check(taken)[0], 0)

    def test_wrong(self) -> None:
        """What is wrong with a file is said in one line that names the setting."""
        for text, named in (
            ("[server]\nport = 'x'\n", "server.port"),
            ("[sever]\n", "sever"),
            ("[server\n", ".toml:1: "),
            ("[auth]\nsecret_key = 'short'\n", "auth.secret_key"),
            (
                f"[auth]\nsecret_key_file = '{Path(__file__).parent / 'none'}'\n",
                ".toml:2: auth.sec",
            ),
            ("[bots]\nload = ['no_such_module:bot']\n", ".toml:2: bots.load: no_such_module"),
            ("[server]\nendpoints = ['gopher:70']\n", ".toml:2: server.endpoints: gopher"),
            ("[server]\nendpoints = ['tcp:99999']\n", ".toml:2: server.endpoints: tcp:99999: "),
            ("[server]\nendpoints = ['ssl:1:no.pem']\n", "ssl:1:no.pem: certKey: no.pem: No such"),
            ("[storage]\nurl = 'nonsense'\n", ".toml:2: storage.url"),
            ("[tls]\ncertificate = '/nothing.pem'\n", ".toml:2: tls.certificate"),
            ("[server]\nmax_connections = 500000000\n", "server.max_connections"),
            ("[server]\ninterface = '300.1.1.1'\n", "server.interface"),
            ("[http]\ninterface = '300.1.1.1'\n", "http.interface"),
            ("[bots]\nload = ['tests.test_cli:TAKEN']\n", "# echo"),
        ):
            status, output = self.check(text)
            self.assertEqual(status, 1, text)
            self.assertIn(named, output)

    def test_json(self) -> None:
        """For scripts: an object in a line, whatever comes of it."""
        file = self.directory / "settings.toml"
        for text, good in (("", True), ("[sever]\n", False)):
            file.write_text(text)
            result = self.run_command("check-config", "--json", str(file))
            shown = json.loads(result.output)
            self.assertEqual((shown["good"], result.exit_code), (good, int(not good)))
            self.assertEqual("sever" in shown.get("error", ""), not good)

    def test_bot_that_prints(self) -> None:
        """What a bot prints while it is imported does not get between a script and the answer."""
        (self.directory / "loud_bot.py").write_text(
            "from domaeka import Bot\nprint('here I am')\nbot = Bot('loud')\n", encoding="utf-8"
        )
        file = self.directory / "settings.toml"
        file.write_text("[bots]\nload = ['loud_bot:bot']\n", encoding="utf-8")
        result = self.run_command("check-config", "--json", str(file))
        self.assertTrue(json.loads(result.stdout)["good"])
        self.assertIn("here I am", result.stderr)

    def test_bot_beside_it(self) -> None:
        """A bot in the directory from which the server is started counts as it does there."""
        (self.directory / "shop_bot.py").write_text(
            "from domaeka import Bot\nbot = Bot('shop')\n", encoding="utf-8"
        )
        self.assertEqual(self.check("[bots]\nload = ['shop_bot:bot']\n")[0], 0)

    def test_found(self) -> None:
        """Where no file is named it is the one that the server finds; there must be one."""
        self.assertEqual(self.run_command("check-config").exit_code, 2)
        for text, status in (("", 0), ("[sever]\n", 1)):
            (self.directory / "domaeka.toml").write_text(text)
            result = self.run_command("check-config")
            self.assertEqual(result.exit_code, status, result.output)
            self.assertIn("domaeka.toml", result.output)

    def test_no_file(self) -> None:
        """A file that is not there is named."""
        result = self.run_command("check-config", "nowhere.toml")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("nowhere.toml", result.output)


#: What breaks a string of JavaScript that is put together without care.
ODD_TEXTS = (
    *('"', "'", "\\", "\n", "\r\n", "\0", "\x7f", "\u2028", "\u2029", "\ufeff", "\u202e"),
    *("소금", "😀", "\ud800", "</script>", "${x}", "*/", "};"),
)


def bot_config(output: str) -> Any:
    """What a script would have in C{BOT_CONFIG}: JSON, but for the names without quotes."""
    (found,) = re.findall(r"^var BOT_CONFIG = (\{.*^\});$", output, re.DOTALL | re.MULTILINE)
    names = r"\b(BOT_NAME|SECRET_KEY|BOT_SPECIFIC_SALT|SERVER_LIST|host|port|priority|name)(?=: )"
    return json.loads(re.sub(names, r'"\1"', found))


class InitTests(CommandCase):
    """C{domaeka init}."""

    def test_writes_what_a_server_needs(self) -> None:
        """The settings can be read, the secrets are private, and the script's lines fit them."""
        result = self.run_command("init", "--host", "chat.example", "--state-dir", str(self.state))
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(load_settings(Path("domaeka.toml"), environment={}), Settings())
        secrets = self.state / "secrets.toml"
        self.assertEqual(stat.S_IMODE(secrets.stat().st_mode), 0o600)
        made = load_or_create_secrets(self.state)
        place = {"host": "chat.example", "port": 9000, "priority": 1, "name": "domaeka"}
        self.assertEqual(
            bot_config(result.output),
            {
                "BOT_NAME": "domaeka",
                "SECRET_KEY": made.secret_key,
                "BOT_SPECIFIC_SALT": made.salt,
                "SERVER_LIST": [place],
            },
        )

    def test_port(self) -> None:
        """A port that is given is the phone's and the server's, and all else is as ever."""
        result = self.run_command("init", "--port", "9100", "--state-dir", str(self.state))
        self.assertEqual(bot_config(result.output)["SERVER_LIST"][0]["port"], 9100)
        made = load_settings(Path("domaeka.toml"), environment={})
        self.assertEqual(made, Settings(server=ServerSettings(port=9100)))

    def test_bot_names(self) -> None:
        """A name that no server would take goes into no script."""
        for name in ("", "a\nb", "x" * 129):
            result = self.run_command("init", "--bot", name, "--state-dir", str(self.state))
            self.assertEqual((result.exit_code, Path("domaeka.toml").exists()), (2, False), name)

    def test_file_is_found(self) -> None:
        """What it writes is taken unasked, whatever the umask is."""
        self.addCleanup(os.umask, os.umask(0o002))
        self.assertEqual(self.run_command("init", "--state-dir", str(self.state)).exit_code, 0)
        self.assertEqual(self.run_command("check-config").exit_code, 0)

    def test_overwrites_nothing(self) -> None:
        """A file is overwritten only by force, and the secrets never."""
        before = load_or_create_secrets(self.state)
        Path("domaeka.toml").write_text("mine", encoding="utf-8")
        result = self.run_command("init", "--state-dir", str(self.state))
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(Path("domaeka.toml").read_text(encoding="utf-8"), "mine")
        result = self.run_command("init", "--force", "--state-dir", str(self.state))
        self.assertEqual(result.exit_code, 0)
        self.assertEqual(load_or_create_secrets(self.state), before)

    def test_script_lines(self) -> None:
        """Whatever a secret is made of, the lines are good JavaScript, as old engines read it."""
        for value in (*ODD_TEXTS, "".join(ODD_TEXTS)):
            lines = script_lines(value, value, 1, Secrets(secret_key=value, salt=value))
            found = bot_config(lines)
            place = {"host": value, "port": 1, "priority": 1, "name": "domaeka"}
            self.assertEqual({*map(str, found.values())}, {value, str([place])})
            self.assertTrue(all(map(str.isprintable, lines.split("\n"))), value)
            self.assertEqual(len(lines.splitlines()), 8)
            self.assertTrue(lines.startswith("var "))
        self.assertIn('"소금"', script_lines("b", "h", 1, Secrets(secret_key="k", salt="소금")))


class PhoneOptionTests(CommandCase):
    """What C{domaeka phone} makes of its options."""

    def options(self, *arguments: str) -> Options:
        with phone.make_context("phone", ["--state-dir", str(self.state), *arguments]) as context:
            return Options(**context.params)

    def test_secrets(self) -> None:
        """The secrets are those of the server, or of a file that has no more than a phone needs."""
        self.assertRaises(ConfigError, find_credentials, self.options())
        made = load_or_create_secrets(self.state)
        self.assertEqual(find_credentials(self.options()).secret_key, made.secret_key)
        file = self.directory / "phone.toml"
        file.write_text(f'secret_key = "{"k" * 16}"\nsalt = "s"\n', encoding="utf-8")
        file.chmod(0o600)
        self.assertEqual(
            find_credentials(self.options("--secrets-file", str(file))).secret_key, "k" * 16
        )

    def test_key_that_is_changed(self) -> None:
        """
        Until the old key ends it signs with that: a server takes it before it has read the new
        one, and after.  Without an old key it signs with the new one.
        """
        old = load_or_create_secrets(self.state)
        new = rotate_secret_key(self.state, 3600.0, seconds())
        self.assertEqual(find_credentials(self.options()).secret_key, old.secret_key)
        rotate_secret_key(self.state, 0.0, seconds())
        found = find_credentials(self.options()).secret_key
        self.assertNotIn(found, (old.secret_key, new.secret_key))
        rotate_secret_key(self.state, 1.0, seconds() - 3600)  # it has ended long ago
        newest = load_or_create_secrets(self.state).secret_key
        self.assertEqual(find_credentials(self.options()).secret_key, newest)

    def test_key_of_another_place(self) -> None:
        """A key that the settings give is not passed over for an old one in the file."""
        load_or_create_secrets(self.state)
        rotate_secret_key(self.state, 3600.0, seconds())
        Path("domaeka.toml").write_text(f"[auth]\nsecret_key = '{'k' * 16}'\n")
        Path("domaeka.toml").chmod(0o600)
        self.assertEqual(find_credentials(self.options()).secret_key, "k" * 16)
        Path("domaeka.toml").write_text(
            f"[auth]\nsecret_key = '{'k' * 16}'\nprevious_secret_key = '{'p' * 16}'\n"
        )
        self.assertEqual(find_credentials(self.options()).secret_key, "p" * 16)

    def test_port(self) -> None:
        """Its port is the server's, as the settings that lie there have it."""
        Path("domaeka.toml").write_text("[server]\nport = 0\n")
        result = self.run_command("phone", "--state-dir", str(self.state))
        self.assertEqual(result.exit_code, 2)
        self.assertIn("server.port is 0", result.output)

    def test_device_ids(self) -> None:
        """Phones that run at the same time have different ids, the same ones every time."""
        options = self.options()
        found = []
        for _ in range(2):
            with free_device_ids(options) as device_id:
                found.append([device_id() for _ in range(3)])
        self.assertEqual(found[0], found[1])
        self.assertEqual(len(set(found[0])), 3)
        with free_device_ids(self.options("--device-id", "x", "--count", "2")) as device_id:
            self.assertEqual([device_id(), device_id()], ["x-1", "x-2"])

    def test_only_figures(self) -> None:
        """Of a number of echoes the figures are shown, be it of one phone."""
        for arguments, only_figures in (
            ((), False),
            (("--count", "1"), False),
            (("--count", "2"), True),
            (("--messages", "5"), True),
        ):
            self.assertEqual(self.options(*arguments).only_figures, only_figures, arguments)
