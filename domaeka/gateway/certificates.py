"""
TLS for phones: certificates that are read again while the server runs.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from domaeka.config import TlsSettings
from domaeka.errors import ConfigError

#: How often the files are looked at, in seconds.
LOOK_SECONDS: Final = 60.0

#: How long before its end a certificate is reported, in seconds: those of 90 days are renewed
#: 30 days before.
WARNING_SECONDS: Final = 14 * 86_400.0
#: Of TLS 1.2: only those that keep what was said from whoever gets the key later.  Source:
#: RFC 9325, 4.2.
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"

#: What the files said: when and which they were, what a connection is made with, and their end.
Loaded: TypeAlias = tuple[list[tuple[int, int]], SSL.Context, float]


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """
    What a TLS listener shows, and asks for: TLS 1.2 and up.

    Files that cannot be used change nothing: what was read before stays.

    @ivar expires: when the certificate ends, in seconds since 1970.
    """

    log = Logger()

    def __init__(self, settings: TlsSettings) -> None:
        """@raise ConfigError: a file cannot be used: one line that says which, and why."""
        self._settings = settings
        self._stamps, self._context, self.expires = self.load()

    # IOpenSSLServerConnectionCreator

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self._context, None)

    def load(self) -> Loaded:
        """
        Read the files.

        @return: for L{use}.
        @raise ConfigError: a file cannot be used: one line that says which, and why.
        """
        # Their time first: what is written in between is read again.
        return self._stamps_now(), *self._read()

    def use(self, loaded: Loaded) -> bool:
        """
        Show to what connects from now on what was read.

        @return: whether the files are others than before.
        """
        before = self._stamps
        self._stamps, self._context, self.expires = loaded
        if self._stamps == before:
            return False
        self.log.info(
            "certificates read; they end on {day}",
            day=datetime.fromtimestamp(self.expires, UTC).date().isoformat(),
        )
        return True

    def health(self, now: float) -> str | None:
        """
        What is wrong with the certificate.

        @param now: in seconds since 1970.
        """
        day = datetime.fromtimestamp(self.expires, UTC).date().isoformat()
        if now >= self.expires:
            return f"it ended on {day}: phones that check it stay away"
        return f"it ends on {day}" if self.expires - now < WARNING_SECONDS else None

    def look(self) -> None:
        """Read the files if they are not what they were."""
        stamps = self._stamps_now()
        if stamps == self._stamps:
            return
        try:
            self.use(self.load())
        except ConfigError as error:
            self._stamps = stamps  # said once
            self.log.error("certificates stay as they were: {error}", error=str(error))

    def _read(self) -> tuple[SSL.Context, float]:
        settings = self._settings
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(
            SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
        )
        context.set_cipher_list(_CIPHERS)
        context.set_session_id(b"domaeka")
        key_path = settings.key or settings.certificate
        certificate = _read_file("tls.certificate", settings.certificate)
        _read_file("tls.key", key_path)
        try:
            context.use_certificate_chain_file(settings.certificate)
            leaf = crypto.load_certificate(crypto.FILETYPE_PEM, certificate)
        except (SSL.Error, crypto.Error, ValueError):
            raise ConfigError(
                f"tls.certificate: {settings.certificate}: no certificate in PEM form"
            ) from None
        locked = False

        def refuse(*_: object) -> bytes:
            """Nobody is there to type a passphrase."""
            nonlocal locked
            locked = True
            return b""

        context.set_passwd_cb(refuse)
        try:
            context.use_privatekey_file(key_path)
            context.check_privatekey()
        except (SSL.Error, crypto.Error, ValueError):
            why = "has a passphrase" if locked else "not the key of the certificate"
            raise ConfigError(f"tls.key: {key_path}: {why}") from None
        if settings.client_authority:
            _read_file("tls.client_authority", settings.client_authority)
            try:
                context.load_verify_locations(settings.client_authority)
            except (SSL.Error, crypto.Error, ValueError):
                raise ConfigError(
                    f"tls.client_authority: {settings.client_authority}: no certificate in PEM form"
                ) from None
            needed = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if settings.require_client else 0
            context.set_verify(SSL.VERIFY_PEER | needed, lambda *verdict: bool(verdict[-1]))
        return context, _end_of(leaf)

    def _stamps_now(self) -> list[tuple[int, int]]:
        """What changes when the files do."""
        stamps = []
        settings = self._settings
        for path in filter(None, (settings.certificate, settings.key, settings.client_authority)):
            try:
                status = Path(path).stat()
                stamps.append((status.st_mtime_ns, status.st_ino))
            except OSError:
                stamps.append((0, 0))
        return stamps


def _read_file(key: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror or error}") from None


def _end_of(certificate: crypto.X509) -> float:
    """When a certificate ends, in seconds since 1970."""
    text = certificate.get_notAfter()
    if text is None:
        raise ConfigError("tls.certificate: it names no end")
    moment = datetime.strptime(text.decode(), "%Y%m%d%H%M%SZ")
    return moment.replace(tzinfo=UTC).timestamp()
