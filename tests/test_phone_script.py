"""Tests for L{domaeka.phone_script}."""

import json
import re
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate
from twisted.trial.unittest import SynchronousTestCase

from domaeka import phone_script
from domaeka.config import ServerSettings, Settings, TlsSettings
from domaeka.errors import ConfigError
from domaeka.phone_script import (
    MAX_SERVERS,
    SCRIPT_VERSION,
    ScriptServer,
    fill_script,
    is_outdated,
    script_servers,
)
from tests.integration.test_tls import Authority
from tests.test_cli import ODD_TEXTS

SCRIPT = Path(__file__).parents[1] / "etc/phone/bridge.js"
SERVER = ScriptServer("192.0.2.7", 9000)
#: A name in the settings: at the beginning of a line, or in a server.
_NAME = re.compile(r"(?<=^    )[A-Z_]+(?=: )|(?<=[{,] )[a-z]+(?=: )", re.M)


def settings_of(script: bytes) -> Any:
    """C{BOT_CONFIG} of a script: JSON, but for comments and names without quotes."""
    head = script.decode().partition("\n};\n")[0].partition("\nvar BOT_CONFIG = ")[2] + "\n}"
    head = re.sub(r"^ *//.*\n", "", head, flags=re.M)
    return json.loads(_NAME.sub(r'"\g<0>"', head))


class FillTests(SynchronousTestCase):
    """The script is filled in."""

    def test_filled(self) -> None:
        """The settings are in it, the preferred server first; all else is as it was."""
        pinned = ScriptServer("2001:db8::7", 9443, True, "ab" * 32)
        script = fill_script("가게봇", "k" * 32, "소금", [pinned, SERVER])
        found, before = settings_of(script), settings_of(SCRIPT.read_bytes())
        servers = [
            {
                "host": "2001:db8::7",
                "port": 9443,
                "priority": 1,
                "name": "2001:db8::7",
                "tls": True,
                "pin": "ab" * 32,
            },
            {
                "host": "192.0.2.7",
                "port": 9000,
                "priority": 2,
                "name": "192.0.2.7",
                "tls": False,
                "pin": "",
            },
        ]
        filled = {
            "BOT_NAME": "가게봇",
            "SECRET_KEY": "k" * 32,
            "BOT_SPECIFIC_SALT": "소금",
            "SERVER_LIST": servers,
        }
        self.assertEqual(found, before | filled)
        self.assertIn('BOT_NAME: "가게봇"', script.decode())
        lines, original = script.decode().splitlines(), SCRIPT.read_text("utf-8").splitlines()
        kept = [line for line in original if line in lines]
        self.assertEqual(len(original) - len(kept), 4)  # three settings, and the one server

    def test_odd_texts(self) -> None:
        """Whatever a name or a secret is made of, an engine of ES5 reads what was meant."""
        for text in (*ODD_TEXTS, "".join(ODD_TEXTS), "\\1 \\g<0>", 'SECRET_KEY: "",', "\n};\n"):
            script = fill_script(text, text, text, [SERVER])
            found = settings_of(script)
            self.assertEqual(
                [found[name] for name in ("BOT_NAME", "SECRET_KEY", "BOT_SPECIFIC_SALT")],
                [text] * 3,
            )
            self.assertTrue(all(map(str.isprintable, script.decode().split("\n"))), text)

    def test_no_script(self) -> None:
        """Without the script, or with another file in its place, one line says so."""
        place = Path(self.mktemp())
        self.addCleanup(phone_script._script.cache_clear)
        self.patch(phone_script, "_path", lambda: place)
        for content in (None, "../etc/phone/bridge.js"):
            if content is not None:
                place.write_text(content)
            phone_script._script.cache_clear()
            error = self.assertRaises(ConfigError, fill_script, "b", "k", "s", [SERVER])
            self.assertIn(str(place), str(error))


class ServersTests(SynchronousTestCase):
    """The list of servers."""

    def test_hosts(self) -> None:
        """Each has its own port, or that of the settings; TLS has another one."""
        settings = Settings(
            server=ServerSettings(port=9100), tls=TlsSettings(certificate="c", port=9543)
        )
        hosts = ("chat.example", "192.0.2.7:1", "[2001:DB8::7]", "[::1]:65535", "my_host-2")
        names = ["chat.example", "192.0.2.7", "2001:DB8::7", "::1", "my_host-2"]
        for tls, port in ((False, 9100), (True, 9543)):
            found = script_servers(hosts, settings, tls=tls)
            self.assertEqual([server.host for server in found], names)
            self.assertEqual([server.port for server in found], [port, 1, port, 65535, port])
            self.assertEqual({server[2:] for server in found}, {(tls, "")})

    def test_wrong(self) -> None:
        """A host that the script would leave out is refused in one line, as are too many."""
        for host in (
            *("", " ", "a b", "a:", ":1", "a:0", "a:65536", "a:1:2", "::1", "[::1", "[]", "[a]"),
            *(
                "[1.2.3.4]",
                "가게.example",
                "a/b",
                'a"b',
                "a\n",
                "a\u2028",
                "x" * 254,
                "[fe80::1%1]",
            ),
            *("a:1\n", "a:１", "a:" + "9" * 99, "[" + ":" * 9999 + "]"),
        ):
            error = self.assertRaises(ValueError, script_servers, [host], Settings())
            self.assertTrue(str(error).isprintable(), host)
            self.assertLess(len(str(error)), 250)
        most = ["a"] * MAX_SERVERS
        self.assertEqual(len(script_servers(most, Settings())), MAX_SERVERS)
        self.assertRaises(ValueError, script_servers, [*most, "a"], Settings())

    def test_no_port(self) -> None:
        """Where the settings have no port, the host must."""
        settings = Settings(server=ServerSettings(port=0))
        for tls, name in ((False, "server.port"), (True, "tls.certificate")):
            error = self.assertRaises(ConfigError, script_servers, ["a"], settings, tls=tls)
            self.assertIn(name, str(error))
            self.assertEqual(script_servers(["a:5"], settings, tls=tls)[0].port, 5)

    def test_guessed(self) -> None:
        """Without a host it is the address of this machine."""
        self.patch(phone_script, "own_address", lambda: "192.0.2.9")
        self.assertEqual(script_servers([], Settings()), [ScriptServer("192.0.2.9", 9000)])

    def test_pin(self) -> None:
        """A pin is the SHA-256 of the certificate alone, in DER: the first one of the file."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        file = directory / "chain.pem"
        authority = Authority(directory, "authority")
        authority.issue(file)
        file.write_bytes(file.read_bytes() + authority.path.read_bytes())
        settings = Settings(tls=TlsSettings(certificate=str(file)))
        found = script_servers(["a", "b"], settings, tls=True, pin=True)
        leaf = load_pem_x509_certificate(file.read_bytes())
        self.assertEqual({server.pin for server in found}, {leaf.fingerprint(SHA256()).hex()})
        for content in (b"", b"\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n"):
            file.write_bytes(content)
            with self.assertRaisesRegex(ConfigError, "^tls.certificate: .*no certificate"):
                script_servers(["a"], settings, tls=True, pin=True)
        file.unlink()
        with self.assertRaisesRegex(ConfigError, "^tls.certificate: .*no such file"):
            script_servers(["a"], settings, tls=True, pin=True)
        with self.assertRaisesRegex(ConfigError, "not set"):
            script_servers(["a:1"], Settings(), tls=True, pin=True)


class VersionTests(SynchronousTestCase):
    """The version of a phone's script."""

    def test_agrees(self) -> None:
        """The version and the number of servers are those of the script."""
        text = SCRIPT.read_text("utf-8")
        self.assertIn(f'var VERSION = "{SCRIPT_VERSION}";', text)
        self.assertIn(f"var MAX_SERVERS = {MAX_SERVERS};", text)

    def test_outdated(self) -> None:
        """A script of before, and an older one of ours, is old; no other client ever is."""
        for version in ("3.2.0", "3.3.3", "3.3.3.1", "4", "domaeka-0.9.9", "domaeka-0.10"):
            self.assertTrue(is_outdated("MessengerBotR", version), version)
            for client in ("domaeka", "", "messengerbotr", "MessengerBot"):
                self.assertFalse(is_outdated(client, version))
        for version in (
            *(SCRIPT_VERSION, "domaeka-1", "domaeka-1.0.0.0", "domaeka-1.0.1", "domaeka-10.0"),
            *("", "x", "domaeka-", "domaeka-x", "domaeka--1", "3.3.3-mine", "３.3", "1" * 128),
            *("domaeka-" + "9" * 5000, "3." * 60 + "3", "3.3\n"),
        ):
            self.assertFalse(is_outdated("MessengerBotR", version), version)
