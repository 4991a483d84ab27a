"""Tests for L{domaeka.config}."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import (
    CONFIG_NAME,
    SECRET_KEYS,
    Settings,
    SettingsSource,
    load_settings,
    setting,
    setting_types,
    settings_here,
)
from domaeka.errors import ConfigError
from domaeka.toml import check_trusted

MIB = 1_048_576

#: The settings that are promised, with their defaults.  They are public: none may go or change
#: without a word in CHANGELOG.md.
PROMISED: dict[str, dict[str, Any]] = {
    "server": {
        "port": 9000,
        "interface": "",
        "endpoints": (),
        "max_connections": 100,
        "max_frame_bytes": MIB,
        "max_text_chars": 65_000,
        "handshake_timeout": 10,
        "authentication_timeout": 30,
    },
    "socket": {
        "nodelay": True,
        "keepalive_idle": 30,
        "keepalive_interval": 10,
        "keepalive_count": 9,
        "buffer_bytes": 65_536,
        "user_timeout_ms": 60_000,
        "max_segment": 1220,
        "linger_seconds": 5,
        "reuse_address": True,
        "reuse_port": False,
    },
    "ping": {
        "interval": 30,
        "initial_delay_min": 1,
        "initial_delay_max": 59,
        "timeout": 90,
        "adaptive": True,
        "interval_min": 10,
    },
    "queue": {
        "message_ttl": 30,
        "max_messages": 1000,
        "max_bytes": 16 * MIB,
        "total_bytes": 256 * MIB,
    },
    "compression": {"enabled": True, "threshold_bytes": 10_240, "min_saving": 0.10},
    "breaker": {"failure_threshold": 5, "recovery_timeout": 60},
    "limits": {
        "connections_per_minute": 10,
        "ban_after": 5,
        "ban_seconds": 3600,
        "allow": (),
        "deny": (),
        "max_tracked_addresses": 65_536,
        "messages_per_second": 200,
        "messages_burst": 1000,
    },
    "auth": {
        "mode": "required",
        "secret_key": "",
        "secret_key_file": "",
        "salt": "",
        "salt_file": "",
        "clock_skew": 300,
        "previous_secret_key": "",
        "previous_secret_key_file": "",
        "accept_published_key": False,
    },
    "session": {"lifetime": 3600},
    "devices": {"approval": "signed"},
    "rooms": {"approval": "auto"},
    "bots": {
        "load": (),
        "bot_concurrency": 30,
        "room_concurrency": 3,
        "timeout": 300,
        "operators": (),
    },
    "bots.builtin": {"help": "# help", "echo": "# echo", "client_info": "# client_info"},
    "pacing": {"phone_per_second": 0, "room_per_second": 0},
    "shutdown": {"drain_timeout": 30, "reconnect_after": 60},
    "migration": {"migrate_after": 30, "spread": 30},
    "http": {"port": 8080, "interface": "127.0.0.1"},
    "storage": {
        "url": "",
        "chat_log": True,
        "chat_log_days": 30,
        "chat_log_max_bytes": 10_737_418_240,
    },
    "logging": {"format": "text", "level": "info"},
}
KEYS = list(setting_types())


class ConfigTestCase(SynchronousTestCase):
    """Writes files of settings."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def load(
        self,
        text: str = "",
        overrides: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Settings:
        self.path.write_text(text, encoding="utf-8")
        self.path.chmod(0o600)
        return load_settings(self.path, list((overrides or {}).items()), environment or {})

    def refusal(self, *arguments: Any) -> str:
        """The one line that says what is wrong."""
        said = str(self.assertRaises(ConfigError, self.load, *arguments))
        self.assertTrue(said.isprintable() and len(said) < 300, said)
        return said.replace(str(self.path), "FILE")

    def assert_said(self, said: str, found: str) -> None:
        """C{found} begins as C{said} does; what stands behind its … is in msgspec's own words."""
        begins, _, fact = said.partition("…")
        self.assertTrue(found.startswith(begins) and fact in found[len(begins) :], found)


class DefaultsTests(SynchronousTestCase):
    """What holds where nothing is said."""

    def test_promised(self) -> None:
        """Every promised key is there with its default."""
        found = load_settings(None, (), {})
        for section, names in PROMISED.items():
            for name, default in names.items():
                self.assertEqual(setting(found, f"{section}.{name}"), default)

    def test_described(self) -> None:
        """Every key says what it means."""
        for key, kind in setting_types().items():
            described = False
            while hasattr(kind, "__metadata__"):
                described |= any(meta.description for meta in kind.__metadata__)
                kind = kind.__origin__
            self.assertTrue(described, key)

    def test_no_secret_in_the_code(self) -> None:
        """No secret has a default."""
        for key in SECRET_KEYS:
            section, name = key.split(".")
            self.assertEqual(getattr(getattr(Settings(), section), name), "")


class PrecedenceTests(ConfigTestCase):
    """Defaults, then the file, then the environment, then the command line."""

    def test_order(self) -> None:
        """Each goes before the one ahead of it."""
        text = "[ping]\ninterval = 1\ntimeout = 2\n[server]\nport = 3\n"
        environment = {"DOMAEKA_PING_TIMEOUT": "4", "DOMAEKA_SERVER_PORT": "5", "DOMAEKA_X": "y"}
        found = self.load(text, {"server.port": "6"}, environment)
        self.assertEqual(found.ping.interval_min, 10.0)
        self.assertEqual((found.ping.interval, found.ping.timeout, found.server.port), (1, 4, 6))

    def test_every_key(self) -> None:
        """Every key can be set in all three ways."""
        for key in KEYS:
            section, _, name = key.rpartition(".")
            default = setting(Settings(), key)
            text = default if isinstance(default, str) else msgspec.json.encode(default).decode()
            written = f'"{default}"' if isinstance(default, str) else text
            self.assertEqual(self.load(f"[{section}]\n{name} = {written}"), Settings())
            self.assertEqual(self.load("", {key: text}), Settings())
            variable = f"DOMAEKA_{key.replace('.', '_')}".upper()
            self.assertEqual(self.load("", {}, {variable: text}), Settings())

    def test_text_as_it_stands(self) -> None:
        """Text keys take the text as it stands, the others JSON."""
        found = self.load("", {"server.interface": '"::1"', "bots.load": '["a:b"]'})
        self.assertEqual((found.server.interface, found.bots.load), ('"::1"', ("a:b",)))
        self.assertEqual(self.load("", {"auth.mode": "off"}).auth.mode, "off")

    def test_environment_of_the_process(self) -> None:
        """Where none is given, the environment is that of the process."""
        self.patch(os, "environ", {"DOMAEKA_SERVER_PORT": "7"})
        self.assertEqual(load_settings().server.port, 7)

    def test_later_word_mends_an_earlier_one(self) -> None:
        """What contradicts itself in the file may be put right on the command line."""
        text = "[ping]\ninitial_delay_min = 70\n"
        self.assertEqual(
            self.refusal(text),
            "FILE:2: ping.initial_delay_min: must not be above ping.initial_delay_max",
        )
        found = self.load(text, {"ping.initial_delay_max": "80"})
        self.assertEqual(found.ping.initial_delay_max, 80)


class RefusalTests(ConfigTestCase):
    """What is wrong is said in one line: where, which key, and why."""

    def test_file(self) -> None:
        """A wrong value or key in the file is named with its line."""
        for text, said in (
            ("[server]\nport = 'x'", "FILE:2: server.port: …int"),
            ("\n[server]\nport = 70000", "FILE:3: server.port: …65535"),
            ("[server]\nport = true", "FILE:2: server.port: …int"),
            ("[server]\nendpoints = [5]", "FILE:2: server.endpoints: …str"),
            ("[auth]\nmode = 'no'", "FILE:2: auth.mode: must be one of off, optional, required"),
            ("[ping]\n\ninterval = 0", "FILE:3: ping.interval: …0.0"),
            ("[ping]\ninterval = nan", "FILE:2: ping.interval: …0.0"),
            ("[ping]\ninterval = inf", "FILE:2: ping.interval: …31536000"),
            ("[compression]\nmin_saving = 1.0", "FILE:2: compression.min_saving: …1.0"),
            ("ping.interval = -1", "FILE:1: ping.interval: …0.0"),
            ("[server]\nprt = 1", "FILE:2: server.prt: there is no such setting"),
            ("[serve]\nport = 1", "FILE:1: serve: there is no such setting"),
            ("server = 1", "FILE:1: server: …int"),
            ('"a\\nb" = 1', "FILE: 'a\\nb': there is no such setting"),
        ):
            self.assert_said(said, self.refusal(text))

    def test_syntax(self) -> None:
        """What is no TOML is named with its line."""
        for text, line in (
            ("[server]\nport = ", 2),
            ("[server]\nport = 1\nport = 2", 3),
            ("[server\n", 1),
            ("\n\nx = 1979-13-01\n\n", 3),
            ("x = 'a", 1),
        ):
            said = self.refusal(text)
            self.assertTrue(said.startswith(f"FILE:{line}: "), said)
            self.assertNotIn("at line", said)
        for text in ("x = " + "[" * 5000, "x = " + "9" * 5000):
            self.assertTrue(self.refusal(text).startswith("FILE: "))

    def test_secrets_that_others_may_read(self) -> None:
        """A file with a secret must be private; a group may read it."""
        for text, key in (
            ("[auth]\nsalt = 'abc'", "auth.salt"),
            ("[auth]\nsecret_key = 'a secret of enough bytes'", "auth.secret_key"),
            ("[storage]\nurl = 'postgresql://user:abc@host/db'", "storage.url"),
        ):
            self.path.write_text(text)
            self.path.chmod(0o640)
            load_settings(self.path, (), {})
            self.path.chmod(0o604)
            said = str(self.assertRaises(ConfigError, load_settings, self.path, (), {}))
            mode = "mode 0604: others may read it; try: chmod 600"
            self.assertEqual(said, f"{self.path}:2: {key}: {mode} {self.path}")
        for text in ("[auth]\nsalt = ''", "[storage]\nurl = 'postgresql://user@host/db'"):
            self.path.write_text(text)
            load_settings(self.path, (), {})

    def test_found_later(self) -> None:
        """What turns out wrong only when it is used is named with the place where it stands."""
        self.path.write_text("[bots]\nload = ['a:bot']\n[tls]\n\ncertificate = 'c'\n")
        source = SettingsSource(self.path, [("storage.url", "x")], {})
        source.load()
        for error, place in (
            ("tls.certificate: c: none", f"{self.path}:5: "),
            ("storage.url: none", "command line: "),
            ("bots.load: a:bot: none", f"{self.path}:2: "),
            ("bots.load: b:bot: none", ""),  # from somewhere else
            ("server.port: taken", ""),  # the default
            ("anything", ""),
        ):
            self.assertEqual(source.locate(error), place + error)

    def test_no_file(self) -> None:
        """A file that cannot be read is named."""
        self.path.mkdir()
        for path in (self.path, self.path / "none"):
            said = str(self.assertRaises(ConfigError, load_settings, path, (), {}))
            self.assertTrue(said.startswith(f"{path}: "))
        (self.path / "latin").write_bytes(b"x = '\xe9'")
        said = str(self.assertRaises(ConfigError, load_settings, self.path / "latin", (), {}))
        self.assertEqual(said, f"{self.path}/latin: not UTF-8")

    def test_command_line_and_environment(self) -> None:
        """Without a file it is the command line, or the variable, that is named."""
        for key, value, said in (
            ("server.port", "abc", "server.port: 'abc' is not a number"),
            ("server.port", '"9"', "server.port: …int"),
            ("server.port", "-1", "server.port: …0"),
            ("ping.interval", "NaN", "ping.interval: 'NaN' is not a number"),
            ("ping.interval", "1e999", "ping.interval: "),
            ("auth.mode", "no", "auth.mode: must be one of off, optional, required"),
            ("bots.load", "[" * 5000, "bots.load: '[[["),
            ("bots.load", "a:b", "bots.load: 'a:b' is not JSON"),
            ("server.interface", "\udcff", "server.interface: not UTF-8"),
            ("server.port", "\udcff", "server.port: not UTF-8"),
            ("bots.load", '["a"]', "bots.load: 'a' is not MODULE:ATTRIBUTE"),
        ):
            self.assert_said(f"command line: {said}", self.refusal("", {key: value}))
            variable = "DOMAEKA_" + key.replace(".", "_").upper()
            self.assert_said(f"{variable}: {said}", self.refusal("", {}, {variable: value}))
        said = self.refusal("", {}, {"DOMAEKA_SERVER_PORTT": "3"})
        self.assertEqual(said, "DOMAEKA_SERVER_PORTT: there is no such setting")
        for key in ("nope", "server", "server.", ".port", "server.port.x", "x\ny", ""):
            self.assertIn("there is no setting", self.refusal("", {key: "1"}))

    def test_contradictions(self) -> None:
        """What is well formed but cannot work is refused as well."""
        for section, line, why in (
            ("queue", "max_bytes = 1_000_000_000", "must not be above queue.total_bytes"),
            ("socket", "max_segment = 535", "must be 0, or 536 or more"),
            ("limits", "allow = ['10.0.0.1/8']", "'10.0.0.1/8' is no network in CIDR form"),
            ("limits", "deny = ['::1', 'x']", "'x' is no network in CIDR form"),
            ("bots", "load = ['a:b', ':c']", "':c' is not MODULE:ATTRIBUTE"),
            ("bots", "operators = ['1/2', '12']", "'12' is not CHANNEL_ID/USER_HASH"),
            ("pacing", "room_per_second = 0.0001", "must be 0, or 0.001 or more"),
            ("tls", "require_client = true", "needs tls.client_authority"),
            ("auth", "secret_key = 'sesame'", "must have 16 bytes or more"),
            ("auth", "previous_secret_key = 'sesame'", "must have 16 bytes or more"),
            ("auth", "salt_file = '/x'\nsalt = 'y'", "not beside auth.salt"),
        ):
            key = f"{section}.{line.split()[0]}"
            found = self.refusal(f"[{section}]\n{line}")
            self.assertTrue(found.startswith(f"FILE:2: {key}: {why}"), found)

    def test_secrets_are_not_told(self) -> None:
        """However wrong a secret is, what is said of it does not hold it."""
        for key in SECRET_KEYS:
            section, name = key.split(".")
            for value in ("'sesame", "sesame-sesame", "['sesame']", "5e5e5", '"sesame\\uD800"'):
                said = self.refusal(f"[{section}]\n{name} = {value}")
                self.assertNotIn("sesame", said)
            self.assertNotIn("sesame", self.refusal("", {key: "\udcff sesame"}))
        for key in SECRET_KEYS - {"auth.salt"}:
            self.assertNotIn("sesame", self.refusal("", {key: "sesame"}))

    def test_repr(self) -> None:
        """Settings that are shown somewhere show no secret."""
        found = self.load("", dict.fromkeys(SECRET_KEYS, "sesame-sesame-sesame"))
        self.assertNotIn("sesame", f"{found} {found!r} {found.auth}")

    @given(st.sampled_from(KEYS), st.text())
    def test_any_text(self, key: str, text: str) -> None:
        """Whatever is given for a key, it is taken or refused in one line."""
        try:
            load_settings(None, [(key, text)], {})
        except ConfigError as error:
            self.assertEqual(len(str(error).splitlines()), 1)


class FoundTests(SynchronousTestCase):
    """The settings that lie where a process is started."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        before = os.getcwd()
        os.chdir(directory)
        self.addCleanup(os.chdir, before)
        self.file = Path(CONFIG_NAME)

    def write(self, mode: int = 0o644) -> None:
        """A file with a setting that is not the default."""
        self.file.write_text("[server]\nport = 9001\n")
        self.file.chmod(mode)

    def test_found(self) -> None:
        """It is taken where no other is named, and stays the same one wherever the process goes."""
        self.assertIsNone(settings_here().path)
        self.write()
        source = settings_here()
        self.assertTrue(source.found)
        os.chdir("/")
        self.assertEqual(source.load().server.port, 9001)

    def test_another_is_named(self) -> None:
        """A file that is named stands instead; nobody asks who may write to that."""
        self.write()
        other = Path("other.toml")
        other.write_text("[server]\nport = 9002\n")
        other.chmod(0o666)
        source = settings_here(other)
        self.assertEqual((source.found, source.load().server.port), (False, 9002))

    def test_others_may_write(self) -> None:
        """What a group or all may write to is not taken unasked, at no reload either."""
        for mode in (0o664, 0o646, 0o666):
            self.write(mode)
            error = self.assertRaises(ConfigError, settings_here().load)
            self.assertIn(f"mode {mode:04o}: others may write to it", str(error))
            self.assertIn("--config", str(error))  # where modes mean nothing, as on a Windows disk
        self.write()
        source = settings_here()
        source.load()
        self.file.chmod(0o666)
        self.assertRaises(ConfigError, source.load)
        self.file.chmod(0o644)
        self.assertEqual(source.load().server.port, 9001)

    def test_anothers(self) -> None:
        """What another user has put there is not taken unasked, nor what a link of theirs names."""
        self.write()
        status = os.stat(self.file)
        theirs = os.stat_result((*status[:4], os.geteuid() + 1, *status[5:]))
        error = self.assertRaises(ConfigError, check_trusted, theirs, self.file)
        self.assertIn("belongs to another user", str(error))
        check_trusted(os.stat_result((*status[:4], 0, *status[5:])), self.file)
        if os.geteuid() == 0:
            real = self.file.rename("real.toml")
            self.file.symlink_to(real)
            self.assertEqual(settings_here().load().server.port, 9001)
            os.lchown(self.file, 12345, 12345)
            self.assertRaises(ConfigError, settings_here().load)
            self.file.unlink()
            os.mkfifo(self.file)  # it is not even opened
            os.chown(self.file, 12345, 12345)
            self.assertRaises(ConfigError, settings_here().load)

    def test_link_to_nothing(self) -> None:
        """A link that leads nowhere is no reason to go on without it."""
        self.file.symlink_to("nowhere.toml")
        error = self.assertRaises(ConfigError, settings_here().load)
        self.assertIn("No such file", str(error))
