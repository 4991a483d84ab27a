"""Tests for L{domaeka.web.api.script}."""

from domaeka.phone_script import MAX_SERVERS
from tests.api_case import SECRETS, ApiCase
from tests.test_phone_script import settings_of

PATH = "/phone-script"


class ScriptTests(ApiCase):
    """The script for phones."""

    def test_filled(self) -> None:
        """It has name, key, salt and servers in it, as JavaScript that nobody keeps."""
        query = {"bot": "가게봇", "host": "chat.example,[2001:db8::7]:9100", "tls": "false"}
        status, headers, body = self.ask_raw("GET", PATH, query=query)
        self.assertEqual(status, 200)
        self.assertEqual(headers["Content-Type"], "text/javascript; charset=utf-8")
        self.assertEqual(headers["Cache-Control"], "no-store")
        found = settings_of(body)
        self.assertEqual(
            (found["BOT_NAME"], found["SECRET_KEY"], found["BOT_SPECIFIC_SALT"]),
            ("가게봇", SECRETS.secret_key, SECRETS.salt),
        )
        self.assertEqual(
            [(one["host"], one["port"], one["tls"]) for one in found["SERVER_LIST"]],
            [("chat.example", 9000, False), ("2001:db8::7", 9100, False)],
        )

    def test_settings_in_force(self) -> None:
        """The port is that of the settings."""
        self.serve_api(("server.port", "9200"))
        found = settings_of(self.get(PATH, host="a").encode())
        self.assertEqual(found["SERVER_LIST"][0]["port"], 9200)
        self.assertEqual(found["BOT_NAME"], "domaeka")

    def test_tls(self) -> None:
        """With TLS the port must be given, or be that of a certificate in the settings."""
        found = settings_of(self.get(PATH, host="a:9443", tls="true").encode())
        self.assertTrue(found["SERVER_LIST"][0]["tls"])
        status, _, text = self.refusal("GET", PATH, host="a", tls="true")
        self.assertEqual(status, 400)
        self.assertIn("tls.certificate", text)

    def test_wrong(self) -> None:
        """What cannot be in a script is refused, by the name of what is wrong."""
        for name, value in (
            ("bot", ""),
            ("bot", "a\nb"),
            ("bot", "x" * 129),
            ("host", ""),
            ("host", "a,,b"),
            ("host", "a,"),
            ("host", "가게"),
            ("host", "a:0"),
            ("host", "a:65536"),
            ("host", ",".join(["a"] * (MAX_SERVERS + 1))),
            ("tls", "perhaps"),
            ("pin", "true"),
        ):
            status, _, text = self.refusal("GET", PATH, **{name: value})
            self.assertEqual(status, 400, value)
            self.assertTrue(text.startswith(f"{name}: "), text)
            self.assertNotIn(SECRETS.secret_key, text)
        self.assertEqual(self.refusal("GET", PATH, token="x")[0], 400)

    def test_needs_the_token(self) -> None:
        """Nobody without the token learns the key, on this machine either."""
        status, _, body = self.ask_raw("GET", PATH, Authorization="Bearer wrong")
        self.assertEqual(status, 401)
        self.assertNotIn(SECRETS.secret_key.encode(), body)
