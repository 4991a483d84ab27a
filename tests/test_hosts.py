"""Tests for L{domaeka.web.hosts}, and that every path asks it."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import load_settings
from domaeka.errors import ConfigError
from domaeka.reload import compare
from domaeka.web.hosts import wrong_host
from tests.test_server import BEARER, ServerTests

NAMES = ("chat.example.org", "Domaeka")


class WrongHostTests(SynchronousTestCase):
    """Tests for L{wrong_host}."""

    def status(self, *hosts: bytes, target: bytes = b"/health") -> int:
        """The status of the refusal; 0: there is none."""
        refusal = wrong_host(target, hosts, NAMES)
        return 0 if refusal is None else refusal.status

    def test_addresses_and_localhost(self) -> None:
        """Whoever calls the server by an address, or as localhost, is answered."""
        for host in (
            *(b"127.0.0.1", b"127.0.0.1:8080", b"192.0.2.1:80", b"[::1]", b"[::1]:8080"),
            *(b"localhost", b"LOCALHOST:1", b"localhost.", b" 10.0.0.1\t", b"127.0.0.1:"),
        ):
            self.assertEqual(self.status(host), 0, host)

    def test_names_of_the_settings(self) -> None:
        """Names that are listed are known in any case, with any port."""
        for host in (b"chat.example.org", b"CHAT.example.org.:443", b"domaeka:8080"):
            self.assertEqual(self.status(host), 0, host)

    def test_foreign_names(self) -> None:
        """Any other name is misdirected, whatever it looks like."""
        for host in (
            *(b"evil.example", b"evil.example:8080", b"localhost.evil.example", b"127.0.0.1.evil"),
            *(b"evil-chat.example.org", b"chat.example.org.evil", b"localhost@evil", b"127.1"),
            *(b"", b":8080", b"[::1", b"::1", b"[evil]", b"evil.example/localhost", b"a b"),
            *(b"localhost:8080:1", b"localhost, evil", "도메인".encode(), b"0x7f000001", b"\xff"),
        ):
            self.assertEqual(self.status(host), 421, host)
        refusal = wrong_host(b"/", (b"evil.example",), NAMES)
        assert refusal is not None
        self.assertIn("http.hosts", refusal.text)

    def test_no_host(self) -> None:
        """No browser sends a request without a host: an old health check may."""
        self.assertEqual(self.status(), 0)

    def test_two_hosts(self) -> None:
        """Two of them are a mistake, be they the same."""
        self.assertEqual(self.status(b"localhost", b"localhost"), 400)

    def test_host_in_the_target(self) -> None:
        """A target with a host counts as well as the header."""
        for target, status in (
            (b"http://localhost:8080/health", 0),
            (b"http://evil.example/health", 421),
            (b"HTTPS://evil.example?x", 421),
            (b"http://localhost@evil.example/", 421),
            (b"http://", 421),
        ):
            self.assertEqual(self.status(b"localhost", target=target), status, target)
        self.assertEqual(self.status(b"evil.example", target=b"http://localhost/"), 421)


class SiteTests(ServerTests):
    """The HTTP port."""

    def test_every_path(self) -> None:
        """No path and no method is answered by a foreign name, with the token or without it."""
        for line in (
            *(b"GET /hello", b"GET /anywhere", b"HEAD /hello", b"OPTIONS *", b"GET /nothing"),
            *(b"GET http://evil.example/hello", b"POST /private"),
        ):
            self.line = self.connect()
            self.line.channel.dataReceived(
                line + b" HTTP/1.1\r\nHost: evil.example\r\n" + BEARER + b"\r\n"
            )
            self.clock.advance(0)
            self.assertEqual(self.line.answer()[0], 421, line)
        self.assertEqual(self.calls, [])

    def test_listed_later(self) -> None:
        """A reload may list a name."""
        request = b"GET /hello HTTP/1.1\r\nHost: chat.example.org\r\n\r\n"
        self.assertEqual(self.error(request), (421, "MISDIRECTED"))
        self.site.hosts = lambda: NAMES
        self.line = self.connect()
        self.assertEqual(self.ask(request)[0], 200)


class SettingTests(SynchronousTestCase):
    """C{http.hosts}."""

    def test_names_only(self) -> None:
        """What is no name is found at the start."""
        for text in ("", "http://x", "x:80", "x/", "*", "*.example.org", "-x", "도메인"):
            settings = [("http.hosts", f'["good.example", "{text}"]')]
            error = self.assertRaises(ConfigError, load_settings, None, settings, {})
            self.assertIn("http.hosts", str(error))

    def test_reload(self) -> None:
        """It takes effect at a reload; the port does not."""
        old = load_settings(None, [], {})
        new = load_settings(None, [("http.hosts", '["a.example"]'), ("http.port", "1")], {})
        settings, report = compare(old, new)
        self.assertEqual((settings.http.hosts, settings.http.port), (("a.example",), 8080))
        self.assertEqual((report.changed, report.needs_restart), (["http.hosts"], ["http.port"]))
