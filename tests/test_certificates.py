"""Tests for L{domaeka.gateway.transport.certificates}; handshakes are in the integration tests."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import TlsSettings
from domaeka.errors import ConfigError
from domaeka.gateway.transport.certificates import Certificates, files_of
from tests.integration.test_tls import Authority


class CertificatesTests(SynchronousTestCase):
    """Tests for L{Certificates}."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.file = self.directory / "server.pem"
        Authority(self.directory, "authority").issue(self.file)

    def test_passphrase(self) -> None:
        """A key with a passphrase is refused in words; nobody is asked for it."""
        key = self.directory / "key.pem"
        secret = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        key.write_bytes(secret)
        key.chmod(0o600)
        settings = TlsSettings(certificate=str(self.file), key=str(key))
        error = self.assertRaises(ConfigError, Certificates, files_of(settings))
        self.assertEqual(str(error), f"tls.key: {key}: has a passphrase")

    def test_key_that_others_may_read(self) -> None:
        """It is refused, with what helps; one that a group may read is good."""
        files = files_of(TlsSettings(certificate=str(self.file)))
        self.file.chmod(0o640)
        certificates = Certificates(files)
        self.file.chmod(0o644)
        for load in (certificates.load, lambda: Certificates(files)):
            error = self.assertRaises(ConfigError, load)
            said = f"mode 0644: others may read it; try: chmod 600 {self.file}"
            self.assertEqual(str(error), f"tls.certificate: {self.file}: {said}")

    def test_end(self) -> None:
        """An end that is near, or past, is reported."""
        certificates = Certificates(files_of(TlsSettings(certificate=str(self.file))))
        day = 86_400.0
        self.assertIsNone(certificates.health(certificates.expires - 15 * day))
        self.assertIn("it ends on", str(certificates.health(certificates.expires - 13 * day)))
        self.assertIn("it ended on", str(certificates.health(certificates.expires)))

    def test_looks_at_its_files_only(self) -> None:
        """What happens beside them is nothing to be read again for."""
        certificates = Certificates(files_of(TlsSettings(certificate=str(self.file))))
        before = certificates._context
        Path("something").write_text("new in the working directory")
        certificates.reload_if_changed()
        self.assertIs(certificates._context, before)
        Authority(self.directory, "authority").issue(self.file)
        certificates.reload_if_changed()
        self.assertIsNot(certificates._context, before)
