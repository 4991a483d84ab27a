"""Tests for L{domaeka.gateway.transport.endpoints}."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import ConfigError
from domaeka.gateway.transport.endpoints import parse_endpoint


class EndpointTests(SynchronousTestCase):
    """Tests for L{parse_endpoint}."""

    def test_plain(self) -> None:
        """What is on TCP, by position or by name; IPv4 where no interface is named."""
        for text, address in (
            ("tcp:9001", ("0.0.0.0", 9001, 1024)),
            ("tcp:9001:127.0.0.1:5", ("127.0.0.1", 9001, 5)),
            ("tcp:port=0:backlog=5:interface=\\:\\:1", ("::1", 0, 5)),
        ):
            found = parse_endpoint(text)
            self.assertEqual((found.interface, found.port, found.backlog), address)
            self.assertEqual((found.proxied, found.files), (False, None))

    def test_encrypted(self) -> None:
        """A certificate is where its key is, if nothing else is said; so does Twisted have it."""
        for text, files in (
            ("ssl:443", ("server.pem", "server.pem", "")),
            ("ssl:443:privateKey=a\\:b.pem", ("a:b.pem", "a:b.pem", "")),
            ("ssl:443:k.pem:c.pem:extraCertChain=d=e.pem", ("c.pem", "k.pem", "d=e.pem")),
        ):
            found = parse_endpoint(text).files
            assert found is not None
            self.assertEqual((found.certificate, found.key, found.chain), files)

    def test_behind_a_balancer(self) -> None:
        """It is said in front; the rest is as without."""
        found = parse_endpoint("haproxy:ssl:443")
        self.assertEqual((found.proxied, found.port), (True, 443))
        found = parse_endpoint("haproxy:unix:/run/a\\:b")
        self.assertEqual((found.proxied, found.port, found.inner), (True, None, "unix:/run/a\\:b"))

    def test_wrong(self) -> None:
        """What is wrong is said in one line that has the text in it."""
        for text, why in (
            ("tcp:99999", "port must be 0 to 65535"),
            ("tcp:", "port must be 0 to 65535"),
            ("ssl", "port must be 0 to 65535"),
            ("tcp:1:backlog=x", "backlog must be 0 to 65535"),
            ("tcp:1:a:2:b", "'b' is one argument too many"),
            ("tcp:1:color=red", "tcp: has no 'color', but port, interface, backlog"),
            ("tcp:1:port=2", "port is there twice"),
            ("ssl:1:sslmethod=SSLv23_METHOD", "sslmethod cannot be chosen: TLS 1.2 and up is what"),
            ("ssl:1:dhParameters=d.pem", "dhParameters cannot be chosen: no cipher"),
            ("nonsense:1", "Unknown endpoint type: 'nonsense'"),
            ("haproxy:haproxy:tcp:1", "haproxy: cannot be there twice"),
            ("haproxy:", "Unknown endpoint type: ''"),
            ("systemd:domain=INET:index=0", "systemd has handed over no such socket"),
        ):
            error = self.assertRaises(
                ConfigError, lambda text=text: parse_endpoint(text).made_by_twisted(Clock())
            )
            self.assertIn(f"server.endpoints: {text}: {why}", str(error))
            self.assertEqual(len(str(error).splitlines()), 1)
