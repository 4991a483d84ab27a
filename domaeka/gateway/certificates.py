"""
TLS for phones: certificates that are read again while the server runs.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from domaeka.config import TlsSettings
from domaeka.errors import ConfigError
from domaeka.toml import check_private

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


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """
    What TLS is spoken with; all are PEM files.

    @ivar certificate: may have its chain behind it.
    @ivar chain: more of the chain; empty: none.
    @ivar client_authority: who signs the certificates of clients; empty: none is asked for.
    @ivar require_client: whether a client must show one.
    @ivar names: what errors call the first three.
    """

    certificate: str
    key: str
    chain: str = ""
    client_authority: str = ""
    require_client: bool = False
    names: tuple[str, str, str]


def files_of(settings: TlsSettings) -> TlsFiles:
    """What the C{tls} section names."""
    return TlsFiles(
        certificate=settings.certificate,
        key=settings.key or settings.certificate,
        client_authority=settings.client_authority,
        require_client=settings.require_client,
        names=("tls.certificate", "tls.key" if settings.key else "tls.certificate", ""),
    )


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """
    What a TLS listener shows, and asks for: TLS 1.2 and up.

    Files that cannot be used change nothing: what was read before stays.

    @ivar expires: when the certificate ends, in seconds since 1970.
    """

    log = Logger()

    def __init__(self, files: TlsFiles) -> None:
        """@raise ConfigError: a file cannot be used: one line that says which, and why."""
        self._files = files
        self._stamps, self._context, self.expires = self.load()

    # IOpenSSLServerConnectionCreator

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self._context, None)

    @property
    def path(self) -> str:
        """Where the certificate is."""
        return self._files.certificate

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
            "certificate {path} read; it ends on {day}", path=self.path, day=_day(self.expires)
        )
        return True

    def health(self, now: float) -> str | None:
        """
        What is wrong with the certificate.

        @param now: in seconds since 1970.
        """
        day = _day(self.expires)
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
            self.log.error(
                "certificate {path} stays as it was: {error}", path=self.path, error=error
            )

    def _read(self) -> tuple[SSL.Context, float]:
        files = self._files
        named, key_named, chain_named = files.names
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(
            SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
        )
        context.set_cipher_list(_CIPHERS)
        context.set_session_id(b"domaeka")
        certificate = _read_file(named, files.certificate)
        _read_file(key_named, files.key)
        key = Path(files.key)
        check_private(key.stat(), key, f"{key_named}: {key}")
        try:
            context.use_certificate_chain_file(files.certificate)
            leaf = x509.load_pem_x509_certificate(certificate)
        except (SSL.Error, ValueError):
            raise _no_certificate(named, files.certificate) from None
        if files.chain:
            more = _read_file(chain_named, files.chain)
            try:
                for issuer in x509.load_pem_x509_certificates(more):
                    context.add_extra_chain_cert(issuer)
            except (SSL.Error, ValueError):
                raise _no_certificate(chain_named, files.chain) from None
        locked = False

        def refuse(*_: object) -> bytes:
            """Nobody is there to type a passphrase."""
            nonlocal locked
            locked = True
            return b""

        context.set_passwd_cb(refuse)
        try:
            context.use_privatekey_file(files.key)
            context.check_privatekey()
        except (SSL.Error, ValueError):
            why = "has a passphrase" if locked else "not the key of the certificate"
            raise ConfigError(f"{key_named}: {files.key}: {why}") from None
        if files.client_authority:
            _read_file("tls.client_authority", files.client_authority)
            try:
                context.load_verify_locations(files.client_authority)
            except (SSL.Error, ValueError):
                raise _no_certificate("tls.client_authority", files.client_authority) from None
            needed = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if files.require_client else 0
            context.set_verify(SSL.VERIFY_PEER | needed, lambda *verdict: bool(verdict[-1]))
        return context, leaf.not_valid_after_utc.timestamp()

    def _stamps_now(self) -> list[tuple[int, int]]:
        """What changes when the files do."""
        stamps = []
        files = self._files
        for path in filter(
            None, (files.certificate, files.key, files.chain, files.client_authority)
        ):
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


def _no_certificate(named: str, path: str) -> ConfigError:
    return ConfigError(f"{named}: {path}: no certificate in PEM form")


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
