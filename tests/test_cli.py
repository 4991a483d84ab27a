"""Tests for L{domaeka.cli}: the command, C{init} and C{check-config}."""

import json
import os
import re
import stat
from pathlib import Path

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from domaeka import Bot, __version__
from domaeka.cli import COMMANDS, main
from domaeka.cli.configuration import script_lines
from domaeka.cli.phone import Options, find_credentials, free_device_ids, phone
from domaeka.config import Settings, load_settings
from domaeka.errors import ConfigError
from domaeka.state import Secrets, load_or_create_secrets

#: Its command has the name of one that is built in.
TAKEN = Bot("taken")
TAKEN.command("# echo")(lambda ctx: None)


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

    def test_bot_beside_it(self) -> None:
        """A bot in the directory from which the server is started counts as it does there."""
        (self.directory / "shop_bot.py").write_text(
            "from domaeka import Bot\nbot = Bot('shop')\n", encoding="utf-8"
        )
        self.assertEqual(self.check("[bots]\nload = ['shop_bot:bot']\n")[0], 0)

    def test_no_file(self) -> None:
        """A file that is not there is named."""
        result = self.run_command("check-config", "nowhere.toml")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("nowhere.toml", result.output)


class InitTests(CommandCase):
    """C{domaeka init}."""

    def test_writes_what_a_server_needs(self) -> None:
        """The settings can be read, the secrets are private, and the script's lines fit them."""
        result = self.run_command("init", "--host", "chat.example", "--state-dir", str(self.state))
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(load_settings(Path("domaeka.toml"), environment={}), Settings())
        secrets = self.state / "secrets.toml"
        self.assertEqual(stat.S_IMODE(secrets.stat().st_mode), 0o600)
        found = dict(re.findall(r"const (\w+) = (.*);", result.output))
        made = load_or_create_secrets(self.state)
        self.assertEqual(found["SECRET_KEY"], f'"{made.secret_key}"')
        self.assertEqual(found["SALT"], f'"{made.salt}"')
        self.assertEqual((found["SERVER_HOST"], found["SERVER_PORT"]), ('"chat.example"', "9000"))

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
        """Whatever a secret is made of, the lines are good JavaScript."""
        lines = script_lines("h", 1, Secrets(secret_key='a"\\b\n', salt="소금"))
        self.assertIn('const SECRET_KEY = "a\\"\\\\b\\n";', lines)
        self.assertIn('const SALT = "소금";', lines)


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
